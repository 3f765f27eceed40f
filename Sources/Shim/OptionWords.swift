import CLibc
import ClientAPI
import ShimEntry

// TCP_NODELAY of a stream that has just been accepted, in memory shared with the host (alps_option_word in client.h): servers set
// it on each, and a message takes four system calls.

private var mostTables: Int { 16 }

struct OptionTables {
    /// Mapped for as long as the process lives: a thread may be looking at one.
    var tables = [16 of UnsafeMutablePointer<alps_option_word>?](repeating: nil)
    var counts = [16 of UInt32](repeating: 0)
    var used = 0
    /// The program sets the option.
    var isWanted = false
}

nonisolated(unsafe) private var optionTables = OptionTables()

/// Of a listener, when something has been accepted from it: asks for its words if the program has a use for them.
func openOptionWords(_ listener: EntryPointer) {
    guard optionTables.isWanted, listener.pointee.optionWord == 0, !activation.confined, alps_shim_borrows_memory() == 0 else {
        return
    }
    listener.pointee.optionWord = inVain
    let handle = listener.pointee.handle
    var count: UInt32 = 0
    let reply = ask(ALPS_OP_OPTION_WORDS, about: listener, into: &count, 4)
    guard reply.error == 0, reply.descriptor >= 0 else { return }
    defer { _ = alps_sys_close(reply.descriptor) }
    let bytes = Int(count) * MemoryLayout<alps_option_word>.stride
    guard count > 0, count < 4096, optionTables.used < mostTables,
        let memory = alps_sys_mmap(nil, bytes, PROT_READ | PROT_WRITE, Int32(MAP_SHARED), reply.descriptor, 0),
        memory != UnsafeMutableRawPointer(bitPattern: -1)
    else { return }
    var isKept = false
    locked {
        let number = optionTables.used
        // Another thread may have closed it meanwhile.
        guard number < mostTables, listener.pointee.kind == .listener, listener.pointee.handle == handle else { return }
        optionTables.tables[number] = memory.bindMemory(to: alps_option_word.self, capacity: Int(count))
        optionTables.counts[number] = count
        optionTables.used = number + 1
        listener.pointee.optionWord = UInt32(number + 1) << 16
        isKept = true
    }
    if !isKept { _ = alps_sys_munmap(memory, bytes) }
}

private var inVain: UInt32 { .max }

/// Which word an accepted stream has.
func noteOptionWord(_ accepted: EntryPointer, from listener: EntryPointer, _ info: alps_socket_info) {
    let word = UInt32(info.flags) >> ALPS_INFO_WORD_SHIFT
    let table = listener.pointee.optionWord
    guard word > 0, table > 0, table != inVain, word <= optionTables.counts[Int(table >> 16) - 1] else { return }
    accepted.pointee.optionWord = table | word
}

/// TCP_NODELAY. False: a message has to say it, and whatever is set after it.
func setNoDelay(_ found: EntryPointer, _ on: Bool) -> Bool {
    let place = found.pointee.optionWord
    let word = Int(place & 0xffff)
    if on, word > 0, let table = optionTables.tables[Int(place >> 16) - 1] {
        let handle = found.pointee.handle
        if alps_swap_handle(table + word - 1, handle, handle | ALPS_OPTION_NODELAY) != 0 { return true }
    }
    optionTables.isWanted = true
    found.pointee.optionWord = 0
    return false
}

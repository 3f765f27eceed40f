import CLibc
import ClientAPI
import ShimEntry

// TCP_CORK in memory shared with the host (alps_cork_word in client.h): set and cleared without a message.

private var wordCount: Int { 4096 }

struct CorkTable {
    var words: UnsafeMutablePointer<alps_cork_word>? = nil
    /// Session that they belong to, or that has been asked for them in vain.
    var generation = UInt32.max
    /// A bit for each word that is in use.
    var used = [128 of UInt32](repeating: 0)
}

nonisolated(unsafe) private var corkTable = CorkTable()

/// TCP_CORK of a stream that this process has made, and that the host takes such words about. False: a message has to say it.
func setCork(_ found: EntryPointer, _ on: Bool) -> Bool {
    guard !found.pointee.has(Entry.sharesCork) else { return false }
    guard found.pointee.corkWord != 0 else {
        return on && !activation.confined && openCorkWord(found)
    }
    guard let word = corkWord(found) else { return false }
    let before = word.pointee.wanted
    let isHeld = before & 1 != 0
    // The host alone knows what else may be waiting.
    guard on || isHeld else { return false }
    if on, !isHeld {
        word.pointee.wanted = (word.pointee.plain != 0 ? before &+ 2 : before) | 1
        word.pointee.plain = 0
    } else if !on {
        word.pointee.wanted = (before &+ 2) & ~1
    }
    alps_full_fence()
    let applied = withUnsafeMutablePointer(to: &word.pointee.applied) { alps_load_word($0) }
    if applied & ALPS_CORK_LEFT != 0 { return false }
    if !on, applied != 0 {
        var nothing: UInt32 = 0
        return tell(ALPS_OP_STREAM_BELL, about: found, &nothing, 0, tail: nil, 0)
    }
    return true
}

private func corkWord(_ found: EntryPointer) -> UnsafeMutablePointer<alps_cork_word>? {
    let index = Int(found.pointee.corkWord) - 1
    guard index >= 0, index < wordCount else { return nil }
    return corkTable.words.map { $0 + index }
}

/// Before something is written to the pair or a ring.
@inline(never)
func notePlainWrite(_ found: EntryPointer) {
    guard found.pointee.kind == .stream, let word = corkWord(found) else { return }
    if word.pointee.wanted & 1 == 0 { word.pointee.plain = 1 }
}

/// The option is set, and from now on in a word.
private func openCorkWord(_ found: EntryPointer) -> Bool {
    guard haveWords() else { return false }
    for part in 0..<wordCount / 32 {
        let free = ~corkTable.used[part]
        guard free != 0 else { continue }
        let bit = UInt32(free.trailingZeroBitCount)
        guard withUnsafeMutableBytes(of: &corkTable.used, { alps_set_bits($0.baseAddress.unsafelyUnwrapped + 4 * part, 1 << bit) })
            & (1 << bit) == 0
        else { continue }
        var index = UInt32(32 * part) + bit
        guard let words = corkTable.words else { return false }
        words[Int(index)] = alps_cork_word(wanted: 1, applied: 0, plain: 0, reserved: 0)
        guard ask(ALPS_OP_CORK_WORD, about: found, &index, 4).error == 0 else {
            set(found, Entry.sharesCork)
            freeWord(Int(index))
            return false
        }
        found.pointee.corkWord = UInt16(index + 1)
        return true
    }
    return false
}

/// Asks for them if this session has none yet.
private func haveWords() -> Bool {
    // In a child, its parent's table would look like its own.
    dropForeignSession()
    if corkTable.generation == session.generation { return corkTable.words != nil }
    var count: UInt32 = 0
    let reply = ask(ALPS_OP_CORK_WORDS, 0, into: &count, 4)
    let bytes = wordCount * MemoryLayout<alps_cork_word>.stride
    var memory: UnsafeMutableRawPointer?
    if reply.error == 0, reply.descriptor >= 0, Int(count) == wordCount {
        memory = alps_sys_mmap(nil, bytes, PROT_READ | PROT_WRITE, Int32(MAP_SHARED), reply.descriptor, 0)
        if memory == UnsafeMutableRawPointer(bitPattern: -1) { memory = nil }
    }
    if reply.descriptor >= 0 { _ = alps_sys_close(reply.descriptor) }
    locked {
        // Another thread may have been first.
        guard corkTable.generation != session.generation else { return }
        // Numbers mean words of this table, and nothing in another. The old one stays mapped: a thread may be looking at it.
        if let entries = fileTable.entries {
            for each in 0...Int(fileTable.highest) where entries[each].kind == .stream { entries[each].corkWord = 0 }
        }
        corkTable = CorkTable(
            words: memory?.bindMemory(to: alps_cork_word.self, capacity: wordCount), generation: session.generation)
        memory = nil
    }
    if let memory { _ = alps_sys_munmap(memory, bytes) }
    return corkTable.words != nil
}

/// The number means something else, or nothing, from now on. A word that another process may know of stays in use.
func freeCorkWord(_ found: EntryPointer) {
    guard found.pointee.kind == .stream, found.pointee.corkWord != 0 else { return }
    let index = Int(found.pointee.corkWord) - 1
    found.pointee.corkWord = 0
    guard isMadeHere(found), !found.pointee.has(Entry.sharesCork), index < wordCount else { return }
    freeWord(index)
}

private func freeWord(_ index: Int) {
    withUnsafeMutableBytes(of: &corkTable.used) {
        _ = alps_clear_bits($0.baseAddress.unsafelyUnwrapped + 4 * (index / 32), 1 << UInt32(index % 32))
    }
}

/// Before its socket gets a second number: what one number writes, the other's word would know nothing of.
func shareCork(_ found: EntryPointer) {
    guard found.pointee.kind == .stream else { return }
    set(found, Entry.sharesCork)
    found.pointee.corkWord = 0
}

import CLibc
import ClientAPI
import ShimEntry

// Rings of packet sockets in memory that the host and the program share (packet_mmap). mmap of the socket maps the host's
// file, and poll, select and epoll are told about the ring by a token in the socket's pair (client.h): before a program
// waits, the token of a ring that it has emptied is taken away.

/// One ring of this process.
struct MappedRing {
    /// 0: free.
    var handle: UInt64 = 0
    var cookie: UInt64 = 0
    var descriptor: Int32 = -1
    /// The program's mapping.
    var address: UInt = 0
    var length: Int = 0
    /// The shim's own, of all of the file.
    var memory: UnsafeMutableRawPointer? = nil
    var memoryLength: Int = 0
    var control: Int = 0
    /// A read of the program's took the token, and the host has not been told.
    var tookToken = false
    /// `filled` when the ring was looked at last.
    var seen: UInt32 = 0
}

/// More than so many at once in one process have rings, but readiness that is not taken back.
private var mostRings: Int { 32 }

struct MappedRings {
    /// Of those below; what every poll looks at.
    var count = 0
    var all = [32 of MappedRing](repeating: MappedRing())
}

nonisolated(unsafe) var mappedRings = MappedRings()

// MARK: - mapping

private var failedMapping: UnsafeMutableRawPointer? { UnsafeMutableRawPointer(bitPattern: -1) }

/// A socket has no memory of its own, so the kernel refuses; only then it is looked at.
@c(alps_entry_mmap)
public func shimMmap(
    _ address: UnsafeMutableRawPointer?, _ length: Int, _ protection: Int32, _ flags: Int32, _ descriptor: Int32,
    _ offset: off_t
) -> UnsafeMutableRawPointer? {
    let before = alps_errno()
    let mapped = alps_sys_mmap(address, length, protection, flags, descriptor, offset)
    guard mapped == failedMapping, alps_errno() == ENODEV, descriptor >= 0, activation.active,
        let found = stackSocket(descriptor), found.pointee.isPacket
    else { return mapped }
    alps_set_errno(before)
    return mapRing(found, descriptor, address, length, protection, flags, offset)
}

@c(alps_entry_mmap64)
public func shimMmap64(
    _ address: UnsafeMutableRawPointer?, _ length: Int, _ protection: Int32, _ flags: Int32, _ descriptor: Int32,
    _ offset: off_t
) -> UnsafeMutableRawPointer? {
    shimMmap(address, length, protection, flags, descriptor, offset)
}

@inline(never)
private func mapRing(
    _ found: EntryPointer, _ descriptor: Int32, _ address: UnsafeMutableRawPointer?, _ length: Int,
    _ protection: Int32, _ flags: Int32, _ offset: off_t
) -> UnsafeMutableRawPointer? {
    func refuse(_ error: Int32) -> UnsafeMutableRawPointer? {
        alps_set_errno(error)
        return failedMapping
    }
    var information = alps_ring_info()
    let reply = ask(
        ALPS_OP_RING, about: found, into: &information, MemoryLayout<alps_ring_info>.size)
    guard reply.error == 0 else { return refuse(controlError(reply.error)) }
    guard reply.descriptor >= 0 else { return refuse(EMFILE) }
    defer { _ = alps_sys_close(reply.descriptor) }
    // As packet_mmap: all of it, from its beginning.
    guard offset == 0, length == Int(information.bytes) else { return refuse(EINVAL) }
    let mapped = alps_sys_mmap(address, length, protection, flags, reply.descriptor, 0)
    guard mapped != failedMapping, let mapped else { return failedMapping }
    remember(found, descriptor, mapped, length, information, reply.descriptor)
    return mapped
}

private func remember(
    _ found: EntryPointer, _ descriptor: Int32, _ mapped: UnsafeMutableRawPointer, _ length: Int,
    _ information: alps_ring_info, _ file: Int32
) {
    guard alps_shim_borrows_memory() == 0 else { return }
    let whole = Int(information.control) + 4096
    let own = alps_sys_mmap(nil, whole, PROT_READ, MAP_SHARED, file, 0)
    guard own != failedMapping, let own else { return }
    let new = MappedRing(
        handle: found.pointee.handle, cookie: found.pointee.cookie, descriptor: descriptor,
        address: UInt(bitPattern: mapped), length: length, memory: own, memoryLength: whole,
        control: Int(information.control))
    var isKept = false
    locked {
        for index in 0..<mostRings where mappedRings.all[index].handle == 0 && !isKept {
            if let old = mappedRings.all[index].memory { _ = alps_sys_munmap(old, mappedRings.all[index].memoryLength) }
            mappedRings.all[index] = new
            mappedRings.count += 1
            isKept = true
        }
    }
    if !isKept { _ = alps_sys_munmap(own, whole) }
}

@c(alps_entry_munmap)
public func shimMunmap(_ address: UnsafeMutableRawPointer?, _ length: Int) -> Int32 {
    let status = alps_sys_munmap(address, length)
    if mappedRings.count != 0, status == 0 {
        let start = UInt(bitPattern: address)
        for index in 0..<mostRings where mappedRings.all[index].handle != 0 {
            let ring = mappedRings.all[index]
            if start <= ring.address, start &+ UInt(bitPattern: length) >= ring.address &+ UInt(bitPattern: ring.length) {
                release(index)
            }
        }
    }
    return status
}

/// Another thread may be looking at the ring: its memory goes, its addresses stay until the place is used again.
private func release(_ index: Int) {
    locked {
        guard mappedRings.all[index].handle != 0 else { return }
        mappedRings.all[index].handle = 0
        mappedRings.count -= 1
        if let memory = mappedRings.all[index].memory {
            _ = alps_sys_mmap(
                memory, mappedRings.all[index].memoryLength, PROT_READ,
                Int32(MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE), -1, 0)
        }
    }
}

/// The program maps the socket's rings: they cannot be changed (EBUSY).
func isRingMapped(_ found: EntryPointer) -> Bool {
    guard mappedRings.count != 0 else { return false }
    for index in 0..<mostRings where mappedRings.all[index].handle == found.pointee.handle { return true }
    return false
}

/// The rings are about to change: a token of the old ones is void.
func forgetRing(_ found: EntryPointer) {
    guard let entries = fileTable.entries, !activation.confined else { return }
    let descriptor = Int32(found - entries)
    let error = alps_errno()
    while takeToken(descriptor) { giveBack(descriptor) }
    alps_set_errno(error)
}

// MARK: - tokens

/// Takes a token that is the next message of the pair.
private func takeToken(_ descriptor: Int32) -> Bool {
    var header = alps_datagram_header()
    let size = MemoryLayout<alps_datagram_header>.size
    let flags = Int32(MSG_DONTWAIT)
    guard alps_sys_recv(descriptor, &header, size, flags | Int32(MSG_PEEK)) == size, isToken(header) else { return false }
    return alps_sys_recv(descriptor, &header, size, flags) == size
}

func isToken(_ header: alps_datagram_header) -> Bool {
    header.magic == ALPS_DATAGRAM_MAGIC && UInt32(header.flags) & ALPS_DATAGRAM_TOKEN != 0
}

/// Tells the host that the token is gone: it puts a new one there if the ring is not empty after all.
private func giveBack(_ descriptor: Int32) {
    var byte = UInt8(ALPS_TOKEN_TAKEN)
    _ = alps_sys_send(descriptor, &byte, 1, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
}

/// A read of the program's has brought the token: there is nothing to be read. The next poll puts that right.
func tokenWasRead(_ descriptor: Int32, _ found: EntryPointer) {
    for index in 0..<mostRings where mappedRings.all[index].handle == found.pointee.handle {
        mappedRings.all[index].tookToken = true
        return
    }
    // Nobody maps the ring here, so nobody waits for it.
    giveBack(descriptor)
}

/// What every call does that waits for descriptors.
@inline(__always)
func settleRings() {
    if mappedRings.count != 0 { settleMappedRings() }
}

@inline(never)
private func settleMappedRings() {
    // A program that has confined itself makes the calls it has thought of; its ring then stays readable.
    guard alps_shim_borrows_memory() == 0, !activation.confined else { return }
    let error = alps_errno()
    for index in 0..<mostRings where mappedRings.all[index].handle != 0 { settle(index) }
    alps_set_errno(error)
}

/// Takes away the token of a ring that is empty. One that a read took is given back.
private func settle(_ index: Int) {
    let ring = mappedRings.all[index]
    guard let memory = ring.memory else { return }
    let control = memory + ring.control
    let filled = alps_load_word(control + 4)
    let status = Int(alps_load_word(control)) * 4
    let isEmpty = filled == 0 || status + 4 > ring.control || alps_load_word(memory + status) == 0
    // Edge-triggered epoll wants a new event for what has come since.
    let isNew = filled != ring.seen && isEdgeTriggered(ring.descriptor)
    guard isEmpty || isNew || ring.tookToken else { return }
    // The number may mean another socket by now.
    guard cookie(of: ring.descriptor) == ring.cookie else { return release(index) }
    mappedRings.all[index].seen = filled
    mappedRings.all[index].tookToken = false
    if ring.tookToken || takeToken(ring.descriptor) { giveBack(ring.descriptor) }
}

private func isEdgeTriggered(_ descriptor: Int32) -> Bool {
    guard let found = entry(of: descriptor) else { return false }
    return found.pointee.epollEvents & (1 << 31) != 0
}

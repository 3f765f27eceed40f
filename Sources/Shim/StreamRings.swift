import CLibc
import ClientAPI
import ShimEntry

// Rings of streams in shared memory (stream-ring.h): which descriptors have them, and when. The data calls are in
// RingRead.swift and RingWrite.swift, the way back is in RingReturn.swift.

/// A ring file that is mapped here.
struct MappedStreamRing {
    /// 0 while the place is free.
    var handle: UInt64 = 0
    var page: UnsafeMutablePointer<alps_stream_ring>? = nil
    var bytes = 0
    // As the host said at first: what stands in the page later is not believed.
    var receive: UnsafeMutablePointer<UInt8>? = nil
    var send: UnsafeMutablePointer<UInt8>? = nil
    var receiveCapacity: UInt64 = 0
    var sendCapacity: UInt64 = 0
    /// Descriptors that have it, and calls that are using it.
    var descriptors: Int32 = 0
    var users: Int32 = 0
}

typealias RingPointer = UnsafeMutablePointer<MappedStreamRing>
typealias RingPage = UnsafeMutablePointer<alps_stream_ring>

struct RingTable {
    var rings: RingPointer? = nil
    /// Rings that are mapped.
    var count = 0
    /// The child of a fork with rings: before it touches one it opens a session, so that the host gets to know of its end.
    var lacksSession = false
}

nonisolated(unsafe) var ringTable = RingTable()
var mostStreamRings: Int { 1024 }

/// Counts forks in both processes: what was there before is shared by them.
nonisolated(unsafe) var forks: UInt32 = 0

/// Threads that are asking for a ring.
nonisolated(unsafe) var ringOpenings: UInt32 = 0

/// From now on no stream gets a ring that the child would know nothing of.
@c(alps_shim_before_fork)
public func beforeFork() {
    alps_count_word(&forks)
    // The child's session is another.
    activation.streamsAnswered = false
    while alps_load_word(&ringOpenings) != 0 { alps_sys_yield() }
}

extension Entry {
    // ringState
    /// A direction never has a ring again: code without the shim may get at it, or the host wants none.
    static var receivesInBand: UInt32 { 1 }
    static var sendsInBand: UInt32 { 32 }
    static var inBandForGood: UInt32 { receivesInBand | sendsInBand }
    /// The next write begins with a little in the pair, see `sendThroughRing`.
    static var opensWriting: UInt32 { 2 }
    /// It has begun: when the host has taken that, the ring is used.
    static var hasBegunWriting: UInt32 { 8 }
    /// A thread is asking for a ring.
    static var opensRing: UInt32 { 4 }
    /// TCP_CORK goes by messages: the socket has several numbers here, or the host wants it so.
    static var sharesCork: UInt32 { 16 }
    /// What a number that is duplicated has of these.
    static var copied: UInt32 { inBandForGood | opensWriting | hasBegunWriting | sharesCork }
    /// In the upper bits: writes to the pair that are under way.
    static var writer: UInt32 { 256 }

    /// Any of these.
    func has(_ state: UInt32) -> Bool { ringState & state != 0 }

    /// `directions`: ALPS_RING_*.
    static func inBandForGood(_ directions: UInt32) -> UInt32 {
        (directions & ALPS_RING_RECEIVE != 0 ? receivesInBand : 0) | (directions & ALPS_RING_SEND != 0 ? sendsInBand : 0)
    }
}

/// Payload of calls from which a stream is taken for one of bulk data, bytes; and how much of it.
var bulkCall: Int { 16384 }
var bulkAmount: UInt32 { activation.bulkAmount }

@inline(__always)
func hasRing(_ descriptor: Int32) -> Bool {
    fileTable.entries.unsafelyUnwrapped[Int(descriptor)].ring != 0
}

// MARK: - evidence

/// A call has read so much from the pair of a stream.
@inline(__always)
func noteRead(_ descriptor: Int32, _ count: Int) {
    if count >= bulkCall { noteBulkRead(descriptor, count) }
}

@inline(__always)
func noteWritten(_ descriptor: Int32, _ count: Int) {
    if count >= bulkCall { noteBulkWritten(descriptor, count) }
}

@inline(never)
private func noteBulkRead(_ descriptor: Int32, _ count: Int) {
    guard let found = candidate(descriptor, Entry.receivesInBand) else { return }
    found.pointee.bulkRead &+= UInt32(truncatingIfNeeded: min(count, 1 << 24))
    guard found.pointee.bulkRead >= bulkAmount else { return }
    found.pointee.bulkRead = 0
    let error = alps_errno()
    defer { alps_set_errno(error) }
    // An edge is what a byte in the pair gives once; and a socket with a mark wants more than one byte there.
    let edgeTriggered: UInt32 = 1 << 31
    var least: Int32 = 1
    var length = socklen_t(4)
    guard found.pointee.epollEvents & edgeTriggered == 0,
        alps_sys_getsockopt(descriptor, SOL_SOCKET, SO_RCVLOWAT, &least, &length) == 0, least <= 1
    else { return }
    openRing(descriptor, found, ALPS_RING_RECEIVE)
}

@inline(never)
private func noteBulkWritten(_ descriptor: Int32, _ count: Int) {
    guard let found = candidate(descriptor, Entry.sendsInBand) else { return }
    found.pointee.bulkWritten &+= UInt32(truncatingIfNeeded: min(count, 1 << 24))
    guard found.pointee.bulkWritten >= bulkAmount else { return }
    found.pointee.bulkWritten = 0
    let error = alps_errno()
    defer { alps_set_errno(error) }
    openRing(descriptor, found, ALPS_RING_SEND)
}

/// A stream that this process image has made, and shares with no other process. One that was shared with its ring keeps what
/// it has: another process may be writing into the pair while a direction is opened.
private func candidate(_ descriptor: Int32, _ excluded: UInt32) -> EntryPointer? {
    guard !activation.confined, alps_shim_borrows_memory() == 0,
        let found = entry(of: descriptor), found.pointee.kind == .stream,
        !found.pointee.has(excluded), found.pointee.born == forks
    else { return nil }
    return found
}

// MARK: - opening

/// Sets a state, and tells what there was before.
@discardableResult
func set(_ found: EntryPointer, _ state: UInt32) -> UInt32 { alps_set_bits(&found.pointee.ringState, state) }

private func openRing(_ descriptor: Int32, _ found: EntryPointer, _ direction: UInt32) {
    guard cookie(of: descriptor) == found.pointee.cookie, makeTable() else { return }
    // One thread at a time; and whoever makes the stream in-band meanwhile waits for the outcome. Not a handler of this
    // thread, though.
    var mask = sigset_t()
    alps_block_signals(&mask)
    let before = set(found, Entry.opensRing)
    if before & Entry.opensRing == 0 {
        alps_count_word(&ringOpenings)
        let handle = found.pointee.handle
        forEachNumber(of: handle) { set($0, Entry.opensRing) }
        if before & Entry.inBandForGood(direction) == 0, found.pointee.born == alps_load_word(&forks), direction != ALPS_RING_SEND || writersHaveLeft(handle) {
            askForRing(descriptor, found, direction)
        }
        forEachNumber(of: handle) { _ = alps_clear_bits(&$0.pointee.ringState, Entry.opensRing) }
        _ = alps_clear_bits(&found.pointee.ringState, Entry.opensRing)
        _ = alps_add_word(&ringOpenings, UInt32.max)
    }
    alps_restore_signals(&mask)
}

func forEachNumber(of handle: UInt64, _ body: (EntryPointer) -> Void) {
    guard let entries = fileTable.entries else { return }
    for each in 0...Int(fileTable.highest) where entries[each].handle == handle && entries[each].kind == .stream {
        body(entries + each)
    }
}

/// What a thread goes on to write into the pair must not be overtaken by what it writes into the ring next. New writes wait.
private func writersHaveLeft(_ handle: UInt64) -> Bool {
    for _ in 0..<1000 {
        var isWritten = false
        forEachNumber(of: handle) { if $0.pointee.ringState >= Entry.writer { isWritten = true } }
        if !isWritten { return true }
        alps_sys_yield()
    }
    return false
}

/// Before a write to the pair. False: there is a ring by now, or was for a while.
@inline(__always)
func beginPairWrite(_ descriptor: Int32) -> Bool {
    let found = fileTable.entries.unsafelyUnwrapped + Int(descriptor)
    if found.pointee.corkWord != 0 { notePlainWrite(found) }
    let before = alps_add_word(&found.pointee.ringState, Entry.writer)
    if before & Entry.opensRing == 0, found.pointee.ring == 0 { return true }
    return giveWay(found)
}

@inline(__always)
func endPairWrite(_ descriptor: Int32) {
    let found = fileTable.entries.unsafelyUnwrapped + Int(descriptor)
    // Closed meanwhile, and anew: nothing was counted.
    if found.pointee.ringState >= Entry.writer { _ = alps_add_word(&found.pointee.ringState, 0 &- Entry.writer) }
}

@inline(never)
private func giveWay(_ found: EntryPointer) -> Bool {
    _ = alps_add_word(&found.pointee.ringState, 0 &- Entry.writer)
    while found.pointee.has(Entry.opensRing) { alps_sys_yield() }
    return false
}

/// The same for a stream whose ring was found closed.
func beginPairWriteBesideRing(_ descriptor: Int32) -> Bool {
    guard let found = entry(of: descriptor), found.pointee.kind == .stream else { return true }
    let before = alps_add_word(&found.pointee.ringState, Entry.writer)
    if before & Entry.opensRing != 0 { return giveWay(found) }
    var isOpen = false
    var mask = sigset_t()
    alps_block_signals(&mask)
    if let ring = beginUse(found) {
        isOpen = alps_load_word(&ring.pointee.page.unsafelyUnwrapped.pointee.closed) & ALPS_RING_SEND == 0
        endUse(ring)
    }
    alps_restore_signals(&mask)
    return isOpen ? giveWay(found) : true
}

private func askForRing(_ descriptor: Int32, _ found: EntryPointer, _ direction: UInt32) {
    var directions = direction
    var information = alps_stream_ring_info()
    let reply = ask(
        ALPS_OP_STREAM_RING, about: found, &directions, 4, into: &information, MemoryLayout<alps_stream_ring_info>.size)
    guard reply.error == 0 else {
        if reply.error != EAGAIN { set(found, Entry.inBandForGood(direction)) }
        return
    }
    var index = 0
    if reply.descriptor >= 0 {
        index = map(found.pointee.handle, Int(information.bytes), reply.descriptor)
        _ = alps_sys_close(reply.descriptor)
    }
    guard index != 0, let rings = ringTable.rings else {
        // Without descriptors, memory or places left it goes on in the pair.
        var all = ALPS_RING_RECEIVE | ALPS_RING_SEND
        _ = ask(ALPS_OP_STREAM_PAIR, about: found, &all, 4)
        set(found, Entry.inBandForGood)
        return
    }
    let page = rings[index - 1].page.unsafelyUnwrapped
    if information.is_first & ALPS_RING_RECEIVE != 0 {
        var unread: Int32 = 0
        _ = alps_sys_ioctl(descriptor, alps_FIONREAD, &unread)
        withUnsafeMutablePointer(to: &page.pointee.receive_head) {
            alps_store_position($0, page.pointee.receive_inband &- UInt64(max(unread, 0)))
        }
        unlock(&page.pointee.read_lock)
    }
    if information.is_first & ALPS_RING_SEND != 0 {
        _ = alps_clear_bits(&found.pointee.ringState, Entry.hasBegunWriting)
        set(found, Entry.opensWriting)
    }
    locked {
        // Counted once already, for this descriptor. The socket may have others: all of them have the ring, or what is
        // written by one would overtake what is written by another.
        rings[index - 1].descriptors -= 1
        guard let entries = fileTable.entries else { return }
        for each in 0...Int(fileTable.highest)
        where entries[each].handle == found.pointee.handle && entries[each].kind == .stream && entries[each].ring != UInt16(index) {
            let old = Int(entries[each].ring)
            entries[each].ring = UInt16(index)
            rings[index - 1].descriptors += 1
            guard old != 0 else { continue }
            rings[old - 1].descriptors -= 1
            unmapIfUnused(rings + (old - 1))
        }
        unmapIfUnused(rings + (index - 1))
    }
}

private func makeTable() -> Bool {
    if ringTable.rings != nil { return true }
    guard let memory = alps_map_anonymous(mostStreamRings * MemoryLayout<MappedStreamRing>.stride) else { return false }
    locked { if ringTable.rings == nil { ringTable.rings = memory.bindMemory(to: MappedStreamRing.self, capacity: mostStreamRings) } }
    return true
}

/// Maps a file, or finds that it is mapped; counted as one more descriptor's. 1 more than its place, 0 if it cannot be had.
private func map(_ handle: UInt64, _ bytes: Int, _ file: Int32) -> Int {
    var index = place(of: handle)
    if index != 0 { return index }
    guard bytes > 4096, bytes <= 1 << 32 else { return 0 }
    let mapped = alps_sys_mmap(nil, bytes, PROT_READ | PROT_WRITE, Int32(MAP_SHARED), file, 0)
    guard let mapped, mapped != UnsafeMutableRawPointer(bitPattern: -1) else { return 0 }
    _ = alps_sys_madvise(mapped, bytes, MADV_DONTDUMP)
    let page = mapped.assumingMemoryBound(to: alps_stream_ring.self)
    let (receiveOffset, sendOffset) = (page.pointee.receive_offset, page.pointee.send_offset)
    let (receiveCapacity, sendCapacity) = (UInt64(page.pointee.receive_capacity), UInt64(page.pointee.send_capacity))
    let isSound =
        page.pointee.magic == ALPS_RING_MAGIC && receiveCapacity.nonzeroBitCount == 1 && sendCapacity.nonzeroBitCount == 1
        && receiveOffset <= 1 << 31 && sendOffset <= 1 << 31 && Int(receiveOffset &+ receiveCapacity) <= bytes
        && Int(sendOffset &+ sendCapacity) <= bytes
    if isSound {
        locked {
            guard let rings = ringTable.rings else { return }
            for each in 0..<mostStreamRings where rings[each].handle == 0 {
                rings[each] = MappedStreamRing(
                    handle: handle, page: page, bytes: bytes,
                    receive: (mapped + Int(receiveOffset)).assumingMemoryBound(to: UInt8.self),
                    send: (mapped + Int(sendOffset)).assumingMemoryBound(to: UInt8.self), receiveCapacity: receiveCapacity,
                    sendCapacity: sendCapacity, descriptors: 1, users: 0)
                ringTable.count += 1
                index = each + 1
                return
            }
        }
    }
    if index == 0 { _ = alps_sys_munmap(mapped, bytes) }
    return index
}

private func place(of handle: UInt64) -> Int {
    var index = 0
    locked {
        guard ringTable.count > 0, let rings = ringTable.rings else { return }
        for each in 0..<mostStreamRings where rings[each].handle == handle {
            rings[each].descriptors += 1
            index = each + 1
            return
        }
    }
    return index
}

// MARK: - letting go

@inline(__always)
func dropRing(_ found: EntryPointer) {
    if found.pointee.ring != 0 { dropKnownRing(found) }
}

@inline(never)
private func dropKnownRing(_ found: EntryPointer) {
    locked {
        let index = Int(found.pointee.ring)
        guard index != 0, let rings = ringTable.rings else { return }
        found.pointee.ring = 0
        rings[index - 1].descriptors -= 1
        unmapIfUnused(rings + (index - 1))
    }
}

/// `found` is a copy of another entry.
@inline(__always)
func shareRing(_ found: EntryPointer) {
    let index = Int(found.pointee.ring)
    if index != 0 { locked { ringTable.rings.unsafelyUnwrapped[index - 1].descriptors += 1 } }
}

private func unmapIfUnused(_ ring: RingPointer) {
    guard ring.pointee.descriptors <= 0, ring.pointee.users <= 0, ring.pointee.handle != 0 else { return }
    _ = alps_sys_munmap(ring.pointee.page, ring.pointee.bytes)
    ring.pointee = MappedStreamRing()
    ringTable.count -= 1
}

/// In the child of a fork: only this thread is left.
func forgetRingUsers() {
    ringOpenings = 0
    guard ringTable.count > 0, let rings = ringTable.rings else { return }
    ringTable.lacksSession = true
    for index in 0..<mostStreamRings where rings[index].handle != 0 { rings[index].users = 0 }
}

/// The ring under a descriptor, kept mapped until `endUse`. nil: it has none, or the number means another file by now. Signals
/// are blocked by the caller.
func beginUse(_ descriptor: Int32) -> RingPointer? {
    guard let found = entry(of: descriptor) else { return nil }
    if cookie(of: descriptor) != found.pointee.cookie {
        clearEntry(descriptor)
        return nil
    }
    return beginUse(found)
}

func beginUse(_ found: EntryPointer) -> RingPointer? {
    alps_shim_lock()
    defer { alps_shim_unlock() }
    let index = Int(found.pointee.ring)
    guard index != 0, let rings = ringTable.rings, rings[index - 1].handle == found.pointee.handle else { return nil }
    if ringTable.lacksSession, alps_shim_borrows_memory() == 0 {
        ringTable.lacksSession = false
        _ = ensureSession()
    }
    rings[index - 1].users += 1
    return rings + (index - 1)
}

func endUse(_ ring: RingPointer) {
    alps_shim_lock()
    ring.pointee.users -= 1
    unmapIfUnused(ring)
    alps_shim_unlock()
}

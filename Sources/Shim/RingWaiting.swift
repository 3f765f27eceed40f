import CLibc
import ClientAPI

// The pair of a stream has the next byte while there is something in the ring. After a read that has left something there, the
// host must run before it has: programs that wait and read in turns would wait for that each time. So poll and select look at
// the rings, too. (epoll waits for the host.)

/// There is something in the ring of a stream.
private func isRingReadable(_ descriptor: Int32) -> Bool {
    guard descriptor >= 0, let known = entry(of: descriptor), known.pointee.ring != 0 else { return false }
    let error = alps_errno()
    defer { alps_set_errno(error) }
    var mask = sigset_t()
    alps_block_signals(&mask)
    defer { alps_restore_signals(&mask) }
    guard let ring = beginUse(descriptor) else { return false }
    defer { endUse(ring) }
    let page = ring.pointee.page.unsafelyUnwrapped
    // How far it has been read is not known while it is being opened.
    guard alps_load_word(&page.pointee.read_lock) & ~ALPS_RING_WAITED != ALPS_RING_OPENING,
        alps_load_word(&page.pointee.closed) & ALPS_RING_RECEIVE == 0
    else { return false }
    return alps_load_position(&page.pointee.receive_tail) > alps_load_position(&page.pointee.receive_head)
}

private var mayHaveRings: Bool { ringTable.count > 0 && !activation.confined }

// MARK: - poll

private var readEvents: Int16 { Int16(POLLIN) | 0x40 }  // POLLRDNORM

/// Calls `wait`, without waiting if a ring is readable; adds the rings to its result.
@inline(__always)
func pollingRings(
    _ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ wait: (_ waits: Bool) -> Int32
) -> Int32 {
    guard mayHaveRings, let entries, count <= 4096 else { return wait(true) }
    while hasReadableRing(entries, count) {
        let result = addReadableRings(entries, count, wait(false))
        if result != 0 { return result }
        // Another thread has read it meanwhile.
    }
    return wait(true)
}

@inline(never)
private func hasReadableRing(_ entries: UnsafeMutablePointer<pollfd>, _ count: UInt) -> Bool {
    for index in 0..<Int(count) where entries[index].events & readEvents != 0 && isRingReadable(entries[index].fd) { return true }
    return false
}

private func addReadableRings(_ entries: UnsafeMutablePointer<pollfd>, _ count: UInt, _ result: Int32) -> Int32 {
    guard result >= 0 else { return result }
    var result = result
    for index in 0..<Int(count) where entries[index].events & readEvents != 0 && isRingReadable(entries[index].fd) {
        if entries[index].revents == 0 { result += 1 }
        entries[index].revents |= entries[index].events & readEvents
    }
    return result
}

// MARK: - select

private var longestSet: Int { 1024 / 8 }

/// The same for descriptors below `count` in sets.
@inline(__always)
func selectingRings(
    _ count: Int32, _ readable: UnsafeMutableRawPointer?, _ writable: UnsafeMutableRawPointer?,
    _ exceptional: UnsafeMutableRawPointer?, _ wait: (_ waits: Bool) -> Int32
) -> Int32 {
    guard mayHaveRings, let readable, count > 0, count <= 1024 else { return wait(true) }
    while hasReadableRing(count, readable) {
        let result = selectReadableRings(count, [readable, writable, exceptional], wait)
        if result != 0 { return result }
    }
    return wait(true)
}

@inline(never)
private func hasReadableRing(_ count: Int32, _ set: UnsafeMutableRawPointer) -> Bool {
    for descriptor in 0..<count where isIn(set, descriptor) && isRingReadable(descriptor) { return true }
    return false
}

@inline(never)
private func selectReadableRings(
    _ count: Int32, _ sets: [3 of UnsafeMutableRawPointer?], _ wait: (_ waits: Bool) -> Int32
) -> Int32 {
    // The kernel counts in longs, and leaves nothing of what it was asked.
    let bytes = (Int(count) + 63) / 64 * 8
    return withUnsafeTemporaryAllocation(byteCount: 3 * longestSet, alignment: 8) { asked in
        guard let asked = asked.baseAddress else { return 0 }
        for index in 0..<3 {
            if let set = sets[index] { memcpy(asked + index * longestSet, set, bytes) }
        }
        var result = wait(false)
        guard result >= 0, let readable = sets[0] else { return result }
        for descriptor in 0..<count where isIn(asked, descriptor) && !isIn(readable, descriptor) && isRingReadable(descriptor) {
            let place = Int(descriptor) / 8
            let byte = readable.load(fromByteOffset: place, as: UInt8.self)
            readable.storeBytes(of: byte | 1 << UInt8(descriptor & 7), toByteOffset: place, as: UInt8.self)
            result += 1
        }
        if result == 0 {
            for index in 0..<3 {
                if let set = sets[index] { memcpy(set, asked + index * longestSet, bytes) }
            }
        }
        return result
    }
}

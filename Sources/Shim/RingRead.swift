import CLibc
import ClientAPI
import ShimEntry

/// Where a call's bytes are in the program's memory, and how far it has come.
struct Vector {
    let parts: UnsafePointer<iovec>
    let count: Int
    private var index = 0
    private var offset = 0

    init(_ parts: UnsafePointer<iovec>, _ count: Int) {
        self.parts = parts
        self.count = count
    }

    var total: Int {
        var sum = 0
        for index in 0..<count { sum &+= parts[index].iov_len }
        return sum
    }

    /// The next piece of at most `most` bytes; passed.
    mutating func take(_ most: Int) -> UnsafeMutableRawBufferPointer {
        while index < count, parts[index].iov_len == offset {
            index += 1
            offset = 0
        }
        guard index < count, most > 0 else { return UnsafeMutableRawBufferPointer(start: nil, count: 0) }
        let length = min(most, parts[index].iov_len - offset)
        defer { offset += length }
        return UnsafeMutableRawBufferPointer(start: parts[index].iov_base.map { $0 + offset }, count: length)
    }

    /// Goes back over the end of what `take` gave last.
    mutating func giveBack(_ bytes: Int) { offset -= bytes }
}

private enum Taken {
    case bytes(Int)
    /// Nothing is there.
    case nothing
    /// The pair is the way.
    case closed
    case failed
}

/// A read from a stream with a ring. `flags`: MSG_PEEK, MSG_WAITALL, MSG_DONTWAIT, MSG_TRUNC.
@inline(never)
func receiveThroughRing(_ descriptor: Int32, _ parts: UnsafePointer<iovec>, _ count: Int, _ flags: Int32) -> Int {
    var vector = Vector(parts, count)
    let wanted = vector.total
    guard wanted > 0 else { return 0 }
    var done = 0
    var hasEnded = false
    // As in `sendThroughRing`: a signal that comes before the call has to wait ends the wait.
    var mask = sigset_t()
    alps_block_signals(&mask)
    defer { alps_restore_signals(&mask) }
    while true {
        switch takeFromRing(descriptor, &vector, wanted - done, flags) {
        case .bytes(let got):
            done += got
            if done == wanted || flags & Int32(MSG_WAITALL) == 0 || flags & Int32(MSG_PEEK) != 0 { return done }
        case .failed: return done > 0 ? done : finishRead(descriptor, -1)
        case .closed:
            alps_restore_signals(&mask)
            if done == 0, flags == 0, kind(of: descriptor) == .unknown {
                // Not the socket any more.
                return real.readv.unsafelyUnwrapped(descriptor, parts, Int32(count))
            }
            return receiveRest(descriptor, &vector, done, wanted, flags)
        case .nothing:
            if hasEnded { return done > 0 ? done : finishRead(descriptor, 0) }
            let got = waitForByte(descriptor, flags, &mask)
            if got < 0 { return done > 0 ? done : finishRead(descriptor, -1) }
            hasEnded = got == 0
        }
    }
}

/// The next byte comes through the pair: waiting for it, time-outs, signals and cancellation are the kernel's. Signals are
/// blocked and `mask` is what they were before. As recv(2).
private func waitForByte(_ descriptor: Int32, _ flags: Int32, _ mask: inout sigset_t) -> Int {
    var byte: UInt8 = 0
    let error = alps_errno()
    let got = alps_sys_recv(descriptor, &byte, 1, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT))
    guard got < 0, alps_errno() == EAGAIN, mayWait(descriptor, flags) else { return got }
    if alps_is_interrupted(&mask) != 0 { return fail(EINTR) }
    alps_set_errno(error)
    alps_restore_signals(&mask)
    defer { alps_block_signals(&mask) }
    return real.recvfrom.unsafelyUnwrapped(descriptor, &byte, 1, Int32(MSG_PEEK), nil, nil)
}

func receiveThroughRing(
    _ descriptor: Int32, buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32
) -> Int {
    var part = iovec(iov_base: buffer, iov_len: count)
    return receiveThroughRing(descriptor, &part, 1, flags)
}

/// The ring has been closed: what is wanted beyond `done`, which is 0 but for MSG_WAITALL, comes from the pair.
private func receiveRest(_ descriptor: Int32, _ vector: inout Vector, _ done: Int, _ wanted: Int, _ flags: Int32) -> Int {
    if flags & Int32(MSG_TRUNC | MSG_PEEK) == Int32(MSG_TRUNC) {
        let got = discardFromPair(descriptor, wanted - done, flags)
        return got < 0 && done > 0 ? done : done + got
    }
    guard done > 0 else {
        var message = msghdr()
        message.msg_iov = UnsafeMutablePointer(mutating: vector.parts)
        message.msg_iovlen = vector.count
        let got = real.recvmsg.unsafelyUnwrapped(descriptor, &message, flags)
        guard got > 0 else { return finishRead(descriptor, got) }
        if flags & Int32(MSG_PEEK) == 0 { noteRead(descriptor, got) }
        return got
    }
    var done = done
    while done < wanted {
        let piece = vector.take(wanted - done)
        let got = real.recvfrom.unsafelyUnwrapped(descriptor, piece.baseAddress, piece.count, flags, nil, nil)
        guard got > 0 else { return done }
        vector.giveBack(piece.count - got)
        done += got
    }
    // Only now: a ring that came meanwhile would have been read past.
    noteRead(descriptor, done)
    return done
}

/// Signals are blocked by the caller.
private func takeFromRing(_ descriptor: Int32, _ vector: inout Vector, _ wanted: Int, _ flags: Int32) -> Taken {
    guard let ring = beginUse(descriptor) else { return .closed }
    defer { endUse(ring) }
    let page = ring.pointee.page.unsafelyUnwrapped
    spinForData(page)
    guard lock(&page.pointee.read_lock) else { return .closed }
    let result = takeLocked(descriptor, ring, page, &vector, wanted, flags)
    unlock(&page.pointee.read_lock)
    if case .bytes = result, flags & Int32(MSG_PEEK) == 0 {
        // The host wants to know if it has to put the next byte into the pair, or if it waits for room. It may have added
        // something and gone to sleep since the bytes were counted.
        let bell = alps_load_word(&page.pointee.read_bell)
        let isLeft = alps_load_position(&page.pointee.receive_tail) > alps_load_position(&page.pointee.receive_head)
        if bell == 2 || bell == 1 && isLeft { ringBell(descriptor, &page.pointee.read_bell) }
    }
    return result
}

/// A sender that is at it brings more within microseconds, sooner than the kernel puts this thread to sleep and wakes it. Not
/// if it brings it to the pair, since the ring is there for writes alone.
private func spinForData(_ page: RingPage) {
    guard alps_load_word(&page.pointee.closed) & ALPS_RING_RECEIVE == 0 else { return }
    var left = 200
    while left > 0, alps_load_position(&page.pointee.receive_tail) == alps_load_position(&page.pointee.receive_head) {
        alps_pause()
        left -= 1
    }
}

private func takeLocked(
    _ descriptor: Int32, _ ring: RingPointer, _ page: RingPage, _ vector: inout Vector, _ wanted: Int, _ flags: Int32
) -> Taken {
    guard alps_load_word(&page.pointee.closed) & ALPS_RING_RECEIVE == 0 else { return .closed }
    let isPeek = flags & Int32(MSG_PEEK) != 0
    let isDiscarded = flags & Int32(MSG_TRUNC) != 0 && !isPeek
    let capacity = ring.pointee.receiveCapacity
    let tail = alps_load_position(&page.pointee.receive_tail)
    let inband = alps_load_position(&page.pointee.receive_inband)
    var position = alps_load_position(&page.pointee.receive_head)
    var left = wanted

    while left > 0, position < inband {
        let most = Int(min(UInt64(left), inband &- position))
        var scrap: UInt8 = 0
        let got: Int
        if isDiscarded {
            got = alps_sys_recv(descriptor, &scrap, 1, Int32(MSG_DONTWAIT))
        } else {
            let piece = vector.take(most)
            got = alps_sys_recv(
                descriptor, piece.baseAddress, piece.count, Int32(MSG_DONTWAIT) | (isPeek ? Int32(MSG_PEEK) : 0))
            vector.giveBack(piece.count - max(got, 0))
        }
        if got < 0, alps_errno() == EAGAIN || got == 0 {
            // Somebody has read the pair without the ring.
            position = inband
            break
        }
        if got < 0 { return left < wanted ? .bytes(wanted - left) : .failed }
        if got == 0 { break }
        left -= got
        position &+= UInt64(got)
        if isPeek { break }
    }
    if position >= inband, tail &- position <= capacity {
        var available = tail &- position
        while left > 0, available > 0 {
            let start = position & (capacity - 1)
            let most = Int(min(UInt64(left), available, capacity - start))
            var count = most
            if !isDiscarded {
                let piece = vector.take(most)
                count = piece.count
                guard count > 0 else { break }
                copyPayload(piece.baseAddress.unsafelyUnwrapped, ring.pointee.receive.unsafelyUnwrapped + Int(start), count)
            }
            left -= count
            position &+= UInt64(count)
            available -= UInt64(count)
        }
    }
    if !isPeek { alps_store_position(&page.pointee.receive_head, position) }
    let taken = wanted - left
    return taken > 0 ? .bytes(taken) : .nothing
}

/// FIONREAD of a stream with a ring; nil: the pair knows.
@inline(never)
func unreadInRing(_ descriptor: Int32) -> Int? {
    var mask = sigset_t()
    alps_block_signals(&mask)
    defer { alps_restore_signals(&mask) }
    guard let ring = beginUse(descriptor) else { return nil }
    defer { endUse(ring) }
    let page = ring.pointee.page.unsafelyUnwrapped
    guard lock(&page.pointee.read_lock) else { return nil }
    defer { unlock(&page.pointee.read_lock) }
    guard alps_load_word(&page.pointee.closed) & ALPS_RING_RECEIVE == 0 else { return nil }
    let unread = alps_load_position(&page.pointee.receive_tail) &- alps_load_position(&page.pointee.receive_head)
    return unread <= 1 << 31 ? Int(unread) : nil
}

import CLibc
import ClientAPI
import ShimEntry

private enum Put {
    case bytes(Int)
    /// The ring is full, or what is in the pair has to be taken first.
    case full
    case closed
}

/// Bytes that are put into a ring before its lock is let go of, and after how many the host may begin to send.
private var longestPut: Int { 262_144 }
private var step: Int { 65536 }

/// A write to a stream with a ring.
@inline(never)
func sendThroughRing(_ descriptor: Int32, _ parts: UnsafePointer<iovec>, _ count: Int, _ flags: Int32) -> Int {
    if let found = entry(of: descriptor), found.pointee.corkWord != 0 { notePlainWrite(found) }
    var vector = Vector(parts, count)
    let wanted = vector.total
    var done = 0
    // Until the call has to wait. A signal that comes before, as in the kernel, is one that ends the wait.
    var mask = sigset_t()
    alps_block_signals(&mask)
    defer { alps_restore_signals(&mask) }
    while done < wanted {
        var room = wanted - done
        if !isOpening(descriptor) || finishOpening(descriptor) {
            switch putIntoRing(descriptor, &vector, room) {
            case .bytes(let put):
                done += put
                continue
            case .closed:
                guard beginPairWriteBesideRing(descriptor) else { continue }
                alps_restore_signals(&mask)
                if done == 0, flags == 0, kind(of: descriptor) == .unknown {
                    // Not the socket any more.
                    return real.writev.unsafelyUnwrapped(descriptor, parts, Int32(count))
                }
                let sent = sendRest(descriptor, &vector, done, wanted, flags)
                endPairWrite(descriptor)
                noteWritten(descriptor, sent - done)
                return sent
            case .full:
                if waitForRoom(descriptor, flags, &mask) { continue }
                var isCut = false
                let sent = sendBesideFullRing(descriptor, &vector, room, flags, &mask, &isCut)
                guard sent >= 0 else { return done > 0 ? done : finishWrite(descriptor) }
                done += sent
                if isCut { return done }
                continue
            }
        } else {
            // A small buffer in the kernel takes the place of the one that the host has left a byte in: that might be so
            // large that the pair would not be writable any more when it is made smaller.
            room = min(room, Int(ALPS_RING_PAIR_CHUNK))
        }
        let piece = vector.take(room)
        let sent = sendIntoPair(descriptor, piece, flags, &mask)
        guard sent >= 0 else { return done > 0 ? done : finishWrite(descriptor) }
        vector.giveBack(piece.count - sent)
        done += sent
    }
    return done
}

func sendThroughRing(_ descriptor: Int32, buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    var part = iovec(iov_base: UnsafeMutableRawPointer(mutating: buffer), iov_len: count)
    return sendThroughRing(descriptor, &part, 1, flags)
}

private func isOpening(_ descriptor: Int32) -> Bool {
    entry(of: descriptor)?.pointee.has(Entry.opensWriting) ?? false
}

private func sendRest(_ descriptor: Int32, _ vector: inout Vector, _ done: Int, _ wanted: Int, _ flags: Int32) -> Int {
    var done = done
    while done < wanted {
        let piece = vector.take(wanted - done)
        let sent = real.sendto.unsafelyUnwrapped(descriptor, piece.baseAddress, piece.count, flags, nil, 0)
        guard sent >= 0 else { return done > 0 ? done : finishWrite(descriptor) }
        done += sent
        if sent < piece.count { return done }
    }
    return done
}

/// Buffers of the kernel that a pair holds until it is full, and one.
private var pairBuffers: Int { 9 }

/// The ring is full: so much goes through the pair that it is full, too, and the kernel blocks or says that it would. In pieces:
/// the host leaves one byte there, and the kernel takes the pair for full while a quarter of it belongs to that byte.
/// `isCut`: a signal has ended the call when some had been sent.
private func sendBesideFullRing(
    _ descriptor: Int32, _ vector: inout Vector, _ left: Int, _ flags: Int32, _ mask: inout sigset_t, _ isCut: inout Bool
) -> Int {
    withUnsafeTemporaryAllocation(of: mmsghdr.self, capacity: pairBuffers) { messages in
        withUnsafeTemporaryAllocation(of: iovec.self, capacity: pairBuffers) { parts in
            guard let first = messages.baseAddress, let pieces = parts.baseAddress else { return 0 }
            var ahead = vector
            var taken = 0
            var count = 0
            while count < pairBuffers, taken < left {
                let piece = ahead.take(min(left - taken, Int(ALPS_RING_PAIR_CHUNK)))
                guard piece.count > 0 else { break }
                pieces[count] = iovec(iov_base: piece.baseAddress, iov_len: piece.count)
                first[count] = mmsghdr()
                first[count].msg_hdr.msg_iov = pieces + count
                first[count].msg_hdr.msg_iovlen = 1
                taken += piece.count
                count += 1
            }
            let sent = passThroughPair(descriptor, flags, &mask) { flags, waits in
                guard waits else { return Int(alps_sys_sendmmsg(descriptor, first, UInt32(count), flags)) }
                let sent = real.sendmmsg.unsafelyUnwrapped(descriptor, first, UInt32(count), flags)
                isCut = sent > 0 && sent < count
                return Int(sent)
            }
            guard sent > 0 else { return sent < 0 ? -1 : 0 }
            var done = 0
            for index in 0..<sent {
                let length = Int(first[index].msg_len)
                let piece = vector.take(pieces[index].iov_len)
                vector.giveBack(piece.count - length)
                done += length
            }
            return done
        }
    }
}

/// Real bytes through the pair: the kernel blocks, or says that it would.
private func sendIntoPair(
    _ descriptor: Int32, _ piece: UnsafeMutableRawBufferPointer, _ flags: Int32, _ mask: inout sigset_t
) -> Int {
    let sent = passThroughPair(descriptor, flags, &mask) { flags, waits in
        waits
            ? real.sendto.unsafelyUnwrapped(descriptor, piece.baseAddress, piece.count, flags, nil, 0)
            : alps_sys_send(descriptor, piece.baseAddress, piece.count, flags)
    }
    if sent > 0, isOpening(descriptor), let found = entry(of: descriptor) {
        _ = alps_set_bits(&found.pointee.ringState, Entry.hasBegunWriting)
    }
    return sent
}

/// A write to the pair, counted as stream-ring.h has it. Signals are blocked and `mask` is what they were before. So `send` is
/// not to wait at first; if that would be, and no signal has come that ends the call, it waits while the program's signals do
/// what they do.
private func passThroughPair(
    _ descriptor: Int32, _ flags: Int32, _ mask: inout sigset_t, _ send: (_ flags: Int32, _ waits: Bool) -> Int
) -> Int {
    let flags = flags & Int32(MSG_DONTWAIT | MSG_NOSIGNAL)
    let error = alps_errno()
    countPair(descriptor, isEnd: false)
    defer { countPair(descriptor, isEnd: true) }
    let sent = send(flags | Int32(MSG_DONTWAIT), false)
    guard sent < 0, alps_errno() == EAGAIN, mayWait(descriptor, flags) else { return sent }
    if alps_is_interrupted(&mask) != 0 { return fail(EINTR) }
    // A call that succeeds leaves errno alone.
    alps_set_errno(error)
    alps_restore_signals(&mask)
    defer { alps_block_signals(&mask) }
    return send(flags, true)
}

/// A call on this descriptor waits rather than say that it would have to.
func mayWait(_ descriptor: Int32, _ flags: Int32) -> Bool {
    guard flags & Int32(MSG_DONTWAIT) == 0 else { return false }
    let error = alps_errno()
    defer { alps_set_errno(error) }
    let status = alps_sys_fcntl(descriptor, F_GETFL, 0)
    return status >= 0 && status & O_NONBLOCK == 0
}

/// When the host has taken the first small writes, the pair is made small: in a small buffer many bytes that wait are soon told
/// from few. Who goes back to the pair makes it large again, with the lock. False if it is too early.
private func finishOpening(_ descriptor: Int32) -> Bool {
    guard let known = entry(of: descriptor), known.pointee.has(Entry.hasBegunWriting) else { return false }
    var isDone = true
    let error = alps_errno()
    var mask = sigset_t()
    alps_block_signals(&mask)
    if let found = entry(of: descriptor), let ring = beginUse(descriptor) {
        let page = ring.pointee.page.unsafelyUnwrapped
        waitForHost(page)
        if isBehind(page), alps_load_word(&page.pointee.closed) & ALPS_RING_SEND == 0 {
            isDone = false
        } else if lock(&page.pointee.write_lock) {
            let before = alps_clear_bits(&found.pointee.ringState, Entry.opensWriting | Entry.hasBegunWriting)
            if before & Entry.opensWriting != 0, alps_load_word(&page.pointee.closed) & ALPS_RING_SEND == 0 {
                var room = Int32(ALPS_RING_PAIR_SNDBUF)
                _ = alps_sys_setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &room, 4)
            }
            unlock(&page.pointee.write_lock)
        }
        endUse(ring)
    }
    alps_restore_signals(&mask)
    alps_set_errno(error)
    return isDone
}

private func countPair(_ descriptor: Int32, isEnd: Bool) {
    let error = alps_errno()
    var mask = sigset_t()
    alps_block_signals(&mask)
    if let ring = beginUse(descriptor) {
        let page = ring.pointee.page.unsafelyUnwrapped
        if isEnd {
            alps_count_word(&page.pointee.pair_finished)
            ringBell(descriptor, &page.pointee.write_bell)
        } else {
            alps_count_word(&page.pointee.pair_started)
        }
        endUse(ring)
    }
    alps_restore_signals(&mask)
    alps_set_errno(error)
}

private func putIntoRing(_ descriptor: Int32, _ vector: inout Vector, _ wanted: Int) -> Put {
    putIntoRing(descriptor, wanted) { place, most in
        let piece = vector.take(most)
        guard piece.count > 0 else { return 0 }
        copyPayload(place, piece.baseAddress.unsafelyUnwrapped, piece.count)
        return piece.count
    }
}

/// `fill` puts at most so many bytes at a place, and returns how many: 0 if there are no more, or an error. Signals are blocked
/// by the caller.
private func putIntoRing(
    _ descriptor: Int32, _ wanted: Int, _ fill: (UnsafeMutableRawPointer, Int) -> Int
) -> Put {
    guard let ring = beginUse(descriptor) else { return .closed }
    defer { endUse(ring) }
    let page = ring.pointee.page.unsafelyUnwrapped
    waitForHost(page)
    // Then it goes through the pair, which knows if there is nobody to take it.
    guard lock(&page.pointee.write_lock) else { return .full }
    let result = putLocked(ring, page, min(wanted, longestPut), fill)
    unlock(&page.pointee.write_lock)
    ringBell(descriptor, &page.pointee.write_bell)
    return result
}

private func isBehind(_ page: RingPage) -> Bool {
    alps_load_word(&page.pointee.pair_finished) != alps_load_word(&page.pointee.pair_drained)
}

private func space(_ page: RingPage) -> UInt64 {
    let used = alps_load_position(&page.pointee.send_tail) &- alps_load_position(&page.pointee.send_head)
    let limit = UInt64(alps_load_word(&page.pointee.send_limit))
    return used < limit ? limit - used : 0
}

/// What has been written into the pair keeps the ring from being used. A host that has room takes it within microseconds, if
/// it gets the processor: so this one is given away.
private func waitForHost(_ page: RingPage) {
    let error = alps_errno()
    defer { alps_set_errno(error) }
    var left = 3
    while left > 0 {
        left -= 1
        let drained = alps_load_word(&page.pointee.pair_drained)
        guard alps_load_word(&page.pointee.pair_finished) != drained, isRoomy(page),
            alps_load_word(&page.pointee.closed) & ALPS_RING_SEND == 0
        else { return }
        _ = alps_exchange_word(&page.pointee.pair_waited, 1)
        _ = alps_sys_futex_wait_shared(&page.pointee.pair_drained, drained, 1)
    }
}

/// Looks at signals while a call waits for room, 2 ms each. A host that has many streams to see to comes back within these.
private var looksForRoom: Int { 5 }

/// The ring is full. A call that may block waits here at first: a host that is at it makes room within milliseconds, and that
/// costs less than the way through the pair. Signals are blocked by the caller, and `mask` is what they were before. False:
/// there is none yet, or a signal waits.
@inline(never)
private func waitForRoom(_ descriptor: Int32, _ flags: Int32, _ mask: inout sigset_t) -> Bool {
    guard mayWait(descriptor, flags) else { return false }
    let error = alps_errno()
    defer { alps_set_errno(error) }
    guard let ring = beginUse(descriptor) else { return false }
    defer { endUse(ring) }
    let page = ring.pointee.page.unsafelyUnwrapped
    for _ in 0..<looksForRoom {
        let turn = alps_load_word(&page.pointee.room_turn)
        guard turn != 0, !isBehind(page), alps_load_word(&page.pointee.closed) & ALPS_RING_SEND == 0 else { return false }
        _ = alps_exchange_word(&page.pointee.room_waited, 1)
        if isRoomy(page) { return true }
        _ = alps_sys_futex_wait_shared(&page.pointee.room_turn, turn, 2)
        if alps_has_signal(&mask) != 0 { break }
    }
    return isRoomy(page)
}

/// As much is free as the host takes from the pair for.
private func isRoomy(_ page: RingPage) -> Bool { space(page) >= UInt64(alps_load_word(&page.pointee.send_limit)) / 3 }

private func putLocked(
    _ ring: RingPointer, _ page: RingPage, _ wanted: Int, _ fill: (UnsafeMutableRawPointer, Int) -> Int
) -> Put {
    guard alps_load_word(&page.pointee.closed) & ALPS_RING_SEND == 0 else { return .closed }
    let capacity = UInt64(alps_load_word(&page.pointee.send_size))
    guard capacity.nonzeroBitCount == 1, capacity <= ring.pointee.sendCapacity, !isBehind(page) else { return .full }
    var tail = alps_load_position(&page.pointee.send_tail)
    var free = space(page)
    // A writer that is faster than the network waits for a good piece, instead of taking each segment's room by itself.
    let worthwhile = min(UInt64(wanted), UInt64(step), UInt64(alps_load_word(&page.pointee.send_limit)) / 3)
    guard free > 0, free >= worthwhile, free <= capacity else { return .full }
    var done = 0
    while done < wanted, free > 0 {
        let start = tail & (capacity - 1)
        let most = Int(min(UInt64(min(wanted - done, step)), free, capacity - start))
        let count = fill(ring.pointee.send.unsafelyUnwrapped + Int(start), most)
        guard count > 0 else { break }
        done += count
        tail &+= UInt64(count)
        free -= UInt64(count)
        alps_store_position(&page.pointee.send_tail, tail)
    }
    return .bytes(done)
}

// MARK: - sendfile

/// sendfile(2) into a ring: the file is read to where it goes from.
@inline(never)
func sendFileThroughRing(_ target: Int32, _ source: Int32, _ offset: UnsafeMutablePointer<off_t>?, _ count: Int) -> Int {
    var position = offset?.pointee ?? 0
    var done = 0
    var hasEnded = false
    var type: Int32 = 0
    var length = socklen_t(4)
    let error = alps_errno()
    // As the kernel; and what is read from a pair would be missing there.
    if alps_sys_getsockopt(source, SOL_SOCKET, SO_TYPE, &type, &length) == 0 { return fail(EINVAL) }
    alps_set_errno(error)
    func read(_ place: UnsafeMutableRawPointer, _ most: Int) -> Int {
        let got =
            offset == nil ? alps_sys_read(source, place, most) : alps_sys_pread(source, place, most, position)
        if got <= 0 { hasEnded = true } else { position += off_t(got) }
        return got
    }
    defer { if done > 0 { offset?.pointee = position } }
    var mask = sigset_t()
    alps_block_signals(&mask)
    defer { alps_restore_signals(&mask) }
    while done < count, !hasEnded {
        let isOpening = isOpening(target) && !finishOpening(target)
        let before = alps_errno()
        alps_set_errno(0)
        let outcome = isOpening ? .full : putIntoRing(target, count - done, read)
        switch outcome {
        case .closed:
            // The kernel moves the rest.
            guard beginPairWriteBesideRing(target) else { continue }
            alps_restore_signals(&mask)
            let more = withUnsafeMutablePointer(to: &position) {
                real.sendfile.unsafelyUnwrapped(target, source, offset == nil ? nil : $0, count - done)
            }
            endPairWrite(target)
            noteWritten(target, more)
            done += max(more, 0)
            return done > 0 || more == 0 ? done : finishWrite(target)
        case .bytes(let put):
            if put == 0 {
                if done == 0, alps_errno() != 0 { return -1 }
                alps_set_errno(before)
                return done
            }
            alps_set_errno(before)
            done += put
        case .full:
            alps_set_errno(before)
            if !isOpening, waitForRoom(target, 0, &mask) { continue }
            // A few of ALPS_RING_PAIR_CHUNK.
            var chunk = [8960 of UInt8](repeating: 0)
            let most = isOpening ? Int(ALPS_RING_PAIR_CHUNK) : chunk.count
            var isCut = false
            let sent = withUnsafeMutableBytes(of: &chunk) { chunk in
                let got = read(chunk.baseAddress.unsafelyUnwrapped, min(count - done, most))
                guard got > 0 else { return got }
                var part = iovec(iov_base: chunk.baseAddress, iov_len: got)
                var vector = Vector(&part, 1)
                let sent =
                    isOpening
                    ? sendIntoPair(target, UnsafeMutableRawBufferPointer(rebasing: chunk[..<got]), 0, &mask)
                    : sendBesideFullRing(target, &vector, got, 0, &mask, &isCut)
                // What was not sent has not been read.
                let left = got - max(sent, 0)
                position -= off_t(left)
                if offset == nil, left > 0 { alps_sys_seek_back(source, left) }
                return sent
            }
            if sent < 0 { return done > 0 ? done : finishWrite(target) }
            done += sent
            if isCut { return done }
        }
    }
    return done
}

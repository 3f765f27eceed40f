import CLibc
import ClientAPI

// recvmmsg and sendmmsg on datagram sockets: as many messages of the pair in one call as the program wants. What is out of
// the ordinary (other kinds of sockets, control messages to send, many pieces, errors) goes one message a call.

/// Messages a call of ours, and pieces of all of them: what lies on the program's stack.
private var batchSize: Int { 16 }
private var batchPieces: Int { 64 }
private var headerSize: Int { MemoryLayout<alps_datagram_header>.size }

private struct Batch {
    var messages = [16 of mmsghdr](repeating: mmsghdr())
    var pieces = [64 of iovec](repeating: iovec())
    var headers = [16 of alps_datagram_header](repeating: alps_datagram_header())
}

/// The parts of a batch by address.
private struct BatchPointer {
    let messages: UnsafeMutablePointer<mmsghdr>
    let pieces: UnsafeMutablePointer<iovec>
    let headers: UnsafeMutablePointer<alps_datagram_header>
    var count = 0
    var piecesUsed = 0

    /// `batch` stays where it is for as long as this is used.
    @inline(__always)
    init(_ batch: UnsafeMutablePointer<Batch>) {
        // One after the other, each a multiple of its successor's alignment long.
        let base = UnsafeMutableRawPointer(batch)
        messages = base.assumingMemoryBound(to: mmsghdr.self)
        let behind = base + batchSize * MemoryLayout<mmsghdr>.stride
        pieces = behind.assumingMemoryBound(to: iovec.self)
        headers = (behind + batchPieces * MemoryLayout<iovec>.stride).assumingMemoryBound(to: alps_datagram_header.self)
    }

    /// Adds a message with the program's pieces, behind a header of its own if `withHeader`. False: there is no room.
    @inline(__always)
    mutating func add(_ message: msghdr, withHeader: Bool) -> Bool {
        let extra = withHeader ? 1 : 0
        let given = Int(message.msg_iovlen)
        guard count < batchSize, given >= 0, given < 8, piecesUsed + given + extra <= batchPieces else { return false }
        let first = pieces + piecesUsed
        if withHeader { first[0] = iovec(iov_base: headers + count, iov_len: headerSize) }
        for index in 0..<given { first[index + extra] = message.msg_iov[index] }
        messages[count] = mmsghdr()
        messages[count].msg_hdr.msg_iov = first
        messages[count].msg_hdr.msg_iovlen = given + extra
        count += 1
        piecesUsed += given + extra
        return true
    }

    mutating func clear() {
        count = 0
        piecesUsed = 0
    }
}

// MARK: - receiving

/// recvmmsg without a time limit. Nil: a call for each message.
@inline(never)
func receiveBatch(
    _ descriptor: Int32, _ messages: UnsafeMutablePointer<mmsghdr>, _ count: UInt32, _ flags: Int32
) -> Int32? {
    guard count > 1, let found = entry(of: descriptor), !found.pointee.isNetlink, !found.pointee.isPacket,
        flags & Int32(MSG_PEEK | MSG_ERRQUEUE | MSG_OOB) == 0
    else { return nil }
    let total = Int(min(count, 1024))
    let waitForOne = Int32(MSG_WAITFORONE)
    var flags = flags
    var done = 0
    var batch = Batch()
    return withUnsafeMutablePointer(to: &batch) { memory in
        var parts = BatchPointer(memory)
        while done < total {
            let isConnected = found.pointee.kind == .connectedDatagram
            parts.clear()
            while done + parts.count < total, parts.add(messages[done + parts.count].msg_hdr, withHeader: !isConnected) {}
            guard parts.count > 0 else {
                let got = receiveDatagram(descriptor, found, &messages[done].msg_hdr, flags & ~waitForOne)
                if got < 0 { break }
                messages[done].msg_len = UInt32(got)
                done += 1
                if flags & waitForOne != 0 { flags |= Int32(MSG_DONTWAIT) }
                continue
            }
            let got = Int(
                real.recvmmsg.unsafelyUnwrapped(descriptor, parts.messages, UInt32(parts.count), flags | waitForOne, nil))
            guard got > 0 else {
                let error = alps_errno()
                guard done == 0, error == ECONNRESET || error == EPIPE || error == ENOTCONN,
                    stackSocket(descriptor) != nil
                else { break }
                return fail(trueError(found, fallback: ENETDOWN))
            }
            let valid = finishBatch(descriptor, found, parts, got, messages + done, isConnected, isFirst: done == 0)
            guard valid >= 0 else { return -1 }
            done += valid
            // Something out of the ordinary, which has been dealt with.
            if valid < got {
                if done > 0 { break }
                return nil
            }
            if flags & waitForOne != 0 { flags |= Int32(MSG_DONTWAIT) }
            if got < parts.count, flags & Int32(MSG_DONTWAIT) != 0 { break }
        }
        return done > 0 ? Int32(done) : -1
    }
}

/// Tells the program of `got` messages. Returns how many it may have, fewer if one was no datagram: those behind it are back
/// in the pair. -1 with errno if the first one was an error.
@inline(__always)
private func finishBatch(
    _ descriptor: Int32, _ found: EntryPointer, _ parts: BatchPointer, _ got: Int,
    _ messages: UnsafeMutablePointer<mmsghdr>, _ isConnected: Bool, isFirst: Bool
) -> Int {
    for index in 0..<got {
        let length = Int(parts.messages[index].msg_len)
        let received = parts.messages[index].msg_hdr.msg_flags
        if isConnected {
            if length > 0 || received & Int32(MSG_TRUNC) != 0 {
                let peer = Endpoint(address: found.pointee.peerAddress, port: found.pointee.peerPort)
                finish(&messages[index].msg_hdr, peer, received)
                messages[index].msg_hdr.msg_controllen = 0
                messages[index].msg_len = UInt32(length)
                continue
            }
        } else if length >= headerSize, parts.headers[index].magic == ALPS_DATAGRAM_MAGIC {
            finish(&messages[index].msg_hdr, endpoint(parts.headers[index].address), received)
            giveAncillary(found, &messages[index].msg_hdr, &parts.headers[index], length - headerSize)
            messages[index].msg_len = UInt32(length - headerSize)
            continue
        }
        if length == 0, isEmptyDatagram(found, isFirst: isFirst && index == 0, descriptor) {
            if case .result(let value) = takeEvent(descriptor, found, &messages[index].msg_hdr, 0) {
                guard value >= 0 else {
                    putBack(found, parts, index + 1..<got, messages, isConnected)
                    return index == 0 && isFirst ? -1 : index
                }
                messages[index].msg_len = 0
                continue
            }
        }
        let error = alps_errno()
        if length == 0, isAtEnd(descriptor), !(index..<got).contains(where: { parts.messages[$0].msg_len > 0 }) { return index }
        // An error behind datagrams is told by the next call, as Linux does: its announcement goes back too.
        putBack(found, parts, (length == 0 && !(isFirst && index == 0) ? index : index + 1)..<got, messages, isConnected)
        if length > 0 { _ = refresh(descriptor) }
        alps_set_errno(error)
        return index
    }
    return got
}

private func isAtEnd(_ descriptor: Int32) -> Bool {
    let POLLRDHUP: Int32 = 0x2000
    return alps_sys_poll(descriptor, POLLRDHUP, 0) & (POLLHUP | POLLRDHUP) != 0
}

/// Whether the event that a message of no bytes stands for may be asked for now: always if it is the first of the call.
@inline(never)
private func isEmptyDatagram(_ found: EntryPointer, isFirst: Bool, _ descriptor: Int32) -> Bool {
    if isFirst { return true }
    // The pair's end repeats itself: the next call finds it again.
    if isAtEnd(descriptor) { return false }
    var event = alps_datagram_event()
    let reply = ask(ALPS_OP_PEEK_EVENT, about: found, into: &event, MemoryLayout<alps_datagram_event>.size)
    return reply.error == 0 && event.error == 0
}

/// Messages that were read together with one that ends the call.
@inline(never)
private func putBack(
    _ found: EntryPointer, _ parts: BatchPointer, _ range: Range<Int>, _ messages: UnsafeMutablePointer<mmsghdr>,
    _ isConnected: Bool
) {
    let error = alps_errno()
    defer { alps_set_errno(error) }
    guard !range.isEmpty, let space = malloc(headerSize + 65536) else { return }
    defer { free(space) }
    for index in range {
        let length = Int(parts.messages[index].msg_len)
        if length == 0 {
            _ = ask(ALPS_OP_ANNOUNCE_EVENT, about: found)
            continue
        }
        if isConnected {
            var header = alps_datagram_header()
            header.magic = ALPS_DATAGRAM_MAGIC
            header.address = clientAddress(Endpoint(address: found.pointee.peerAddress, port: found.pointee.peerPort))
            memcpy(space, &header, headerSize)
        } else {
            memcpy(space, &parts.headers[index], headerSize)
        }
        var left = length - (isConnected ? 0 : headerSize)
        var filled = headerSize
        let message = messages[index].msg_hdr
        for piece in 0..<Int(message.msg_iovlen) where left > 0 {
            let part = message.msg_iov[piece]
            let count = min(left, part.iov_len)
            guard filled + count <= Int(ALPS_FRAME_MAX_PAYLOAD), let bytes = part.iov_base else { break }
            memcpy(space + filled, bytes, count)
            filled += count
            left -= count
        }
        _ = ask(ALPS_OP_REQUEUE, about: found, space, filled)
    }
}

// MARK: - sending

/// sendmmsg. Nil: a call for each message.
@inline(never)
func sendBatch(
    _ descriptor: Int32, _ messages: UnsafeMutablePointer<mmsghdr>, _ count: UInt32, _ flags: Int32
) -> Int32? {
    guard count > 1, let found = entry(of: descriptor), !found.pointee.isNetlink, !found.pointee.isPacket,
        flags & Int32(MSG_OOB | MSG_MORE) == 0, found.pointee.state & Entry.heldBack == 0
    else { return nil }
    let total = Int(min(count, 1024))
    var done = 0
    var batch = Batch()
    return withUnsafeMutablePointer(to: &batch) { memory in
        var parts = BatchPointer(memory)
        while done < total {
            parts.clear()
            while done + parts.count < total, add(&messages[done + parts.count].msg_hdr, to: &parts, found) {}
            var sent = 0
            if parts.count > 0 {
                sent = Int(
                    real.sendmmsg.unsafelyUnwrapped(
                        descriptor, parts.messages, UInt32(parts.count), flags | Int32(MSG_NOSIGNAL)))
                if sent < 0, alps_errno() == EAGAIN || alps_errno() == EINTR || done > 0 { break }
            }
            if sent <= 0 {
                // One that needs more, or an error, whose reason the host is asked for there.
                guard let again = entry(of: descriptor) else { break }
                let one = sendDatagram(descriptor, again, &messages[done].msg_hdr, flags)
                if one < 0 { break }
                messages[done].msg_len = UInt32(one)
                done += 1
                continue
            }
            let extra = found.pointee.kind == .connectedDatagram ? 0 : 1
            for index in 0..<sent {
                var length = 0
                let header = parts.messages[index].msg_hdr
                for piece in extra..<Int(header.msg_iovlen) { length += header.msg_iov[piece].iov_len }
                messages[done + index].msg_len = UInt32(length)
            }
            done += sent
        }
        return done > 0 ? Int32(done) : -1
    }
}

/// Adds a message as it goes into the pair. False: there is no room, or it needs a call of its own.
@inline(__always)
private func add(_ message: UnsafeMutablePointer<msghdr>, to parts: inout BatchPointer, _ found: EntryPointer) -> Bool {
    guard message.pointee.msg_controllen == 0, message.pointee.msg_iovlen < 8, parts.count < batchSize else { return false }
    var total = 0
    for index in 0..<Int(message.pointee.msg_iovlen) { total &+= message.pointee.msg_iov[index].iov_len }
    guard total >= 0, total <= 65507 else { return false }
    let isConnected = found.pointee.kind == .connectedDatagram
    if message.pointee.msg_name != nil, message.pointee.msg_namelen > 0 {
        guard case .ipv4(let target) = readAddress(message.pointee.msg_name, message.pointee.msg_namelen), target.port != 0
        else { return false }
        if isConnected {
            guard target.address == found.pointee.peerAddress, target.port == found.pointee.peerPort else { return false }
        } else {
            if bypasses(target) { return false }
            parts.headers[parts.count] = alps_datagram_header()
            parts.headers[parts.count].magic = ALPS_DATAGRAM_MAGIC
            parts.headers[parts.count].address = clientAddress(target)
        }
    } else if !isConnected {
        return false
    }
    return parts.add(message.pointee, withHeader: !isConnected)
}

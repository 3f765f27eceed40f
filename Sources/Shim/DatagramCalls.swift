import CLibc
import ClientAPI

// Datagram and raw sockets: one message of the pair a datagram, with an address header in front unless the socket is
// connected. A message of no bytes stands for something to be asked for.

private var headerSize: Int { MemoryLayout<alps_datagram_header>.size }
/// UDP over IPv4: 65535 - 20 - 8.
private var largestDatagram: Int { 65507 }
private var largestRaw: Int { 65535 }

// MARK: - receiving

@inline(never)
func receiveBytes(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32,
    _ address: UnsafeMutableRawPointer?, _ length: SocketLength?
) -> Int {
    guard let found = entry(of: descriptor) else { return fail(EBADF) }
    var part = iovec(iov_base: buffer, iov_len: count)
    return withUnsafeMutablePointer(to: &part) { part in
        var message = msghdr()
        message.msg_iov = part
        message.msg_iovlen = 1
        if let length {
            message.msg_name = address
            message.msg_namelen = length.pointee
        }
        let got = receiveDatagram(descriptor, found, &message, flags)
        if got >= 0, address != nil, let length { length.pointee = message.msg_namelen }
        return got
    }
}

func receiveDatagram(
    _ descriptor: Int32, _ found: EntryPointer, _ message: UnsafeMutablePointer<msghdr>, _ flags: Int32
) -> Int {
    if flags & Int32(MSG_ERRQUEUE) != 0 { return receiveError(descriptor, found, message) }
    if flags & Int32(MSG_OOB) != 0, found.pointee.isNetlink { return fail(EOPNOTSUPP) }
    if flags & Int32(MSG_OOB) != 0, found.pointee.isPacket { return fail(EINVAL) }
    // Linux takes no notice of it here.
    let flags = flags & ~Int32(MSG_OOB)
    while true {
        var header = alps_datagram_header()
        var received: Int32 = 0
        let got: Int
        if found.pointee.kind == .connectedDatagram {
            var inner = message.pointee
            inner.msg_name = nil
            inner.msg_namelen = 0
            inner.msg_control = nil
            inner.msg_controllen = 0
            got = real.recvmsg.unsafelyUnwrapped(descriptor, &inner, flags)
            received = inner.msg_flags
            if got > 0 || got == 0 && received & Int32(MSG_TRUNC) != 0 {
                let peer = Endpoint(address: found.pointee.peerAddress, port: found.pointee.peerPort)
                finish(message, peer, received)
                message.pointee.msg_controllen = 0
                return got
            }
        } else {
            got = withUnsafeMutableBytes(of: &header) {
                receiveBehind($0.baseAddress.unsafelyUnwrapped, descriptor, message, flags, &received)
            }
            if got >= headerSize, header.magic == ALPS_DATAGRAM_MAGIC {
                if found.pointee.isPacket, isToken(header) {
                    if flags & Int32(MSG_PEEK) == 0 { tokenWasRead(descriptor, found) } else { forgetRing(found) }
                    continue
                }
                if found.pointee.isNetlink {
                    finishNetlink(message, header.address, received)
                } else if found.pointee.isPacket {
                    finishPacket(message, header.address, received)
                } else {
                    finish(message, endpoint(header.address), received)
                }
                giveAncillary(found, message, &header, got - headerSize)
                return got - headerSize
            }
            if got > 0 {
                // Bare: another holder has connected the socket. What came meanwhile is lost, as datagrams may be.
                guard refresh(descriptor) != nil else { return fail(EBADF) }
                continue
            }
        }
        if got < 0 {
            let error = alps_errno()
            guard error == ECONNRESET || error == EPIPE || error == ENOTCONN else { return got }
            guard stackSocket(descriptor) != nil else { return fail(error) }
            return fail(trueError(found, fallback: ENETDOWN))
        }
        switch takeEvent(descriptor, found, message, flags) {
        case .nothing: continue
        case .result(let value): return value
        }
    }
}

enum EventOutcome {
    case nothing
    case result(Int)
}

/// A message without bytes: a pending error, an empty datagram of a connected socket, or the end of the pair.
@inline(never)
func takeEvent(
    _ descriptor: Int32, _ found: EntryPointer, _ message: UnsafeMutablePointer<msghdr>, _ flags: Int32
) -> EventOutcome {
    let ready = alps_sys_poll(descriptor, POLLIN | POLLRDHUP_, 0)
    if ready & (POLLHUP | POLLRDHUP_) != 0 {
        // After our own shutdown(SHUT_RD) a read ends; else the host's end is gone.
        if ready & POLLHUP == 0 { return .result(emptyDatagram(message, Endpoint(address: 0, port: 0))) }
        let error = trueError(found, fallback: 0)
        return .result(error == 0 ? emptyDatagram(message, Endpoint(address: 0, port: 0)) : fail(error))
    }
    if flags & Int32(MSG_PEEK) != 0 {
        // It is still in the queue, and the next read will ask what it is.
        return .result(
            emptyDatagram(message, Endpoint(address: found.pointee.peerAddress, port: found.pointee.peerPort)))
    }
    var event = alps_datagram_event()
    let reply = ask(
        ALPS_OP_TAKE_EVENT, about: found, into: &event, MemoryLayout<alps_datagram_event>.size)
    if reply.error == hostGone { return .result(fail(ENETDOWN)) }
    // Taken by another thread or process that asked first.
    if reply.error != 0 { return .nothing }
    if event.error != 0 { return .result(fail(event.error)) }
    return .result(emptyDatagram(message, endpoint(event.address)))
}

private var POLLRDHUP_: Int32 { 0x2000 }

private func emptyDatagram(_ message: UnsafeMutablePointer<msghdr>, _ from: Endpoint) -> Int {
    finish(message, from, 0)
    message.pointee.msg_controllen = 0
    return 0
}

func finish(_ message: UnsafeMutablePointer<msghdr>, _ from: Endpoint, _ received: Int32) {
    if let name = message.pointee.msg_name {
        message.pointee.msg_namelen = writeAddress(from, to: name, capacity: Int(message.pointee.msg_namelen))
    } else {
        message.pointee.msg_namelen = 0
    }
    message.pointee.msg_flags = received & Int32(MSG_TRUNC)
}

private func finishNetlink(
    _ message: UnsafeMutablePointer<msghdr>, _ from: alps_client_sockaddr, _ received: Int32
) {
    if let name = message.pointee.msg_name {
        message.pointee.msg_namelen = writeNetlinkName(from, to: name, capacity: Int(message.pointee.msg_namelen))
    } else {
        message.pointee.msg_namelen = 0
    }
    message.pointee.msg_flags = received & Int32(MSG_TRUNC)
}

private func finishPacket(
    _ message: UnsafeMutablePointer<msghdr>, _ from: alps_client_sockaddr, _ received: Int32
) {
    if let name = message.pointee.msg_name {
        message.pointee.msg_namelen = writePacketName(
            from, to: name, capacity: Int(message.pointee.msg_namelen), isWhole: true)
    } else {
        message.pointee.msg_namelen = 0
    }
    message.pointee.msg_flags = received & Int32(MSG_TRUNC)
}

/// One recvmsg with `header` in front of the program's vector.
@inline(__always)
private func receiveBehind(
    _ header: UnsafeMutableRawPointer, _ descriptor: Int32, _ message: UnsafeMutablePointer<msghdr>, _ flags: Int32,
    _ received: inout Int32
) -> Int {
    guard message.pointee.msg_iovlen <= 15 else {
        return transferLong(header, descriptor, message, flags, &received, sends: false)
    }
    var parts = [16 of iovec](repeating: iovec(iov_base: nil, iov_len: 0))
    return withUnsafeMutableBytes(of: &parts) {
        let vector = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: iovec.self)
        var inner = behind(header, message, vector)
        let got = real.recvmsg.unsafelyUnwrapped(descriptor, &inner, flags)
        received = inner.msg_flags
        return got
    }
}

/// A message header for `header` followed by the program's vector, in `vector`.
@inline(__always)
private func behind(
    _ header: UnsafeMutableRawPointer, _ message: UnsafePointer<msghdr>, _ vector: UnsafeMutablePointer<iovec>
) -> msghdr {
    vector[0] = iovec(iov_base: header, iov_len: headerSize)
    let count = Int(message.pointee.msg_iovlen)
    for index in 0..<count { vector[index + 1] = message.pointee.msg_iov[index] }
    var inner = msghdr()
    inner.msg_iov = vector
    inner.msg_iovlen = count + 1
    return inner
}

/// The same for a vector of more than 15 parts: the kernel takes 1024, so one of 1024 does not fit.
@inline(never)
private func transferLong(
    _ header: UnsafeMutableRawPointer, _ descriptor: Int32, _ message: UnsafePointer<msghdr>, _ flags: Int32,
    _ received: inout Int32, sends: Bool
) -> Int {
    guard message.pointee.msg_iovlen < 1024 else { return fail(EMSGSIZE) }
    var parts = [1024 of iovec](repeating: iovec(iov_base: nil, iov_len: 0))
    return withUnsafeMutableBytes(of: &parts) {
        let vector = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: iovec.self)
        var inner = behind(header, message, vector)
        let moved =
            sends
            ? real.sendmsg.unsafelyUnwrapped(descriptor, &inner, flags)
            : real.recvmsg.unsafelyUnwrapped(descriptor, &inner, flags)
        received = inner.msg_flags
        return moved
    }
}

// MARK: - sending

@inline(never)
func sendBytes(
    _ descriptor: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32, _ address: UnsafeRawPointer?,
    _ length: socklen_t
) -> Int {
    guard let found = entry(of: descriptor) else { return fail(EBADF) }
    var part = iovec(iov_base: UnsafeMutableRawPointer(mutating: buffer), iov_len: count)
    return withUnsafeMutablePointer(to: &part) { part in
        var message = msghdr()
        message.msg_iov = part
        message.msg_iovlen = 1
        message.msg_name = UnsafeMutableRawPointer(mutating: address)
        message.msg_namelen = address == nil ? 0 : length
        return sendDatagram(descriptor, found, &message, flags)
    }
}

func sendDatagram(
    _ descriptor: Int32, _ found: EntryPointer, _ message: UnsafePointer<msghdr>, _ flags: Int32
) -> Int {
    if found.pointee.isNetlink { return sendNetlink(descriptor, found, message, flags) }
    if found.pointee.isPacket { return sendPacket(descriptor, found, message, flags) }
    if flags & Int32(MSG_OOB) != 0 { return fail(EOPNOTSUPP) }
    if flags & Int32(MSG_MORE) != 0 || found.pointee.state & Entry.heldBack != 0 {
        if let sent = sendPart(descriptor, found, message, flags) { return sent }
    }
    var total = 0
    for index in 0..<Int(message.pointee.msg_iovlen) { total &+= message.pointee.msg_iov[index].iov_len }
    let largest = found.pointee.type == UInt8(SOCK_DGRAM.rawValue) ? largestDatagram : largestRaw
    guard total >= 0, total <= largest else { return fail(EMSGSIZE) }

    var target: Endpoint?
    if message.pointee.msg_name != nil, message.pointee.msg_namelen > 0 {
        switch readAddress(message.pointee.msg_name, message.pointee.msg_namelen) {
        case .ipv4(let endpoint): target = endpoint
        case .invalid(let error): return fail(error)
        case .unspecified:
            // Linux takes AF_UNSPEC for AF_INET here.
            guard message.pointee.msg_namelen >= 16, let name = message.pointee.msg_name else { return fail(EINVAL) }
            target = Endpoint(
                address: name.loadUnaligned(fromByteOffset: 4, as: UInt32.self),
                port: name.loadUnaligned(fromByteOffset: 2, as: UInt16.self))
        }
    }
    let quiet = flags | Int32(MSG_NOSIGNAL)
    var sent: Int
    if found.pointee.kind == .connectedDatagram {
        let isElsewhere = target.map {
            $0.address != found.pointee.peerAddress || $0.port != found.pointee.peerPort
        }
        if isElsewhere == true || message.pointee.msg_controllen > 0 {
            return sendThroughSession(found, message, isElsewhere == true ? target : nil, total)
        }
        var inner = message.pointee
        inner.msg_name = nil
        inner.msg_namelen = 0
        inner.msg_control = nil
        inner.msg_controllen = 0
        sent = real.sendmsg.unsafelyUnwrapped(descriptor, &inner, quiet)
    } else {
        guard let target else {
            // Another holder may have connected it.
            guard let again = refresh(descriptor) else { return fail(ENOTSOCK) }
            guard again.pointee.kind == .connectedDatagram else { return fail(EDESTADDRREQ) }
            return sendDatagram(descriptor, again, message, flags)
        }
        if target.port == 0, found.pointee.protocolNumber == UInt16(IPPROTO_UDP) { return fail(EINVAL) }
        if bypasses(target) {
            guard replaceWithKernelSocket(descriptor, found) else { return -1 }
            return real.sendmsg.unsafelyUnwrapped(descriptor, message, flags)
        }
        var header = alps_datagram_header()
        header.magic = ALPS_DATAGRAM_MAGIC
        header.address = clientAddress(target)
        if message.pointee.msg_controllen > 0 { readAncillary(message, &header) }
        sent = withUnsafeMutableBytes(of: &header) {
            sendBehind($0.baseAddress.unsafelyUnwrapped, descriptor, message, quiet)
        }
        if sent >= 0 { sent = max(sent - headerSize, 0) }
    }
    if sent < 0 {
        let error = alps_errno()
        guard error == EPIPE || error == ECONNRESET || error == ENOTCONN, stackSocket(descriptor) != nil else {
            return fail(error)
        }
        return fail(trueError(found, fallback: error == EPIPE ? EPIPE : ENETDOWN))
    }
    return sent
}

/// A datagram that a connected socket sends elsewhere than to its peer, or with control messages: bare messages of the pair
/// cannot say so.
@inline(never)
private func sendThroughSession(
    _ found: EntryPointer, _ message: UnsafePointer<msghdr>, _ target: Endpoint?, _ count: Int
) -> Int {
    if let target, target.port == 0, found.pointee.protocolNumber == UInt16(IPPROTO_UDP) { return fail(EINVAL) }
    guard count + headerSize <= Int(ALPS_FRAME_MAX_PAYLOAD) else { return fail(EMSGSIZE) }
    var header = alps_datagram_header()
    header.magic = ALPS_DATAGRAM_MAGIC
    if let target { header.address = clientAddress(target) }
    readAncillary(message, &header)
    guard let memory = alps_map_anonymous(max(count, 1)) else { return fail(ENOBUFS) }
    var done = 0
    for index in 0..<Int(message.pointee.msg_iovlen) {
        let part = message.pointee.msg_iov[index]
        if part.iov_len > 0, let bytes = part.iov_base { memcpy(memory + done, bytes, part.iov_len) }
        done += part.iov_len
    }
    let reply = ask(ALPS_OP_SEND_DATAGRAM, about: found, &header, headerSize, tail: memory, count)
    munmap(memory, max(count, 1))
    return reply.error == 0 ? count : fail(controlError(reply.error))
}

/// MSG_MORE: parts of one datagram. The host holds them back, as with UDP_CORK, until the last one. nil: not UDP.
@inline(never)
private func sendPart(
    _ descriptor: Int32, _ found: EntryPointer, _ message: UnsafePointer<msghdr>, _ flags: Int32
) -> Int? {
    guard found.pointee.type == UInt8(SOCK_DGRAM.rawValue), found.pointee.protocolNumber == UInt16(IPPROTO_UDP) else {
        return nil
    }
    let isLast = flags & Int32(MSG_MORE) == 0
    if found.pointee.state & Entry.heldBack == 0 {
        guard setCork(found, 1) else { return nil }
    }
    // Without these, to send it as any other.
    found.pointee.state &= ~Entry.heldBack
    let sent = sendDatagram(descriptor, found, message, flags & ~Int32(MSG_MORE))
    if isLast {
        _ = setCork(found, 0)
    } else {
        found.pointee.state |= Entry.heldBack
    }
    return sent
}

private func setCork(_ found: EntryPointer, _ value: Int32) -> Bool {
    var value = value
    var request = alps_sockopt_request(level: Int32(IPPROTO_UDP), name: UDP_CORK, length: 4, reserved: 0)
    let reply = ask(
        ALPS_OP_SETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, tail: &value, 4)
    return reply.error == 0
}

private var UDP_CORK: Int32 { 1 }

@inline(__always)
private func sendBehind(
    _ header: UnsafeMutableRawPointer, _ descriptor: Int32, _ message: UnsafePointer<msghdr>, _ flags: Int32
) -> Int {
    guard message.pointee.msg_iovlen <= 15 else {
        var ignored: Int32 = 0
        return transferLong(header, descriptor, message, flags, &ignored, sends: true)
    }
    var parts = [16 of iovec](repeating: iovec(iov_base: nil, iov_len: 0))
    return withUnsafeMutableBytes(of: &parts) {
        let vector = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: iovec.self)
        var inner = behind(header, message, vector)
        return real.sendmsg.unsafelyUnwrapped(descriptor, &inner, flags)
    }
}

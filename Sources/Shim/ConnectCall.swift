import CLibc
import ClientAPI

@c(alps_entry_connect)
public func shimConnect(_ descriptor: Int32, _ address: UnsafeRawPointer?, _ length: socklen_t) -> Int32 {
    ensureReady()
    guard let found = stackSocket(descriptor) else {
        return real.connect.unsafelyUnwrapped(descriptor, address, length)
    }
    if found.pointee.isPacket { return fail(EOPNOTSUPP) }
    guard isReadable(address, Int(min(length, 16))) else { return -1 }
    if found.pointee.isNetlink { return connectNetlink(found, address, length) }
    let target: Endpoint
    switch readAddress(address, length) {
    case .ipv4(let endpoint): target = endpoint
    case .invalid(let error): return fail(error)
    case .unspecified:
        return found.pointee.isDatagram ? unconnect(descriptor, found) : fail(EAFNOSUPPORT)
    }
    if bypasses(target) {
        guard replaceWithKernelSocket(descriptor, found) else { return -1 }
        return real.connect.unsafelyUnwrapped(descriptor, address, length)
    }
    return found.pointee.isDatagram
        ? connectDatagram(descriptor, found, target) : connectStream(descriptor, found, target)
}

@c(alps_entry___connect)
public func shimUnderscoredConnect(_ descriptor: Int32, _ address: UnsafeRawPointer?, _ length: socklen_t) -> Int32 {
    shimConnect(descriptor, address, length)
}

// MARK: - streams

private func connectStream(_ descriptor: Int32, _ found: EntryPointer, _ target: Endpoint) -> Int32 {
    let waits = alps_sys_fcntl(descriptor, F_GETFL, 0) & alps_O_NONBLOCK == 0
    if found.pointee.kind != .listener, isSpent(descriptor, found) {
        // Linux lets a program connect a stream again after a failure; a dead pair cannot be revived. The call after an
        // attempt that nobody waited for tells how that ended.
        if found.pointee.state & Entry.connecting != 0 {
            found.pointee.state &= ~Entry.connecting
            let error = trueError(found, fallback: 0)
            if error != 0 { return fail(error) }
        }
        guard replaceWithNewStackSocket(descriptor, found) else { return -1 }
    }
    var request = alps_connect_request(
        address: clientAddress(target), flags: waits ? 0 : ALPS_CONNECT_NOWAIT, plug_bytes: 0)
    let first = found.pointee.kind == .freshStream
    if first, !waits { request.plug_bytes = plug(descriptor) }
    if first { found.pointee.kind = .stream }

    let reply = ask(
        ALPS_OP_CONNECT, about: found, &request, MemoryLayout<alps_connect_request>.size, interruptible: waits)
    let wasConnecting = found.pointee.state & Entry.connecting != 0
    switch reply.error {
    case 0:
        found.pointee.state &= ~Entry.connecting
        return 0
    case EINPROGRESS, EINTR:
        // After a signal the attempt goes on; a later connect() or poll() tells how it ended.
        found.pointee.state |= Entry.connecting
    case EISCONN where wasConnecting:
        // The first call after an attempt that succeeded reports it.
        found.pointee.state &= ~Entry.connecting
        return 0
    case EISCONN, EALREADY: break
    default:
        found.pointee.state &= ~Entry.connecting
        if first {
            found.pointee.kind = .freshStream
            if request.plug_bytes != 0 { found.pointee.state |= Entry.spoiled }
        }
    }
    return fail(controlError(reply.error))
}

/// True if the pair is dead or holds filler that nobody will remove.
private func isSpent(_ descriptor: Int32, _ found: EntryPointer) -> Bool {
    found.pointee.state & Entry.spoiled != 0 || alps_sys_poll(descriptor, 0, 0) & (POLLHUP | POLLERR) != 0
}

/// Makes the pair unwritable, so that poll() says what it says of a connection on its way. The number of filler bytes,
/// which the host removes. A UNIX stream is writable while a quarter of its send buffer is used at most.
private func plug(_ descriptor: Int32) -> UInt32 {
    var size: Int32 = 0
    var length = socklen_t(4)
    _ = alps_sys_getsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &size, &length)
    var step = max(Int(size) / 4, 1024)
    var filled: UInt32 = 0
    var filler = [4096 of UInt8](repeating: 0)
    withUnsafeMutableBytes(of: &filler) { filler in
        var rounds = 0
        while rounds < 4096 {
            let sent = sendRepeated(descriptor, filler, step)
            if sent <= 0 { break }
            filled += UInt32(sent)
            if alps_sys_poll(descriptor, POLLOUT, 0) & POLLOUT == 0 { break }
            step = 1024
            rounds += 1
        }
    }
    return filled
}

/// Makes a listener's pair unwritable for ever: nothing is written to it, and poll() must not say that it could be.
func stopUp(_ descriptor: Int32) {
    let error = alps_errno()
    // The kernel's smallest, which takes little memory to fill.
    var size: Int32 = 0
    _ = alps_sys_setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &size, 4)
    _ = plug(descriptor)
    alps_set_errno(error)
}

/// One send of `count` bytes at most, made of the same page again and again.
private func sendRepeated(_ descriptor: Int32, _ page: UnsafeMutableRawBufferPointer, _ count: Int) -> Int {
    var parts = [32 of iovec](repeating: iovec(iov_base: nil, iov_len: 0))
    return withUnsafeMutableBytes(of: &parts) { parts in
        let vector = parts.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: iovec.self)
        var message = msghdr()
        message.msg_iov = vector
        var left = count
        while left > 0, message.msg_iovlen < 32 {
            let step = min(left, page.count)
            vector[Int(message.msg_iovlen)] = iovec(iov_base: page.baseAddress, iov_len: step)
            message.msg_iovlen += 1
            left -= step
        }
        return alps_sys_sendmsg(descriptor, &message, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
    }
}

// MARK: - datagrams

private func connectDatagram(_ descriptor: Int32, _ found: EntryPointer, _ target: Endpoint) -> Int32 {
    var request = alps_connect_request(address: clientAddress(target), flags: 0, plug_bytes: 0)
    let reply = ask(ALPS_OP_CONNECT, about: found, &request, MemoryLayout<alps_connect_request>.size)
    guard reply.error == 0 else { return fail(controlError(reply.error)) }
    found.pointee.kind = .connectedDatagram
    readiness.mayDiffer = true
    found.pointee.peerAddress = target.address
    found.pointee.peerPort = target.port
    requeue(descriptor, found, withHeader: true, peer: target)
    return 0
}

private func unconnect(_ descriptor: Int32, _ found: EntryPointer) -> Int32 {
    let reply = ask(ALPS_OP_UNCONNECT, about: found)
    guard reply.error == 0 else { return fail(controlError(reply.error)) }
    let peer = Endpoint(address: found.pointee.peerAddress, port: found.pointee.peerPort)
    found.pointee.kind = .datagram
    found.pointee.peerAddress = 0
    found.pointee.peerPort = 0
    requeue(descriptor, found, withHeader: false, peer: peer)
    return 0
}

/// Messages that were queued before the form of messages changed are of the other form: the host puts them into the pair
/// again, behind what has come since. `peer`: the source of those without a header.
private func requeue(_ descriptor: Int32, _ found: EntryPointer, withHeader: Bool, peer: Endpoint) {
    let error = alps_errno()
    defer { alps_set_errno(error) }
    var magic: UInt32 = 0
    func isOfOtherForm() -> Bool {
        magic = 0
        let got = alps_sys_recv(descriptor, &magic, 4, Int32(MSG_PEEK | MSG_DONTWAIT))
        return got > 0 && (got == 4 && magic == ALPS_DATAGRAM_MAGIC) == withHeader
    }
    guard isOfOtherForm() else { return }
    let size = MemoryLayout<alps_datagram_header>.size
    guard let space = malloc(size + 65536) else { return }
    defer { free(space) }
    repeat {
        let head = withHeader ? 0 : size
        let got = alps_sys_recv(descriptor, space + head, size + 65536 - head, Int32(MSG_DONTWAIT))
        guard got > 0 else { return }
        if !withHeader {
            var header = alps_datagram_header()
            header.magic = ALPS_DATAGRAM_MAGIC
            header.address = clientAddress(peer)
            memcpy(space, &header, size)
        }
        _ = ask(ALPS_OP_REQUEUE, about: found, space, head + got)
    } while isOfOtherForm()
}

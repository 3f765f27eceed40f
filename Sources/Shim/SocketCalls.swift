import CLibc
import ClientAPI

// socket, bind, listen, accept, shutdown and names.

@c(alps_entry_socket)
public func shimSocket(_ domain: Int32, _ type: Int32, _ protocolNumber: Int32) -> Int32 {
    ensureReady()
    var isOurs = domain == AF_INET || domain == AF_INET6 || domain == AF_PACKET
    if domain == AF_NETLINK, activation.active {
        switch owner(ofNetlinkFamily: protocolNumber) {
        case .stack: isOurs = true
        case .kernel: break
        case .nobody: return fail(EPROTONOSUPPORT)
        }
    }
    guard activation.active, isOurs else {
        return known(real.socket.unsafelyUnwrapped(domain, type, protocolNumber))
    }
    if domain == AF_INET6, !hostHas(domain: domain) {
        // The stack has no IPv6: programs that try it first fall back to IPv4.
        return fail(EAFNOSUPPORT)
    }
    let options = Int32(SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue)
    let descriptor = openStackSocket(domain, type & ~options, protocolNumber)
    guard descriptor >= 0 else { return -1 }
    applyCreationFlags(descriptor, type)
    return descriptor
}

@c(alps_entry___socket)
public func shimUnderscoredSocket(_ domain: Int32, _ type: Int32, _ protocolNumber: Int32) -> Int32 {
    shimSocket(domain, type, protocolNumber)
}

/// A descriptor that the kernel made: the number may have been a socket's that was closed behind our back.
func known(_ descriptor: Int32) -> Int32 {
    if descriptor >= 0 { clearEntry(descriptor) }
    return descriptor
}

@c(alps_entry_socketpair)
public func shimSocketpair(
    _ domain: Int32, _ type: Int32, _ protocolNumber: Int32, _ pair: UnsafeMutablePointer<Int32>?
) -> Int32 {
    ensureReady()
    let result = real.socketpair.unsafelyUnwrapped(domain, type, protocolNumber, pair)
    if result == 0, let pair {
        clearEntry(pair[0])
        clearEntry(pair[1])
    }
    return result
}

@c(alps_entry_pipe)
public func shimPipe(_ pair: UnsafeMutablePointer<Int32>?) -> Int32 { shimPipe2(pair, 0) }

@c(alps_entry___pipe)
public func shimUnderscoredPipe(_ pair: UnsafeMutablePointer<Int32>?) -> Int32 { shimPipe2(pair, 0) }

@c(alps_entry_pipe2)
public func shimPipe2(_ pair: UnsafeMutablePointer<Int32>?, _ flags: Int32) -> Int32 {
    ensureReady()
    let result = real.pipe2.unsafelyUnwrapped(pair, flags)
    if result == 0, let pair {
        clearEntry(pair[0])
        clearEntry(pair[1])
    }
    return result
}

/// A new socket of the stack, close-on-exec, blocking.
func openStackSocket(_ domain: Int32, _ type: Int32, _ protocolNumber: Int32) -> Int32 {
    var request = alps_socket_request(domain: domain, type: type, protocol: protocolNumber, flags: 0)
    var info = alps_socket_info()
    var reply = Reply(error: hostGone, length: 0, descriptor: -1)
    // A host that ended takes the session with it; the second attempt finds its successor.
    for _ in 0..<2 where reply.error == hostGone {
        reply = ask(
            ALPS_OP_SOCKET, 0, &request, MemoryLayout<alps_socket_request>.size, into: &info,
            MemoryLayout<alps_socket_info>.size)
    }
    guard reply.error == 0 else { return fail(controlError(reply.error)) }
    guard reply.descriptor >= 0 else { return fail(EMFILE) }
    register(reply.descriptor, info, fresh: true)
    return reply.descriptor
}

/// Gives a close-on-exec, blocking descriptor the SOCK_NONBLOCK and SOCK_CLOEXEC that were asked for.
func applyCreationFlags(_ descriptor: Int32, _ type: Int32) {
    let error = alps_errno()
    if type & Int32(SOCK_CLOEXEC.rawValue) == 0 { _ = alps_sys_fcntl(descriptor, F_SETFD, 0) }
    if type & Int32(SOCK_NONBLOCK.rawValue) != 0 {
        // It is new, and has no other of the flags that this sets.
        _ = alps_sys_fcntl(descriptor, F_SETFL, Int(alps_O_NONBLOCK))
    }
    alps_set_errno(error)
}

@c(alps_entry_bind)
public func shimBind(_ descriptor: Int32, _ address: UnsafeRawPointer?, _ length: socklen_t) -> Int32 {
    ensureReady()
    guard let found = stackSocket(descriptor) else {
        return real.bind.unsafelyUnwrapped(descriptor, address, length)
    }
    guard isReadable(address, Int(min(length, 16))) else { return -1 }
    if found.pointee.isNetlink { return bindNetlink(found, address, length) }
    if found.pointee.isPacket { return bindPacket(found, address, length) }
    var target: Endpoint
    switch readAddress(address, length) {
    case .ipv4(let endpoint): target = endpoint
    case .unspecified:
        // As Linux: AF_UNSPEC stands for AF_INET if the address is the wildcard.
        guard let address, length >= 16, address.loadUnaligned(fromByteOffset: 4, as: UInt32.self) == 0 else {
            return fail(EAFNOSUPPORT)
        }
        target = Endpoint(address: 0, port: address.loadUnaligned(fromByteOffset: 2, as: UInt16.self))
    case .invalid(let error): return fail(error)
    }
    if bypasses(target) {
        guard replaceWithKernelSocket(descriptor, found) else { return -1 }
        return real.bind.unsafelyUnwrapped(descriptor, address, length)
    }
    var name = clientAddress(target)
    let reply = ask(ALPS_OP_BIND, about: found, &name, MemoryLayout<alps_client_sockaddr>.size)
    return result(reply)
}

@c(alps_entry_listen)
public func shimListen(_ descriptor: Int32, _ backlog: Int32) -> Int32 {
    ensureReady()
    guard let found = stackSocket(descriptor) else { return real.listen.unsafelyUnwrapped(descriptor, backlog) }
    var backlog = backlog
    let reply = ask(ALPS_OP_LISTEN, about: found, &backlog, 4)
    if reply.error == 0, found.pointee.isStream, found.pointee.kind != .listener {
        found.pointee.kind = .listener
        stopUp(descriptor)
    }
    return result(reply)
}

@c(alps_entry_accept)
public func shimAccept(_ descriptor: Int32, _ address: UnsafeMutableRawPointer?, _ length: SocketLength?) -> Int32 {
    shimAccept4(descriptor, address, length, 0)
}

/// A connection is one message on the listener's pair, with the new descriptor beside it: hand-out between processes,
/// blocking, time-outs, signals and cancellation are the kernel's.
@c(alps_entry_accept4)
public func shimAccept4(
    _ descriptor: Int32, _ address: UnsafeMutableRawPointer?, _ length: SocketLength?, _ flags: Int32
) -> Int32 {
    ensureReady()
    guard var found = stackSocket(descriptor) else {
        return known(real.accept4.unsafelyUnwrapped(descriptor, address, length, flags))
    }
    if found.pointee.kind != .listener {
        guard found.pointee.isStream else { return fail(EOPNOTSUPP) }
        // Another holder may have called listen().
        guard let again = refresh(descriptor), again.pointee.kind == .listener else { return fail(EINVAL) }
        found = again
    }
    let options = Int32(SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue)
    guard flags & ~options == 0 else { return fail(EINVAL) }
    guard hasFreeDescriptor(like: descriptor) else { return -1 }

    var info = alps_socket_info()
    var accepted: Int32 = -1
    var control = [4 of UInt64](repeating: 0)
    let got = withUnsafeMutableBytes(of: &control) { control in
        withUnsafeMutableBytes(of: &info) { info in
            var part = iovec(iov_base: info.baseAddress, iov_len: info.count)
            return withUnsafeMutablePointer(to: &part) { part in
                var message = msghdr()
                message.msg_iov = part
                message.msg_iovlen = 1
                message.msg_control = control.baseAddress
                message.msg_controllen = 24
                let got = real.recvmsg.unsafelyUnwrapped(
                    descriptor, &message,
                    flags & options == 0 || flags & Int32(SOCK_CLOEXEC.rawValue) == 0
                        ? 0 : Int32(MSG_CMSG_CLOEXEC))
                if got > 0, let passed = passedDescriptor(message) { accepted = passed }
                return got
            }
        }
    }
    if got < 0 {
        // Not ENETDOWN for a host that is gone: accept(2) tells programs to try again then.
        return alps_errno() == ECONNRESET ? fail(EINVAL) : -1
    }
    if got == 0 {
        // The host is gone, and poll() will say so again at once: a server's loop must not spin on it.
        _ = alps_sys_poll(-1, 0, 100)
    }
    guard got == MemoryLayout<alps_socket_info>.size else {
        if accepted >= 0 { _ = alps_sys_close(accepted) }
        return fail(got == 0 ? EINVAL : EPROTO)
    }
    descriptorRoom.last = accepted >= 0 ? UInt64(accepted) : UInt64(Int32.max)
    guard accepted >= 0 else { return fail(EMFILE) }
    clearEntry(accepted)
    register(accepted, info, fresh: true)
    if let new = entry(of: accepted), new.pointee.kind != .native {
        new.pointee.kind = .stream
        if found.pointee.optionWord == 0 { openOptionWords(found) }
        noteOptionWord(new, from: found, info)
    }
    // It does not block when it comes, and has no other flag.
    if flags & Int32(SOCK_NONBLOCK.rawValue) == 0 { _ = alps_sys_fcntl(accepted, F_SETFL, 0) }
    writeAddress(endpoint(info.remote), to: address, length)
    return accepted
}

@c(alps_entry_shutdown)
public func shimShutdown(_ descriptor: Int32, _ how: Int32) -> Int32 {
    ensureReady()
    guard let found = stackSocket(descriptor) else { return real.shutdown.unsafelyUnwrapped(descriptor, how) }
    guard how >= 0, how <= 2 else { return fail(EINVAL) }
    // The pair refuses what is written afterwards; the ring would take it.
    if found.pointee.ring != 0, how != Int32(SHUT_RD) { returnToPair(descriptor, ALPS_RING_SEND, forGood: false) }
    if found.pointee.kind == .stream, how == Int32(SHUT_WR), found.pointee.state & Entry.connecting == 0 {
        // The host sees it in the pair, after all that was written.
        return real.shutdown.unsafelyUnwrapped(descriptor, how)
    }
    var request = how
    let reply = ask(ALPS_OP_SHUTDOWN, about: found, &request, 4)
    // The pair's own shutdown wakes everybody who is blocked on it.
    if reply.error == 0 || reply.error == hostGone { _ = real.shutdown.unsafelyUnwrapped(descriptor, how) }
    return result(reply)
}

@c(alps_entry_getsockname)
public func shimGetsockname(_ descriptor: Int32, _ address: UnsafeMutableRawPointer?, _ length: SocketLength?) -> Int32
{
    ensureReady()
    guard let found = stackSocket(descriptor) else {
        return real.getsockname.unsafelyUnwrapped(descriptor, address, length)
    }
    return name(ALPS_OP_GETSOCKNAME, found, address, length)
}

@c(alps_entry_getpeername)
public func shimGetpeername(_ descriptor: Int32, _ address: UnsafeMutableRawPointer?, _ length: SocketLength?) -> Int32
{
    ensureReady()
    guard let found = stackSocket(descriptor) else {
        return real.getpeername.unsafelyUnwrapped(descriptor, address, length)
    }
    return name(ALPS_OP_GETPEERNAME, found, address, length)
}

private func name(
    _ operation: UInt32, _ found: EntryPointer, _ address: UnsafeMutableRawPointer?, _ length: SocketLength?
) -> Int32 {
    guard let address, let length, isWritable(length, 4) else { return fail(EFAULT) }
    guard Int32(bitPattern: length.pointee) >= 0 else { return fail(EINVAL) }
    guard isWritable(address, Int(min(length.pointee, 16))) else { return -1 }
    var answer = alps_client_sockaddr()
    let reply = ask(operation, about: found, into: &answer, MemoryLayout<alps_client_sockaddr>.size)
    guard reply.error == 0 else { return fail(controlError(reply.error)) }
    if found.pointee.isNetlink {
        length.pointee = writeNetlinkName(answer, to: address, capacity: Int(length.pointee))
    } else if found.pointee.isPacket {
        length.pointee = writePacketName(answer, to: address, capacity: Int(length.pointee), isWhole: false)
    } else {
        writeAddress(endpoint(answer), to: address, length)
    }
    return 0
}

/// The result of a control call that answers nothing.
func result(_ reply: Reply) -> Int32 {
    reply.error == 0 ? 0 : fail(controlError(reply.error))
}

import CLibc
import ClientAPI

// Reading and writing. On a stream each of these is the identical single system call of the kernel, so that a program's own
// sandbox allows it; more happens only after a failure or at the end. Nothing here allocates.

/// Flags whose meaning a pair does not have.
private var specialFlags: Int32 { Int32(MSG_OOB | MSG_ERRQUEUE) }
private var fastOpen: Int32 { 0x2000_0000 }  // MSG_FASTOPEN

/// The kind of a descriptor for a call that only sockets have.
@inline(__always)
func socketKind(_ descriptor: Int32) -> Kind {
    let known = kind(of: descriptor)
    guard known == .unknown else { return known }
    return probe(descriptor)?.pointee.kind ?? .native
}

// MARK: - read

@c(alps_entry_read)
public func shimRead(_ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int) -> Int {
    ensureReady()
    switch kind(of: descriptor) {
    case .native: return real.read.unsafelyUnwrapped(descriptor, buffer, count)
    case .stream:
        if hasRing(descriptor) { return receiveThroughRing(descriptor, buffer: buffer, count, 0) }
        let got = real.read.unsafelyUnwrapped(descriptor, buffer, count)
        noteRead(descriptor, got)
        return got > 0 || count == 0 ? got : finishRead(descriptor, got)
    case .unknown:
        let got = real.read.unsafelyUnwrapped(descriptor, buffer, count)
        return got >= MemoryLayout<alps_datagram_header>.size ? stripInherited(descriptor, buffer, got) : got
    case .datagram, .connectedDatagram:
        let got = receiveBytes(descriptor, buffer, count, 0, nil, nil)
        return got < 0 && isStale(descriptor) ? real.read.unsafelyUnwrapped(descriptor, buffer, count) : got
    case .freshStream:
        guard becameConnected(descriptor) else { return fail(ENOTCONN) }
        return real.read.unsafelyUnwrapped(descriptor, buffer, count)
    case .listener: return fail(ENOTCONN)
    case .hidden: return isHidden(descriptor) ? fail(EBADF) : shimRead(descriptor, buffer, count)
    }
}

@c(alps_entry___read)
public func shimUnderscoredRead(_ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int) -> Int {
    shimRead(descriptor, buffer, count)
}

@c(alps_entry___read_chk)
public func shimReadChecked(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ capacity: Int
) -> Int {
    if UInt(bitPattern: count) > UInt(bitPattern: capacity) { __chk_fail() }
    return shimRead(descriptor, buffer, count)
}

@c(alps_entry_readv)
public func shimReadv(_ descriptor: Int32, _ vector: UnsafePointer<iovec>?, _ count: Int32) -> Int {
    ensureReady()
    switch kind(of: descriptor) {
    case .native, .unknown: return real.readv.unsafelyUnwrapped(descriptor, vector, count)
    case .stream:
        if hasRing(descriptor), let vector, (1...1024).contains(count) {
            return receiveThroughRing(descriptor, vector, Int(count), 0)
        }
        let got = real.readv.unsafelyUnwrapped(descriptor, vector, count)
        noteRead(descriptor, got)
        return got > 0 ? got : finishRead(descriptor, got)
    case .datagram, .connectedDatagram:
        guard let found = entry(of: descriptor) else { return fail(EBADF) }
        var message = msghdr()
        message.msg_iov = UnsafeMutablePointer(mutating: vector)
        message.msg_iovlen = Int(count)
        let got = receiveDatagram(descriptor, found, &message, 0)
        return got < 0 && isStale(descriptor) ? real.readv.unsafelyUnwrapped(descriptor, vector, count) : got
    case .freshStream:
        guard becameConnected(descriptor) else { return fail(ENOTCONN) }
        return real.readv.unsafelyUnwrapped(descriptor, vector, count)
    case .listener: return fail(ENOTCONN)
    case .hidden: return isHidden(descriptor) ? fail(EBADF) : shimReadv(descriptor, vector, count)
    }
}

/// After a failure: true if the number was a datagram socket's, is no socket's any more, and the call has to be made again.
@inline(never)
func isStale(_ descriptor: Int32) -> Bool {
    guard alps_errno() == ENOTSOCK else { return false }
    clearEntry(descriptor)
    return true
}

/// A read from a descriptor nobody has looked at brought what may be a datagram with its header.
@inline(never)
private func stripInherited(_ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int) -> Int {
    guard let buffer, buffer.loadUnaligned(as: UInt32.self) == ALPS_DATAGRAM_MAGIC, let found = probe(descriptor),
        found.pointee.kind == .datagram
    else { return count }
    let size = MemoryLayout<alps_datagram_header>.size
    memmove(buffer, buffer + size, count - size)
    return count - size
}

// MARK: - recv

@c(alps_entry_recv)
public func shimRecv(_ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    shimRecvfrom(descriptor, buffer, count, flags, nil, nil)
}

@c(alps_entry___recv)
public func shimUnderscoredRecv(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32
) -> Int {
    shimRecvfrom(descriptor, buffer, count, flags, nil, nil)
}

@c(alps_entry___recv_chk)
public func shimRecvChecked(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ capacity: Int, _ flags: Int32
) -> Int {
    if UInt(bitPattern: count) > UInt(bitPattern: capacity) { __chk_fail() }
    return shimRecvfrom(descriptor, buffer, count, flags, nil, nil)
}

@c(alps_entry_recvfrom)
public func shimRecvfrom(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32,
    _ address: UnsafeMutableRawPointer?, _ length: SocketLength?
) -> Int {
    ensureReady()
    switch socketKind(descriptor) {
    case .native, .unknown:
        return real.recvfrom.unsafelyUnwrapped(descriptor, buffer, count, flags, address, length)
    case .stream:
        if flags & specialFlags != 0 { return receiveSpecial(descriptor, buffer, count, flags) }
        if address != nil, let length { length.pointee = 0 }
        if hasRing(descriptor) { return receiveThroughRing(descriptor, buffer: buffer, count, flags) }
        if flags & Int32(MSG_TRUNC | MSG_PEEK) == Int32(MSG_TRUNC) { return discardFromPair(descriptor, count, flags) }
        // The pair would name the host's end; a TCP stream has no address here.
        let got = real.recvfrom.unsafelyUnwrapped(descriptor, buffer, count, flags, nil, nil)
        noteRead(descriptor, got)
        return got > 0 || count == 0 ? got : finishRead(descriptor, got)
    case .datagram, .connectedDatagram:
        let got = receiveBytes(descriptor, buffer, count, flags, address, length)
        guard got < 0, isStale(descriptor) else { return got }
        return real.recvfrom.unsafelyUnwrapped(descriptor, buffer, count, flags, address, length)
    case .freshStream:
        guard becameConnected(descriptor) else { return fail(flags & Int32(MSG_OOB) != 0 ? EINVAL : ENOTCONN) }
        return shimRecvfrom(descriptor, buffer, count, flags, address, length)
    case .listener: return fail(ENOTCONN)
    case .hidden:
        return isHidden(descriptor) ? fail(EBADF) : shimRecvfrom(descriptor, buffer, count, flags, address, length)
    }
}

@c(alps_entry___recvfrom_chk)
public func shimRecvfromChecked(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ capacity: Int, _ flags: Int32,
    _ address: UnsafeMutableRawPointer?, _ length: SocketLength?
) -> Int {
    if UInt(bitPattern: count) > UInt(bitPattern: capacity) { __chk_fail() }
    return shimRecvfrom(descriptor, buffer, count, flags, address, length)
}

@c(alps_entry_recvmsg)
public func shimRecvmsg(_ descriptor: Int32, _ message: UnsafeMutablePointer<msghdr>?, _ flags: Int32) -> Int {
    ensureReady()
    guard let message else { return real.recvmsg.unsafelyUnwrapped(descriptor, message, flags) }
    switch socketKind(descriptor) {
    case .native, .unknown:
        let got = real.recvmsg.unsafelyUnwrapped(descriptor, message, flags)
        if got >= 0, message.pointee.msg_controllen > MemoryLayout<cmsghdr>.size { forgetPassed(message.pointee) }
        return got
    case .stream:
        if flags & specialFlags != 0 {
            let first = message.pointee.msg_iovlen > 0 ? message.pointee.msg_iov?.pointee : nil
            return receiveSpecial(descriptor, first?.iov_base, first?.iov_len ?? 0, flags)
        }
        if hasRing(descriptor), let parts = message.pointee.msg_iov, (1...1024).contains(message.pointee.msg_iovlen) {
            message.pointee.msg_namelen = 0
            message.pointee.msg_controllen = 0
            message.pointee.msg_flags = 0
            return receiveThroughRing(descriptor, parts, message.pointee.msg_iovlen, flags)
        }
        var inner = message.pointee
        inner.msg_name = nil
        inner.msg_namelen = 0
        let got = real.recvmsg.unsafelyUnwrapped(descriptor, &inner, flags)
        noteRead(descriptor, got)
        message.pointee.msg_namelen = 0
        message.pointee.msg_controllen = inner.msg_controllen
        message.pointee.msg_flags = inner.msg_flags
        return got > 0 ? got : finishRead(descriptor, got)
    case .datagram, .connectedDatagram:
        guard let found = entry(of: descriptor) else { return fail(EBADF) }
        return receiveDatagram(descriptor, found, message, flags)
    case .freshStream:
        guard becameConnected(descriptor) else { return fail(ENOTCONN) }
        return shimRecvmsg(descriptor, message, flags)
    case .listener: return fail(ENOTCONN)
    case .hidden: return isHidden(descriptor) ? fail(EBADF) : shimRecvmsg(descriptor, message, flags)
    }
}

@c(alps_entry_recvmmsg)
public func shimRecvmmsg(
    _ descriptor: Int32, _ messages: UnsafeMutablePointer<mmsghdr>?, _ count: UInt32, _ flags: Int32,
    _ timeout: UnsafeMutablePointer<timespec>?
) -> Int32 {
    ensureReady()
    let kind = socketKind(descriptor)
    guard let messages, kind != .native, kind != .unknown, kind != .hidden else {
        let got = real.recvmmsg.unsafelyUnwrapped(descriptor, messages, count, flags, timeout)
        if got > 0, let messages {
            for index in 0..<Int(got) { forgetPassed(messages[index].msg_hdr) }
        }
        return got
    }
    if timeout == nil, kind == .datagram || kind == .connectedDatagram,
        let got = receiveBatch(descriptor, messages, count, flags)
    {
        return got
    }
    var deadline: Int64 = 0
    if let timeout {
        guard timeout.pointee.tv_sec >= 0, timeout.pointee.tv_nsec >= 0, timeout.pointee.tv_nsec < 1_000_000_000 else {
            return fail(EINVAL)
        }
        deadline = monotonicNanoseconds() &+ nanoseconds(timeout.pointee)
    }
    let waitForOne = Int32(MSG_WAITFORONE)
    var flags = flags
    var done: UInt32 = 0
    while done < min(count, 1024) {
        // A reset is told once: the next call must find it, behind what has come.
        if done > 0, kind == .stream, alps_sys_poll(descriptor, 0, 0) & (POLLERR | POLLHUP) != 0 { break }
        let got = shimRecvmsg(descriptor, &messages[Int(done)].msg_hdr, flags & ~waitForOne)
        if got < 0 { break }
        messages[Int(done)].msg_len = UInt32(got)
        done += 1
        if flags & waitForOne != 0 { flags |= Int32(MSG_DONTWAIT) }
        if got == 0, kind == .stream { break }
        if let timeout {
            // As the kernel: the time is looked at after each message only, and what is left of it is told.
            let left = max(deadline &- monotonicNanoseconds(), 0)
            timeout.pointee = timespec(tv_sec: Int(left / 1_000_000_000), tv_nsec: Int(left % 1_000_000_000))
            if left == 0 { break }
        }
    }
    return done > 0 ? Int32(done) : count == 0 ? 0 : -1
}

private func nanoseconds(_ time: timespec) -> Int64 {
    Int64(min(time.tv_sec, 1 << 32)) * 1_000_000_000 + Int64(time.tv_nsec)
}

private func monotonicNanoseconds() -> Int64 {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return nanoseconds(now)
}

/// MSG_TRUNC on a stream: what is read is thrown away (tcp(7)), the buffer need not be there.
@inline(never)
func discardFromPair(_ descriptor: Int32, _ count: Int, _ flags: Int32) -> Int {
    var scrap = [4096 of UInt8](repeating: 0)
    var flags = flags & ~Int32(MSG_TRUNC)
    var done = 0
    while done < count {
        let wanted = min(count - done, 4096)
        let got = withUnsafeMutableBytes(of: &scrap) {
            real.recvfrom.unsafelyUnwrapped(descriptor, $0.baseAddress, wanted, flags, nil, nil)
        }
        guard got > 0 else { return done > 0 ? done : finishRead(descriptor, got) }
        done += got
        if flags & Int32(MSG_WAITALL) == 0 { flags |= Int32(MSG_DONTWAIT) }
    }
    return done
}

/// MSG_OOB and MSG_ERRQUEUE on a stream.
@inline(never)
private func receiveSpecial(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32
) -> Int {
    if flags & Int32(MSG_ERRQUEUE) != 0 { return fail(EAGAIN) }
    guard let found = stackSocket(descriptor) else { return fail(EBADF) }
    if found.pointee.state & Entry.watchesUrgent != 0 {
        let got = real.recvfrom.unsafelyUnwrapped(descriptor, buffer, count, flags, nil, nil)
        // Without one in the pair it may wait behind what has no room there yet.
        guard got < 0, alps_errno() == EINVAL else { return got }
    }
    var request = UInt32(bitPattern: flags & Int32(MSG_PEEK))
    var byte: UInt8 = 0
    let reply = ask(ALPS_OP_RECV_OOB, about: found, &request, 4, into: &byte, 1)
    guard reply.error == 0 else { return fail(reply.error == hostGone ? ECONNRESET : reply.error) }
    guard reply.length > 0, count > 0, let buffer else { return 0 }
    buffer.storeBytes(of: byte, as: UInt8.self)
    return 1
}

/// Descriptors that came with a message: what was known of their numbers is void.
private func forgetPassed(_ message: msghdr) { forEachPassed(message, clearEntry) }

// MARK: - write

@c(alps_entry_write)
public func shimWrite(_ descriptor: Int32, _ buffer: UnsafeRawPointer?, _ count: Int) -> Int {
    ensureReady()
    switch kind(of: descriptor) {
    case .native, .unknown: return real.write.unsafelyUnwrapped(descriptor, buffer, count)
    case .stream:
        if count > 0, hasRing(descriptor) || !beginPairWrite(descriptor) {
            return sendThroughRing(descriptor, buffer: buffer, count, 0)
        }
        let sent = real.write.unsafelyUnwrapped(descriptor, buffer, count)
        if count > 0 { endPairWrite(descriptor) }
        noteWritten(descriptor, sent)
        return sent >= 0 ? sent : finishWrite(descriptor)
    case .datagram, .connectedDatagram:
        let sent = sendBytes(descriptor, buffer, count, 0, nil, 0)
        return sent < 0 && isStale(descriptor) ? real.write.unsafelyUnwrapped(descriptor, buffer, count) : sent
    case .freshStream:
        guard becameConnected(descriptor) else { return brokenPipe(0) }
        return real.write.unsafelyUnwrapped(descriptor, buffer, count)
    case .listener: return brokenPipe(0)
    case .hidden: return isHidden(descriptor) ? fail(EBADF) : shimWrite(descriptor, buffer, count)
    }
}

@c(alps_entry___write)
public func shimUnderscoredWrite(_ descriptor: Int32, _ buffer: UnsafeRawPointer?, _ count: Int) -> Int {
    shimWrite(descriptor, buffer, count)
}

@c(alps_entry_writev)
public func shimWritev(_ descriptor: Int32, _ vector: UnsafePointer<iovec>?, _ count: Int32) -> Int {
    ensureReady()
    switch kind(of: descriptor) {
    case .native, .unknown: return real.writev.unsafelyUnwrapped(descriptor, vector, count)
    case .stream:
        guard let vector, (1...1024).contains(count) else { return real.writev.unsafelyUnwrapped(descriptor, vector, count) }
        if hasRing(descriptor) || !beginPairWrite(descriptor) { return sendThroughRing(descriptor, vector, Int(count), 0) }
        let sent = real.writev.unsafelyUnwrapped(descriptor, vector, count)
        endPairWrite(descriptor)
        noteWritten(descriptor, sent)
        return sent >= 0 ? sent : finishWrite(descriptor)
    case .datagram, .connectedDatagram:
        guard let found = entry(of: descriptor) else { return fail(EBADF) }
        var message = msghdr()
        message.msg_iov = UnsafeMutablePointer(mutating: vector)
        message.msg_iovlen = Int(count)
        let sent = sendDatagram(descriptor, found, &message, 0)
        return sent < 0 && isStale(descriptor) ? real.writev.unsafelyUnwrapped(descriptor, vector, count) : sent
    case .freshStream:
        guard becameConnected(descriptor) else { return brokenPipe(0) }
        return real.writev.unsafelyUnwrapped(descriptor, vector, count)
    case .listener: return brokenPipe(0)
    case .hidden: return isHidden(descriptor) ? fail(EBADF) : shimWritev(descriptor, vector, count)
    }
}

@c(alps_entry_send)
public func shimSend(_ descriptor: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    shimSendto(descriptor, buffer, count, flags, nil, 0)
}

@c(alps_entry___send)
public func shimUnderscoredSend(_ descriptor: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    shimSendto(descriptor, buffer, count, flags, nil, 0)
}

@c(alps_entry_sendto)
public func shimSendto(
    _ descriptor: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32, _ address: UnsafeRawPointer?,
    _ length: socklen_t
) -> Int {
    ensureReady()
    switch socketKind(descriptor) {
    case .native, .unknown:
        return real.sendto.unsafelyUnwrapped(descriptor, buffer, count, flags, address, length)
    case .stream:
        if flags & Int32(MSG_OOB) != 0 { return sendUrgent(descriptor, buffer, count, flags) }
        if count > 0, hasRing(descriptor) || !beginPairWrite(descriptor) {
            return sendThroughRing(descriptor, buffer: buffer, count, flags)
        }
        let sent = real.sendto.unsafelyUnwrapped(descriptor, buffer, count, flags, nil, 0)
        if count > 0 { endPairWrite(descriptor) }
        noteWritten(descriptor, sent)
        return sent >= 0 ? sent : finishWrite(descriptor)
    case .datagram, .connectedDatagram:
        let sent = sendBytes(descriptor, buffer, count, flags, address, length)
        guard sent < 0, isStale(descriptor) else { return sent }
        return real.sendto.unsafelyUnwrapped(descriptor, buffer, count, flags, address, length)
    case .freshStream:
        if flags & fastOpen != 0, address != nil {
            // With a cookie of the peer's connect only notes the address, and what is sent goes with the SYN.
            var on: Int32 = 1
            _ = shimSetsockopt(descriptor, 6, 30, &on, 4)  // TCP_FASTOPEN_CONNECT
            guard shimConnect(descriptor, address, length) == 0 else { return -1 }
        } else {
            guard becameConnected(descriptor) else { return brokenPipe(flags) }
        }
        return shimSendto(descriptor, buffer, count, flags & ~fastOpen, nil, 0)
    case .listener: return brokenPipe(flags)
    case .hidden:
        return isHidden(descriptor) ? fail(EBADF) : shimSendto(descriptor, buffer, count, flags, address, length)
    }
}

@c(alps_entry_sendmsg)
public func shimSendmsg(_ descriptor: Int32, _ message: UnsafePointer<msghdr>?, _ flags: Int32) -> Int {
    ensureReady()
    guard let message else { return real.sendmsg.unsafelyUnwrapped(descriptor, message, flags) }
    switch socketKind(descriptor) {
    case .native, .unknown:
        // In-band for good (client.h, 5): descriptors that are passed along here.
        if message.pointee.msg_controllen > 0 { returnPassedToPairs(message.pointee) }
        return real.sendmsg.unsafelyUnwrapped(descriptor, message, flags)
    case .stream:
        // Control messages and an address would mean something to the pair that they do not mean to a stream.
        var inner = message.pointee
        inner.msg_name = nil
        inner.msg_namelen = 0
        inner.msg_control = nil
        inner.msg_controllen = 0
        if flags & Int32(MSG_OOB) != 0 { return sendUrgent(descriptor, inner, flags) }
        var sent = -1
        if let parts = inner.msg_iov, (1...1024).contains(inner.msg_iovlen) {
            if hasRing(descriptor) || !beginPairWrite(descriptor) {
                return sendThroughRing(descriptor, parts, inner.msg_iovlen, flags)
            }
            sent = real.sendmsg.unsafelyUnwrapped(descriptor, &inner, flags)
            endPairWrite(descriptor)
            noteWritten(descriptor, sent)
        } else {
            sent = real.sendmsg.unsafelyUnwrapped(descriptor, &inner, flags)
        }
        return sent >= 0 ? sent : finishWrite(descriptor)
    case .datagram, .connectedDatagram:
        guard let found = entry(of: descriptor) else { return fail(EBADF) }
        let sent = sendDatagram(descriptor, found, message, flags)
        guard sent < 0, isStale(descriptor) else { return sent }
        return real.sendmsg.unsafelyUnwrapped(descriptor, message, flags)
    case .freshStream:
        guard becameConnected(descriptor) else { return brokenPipe(flags) }
        return shimSendmsg(descriptor, message, flags)
    case .listener: return brokenPipe(flags)
    case .hidden: return isHidden(descriptor) ? fail(EBADF) : shimSendmsg(descriptor, message, flags)
    }
}

@c(alps_entry_sendmmsg)
public func shimSendmmsg(
    _ descriptor: Int32, _ messages: UnsafeMutablePointer<mmsghdr>?, _ count: UInt32, _ flags: Int32
) -> Int32 {
    ensureReady()
    let kind = socketKind(descriptor)
    guard let messages, kind != .native, kind != .unknown, kind != .hidden else {
        return real.sendmmsg.unsafelyUnwrapped(descriptor, messages, count, flags)
    }
    if kind == .datagram || kind == .connectedDatagram, let sent = sendBatch(descriptor, messages, count, flags) {
        return sent
    }
    var done: UInt32 = 0
    while done < min(count, 1024) {
        let sent = shimSendmsg(descriptor, &messages[Int(done)].msg_hdr, flags)
        if sent < 0 { break }
        messages[Int(done)].msg_len = UInt32(sent)
        let message = messages[Int(done)].msg_hdr
        done += 1
        // What would follow has to come behind the rest of this one, which is the caller's to send.
        if kind == .stream, let parts = message.msg_iov, sent < Vector(parts, message.msg_iovlen).total { break }
    }
    return done > 0 ? Int32(done) : count == 0 ? 0 : -1
}

@c(alps_entry___sendmmsg)
public func shimUnderscoredSendmmsg(
    _ descriptor: Int32, _ messages: UnsafeMutablePointer<mmsghdr>?, _ count: UInt32, _ flags: Int32
) -> Int32 {
    shimSendmmsg(descriptor, messages, count, flags)
}

/// Writing to a stream that was never connected.
@inline(never)
func brokenPipe(_ flags: Int32) -> Int {
    if flags & Int32(MSG_NOSIGNAL) == 0 { raise(SIGPIPE) }
    return fail(EPIPE)
}

/// MSG_OOB: all but the last byte are ordinary, the last one is urgent.
@inline(never)
private func sendUrgent(_ descriptor: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    guard let buffer, count > 0 else { return 0 }
    guard let found = stackSocket(descriptor) else { return fail(EBADF) }
    // The urgent byte goes another way, behind all that was written.
    returnToPairForGood(descriptor, ALPS_RING_SEND)
    if count > 1 {
        let sent = real.sendto.unsafelyUnwrapped(descriptor, buffer, count - 1, flags & ~Int32(MSG_OOB), nil, 0)
        guard sent >= 0 else { return finishWrite(descriptor) }
        guard sent == count - 1 else { return sent }
    }
    let reply = ask(ALPS_OP_SEND_OOB, about: found, buffer + count - 1, 1)
    guard reply.error == 0 else {
        return count > 1 ? count - 1 : fail(reply.error == hostGone ? ECONNRESET : reply.error)
    }
    return count
}

@inline(never)
private func sendUrgent(_ descriptor: Int32, _ message: msghdr, _ flags: Int32) -> Int {
    var done = 0
    for index in 0..<Int(message.msg_iovlen) {
        let part = message.msg_iov[index]
        let last = index == Int(message.msg_iovlen) - 1
        let sent =
            last
            ? sendUrgent(descriptor, part.iov_base, part.iov_len, flags)
            : real.sendto.unsafelyUnwrapped(
                descriptor, part.iov_base, part.iov_len, flags & ~Int32(MSG_OOB), nil, 0)
        if sent < 0 { return done > 0 ? done : sent }
        done += sent
        if sent < part.iov_len { break }
    }
    return done
}

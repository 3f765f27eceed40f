import CLibc
import ClientAPI

// sendfile, splice and the readv family with positions. On a stream's pair the kernel does them; datagrams in a pair may
// have a header, so they pass through memory here. tee, vmsplice and copy_file_range refuse sockets by themselves.

@c(alps_shim_has_headers)
public func hasHeaders(_ descriptor: Int32) -> Int32 {
    ensureReady()
    guard activation.active else { return 0 }
    switch socketKind(descriptor) {
    case .datagram, .connectedDatagram: return 1
    default: return 0
    }
}

/// What a transfer to a socket has to do.
private enum Way {
    case kernel
    case memory
    case refused
}

/// How data get to or from a descriptor. `.refused`: a stream that is not connected.
@inline(__always)
private func way(_ descriptor: Int32) -> Way {
    guard activation.active else { return .kernel }
    switch socketKind(descriptor) {
    case .native, .unknown, .stream, .hidden: return .kernel
    case .datagram, .connectedDatagram: return .memory
    case .freshStream: return becameConnected(descriptor) ? .kernel : .refused
    case .listener: return .refused
    }
}

// MARK: - sendfile

@c(alps_entry_sendfile)
public func shimSendfile(
    _ target: Int32, _ source: Int32, _ offset: UnsafeMutablePointer<off_t>?, _ count: Int
) -> Int {
    ensureReady()
    switch way(target) {
    case .kernel:
        guard kind(of: target) == .stream else { return real.sendfile.unsafelyUnwrapped(target, source, offset, count) }
        if hasRing(target) || !beginPairWrite(target) { return sendFileThroughRing(target, source, offset, count) }
        let sent = real.sendfile.unsafelyUnwrapped(target, source, offset, count)
        endPairWrite(target)
        noteWritten(target, sent)
        return sent >= 0 ? sent : finishWrite(target)
    case .refused: return brokenPipe(0)
    case .memory: return sendFileAsDatagrams(target, source, offset, count)
    }
}

@c(alps_entry_sendfile64)
public func shimSendfile64(
    _ target: Int32, _ source: Int32, _ offset: UnsafeMutablePointer<off_t>?, _ count: Int
) -> Int {
    shimSendfile(target, source, offset, count)
}

/// As much as Linux' sendfile passes on at once.
private var batch: Int { 65536 }

private func sendFileAsDatagrams(
    _ target: Int32, _ source: Int32, _ offset: UnsafeMutablePointer<off_t>?, _ count: Int
) -> Int {
    guard let memory = alps_map_anonymous(batch) else { return fail(ENOMEM) }
    defer { release(memory) }
    var position = offset?.pointee ?? 0
    var done = 0
    while done < count {
        let wanted = min(count - done, batch)
        let got =
            offset == nil ? real.read.unsafelyUnwrapped(source, memory, wanted) : alps_sys_pread(source, memory, wanted, position)
        if got <= 0 {
            if got < 0, done == 0 { return -1 }
            break
        }
        let sent = shimWrite(target, memory, got)
        if sent < 0 {
            // As the kernel: what was not sent has not been read.
            if offset == nil { alps_sys_seek_back(source, got) }
            if done == 0 { return -1 }
            break
        }
        done += sent
        position += off_t(sent)
        offset?.pointee = position
    }
    return done
}

private func release(_ memory: UnsafeMutableRawPointer) {
    let error = alps_errno()
    munmap(memory, batch)
    alps_set_errno(error)
}

// MARK: - splice

@c(alps_entry_splice)
public func shimSplice(
    _ source: Int32, _ sourceOffset: UnsafeMutablePointer<off_t>?, _ target: Int32,
    _ targetOffset: UnsafeMutablePointer<off_t>?, _ count: Int, _ flags: UInt32
) -> Int {
    ensureReady()
    let from = way(source)
    let to = way(target)
    if case .refused = from { return fail(ENOTCONN) }
    if case .refused = to { return brokenPipe(0) }
    if case .memory = from {
        guard sourceOffset == nil else { return fail(ESPIPE) }
        return spliceFromDatagrams(source, target, count, flags)
    }
    if case .memory = to {
        guard targetOffset == nil else { return fail(ESPIPE) }
        return spliceToDatagrams(source, target, count, flags)
    }
    // The kernel moves from and to pairs only. The other direction stays as it is: another thread may know already how much
    // lies there, which the pair has no room for.
    returnToPairForGood(source, ALPS_RING_RECEIVE)
    returnToPairForGood(target, ALPS_RING_SEND)
    let moved = real.splice.unsafelyUnwrapped(source, sourceOffset, target, targetOffset, count, flags)
    guard moved <= 0, count > 0, activation.active else { return moved }
    if kind(of: source) == .stream { return finishRead(source, moved) }
    return moved < 0 && kind(of: target) == .stream ? finishWrite(target) : moved
}

private var withoutWaiting: UInt32 { 2 }  // SPLICE_F_NONBLOCK

/// One datagram into a pipe, cut off if there is less room, as Linux does.
private func spliceFromDatagrams(_ source: Int32, _ target: Int32, _ count: Int, _ flags: UInt32) -> Int {
    let size = alps_sys_fcntl(target, F_GETPIPE_SZ, 0)
    guard size > 0 else { return fail(EINVAL) }
    guard let memory = alps_map_anonymous(batch) else { return fail(ENOMEM) }
    defer { release(memory) }
    if flags & withoutWaiting != 0, alps_sys_poll(target, POLLOUT, 0) & POLLOUT == 0 { return fail(EAGAIN) }
    let wanted = min(count, min(batch, Int(size)))
    let got = shimRecv(source, memory, wanted, flags & withoutWaiting != 0 ? Int32(MSG_DONTWAIT) : 0)
    guard got > 0 else { return got }
    return real.write.unsafelyUnwrapped(target, memory, got)
}

/// What lies in a pipe as one datagram.
private func spliceToDatagrams(_ source: Int32, _ target: Int32, _ count: Int, _ flags: UInt32) -> Int {
    guard alps_sys_fcntl(source, F_GETPIPE_SZ, 0) > 0 else { return fail(EINVAL) }
    guard let memory = alps_map_anonymous(batch) else { return fail(ENOMEM) }
    defer { release(memory) }
    if flags & withoutWaiting != 0, alps_sys_poll(source, POLLIN, 0) == 0 { return fail(EAGAIN) }
    let got = real.read.unsafelyUnwrapped(source, memory, min(count, batch))
    guard got > 0 else { return got }
    return shimSend(target, memory, got, flags & withoutWaiting != 0 ? Int32(MSG_DONTWAIT) : 0)
}

// MARK: - preadv2, pwritev2

private var noWait: Int32 { 8 }  // RWF_NOWAIT

/// With position -1 these are readv and writev with flags; with any other a socket gives ESPIPE.
@c(alps_entry_preadv2)
public func shimPreadv2(
    _ descriptor: Int32, _ vector: UnsafePointer<iovec>?, _ count: Int32, _ offset: off_t, _ flags: Int32
) -> Int {
    ensureReady()
    if offset == -1, kind(of: descriptor) == .stream, hasRing(descriptor), let vector, (1...1024).contains(count) {
        return receiveThroughRing(descriptor, vector, Int(count), flags & noWait != 0 ? Int32(MSG_DONTWAIT) : 0)
    }
    guard offset == -1, case .memory = way(descriptor) else {
        let got = real.preadv2.unsafelyUnwrapped(descriptor, vector, count, offset, flags)
        guard offset == -1, kind(of: descriptor) == .stream else { return got }
        noteRead(descriptor, got)
        return got > 0 ? got : finishRead(descriptor, got)
    }
    guard count >= 0, count <= 1024 else { return fail(EINVAL) }
    var message = msghdr()
    message.msg_iov = UnsafeMutablePointer(mutating: vector)
    message.msg_iovlen = Int(count)
    return shimRecvmsg(descriptor, &message, flags & noWait != 0 ? Int32(MSG_DONTWAIT) : 0)
}

@c(alps_entry_preadv64v2)
public func shimPreadv64v2(
    _ descriptor: Int32, _ vector: UnsafePointer<iovec>?, _ count: Int32, _ offset: off_t, _ flags: Int32
) -> Int {
    shimPreadv2(descriptor, vector, count, offset, flags)
}

@c(alps_entry_pwritev2)
public func shimPwritev2(
    _ descriptor: Int32, _ vector: UnsafePointer<iovec>?, _ count: Int32, _ offset: off_t, _ flags: Int32
) -> Int {
    ensureReady()
    if offset == -1, kind(of: descriptor) == .stream, let vector, (1...1024).contains(count) {
        if hasRing(descriptor) || !beginPairWrite(descriptor) {
            return sendThroughRing(descriptor, vector, Int(count), flags & noWait != 0 ? Int32(MSG_DONTWAIT) : 0)
        }
        let sent = real.pwritev2.unsafelyUnwrapped(descriptor, vector, count, offset, flags)
        endPairWrite(descriptor)
        noteWritten(descriptor, sent)
        return sent >= 0 ? sent : finishWrite(descriptor)
    }
    guard offset == -1, case .memory = way(descriptor) else {
        let sent = real.pwritev2.unsafelyUnwrapped(descriptor, vector, count, offset, flags)
        return sent < 0 && offset == -1 && kind(of: descriptor) == .stream ? finishWrite(descriptor) : sent
    }
    guard count >= 0, count <= 1024 else { return fail(EINVAL) }
    var message = msghdr()
    message.msg_iov = UnsafeMutablePointer(mutating: vector)
    message.msg_iovlen = Int(count)
    return shimSendmsg(descriptor, &message, flags & noWait != 0 ? Int32(MSG_DONTWAIT) : 0)
}

@c(alps_entry_pwritev64v2)
public func shimPwritev64v2(
    _ descriptor: Int32, _ vector: UnsafePointer<iovec>?, _ count: Int32, _ offset: off_t, _ flags: Int32
) -> Int {
    shimPwritev2(descriptor, vector, count, offset, flags)
}

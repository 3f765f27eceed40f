import CLibc
import ClientAPI

@c(alps_entry_getsockopt)
public func shimGetsockopt(
    _ descriptor: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeMutableRawPointer?, _ length: SocketLength?
) -> Int32 {
    ensureReady()
    guard let found = stackSocket(descriptor) else {
        return real.getsockopt.unsafelyUnwrapped(descriptor, level, name, value, length)
    }
    guard let length, let value, isWritable(length, 4) else { return fail(EFAULT) }
    guard Int32(bitPattern: length.pointee) >= 0 else { return fail(EINVAL) }
    if level == SOL_SOCKET, isPairOption(name, found) {
        return real.getsockopt.unsafelyUnwrapped(descriptor, level, name, value, length)
    }
    // What a program says about the size of its memory need not be true beyond what an option takes.
    guard isWritable(value, Int(min(length.pointee, 256))) else { return -1 }
    if found.pointee.isPacket, let answer = getPacketOption(found, level, name, value, length) { return answer }
    var request = alps_sockopt_request(level: level, name: name, length: length.pointee, reserved: 0)
    let reply = ask(
        ALPS_OP_GETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, into: value,
        Int(length.pointee))
    if level == SOL_SOCKET, name == SO_ERROR {
        // The pair has an error of its own, which poll() would go on to report.
        var ignored: Int32 = 0
        var size = socklen_t(4)
        _ = alps_sys_getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &ignored, &size)
        if reply.error == hostGone, length.pointee >= 4 {
            value.storeBytes(of: found.pointee.isDatagram ? ENETDOWN : ECONNRESET, as: Int32.self)
            length.pointee = 4
            return 0
        }
        if reply.error == 0, reply.length >= 4 { noteConnectOutcome(found, value.loadUnaligned(as: Int32.self)) }
    }
    guard reply.error == 0 else { return fail(controlError(reply.error)) }
    length.pointee = socklen_t(reply.length)
    return 0
}

/// SO_ERROR is how a program learns how its connect without waiting ended.
private func noteConnectOutcome(_ found: EntryPointer, _ error: Int32) {
    guard error != 0 else { return }
    found.pointee.state |= Entry.dead
    if found.pointee.state & Entry.connecting != 0 {
        found.pointee.state &= ~Entry.connecting
        found.pointee.state |= Entry.spoiled
        found.pointee.kind = .freshStream
    }
}

@c(alps_entry_setsockopt)
public func shimSetsockopt(
    _ descriptor: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeRawPointer?, _ length: socklen_t
) -> Int32 {
    ensureReady()
    guard let found = stackSocket(descriptor) else {
        return real.setsockopt.unsafelyUnwrapped(descriptor, level, name, value, length)
    }
    guard length <= 4096 else { return fail(EINVAL) }
    guard isReadable(value, Int(length), descriptor) else { return -1 }
    if found.pointee.isPacket, let answer = setPacketOption(found, level, name, value, length) { return answer }
    let isPairs = level == SOL_SOCKET && isPairOption(name, found)
    if isPairs {
        // They count what lies in the pair.
        if name == SO_RCVLOWAT || name == SO_PEEK_OFF { returnToPairForGood(descriptor) }
        // The kernel waits on the pair, so it needs the time-out or the mark; the host needs to know the time-out of a
        // connect.
        let result = real.setsockopt.unsafelyUnwrapped(descriptor, level, name, value, length)
        guard result == 0, name == SO_SNDTIMEO || name == sendTimeoutNew else { return result }
    }
    var request = alps_sockopt_request(level: level, name: name, length: length, reserved: 0)
    let on = value.map {
        length >= 4 ? $0.loadUnaligned(as: Int32.self) != 0 : length > 0 && $0.loadUnaligned(as: UInt8.self) != 0
    }
    let isSwitchedOften = isSwitchedOften(level, name, length, found)
    if isSwitchedOften, name == corkOption, isMadeHere(found), setCork(found, on ?? false) { return 0 }
    // What is written next must find it corked.
    let mayBeLate = isSwitchedOften && (name != corkOption || on == false)
    if mayBeLate, found.pointee.state & Entry.answered != 0 || activation.streamsAnswered && isMadeHere(found) {
        if name != corkOption, setNoDelay(found, on == true) { return 0 }
        if tell(
            ALPS_OP_SETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, tail: value, Int(length))
        {
            return 0
        }
    }
    let reply = ask(
        ALPS_OP_SETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, tail: value,
        Int(length))
    if isPairs { return 0 }
    guard reply.error == 0 else { return fail(controlError(reply.error)) }
    if isSwitchedOften {
        found.pointee.state |= Entry.answered
        if isMadeHere(found), !activation.provesPossession { activation.streamsAnswered = true }
    }
    if level == SOL_SOCKET, name == SO_OOBINLINE, found.pointee.isStream {
        _ = alps_sys_setsockopt(descriptor, level, name, value, length)
    }
    if level == SOL_SOCKET, name == SO_RCVBUF || name == SO_SNDBUF { found.pointee.state |= Entry.buffersSet }
    noteAncillary(found, level, name, on: on ?? false)
    // Where every holder finds it; a UNIX socket does nothing with it.
    if level == SOL_SOCKET, name == SO_LINGER { _ = alps_sys_setsockopt(descriptor, level, name, value, length) }
    return 0
}

/// This process image has made or accepted it, and has not forked since.
func isMadeHere(_ found: EntryPointer) -> Bool { found.pointee.born == forks && !found.pointee.has(Entry.inBandForGood) }

/// isReadable for the value of an option: the kernel looks at one of an int for less, in an option that means nothing to a UNIX
/// socket.
private func isReadable(_ value: UnsafeRawPointer?, _ length: Int, _ descriptor: Int32) -> Bool {
    guard length == 4, !activation.confined else { return isReadable(value, length) }
    var here: Int32 = 0
    // The usual case: a variable of the caller, in the part of the stack that we are on.
    if withUnsafeMutablePointer(to: &here, { isInPage(of: $0, value, length) }) { return true }
    let error = alps_errno()
    if alps_sys_setsockopt(descriptor, SOL_SOCKET, SO_PRIORITY, value, 4) < 0, alps_errno() == EFAULT { return false }
    alps_set_errno(error)
    return true
}

/// True if `count` bytes lie in the page of memory that a place is in. No page is smaller than 4 KiB.
private func isInPage(of place: UnsafeRawPointer, _ pointer: UnsafeRawPointer?, _ count: Int) -> Bool {
    let page = UInt(4095)
    return UInt(bitPattern: pointer) & ~page == UInt(bitPattern: place) & ~page
        && UInt(bitPattern: pointer) & page <= page + 1 - UInt(count)
}

/// Options that servers turn on and off for each connection or answer, and that cannot fail once the host has taken one of them
/// for a stream that this process has made: nobody need wait for the host.
private func isSwitchedOften(_ level: Int32, _ name: Int32, _ length: socklen_t, _ found: EntryPointer) -> Bool {
    let noDelay: Int32 = 1
    return level == Int32(IPPROTO_TCP) && (name == noDelay || name == corkOption) && length == 4 && found.pointee.kind == .stream
}

/// TCP_CORK.
private var corkOption: Int32 { 3 }

/// Options of SOL_SOCKET that act where the program waits: on the pair.
private func isPairOption(_ name: Int32, _ found: EntryPointer) -> Bool {
    switch name {
    case SO_RCVTIMEO, SO_SNDTIMEO, receiveTimeoutNew, sendTimeoutNew, SO_RCVLOWAT: true
    // There is a header in front of what a datagram socket would look at.
    case SO_PEEK_OFF: !found.pointee.isDatagram
    default: false
    }
}

private var receiveTimeoutNew: Int32 { 66 }
private var sendTimeoutNew: Int32 { 67 }

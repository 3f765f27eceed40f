import CLibc
import ClientAPI

// A pair knows only "reset" and "broken"; the host knows what happened.

/// The error of a dead pair by its handle. `fallback` if the host knows of none, or must not be asked.
func trueError(_ found: EntryPointer, fallback: Int32) -> Int32 {
    if activation.confined { return fallback }
    var request = alps_sockopt_request(level: SOL_SOCKET, name: SO_ERROR, length: 4, reserved: 0)
    var error: Int32 = 0
    let reply = ask(
        ALPS_OP_GETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, into: &error, 4)
    if reply.error == 0 {
        if error != 0 { found.pointee.state |= Entry.dead }
        return error != 0 ? error : fallback
    }
    // No host, or another one that does not know the socket.
    return found.pointee.isDatagram ? ENETDOWN : ECONNRESET
}

/// Finishes a read on a stream's pair that brought nothing. `count` is what the pair said: 0 or -1.
@inline(never)
func finishRead(_ descriptor: Int32, _ count: Int) -> Int {
    let error = alps_errno()
    if activation.confined { return count }
    if count < 0 {
        guard error == ECONNRESET || error == EPIPE, let found = stackSocket(descriptor) else { return fail(error) }
        closeRingOfDeadPair(descriptor)
        return fail(trueError(found, fallback: error))
    }
    // An end that is not followed by a dead pair is the peer's. With the pair dead it may be the host's: the kernel
    // reports a reset once only, and somebody else may have taken it.
    guard alps_sys_poll(descriptor, 0, 0) & POLLHUP != 0, let found = stackSocket(descriptor), found.pointee.isStream
    else {
        alps_set_errno(error)
        return 0
    }
    closeRingOfDeadPair(descriptor)
    let trueOne = trueError(found, fallback: 0)
    guard trueOne != 0 else {
        alps_set_errno(error)
        return 0
    }
    return fail(trueOne)
}

/// Finishes a failed write to a stream's pair.
@inline(never)
func finishWrite(_ descriptor: Int32) -> Int {
    let error = alps_errno()
    guard error == EPIPE || error == ECONNRESET, !activation.confined, let found = stackSocket(descriptor) else {
        return fail(error)
    }
    return fail(trueError(found, fallback: error))
}

/// A stream that this process has not connected: another one may have. True if it is connected now.
@inline(never)
func becameConnected(_ descriptor: Int32) -> Bool {
    let error = alps_errno()
    defer { alps_set_errno(error) }
    guard let found = stackSocket(descriptor) else { return true }
    guard found.pointee.kind == .freshStream else { return true }
    var answer = alps_client_sockaddr()
    let reply = ask(
        ALPS_OP_GETPEERNAME, about: found, into: &answer, MemoryLayout<alps_client_sockaddr>.size)
    guard reply.error == 0 else { return false }
    found.pointee.kind = .stream
    return true
}

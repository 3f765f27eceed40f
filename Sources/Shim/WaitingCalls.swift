import CLibc
import ClientAPI

// Waiting is the kernel's: it waits on the pairs, which are as ready as the sockets. Two things are put right around it: a
// ring of a packet socket that the program has emptied is not readable (PacketRings), and the error of a datagram socket
// is POLLERR, not POLLIN (ErrorQueue).

@c(alps_entry_poll)
public func shimPoll(_ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: Int32) -> Int32 {
    ensureReady()
    settleRings()
    var result = real.poll.unsafelyUnwrapped(entries, count, timeout)
    while result > 0, datagramErrors.mayCome, !activation.confined, let entries {
        result = correctErrors(entries, count, result)
        // All of it had passed. How much of a bounded wait is left is not known, so it ends here.
        guard result == 0, timeout < 0 else { break }
        result = real.poll.unsafelyUnwrapped(entries, count, timeout)
    }
    return result
}

@c(alps_entry___poll)
public func shimUnderscoredPoll(_ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: Int32) -> Int32 {
    shimPoll(entries, count, timeout)
}

@c(alps_entry___poll_chk)
public func shimPollChecked(
    _ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: Int32, _ capacity: Int
) -> Int32 {
    if UInt(bitPattern: capacity) / 8 < count { __chk_fail() }
    return shimPoll(entries, count, timeout)
}

@c(alps_entry_ppoll)
public func shimPpoll(
    _ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: UnsafePointer<timespec>?,
    _ mask: UnsafePointer<sigset_t>?
) -> Int32 {
    ensureReady()
    settleRings()
    var result = real.ppoll.unsafelyUnwrapped(entries, count, timeout, mask)
    while result > 0, datagramErrors.mayCome, !activation.confined, let entries {
        result = correctErrors(entries, count, result)
        guard result == 0, timeout == nil else { break }
        result = real.ppoll.unsafelyUnwrapped(entries, count, timeout, mask)
    }
    return result
}

@c(alps_entry___ppoll_chk)
public func shimPpollChecked(
    _ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: UnsafePointer<timespec>?,
    _ mask: UnsafePointer<sigset_t>?, _ capacity: Int
) -> Int32 {
    if UInt(bitPattern: capacity) / 8 < count { __chk_fail() }
    return shimPpoll(entries, count, timeout, mask)
}

@c(alps_entry_select)
public func shimSelect(
    _ count: Int32, _ readable: UnsafeMutableRawPointer?, _ writable: UnsafeMutableRawPointer?,
    _ exceptional: UnsafeMutableRawPointer?, _ timeout: UnsafeMutablePointer<timeval>?
) -> Int32 {
    ensureReady()
    settleRings()
    return real.select.unsafelyUnwrapped(count, readable, writable, exceptional, timeout)
}

@c(alps_entry_pselect)
public func shimPselect(
    _ count: Int32, _ readable: UnsafeMutableRawPointer?, _ writable: UnsafeMutableRawPointer?,
    _ exceptional: UnsafeMutableRawPointer?, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafePointer<sigset_t>?
) -> Int32 {
    ensureReady()
    settleRings()
    return real.pselect.unsafelyUnwrapped(count, readable, writable, exceptional, timeout, mask)
}

@c(alps_entry_epoll_wait)
public func shimEpollWait(_ epoll: Int32, _ events: UnsafeMutableRawPointer?, _ count: Int32, _ timeout: Int32) -> Int32 {
    ensureReady()
    settleRings()
    return real.epoll_wait.unsafelyUnwrapped(epoll, events, count, timeout)
}

@c(alps_entry_epoll_pwait)
public func shimEpollPwait(
    _ epoll: Int32, _ events: UnsafeMutableRawPointer?, _ count: Int32, _ timeout: Int32, _ mask: UnsafePointer<sigset_t>?
) -> Int32 {
    ensureReady()
    settleRings()
    return real.epoll_pwait.unsafelyUnwrapped(epoll, events, count, timeout, mask)
}

@c(alps_entry_epoll_pwait2)
public func shimEpollPwait2(
    _ epoll: Int32, _ events: UnsafeMutableRawPointer?, _ count: Int32, _ timeout: UnsafePointer<timespec>?,
    _ mask: UnsafePointer<sigset_t>?
) -> Int32 {
    ensureReady()
    settleRings()
    return real.epoll_pwait2.unsafelyUnwrapped(epoll, events, count, timeout, mask)
}

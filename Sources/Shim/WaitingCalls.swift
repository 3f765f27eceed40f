import CLibc
import ClientAPI

// Waiting is the kernel's: it waits on the pairs, which are as ready as the sockets. A few things are put right around it: a
// ring of a packet socket that the program has emptied is not readable (PacketRings), that of a stream is at once (RingWaiting),
// the error of a datagram socket is POLLERR, not POLLIN (ErrorQueue), and urgent data do not make a stream readable (UrgentWatch).

@c(alps_entry_poll)
public func shimPoll(_ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: Int32) -> Int32 {
    ensureReady()
    settleRings()
    prepareUrgent(entries, count)
    var result = pollingRings(entries, count) { real.poll.unsafelyUnwrapped(entries, count, $0 ? timeout : 0) }
    while result > 0, readiness.mayDiffer, !activation.confined, let entries {
        result = correct(entries, count, result)
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
    prepareUrgent(entries, count)
    var none = timespec()
    var result = pollingRings(entries, count) { waits in
        waits
            ? real.ppoll.unsafelyUnwrapped(entries, count, timeout, mask)
            : real.ppoll.unsafelyUnwrapped(entries, count, &none, mask)
    }
    while result > 0, readiness.mayDiffer, !activation.confined, let entries {
        result = correct(entries, count, result)
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
    if let exceptional { prepareUrgent(count, exceptional) }
    var none = timeval()
    let result = selectingRings(count, readable, writable, exceptional) { waits in
        waits
            ? real.select.unsafelyUnwrapped(count, readable, writable, exceptional, timeout)
            : real.select.unsafelyUnwrapped(count, readable, writable, exceptional, &none)
    }
    return correctUrgent(count, readable, exceptional, result)
}

@c(alps_entry___select)
public func shimUnderscoredSelect(
    _ count: Int32, _ readable: UnsafeMutableRawPointer?, _ writable: UnsafeMutableRawPointer?,
    _ exceptional: UnsafeMutableRawPointer?, _ timeout: UnsafeMutablePointer<timeval>?
) -> Int32 {
    shimSelect(count, readable, writable, exceptional, timeout)
}

@c(alps_entry_pselect)
public func shimPselect(
    _ count: Int32, _ readable: UnsafeMutableRawPointer?, _ writable: UnsafeMutableRawPointer?,
    _ exceptional: UnsafeMutableRawPointer?, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafePointer<sigset_t>?
) -> Int32 {
    ensureReady()
    settleRings()
    if let exceptional { prepareUrgent(count, exceptional) }
    var none = timespec()
    let result = selectingRings(count, readable, writable, exceptional) { waits in
        waits
            ? real.pselect.unsafelyUnwrapped(count, readable, writable, exceptional, timeout, mask)
            : real.pselect.unsafelyUnwrapped(count, readable, writable, exceptional, &none, mask)
    }
    return correctUrgent(count, readable, exceptional, result)
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

// MARK: - after it

struct Readiness {
    /// This process has a socket whose pair may say POLLIN where the socket would not.
    var mayDiffer = false
}

nonisolated(unsafe) var readiness = Readiness()

/// Puts right what the pairs have said. Returns how many entries have events then.
@inline(never)
private func correct(_ entries: UnsafeMutablePointer<pollfd>, _ count: UInt, _ result: Int32) -> Int32 {
    let error = alps_errno()
    defer { alps_set_errno(error) }
    var left = result
    for index in 0..<Int(count) where entries[index].revents & Int16(POLLIN) != 0 {
        guard let found = entry(of: entries[index].fd) else { continue }
        if found.pointee.isDatagram {
            correctError(&entries[index], found)
        } else if found.pointee.state & Entry.watchesUrgent != 0, found.pointee.isStream {
            correctUrgent(&entries[index])
        }
        if entries[index].revents == 0 { left -= 1 }
    }
    return left
}

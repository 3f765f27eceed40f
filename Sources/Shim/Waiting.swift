import CLibc
import ClientAPI

// poll and select wait on the pairs, which are as ready as the sockets, but for two things a UNIX socket has not: an error
// without an end (POLLERR of the error queue), and urgent data that do not make the socket readable.

/// How the two differ is told once per call, after the kernel's answer; a program that asks for neither pays a look at its
/// entries.
@c(poll)
public func shimPoll(_ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: Int32) -> Int32 {
    ensureReady()
    prepare(entries, count)
    return finish(entries, count, real.poll.unsafelyUnwrapped(entries, count, timeout))
}

@c(__poll)
public func shimUnderscoredPoll(_ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: Int32) -> Int32 {
    shimPoll(entries, count, timeout)
}

@c(__poll_chk)
public func shimPollChecked(
    _ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: Int32, _ capacity: Int
) -> Int32 {
    if UInt(bitPattern: capacity) / UInt(MemoryLayout<pollfd>.size) < count { __chk_fail() }
    return shimPoll(entries, count, timeout)
}

@c(ppoll)
public func shimPpoll(
    _ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: UnsafeRawPointer?, _ mask: UnsafeRawPointer?
) -> Int32 {
    ensureReady()
    prepare(entries, count)
    return finish(entries, count, real.ppoll.unsafelyUnwrapped(entries, count, timeout, mask))
}

@c(__ppoll_chk)
public func shimPpollChecked(
    _ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: UnsafeRawPointer?, _ mask: UnsafeRawPointer?,
    _ capacity: Int
) -> Int32 {
    if UInt(bitPattern: capacity) / UInt(MemoryLayout<pollfd>.size) < count { __chk_fail() }
    return shimPpoll(entries, count, timeout, mask)
}

@c(select)
public func shimSelect(
    _ count: Int32, _ readable: UnsafeMutableRawPointer?, _ writable: UnsafeMutableRawPointer?,
    _ exceptional: UnsafeMutableRawPointer?, _ timeout: UnsafeMutableRawPointer?
) -> Int32 {
    ensureReady()
    if let exceptional { prepare(count, exceptional) }
    let result = real.select.unsafelyUnwrapped(count, readable, writable, exceptional, timeout)
    return finish(count, readable, exceptional, result)
}

@c(__select)
public func shimUnderscoredSelect(
    _ count: Int32, _ readable: UnsafeMutableRawPointer?, _ writable: UnsafeMutableRawPointer?,
    _ exceptional: UnsafeMutableRawPointer?, _ timeout: UnsafeMutableRawPointer?
) -> Int32 {
    shimSelect(count, readable, writable, exceptional, timeout)
}

@c(pselect)
public func shimPselect(
    _ count: Int32, _ readable: UnsafeMutableRawPointer?, _ writable: UnsafeMutableRawPointer?,
    _ exceptional: UnsafeMutableRawPointer?, _ timeout: UnsafeRawPointer?, _ mask: UnsafeRawPointer?
) -> Int32 {
    ensureReady()
    if let exceptional { prepare(count, exceptional) }
    let result = real.pselect.unsafelyUnwrapped(count, readable, writable, exceptional, timeout, mask)
    return finish(count, readable, exceptional, result)
}

// MARK: - before the call

@inline(__always)
private func prepare(_ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt) {
    guard activation.active, let entries, count < 1 << 20 else { return }
    for index in 0..<Int(count) where Int32(entries[index].events) & POLLPRI != 0 { watchUrgent(entries[index].fd) }
}

private func prepare(_ count: Int32, _ set: UnsafeMutableRawPointer) {
    guard activation.active, count > 0 else { return }
    for descriptor in 0..<min(count, 1 << 20) where isIn(set, descriptor) { watchUrgent(descriptor) }
}

/// The host has found that UNIX sockets have no urgent bytes here.
nonisolated(unsafe) private var pairsLackUrgentBytes = false

/// The program wants to hear of urgent data: they go into the pair as its own from now on.
@inline(never)
func watchUrgent(_ descriptor: Int32) {
    guard descriptor >= 0, let known = entry(of: descriptor), known.pointee.state & Entry.watchesUrgent == 0,
        !activation.confined, !pairsLackUrgentBytes
    else { return }
    switch known.pointee.kind {
    case .unknown, .stream, .freshStream: break
    default: return
    }
    let error = alps_errno()
    defer { alps_set_errno(error) }
    guard let found = stackSocket(descriptor), found.pointee.isStream, found.pointee.kind != .listener else { return }
    let answer = ask(ALPS_OP_WATCH_URGENT, about: found).error
    if answer == EOPNOTSUPP { pairsLackUrgentBytes = true }
    guard answer == 0 else { return }
    found.pointee.state |= Entry.watchesUrgent
    var request = alps_sockopt_request(level: SOL_SOCKET, name: SO_OOBINLINE, length: 4, reserved: 0)
    var inline: Int32 = 0
    let reply = ask(
        ALPS_OP_GETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, into: &inline, 4)
    if reply.error == 0 { _ = alps_sys_setsockopt(descriptor, SOL_SOCKET, SO_OOBINLINE, &inline, 4) }
}

// MARK: - after it

@inline(__always)
private func finish(_ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ result: Int32) -> Int32 {
    guard result > 0, activation.active, let entries else { return result }
    for index in 0..<Int(count) where Int32(entries[index].revents) & POLLIN != 0 {
        guard let found = entry(of: entries[index].fd),
            found.pointee.state & (Entry.watchesUrgent | Entry.wantsErrors) != 0
        else { continue }
        correct(&entries[index], found)
    }
    return result
}

private var readableEvents: Int32 { POLLIN | 0x40 /* POLLRDNORM */ }

@inline(never)
private func correct(_ entry: inout pollfd, _ found: EntryPointer) {
    let events = Int32(entry.revents)
    if found.pointee.isDatagram {
        guard found.pointee.state & Entry.wantsErrors != 0, errorIsNext(entry.fd, found) else { return }
        entry.revents = Int16(truncatingIfNeeded: events & ~readableEvents | POLLERR)
    } else if found.pointee.isStream, events & POLLPRI != 0, !hasMoreThanUrgent(entry.fd) {
        entry.revents = Int16(truncatingIfNeeded: events & ~readableEvents)
    }
}

private func finish(
    _ count: Int32, _ readable: UnsafeMutableRawPointer?, _ exceptional: UnsafeMutableRawPointer?, _ result: Int32
) -> Int32 {
    guard result > 0, activation.active, let readable, let exceptional else { return result }
    var left = result
    for descriptor in 0..<count where isIn(exceptional, descriptor) && isIn(readable, descriptor) {
        guard let found = entry(of: descriptor), found.pointee.isStream,
            found.pointee.state & Entry.watchesUrgent != 0, !hasMoreThanUrgent(descriptor)
        else { continue }
        let word = readable + Int(descriptor) / 64 * 8
        word.storeBytes(of: word.load(as: UInt64.self) & ~(1 << UInt64(descriptor % 64)), as: UInt64.self)
        left -= 1
    }
    return left
}

private func isIn(_ set: UnsafeMutableRawPointer, _ descriptor: Int32) -> Bool {
    (set + Int(descriptor) / 64 * 8).load(as: UInt64.self) & 1 << UInt64(descriptor % 64) != 0
}

/// Whether a read would bring something, be it the end, beside an urgent byte that is not for it.
private func hasMoreThanUrgent(_ descriptor: Int32) -> Bool {
    let error = alps_errno()
    defer { alps_set_errno(error) }
    var byte: UInt8 = 0
    return alps_sys_recv(descriptor, &byte, 1, Int32(MSG_PEEK | MSG_DONTWAIT)) >= 0 || alps_errno() != EAGAIN
}

/// Whether the next message of a datagram socket stands for an error of its queue.
private func errorIsNext(_ descriptor: Int32, _ found: EntryPointer) -> Bool {
    guard !activation.confined, announcementIsNext(descriptor) else { return false }
    var flags = UInt32(MSG_PEEK)
    var report = alps_error_report()
    return ask(
        ALPS_OP_TAKE_ERROR, about: found, &flags, 4, into: &report, MemoryLayout<alps_error_report>.size).error == 0
}

/// Whether the next message has no bytes.
func announcementIsNext(_ descriptor: Int32) -> Bool {
    let error = alps_errno()
    defer { alps_set_errno(error) }
    var byte: UInt8 = 0
    return alps_sys_recv(descriptor, &byte, 1, Int32(MSG_PEEK | MSG_DONTWAIT)) == 0
        && alps_sys_poll(descriptor, 0, 0) & POLLHUP == 0
}

import CLibc
import ClientAPI

// Urgent data. Programs that ask to hear of them get them as the pair's own urgent bytes; but a UNIX socket is readable for
// an urgent byte alone, and a program that reads then would block: poll and select are put right. epoll says EPOLLIN.

// MARK: - before a wait

@inline(__always)
func prepareUrgent(_ entries: UnsafeMutablePointer<pollfd>?, _ count: UInt) {
    guard activation.active, let entries, count < 1 << 20 else { return }
    for index in 0..<Int(count) where Int32(entries[index].events) & POLLPRI != 0 { watchUrgent(entries[index].fd) }
}

func prepareUrgent(_ count: Int32, _ set: UnsafeMutableRawPointer) {
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
    returnToPair(descriptor, ALPS_RING_RECEIVE, forGood: false)
    let answer = ask(ALPS_OP_WATCH_URGENT, about: found).error
    if answer == EOPNOTSUPP { pairsLackUrgentBytes = true }
    guard answer == 0 else { return }
    found.pointee.state |= Entry.watchesUrgent
    readiness.mayDiffer = true
    var request = alps_sockopt_request(level: SOL_SOCKET, name: SO_OOBINLINE, length: 4, reserved: 0)
    var inline: Int32 = 0
    let reply = ask(
        ALPS_OP_GETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, into: &inline, 4)
    if reply.error == 0 { _ = alps_sys_setsockopt(descriptor, SOL_SOCKET, SO_OOBINLINE, &inline, 4) }
}

// MARK: - after it

/// Readable only if there is more than the urgent byte.
func correctUrgent(_ entry: inout pollfd) {
    if entry.revents & Int16(POLLPRI) != 0, !hasMoreThanUrgent(entry.fd) { entry.revents &= ~Int16(POLLIN | POLLRDNORM) }
}

func correctUrgent(
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

func isIn(_ set: UnsafeMutableRawPointer, _ descriptor: Int32) -> Bool {
    (set + Int(descriptor) / 64 * 8).load(as: UInt64.self) & 1 << UInt64(descriptor % 64) != 0
}

/// Whether a read would bring something, be it the end, beside an urgent byte that is not for it.
private func hasMoreThanUrgent(_ descriptor: Int32) -> Bool {
    let error = alps_errno()
    defer { alps_set_errno(error) }
    var byte: UInt8 = 0
    return alps_sys_recv(descriptor, &byte, 1, Int32(MSG_PEEK | MSG_DONTWAIT)) >= 0 || alps_errno() != EAGAIN
}

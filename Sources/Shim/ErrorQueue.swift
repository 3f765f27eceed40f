import CLibc
import ClientAPI
import ShimEntry

// Errors of datagrams that were sent. A connected socket hears of them; with IP_RECVERR the messages are kept as well, and
// recvmsg(MSG_ERRQUEUE) fetches them from the host. In the pair an error is a message of no bytes, which is POLLIN to the
// kernel: poll() is put right, in processes that have such sockets. epoll says EPOLLIN.

/// recvmsg(MSG_ERRQUEUE): never waits.
@inline(never)
func receiveError(_ descriptor: Int32, _ found: EntryPointer, _ message: UnsafeMutablePointer<msghdr>) -> Int {
    guard !found.pointee.isNetlink, !found.pointee.isPacket, let found = stackSocket(descriptor) else { return fail(EAGAIN) }
    return withUnsafeTemporaryAllocation(byteCount: 2048, alignment: 8) { reply in
        let record = reply.baseAddress.unsafelyUnwrapped
        let size = MemoryLayout<alps_socket_error>.size
        let answer = ask(ALPS_OP_TAKE_ERROR, about: found, into: record, reply.count)
        guard answer.error == 0, answer.length >= size else {
            return fail(answer.error == hostGone ? ENETDOWN : EAGAIN)
        }
        let error = record.load(as: alps_socket_error.self)
        if error.left == 0 { forgetToken(descriptor, found) }
        let count = scatter(record + size, answer.length - size, message)
        message.pointee.msg_flags = Int32(MSG_ERRQUEUE) | (count < answer.length - size ? Int32(MSG_TRUNC) : 0)
        if let name = message.pointee.msg_name {
            message.pointee.msg_namelen = writeAddress(
                endpoint(error.destination), to: name, capacity: Int(message.pointee.msg_namelen))
        } else {
            message.pointee.msg_namelen = 0
        }
        giveError(error, found, message)
        return count
    }
}

/// struct sock_extended_err and the offender behind it, and the time if it was asked for.
private func giveError(
    _ error: alps_socket_error, _ found: EntryPointer, _ message: UnsafeMutablePointer<msghdr>
) {
    var used = 0
    giveTimestamp(found, message, &used, error.timestamp)
    withUnsafeTemporaryAllocation(byteCount: 32, alignment: 8) { place in
        let data = place.baseAddress.unsafelyUnwrapped
        memset(data, 0, 32)
        data.storeBytes(of: error.error, as: Int32.self)
        data.storeBytes(of: error.origin, toByteOffset: 4, as: UInt8.self)
        data.storeBytes(of: error.type, toByteOffset: 5, as: UInt8.self)
        data.storeBytes(of: error.code, toByteOffset: 6, as: UInt8.self)
        data.storeBytes(of: error.info, toByteOffset: 8, as: UInt32.self)
        if error.offender.family != 0 {
            _ = writeAddress(endpoint(error.offender), to: data + 16, capacity: 16)
        }
        appendControl(message, &used, Int32(IPPROTO_IP), IP_RECVERR, data, 32)
    }
    message.pointee.msg_controllen = used
}

/// Copies into the program's vector as much as there is room for.
private func scatter(_ bytes: UnsafeRawPointer, _ count: Int, _ message: UnsafePointer<msghdr>) -> Int {
    var done = 0
    for index in 0..<Int(message.pointee.msg_iovlen) {
        let part = message.pointee.msg_iov[index]
        let length = min(part.iov_len, count - done)
        guard length > 0, let to = part.iov_base else { continue }
        memcpy(to, bytes + done, length)
        done += length
    }
    return done
}

/// With the last error message fetched, what announced it says nothing any more.
private func forgetToken(_ descriptor: Int32, _ found: EntryPointer) {
    guard isTokenNext(descriptor) else { return }
    var byte: UInt8 = 0
    _ = real.recvfrom.unsafelyUnwrapped(descriptor, &byte, 0, Int32(MSG_DONTWAIT), nil, nil)
    _ = ask(ALPS_OP_TAKE_EVENT, about: found)
}

/// The next message in the pair has no bytes, and the pair goes on.
private func isTokenNext(_ descriptor: Int32) -> Bool {
    var byte: UInt8 = 0
    let flags = Int32(MSG_PEEK | MSG_DONTWAIT) | Int32(MSG_TRUNC)
    return real.recvfrom.unsafelyUnwrapped(descriptor, &byte, 1, flags, nil, nil) == 0
        && alps_sys_poll(descriptor, POLLIN | 0x2000, 0) & (POLLHUP | 0x2000) == 0
}

/// Says POLLERR where the pair's POLLIN is an error.
func correctError(_ entry: inout pollfd, _ found: EntryPointer) {
    guard !found.pointee.isNetlink, !found.pointee.isPacket,
        found.pointee.kind == .connectedDatagram || found.pointee.ancillary & Entry.errorQueue != 0
    else { return }
    while isTokenNext(entry.fd) {
        var event = alps_datagram_event()
        let reply = ask(
            ALPS_OP_PEEK_EVENT, about: found, into: &event, MemoryLayout<alps_datagram_event>.size)
        if reply.error == 0 {
            if event.error != 0 { entry.revents = entry.revents & ~Int16(POLLIN | POLLRDNORM) | Int16(POLLERR) }
            return
        }
        guard reply.error == EAGAIN else { return }
        forgetToken(entry.fd, found)
        if alps_sys_poll(entry.fd, POLLIN, 0) & POLLIN == 0 { entry.revents &= ~Int16(POLLIN | POLLRDNORM) }
    }
}

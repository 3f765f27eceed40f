import CLibc
import ClientAPI

/// MSG_ERRQUEUE of a datagram socket with IP_RECVERR: what an error message said, and the datagram it was about.
@inline(never)
func receiveError(
    _ descriptor: Int32, _ found: EntryPointer, _ message: UnsafeMutablePointer<msghdr>, _ flags: Int32
) -> Int {
    let headSize = MemoryLayout<alps_error_report>.size
    return withUnsafeTemporaryAllocation(byteCount: headSize + 2048, alignment: 8) { space in
        let start = space.baseAddress.unsafelyUnwrapped
        func take(_ flags: UInt32) -> Reply {
            var flags = flags
            return ask(ALPS_OP_TAKE_ERROR, about: found, &flags, 4, into: start, space.count)
        }
        var reply = take(UInt32(MSG_PEEK))
        guard reply.error == 0 else { return fail(reply.error == hostGone ? ENETDOWN : reply.error) }
        if flags & Int32(MSG_PEEK) == 0 {
            // The message without bytes that announced it has nothing left to say.
            if announcementIsNext(descriptor) {
                var nothing: UInt8 = 0
                var event = alps_datagram_event()
                _ = alps_sys_recv(descriptor, &nothing, 1, Int32(MSG_DONTWAIT))
                _ = ask(ALPS_OP_TAKE_EVENT, about: found, into: &event, MemoryLayout<alps_datagram_event>.size)
            }
            reply = take(0)
            guard reply.error == 0 else { return fail(reply.error == hostGone ? ENETDOWN : reply.error) }
        }
        guard reply.length >= headSize else { return fail(EAGAIN) }
        let report = start.load(as: alps_error_report.self)
        return give(report, UnsafeRawBufferPointer(start: start + headSize, count: reply.length - headSize), message)
    }
}

private func give(
    _ report: alps_error_report, _ payload: UnsafeRawBufferPointer, _ message: UnsafeMutablePointer<msghdr>
) -> Int {
    var done = 0
    for index in 0..<Int(message.pointee.msg_iovlen) {
        let part = message.pointee.msg_iov[index]
        let count = min(part.iov_len, payload.count - done)
        if count > 0, let to = part.iov_base, let from = payload.baseAddress { memcpy(to, from + done, count) }
        done += count
    }
    message.pointee.msg_flags = Int32(MSG_ERRQUEUE) | (done < payload.count ? Int32(MSG_TRUNC) : 0)
    if let name = message.pointee.msg_name {
        message.pointee.msg_namelen = writeAddress(
            endpoint(report.destination), to: name, capacity: Int(message.pointee.msg_namelen))
    } else {
        message.pointee.msg_namelen = 0
    }
    // struct sock_extended_err, then the offender's address.
    let origin: UInt8 = 2  // SO_EE_ORIGIN_ICMP
    var used = 0
    withUnsafeTemporaryAllocation(byteCount: 32, alignment: 8) { data in
        let to = data.baseAddress.unsafelyUnwrapped
        memset(to, 0, 32)
        to.storeBytes(of: report.error, as: Int32.self)
        to.storeBytes(of: origin, toByteOffset: 4, as: UInt8.self)
        to.storeBytes(of: report.type, toByteOffset: 5, as: UInt8.self)
        to.storeBytes(of: report.code, toByteOffset: 6, as: UInt8.self)
        to.storeBytes(of: report.mtu, toByteOffset: 8, as: UInt32.self)
        _ = writeAddress(endpoint(report.offender), to: to + 16, capacity: 16)
        appendControl(message, &used, Int32(IPPROTO_IP), IP_RECVERR, to, 32)
    }
    message.pointee.msg_controllen = used
    return done
}

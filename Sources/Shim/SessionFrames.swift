import CLibc
import ClientAPI
import ShimEntry

// Frames of the session, out and in.

func sendFrame(
    _ kind: UInt32, _ operation: UInt32, _ handle: UInt64, _ id: UInt64, _ payload: UnsafeRawPointer?,
    _ payloadLength: Int, _ tail: UnsafeRawPointer?, _ tailLength: Int, _ passed: Int32 = -1
) -> Bool {
    var frame = alps_frame(
        magic: ALPS_FRAME_MAGIC, length: UInt32(payloadLength + tailLength), kind: UInt16(kind), op: UInt16(operation),
        error: 0, request_id: id, socket: handle, stream_position: 0)
    return withUnsafeMutableBytes(of: &frame) { frame in
        var parts = [3 of iovec](repeating: iovec(iov_base: nil, iov_len: 0))
        parts[0] = iovec(iov_base: frame.baseAddress, iov_len: frame.count)
        parts[1] = iovec(iov_base: UnsafeMutableRawPointer(mutating: payload), iov_len: payloadLength)
        parts[2] = iovec(iov_base: UnsafeMutableRawPointer(mutating: tail), iov_len: tailLength)
        return withUnsafeMutableBytes(of: &parts) { parts in
            let vector = parts.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: iovec.self)
            var message = msghdr()
            message.msg_iov = vector
            message.msg_iovlen = 3
            var control = [3 of UInt64](repeating: 0)
            var left = frame.count + payloadLength + tailLength
            while left > 0 {
                let sent = withUnsafeMutableBytes(of: &control) {
                    // A descriptor goes with the first byte.
                    if passed >= 0, left == frame.count + payloadLength + tailLength {
                        putDescriptor(passed, $0.baseAddress.unsafelyUnwrapped, &message)
                    } else {
                        message.msg_control = nil
                        message.msg_controllen = 0
                    }
                    return alps_sys_sendmsg(session.descriptor, &message, Int32(MSG_NOSIGNAL))
                }
                guard sent >= 0 else { return false }
                left -= sent
                var skip = sent
                for part in 0..<3 {
                    let step = min(skip, vector[part].iov_len)
                    vector[part].iov_base = vector[part].iov_base.map { $0 + step }
                    vector[part].iov_len -= step
                    skip -= step
                }
            }
            return true
        }
    }
}

/// Reads one frame and hands it to whom it belongs. Only the reader calls it, without the lock. False: the host is gone.
func readFrame(_ descriptor: Int32) -> Bool {
    var frame = alps_frame()
    var passed: Int32 = -1
    guard receive(descriptor, &frame, MemoryLayout<alps_frame>.size, &passed), frame.magic == ALPS_FRAME_MAGIC else {
        if passed >= 0 { _ = alps_sys_close(passed) }
        return false
    }
    alps_shim_lock()
    var target = session.waiting
    while let each = target, each.pointee.id != frame.request_id { target = each.pointee.next }
    alps_shim_unlock()

    // A slot stays where it is until `finished`, so its buffer can be filled without the lock.
    var left = Int(frame.length)
    var alive = true
    if let target {
        let wanted = min(left, target.pointee.capacity)
        if let buffer = target.pointee.buffer {
            alive = receive(descriptor, buffer, wanted, &passed)
        } else {
            alive = withUnsafeMutableBytes(of: &target.pointee.small) {
                receive(descriptor, $0.baseAddress.unsafelyUnwrapped, wanted, &passed)
            }
        }
        target.pointee.length = wanted
        left -= wanted
    }
    var scrap = [256 of UInt8](repeating: 0)
    while alive, left > 0 {
        let step = min(left, 256)
        alive = withUnsafeMutableBytes(of: &scrap) {
            receive(descriptor, $0.baseAddress.unsafelyUnwrapped, step, &passed)
        }
        left -= step
    }
    guard alive, let target, UInt32(frame.kind) == ALPS_FRAME_REPLY else {
        if passed >= 0 { _ = alps_sys_close(passed) }
        return alive
    }
    alps_shim_lock()
    target.pointee.error = frame.error
    target.pointee.descriptor = passed
    target.pointee.finished = true
    wake(target)
    alps_shim_unlock()
    return true
}

/// Reads exactly `count` bytes, and a descriptor if one comes with them.
func receive(_ descriptor: Int32, _ buffer: UnsafeMutableRawPointer, _ count: Int, _ passed: inout Int32) -> Bool {
    var done = 0
    while done < count {
        var part = iovec(iov_base: buffer + done, iov_len: count - done)
        var control = [4 of UInt64](repeating: 0)
        let got = withUnsafeMutableBytes(of: &control) { control in
            withUnsafeMutablePointer(to: &part) { part in
                var message = msghdr()
                message.msg_iov = part
                message.msg_iovlen = 1
                message.msg_control = control.baseAddress
                message.msg_controllen = 24
                let got = alps_sys_recvmsg(descriptor, &message, Int32(MSG_CMSG_CLOEXEC))
                if got > 0, let fd = passedDescriptor(message) { passed = fd }
                return got
            }
        }
        if got < 0, alps_errno() == EINTR { continue }
        guard got > 0 else { return false }
        done += got
    }
    return true
}

/// The descriptor that came as the first control message.
func passedDescriptor(_ message: msghdr) -> Int32? {
    guard let control = message.msg_control, message.msg_controllen >= MemoryLayout<cmsghdr>.size + 4 else {
        return nil
    }
    let header = control.assumingMemoryBound(to: cmsghdr.self)
    guard header.pointee.cmsg_level == SOL_SOCKET, header.pointee.cmsg_type == Int32(SCM_RIGHTS) else { return nil }
    return (control + MemoryLayout<cmsghdr>.size).loadUnaligned(as: Int32.self)
}

/// The descriptors that a program passes, or gets, with a message.
@inline(never)
func forEachPassed(_ message: msghdr, _ body: (Int32) -> Void) {
    guard let control = message.msg_control else { return }
    let end = Int(message.msg_controllen)
    var position = 0
    while position + MemoryLayout<cmsghdr>.size <= end {
        let header = (control + position).loadUnaligned(as: cmsghdr.self)
        let length = Int(header.cmsg_len)
        guard length >= MemoryLayout<cmsghdr>.size, position + length <= end else { return }
        if header.cmsg_level == SOL_SOCKET, header.cmsg_type == Int32(SCM_RIGHTS) {
            var each = position + MemoryLayout<cmsghdr>.size
            while each + 4 <= position + length {
                body((control + each).loadUnaligned(as: Int32.self))
                each += 4
            }
        }
        position += (length + 7) & ~7
    }
}

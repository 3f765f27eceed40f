import CLibc
import ClientAPI
import ShimEntry

/// Makes sure that there is a session; under the lock, signals blocked.
func ensureSession() -> Bool {
    if session.descriptor >= 0 {
        // Those who wait for answers get them first.
        let isWanted = !session.isOutdated || session.waiting != nil
        if isWanted, cookie(of: session.descriptor) == session.cookie { return true }
        // A child of vfork that closed it: the parent, whose state this is, still has it.
        if alps_shim_borrows_memory() != 0 { return false }
        closeSession()
    }
    guard alps_shim_borrows_memory() == 0 else { return false }
    if openThroughDoorway(), sayHello() { return true }
    if openByPath(), sayHello() { return true }
    return false
}

/// Makes a stream pair and hands one end to the host through the doorway.
private func openThroughDoorway() -> Bool {
    let doorway = activation.doorway
    guard doorway >= 0, cookie(of: doorway) == activation.doorwayCookie else { return false }
    var pair = (Int32(-1), Int32(-1))
    let made = withUnsafeMutableBytes(of: &pair) {
        alps_sys_socketpair(
            AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0,
            $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: Int32.self))
    }
    guard made == 0 else { return false }
    let sent = sendDescriptor(pair.1, over: doorway, byte: 1)
    _ = alps_sys_close(pair.1)
    guard sent else {
        _ = alps_sys_close(pair.0)
        return false
    }
    adopt(pair.0)
    return true
}

private func openByPath() -> Bool {
    guard let variable = activation.socketVariable else { return false }
    let path = variable + 12  // after "ALPS_SOCKET="
    let length = strlen(path)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    guard length < MemoryLayout.size(ofValue: address.sun_path) else { return false }
    withUnsafeMutableBytes(of: &address.sun_path) { _ = memcpy($0.baseAddress.unsafelyUnwrapped, path, length) }
    let descriptor = alps_sys_socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { return false }
    guard alps_sys_connect(descriptor, &address, UInt32(MemoryLayout<sockaddr_un>.size)) == 0 else {
        _ = alps_sys_close(descriptor)
        return false
    }
    adopt(descriptor)
    return true
}

/// Moves the session's descriptor to a high number, out of the way of programs that expect the lowest ones. Not higher
/// than 1024: the kernel's table grows with the highest number, and is copied by every fork.
private func adopt(_ descriptor: Int32) {
    var limit = rlimit()
    var base = 64
    if getrlimit(__rlimit_resource_t(rawValue: RLIMIT_NOFILE.rawValue), &limit) == 0 {
        base = max(Int(min(limit.rlim_cur, 1024)) - 48, 16)
    }
    let high = alps_sys_fcntl(descriptor, F_DUPFD_CLOEXEC, base)
    if high >= 0 { _ = alps_sys_close(descriptor) }
    session.descriptor = high >= 0 ? high : descriptor
    session.cookie = cookie(of: session.descriptor)
    session.user = geteuid()
    session.isOutdated = false
    session.reader = nil
    hide(session.descriptor)
}

/// Gives the session's number to the program.
func moveSession() {
    var mask = sigset_t()
    alps_block_signals(&mask)
    alps_shim_lock()
    if session.descriptor >= 0 {
        let old = session.descriptor
        let new = alps_sys_fcntl(old, F_DUPFD_CLOEXEC, 16)
        clearEntry(old)
        if new >= 0 {
            session.descriptor = new
            hide(new)
        } else {
            closeSession()
        }
    }
    alps_shim_unlock()
    alps_restore_signals(&mask)
}

private func sendDescriptor(_ descriptor: Int32, over socket: Int32, byte: UInt8) -> Bool {
    var byte = byte
    var control = [3 of UInt64](repeating: 0)
    return withUnsafeMutableBytes(of: &control) { control in
        withUnsafeMutableBytes(of: &byte) { byte in
            var part = iovec(iov_base: byte.baseAddress, iov_len: 1)
            return withUnsafeMutablePointer(to: &part) { part in
                var message = msghdr()
                message.msg_iov = part
                message.msg_iovlen = 1
                putDescriptor(descriptor, control.baseAddress.unsafelyUnwrapped, &message)
                return alps_sys_sendmsg(socket, &message, Int32(MSG_NOSIGNAL)) == 1
            }
        }
    }
}

/// Puts a descriptor beside a message; `control` has 24 bytes.
func putDescriptor(_ descriptor: Int32, _ control: UnsafeMutableRawPointer, _ message: inout msghdr) {
    storeControlHeader(control, 4, SOL_SOCKET, Int32(SCM_RIGHTS))
    control.storeBytes(of: descriptor, toByteOffset: MemoryLayout<cmsghdr>.size, as: Int32.self)
    message.msg_control = control
    message.msg_controllen = 24
}

private func sayHello() -> Bool {
    var hello = alps_hello()
    hello.size = UInt32(MemoryLayout<alps_hello>.size)
    hello.version = ALPS_CLIENT_VERSION
    hello.pid = UInt32(bitPattern: alps_sys_getpid())
    copyText(alps_program_name(), to: &hello.program)
    if let variant = activation.tcpVariable { copyText(variant + 9, to: &hello.tcp_variant) }  // after "ALPS_TCP="
    if let variant = activation.udpVariable { copyText(variant + 9, to: &hello.udp_variant) }
    session.lastRequest += 1
    guard
        sendFrame(
            ALPS_FRAME_REQUEST, ALPS_OP_HELLO, 0, session.lastRequest, &hello, MemoryLayout<alps_hello>.size, nil, 0),
        readHelloReply()
    else {
        closeSession()
        return false
    }
    return true
}

private func readHelloReply() -> Bool {
    var frame = alps_frame()
    var passed: Int32 = -1
    // This waits under the lock: not longer than a host that is alive can need.
    guard alps_sys_poll(session.descriptor, POLLIN, 5000) > 0 else { return false }
    guard receive(session.descriptor, &frame, MemoryLayout<alps_frame>.size, &passed), frame.magic == ALPS_FRAME_MAGIC,
        frame.error == 0, Int(frame.length) >= MemoryLayout<alps_hello_reply>.size
    else { return false }
    var reply = alps_hello_reply()
    guard receive(session.descriptor, &reply, MemoryLayout<alps_hello_reply>.size, &passed) else { return false }
    var left = Int(frame.length) - MemoryLayout<alps_hello_reply>.size
    session.domains = 0
    while left >= MemoryLayout<alps_protocol_triple>.size {
        var triple = alps_protocol_triple()
        guard receive(session.descriptor, &triple, MemoryLayout<alps_protocol_triple>.size, &passed) else {
            return false
        }
        if triple.domain < 64 { session.domains |= 1 << UInt64(triple.domain) }
        left -= MemoryLayout<alps_protocol_triple>.size
    }
    while left > 0 {
        var byte: UInt8 = 0
        guard receive(session.descriptor, &byte, 1, &passed) else { return false }
        left -= 1
    }
    return true
}

/// Copies a string into a fixed field, NUL-padded.
private func copyText<Field>(_ text: UnsafePointer<CChar>?, to field: inout Field) {
    guard let text else { return }
    withUnsafeMutableBytes(of: &field) {
        _ = memcpy($0.baseAddress.unsafelyUnwrapped, text, min(strlen(text), $0.count - 1))
    }
}

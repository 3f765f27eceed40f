import CLibc
import ClientAPI
import ShimEntry

// SO_LINGER with a time: who closes the last descriptor of a stream waits until everything has arrived. Whether it was the
// last one the kernel knows, and tells the host by the pair's end; so the descriptor is closed first, and the host is asked
// afterwards. A process that exits does not wait, as on Linux.

/// The handle to `linger` on when `descriptor` has been closed; 0 if there is nothing to wait for. One system call for
/// a stream; the time that SO_LINGER was given is on the pair, since another holder may have set it.
func lingering(_ descriptor: Int32) -> UInt64 {
    guard let known = entry(of: descriptor), known.pointee.kind == .stream, !activation.confined,
        alps_shim_borrows_memory() == 0
    else { return 0 }
    let error = alps_errno()
    defer { alps_set_errno(error) }
    var value = CLibc.linger()
    var length = socklen_t(MemoryLayout<CLibc.linger>.size)
    guard alps_sys_getsockopt(descriptor, SOL_SOCKET, SO_LINGER, &value, &length) == 0, value.l_onoff != 0,
        value.l_linger != 0, let found = stackSocket(descriptor), found.pointee.kind == .stream
    else { return 0 }
    // Asked now, since a process of another user than the socket's has to show that it holds it.
    var request = alps_sockopt_request(
        level: SOL_SOCKET, name: SO_LINGER, length: UInt32(MemoryLayout<CLibc.linger>.size), reserved: 0)
    let reply = ask(
        ALPS_OP_GETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, into: &value,
        MemoryLayout<CLibc.linger>.size)
    return reply.error == 0 && value.l_onoff != 0 && value.l_linger > 0 ? found.pointee.handle : 0
}

/// Waits for the end of a socket that has been closed. Any signal handler ends it, and close(2) does not say so.
func linger(_ handle: UInt64) {
    guard handle != 0 else { return }
    _ = ask(ALPS_OP_LINGER, handle, interruptible: true, byEverySignal: true)
}

@c(alps_shim_lingering)
public func lingeringForEntryPoints(_ descriptor: Int32) -> UInt { UInt(lingering(descriptor)) }

@c(alps_shim_linger)
public func lingerForEntryPoints(_ handle: UInt) { linger(UInt64(handle)) }

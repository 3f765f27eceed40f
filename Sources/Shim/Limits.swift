import CLibc
import ShimEntry

// A program that takes descriptors away from itself (RLIMIT_NOFILE 0, as sandboxes do) keeps the sockets it has. To ask
// about them it needs a session, which it could not open any more: so it is opened before.

@c(alps_entry_setrlimit)
public func shimSetrlimit(_ resource: UInt32, _ limit: UnsafePointer<rlimit>?) -> Int32 {
    ensureReady()
    prepareForLimit(resource, limit)
    return real.setrlimit.unsafelyUnwrapped(resource, limit)
}

@c(alps_entry_setrlimit64)
public func shimSetrlimit64(_ resource: UInt32, _ limit: UnsafePointer<rlimit>?) -> Int32 {
    shimSetrlimit(resource, limit)
}

@c(alps_entry_prlimit)
public func shimPrlimit(
    _ process: pid_t, _ resource: UInt32, _ limit: UnsafePointer<rlimit>?, _ old: UnsafeMutablePointer<rlimit>?
) -> Int32 {
    ensureReady()
    if process == 0 { prepareForLimit(resource, limit) }
    return real.prlimit.unsafelyUnwrapped(process, resource, limit, old)
}

@c(alps_entry_prlimit64)
public func shimPrlimit64(
    _ process: pid_t, _ resource: UInt32, _ limit: UnsafePointer<rlimit>?, _ old: UnsafeMutablePointer<rlimit>?
) -> Int32 {
    shimPrlimit(process, resource, limit, old)
}

private func prepareForLimit(_ resource: UInt32, _ limit: UnsafePointer<rlimit>?) {
    guard activation.active, !activation.confined, resource == RLIMIT_NOFILE.rawValue, let limit,
        limit.pointee.rlim_cur < 64
    else { return }
    _ = hostHas(domain: AF_INET)
}

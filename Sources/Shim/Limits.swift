import CLibc
import ShimEntry

// A program that takes descriptors away from itself (RLIMIT_NOFILE 0, as sandboxes do) keeps the sockets it has. To ask
// about them it needs a session, which it could not open any more: so it is opened before.

/// How near the last accepted connection came to RLIMIT_NOFILE.
struct DescriptorRoom {
    /// 0 if it has to be looked at.
    var limit: UInt64 = 0
    /// Of the last accepted connection; at first, and after a failure, as high as can be.
    var last = UInt64(Int32.max)

    static var margin: UInt64 { 64 }
}

nonisolated(unsafe) var descriptorRoom = DescriptorRoom()

/// False, with EMFILE, if this process can have no descriptor more. A connection that is taken out of its listener's pair and
/// finds no number is lost, whereas Linux leaves it in the queue. Numbers are the lowest that are free, so while the last
/// one was far from the limit there is nothing to look at.
func hasFreeDescriptor(like descriptor: Int32) -> Bool {
    if descriptorRoom.limit == 0 {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(rawValue: RLIMIT_NOFILE.rawValue), &limit) == 0 else { return true }
        descriptorRoom.limit = max(UInt64(limit.rlim_cur), 1)
    }
    guard descriptorRoom.last &+ DescriptorRoom.margin >= descriptorRoom.limit, !activation.confined else { return true }
    let number = alps_sys_fcntl(descriptor, F_DUPFD_CLOEXEC, 0)
    if number >= 0 { _ = alps_sys_close(number) }
    return number >= 0
}

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
    guard activation.active, resource == RLIMIT_NOFILE.rawValue, let limit else { return }
    descriptorRoom = DescriptorRoom()
    guard !activation.confined, limit.pointee.rlim_cur < 64 else { return }
    _ = hostHas(domain: AF_INET)
}

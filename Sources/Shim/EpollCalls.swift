import CLibc
import ClientAPI
import ShimEntry

// Readiness is the pair's, so epoll is the kernel's business, but for a stream that is connected again after a failure: its
// number then stands for another pair, and the program believes that it is registered still.

private enum Control {
    static var add: Int32 { 1 }
    static var delete: Int32 { 2 }
}

/// struct epoll_event: packed on x86-64 only.
private var dataOffset: Int {
    #if arch(x86_64)
    4
    #else
    8
    #endif
}

@c(alps_entry_epoll_ctl)
public func shimEpollControl(
    _ epoll: Int32, _ operation: Int32, _ descriptor: Int32, _ event: UnsafeMutableRawPointer?
) -> Int32 {
    ensureReady()
    let urgent: UInt32 = 2  // EPOLLPRI
    if operation != Control.delete, let event, event.loadUnaligned(as: UInt32.self) & urgent != 0 {
        watchUrgent(descriptor)
    }
    let edgeTriggered: UInt32 = 1 << 31
    if operation != Control.delete, let event, event.loadUnaligned(as: UInt32.self) & edgeTriggered != 0,
        kind(of: descriptor) == .stream, hasRing(descriptor)
    {
        // The byte in the pair that makes a ring readable is one edge, however much follows it.
        returnToPair(descriptor, ALPS_RING_RECEIVE, forGood: false)
    }
    let result = alps_sys_epoll_ctl(epoll, operation, descriptor, event)
    guard result == 0, let found = entry(of: descriptor), found.pointee.isStream || found.pointee.isPacket else { return result }
    if operation == Control.delete {
        if found.pointee.epoll == epoll { found.pointee.epollEvents = 0 }
    } else if let event {
        found.pointee.epoll = epoll
        found.pointee.epollEvents = event.loadUnaligned(as: UInt32.self)
        found.pointee.epollData = event.loadUnaligned(fromByteOffset: dataOffset, as: UInt64.self)
    }
    return result
}

/// The pair under `descriptor` has taken the place of the one that `old` described.
func registerAgain(_ descriptor: Int32, _ old: Entry) {
    guard old.epollEvents != 0, let found = entry(of: descriptor) else { return }
    let error = alps_errno()
    withUnsafeTemporaryAllocation(byteCount: 16, alignment: 8) { event in
        let place = event.baseAddress.unsafelyUnwrapped
        place.storeBytes(of: old.epollEvents, as: UInt32.self)
        place.storeBytes(of: old.epollData, toByteOffset: dataOffset, as: UInt64.self)
        if alps_sys_epoll_ctl(old.epoll, Control.add, descriptor, place) == 0 {
            found.pointee.epoll = old.epoll
            found.pointee.epollEvents = old.epollEvents
            found.pointee.epollData = old.epollData
        }
    }
    alps_set_errno(error)
}

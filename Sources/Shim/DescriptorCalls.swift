import CLibc
import ClientAPI
import ShimEntry

// close, dup and fcntl: the kernel does the work, the table follows. The session's and the doorway's descriptors are not
// there for the program: closing all descriptors, as daemons do, must not cut it off.

@c(alps_entry_close)
public func shimClose(_ descriptor: Int32) -> Int32 {
    ensureReady()
    switch kind(of: descriptor) {
    case .native, .unknown: break
    case .hidden:
        if isHidden(descriptor) { return fail(EBADF) }
    default:
        if let found = entry(of: descriptor), found.pointee.state & Entry.dead != 0, !activation.confined,
            alps_shim_borrows_memory() == 0
        {
            _ = ask(ALPS_OP_FORGET, about: found)
        }
    }
    let handle = lingering(descriptor)
    // Before the number is free for another thread.
    clearEntry(descriptor)
    let result = real.close.unsafelyUnwrapped(descriptor)
    linger(handle)
    return result
}

@c(alps_shim_forget)
public func forgetDescriptor(_ descriptor: Int32) {
    ensureReady()
    if kind(of: descriptor) != .hidden { clearEntry(descriptor) }
}

@c(alps_entry___close)
public func shimUnderscoredClose(_ descriptor: Int32) -> Int32 { shimClose(descriptor) }

@c(alps_entry_close_range)
public func shimCloseRange(_ first: UInt32, _ last: UInt32, _ flags: Int32) -> Int32 {
    ensureReady()
    guard activation.active, first <= last else { return real.closeRange.unsafelyUnwrapped(first, last, flags) }
    let onlyMarks = flags & 4 != 0  // CLOSE_RANGE_CLOEXEC
    let hidden = hiddenDescriptors()
    // In up to three pieces, around the hidden two.
    var result = closePiece(first, last, below: hidden.low, flags, onlyMarks)
    if hidden.low < last, result == 0 {
        result = closePiece(max(first, hidden.low &+ 1), last, below: hidden.high, flags, onlyMarks)
    }
    if hidden.high < last, result == 0 {
        result = closePiece(max(first, hidden.high &+ 1), last, below: UInt32.max, flags, onlyMarks)
    }
    return result
}

@c(alps_entry_closefrom)
public func shimClosefrom(_ first: Int32) {
    ensureReady()
    guard activation.active, shimCloseRange(UInt32(max(first, 0)), UInt32.max, 0) == 0 else {
        real.closefrom.unsafelyUnwrapped(first)
        return
    }
}

/// Descriptors of the shim, lower first; UInt32.max for one that is not there.
private func hiddenDescriptors() -> (low: UInt32, high: UInt32) {
    let doorway = UInt32(bitPattern: activation.doorway)
    let session = UInt32(bitPattern: session.descriptor)
    return (min(doorway, session), max(doorway, session))
}

/// Closes first...last as far as it lies below `limit`.
private func closePiece(
    _ first: UInt32, _ last: UInt32, below limit: UInt32, _ flags: Int32, _ onlyMarks: Bool
) -> Int32 {
    let end = limit == UInt32.max ? last : min(last, limit &- 1)
    guard limit > 0, first <= end else { return 0 }
    if !onlyMarks {
        var each = first
        while each <= min(end, fileTable.highest) {
            if lingering(Int32(each)) != 0 {
                _ = shimClose(Int32(each))
            } else {
                clearEntry(Int32(each))
            }
            each += 1
        }
    }
    return real.closeRange.unsafelyUnwrapped(first, end, flags)
}

// MARK: - dup

@c(alps_entry_dup)
public func shimDup(_ descriptor: Int32) -> Int32 {
    ensureReady()
    if kind(of: descriptor) == .hidden, isHidden(descriptor) { return fail(EBADF) }
    let new = real.dup.unsafelyUnwrapped(descriptor)
    if new >= 0 { copyEntry(from: descriptor, to: new) }
    return new
}

@c(alps_entry_dup2)
public func shimDup2(_ descriptor: Int32, _ target: Int32) -> Int32 {
    ensureReady()
    guard descriptor != target else { return real.dup2.unsafelyUnwrapped(descriptor, target) }
    guard makeRoom(descriptor, target) else { return -1 }
    let handle = lingering(target)
    let new = real.dup2.unsafelyUnwrapped(descriptor, target)
    guard new >= 0 else { return new }
    copyEntry(from: descriptor, to: new)
    linger(handle)
    return new
}

@c(alps_entry___dup2)
public func shimUnderscoredDup2(_ descriptor: Int32, _ target: Int32) -> Int32 { shimDup2(descriptor, target) }

@c(alps_entry_dup3)
public func shimDup3(_ descriptor: Int32, _ target: Int32, _ flags: Int32) -> Int32 {
    ensureReady()
    guard makeRoom(descriptor, target) else { return -1 }
    let handle = lingering(target)
    let new = real.dup3.unsafelyUnwrapped(descriptor, target, flags)
    guard new >= 0 else { return new }
    copyEntry(from: descriptor, to: new)
    linger(handle)
    return new
}

/// A program that wants the number of the session gets it: the session moves. The doorway, whose number stands in the
/// environment, stays.
private func makeRoom(_ descriptor: Int32, _ target: Int32) -> Bool {
    if kind(of: descriptor) == .hidden, isHidden(descriptor) {
        alps_set_errno(EBADF)
        return false
    }
    guard kind(of: target) == .hidden, isHidden(target) else { return true }
    if target == activation.doorway {
        alps_set_errno(EBADF)
        return false
    }
    // A child of vfork has its parent's session, but its own descriptors: this one is free for it.
    if alps_shim_borrows_memory() == 0 { moveSession() }
    return true
}

@c(alps_shim_fcntl)
public func shimFcntl(_ descriptor: Int32, _ command: Int32, _ argument: Int) -> Int32 {
    ensureReady()
    if kind(of: descriptor) == .hidden, isHidden(descriptor) { return fail(EBADF) }
    let setOwnerExtended: Int32 = 15
    if command == F_SETOWN || command == setOwnerExtended { watchUrgent(descriptor) }
    let result = real.fcntl.unsafelyUnwrapped(descriptor, command, argument)
    if result >= 0, command == F_DUPFD || command == F_DUPFD_CLOEXEC { copyEntry(from: descriptor, to: result) }
    return result
}

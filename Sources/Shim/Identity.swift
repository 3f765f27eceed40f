import CLibc
import ShimEntry

// The host knows a process by the user who opened its session. When the process becomes another one, its session must not go
// on being the old one's: the next request opens a new one.

@c(alps_entry_setuid)
public func shimSetuid(_ user: uid_t) -> Int32 {
    ensureReady()
    return changed(real.setuid.unsafelyUnwrapped(user))
}

@c(alps_entry_seteuid)
public func shimSeteuid(_ user: uid_t) -> Int32 {
    ensureReady()
    return changed(real.seteuid.unsafelyUnwrapped(user))
}

@c(alps_entry_setreuid)
public func shimSetreuid(_ user: uid_t, _ effective: uid_t) -> Int32 {
    ensureReady()
    return changed(real.setreuid.unsafelyUnwrapped(user, effective))
}

@c(alps_entry_setresuid)
public func shimSetresuid(_ user: uid_t, _ effective: uid_t, _ saved: uid_t) -> Int32 {
    ensureReady()
    return changed(real.setresuid.unsafelyUnwrapped(user, effective, saved))
}

private func changed(_ result: Int32) -> Int32 {
    guard result == 0, activation.active, !activation.confined, alps_shim_borrows_memory() == 0 else { return result }
    let error = alps_errno()
    var mask = sigset_t()
    alps_block_signals(&mask)
    dropForeignSession()
    alps_shim_lock()
    if session.descriptor >= 0 { session.isOutdated = session.user != geteuid() }
    alps_shim_unlock()
    // The host may want proof of each socket from the new user, which it can ask for in an answer only.
    activation.streamsAnswered = false
    activation.provesPossession = true
    if let entries = fileTable.entries {
        for index in 0...Int(fileTable.highest) where entries[index].state & Entry.answered != 0 {
            entries[index].state &= ~Entry.answered
        }
    }
    alps_restore_signals(&mask)
    alps_set_errno(error)
    return result
}

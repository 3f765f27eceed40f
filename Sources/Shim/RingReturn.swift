import CLibc
import ClientAPI
import ShimEntry

// Streams that go back from their rings to their pairs.

/// The host carries these directions of a stream in its pair again. `forGood`: for ever, whoever holds it.
@inline(never)
func returnToPair(_ descriptor: Int32, _ directions: UInt32 = ALPS_RING_RECEIVE | ALPS_RING_SEND, forGood: Bool) {
    guard let found = entry(of: descriptor), found.pointee.kind == .stream || found.pointee.kind == .freshStream else { return }
    let error = alps_errno()
    if cookie(of: descriptor) == found.pointee.cookie { returnToPair(found, descriptor, directions, forGood: forGood) }
    alps_set_errno(error)
}

/// `descriptor`: a number of this process, which may be a child that has the entry's memory but descriptors of its own.
private func returnToPair(_ found: EntryPointer, _ descriptor: Int32, _ directions: UInt32, forGood: Bool) {
    var directions = directions
    var isNew = false
    if forGood {
        let state = Entry.inBandForGood(directions)
        isNew = set(found, state) & state != state
        directions |= ALPS_RING_NEVER_AGAIN
    }
    while found.pointee.has(Entry.opensRing) { alps_sys_yield() }
    guard !activation.confined else { return }
    var mask = sigset_t()
    alps_block_signals(&mask)
    if let ring = beginUse(found) {
        let page = ring.pointee.page.unsafelyUnwrapped
        let reads = lock(&page.pointee.read_lock)
        let writes = lock(&page.pointee.write_lock)
        _ = ask(ALPS_OP_STREAM_PAIR, about: found, &directions, 4)
        if directions & ALPS_RING_SEND != 0 {
            _ = alps_clear_bits(&found.pointee.ringState, Entry.opensWriting)
            var room = Int32(ALPS_RING_PAIR_SNDBUF_INBAND)
            _ = alps_sys_setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &room, 4)
        }
        if writes { unlock(&page.pointee.write_lock) }
        if reads { unlock(&page.pointee.read_lock) }
        endUse(ring)
        // A process that confines itself must not so much as look at it.
        if forGood, found.pointee.ringState & Entry.inBandForGood == Entry.inBandForGood { dropRing(found) }
    } else if isNew, found.pointee.born == forks {
        // By another number it may be found worth a ring.
        _ = ask(ALPS_OP_STREAM_PAIR, about: found, &directions, 4)
    }
    alps_restore_signals(&mask)
}

@inline(__always)
func returnToPairForGood(_ descriptor: Int32, _ directions: UInt32 = ALPS_RING_RECEIVE | ALPS_RING_SEND) {
    guard activation.active, let found = entry(of: descriptor), found.pointee.kind == .stream || found.pointee.kind == .freshStream,
        found.pointee.ringState & Entry.inBandForGood(directions) != Entry.inBandForGood(directions) || hasOpenRing(found, directions)
    else { return }
    returnToPair(descriptor, directions, forGood: true)
}

/// By another number of the socket there may be one.
private func hasOpenRing(_ found: EntryPointer, _ directions: UInt32) -> Bool {
    guard found.pointee.ring != 0 else { return false }
    var mask = sigset_t()
    alps_block_signals(&mask)
    defer { alps_restore_signals(&mask) }
    guard let ring = beginUse(found) else { return false }
    defer { endUse(ring) }
    return ~alps_load_word(&ring.pointee.page.unsafelyUnwrapped.pointee.closed) & directions != 0
}

/// All streams, or those that another program would inherit.
func returnAllToPairs(inheritedOnly: Bool) {
    guard let entries = fileTable.entries else { return }
    let error = alps_errno()
    let borrows = alps_shim_borrows_memory() != 0
    // A child of vfork has given its descriptors numbers that the table, which is its parent's, knows nothing of.
    let highest = borrows ? max(fileTable.highest, 1023) : fileTable.highest
    for descriptor in 0...Int32(bitPattern: highest) {
        let found = entries[Int(descriptor)]
        guard borrows || found.kind == .stream && (inheritedOnly || found.ring != 0) else { continue }
        if inheritedOnly {
            let flags = alps_sys_fcntl(descriptor, F_GETFD, 0)
            guard flags >= 0, flags & FD_CLOEXEC == 0 else { continue }
        }
        if !borrows {
            returnToPairForGood(descriptor)
            continue
        }
        let cookie = cookie(of: descriptor)
        guard cookie != 0 else { continue }
        for index in 0...Int(fileTable.highest) where entries[index].cookie == cookie && entries[index].kind == .stream {
            returnToPair(entries + index, descriptor, ALPS_RING_RECEIVE | ALPS_RING_SEND, forGood: true)
        }
    }
    alps_set_errno(error)
}

/// Before libc starts another program by itself.
@c(alps_shim_starts_program)
public func shimStartsProgram() {
    ensureReady()
    if activation.active { returnAllToPairs(inheritedOnly: true) }
}

/// Whether bytes have to go by way of the shim's own functions, not of libc's.
@c(alps_shim_has_ring)
public func shimHasRing(_ descriptor: Int32) -> Int32 {
    ensureReady()
    return kind(of: descriptor) == .stream && hasRing(descriptor) ? 1 : 0
}

@c(alps_shim_in_band)
public func shimInBand(_ descriptor: Int32) {
    ensureReady()
    returnToPairForGood(descriptor)
}

/// Descriptors that are about to be passed to another process.
func returnPassedToPairs(_ message: msghdr) { forEachPassed(message) { returnToPairForGood($0) } }

import CLibc
import ClientAPI
import ShimEntry

// Locks and bells of rings: words that other processes and the host write, too.

/// Takes a lock of the page. Signals are blocked by the caller. False if that seems not to be possible: then the pair is
/// the way, whose bytes come in their order.
func lock(_ word: UnsafeMutablePointer<UInt32>) -> Bool {
    let thread = alps_shim_thread()
    for attempt in 1...200 {
        if alps_load_word(word) == 0, alps_swap_word(word, 0, thread) != 0 { return true }
        // Who holds it may want this very processor: the byte that the host puts into the pair wakes a reader at once.
        if attempt % 16 == 0 { alps_sys_yield() } else { alps_pause() }
    }
    let error = alps_errno()
    defer { alps_set_errno(error) }
    var attempts = 0
    for _ in 0..<100 {
        var value = alps_load_word(word)
        if value == 0 {
            if alps_swap_word(word, 0, thread | ALPS_RING_WAITED) != 0 { return true }
            continue
        }
        if value & ALPS_RING_WAITED == 0 {
            guard alps_swap_word(word, value, value | ALPS_RING_WAITED) != 0 else { continue }
            value |= ALPS_RING_WAITED
        }
        guard alps_sys_futex_wait_shared(word, value, 50) < 0, alps_errno() == ETIMEDOUT else { continue }
        let owner = value & ~ALPS_RING_WAITED
        // The host holds it for microseconds, or has died.
        attempts += 1
        if owner == ALPS_RING_HOST, attempts > 10 { return false }
        if owner < ALPS_RING_OPENING, alps_sys_thread_exists(owner) == 0,
            alps_swap_word(word, value, thread | ALPS_RING_WAITED) != 0
        {
            return true
        }
    }
    return false
}

func unlock(_ word: UnsafeMutablePointer<UInt32>) {
    if alps_exchange_word(word, 0) & ALPS_RING_WAITED != 0 { alps_sys_futex_wake_shared(word) }
}

@inline(__always)
func ringBell(_ descriptor: Int32, _ word: UnsafeMutablePointer<UInt32>) {
    if alps_load_word(word) != 0, alps_exchange_word(word, 0) != 0 { wakeHost(descriptor) }
}

@inline(never)
private func wakeHost(_ descriptor: Int32) {
    guard let found = entry(of: descriptor) else { return }
    var nothing: UInt8 = 0
    if !tell(ALPS_OP_STREAM_BELL, about: found, &nothing, 0, tail: nil, 0) { closeRingOfDeadPair(descriptor) }
}

/// Nobody will take what is written into a ring whose host has died: from now on the pair says so.
func closeRingOfDeadPair(_ descriptor: Int32) {
    guard let found = entry(of: descriptor), found.pointee.ring != 0, !activation.confined,
        alps_sys_poll(descriptor, 0, 0) & POLLHUP != 0
    else { return }
    var mask = sigset_t()
    alps_block_signals(&mask)
    if let ring = beginUse(descriptor) {
        _ = alps_set_bits(&ring.pointee.page.unsafelyUnwrapped.pointee.closed, ALPS_RING_SEND)
        endUse(ring)
    }
    alps_restore_signals(&mask)
}

import CLibc
import ClientAPI
import ShimEntry

/// A request whose reply a thread waits for, linked while it waits. Not on that thread's stack, since a signal handler may
/// leave by longjmp while signals are allowed, as programs do that limit a connect with alarm().
struct PendingRequest {
    /// 0 while the slot is free.
    var id: UInt64 = 0
    var next: UnsafeMutablePointer<PendingRequest>? = nil
    /// Who waits: its thread, and where on its stack.
    var thread: UInt = 0
    var frame: UInt = 0
    /// Futex: not 0 when there is something to look at.
    var wakeWord: Int32 = 0
    /// Its thread waits on `wakeWord`, not on the descriptor.
    var sleeps = false
    /// Its thread waits with signals allowed: a handler that asks in its turn takes reading over.
    var isInterruptible = false
    var finished = false
    /// Of an interruptible request: its other end is closed by the host when the reply has been sent. -1 if there is none.
    var ending: Int32 = -1
    var error: Int32 = 0
    var descriptor: Int32 = -1
    /// The reply: in `small` if that is large enough for what is wanted.
    var capacity = 0
    var length = 0
    var buffer: UnsafeMutableRawPointer? = nil
    var small = [16 of UInt64](repeating: 0)

    static var smallCapacity: Int { 128 }
}

/// This process's connection to the host. All under the session's lock, with signals blocked.
struct Session {
    var descriptor: Int32 = -1
    /// SO_COOKIE of the descriptor: the program may have closed it behind our back.
    var cookie: UInt64 = 0
    /// Counts sessions: a thread that finds another number here has lost its request (fork in a signal handler).
    var generation: UInt32 = 0
    var lastRequest: UInt64 = 0
    var waiting: UnsafeMutablePointer<PendingRequest>? = nil
    /// Whose thread is reading from the descriptor; it hands over what is not its own.
    var reader: UnsafeMutablePointer<PendingRequest>? = nil
    /// Memory for requests.
    var slots: UnsafeMutablePointer<PendingRequest>? = nil
    /// Who opened it, and whether the process has become somebody else since.
    var user: uid_t = 0
    var isOutdated = false
    /// Bit set of the domains that the host has protocols of.
    var domains: UInt64 = 0
}

nonisolated(unsafe) var session = Session()

struct Reply {
    /// 0, an errno, or `hostGone`.
    var error: Int32
    var length: Int
    var descriptor: Int32
}

/// Not an errno: there is no host to ask.
var hostGone: Int32 { 20000 }

/// The errno of a control call for a reply's error.
func controlError(_ error: Int32) -> Int32 { error == hostGone ? ENETDOWN : error }

/// Asks the host and waits for its answer. errno is left alone.
///
/// Several threads may ask at once: whoever waits and finds nobody reading reads, and hands over what belongs to others.
/// An interruptible request is waited for with the caller's signal mask and cancelled by a signal handler that ran
/// without SA_RESTART. It is waited for on a socket of its own, which the host closes behind the reply: a receive starts
/// again by itself after a handler with SA_RESTART, and on the session's socket it would then miss a reply that the handler,
/// asking something itself, has read. `byEverySignal`: a handler with SA_RESTART ends it, too.
func ask(
    _ operation: UInt32, _ handle: UInt64, _ payload: UnsafeRawPointer? = nil, _ payloadLength: Int = 0,
    tail: UnsafeRawPointer? = nil, _ tailLength: Int = 0, into buffer: UnsafeMutableRawPointer? = nil,
    _ capacity: Int = 0, interruptible: Bool = false, byEverySignal: Bool = false, passing passed: Int32 = -1
) -> Reply {
    let error = alps_errno()
    var mask = sigset_t()
    alps_block_signals(&mask)
    let reply = withUnsafeMutablePointer(to: &mask) { mask in
        dropForeignSession()
        alps_shim_lock()
        guard ensureSession(), let pending = takeSlot(frame: UInt(bitPattern: mask)) else {
            alps_shim_unlock()
            return Reply(error: hostGone, length: 0, descriptor: -1)
        }
        let id = pending.pointee.id
        pending.pointee.capacity = capacity
        pending.pointee.buffer = capacity > PendingRequest.smallCapacity ? buffer : nil
        let generation = session.generation
        let otherEnd = interruptible ? openEnding(pending, byEverySignal: byEverySignal) : -1
        if !sendFrame(
            ALPS_FRAME_REQUEST, operation, handle, id, payload, payloadLength, tail, tailLength,
            interruptible ? otherEnd : passed)
        {
            failSession()
        }
        if otherEnd >= 0 { _ = alps_sys_close(otherEnd) }
        alps_shim_unlock()
        if interruptible { waitForEnding(pending, generation, mask) }
        waitForReply(pending, generation, mask)
        // In the child of a fork that a signal handler made, the slot may be another request's by now.
        guard pending.pointee.id == id else { return Reply(error: hostGone, length: 0, descriptor: -1) }
        let reply = Reply(
            error: pending.pointee.error, length: pending.pointee.length, descriptor: pending.pointee.descriptor)
        if let buffer, pending.pointee.buffer == nil, reply.length > 0 {
            withUnsafeBytes(of: &pending.pointee.small) {
                _ = memcpy(buffer, $0.baseAddress.unsafelyUnwrapped, reply.length)
            }
        }
        freeSlot(pending)
        return reply
    }
    alps_restore_signals(&mask)
    alps_set_errno(error)
    return reply
}

/// Asks about a socket. A process of another user than the one that made the socket (a server that gave up its
/// privileges) has to prove first that it holds it.
func ask(
    _ operation: UInt32, about found: EntryPointer, _ payload: UnsafeRawPointer? = nil, _ payloadLength: Int = 0,
    tail: UnsafeRawPointer? = nil, _ tailLength: Int = 0, into buffer: UnsafeMutableRawPointer? = nil,
    _ capacity: Int = 0, interruptible: Bool = false
) -> Reply {
    let handle = found.pointee.handle
    let reply = ask(
        operation, handle, payload, payloadLength, tail: tail, tailLength, into: buffer, capacity,
        interruptible: interruptible)
    guard reply.error == EBADF, let entries = fileTable.entries else { return reply }
    let descriptor = Int32(found - entries)
    activation.provesPossession = true
    guard cookie(of: descriptor) == found.pointee.cookie, ask(ALPS_OP_ATTACH, handle, passing: descriptor).error == 0
    else { return reply }
    return ask(
        operation, handle, payload, payloadLength, tail: tail, tailLength, into: buffer, capacity,
        interruptible: interruptible)
}

/// Tells the host something about a socket without waiting: what comes later in this session finds it done. False: it could
/// not be told.
func tell(
    _ operation: UInt32, about found: EntryPointer, _ payload: UnsafeRawPointer, _ payloadLength: Int,
    tail: UnsafeRawPointer?, _ tailLength: Int
) -> Bool {
    let error = alps_errno()
    var mask = sigset_t()
    alps_block_signals(&mask)
    dropForeignSession()
    alps_shim_lock()
    var isTold = false
    if ensureSession() {
        session.lastRequest += 1
        isTold = sendFrame(
            ALPS_FRAME_NOTE, operation, found.pointee.handle, session.lastRequest, payload, payloadLength, tail, tailLength)
        if !isTold { failSession() }
    }
    alps_shim_unlock()
    alps_restore_signals(&mask)
    alps_set_errno(error)
    return isTold
}

/// True if the host has protocols of that domain. Opens a session if there is none.
func hostHas(domain: Int32) -> Bool {
    guard domain >= 0, domain < 64 else { return false }
    let error = alps_errno()
    var mask = sigset_t()
    alps_block_signals(&mask)
    dropForeignSession()
    alps_shim_lock()
    let found = ensureSession() && session.domains & (1 << UInt64(domain)) != 0
    alps_shim_unlock()
    alps_restore_signals(&mask)
    alps_set_errno(error)
    return found
}

// MARK: - slots

private var slotCount: Int { 2048 }

/// A linked slot with a new id. nil: as many requests are waiting as there are slots.
private func takeSlot(frame: UInt) -> UnsafeMutablePointer<PendingRequest>? {
    if session.slots == nil {
        let memory = alps_map_anonymous(slotCount * MemoryLayout<PendingRequest>.stride)
        session.slots = memory?.bindMemory(to: PendingRequest.self, capacity: slotCount)
    }
    guard let slots = session.slots else { return nil }
    let thread = alps_thread()
    releaseAbandoned(thread, frame)
    for index in 0..<slotCount where slots[index].id == 0 {
        let slot = slots + index
        session.lastRequest += 1
        slot.pointee.id = session.lastRequest
        slot.pointee.next = session.waiting
        slot.pointee.thread = thread
        slot.pointee.frame = frame
        slot.pointee.wakeWord = 0
        slot.pointee.sleeps = false
        slot.pointee.isInterruptible = false
        slot.pointee.finished = false
        slot.pointee.ending = -1
        slot.pointee.error = hostGone
        slot.pointee.descriptor = -1
        slot.pointee.length = 0
        session.waiting = slot
        return slot
    }
    return nil
}

private func freeSlot(_ slot: UnsafeMutablePointer<PendingRequest>) {
    alps_shim_lock()
    slot.pointee.id = 0
    alps_shim_unlock()
}

/// What a longjmp left behind: requests of this thread from further down its stack than where it is now. (A request that
/// this thread's signal handler has interrupted lies further up, unless the handler has a stack of its own.)
private func releaseAbandoned(_ thread: UInt, _ frame: UInt) {
    var each = session.waiting
    while let current = each {
        each = current.pointee.next
        guard current.pointee.thread == thread, current.pointee.frame <= frame, alps_on_signal_stack() == 0 else {
            continue
        }
        abandon(current)
    }
}

private func abandon(_ slot: UnsafeMutablePointer<PendingRequest>) {
    unlink(slot)
    if session.reader == slot { session.reader = nil }
    if slot.pointee.descriptor >= 0 { _ = alps_sys_close(slot.pointee.descriptor) }
    if slot.pointee.ending >= 0 { _ = alps_sys_close(slot.pointee.ending) }
    slot.pointee.id = 0
}

/// The thread that waited for an ending is being cancelled.
@c(alps_shim_abandon)
public func abandonRequest(_ slot: UnsafeMutableRawPointer?) {
    guard let slot else { return }
    var mask = sigset_t()
    alps_block_signals(&mask)
    alps_shim_lock()
    abandon(slot.assumingMemoryBound(to: PendingRequest.self))
    wakeReader()
    alps_shim_unlock()
    alps_restore_signals(&mask)
}

// MARK: - waiting

/// Makes the socket that an interruptible request is waited for on; its other end, or -1.
private func openEnding(_ pending: UnsafeMutablePointer<PendingRequest>, byEverySignal: Bool) -> Int32 {
    var pair = (Int32(-1), Int32(-1))
    let made = withUnsafeMutableBytes(of: &pair) {
        alps_sys_socketpair(
            AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0,
            $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: Int32.self))
    }
    guard made == 0 else { return -1 }
    if byEverySignal {
        // A receive with a time-out never starts again.
        var longest = timeval(tv_sec: 1 << 32, tv_usec: 0)
        _ = alps_sys_setsockopt(pair.0, SOL_SOCKET, SO_RCVTIMEO, &longest, UInt32(MemoryLayout<timeval>.size))
    }
    pending.pointee.ending = pair.0
    return pair.1
}

/// Waits, with the caller's signal mask, until the host has answered; cancels the request if a handler ended the wait.
private func waitForEnding(
    _ pending: UnsafeMutablePointer<PendingRequest>, _ generation: UInt32, _ callerMask: UnsafeMutablePointer<sigset_t>
) {
    let id = pending.pointee.id
    let descriptor = pending.pointee.ending
    // Without descriptors left: it cannot be interrupted.
    guard descriptor >= 0 else { return }
    alps_restore_signals(callerMask)
    let interrupted = alps_shim_wait_for_end(descriptor, pending) < 0 && alps_errno() == EINTR
    var discarded = sigset_t()
    alps_block_signals(&discarded)
    _ = alps_sys_close(descriptor)
    alps_shim_lock()
    // In the child of a fork that a handler made, the slot may be another request's by now.
    if session.generation == generation, pending.pointee.id == id {
        pending.pointee.ending = -1
        if interrupted, !pending.pointee.finished {
            _ = sendFrame(ALPS_FRAME_CANCEL, 0, 0, id, nil, 0, nil, 0)
        }
    }
    alps_shim_unlock()
}

/// How long a reply is waited for with signals blocked. A host that takes longer is stopped or overloaded: then the
/// program must be stoppable by a signal.
private var patienceMilliseconds: Int32 { 1000 }

private func waitForReply(
    _ pending: UnsafeMutablePointer<PendingRequest>, _ generation: UInt32, _ callerMask: UnsafeMutablePointer<sigset_t>
) {
    var signalsAllowed = false
    while true {
        alps_shim_lock()
        if session.generation != generation {
            // Either the session ended, and said so to all who waited, or this is the child of a fork.
            alps_shim_unlock()
            return
        }
        if pending.pointee.finished {
            unlink(pending)
            wakeReader()
            alps_shim_unlock()
            return
        }
        pending.pointee.wakeWord = 0
        let reads = session.reader.map(isSuspended) ?? true
        if reads { session.reader = pending }
        pending.pointee.isInterruptible = signalsAllowed
        pending.pointee.sleeps = !reads
        let descriptor = session.descriptor
        alps_shim_unlock()

        var readable = reads
        if signalsAllowed { alps_restore_signals(callerMask) }
        if reads {
            // A poll ends after any handler, which may have read the reply.
            let ready = alps_sys_poll(descriptor, POLLIN, patienceMilliseconds)
            readable = ready != 0 && !(ready < 0 && alps_errno() == EINTR)
            if ready == 0 { signalsAllowed = true }
        } else {
            _ = alps_sys_futex_wait(&pending.pointee.wakeWord, 0)
        }
        var discarded = sigset_t()
        alps_block_signals(&discarded)

        var alive = true
        if readable, isReader(pending, generation) { alive = readFrame(descriptor) }
        alps_shim_lock()
        if session.generation == generation {
            if session.reader == pending { session.reader = nil }
            if !alive { closeSession() }
        }
        alps_shim_unlock()
    }
}

/// True if whoever reads is this thread: it was interrupted by the signal handler that we are in, or left by longjmp.
private func isSuspended(_ reader: UnsafeMutablePointer<PendingRequest>) -> Bool {
    reader.pointee.isInterruptible && reader.pointee.thread == alps_thread()
}

/// True if a signal handler has not taken reading over meanwhile.
private func isReader(_ pending: UnsafeMutablePointer<PendingRequest>, _ generation: UInt32) -> Bool {
    alps_shim_lock()
    defer { alps_shim_unlock() }
    return session.generation == generation && session.reader == pending
}

private func unlink(_ pending: UnsafeMutablePointer<PendingRequest>) {
    if session.waiting == pending {
        session.waiting = pending.pointee.next
        return
    }
    var each = session.waiting
    while let current = each {
        if current.pointee.next == pending {
            current.pointee.next = pending.pointee.next
            return
        }
        each = current.pointee.next
    }
}

/// Lets those who wait see that nobody reads. All of them, since one may be the remainder of a longjmp.
private func wakeReader() {
    guard session.reader == nil else { return }
    var each = session.waiting
    while let current = each {
        each = current.pointee.next
        if current.pointee.sleeps { wake(current) }
    }
}

func wake(_ pending: UnsafeMutablePointer<PendingRequest>) {
    pending.pointee.wakeWord = 1
    if pending.pointee.sleeps { alps_sys_futex_wake(&pending.pointee.wakeWord) }
}

// MARK: - ending

/// Ends the session: everybody who waits is told that the host is gone.
func closeSession() {
    if session.descriptor >= 0 {
        if cookie(of: session.descriptor) == session.cookie { _ = alps_sys_close(session.descriptor) }
        clearEntry(session.descriptor)
    }
    session.descriptor = -1
    session.reader = nil
    session.generation &+= 1
    var each = session.waiting
    session.waiting = nil
    while let current = each {
        each = current.pointee.next
        current.pointee.error = hostGone
        current.pointee.finished = true
        wake(current)
    }
}

/// Ends the session after a failed send. Who reads may be filling the buffer of one who waits: then ending is left to it.
private func failSession() {
    if session.reader != nil {
        _ = alps_sys_shutdown(session.descriptor, 2)
    } else {
        closeSession()
    }
}

/// In the child of a fork: the threads that waited are not here.
private func forgetSession() {
    session.waiting = nil
    if let slots = session.slots {
        for index in 0..<slotCount { slots[index].id = 0 }
    }
    closeSession()
}

/// In the child of a fork, by whatever call: the parent's session is not ours. A new one is opened when it is needed.
func dropForeignSession() {
    guard alps_shim_is_new_process() != 0 else { return }
    alps_shim_lock_reset()
    forgetSession()
}

/// Runs something short under the session's lock.
func locked(_ body: () -> Void) {
    var mask = sigset_t()
    alps_block_signals(&mask)
    alps_shim_lock()
    body()
    alps_shim_unlock()
    alps_restore_signals(&mask)
}

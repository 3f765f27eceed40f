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
/// without SA_RESTART (both waits used here, recv and futex, restart by themselves otherwise).
func ask(
    _ operation: UInt32, _ handle: UInt64, _ payload: UnsafeRawPointer? = nil, _ payloadLength: Int = 0,
    tail: UnsafeRawPointer? = nil, _ tailLength: Int = 0, into buffer: UnsafeMutableRawPointer? = nil,
    _ capacity: Int = 0, interruptible: Bool = false, passing passed: Int32 = -1
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
        if !sendFrame(ALPS_FRAME_REQUEST, operation, handle, id, payload, payloadLength, tail, tailLength, passed) {
            failSession()
        }
        alps_shim_unlock()
        waitForReply(pending, generation, mask, interruptible: interruptible)
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
    guard cookie(of: descriptor) == found.pointee.cookie, ask(ALPS_OP_ATTACH, handle, passing: descriptor).error == 0
    else { return reply }
    return ask(
        operation, handle, payload, payloadLength, tail: tail, tailLength, into: buffer, capacity,
        interruptible: interruptible)
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
        unlink(current)
        if session.reader == current { session.reader = nil }
        if current.pointee.descriptor >= 0 { _ = alps_sys_close(current.pointee.descriptor) }
        current.pointee.id = 0
    }
}

// MARK: - waiting

/// How long a reply is waited for with signals blocked. A host that takes longer is stopped or overloaded: then the
/// program must be stoppable by a signal.
private var patienceMilliseconds: Int32 { 1000 }

private func waitForReply(
    _ pending: UnsafeMutablePointer<PendingRequest>, _ generation: UInt32, _ callerMask: UnsafeMutablePointer<sigset_t>,
    interruptible: Bool
) {
    var mayCancel = interruptible
    var signalsAllowed = interruptible
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

        var interrupted = false
        var readable = reads
        if signalsAllowed {
            alps_restore_signals(callerMask)
            if reads {
                var byte: UInt8 = 0
                interrupted = alps_sys_recv(descriptor, &byte, 1, Int32(MSG_PEEK)) < 0 && alps_errno() == EINTR
                readable = !interrupted
            } else {
                interrupted = alps_sys_futex_wait(&pending.pointee.wakeWord, 0) < 0 && alps_errno() == EINTR
            }
            var discarded = sigset_t()
            alps_block_signals(&discarded)
        } else if reads {
            readable = alps_sys_poll(descriptor, POLLIN, patienceMilliseconds) != 0
            if !readable { signalsAllowed = true }
        } else {
            _ = alps_sys_futex_wait(&pending.pointee.wakeWord, 0)
        }

        var alive = true
        if readable, isReader(pending, generation) { alive = readFrame(descriptor) }
        alps_shim_lock()
        if session.generation == generation {
            if session.reader == pending { session.reader = nil }
            if !alive { closeSession() }
            if interrupted, mayCancel, !pending.pointee.finished {
                _ = sendFrame(ALPS_FRAME_CANCEL, 0, 0, pending.pointee.id, nil, 0, nil, 0)
                // The reply to it is waited for whatever comes.
                mayCancel = false
                signalsAllowed = false
            }
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

private func wake(_ pending: UnsafeMutablePointer<PendingRequest>) {
    pending.pointee.wakeWord = 1
    if pending.pointee.sleeps { alps_sys_futex_wake(&pending.pointee.wakeWord) }
}

// MARK: - frames

func sendFrame(
    _ kind: UInt32, _ operation: UInt32, _ handle: UInt64, _ id: UInt64, _ payload: UnsafeRawPointer?,
    _ payloadLength: Int, _ tail: UnsafeRawPointer?, _ tailLength: Int, _ passed: Int32 = -1
) -> Bool {
    var frame = alps_frame(
        magic: ALPS_FRAME_MAGIC, length: UInt32(payloadLength + tailLength), kind: UInt16(kind), op: UInt16(operation),
        error: 0, request_id: id, socket: handle, stream_position: 0)
    return withUnsafeMutableBytes(of: &frame) { frame in
        var parts = [3 of iovec](repeating: iovec(iov_base: nil, iov_len: 0))
        parts[0] = iovec(iov_base: frame.baseAddress, iov_len: frame.count)
        parts[1] = iovec(iov_base: UnsafeMutableRawPointer(mutating: payload), iov_len: payloadLength)
        parts[2] = iovec(iov_base: UnsafeMutableRawPointer(mutating: tail), iov_len: tailLength)
        return withUnsafeMutableBytes(of: &parts) { parts in
            let vector = parts.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: iovec.self)
            var message = msghdr()
            message.msg_iov = vector
            message.msg_iovlen = 3
            var control = [3 of UInt64](repeating: 0)
            var left = frame.count + payloadLength + tailLength
            while left > 0 {
                let sent = withUnsafeMutableBytes(of: &control) {
                    // A descriptor goes with the first byte.
                    if passed >= 0, left == frame.count + payloadLength + tailLength {
                        putDescriptor(passed, $0.baseAddress.unsafelyUnwrapped, &message)
                    } else {
                        message.msg_control = nil
                        message.msg_controllen = 0
                    }
                    return alps_sys_sendmsg(session.descriptor, &message, Int32(MSG_NOSIGNAL))
                }
                guard sent >= 0 else { return false }
                left -= sent
                var skip = sent
                for part in 0..<3 {
                    let step = min(skip, vector[part].iov_len)
                    vector[part].iov_base = vector[part].iov_base.map { $0 + step }
                    vector[part].iov_len -= step
                    skip -= step
                }
            }
            return true
        }
    }
}

/// Reads one frame and hands it to whom it belongs. Only the reader calls it, without the lock. False: the host is gone.
private func readFrame(_ descriptor: Int32) -> Bool {
    var frame = alps_frame()
    var passed: Int32 = -1
    guard receive(descriptor, &frame, MemoryLayout<alps_frame>.size, &passed), frame.magic == ALPS_FRAME_MAGIC else {
        if passed >= 0 { _ = alps_sys_close(passed) }
        return false
    }
    alps_shim_lock()
    var target = session.waiting
    while let each = target, each.pointee.id != frame.request_id { target = each.pointee.next }
    alps_shim_unlock()

    // A slot stays where it is until `finished`, so its buffer can be filled without the lock.
    var left = Int(frame.length)
    var alive = true
    if let target {
        let wanted = min(left, target.pointee.capacity)
        if let buffer = target.pointee.buffer {
            alive = receive(descriptor, buffer, wanted, &passed)
        } else {
            alive = withUnsafeMutableBytes(of: &target.pointee.small) {
                receive(descriptor, $0.baseAddress.unsafelyUnwrapped, wanted, &passed)
            }
        }
        target.pointee.length = wanted
        left -= wanted
    }
    var scrap = [256 of UInt8](repeating: 0)
    while alive, left > 0 {
        let step = min(left, 256)
        alive = withUnsafeMutableBytes(of: &scrap) {
            receive(descriptor, $0.baseAddress.unsafelyUnwrapped, step, &passed)
        }
        left -= step
    }
    guard alive, let target, UInt32(frame.kind) == ALPS_FRAME_REPLY else {
        if passed >= 0 { _ = alps_sys_close(passed) }
        return alive
    }
    alps_shim_lock()
    target.pointee.error = frame.error
    target.pointee.descriptor = passed
    target.pointee.finished = true
    wake(target)
    alps_shim_unlock()
    return true
}

/// Reads exactly `count` bytes, and a descriptor if one comes with them.
func receive(_ descriptor: Int32, _ buffer: UnsafeMutableRawPointer, _ count: Int, _ passed: inout Int32) -> Bool {
    var done = 0
    while done < count {
        var part = iovec(iov_base: buffer + done, iov_len: count - done)
        var control = [4 of UInt64](repeating: 0)
        let got = withUnsafeMutableBytes(of: &control) { control in
            withUnsafeMutablePointer(to: &part) { part in
                var message = msghdr()
                message.msg_iov = part
                message.msg_iovlen = 1
                message.msg_control = control.baseAddress
                message.msg_controllen = 24
                let got = alps_sys_recvmsg(descriptor, &message, Int32(MSG_CMSG_CLOEXEC))
                if got > 0, let fd = passedDescriptor(message) { passed = fd }
                return got
            }
        }
        if got < 0, alps_errno() == EINTR { continue }
        guard got > 0 else { return false }
        done += got
    }
    return true
}

/// The descriptor that came as the first control message.
func passedDescriptor(_ message: msghdr) -> Int32? {
    guard let control = message.msg_control, message.msg_controllen >= MemoryLayout<cmsghdr>.size + 4 else {
        return nil
    }
    let header = control.assumingMemoryBound(to: cmsghdr.self)
    guard header.pointee.cmsg_level == SOL_SOCKET, header.pointee.cmsg_type == Int32(SCM_RIGHTS) else { return nil }
    return (control + MemoryLayout<cmsghdr>.size).loadUnaligned(as: Int32.self)
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

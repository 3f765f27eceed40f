import CLinux
import Glibc

/// Something with a descriptor that the reactor watches.
open class ReadyHandler {
    package init() {}

    /// The descriptor is ready: EPOLLIN, EPOLLOUT, EPOLLHUP, ... as epoll_wait gave them.
    open func ready(_ events: UInt32) {}

    /// Place in the reactor's table while watched.
    fileprivate var slot = -1
}

/// The live host's event loop: epoll, one thread, turns. Sleeps until a descriptor is ready or the next timer is due; an
/// idle host has no periodic wake-up.
package final class Reactor {
    private let kernel: Kernel
    private let clock: Borrowed<KernelClock>
    private let streamRings: Borrowed<StreamRingWatch>
    private let interfaces: Borrowed<InterfaceTable>
    private let epoll: Int32
    private let wakeDescriptor: Int32
    private var signalDescriptor: Int32 = -1
    /// By slot; each holds one count of its handler.
    private var handlers: [Unmanaged<ReadyHandler>?] = []
    /// Removed in this turn, maybe while they were being called: let go of at its end.
    private var retired: [Unmanaged<ReadyHandler>] = []
    private var generations: [UInt32] = []
    private var freeSlots: [Int] = []
    private var isStopped = false
    private let events: UnsafeMutablePointer<epoll_event>
    private static let batch = 256
    private let posted = PostedWork()
    private var onSignal: (() -> Void)?
    private var slice: LoopSlice
    /// How long the loop looks for events before it sleeps, ns; 0: it sleeps at once. Whoever brings something meanwhile need
    /// not wake it, and it need not wake up.
    package var busyPoll: UInt64 = 0

    package init(kernel: Kernel) throws {
        self.kernel = kernel
        clock = Borrowed(kernel.clock)
        streamRings = Borrowed(kernel.streamRings)
        interfaces = Borrowed(kernel.interfaces)
        slice = LoopSlice(kernel: kernel)
        epoll = epoll_create1(Int32(EPOLL_CLOEXEC))
        wakeDescriptor = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
        guard epoll >= 0, wakeDescriptor >= 0 else {
            throw KernelError(errno, "cannot make an event loop: \(String(cString: strerror(errno)))")
        }
        events = .allocate(capacity: Self.batch)
        var event = epoll_event(events: UInt32(EPOLLIN.rawValue), data: epoll_data(u64: .max))
        epoll_ctl(epoll, EPOLL_CTL_ADD, wakeDescriptor, &event)
    }

    deinit {
        for handler in handlers { handler?.release() }
        for handler in retired { handler.release() }
        events.deallocate()
        Glibc.close(epoll)
        Glibc.close(wakeDescriptor)
        if signalDescriptor >= 0 { Glibc.close(signalDescriptor) }
    }

    // MARK: Watching

    /// Watches `descriptor`; `events` are EPOLL flags.
    package func add(_ descriptor: Int32, events mask: UInt32, handler: ReadyHandler) throws {
        let slot: Int
        if let free = freeSlots.popLast() {
            slot = free
            handlers[slot] = .passRetained(handler)
        } else {
            slot = handlers.count
            handlers.append(.passRetained(handler))
            generations.append(0)
        }
        handler.slot = slot
        var event = epoll_event(events: mask, data: epoll_data(u64: UInt64(generations[slot]) << 32 | UInt64(slot)))
        guard epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event) == 0 else {
            let error = errno
            release(slot)
            throw KernelError(error, "epoll: \(String(cString: strerror(error)))")
        }
    }

    /// Changes what is watched for.
    package func modify(_ descriptor: Int32, events mask: UInt32, handler: ReadyHandler) {
        guard handler.slot >= 0 else { return }
        let data = UInt64(generations[handler.slot]) << 32 | UInt64(handler.slot)
        var event = epoll_event(events: mask, data: epoll_data(u64: data))
        epoll_ctl(epoll, EPOLL_CTL_MOD, descriptor, &event)
    }

    /// Stops watching. Events of this batch that are still to be handed out for it are dropped. `closes`: the caller closes the
    /// descriptor next, and there is no other for its file, so that the kernel forgets it by itself.
    package func remove(_ descriptor: Int32, handler: ReadyHandler, closes: Bool = false) {
        guard handler.slot >= 0 else { return }
        if !closes { epoll_ctl(epoll, EPOLL_CTL_DEL, descriptor, nil) }
        release(handler.slot)
        handler.slot = -1
    }

    private func release(_ slot: Int) {
        if let handler = handlers[slot] { retired.append(handler) }
        handlers[slot] = nil
        generations[slot] &+= 1
        freeSlots.append(slot)
    }

    // MARK: From elsewhere

    /// Runs `work` on the loop thread soon. May be called from any thread.
    package func post(_ work: @escaping @Sendable () -> Void) {
        posted.append(work)
        var one: UInt64 = 1
        _ = Glibc.write(wakeDescriptor, &one, 8)
    }

    /// Blocks the signals for this process and runs `action` on the loop thread when one comes.
    package func onSignals(_ signals: [Int32], _ action: @escaping () -> Void) {
        var set = sigset_t()
        sigemptyset(&set)
        for signal in signals { sigaddset(&set, signal) }
        pthread_sigmask(SIG_BLOCK, &set, nil)
        signalDescriptor = signalfd(-1, &set, Int32(SFD_CLOEXEC | SFD_NONBLOCK))
        onSignal = action
        var event = epoll_event(events: UInt32(EPOLLIN.rawValue), data: epoll_data(u64: .max - 1))
        epoll_ctl(epoll, EPOLL_CTL_ADD, signalDescriptor, &event)
    }

    /// Ends `run` after this turn.
    package func stop() { isStopped = true }

    // MARK: Turns

    /// Runs turns until `stop`.
    package func run() {
        while !isStopped { turn() }
    }

    /// Runs turns until `condition` holds, for about `limit` ns at most. True if it holds.
    package func run(limit: UInt64, until condition: () -> Bool) -> Bool {
        let timer = HostTimer(kernel) {}
        kernel.clock.update()
        timer.arm(after: limit)
        while timer.isArmed {
            if condition() { return true }
            turn()
        }
        return condition()
    }

    private func turn() {
        let count = wait()
        clock { $0.update() }
        if count > 0 {
            slice.count(ready: Int(count))
            for index in 0..<Int(count) { dispatch(events[index]) }
        }
        streamRings {
            $0.look()
            $0.share(kernel)
        }
        kernel.endTurn()
        interfaces { $0.flush() }
        while let handler = retired.popLast() { handler.release() }
    }

    private func wait() -> Int32 {
        var timeout = timespec()
        if kernel.hasPendingWork || !streamRings({ $0.maySleep() }) { return epoll_wait(epoll, events, Int32(Self.batch), 0) }
        let deadline = kernel.nextDeadline
        if busyPoll > 0, let count = poll(until: deadline) { return count }
        if deadline == .max { return epoll_wait(epoll, events, Int32(Self.batch), -1) }
        let now = clock {
            $0.update()
            return $0.now
        }
        let delay = deadline > now ? deadline - now : 0
        timeout.tv_sec = Int(delay / 1_000_000_000)
        timeout.tv_nsec = Int(delay % 1_000_000_000)
        let count = epoll_pwait2(epoll, events, Int32(Self.batch), &timeout, nil)
        guard count < 0, errno == ENOSYS else { return count }
        // Linux before 5.11: whole milliseconds, not too early.
        let milliseconds = Int32(clamping: (delay + 999_999) / 1_000_000)
        return epoll_wait(epoll, events, Int32(Self.batch), milliseconds)
    }

    /// Looks for events for as long as `busyPoll` says. Nil if none has come and no timer is due.
    private func poll(until deadline: UInt64) -> Int32? {
        var end = UInt64.max
        while true {
            let count = epoll_wait(epoll, events, Int32(Self.batch), 0)
            if count != 0 { return count }
            let now = clock {
                $0.update()
                return $0.now
            }
            if now >= deadline { return 0 }
            if end == .max { end = now &+ busyPoll }
            if now >= end { return nil }
        }
    }

    private func dispatch(_ event: epoll_event) {
        let data = event.data.u64
        if data == .max {
            var count: UInt64 = 0
            _ = Glibc.read(wakeDescriptor, &count, 8)
            for work in posted.takeAll() { work() }
            return
        }
        if data == .max - 1 {
            var information = signalfd_siginfo()
            _ = Glibc.read(signalDescriptor, &information, MemoryLayout<signalfd_siginfo>.size)
            onSignal?()
            return
        }
        let slot = Int(data & 0xffff_ffff)
        guard generations[slot] == UInt32(data >> 32), let handler = handlers[slot] else { return }
        handler._withUnsafeGuaranteedRef { $0.ready(event.events) }
    }
}

/// Work handed to the loop thread by others.
private final class PostedWork: @unchecked Sendable {
    private let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private var work: [@Sendable () -> Void] = []

    init() { pthread_mutex_init(lock, nil) }

    deinit {
        pthread_mutex_destroy(lock)
        lock.deallocate()
    }

    func append(_ item: @escaping @Sendable () -> Void) {
        pthread_mutex_lock(lock)
        work.append(item)
        pthread_mutex_unlock(lock)
    }

    func takeAll() -> [@Sendable () -> Void] {
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        defer { work.removeAll() }
        return work
    }
}

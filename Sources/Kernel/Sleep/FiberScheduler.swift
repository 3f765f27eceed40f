internal import FiberSwitch
internal import PluginAPI

/// BSD's sleep and wakeup on fibers: whoever must wait gives its stack away and goes on when it is woken.
///
/// A fiber runs only inside `runReady`, on the kernel's thread, until it sleeps or ends; so between two sleeps it sees
/// the kernel as any other code of a turn does.
package final class FiberScheduler {
    private struct SleepQueue {
        var first: Fiber
        var last: Fiber
    }

    private static let cachedStacks = 16

    private var callouts: CalloutWheel!
    /// The fiber that runs now.
    package private(set) var current: Fiber?
    private var ready: [Fiber] = []
    private var fibers: [Int: Fiber] = [:]
    private var sleepers: [UnsafeRawPointer: SleepQueue] = [:]
    private var stacks: [FiberStack] = []
    private var nextID = 1
    private let home: UnsafeMutablePointer<alps_fiber_context>
    private let timerTarget: UnsafeMutablePointer<CalloutTarget>
    private var opsTable: UnsafeMutablePointer<alps_sleep_ops>?

    package init() {
        home = .allocate(capacity: 1)
        home.initialize(to: alps_fiber_context())
        timerTarget = .allocate(capacity: 1)
        timerTarget.initialize(to: CalloutTarget(function: sleepTimedOut))
    }

    deinit {
        for stack in stacks { stack.release() }
        home.deallocate()
        timerTarget.deallocate()
        opsTable?.deallocate()
    }

    /// Publishes "alps.sleep/1".
    package func attach(_ kernel: Kernel) {
        callouts = kernel.callouts
        timerTarget.pointee.instance = Unmanaged.passUnretained(self).toOpaque()
        let table = UnsafeMutablePointer<alps_sleep_ops>.allocate(capacity: 1)
        table.initialize(
            to: alps_sleep_ops(
                size: UInt32(MemoryLayout<alps_sleep_ops>.size), reserved: 0, tsleep: sleepTsleep,
                wakeup: sleepWakeup, wakeup_one: sleepWakeupOne))
        opsTable = table
        kernel.plugins.publish("alps.sleep/1", ops: UnsafeRawPointer(table), scope: .perInstance)
    }

    /// All fibers that have not ended, oldest first.
    package var all: [Fiber] { fibers.values.sorted { $0.id < $1.id } }

    /// Whether a fiber waits to run.
    package var hasReady: Bool { !ready.isEmpty }

    /// Makes a fiber; it runs in the next `runReady`.
    @discardableResult
    package func spawn(name: String, session: UInt32? = nil, body: @escaping () -> Void) -> Fiber {
        let fiber = Fiber(id: nextID, name: name, session: session, scheduler: self, body: body)
        nextID += 1
        fibers[fiber.id] = fiber
        ready.append(fiber)
        return fiber
    }

    /// Runs every fiber that was ready at the call until it sleeps or ends.
    package func runReady() {
        guard !ready.isEmpty, current == nil else { return }
        let batch = ready
        ready.removeAll(keepingCapacity: true)
        for fiber in batch { resume(fiber) }
    }

    // MARK: Sleeping

    /// Sleeps on `channel` until wakeup, at most `timeout` ns (0 = no limit). 0, EAGAIN after the time-out, EINTR if
    /// cancelled, ERESTART at a swap, ENOSYS if not called on a fiber.
    package func tsleep(channel: UnsafeRawPointer, wmesg: UnsafePointer<CChar>, timeout: UInt64) -> Int32 {
        guard let fiber = current else { return ALPS_ENOSYS }
        return sleep(fiber, channel, String(cString: wmesg), timeout)
    }

    package func tsleep(channel: UnsafeRawPointer, wmesg: StaticString, timeout: UInt64) -> Int32 {
        guard let fiber = current else { return ALPS_ENOSYS }
        return sleep(fiber, channel, wmesg.description, timeout)
    }

    /// Makes every fiber that sleeps on `channel` ready.
    package func wakeup(_ channel: UnsafeRawPointer) {
        while wakeFirst(channel) {}
    }

    /// Makes the fiber ready that has slept longest on `channel`.
    package func wakeupOne(_ channel: UnsafeRawPointer) {
        _ = wakeFirst(channel)
    }

    /// Ends the fiber's sleep, and every later one, with EINTR: its caller was signalled or is gone.
    package func cancel(_ fiber: Fiber) {
        fiber.isCancelled = true
        if fiber.state == .sleeping { wake(fiber, ALPS_EINTR) }
    }

    /// Ends the fiber's sleep, or the next one, with ERESTART: the request must be dispatched again.
    package func restart(_ fiber: Fiber) {
        if fiber.state == .sleeping { wake(fiber, ALPS_ERESTART) } else { fiber.isRestartPending = true }
    }

    /// Cancels all fibers and runs them to their ends. False if some will not end.
    @discardableResult
    package func shutdown() -> Bool {
        var rounds = 0
        while !fibers.isEmpty, rounds < 64 {
            for fiber in all { cancel(fiber) }
            runReady()
            rounds += 1
        }
        return fibers.isEmpty
    }

    private func sleep(_ fiber: Fiber, _ channel: UnsafeRawPointer, _ wmesg: String, _ timeout: UInt64) -> Int32 {
        if fiber.isCancelled { return ALPS_EINTR }
        if fiber.isRestartPending {
            fiber.isRestartPending = false
            return ALPS_ERESTART
        }
        fiber.state = .sleeping
        fiber.waitChannel = channel
        fiber.wmesg = String(wmesg.prefix(15))
        if var queue = sleepers[channel] {
            queue.last.nextSleeper = fiber
            queue.last = fiber
            sleepers[channel] = queue
        } else {
            sleepers[channel] = SleepQueue(first: fiber, last: fiber)
        }
        if timeout > 0 {
            callouts.reset(
                fiber.timer, delay: timeout, function: 0, argument: Unmanaged.passUnretained(fiber).toOpaque(),
                target: timerTarget)
            fiber.deadline = fiber.timer.pointee.deadline
        }
        alps_fiber_switch(fiber.context, home, 0)
        return fiber.sleepResult
    }

    private func wakeFirst(_ channel: UnsafeRawPointer) -> Bool {
        guard let queue = sleepers[channel] else { return false }
        wake(queue.first, 0)
        return true
    }

    fileprivate func wake(_ fiber: Fiber, _ result: Int32) {
        guard let channel = fiber.waitChannel else { return }
        callouts.stop(fiber.timer)
        unlink(fiber, channel)
        fiber.waitChannel = nil
        fiber.wmesg = nil
        fiber.deadline = nil
        fiber.sleepResult = result
        fiber.state = .ready
        ready.append(fiber)
    }

    private func unlink(_ fiber: Fiber, _ channel: UnsafeRawPointer) {
        guard var queue = sleepers[channel] else { return }
        if queue.first === fiber {
            if let next = fiber.nextSleeper {
                queue.first = next
                sleepers[channel] = queue
            } else {
                sleepers[channel] = nil
            }
        } else {
            var previous = queue.first
            while let next = previous.nextSleeper, next !== fiber { previous = next }
            previous.nextSleeper = fiber.nextSleeper
            if queue.last === fiber { queue.last = previous }
            sleepers[channel] = queue
        }
        fiber.nextSleeper = nil
    }

    // MARK: Switching

    private func resume(_ fiber: Fiber) {
        if fiber.stack == nil {
            guard let stack = stacks.popLast() ?? FiberStack() else {
                // Without memory for a stack the request waits for a better turn.
                ready.append(fiber)
                return
            }
            fiber.stack = stack
            alps_fiber_prepare(
                fiber.context, stack.bottom, FiberStack.size, fiberEntry, Unmanaged.passUnretained(fiber).toOpaque())
        }
        fiber.state = .running
        current = fiber
        alps_fiber_switch(home, fiber.context, 0)
        current = nil
        if fiber.state == .done { retire(fiber) }
    }

    private func retire(_ fiber: Fiber) {
        fibers[fiber.id] = nil
        alps_fiber_dispose(fiber.context)
        if let stack = fiber.stack {
            fiber.stack = nil
            if stacks.count < Self.cachedStacks { stacks.append(stack) } else { stack.release() }
        }
        let completion = fiber.completion
        fiber.completion = nil
        completion?()
    }

    /// First thing on a new stack: runs the body. Returns where to switch to for good.
    fileprivate func begin(_ fiber: Fiber) -> UnsafeMutablePointer<alps_fiber_context> {
        alps_fiber_entered(home)
        fiber.run()
        fiber.state = .done
        return home
    }
}

/// Runs a fiber's body on its own stack. Never returns; only plain pointers are left on the stack when it is left,
/// since nothing on it would ever be released.
private func fiberEntry(_ argument: UnsafeMutableRawPointer) {
    let (own, home) = Unmanaged<Fiber>.fromOpaque(argument)._withUnsafeGuaranteedRef { fiber in
        (fiber.context, fiber.scheduler.begin(fiber))
    }
    alps_fiber_switch(own, home, 1)
}

private func sleepTimedOut(
    _ scheduler: UnsafeMutableRawPointer, _ function: UInt32, _ fiber: UnsafeMutableRawPointer?
) {
    guard let fiber else { return }
    let scheduler = Unmanaged<FiberScheduler>.fromOpaque(scheduler).takeUnretainedValue()
    scheduler.wake(Unmanaged<Fiber>.fromOpaque(fiber).takeUnretainedValue(), ALPS_EAGAIN)
}

// MARK: "alps.sleep/1", `self` being the plugin instance

private func sleepTsleep(
    _ context: UnsafeMutableRawPointer, _ channel: UnsafeRawPointer, _ wmesg: UnsafePointer<CChar>, _ timeout: UInt64
) -> Int32 {
    let fibers = Unmanaged<PluginInstance>.fromOpaque(context).takeUnretainedValue().kernel.fibers
    return fibers.tsleep(channel: channel, wmesg: wmesg, timeout: timeout)
}

private func sleepWakeup(_ context: UnsafeMutableRawPointer, _ channel: UnsafeRawPointer) {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.kernel.fibers.wakeup(channel) }
}

private func sleepWakeupOne(_ context: UnsafeMutableRawPointer, _ channel: UnsafeRawPointer) {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.kernel.fibers.wakeupOne(channel) }
}

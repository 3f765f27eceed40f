import CLinux
import Glibc
import Kernel

/// One lock, and virtual time, for the threads of a packetdrill process.
///
/// The first thread, the owner, sends and takes packets and lets time pass. Calls that a script says to block come from a
/// second one. While such a call blocks, its thread sleeps in the operating system, which packetdrill sees in /proc, and
/// whoever lets time pass tries the call again after each turn of the stack. Nothing happens while both are elsewhere, so
/// that a run does not depend on how the system schedules them.
final class PacketdrillTime {
    private let stack: ScriptStack
    private let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let wake = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private let owner = pthread_self()
    private let ownerID = gettid()
    private var waiters: [Waiter] = []
    /// A waiter has ended since this was last looked at: the stack may have something to do.
    private var hasEnded = false
    /// When the last call of a thread other than the owner returned.
    private var returned: (thread: pthread_t, time: UInt64)?
    /// Questions for the time that a thread has asked in a row.
    private var questions: (thread: pthread_t, count: Int)?

    /// A call that blocks.
    private final class Waiter {
        let attempt: () -> SystemCall.Outcome
        let deadline: UInt64
        let late: SystemCall.Outcome
        var result: (outcome: SystemCall.Outcome, time: UInt64)?

        init(deadline: UInt64, late: SystemCall.Outcome, _ attempt: @escaping () -> SystemCall.Outcome) {
            self.attempt = attempt
            self.deadline = deadline
            self.late = late
        }
    }

    /// How long nothing may come before a wait of the owner's ends in an error, ns of virtual time.
    private static let silence: UInt64 = 600_000_000_000
    /// packetdrill waits for the second thread for one second of real time before it goes on, or gives up at the end of
    /// the script. So much virtual time passes if the owner sleeps elsewhere for `ownerAbsence`, ns.
    private static let grace: UInt64 = 1_000_000_000
    private static let ownerAbsence = 250_000_000
    /// Between sleep and event packetdrill spins, asking for the time: from so many questions in a row on, each takes 1 us.
    private static let idleQuestions = 4

    init(_ stack: ScriptStack) {
        self.stack = stack
        pthread_mutex_init(lock, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(wake, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(wake)
        pthread_mutex_destroy(lock)
        wake.deallocate()
        lock.deallocate()
    }

    private func locked<Result>(_ body: () -> Result) -> Result {
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        return body()
    }

    private var isOwner: Bool { pthread_equal(pthread_self(), owner) != 0 }

    // MARK: Calls

    /// Makes a call, and lets happen what follows from it at once. `attempt` is tried again as long as it blocks, `limit`
    /// ns at most, after which `late` is the result.
    func call(
        limit: UInt64? = nil, late: SystemCall.Outcome = .value(0), _ attempt: @escaping () -> SystemCall.Outcome
    ) -> SystemCall.Outcome {
        locked {
            questions = nil
            var outcome = attempt()
            pass(until: stack.now)
            if outcome == .blocks {
                let deadline = limit.map { stack.now &+ $0 } ?? .max
                outcome = isOwner ? drive(deadline, late, attempt) : sleep(Waiter(deadline: deadline, late: late, attempt))
            } else if !isOwner {
                returned = (pthread_self(), stack.now)
            }
            return outcome
        }
    }

    /// The owner blocks: time passes here.
    private func drive(
        _ deadline: UInt64, _ late: SystemCall.Outcome, _ attempt: () -> SystemCall.Outcome
    ) -> SystemCall.Outcome {
        var outcome = SystemCall.Outcome.blocks
        pass(until: min(deadline, stack.now &+ Self.silence)) {
            outcome = attempt()
            return outcome != .blocks
        }
        guard outcome == .blocks else { return outcome }
        return stack.now >= deadline ? late : .error(ETIMEDOUT)
    }

    /// Another thread blocks: time passes elsewhere.
    private func sleep(_ waiter: Waiter) -> SystemCall.Outcome {
        waiters.append(waiter)
        var grace = Self.grace
        while waiter.result == nil {
            var limit = timespec()
            clock_gettime(CLOCK_MONOTONIC, &limit)
            limit.tv_nsec += Self.ownerAbsence
            limit.tv_sec += limit.tv_nsec / 1_000_000_000
            limit.tv_nsec %= 1_000_000_000
            let isLate = pthread_cond_timedwait(wake, lock, &limit) == ETIMEDOUT
            guard isLate, waiter.result == nil, grace > 0, isOwnerAsleep else { continue }
            let start = stack.now
            pass(until: start &+ grace) { waiter.result != nil }
            grace -= min(grace, stack.now - start)
        }
        guard let result = waiter.result else { return .error(EINTR) }
        returned = (pthread_self(), result.time)
        return result.outcome
    }

    /// The owner, which does not hold the lock, sleeps: it has not just been kept from running.
    private var isOwnerAsleep: Bool {
        let file = open("/proc/self/task/\(ownerID)/stat", O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return false }
        defer { close(file) }
        var text = [UInt8](repeating: 0, count: 512)
        let count = max(0, read(file, &text, text.count))
        // "ID (NAME) STATE ...", where NAME may hold anything.
        guard let end = text[..<count].lastIndex(of: UInt8(ascii: ")")), end + 2 < count else { return false }
        return text[end + 2] == UInt8(ascii: "S")
    }

    /// Tries the calls that block. Those that do no longer are told to their threads.
    private func progress() {
        guard !waiters.isEmpty else { return }
        for waiter in waiters {
            let outcome = waiter.attempt()
            if outcome != .blocks {
                waiter.result = (outcome, stack.now)
            } else if stack.now >= waiter.deadline {
                waiter.result = (waiter.late, stack.now)
            }
        }
        let before = waiters.count
        waiters.removeAll { $0.result != nil }
        guard waiters.count < before else { return }
        hasEnded = true
        pthread_cond_broadcast(wake)
    }

    // MARK: Time

    /// Lets time pass until `time`, or until `condition` holds: then true.
    @discardableResult
    private func pass(until time: UInt64, _ condition: () -> Bool = { false }) -> Bool {
        while true {
            // A time-out of a call that blocks is no timer of the stack's.
            let patience = waiters.reduce(time) { min($0, $1.deadline) }
            let limit = max(patience, stack.now)
            let holds = stack.run(until: limit) {
                progress()
                return condition()
            }
            if holds { return true }
            if !hasEnded, limit >= time { return false }
            hasEnded = false
        }
    }

    /// Lets time pass until `condition` holds; called by what `perform` does. False: nothing has come for as long as
    /// anybody would wait.
    func wait(_ condition: () -> Bool) -> Bool {
        pass(until: stack.now &+ Self.silence, condition)
    }

    /// Does something of its own to the stack, and what follows from it at once.
    func perform<Result>(_ body: () -> Result) -> Result {
        locked {
            questions = nil
            defer { pass(until: stack.now) }
            return body()
        }
    }

    func usleep(_ microseconds: UInt32) {
        locked {
            questions = nil
            pass(until: stack.now &+ UInt64(microseconds) * 1000)
        }
    }

    /// Microseconds of virtual time. For the thread of a call that has just returned, when it did: time may have gone on.
    var now: Int64 {
        locked {
            let thread = pthread_self()
            if let returned, pthread_equal(returned.thread, thread) != 0 {
                self.returned = nil
                return Self.microseconds(returned.time)
            }
            if let asked = questions, pthread_equal(asked.thread, thread) != 0 {
                questions = (thread, asked.count + 1)
                if asked.count >= Self.idleQuestions { pass(until: stack.now &+ 1000) }
            } else {
                questions = (thread, 1)
            }
            return Self.microseconds(stack.now)
        }
    }

    /// What gettimeofday tells: from a million seconds on.
    static func microseconds(_ time: UInt64) -> Int64 { 1_000_000_000_000 + Int64(time / 1000) }
}

import CLinux
import Glibc

/// Lets those run at once whom the loop wakes, while it has one thing to do at a time.
///
/// An application on the loop's CPU that the loop has woken runs either at once or when the loop has gone to sleep. If at
/// once, its answer is there when the loop looks for events next, and neither a sleep nor a wake-up is spent on that. Linux
/// decides by the slices that both ask for (the EEVDF scheduler; sched_setattr(2), from 6.12 on for ordinary threads):
/// the shorter slice runs first. So the loop asks for a longer one than it has been given. Where it has several things
/// to do in a turn it does not: an application that interrupts it finds the first of them alone, and is woken for each.
struct LoopSlice {
    private let isWanted: Tunable
    private let log: KernelLog
    private var load = LoopLoad()
    /// ns, as found at the first change; 0: the system tells of none.
    private var given: UInt64?
    private var isLong = false
    private static let factor: UInt64 = 3

    init(kernel: Kernel) {
        log = kernel.log
        isWanted = kernel.tunables.add(
            "kern.sched.longslice",
            "with one thing to do at a time, the loop asks for a long slice, so that whom it wakes on its CPU runs at once",
            kind: .boolean, default: 1, range: 0...1)
    }

    /// A turn has begun with so many ready descriptors. To be called on the loop's thread.
    mutating func count(ready: Int) {
        guard load.count(ready: ready) else { return }
        let wanted = load.isOneAtATime && isWanted.value != 0
        if wanted != isLong { ask(long: wanted) }
    }

    private mutating func ask(long: Bool) {
        isLong = long
        var attributes = alps_sched_attr()
        // All of it, as others may have changed the rest meanwhile.
        guard given != 0, alps_sched_getattr(&attributes) == 0, attributes.policy == UInt32(SCHED_OTHER) else { return }
        let given = given ?? attributes.runtime
        self.given = given
        guard given != 0 else { return }
        attributes.runtime = long ? given * Self.factor : given
        if alps_sched_setattr(&attributes) != 0 {
            log.debug("no longer slice of the scheduler: \(String(cString: strerror(errno)))")
            self.given = 0
        }
    }
}

/// Whether the loop has one thing to do at a time.
package struct LoopLoad {
    /// Turns from look to look.
    package static let window = 256
    package private(set) var isOneAtATime = false
    private var turns = 0
    private var ready = 0

    package init() {}

    /// A turn with so many ready descriptors. True if this was a look.
    package mutating func count(ready count: Int) -> Bool {
        turns += 1
        ready += count
        guard turns == Self.window else { return false }
        // In between it stays as it is.
        if 10 * ready <= 11 * turns { isOneAtATime = true } else if 2 * ready >= 3 * turns { isOneAtATime = false }
        (turns, ready) = (0, 0)
        return true
    }
}

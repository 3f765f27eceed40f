internal import Glibc

/// The kernel's clock: nanoseconds that never go back and stand still within a loop turn.
///
/// A live clock follows CLOCK_MONOTONIC whenever `update` is called, at the start of a turn. A virtual clock moves only
/// when its lab says so. Both start at one second, so that 0 can mean "never".
package final class KernelClock {
    /// Where every clock starts.
    package static let start: UInt64 = 1_000_000_000

    /// Wall time of a virtual clock at `now` = 0: 2024-01-01 00:00:00 UTC. Fixed, so that runs are repeatable.
    package static let virtualEpoch: UInt64 = 1_704_067_200_000_000_000

    /// Nanoseconds since the kernel's beginning, plus `start`.
    package private(set) var now: UInt64

    /// Whether the clock belongs to a lab.
    package let isVirtual: Bool

    /// CLOCK_MONOTONIC minus `now`.
    private let offset: UInt64

    package init(isVirtual: Bool) {
        self.isVirtual = isVirtual
        now = Self.start
        offset = isVirtual ? 0 : Self.read(CLOCK_MONOTONIC) &- Self.start
    }

    /// Takes over the machine's time. Nothing happens on a virtual clock.
    package func update() {
        guard !isVirtual else { return }
        let current = Self.read(CLOCK_MONOTONIC) &- offset
        if current > now { now = current }
    }

    /// Moves a virtual clock forward; earlier times are ignored.
    package func advance(to time: UInt64) {
        precondition(isVirtual, "a live clock follows the machine")
        if time > now { now = time }
    }

    /// Nanoseconds since 1970.
    package var wall: UInt64 { isVirtual ? Self.virtualEpoch &+ now : Self.read(CLOCK_REALTIME) }

    /// The kernel time that a CLOCK_MONOTONIC time stands for, e.g. of a packet's arrival.
    package func time(ofMonotonic monotonic: UInt64) -> UInt64 { isVirtual ? now : monotonic &- offset }

    private static func read(_ clock: clockid_t) -> UInt64 {
        var time = timespec()
        clock_gettime(clock, &time)
        return UInt64(bitPattern: Int64(time.tv_sec)) &* 1_000_000_000 &+ UInt64(bitPattern: Int64(time.tv_nsec))
    }
}

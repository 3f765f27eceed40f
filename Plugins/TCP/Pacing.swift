import PluginAPI
import PluginKit

/// Pacing: packets leave no faster than a rate, which SO_MAX_PACING_RATE or the congestion control sets. What may go at
/// once is a millisecond's worth, so that large segments stay large.
struct Pacing {
    /// Bytes a second that the application allows; 0: any.
    var limit: UInt64
    /// When the next packet may leave.
    var next: UInt64
    var isWaiting: Bool
    var callout: alps_callout
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Bytes a second; 0: not paced.
    @inline(__always)
    var pacingRate: UInt64 {
        let limit = pointee.pacing.limit
        let wanted = pointee.congestion.pacingRate
        return limit == 0 ? wanted : wanted == 0 ? limit : min(limit, wanted)
    }

    /// The most payload that may leave now; 0: none, and the callout will tell when.
    @inline(never)
    func pacedAmount(_ rate: UInt64) -> Int {
        let now = instance.now
        guard now >= pointee.pacing.next else {
            waitForPacing(pointee.pacing.next)
            return 0
        }
        let mss = UInt64(max(pointee.mss, 1))
        let quantum = max(rate / 1000, 2 &* mss)
        return Int(truncatingIfNeeded: min(quantum - quantum % mss, 1 << 30))
    }

    /// A packet of `count` payload bytes has left.
    @inline(__always)
    func notePaced(_ count: UInt32) {
        let rate = pacingRate
        guard rate != 0 else { return }
        let time = UInt64(count) &* UInt64(ALPS_NSEC_PER_SEC) / rate
        pointee.pacing.next = max(pointee.pacing.next, instance.now) &+ time
    }

    private func waitForPacing(_ deadline: UInt64) {
        guard !pointee.pacing.isWaiting else { return }
        pointee.pacing.isWaiting = true
        let now = instance.now
        instance.services.arm(
            &pointee.pacing.callout, delay: deadline > now ? deadline - now : 0, function: Timer.pacing, argument: self)
    }

    func pacingTimerFired() {
        pointee.pacing.isWaiting = false
        output()
    }

    func stopPacing() {
        pointee.pacing.isWaiting = false
        instance.services.disarm(&pointee.pacing.callout)
    }
}

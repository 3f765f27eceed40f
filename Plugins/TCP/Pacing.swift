import PluginAPI
import PluginKit

/// Pacing: packets leave no faster than a rate, which SO_MAX_PACING_RATE sets. What may go at
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
    var pacingRate: UInt64 { pointee.pacing?.pointee.limit ?? 0 }

    /// Bytes a second, 0: any. False: no memory.
    func setPacing(_ limit: UInt64) -> Bool {
        if pointee.pacing == nil {
            guard limit != 0 else { return true }
            guard let pacing = instance.services.allocate(Pacing.self) else { return false }
            pointee.pacing = pacing
        }
        pointee.pacing?.pointee.limit = limit
        return true
    }

    /// The most payload that may leave now; 0: none, and the callout will tell when.
    @inline(never)
    func pacedAmount(_ rate: UInt64) -> Int {
        let now = instance.now
        if let pacing = pointee.pacing, now < pacing.pointee.next {
            wait(pacing, now)
            return 0
        }
        let mss = UInt64(max(pointee.mss, 1))
        let quantum = max(rate / 1000, 2 &* mss)
        return Int(truncatingIfNeeded: min(quantum - quantum % mss, 1 << 30))
    }

    /// A packet of `count` payload bytes has left.
    @inline(__always)
    func notePaced(_ count: UInt32) {
        guard let pacing = pointee.pacing, pacing.pointee.limit != 0 else { return }
        let time = UInt64(count) &* UInt64(ALPS_NSEC_PER_SEC) / pacing.pointee.limit
        pacing.pointee.next = max(pacing.pointee.next, instance.now) &+ time
    }

    private func wait(_ pacing: UnsafeMutablePointer<Pacing>, _ now: UInt64) {
        guard !pacing.pointee.isWaiting else { return }
        pacing.pointee.isWaiting = true
        instance.services.arm(
            &pacing.pointee.callout, delay: pacing.pointee.next - now, function: Timer.pacing, argument: self)
    }

    func pacingTimerFired() {
        pointee.pacing?.pointee.isWaiting = false
        output()
    }

    func stopPacing() {
        guard let pacing = pointee.pacing else { return }
        pacing.pointee.isWaiting = false
        instance.services.disarm(&pacing.pointee.callout)
    }
}

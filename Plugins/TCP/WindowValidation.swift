import PluginAPI
import PluginKit

/// Congestion window validation (RFC 7661): how much of cwnd the path is known to carry, for applications that send in
/// bursts. A window that is not used is kept for a while and not opened further.
struct WindowValidation {
    /// When the window was last in use: the end of the last validated phase.
    var validAt: UInt64
    /// Bytes acknowledged in the round trip under way, which began at `since`.
    var since: UInt64
    /// When this period began.
    var period: UInt64
    var acked: UInt32
    /// The most acknowledged in one round trip, in this period and in the one before; `hasSample`: there is one.
    var most: UInt32
    var mostBefore: UInt32
    var hasSample: Bool

    /// Section 4.3: how long a window that is not used may be kept.
    static var keepTime: UInt64 { 300 * UInt64(ALPS_NSEC_PER_SEC) }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// RFC 7661, 3: pipeACK, bytes.
    var pipeAck: UInt32 { max(pointee.validation.most, pointee.validation.mostBefore) }

    /// `count` bytes have been acknowledged.
    @inline(__always)
    func validate(_ count: UInt32) {
        let now = instance.now
        pointee.validation.acked &+= count
        if now &- pointee.validation.since >= pointee.roundTrip.srtt { sampleValidation(now) }
        // Section 4.2: validated while at least half of the window is in use; until the first sample it counts as so.
        if pointee.congestion.isWindowLimited || !pointee.validation.hasSample || 2 &* pipeAck >= pointee.congestion.cwnd {
            pointee.validation.validAt = now
        }
    }

    private func sampleValidation(_ now: UInt64) {
        let sample = pointee.validation.acked
        pointee.validation.acked = 0
        pointee.validation.since = now
        pointee.validation.hasSample = true
        let period = max(3 &* pointee.roundTrip.srtt, UInt64(ALPS_NSEC_PER_SEC))
        if now &- pointee.validation.period >= period {
            pointee.validation.mostBefore = pointee.validation.most
            pointee.validation.most = sample
            pointee.validation.period = now
        } else if sample > pointee.validation.most {
            pointee.validation.most = sample
        }
    }

    /// Before a flight after silence: section 4.3 here, or the restart of RFC 5681, 4.1.
    func considerIdleTime(initialWindow: UInt32) {
        let now = instance.now
        guard instance.isOn(.windowValidation) else {
            // Before the first segment there is nothing to start again.
            if pointee.lastSent != 0, now &- pointee.lastSent > pointee.roundTrip.rto {
                pointee.congestion.restartAfterIdle(initialWindow: initialWindow)
            }
            return
        }
        guard now &- pointee.validation.validAt > WindowValidation.keepTime, pointee.validation.validAt != 0 else { return }
        pointee.validation.validAt = now
        pointee.congestion.giveUpUnused(initialWindow: initialWindow)
    }
}

extension Congestion {
    /// RFC 7661, 4.3: the window was not used for too long.
    mutating func giveUpUnused(initialWindow: UInt32) {
        ssthresh = max(ssthresh == Congestion.unlimited ? 0 : ssthresh, cwnd / 4 &* 3)
        cwnd = max(cwnd / 2, min(initialWindow, cwnd))
    }
}

import PluginAPI
import PluginKit

/// Packetization layer path MTU discovery (RFC 4821): for paths that lose what is too big and say nothing.
///
/// Sizes are of payload with options, as `Connection.mss` before options are subtracted.
struct PathMTUProbe {
    /// Segments are no larger than this; 0: the path is believed to be as its MTU says.
    var limit: UInt32
    /// The smallest size that is known, or believed, not to get through.
    var tooBig: UInt32
    /// What MTU, peer and application would let us use.
    var full: UInt32
    /// The probe in flight; 0: none.
    var size: UInt32
    var failures: UInt32
    /// No probe before this.
    var next: UInt64
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Sizes no further apart than this are as good as equal.
    private var resolution: UInt32 { 32 }

    /// RFC 4821, 7.7: full segments that time out again and again while the path may be a black hole. The size goes down
    /// to one that every path takes, and is searched for upwards from there.
    func considerBlackHole() {
        let instance = instance
        guard instance.isOn(.blackHoleDetection), pointee.attempts >= 3, netpcb.pointee.flags & UInt8(ALPS_NETPCB_DF) != 0,
            let first = pointee.sendMap.first
        else { return }
        let base = UInt32(truncatingIfNeeded: instance.setting(.baseMSS))
        let overhead = has(.timestamps) ? Options.timestampLength : 0
        // What has been sent, which may be less than a full segment and still too large.
        let present = min(first.pointee.length, pointee.mss) &+ overhead
        guard present > base else { return }
        instance.count(.blackHoles)
        pointee.pathProbe.limit = base
        pointee.pathProbe.tooBig = present
        pointee.pathProbe.size = 0
        pointee.pathProbe.failures = 0
        pointee.pathProbe.next = instance.now
        refreshMSS()
        // The loss window is one segment, of the size that they have now (RFC 5681, 3.1).
        pointee.congestion.cwnd = min(pointee.congestion.cwnd, pointee.mss)
    }

    /// The payload of a probe to be sent now; nil: none.
    var dueSizeProbe: UInt32? {
        guard pointee.pathProbe.limit != 0, pointee.pathProbe.size == 0, pointee.recovery.state == .open,
            pointee.sendMap.waiting.first == nil, instance.now >= pointee.pathProbe.next
        else { return nil }
        let low = pointee.pathProbe.limit
        if pointee.pathProbe.tooBig <= low &+ resolution {
            // RFC 4821, 7.7: the path may have become better since.
            guard instance.now >= pointee.pathProbe.next &+ 600 * UInt64(ALPS_NSEC_PER_SEC) else { return nil }
            pointee.pathProbe.tooBig = pointee.pathProbe.full &+ 1
        }
        let high = min(pointee.pathProbe.tooBig, pointee.pathProbe.full &+ 1)
        guard high > low &+ resolution else { return nil }
        let size = low &+ (high &- low) / 2
        let overhead = has(.timestamps) ? Options.timestampLength : 0
        return size &- overhead
    }

    func noteSizeProbe(_ range: RangePointer) {
        instance.count(.sizeProbes)
        range.pointee.flags.insert(.sizeProbe)
        let payload = range.pointee.length
        pointee.pathProbe.size = payload &+ (has(.timestamps) ? Options.timestampLength : 0)
    }

    /// RFC 4821, 7.6.1: the path takes this size.
    func sizeProbeArrived(_ range: RangePointer) {
        range.pointee.flags.remove(.sizeProbe)
        guard pointee.pathProbe.size != 0 else { return }
        pointee.pathProbe.limit = max(pointee.pathProbe.limit, pointee.pathProbe.size)
        pointee.pathProbe.size = 0
        pointee.pathProbe.failures = 0
        instance.count(.sizeProbesArrived)
        refreshMSS()
    }

    /// RFC 4821, 7.6.2: alone lost, so it was too big. It goes out again in smaller segments, and no window comes down.
    func sizeProbeLost(_ range: RangePointer) {
        range.pointee.flags.remove(.sizeProbe)
        guard pointee.pathProbe.size != 0 else { return }
        pointee.pathProbe.failures += 1
        if pointee.pathProbe.failures >= 2 {
            // Twice is no accident.
            pointee.pathProbe.tooBig = pointee.pathProbe.size
            pointee.pathProbe.failures = 0
        }
        pointee.pathProbe.size = 0
        pointee.pathProbe.next = instance.now &+ 5 &* pointee.roundTrip.rto
    }
}

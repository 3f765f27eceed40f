import PluginAPI
import PluginKit

/// Packetization layer path MTU discovery (RFC 4821): for paths that lose what is too big and say nothing.
///
/// Sizes are of payload with options, as `Connection.mss` before options are subtracted.
struct PathMTUProbe {
    /// Segments are no larger than this.
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
    /// The path is believed to be as its MTU says.
    func endPathProbe() {
        instance.services.freeIfPresent(pointee.pathProbe)
        pointee.pathProbe = nil
    }

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
        if pointee.pathProbe == nil { pointee.pathProbe = instance.services.allocate(PathMTUProbe.self) }
        pointee.pathProbe?.pointee = PathMTUProbe(
            limit: base, tooBig: present, full: 0, size: 0, failures: 0, next: instance.now)
        refreshMSS()
        // The loss window is one segment, of the size that they have now (RFC 5681, 3.1).
        pointee.congestion.cwnd = min(pointee.congestion.cwnd, pointee.mss)
    }

    /// The payload of a probe to be sent now; nil: none.
    var dueSizeProbe: UInt32? {
        guard let probe = pointee.pathProbe, probe.pointee.size == 0, pointee.recovery.state == .open,
            pointee.sendMap.waiting.first == nil, instance.now >= probe.pointee.next
        else { return nil }
        let low = probe.pointee.limit
        if probe.pointee.tooBig <= low &+ resolution {
            // RFC 4821, 7.7: the path may have become better since.
            guard instance.now >= probe.pointee.next &+ 600 * UInt64(ALPS_NSEC_PER_SEC) else { return nil }
            probe.pointee.tooBig = probe.pointee.full &+ 1
        }
        let high = min(probe.pointee.tooBig, probe.pointee.full &+ 1)
        guard high > low &+ resolution else { return nil }
        let size = low &+ (high &- low) / 2
        let overhead = has(.timestamps) ? Options.timestampLength : 0
        return size &- overhead
    }

    func noteSizeProbe(_ range: RangePointer) {
        instance.count(.sizeProbes)
        range.pointee.flags.insert(.sizeProbe)
        let payload = range.pointee.length
        pointee.pathProbe?.pointee.size = payload &+ (has(.timestamps) ? Options.timestampLength : 0)
    }

    /// RFC 4821, 7.6.1: the path takes this size.
    func sizeProbeArrived(_ range: RangePointer) {
        range.pointee.flags.remove(.sizeProbe)
        guard let probe = pointee.pathProbe, probe.pointee.size != 0 else { return }
        probe.pointee.limit = max(probe.pointee.limit, probe.pointee.size)
        probe.pointee.size = 0
        probe.pointee.failures = 0
        instance.count(.sizeProbesArrived)
        refreshMSS()
    }

    /// RFC 4821, 7.6.2: alone lost, so it was too big. It goes out again in smaller segments, and no window comes down.
    func sizeProbeLost(_ range: RangePointer) {
        range.pointee.flags.remove(.sizeProbe)
        guard let probe = pointee.pathProbe, probe.pointee.size != 0 else { return }
        probe.pointee.failures += 1
        if probe.pointee.failures >= 2 {
            // Twice is no accident.
            probe.pointee.tooBig = probe.pointee.size
            probe.pointee.failures = 0
        }
        probe.pointee.size = 0
        probe.pointee.next = instance.now &+ 5 &* pointee.roundTrip.rto
    }
}

/// Congestion control as the rest of TCP sees it: events go in, `cwnd` and `ssthresh` come out. Bytes and nanoseconds.
///
/// The events are those of RFC 5681 and 6582. `algorithm` chooses who answers them; a further algorithm is one more
/// case here and one more file, with its own state in `privateState`.
struct Congestion {
    /// Congestion window.
    var cwnd: UInt32
    /// Slow-start threshold.
    var ssthresh: UInt32
    var algorithm: CongestionAlgorithm
    /// The sender stopped at `cwnd` in the round trip under way; a window that is not used is not opened further
    /// (RFC 7661, RFC 9293 by way of RFC 5681).
    var isWindowLimited: Bool
    /// Memory of the algorithm's own.
    var privateState: [32 of UInt64]

    static var unlimited: UInt32 { 0x3fff_ffff }
}

enum CongestionAlgorithm: UInt8 {
    case newReno = 0

    var name: StaticString {
        switch self {
        case .newReno: return "newreno"
        }
    }
}

/// What one acknowledgment tells.
struct AcknowledgmentSample {
    /// Bytes newly acknowledged.
    var acked: UInt32
    var mss: UInt32
    var now: UInt64
    /// Latest round-trip time, 0 if this acknowledgment measured none.
    var roundTrip: UInt64
}

extension Congestion {
    /// A connection has been established; the first flight is RFC 6928's.
    mutating func begin(mss: UInt32, initialSegments: UInt32, isSynLost: Bool) {
        // RFC 5681, 3.1: after a lost SYN the window starts with one segment.
        cwnd = isSynLost ? mss : Congestion.initialWindow(mss: mss, segments: initialSegments)
        ssthresh = Congestion.unlimited
        isWindowLimited = false
        switch algorithm {
        case .newReno: newRenoBegin()
        }
    }

    /// RFC 6928: min(10 * MSS, max(2 * MSS, 14600)), for 10 segments.
    static func initialWindow(mss: UInt32, segments: UInt32) -> UInt32 {
        min(segments &* mss, max(2 &* mss, segments &* 1460))
    }

    /// New data acknowledged outside of recovery.
    @inline(__always)
    mutating func acknowledged(_ sample: AcknowledgmentSample) {
        switch algorithm {
        case .newReno: newRenoAcknowledged(sample)
        }
    }

    /// Loss was inferred from duplicate acknowledgments.
    mutating func enterRecovery(flight: UInt32, mss: UInt32) {
        switch algorithm {
        case .newReno: newRenoEnterRecovery(flight: flight, mss: mss)
        }
    }

    /// A further duplicate in recovery: a segment has left the network.
    mutating func inflate(mss: UInt32) {
        switch algorithm {
        case .newReno: newRenoInflate(mss: mss)
        }
    }

    /// Part of what was in flight at the start of recovery is acknowledged.
    mutating func partiallyAcknowledged(_ acked: UInt32, mss: UInt32) {
        switch algorithm {
        case .newReno: newRenoPartiallyAcknowledged(acked, mss: mss)
        }
    }

    /// All of it is.
    mutating func exitRecovery(flight: UInt32, mss: UInt32) {
        switch algorithm {
        case .newReno: newRenoExitRecovery(flight: flight, mss: mss)
        }
    }

    /// The retransmission timer fired; `isFirst` unless it already had for the same data.
    mutating func timedOut(flight: UInt32, mss: UInt32, isFirst: Bool) {
        switch algorithm {
        case .newReno: newRenoTimedOut(flight: flight, mss: mss, isFirst: isFirst)
        }
    }

    /// Nothing was sent for longer than an RTO (RFC 5681, 4.1).
    mutating func restartAfterIdle(initialWindow: UInt32) {
        if cwnd > initialWindow { cwnd = initialWindow }
    }

    @inline(__always)
    var isSlowStart: Bool { cwnd < ssthresh }
}

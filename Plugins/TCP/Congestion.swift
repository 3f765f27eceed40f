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
    /// The most that was in flight in that round trip, bytes.
    var mostInFlight: UInt32
    /// Memory of the algorithm's own.
    var privateState: [7 of UInt64]

    static var unlimited: UInt32 { 0x3fff_ffff }
}

enum CongestionAlgorithm: UInt8 {
    case newReno = 0
    case cubic = 1

    var name: StaticString {
        switch self {
        case .newReno: return "newreno"
        case .cubic: return "cubic"
        }
    }
}

/// What one acknowledgment tells.
struct AcknowledgmentSample {
    /// Bytes newly acknowledged.
    var acked: UInt32
    var mss: UInt32
    var now: UInt64
    /// Smoothed round-trip time.
    var roundTrip: UInt64
}

extension Congestion {
    /// A connection has been established; the first flight is RFC 6928's.
    mutating func begin(mss: UInt32, initialSegments: UInt32, isSynLost: Bool) {
        // RFC 5681, 3.1: after a lost SYN the window starts with one segment.
        cwnd = isSynLost ? mss : Congestion.initialWindow(mss: mss, segments: initialSegments)
        ssthresh = Congestion.unlimited
        isWindowLimited = false
        mostInFlight = 0
        switch algorithm {
        case .newReno: newRenoBegin()
        case .cubic: cubicBegin()
        }
    }

    /// Another algorithm from here on; the window stays.
    mutating func choose(_ algorithm: CongestionAlgorithm) {
        guard algorithm != self.algorithm else { return }
        self.algorithm = algorithm
        switch algorithm {
        case .newReno: newRenoBegin()
        case .cubic: cubicBegin()
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
        case .cubic: cubicAcknowledged(sample)
        }
    }

    /// Loss or a mark: the threshold comes down; cwnd follows as RFC 9937 lets it.
    mutating func reduce(flight: UInt32, mss: UInt32) {
        switch algorithm {
        case .newReno: newRenoReduce(flight: flight, mss: mss)
        case .cubic: cubicReduce(flight: flight, mss: mss)
        }
    }

    /// Recovery is over.
    mutating func exitRecovery(mss: UInt32) { cwnd = max(ssthresh, mss) }

    /// The retransmission timer fired: RFC 5681, 3.1, the loss window is one segment.
    mutating func timedOut(mss: UInt32) {
        cwnd = mss
    }

    /// The reduction was for nothing (RFC 4015, 3.3).
    mutating func undo(cwnd priorWindow: UInt32, ssthresh priorThreshold: UInt32) {
        cwnd = max(cwnd, priorWindow)
        ssthresh = max(ssthresh, priorThreshold)
    }

    /// Nothing was sent for longer than an RTO (RFC 5681, 4.1).
    mutating func restartAfterIdle(initialWindow: UInt32) {
        if cwnd > initialWindow { cwnd = initialWindow }
    }

    /// Whether the window is what holds the sender back. In slow start more than half of it in use will do: what is
    /// acknowledged would double it.
    @inline(__always)
    var isInUse: Bool { isWindowLimited || (isSlowStart && cwnd < 2 &* mostInFlight) }

    @inline(__always)
    var isSlowStart: Bool { cwnd < ssthresh }
}

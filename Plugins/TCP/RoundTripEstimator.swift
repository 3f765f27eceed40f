/// Round-trip time and retransmission time-out (RFC 6298), in nanoseconds.
struct RoundTripEstimator {
    /// Smoothed round-trip time; 0 until the first sample.
    var srtt: UInt64
    var rttvar: UInt64
    /// Smallest time seen in the last five minutes; 0 until the first.
    var minimum: UInt64
    private var minimumAt: UInt64
    /// RTO before backoff.
    var rto: UInt64

    init(initialRTO: UInt64) {
        srtt = 0
        rttvar = 0
        minimum = 0
        minimumAt = 0
        rto = initialRTO
    }

    /// RFC 6298, section 2: alpha 1/8, beta 1/4, K 4; G is `granularity`, also for more than the clock's.
    @inline(__always)
    mutating func add(_ sample: UInt64, floor: UInt64, ceiling: UInt64, granularity: UInt64) {
        let sample = max(sample, 1)
        if srtt == 0 {
            srtt = sample
            rttvar = sample / 2
        } else {
            let error = srtt > sample ? srtt - sample : sample - srtt
            rttvar = rttvar - rttvar / 4 + error / 4
            srtt = max(1, srtt - srtt / 8 + sample / 8)
        }
        rto = min(max(srtt &+ max(granularity, 4 &* rttvar), floor), ceiling)
    }

    /// A path may get longer: old minima lapse (RFC 8985, 6.2 step 1).
    @inline(__always)
    mutating func note(_ sample: UInt64, at now: UInt64) {
        guard minimum == 0 || sample <= minimum || now &- minimumAt > 300 * 1_000_000_000 else { return }
        minimum = max(sample, 1)
        minimumAt = now
    }
}

/// Round-trip time and retransmission time-out (RFC 6298), in nanoseconds.
struct RoundTripEstimator {
    /// Smoothed round-trip time; 0 until the first sample.
    var srtt: UInt64
    var rttvar: UInt64
    /// Smallest sample seen; 0 until the first.
    var minimum: UInt64
    /// RTO before backoff.
    var rto: UInt64

    init(initialRTO: UInt64) {
        srtt = 0
        rttvar = 0
        minimum = 0
        rto = initialRTO
    }

    /// RFC 6298, section 2: alpha 1/8, beta 1/4, K 4; G is `granularity`.
    @inline(__always)
    mutating func add(_ sample: UInt64, floor: UInt64, ceiling: UInt64, granularity: UInt64) {
        let sample = max(sample, 1)
        if srtt == 0 {
            srtt = sample
            rttvar = sample / 2
            minimum = sample
        } else {
            let error = srtt > sample ? srtt - sample : sample - srtt
            rttvar = rttvar - rttvar / 4 + error / 4
            srtt = max(1, srtt - srtt / 8 + sample / 8)
            if sample < minimum { minimum = sample }
        }
        rto = min(max(srtt &+ max(granularity, 4 &* rttvar), floor), ceiling)
    }
}

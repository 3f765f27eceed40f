/// NewReno (RFC 5681), with byte counting after RFC 3465.
///
/// `privateState[0]`: bytes acknowledged since the window last grew in congestion avoidance.
extension Congestion {
    mutating func newRenoBegin() { privateState[0] = 0 }

    @inline(__always)
    mutating func newRenoAcknowledged(_ sample: AcknowledgmentSample) {
        // A window that was not filled says nothing about the path.
        guard isInUse else { return }
        if isSlowStart {
            // RFC 3465 with L = 2 assumes a delayed acknowledgment for two segments; receivers that join segments
            // acknowledge more at once, so all that is acknowledged counts, up to the threshold.
            let room = ssthresh - cwnd
            cwnd &+= min(sample.acked, room)
        } else {
            // RFC 5681, 3.1: one segment for each window acknowledged.
            privateState[0] &+= UInt64(sample.acked)
            if privateState[0] >= UInt64(cwnd) {
                privateState[0] -= UInt64(cwnd)
                cwnd &+= sample.mss
            }
        }
        cwnd = min(cwnd, Congestion.unlimited)
    }

    /// RFC 5681, equation 4.
    mutating func newRenoReduce(flight: UInt32, mss: UInt32) {
        ssthresh = max(min(flight, cwnd) / 2, 2 &* mss)
        privateState[0] = 0
    }
}

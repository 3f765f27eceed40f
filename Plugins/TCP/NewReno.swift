/// NewReno (RFC 5681 with the recovery of RFC 6582), with byte counting after RFC 3465.
///
/// `privateState[0]`: bytes acknowledged since the window last grew in congestion avoidance.
extension Congestion {
    mutating func newRenoBegin() { privateState[0] = 0 }

    @inline(__always)
    mutating func newRenoAcknowledged(_ sample: AcknowledgmentSample) {
        // A window that was not filled says nothing about the path.
        guard isWindowLimited else { return }
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
    private mutating func lowerThreshold(flight: UInt32, mss: UInt32) {
        ssthresh = max(flight / 2, 2 &* mss)
        privateState[0] = 0
    }

    /// RFC 6582, 3.2 step 2; RFC 5681, 3.2 steps 2 and 3.
    mutating func newRenoEnterRecovery(flight: UInt32, mss: UInt32) {
        lowerThreshold(flight: min(flight, cwnd), mss: mss)
        cwnd = ssthresh &+ 3 &* mss
    }

    mutating func newRenoInflate(mss: UInt32) { cwnd = min(cwnd &+ mss, Congestion.unlimited) }

    /// RFC 6582, 3.2 step 3, partial acknowledgment: deflate by what left, add one for what is sent.
    mutating func newRenoPartiallyAcknowledged(_ acked: UInt32, mss: UInt32) {
        cwnd = cwnd > acked ? cwnd - acked : 0
        if acked >= mss { cwnd &+= mss }
        if cwnd < mss { cwnd = mss }
    }

    /// RFC 6582, 3.2 step 3, full acknowledgment, choice (1): no burst.
    mutating func newRenoExitRecovery(flight: UInt32, mss: UInt32) {
        cwnd = min(ssthresh, max(flight, mss) &+ mss)
    }

    /// RFC 5681, 3.1: the loss window is one segment; a repeated time-out does not lower the threshold again.
    mutating func newRenoTimedOut(flight: UInt32, mss: UInt32, isFirst: Bool) {
        if isFirst { lowerThreshold(flight: min(flight, cwnd), mss: mss) }
        cwnd = mss
    }
}

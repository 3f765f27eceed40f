/// CUBIC (RFC 9438): the window as a cubic function of the time since the last reduction, never slower than NewReno would
/// be. Slow start is NewReno's.
///
/// Fractions are kept as bytes in `Double`s, in `privateState` by their bits.
extension Congestion {
    /// C of RFC 9438, in segments per second cubed, and beta.
    private static var scale: Double { 0.4 }
    private static var beta: Double { 0.7 }

    private func value(_ place: Int) -> Double { Double(bitPattern: privateState[place]) }
    private mutating func set(_ place: Int, _ value: Double) { privateState[place] = value.bitPattern }

    /// W_max, bytes; 0: no reduction yet.
    private var mostBefore: Double {
        get { value(0) }
        set { set(0, newValue) }
    }
    /// Beginning of the congestion avoidance under way; 0: it has not begun.
    private var epoch: UInt64 {
        get { privateState[1] }
        set { privateState[1] = newValue }
    }
    /// K, seconds.
    private var plateau: Double {
        get { value(2) }
        set { set(2, newValue) }
    }
    /// W_est, bytes: NewReno's window since the reduction.
    private var friendly: Double {
        get { value(3) }
        set { set(3, newValue) }
    }
    /// Window before the reduction, bytes.
    private var prior: Double {
        get { value(4) }
        set { set(4, newValue) }
    }
    /// Part of a byte by which the window is due to grow.
    private var credit: Double {
        get { value(5) }
        set { set(5, newValue) }
    }
    /// When the window was last in use.
    private var usedAt: UInt64 {
        get { privateState[6] }
        set { privateState[6] = newValue }
    }

    mutating func cubicBegin() {
        var place = 0
        while place < 7 {
            privateState[place] = 0
            place += 1
        }
    }

    mutating func cubicAcknowledged(_ sample: AcknowledgmentSample) {
        guard isInUse else { return }
        var acked = sample.acked
        if isSlowStart {
            let step = min(acked, ssthresh - cwnd)
            cwnd = min(cwnd &+ step, Congestion.unlimited)
            acked -= step
        }
        guard acked > 0, !isSlowStart else { return }
        let mss = Double(sample.mss)
        if epoch == 0 { beginEpoch(sample.now, mss) }
        // Section 5.8: time in which the window was not used does not count.
        if usedAt != 0, sample.now &- usedAt > max(sample.roundTrip, 1) &* 2 {
            epoch = min(epoch &+ (sample.now &- usedAt), sample.now)
        }
        usedAt = sample.now
        let window = Double(cwnd)
        let time = seconds(sample.now &- epoch)
        // Section 4.3: alpha until NewReno would be where we were, one segment a round trip from there on.
        let alpha = friendly < prior ? 3 * (1 - Congestion.beta) / (1 + Congestion.beta) : 1
        friendly += alpha * mss * Double(acked) / window
        var growth: Double
        if cubic(time, mss) < friendly {
            growth = max(friendly - window, 0)
        } else {
            // Section 4.2: where the function will be a round trip from now, at most half as much again.
            let target = min(max(cubic(time + seconds(sample.roundTrip), mss), window), 1.5 * window)
            growth = (target - window) * Double(acked) / window
        }
        growth += credit
        let bytes = min(growth, Double(acked))
        credit = bytes < growth ? 0 : bytes - Double(UInt32(bytes))
        cwnd = min(cwnd &+ UInt32(bytes), Congestion.unlimited)
    }

    private mutating func beginEpoch(_ now: UInt64, _ mss: Double) {
        let window = Double(cwnd)
        epoch = max(now, 1)
        usedAt = now
        credit = 0
        friendly = window
        if mostBefore <= window {
            mostBefore = window
            plateau = 0
        } else {
            plateau = cubeRoot((mostBefore - window) / mss / Congestion.scale)
        }
        if prior == 0 { prior = window }
    }

    /// W_cubic, bytes.
    private func cubic(_ time: Double, _ mss: Double) -> Double {
        let distance = time - plateau
        return Congestion.scale * distance * distance * distance * mss + mostBefore
    }

    private func seconds(_ time: UInt64) -> Double { Double(time) / 1_000_000_000 }

    /// By Newton's method; `value` is not negative.
    private func cubeRoot(_ value: Double) -> Double {
        guard value > 0 else { return 0 }
        var root = max(value / 3, 1)
        var turn = 0
        while turn < 60 {
            let next = (2 * root + value / (root * root)) / 3
            if next >= root * 0.999_999_999, next <= root * 1.000_000_001 { return next }
            root = next
            turn += 1
        }
        return root
    }

    /// Section 4.6, with fast convergence (4.7).
    mutating func cubicReduce(flight: UInt32, mss: UInt32) {
        let window = Double(min(flight, cwnd))
        prior = Double(cwnd)
        mostBefore = window < mostBefore ? window * (1 + Congestion.beta) / 2 : window
        ssthresh = max(UInt32(window * Congestion.beta), 2 &* mss)
        epoch = 0
    }
}

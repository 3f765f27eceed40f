/// What has come of one seed.
package struct TortureReport: Codable, Sendable {
    package var seed: UInt64
    /// Empty: all invariants held.
    package var failures: [String] = []
    /// Of the packets on the wire, their times and senders: the same seed gives the same hash.
    package var trace: UInt64 = 0
    package var packets: UInt64 = 0
    package var turns: UInt64 = 0
    /// Bytes that applications have received.
    package var bytes: UInt64 = 0
    package var connections = 0
    /// Virtual time.
    package var seconds = 0.0

    package init(seed: UInt64) { self.seed = seed }

    package init(seed: UInt64, failure: String) {
        self.seed = seed
        failures = [failure]
    }

    package var hasPassed: Bool { failures.isEmpty }
}

import Kernel
import Lab
import PluginAPI
import Testing

/// The torture bed: that seeds pass, that a seed is a run, and that what goes wrong is found.
@Suite struct TortureTests {
    @Test func aSeedIsARun() throws {
        for seed in [3, 6, 1000] as [UInt64] {
            var lines: [[String]] = [[], []]
            let first = try TortureRun.run(seed: seed) { lines[0].append($0) }
            let second = try TortureRun.run(seed: seed) { lines[1].append($0) }
            #expect(first.packets > 0)
            #expect(first.trace == second.trace)
            #expect(first.turns == second.turns)
            #expect(lines[0] == lines[1])
        }
        #expect(try TortureRun.run(seed: 3).trace != TortureRun.run(seed: 4).trace)
    }

    @Test func someDozenSeedsPass() throws {
        let images = PluginImages()
        for seed in 1...60 as ClosedRange<UInt64> {
            #expect(try TortureRun.run(seed: seed, images: images).failures == [], "seed \(seed)")
        }
    }

    // MARK: Faults made on purpose

    /// What is found in the first seeds in which the fault can happen at all.
    private func failures(_ sabotage: TortureRun.Sabotage) throws -> [String] {
        try (1...10 as ClosedRange<UInt64>).flatMap { try TortureRun.run(seed: $0, sabotage: sabotage).failures }
    }

    @Test func aByteThatTheWireChangesBehindTheChecksumIsFound() throws {
        #expect(try failures(.flippedByte).contains { $0.contains("of the stream is wrong") })
    }

    @Test func aLastByteThatIsMissingIsFound() throws {
        #expect(try failures(.lostLastByte).contains { $0.contains("end of stream after") })
    }

    @Test func aSocketThatIsNeverClosedIsFound() throws {
        #expect(try failures(.forgottenSocket).contains { $0.contains("sockets are left") })
    }

    @Test func aBufferThatIsNotGivenBackIsFound() throws {
        #expect(try failures(.lostBuffer).contains { $0.contains("mbufs are left") })
    }
}

/// The bounds of a sender, with senders that break them.
@Suite struct SenderFlowTests {
    /// A wire with a client (10.0.0.1, first number 999) whose server (first number 4999) has accepted it, at 1000 ms.
    private final class Sender {
        let flow: SenderFlow
        private final class Faults { var list: [String] = [] }
        private let log = Faults()
        var faults: [String] { log.list }

        init(_ change: (inout SenderFlow.Settings) -> Void = { _ in }) {
            var settings = SenderFlow.Settings()
            change(&settings)
            let log = log
            flow = SenderFlow("sender", settings, initialSequence: 999) { log.list.append($0) }
            flow.emitted(Self.segment(999, flags: .syn, options: [2, 4, 5, 180]), at: 990 * ms)
            flow.arrived(Self.answer(1000, sequence: 4999, flags: [.syn, .ack], options: [2, 4, 5, 180]), at: 1000 * ms)
        }

        /// The wire's form, so that reading it is tested as well.
        private static func segment(
            _ sequence: UInt32, length: Int = 0, acknowledgment: UInt32 = 0, window: UInt16 = 65535,
            flags: WireSegment.Flags, options: [UInt8] = [], isAnswer: Bool = false
        ) -> WireSegment {
            let ports = isAnswer ? big(UInt16(80)) + big(UInt16(2000)) : big(UInt16(2000)) + big(UInt16(80))
            let addresses: [UInt8] = isAnswer ? [10, 0, 0, 2, 10, 0, 0, 1] : [10, 0, 0, 1, 10, 0, 0, 2]
            let total = 40 + options.count + length
            let packet =
                [0x45, 0] + big(UInt16(total)) + [0, 0, 0, 0, 64, 6, 0, 0] + addresses + ports + big(sequence)
                + big(acknowledgment) + [UInt8(5 + options.count / 4) << 4, flags.rawValue] + big(window)
                + [0, 0, 0, 0] + options
            return packet.withUnsafeBytes { WireSegment(ip: $0, total: total)! }
        }

        private static func answer(
            _ ack: UInt32, sequence: UInt32 = 5000, window: UInt16 = 65535, flags: WireSegment.Flags = .ack,
            options: [UInt8] = []
        ) -> WireSegment {
            segment(sequence, acknowledgment: ack, window: window, flags: flags, options: options, isAnswer: true)
        }

        func send(_ from: UInt32, _ length: Int, at time: UInt64, isTimeout: Bool = false, ack: UInt32 = 5000, window: UInt16 = 65535)
        {
            flow.emitted(
                Self.segment(from, length: length, acknowledgment: ack, window: window, flags: .ack), at: time * ms,
                isTimeout: isTimeout)
        }

        func reset(_ from: UInt32, at time: UInt64) {
            flow.emitted(Self.segment(from, acknowledgment: 5000, window: 0, flags: [.rst, .ack]), at: time * ms)
        }

        func ack(_ number: UInt32, window: UInt16 = 65535, at time: UInt64) {
            flow.arrived(Self.answer(number, window: window), at: time * ms)
        }
    }

    @Test func aSenderThatKeepsToTheRulesHasNoFaults() {
        let sender = Sender()
        for index in 0..<10 { sender.send(1000 + 1460 * UInt32(index), 1460, at: 1000) }
        sender.ack(1000 + 2920, at: 1050)
        for index in 10..<14 { sender.send(1000 + 1460 * UInt32(index), 1460, at: 1050) }
        sender.send(3920, 1460, at: 1300, isTimeout: true)
        sender.send(3920, 1460, at: 1800, isTimeout: true)
        sender.send(3920, 1460, at: 2800, isTimeout: true)
        #expect(sender.faults == [])
    }

    @Test func dataBeyondThePeersWindowAreFound() {
        let small = Sender { $0.initialWindowSegments = 100 }
        // The window of SYN, ACK is 65535: one octet beyond it is a probe, two are not.
        for index in 0..<44 { small.send(1000 + 1460 * UInt32(index), 1460, at: 1000) }
        small.send(1000 + 44 * 1460, 1296, at: 1000)
        #expect(small.faults == [])
        small.send(1000 + 44 * 1460 + 1296, 1, at: 1000)
        #expect(small.faults.count == 1)
        #expect(small.faults[0].contains("2 beyond the peer's window"))
    }

    @Test func anInitialWindowThatIsTooLargeIsFound() {
        let sender = Sender { $0.initialWindowSegments = 2 }
        for index in 0..<2 { sender.send(1000 + 1460 * UInt32(index), 1460, at: 1000) }
        // One more, as a tail loss probe.
        sender.flow.grantProbe()
        sender.send(1000 + 2 * 1460, 1460, at: 1000)
        #expect(sender.faults == [])
        sender.send(1000 + 3 * 1460, 1460, at: 1000)
        #expect(sender.faults.contains { $0.contains("in flight, slow start allows 2920") })
    }

    @Test func aWindowThatGrowsFasterThanSlowStartIsFound() {
        let sender = Sender { $0.initialWindowSegments = 4 }
        for index in 0..<4 { sender.send(1000 + 1460 * UInt32(index), 1460, at: 1000) }
        sender.ack(1000 + 1460, at: 1050)
        // Two for one.
        for index in 4..<6 { sender.send(1000 + 1460 * UInt32(index), 1460, at: 1050) }
        #expect(sender.faults == [])
        sender.send(1000 + 6 * 1460, 1460, at: 1050)
        #expect(sender.faults.contains { $0.contains("the acknowledgments so far allow 8760") })
    }

    @Test func aTimeOutThatComesTooEarlyIsFound() {
        let sender = Sender()
        sender.send(1000, 100, at: 1000)
        sender.send(1000, 100, at: 1199, isTimeout: true)
        #expect(sender.faults.count == 1)
        #expect(sender.faults[0].contains("minimum"))
    }

    @Test func timeOutsWithoutBackOffAreFound() {
        let sender = Sender()
        sender.send(1000, 100, at: 1000)
        sender.send(1000, 100, at: 1200, isTimeout: true)
        sender.send(1000, 100, at: 1600, isTimeout: true)
        #expect(sender.faults == [])
        sender.send(1000, 100, at: 2000, isTimeout: true)
        #expect(sender.faults.contains { $0.contains("no back-off") })
    }

    @Test func aBackOffThatEndsWithoutAMeasurementIsFound() {
        func run(measures: Bool) -> [String] {
            let sender = Sender()
            sender.send(1000, 100, at: 1000)
            sender.send(1000, 100, at: 1200, isTimeout: true)
            sender.ack(1100, at: 1250)
            sender.send(1100, 100, at: 1250)
            if measures {
                sender.ack(1200, at: 1260)
                sender.send(1200, 100, at: 1260)
            }
            sender.send(measures ? 1200 : 1100, 100, at: 1460, isTimeout: true)
            return sender.faults
        }
        #expect(run(measures: true) == [])
        #expect(run(measures: false).contains { $0.contains("nothing has been measured since") })
    }

    @Test func aBurstAfterATimeOutIsFound() {
        let sender = Sender()
        for index in 0..<4 { sender.send(1000 + 1460 * UInt32(index), 1460, at: 1000) }
        sender.send(1000, 1460, at: 1200, isTimeout: true)
        #expect(sender.faults == [])
        sender.send(2460, 1460, at: 1200)
        #expect(sender.faults.contains { $0.contains("after a time-out and before any answer") })
    }

    @Test func silenceWithDataInFlightIsFound() {
        let sender = Sender { $0.longestTimeout = 2_000_000_000 }
        sender.send(1000, 100, at: 1000)
        sender.flow.finish(at: 3000 * ms)
        #expect(sender.faults == [])
        sender.flow.finish(at: 3100 * ms)
        #expect(sender.faults.contains { $0.contains("silent") })
    }

    @Test func acknowledgmentsAndWindowsThatGoBackAreFound() {
        let sender = Sender()
        sender.send(1000, 1, at: 1000, ack: 5100, window: 1000)
        sender.send(1001, 1, at: 1000, ack: 5100, window: 999)
        #expect(sender.faults.contains { $0.contains("the receive window shrinks by 1 bytes") })
        sender.send(1002, 1, at: 1000, ack: 5099, window: 1001)
        #expect(sender.faults.contains { $0.contains("the acknowledgment goes back") })
    }

    @Test func onlyAListenerWithCookiesBeginsAnewAfterItsReset() {
        func run(usesCookies: Bool, resets: Bool) -> [String] {
            let sender = Sender { $0.usesCookies = usesCookies }
            sender.send(1000, 1, at: 1000, ack: 5100, window: 1000)
            if resets { sender.reset(1001, at: 1000) }
            sender.send(1000, 1, at: 1000, ack: 5050, window: 1000)
            // From there on it counts again.
            sender.send(1000, 1, at: 1000, ack: 5050, window: 999)
            return sender.faults
        }
        #expect(run(usesCookies: true, resets: true).count == 1)
        #expect(run(usesCookies: true, resets: false).contains { $0.contains("the acknowledgment goes back") })
        #expect(run(usesCookies: false, resets: true).contains { $0.contains("the acknowledgment goes back") })
    }

    @Test func aTimerThatRunsFromTheOldestSegmentMayFireSooner() {
        func run(restartsTimer: Bool, at time: UInt64) -> [String] {
            let sender = Sender { $0.restartsTimer = restartsTimer }
            sender.send(1000, 100, at: 1000)
            sender.send(1100, 100, at: 1000)
            sender.send(1000, 100, at: 1200, isTimeout: true)
            sender.ack(1100, at: 1250)
            sender.send(1100, 100, at: time, isTimeout: true)
            return sender.faults
        }
        #expect(run(restartsTimer: true, at: 1400) == [])
        #expect(run(restartsTimer: true, at: 1398).contains { $0.contains("nothing has been measured since") })
        #expect(run(restartsTimer: false, at: 1400).contains { $0.contains("nothing has been measured since") })
    }

    @Test func whatLeavesBeforeAMessageIsLookedAtMayGoAgain() {
        func run(leavesAt time: UInt64) -> [String] {
            let sender = Sender { $0.initialWindowSegments = 4 }
            sender.send(1000, 1460, at: 1000)
            sender.flow.grantRepetition(at: 1000 * ms)
            for index in 1..<4 { sender.send(1000 + 1460 * UInt32(index), 1460, at: time) }
            for index in 0..<4 { sender.send(1000 + 1460 * UInt32(index), 1460, at: 1010) }
            return sender.faults
        }
        #expect(run(leavesAt: 1000) == [])
        #expect(run(leavesAt: 1001).contains { $0.contains("the acknowledgments so far allow") })
    }

    @Test func aPacedSenderKeepsToTheWindowAndIsNotSilent() {
        func paced() -> Sender {
            Sender {
                $0.isPaced = true
                $0.longestPacing = 1000 * ms
                $0.initialWindowSegments = 2
                $0.longestTimeout = 2000 * ms
            }
        }
        let sender = paced()
        for index in 0..<2 { sender.send(1000 + 1460 * UInt32(index), 1460, at: 1000) }
        sender.send(1000, 1460, at: 1100)
        #expect(sender.faults == [])
        sender.send(1000 + 2 * 1460, 1460, at: 1100)
        #expect(sender.faults.contains { $0.contains("the acknowledgments so far allow") })
        let silent = paced()
        silent.send(1000, 100, at: 1000)
        silent.flow.finish(at: 4000 * ms)
        #expect(silent.faults == [])
        silent.flow.finish(at: 4100 * ms)
        #expect(silent.faults.contains { $0.contains("silent") })
    }

    @Test func aGapInTheStreamIsFound() {
        let sender = Sender()
        sender.send(1001, 10, at: 1000)
        #expect(sender.faults.contains { $0.contains("leaves a gap") })
    }
}

/// In ns.
private let ms: UInt64 = 1_000_000

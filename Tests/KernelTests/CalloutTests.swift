import Kernel
import PluginAPI
import Testing

/// Armed callouts that write down when they fired.
private final class Recorder {
    let clock = KernelClock(isVirtual: true)
    let wheel: CalloutWheel
    let target: UnsafeMutablePointer<CalloutTarget>
    let callouts: UnsafeMutablePointer<alps_callout>
    let count: Int
    var fired: [(id: UInt32, time: UInt64)] = []
    var whenFired: ((UInt32) -> Void)?

    init(_ count: Int) {
        self.count = count
        wheel = CalloutWheel(clock: clock)
        callouts = .allocate(capacity: count)
        callouts.initialize(repeating: alps_callout(), count: count)
        target = .allocate(capacity: 1)
        target.initialize(
            to: CalloutTarget(function: { instance, function, _ in
                let recorder = Unmanaged<Recorder>.fromOpaque(instance).takeUnretainedValue()
                recorder.fired.append((function, recorder.clock.now))
                recorder.whenFired?(function)
            }))
        target.pointee.instance = Unmanaged.passUnretained(self).toOpaque()
    }

    deinit {
        callouts.deallocate()
        target.deallocate()
    }

    func arm(_ id: Int, _ delay: UInt64) {
        wheel.reset(callouts + id, delay: delay, function: UInt32(id), argument: nil, target: target)
    }

    /// Jumps from event to event as a lab does, until `end`.
    func run(until end: UInt64) {
        while wheel.nextDeadline <= end {
            clock.advance(to: wheel.nextDeadline)
            wheel.runExpired()
        }
        clock.advance(to: end)
        wheel.runExpired()
    }
}

@Suite struct CalloutTests {
    @Test func firesInOrderAtTheExactNanosecond() {
        var generator = SeededGenerator(seed: 3)
        let recorder = Recorder(500)
        var due: [UInt64] = []
        for id in 0..<500 {
            // Delays of all magnitudes, from nanoseconds to hours.
            let delay = generator.next() >> UInt64.random(in: 20...63, using: &generator)
            due.append(recorder.clock.now + delay)
            recorder.arm(id, delay)
        }
        recorder.run(until: .max - 2)
        #expect(recorder.fired.count == 500)
        #expect(recorder.fired.allSatisfy { $0.time == due[Int($0.id)] })
        let expected = (0..<500).sorted { (due[$0], $0) < (due[$1], $1) }.map { UInt32($0) }
        #expect(recorder.fired.map(\.id) == expected)
        #expect(recorder.wheel.armed == 0 && recorder.target.pointee.armed == 0)
    }

    @Test func equalDeadlinesFireInTheOrderTheyWereArmed() {
        let recorder = Recorder(40)
        // The same moment, armed from different distances.
        let moment = recorder.clock.now + 1_000_000_000
        for id in 0..<40 {
            recorder.arm(id, moment - recorder.clock.now)
            recorder.run(until: recorder.clock.now + 24_999_999)
        }
        recorder.run(until: moment)
        #expect(recorder.fired.map(\.id) == (0..<40).map { UInt32($0) })
        #expect(recorder.fired.allSatisfy { $0.time == moment })
    }

    @Test func stoppedAndRearmedCalloutsDoNotFireAtTheOldTime() {
        let recorder = Recorder(3)
        recorder.arm(0, 1000)
        recorder.arm(1, 1000)
        recorder.arm(2, 1000)
        #expect(recorder.wheel.stop(recorder.callouts))
        #expect(!recorder.wheel.stop(recorder.callouts))
        recorder.arm(1, 5000)
        let start = recorder.clock.now
        recorder.run(until: start + 10000)
        #expect(recorder.fired.map(\.id) == [2, 1])
        #expect(recorder.fired.map { $0.time - start } == [1000, 5000])
    }

    @Test func aHandlerCannotFireItselfForeverWithinOneTurn() {
        let recorder = Recorder(1)
        recorder.whenFired = { [unowned recorder] _ in recorder.arm(0, 0) }
        recorder.arm(0, 0)
        recorder.wheel.runExpired()
        #expect(recorder.fired.count == 1)
        #expect(recorder.wheel.nextDeadline == recorder.clock.now)
        recorder.wheel.runExpired()
        #expect(recorder.fired.count == 2)
        recorder.wheel.stop(recorder.callouts)
        #expect(recorder.wheel.nextDeadline == .max)
    }

    @Test func aHandlerMayStopAnotherThatIsDue() {
        let recorder = Recorder(2)
        recorder.arm(0, 10)
        recorder.arm(1, 10)
        recorder.whenFired = { [unowned recorder] _ in recorder.wheel.stop(recorder.callouts + 1) }
        recorder.run(until: recorder.clock.now + 100)
        #expect(recorder.fired.map(\.id) == [0])
    }

    @Test func removingATargetDisarmsItsCalloutsOnly() {
        let recorder = Recorder(20)
        for id in 0..<20 { recorder.arm(id, UInt64(1) << UInt64(3 * id)) }
        let other = Recorder(1)
        recorder.wheel.reset(other.callouts, delay: 5, function: 0, argument: nil, target: other.target)
        recorder.wheel.removeAll(of: recorder.target)
        #expect(recorder.target.pointee.armed == 0 && recorder.wheel.armed == 1)
        recorder.run(until: .max - 2)
        #expect(recorder.fired.isEmpty && other.fired.count == 1)
    }

    @Test func randomLoadAgreesWithASortedList() {
        var generator = SeededGenerator(seed: 4)
        let recorder = Recorder(64)
        var model: [UInt32: UInt64] = [:]
        var expected: [UInt64] = []
        for _ in 0..<3000 {
            let id = Int.random(in: 0..<64, using: &generator)
            switch Int.random(in: 0..<4, using: &generator) {
            case 0:
                recorder.wheel.stop(recorder.callouts + id)
                model[UInt32(id)] = nil
            case 1:
                let end = recorder.clock.now + (generator.next() >> UInt64.random(in: 40...60, using: &generator))
                expected += model.values.filter { $0 <= end }.sorted()
                model = model.filter { $0.value > end }
                recorder.run(until: end)
            default:
                let delay = 1 + (generator.next() >> UInt64.random(in: 34...62, using: &generator))
                recorder.arm(id, delay)
                model[UInt32(id)] = recorder.clock.now + delay
            }
        }
        #expect(recorder.fired.map(\.time) == expected)
        #expect(recorder.wheel.armed == model.count)
    }
}

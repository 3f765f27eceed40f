import Kernel
import PluginAPI
import Testing

@Suite struct FiberTests {
    let clock = KernelClock(isVirtual: true)
    let kernel: Kernel
    /// Any address.
    let channel = UnsafeRawPointer(bitPattern: 0x1000)!

    init() {
        kernel = Kernel(KernelConfiguration(name: "fibers", virtualClock: clock, seed: 1))
    }

    private final class Trace {
        var steps: [String] = []
    }

    @Test func fibersRunUntilTheySleepAndGoOnWhenWoken() {
        let trace = Trace()
        for name in ["a", "b"] {
            kernel.fibers.spawn(name: name, session: nil) {
                trace.steps.append("\(name) begins")
                let result = kernel.fibers.tsleep(channel: channel, wmesg: "test", timeout: 0)
                trace.steps.append("\(name) got \(result)")
            }
        }
        #expect(trace.steps.isEmpty)
        kernel.fibers.runReady()
        #expect(trace.steps == ["a begins", "b begins"])
        #expect(kernel.fibers.all.map(\.wmesg) == ["test", "test"])
        kernel.fibers.wakeupOne(channel)
        kernel.fibers.runReady()
        #expect(trace.steps.last == "a got 0")
        kernel.fibers.wakeup(channel)
        kernel.fibers.runReady()
        #expect(trace.steps.last == "b got 0")
        #expect(kernel.fibers.all.isEmpty)
    }

    @Test func aTimedSleepEndsOnTime() {
        let trace = Trace()
        let start = clock.now
        kernel.fibers.spawn(name: "timed", session: 1) {
            let result = kernel.fibers.tsleep(channel: channel, wmesg: "timed", timeout: 1500)
            trace.steps.append("\(result) after \(clock.now - start)")
        }
        kernel.fibers.runReady()
        #expect(kernel.callouts.nextDeadline == start + 1500)
        clock.advance(to: start + 1500)
        kernel.callouts.runExpired()
        kernel.fibers.runReady()
        #expect(trace.steps == ["\(ALPS_EAGAIN) after 1500"])
        #expect(kernel.callouts.armed == 0)
    }

    @Test func cancelEndsThisSleepAndTheNext() {
        let trace = Trace()
        let fiber = kernel.fibers.spawn(name: "cancelled", session: 1) {
            for _ in 0..<2 {
                trace.steps.append("\(kernel.fibers.tsleep(channel: channel, wmesg: "c", timeout: 0))")
            }
        }
        kernel.fibers.runReady()
        kernel.fibers.cancel(fiber)
        kernel.fibers.runReady()
        #expect(trace.steps == ["\(ALPS_EINTR)", "\(ALPS_EINTR)"])
        #expect(fiber.state == .done)
    }

    @Test func restartEndsOneSleep() {
        let trace = Trace()
        let fiber = kernel.fibers.spawn(name: "restarted", session: 1) {
            for _ in 0..<2 {
                trace.steps.append("\(kernel.fibers.tsleep(channel: channel, wmesg: "r", timeout: 0))")
            }
        }
        kernel.fibers.runReady()
        kernel.fibers.restart(fiber)
        kernel.fibers.runReady()
        #expect(trace.steps == ["\(ALPS_ERESTART)"])
        kernel.fibers.wakeup(channel)
        kernel.fibers.runReady()
        #expect(trace.steps == ["\(ALPS_ERESTART)", "0"])
    }

    @Test func sleepingOutsideAFiberIsRefused() {
        #expect(kernel.fibers.tsleep(channel: channel, wmesg: "x", timeout: 0) == ALPS_ENOSYS)
    }

    @Test func registersSurviveManySwitches() {
        let trace = Trace()
        for id in 0..<50 {
            kernel.fibers.spawn(name: "\(id)", session: nil) {
                var integer = id
                var number = Double(id)
                for step in 0..<40 {
                    _ = kernel.fibers.tsleep(channel: channel, wmesg: "loop", timeout: 0)
                    integer &+= step
                    number += 0.5
                }
                if integer == id + 780, number == Double(id) + 20 { trace.steps.append("right") }
            }
        }
        for _ in 0..<42 {
            kernel.fibers.runReady()
            kernel.fibers.wakeup(channel)
        }
        #expect(trace.steps.count == 50)
        #expect(kernel.fibers.all.isEmpty)
    }

    @Test func aFiberLetsGoOfWhatItsBodyHeld() {
        weak var held: Trace?
        do {
            let trace = Trace()
            held = trace
            kernel.fibers.spawn(name: "holder", session: nil) { trace.steps.append("ran") }
        }
        kernel.fibers.runReady()
        #expect(held == nil)
    }
}

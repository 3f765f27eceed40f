import Kernel
import PluginAPI

/// Callouts that are armed a second and more ahead, as those of many connections are.
private final class Wheel {
    let clock = KernelClock(isVirtual: true)
    let wheel: CalloutWheel
    let target: UnsafeMutablePointer<CalloutTarget>
    let callouts: UnsafeMutablePointer<alps_callout>
    let others: Int
    /// One more than the others.
    var own: UnsafeMutablePointer<alps_callout> { callouts + others }

    init(others: Int) {
        self.others = others
        wheel = CalloutWheel(clock: clock)
        callouts = .allocate(capacity: others + 1)
        callouts.initialize(repeating: alps_callout(), count: others + 1)
        target = .allocate(capacity: 1)
        target.initialize(to: CalloutTarget(function: { _, _, _ in }))
        target.pointee.instance = UnsafeMutableRawPointer(callouts)
        for index in 0..<others {
            wheel.reset(
                callouts + index, delay: 1_000_000_000_000 + UInt64(index) * 1000, function: 0, argument: nil, target: target)
        }
    }

    deinit {
        for index in 0...others { wheel.stop(callouts + index) }
        callouts.deallocate()
        target.deallocate()
    }
}

extension Operation {
    static let timers = [1, 10_000].flatMap { others in
        [
            Operation(name: "callout armed and stopped beside \(others)") { _ in
                let wheel = Wheel(others: others)
                return { count in
                    for _ in 0..<count {
                        wheel.wheel.reset(wheel.own, delay: 200_000_000, function: 0, argument: nil, target: wheel.target)
                        wheel.wheel.stop(wheel.own)
                    }
                }
            },
            Operation(name: "callout armed and fired beside \(others)") { _ in
                let wheel = Wheel(others: others)
                return { count in
                    for _ in 0..<count {
                        wheel.wheel.reset(wheel.own, delay: 1000, function: 0, argument: nil, target: wheel.target)
                        wheel.clock.advance(to: wheel.clock.now + 1000)
                        wheel.wheel.runExpired()
                    }
                }
            },
        ]
    }
}

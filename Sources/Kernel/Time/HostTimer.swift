internal import PluginAPI

/// A callout for the host's own code. Cancelled when it goes away; its action never runs inside `arm`.
package final class HostTimer {
    private let wheel: CalloutWheel
    private let callout: UnsafeMutablePointer<alps_callout>
    private let target: UnsafeMutablePointer<CalloutTarget>
    private let action: () -> Void

    package init(_ kernel: Kernel, action: @escaping () -> Void) {
        wheel = kernel.callouts
        self.action = action
        callout = .allocate(capacity: 1)
        callout.initialize(to: alps_callout())
        target = .allocate(capacity: 1)
        target.initialize(to: CalloutTarget(function: hostTimerFired))
        target.pointee.instance = Unmanaged.passUnretained(self).toOpaque()
    }

    package convenience init(kernel: Kernel, action: @escaping () -> Void) {
        self.init(kernel, action: action)
    }

    deinit {
        wheel.stop(callout)
        callout.deallocate()
        target.deallocate()
    }

    /// Runs the action in `delay` ns; an earlier setting is forgotten.
    package func arm(after delay: UInt64) {
        wheel.reset(callout, delay: delay, function: 0, argument: nil, target: target)
    }

    package func cancel() {
        wheel.stop(callout)
    }

    package var isArmed: Bool { callout.pointee.flags & UInt16(ALPS_CALLOUT_ARMED) != 0 }

    /// When it fires, ns on the kernel's clock; meaningful while armed.
    package var deadline: UInt64 { callout.pointee.deadline }

    fileprivate func run() { action() }
}

private func hostTimerFired(
    _ timer: UnsafeMutableRawPointer, _ function: UInt32, _ argument: UnsafeMutableRawPointer?
) {
    // Retained for the call: the action may drop the last reference to its own timer.
    let timer = Unmanaged<HostTimer>.fromOpaque(timer).takeUnretainedValue()
    timer.run()
}

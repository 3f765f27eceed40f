import PluginAPI
import PluginKit

// The timers of a connection. Arming one on every segment would cost more than it is worth: a callout that is armed
// already is left where it is if it fires early enough, and finds out then that there is time left.

/// Function numbers of the instance's callouts.
enum Timer {
    static var retransmit: UInt32 { 1 }
    static var delayedAck: UInt32 { 2 }
    static var keep: UInt32 { 3 }
    static var embryonic: UInt32 { 4 }
    static var timeWait: UInt32 { 5 }
    static var pacing: UInt32 { 6 }
}

extension UnsafeMutablePointer where Pointee == Connection {
    @inline(__always)
    private func arm(_ callout: UnsafeMutablePointer<alps_callout>, at deadline: UInt64, _ function: UInt32) {
        if callout.pointee.flags & UInt16(ALPS_CALLOUT_ARMED) != 0, callout.pointee.deadline <= deadline { return }
        let now = instance.now
        instance.services.arm(callout, delay: deadline > now ? deadline - now : 0, function: function, argument: self)
    }

    func stopTimers() {
        pointee.retransmitUse = .none
        stopPacing()
        instance.services.disarm(&pointee.retransmitCallout)
        instance.services.disarm(&pointee.delayedAckCallout)
        instance.services.disarm(&pointee.keepCallout)
    }

    // MARK: Retransmission and persist: never both at once

    /// RFC 6298, 5.1: runs while anything is unacknowledged.
    @inline(__always)
    func armRetransmit() {
        pointee.retransmitUse = .retransmit
        pointee.timeoutDeadline = instance.now &+ withinUserTimeout(backedOff(pointee.roundTrip.rto))
        armRetransmitCallout(at: pointee.timeoutDeadline)
    }

    /// RFC 6298, 5.2 and 5.3: starts the time anew, or stops it if nothing is in flight.
    @inline(__always)
    func restartLossTimer() {
        guard pointee.sndMax > pointee.sndUna, pointee.sndNxt > pointee.sndUna else { return stopRetransmit() }
        let now = instance.now
        var delay = backedOff(pointee.roundTrip.rto)
        if instance.isOn(.timeoutRestart) { delay = counted(delay, now) }
        pointee.timeoutDeadline = now &+ withinUserTimeout(delay)
        chooseTimer()
    }

    /// RFC 7765: with too little in flight for duplicates to tell, the time counts from when the oldest was sent.
    private func counted(_ delay: UInt64, _ now: UInt64) -> UInt64 {
        guard let first = pointee.sendMap.first, pointee.attempts == 0, pointee.recovery.state == .open,
            pointee.sndNxt - pointee.sndUna + max(unsent, 0) < 4 * Int(pointee.mss)
        else { return delay }
        let age = now &- first.pointee.sentAt
        return age < delay ? delay - age : delay
    }

    /// The retransmission timer, or what comes before it: the end of the reordering window, a tail loss probe.
    @inline(__always)
    func chooseTimer() {
        guard pointee.retransmitUse != .persist || pointee.sndNxt > pointee.sndUna else { return }
        guard pointee.sndNxt > pointee.sndUna else { return stopRetransmit() }
        if pointee.recovery.reorderDeadline != 0 {
            pointee.retransmitUse = .reorder
            armRetransmitCallout(at: min(pointee.recovery.reorderDeadline, pointee.timeoutDeadline))
        } else if mayProbe {
            pointee.retransmitUse = .probe
            armRetransmitCallout(at: min(instance.now &+ probeTimeout, pointee.timeoutDeadline))
        } else {
            pointee.retransmitUse = .retransmit
            armRetransmitCallout(at: pointee.timeoutDeadline)
        }
    }

    /// TCP_USER_TIMEOUT ends the connection when it is due, not at the time-out after that.
    @inline(__always)
    private func withinUserTimeout(_ delay: UInt64) -> UInt64 {
        var limit = pointee.userTimeout
        // So does TCP_KEEPINIT an attempt to connect.
        if limit == 0, pointee.state == .synSent { limit = pointee.connectTimeout }
        guard limit != 0, pointee.waitingSince != 0 else { return delay }
        let due = pointee.waitingSince &+ limit
        let now = instance.now
        return min(delay, due > now ? due - now : 0)
    }

    @inline(__always)
    func stopRetransmit() { pointee.retransmitUse = .none }

    /// Waiting for a window, or for more to send with a small rest.
    func armPersist() {
        pointee.retransmitUse = .persist
        let isHeld = (has(.cork) || has(.moreToCome)) && pointee.sndWnd >= pointee.mss
        let delay =
            isHeld
            ? instance.nanoseconds(.corkTime)
            : max(backedOff(pointee.roundTrip.rto), instance.nanoseconds(.minimumPersist))
        armRetransmitCallout(at: instance.now &+ delay)
    }

    @inline(__always)
    private func armRetransmitCallout(at deadline: UInt64) {
        pointee.retransmitDeadline = deadline
        arm(&pointee.retransmitCallout, at: deadline, Timer.retransmit)
    }

    /// RFC 6298, 5.5: doubled for each time-out, up to net.inet.tcp.rexmit_max.
    @inline(__always)
    private func backedOff(_ time: UInt64) -> UInt64 {
        let shift = UInt64(min(pointee.backoff, 16))
        return min(time << shift, instance.nanoseconds(.maximumRTO))
    }

    func retransmitTimerFired() {
        guard pointee.retransmitUse != .none else { return }
        guard instance.now >= pointee.retransmitDeadline else {
            return arm(&pointee.retransmitCallout, at: pointee.retransmitDeadline, Timer.retransmit)
        }
        switch pointee.retransmitUse {
        case .none: break
        case .retransmit: retransmissionTimedOut()
        case .persist: persistTimedOut()
        case .probe: probeTimedOut()
        case .reorder where instance.now < pointee.timeoutDeadline: reorderTimedOut()
        case .reorder: retransmissionTimedOut()
        }
    }

    // MARK: Delayed acknowledgment

    @inline(__always)
    func armDelayedAck(_ delay: UInt64) {
        // One that waits already is not put off by more data.
        if pointee.unackedBytes != 0, pointee.delayedAckDeadline > instance.now { return }
        pointee.delayedAckDeadline = instance.now &+ delay
        arm(&pointee.delayedAckCallout, at: pointee.delayedAckDeadline, Timer.delayedAck)
    }

    func delayedAckTimerFired() {
        guard has(.ackDelayed) else { return }
        guard instance.now >= pointee.delayedAckDeadline else {
            return arm(&pointee.delayedAckCallout, at: pointee.delayedAckDeadline, Timer.delayedAck)
        }
        // The reply did not come in time to carry it.
        clear(.interactive)
        set(.ackNow)
        instance.count(.delayedAcks)
        output()
    }

    // MARK: Keep-alive and FIN-WAIT-2

    /// Always runs in the synchronized states: SO_KEEPALIVE is the socket layer's and may be set without our knowing.
    func armKeep() {
        pointee.keepUse = .idle
        setKeep(after: keepIdle)
    }

    func setKeep(after delay: UInt64) {
        pointee.keepDeadline = instance.now &+ delay
        arm(&pointee.keepCallout, at: pointee.keepDeadline, Timer.keep)
    }

    /// A peer that never sends its FIN must not keep an orphan for ever. The application has nothing to wait for any more.
    func armFinWait2() {
        guard has(.orphan) else { return }
        instance.sockets.pointee.is_disconnected(instance.socketLayer, socket)
        pointee.keepUse = .finWait2
        setKeep(after: pointee.linger2 != 0 ? pointee.linger2 : instance.nanoseconds(.finWait2Timeout))
    }

    func keepTimerFired() {
        guard instance.now >= pointee.keepDeadline else {
            return arm(&pointee.keepCallout, at: pointee.keepDeadline, Timer.keep)
        }
        switch pointee.keepUse {
        case .finWait2:
            guard pointee.state == .finWait2 else { return }
            instance.count(.finWait2Dropped)
            close(0)
        case .idle:
            keepAliveDue()
        }
    }
}

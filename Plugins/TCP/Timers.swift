import PluginAPI
import PluginKit

// The timers of a connection: retransmission, delayed acknowledgment, keep-alive, with one callout for whatever is due
// first. Arming it on every segment would cost more than it is worth: a callout that is armed already is left where it is
// if it fires early enough, and finds out then that there is time left.

/// Function numbers of the instance's callouts.
enum Timer {
    static var connection: UInt32 { 1 }
    static var embryonic: UInt32 { 4 }
    static var timeWait: UInt32 { 5 }
    static var pacing: UInt32 { 6 }
}

extension UnsafeMutablePointer where Pointee == Connection {
    @inline(__always)
    private func arm(at deadline: UInt64) {
        let callout = pointee.callout
        if callout.flags & UInt16(ALPS_CALLOUT_ARMED) != 0, callout.deadline <= deadline { return }
        let now = instance.now
        instance.services.arm(
            &pointee.callout, delay: deadline > now ? deadline - now : 0, function: Timer.connection, argument: self)
    }

    func stopTimers() {
        pointee.retransmitUse = .none
        pointee.keepUse = .none
        clear(.ackDelayed)
        stopPacing()
        instance.services.disarm(&pointee.callout)
    }

    /// Does what has been due the longest, with the callout armed for the rest: it may be the end of the connection.
    func timerFired() {
        let keep = pointee.keepUse != .none ? pointee.keepDeadline : .max
        let acknowledgment = has(.ackDelayed) ? pointee.delayedAckDeadline : .max
        let retransmit = pointee.retransmitUse != .none ? pointee.retransmitDeadline : .max
        let first = min(keep, acknowledgment, retransmit)
        guard instance.now >= first else { return arm(ifAny: first) }
        if retransmit == first {
            arm(ifAny: min(keep, acknowledgment))
            retransmitTimerFired()
        } else if acknowledgment == first {
            arm(ifAny: min(keep, retransmit))
            delayedAckTimerFired()
        } else {
            arm(ifAny: min(acknowledgment, retransmit))
            keepTimerFired()
        }
    }

    private func arm(ifAny deadline: UInt64) {
        if deadline != .max { arm(at: deadline) }
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
        var limit = userTimeout
        // So does TCP_KEEPINIT an attempt to connect.
        if limit == 0, pointee.state == .synSent, pointee.options.connectTimeout != 0 { limit = connectTimeout }
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
        arm(at: deadline)
    }

    /// RFC 6298, 5.5: doubled for each time-out, up to net.inet.tcp.rexmit_max.
    @inline(__always)
    private func backedOff(_ time: UInt64) -> UInt64 {
        let shift = UInt64(min(pointee.backoff, 16))
        return min(time << shift, instance.nanoseconds(.maximumRTO))
    }

    private func retransmitTimerFired() {
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
        if pointee.unackedBytes == 0 || pointee.delayedAckDeadline <= instance.now {
            pointee.delayedAckDeadline = instance.now &+ delay
        }
        arm(at: pointee.delayedAckDeadline)
    }

    private func delayedAckTimerFired() {
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
        arm(at: pointee.keepDeadline)
    }

    /// A peer that never sends its FIN must not keep an orphan for ever. The application has nothing to wait for any more.
    func armFinWait2() {
        guard has(.orphan) else { return }
        instance.sockets.pointee.is_disconnected(instance.socketLayer, socket)
        pointee.keepUse = .finWait2
        setKeep(after: linger2)
    }

    private func keepTimerFired() {
        switch pointee.keepUse {
        case .none: break
        case .finWait2:
            guard pointee.state == .finWait2 else { return }
            instance.count(.finWait2Dropped)
            close(0)
        case .idle:
            keepAliveDue()
        }
    }
}

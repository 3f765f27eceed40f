import PluginAPI
import PluginKit

// Sending again: by time-out (RFC 6298, section 5), by duplicate acknowledgments (RFC 5681, 6582), and probing a closed
// window (RFC 9293, 3.8.6.1).

extension UnsafeMutablePointer where Pointee == Connection {
    // MARK: Time-out

    func retransmissionTimedOut() {
        let instance = instance
        switch pointee.state {
        case .synSent, .synReceived: return synTimedOut()
        case .closed, .listen, .timeWait: return
        default: break
        }
        if pointee.sndWnd == 0, pointee.sndMax > pointee.sndUna {
            // The peer has shrunk its window below what was in flight (RFC 9293, MUST-34): that is no loss.
            clear(.timing)
            pointee.sndNxt = pointee.sndUna
            return persistTimedOut()
        }
        instance.count(.retransmitTimeouts)
        pointee.totals.timeouts &+= 1
        pointee.backoff += 1
        guard !isOverdue(pointee.backoff) else {
            instance.count(.timeoutDropped)
            instance.count(.drops)
            sendReset()
            return close(pointee.softError != 0 ? pointee.softError : ALPS_ETIMEDOUT)
        }
        // Karn: what is sent again measures nothing.
        clear([.timing, .inRecovery, .recoveryTimerSet])
        let flight = UInt32(truncatingIfNeeded: pointee.sndMax - pointee.sndUna)
        pointee.congestion.timedOut(flight: flight, mss: pointee.mss, isFirst: pointee.backoff == 1)
        pointee.dupAcks = 0
        pointee.recover = pointee.sndMax
        set(.recoverSet)
        if pointee.backoff == 3 {
            // R1 of RFC 1122, 4.2.3.5: the route may be what is wrong. The network will look it up anew.
            netpcb.pointee.route.generation = 0
        }
        pointee.sndNxt = pointee.sndUna
        pointee.retransmitUse = .none
        output()
        if pointee.retransmitUse == .none { armRetransmit() }
    }

    /// R2 (RFC 9293, 3.8.3), TCP_USER_TIMEOUT, and less patience for connections nobody waits for.
    private func isOverdue(_ attempts: UInt32) -> Bool {
        let instance = instance
        if pointee.userTimeout != 0 {
            return pointee.waitingSince != 0 && instance.now &- pointee.waitingSince >= pointee.userTimeout
        }
        if has(.orphan) { return Int64(attempts) > instance.setting(.orphanRetries) }
        return Int64(attempts) > instance.setting(.retries)
    }

    private func synTimedOut() {
        let instance = instance
        instance.count(.retransmitTimeouts)
        pointee.totals.timeouts &+= 1
        pointee.backoff += 1
        let waited = instance.now &- pointee.waitingSince
        var isOver =
            pointee.synCount != 0
            ? pointee.backoff > pointee.synCount : waited >= instance.nanoseconds(.connectTimeout)
        if pointee.userTimeout != 0, waited >= pointee.userTimeout { isOver = true }
        // Something on the way has said, more than once by now, that this will not work.
        if pointee.backoff > 3, pointee.softError != 0 { isOver = true }
        if isOver {
            instance.count(.timeoutDropped)
            if pointee.state == .synReceived { sendReset() }
            return close(pointee.softError != 0 ? pointee.softError : ALPS_ETIMEDOUT)
        }
        set(.synLost)
        clear(.timing)
        sendSyn()
        armRetransmit()
    }

    // MARK: Loss inferred

    /// RFC 5681, 3.2: the third duplicate.
    func fastRetransmit() {
        let instance = instance
        instance.count(.fastRetransmits)
        let flight = UInt32(truncatingIfNeeded: pointee.sndMax - pointee.sndUna)
        pointee.congestion.enterRecovery(flight: flight, mss: pointee.mss)
        set([.inRecovery, .recoverSet])
        clear([.recoveryTimerSet, .timing])
        pointee.recover = pointee.sndMax
        retransmitFirst()
        armRetransmit()
    }

    /// Sends the first unacknowledged segment again, whatever the windows say.
    func retransmitFirst() {
        guard let network = instance.network else { return }
        clear(.timing)
        let position = sendPosition(pointee.sndUna)
        let rest = Int(Int64(bitPattern: socket.pointee.snd.tail &- position))
        let inFlight = pointee.sndMax - pointee.sndUna
        let length = min(Int(pointee.mss), rest, inFlight)
        let sendsFin = has(.finSent) && !has(.finAcked) && length == rest && inFlight > length
        guard length > 0 || sendsFin, length >= 0,
            let packet = makeData(
                network, pointee.sndUna, UInt32(truncatingIfNeeded: length), fin: sendsFin, isLast: length == rest)
        else { return }
        pointee.lastSent = instance.now
        transmit(network, packet)
    }

    // MARK: Path MTU

    /// The path takes less than we thought: what was too big goes out again at once, in smaller pieces. The timer is
    /// not backed off and the window not closed (RFC 1191, section 6.5).
    func resendSmaller() {
        clear(.timing)
        pointee.sndNxt = pointee.sndUna
        instance.count(.mtuResends)
        output()
    }

    // MARK: Persist

    func persistTimedOut() {
        let instance = instance
        guard pointee.state.isSynchronized else { return }
        pointee.retransmitUse = .none
        if pointee.sndWnd > 0 {
            // Not closed, only too small to be worth it, or held back by TCP_CORK: enough waiting.
            output(force: true)
            if pointee.retransmitUse == .none, unsent > 0 { armPersist() }
            return
        }
        guard unsent >= 0 else { return armRetransmit() }
        if pointee.waitingSince == 0 { pointee.waitingSince = instance.now }
        instance.count(.persistTimeouts)
        pointee.backoff += 1
        // As long as the peer answers probes it may keep its window closed (RFC 9293, MUST-37); an answer moves
        // `lastReceived`.
        let silent = instance.now &- max(pointee.lastReceived, pointee.waitingSince)
        let patience = UInt64(instance.setting(.retries)) &* pointee.roundTrip.rto &+ instance.nanoseconds(.maximumRTO)
        let isSilent = Int64(pointee.backoff) > instance.setting(.retries) && silent > patience
        let isOrphanOverdue = has(.orphan) && Int64(pointee.backoff) > instance.setting(.orphanRetries)
        let isUserOverdue = pointee.userTimeout != 0 && instance.now &- pointee.waitingSince >= pointee.userTimeout
        if isSilent || isOrphanOverdue || isUserOverdue {
            instance.count(.persistDropped)
            instance.count(.drops)
            sendReset()
            return close(pointee.softError != 0 ? pointee.softError : ALPS_ETIMEDOUT)
        }
        sendWindowProbe()
        armPersist()
    }

    /// One octet beyond the window, or the FIN.
    private func sendWindowProbe() {
        guard let network = instance.network else { return }
        instance.count(.sentWindowProbes)
        let rest = unsent
        let amount: UInt32 = rest > 0 ? 1 : 0
        let sendsFin = has(.finQueued) && !has(.finAcked) && rest == Int(amount)
        guard amount > 0 || sendsFin else { return sendProbe(pointee.sndUna - 1) }
        guard let packet = makeData(network, pointee.sndNxt, amount, fin: sendsFin, isLast: false) else { return }
        let end = pointee.sndNxt + amount + (sendsFin ? 1 : 0)
        if end > pointee.sndMax { pointee.sndMax = end }
        if sendsFin { set(.finSent) }
        pointee.lastSent = instance.now
        transmit(network, packet)
    }
}

import PluginAPI
import PluginKit

// Time-outs (RFC 6298, section 5), sending again what was lost, and probing a closed window (RFC 9293, 3.8.6.1).

extension UnsafeMutablePointer where Pointee == Connection {
    // MARK: Time-out

    func retransmissionTimedOut() {
        let instance = instance
        if !has(.synAcked), pointee.state != .closed, pointee.state != .listen { return synTimedOut() }
        switch pointee.state {
        case .closed, .listen, .timeWait: return
        default: break
        }
        if pointee.sndWnd == 0, pointee.sndMax > pointee.sndUna {
            // The peer has shrunk its window below what was in flight (RFC 9293, MUST-34): that is no loss.
            clear(.timing)
            return persistTimedOut()
        }
        instance.count(.retransmitTimeouts)
        pointee.totals.timeouts &+= 1
        pointee.backoff += 1
        pointee.attempts += 1
        guard !isOverdue(pointee.attempts) else {
            instance.count(.timeoutDropped)
            instance.count(.drops)
            sendReset()
            return close(pointee.softError != 0 ? pointee.softError : ALPS_ETIMEDOUT)
        }
        // Karn: what is sent again measures nothing.
        clear(.timing)
        enterLoss()
        considerBlackHole()
        noteFirstFlightLost()
        if pointee.attempts == 3 {
            // R1 of RFC 1122, 4.2.3.5: the route may be what is wrong. The network will look it up anew.
            netpcb.pointee.route.generation = 0
        }
        pointee.retransmitUse = .none
        output()
        if pointee.retransmitUse == .none { armRetransmit() }
    }

    /// R2 (RFC 9293, 3.8.3), TCP_USER_TIMEOUT, and less patience for connections nobody waits for.
    private func isOverdue(_ attempts: UInt32) -> Bool {
        let instance = instance
        if userTimeout != 0 {
            return pointee.waitingSince != 0 && instance.now &- pointee.waitingSince >= userTimeout
        }
        if has(.orphan) { return Int64(attempts) > instance.setting(.orphanRetries) }
        return Int64(attempts) > instance.setting(.retries)
    }

    private func synTimedOut() {
        let instance = instance
        instance.count(.retransmitTimeouts)
        pointee.totals.timeouts &+= 1
        let isLinear = pointee.state == .synSent && Int64(pointee.attempts) < instance.setting(.synLinearTimeouts)
        if !isLinear { pointee.backoff += 1 }
        pointee.attempts += 1
        let waited = instance.now &- pointee.waitingSince
        var isOver =
            pointee.options.synCount != 0
            ? pointee.attempts > UInt32(pointee.options.synCount) : waited >= connectTimeout
        if userTimeout != 0, waited >= userTimeout { isOver = true }
        // Something on the way has said, more than once by now, that this will not work.
        if pointee.attempts > 3, pointee.softError != 0 { isOver = true }
        if isOver {
            instance.count(.timeoutDropped)
            if pointee.state == .synSent, has(.fastOpened) { instance.avoidFastOpen(pointee.conn.remote) }
            if pointee.state != .synSent { sendReset() }
            return close(pointee.softError != 0 ? pointee.softError : ALPS_ETIMEDOUT)
        }
        set(.synLost)
        clear(.timing)
        sendSyn()
        armRetransmit()
    }

    // MARK: Sending again

    /// What may be sent again ends here: the peer's window, and what rounding it to units of the scale may have taken away
    /// since this was sent (RFC 7323, 2.4).
    @inline(__always)
    var repetitionEdge: SequenceNumber {
        pointee.sndUna + pointee.sndWnd + (pointee.sndWnd == 0 ? 0 : (1 << UInt32(pointee.sndScale)) - 1)
    }

    /// Sends what waits to be sent again, as far as the windows allow. True: something went.
    func repeatLost(_ network: Network, _ list: inout PacketList) -> Bool {
        let instance = instance
        let mss = pointee.mss
        var hasSent = false
        while let range = pointee.sendMap.waiting.first {
            let pipe = pipe
            let room = Int(pointee.congestion.cwnd) - pipe
            // A small rest waits for what follows it.
            var wanted = range.pointee.length
            if let next = range.pointee.next, next.pointee.has(.waiting), !isRecordEnd(range.pointee.end) {
                wanted &+= next.pointee.length
            }
            guard room >= Int(min(mss, wanted)) || pipe == 0 else { break }
            // A window that has shrunk holds back what lies beyond it (RFC 9293, 3.8.6).
            let isFirst = range.pointee.start == pointee.sndUna
            let open = repetitionEdge - range.pointee.start
            guard open > 0 else { break }
            var limit = min(UInt32(truncatingIfNeeded: max(room, 0)), UInt32(truncatingIfNeeded: packetLimit))
            if pipe == 0 { limit = max(limit, mss) }
            // An urgent pointer is relative to each segment.
            if pointee.sndUp > range.pointee.start { limit = min(limit, mss) }
            limit = min(limit, UInt32(truncatingIfNeeded: open))
            if limit > mss { limit -= limit % mss }
            if pacingRate != 0 {
                limit = min(limit, UInt32(truncatingIfNeeded: pacedAmount(pacingRate)))
                guard limit > 0 else { break }
            }
            guard gather(range, limit) else { break }
            let hasFin = range.pointee.has(.fin)
            let length = range.pointee.length - (hasFin ? 1 : 0)
            let isLast =
                sendPosition(range.pointee.start) &+ UInt64(length) == socket.pointee.snd.tail
                || isRecordEnd(range.pointee.start + length)
            guard let packet = makeData(network, range.pointee.start, length, fin: hasFin, isLast: isLast) else { break }
            list.append(packet)
            noteRepetition(range)
            hasSent = true
            // The timer is the first range's: its new transmission has the whole time.
            if isFirst { pointee.retransmitUse = .none }
        }
        if hasSent { pointee.lastSent = instance.now }
        return hasSent
    }

    /// Makes `range` as long as `limit` if what follows waits too, and no longer. False: no memory.
    private func gather(_ range: RangePointer, _ limit: UInt32) -> Bool {
        while range.pointee.length < limit, let next = range.pointee.next, next.pointee.has(.waiting),
            !isRecordEnd(range.pointee.end)
        {
            pointee.sendMap.absorb(range, next: next)
            instance.free(next)
        }
        let payload = range.pointee.length - (range.pointee.has(.fin) ? 1 : 0)
        return payload <= limit || split(range, at: range.pointee.start + limit)
    }

    /// `range` goes out once more.
    func noteRepetition(_ range: RangePointer) {
        let length = range.pointee.length
        if has(.timing), pointee.timedSequence >= range.pointee.start, pointee.timedSequence < range.pointee.end {
            clear(.timing)
        }
        noteRepeated(length)
        notePaced(length)
        pointee.sendMap.resent(range, at: instance.now)
        if pointee.recovery.state == .recovery || pointee.recovery.state == .reduction {
            pointee.recovery.prrOut &+= length
        }
    }

    // MARK: Path MTU

    /// The path takes less than we thought: what was too big goes out again at once, in smaller pieces. The timer is
    /// not backed off and the window not closed (RFC 1191, section 6.5).
    func resendSmaller() {
        clear(.timing)
        instance.count(.mtuResends)
        loseAll()
        output()
    }

    /// The network has refused what was too big of what has just been handed to it, which is all of the flight behind
    /// `last`: the path MTU came down for another connection, or the interface's did. It was never on its way.
    @inline(never)
    func resendRefused(after last: RangePointer?) {
        clear(.timing)
        instance.count(.mtuResends)
        var next = last == nil ? pointee.sendMap.flight.first : last.unsafelyUnwrapped.pointee.queueNext
        while let range = next {
            next = range.pointee.queueNext
            guard range.pointee.length - (range.pointee.has(.fin) ? 1 : 0) > pointee.mss else { continue }
            if range.pointee.has(.sizeProbe) { sizeProbeLost(range) }
            pointee.sendMap.lose(range)
        }
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
        guard unsent >= 0 || pointee.sndNxt > pointee.sndUna else { return armRetransmit() }
        if pointee.waitingSince == 0 { pointee.waitingSince = instance.now }
        instance.count(.persistTimeouts)
        pointee.backoff += 1
        pointee.attempts += 1
        // As long as the peer answers probes it may keep its window closed (RFC 9293, MUST-37); an answer moves
        // `lastReceived`.
        let silent = instance.now &- max(pointee.lastReceived, pointee.waitingSince)
        let patience = UInt64(instance.setting(.retries)) &* pointee.roundTrip.rto &+ instance.nanoseconds(.maximumRTO)
        let isSilent = Int64(pointee.attempts) > instance.setting(.retries) && silent > patience
        let isOrphanOverdue = has(.orphan) && Int64(pointee.attempts) > instance.setting(.orphanRetries)
        let isUserOverdue = userTimeout != 0 && instance.now &- pointee.waitingSince >= userTimeout
        if isSilent || isOrphanOverdue || isUserOverdue {
            instance.count(.persistDropped)
            instance.count(.drops)
            sendReset()
            return close(pointee.softError != 0 ? pointee.softError : ALPS_ETIMEDOUT)
        }
        sendWindowProbe()
        armPersist()
    }

    /// One octet: the first in flight, or one beyond the window, or the FIN.
    private func sendWindowProbe() {
        guard let network = instance.network else { return }
        instance.count(.sentWindowProbes)
        let rest = Int(Int64(bitPattern: socket.pointee.snd.tail &- sendPosition(pointee.sndUna)))
        let amount: UInt32 = rest > 0 ? 1 : 0
        let sendsFin = has(.finQueued) && !has(.finAcked) && rest == Int(amount)
        guard amount > 0 || sendsFin else { return sendProbe(pointee.sndUna - 1) }
        guard let packet = makeData(network, pointee.sndUna, amount, fin: sendsFin, isLast: false) else { return }
        let end = pointee.sndUna + amount + (sendsFin ? 1 : 0)
        if end > pointee.sndMax { pointee.sndMax = end }
        if sendsFin { set(.finSent) }
        pointee.lastSent = instance.now
        transmit(network, packet)
    }
}

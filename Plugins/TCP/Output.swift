import PluginAPI
import PluginKit

// Deciding what to send, how much, and when (RFC 9293, 3.8.6; RFC 1122, 4.2.3.4; RFC 896).

/// A list of packets that grows at its end.
struct PacketList {
    var first: Mbuf?
    var last: Mbuf?

    @inline(__always)
    mutating func append(_ packet: Mbuf) {
        if let last { last.pointee.nextpkt = packet } else { first = packet }
        last = packet
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Stream position of a data sequence number at or behind `sndUna`.
    @inline(__always)
    func sendPosition(_ number: SequenceNumber) -> UInt64 {
        let first = has(.synAcked) ? pointee.sndUna : pointee.iss + 1
        return socket.pointee.snd.head &+ UInt64(bitPattern: Int64(number - first))
    }

    /// Bytes that have not been sent yet, or are to be sent again; -1 if even the FIN is on its way.
    @inline(__always)
    var unsent: Int { Int(Int64(bitPattern: socket.pointee.snd.tail &- sendPosition(pointee.sndNxt))) }

    /// Sends what may be sent now: data, FIN, an acknowledgment that is due. `force`: do not wait for more data or a
    /// larger window.
    func output(force: Bool = false) {
        guard pointee.state.isSynchronized || (pointee.state == .synReceived && has(.fastOpened)),
            let network = instance.network
        else { return }
        prepareToSend()
        var list = PacketList()
        var hasSent = false
        let lastInFlight = pointee.sendMap.flight.last
        let wasIdle = pointee.sndNxt == pointee.sndUna
        if pointee.sendMap.waiting.first != nil, !pointee.recovery.sendsNewFirst {
            hasSent = repeatLost(network, &list)
        }
        if pointee.pathProbe != nil, sendSizeProbe(network, &list) { hasSent = true }
        // What is lost and finds no room is next all the same: nothing new overtakes it (RFC 6675, section 4).
        while pointee.sendMap.waiting.first == nil || pointee.recovery.sendsNewFirst, let plan = plan(force: force) {
            guard send(plan, network, &list) else { break }
            hasSent = true
        }
        if pointee.recovery.sendsNewFirst { pointee.recovery.sendsNewFirst = false }
        if hasSent || pointee.isHeldByWindow { noteWindowUse() }
        if !hasSent, has(.ackNow) || has(.windowUpdate) {
            if let packet = makeAck(network, keepsWindow: false) { list.append(packet) }
        }
        clear(.windowUpdate)
        if let first = list.first, transmit(network, first), pointee.state.isSynchronized {
            return resendRefused(after: lastInFlight)
        }
        guard pointee.state.isSynchronized else { return }
        if hasSent {
            if wasIdle || pointee.retransmitUse == .none || pointee.retransmitUse == .persist {
                restartLossTimer()
            } else {
                chooseTimer()
            }
        }
        noteLimit()
        if pointee.retransmitUse == .none { armForUnsent() }
    }

    /// How far the round trip under way fills the congestion window: RFC 5681 lets only a window grow that is used.
    @inline(__always)
    private func noteWindowUse() {
        let flight = UInt32(truncatingIfNeeded: pointee.sndNxt - pointee.sndUna)
        let isHeld = pointee.isHeldByWindow || pipe >= Int(pointee.congestion.cwnd)
        pointee.isHeldByWindow = false
        guard isHeld || pointee.sndUna >= pointee.windowUseEnd
            || (!pointee.congestion.isWindowLimited && flight > pointee.congestion.mostInFlight)
        else { return }
        pointee.congestion.isWindowLimited = isHeld
        pointee.congestion.mostInFlight = flight
        pointee.windowUseEnd = pointee.sndNxt
    }

    /// One planned packet. False: no memory.
    @inline(__always)
    private func send(_ plan: Plan, _ network: Network, _ list: inout PacketList) -> Bool {
        guard let range = newRange() else { return false }
        guard let packet = makeData(network, pointee.sndNxt, plan.amount, fin: plan.sendsFin, isLast: plan.isLast)
        else {
            instance.free(range)
            return false
        }
        list.append(packet)
        noteSent(plan, range)
        return true
    }

    /// A tail loss probe of new data, whatever the congestion window says. False: there are none, or the peer's window
    /// does not take them.
    func sendOneNew(_ network: Network, _ list: inout PacketList) -> Bool {
        let all = unsent
        let rest = min(all, restOfRecord(pointee.sndNxt) ?? all)
        let open = Int(pointee.sndWnd) - (pointee.sndNxt - pointee.sndUna)
        let amount = min(rest, open, Int(pointee.mss))
        guard amount > 0, amount == rest || amount == Int(pointee.mss) else { return false }
        let sendsFin = has(.finQueued) && amount == all
        return send(
            Plan(amount: UInt32(truncatingIfNeeded: amount), sendsFin: sendsFin, isLast: amount == rest), network, &list)
    }

    /// A probe of the path MTU, if one is due: one segment larger than the others, and enough behind it for its loss to
    /// show (RFC 4821, 7.4).
    @inline(never)
    private func sendSizeProbe(_ network: Network, _ list: inout PacketList) -> Bool {
        guard let payload = dueSizeProbe, restOfRecord(pointee.sndNxt) == nil else { return false }
        let flight = pointee.sndNxt - pointee.sndUna
        let needed = Int(payload) + 3 * Int(pointee.mss)
        guard unsent >= needed, flight + needed <= Int(pointee.sndWnd), pipe + needed <= Int(pointee.congestion.cwnd),
            let range = newRange()
        else { return false }
        let plan = Plan(amount: payload, sendsFin: false, isLast: false)
        guard let packet = makeData(network, pointee.sndNxt, payload, fin: false, isLast: false, isWhole: true) else {
            instance.free(range)
            return false
        }
        list.append(packet)
        noteSent(plan, range)
        noteSizeProbe(range)
        return true
    }

    /// Before a flight: a path MTU that has changed, a window that is out of date.
    @inline(__always)
    func prepareToSend() {
        if pointee.accurate.isOn { reserveOptionSpace() }
        let cell = instance.services.routeCell
        let generation = cell.ops(alps_route_ops.self).pointee.generation(cell.instance).pointee
        if generation != pointee.routeGeneration {
            refreshMSS()
            pointee.routeGeneration = generation
        }
        if pointee.sndMax == pointee.sndUna {
            considerIdleTime(
                initialWindow: Congestion.initialWindow(
                    mss: pointee.mss, segments: UInt32(truncatingIfNeeded: instance.setting(.initialWindow))))
        }
    }

    private struct Plan {
        var amount: UInt32
        var sendsFin: Bool
        /// Nothing waits behind it: PSH (RFC 9293, MUST-61).
        var isLast: Bool
    }

    /// The next packet, if one may go.
    @inline(__always)
    private func plan(force: Bool) -> Plan? {
        let rest = unsent
        guard rest >= 0 else { return nil }
        // What has been reported as received is not in flight any more, so that each of the first duplicates lets a new
        // segment go (RFC 3042).
        let open = Int(pointee.sndWnd) - (pointee.sndNxt - pointee.sndUna)
        let room =
            pointee.recovery.sendsNewFirst
            ? (pointee.recovery.point + 2 &* pointee.mss) - pointee.sndNxt : Int(pointee.congestion.cwnd) - pipe
        let usable = max(0, min(open, room))
        var amount = min(rest, usable)
        if amount < rest, room <= open { pointee.isHeldByWindow = true }
        var endsRecord = false
        if let record = restOfRecord(pointee.sndNxt), record < rest, record <= amount {
            amount = record
            endsRecord = true
        } else {
            amount = wholeSegments(amount, rest, force: force)
        }
        let whole = amount
        amount = min(amount, packetLimit)
        if amount > 0, pacingRate != 0 {
            amount = min(amount, pacedAmount(pacingRate))
            guard amount > 0 else { return nil }
        }
        let sendsFin = has(.finQueued) && !has(.finAcked) && amount == rest
        guard amount > 0 || sendsFin else { return nil }
        // What the application calls unfinished needs no push.
        let isLast = (amount == rest && !has(.moreToCome)) || (endsRecord && amount == whole)
        return Plan(amount: UInt32(truncatingIfNeeded: amount), sendsFin: sendsFin, isLast: isLast)
    }

    /// Leaves out a last segment that is not full and should wait: the sender's silly window avoidance (RFC 9293,
    /// 3.8.6.2.1), and Nagle's algorithm in Minshall's form, to wait only while another small one is unacknowledged.
    @inline(__always)
    private func wholeSegments(_ amount: Int, _ rest: Int, force: Bool) -> Int {
        let mss = Int(pointee.mss)
        let partial = amount < mss ? amount : amount % mss
        guard partial > 0 else { return amount }
        let whole = amount - partial
        if force { return amount }
        if amount == rest {
            if has(.finQueued) || pointee.sndUp > pointee.sndNxt { return amount }
            if pointee.sndNxt < pointee.sndMax, whole == 0 { return amount }
            if !has(.cork), !has(.moreToCome) || pointee.isMoreReleased {
                if has(.noDelay) || pointee.sndSmall <= pointee.sndUna { return amount }
            }
        } else if pointee.sndNxt < pointee.sndMax, whole == 0 {
            return amount
        } else if whole == 0, pointee.maxSndWnd > 0, 2 * amount >= Int(pointee.maxSndWnd) {
            return amount
        }
        return whole
    }

    /// The most payload one packet can have: what device or host will cut into segments, or one segment.
    @inline(__always)
    var packetLimit: Int {
        let mss = Int(pointee.mss)
        // An urgent pointer is relative to each segment.
        if pointee.sndUp > pointee.sndNxt || has(.windowReduced) || !instance.isOn(.segmentationOffload) { return mss }
        let room = 65535 - Int(netpcb.pointee.header_length) - Int(headerLength) - Int(pointee.accurate.reserved)
        return max(mss, room - room % mss)
    }

    /// Header with the options of every segment.
    @inline(__always)
    var headerLength: UInt32 { Header.length &+ (has(.timestamps) ? Options.timestampLength : 0) }

    @inline(__always)
    private func noteSent(_ plan: Plan, _ range: RangePointer) {
        let instance = instance
        let now = instance.now
        let start = pointee.sndNxt
        let end = start + plan.amount + (plan.sendsFin ? 1 : 0)
        let isNew = start == pointee.sndMax
        if pointee.sndMax == pointee.sndUna {
            pointee.waitingSince = now
        }
        range.pointee.start = start
        range.pointee.end = end
        if plan.sendsFin {
            set(.finSent)
            range.pointee.flags = .fin
        }
        pointee.sendMap.link(range, after: pointee.sendMap.last)
        pointee.sendMap.transmitted(range, at: now)
        pointee.sndNxt = end
        if end > pointee.sndMax { pointee.sndMax = end }
        if pointee.recovery.state == .recovery || pointee.recovery.state == .reduction {
            pointee.recovery.prrOut &+= end.value &- start.value
        }
        if isNew, !has(.timing) {
            set(.timing)
            pointee.timedSequence = start
            pointee.timedAt = now
        }
        if plan.amount % pointee.mss != 0 { pointee.sndSmall = end }
        if now &- pointee.lastDataReceived < instance.nanoseconds(.delayedAckTime), pointee.lastDataReceived != 0 {
            set(.interactive)
        }
        pointee.lastSent = now
        notePaced(plan.amount)
    }

    /// Data waits and no timer runs: the window is closed or too small, or the application said that more will come.
    private func armForUnsent() {
        guard unsent > 0 else { return }
        if pointee.sndNxt == pointee.sndUna { armPersist() } else { restartLossTimer() }
    }

    // MARK: Acknowledgments

    /// An acknowledgment now, outside of the batch.
    func sendAck() {
        guard let network = instance.network, let packet = makeAck(network, keepsWindow: false) else { return }
        transmit(network, packet)
    }

    /// One that the sender will count as a duplicate: its window must not change (RFC 5681, section 2).
    func sendDuplicateAck() {
        guard let network = instance.network, let packet = makeAck(network, keepsWindow: true) else { return }
        instance.count(.sentDuplicateAcks)
        transmit(network, packet)
    }

    // MARK: Receive window

    /// The window to advertise, as it goes into the header; moves `rcvAdv`.
    ///
    /// The right edge never moves back (RFC 9293, SHLD-14), and forward only in steps worth having (3.8.6.2.2).
    @inline(__always)
    func selectWindow(keeps: Bool) -> UInt16 {
        let scale = UInt32(pointee.rcvScale)
        let current = UInt32(truncatingIfNeeded: max(0, pointee.rcvAdv - pointee.rcvNxt))
        let room = instance.sockets.pointee.receive_space(instance.socketLayer, socket)
        var space = current
        if !keeps {
            let limit = socket.pointee.rcv.limit
            let free = pointee.options.windowClamp == 0 ? room : min(room, pointee.options.windowClamp)
            if free > current,
                free - current >= min(limit / 2, max(pointee.advertisedMSS, 1)) || instance.isOn(.wholeSegmentBuffers)
            {
                space = free
            }
        }
        space = min(space, 65535 << scale)
        // Rounding down a window that has not grown would move its edge back. Rounding up promises a little more with each
        // acknowledgment: not what there is no room for. Then the edge seems to go back by less than a unit, and what was
        // promised before is still taken (RFC 7323, 2.4).
        let up = (current &+ (1 << scale) &- 1) >> scale
        let kept = min(up << scale <= max(room, current) ? up : current >> scale, 65535)
        let field = max(kept, space >> scale)
        let edge = pointee.rcvNxt + (field << scale)
        if edge > pointee.rcvAdv { pointee.rcvAdv = edge }
        return UInt16(truncatingIfNeeded: field)
    }

    /// The reader has made room: worth a segment of its own?
    func considerWindowUpdate() {
        guard pointee.state.isSynchronized, !pointee.state.hasReceivedFin else { return }
        let free = instance.sockets.pointee.receive_space(instance.socketLayer, socket)
        let current = UInt32(truncatingIfNeeded: max(0, pointee.rcvAdv - pointee.rcvNxt))
        guard free > current else { return }
        let gain = min(free, 65535 << UInt32(pointee.rcvScale)) &- min(current, free)
        let limit = socket.pointee.rcv.limit
        let mss = max(pointee.advertisedMSS, 1)
        let isClosed = current < mss && gain >= min(mss, limit / 2)
        guard isClosed || (gain >= 2 &* mss && gain >= limit / 4) else { return }
        set(.windowUpdate)
        instance.count(.sentWindowUpdates)
        output()
    }
}

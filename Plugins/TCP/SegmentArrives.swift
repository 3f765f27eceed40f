import PluginAPI
import PluginKit

// RFC 9293, 3.10.7.4: segments for a connection in SYN-RECEIVED and the states after it. Passive connections in
// SYN-RECEIVED are in the SYN cache (Embryonic.swift); here this state comes from a simultaneous open.

extension UnsafeMutablePointer where Pointee == Connection {
    func arrive(_ segment: inout Segment) {
        pointee.totals.segmentsIn &+= segment.count
        if segment.has(Flag.rst) { return arriveReset(&segment) }
        guard checkTimestamp(&segment) else { return }
        guard checkSyn(&segment) else { return }
        guard checkSequence(&segment) else { return }
        noteReceived()
        noteMarks(segment)
        rememberTimestamp(&segment)
        // Fifth: ACK. Without it there is nothing more to do.
        guard segment.has(Flag.ack) else { return }
        guard processAck(&segment) else { return }
        // Sixth to eighth: URG, text, FIN.
        if segment.has(Flag.urg) { processUrgent(&segment) }
        if segment.length > 0 || segment.has(Flag.fin) {
            guard processText(&segment) else { return }
        }
        touch()
    }

    /// The peer is alive.
    @inline(__always)
    func noteReceived() {
        pointee.lastReceived = instance.now
        pointee.keepProbes = 0
    }

    // MARK: Second: RST (RFC 5961, section 3)

    private func arriveReset(_ segment: inout Segment) {
        let distance = segment.sequence - pointee.rcvNxt
        guard distance == 0 else {
            if distance > 0, distance < Int(max(receiveWindow, 1)) {
                challengeAck(.receivedBadReset)
            } else {
                instance.count(.receivedBadReset)
            }
            return
        }
        instance.count(.drops)
        switch pointee.state {
        case .synReceived where !has(.fastOpened): close(ALPS_ECONNREFUSED)
        case .closing, .lastAck, .timeWait: close(0)
        default: close(ALPS_ECONNRESET)
        }
    }

    // MARK: PAWS (RFC 7323, section 5.3, R1)

    @inline(__always)
    private func checkTimestamp(_ segment: inout Segment) -> Bool {
        guard has(.timestamps) else { return true }
        guard segment.options.hasTimestamp else {
            // Section 3.2: once agreed on, a segment without the option is no part of this connection.
            if instance.isOn(.tolerateMissingTimestamp) { return true }
            instance.count(.missingTimestamp)
            return false
        }
        guard Int32(bitPattern: segment.options.timestamp &- pointee.tsRecent) < 0 else { return true }
        return checkOldTimestamp(&segment)
    }

    @inline(never)
    private func checkOldTimestamp(_ segment: inout Segment) -> Bool {
        // Section 5.5: after 24 days the remembered value says nothing.
        let day: UInt64 = 86_400 * UInt64(ALPS_NSEC_PER_SEC)
        if instance.now &- pointee.tsRecentTime > 24 * day {
            pointee.tsRecent = segment.options.timestamp
            pointee.tsRecentTime = instance.now
            return true
        }
        instance.count(.pawsDropped)
        // The duplicate may be all the peer has to go by: answer it, but no faster than challenges go.
        if segment.length > 0 {
            acknowledgeNow()
        } else {
            challengeAck(.receivedUnacceptable)
        }
        return false
    }

    /// RFC 7323, section 4.3: TS.Recent follows segments that reach back to what was last acknowledged.
    @inline(__always)
    private func rememberTimestamp(_ segment: inout Segment) {
        guard has(.timestamps), segment.options.hasTimestamp, segment.sequence <= pointee.lastAckSent,
            Int32(bitPattern: segment.options.timestamp &- pointee.tsRecent) >= 0,
            // A stranger's segment that only hits the window must not set the clock.
            !segment.has(Flag.ack) || segment.acknowledgment <= pointee.sndMax
        else { return }
        pointee.tsRecent = segment.options.timestamp
        pointee.tsRecentTime = instance.now
    }

    // MARK: Fourth: SYN (RFC 5961, section 4)

    @inline(__always)
    private func checkSyn(_ segment: inout Segment) -> Bool {
        guard segment.has(Flag.syn) else { return true }
        return checkUnexpectedSyn(&segment)
    }

    @inline(never)
    private func checkUnexpectedSyn(_ segment: inout Segment) -> Bool {
        if !has(.synAcked), segment.sequence == pointee.irs {
            // RFC 9293, figure 8: the other half of a simultaneous open, SYN again, now with an ACK of ours.
            guard segment.has(Flag.ack) else {
                if repeatedSyn(segment) { sendSyn() }
                return false
            }
            segment.flags &= ~Flag.syn
            segment.sequence += 1
            return true
        }
        challengeSyn(segment)
        return false
    }

    // MARK: First: sequence number

    /// What the peer may send: the window as advertised, even if there is more room by now (RFC 9293, 3.10.7.4).
    @inline(__always)
    var receiveWindow: Int { max(pointee.rcvAdv - pointee.rcvNxt, 0) }

    /// Cuts what is not new or does not fit. False: the segment is done with.
    ///
    /// RFC 9293 acknowledges an unacceptable segment and drops it. As in BSD, the acknowledgment field of an old
    /// duplicate is still looked at: if both sides are repeating, each would otherwise wait for the other.
    @inline(__always)
    private func checkSequence(_ segment: inout Segment) -> Bool {
        let old = pointee.rcvNxt - segment.sequence
        if old > 0 {
            trimFront(&segment, UInt32(truncatingIfNeeded: old))
        } else if segment.length == 0, old == 0 {
            return true
        }
        let window = receiveWindow
        let excess = (segment.end - pointee.rcvNxt) - window
        if excess > 0 { return trimBack(&segment, UInt32(truncatingIfNeeded: excess)) }
        return true
    }

    @inline(never)
    private func trimFront(_ segment: inout Segment, _ old: UInt32) {
        let instance = instance
        if segment.length > 0 { noteDuplicateData(segment.sequence, segment.sequence + min(old, segment.length)) }
        if old >= segment.length &+ (segment.has(Flag.fin) ? 1 : 0) {
            // All of it, keep-alive probes included.
            if segment.length > 0 || segment.has(Flag.fin) {
                instance.count(.receivedDuplicate)
                instance.count(.receivedDuplicateBytes, segment.length)
                set(.ackNow)
                touch()
            } else {
                challengeAck(.receivedKeepAlive)
            }
            segment.flags &= ~Flag.fin
            segment.dropFront(segment.length)
            segment.sequence = pointee.rcvNxt
        } else {
            instance.count(.receivedPartDuplicate)
            instance.count(.receivedPartDuplicateBytes, old)
            segment.dropFront(min(old, segment.length))
        }
        // RFC 9293, 3.10.7.4: urgent data before the window is old as well.
        if segment.has(Flag.urg) {
            if UInt32(segment.urgentPointer) > old {
                segment.urgentPointer &-= UInt16(truncatingIfNeeded: old)
            } else {
                segment.flags &= ~Flag.urg
                segment.urgentPointer = 0
            }
        }
    }

    @inline(never)
    private func trimBack(_ segment: inout Segment, _ excess: UInt32) -> Bool {
        let instance = instance
        instance.count(.receivedAfterWindow)
        if excess >= segment.length {
            instance.count(.receivedAfterWindowBytes, segment.length)
            if segment.sequence == pointee.rcvNxt, segment.length > 0 {
                // A probe of our closed window: ACK, RST and URG still count (RFC 9293, MUST-66).
                instance.count(.receivedWindowProbe)
                set(.ackNow)
                segment.flags &= ~(Flag.fin | Flag.psh)
                segment.length = 0
                return true
            }
            if segment.length > 0 {
                acknowledgeNow()
            } else {
                challengeAck(.receivedUnacceptable)
            }
            return false
        }
        instance.count(.receivedAfterWindowBytes, excess)
        segment.length -= excess
        segment.flags &= ~(Flag.fin | Flag.psh)
        return true
    }

    // MARK: Challenge acknowledgments (RFC 5961, section 7)

    /// Answers something that may be an attack, a few times a second for each connection.
    func challengeAck(_ reason: Counter) {
        let instance = instance
        instance.count(reason)
        let now = instance.now
        if now &- pointee.challengeStart >= instance.nanoseconds(.challengePeriod) || pointee.challengeStart == 0 {
            pointee.challengeStart = now
            pointee.challenges = 0
        }
        guard Int64(pointee.challenges) < instance.setting(.challengeLimit) else { return }
        pointee.challenges += 1
        instance.count(.sentChallenges)
        sendAck()
    }

    /// An acknowledgment at the end of the batch, whatever else happens.
    @inline(__always)
    func acknowledgeNow() {
        set(.ackNow)
        touch()
    }
}

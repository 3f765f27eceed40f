import PluginAPI
import PluginKit

extension UnsafeMutablePointer where Pointee == Connection {
    /// RFC 9293, 3.10.7.3: SYN-SENT.
    func arriveSynSent(_ segment: inout Segment) {
        let instance = instance
        pointee.totals.segmentsIn &+= segment.count
        // First: ACK.
        var isAcked = false
        if segment.has(Flag.ack) {
            if segment.acknowledgment <= pointee.iss || segment.acknowledgment > pointee.sndMax {
                if !segment.has(Flag.rst), let network = instance.network { instance.reset(&segment, network) }
                return
            }
            isAcked = true
        }
        // Second: RST.
        if segment.has(Flag.rst) {
            guard isAcked else { return }
            instance.count(.drops)
            return close(ALPS_ECONNREFUSED)
        }
        // Fourth: SYN.
        guard segment.has(Flag.syn) else { return }
        noteReceived()
        pointee.irs = segment.sequence
        pointee.rcvNxt = segment.sequence + 1
        pointee.rcvAdv = pointee.rcvNxt + min(pointee.rcvAdv.value, 65535)
        pointee.lastAckSent = pointee.rcvNxt
        pointee.rcvUp = pointee.rcvNxt
        acceptOptions(segment.options)
        agreeOnECN(segment, isAcked: isAcked)
        // RFC 7323, 2.2: the window of a SYN is never scaled.
        pointee.sndWnd = segment.window
        pointee.maxSndWnd = segment.window
        pointee.sndWl1 = segment.sequence
        pointee.sndWl2 = segment.acknowledgment
        segment.sequence += 1
        segment.flags &= ~Flag.syn
        if segment.options.hasTimestamp {
            pointee.tsRecent = segment.options.timestamp
            pointee.tsRecentTime = instance.now
        }

        guard isAcked else {
            // Simultaneous open: our SYN goes out again, with an ACK of theirs.
            enter(.synReceived)
            sendSyn()
            armRetransmit()
            return
        }
        if segment.options.hasFastOpen, segment.options.cookieLength >= 4 {
            instance.remember(instance.cookie(segment), of: pointee.conn.remote, mss: pointee.peerMSS)
        } else if has(.fastOpened), let entry = instance.fastOpenEntry(pointee.conn.remote) {
            // RFC 7413, 4.1.3: the segment size is worth remembering without a new cookie, too.
            entry.pointee.mss = pointee.peerMSS
        }
        takeSynAck(pointee.iss + 1, echo: segment.options.hasTimestamp ? segment.options.echo : nil)
        established()
        concludeSynData(segment)
        concludeECN(segment)
        if segment.has(Flag.urg) { processUrgent(&segment) }
        if segment.length > 0 || segment.has(Flag.fin) {
            trimToWindow(&segment)
            guard processText(&segment) else { return }
        }
        touch()
    }

    private func trimToWindow(_ segment: inout Segment) {
        let excess = (segment.end - pointee.rcvNxt) - receiveWindow
        guard excess > 0 else { return }
        segment.length -= min(segment.length, UInt32(truncatingIfNeeded: excess))
        segment.flags &= ~(Flag.fin | Flag.psh)
    }

    /// What the peer's SYN says, as far as we asked for it.
    func acceptOptions(_ options: Options) {
        let instance = instance
        pointee.peerMSS = options.hasMSS ? instance.believe(mss: options.mss) : instance.defaultMSS(netpcb)
        set(.windowScaling, options.hasWindowScale && instance.offersWindowScaling)
        set(.timestamps, options.hasTimestamp && instance.offersTimestamps)
        set(.sackPermitted, options.isSackPermitted && instance.isOn(.sack))
        if has(.windowScaling) {
            pointee.sndScale = options.windowScale
        } else {
            pointee.sndScale = 0
            pointee.rcvScale = 0
        }
        refreshMSS()
    }

    /// Our SYN has been acknowledged.
    func takeSynAck(_ acknowledgment: SequenceNumber, echo: UInt32?) {
        set(.synAcked)
        if has(.timing) {
            clear(.timing)
            if !has(.synLost) { noteRoundTrip(instance.now &- pointee.timedAt) }
        }
        if pointee.roundTrip.srtt == 0, has(.synLost) {
            // RFC 6298, 5.7: what follows starts from 3 seconds, there being no sample.
            pointee.roundTrip.rto = max(pointee.roundTrip.rto, 3 * UInt64(ALPS_NSEC_PER_SEC))
        }
        pointee.sndUna = acknowledgment
        if pointee.sndNxt < acknowledgment { pointee.sndNxt = acknowledgment }
        if pointee.sndUp < acknowledgment { pointee.sndUp = acknowledgment }
        pointee.sndSmall = acknowledgment
        clear(.recoverSet)
        pointee.backoff = 0
        pointee.attempts = 0
        pointee.waitingSince = 0
        stopRetransmit()
        pointee.receiveTuning = ReceiveTuning(since: instance.now, start: pointee.rcvNxt)
    }

    /// Into ESTABLISHED, and what comes with it.
    func established() {
        let instance = instance
        enter(.established)
        instance.count(.connected)
        pointee.establishedAt = instance.now
        // Linux counts the SYN, with data or without.
        pointee.totals.delivered &+= 1
        if !has(.fastOpened) { beginRecovery() } else { pointee.recovery = LossRecovery.none(at: pointee.iss + 1) }
        pointee.congestion.begin(
            mss: pointee.mss, initialSegments: UInt32(truncatingIfNeeded: instance.setting(.initialWindow)),
            isSynLost: has(.synLost))
        if has(.finQueued) { enter(.finWait1) }
        if instance.isOn(.wholeSegmentBuffers) { roundBuffers() }
        armKeep()
        instance.sockets.pointee.is_connected(instance.socketLayer, socket)
    }
}

import PluginAPI
import PluginKit

// RFC 9293, 3.10.7.4, fifth: the ACK field.

extension UnsafeMutablePointer where Pointee == Connection {
    /// False: nothing more is to be done with the segment; the connection may be gone.
    func processAck(_ segment: inout Segment) -> Bool {
        let instance = instance
        let ack = segment.acknowledgment
        if !has(.synAcked) {
            // A simultaneous or a fast open is complete, unless the ACK is for something we never sent.
            guard ack > pointee.sndUna, ack <= pointee.sndMax else {
                if let network = instance.network { instance.reset(&segment, network) }
                return false
            }
            leaveFastOpen()
            takeSynAck(pointee.iss + 1, echo: nil)
            pointee.sndWnd = segment.window << (segment.hadSyn ? 0 : UInt32(pointee.sndScale))
            pointee.maxSndWnd = pointee.sndWnd
            pointee.sndWl1 = segment.sequence
            pointee.sndWl2 = ack
            // The application may have shut it down already.
            if pointee.state == .synReceived { established() }
            if pointee.sndNxt > pointee.sndUna { restartLossTimer() }
            if ack == pointee.sndUna, segment.options.sackCount == 0 { return true }
        }

        let advance = ack - pointee.sndUna
        if ack > pointee.sndMax {
            // Of something not yet sent.
            challengeAck(.receivedAckTooMuch)
            return false
        }
        if advance < 0, -advance > Int(max(pointee.maxSndWnd, 1)) {
            // RFC 5961, section 5.2: too old to be a delayed one.
            challengeAck(.receivedOldAck)
            return false
        }

        let window = segment.window << (segment.hadSyn ? 0 : UInt32(pointee.sndScale))
        var summary = AcknowledgmentSummary.nothing
        summary.priorPipe = pipe
        summary.priorHighest = pointee.recovery.highest
        summary.isMarked = has(.ecn) && segment.has(Flag.ece)
        if segment.options.hasTimestamp { summary.echo = segment.options.echo }
        if segment.options.sackCount > 0, has(.sackPermitted) { takeSacks(segment, &summary) }
        var finIsAcked = false
        if advance > 0 {
            finIsAcked = newAck(ack, UInt32(truncatingIfNeeded: advance), segment.options, &summary)
        } else {
            noteDuplicate(segment, window: window, isOld: advance < 0, &summary)
        }
        if pointee.accurate.isOn { takeFeedback(segment, isProgress: advance > 0 || summary.hasNewSack, &summary) }
        react(&summary)
        updateSendWindow(segment, window, isAdvance: advance > 0)
        if advance > 0 {
            restartLossTimer()
        } else if summary.hasNewSack || summary.isDuplicate {
            chooseTimer()
        }
        restSenderIfDone()
        guard finIsAcked else { return true }
        set(.finAcked)
        return finAcknowledged()
    }

    /// The window of an acknowledgment of something new counts, since the window is counted from there; else that of the
    /// newest segment (RFC 9293, 3.10.7.4); and of segments with the same number the larger, since they may have overtaken
    /// each other, or one that closes.
    @inline(__always)
    private func updateSendWindow(_ segment: Segment, _ window: UInt32, isAdvance: Bool) {
        let isNewer =
            isAdvance || (pointee.sndWl1 < segment.number && segment.acknowledgment == pointee.sndUna)
            || (pointee.sndWl1 == segment.number && pointee.sndWl2 <= segment.acknowledgment
                && (window > pointee.sndWnd || window == 0))
        guard isNewer else { return }
        if window > pointee.sndWnd, segment.length == 0, pointee.sndWl2 == segment.acknowledgment {
            instance.count(.receivedWindowUpdate)
        }
        let wasClosed = pointee.sndWnd == 0
        pointee.sndWnd = window
        pointee.sndWl1 = segment.number
        pointee.sndWl2 = segment.acknowledgment
        if window > pointee.maxSndWnd { pointee.maxSndWnd = window }
        if wasClosed, window > 0, pointee.retransmitUse == .persist {
            // What is in flight was outside the window when it arrived.
            stopRetransmit()
            pointee.backoff = 0
            pointee.attempts = 0
            loseAll()
        }
    }

    // MARK: Duplicates

    @inline(__always)
    private func noteDuplicate(_ segment: Segment, window: UInt32, isOld: Bool, _ summary: inout AcknowledgmentSummary) {
        // RFC 5681, section 2: data outstanding, none carried, no SYN or FIN, same number, same window.
        guard !isOld, !segment.hasText, !segment.has(Flag.fin), window == pointee.sndWnd,
            pointee.sndMax > pointee.sndUna
        else {
            if !isOld, !segment.hasText { pointee.dupAcks = 0 }
            return
        }
        // RFC 9768, 3.2.2.5.1: an acknowledgment of acknowledgments, which have marks too, is no duplicate.
        if pointee.accurate.isOn, has(.sackPermitted), segment.options.sackCount == 0 { return }
        instance.count(.receivedDuplicateAck)
        if pointee.retransmitUse == .persist {
            // The answer to a probe of a closed window: it says that the peer lives, and nothing about loss.
            pointee.waitingSince = instance.now
            return
        }
        summary.isDuplicate = true
    }

    // MARK: New data acknowledged

    /// True: our FIN is acknowledged.
    private func newAck(
        _ ack: SequenceNumber, _ advance: UInt32, _ options: Options, _ summary: inout AcknowledgmentSummary
    ) -> Bool {
        let instance = instance
        let now = instance.now
        instance.count(.receivedAcks)
        let finIsAcked = has(.finSent) && ack == pointee.sndMax && !has(.finAcked)
        let bytes = finIsAcked ? advance - 1 : advance
        instance.count(.receivedAckBytes, bytes)
        pointee.totals.bytesAcked &+= UInt64(bytes)

        sample(ack, options, now)
        summary.acked = advance
        dropAcknowledged(ack, &summary)
        // At once: stream positions are counted from `sndUna`.
        pointee.sndUna = ack
        if bytes > 0 {
            instance.sockets.pointee.send_drop(
                instance.socketLayer, socket, socket.pointee.snd.head &+ UInt64(bytes))
        }
        pointee.isMoreReleased = true
        if pointee.sndNxt < ack { pointee.sndNxt = ack }
        if pointee.sndUp < ack { pointee.sndUp = ack }
        if pointee.sndSmall < ack { pointee.sndSmall = ack }
        pointee.attempts = 0
        if pointee.retransmitUse == .persist { pointee.backoff = 0 }
        pointee.softError = 0
        pointee.waitingSince = pointee.sndMax > ack ? now : 0
        return finIsAcked
    }

    /// The SYN, ACK acknowledges data that went with our SYN.
    func acknowledgeSynData(_ segment: Segment) {
        var summary = AcknowledgmentSummary.nothing
        summary.priorHighest = pointee.recovery.highest
        let ack = segment.acknowledgment
        _ = newAck(ack, UInt32(truncatingIfNeeded: ack - pointee.sndUna), segment.options, &summary)
    }

    /// Takes what lies before `ack` out of the send map.
    @inline(__always)
    private func dropAcknowledged(_ ack: SequenceNumber, _ summary: inout AcknowledgmentSummary) {
        while let range = pointee.sendMap.first, range.pointee.start < ack {
            let isWhole = range.pointee.end <= ack
            let end = isWhole ? range.pointee.end : ack
            if !range.pointee.has(.sacked) {
                summary.delivered &+= end.value &- range.pointee.start.value
                noteDelivered(range, end: end, &summary)
                if isWhole, range.pointee.has(.sizeProbe) { sizeProbeArrived(range) }
            }
            guard isWhole else { return pointee.sendMap.trim(range, to: ack) }
            pointee.sendMap.remove(range)
            instance.free(range)
        }
    }

    /// One timed segment at a time, never one that was sent twice (Karn). While segments are repeated, timestamps tell
    /// (RFC 7323, section 4): they are coarser than our clock.
    @inline(__always)
    private func sample(_ ack: SequenceNumber, _ options: Options, _ now: UInt64) {
        if has(.timing) {
            if ack > pointee.timedSequence {
                clear(.timing)
                noteRoundTrip(now &- pointee.timedAt)
            }
        } else if pointee.recovery.state != .open || pointee.backoff > 0, has(.timestamps), options.hasTimestamp {
            let elapsed = instance.timestampClock &+ pointee.timestampOffset &- options.echo
            // Milliseconds; what makes no sense is not believed.
            guard elapsed < 600_000 else { return }
            addRoundTrip(UInt64(max(elapsed, 1)) &* UInt64(ALPS_NSEC_PER_MSEC))
        }
    }

    /// A sample of our own clock.
    func noteRoundTrip(_ sample: UInt64) {
        pointee.roundTrip.note(sample, at: instance.now)
        addRoundTrip(sample)
    }

    private func addRoundTrip(_ sample: UInt64) {
        let instance = instance
        instance.count(.roundTripSamples)
        pointee.backoff = 0
        pointee.roundTrip.add(
            sample, floor: instance.nanoseconds(.minimumRTO), ceiling: instance.nanoseconds(.maximumRTO),
            granularity: max(instance.nanoseconds(.variationFloor), UInt64(ALPS_NSEC_PER_MSEC)))
    }

    // MARK: FIN of ours acknowledged

    private func finAcknowledged() -> Bool {
        switch pointee.state {
        case .finWait1:
            enter(.finWait2)
            armFinWait2()
            return true
        case .closing:
            enterTimeWait()
            return false
        case .lastAck:
            close(0)
            return false
        default:
            return true
        }
    }
}

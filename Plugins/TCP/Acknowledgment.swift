import PluginAPI
import PluginKit

// RFC 9293, 3.10.7.4, fifth: the ACK field. RFC 5681 and 6582 for what it says about loss.

extension UnsafeMutablePointer where Pointee == Connection {
    /// False: nothing more is to be done with the segment; the connection may be gone.
    func processAck(_ segment: inout Segment) -> Bool {
        let instance = instance
        let ack = segment.acknowledgment
        if pointee.state == .synReceived {
            // A simultaneous open is complete, unless the ACK is for something we never sent.
            guard ack > pointee.sndUna, ack <= pointee.sndMax else {
                if let network = instance.network { instance.reset(&segment, network) }
                return false
            }
            takeSynAck(ack, echo: nil)
            pointee.sndWnd = segment.window << UInt32(pointee.sndScale)
            pointee.maxSndWnd = pointee.sndWnd
            pointee.sndWl1 = segment.sequence
            pointee.sndWl2 = ack
            established()
            return true
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

        let window = segment.window << UInt32(pointee.sndScale)
        if advance <= 0 {
            duplicateAck(segment, window: window, isOld: advance < 0)
        } else {
            guard newAck(ack, UInt32(truncatingIfNeeded: advance), segment.options) else { return false }
        }
        updateSendWindow(segment, window)
        return true
    }

    /// RFC 9293: the window of the newest segment counts, and among equals that of the newest acknowledgment.
    @inline(__always)
    private func updateSendWindow(_ segment: Segment, _ window: UInt32) {
        let isNewer =
            pointee.sndWl1 < segment.sequence
            || (pointee.sndWl1 == segment.sequence
                && (pointee.sndWl2 < segment.acknowledgment
                    || (pointee.sndWl2 == segment.acknowledgment && window > pointee.sndWnd)))
        guard isNewer else { return }
        if window > pointee.sndWnd, segment.length == 0, pointee.sndWl2 == segment.acknowledgment {
            instance.count(.receivedWindowUpdate)
        }
        let wasClosed = pointee.sndWnd == 0
        pointee.sndWnd = window
        pointee.sndWl1 = segment.sequence
        pointee.sndWl2 = segment.acknowledgment
        if window > pointee.maxSndWnd { pointee.maxSndWnd = window }
        if wasClosed, window > 0, pointee.retransmitUse == .persist {
            // What the probes had put in flight counts as lost: it was outside the window.
            stopRetransmit()
            pointee.backoff = 0
            pointee.sndNxt = pointee.sndUna
        }
    }

    // MARK: Duplicates

    @inline(__always)
    private func duplicateAck(_ segment: Segment, window: UInt32, isOld: Bool) {
        // RFC 5681, section 2: data outstanding, none carried, no SYN or FIN, same number, same window.
        guard !isOld, segment.length == 0, !segment.has(Flag.fin), window == pointee.sndWnd,
            pointee.sndMax > pointee.sndUna
        else {
            if !isOld, segment.length == 0 { pointee.dupAcks = 0 }
            return
        }
        instance.count(.receivedDuplicateAck)
        if pointee.retransmitUse == .persist {
            // The answer to a probe of a closed window: it says that the peer lives, and nothing about loss.
            pointee.waitingSince = instance.now
            return
        }
        countDuplicate()
    }

    @inline(never)
    private func countDuplicate() {
        if has(.inRecovery) {
            pointee.congestion.inflate(mss: pointee.mss)
            return
        }
        pointee.dupAcks += 1
        guard pointee.dupAcks == 3 else { return }
        // RFC 6582, 3.2 step 1: not for losses of a window that has already been repaired or timed out.
        guard !has(.recoverSet) else { return }
        fastRetransmit()
    }

    // MARK: New data acknowledged

    private func newAck(_ ack: SequenceNumber, _ advance: UInt32, _ options: Options) -> Bool {
        let instance = instance
        let now = instance.now
        instance.count(.receivedAcks)
        let finIsAcked = has(.finSent) && ack == pointee.sndMax && !has(.finAcked)
        let bytes = finIsAcked ? advance - 1 : advance
        instance.count(.receivedAckBytes, bytes)
        pointee.totals.bytesAcked &+= UInt64(bytes)

        sample(ack, options, now)
        // At once: stream positions are counted from `sndUna`.
        pointee.sndUna = ack
        if bytes > 0 {
            instance.sockets.pointee.send_drop(
                instance.socketLayer, socket, socket.pointee.snd.head &+ UInt64(bytes))
        }
        if pointee.sndNxt < ack { pointee.sndNxt = ack }
        if pointee.sndUp < ack { pointee.sndUp = ack }
        if pointee.sndSmall < ack { pointee.sndSmall = ack }
        let flight = UInt32(truncatingIfNeeded: pointee.sndMax - ack)
        pointee.backoff = 0
        pointee.softError = 0
        pointee.dupAcks = 0
        pointee.waitingSince = flight > 0 ? now : 0

        if has(.inRecovery) {
            recoveryAck(ack, advance, flight)
        } else {
            if has(.recoverSet), ack > pointee.recover { clear(.recoverSet) }
            pointee.congestion.acknowledged(
                AcknowledgmentSample(acked: advance, mss: pointee.mss, now: now, roundTrip: 0))
        }

        // RFC 6298, 5.2 and 5.3.
        if flight == 0 {
            stopRetransmit()
        } else if !has(.inRecovery) || !has(.recoveryTimerSet) {
            if has(.inRecovery) { set(.recoveryTimerSet) }
            armRetransmit()
        }

        if finIsAcked {
            set(.finAcked)
            return finAcknowledged()
        }
        return true
    }

    /// RFC 6582, 3.2 step 3.
    private func recoveryAck(_ ack: SequenceNumber, _ advance: UInt32, _ flight: UInt32) {
        if ack >= pointee.recover {
            clear([.inRecovery, .recoveryTimerSet])
            pointee.congestion.exitRecovery(flight: flight, mss: pointee.mss)
        } else {
            instance.count(.partialAcks)
            pointee.congestion.partiallyAcknowledged(advance, mss: pointee.mss)
            retransmitFirst()
        }
    }

    /// One timed segment at a time, never one that was sent twice (Karn). While segments are repeated, timestamps tell
    /// (RFC 7323, section 4): they are coarser than our clock.
    @inline(__always)
    private func sample(_ ack: SequenceNumber, _ options: Options, _ now: UInt64) {
        if has(.timing) {
            if ack > pointee.timedSequence {
                clear(.timing)
                addRoundTrip(now &- pointee.timedAt)
            }
        } else if pointee.backoff > 0 || has(.inRecovery), has(.timestamps), options.hasTimestamp {
            let elapsed = instance.timestampClock &+ pointee.timestampOffset &- options.echo
            // Milliseconds; what makes no sense is not believed.
            guard elapsed < 600_000 else { return }
            addRoundTrip(UInt64(max(elapsed, 1)) &* UInt64(ALPS_NSEC_PER_MSEC))
        }
    }

    func addRoundTrip(_ sample: UInt64) {
        let instance = instance
        instance.count(.roundTripSamples)
        pointee.roundTrip.add(
            sample, floor: instance.nanoseconds(.minimumRTO), ceiling: instance.nanoseconds(.maximumRTO),
            granularity: UInt64(ALPS_NSEC_PER_MSEC))
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

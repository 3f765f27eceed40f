import PluginAPI
import PluginKit

// Finding out what is lost: RACK (RFC 8985, section 6) if the receiver reports what it has, duplicate acknowledgments
// (RFC 5681, 6582) if it does not.

extension UnsafeMutablePointer where Pointee == Connection {
    func findLosses(_ summary: inout AcknowledgmentSummary) {
        if has(.sackPermitted) {
            summary.hasLoss = findLateRanges()
        } else {
            countDuplicates(&summary)
        }
    }

    // MARK: RACK

    /// Something sent in `range` has arrived, up to `end`: RFC 8985, 6.2 steps 1 to 3.
    @inline(__always)
    func noteDelivered(_ range: RangePointer, end: SequenceNumber, _ summary: inout AcknowledgmentSummary) {
        let sentAt = range.pointee.sentAt
        let roundTrip = instance.now &- sentAt
        if range.pointee.has(.repeated) {
            summary.hasRepeated = true
            // Of which transmission? Not of the last if the echo is older, or if it would have been too fast.
            if has(.timestamps), let echo = summary.echo {
                let stamp = UInt32(truncatingIfNeeded: sentAt / UInt64(ALPS_NSEC_PER_MSEC)) &+ pointee.timestampOffset
                if Int32(bitPattern: echo &- stamp) < 0 { return noteHighest(end) }
            }
            if roundTrip < pointee.roundTrip.minimum { return noteHighest(end) }
        } else {
            if end <= pointee.recovery.point { summary.hasOriginal = true }
            if end < summary.priorHighest { noteReordering(range, &summary) }
            pointee.roundTrip.note(roundTrip, at: instance.now)
        }
        noteHighest(end)
        // The round trip is that of the latest to be delivered, whenever it was sent.
        pointee.recovery.rackRoundTrip = roundTrip
        if sentAt > pointee.recovery.rackSentAt
            || (sentAt == pointee.recovery.rackSentAt && end > pointee.recovery.rackEnd)
        {
            pointee.recovery.rackSentAt = sentAt
            pointee.recovery.rackEnd = end
        }
    }

    @inline(never)
    private func noteReordering(_ range: RangePointer, _ summary: inout AcknowledgmentSummary) {
        if !summary.hasReordering {
            summary.hasReordering = true
            pointee.totals.reorderings &+= 1
        }
        if !pointee.recovery.hasReordering {
            pointee.recovery.hasReordering = true
            instance.count(.reorderedConnections)
        }
        let distance = UInt32(truncatingIfNeeded: summary.priorHighest - range.pointee.start)
        let degree = (distance &+ pointee.mss &- 1) / pointee.mss
        if degree > pointee.recovery.reorderingDegree { pointee.recovery.reorderingDegree = min(degree, 300) }
    }

    @inline(__always)
    private func noteHighest(_ end: SequenceNumber) {
        if end > pointee.recovery.highest { pointee.recovery.highest = end }
    }

    /// RFC 8985, 6.2 step 4.
    private var reorderWindow: UInt64 {
        let recovery = pointee.recovery
        if !recovery.hasReordering {
            // RACK_DUPTHRESH: as fast as three duplicates ever were.
            if recovery.state == .recovery || recovery.state == .loss { return 0 }
            if pointee.sendMap.sackedSegments >= 3 { return 0 }
        }
        return min(pointee.roundTrip.minimum / 4 &* UInt64(recovery.windowGrowth + 1), pointee.roundTrip.srtt)
    }

    /// Step 5: what was sent before something that has arrived, and is later than that by more than the reordering
    /// window, is lost. The queue is in order of transmission, so the walk ends at the first that may still come.
    private func findLateRanges() -> Bool {
        guard pointee.recovery.rackSentAt != 0 else { return false }
        pointee.recovery.reorderDeadline = 0
        guard pointee.sendMap.flight.first != nil else { return false }
        let now = instance.now
        let allowance = pointee.recovery.rackRoundTrip &+ reorderWindow
        var hasLoss = false
        while let range = pointee.sendMap.flight.first {
            let isBefore =
                range.pointee.sentAt < pointee.recovery.rackSentAt
                || (range.pointee.sentAt == pointee.recovery.rackSentAt
                    && range.pointee.end < pointee.recovery.rackEnd)
            guard isBefore else { break }
            guard range.pointee.sentAt &+ allowance <= now else {
                pointee.recovery.reorderDeadline = range.pointee.sentAt &+ allowance
                break
            }
            if range.pointee.has(.sizeProbe) { sizeProbeLost(range) } else { hasLoss = true }
            pointee.sendMap.lose(range)
        }
        return hasLoss
    }

    /// The reordering window is over.
    func reorderTimedOut() {
        instance.count(.reorderTimeouts)
        let priorPipe = pipe
        let isLost = findLateRanges()
        if isLost {
            switch pointee.recovery.state {
            case .open, .reduction: enterRecovery(priorPipe: priorPipe)
            case .recovery, .loss: break
            }
            var summary = AcknowledgmentSummary.nothing
            summary.hasLoss = true
            if pointee.recovery.state == .recovery { reduceProportionally(summary) }
        }
        chooseTimer()
        output()
    }

    // MARK: Duplicate acknowledgments

    /// Without SACK each duplicate stands for a segment that has arrived (RFC 6582, RFC 9937 section 6.1).
    @inline(never)
    private func countDuplicates(_ summary: inout AcknowledgmentSummary) {
        let mss = pointee.mss
        if summary.isDuplicate {
            let flight = UInt32(truncatingIfNeeded: max(0, pointee.sndNxt - pointee.sndUna))
            pointee.dupAcks += 1
            let most = flight > mss ? flight - mss : 0
            let known = pointee.sendMap.sackedBytes
            if known < most {
                let gain = min(mss, most - known)
                pointee.sendMap.sackedBytes = known &+ gain
                summary.delivered = gain
            }
            // RFC 6582, 3.2 step 2: not for losses of a window that has already been repaired or timed out.
            if pointee.dupAcks == 3, pointee.recovery.state == .open || pointee.recovery.state == .reduction,
                !has(.recoverSet)
            {
                summary.hasLoss = loseFront()
            }
            return
        }
        guard summary.acked > 0 else { return }
        pointee.dupAcks = 0
        let known = pointee.sendMap.sackedBytes
        // One segment filled the hole, the rest had been counted as duplicates.
        let behind = summary.acked > mss ? summary.acked - mss : 0
        pointee.sendMap.sackedBytes = known > behind ? known - behind : 0
        summary.delivered = summary.acked > known - pointee.sendMap.sackedBytes
            ? summary.acked - (known - pointee.sendMap.sackedBytes) : 0
        if summary.hasRepeated { summary.hasOriginal = false }
        switch pointee.recovery.state {
        case .recovery:
            // RFC 6582, 3.2 step 3: a partial acknowledgment points at the next hole.
            if pointee.sndUna < pointee.recovery.point { _ = loseFront() }
        case .open, .reduction:
            pointee.sendMap.sackedBytes = 0
            if has(.recoverSet), pointee.sndUna > pointee.recovery.point { clear(.recoverSet) }
        case .loss:
            break
        }
    }

    /// Takes the first segment for lost. False if it waits already or has just been sent again.
    private func loseFront() -> Bool {
        guard let range = pointee.sendMap.first, !range.pointee.has(.waiting) else { return false }
        if range.pointee.length > pointee.mss, !split(range, at: range.pointee.start + pointee.mss) { return false }
        pointee.sendMap.lose(range)
        return true
    }
}

extension AcknowledgmentSummary {
    static var nothing: AcknowledgmentSummary {
        AcknowledgmentSummary(
            priorPipe: 0, priorHighest: SequenceNumber(0), acked: 0, delivered: 0, hasNewSack: false, reportsDuplicate: false, isDuplicate: false,
            hasOriginal: false, hasReordering: false, hasRepeated: false, isMarked: false, hasLoss: false, echo: nil)
    }
}

import PluginAPI
import PluginKit

/// What the sender is doing about loss.
enum RecoveryState: UInt8 {
    /// Nothing.
    case open = 0
    /// The window comes down without a loss: congestion was marked (RFC 3168).
    case reduction
    /// Fast recovery.
    case recovery
    /// After a time-out.
    case loss
}

/// Loss recovery of a connection: fast recovery with proportional rate reduction (RFC 9937), F-RTO (RFC 5682), undo of
/// what was unnecessary (RFC 4015 by timestamps, RFC 3708 by D-SACK), and the state of RACK-TLP (RFC 8985).
struct LossRecovery {
    // RACK: the most recent transmission of which arrival is known.
    var rackSentAt: UInt64
    var rackRoundTrip: UInt64
    /// When the next range is late; 0: none is watched.
    var reorderDeadline: UInt64
    var rackEnd: SequenceNumber
    /// Behind the highest number known to have arrived: RACK.fack.
    var highest: SequenceNumber
    /// Ends when everything before this is acknowledged: RecoveryPoint.
    var point: SequenceNumber
    var state: RecoveryState
    var hasReordering: Bool
    var isDuplicateRound: Bool
    /// The farthest that an original has come behind others, segments; 3 at first.
    var reorderingDegree: UInt32
    /// RACK.reo_wnd_mult - 1.
    var windowGrowth: UInt32
    /// Recoveries until the reordering window is small again.
    var windowPersist: UInt32
    /// The round in which a D-SACK has widened the window already ends here.
    var duplicateRound: SequenceNumber

    // Proportional rate reduction.
    var flightSize: UInt32
    var prrDelivered: UInt32
    var prrOut: UInt32

    // Undo.
    /// Bytes sent again in this episode that no D-SACK has called unnecessary.
    var undoBytes: UInt32
    /// The timestamp of the first repetition.
    var firstRepeat: UInt32
    var priorWindow: UInt32
    var priorThreshold: UInt32
    var canUndo: Bool
    var hasRepeated: Bool

    /// F-RTO: whether the time-out was spurious is still open.
    var isTimeoutInDoubt: Bool
    /// The next output sends new data, whatever waits to be sent again (RFC 5682, 3.1 step 2b).
    var sendsNewFirst: Bool

    // Tail loss probe.
    var probeEnd: SequenceNumber
    var isProbing: Bool
    var isProbeRepeat: Bool
}

/// What one acknowledgment has told.
struct AcknowledgmentSummary {
    /// Bytes in flight before.
    var priorPipe: Int
    /// RACK.fack before: the ranges one acknowledgment tells of have no order among themselves.
    var priorHighest: SequenceNumber
    /// Numbers newly acknowledged.
    var acked: UInt32
    /// Bytes now known to have arrived, each counted once.
    var delivered: UInt32
    var hasNewSack: Bool
    /// It reports a duplicate (RFC 2883).
    var reportsDuplicate: Bool
    /// Neither acknowledges nor carries anything (RFC 5681, section 2).
    var isDuplicate: Bool
    /// Something from before the recovery point, sent once only, has arrived.
    var hasOriginal: Bool
    /// Something sent once only has arrived behind what was sent after it.
    var hasReordering: Bool
    /// Something that was sent twice has been acknowledged.
    var hasRepeated: Bool
    /// Congestion was marked on the way (ECN).
    var isMarked: Bool
    /// A loss has been found.
    var hasLoss: Bool
    /// Echoed timestamp.
    var echo: UInt32?
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// The recovery state as programs know it: in recovery of any kind.
    var isRecovering: Bool { pointee.recovery.state == .recovery || pointee.recovery.state == .loss }

    /// A connection is established; `sndUna` is its first data number.
    func beginRecovery() {
        restSender()
        let now = instance.now
        pointee.validation = WindowValidation(
            validAt: now, since: now, period: now, acked: 0, most: 0, mostBefore: 0, hasSample: false)
        endPathProbe()
    }

    // MARK: An acknowledgment

    /// Acts on what an acknowledgment has told of loss; cwnd is right afterwards.
    func react(_ summary: inout AcknowledgmentSummary) {
        if summary.acked > 0 || summary.isMarked || summary.reportsDuplicate {
            // Nothing is in flight that there could be a reaction about.
            guard wakeSender() else { return }
        }
        if summary.delivered > 0 {
            let segments = (summary.delivered &+ pointee.mss &- 1) / pointee.mss
            pointee.totals.delivered &+= segments
            if summary.isMarked { pointee.totals.deliveredMarked &+= segments }
        }
        if pointee.recovery.isProbing { considerProbe(summary) }
        if summary.reportsDuplicate { duplicateReported() }
        findLosses(&summary)
        if summary.isMarked { congestionReported(priorPipe: summary.priorPipe) }
        switch pointee.recovery.state {
        case .open:
            if summary.hasLoss {
                enterRecovery(priorPipe: summary.priorPipe)
                reduceProportionally(summary)
            } else {
                if summary.reportsDuplicate, isUndoable(summary) { undo(.undoneRecoveries) }
                grow(summary, always: false)
            }
        case .reduction:
            if summary.hasLoss {
                enterRecovery(priorPipe: summary.priorPipe)
                reduceProportionally(summary)
            } else if pointee.sndUna >= pointee.recovery.point {
                leaveRecovery()
            } else {
                reduceProportionally(summary)
            }
        case .recovery:
            if isUndoable(summary), summary.acked > 0 || summary.reportsDuplicate {
                undo(.undoneRecoveries)
            } else if pointee.sndUna >= pointee.recovery.point {
                leaveRecovery()
            } else {
                if summary.acked > 0 { instance.count(.partialAcks) }
                reduceProportionally(summary)
            }
        case .loss:
            reactInLoss(summary)
        }
    }

    @inline(__always)
    private func grow(_ summary: AcknowledgmentSummary, always: Bool) {
        guard summary.acked > 0 else { return }
        validate(summary.acked)
        if always { pointee.congestion.isWindowLimited = true }
        // What had been reported before has been delivered before.
        pointee.congestion.acknowledged(
            AcknowledgmentSample(
                acked: min(summary.acked, summary.delivered), mss: pointee.mss, now: instance.now,
                roundTrip: pointee.roundTrip.srtt))
        tuneSendBuffer()
    }

    // MARK: Fast recovery

    /// RFC 5681, 3.2; RFC 6675, 5. `priorPipe`: what was in flight before the news.
    func enterRecovery(priorPipe: Int) {
        let instance = instance
        instance.count(.fastRetransmits)
        if pointee.recovery.state == .open {
            rememberForUndo()
            lowerThreshold()
        }
        pointee.recovery.state = .recovery
        beginReduction(priorPipe: priorPipe)
    }

    /// ssthresh for what is in flight now.
    func lowerThreshold() {
        let flight = UInt32(truncatingIfNeeded: max(0, pointee.sndNxt - pointee.sndUna))
        pointee.congestion.reduce(flight: flight, mss: pointee.mss)
        // RFC 3168, 6.1.2: whatever the window has been reduced for, the next new segment says so.
        if has(.ecn) { set(.windowReduced) }
    }

    func beginReduction(priorPipe: Int) {
        pointee.recovery.point = pointee.sndNxt
        set(.recoverSet)
        pointee.recovery.flightSize = UInt32(truncatingIfNeeded: max(priorPipe, Int(pointee.mss)))
        pointee.recovery.prrDelivered = 0
        pointee.recovery.prrOut = 0
    }

    /// RFC 9937, 6.2: what is sent is in proportion to what is delivered.
    func reduceProportionally(_ summary: AcknowledgmentSummary) {
        pointee.recovery.prrDelivered &+= summary.delivered
        let isFirst = pointee.recovery.prrOut == 0
        let pipe = pipe
        let threshold = Int(pointee.congestion.ssthresh)
        let delivered = Int(pointee.recovery.prrDelivered)
        let out = Int(pointee.recovery.prrOut)
        let mss = Int(pointee.mss)
        var count: Int
        if pipe > threshold {
            let flightSize = Int(pointee.recovery.flightSize)
            count = (delivered * threshold + flightSize - 1) / flightSize - out
        } else {
            count = max(delivered - out, Int(summary.delivered))
            // SafeACK: what was repeated arrives, and nothing else is lost.
            if summary.acked > 0, !summary.hasLoss { count += mss }
            count = min(threshold - pipe, count)
        }
        // The first repetition goes at once.
        if isFirst, pointee.recovery.state == .recovery { count = max(count, mss) }
        // So does the hole that a partial acknowledgment points at (RFC 6582, 3.2 step 3).
        if summary.acked > 0, !has(.sackPermitted), pointee.recovery.state == .recovery { count = max(count, mss) }
        pointee.congestion.cwnd = UInt32(truncatingIfNeeded: max(pipe + max(count, 0), mss))
    }

    private func leaveRecovery() {
        pointee.recovery.state = .open
        pointee.congestion.exitRecovery(mss: pointee.mss)
        endOfRecovery()
    }

    /// RFC 8985, 6.2 step 4: the reordering window does not stay wide for ever.
    private func endOfRecovery() {
        guard pointee.recovery.windowPersist > 0 else { return }
        pointee.recovery.windowPersist -= 1
        if pointee.recovery.windowPersist == 0 { pointee.recovery.windowGrowth = 0 }
    }

    // MARK: After a time-out

    /// RFC 5681, 3.1 and RFC 6298, 5.4: everything in flight is taken for lost, the window is one segment.
    func enterLoss() {
        let instance = instance
        if let first = pointee.sendMap.first, first.pointee.has(.sacked) {
            // What was reported at the very front would have been acknowledged: the receiver has dropped it.
            instance.count(.sackReneged)
            forgetSacks()
        } else if !has(.sackPermitted) {
            pointee.sendMap.sackedBytes = 0
        }
        // A time-out for what has been repeated already is no news (RFC 5681, 3.1).
        let isNew = pointee.recovery.state != .loss || pointee.sndUna >= pointee.recovery.point
        if isNew {
            if pointee.recovery.state != .recovery { rememberForUndo() }
            lowerThreshold()
        }
        pointee.congestion.timedOut(mss: pointee.mss)
        pointee.recovery.state = .loss
        pointee.recovery.point = pointee.sndNxt
        pointee.recovery.canUndo = true
        pointee.recovery.hasRepeated = false
        pointee.recovery.undoBytes = 0
        // RFC 5682, 2.1 step 1: not again before the recovery point is reached.
        pointee.recovery.isTimeoutInDoubt = isNew && instance.isOn(.frto)
        pointee.recovery.sendsNewFirst = false
        pointee.recovery.isProbing = false
        pointee.recovery.reorderDeadline = 0
        pointee.dupAcks = 0
        set(.recoverSet)
        loseAll()
    }

    private func reactInLoss(_ summary: AcknowledgmentSummary) {
        let isOver = pointee.sndUna >= pointee.recovery.point
        if summary.acked > 0, isUndoable(summary) { return undo(.spuriousTimeouts) }
        if pointee.recovery.isTimeoutInDoubt {
            // RFC 5682, 3.1 step 3b: what was sent once only arrives, so it was not lost.
            if summary.hasOriginal, pointee.recovery.canUndo { return undo(.spuriousTimeouts) }
            if pointee.sndNxt > pointee.recovery.point {
                // Step 3a: after the new data, only duplicates.
                if summary.hasNewSack || summary.isDuplicate { pointee.recovery.isTimeoutInDoubt = false }
            } else if summary.acked > 0, !isOver {
                // Step 2b.
                pointee.recovery.point = pointee.sndNxt
                pointee.recovery.sendsNewFirst = unsent > 0 && pointee.sndNxt - pointee.sndUna < Int(pointee.sndWnd)
                if !pointee.recovery.sendsNewFirst { pointee.recovery.isTimeoutInDoubt = false }
            }
        }
        grow(summary, always: true)
        if isOver {
            pointee.recovery.state = .open
            pointee.recovery.isTimeoutInDoubt = false
            endOfRecovery()
        }
    }

    // MARK: Undo

    func rememberForUndo() {
        pointee.recovery.canUndo = true
        pointee.recovery.hasRepeated = false
        pointee.recovery.undoBytes = 0
        pointee.recovery.priorWindow = pointee.congestion.cwnd
        pointee.recovery.priorThreshold = pointee.congestion.ssthresh
    }

    /// A range goes out again.
    func noteRepeated(_ length: UInt32) {
        if !pointee.recovery.hasRepeated {
            pointee.recovery.hasRepeated = true
            pointee.recovery.firstRepeat = timestampNow
        }
        pointee.recovery.undoBytes &+= length
    }

    /// The receiver has got something twice.
    private func duplicateReported() {
        instance.count(.receivedDuplicateReports)
        pointee.totals.duplicateReports &+= 1
        // RFC 8985, 6.2 step 4: what we took for lost was late. Once a round trip.
        if pointee.recovery.isDuplicateRound, pointee.sndUna >= pointee.recovery.duplicateRound {
            pointee.recovery.isDuplicateRound = false
        }
        guard !pointee.recovery.isDuplicateRound else { return }
        pointee.recovery.isDuplicateRound = true
        pointee.recovery.duplicateRound = pointee.sndNxt
        pointee.recovery.windowGrowth = min(pointee.recovery.windowGrowth + 1, 255)
        pointee.recovery.windowPersist = 16
    }

    /// Whether the reduction under way was for nothing: the acknowledgment answers a first transmission, not the
    /// repetition (RFC 3522), or every repetition has been reported as a duplicate (RFC 3708).
    private func isUndoable(_ summary: AcknowledgmentSummary) -> Bool {
        guard pointee.recovery.canUndo, pointee.recovery.hasRepeated else { return false }
        if pointee.recovery.undoBytes == 0 { return true }
        guard has(.timestamps), let echo = summary.echo, summary.acked > 0 else { return false }
        return Int32(bitPattern: echo &- pointee.recovery.firstRepeat) < 0
    }

    private func undo(_ counter: Counter) {
        instance.count(counter)
        while let range = pointee.sendMap.waiting.first { pointee.sendMap.forgive(range) }
        // Proportional rate reduction has set cwnd after what is in flight, which a tail loss probe may have carried beyond
        // the window that there was.
        if pointee.recovery.state == .recovery || pointee.recovery.state == .reduction {
            pointee.congestion.cwnd = pointee.recovery.priorWindow
        }
        pointee.congestion.undo(cwnd: pointee.recovery.priorWindow, ssthresh: pointee.recovery.priorThreshold)
        pointee.recovery.state = .open
        pointee.recovery.canUndo = false
        pointee.recovery.isTimeoutInDoubt = false
        pointee.recovery.sendsNewFirst = false
        clear(.recoverSet)
        pointee.attempts = 0
        endOfRecovery()
    }

    /// What a segment sent now would carry.
    @inline(__always)
    var timestampNow: UInt32 { instance.timestampClock &+ pointee.timestampOffset }
}

extension LossRecovery {
    static func none(at number: SequenceNumber) -> LossRecovery {
        LossRecovery(
            rackSentAt: 0, rackRoundTrip: 0, reorderDeadline: 0, rackEnd: number, highest: number, point: number,
            state: .open, hasReordering: false, isDuplicateRound: false, reorderingDegree: 3, windowGrowth: 0,
            windowPersist: 0, duplicateRound: number, flightSize: 0, prrDelivered: 0, prrOut: 0, undoBytes: 0,
            firstRepeat: 0, priorWindow: 0, priorThreshold: 0, canUndo: false, hasRepeated: false,
            isTimeoutInDoubt: false, sendsNewFirst: false, probeEnd: number, isProbing: false, isProbeRepeat: false)
    }
}

import PluginAPI
import PluginKit

// What a data sender makes of Accurate ECN's feedback (RFC 9768, 3.2.2 and appendix A.2): how many of its packets were
// marked, whether the path is to be trusted, and one reduction a round trip as RFC 3168 has it.

extension UnsafeMutablePointer where Pointee == Connection {
    /// An acknowledgment has been taken; `isProgress`: it has told of something newly arrived.
    func takeFeedback(_ segment: Segment, isProgress: Bool, _ summary: inout AcknowledgmentSummary) {
        let ace = segment.ace
        if pointee.accurate.awaitsHandshakeAck {
            pointee.accurate.awaitsHandshakeAck = false
            if !segment.hadSyn, !segment.hasText, !segment.has(Flag.fin), segment.options.sackCount == 0 {
                _ = takeCounters(segment)
                return takeHandshakeAck(ace)
            }
        }
        // 3.2.2: on a SYN, ACK these bits are no counter. Of an older segment the counters have been overtaken (A.1).
        guard !segment.hadSyn, isProgress || pointee.accurate.isNewest else { return }
        if !isProgress, isHandshakeAckAgain(segment, ace) { return }
        guard !pointee.accurate.ignoresFeedback else { return }
        let increase = takeCounters(segment)
        let packets = (summary.delivered &+ pointee.mss &- 1) / pointee.mss
        noteAverage(packets)
        if isZeroed(ace, packets) {
            pointee.accurate.failures.insert(.flagsReceived)
            pointee.accurate.ignoresFeedback = true
            return
        }
        let marks = decode(ace, packets, increase)
        if let increase {
            if increase > 0, marks == 0, pointee.accurate.marksUntold == 0, packets < 8 {
                // 3.2.3.2.5: marked bytes without a marked packet, and no wrap that could hide it.
                pointee.accurate.failures.insert(.flagsReceived)
            }
            pointee.accurate.marksUntold = 0
        } else {
            pointee.accurate.marksUntold &+= marks
        }
        pointee.accurate.delivered.packets &+= marks
        if isAlwaysMarked(packets, marks) { return }
        // Marks on acknowledgments alone say nothing about a window that is not in use.
        summary.isMarked = marks > 0 && (isProgress || summary.priorPipe > 0)
    }

    // MARK: Handshake

    /// The ACK of our SYN, ACK tells how that has arrived (RFC 9768, table 4).
    private func takeHandshakeAck(_ ace: UInt8) {
        pointee.accurate.handshakeACE = ace
        guard ace != ACE.none else {
            // Note 1: the client is not in this mode, or something on the way clears the bits.
            pointee.accurate.failures.insert(.flagsReceived)
            pointee.accurate.ignoresFeedback = true
            return
        }
        guard let field = ACE.reflected(ace) else { return }
        // 3.2.2.3: Not-ECT does not change by itself.
        if field != IPECN.notCapable, pointee.accurate.checksReflection, instance.isOn(.ecnFallback) {
            pointee.accurate.failures.insert(.flagsReceived)
        }
        guard field == IPECN.marked else { return }
        pointee.accurate.delivered.packets &+= 1
        startWithOneSegment()
    }

    /// A client whose ACK was late has sent it twice: not a counter either.
    private func isHandshakeAckAgain(_ segment: Segment, _ ace: UInt8) -> Bool {
        pointee.accurate.isServer && ace == pointee.accurate.handshakeACE && !segment.hasText
            && segment.number == pointee.irs + 1 && segment.acknowledgment == pointee.iss + 1
    }

    // MARK: ACE

    /// 3.2.2.4: the first counter is zero, and too few packets have arrived for three of them to have been marked.
    private func isZeroed(_ ace: UInt8, _ packets: UInt32) -> Bool {
        guard !pointee.accurate.hasDecoded else { return false }
        pointee.accurate.hasDecoded = true
        return ace == 0 && packets < 3
    }

    /// How many packets have been marked, by three bits of their count. If so many have been acknowledged at once that
    /// the counter may have wrapped, the safest of what is likely (3.2.2.5.2, A.2). `increase`: marked bytes, if known.
    private func decode(_ ace: UInt8, _ packets: UInt32, _ increase: UInt32?) -> UInt32 {
        let least = (UInt32(ace) &- pointee.accurate.delivered.packets) & 7
        guard packets > 7 else { return least }
        let most = packets &- ((packets &- least) & 7)
        if let increase {
            // As many as the bytes need at least, and as the three bits allow.
            let needed = (increase &+ pointee.mss &- 1) / pointee.mss
            let untold = needed &- min(needed, pointee.accurate.marksUntold)
            return untold <= least ? least : min(least &+ (untold &- least &+ 7) & ~7, most)
        }
        // Where acknowledgments cover many packets as a rule, that is no sign of those between having been lost.
        return pointee.accurate.averageAcked > 4 << 6 ? least : most
    }

    /// Every packet of the first four round trips has come with a mark: that is no congestion (3.2.2.3).
    private func isAlwaysMarked(_ packets: UInt32, _ marks: UInt32) -> Bool {
        guard !pointee.accurate.hasUnmarkedRound, packets > 0 else { return false }
        pointee.accurate.roundPackets &+= packets
        pointee.accurate.roundMarks &+= marks
        if pointee.accurate.roundMarks < pointee.accurate.roundPackets {
            pointee.accurate.hasUnmarkedRound = true
            return false
        }
        if pointee.accurate.markedRounds > 0, pointee.sndUna < pointee.accurate.roundEnd { return false }
        pointee.accurate.markedRounds += 1
        pointee.accurate.roundEnd = pointee.sndNxt
        guard pointee.accurate.markedRounds > 4, instance.isOn(.ecnFallback) else { return false }
        pointee.accurate.hasUnmarkedRound = true
        pointee.accurate.failures.insert(.flagsReceived)
        pointee.accurate.ignoresFeedback = true
        return true
    }

    /// A running average of 64.
    private func noteAverage(_ packets: UInt32) {
        guard packets > 0 else { return }
        let old = pointee.accurate.averageAcked
        pointee.accurate.averageAcked = old == 0 ? min(packets, 1 << 16) << 6 : old &- old >> 6 &+ min(packets, 1 << 16)
    }

    // MARK: Option

    /// Reads the peer's byte counters. Returns by how much that of marked bytes has grown; nil: the option does not say.
    func takeCounters(_ segment: Segment) -> UInt32? {
        guard segment.options.hasCounters, !pointee.accurate.failures.contains(.optionReceived) else { return nil }
        let content =
            UnsafePointer(segment.packet.pointee.data) + Int(Header.length) + Int(segment.options.countersOffset)
        let fields = Int(segment.options.counterFields)
        func value(_ index: Int) -> UInt32 {
            UInt32(content[3 * index]) << 16 | UInt32(content[3 * index + 1]) << 8 | UInt32(content[3 * index + 2])
        }
        if pointee.accurate.optionSeen == .none || pointee.accurate.optionSeen == .empty {
            // 3.2.3.2.4: the outer fields do not start at zero. Nor can 24 bits be followed from too late on.
            let isZeroed = (fields > 0 && value(0) == 0) || (fields > 2 && value(2) == 0)
            if isZeroed || pointee.totals.bytesSent >= 1 << 23 {
                pointee.accurate.optionSeen = .broken
                pointee.accurate.failures.insert(.optionReceived)
                return nil
            }
            pointee.accurate.optionSeen = fields > 0 ? .counters : .empty
        }
        let isOrder0 = segment.options.countersAreOrder0
        if fields > 0 {
            if isOrder0 { _ = raise(&pointee.accurate.delivered.ect0, to: value(0)) }
            else { _ = raise(&pointee.accurate.delivered.ect1, to: value(0)) }
        }
        if fields > 2 {
            if isOrder0 { _ = raise(&pointee.accurate.delivered.ect1, to: value(2)) }
            else { _ = raise(&pointee.accurate.delivered.ect0, to: value(2)) }
        }
        return fields > 1 ? raise(&pointee.accurate.delivered.marked, to: value(1)) : nil
    }

    /// Moves a counter to the nearest value with these 24 bits; what would be a step back is left out.
    private func raise(_ counter: inout UInt32, to bits: UInt32) -> UInt32 {
        let step = (bits &- counter) & 0xff_ffff
        guard step < 0x80_0000 else { return 0 }
        counter &+= step
        return step
    }
}

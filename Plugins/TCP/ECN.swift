import PluginAPI
import PluginKit

// Explicit congestion notification (RFC 3168). Data sent for the first time are ECN-capable; with
// net.inet.tcp.ecn.generalized so are SYN, ACK (RFC 5562), repetitions and FINs (the rules of ECN++).

extension UnsafeMutablePointer where Pointee == Instance {
    /// net.inet.tcp.ecn.enable: 1 asks for it and grants it, 2 only grants it; 3 to 5 know a better one as well.
    var asksForECN: Bool { setting(.ecn) == 1 || setting(.ecn) == 4 }
    var grantsECN: Bool { setting(.ecn) != 0 }

    /// RFC 3168, 6.1.1: an ECN-setup SYN has both bits. A third asks for Accurate ECN, and means this one to hosts
    /// that know no other (RFC 9768, table 2).
    func isECNSetup(_ segment: Segment) -> Bool { segment.has(Flag.ece) && segment.has(Flag.cwr) }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Congestion marks, as a receiver (RFC 3168, 6.1.3): told in every acknowledgment until the sender has reacted.
    @inline(__always)
    func noteMarks(_ segment: Segment) {
        if pointee.accurate.isOn { return noteAccurately(segment) }
        guard has(.ecn) else { return }
        if segment.has(Flag.cwr) { clear(.congestionEcho) }
        guard segment.packet.pointee.pkt.tos & 3 == 3 else { return }
        instance.count(.receivedMarks, segment.count)
        pointee.totals.markedSegmentsIn &+= segment.count
        guard segment.length > 0 || segment.has(Flag.fin) else { return }
        // The first news travels at once.
        if !has(.congestionEcho), instance.isOn(.marksAtOnce) { set(.ackNow) }
        set(.congestionEcho)
    }

    /// The bits of a header on its way out, and whether its packet is ECN-capable.
    @inline(__always)
    func markECN(_ packet: Mbuf, _ flags: UInt8, _ sequence: SequenceNumber, _ length: UInt32) -> UInt8 {
        var flags = flags
        if has(.congestionEcho) { flags |= Flag.ece }
        if length > 0, sequence == pointee.sndNxt, (sequence + length) - pointee.sndUna <= Int(pointee.sndWnd) {
            packet.pointee.pkt.flags |= UInt16(ALPS_PKT_ECT)
            if has(.windowReduced) {
                flags |= Flag.cwr
                clear(.windowReduced)
            }
        } else if length > 0 || flags & Flag.fin != 0, instance.isOn(.generalizedECN) {
            // Without this setting neither are repetitions and probes of a closed window (RFC 3168, 6.1.5 and 6.1.6).
            packet.pointee.pkt.flags |= UInt16(ALPS_PKT_ECT)
        }
        return flags
    }

    /// RFC 3168, 6.1.2: as for a lost segment, at most once a round trip, and nothing is sent again.
    func congestionReported(priorPipe: Int) {
        instance.count(.congestionReports)
        guard pointee.recovery.state == .open else {
            // The receiver goes on until it hears of a reduction, though there has been one.
            if has(.ecn) { set(.windowReduced) }
            return
        }
        pointee.recovery.canUndo = false
        lowerThreshold()
        pointee.recovery.state = .reduction
        beginReduction(priorPipe: priorPipe)
    }
}

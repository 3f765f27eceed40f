import PluginAPI
import PluginKit

// Accurate ECN (RFC 9768): each host tells the other how many packets, and how many bytes, have come with which mark.
// Here is how it is agreed on, and what a data receiver counts and tells; what a data sender makes of it is in
// AccurateECNFeedback.swift. Both directions of a connection use it, or neither.
//
// The three bits of the header (AE, CWR, ECE) are read and written as one number, most significant bit first: flags
// during the handshake, afterwards the ACE field.

/// The IP-ECN field (RFC 3168, section 5).
enum IPECN {
    static var notCapable: UInt8 { 0 }
    static var ect1: UInt8 { 1 }
    static var ect0: UInt8 { 2 }
    static var marked: UInt8 { 3 }
}

/// Values of the three bits.
enum ACE {
    static var none: UInt8 { 0b000 }
    /// RFC 3168's answer, and its request.
    static var classicAnswer: UInt8 { 0b001 }
    static var classicRequest: UInt8 { 0b011 }
    /// Of a SYN; on a SYN, ACK the mirror image that broken servers send.
    static var request: UInt8 { 0b111 }
    /// RFC 9768, 3.1.3: an answer that nobody sends yet and that counts as an agreement.
    static var reserved: UInt8 { 0b101 }

    /// The handshake encoding (tables 2 and 3): how a SYN or a SYN, ACK has arrived.
    static func reflecting(_ field: UInt8) -> UInt8 {
        switch field {
        case IPECN.notCapable: return 0b010
        case IPECN.ect1: return 0b011
        case IPECN.ect0: return 0b100
        default: return 0b110
        }
    }

    /// The IP-ECN field that `ace` reflects; nil: it is no handshake encoding.
    static func reflected(_ ace: UInt8) -> UInt8? {
        switch ace {
        case 0b010: return IPECN.notCapable
        case 0b011: return IPECN.ect1
        case 0b100: return IPECN.ect0
        case 0b110: return IPECN.marked
        default: return nil
        }
    }
}

/// What our SYN has asked for. A connection asks for one kind only (RFC 9768, 3.1.5).
enum ECNRequest: UInt8 {
    case none = 0
    case classic, accurate
}

/// What has turned out not to get through, with the bits of TCP_INFO's tcpi_accecn_fail_mode.
struct AccurateECNFailures: OptionSet {
    var rawValue: UInt8
    /// The flags of our SYN, ACK; those of the peer, or the IP-ECN field of what we send.
    static var flagsSent: AccurateECNFailures { .init(rawValue: 1) }
    static var flagsReceived: AccurateECNFailures { .init(rawValue: 2) }
    /// Our AccECN option; the peer's.
    static var optionSent: AccurateECNFailures { .init(rawValue: 4) }
    static var optionReceived: AccurateECNFailures { .init(rawValue: 8) }
}

/// The four counters of RFC 9768, 3.2: r.cep, r.e0b, r.ceb and r.e1b of a receiver, or a sender's copy of them.
struct ECNCounters {
    /// Packets with a mark.
    var packets: UInt32
    /// Bytes of payload by the IP-ECN field they came with.
    var ect0: UInt32
    var marked: UInt32
    var ect1: UInt32

    /// RFC 9768, 3.2.1: what a middlebox has zeroed shows.
    static var initial: ECNCounters { ECNCounters(packets: 5, ect0: 1, marked: 0, ect1: 1) }
}

/// Whether the peer's AccECN option has been seen, with TCP_INFO's numbers (tcpi_accecn_opt_seen).
enum AccurateECNOptionSeen: UInt8 {
    case none = 0
    case empty, counters, broken
}

/// Accurate ECN on one connection. Zero means off.
struct AccurateECN {
    var isOn = false
    var isServer = false
    var failures = AccurateECNFailures(rawValue: 0)
    /// The peer's feedback means nothing (RFC 9768, 3.2.2.1 note 1 and 3.2.2.4).
    var ignoresFeedback = false

    // Handshake.
    /// How the peer's latest SYN or SYN, ACK has arrived.
    var synField: UInt8 = 0
    /// The next pure ACK tells that, in the handshake encoding.
    var reflects = false
    /// A marked SYN, ACK counts once, however often it comes.
    var hasCountedSynAck = false
    /// A server has not had the ACK of its SYN, ACK yet; what that said.
    var awaitsHandshakeAck = false
    var handshakeACE: UInt8 = 0
    /// A SYN, ACK with the option has been sent.
    var hasSentOption = false
    /// All our SYN, ACKs went out Not-ECT, so that any other feedback means mangling.
    var checksReflection = false

    // Data receiver.
    var received = ECNCounters.initial
    var previousField: UInt8 = 0
    /// Marks since the last acknowledgment.
    var pendingMarks: UInt32 = 0
    /// Fields of the option up to the last whose counter has changed since the last option.
    var required = 0
    /// Options that are due although net.inet.tcp.ecn.option says to be sparing.
    var demand: UInt8 = 0
    var lastOptionAt: UInt64 = 0
    /// The last acknowledgment had an option and reported that data had come twice, from here on.
    var duplicate = SequenceNumber(0)
    var hasReportedDuplicate = false
    /// Header space that data segments leave for the option.
    var reserved: UInt32 = 0

    // Data sender.
    var delivered = ECNCounters.initial
    var optionSeen: AccurateECNOptionSeen = .none
    var hasDecoded = false
    /// Marked packets that acknowledgments without an option have told of since the last with one.
    var marksUntold: UInt32 = 0
    /// Behind the highest number the peer has sent: what comes from beyond it is no old segment.
    var highest = SequenceNumber(0)
    /// The segment at hand was sent after all that have arrived before.
    var isNewest = false
    /// Packets that one acknowledgment covers, on average, in 64ths.
    var averageAcked: UInt32 = 0
    /// What the round trip under way has brought, up to `roundEnd`; round trips that brought nothing but marks, from the
    /// first on.
    var roundEnd = SequenceNumber(0)
    var roundPackets: UInt32 = 0
    var roundMarks: UInt32 = 0
    var markedRounds: UInt8 = 0
    var hasUnmarkedRound = false

    init() {}

    /// The counter as it goes into a header (3.2.2.2).
    @inline(__always)
    var ace: UInt8 { UInt8(truncatingIfNeeded: received.packets) & 7 }

    var sendsCapable: Bool { failures.isDisjoint(with: [.flagsSent, .flagsReceived]) }
}

/// What the SYN cache remembers of it.
struct EmbryonicECN {
    var isOn = false
    var synField: UInt8 = 0
    var failures = AccurateECNFailures(rawValue: 0)
    /// A SYN, ACK has been sent; one that was ECN-capable.
    var hasAnswered = false
    var wasCapable = false
}

extension Segment {
    /// AE, CWR and ECE as one number.
    @inline(__always)
    var ace: UInt8 {
        let header = packet.pointee.data
        return (header[Header.dataOffset] & 1) << 2 | header[Header.flags] >> 6
    }

    /// The IP-ECN field it came with.
    @inline(__always)
    var field: UInt8 { packet.pointee.pkt.tos & 3 }

    /// Payload as it came, whatever has been cut off since.
    @inline(__always)
    var payload: UInt32 {
        packet.pointee.pkt.length &- UInt32(packet.pointee.data[Header.dataOffset] >> 4) &* 4
    }
}

// MARK: A server's handshake

extension UnsafeMutablePointer where Pointee == Instance {
    /// net.inet.tcp.ecn.enable: 3 asks for Accurate ECN; 3 to 5 grant it.
    var asksForAccurateECN: Bool { setting(.ecn) == 3 }
    var grantsAccurateECN: Bool { setting(.ecn) >= 3 }

    /// RFC 9768, 3.1.3: any combination but none and RFC 3168's asks for it.
    func requestsAccurateECN(_ segment: Segment) -> Bool {
        segment.ace != ACE.none && segment.ace != ACE.classicRequest && grantsAccurateECN
    }

    func acceptAccurateECN(_ segment: Segment) -> EmbryonicECN {
        var state = EmbryonicECN()
        state.isOn = requestsAccurateECN(segment)
        state.synField = segment.field
        return state
    }

    /// What the ACK of a SYN cookie recalls: its values of a client in this mode are no others' (RFC 9768, 5.1).
    func recalledAccurateECN(_ segment: Segment) -> EmbryonicECN {
        var state = EmbryonicECN()
        state.isOn = grantsAccurateECN && segment.ace > 1
        state.wasCapable = isOn(.generalizedECN)
        return state
    }

    /// A SYN that has come before, with or without the flags of the first (RFC 9768, 3.1.5). False: it must not ask for
    /// another kind of feedback than the first.
    func repeatedSyn(_ entry: EmbryonicPointer, _ segment: Segment) -> Bool {
        guard entry.pointee.accurate.isOn else {
            return !entry.pointee.hasECN || !requestsAccurateECN(segment)
        }
        if segment.ace == ACE.classicRequest { return false }
        entry.pointee.accurate.synField = segment.field
        // The client may have given up asking, and may not be in this mode: nothing is ECN-capable from now on.
        if segment.ace == ACE.none { entry.pointee.accurate.failures.insert(.flagsReceived) }
        return true
    }

    /// Ends a connection that is not established yet, with numbers that count whatever the client knows of it.
    func refuse(_ entry: EmbryonicPointer, _ segment: Segment, _ network: Network) {
        count(.sentResets)
        reply(
            segment.packet, network, sequence: entry.pointee.iss + 1, acknowledgment: entry.rcvNxt,
            flags: Flag.rst | Flag.ack)
        drop(entry)
    }

    /// The three bits of a SYN, ACK: as they should be, once more without the option, then without any (3.2.3.2.2).
    func synAckBits(_ entry: EmbryonicPointer) -> UInt8 {
        guard entry.pointee.accurate.isOn else { return entry.pointee.hasECN ? ACE.classicAnswer : ACE.none }
        guard entry.pointee.retransmits < 2 else {
            entry.pointee.accurate.failures.insert(.flagsSent)
            return ACE.none
        }
        return ACE.reflecting(entry.pointee.accurate.synField)
    }

    /// The option goes with the first SYN, ACK.
    func synAckHasOption(_ entry: EmbryonicPointer) -> Bool {
        guard entry.pointee.accurate.isOn else { return false }
        defer { entry.pointee.accurate.hasAnswered = true }
        return !entry.pointee.accurate.hasAnswered && setting(.ecnOption) != 0
    }
}

extension Connection {
    /// Off for nearly all, which share one of the instance's. That is never written: changes of it are ignored.
    var accurate: AccurateECN {
        @inline(__always) _read { yield accurateMemory.pointee }
        @inline(__always) _modify {
            yield &(accurateMemory.pointee.isOn ? accurateMemory : instance.ignoredAccurateECN).pointee
        }
    }
}

extension UnsafeMutablePointer where Pointee == Instance {
    @inline(__always)
    var restingAccurateECN: UnsafeMutablePointer<AccurateECN> { withUnsafeMutablePointer(to: &pointee.restingECN) { $0 } }

    @inline(__always)
    fileprivate var ignoredAccurateECN: UnsafeMutablePointer<AccurateECN> {
        withUnsafeMutablePointer(to: &pointee.ignoredECN) { $0 }
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Off.
    func restAccurateECN() {
        guard pointee.accurate.isOn else { return }
        instance.services.free(pointee.accurateMemory)
        pointee.accurateMemory = instance.restingAccurateECN
    }

    /// A connection that a listener's SYN has made.
    func inheritAccurateECN(_ state: EmbryonicECN) {
        guard state.isOn else { return }
        beginAccurateECN(state.synField)
        pointee.accurate.isServer = true
        pointee.accurate.failures = state.failures
        pointee.accurate.awaitsHandshakeAck = true
        pointee.accurate.checksReflection = !state.wasCapable
    }

    /// Without memory, the counters of our headers tell the peer that something is wrong (RFC 9768, 3.2.2.4).
    private func beginAccurateECN(_ field: UInt8) {
        restAccurateECN()
        guard let memory = instance.services.allocate(AccurateECN.self) else { return }
        memory.initialize(to: AccurateECN())
        memory.pointee.isOn = true
        pointee.accurateMemory = memory
        pointee.accurate.synField = field
        pointee.accurate.previousField = field
        pointee.accurate.highest = pointee.irs + 1
        pointee.accurate.demand = 1
    }

    // MARK: A client's handshake

    /// The three bits of a SYN or, in SYN-RECEIVED, of a SYN, ACK of this connection.
    func synBits(isAnswer: Bool, isFirst: Bool) -> UInt8 {
        let instance = instance
        let keepsAsking = !instance.isOn(.ecnFallback)
        if isAnswer {
            guard pointee.accurate.isOn else { return has(.ecn) ? ACE.classicAnswer : ACE.none }
            guard pointee.attempts < 2 else {
                pointee.accurate.failures.insert(.flagsSent)
                return ACE.none
            }
            return ACE.reflecting(pointee.accurate.synField)
        }
        if isFirst {
            pointee.ecnRequest =
                instance.asksForAccurateECN && !instance.isRequestUseless(pointee.conn.remote)
                ? .accurate : instance.asksForECN ? .classic : .none
        }
        switch pointee.ecnRequest {
        case .none: return ACE.none
        case .accurate:
            // RFC 9768, 3.1.4.1: it tries twice, for the sake of what may drop such a SYN.
            return pointee.attempts < 2 || keepsAsking ? ACE.request : ACE.none
        case .classic:
            // RFC 3168, 6.1.1.1: once, if not told otherwise.
            if Int64(pointee.attempts) <= instance.setting(.ecnSynRetries) || keepsAsking { return ACE.classicRequest }
            pointee.ecnRequest = .none
            return ACE.none
        }
    }

    /// A SYN, ACK of this connection has the option the first time.
    var takesSynAckOption: Bool {
        guard pointee.accurate.isOn, !pointee.accurate.hasSentOption, instance.setting(.ecnOption) != 0 else {
            return false
        }
        pointee.accurate.hasSentOption = true
        return true
    }

    /// The peer's SYN, ACK, or in a simultaneous open its SYN, decides (RFC 9768, table 2).
    func agreeOnECN(_ segment: Segment, isAcked: Bool) {
        clear(.ecn)
        let ace = segment.ace
        guard isAcked else {
            // As if we had not asked ourselves, since that is how the peer sees it.
            guard pointee.ecnRequest == .accurate else { return }
            if instance.requestsAccurateECN(segment) {
                beginAccurateECN(segment.field)
                pointee.accurate.isServer = true
                pointee.accurate.awaitsHandshakeAck = true
                pointee.accurate.checksReflection = true
            } else {
                set(.ecn, ace == ACE.classicRequest)
            }
            return
        }
        switch pointee.ecnRequest {
        case .none: return
        case .classic:
            // RFC 3168, 6.1.1: the answer has ECE alone; both bits are what a host sends that only mirrors ours.
            set(.ecn, ace & 3 == ACE.classicAnswer)
        case .accurate:
            instance.noteRequest(pointee.conn.remote, isFailure: pointee.attempts >= 2 && instance.isOn(.ecnFallback))
            guard ace != ACE.none, ace != ACE.request else { return }
            if ace == ACE.classicAnswer { return set(.ecn) }
            beginAccurateECN(segment.field)
            countSynAck(segment)
            // 3.2: payload counts, unless it came without ACK.
            countBytes(segment.payload, segment.field)
            // 3.2.2.3: our SYN went Not-ECT. The reserved answer says that it has come so.
            if ace != ACE.reserved, ace != ACE.reflecting(IPECN.notCapable), instance.isOn(.ecnFallback) {
                pointee.accurate.failures.insert(.flagsReceived)
            }
            _ = takeCounters(segment)
        }
    }

    /// RFC 9768, 3.2.2.2: a mark on a SYN, ACK counts, once.
    private func countSynAck(_ segment: Segment) {
        guard segment.field == IPECN.marked, !pointee.accurate.hasCountedSynAck else { return }
        pointee.accurate.hasCountedSynAck = true
        pointee.accurate.received.packets &+= 1
        pointee.totals.markedSegmentsIn &+= 1
        instance.count(.receivedMarks)
    }

    /// A client is connected: the ACK of the SYN, ACK goes at once and alone, since only a pure ACK can tell how that
    /// has arrived (RFC 9768, 3.2.2.1).
    func concludeECN(_ segment: Segment) {
        guard pointee.accurate.isOn else { return set(.ackNow) }
        // The SYN came with a mark: as RFC 5562, 4.1 for its answer.
        if segment.ace == ACE.reflecting(IPECN.marked) { startWithOneSegment() }
        pointee.accurate.reflects = true
        sendAck()
        pointee.accurate.reflects = false
    }

    /// A handshake segment of ours was marked.
    func startWithOneSegment() {
        instance.count(.congestionReports)
        pointee.congestion.cwnd = min(pointee.congestion.cwnd, pointee.mss)
    }

    /// The SYN, ACK again: its acknowledgment tells how the latest has arrived.
    func challengeSyn(_ segment: Segment) {
        let reflects =
            pointee.accurate.isOn && !pointee.accurate.isServer && segment.has(Flag.ack)
            && segment.sequence == pointee.irs
        if reflects {
            pointee.accurate.synField = segment.field
            countSynAck(segment)
            pointee.accurate.reflects = true
        }
        challengeAck(.receivedBadSyn)
        if reflects { pointee.accurate.reflects = false }
    }

    /// The SYN again, where a connection is there already (Fast Open, simultaneous open). False: it asks for another kind
    /// of feedback than the first, which must not be (RFC 9768, 3.1.5); the connection is gone.
    func repeatedSyn(_ segment: Segment) -> Bool {
        let isOther =
            pointee.accurate.isOn
            ? segment.ace == ACE.classicRequest : has(.ecn) && instance.requestsAccurateECN(segment)
        guard !isOther else {
            sendReset()
            close(ALPS_ECONNRESET)
            return false
        }
        guard pointee.accurate.isOn else { return true }
        pointee.accurate.synField = segment.field
        if segment.ace == ACE.none { pointee.accurate.failures.insert(.flagsReceived) }
        return true
    }

    // MARK: Data receiver

    /// Counts an acceptable segment (RFC 9768, 3.2).
    @inline(__always)
    func noteAccurately(_ segment: Segment) {
        let end = segment.number + segment.payload
        var isNewest = end > pointee.accurate.highest
        if isNewest { pointee.accurate.highest = end }
        if has(.timestamps), segment.options.hasTimestamp,
            Int32(bitPattern: segment.options.timestamp &- pointee.tsRecent) > 0
        {
            isNewest = true
        }
        pointee.accurate.isNewest = isNewest
        let field = segment.field
        if field != IPECN.notCapable || field != pointee.accurate.previousField { countMark(segment, field) }
    }

    @inline(never)
    private func countMark(_ segment: Segment, _ field: UInt8) {
        let payload = segment.payload
        let isChange = field != pointee.accurate.previousField
        pointee.accurate.previousField = field
        if isChange || field == IPECN.marked { pointee.accurate.demand = 2 }
        countBytes(payload, field)
        guard field == IPECN.marked else { return }
        instance.count(.receivedMarks, segment.count)
        pointee.totals.markedSegmentsIn &+= segment.count
        pointee.accurate.received.packets &+= segment.count
        pointee.accurate.pendingMarks &+= segment.count
        // 3.2.2.5.1: at the first mark on data, and at every second; at every third if there is nothing else to
        // acknowledge, lest acknowledgments of acknowledgments go on for ever.
        let limit: UInt32 = payload > 0 || pointee.unackedBytes > 0 ? 2 : 3
        if (isChange && payload > 0) || pointee.accurate.pendingMarks >= limit { acknowledgeNow() }
    }

    private func countBytes(_ payload: UInt32, _ field: UInt8) {
        switch field {
        case IPECN.ect1: count(payload, in: &pointee.accurate.received.ect1, field: 1)
        case IPECN.marked: count(payload, in: &pointee.accurate.received.marked, field: 2)
        case IPECN.ect0: count(payload, in: &pointee.accurate.received.ect0, field: 3)
        default: break
        }
    }

    @inline(__always)
    private func count(_ payload: UInt32, in counter: inout UInt32, field: Int) {
        guard payload > 0 else { return }
        let old = counter
        counter = old &+ payload
        pointee.accurate.required = max(pointee.accurate.required, field)
        // 3.2.3.3: before 24 bits overflow.
        if (old ^ (old &+ payload)) >> 22 != 0, pointee.accurate.demand == 0 { pointee.accurate.demand = 1 }
    }

    /// The three bits of a header on its way out; says of the packet whether it is ECN-capable.
    ///
    /// Pure acknowledgments, repetitions and FINs are as well: their marks are counted like any other, and who can tell
    /// by SACK what is a duplicate does not take an acknowledgment of an acknowledgment for one (3.2.2.5.1; RFC 8311).
    @inline(__always)
    func markAccurately(
        _ packet: Mbuf, _ flags: UInt8, _ sequence: SequenceNumber, _ length: UInt32, hasSack: Bool
    ) -> UInt8 {
        let isCapable =
            instance.isOn(.ecnControlPackets)
            ? length > 0 || flags & Flag.fin != 0 || has(.sackPermitted) : length > 0 && sequence == pointee.sndNxt
        if pointee.accurate.sendsCapable, isCapable {
            packet.pointee.pkt.flags |= UInt16(ALPS_PKT_ECT)
        }
        if pointee.accurate.reflects, length == 0, flags & (Flag.fin | Flag.rst) == 0, !hasSack {
            return ACE.reflecting(pointee.accurate.synField)
        }
        pointee.accurate.pendingMarks = 0
        return pointee.accurate.ace
    }
}

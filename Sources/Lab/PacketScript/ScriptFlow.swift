/// A connection, or a pair of UDP ends, of a script: its numbers in the script and on the wire.
///
/// A segment with SYN carries the initial sequence number itself; in all others a script counts from it.
final class ScriptFlow {
    enum State {
        case new, listening
        /// A SYN has come in, and its SYN, ACK has gone out.
        case synReceived, synAckSent, accepted
        case connecting, synSent
    }

    let protocolNumber: UInt8
    var state = State.new
    var local = LivePacket.Endpoint(address: 0, port: 0)
    var remote = LivePacket.Endpoint(address: 0, port: 0)
    /// The script has named the remote port.
    var namedPort: UInt16?
    private var scriptLocalISN: UInt32 = 0
    private var liveLocalISN: UInt32 = 0
    private var remoteISN: UInt32 = 0
    private var knowsRemoteISN = false
    private var knowsLocalISN = false
    /// Timestamp values: those of the script to those on the wire.
    private var timestamps: [UInt32: UInt32] = [:]
    private var firstTimestamp: (script: UInt32, live: UInt32)?
    /// The program has written something else than zeros.
    var carriesText = false

    /// A connection of a listener's that no accept has returned.
    var awaitsAccept: Bool { state == .synReceived || state == .synAckSent }

    init(protocolNumber: UInt8) { self.protocolNumber = protocolNumber }

    /// A connection begins: it has numbers of its own.
    func forgetNumbers() {
        scriptLocalISN = 0
        liveLocalISN = 0
        remoteISN = 0
        knowsRemoteISN = false
        knowsLocalISN = false
        timestamps = [:]
        firstTimestamp = nil
    }

    // MARK: To the wire

    /// An inbound segment with live numbers.
    func live(_ segment: ScriptSegment) -> ScriptSegment {
        if segment.flags.contains(.syn), !knowsRemoteISN {
            remoteISN = segment.sequence
            knowsRemoteISN = true
        }
        let isSyn = segment.flags.contains(.syn)
        let offset = isSyn ? liveLocalISN &- scriptLocalISN : liveLocalISN
        var live = segment
        // The remote side's numbers on the wire are the script's own.
        if !isSyn, !segment.isSequenceLive { live.sequence = segment.sequence &+ remoteISN }
        if segment.flags.contains(.ack) { live.acknowledgment = segment.acknowledgment &+ offset }
        live.options = segment.options?.map { option in
            switch option {
            case .sack(let blocks):
                return .sack(
                    blocks.map {
                        ScriptTCPOption.SACKBlock(left: $0.left &+ liveLocalISN, right: $0.right &+ liveLocalISN)
                    })
            case .timestamp(let value, let echo, let isEchoLive):
                guard segment.flags.contains(.ack), !isEchoLive else { return option }
                return .timestamp(value: value, echo: liveTimestamp(echo), isEchoLive: true)
            default: return option
            }
        }
        return live
    }

    private func liveTimestamp(_ script: UInt32) -> UInt32 {
        if let live = timestamps[script] { return live }
        guard let firstTimestamp else { return script }
        return script &- firstTimestamp.script &+ firstTimestamp.live
    }

    /// A sequence number of the stack's, as an ICMP error quotes it.
    func liveLocal(_ sequence: UInt32) -> UInt32 { sequence &+ liveLocalISN }

    // MARK: From the wire

    /// The script says that the stack's SYN, or SYN and ACK, is to come: it carries the initial number.
    func expectSyn(_ segment: ScriptSegment) {
        if !knowsLocalISN { scriptLocalISN = segment.sequence }
    }

    func sawSyn(_ live: ScriptSegment) {
        guard !knowsLocalISN else { return }
        liveLocalISN = live.sequence
        knowsLocalISN = true
    }

    /// An outbound segment in the script's numbers.
    func script(_ live: ScriptSegment, expecting wanted: ScriptSegment) -> ScriptSegment {
        let isSyn = live.flags.contains(.syn)
        var segment = live
        if !wanted.isSequenceLive {
            segment.sequence = live.sequence &- (isSyn ? liveLocalISN &- scriptLocalISN : liveLocalISN)
        }
        if live.flags.contains(.ack), !isSyn { segment.acknowledgment = live.acknowledgment &- remoteISN }
        segment.isSequenceLive = wanted.isSequenceLive
        segment.options = live.options?.map { option in
            guard case .sack(let blocks) = option else { return option }
            return .sack(
                blocks.map { ScriptTCPOption.SACKBlock(left: $0.left &- remoteISN, right: $0.right &- remoteISN) })
        }
        mapTimestamp(&segment, wanted)
        return segment
    }

    /// Remembers which value on the wire a value of the script stands for, and shows the actual one in the script's
    /// terms.
    private func mapTimestamp(_ segment: inout ScriptSegment, _ wanted: ScriptSegment) {
        guard let place = segment.options?.firstIndex(where: { $0.kind == 8 }),
            case .timestamp(let live?, let echo, _)? = segment.options?[place],
            case .timestamp(let script?, _, _)? = wanted.options?.first(where: { $0.kind == 8 })
        else { return }
        timestamps[script] = live
        if firstTimestamp == nil { firstTimestamp = (script, live) }
        guard let firstTimestamp else { return }
        let value = firstTimestamp.script &+ (live &- firstTimestamp.live)
        segment.options?[place] = .timestamp(value: value, echo: echo, isEchoLive: false)
    }
}

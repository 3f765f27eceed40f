import Kernel

/// Packets that go in, and packets that must come out.
extension ScriptRunner {
    // MARK: Whose packet

    /// The flow of an inbound packet; made if need be.
    private func inboundFlow(_ packet: ScriptPacket) -> ScriptFlow {
        switch packet.body {
        case .tcp(let segment): return inboundTCPFlow(packet, segment)
        case .udp: return plainFlow(17, packet)
        case .icmp(let message):
            if case .udp? = message.quoted { return plainFlow(17, packet) }
            return calls.flow ?? plainFlow(6, packet)
        }
    }

    private func inboundTCPFlow(_ packet: ScriptPacket, _ segment: ScriptSegment) -> ScriptFlow {
        if let port = packet.sourcePort, let known = calls.flows.last(where: { $0.namedPort == port }) { return known }
        let isOpening = segment.flags.contains(.syn) && !segment.flags.contains(.ack)
        let current = calls.flow
        if let current, current.protocolNumber == 6 {
            // A port of its own makes a connection of its own.
            let isNew =
                packet.sourcePort != nil && isOpening && current.state != .connecting && current.state != .synSent
            if current.state != .listening, !isNew {
                complete(current)
                return current
            }
        }
        let flow = ScriptFlow(protocolNumber: 6)
        flow.state = .synReceived
        flow.namedPort = packet.sourcePort
        flow.remote = LivePacket.Endpoint(
            address: options.remoteAddress, port: packet.sourcePort ?? takeRemotePort())
        flow.local = LivePacket.Endpoint(
            address: options.localAddress, port: packet.destinationPort ?? current?.local.port ?? options.bindPort)
        if flow.local.port == 0 { flow.local.port = options.bindPort }
        calls.flows.append(flow)
        calls.flow = flow
        return flow
    }

    /// A flow without a handshake of the script's.
    private func plainFlow(_ protocolNumber: UInt8, _ packet: ScriptPacket) -> ScriptFlow {
        if let flow = calls.flow, flow.protocolNumber == protocolNumber {
            complete(flow)
            return flow
        }
        let flow =
            calls.flows.last { $0.protocolNumber == protocolNumber } ?? ScriptFlow(protocolNumber: protocolNumber)
        if !calls.flows.contains(where: { $0 === flow }) { calls.flows.append(flow) }
        complete(flow)
        return flow
    }

    /// Fills in the ends of a flow that nobody has named.
    private func complete(_ flow: ScriptFlow) {
        if flow.remote.port == 0 {
            flow.remote = LivePacket.Endpoint(
                address: options.remoteAddress, port: flow.protocolNumber == 17 ? options.connectPort : takeRemotePort()
            )
        }
        if flow.local.address == 0 { flow.local.address = options.localAddress }
        if flow.local.port == 0 { flow.local.port = options.bindPort }
    }

    // MARK: Inbound

    func inbound(_ packet: ScriptPacket, _ event: PacketScript.Event) throws {
        let flow = inboundFlow(packet)
        var source = flow.remote
        var destination = flow.local
        if let port = packet.sourcePort { source.port = port }
        if let port = packet.destinationPort { destination.port = port }
        let tos: UInt8
        switch packet.tos {
        case .none, .ect01: tos = 0
        case .ecn(let bits), .dscp(let bits), .tos(let bits): tos = bits
        }
        let bytes: [UInt8]
        switch packet.body {
        case .tcp(let segment):
            bytes = PacketBuilder.tcp(flow.live(segment), from: source, to: destination, tos: tos, ttl: packet.ttl)
            if flow.state == .connecting || flow.state == .synSent, segment.flags.contains([.syn, .ack]) {
                flow.state = .accepted
            }
        case .udp(let length):
            bytes = PacketBuilder.udp(length: length, from: source, to: destination, tos: tos, ttl: packet.ttl)
        case .icmp(let message):
            bytes = PacketBuilder.icmp(
                message, quoted: quotation(message, flow), from: options.remoteAddress, to: options.localAddress,
                tos: tos, ttl: packet.ttl)
        }
        if options.isVerbose, let live = LivePacket(bytes, time: stack.now) {
            result.output.append(
                "inbound packet: \(PacketText.seconds(now)) \(PacketText.endpoints(live)) \(PacketText.text(live))")
        }
        stack.inject(bytes)
    }

    /// What of a packet of the stack's an ICMP message quotes.
    private func quotation(_ message: ScriptICMP, _ flow: ScriptFlow) -> [UInt8] {
        switch message.quoted {
        case .raw(let length)?: return [UInt8](repeating: 0, count: max(0, length - 8))
        case .udp(let length)?:
            return PacketBuilder.quotation(17, length: length, sequence: 0, from: flow.local, to: flow.remote)
        case .tcp(let sequence, let length)?:
            return PacketBuilder.quotation(
                6, length: length, sequence: flow.liveLocal(sequence), from: flow.local, to: flow.remote)
        case nil:
            return PacketBuilder.quotation(
                flow.protocolNumber, length: 0, sequence: flow.liveLocal(0), from: flow.local, to: flow.remote)
        }
    }

    // MARK: Outbound

    func outbound(_ packet: ScriptPacket, _ event: PacketScript.Event, from: Int64?, to: Int64?) throws {
        let due = from ?? now
        do {
            try expect(packet, from: from, to: to)
        } catch let mismatch as PacketMismatch {
            var message = "\(options.warnsOfPackets ? "warning" : "error") handling packet: \(mismatch.reason)"
            message += "\nscript packet: \(PacketText.seconds(due)) \(PacketText.text(packet))"
            if let actual = mismatch.actual { message += "\nactual packet: \(actual)" }
            let error = PacketScriptError(script.path, event.line, .mismatch, message)
            guard options.warnsOfPackets else { throw error }
            result.warnings.append(error.description)
        }
    }

    /// Whether the stack's packet is of the kind and the flow of a script's.
    private func belongs(_ live: LivePacket, _ packet: ScriptPacket, _ flow: ScriptFlow?) -> Bool {
        switch (packet.body, live.transport) {
        case (.icmp, .icmp): return true
        case (.tcp, .tcp), (.udp, .udp):
            guard let flow else { return true }
            var (local, remote) = (flow.local, flow.remote)
            if let port = packet.sourcePort { local.port = port }
            if let port = packet.destinationPort { remote.port = port }
            if local.port == 0 { local.port = live.source.port }
            return live.source == local && live.destination == remote
        default: return false
        }
    }

    private func outboundFlow(_ packet: ScriptPacket) throws -> ScriptFlow? {
        switch packet.body {
        case .icmp: return nil
        case .udp: return calls.flow?.protocolNumber == 17 ? calls.flow : calls.flows.last { $0.protocolNumber == 17 }
        case .tcp(let segment):
            if let port = packet.destinationPort, let named = calls.flows.last(where: { $0.namedPort == port }) {
                return named
            }
            guard let flow = calls.flow, flow.protocolNumber == 6 else {
                throw PacketMismatch(reason: "no matching socket for script packet")
            }
            let isSyn = segment.flags.contains(.syn)
            if isSyn, flow.state == .connecting || flow.state == .synReceived {
                flow.expectSyn(segment)
                if flow.state == .connecting { flow.state = .synSent }
            }
            return flow
        }
    }

    private func expect(_ packet: ScriptPacket, from: Int64?, to: Int64?) throws {
        let flow = try outboundFlow(packet)
        let limit = (to ?? now) + Self.packetPatience
        let first = try take(packet, flow, until: limit, due: to)
        var shown = PacketText.text(first)
        switch packet.body {
        case .tcp(let wanted):
            guard let flow else { return }
            shown = try expectSegment(wanted, packet, first, flow, limit)
        case .udp(let length):
            let text = shown
            if let difference = PacketMatcher.header(first, packet) { throw mismatch(difference, first, text) }
            guard first.payload.count == length else {
                throw mismatch(
                    "live packet field udp_len: expected: \(length) vs actual: \(first.payload.count)", first, text)
            }
            try verifyPayload(first, flow, text)
        case .icmp(let wanted):
            let text = shown
            if let difference = PacketMatcher.header(first, packet) { throw mismatch(difference, first, text) }
            guard case .icmp(let actual) = first.transport else { return }
            if let difference = PacketMatcher.icmp(actual, wanted, payload: first.payload.count) {
                throw mismatch(difference, first, text)
            }
        }
        do {
            try verifyTime(first, from: from, to: to)
        } catch let fault as ScriptFault { throw mismatch(fault.message, first, shown) }
    }

    /// How long a packet that does not come is waited for, to tell when it would have.
    private static var packetPatience: Int64 { 300_000_000_000 }

    private func mismatch(_ reason: String, _ live: LivePacket, _ text: String) -> PacketMismatch {
        PacketMismatch(reason: reason, actual: "\(PacketText.seconds(scriptTime(live))) \(text)")
    }

    private func scriptTime(_ packet: LivePacket) -> Int64 { now - Int64(stack.now - packet.time) }

    /// The next packet of a flow, taken out of the queue.
    private func take(_ packet: ScriptPacket, _ flow: ScriptFlow?, until limit: Int64, due: Int64?) throws -> LivePacket
    {
        func find() -> Int? { stack.sent.firstIndex { belongs($0, packet, flow) } }
        try wait(until: limit) { find() != nil }
        guard let place = find() else {
            let others = stack.sent.suffix(3).map { "\(PacketText.endpoints($0)) \(PacketText.text($0))" }
            let when = due.map { " at \(PacketText.seconds($0)) sec" } ?? ""
            throw PacketMismatch(
                reason: "timing error: expected outbound packet\(when) but none was sent"
                    + (others.isEmpty ? "" : "; others were: " + others.joined(separator: "; ")))
        }
        return stack.sent.remove(at: place)
    }

    /// Returns the segment as text in the script's numbers.
    private func expectSegment(
        _ wanted: ScriptSegment, _ packet: ScriptPacket, _ first: LivePacket, _ flow: ScriptFlow, _ limit: Int64
    ) throws -> String {
        var whole = try segment(first, wanted, flow)
        var pieces = [first]
        // One segment of the script may be several of the stack's: what others hand to their device at once.
        while whole.length < wanted.length, !options.strictSegments, whole.length > 0 {
            let next = try take(packet, flow, until: min(limit, now + options.tolerance), due: nil)
            let more = try segment(next, wanted, flow)
            if let difference = PacketMatcher.continues(more, whole) {
                throw mismatch(difference, next, PacketText.text(next, segment: more))
            }
            whole.length += more.length
            whole.flags.formUnion(more.flags)
            whole.window = more.window
            pieces.append(next)
        }
        // What goes to a device in one piece has PSH with Linux, wherever in the stream it stands: it says nothing there.
        if pieces.count > 1 {
            if wanted.flags.contains(.psh) { whole.flags.insert(.psh) } else { whole.flags.remove(.psh) }
        }
        let text = PacketText.text(first, segment: whole, showsFields: packet.tos != .none || packet.ttl != nil)
        for piece in pieces {
            if let difference = PacketMatcher.header(piece, packet) { throw mismatch(difference, piece, text) }
        }
        let difference = PacketMatcher.segment(
            whole, wanted, timestampTick: options.timestampTick, tolerance: options.tolerance)
        if let difference { throw mismatch(difference, first, text) }
        if first.hasBadOptions { throw mismatch("the TCP options cannot be read", first, text) }
        for piece in pieces { try verifyPayload(piece, flow, text) }
        return text
    }

    private func segment(_ live: LivePacket, _ wanted: ScriptSegment, _ flow: ScriptFlow) throws -> ScriptSegment {
        guard case .tcp(let segment) = live.transport else { throw PacketMismatch(reason: "not a TCP segment") }
        if segment.flags.contains(.syn) {
            flow.sawSyn(segment)
            if flow.state == .synReceived { flow.state = .synAckSent }
            if flow.local.port == 0 { flow.local = live.source }
        }
        var mapped = flow.script(segment, expecting: wanted)
        mapped.hasACE = wanted.hasACE
        return mapped
    }

    /// Programs of scripts write zeros, unless a string is given.
    private func verifyPayload(_ live: LivePacket, _ flow: ScriptFlow?, _ text: String) throws {
        guard flow?.carriesText != true, live.payload.contains(where: { $0 != 0 }) else { return }
        throw mismatch("incorrect outbound data payload", live, text)
    }

    private func verifyTime(_ live: LivePacket, from: Int64?, to: Int64?) throws {
        guard let from, let to else { return }
        let actual = scriptTime(live)
        let slack = tolerance(at: from, since: lastEventTime)
        guard actual < from - slack || actual > to + slack else { return }
        let when =
            from == to
            ? "at \(PacketText.seconds(from)) sec"
            : "in time range \(PacketText.seconds(from))~\(PacketText.seconds(to)) sec"
        throw ScriptFault.mismatch(
            "timing error: expected outbound packet \(when) but happened at \(PacketText.seconds(actual)) sec; "
                + "tolerance \(PacketText.seconds(slack)) sec")
    }
}

/// A packet is not the one expected.
struct PacketMismatch: Error {
    var reason: String
    var actual: String?
}

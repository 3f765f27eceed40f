import PluginAPI
import PluginKit

/// Message types (RFC 792).
enum Message {
    static var echoReply: UInt8 { 0 }
    static var unreachable: UInt8 { 3 }
    static var sourceQuench: UInt8 { 4 }
    static var redirect: UInt8 { 5 }
    static var echo: UInt8 { 8 }
    static var timeExceeded: UInt8 { 11 }
    static var parameterProblem: UInt8 { 12 }
    static var timestamp: UInt8 { 13 }
    static var timestampReply: UInt8 { 14 }

    /// Messages about other packets: never answered by another one (RFC 1122, section 3.2.2).
    @inline(__always)
    static func isError(_ type: UInt8) -> Bool {
        type == unreachable || type == sourceQuench || type == redirect || type == timeExceeded || type == parameterProblem
    }
}

/// Messages for this host, `data` at the ICMP header. [consumes]
func icmpInput(_ context: UnsafeMutableRawPointer, _ list: Mbuf) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    var next: Mbuf? = list
    while let packet = next {
        next = packet.pointee.nextpkt
        packet.pointee.nextpkt = nil
        instance.input(packet)
    }
}

extension UnsafeMutablePointer where Pointee == Instance {
    fileprivate func input(_ arrived: Mbuf) {
        count(.received)
        let length = arrived.pointee.pkt.length
        guard length >= 8 else {
            count(.tooShort)
            free(arrived)
            return
        }
        if arrived.pointee.pkt.csum == UInt8(ALPS_CSUM_NONE),
            services.mbuf.pointee.sum(pool, arrived, 0, length) != 0xffff
        {
            count(.badChecksum)
            free(arrived)
            return
        }
        var packet = arrived
        if packet.pointee.length < 8 {
            guard let whole = services.mbuf.pointee.pullup(pool, packet, 8) else { return }
            packet = whole
        }
        switch packet.pointee.data[0] {
        case Message.echo: answerEcho(packet)
        case Message.timestamp: answerTimestamp(packet)
        case Message.unreachable, Message.timeExceeded, Message.parameterProblem: inputError(packet)
        case Message.redirect: inputRedirect(packet)
        default:
            // Replies are for raw sockets, which have had their copy. Source quench is ignored (RFC 6633).
            count(.ignored)
            free(packet)
        }
    }

    // MARK: Queries

    /// RFC 1122, section 3.2.2.6: the same data back, from the address that was asked.
    private func answerEcho(_ packet: Mbuf) {
        if packet.pointee.pkt.flags & UInt16(ALPS_PKT_NETBROADCAST) != 0, setting(.answerBroadcast) == 0 {
            count(.ignored)
            free(packet)
            return
        }
        guard mayAnswer(packet) else { return }
        packet.pointee.data[0] = Message.echoReply
        // The sum changes by the change of the type (RFC 1624).
        let old = packet.pointee.data.load16(2)
        packet.pointee.data.store16(2, Checksum.finish(Checksum.fold(UInt64(~old) + 0xf7ff)))
        count(.echoReplies)
        reply(packet)
    }

    private func mayAnswer(_ packet: Mbuf) -> Bool {
        if take(withUnsafeMutablePointer(to: &pointee.answers) { $0 }, rate: setting(.answerRate)) { return true }
        count(.limited)
        free(packet)
        return false
    }

    private func answerTimestamp(_ packet: Mbuf) {
        guard packet.pointee.pkt.length >= 20, packet.pointee.pkt.flags & UInt16(ALPS_PKT_NETBROADCAST) == 0,
            setting(.timestamp) != 0
        else {
            count(.ignored)
            free(packet)
            return
        }
        guard mayAnswer(packet), let whole = services.mbuf.pointee.pullup(pool, packet, 20) else { return }
        let cell = services.timeCell
        let wall = cell.ops(alps_time_ops.self).pointee.wall(cell.instance)
        let milliseconds = UInt32(truncatingIfNeeded: wall / 1_000_000 % 86_400_000)
        whole.pointee.data[0] = Message.timestampReply
        whole.pointee.data.store32(12, milliseconds)
        whole.pointee.data.store32(16, milliseconds)
        whole.pointee.data.store16(2, 0)
        whole.pointee.data.store16(
            2, Checksum.finish(services.mbuf.pointee.sum(pool, whole, 0, whole.pointee.pkt.length)))
        count(.timestampReplies)
        reply(whole)
    }

    /// Back to where it came from.
    private func reply(_ packet: Mbuf) {
        guard let cell = pointee.networkCell, cell.isProvided else {
            free(packet)
            return
        }
        let network = cell.ops(alps_network_ops.self)
        var netpcb = alps_netpcb()
        _ = network.pointee.attach(cell.instance, &netpcb, nil)
        netpcb.protocol = 1
        netpcb.remote = packet.pointee.pkt.source
        netpcb.tos = packet.pointee.pkt.tos & 0xfc
        if packet.pointee.pkt.flags & UInt16(ALPS_PKT_NETBROADCAST) == 0 { netpcb.local = packet.pointee.pkt.destination }
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
        packet.pointee.pkt.gso_type = UInt8(ALPS_GSO_NONE)
        packet.pointee.pkt.flags = 0
        packet.pointee.pkt.ifindex = 0
        count(.sent)
        _ = network.pointee.output(cell.instance, &netpcb, packet, 0)
    }

    // MARK: Errors about what we sent

    private func inputError(_ packet: Mbuf) {
        defer { free(packet) }
        let type = packet.pointee.data[0]
        let code = packet.pointee.data[1]
        let parameter = packet.pointee.data.load32(4)
        guard let quoted = quoted(packet) else {
            count(.tooShort)
            return
        }
        var event = alps_ctl_event()
        event.size = UInt32(MemoryLayout<alps_ctl_event>.size)
        event.family = UInt16(ALPS_AF_INET)
        event.type = type
        event.code = code
        event.offender = packet.pointee.pkt.source
        if type == Message.unreachable, code == 4 { event.mtu = parameter & 0xffff }
        classify(&event)
        deliver(&event, quoted)
    }

    /// The quoted packet: whole header and at least 8 bytes behind it. A packet over the same bytes.
    private func quoted(_ packet: Mbuf) -> Mbuf? {
        let length = packet.pointee.pkt.length
        guard length >= 8 + 20 + 8,
            let copy = services.mbuf.pointee.copy(pool, packet, 8, length - 8),
            let whole = services.mbuf.pointee.pullup(pool, copy, 28)
        else { return nil }
        let headerLength = UInt32(whole.pointee.data[0] & 15) * 4
        guard whole.pointee.data[0] >> 4 == 4, headerLength >= 20, whole.pointee.pkt.length >= headerLength + 8,
            // A quoted fragment that is not the first has no ports.
            whole.pointee.data.load16(6) & 0x1fff == 0
        else {
            free(whole)
            return nil
        }
        return whole
    }

    /// errno and weight of an error (RFC 1122, sections 3.2.2.1 and 4.2.3.9).
    private func classify(_ event: inout alps_ctl_event) {
        event.error = ALPS_EHOSTUNREACH
        switch (event.type, event.code) {
        case (Message.unreachable, 0), (Message.unreachable, 6), (Message.unreachable, 9), (Message.unreachable, 11):
            event.error = ALPS_ENETUNREACH
        case (Message.unreachable, 2):
            event.error = ALPS_ENOPROTOOPT
            event.hard = 1
        case (Message.unreachable, 3):
            event.error = ALPS_ECONNREFUSED
            event.hard = 1
        case (Message.unreachable, 4): event.error = ALPS_EMSGSIZE
        case (Message.unreachable, 5): event.error = ALPS_EOPNOTSUPP
        case (Message.parameterProblem, _):
            event.error = ALPS_EPROTO
        default: break
        }
    }

    /// Hands the event to the transport that sent the quoted packet. [consumes quoted]
    private func deliver(_ event: inout alps_ctl_event, _ quoted: Mbuf) {
        defer { free(quoted) }
        let data = quoted.pointee.data
        event.quoted = quoted
        event.quoted_length = UInt32(data.load16(2))
        event.transport_offset = UInt32(data[0] & 15) * 4
        event.source = neutral(UnsafeRawPointer(data).loadUnaligned(fromByteOffset: 12, as: UInt32.self))
        event.destination = neutral(UnsafeRawPointer(data).loadUnaligned(fromByteOffset: 16, as: UInt32.self))
        count(.errorsReceived)
        let cell = services.protoswCell
        if data[9] != 1, cell.ops(alps_protosw_ops.self).pointee.control(cell.instance, data[9], &event) != 0 {
            count(.errorsUnmatched)
        }
    }

    /// RFC 1122, section 3.2.2.2: believed only from the gateway in use, for a packet of ours.
    private func inputRedirect(_ packet: Mbuf) {
        defer { free(packet) }
        count(.redirects)
        guard setting(.acceptRedirects) != 0, packet.pointee.data[1] <= 3, let quoted = quoted(packet) else { return }
        defer { free(quoted) }
        var gateway = neutral(UnsafeRawPointer(packet.pointee.data).loadUnaligned(fromByteOffset: 4, as: UInt32.self))
        var destination = neutral(UnsafeRawPointer(quoted.pointee.data).loadUnaligned(fromByteOffset: 16, as: UInt32.self))
        var source = neutral(UnsafeRawPointer(quoted.pointee.data).loadUnaligned(fromByteOffset: 12, as: UInt32.self))
        guard let network = pointee.networkCell, network.isProvided,
            network.ops(alps_network_ops.self).pointee.classify(network.instance, &source, 0) == ALPS_ADDR_LOCAL
        else { return }
        var from = packet.pointee.pkt.source
        let cell = services.routeCell
        let status = cell.ops(alps_route_ops.self).pointee.redirect(
            cell.instance, UInt16(ALPS_AF_INET), &destination, &gateway, &from, packet.pointee.pkt.ifindex)
        if status != 0 { count(.redirectsRefused) }
    }
}

import PluginAPI
import PluginKit

/// Messages about packets that this stack has sent (RFC 1122, section 3.2.2). `data` is at the ICMP header, of which eight
/// bytes are contiguous.
extension UnsafeMutablePointer where Pointee == Instance {
    /// Unreachable, time exceeded, parameter problem. [consumes]
    func inputError(_ packet: Mbuf) {
        defer { free(packet) }
        guard packet.pointee.pkt.flags & UInt16(ALPS_PKT_NETBROADCAST) == 0 else { return count(.ignored) }
        let data = packet.pointee.data
        var event = alps_ctl_event()
        event.size = UInt32(MemoryLayout<alps_ctl_event>.size)
        event.family = UInt16(ALPS_AF_INET)
        event.type = data[0]
        event.code = data[1]
        event.offender = packet.pointee.pkt.source
        // RFC 1191, section 4: the next-hop MTU stands in the low half of a field that was unused.
        if event.type == Message.unreachable, event.code == 4 { event.mtu = UInt32(data.load16(6)) }
        Self.judge(&event)
        // This stack itself has found out that a neighbour is not there. It will not come up a moment later.
        if packet.pointee.pkt.flags & UInt16(ALPS_PKT_LOOPBACK) != 0, event.code == 1 { event.hard = 1 }
        guard let quoted = quoted(packet) else {
            count(.tooShort)
            return
        }
        deliver(&event, quoted)
        free(quoted)
    }

    /// The quoted packet: whole header and at least 8 bytes behind it, contiguous. A packet over the same bytes.
    private func quoted(_ packet: Mbuf) -> Mbuf? {
        let length = packet.pointee.pkt.length
        guard length >= 8 + 20 + 8, let copy = services.mbuf.pointee.copy(pool, packet, 8, length - 8),
            let fixed = services.mbuf.pointee.pullup(pool, copy, 20)
        else { return nil }
        let headerLength = UInt32(fixed.pointee.data[0] & 15) * 4
        guard fixed.pointee.data[0] >> 4 == 4, headerLength >= 20, fixed.pointee.pkt.length >= headerLength + 8,
            // A fragment that is not the first has no ports.
            fixed.pointee.data.load16(6) & 0x1fff == 0
        else {
            free(fixed)
            return nil
        }
        return services.mbuf.pointee.pullup(pool, fixed, headerLength + 8)
    }

    /// errno and weight of an error, as Linux has them. RFC 1122, section 4.2.3.9, says which are transient.
    private static func judge(_ event: inout alps_ctl_event) {
        event.error = ALPS_EHOSTUNREACH
        if event.type == Message.parameterProblem { event.error = ALPS_EPROTO }
        guard event.type == Message.unreachable else { return }
        switch event.code {
        case 0, 11: event.error = ALPS_ENETUNREACH
        case 2:
            event.error = ALPS_ENOPROTOOPT
            event.hard = 1
        case 3:
            event.error = ALPS_ECONNREFUSED
            event.hard = 1
        case 4: event.error = ALPS_EMSGSIZE
        case 5: event.error = ALPS_EOPNOTSUPP
        case 6, 9:
            event.error = ALPS_ENETUNREACH
            event.hard = 1
        case 7:
            event.error = ALPS_EHOSTDOWN
            event.hard = 1
        case 8, 10, 13, 14, 15: event.hard = 1
        default: break
        }
    }

    /// Hands the event to the transport that sent the quoted packet. [borrows quoted]
    private func deliver(_ event: inout alps_ctl_event, _ quoted: Mbuf) {
        let data = quoted.pointee.data
        event.quoted = quoted
        event.quoted_length = UInt32(data.load16(2))
        event.transport_offset = UInt32(data[0] & 15) * 4
        event.source = neutral(UnsafeRawPointer(data).loadUnaligned(fromByteOffset: 12, as: UInt32.self))
        event.destination = neutral(UnsafeRawPointer(data).loadUnaligned(fromByteOffset: 16, as: UInt32.self))
        count(.errorsReceived)
        // What we have not sent cannot be wrong.
        guard isOwn(event.source) else { return count(.errorsUnmatched) }
        let protocolNumber = data[9]
        let isEchoSocketsOwn = UInt16(protocolNumber) == Registration.protocol && reportToEchoSocket(&event, quoted)
        // Raw sockets, of this protocol too, are the host's to find.
        let cell = services.protoswCell
        if cell.ops(alps_protosw_ops.self).pointee.control(cell.instance, protocolNumber, &event) != 0,
            !isEchoSocketsOwn
        {
            count(.errorsUnmatched)
        }
    }

    private func isOwn(_ address: alps_addr) -> Bool {
        guard let cell = pointee.networkCell, cell.isProvided else { return false }
        var address = address
        return cell.ops(alps_network_ops.self).pointee.classify(cell.instance, &address, 0) == ALPS_ADDR_LOCAL
    }

    /// RFC 1122, section 3.2.2.2: believed only from the gateway in use, for a packet of ours. [consumes]
    func inputRedirect(_ packet: Mbuf) {
        defer { free(packet) }
        count(.redirects)
        guard setting(.acceptRedirects) != 0, packet.pointee.data[1] <= 3,
            packet.pointee.pkt.flags & UInt16(ALPS_PKT_NETBROADCAST) == 0, let quoted = quoted(packet)
        else { return count(.redirectsRefused) }
        defer { free(quoted) }
        let inner = UnsafeRawPointer(quoted.pointee.data)
        var gateway = neutral(UnsafeRawPointer(packet.pointee.data).loadUnaligned(fromByteOffset: 4, as: UInt32.self))
        var destination = neutral(inner.loadUnaligned(fromByteOffset: 16, as: UInt32.self))
        let source = neutral(inner.loadUnaligned(fromByteOffset: 12, as: UInt32.self))
        guard isOwn(source), !isOwn(gateway) else { return count(.redirectsRefused) }
        var from = packet.pointee.pkt.source
        let cell = services.routeCell
        let status = cell.ops(alps_route_ops.self).pointee.redirect(
            cell.instance, UInt16(ALPS_AF_INET), &destination, &gateway, &from, packet.pointee.pkt.ifindex)
        if status != 0 { count(.redirectsRefused) }
    }
}

import PluginAPI
import PluginKit

/// "alps.neterror/1:2": `packet->data` is at the header of the packet that is complained about. [consumes]
func icmpSendError(
    _ context: UnsafeMutableRawPointer, _ packet: Mbuf, _ type: UInt8, _ code: UInt8, _ parameter: UInt32
) {
    context.assumingMemoryBound(to: Instance.self).sendError(packet, type, code, parameter)
}

extension UnsafeMutablePointer where Pointee == Instance {
    fileprivate func sendError(_ given: Mbuf, _ type: UInt8, _ code: UInt8, _ parameter: UInt32) {
        guard let cell = pointee.networkCell, cell.isProvided else { return free(given) }
        let network = Network(ops: cell.ops(alps_network_ops.self), instance: cell.instance)
        guard isAllowed(given, network) else {
            count(.errorsSuppressed)
            return free(given)
        }
        guard take(withUnsafeMutablePointer(to: &pointee.errors) { $0 }, rate: setting(.errorRate)) else {
            count(.limited)
            return free(given)
        }
        // An unfinished checksum must not be quoted. A large packet has one for each segment: none of them is here.
        var packet = given
        if packet.pointee.pkt.gso_type == UInt8(ALPS_GSO_NONE) {
            guard let finished = services.mbuf.pointee.finish_checksum(pool, packet) else { return }
            packet = finished
        }
        build(packet, type, code, parameter, network)
        free(packet)
    }

    /// RFC 1122, section 3.2.2, and RFC 1812, section 4.3.2.7: never about errors, broadcasts, fragments but the first, or
    /// packets whose source is not one host.
    private func isAllowed(_ packet: Mbuf, _ network: Network) -> Bool {
        let length = packet.pointee.pkt.length
        guard length >= 20, packet.pointee.length >= 20 else { return false }
        let data = packet.pointee.data
        let headerLength = UInt32(data[0] & 15) * 4
        guard data[0] >> 4 == 4, headerLength >= 20, length >= headerLength else { return false }
        let flags = UInt16(ALPS_PKT_BROADCAST | ALPS_PKT_MULTICAST | ALPS_PKT_NETBROADCAST)
        guard packet.pointee.pkt.flags & flags == 0, data.load16(6) & 0x1fff == 0 else { return false }
        switch network.classify(data, at: 12) {
        case ALPS_ADDR_UNICAST, ALPS_ADDR_LOCAL: break
        default: return false
        }
        switch network.classify(data, at: 16) {
        case ALPS_ADDR_BROADCAST, ALPS_ADDR_MULTICAST: return false
        default: break
        }
        guard data[9] == UInt8(Registration.protocol) else { return true }
        guard length > headerLength else { return false }
        var inner: UInt8 = 0
        services.mbuf.pointee.copy_out(pool, packet, headerLength, 1, &inner)
        return !Message.isError(inner)
    }

    /// As much of the packet as keeps the message within 576 bytes (RFC 1812, section 4.3.2.3).
    private func build(_ packet: Mbuf, _ type: UInt8, _ code: UInt8, _ parameter: UInt32, _ network: Network) {
        let quoted = min(packet.pointee.pkt.length, 576 - 20 - 8)
        guard let message = services.mbuf.pointee.cluster(pool, 128, 8 + quoted) else { return }
        let data = message.pointee.data
        data[0] = type
        data[1] = code
        data.store16(2, 0)
        data.store32(4, parameter)
        services.mbuf.pointee.copy_out(pool, packet, 0, quoted, data + 8)
        message.pointee.length = 8 + quoted
        message.pointee.pkt.length = 8 + quoted
        data.store16(2, Checksum.finish(Checksum.sum(data, Int(8 + quoted))))
        var netpcb = alps_netpcb()
        _ = network.ops.pointee.attach(network.instance, &netpcb, nil)
        netpcb.protocol = UInt8(Registration.protocol)
        // Internetwork control (RFC 1812, section 4.3.2.5).
        netpcb.tos = 0xc0
        netpcb.remote = Network.address(packet.pointee.data, at: 12)
        // From the address that was spoken to, if it is ours.
        if network.classify(packet.pointee.data, at: 16) == ALPS_ADDR_LOCAL {
            netpcb.local = Network.address(packet.pointee.data, at: 16)
        }
        count(.errorsSent)
        count(.sent)
        _ = network.ops.pointee.output(network.instance, &netpcb, message, 0)
    }
}

/// The network below, and addresses inside its headers.
private struct Network {
    let ops: UnsafePointer<alps_network_ops>
    let instance: UnsafeMutableRawPointer

    static func address(_ header: UnsafePointer<UInt8>, at offset: Int) -> alps_addr {
        neutral(UnsafeRawPointer(header).loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }

    func classify(_ header: UnsafePointer<UInt8>, at offset: Int) -> UInt32 {
        var address = Self.address(header, at: offset)
        return ops.pointee.classify(instance, &address, 0)
    }
}

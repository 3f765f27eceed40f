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
        // An unfinished checksum must not be quoted.
        var packet = given
        if packet.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL), packet.pointee.pkt.l3_length > 0,
            packet.pointee.pkt.gso_type == UInt8(ALPS_GSO_NONE)
        {
            packet.pointee.pkt.csum_start &+= packet.pointee.pkt.l3_length
            guard let finished = services.mbuf.pointee.finish_checksum(pool, packet) else { return }
            packet = finished
        }
        guard isAllowed(packet) else {
            count(.errorsSuppressed)
            free(packet)
            return
        }
        guard take(withUnsafeMutablePointer(to: &pointee.errors) { $0 }, rate: setting(.errorRate)) else {
            count(.limited)
            free(packet)
            return
        }
        build(packet, type, code, parameter)
        free(packet)
    }

    /// RFC 1122, section 3.2.2, and RFC 1812, section 4.3.2.7: never about errors, broadcasts, fragments but the first, or
    /// packets whose source is not one host.
    private func isAllowed(_ packet: Mbuf) -> Bool {
        let length = packet.pointee.pkt.length
        guard length >= 20, packet.pointee.length >= 20 else { return false }
        let data = packet.pointee.data
        let headerLength = UInt32(data[0] & 15) * 4
        guard data[0] >> 4 == 4, headerLength >= 20, length >= headerLength else { return false }
        let flags = UInt16(ALPS_PKT_BROADCAST | ALPS_PKT_MULTICAST | ALPS_PKT_NETBROADCAST)
        guard packet.pointee.pkt.flags & flags == 0, data.load16(6) & 0x1fff == 0 else { return false }
        let first = data[12]
        guard first != 0, first & 0xf0 != 0xe0, first & 0xf0 != 0xf0 else { return false }
        if data[16] & 0xf0 == 0xe0 { return false }
        if data[9] == 1 {
            guard length > headerLength, packet.pointee.length > headerLength else { return false }
            if Message.isError(data[Int(headerLength)]) { return false }
        }
        return true
    }

    /// As much of the packet as keeps the message within 576 bytes (RFC 1812, section 4.3.2.3).
    private func build(_ packet: Mbuf, _ type: UInt8, _ code: UInt8, _ parameter: UInt32) {
        guard let cell = pointee.networkCell, cell.isProvided else { return }
        let network = cell.ops(alps_network_ops.self)
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
        _ = network.pointee.attach(cell.instance, &netpcb, nil)
        netpcb.protocol = 1
        netpcb.tos = 0xc0
        netpcb.remote = neutral(UnsafeRawPointer(packet.pointee.data).loadUnaligned(fromByteOffset: 12, as: UInt32.self))
        var destination = neutral(UnsafeRawPointer(packet.pointee.data).loadUnaligned(fromByteOffset: 16, as: UInt32.self))
        if network.pointee.classify(cell.instance, &destination, 0) == ALPS_ADDR_LOCAL { netpcb.local = destination }
        count(.errorsSent)
        count(.sent)
        _ = network.pointee.output(cell.instance, &netpcb, message, 0)
    }
}

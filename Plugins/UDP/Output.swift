import PluginAPI
import PluginKit

/// One datagram from the application, to its peer or to `to`.
func udpSendDatagram(
    _ context: UnsafeMutableRawPointer, _ socket: Socket, _ packet: Mbuf, _ to: UnsafePointer<alps_sockaddr>?
) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let block = socket.block, let network = instance.network else {
        instance.free(packet)
        return ALPS_ENETDOWN
    }
    let result = instance.send(block, packet, to, network)
    instance.count(result == 0 ? .sent : .sendErrors)
    return result
}

extension UnsafeMutablePointer where Pointee == Instance {
    @inline(__always)
    fileprivate func send(
        _ block: Block, _ packet: Mbuf, _ to: UnsafePointer<alps_sockaddr>?, _ network: Network
    ) -> Int32 {
        let socket = block.pointee.socket
        let netpcb = socket.pointee.netpcb
        if socket.pointee.state & ALPS_SS_CANTSENDMORE != 0 { return refuse(packet, ALPS_EPIPE) }
        // The length field has 16 bits, and so has the network's.
        let length = packet.pointee.pkt.length &+ UInt32(Header.length)
        guard length &+ netpcb.pointee.header_length <= 65535,
            Int64(packet.pointee.pkt.length) <= setting(.maximumDatagram)
        else { return refuse(packet, ALPS_EMSGSIZE) }
        copyFlags(socket)

        guard let to else {
            guard block.pointee.isConnected else { return refuse(packet, ALPS_EDESTADDRREQ) }
            guard block.pointee.conn.remote_port != 0 else { return refuse(packet, ALPS_EINVAL) }
            return transmit(block, packet, length, netpcb, block.pointee.conn.remote_port, network)
        }
        guard to.pointee.family == socket.pointee.domain || to.pointee.family == UInt16(ALPS_AF_UNSPEC) else {
            return refuse(packet, ALPS_EAFNOSUPPORT)
        }
        guard to.pointee.port != 0 else { return refuse(packet, ALPS_EINVAL) }
        if !block.pointee.isInserted {
            let result = reserve(block)
            guard result == 0 else { return refuse(packet, result) }
        }
        // The socket's own attachment stays as it is; what was found out about this destination is kept beside it.
        var oneOff = netpcb.pointee
        oneOff.remote = to.pointee.addr
        let choice = RouteChoice(netpcb)
        if block.pointee.lastRemote == oneOff.remote, block.pointee.lastChoice == choice {
            oneOff.route = block.pointee.lastRoute
            if oneOff.local.isZero, isRouteFresh(&oneOff.route) { oneOff.local = block.pointee.lastLocal }
        } else {
            oneOff.route = alps_route()
        }
        let result = transmit(block, packet, length, &oneOff, to.pointee.port, network)
        block.pointee.lastChoice = choice
        block.pointee.lastRemote = oneOff.remote
        block.pointee.lastLocal = oneOff.local
        block.pointee.lastRoute = oneOff.route
        return result
    }

    @inline(__always)
    private func transmit(
        _ block: Block, _ payload: Mbuf, _ length: UInt32, _ netpcb: UnsafeMutablePointer<alps_netpcb>,
        _ port: UInt16, _ network: Network
    ) -> Int32 {
        let routed = network.ops.pointee.route(network.instance, netpcb)
        guard routed == 0 else { return refuse(payload, routed) }
        let mbufs = services.mbuf
        let pool = services.mbufCell.instance
        guard let packet = mbufs.pointee.prepend(pool, payload, UInt32(Header.length)) else { return ALPS_ENOBUFS }
        let header = packet.pointee.data
        header.store16(Header.sourcePort, block.pointee.conn.local_port)
        header.store16(Header.destinationPort, port)
        header.store16(Header.lengthField, UInt16(truncatingIfNeeded: length))
        header.store16(Header.checksum, 0)
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
        packet.pointee.pkt.protocol = Registration.protocol
        if setting(.checksum) != 0, !block.pointee.omitsChecksum {
            let pseudo = network.ops.pointee.pseudo_sum(
                network.instance, &netpcb.pointee.local, &netpcb.pointee.remote, Registration.protocol, length)
            let mtu = netpcb.pointee.route.mtu
            if mtu != 0, length &+ netpcb.pointee.header_length <= mtu {
                // In one piece, so the device may do it, or nobody at all (lo0).
                header.store16(Header.checksum, UInt16(truncatingIfNeeded: pseudo))
                packet.pointee.pkt.csum = UInt8(ALPS_CSUM_PARTIAL)
                packet.pointee.pkt.csum_start = 0
                packet.pointee.pkt.csum_offset = UInt16(Header.checksum)
            } else {
                let sum = mbufs.pointee.sum(pool, packet, 0, length)
                let value = Checksum.finish(Checksum.fold(UInt64(pseudo) &+ UInt64(sum)))
                // Zero is said as all ones (RFC 768).
                header.store16(Header.checksum, value == 0 ? 0xffff : value)
            }
        }
        return network.ops.pointee.output(network.instance, netpcb, packet, 0)
    }

    @inline(__always)
    private func refuse(_ packet: Mbuf, _ error: Int32) -> Int32 {
        free(packet)
        return error
    }

    @inline(__always)
    private func isRouteFresh(_ route: inout alps_route) -> Bool {
        let cell = services.routeCell
        return route.generation == cell.ops(alps_route_ops.self).pointee.generation(cell.instance).pointee
    }
}

import PluginAPI
import PluginKit

/// Layout of the header (RFC 768): source port, destination port, length, checksum.
enum Header {
    static var length: Int { 8 }
    static var sourcePort: Int { 0 }
    static var destinationPort: Int { 2 }
    static var lengthField: Int { 4 }
    static var checksum: Int { 6 }
}

/// Datagrams from the network.
func udpInput(_ context: UnsafeMutableRawPointer, _ list: Mbuf) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let network = instance.network else {
        instance.services.free(list)
        return
    }
    var next: Mbuf? = list
    while let packet = next {
        next = packet.pointee.nextpkt
        packet.pointee.nextpkt = nil
        instance.input(packet, network)
    }
}

extension UnsafeMutablePointer where Pointee == Instance {
    fileprivate func input(_ arrived: Mbuf, _ network: Network) {
        count(.received)
        let mbufs = services.mbuf
        let pool = services.mbufCell.instance
        guard arrived.pointee.pkt.length >= UInt32(Header.length) else {
            count(.shortHeader)
            return free(arrived)
        }
        var packet = arrived
        if packet.pointee.length < UInt32(Header.length) {
            guard let joined = mbufs.pointee.pullup(pool, packet, UInt32(Header.length)) else {
                count(.shortHeader)
                return
            }
            packet = joined
        }

        let length = UInt32(packet.pointee.data.load16(Header.lengthField))
        guard length >= UInt32(Header.length), length <= packet.pointee.pkt.length else {
            count(.badLength)
            return free(packet)
        }
        // What lies behind the datagram is padding.
        if length < packet.pointee.pkt.length {
            mbufs.pointee.adjust(pool, packet, 0, packet.pointee.pkt.length - length)
        }
        guard checksumHolds(packet, length, network) else {
            count(.badChecksum)
            return free(packet)
        }

        let isToMany = packet.pointee.pkt.flags & UInt16(ALPS_PKT_NETBROADCAST) != 0
        if !isToMany {
            guard let conn = packet.pointee.pkt.conn, let cookie = conn.pointee.cookie else {
                return unreachable(packet, network)
            }
            var info = datagramInfo(packet)
            mbufs.pointee.adjust(pool, packet, UInt32(Header.length), 0)
            deliver(cookie.assumingMemoryBound(to: ControlBlock.self), packet, &info)
        } else {
            deliverToAll(packet, network)
        }
    }

    /// A checksum of zero means that the sender made none (RFC 768; RFC 1122, 4.1.3.4: accept, else discard silently).
    @inline(__always)
    private func checksumHolds(_ packet: Mbuf, _ length: UInt32, _ network: Network) -> Bool {
        if packet.pointee.pkt.csum != UInt8(ALPS_CSUM_NONE) { return true }
        if packet.pointee.data.load16(Header.checksum) == 0 {
            count(.noChecksum)
            return true
        }
        let pseudo = network.ops.pointee.pseudo_sum(
            network.instance, &packet.pointee.pkt.source, &packet.pointee.pkt.destination, Registration.protocol,
            length)
        let sum = services.mbuf.pointee.sum(services.mbufCell.instance, packet, 0, length)
        return Checksum.fold(UInt64(pseudo) &+ UInt64(sum)) == 0xffff
    }

    /// Nobody listens: the sender gets a port unreachable (RFC 1122, 4.1.3.1), unless it spoke to more than us.
    private func unreachable(_ packet: Mbuf, _ network: Network) {
        if packet.pointee.pkt.flags & UInt16(ALPS_PKT_BROADCAST | ALPS_PKT_MULTICAST) != 0 {
            count(.noPortBroadcast)
            return free(packet)
        }
        count(.noPort)
        if setting(.blackhole) != 0 { return free(packet) }
        network.ops.pointee.error(network.instance, packet, ALPS_NETERR_PORT_UNREACHABLE)
    }

    @inline(__always)
    private func datagramInfo(_ packet: Mbuf) -> alps_datagram_info {
        alps_datagram_info(
            size: UInt32(MemoryLayout<alps_datagram_info>.size), ifindex: packet.pointee.pkt.ifindex,
            source: alps_sockaddr(
                family: packet.pointee.pkt.family, port: packet.pointee.data.load16(Header.sourcePort), scope: 0,
                addr: packet.pointee.pkt.source),
            destination: packet.pointee.pkt.destination, timestamp: packet.pointee.pkt.timestamp,
            ttl: packet.pointee.pkt.ttl, tos: packet.pointee.pkt.tos, reserved: 0)
    }

    /// `packet` is at the payload.
    @inline(__always)
    fileprivate func deliver(_ block: Block, _ packet: Mbuf, _ info: inout alps_datagram_info) {
        let result = sockets.pointee.receive_datagram(
            services.socketCell.instance, block.pointee.socket, packet, &info)
        count(result == 0 ? .delivered : .fullSocket)
    }

    /// Broadcast and multicast: every socket that matches gets the datagram (RFC 1122, 4.1.3.3 and 3.3.6), of a group
    /// only those that have joined it.
    private func deliverToAll(_ packet: Mbuf, _ network: Network) {
        let source = packet.pointee.data.load16(Header.sourcePort)
        let destination = packet.pointee.data.load16(Header.destinationPort)
        let kind = network.ops.pointee.classify(
            network.instance, &packet.pointee.pkt.destination, packet.pointee.pkt.ifindex)
        var fanout = Fanout(
            instance: self, network: network, packet: packet, last: nil, isGroup: kind == ALPS_ADDR_MULTICAST,
            info: datagramInfo(packet))
        services.mbuf.pointee.adjust(services.mbufCell.instance, packet, UInt32(Header.length), 0)
        table.pointee.match_all(
            services.pcbCell.instance, fanout.info.source.family, Registration.protocol,
            &packet.pointee.pkt.destination, destination, &packet.pointee.pkt.source, source,
            packet.pointee.pkt.ifindex, &fanout, fanoutMatched)
        // The last one needs no copy.
        if let last = fanout.last {
            deliver(last, packet, &fanout.info)
        } else {
            count(.noPortBroadcast)
            free(packet)
        }
    }
}

/// One datagram on its way to several sockets.
private struct Fanout {
    let instance: InstancePointer
    let network: Network
    let packet: Mbuf
    /// Found, not yet served.
    var last: Block?
    let isGroup: Bool
    var info: alps_datagram_info
}

private func fanoutMatched(_ context: UnsafeMutableRawPointer?, _ conn: UnsafeMutablePointer<alps_conn>) {
    guard let context, let cookie = conn.pointee.cookie else { return }
    let fanout = context.assumingMemoryBound(to: Fanout.self)
    let block = cookie.assumingMemoryBound(to: ControlBlock.self)
    let instance = fanout.pointee.instance
    if fanout.pointee.isGroup {
        let network = fanout.pointee.network
        let isMember = network.ops.pointee.member(
            network.instance, block.pointee.socket.pointee.netpcb, &fanout.pointee.info.destination,
            fanout.pointee.info.ifindex)
        guard isMember != 0 else { return }
    }
    if let last = fanout.pointee.last {
        let packet = fanout.pointee.packet
        let services = instance.services
        if let copy = services.mbuf.pointee.copy(
            services.mbufCell.instance, packet, 0, packet.pointee.pkt.length)
        {
            instance.deliver(last, copy, &fanout.pointee.info)
        } else {
            instance.count(.fullSocket)
        }
    }
    fanout.pointee.last = block
}

import PluginAPI
import PluginKit

// Where packets come in: header and checksum are verified, and the segment goes to whoever the tuple belongs to.

/// A list of packets from the network.
func tcpInput(_ context: UnsafeMutableRawPointer, _ list: Mbuf) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let network = instance.network else {
        instance.services.free(list)
        return
    }
    let generation = instance.pointee.tableGeneration
    var next: Mbuf? = list
    prefetchConnection(of: list)
    while let packet = next {
        next = packet.pointee.nextpkt
        packet.pointee.nextpkt = nil
        if let next { prefetchConnection(of: next) }
        instance.input(packet, network, isLookupStale: instance.pointee.tableGeneration != generation)
    }
}

/// With many connections, hardly anything of the one that a packet belongs to is in the cache: all of it is fetched at once
/// rather than line by line as it is needed.
@inline(__always)
private func prefetchConnection(of packet: Mbuf) {
    guard let conn = packet.pointee.pkt.conn, let cookie = conn.pointee.cookie, conn.pointee.kind == UInt8(ALPS_CONN_FULL) else {
        return
    }
    var offset = 128
    while offset < MemoryLayout<Connection>.size {
        alps_prefetch(cookie + offset)
        offset += 64
    }
    if let socket = conn.pointee.socket {
        let start = UnsafeRawPointer(socket)
        alps_prefetch(start)
        alps_prefetch(start + 64)
        alps_prefetch(start + 128)
        alps_prefetch(start + 192)
        alps_prefetch(start + 256)
    }
}

extension UnsafeMutablePointer where Pointee == Instance {
    fileprivate func input(_ arrived: Mbuf, _ network: Network, isLookupStale: Bool) {
        count(.received)
        guard let packet = verify(arrived, network) else { return }
        let headerLength = UInt32(packet.pointee.data[Header.dataOffset] >> 4) &* 4
        var segment = Segment(packet, headerLength: headerLength)
        // An earlier packet of this list may have made or ended the connection of this one.
        let conn = isLookupStale ? lookup(packet) : packet.pointee.pkt.conn
        packet.pointee.pkt.conn = conn
        guard let conn, let cookie = conn.pointee.cookie else {
            arriveClosed(&segment, network)
            return free(packet)
        }
        switch UInt32(conn.pointee.kind) {
        case ALPS_CONN_EMBRYONIC:
            arriveEmbryonic(cookie.assumingMemoryBound(to: Embryonic.self), &segment, network)
        case ALPS_CONN_TIMEWAIT:
            arriveTimeWait(cookie.assumingMemoryBound(to: TimeWait.self), &segment, network)
        default:
            let connection = cookie.assumingMemoryBound(to: Connection.self)
            switch connection.pointee.state {
            case .listen: arriveListen(connection, &segment, network)
            case .synSent: connection.arriveSynSent(&segment)
            case .closed, .timeWait: arriveClosed(&segment, network)
            default: connection.arrive(&segment)
            }
        }
        free(packet)
    }

    /// Header complete and contiguous, checksum right, not sent to many. Nil: counted and freed.
    @inline(__always)
    private func verify(_ arrived: Mbuf, _ network: Network) -> Mbuf? {
        let total = arrived.pointee.pkt.length
        guard total >= Header.length else {
            count(.receivedShort)
            free(arrived)
            return nil
        }
        var packet = arrived
        if packet.pointee.length < Header.length {
            guard let joined = pullup(packet, Header.length) else { return nil }
            packet = joined
        }
        let headerLength = UInt32(packet.pointee.data[Header.dataOffset] >> 4) &* 4
        guard headerLength >= Header.length, headerLength <= total else {
            count(.receivedBadOffset)
            free(packet)
            return nil
        }
        if packet.pointee.length < headerLength {
            guard let joined = pullup(packet, headerLength) else { return nil }
            packet = joined
        }
        if packet.pointee.pkt.csum == UInt8(ALPS_CSUM_NONE), !checksumHolds(packet, network) {
            count(.receivedBadChecksum)
            free(packet)
            return nil
        }
        // RFC 9293, MUST-57: a connection has two ends. Such segments are dropped in silence.
        let toMany = UInt16(ALPS_PKT_BROADCAST | ALPS_PKT_MULTICAST | ALPS_PKT_NETBROADCAST)
        guard packet.pointee.pkt.flags & toMany == 0 else {
            count(.receivedBroadcast)
            free(packet)
            return nil
        }
        return packet
    }

    @inline(never)
    private func pullup(_ packet: Mbuf, _ length: UInt32) -> Mbuf? {
        let cell = services.mbufCell
        guard let joined = cell.ops(alps_mbuf_ops.self).pointee.pullup(cell.instance, packet, length) else {
            count(.receivedShort)
            return nil
        }
        return joined
    }

    @inline(never)
    private func checksumHolds(_ packet: Mbuf, _ network: Network) -> Bool {
        let length = packet.pointee.pkt.length
        let pseudo = network.ops.pointee.pseudo_sum(
            network.instance, &packet.pointee.pkt.source, &packet.pointee.pkt.destination, Registration.protocol, length
        )
        let cell = services.mbufCell
        let sum = cell.ops(alps_mbuf_ops.self).pointee.sum(cell.instance, packet, 0, length)
        return Checksum.fold(UInt64(pseudo) &+ UInt64(sum)) == 0xffff
    }

    /// RFC 9293, 3.10.7.1: nobody has this tuple. The answer is a reset whose numbers the sender will believe.
    func arriveClosed(_ segment: inout Segment, _ network: Network) {
        count(.receivedClosed)
        if segment.has(Flag.rst) { return }
        let blackhole = setting(.blackhole)
        if blackhole >= 2 || (blackhole == 1 && segment.has(Flag.syn)) { return }
        reset(&segment, network)
    }

    /// The reset that answers `segment` (RFC 9293, 3.5.2 group 1).
    func reset(_ segment: inout Segment, _ network: Network) {
        guard !segment.has(Flag.rst), isUsableSource(segment.packet, network) else { return }
        count(.sentResets)
        if segment.has(Flag.ack) {
            reply(
                segment.packet, network, sequence: segment.acknowledgment, acknowledgment: SequenceNumber(0),
                flags: Flag.rst)
        } else {
            reply(
                segment.packet, network, sequence: SequenceNumber(0),
                acknowledgment: segment.sequence + segment.sequenceLength, flags: Flag.rst | Flag.ack)
        }
    }

    /// RFC 9293, MUST-63: what claims to come from nobody or from many gets no answer.
    func isUsableSource(_ packet: Mbuf, _ network: Network) -> Bool {
        switch network.ops.pointee.classify(network.instance, &packet.pointee.pkt.source, packet.pointee.pkt.ifindex) {
        case ALPS_ADDR_UNICAST, ALPS_ADDR_LOCAL: return true
        default: return false
        }
    }
}

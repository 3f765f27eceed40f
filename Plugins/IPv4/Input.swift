import PluginAPI
import PluginKit

/// Packets from an interface, in order of arrival. [consumes]
func ipInput(_ context: UnsafeMutableRawPointer, _ list: Mbuf) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    // Consecutive packets of one protocol go up together.
    var run: Mbuf?
    var tail: Mbuf?
    var runProtocol: UInt8 = 0
    var next: Mbuf? = list
    while let packet = next {
        next = packet.pointee.nextpkt
        packet.pointee.nextpkt = nil
        guard let ready = instance.input(packet) else { continue }
        let protocolNumber = ready.pointee.pkt.protocol
        if let first = run, protocolNumber != runProtocol {
            instance.deliver(first, runProtocol)
            run = nil
        }
        if run == nil {
            run = ready
            runProtocol = protocolNumber
        } else {
            tail?.pointee.nextpkt = ready
        }
        tail = ready
    }
    if let first = run { instance.deliver(first, runProtocol) }
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// Checks one packet (RFC 1122, section 3.2.1). What comes back is a whole datagram for this host with `data` at the
    /// transport header; nil if the packet is used up.
    fileprivate func input(_ arrived: Mbuf) -> Mbuf? {
        count(.received)
        var packet = arrived
        guard packet.pointee.pkt.length >= UInt32(Header.minimumLength) else { return drop(packet, .tooShort) }
        if packet.pointee.length < UInt32(Header.minimumLength) {
            guard let whole = services.mbuf.pointee.pullup(pool, packet, UInt32(Header.minimumLength)) else {
                return nil
            }
            packet = whole
        }
        var header = Header(bytes: packet.pointee.data)
        guard header.version == 4 else { return drop(packet, .badVersion) }
        let length = header.length
        guard length >= Header.minimumLength, UInt32(length) <= packet.pointee.pkt.length else {
            return drop(packet, .badHeaderLength)
        }
        if packet.pointee.length < UInt32(length) {
            guard let whole = services.mbuf.pointee.pullup(pool, packet, UInt32(length)) else { return nil }
            packet = whole
            header = Header(bytes: packet.pointee.data)
        }
        let isFromLoopback = packet.pointee.pkt.flags & UInt16(ALPS_PKT_LOOPBACK) != 0
        // The sum over a header that is right is all ones (RFC 1071).
        if !isFromLoopback, Checksum.sum(header.bytes, length) != 0xffff { return drop(packet, .badChecksum) }
        let total = header.totalLength
        guard total >= length, UInt32(total) <= packet.pointee.pkt.length else { return drop(packet, .badLength) }
        if UInt32(total) < packet.pointee.pkt.length {
            // Padding of the link.
            services.mbuf.pointee.adjust(pool, packet, 0, packet.pointee.pkt.length - UInt32(total))
        }
        let source = header.source
        let destination = header.destination
        guard isAcceptable(packet, source, destination, isFromLoopback) else { return drop(packet, .badAddress) }
        if isLocal(destination) {
            // A unicast datagram in a link broadcast is not for anybody (RFC 1122, section 3.3.6).
            if packet.pointee.pkt.flags & UInt16(ALPS_PKT_BROADCAST | ALPS_PKT_MULTICAST) != 0 {
                return drop(packet, .notForUs)
            }
        } else {
            guard isForAll(packet, destination, isFromLoopback) else { return drop(packet, .notForUs) }
            packet.pointee.pkt.flags |= UInt16(ALPS_PKT_NETBROADCAST)
        }
        packet.pointee.pkt.l3_length = UInt16(length)
        if length > Header.minimumLength {
            guard let kept = inputOptions(packet) else { return nil }
            packet = kept
            header = Header(bytes: packet.pointee.data)
        }
        if header.fragment & (Header.moreFragments | Header.offsetMask) != 0 {
            count(.fragmentsReceived)
            guard let whole = reassemble(packet) else { return nil }
            packet = whole
        }
        return finish(packet)
    }

    @inline(__always)
    private func drop(_ packet: Mbuf, _ counter: Counter) -> Mbuf? {
        count(counter)
        free(packet)
        return nil
    }

    /// Notes what transports want to know, and steps over the header.
    @inline(__always)
    private func finish(_ packet: Mbuf) -> Mbuf? {
        let header = Header(bytes: packet.pointee.data)
        let length = header.length
        packet.pointee.pkt.family = UInt16(ALPS_AF_INET)
        packet.pointee.pkt.protocol = header.protocol
        packet.pointee.pkt.tos = header.tos
        packet.pointee.pkt.ttl = header.ttl
        packet.pointee.pkt.source = neutral(header.source)
        packet.pointee.pkt.destination = neutral(header.destination)
        packet.pointee.pkt.l3_length = UInt16(length)
        if pointee.rawSockets != nil { deliverRaw(packet) }
        packet.pointee.data += length
        packet.pointee.length -= UInt32(length)
        packet.pointee.pkt.length -= UInt32(length)
        if packet.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) {
            if packet.pointee.pkt.csum_start >= UInt16(length) {
                packet.pointee.pkt.csum_start &-= UInt16(length)
            } else {
                // Nonsense from the device: let the transport have a look.
                packet.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
            }
        }
        count(.delivered)
        return packet
    }

    /// RFC 1122, section 3.2.1.3: what can never be a source or destination here.
    @inline(__always)
    private func isAcceptable(_ packet: Mbuf, _ source: UInt32, _ destination: UInt32, _ isFromLoopback: Bool) -> Bool {
        if AddressClass.isMulticast(source) || AddressClass.isBroadcast(source) || AddressClass.isInvalid(source) {
            return false
        }
        guard destination != 0, !AddressClass.isInvalid(destination) else { return false }
        // A host that has no address yet speaks to everybody on its network, not to one.
        if source == 0, !AddressClass.isBroadcast(destination), !AddressClass.isMulticast(destination) { return false }
        if isFromLoopback { return true }
        if AddressClass.isLoopback(source) || AddressClass.isLoopback(destination) { return false }
        // Our own address coming in from outside is a spoof or a loop.
        return !isLocal(source) && !isDirectedBroadcast(source, packet.pointee.pkt.ifindex)
    }

    /// Whether a packet for something that is not an address of ours is to be taken. (One for any of our addresses is,
    /// on any interface: the weak model of RFC 1122, section 3.3.4.2.)
    private func isForAll(_ packet: Mbuf, _ destination: UInt32, _ isFromLoopback: Bool) -> Bool {
        if AddressClass.isBroadcast(destination) { return true }
        if AddressClass.isMulticast(destination) { return isGroupWanted(destination, packet.pointee.pkt.ifindex) }
        return isDirectedBroadcast(destination, isFromLoopback ? 0 : packet.pointee.pkt.ifindex)
    }

    /// Hands a run of packets of one protocol to whoever speaks it.
    fileprivate func deliver(_ list: Mbuf, _ protocolNumber: UInt8) {
        if protocolNumber == IGMP.protocolNumber {
            inputIGMP(list)
            return
        }
        let cell = services.protoswCell
        let status = cell.ops(alps_protosw_ops.self).pointee.deliver(
            cell.instance, UInt16(ALPS_AF_INET), protocolNumber, list)
        if status != 0 { nobodySpeaks(protocolNumber, list) }
    }

    /// RFC 1122, section 3.2.2.1: protocol unreachable, unless a raw socket listens.
    @inline(never)
    private func nobodySpeaks(_ protocolNumber: UInt8, _ list: Mbuf) {
        let isHeard = hasRawSocket(protocolNumber)
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            if isHeard {
                free(packet)
            } else {
                count(.noProtocol)
                restoreHeader(packet)
                sendError(packet, 3, 2, 0)
            }
        }
    }

    /// `data` back to the network header.
    @inline(__always)
    func restoreHeader(_ packet: Mbuf) {
        let length = UInt32(packet.pointee.pkt.l3_length)
        packet.pointee.data -= Int(length)
        packet.pointee.length += length
        packet.pointee.pkt.length += length
        if packet.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) { packet.pointee.pkt.csum_start &+= UInt16(length) }
    }
}

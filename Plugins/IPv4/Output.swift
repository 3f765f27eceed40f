import PluginAPI
import PluginKit

/// Sends transport packets to netpcb->remote. [consumes]
func networkOutput(_ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB, _ list: Mbuf, _ flags: UInt32) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    let ifindex = list.pointee.pkt.ifindex
    if ifindex != 0, ifindex != netpcb.pointee.bound_ifindex {
        // The sender has named the interface for this very packet (IP_PKTINFO).
        var way = netpcb.pointee
        way.bound_ifindex = ifindex
        way.route.size = 0
        return instance.output(&way, list, flags)
    }
    return instance.output(netpcb, list, flags)
}

/// What the headers of one call's packets have in common.
private struct HeaderTemplate {
    var local: UInt32
    var remote: UInt32
    var length: Int
    var tos: UInt8
    var ttl: UInt8
    var `protocol`: UInt8
    /// Don't Fragment is set, so nobody will ever look at the identification (RFC 6864).
    var isAtomic: Bool
}

extension UnsafeMutablePointer where Pointee == Instance {
    func output(_ netpcb: NetworkPCB, _ list: Mbuf, _ flags: UInt32) -> Int32 {
        let status = route(netpcb)
        guard status == 0 else {
            services.free(list)
            count(.noRoute)
            return status
        }
        let remote = ipv4(netpcb.pointee.remote)
        let local = ipv4(netpcb.pointee.local)
        let ifindex = netpcb.pointee.route.ifindex
        guard mayLeave(local, remote, ifindex) else {
            services.free(list)
            return ALPS_EINVAL
        }
        let isMulticast = AddressClass.isMulticast(remote)
        let isBroadcast = netpcb.pointee.route.flags & ALPS_RTF_BROADCAST != 0
        var ttl = isMulticast ? netpcb.pointee.multicast_ttl : netpcb.pointee.ttl
        if ttl == 0, !isMulticast { ttl = UInt8(truncatingIfNeeded: setting(.ttl)) }
        let template = HeaderTemplate(
            local: local, remote: remote, length: max(Int(netpcb.pointee.header_length), Header.minimumLength),
            tos: netpcb.pointee.tos, ttl: ttl, protocol: netpcb.pointee.protocol,
            isAtomic: flags & ALPS_NETOUT_DONTFRAG != 0 || netpcb.pointee.flags & UInt8(ALPS_NETPCB_DF) != 0)
        let mtu = mtu(netpcb)

        var ready: Mbuf?
        var last: Mbuf?
        var result: Int32 = 0
        var next: Mbuf? = list
        while let segment = next {
            next = segment.pointee.nextpkt
            segment.pointee.nextpkt = nil
            guard let packet = addHeader(netpcb, segment, template) else {
                result = ALPS_ENOBUFS
                continue
            }
            if isBroadcast || isMulticast {
                if isBroadcast { packet.pointee.pkt.flags |= UInt16(ALPS_PKT_BROADCAST) }
                if isBroadcast || netpcb.pointee.multicast_loop != 0 { loopBack(packet, ifindex, isMulticast) }
                // Within this host.
                if isMulticast, ttl == 0 {
                    free(packet)
                    continue
                }
            }
            if !fits(packet, mtu) {
                let error = cut(packet, mtu, template.isAtomic, &ready, &last)
                if error != 0 { result = error }
                continue
            }
            count(.sent)
            if let last { last.pointee.nextpkt = packet } else { ready = packet }
            last = packet
        }
        guard let ready else { return result }
        let cell = services.ifnetCell
        var hop =
            netpcb.pointee.route.flags & ALPS_RTF_GATEWAY != 0 ? netpcb.pointee.route.gateway : netpcb.pointee.remote
        let sent = cell.ops(alps_ifnet_ops.self).pointee.output(
            cell.instance, ifindex, ready, UInt16(ALPS_AF_INET), &hop)
        return sent != 0 ? sent : result
    }

    /// RFC 1122, section 3.2.1.3 (g): 127/8 never appears outside a host.
    @inline(__always)
    private func mayLeave(_ local: UInt32, _ remote: UInt32, _ ifindex: UInt32) -> Bool {
        guard AddressClass.isLoopback(local) || AddressClass.isLoopback(remote) else { return true }
        return ifnet(ifindex)?.pointee.type == ALPS_IFT_LOOP
    }

    /// Whether a packet, or each of the segments it will be cut into, fits the path.
    @inline(__always)
    private func fits(_ packet: Mbuf, _ mtu: UInt32) -> Bool {
        let length = packet.pointee.pkt.length
        if length <= mtu { return true }
        guard packet.pointee.pkt.gso_type != UInt8(ALPS_GSO_NONE), length <= 65535 else { return false }
        // Headers of a segment: everything in front of the payload, which gso_size counts.
        let start = Int(packet.pointee.pkt.csum_start)
        var transport: UInt32 = 8
        if packet.pointee.pkt.gso_type != UInt8(ALPS_GSO_UDP) {
            guard start + 13 <= Int(packet.pointee.length) else { return false }
            transport = UInt32(packet.pointee.data[start + 12] >> 4) * 4
        }
        return UInt32(start) + transport + UInt32(packet.pointee.pkt.gso_size) <= mtu
    }

    /// Puts the header in front. `csum_start` follows by prepend.
    @inline(__always)
    private func addHeader(_ netpcb: NetworkPCB, _ segment: Mbuf, _ template: HeaderTemplate) -> Mbuf? {
        guard let packet = services.mbuf.pointee.prepend(pool, segment, UInt32(template.length)) else { return nil }
        let data = packet.pointee.data
        data[0] = 0x40 | UInt8(truncatingIfNeeded: template.length / 4)
        data[1] =
            packet.pointee.pkt.flags & UInt16(ALPS_PKT_ECT) != 0 ? template.tos & 0xfc | 2 : template.tos
        data.store16(2, UInt16(truncatingIfNeeded: packet.pointee.pkt.length))
        // Segments of a large packet are numbered from here on by whoever cuts it.
        let isNumbered = !template.isAtomic || packet.pointee.pkt.gso_type != UInt8(ALPS_GSO_NONE)
        data.store16(
            4,
            isNumbered
                ? identification(
                    template.local, template.remote, template.protocol, count: packet.pointee.pkt.gso_segments) : 0)
        data.store16(6, template.isAtomic ? Header.dontFragment : 0)
        data[8] = template.ttl
        data[9] = template.protocol
        let header = Header(bytes: data)
        header.setSource(template.local)
        header.setDestination(template.remote)
        if template.length > Header.minimumLength { insertOptions(netpcb, data) }
        header.finish()
        packet.pointee.pkt.l3_length = UInt16(truncatingIfNeeded: template.length)
        packet.pointee.pkt.family = UInt16(ALPS_AF_INET)
        packet.pointee.pkt.ethertype = 0x0800
        return packet
    }

    // MARK: Too big

    /// What becomes of a packet that does not fit: an error, fragments, or, of a large one, segments. [consumes]
    @inline(never)
    private func cut(_ packet: Mbuf, _ mtu: UInt32, _ isAtomic: Bool, _ first: inout Mbuf?, _ last: inout Mbuf?)
        -> Int32
    {
        guard !isAtomic, packet.pointee.pkt.length <= 65535 else {
            count(.tooBig)
            free(packet)
            return ALPS_EMSGSIZE
        }
        var whole: Mbuf? = packet
        if packet.pointee.pkt.gso_type != UInt8(ALPS_GSO_NONE) {
            whole = services.mbuf.pointee.segment(pool, packet)
            if whole == nil { return ALPS_ENOBUFS }
        }
        var result: Int32 = 0
        while let current = whole {
            whole = current.pointee.nextpkt
            current.pointee.nextpkt = nil
            var pieces: Mbuf? = current
            if current.pointee.pkt.length > mtu {
                pieces = fragment(current, mtu)
                if pieces == nil { result = ALPS_ENOBUFS }
            }
            while let piece = pieces {
                pieces = piece.pointee.nextpkt
                piece.pointee.nextpkt = nil
                count(.sent)
                if let last { last.pointee.nextpkt = piece } else { first = piece }
                last = piece
            }
        }
        return result
    }

    /// RFC 791, section 3.2: fragments of a packet with its header. The checksum has to be whole first. [consumes]
    private func fragment(_ whole: Mbuf, _ mtu: UInt32) -> Mbuf? {
        guard let packet = services.mbuf.pointee.finish_checksum(pool, whole) else { return nil }
        let header = Header(bytes: packet.pointee.data)
        let length = header.length
        let total = Int(packet.pointee.pkt.length)
        let room = (Int(mtu) - length) & ~7
        guard room >= 8 else {
            free(packet)
            return nil
        }
        count(.fragmented)
        var first: Mbuf?
        var last: Mbuf?
        var offset = length
        while offset < total {
            let size = min(room, total - offset)
            guard let body = services.mbuf.pointee.copy(pool, packet, UInt32(offset), UInt32(size)),
                let piece = services.mbuf.pointee.prepend(pool, body, UInt32(length))
            else {
                services.free(first)
                free(packet)
                return nil
            }
            let data = piece.pointee.data
            UnsafeMutableRawPointer(data).copyMemory(from: packet.pointee.data, byteCount: length)
            // Options that are not to be copied (RFC 791) become no-operations behind the first fragment.
            if offset > length, length > Header.minimumLength { clearUncopiedOptions(data, length) }
            data.store16(2, UInt16(truncatingIfNeeded: length + size))
            data.store16(
                6,
                UInt16(truncatingIfNeeded: (offset - length) / 8) | (offset + size < total ? Header.moreFragments : 0))
            Header(bytes: data).finish()
            piece.pointee.pkt.l3_length = UInt16(truncatingIfNeeded: length)
            piece.pointee.pkt.flags = packet.pointee.pkt.flags
            piece.pointee.pkt.ethertype = 0x0800
            count(.fragmentsSent)
            if let last { last.pointee.nextpkt = piece } else { first = piece }
            last = piece
            offset += size
        }
        free(packet)
        return first
    }

    /// A copy of a group or broadcast packet for our own sockets (RFC 1112, section 6.1; RFC 1122, section 3.3.6), over
    /// lo0's queue.
    @inline(never)
    private func loopBack(_ packet: Mbuf, _ ifindex: UInt32, _ isMulticast: Bool) {
        if isMulticast, !isGroupWanted(Header(bytes: packet.pointee.data).destination, ifindex) { return }
        let index = loopbackInterface
        guard index != 0, index != ifindex,
            let copy = services.mbuf.pointee.copy(pool, packet, 0, packet.pointee.pkt.length)
        else { return }
        copy.pointee.pkt.flags = 0
        let cell = services.ifnetCell
        var hop = neutral(AddressClass.loopback)
        _ = cell.ops(alps_ifnet_ops.self).pointee.output(cell.instance, index, copy, UInt16(ALPS_AF_INET), &hop)
    }

    // MARK: Packets with a header of their own

    /// Sends a packet that carries its own IPv4 header (IP_HDRINCL). Length, checksum, and a zero source or identification
    /// are filled in, as Linux does. `to` is where it goes; the header may say something else. [consumes]
    func outputWithHeader(_ netpcb: NetworkPCB, _ given: Mbuf, to: UInt32?) -> Int32 {
        let total = given.pointee.pkt.length
        guard total >= UInt32(Header.minimumLength), total <= 65535 else {
            free(given)
            return total > 65535 ? ALPS_EMSGSIZE : ALPS_EINVAL
        }
        guard var packet = services.mbuf.pointee.pullup(pool, given, UInt32(Header.minimumLength)) else {
            return ALPS_ENOBUFS
        }
        let length = Header(bytes: packet.pointee.data).length
        guard length >= Header.minimumLength, UInt32(length) <= total else {
            free(packet)
            return ALPS_EINVAL
        }
        guard let whole = services.mbuf.pointee.pullup(pool, packet, UInt32(length)) else { return ALPS_ENOBUFS }
        packet = whole
        let header = Header(bytes: packet.pointee.data)
        var way = alps_netpcb()
        way.family = UInt16(ALPS_AF_INET)
        way.flags = netpcb.pointee.flags
        way.bound_ifindex = netpcb.pointee.bound_ifindex
        way.multicast_ifindex = netpcb.pointee.multicast_ifindex
        way.local = netpcb.pointee.local
        way.remote = neutral(to ?? header.destination)
        let status = route(&way)
        guard status == 0 else {
            free(packet)
            count(.noRoute)
            return status
        }
        if header.source == 0 { header.setSource(ipv4(way.local)) }
        if header.identification == 0 {
            header.bytes.store16(4, identification(header.source, header.destination, header.protocol))
        }
        header.bytes.store16(2, UInt16(truncatingIfNeeded: total))
        header.finish()
        packet.pointee.pkt.ethertype = 0x0800
        packet.pointee.pkt.l3_length = UInt16(truncatingIfNeeded: length)
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
        let isBroadcast = way.route.flags & ALPS_RTF_BROADCAST != 0
        let isMulticast = AddressClass.isMulticast(header.destination)
        guard mayLeave(header.source, header.destination, way.route.ifindex) else {
            free(packet)
            return ALPS_EINVAL
        }
        guard total <= way.route.mtu else {
            count(.tooBig)
            free(packet)
            return ALPS_EMSGSIZE
        }
        if isBroadcast { packet.pointee.pkt.flags |= UInt16(ALPS_PKT_BROADCAST) }
        if isBroadcast || isMulticast && netpcb.pointee.multicast_loop != 0 {
            loopBack(packet, way.route.ifindex, isMulticast)
        }
        count(.sent)
        count(.sentRaw)
        let cell = services.ifnetCell
        var hop = way.route.flags & ALPS_RTF_GATEWAY != 0 ? way.route.gateway : way.remote
        return cell.ops(alps_ifnet_ops.self).pointee.output(
            cell.instance, way.route.ifindex, packet, UInt16(ALPS_AF_INET), &hop)
    }
}

import PluginAPI
import PluginKit

/// Sends transport packets to netpcb->remote. [consumes]
func networkOutput(_ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB, _ list: Mbuf, _ flags: UInt32) -> Int32 {
    context.assumingMemoryBound(to: Instance.self).output(netpcb, list, flags)
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
        let isMulticast = AddressClass.isMulticast(remote)
        let isBroadcast = netpcb.pointee.route.flags & ALPS_RTF_BROADCAST != 0
        // RFC 1122, section 3.2.1.3 (g): 127/8 never appears outside a host.
        if AddressClass.isLoopback(local) || AddressClass.isLoopback(remote),
            let ifnet = ifnet(ifindex), ifnet.pointee.type != ALPS_IFT_LOOP
        {
            services.free(list)
            return ALPS_EADDRNOTAVAIL
        }
        let isAtomic = flags & ALPS_NETOUT_DONTFRAG != 0 || netpcb.pointee.flags & UInt8(ALPS_NETPCB_DF) != 0
        var ttl = isMulticast ? netpcb.pointee.multicast_ttl : netpcb.pointee.ttl
        if ttl == 0, !isMulticast { ttl = UInt8(truncatingIfNeeded: setting(.ttl)) }
        let mtu = netpcb.pointee.flags & UInt8(ALPS_NETPCB_PMTU_PROBE) != 0
            ? (ifnet(ifindex)?.pointee.mtu ?? netpcb.pointee.route.mtu) : netpcb.pointee.route.mtu

        var first: Mbuf?
        var last: Mbuf?
        var result: Int32 = 0
        var next: Mbuf? = list
        while let segment = next {
            next = segment.pointee.nextpkt
            segment.pointee.nextpkt = nil
            guard let packet = addHeader(netpcb, segment, local, remote, ttl, isAtomic) else {
                result = ALPS_ENOBUFS
                continue
            }
            if isBroadcast { packet.pointee.pkt.flags |= UInt16(ALPS_PKT_BROADCAST) }
            if isMulticast, netpcb.pointee.multicast_loop != 0 { loopBack(packet, ifindex) }
            if isMulticast, ttl == 0 {
                free(packet)
                continue
            }
            var ready: Mbuf? = packet
            if fits(packet, mtu) == false {
                guard !isAtomic else {
                    count(.tooBig)
                    free(packet)
                    result = ALPS_EMSGSIZE
                    continue
                }
                ready = fragment(packet, mtu)
                if ready == nil { result = ALPS_ENOBUFS }
            }
            while let piece = ready {
                ready = piece.pointee.nextpkt
                piece.pointee.nextpkt = nil
                count(.sent)
                if let last { last.pointee.nextpkt = piece } else { first = piece }
                last = piece
            }
        }
        guard let first else { return result }
        let cell = services.ifnetCell
        var hop = netpcb.pointee.route.flags & ALPS_RTF_GATEWAY != 0 ? netpcb.pointee.route.gateway : netpcb.pointee.remote
        let sent = cell.ops(alps_ifnet_ops.self).pointee.output(
            cell.instance, ifindex, first, UInt16(ALPS_AF_INET), &hop)
        return sent != 0 ? sent : result
    }

    /// Whether a packet, or each of the segments it will be cut into, fits the path.
    @inline(__always)
    private func fits(_ packet: Mbuf, _ mtu: UInt32) -> Bool {
        let length = packet.pointee.pkt.length
        if length <= mtu { return true }
        guard packet.pointee.pkt.gso_type != UInt8(ALPS_GSO_NONE) else { return false }
        // Headers of a segment: everything in front of the payload, which gso_size counts.
        let start = Int(packet.pointee.pkt.csum_start)
        guard start + 13 <= Int(packet.pointee.length) else { return false }
        let headers = UInt32(start) + UInt32(packet.pointee.data[start + 12] >> 4) * 4
        return headers + UInt32(packet.pointee.pkt.gso_size) <= mtu
    }

    /// Puts the header in front. `csum_start` follows by prepend.
    @inline(__always)
    private func addHeader(
        _ netpcb: NetworkPCB, _ segment: Mbuf, _ local: UInt32, _ remote: UInt32, _ ttl: UInt8, _ isAtomic: Bool
    ) -> Mbuf? {
        let length = max(Int(netpcb.pointee.header_length), Header.minimumLength)
        guard let packet = services.mbuf.pointee.prepend(pool, segment, UInt32(length)) else { return nil }
        let data = packet.pointee.data
        data[0] = 0x40 | UInt8(length / 4)
        data[1] = netpcb.pointee.tos
        data.store16(2, UInt16(truncatingIfNeeded: packet.pointee.pkt.length))
        data.store16(
            4, identification(local, remote, netpcb.pointee.protocol, isAtomic: isAtomic && packet.pointee.pkt.gso_type == 0))
        data.store16(6, isAtomic ? Header.dontFragment : 0)
        data[8] = ttl
        data[9] = netpcb.pointee.protocol
        UnsafeMutableRawPointer(data).storeBytes(of: local, toByteOffset: 12, as: UInt32.self)
        UnsafeMutableRawPointer(data).storeBytes(of: remote, toByteOffset: 16, as: UInt32.self)
        if length > Header.minimumLength { insertOptions(netpcb, data) }
        Header(bytes: data).finish()
        packet.pointee.pkt.l3_length = UInt16(length)
        packet.pointee.pkt.family = UInt16(ALPS_AF_INET)
        packet.pointee.pkt.ethertype = 0x0800
        return packet
    }

    /// RFC 791, section 3.2: fragments of a packet with its header. The checksum has to be whole first. [consumes]
    func fragment(_ whole: Mbuf, _ mtu: UInt32) -> Mbuf? {
        var packet = whole
        if packet.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) {
            guard let finished = services.mbuf.pointee.finish_checksum(pool, packet) else { return nil }
            packet = finished
        }
        let header = Header(bytes: packet.pointee.data)
        let length = header.length
        let total = Int(packet.pointee.pkt.length)
        let room = (Int(mtu) - length) & ~7
        guard room >= 8, total <= 65535 else {
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
            // Options that are not to be copied (RFC 791: copied flag) become no-operations behind the first fragment.
            for index in 0..<length { piece.pointee.data[index] = packet.pointee.data[index] }
            if offset > length, length > Header.minimumLength { clearUncopiedOptions(piece.pointee.data, length) }
            let more = offset + size < total
            piece.pointee.data.store16(2, UInt16(length + size))
            piece.pointee.data.store16(
                6, UInt16((offset - length) / 8) | (more ? Header.moreFragments : header.fragment & Header.moreFragments))
            Header(bytes: piece.pointee.data).finish()
            piece.pointee.pkt.l3_length = UInt16(length)
            piece.pointee.pkt.flags = packet.pointee.pkt.flags
            piece.pointee.pkt.ethertype = 0x0800
            piece.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
            count(.fragmentsSent)
            if let last { last.pointee.nextpkt = piece } else { first = piece }
            last = piece
            offset += size
        }
        free(packet)
        return first
    }

    /// A copy of a multicast packet for our own members (RFC 1112, section 6.1), over lo0's queue.
    private func loopBack(_ packet: Mbuf, _ ifindex: UInt32) {
        guard isGroupWanted(Header(bytes: packet.pointee.data).destination, ifindex),
            let copy = services.mbuf.pointee.copy(pool, packet, 0, packet.pointee.pkt.length)
        else { return }
        var index: UInt32 = 1
        while index <= lastInterface {
            if let ifnet = ifnet(index), ifnet.pointee.type == ALPS_IFT_LOOP {
                let cell = services.ifnetCell
                var hop = neutral(UInt32(0x7f00_0001).bigEndian)
                copy.pointee.pkt.flags = 0
                _ = cell.ops(alps_ifnet_ops.self).pointee.output(
                    cell.instance, index, copy, UInt16(ALPS_AF_INET), &hop)
                return
            }
            index += 1
        }
        free(copy)
    }

    /// Sends a packet that carries its own IPv4 header (IP_HDRINCL). Length, checksum, and a zero source or identification
    /// are filled in, as Linux does.
    func outputWithHeader(_ netpcb: NetworkPCB, _ given: Mbuf) -> Int32 {
        guard given.pointee.pkt.length >= UInt32(Header.minimumLength), given.pointee.pkt.length <= 65535,
            let packet = services.mbuf.pointee.pullup(pool, given, UInt32(Header.minimumLength))
        else { return ALPS_EINVAL }
        let header = Header(bytes: packet.pointee.data)
        guard header.version == 4, header.length >= Header.minimumLength,
            UInt32(header.length) <= packet.pointee.length
        else {
            free(packet)
            return ALPS_EINVAL
        }
        var way = alps_netpcb()
        way.family = UInt16(ALPS_AF_INET)
        way.flags = netpcb.pointee.flags
        way.bound_ifindex = netpcb.pointee.bound_ifindex
        way.remote = neutral(header.destination)
        let status = route(&way)
        guard status == 0 else {
            free(packet)
            return status
        }
        let data = packet.pointee.data
        if header.source == 0 {
            UnsafeMutableRawPointer(data).storeBytes(of: ipv4(way.local), toByteOffset: 12, as: UInt32.self)
        }
        if header.identification == 0 {
            data.store16(4, identification(header.source, header.destination, header.protocol, isAtomic: false))
        }
        data.store16(2, UInt16(packet.pointee.pkt.length))
        header.finish()
        packet.pointee.pkt.ethertype = 0x0800
        packet.pointee.pkt.l3_length = UInt16(header.length)
        if way.route.flags & ALPS_RTF_BROADCAST != 0 { packet.pointee.pkt.flags |= UInt16(ALPS_PKT_BROADCAST) }
        guard packet.pointee.pkt.length <= way.route.mtu else {
            free(packet)
            return ALPS_EMSGSIZE
        }
        count(.sent)
        let cell = services.ifnetCell
        var hop = way.route.flags & ALPS_RTF_GATEWAY != 0 ? way.route.gateway : way.remote
        return cell.ops(alps_ifnet_ops.self).pointee.output(
            cell.instance, way.route.ifindex, packet, UInt16(ALPS_AF_INET), &hop)
    }
}

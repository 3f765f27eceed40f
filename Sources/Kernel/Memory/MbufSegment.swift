internal import Glibc
internal import PluginAPI

/// What a network card would do: finishing checksums and cutting large packets. Knows IP, TCP and UDP headers just as
/// far as a card does.
extension MbufPool {
    /// Completes a partial checksum in place.
    package func finishChecksum(_ packet: Mbuf) -> Mbuf? {
        guard packet.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) else { return packet }
        let start = Int(packet.pointee.pkt.csum_start)
        let field = start + Int(packet.pointee.pkt.csum_offset)
        let length = Int(packet.pointee.pkt.length)
        guard field + 2 <= length, let packet = pullup(packet, field + 2) else {
            if field + 2 > length { freePacket(packet) }
            return nil
        }
        // The field holds the pseudo header's sum, so it is simply part of what is summed.
        store16(packet.pointee.data + field, wireSum(sum(packet, start, length - start)))
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
        return packet
    }

    /// Cuts a large packet, `data` at its network header, into real ones. A packet that is none is only finished.
    /// `l2_length` bytes in front of `data` are repeated in front of every segment. Nil: no such packet, or no memory.
    /// [consumes]
    package func segment(_ packet: Mbuf) -> Mbuf? {
        var first: Mbuf?
        var last: Mbuf?
        let rest = packet.pointee.nextpkt
        let isWhole = segment(packet) { made in
            if let last { last.pointee.nextpkt = made } else { first = made }
            last = made
        }
        guard isWhole else {
            free(first)
            return nil
        }
        last?.pointee.nextpkt = rest
        return first
    }

    /// The same, one at a time: while `body` [consumes] has it, a near cache still has the bytes that were summed. False: not
    /// all of them could be made.
    @inline(__always)
    func segment(_ packet: Mbuf, _ body: (Mbuf) -> Void) -> Bool {
        let type = packet.pointee.pkt.gso_type & ~UInt8(ALPS_GSO_ECN | ALPS_GSO_ACE)
        let size = Int(packet.pointee.pkt.gso_size)
        guard type != UInt8(ALPS_GSO_NONE), size > 0 else {
            packet.pointee.pkt.gso_type = UInt8(ALPS_GSO_NONE)
            guard let finished = finishChecksum(packet) else { return false }
            body(finished)
            return true
        }
        guard let packet = pullup(packet, min(Int(packet.pointee.pkt.length), 128)) else { return false }
        defer { freePacket(packet) }
        guard let plan = SegmentPlan(packet, isUDP: type == UInt8(ALPS_GSO_UDP)) else { return false }
        var source = PayloadCursor(mbuf: packet, offset: plan.headers)
        var offset = 0
        var index = 0
        repeat {
            let count = min(size, plan.payload - offset)
            guard let made = oneSegment(packet, plan, &source, offset, count, index) else { return false }
            body(made)
            offset += count
            index += 1
        } while offset < plan.payload
        return true
    }

    /// How far the payload of a packet has been cut.
    private struct PayloadCursor {
        var mbuf: Mbuf
        var offset: Int
    }

    private func oneSegment(
        _ packet: Mbuf, _ plan: SegmentPlan, _ source: inout PayloadCursor, _ offset: Int, _ count: Int, _ index: Int
    ) -> Mbuf? {
        let front = min(Int(packet.pointee.pkt.l2_length), Self.front(packet), Self.keptFront)
        guard let head = self.packet(headroom: max(front, Int(ALPS_MBUF_HEADROOM))) else { return nil }
        let header = head.pointee.data
        memcpy(header - front, packet.pointee.data - front, front + plan.headers)
        let truesize = head.pointee.pkt.truesize
        head.pointee.pkt = packet.pointee.pkt
        head.pointee.pkt.truesize = truesize
        head.pointee.pkt.length = UInt32(plan.headers)
        head.pointee.length = UInt32(plan.headers)
        head.pointee.pkt.gso_type = UInt8(ALPS_GSO_NONE)
        head.pointee.pkt.gso_size = 0
        head.pointee.pkt.gso_segments = 1
        head.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
        guard append(count, from: &source, to: head) else {
            freePacket(head)
            return nil
        }
        plan.rewrite(header, offset, count, index, isECN: packet.pointee.pkt.gso_type & UInt8(ALPS_GSO_ECN) != 0)
        let length = plan.headers - plan.network + count
        var total = plan.pseudoSum(header, length)
        total = InternetChecksum.add(total, sum(head, plan.network, length))
        store16(header + plan.network + plan.checksumOffset, wireSum(total))
        return head
    }

    /// Puts the next `count` bytes behind `head`, ring memory as it is: for use within this turn.
    private func append(_ count: Int, from source: inout PayloadCursor, to head: Mbuf) -> Bool {
        var left = count
        var end = head
        while left > 0 {
            let here = Int(source.mbuf.pointee.length) - source.offset
            guard here > 0 else {
                guard let next = source.mbuf.pointee.next else { return false }
                source = PayloadCursor(mbuf: next, offset: source.offset - Int(source.mbuf.pointee.length))
                continue
            }
            let length = min(left, here)
            guard let part = piece(of: source.mbuf, source.offset, length, ring: true, keepFront: false) else { return false }
            end.pointee.next = part
            end = part
            head.pointee.pkt.length += UInt32(length)
            head.pointee.pkt.truesize += Self.truesize(part)
            source.offset += length
            left -= length
        }
        return true
    }
}

/// Zero stands for "no checksum" in UDP, and its complement means the same number (RFC 768); TCP takes either.
private func wireSum(_ sum: UInt32) -> UInt16 {
    let value = InternetChecksum.finish(sum)
    return value == 0 ? 0xffff : value
}

private func store16(_ bytes: UnsafeMutablePointer<UInt8>, _ value: UInt16) {
    UnsafeMutableRawPointer(bytes).storeBytes(of: value.bigEndian, as: UInt16.self)
}

private func load16(_ bytes: UnsafeMutablePointer<UInt8>) -> UInt16 {
    UInt16(bigEndian: UnsafeRawPointer(bytes).loadUnaligned(as: UInt16.self))
}

/// How the headers of a large packet lie; checked once against its length.
private struct SegmentPlan {
    let isIPv6: Bool
    let isUDP: Bool
    /// Bytes of network header.
    let network: Int
    /// Bytes of network and transport header.
    let headers: Int
    /// Bytes behind them.
    let payload: Int

    private static let tcpFin: UInt8 = 0x01
    private static let tcpPush: UInt8 = 0x08
    private static let tcpCWR: UInt8 = 0x80

    /// Of the checksum field within the transport header.
    var checksumOffset: Int { isUDP ? 6 : 16 }

    /// Nil if the first bytes are not what the type says. The first 128 bytes are contiguous.
    init?(_ packet: Mbuf, isUDP: Bool) {
        let bytes = packet.pointee.data
        let contiguous = Int(packet.pointee.length)
        guard contiguous >= 28 else { return nil }
        isIPv6 = bytes[0] >> 4 == 6
        network = isIPv6 ? 40 : Int(bytes[0] & 15) * 4
        let transport = isUDP ? 8 : 20
        guard isIPv6 || (bytes[0] >> 4 == 4 && network >= 20), network + transport <= contiguous,
            bytes[isIPv6 ? 6 : 9] == (isUDP ? 17 : 6)
        else { return nil }
        let options = isUDP ? 8 : Int(bytes[network + 12] >> 4) * 4
        guard options >= transport, network + options <= contiguous else { return nil }
        self.isUDP = isUDP
        headers = network + options
        let claimed = isIPv6 ? 40 + Int(load16(bytes + 4)) : Int(load16(bytes + 2))
        let total = Int(packet.pointee.pkt.length)
        // A length field of 0 stands for more than 64 KiB; padding behind the claimed end does not travel on.
        payload = (claimed >= headers && claimed < total ? claimed : total) - headers
        guard payload >= 0 else { return nil }
    }

    /// Makes the copied headers those of segment `index`, payload bytes `offset ..< offset + count`.
    func rewrite(_ header: UnsafeMutablePointer<UInt8>, _ offset: Int, _ count: Int, _ index: Int, isECN: Bool) {
        let transport = header + network
        if isIPv6 {
            store16(header + 4, UInt16(truncatingIfNeeded: headers - 40 + count))
        } else {
            store16(header + 2, UInt16(truncatingIfNeeded: headers + count))
            store16(header + 4, load16(header + 4) &+ UInt16(truncatingIfNeeded: index))
            store16(header + 10, 0)
            store16(header + 10, InternetChecksum.finish(InternetChecksum.sum(header, network)))
        }
        if isUDP {
            store16(transport + 4, UInt16(truncatingIfNeeded: 8 + count))
        } else {
            let sequence = UInt32(load16(transport + 4)) << 16 | UInt32(load16(transport + 6))
            let moved = sequence &+ UInt32(truncatingIfNeeded: offset)
            store16(transport + 4, UInt16(truncatingIfNeeded: moved >> 16))
            store16(transport + 6, UInt16(truncatingIfNeeded: moved))
            // FIN and PSH belong to the last byte, CWR to the first segment (RFC 3168, 6.1.2).
            if offset + count < payload { transport[13] &= ~(Self.tcpFin | Self.tcpPush) }
            if isECN, index > 0 { transport[13] &= ~Self.tcpCWR }
        }
        store16(transport + checksumOffset, 0)
    }

    /// Sum of the pseudo header for a transport part of `length` bytes.
    func pseudoSum(_ header: UnsafeMutablePointer<UInt8>, _ length: Int) -> UInt32 {
        let addresses = isIPv6 ? InternetChecksum.sum(header + 8, 32) : InternetChecksum.sum(header + 12, 8)
        return InternetChecksum.fold(UInt64(addresses) + UInt64(isUDP ? 17 : 6) + UInt64(length))
    }
}

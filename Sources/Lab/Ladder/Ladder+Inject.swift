import Kernel

// What goes into the stack.

extension Ladder {
    /// A segment of the peer. Its payload is `payload`, or `length` bytes of the test pattern at its place. `settles`:
    /// the stack sees it at once; else together with what is injected next.
    package func inject(
        _ flags: Flags, seq: Int, ack: Int? = nil, window: Int = 65535, length: Int = 0, payload: [UInt8]? = nil,
        options: [UInt8] = [], urgent: Int = 0, from source: [UInt8] = [10, 0, 0, 2], port: UInt16? = nil,
        ace: UInt8 = 0, tos: UInt8 = 0, settles: Bool = true
    ) {
        var options = options
        if let peerTimestamp, !flags.contains(.rst) {
            options += [1, 1, 8, 10] + big(peerTimestamp) + big(flags.contains(.ack) ? lastStackTimestamp : 0)
        }
        while options.count % 4 != 0 { options.append(1) }
        var tcp = big(port ?? peerPort) + big(stackPort)
        tcp += big(peerISN &+ UInt32(truncatingIfNeeded: seq))
        tcp += big(flags.contains(.ack) ? (stackISN ?? 0) &+ UInt32(truncatingIfNeeded: ack ?? 0) : 0)
        tcp += [UInt8((20 + options.count) / 4) << 4 | ace >> 2, flags.rawValue | ace << 6]
        tcp += big(UInt16(window)) + [0, 0] + big(UInt16(urgent))
        tcp += options
        tcp += payload ?? pattern(seq..<(seq + length))
        send(tcp: tcp, from: source, tos: tos)
        if settles { settle() }
    }

    /// Sends a segment that may be malformed, with the right checksum.
    package func send(tcp: [UInt8], from source: [UInt8] = [10, 0, 0, 2], tos: UInt8 = 0) {
        var tcp = tcp
        if tcp.count >= 18 {
            let pseudo = source + Self.stackAddress + [0, 6] + big(UInt16(tcp.count))
            tcp.replaceSubrange(16..<18, with: big(InternetSum.of(tcp[...], pseudo: pseudo)))
        }
        send(ip: 6, payload: tcp, from: source, tos: tos)
    }

    /// Puts an IPv4 header in front and sends it to the stack.
    package func send(
        ip protocolNumber: UInt8, payload: [UInt8], from source: [UInt8] = [10, 0, 0, 2], tos: UInt8 = 0
    ) {
        var ip: [UInt8] = [0x45, tos] + big(UInt16(20 + payload.count)) + [0, 1, 0x40, 0, 64, protocolNumber, 0, 0]
        ip += source + Self.stackAddress
        ip.replaceSubrange(10..<12, with: big(checksum(ip)))
        let bytes = ip + payload
        guard let packet = wire.mbufs.cluster(headroom: 128, capacity: bytes.count),
            let near = wire.interfaces.find("link1"), let far = stack.interfaces.find("link1")
        else { preconditionFailure("the link has been made with the ladder, and a packet is small") }
        packet.pointee.data.update(from: bytes, count: bytes.count)
        packet.pointee.length = UInt32(bytes.count)
        packet.pointee.pkt.length = UInt32(bytes.count)
        var destination = far.raw.pointee.hardware
        _ = withUnsafeBytes(of: &destination) {
            wire.interfaces.ethernet.outputLink(
                near.raw.pointee.index, packet, 0x0800, $0.baseAddress!.assumingMemoryBound(to: UInt8.self))
        }
    }

    /// An ICMP error about a segment of the stack that begins at `seq`, as a router makes it: it quotes the IPv4 header
    /// and 8 bytes (RFC 792). `rest`: the second word of the header. `length`: of the quoted segment's payload.
    package func inject(
        icmp type: UInt8, code: UInt8, rest: UInt32 = 0, seq: Int, length: Int = 0, from source: [UInt8] = [10, 0, 0, 2]
    ) {
        var quoted: [UInt8] = [0x45, 0] + big(UInt16(40 + length)) + [0, 1, 0x40, 0, 64, 6, 0, 0]
        quoted += Self.stackAddress + Self.peerAddress
        quoted.replaceSubrange(10..<12, with: big(checksum(quoted)))
        quoted += big(stackPort) + big(peerPort) + big((stackISN ?? 0) &+ UInt32(truncatingIfNeeded: seq))
        var icmp: [UInt8] = [type, code, 0, 0] + big(rest) + quoted
        icmp.replaceSubrange(2..<4, with: big(checksum(icmp)))
        send(ip: 1, payload: icmp, from: source)
        settle()
    }
}

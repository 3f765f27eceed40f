/// Puts packets together that go to the stack under test.
enum PacketBuilder {
    private static let defaultTTL: UInt8 = 255

    /// An IPv4 packet around `content`, its header checksum done.
    static func ipv4(
        _ protocolNumber: UInt8, _ content: [UInt8], from source: UInt32, to destination: UInt32, tos: UInt8 = 0,
        ttl: UInt8? = nil, identification: UInt16 = 0
    ) -> [UInt8] {
        var header: [UInt8] = [0x45, tos] + big(UInt16(truncatingIfNeeded: 20 + content.count)) + big(identification)
        header += [0x40, 0, ttl ?? defaultTTL, protocolNumber, 0, 0] + big(source) + big(destination)
        put(InternetSum.of(header[...]), in: &header, at: 10)
        return header + content
    }

    /// A segment whose numbers are live ones.
    static func tcp(
        _ segment: ScriptSegment, from source: LivePacket.Endpoint, to destination: LivePacket.Endpoint, tos: UInt8,
        ttl: UInt8?
    ) -> [UInt8] {
        let options = TCPOptionBytes.encode(segment.options ?? [])
        var bytes = big(source.port) + big(destination.port) + big(segment.sequence)
        bytes += big(segment.acknowledgment)
        bytes.append(UInt8((20 + options.count) / 4) << 4 | UInt8(segment.flags.rawValue >> 8 & 1))
        bytes.append(UInt8(segment.flags.rawValue & 255))
        bytes += big(segment.window ?? 0) + [0, 0] + big(segment.urgent) + options
        bytes += [UInt8](repeating: 0, count: segment.length)
        finish(&bytes, at: 16, 6, source, destination)
        return ipv4(6, bytes, from: source.address, to: destination.address, tos: tos, ttl: ttl)
    }

    static func udp(
        length: Int, from source: LivePacket.Endpoint, to destination: LivePacket.Endpoint, tos: UInt8, ttl: UInt8?
    ) -> [UInt8] {
        var bytes = big(source.port) + big(destination.port) + big(UInt16(8 + length)) + [0, 0]
        bytes += [UInt8](repeating: 0, count: length)
        finish(&bytes, at: 6, 17, source, destination)
        return ipv4(17, bytes, from: source.address, to: destination.address, tos: tos, ttl: ttl)
    }

    /// `quoted`: what follows the 8 bytes of the ICMP header.
    static func icmp(
        _ message: ScriptICMP, quoted: [UInt8], from source: UInt32, to destination: UInt32, tos: UInt8, ttl: UInt8?
    ) -> [UInt8] {
        var bytes: [UInt8] = [message.type, message.code, 0, 0]
        bytes += big(message.identifier ?? 0) + big(message.mtu ?? 0)
        bytes += quoted
        put(InternetSum.of(bytes[...]), in: &bytes, at: 2)
        return ipv4(1, bytes, from: source, to: destination, tos: tos, ttl: ttl)
    }

    /// The IPv4 header and the first bytes behind it that an ICMP error quotes, of a packet the stack is said to have
    /// sent.
    static func quotation(
        _ protocolNumber: UInt8, length: Int, sequence: UInt32, from source: LivePacket.Endpoint,
        to destination: LivePacket.Endpoint
    ) -> [UInt8] {
        var first = big(source.port) + big(destination.port)
        let headerLength = protocolNumber == 6 ? 20 : 8
        if protocolNumber == 6 {
            first += big(sequence)
        } else {
            first += big(UInt16(truncatingIfNeeded: 8 + length)) + [0, 0]
        }
        // The quotation tells the length of the whole, and ends after 8 bytes (RFC 792).
        let whole = ipv4(
            protocolNumber, [UInt8](repeating: 0, count: headerLength + length), from: source.address,
            to: destination.address, ttl: 64)
        return Array(whole.prefix(20)) + first
    }

    private static func finish(
        _ bytes: inout [UInt8], at place: Int, _ protocolNumber: UInt8, _ source: LivePacket.Endpoint,
        _ destination: LivePacket.Endpoint
    ) {
        let pseudo =
            big(source.address) + big(destination.address) + [0, protocolNumber]
            + big(UInt16(truncatingIfNeeded: bytes.count))
        let sum = InternetSum.of(bytes[...], pseudo: pseudo)
        // UDP: a sum of zero means none.
        put(sum == 0 && protocolNumber == 17 ? 0xffff : sum, in: &bytes, at: place)
    }

    private static func put(_ value: UInt16, in bytes: inout [UInt8], at place: Int) {
        bytes[place] = UInt8(value >> 8)
        bytes[place + 1] = UInt8(value & 255)
    }
}

import PluginAPI

/// What a router says of a packet that does not fit the next network and may not be fragmented: "fragmentation needed"
/// (RFC 792; RFC 1191, 4).
enum PathTooNarrow {
    private static let link = Ethernet.headerLength
    private static let header = 20
    /// The IPv4 header and the first 8 bytes behind it.
    private static let quoted = 28

    /// Whether a frame with `bytes` at its front has a packet that a network of this MTU neither takes nor may cut.
    static func stops(_ bytes: UnsafeRawBufferPointer, length: Int, mtu: Int) -> Bool {
        guard mtu > 0, length > mtu + link, bytes.count >= link + quoted, bytes[12] == 8, bytes[13] == 0 else { return false }
        // A first fragment without options, as the stacks here send them; DF is set.
        return bytes[link] == 0x45 && bytes[link + 6] & 0x40 != 0
    }

    /// The answer to it, as a frame. It comes from an address of the destination's network that nobody has.
    static func answer(_ bytes: UnsafeRawBufferPointer, mtu: Int) -> [UInt8] {
        var icmp: [UInt8] = [3, 4, 0, 0, 0, 0, UInt8(mtu >> 8 & 255), UInt8(mtu & 255)]
        icmp.append(contentsOf: bytes[link..<(link + quoted)])
        store(checksum(icmp), &icmp, 2)
        var packet: [UInt8] = [0x45, 0, 0, UInt8(header + icmp.count), 0, 0, 0, 0, 64, 1, 0, 0]
        packet.append(contentsOf: bytes[(link + 16)..<(link + 19)])
        packet.append(254)
        packet.append(contentsOf: bytes[(link + 12)..<(link + 16)])
        store(checksum(packet), &packet, 10)
        var frame = Array(bytes[6..<12])
        frame.append(contentsOf: bytes[0..<6])
        frame.append(contentsOf: [8, 0])
        frame.append(contentsOf: packet)
        frame.append(contentsOf: icmp)
        return frame
    }

    private static func checksum(_ bytes: [UInt8]) -> UInt16 {
        bytes.withUnsafeBytes { place in
            guard let base = place.baseAddress else { return 0 }
            return InternetChecksum.finish(InternetChecksum.sum(base, place.count))
        }
    }

    private static func store(_ value: UInt16, _ bytes: inout [UInt8], _ at: Int) {
        bytes[at] = UInt8(value >> 8)
        bytes[at + 1] = UInt8(value & 255)
    }
}

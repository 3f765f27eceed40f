import Kernel

/// What the watcher of a wire needs of a TCP segment.
package struct WireSegment {
    package struct Flags: OptionSet {
        package let rawValue: UInt8
        package init(rawValue: UInt8) { self.rawValue = rawValue }
        package static let fin = Flags(rawValue: 1)
        package static let syn = Flags(rawValue: 2)
        package static let rst = Flags(rawValue: 4)
        package static let psh = Flags(rawValue: 8)
        package static let ack = Flags(rawValue: 16)
        package static let urg = Flags(rawValue: 32)
    }

    /// Which connection and which way.
    package struct Key: Hashable {
        package var source: UInt32
        package var destination: UInt32
        package var sourcePort: UInt16
        package var destinationPort: UInt16

        package var reversed: Key {
            Key(source: destination, destination: source, sourcePort: destinationPort, destinationPort: sourcePort)
        }
    }

    package var key: Key
    package var sequence: UInt32
    package var acknowledgment: UInt32
    package var flags: Flags
    package var window: UInt32
    package var urgent: UInt16
    package var length: Int
    /// Where in the packet the payload begins.
    package var payloadOffset: Int
    package var mss: UInt32?
    package var scale: UInt8?
    package var timestamps: (value: UInt32, echo: UInt32)?
    package var sackPermitted = false
    package var sack: [(start: UInt32, end: UInt32)] = []
    /// Of the TCP header: for the trace.
    package var headerHash: UInt64 = 0

    /// Sequence space used.
    package var space: Int { length + (flags.contains(.syn) ? 1 : 0) + (flags.contains(.fin) ? 1 : 0) }
    package var end: UInt32 { sequence &+ UInt32(truncatingIfNeeded: space) }

    /// An IPv4 packet of `total` bytes, of which `bytes` has at least all headers. Nil if it is not TCP.
    package init?(ip bytes: UnsafeRawBufferPointer, total: Int) {
        func word16(_ at: Int) -> UInt16 { UInt16(bytes[at]) << 8 | UInt16(bytes[at + 1]) }
        func word32(_ at: Int) -> UInt32 { UInt32(word16(at)) << 16 | UInt32(word16(at + 2)) }
        guard bytes.count >= 40, bytes[0] >> 4 == 4, bytes[9] == 6 else { return nil }
        let ip = Int(bytes[0] & 15) * 4
        guard ip >= 20, bytes.count >= ip + 20 else { return nil }
        let header = Int(bytes[ip + 12] >> 4) * 4
        guard header >= 20, bytes.count >= ip + header, total >= ip + header else { return nil }
        key = Key(
            source: word32(12), destination: word32(16), sourcePort: word16(ip), destinationPort: word16(ip + 2))
        sequence = word32(ip + 4)
        acknowledgment = word32(ip + 8)
        flags = Flags(rawValue: bytes[ip + 13])
        window = UInt32(word16(ip + 14))
        urgent = word16(ip + 18)
        payloadOffset = ip + header
        length = total - ip - header
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        // Not the checksum: it may be unfinished.
        for at in ip..<(ip + header) where at < ip + 16 || at >= ip + 18 {
            hash = (hash ^ UInt64(bytes[at])) &* 0x0000_0100_0000_01b3
        }
        headerHash = hash
        var at = ip + 20
        while at < ip + header, bytes[at] != 0 {
            if bytes[at] == 1 {
                at += 1
                continue
            }
            guard at + 1 < ip + header, bytes[at + 1] >= 2, at + Int(bytes[at + 1]) <= ip + header else { break }
            let size = Int(bytes[at + 1])
            switch (bytes[at], size) {
            case (2, 4): mss = UInt32(word16(at + 2))
            case (3, 3): scale = min(bytes[at + 2], 14)
            case (4, 2): sackPermitted = true
            case (5, _):
                for block in stride(from: at + 2, to: at + size - 7, by: 8) {
                    sack.append((word32(block), word32(block + 4)))
                }
            case (8, 10): timestamps = (word32(at + 2), word32(at + 6))
            default: break
            }
            at += size
        }
    }

    /// Whether the checksums of an IPv4 packet with TCP are right.
    package static func isIntact(_ packet: UnsafeRawBufferPointer) -> Bool {
        guard packet.count >= 40, let base = packet.baseAddress else { return false }
        let ip = Int(packet[0] & 15) * 4
        let total = Int(packet[2]) << 8 | Int(packet[3])
        guard ip >= 20, total >= ip + 20, total <= packet.count, InternetChecksum.finish(InternetChecksum.sum(base, ip)) == 0
        else { return false }
        let tcp = total - ip
        let pseudo: [UInt8] = [0, packet[9], UInt8(tcp >> 8), UInt8(tcp & 255)]
        var sum: UInt32 = pseudo.withUnsafeBytes { bytes in
            guard let base = bytes.baseAddress else { return 0 }
            return InternetChecksum.sum(base, 4)
        }
        sum = InternetChecksum.add(sum, InternetChecksum.sum(base + 12, 8))
        sum = InternetChecksum.add(sum, InternetChecksum.sum(base + ip, tcp))
        return InternetChecksum.finish(sum) == 0
    }

    /// As tcpdump writes it, numbers relative to `origin` (the two initial sequence numbers).
    package func text(origin: (own: UInt32, peer: UInt32)) -> String {
        let letters: [(Flags, String)] = [(.fin, "F"), (.syn, "S"), (.rst, "R"), (.psh, "P"), (.urg, "U"), (.ack, ".")]
        var text = "Flags [\(letters.filter { flags.contains($0.0) }.map(\.1).joined())]"
        let relative = flags.contains(.syn) ? sequence : sequence &- origin.own
        if length > 0 || !flags.isDisjoint(with: [.syn, .fin, .rst]) {
            text += ", seq \(relative)"
            if length > 0 { text += ":\(relative &+ UInt32(truncatingIfNeeded: length))" }
        }
        if flags.contains(.ack) { text += ", ack \(acknowledgment &- origin.peer)" }
        text += ", win \(window)"
        if flags.contains(.urg) { text += ", urg \(urgent)" }
        var options: [String] = []
        if let mss { options.append("mss \(mss)") }
        if sackPermitted { options.append("sackOK") }
        if let timestamps { options.append("TS val \(timestamps.value) ecr \(timestamps.echo)") }
        if let scale { options.append("wscale \(scale)") }
        if !sack.isEmpty {
            let blocks = sack.map { "{\($0.start &- origin.peer):\($0.end &- origin.peer)}" }.joined()
            options.append("sack \(sack.count) \(blocks)")
        }
        if !options.isEmpty { text += ", options [\(options.joined(separator: ","))]" }
        return text + ", length \(length)"
    }
}

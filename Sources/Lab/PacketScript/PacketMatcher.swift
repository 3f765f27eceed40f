/// Compares what the stack has sent with what a script expects. What the script does not name is not compared.
enum PacketMatcher {
    private static func differ(_ field: String, _ expected: UInt32, _ actual: UInt32) -> String {
        "live packet field \(field): expected: \(expected) (0x\(String(expected, radix: 16))) "
            + "vs actual: \(actual) (0x\(String(actual, radix: 16)))"
    }

    /// What is wrong with the IPv4 header or with a checksum, if anything.
    static func header(_ packet: LivePacket, _ script: ScriptPacket) -> String? {
        guard packet.isHeaderSumRight else { return "bad outbound IP checksum" }
        guard packet.isTransportSumRight else { return "bad outbound transport checksum" }
        if packet.headerLength != 20 { return differ("ipv4_header_length", 5, UInt32(packet.headerLength / 4)) }
        switch script.tos {
        case .none: break
        case .ecn(let bits): if packet.tos & 3 != bits { return differ("ip_ecn", UInt32(bits), UInt32(packet.tos & 3)) }
        case .ect01:
            if ![1, 2].contains(packet.tos & 3) {
                return "live packet field ip_ecn: expected: 0x1 or 0x2 vs actual: 0x\(packet.tos & 3)"
            }
        case .dscp(let bits):
            if packet.tos & 0xfc != bits { return differ("dscp", UInt32(bits >> 2), UInt32(packet.tos >> 2)) }
        case .tos(let bits): if packet.tos != bits { return differ("tos", UInt32(bits), UInt32(packet.tos)) }
        }
        if let ttl = script.ttl, packet.ttl != ttl { return differ("ttl", UInt32(ttl), UInt32(packet.ttl)) }
        if let port = script.sourcePort, packet.source.port != port {
            return differ("source port", UInt32(port), UInt32(packet.source.port))
        }
        if let port = script.destinationPort, packet.destination.port != port {
            return differ("destination port", UInt32(port), UInt32(packet.destination.port))
        }
        return nil
    }

    /// `actual` in the script's numbers.
    static func segment(
        _ actual: ScriptSegment, _ wanted: ScriptSegment, timestampTick: Int64, tolerance: Int64
    ) -> String? {
        if let difference = flags(actual, wanted) { return difference }
        if !wanted.ignoresSequence, actual.sequence != wanted.sequence {
            return differ("tcp_seq", wanted.sequence, actual.sequence)
        }
        if wanted.flags.contains(.ack), actual.acknowledgment != wanted.acknowledgment {
            return differ("tcp_ack_seq", wanted.acknowledgment, actual.acknowledgment)
        }
        if let window = wanted.window, actual.window != window {
            return differ("tcp_window", UInt32(window), UInt32(actual.window ?? 0))
        }
        if actual.urgent != wanted.urgent { return differ("tcp_urg_ptr", UInt32(wanted.urgent), UInt32(actual.urgent)) }
        if actual.length != wanted.length {
            return "live packet payload: expected \(wanted.length) bytes vs actual \(actual.length) bytes"
        }
        return options(actual, wanted, timestampTick: timestampTick, tolerance: tolerance)
    }

    private static func flags(_ actual: ScriptSegment, _ wanted: ScriptSegment) -> String? {
        let named: [(String, ScriptSegment.Flags)] = [
            ("tcp_fin", .fin), ("tcp_syn", .syn), ("tcp_rst", .rst), ("tcp_psh", .psh), ("tcp_ack", .ack),
            ("tcp_urg", .urg),
        ]
        for (name, flag) in named where actual.flags.contains(flag) != wanted.flags.contains(flag) {
            return differ(name, wanted.flags.contains(flag) ? 1 : 0, actual.flags.contains(flag) ? 1 : 0)
        }
        if wanted.hasACE {
            let (expected, found) = (wanted.flags.rawValue >> 6 & 7, actual.flags.rawValue >> 6 & 7)
            return expected == found ? nil : differ("tcp_ace", UInt32(expected), UInt32(found))
        }
        for (name, flag) in [("tcp_ece", ScriptSegment.Flags.ece), ("tcp_cwr", .cwr), ("tcp_ae", .ae)]
        where actual.flags.contains(flag) != wanted.flags.contains(flag) {
            return differ(name, wanted.flags.contains(flag) ? 1 : 0, actual.flags.contains(flag) ? 1 : 0)
        }
        return nil
    }

    private static func options(
        _ actual: ScriptSegment, _ wanted: ScriptSegment, timestampTick: Int64, tolerance: Int64
    ) -> String? {
        guard let expected = wanted.options else { return nil }
        let found = actual.options ?? []
        guard found.map(\.kind) == expected.map(\.kind) else { return "bad outbound TCP options" }
        for (have, want) in zip(found, expected) {
            if case .timestamp(let value, let echo, _) = have,
                case .timestamp(let wantedValue, let wantedEcho, _) = want
            {
                if let value, let wantedValue, timestampTick > 0 {
                    let ticks = Int64(Int32(bitPattern: value &- wantedValue))
                    if abs(ticks) * timestampTick > tolerance { return "bad outbound TCP timestamp value" }
                }
                // A script's echo of 0 before anything has been echoed is compared like any other.
                if echo != wantedEcho { return differ("TS ecr", wantedEcho, echo) }
            } else if have != want {
                return "bad value of outbound TCP option: expected <\(want.text)> vs actual <\(have.text)>"
            }
        }
        return nil
    }

    /// Whether a further packet goes on where those before end: a segment that has been cut into several.
    static func continues(_ next: ScriptSegment, _ before: ScriptSegment) -> String? {
        let loose: ScriptSegment.Flags = [.fin, .psh, .cwr]
        if next.flags.subtracting(loose) != before.flags.subtracting(loose) {
            return "the flags of the pieces of one segment differ"
        }
        if next.sequence != before.sequence &+ UInt32(before.length) {
            return differ("tcp_seq", before.sequence &+ UInt32(before.length), next.sequence)
        }
        if next.acknowledgment != before.acknowledgment {
            return differ("tcp_ack_seq", before.acknowledgment, next.acknowledgment)
        }
        return nil
    }

    static func icmp(_ actual: ScriptICMP, _ wanted: ScriptICMP, payload: Int) -> String? {
        if actual.type != wanted.type { return differ("icmp_type", UInt32(wanted.type), UInt32(actual.type)) }
        if actual.code != wanted.code { return differ("icmp_code", UInt32(wanted.code), UInt32(actual.code)) }
        if let mtu = wanted.mtu, actual.mtu != mtu { return differ("icmp_mtu", UInt32(mtu), UInt32(actual.mtu ?? 0)) }
        if let identifier = wanted.identifier, actual.identifier != identifier {
            return differ("icmp_id", UInt32(identifier), UInt32(actual.identifier ?? 0))
        }
        if case .raw(let length)? = wanted.quoted, payload != length {
            return differ("icmp_length", UInt32(length), UInt32(payload))
        }
        return nil
    }
}

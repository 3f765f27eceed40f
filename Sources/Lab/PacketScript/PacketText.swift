/// Packets as tcpdump and scripts write them.
enum PacketText {
    static func seconds(_ nanoseconds: Int64) -> String {
        let sign = nanoseconds < 0 ? "-" : ""
        let microseconds = (abs(nanoseconds) + 500) / 1000
        let fraction = String(microseconds % 1_000_000)
        return sign + "\(microseconds / 1_000_000)." + String(repeating: "0", count: 6 - fraction.count) + fraction
    }

    static func text(_ packet: ScriptPacket) -> String {
        var parts: [String] = []
        var fields: [String] = []
        switch packet.tos {
        case .none: break
        case .ecn(let bits): fields.append(ecn(bits))
        case .ect01: fields.append("ect01")
        case .dscp(let bits): fields.append("dscp 0x\(String(bits >> 2, radix: 16))")
        case .tos(let bits): fields.append("tos 0x\(String(bits, radix: 16))")
        }
        if let ttl = packet.ttl { fields.append("ttl \(ttl)") }
        if !fields.isEmpty { parts.append("[\(fields.joined(separator: ", "))]") }
        let ports = packet.sourcePort.flatMap { source in packet.destinationPort.map { "\(source) > \($0)" } }
        switch packet.body {
        case .tcp(let segment):
            if let ports { parts.append(ports) }
            parts.append(text(segment))
        case .udp(let length): parts.append("udp \(ports.map { $0 + " " } ?? "")(\(length))")
        case .icmp(let message): parts.append(text(message))
        }
        return parts.joined(separator: " ")
    }

    static func ecn(_ bits: UInt8) -> String { ["noecn", "ect1", "ect0", "ce"][Int(bits & 3)] }

    static func text(_ segment: ScriptSegment) -> String {
        var text = flags(segment)
        if segment.ignoresSequence {
            text += " ...(\(segment.length))"
        } else {
            text += " \(segment.sequence):\(segment.sequence &+ UInt32(segment.length))(\(segment.length))"
        }
        if segment.flags.contains(.ack) { text += " ack \(segment.acknowledgment)" }
        if let window = segment.window { text += " win \(window)" }
        if segment.urgent != 0 { text += " urg \(segment.urgent)" }
        if let options = segment.options {
            if !options.isEmpty { text += " <\(options.map(\.text).joined(separator: ","))>" }
        } else {
            text += " <...>"
        }
        return text
    }

    static func flags(_ segment: ScriptSegment) -> String {
        let letters: [(ScriptSegment.Flags, String)] = [
            (.fin, "F"), (.syn, "S"), (.rst, "R"), (.psh, "P"), (.urg, "U"), (.ece, "E"), (.cwr, "W"), (.ae, "A"),
            (.ack, "."),
        ]
        var text = ""
        for (flag, letter) in letters where segment.flags.contains(flag) {
            if segment.hasACE, [.ece, .cwr, .ae].contains(flag) { continue }
            text += letter
        }
        if segment.hasACE { text += String(segment.flags.rawValue >> 6 & 7) }
        return text.isEmpty ? "-" : text
    }

    static func text(_ message: ScriptICMP) -> String {
        var text = "icmp " + ICMPNames.text(type: message.type, code: message.code)
        if let mtu = message.mtu { text += " mtu \(mtu)" }
        if let identifier = message.identifier { text += " id \(identifier)" }
        switch message.quoted {
        case .tcp(let sequence, let length)?:
            text += " [\(sequence):\(sequence &+ UInt32(length))(\(length))]"
        case .udp(let length)?: text += " [udp (\(length))]"
        case .raw(let length)?: text += " [raw (\(length))]"
        case nil: break
        }
        return text
    }

    /// A packet of the wire; `segment` in its place for TCP whose numbers have been put into the script's terms.
    static func text(_ packet: LivePacket, segment: ScriptSegment? = nil, showsFields: Bool = false) -> String {
        let fields = showsFields || packet.tos & 3 != 0 ? "[\(ecn(packet.tos)), ttl \(packet.ttl)] " : ""
        switch packet.transport {
        case .tcp(let live): return fields + text(segment ?? live)
        case .udp(let length): return fields + "udp (\(length))"
        case .icmp(let message): return fields + text(message)
        case .other: return fields + "protocol \(packet.protocolNumber) (\(packet.payload.count))"
        }
    }

    /// Address and port on both sides.
    static func endpoints(_ packet: LivePacket) -> String {
        "\(address(packet.source)) > \(address(packet.destination))"
    }

    static func address(_ endpoint: LivePacket.Endpoint) -> String {
        let bytes = big(endpoint.address).map { String($0) }.joined(separator: ".")
        return endpoint.port == 0 ? bytes : "\(bytes):\(endpoint.port)"
    }
}

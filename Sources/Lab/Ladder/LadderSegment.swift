extension Ladder {
    /// The control bits of a TCP header.
    package struct Flags: OptionSet, Sendable {
        package let rawValue: UInt8
        package init(rawValue: UInt8) { self.rawValue = rawValue }
        package static let fin = Flags(rawValue: 1)
        package static let syn = Flags(rawValue: 2)
        package static let rst = Flags(rawValue: 4)
        package static let psh = Flags(rawValue: 8)
        package static let ack = Flags(rawValue: 16)
        package static let urg = Flags(rawValue: 32)
    }

    /// A segment that the stack has sent.
    package struct Sent {
        /// Virtual time, ns.
        package let time: UInt64
        package let sourcePort: UInt16
        package let destinationPort: UInt16
        package let rawSequence: UInt32
        package let rawAcknowledgment: UInt32
        package let flags: Flags
        /// AE, CWR and ECE as one number (RFC 9768).
        package let ace: UInt8
        /// As it is in the header, not scaled.
        package let window: Int
        package let urgentPointer: Int
        package let options: [UInt8]
        package let payload: [UInt8]
        /// Of the IPv4 header.
        package let tos: UInt8

        /// Nil: `packet`, an intact IPv4 packet, has no TCP in it.
        init?(_ packet: [UInt8], at time: UInt64) {
            guard packet.count >= 40, packet[0] >> 4 == 4, packet[9] == 6 else { return nil }
            // IP options may be there.
            let start = Int(packet[0] & 15) * 4
            let total = Int(big16(packet, 2))
            guard start >= 20, total >= start + 20, total <= packet.count else { return nil }
            let header = Array(packet[start..<total])
            let length = Int(header[12] >> 4) * 4
            guard length >= 20, length <= header.count else { return nil }
            self.time = time
            sourcePort = big16(header, 0)
            destinationPort = big16(header, 2)
            rawSequence = big32(header, 4)
            rawAcknowledgment = big32(header, 8)
            flags = Flags(rawValue: header[13] & 0x3f)
            ace = (header[12] & 1) << 2 | header[13] >> 6
            window = Int(big16(header, 14))
            urgentPointer = Int(big16(header, 18))
            options = Array(header[20..<length])
            payload = Array(header[length...])
            tos = packet[1]
        }

        /// The value bytes of an option.
        package func option(_ kind: UInt8) -> [UInt8]? {
            var at = 0
            while at < options.count, options[at] != 0 {
                if options[at] == 1 {
                    at += 1
                    continue
                }
                guard at + 1 < options.count, options[at + 1] >= 2, at + Int(options[at + 1]) <= options.count else {
                    return nil
                }
                if options[at] == kind { return Array(options[(at + 2)..<(at + Int(options[at + 1]))]) }
                at += Int(options[at + 1])
            }
            return nil
        }

        package var timestamp: (value: UInt32, echo: UInt32)? {
            guard let bytes = option(8), bytes.count == 8 else { return nil }
            return (big32(bytes, 0), big32(bytes, 4))
        }
    }
}

extension Ladder.Flags: CustomStringConvertible {
    package var description: String {
        let names: [(Ladder.Flags, String)] = [
            (.syn, "SYN"), (.fin, "FIN"), (.rst, "RST"), (.psh, "PSH"), (.ack, "ACK"), (.urg, "URG"),
        ]
        return names.filter { contains($0.0) }.map(\.1).joined(separator: "|")
    }
}

extension Ladder.Sent: CustomStringConvertible {
    package var description: String {
        "\(flags) \(rawSequence):\(payload.count) ack \(rawAcknowledgment) win \(window)"
    }
}

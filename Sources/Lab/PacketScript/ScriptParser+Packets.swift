/// Packets: direction, IPv4 fields, ports, and TCP, UDP or ICMP.
extension ScriptParser {
    mutating func packet() throws -> ScriptPacket {
        let direction: ScriptPacket.Direction = current.isSymbol("<") ? .inbound : .outbound
        advance()
        if current.isWord, ["ipv4", "ipv6", "gre", "GREv0", "mpls"].contains(current.text) {
            throw fail("packets inside packets (\(current.text)) are not supported", .unsupported)
        }
        var packet = ScriptPacket(direction: direction, body: .udp(length: 0))
        // What an ICMP message quotes may stand in front of it.
        var quoted = try quotation()
        try headerFields(&packet)
        if quoted == nil { quoted = try quotation() }
        if takeWord("udp") {
            try ports(&packet)
            try expect("(")
            packet.body = .udp(length: Int(try integer("the UDP payload length", 0...65507)))
            try expect(")")
        } else if takeWord("icmp") {
            var message = try icmp()
            message.quoted = message.quoted ?? quoted
            packet.body = .icmp(message)
            quoted = nil
        } else if current.isWord("sctp") || current.isWord("udplite") {
            throw fail("\(current.text) is not supported", .unsupported)
        } else {
            try ports(&packet)
            packet.body = .tcp(try segment(direction))
        }
        if quoted != nil { throw fail("only ICMP quotes another packet") }
        if packet.tos == .ect01, direction == .inbound { throw fail("[ect01] is for outbound packets only") }
        return packet
    }

    // MARK: IPv4

    private mutating func headerFields(_ packet: inout ScriptPacket) throws {
        let closing: Character
        if take("[") { closing = "]" } else if take("(") { closing = ")" } else { return }
        var dscp: UInt8?
        var ecn: UInt8?
        repeat {
            let name = try word("an IPv4 field")
            switch name {
            case "ecn":
                if takeWord("ect01") { packet.tos = .ect01 } else { ecn = try ecnBits(word("an ECN code point")) }
            case "noecn", "ect0", "ect1", "ce": ecn = try ecnBits(name)
            case "ect01": packet.tos = .ect01
            case "tos", "class": packet.tos = .tos(UInt8(try integer("tos", 0...255)))
            case "dscp": dscp = try codePoint()
            case "ttl", "hlim": packet.ttl = UInt8(try integer("ttl", 0...255))
            case "flowlabel": throw fail("IPv6 is not supported", .unsupported)
            default: throw fail("'\(name)' is not an IPv4 field of the script language")
            }
        } while take(",")
        switch (dscp, ecn) {
        case (nil, nil): break
        case (nil, let ecn?): packet.tos = .ecn(ecn)
        case (let dscp?, nil): packet.tos = .dscp(dscp << 2)
        case (let dscp?, let ecn?): packet.tos = .tos(dscp << 2 | ecn)
        }
        try expect(closing)
    }

    private func ecnBits(_ name: String) throws -> UInt8 {
        switch name {
        case "noecn": return 0
        case "ect1": return 1
        case "ect0": return 2
        case "ce": return 3
        default: throw fail("'\(name)' is not an ECN code point")
        }
    }

    /// Differentiated services code points by number or name (RFC 2474, 2597, 3246, 5865, 8622).
    private mutating func codePoint() throws -> UInt8 {
        guard current.isWord else { return UInt8(try integer("dscp", 0...63)) }
        let name = current.text.lowercased()
        advance()
        switch name {
        case "ef": return 46
        case "voice_admit": return 44
        case "le": return 1
        default:
            let digits = name.suffix(from: name.index(name.startIndex, offsetBy: min(2, name.count)))
            if name.hasPrefix("cs"), let level = UInt8(digits), level < 8 { return level << 3 }
            if name.hasPrefix("af"), let number = UInt8(digits), (1...4).contains(number / 10),
                (1...3).contains(number % 10)
            {
                return number / 10 << 3 | number % 10 << 1
            }
            throw fail("'\(name)' is not a differentiated services code point")
        }
    }

    private mutating func ports(_ packet: inout ScriptPacket) throws {
        guard case .integer = current.kind, token(ahead: 1).isSymbol(">") else { return }
        packet.sourcePort = UInt16(try integer("the source port", 0...65535))
        try expect(">")
        packet.destinationPort = UInt16(try integer("the destination port", 0...65535))
        if packet.sourcePort == 0 { packet.sourcePort = nil }
        if packet.destinationPort == 0 { packet.destinationPort = nil }
    }

    // MARK: ICMP

    private mutating func icmp() throws -> ScriptICMP {
        let name = try word("an ICMP type")
        guard let type = ICMPNames.type(name) else { throw fail("'\(name)' is not an ICMP type") }
        var message = ScriptICMP(type: type, code: 0)
        if current.isWord, !current.isWord("mtu"), !current.isWord("id") {
            guard let code = ICMPNames.code(current.text, ofType: type) else {
                throw fail("'\(current.text)' is not a code of ICMP \(name)")
            }
            message.code = code
            advance()
        }
        if takeWord("mtu") {
            guard type == 3, message.code == 4 else { throw fail("an MTU is for unreachable frag_needed only") }
            message.mtu = UInt16(try integer("the MTU", 0...65535))
        }
        if takeWord("id") { message.identifier = UInt16(try integer("the identifier", 0...65535)) }
        message.quoted = try quotation()
        return message
    }

    /// `[SEQ:END(LENGTH)]`, `[udp (LENGTH)]` or `[raw (LENGTH)]`, if one comes next.
    private mutating func quotation() throws -> ScriptICMP.Quoted? {
        let next = token(ahead: 1)
        guard current.isSymbol("["), next.isNumber || next.isWord("udp") || next.isWord("raw") else { return nil }
        advance()
        let quoted: ScriptICMP.Quoted
        if takeWord("udp") {
            quoted = .udp(length: try length("udp"))
        } else if takeWord("raw") {
            quoted = .raw(length: try length("raw"))
        } else {
            var segment = ScriptSegment()
            try sequence(&segment)
            quoted = .tcp(sequence: segment.sequence, length: segment.length)
        }
        try expect("]")
        return quoted
    }

    private mutating func length(_ what: String) throws -> Int {
        try expect("(")
        let length = Int(try integer("the length of \(what)", 0...65000))
        try expect(")")
        return length
    }

    // MARK: TCP

    private mutating func segment(_ direction: ScriptPacket.Direction) throws -> ScriptSegment {
        var segment = ScriptSegment()
        try flags(&segment)
        try sequence(&segment)
        if takeWord("ack") { segment.acknowledgment = UInt32(try integer("the acknowledgment", 0...0xffff_ffff)) }
        if takeWord("win") { segment.window = UInt16(try integer("the window", 0...65535)) }
        if takeWord("urg") { segment.urgent = UInt16(try integer("the urgent pointer", 0...65535)) }
        if take("<") {
            if current.kind == .ellipsis {
                advance()
                segment.options = nil
            } else {
                var options: [ScriptTCPOption] = []
                repeat { options.append(try tcpOption()) } while take(",")
                segment.options = options
            }
            try expect(">")
        }
        if current.isSymbol("/") { throw fail("encapsulation in UDP is not supported", .unsupported) }
        if current.isSymbol("{") { throw fail("mutation of packets is not supported", .unsupported) }
        if let options = segment.options {
            let bytes = TCPOptionBytes.encode(options).count
            guard bytes <= 40 else { throw fail("the TCP options take \(bytes) bytes; 40 is the most") }
            guard bytes % 4 == 0 else {
                throw fail("the TCP options take \(bytes) bytes: pad them with nop to a multiple of 4")
            }
        } else if direction == .inbound {
            throw fail("<...> is for outbound packets only")
        }
        if direction == .inbound {
            guard segment.window != nil || segment.flags.contains(.rst) else {
                throw fail("an inbound TCP packet needs its window")
            }
            guard !segment.ignoresSequence else { throw fail("an inbound TCP packet needs its sequence number") }
        }
        return segment
    }

    private mutating func flags(_ segment: inout ScriptSegment) throws {
        var letters = ""
        switch current.kind {
        case .word:
            letters = current.text
            advance()
            if take(".") {
                letters += "."
            } else if current.kind == .decimal, current.text.hasPrefix(".") {
                letters += current.text
                advance()
            }
        case .decimal where current.text.hasPrefix("."):
            letters = current.text
            advance()
        case .decimal where current.text.hasSuffix("."), .integer:
            // ACE in front of the dot, as FreeBSD's scripts write it.
            letters = current.text
            advance()
            if !letters.hasSuffix("."), take(".") { letters += "." }
        case .symbol("."):
            letters = "."
            advance()
        case .symbol("-"): advance()
        default: throw unexpected("TCP flags")
        }
        for letter in letters {
            switch letter {
            case "F": segment.flags.insert(.fin)
            case "S": segment.flags.insert(.syn)
            case "R": segment.flags.insert(.rst)
            case "P": segment.flags.insert(.psh)
            case ".": segment.flags.insert(.ack)
            case "U": segment.flags.insert(.urg)
            case "E": segment.flags.insert(.ece)
            case "W", "C": segment.flags.insert(.cwr)
            case "A": segment.flags.insert(.ae)
            case "0"..."7":
                let count = UInt16(letter.wholeNumberValue ?? 0)
                segment.hasACE = true
                segment.flags.formUnion(ScriptSegment.Flags(rawValue: count << 6))
            default: throw fail("'\(letter)' is not a TCP flag")
            }
        }
    }

    private mutating func sequence(_ segment: inout ScriptSegment) throws {
        if current.kind == .ellipsis {
            advance()
            segment.ignoresSequence = true
            segment.length = try length("the segment")
            return
        }
        let start = try integer("the sequence number", 0...0xffff_ffff)
        try expect(":")
        let end = try integer("the end of the sequence", 0...0xffff_ffff)
        segment.sequence = UInt32(start)
        segment.length = try length("the segment")
        guard UInt32(end) == segment.sequence &+ UInt32(segment.length) else {
            throw fail("\(start):\(end)(\(segment.length)): start and length do not make the end")
        }
        segment.isSequenceLive = take("!")
    }

    private mutating func tcpOption() throws -> ScriptTCPOption {
        let name = try word("a TCP option")
        switch name {
        case "nop": return .noOperation
        case "eol": return .endOfList
        case "mss": return .maximumSegmentSize(UInt16(try integer("mss", 0...65535)))
        case "wscale": return .windowScale(UInt8(try integer("wscale", 0...255)))
        case "sackOK": return .sackPermitted
        case "sack": return .sack(try sackBlocks())
        case "TS": return try timestamp()
        case "FO": return .fastOpen(try hexadecimals())
        case "FOEXP": return .experimentalFastOpen(try hexadecimals())
        case "md5": return .signature(try hexadecimals())
        case "AccECN0", "AccECN1", "ECN", "accecn": return try accurateECN(name)
        case "exp":
            try expect("-")
            switch try word("an experimental option") {
            case "FO": return .experimentalFastOpen(try hexadecimals())
            case "tarr":
                guard case .integer = current.kind else { return .experimental(0x00ac, []) }
                let rate = UInt16(try integer("the rate", 0...2047)) << 5
                return .experimental(0x00ac, [UInt8(rate >> 8), UInt8(rate & 255)])
            case "AccECN0", "AccECN1":
                throw fail("the experimental form of AccECN is not supported", .unsupported)
            case let other: throw fail("'exp-\(other)' is not a TCP option")
            }
        default: throw fail("'\(name)' is not a TCP option")
        }
    }

    private mutating func sackBlocks() throws -> [ScriptTCPOption.SACKBlock] {
        var blocks: [ScriptTCPOption.SACKBlock] = []
        repeat {
            let left = UInt32(try integer("the left edge", 0...0xffff_ffff))
            try expect(":")
            blocks.append(
                ScriptTCPOption.SACKBlock(left: left, right: UInt32(try integer("the right edge", 0...0xffff_ffff))))
            guard blocks.count <= 4 else { throw fail("no more than 4 SACK blocks fit") }
        } while current.isNumber
        return blocks
    }

    private mutating func timestamp() throws -> ScriptTCPOption {
        guard takeWord("val") else { throw unexpected("'val'") }
        var value: UInt32?
        if current.kind == .ellipsis { advance() } else { value = UInt32(try integer("val", 0...0xffff_ffff)) }
        guard takeWord("ecr") else { throw unexpected("'ecr'") }
        let echo = UInt32(try integer("ecr", 0...0xffff_ffff))
        return .timestamp(value: value, echo: echo, isEchoLive: take("!"))
    }

    /// RFC 9768, section 3.2.3: three counters of 24 bits, those at the end may be left out.
    private mutating func accurateECN(_ name: String) throws -> ScriptTCPOption {
        var names: [String] = []
        var counters: [UInt32] = []
        while current.isWord, ["ee0b", "eceb", "ee1b", "e0b", "ceb", "e1b"].contains(current.text) {
            names.append(current.text)
            advance()
            counters.append(UInt32(try integer("a counter", 0...0xff_ffff)))
        }
        let startsWithOne = names.first.map { $0.hasSuffix("e1b") } ?? false
        return .accurateECN(kind: name == "AccECN1" || startsWithOne ? 174 : 172, counters: counters)
    }

    /// Hexadecimal digits that may look like a word or like a number; none at all before ',' or '>'.
    private mutating func hexadecimals() throws -> [UInt8] {
        guard current.isWord || current.isNumber else { return [] }
        let text = current.text
        guard text.count % 2 == 0 else { throw fail("'\(text)' has an odd number of hexadecimal digits") }
        guard text.count <= 36 else { throw fail("'\(text)' is too long for a TCP option") }
        var bytes: [UInt8] = []
        var rest = Substring(text)
        while !rest.isEmpty {
            guard let byte = UInt8(rest.prefix(2), radix: 16) else { throw fail("'\(text)' is not hexadecimal") }
            bytes.append(byte)
            rest = rest.dropFirst(2)
        }
        advance()
        return bytes
    }
}

extension ScriptToken {
    fileprivate var isNumber: Bool {
        switch kind {
        case .integer, .hexadecimal: true
        default: false
        }
    }
}

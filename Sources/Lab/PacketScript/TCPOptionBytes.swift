/// TCP options between their script form and the wire (RFC 9293, 2018, 7323, 7413, 9768).
enum TCPOptionBytes {
    private static let fastOpenMagic: UInt16 = 0xf989

    static func encode(_ options: [ScriptTCPOption]) -> [UInt8] {
        var bytes: [UInt8] = []
        for option in options { append(option, &bytes) }
        return bytes
    }

    private static func append(_ option: ScriptTCPOption, _ bytes: inout [UInt8]) {
        switch option {
        case .endOfList: bytes.append(0)
        case .noOperation: bytes.append(1)
        case .maximumSegmentSize(let size): bytes += [2, 4] + big(size)
        case .windowScale(let shift): bytes += [3, 3, shift]
        case .sackPermitted: bytes += [4, 2]
        case .sack(let blocks):
            bytes += [5, UInt8(2 + 8 * blocks.count)]
            for block in blocks { bytes += big(block.left) + big(block.right) }
        case .timestamp(let value, let echo, _): bytes += [8, 10] + big(value ?? 0) + big(echo)
        case .signature(let digest): bytes += [19, UInt8(2 + digest.count)] + digest
        case .fastOpen(let cookie): bytes += [34, UInt8(2 + cookie.count)] + cookie
        case .accurateECN(let kind, let counters):
            bytes += [kind, UInt8(2 + 3 * counters.count)]
            for counter in counters { bytes += big(counter).dropFirst() }
        case .experimentalFastOpen(let cookie): bytes += [254, UInt8(4 + cookie.count)] + big(fastOpenMagic) + cookie
        case .experimental(let number, let content):
            bytes += [254, UInt8(4 + content.count)] + big(number) + content
        }
    }

    /// Nil if the bytes are not a list of options. A kind that scripts have no word for comes out as experimental, with
    /// the kind for its number.
    static func decode(_ bytes: ArraySlice<UInt8>) -> [ScriptTCPOption]? {
        var options: [ScriptTCPOption] = []
        var rest = bytes
        while let kind = rest.first {
            if kind < 2 {
                options.append(kind == 0 ? .endOfList : .noOperation)
                rest = rest.dropFirst()
                continue
            }
            guard rest.count >= 2 else { return nil }
            let length = Int(rest[rest.startIndex + 1])
            guard length >= 2, length <= rest.count else { return nil }
            let body = Array(rest.dropFirst(2).prefix(length - 2))
            guard let option = decode(kind: kind, body) else { return nil }
            options.append(option)
            rest = rest.dropFirst(length)
        }
        return options
    }

    private static func decode(kind: UInt8, _ body: [UInt8]) -> ScriptTCPOption? {
        switch (kind, body.count) {
        case (2, 2): return .maximumSegmentSize(big16(body, 0))
        case (3, 1): return .windowScale(body[0])
        case (4, 0): return .sackPermitted
        case (5, 8), (5, 16), (5, 24), (5, 32):
            return .sack(
                stride(from: 0, to: body.count, by: 8).map {
                    ScriptTCPOption.SACKBlock(left: big32(body, $0), right: big32(body, $0 + 4))
                })
        case (8, 8): return .timestamp(value: big32(body, 0), echo: big32(body, 4), isEchoLive: false)
        case (19, _): return .signature(body)
        case (34, _): return .fastOpen(body)
        case (172, 0), (172, 3), (172, 6), (172, 9), (174, 0), (174, 3), (174, 6), (174, 9):
            return .accurateECN(
                kind: kind,
                counters: stride(from: 0, to: body.count, by: 3).map { big32([0] + body[$0..<($0 + 3)], 0) })
        case (254, 2...):
            let number = big16(body, 0)
            let content = Array(body.dropFirst(2))
            return number == fastOpenMagic ? .experimentalFastOpen(content) : .experimental(number, content)
        default: return .experimental(UInt16(kind), body)
        }
    }
}

extension ScriptTCPOption {
    /// Which option it is, for comparing lists.
    var kind: UInt8 {
        switch self {
        case .endOfList: 0
        case .noOperation: 1
        case .maximumSegmentSize: 2
        case .windowScale: 3
        case .sackPermitted: 4
        case .sack: 5
        case .timestamp: 8
        case .signature: 19
        case .fastOpen: 34
        case .accurateECN(let kind, _): kind
        case .experimentalFastOpen, .experimental: 254
        }
    }

    var text: String {
        func hexadecimal(_ bytes: [UInt8]) -> String {
            bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
        }
        switch self {
        case .endOfList: return "eol"
        case .noOperation: return "nop"
        case .maximumSegmentSize(let size): return "mss \(size)"
        case .windowScale(let shift): return "wscale \(shift)"
        case .sackPermitted: return "sackOK"
        case .sack(let blocks): return "sack " + blocks.map { "\($0.left):\($0.right)" }.joined(separator: " ")
        case .timestamp(let value, let echo, _):
            return "TS val \(value.map { String($0) } ?? "...") ecr \(echo)"
        case .signature(let digest): return "md5 \(hexadecimal(digest))"
        case .fastOpen(let cookie): return cookie.isEmpty ? "FO" : "FO \(hexadecimal(cookie))"
        case .experimentalFastOpen(let cookie): return cookie.isEmpty ? "FOEXP" : "FOEXP \(hexadecimal(cookie))"
        case .accurateECN(let kind, let counters):
            let names = kind == 172 ? ["ee0b", "eceb", "ee1b"] : ["ee1b", "eceb", "ee0b"]
            return "AccECN\(kind == 172 ? 0 : 1)" + zip(names, counters).map { " \($0) \($1)" }.joined()
        case .experimental(let number, let content): return "exp-\(String(number, radix: 16)) \(hexadecimal(content))"
        }
    }
}

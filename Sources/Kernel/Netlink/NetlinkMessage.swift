import Glibc

/// The header in front of every netlink message, 16 bytes in the machine's byte order (linux/netlink.h).
package struct NetlinkHeader {
    package static let size = 16

    package var length: UInt32 = 0
    package var type: UInt16 = 0
    package var flags: UInt16 = 0
    package var sequence: UInt32 = 0
    /// Port of the sender.
    package var port: UInt32 = 0

    package init(type: UInt16, flags: UInt16 = 0, sequence: UInt32 = 0, port: UInt32 = 0) {
        self.type = type
        self.flags = flags
        self.sequence = sequence
        self.port = port
    }

    /// The header at `offset`, nil if there are not as many bytes.
    package init?(_ bytes: ArraySlice<UInt8>) {
        guard bytes.count >= Self.size else { return nil }
        length = bytes.number(at: 0)
        type = bytes.number(at: 4)
        flags = bytes.number(at: 6)
        sequence = bytes.number(at: 8)
        port = bytes.number(at: 12)
    }

    // Types of netlink itself.
    package static let noOperation: UInt16 = 1
    package static let error: UInt16 = 2
    package static let done: UInt16 = 3
    /// What is below belongs to netlink.
    package static let firstType: UInt16 = 16

    // Flags.
    package static let request: UInt16 = 0x1
    package static let multi: UInt16 = 0x2
    package static let acknowledge: UInt16 = 0x4
    package static let echo: UInt16 = 0x8
    package static let dumpFiltered: UInt16 = 0x20
    /// NLM_F_ROOT and NLM_F_MATCH.
    package static let dump: UInt16 = 0x300
    // Of requests that make something.
    package static let replace: UInt16 = 0x100
    package static let exclusive: UInt16 = 0x200
    package static let create: UInt16 = 0x400
    package static let append: UInt16 = 0x800
    // Of acknowledgments.
    static let capped: UInt16 = 0x100
    static let acknowledgeAttributes: UInt16 = 0x200
}

/// Why a request is refused: an errno, and words for programs that asked for them (NETLINK_EXT_ACK).
struct NetlinkError: Error {
    let code: Int32
    let message: String

    init(_ code: Int32, _ message: String = "") {
        self.code = code
        self.message = message
    }
}

extension ArraySlice where Element == UInt8 {
    /// A number in the machine's byte order. Zero beyond the end: whoever reads has looked at the size.
    package func number<Number: FixedWidthInteger>(at offset: Int, as type: Number.Type = Number.self) -> Number {
        guard offset >= 0, count - offset >= MemoryLayout<Number>.size else { return 0 }
        return withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: Number.self) }
    }
}

/// The attributes behind a message's fixed part: type, length, value; each begins at a multiple of four.
struct NetlinkAttributes {
    private var values: [UInt16: ArraySlice<UInt8>] = [:]
    /// In order of appearance, each once.
    private(set) var types: [UInt16] = []

    /// Everything from the `fixed`-th byte of `payload` on. A length that cannot be is EINVAL; up to three bytes at the end
    /// are padding. The last of several of one type counts.
    init(_ payload: ArraySlice<UInt8>, after fixed: Int) throws {
        var rest = payload.dropFirst((fixed + 3) & ~3)
        while rest.count >= 4 {
            let length = Int(rest.number(at: 0, as: UInt16.self))
            guard length >= 4, length <= rest.count else {
                throw NetlinkError(EINVAL, "an attribute is longer than what is left of the message")
            }
            // NLA_F_NESTED and NLA_F_NET_BYTEORDER say how to read it, not what it is.
            let type = rest.number(at: 2, as: UInt16.self) & 0x3fff
            if values.updateValue(rest.dropFirst(4).prefix(length - 4), forKey: type) == nil { types.append(type) }
            rest = rest.dropFirst((length + 3) & ~3)
        }
    }

    subscript(type: UInt16) -> ArraySlice<UInt8>? { values[type] }

    func has(_ type: UInt16) -> Bool { values[type] != nil }

    /// A number. One that is cut short is ERANGE, as Linux's policies have it.
    func number<Number: FixedWidthInteger>(_ type: UInt16, as kind: Number.Type = Number.self) throws -> Number? {
        guard let value = values[type] else { return nil }
        guard value.count >= MemoryLayout<Number>.size else {
            throw NetlinkError(ERANGE, "attribute \(type) is too short")
        }
        return value.number(at: 0, as: Number.self)
    }

    /// Text, with or without the NUL behind it.
    func text(_ type: UInt16, longest: Int) throws -> String? {
        guard let value = values[type] else { return nil }
        let text = value.prefix { $0 != 0 }
        guard text.count <= longest else { throw NetlinkError(ERANGE, "attribute \(type) is too long") }
        return String(decoding: text, as: UTF8.self)
    }

    /// The attributes inside of one.
    func nested(_ type: UInt16) throws -> NetlinkAttributes? {
        try values[type].map { try NetlinkAttributes($0, after: 0) }
    }
}

/// Makes messages.
package struct NetlinkWriter {
    package private(set) var bytes: [UInt8] = []

    package init() {}

    package init(_ header: NetlinkHeader) {
        append(header.length)
        append(header.type)
        append(header.flags)
        append(header.sequence)
        append(header.port)
    }

    package mutating func append<Number: FixedWidthInteger>(_ number: Number) {
        withUnsafeBytes(of: number) { bytes.append(contentsOf: $0) }
    }

    package mutating func append(_ more: some Sequence<UInt8>) { bytes.append(contentsOf: more) }

    /// Zeroes up to the next multiple of four.
    package mutating func align() { bytes.append(contentsOf: repeatElement(0, count: -bytes.count & 3)) }

    package mutating func attribute(_ type: UInt16, _ value: some Collection<UInt8>) {
        append(UInt16(4 + value.count))
        append(type)
        append(value)
        align()
    }

    package mutating func attribute<Number: FixedWidthInteger>(_ type: UInt16, _ number: Number) {
        attribute(type, withUnsafeBytes(of: number) { Array($0) })
    }

    package mutating func attribute(_ type: UInt16, text: String) { attribute(type, Array(text.utf8) + [0]) }

    package mutating func attribute(_ type: UInt16, nesting body: (inout NetlinkWriter) -> Void) {
        var inner = NetlinkWriter()
        body(&inner)
        attribute(type, inner.bytes)
    }

    /// The message with its length in the header.
    package func finished() -> [UInt8] {
        var result = bytes
        withUnsafeBytes(of: UInt32(result.count)) { result.replaceSubrange(0..<4, with: $0) }
        return result
    }
}

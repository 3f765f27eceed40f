/// A script as written: options, events, and nothing worked out yet.
package struct PacketScript {
    package var path: String
    var options: [Option] = []
    /// Shell lines before and after the events.
    var initialCommand: Command?
    var events: [Event] = []
    var finalCommand: Command?

    /// `--name=value`
    struct Option: Equatable {
        var line: Int
        var name: String
        var value: String?
    }

    struct Command: Equatable {
        var line: Int
        var text: String
    }

    struct Event {
        var line: Int
        var time: Time
        var action: Action
    }

    /// When something happens, in ns of script time.
    enum Time: Equatable {
        case absolute(Int64)
        /// After the event before.
        case relative(Int64)
        case absoluteRange(Int64, Int64)
        case relativeRange(Int64, Int64)
        /// `*`: whenever.
        case any
    }

    enum Action {
        case packet(ScriptPacket)
        case call(ScriptCall)
        case command(String)
        case code(String)
    }
}

/// A system call, its arguments, and what it must return.
struct ScriptCall {
    var name: String
    var arguments: [ScriptExpression]
    /// `...END`: the call blocks until then; ns, relative if the event's time is.
    var end: Int64?
    var result: ScriptExpression
    var error: String?
}

/// An argument or a result.
indirect enum ScriptExpression: Equatable {
    case ellipsis
    case integer(Int64)
    case word(String)
    case string(String)
    case list([ScriptExpression])
    case structure([Field])
    case or(ScriptExpression, ScriptExpression)
    case call(String, [ScriptExpression])

    /// `name=value`, `name(argument)=value` or only `value`.
    struct Field: Equatable {
        var name: String?
        var argument: ScriptExpression?
        var value: ScriptExpression
    }

    /// As it was written, more or less.
    var text: String {
        switch self {
        case .ellipsis: "..."
        case .integer(let number): String(number)
        case .word(let word): word
        case .string(let string): "\"\(string)\""
        case .list(let items): "[" + items.map(\.text).joined(separator: ", ") + "]"
        case .structure(let fields):
            "{"
                + fields.map { field in
                    guard let name = field.name else { return field.value.text }
                    return name + (field.argument.map { "(\($0.text))" } ?? "") + "=" + field.value.text
                }.joined(separator: ", ") + "}"
        case .or(let left, let right): "\(left.text)|\(right.text)"
        case .call(let name, let arguments): "\(name)(\(arguments.map(\.text).joined(separator: ", ")))"
        }
    }
}

/// A packet as a script describes it, sequence numbers and ports in the script's terms.
struct ScriptPacket {
    enum Direction { case inbound, outbound }

    enum TOSCheck: Equatable {
        case none
        case ecn(UInt8)
        /// ECT(0) or ECT(1).
        case ect01
        case dscp(UInt8)
        case tos(UInt8)
    }

    enum Body {
        case tcp(ScriptSegment)
        case udp(length: Int)
        case icmp(ScriptICMP)
    }

    var direction: Direction
    var tos: TOSCheck = .none
    var ttl: UInt8?
    var sourcePort: UInt16?
    var destinationPort: UInt16?
    var body: Body
}

/// A TCP segment.
struct ScriptSegment {
    struct Flags: OptionSet, Hashable {
        let rawValue: UInt16
        static let fin = Flags(rawValue: 1)
        static let syn = Flags(rawValue: 2)
        static let rst = Flags(rawValue: 4)
        static let psh = Flags(rawValue: 8)
        static let ack = Flags(rawValue: 16)
        static let urg = Flags(rawValue: 32)
        static let ece = Flags(rawValue: 64)
        static let cwr = Flags(rawValue: 128)
        static let ae = Flags(rawValue: 256)
    }

    var flags: Flags = []
    /// The flags ECE, CWR and AE were given as a number (AccECN's ACE field).
    var hasACE = false
    var sequence: UInt32 = 0
    /// `!`: the number is live already.
    var isSequenceLive = false
    /// `...(LENGTH)`: whatever it is.
    var ignoresSequence = false
    var length = 0
    var acknowledgment: UInt32 = 0
    var window: UInt16?
    var urgent: UInt16 = 0
    /// Nil: `<...>`, whatever they are.
    var options: [ScriptTCPOption]? = []
}

enum ScriptTCPOption: Equatable {
    case endOfList
    case noOperation
    case maximumSegmentSize(UInt16)
    case windowScale(UInt8)
    case sackPermitted
    case sack([SACKBlock])
    /// A nil value is not compared; an echo can be given live.
    case timestamp(value: UInt32?, echo: UInt32, isEchoLive: Bool)
    case fastOpen([UInt8])
    case experimentalFastOpen([UInt8])
    case signature([UInt8])
    /// AccECN: kind 172 or 174 and the counters in the order of the wire.
    case accurateECN(kind: UInt8, counters: [UInt32])
    /// An experimental one (kind 254) by its number, and what follows.
    case experimental(UInt16, [UInt8])

    struct SACKBlock: Equatable {
        var left: UInt32
        var right: UInt32
    }
}

/// An ICMP message.
struct ScriptICMP {
    /// What of the packet that caused an error the message carries.
    enum Quoted: Equatable {
        case tcp(sequence: UInt32, length: Int)
        case udp(length: Int)
        /// No quoted packet: this many bytes after the IPv4 header.
        case raw(length: Int)
    }

    var type: UInt8
    var code: UInt8
    var mtu: UInt16?
    var identifier: UInt16?
    var quoted: Quoted?
}

import Kernel

/// A system call, its arguments worked out: tried again and again until it does not block.
struct SystemCall {
    enum Outcome: Equatable {
        case value(Int64)
        case error(Int32)
        case blocks
    }

    var attempt: () throws -> Outcome
    /// When it gives up waiting, and what it then returns.
    var deadline: UInt64?
    var late: Outcome = .value(0)
    /// The result is a descriptor: any will do.
    var returnsDescriptor = false
    /// Compares what the call has written, and notes what it has changed. Called if the result is as expected.
    var finish: (Outcome) throws -> Void = { _ in }

    init(_ attempt: @escaping () throws -> Outcome) { self.attempt = attempt }

    /// One whose outcome is known at once.
    static func immediate(_ outcome: Outcome) -> SystemCall { SystemCall { outcome } }

    /// 0, or an error.
    static func status(_ error: Int32) -> Outcome { error == 0 ? .value(0) : .error(error) }
}

/// Reads the arguments of a call.
struct CallArguments {
    let name: String
    let list: [ScriptExpression]

    init(_ call: ScriptCall) {
        name = call.name
        list = call.arguments
    }

    func expect(_ counts: ClosedRange<Int>) throws {
        guard counts.contains(list.count) else {
            let wanted = counts.count == 1 ? "\(counts.lowerBound)" : "\(counts.lowerBound) to \(counts.upperBound)"
            throw ScriptFault.syntax("expected \(wanted) arguments, got \(list.count)")
        }
    }

    subscript(_ index: Int) -> ScriptExpression { list[index] }

    func integer(_ index: Int) throws -> Int64 {
        guard let number = try Self.integer(list[index]) else {
            throw ScriptFault.syntax("argument \(index + 1) must be a number, not \(list[index].text)")
        }
        return number
    }

    /// The same, `...` standing for a number that does not matter.
    func integer(_ index: Int, orEllipsis value: Int64) throws -> Int64 {
        list[index] == .ellipsis ? value : try integer(index)
    }

    func int32(_ index: Int) throws -> Int32 { Int32(truncatingIfNeeded: try integer(index)) }

    func descriptor(_ index: Int = 0) throws -> Int { Int(truncatingIfNeeded: try integer(index)) }

    /// The number that an expression stands for; nil if it is none.
    static func integer(_ expression: ScriptExpression) throws -> Int64? {
        switch expression {
        case .integer(let number): return number
        case .word(let word):
            if let value = SystemSymbols.value(word) { return value }
            throw ScriptFault.unsupported("unknown symbol '\(word)'")
        case .or(let left, let right):
            guard let a = try integer(left), let b = try integer(right) else { return nil }
            return a | b
        case .call("htons", let arguments), .call("htonl", let arguments), .call("ntohs", let arguments):
            return try arguments.first.flatMap(integer)
        case .call("inet_addr", let arguments):
            guard case .string(let text)? = arguments.first, let address = UInt32(dotted: text) else {
                throw ScriptFault.syntax("inet_addr needs an IPv4 address in quotes")
            }
            return Int64(address)
        case .call(let name, _): throw ScriptFault.unsupported("unknown function '\(name)'")
        default: return nil
        }
    }

    /// `[x]`, or `x`.
    static func bracketed(_ expression: ScriptExpression) throws -> Int64? {
        if case .list(let items) = expression { return items.count == 1 ? try integer(items[0]) : nil }
        return try integer(expression)
    }

    /// A string as C has it: `\xa1` is one byte.
    static func bytes(_ text: String) -> [UInt8] {
        text.unicodeScalars.flatMap { $0.value < 256 ? [UInt8($0.value)] : Array(String($0).utf8) }
    }

    /// A buffer to write from. Nil: a null pointer.
    func buffer(_ index: Int, count: Int) throws -> [UInt8]? {
        guard (0...(64 << 20)).contains(count) else { throw ScriptFault.syntax("\(count) bytes are too many") }
        switch list[index] {
        case .ellipsis: return [UInt8](repeating: 0, count: count)
        case .string(let text):
            let bytes = Self.bytes(text)
            return Array(bytes.prefix(count)) + [UInt8](repeating: 0, count: max(0, count - bytes.count))
        default:
            guard try Self.integer(list[index]) == 0 else {
                throw ScriptFault.syntax("argument \(index + 1) must be ..., a string or NULL")
            }
            return nil
        }
    }

    /// An address: nil if the script leaves it to the runner.
    func address(_ index: Int) throws -> CallAddress {
        switch list[index] {
        case .ellipsis: return .default
        case .structure(let fields): return try .given(Self.socketAddress(fields))
        case .word("AF_UNSPEC"): return .given((0, LivePacket.Endpoint(address: 0, port: 0)))
        default:
            if try Self.integer(list[index]) == 0 { return .none }
            throw ScriptFault.syntax("argument \(index + 1) must be ..., NULL or {sa_family = ...}")
        }
    }

    private static func socketAddress(
        _ fields: [ScriptExpression.Field]
    ) throws -> (family: UInt16, endpoint: LivePacket.Endpoint) {
        var family: UInt16 = 2
        var endpoint = LivePacket.Endpoint(address: 0, port: 0)
        for field in fields where field.value != .ellipsis {
            guard let number = try integer(field.value) else { continue }
            switch field.name {
            case "sa_family"?, "sin_family"?: family = UInt16(truncatingIfNeeded: number)
            case "sin_port"?: endpoint.port = UInt16(truncatingIfNeeded: number)
            case "sin_addr"?: endpoint.address = UInt32(truncatingIfNeeded: number)
            default: throw ScriptFault.unsupported("'\(field.name ?? "")' is not a field of an IPv4 socket address")
            }
        }
        return (family, endpoint)
    }

    /// The lengths of `[{..., 1000}, {..., 24}]`.
    static func vector(_ expression: ScriptExpression) throws -> [Int] {
        guard case .list(let items) = expression else { throw ScriptFault.syntax("expected [{..., LENGTH}, ...]") }
        return try items.map { item in
            guard case .structure(let fields) = item, let last = fields.last, let length = try integer(last.value),
                (0...(64 << 20)).contains(length)
            else { throw ScriptFault.syntax("expected {..., LENGTH}") }
            return Int(length)
        }
    }

    /// The value of a field of a structure.
    static func field(_ name: String, of expression: ScriptExpression) -> ScriptExpression? {
        guard case .structure(let fields) = expression else { return nil }
        return fields.first { $0.name == name }?.value
    }
}

/// An address argument.
enum CallAddress {
    /// `...`
    case `default`
    case none
    case given((family: UInt16, endpoint: LivePacket.Endpoint))
}

import Kernel
import PluginAPI

/// Socket options, descriptor flags and ioctls.
extension SystemCalls {
    // MARK: getsockopt and setsockopt

    func setOption(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(5...5)
        let (_, socket, _) = try socket(arguments)
        let level = try arguments.int32(1)
        let name = try arguments.int32(2)
        let length = Int(truncatingIfNeeded: try arguments.integer(4))
        guard let value = try Self.optionBytes(arguments[3]) else { return .immediate(.error(length == 0 ? 22 : 14)) }
        guard (0...4096).contains(length) else { return .immediate(.error(22)) }
        let padded = Array(value.prefix(length)) + [UInt8](repeating: 0, count: max(0, length - value.count))
        return SystemCall { SystemCall.status(socket.setOption(level: level, name: name, padded)) }
    }

    /// The bytes of an option's value; nil for a null pointer.
    private static func optionBytes(_ expression: ScriptExpression) throws -> [UInt8]? {
        switch expression {
        case .ellipsis: return []
        case .string(let text): return CallArguments.bytes(text)
        case .list(let items): return try items.flatMap { try optionBytes($0) ?? [] }
        case .structure(let fields):
            if fields.contains(where: { $0.name == "tv_sec" || $0.name == "tv_usec" }) {
                return try fields.flatMap { bytes(try CallArguments.integer($0.value) ?? 0) }
            }
            return try fields.flatMap { bytes(Int32(truncatingIfNeeded: try CallArguments.integer($0.value) ?? 0)) }
        default:
            guard let number = try CallArguments.integer(expression) else {
                throw ScriptFault.syntax("\(expression.text) is not an option's value")
            }
            if expression == .word("NULL") { return nil }
            return bytes(Int32(truncatingIfNeeded: number))
        }
    }

    private static func bytes<Number>(_ number: Number) -> [UInt8] { withUnsafeBytes(of: number) { Array($0) } }

    func getOption(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(5...5)
        let (_, socket, _) = try socket(arguments)
        let level = try arguments.int32(1)
        let name = try arguments.int32(2)
        let length = arguments[4] == .ellipsis ? 512 : try CallArguments.bracketed(arguments[4])
        guard let length, (0...65536).contains(length) else { throw ScriptFault.syntax("the length must be [NUMBER]") }
        var value: [UInt8] = []
        var call = SystemCall {
            let (error, bytes) = socket.getOption(level: level, name: name, capacity: Int(length))
            value = bytes
            return SystemCall.status(error)
        }
        let wanted = arguments[3]
        call.finish = { outcome in
            if case .value = outcome { try Self.compare(value, wanted) }
        }
        return call
    }

    private static func compare(_ value: [UInt8], _ wanted: ScriptExpression) throws {
        switch wanted {
        case .ellipsis: return
        case .string(let text):
            let found = String(decoding: value.prefix { $0 != 0 }, as: UTF8.self)
            guard found == text else {
                throw ScriptFault.mismatch("Expected option value \"\(text)\" but got \"\(found)\"")
            }
        case .list(let items) where items.count == 1:
            if case .integer = items[0] { return try compareNumber(value, items[0]) }
            if case .structure = items[0] { return try compare(value, items[0]) }
            try compareNumber(value, items[0])
        case .list(let items): try compareBytes(value, try items.flatMap { try optionBytes($0) ?? [] })
        case .structure(let fields):
            if fields.contains(where: { $0.name?.hasPrefix("tcpi_") == true }) { return try compareInfo(value, fields) }
            try compareBytes(value, try optionBytes(wanted) ?? [])
        default: try compareNumber(value, wanted)
        }
    }

    private static func compareNumber(_ value: [UInt8], _ wanted: ScriptExpression) throws {
        guard let number = try CallArguments.integer(wanted) else { return }
        let found = value.prefix(8).enumerated().reduce(UInt64(0)) { $0 | UInt64($1.element) << UInt64(8 * $1.offset) }
        let bits = UInt64(min(value.count, 8) * 8)
        let mask: UInt64 = bits >= 64 ? .max : (1 << bits) - 1
        guard found == UInt64(bitPattern: number) & mask else {
            let shown = value.count == 4 ? Int64(Int32(truncatingIfNeeded: found)) : Int64(bitPattern: found)
            throw ScriptFault.mismatch("Expected option value \(number) but got \(shown)")
        }
    }

    private static func compareBytes(_ value: [UInt8], _ wanted: [UInt8]) throws {
        guard value == wanted else {
            throw ScriptFault.mismatch("Expected option value \(wanted) but got \(value)")
        }
    }

    /// `{tcpi_state=TCP_ESTABLISHED, ...}`: only the fields that are named.
    private static func compareInfo(_ value: [UInt8], _ fields: [ScriptExpression.Field]) throws {
        let values = TCPInfoFields.values(value)
        for field in fields where field.value != .ellipsis {
            guard let name = field.name, let found = values[name] else {
                throw ScriptFault.unsupported("there is no field \(field.name ?? "") in tcp_info")
            }
            let wanted: Int64?
            if case .word(let word) = field.value, let constant = TCPInfoFields.constants[word] {
                wanted = constant
            } else {
                wanted = try CallArguments.integer(field.value)
            }
            guard wanted == found else {
                throw ScriptFault.mismatch("Expected \(name) \(wanted ?? 0) but got \(found)")
            }
        }
    }

    // MARK: fcntl and ioctl

    func fileControl(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(2...3)
        let descriptor = try find(arguments.descriptor())
        let command = try arguments.int32(1)
        if command == 4 { try arguments.expect(3...3) }
        let argument = arguments.list.count == 3 ? try arguments.integer(2) : 0
        return SystemCall { Self.fileControl(descriptor, command, argument) }
    }

    static func fileControl(_ descriptor: ScriptDescriptor, _ command: Int32, _ argument: Int64) -> SystemCall.Outcome {
        switch command {
        case 1, 2: return .value(0)
        case 3: return .value(2 | (descriptor.isNonBlocking ? Int64(nonBlocking) : 0))
        case 4:
            descriptor.isNonBlocking = argument & Int64(nonBlocking) != 0
            return .value(0)
        default: return .error(22)
        }
    }

    func ioctl(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(2...3)
        let (descriptor, socket, _) = try socket(arguments)
        let command = try arguments.integer(1)
        let argument = arguments.list.count == 3 ? arguments[2] : .ellipsis
        var found: Int64?
        var call = SystemCall {
            let given = command == 0x5421 ? try CallArguments.bracketed(argument) ?? 0 : 0
            return Self.ioctl(descriptor, socket, command, given, &found)
        }
        call.finish = { outcome in
            guard case .value = outcome, let found, argument != .ellipsis,
                let wanted = try CallArguments.bracketed(argument)
            else { return }
            guard wanted == found else {
                throw ScriptFault.mismatch("Expected ioctl to give \(wanted) but got \(found)")
            }
        }
        return call
    }

    /// FIONBIO takes `given`; FIONREAD, SIOCOUTQ, SIOCOUTQNSD and SIOCATMARK give a number.
    static func ioctl(
        _ descriptor: ScriptDescriptor, _ socket: Socket, _ command: Int64, _ given: Int64, _ found: inout Int64?
    ) -> SystemCall.Outcome {
        switch command {
        case 0x5421: descriptor.isNonBlocking = given != 0
        case 0x541b:
            if socket.isListening { return .error(22) }
            found =
                socket.isStream
                ? Int64(socket.receiveAvailable) : Int64(socket.firstDatagram?.packet.pointee.pkt.length ?? 0)
        case 0x5411: found = Int64(socket.sendQueued)
        case 0x894b:
            let (error, info) = socket.getOption(level: 6, name: 11, capacity: 512)
            if error != 0 { return .error(error) }
            found = TCPInfoFields.values(info)["tcpi_notsent_bytes"]
        case 0x8905: found = socket.isAtMark ? 1 : 0
        default: return .error(25)
        }
        return .value(0)
    }

    // MARK: poll and epoll

    func poll(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(3...3)
        guard case .list(let items) = arguments[0] else {
            throw ScriptFault.syntax("poll needs [{fd=..., events=...}]")
        }
        let timeout = try arguments.integer(2)
        var watched: [(descriptor: ScriptDescriptor, events: Int32, wanted: Int32)] = []
        for item in items {
            guard let number = try CallArguments.field("fd", of: item).flatMap(CallArguments.integer),
                let events = try CallArguments.field("events", of: item).flatMap(CallArguments.integer)
            else { throw ScriptFault.syntax("poll needs [{fd=..., events=...}]") }
            let wanted = try CallArguments.field("revents", of: item).flatMap(CallArguments.integer) ?? 0
            watched.append(
                (
                    try find(Int(truncatingIfNeeded: number)), Int32(truncatingIfNeeded: events),
                    Int32(truncatingIfNeeded: wanted)
                ))
        }
        var found: [Int32] = []
        var call = SystemCall {
            found = watched.map { $0.descriptor.readiness(for: $0.events) }
            let count = found.count { $0 != 0 }
            return count > 0 || timeout == 0 ? .value(Int64(count)) : .blocks
        }
        if timeout > 0 { call.deadline = now + UInt64(timeout) * 1_000_000 }
        call.finish = { _ in
            for (index, item) in watched.enumerated() where item.wanted != found[index] {
                throw ScriptFault.mismatch(
                    "Expected revents of \(Self.pollText(item.wanted)) but got \(Self.pollText(found[index])) for pollfd \(index)"
                )
            }
        }
        return call
    }

    private static let pollNames: [(Int32, String)] = [
        (1, "POLLIN"), (2, "POLLPRI"), (4, "POLLOUT"), (8, "POLLERR"), (0x10, "POLLHUP"), (0x20, "POLLNVAL"),
        (0x40, "POLLRDNORM"), (0x100, "POLLWRNORM"), (0x2000, "POLLRDHUP"),
    ]

    private static func pollText(_ events: Int32) -> String {
        let names = pollNames.filter { events & $0.0 != 0 }.map(\.1)
        return names.isEmpty ? "0" : names.joined(separator: "|")
    }

    func makeEpoll(_ arguments: CallArguments, _ result: ScriptExpression) throws -> SystemCall {
        try arguments.expect(1...1)
        let size = try arguments.integer(0)
        var call = SystemCall { [self] in
            size <= 0 && arguments.name == "epoll_create" ? .error(22) : .value(lowestFree)
        }
        call.returnsDescriptor = true
        call.finish = { [self] outcome in
            if case .value = outcome { try add(.epoll(ScriptEpoll()), as: result) }
        }
        return call
    }

    private func epoll(_ arguments: CallArguments) throws -> ScriptEpoll {
        guard case .epoll(let epoll) = try find(arguments.descriptor()).kind else {
            throw ScriptFault.syntax("descriptor \(try arguments.descriptor()) is not an epoll instance")
        }
        return epoll
    }

    /// The events and the data of `{events=..., fd=...}`.
    private static func epollEvent(_ expression: ScriptExpression) throws -> (events: UInt32, data: Int64?) {
        guard case .structure(let fields) = expression else {
            throw ScriptFault.syntax("expected {events=..., fd=...}")
        }
        var events: UInt32 = 0
        var data: Int64?
        for field in fields {
            guard field.value != .ellipsis, let number = try CallArguments.integer(field.value) else { continue }
            if field.name == "events" { events = UInt32(truncatingIfNeeded: number) } else { data = number }
        }
        return (events, data)
    }

    func controlEpoll(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(3...4)
        let epoll = try epoll(arguments)
        let operation = try arguments.int32(1)
        let descriptor = try find(arguments.descriptor(2))
        var event: (events: UInt32, data: Int64?) = (0, nil)
        if arguments.list.count == 4, operation != 2 { event = try Self.epollEvent(arguments[3]) }
        let wanted = event
        return SystemCall { epoll.control(operation, descriptor, wanted.events, wanted.data ?? 0) }
    }

    func waitEpoll(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(4...4)
        let epoll = try epoll(arguments)
        let limit = Int(truncatingIfNeeded: try arguments.integer(2))
        let timeout = try arguments.integer(3)
        var wanted: [(events: UInt32, data: Int64?)] = []
        switch arguments[1] {
        case .list(let items): wanted = try items.map(Self.epollEvent)
        case .ellipsis: break
        default: wanted = [try Self.epollEvent(arguments[1])]
        }
        var found: [(events: UInt32, data: Int64)] = []
        var call = SystemCall {
            guard limit > 0 else { return .error(22) }
            found = epoll.take(limit)
            return !found.isEmpty || timeout == 0 ? .value(Int64(found.count)) : .blocks
        }
        if timeout > 0 { call.deadline = now + UInt64(timeout) * 1_000_000 }
        call.finish = { _ in
            for (index, event) in found.enumerated() where index < wanted.count {
                let expected = wanted[index]
                guard expected.events == event.events, expected.data == nil || expected.data == event.data else {
                    throw ScriptFault.mismatch(
                        "Expected epoll event \(Self.pollText(Int32(truncatingIfNeeded: expected.events))) "
                            + "but got \(Self.pollText(Int32(truncatingIfNeeded: event.events))) (data \(event.data))")
                }
            }
        }
        return call
    }
}

import CLinux
import Glibc
import PluginAPI

/// One socket option as Linux has it: what it looks like, on which sockets, and what is done with it here.
package struct SocketOption: Sendable {
    /// The levels of getsockopt(2) that Linux has for IPv4 sockets.
    package enum Level: Int32, Sendable {
        case ip = 0, socket = 1, tcp = 6, udp = 17, raw = 255, packet = 263

        package var name: String {
            switch self {
            case .ip: "IPPROTO_IP"
            case .socket: "SOL_SOCKET"
            case .tcp: "IPPROTO_TCP"
            case .udp: "IPPROTO_UDP"
            case .raw: "SOL_RAW"
            case .packet: "SOL_PACKET"
            }
        }
    }

    /// Sockets that have it.
    package struct Sockets: OptionSet, Sendable {
        package let rawValue: UInt8
        package init(rawValue: UInt8) { self.rawValue = rawValue }
        package static let stream = Sockets(rawValue: 1)
        package static let datagram = Sockets(rawValue: 2)
        package static let raw = Sockets(rawValue: 4)
        package static let packet = Sockets(rawValue: 8)
        /// Of the Internet.
        package static let all: Sockets = [.stream, .datagram, .raw]

        /// "TCP", "TCP and UDP"; empty for all.
        package var text: String {
            guard self != .all else { return "" }
            let names: [(Sockets, String)] = [(.stream, "TCP"), (.datagram, "UDP"), (.raw, "raw"), (.packet, "packet")]
            return names.filter { contains($0.0) }.map(\.1).joined(separator: " and ")
        }
    }

    package enum Form: Sendable {
        /// Any integer; told as 0 or 1.
        case flag
        /// An integer; others are EINVAL.
        case integer(ClosedRange<Int32>)
        /// An integer, of exactly four bytes.
        case word(ClosedRange<Int32>)
        /// `unsigned long`, or four bytes of it.
        case long
        /// At least so many bytes; fewer are EINVAL.
        case bytes(Int)
    }

    package enum Treatment: Sendable {
        /// It does what it does on Linux.
        case acts
        /// Can only be read.
        case told
        /// Taken and told back; there is nothing here that it could change.
        case kept
        /// Taken, never told back: so does Linux.
        case ignored
        /// Setting it to anything but its initial value fails.
        case refused(Int32)
    }

    package let level: Level
    package let number: Int32
    package let name: String
    package let sockets: Sockets
    let form: Form
    package let treatment: Treatment
    /// What is told of one that was never set.
    var initial: Int32 = 0
    /// What is told of one that is not an integer.
    var tells: [UInt8] = []
    /// The error of reading it, 0 if it can be read.
    var readError: Int32 = 0
    /// On the level IPPROTO_IP no bytes at all stand for 0, unless this is set.
    var needsValue = false
    /// Why, for the documentation.
    package var note = ""
    /// Linux refuses it on these sockets too: no difference to document.
    var isLinuxs = false

    // MARK: Values

    /// A program's value as a number. nil: its length is wrong.
    func number(in value: [UInt8]) -> Int32? {
        if case .word = form, value.count != 4 { return nil }
        if value.count >= 4 { return value.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) } }
        guard level == .ip else { return nil }
        // A single byte is what BSD programs pass.
        return value.isEmpty ? (needsValue ? nil : 0) : Int32(value[0])
    }

    /// What a program's value means, as four bytes if it is a number.
    func normalised(_ value: [UInt8]) -> (error: Int32, value: [UInt8]) {
        func check(_ range: ClosedRange<Int32>) -> (Int32, [UInt8]) {
            guard let number = number(in: value), range.contains(number) else { return (EINVAL, []) }
            return (0, Self.bytes(number))
        }
        switch form {
        case .flag:
            guard let number = number(in: value) else { return (EINVAL, []) }
            return (0, Self.bytes(number != 0 ? 1 : 0))
        case .integer(let range), .word(let range): return check(range)
        case .long:
            guard value.count >= 4 else { return (EINVAL, []) }
            if value.count >= 8 { return (0, Array(value.prefix(8))) }
            let isAll = value.prefix(4).allSatisfy { $0 == 255 }
            return (0, value.prefix(4) + [UInt8](repeating: isAll ? 255 : 0, count: 4))
        case .bytes(let least): return value.count >= least ? (0, value) : (EINVAL, [])
        }
    }

    /// True if setting this changes nothing.
    func isInitial(_ value: [UInt8]) -> Bool {
        switch form {
        case .flag, .integer, .word: value == Self.bytes(initial)
        case .long, .bytes: false
        }
    }

    /// What is told of one that was never set.
    var initialValue: [UInt8] {
        switch form {
        case .flag, .integer, .word: tells.isEmpty ? Self.bytes(initial) : tells
        case .long: [UInt8](repeating: initial < 0 ? 255 : 0, count: 8)
        case .bytes: tells
        }
    }

    /// True if the value is an integer, to which the level's rule about short buffers applies.
    var isInteger: Bool {
        switch form {
        case .flag, .integer, .word: true
        case .long, .bytes: false
        }
    }

    /// A value cut to the program's buffer.
    func cut(_ value: [UInt8], to capacity: Int) -> [UInt8] {
        if level == .ip, isInteger, (1..<4).contains(capacity), value.count == 4, value[1...] == [0, 0, 0] {
            return [value[0]]
        }
        return Array(value.prefix(capacity))
    }

    static func bytes(_ number: Int32) -> [UInt8] { withUnsafeBytes(of: number) { Array($0) } }

    // MARK: Finding

    private static let byNumber = Dictionary(grouping: all) { Int64($0.level.rawValue) << 32 | Int64($0.number) }

    static func find(_ level: Int32, _ number: Int32, on sockets: Sockets) -> SocketOption? {
        byNumber[Int64(level) << 32 | Int64(number)]?.first { $0.sockets.contains(sockets) }
    }

    // MARK: Documentation

    package var treatmentName: String {
        switch treatment {
        case .acts: "acts"
        case .told: "told"
        case .kept: "kept"
        case .ignored: "ignored"
        case .refused: "refused"
        }
    }

    /// The lists of docs/limitations.md.
    package static var markdown: String {
        var lines: [String] = []
        func row(_ option: SocketOption, _ what: String) -> String {
            let sockets = option.sockets.text
            let name = "`\(option.name)`" + (sockets.isEmpty ? "" : " on \(sockets)")
            return "| \(name) | \(what) | \(option.note) |"
        }
        lines += ["### Refused", "", "| option | error | |", "|---|---|---|"]
        for option in all {
            guard case .refused(let error) = option.treatment, !option.isLinuxs else { continue }
            lines.append(row(option, errorName(error)))
        }
        lines += ["", "### Taken and told back, without effect", "", "| option | level | |", "|---|---|---|"]
        for option in all {
            guard case .kept = option.treatment else { continue }
            lines.append(row(option, option.level.name))
        }
        return lines.joined(separator: "\n") + "\n"
    }

    package static func errorName(_ error: Int32) -> String {
        switch error {
        case EPERM: "EPERM"
        case ENOENT: "ENOENT"
        case EINVAL: "EINVAL"
        case ENOPROTOOPT: "ENOPROTOOPT"
        case EOPNOTSUPP: "EOPNOTSUPP"
        case EADDRNOTAVAIL: "EADDRNOTAVAIL"
        case EPROTO: "EPROTO"
        case EBADF: "EBADF"
        case EMSGSIZE: "EMSGSIZE"
        case ENXIO: "ENXIO"
        case ENOPKG: "ENOPKG"
        default: "errno \(error)"
        }
    }
}

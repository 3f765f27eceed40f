import Kernel
import PluginAPI
import Testing

/// One netlink message as a test sees it.
struct NetlinkMessage {
    var type: UInt16
    var flags: UInt16
    var sequence: UInt32
    var port: UInt32
    var payload: [UInt8]
    /// Multicast group it came by.
    var group: UInt32

    func number<Number: FixedWidthInteger>(_ offset: Int, as type: Number.Type = Number.self) -> Number {
        payload[...].number(at: offset)
    }

    /// The attributes behind `fixed` bytes, nil if they cannot be read.
    func attributes(after fixed: Int) -> [UInt16: [UInt8]] {
        var result: [UInt16: [UInt8]] = [:]
        var rest = payload.dropFirst((fixed + 3) & ~3)
        while rest.count >= 4 {
            let length = Int(rest.number(at: 0, as: UInt16.self))
            guard length >= 4, length <= rest.count else {
                Issue.record("an attribute of \(length) bytes where \(rest.count) are left")
                break
            }
            result[rest.number(at: 2)] = Array(rest.dropFirst(4).prefix(length - 4))
            rest = rest.dropFirst((length + 3) & ~3)
        }
        return result
    }

    var errno: Int32 { -number(0, as: Int32.self) }
}

/// A program that asks by netlink.
final class NetlinkClient {
    let socket: NetlinkSocket
    private var sequence: UInt32 = 0
    var mayChange = true

    static let create: UInt16 = 0x400
    static let exclusive: UInt16 = 0x200
    static let replace: UInt16 = 0x100
    static let dump: UInt16 = 0x300

    init(_ kernel: Kernel, family: Int32 = 0, pid: Int32 = 100) throws {
        socket = try kernel.netlink.create(family: family, type: 3, pid: pid)
    }

    deinit { socket.close() }

    /// Everything that is there to be read; checks that messages fill their datagrams.
    func receive(sourceLocation: SourceLocation = #_sourceLocation) -> [NetlinkMessage] {
        var result: [NetlinkMessage] = []
        while let datagram = socket.first {
            var rest = datagram.bytes[...]
            while !rest.isEmpty {
                guard let header = NetlinkHeader(rest), header.length >= 16, Int(header.length) <= rest.count else {
                    Issue.record("\(rest.count) bytes that are no message", sourceLocation: sourceLocation)
                    break
                }
                result.append(
                    NetlinkMessage(
                        type: header.type, flags: header.flags, sequence: header.sequence, port: header.port,
                        payload: Array(rest.dropFirst(16).prefix(Int(header.length) - 16)), group: datagram.group))
                rest = rest.dropFirst((Int(header.length) + 3) & ~3)
            }
            socket.removeFirst()
        }
        return result
    }

    static func message(
        _ type: UInt16, _ flags: UInt16, sequence: UInt32 = 1, _ body: (inout NetlinkWriter) -> Void
    ) -> [UInt8] {
        var writer = NetlinkWriter(NetlinkHeader(type: type, flags: flags | 1, sequence: sequence))
        body(&writer)
        return writer.finished()
    }

    /// Sends a request and takes what comes.
    func ask(_ type: UInt16, _ flags: UInt16, _ body: (inout NetlinkWriter) -> Void) -> [NetlinkMessage] {
        sequence += 1
        #expect(socket.send(Self.message(type, flags, sequence: sequence, body), mayChange: mayChange) == 0)
        return receive()
    }

    /// The errno that a request is answered with, 0 if it was done.
    func change(_ type: UInt16, _ flags: UInt16, _ body: (inout NetlinkWriter) -> Void) -> Int32? {
        ask(type, flags | 4, body).last { $0.type == 2 }?.errno
    }

    /// The messages of a dump, without its end, which must be there.
    func dump(
        _ type: UInt16, sourceLocation: SourceLocation = #_sourceLocation, _ body: (inout NetlinkWriter) -> Void
    ) -> [NetlinkMessage] {
        var all = ask(type, Self.dump, body)
        #expect(all.last?.type == 3 && all.last?.errno == 0, sourceLocation: sourceLocation)
        if all.last?.type == 3 { all.removeLast() }
        #expect(all.allSatisfy { $0.flags & 2 != 0 }, sourceLocation: sourceLocation)
        return all
    }
}

func ipv4Bytes(_ text: String) -> [UInt8] { text.split(separator: ".").compactMap { UInt8($0) } }

extension NetlinkWriter {
    /// struct ifinfomsg.
    mutating func link(_ index: UInt32 = 0, family: UInt8 = 0, flags: UInt32 = 0, change: UInt32 = 0) {
        append([family, 0, 0, 0])
        for number in [index, flags, change] { append(number) }
    }

    /// struct ifaddrmsg.
    mutating func address(_ index: UInt32, _ length: UInt8, family: UInt8 = 2) {
        append([family, length, 0, 0])
        append(index)
    }

    /// struct rtmsg.
    mutating func route(_ length: UInt8, family: UInt8 = 2, kind: UInt8 = 1, scope: UInt8 = 0, flags: UInt32 = 0) {
        append([family, length, 0, 0, 254, 3, scope, kind])
        append(flags)
    }

    /// struct ndmsg.
    mutating func neighbor(_ index: UInt32, state: UInt16 = 0, flags: UInt8 = 0, family: UInt8 = 2) {
        append([family, 0, 0, 0])
        append(index)
        append(state)
        append([flags, 0])
    }

    /// struct inet_diag_req_v2.
    mutating func sockets(
        _ protocolNumber: UInt8, extensions: UInt8 = 0, states: UInt32 = .max, family: UInt8 = 2,
        local: (String, UInt16)? = nil, remote: (String, UInt16)? = nil, cookie: UInt64 = .max
    ) {
        append([family, protocolNumber, extensions, 0])
        append(states)
        append((local?.1 ?? 0).bigEndian)
        append((remote?.1 ?? 0).bigEndian)
        for end in [local, remote] {
            append(end.map { ipv4Bytes($0.0) } ?? [0, 0, 0, 0])
            append([UInt8](repeating: 0, count: 12))
        }
        append(UInt32(0))
        append(cookie)
    }
}

import Glibc
import PluginAPI

/// Packet sockets that share what arrives: each frame goes to one of them (PACKET_FANOUT).
final class PacketFanout {
    private let identifier: UInt16
    private let mode: UInt8
    /// The upper bits of the type as the first member gave them.
    private let flags: UInt16
    private let type: Int32
    private let protocolNumber: UInt16
    private let ifindex: UInt32
    private unowned let table: LinkSockets
    private var members: [LinkSocket] = []
    private var turn = 0
    /// PACKET_FANOUT_CBPF.
    private var program: PacketFilter?

    /// PACKET_FANOUT_*.
    private enum Mode {
        static let hash: UInt8 = 0
        static let balance: UInt8 = 1
        static let processor: UInt8 = 2
        static let rollover: UInt8 = 3
        static let random: UInt8 = 4
        static let queue: UInt8 = 5
        static let program: UInt8 = 6
    }
    private static let rolloverFlag: UInt16 = 0x1000
    private static let uniqueFlag: UInt16 = 0x2000
    private static let ignoreOutgoingFlag: UInt16 = 0x4000
    private static let defragmentFlag: UInt16 = 0x8000
    private static let mostMembers = 256

    private init(_ identifier: UInt16, mode: UInt8, flags: UInt16, first: LinkSocket) {
        self.identifier = identifier
        self.mode = mode
        self.flags = flags
        type = first.type
        protocolNumber = first.protocolNumber
        ifindex = first.ifindex
        table = first.table
    }

    /// PACKET_FANOUT with the identifier in the lower half, type and flags in the upper.
    static func join(_ socket: LinkSocket, _ argument: UInt32) -> Int32 {
        let mode = UInt8(argument >> 16 & 0xff)
        let flags = UInt16(argument >> 16) & 0xff00
        guard mode <= Mode.program else { return EINVAL }
        if mode == Mode.rollover, flags & rolloverFlag != 0 { return EINVAL }
        guard socket.fanout == nil else { return EALREADY }
        guard socket.isListening else { return EINVAL }
        var identifier = UInt16(truncatingIfNeeded: argument)
        if flags & uniqueFlag != 0 {
            guard identifier == 0 else { return EINVAL }
            guard let free = (UInt16(1)...UInt16.max).first(where: { socket.table.fanouts[$0] == nil }) else { return ENOMEM }
            identifier = free
        }
        let kept = flags & ~uniqueFlag
        let group = socket.table.fanouts[identifier]
            ?? PacketFanout(identifier, mode: mode, flags: kept, first: socket)
        guard group.mode == mode, group.flags == kept, group.type == socket.type,
            group.protocolNumber == socket.protocolNumber, group.ifindex == socket.ifindex
        else { return EINVAL }
        guard group.members.count < mostMembers else { return ENOSPC }
        socket.table.fanouts[identifier] = group
        group.members.append(socket)
        socket.fanout = group
        return 0
    }

    func leave(_ socket: LinkSocket) {
        members.removeAll { $0 === socket }
        if members.isEmpty { table.fanouts[identifier] = nil }
    }

    /// What PACKET_FANOUT tells.
    func description(of socket: LinkSocket) -> UInt32 { UInt32(identifier) | UInt32(UInt16(mode) | flags) << 16 }

    var hasRollover: Bool { mode == Mode.rollover || flags & Self.rolloverFlag != 0 }

    /// PACKET_FANOUT_DATA: the instructions of a program that chooses.
    func setData(_ value: [UInt8], of socket: LinkSocket) -> Int32 {
        guard mode == Mode.program, let new = PacketFilter(bytes: value) else { return EINVAL }
        program = new
        return 0
    }

    func isFirst(_ socket: LinkSocket) -> Bool { members.first { $0.isListening } === socket }

    /// Who gets the frame. Nil: nobody.
    func choose(_ frame: LinkFrame) -> LinkSocket? {
        if frame.kind == 4, flags & Self.ignoreOutgoingFlag != 0 { return nil }
        let ready = members.filter(\.isListening)
        guard !ready.isEmpty else { return nil }
        var place: Int
        switch mode {
        case Mode.balance:
            place = turn % ready.count
            turn &+= 1
        case Mode.random: place = Int(table.randomWord()) % ready.count
        case Mode.program:
            let origin = ready[0].origin(frame)
            place = Int(program?.run(frame, from: origin, random: table.randomWord) ?? 0) % ready.count
        case Mode.hash: place = Int(Self.hash(frame)) % ready.count
        // There is one processor and one queue.
        default: place = 0
        }
        if hasRollover, ready[place].isFull, let other = ready.firstIndex(where: { !$0.isFull }) { place = other }
        return ready[place]
    }

    /// The same for both directions of a flow: addresses and ports in an order of their own.
    private static func hash(_ frame: LinkFrame) -> UInt32 {
        let start = frame.networkOffset
        guard frame.protocolNumber == 0x0800, frame.length >= start + 20 else { return 0 }
        func word(_ offset: Int) -> UInt32 {
            (0..<4).reduce(0) { $0 << 8 | UInt32(frame.bytes[offset + $1]) }
        }
        var hash = mix(word(start + 12) ^ word(start + 16)) &+ UInt32(frame.bytes[start + 9])
        let transport = start + Int(frame.bytes[start] & 0xf) * 4
        let isFragment = frame.bytes[start + 6] & 0x3f != 0 || frame.bytes[start + 7] != 0
        if !isFragment, [6, 17].contains(frame.bytes[start + 9]), frame.length >= transport + 4 {
            let ports = word(transport)
            hash &+= mix(ports >> 16 ^ ports & 0xffff)
        }
        return mix(hash)
    }

    private static func mix(_ value: UInt32) -> UInt32 {
        var value = (value ^ value >> 16) &* 0x7feb_352d
        value = (value ^ value >> 15) &* 0x846c_a68b
        return value ^ value >> 16
    }
}

extension LinkSocket {
    /// No room for another frame, as far as can be told without trying.
    var isFull: Bool { ring?.isFull ?? false }

    func joinFanout(_ argument: UInt32) -> Int32 { PacketFanout.join(self, argument) }
}

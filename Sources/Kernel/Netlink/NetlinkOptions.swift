import CLinux
import Glibc

/// Options of a netlink socket, of SOL_SOCKET and SOL_NETLINK.
struct NetlinkOptions {
    /// In force: what is set doubled, as Linux does.
    private(set) var receiveBuffer = 212_992
    private var sendBuffer = 212_992
    private var flags: Set<Int32> = []
    /// Options of SOL_SOCKET without effect here, told back.
    private var stored: [Int32: Int32] = [:]

    static let level: Int32 = 270
    // Options of SOL_NETLINK.
    fileprivate static let addMembership: Int32 = 1
    fileprivate static let dropMembership: Int32 = 2
    static let packetInfo: Int32 = 3
    private static let broadcastError: Int32 = 4
    private static let noBufferErrors: Int32 = 5
    private static let listenAll: Int32 = 8
    private static let listMemberships: Int32 = 9
    private static let capAcknowledge: Int32 = 10
    private static let extendedAcknowledge: Int32 = 11
    private static let strictCheck: Int32 = 12
    private static let switches: Set<Int32> = [
        packetInfo, broadcastError, noBufferErrors, listenAll, capAcknowledge, extendedAcknowledge, strictCheck,
    ]
    /// net.core.rmem_max and wmem_max, and what only root may ask for.
    private static let largestBuffer = 212_992
    private static let largestForced = 32 << 20

    var capsAcknowledgments: Bool { flags.contains(Self.capAcknowledge) }
    var extendsAcknowledgments: Bool { flags.contains(Self.extendedAcknowledge) }
    /// Dumps are checked and filtered by what stands in their requests.
    var isStrict: Bool { flags.contains(Self.strictCheck) }
    var toleratesLoss: Bool { flags.contains(Self.noBufferErrors) }

    fileprivate mutating func set(_ level: Int32, _ name: Int32, _ number: Int32, isRoot: Bool) -> Int32 {
        if level == Self.level {
            switch name {
            case Self.listenAll where !isRoot: return EPERM
            case _ where Self.switches.contains(name):
                if number != 0 { flags.insert(name) } else { flags.remove(name) }
                return 0
            default: return ENOPROTOOPT
            }
        }
        switch name {
        case SO_RCVBUF, SO_SNDBUF, Int32(SO_RCVBUFFORCE), Int32(SO_SNDBUFFORCE):
            let forced = name == Int32(SO_RCVBUFFORCE) || name == Int32(SO_SNDBUFFORCE)
            guard !forced || isRoot else { return EPERM }
            let wanted = min(max(Int(number), 0), forced ? Self.largestForced : Self.largestBuffer) * 2
            if name == SO_RCVBUF || name == Int32(SO_RCVBUFFORCE) {
                receiveBuffer = max(wanted, 2304)
            } else {
                sendBuffer = max(wanted, 4608)
            }
        case SO_PASSCRED, SO_REUSEADDR, SO_PRIORITY, SO_DONTROUTE, SO_KEEPALIVE, SO_BROADCAST, SO_TIMESTAMP, SO_MARK,
            Int32(SO_RXQ_OVFL):
            stored[name] = name == SO_PRIORITY || name == SO_MARK ? number : number != 0 ? 1 : 0
        case SO_TYPE, SO_ERROR, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN: return ENOPROTOOPT
        default: return ENOPROTOOPT
        }
        return 0
    }

    func get(_ socket: NetlinkSocket, _ level: Int32, _ name: Int32, capacity: Int) -> (error: Int32, value: [UInt8]) {
        func answer(_ number: Int32) -> (Int32, [UInt8]) {
            (0, Array(withUnsafeBytes(of: number) { Array($0) }.prefix(capacity)))
        }
        if level == Self.level {
            if name == Self.listMemberships {
                let words = [UInt32(truncatingIfNeeded: socket.groups), UInt32(truncatingIfNeeded: socket.groups >> 32)]
                return (0, Array(words.withUnsafeBytes { Array($0) }.prefix(capacity & ~3)))
            }
            guard Self.switches.contains(name) else { return (ENOPROTOOPT, []) }
            guard capacity >= 4 else { return (EINVAL, []) }
            return answer(flags.contains(name) ? 1 : 0)
        }
        guard level == SOL_SOCKET else { return (ENOPROTOOPT, []) }
        switch name {
        case SO_TYPE: return answer(socket.type)
        case SO_DOMAIN: return answer(AF_NETLINK)
        case SO_PROTOCOL: return answer(socket.family)
        case SO_ERROR: return answer(socket.takeError())
        case SO_ACCEPTCONN: return answer(0)
        case SO_RCVBUF: return answer(Int32(receiveBuffer))
        case SO_SNDBUF: return answer(Int32(sendBuffer))
        case SO_PASSCRED, SO_REUSEADDR, SO_PRIORITY, SO_DONTROUTE, SO_KEEPALIVE, SO_BROADCAST, SO_TIMESTAMP, SO_MARK,
            Int32(SO_RXQ_OVFL):
            return answer(stored[name] ?? 0)
        default: return (ENOPROTOOPT, [])
        }
    }
}

extension NetlinkSocket {
    /// setsockopt(2).
    package func setOption(_ level: Int32, _ name: Int32, _ value: [UInt8], isRoot: Bool) -> Int32 {
        guard level == SOL_SOCKET || level == NetlinkOptions.level else { return ENOPROTOOPT }
        guard value.count >= 4 else { return EINVAL }
        let number = value[...].number(at: 0, as: Int32.self)
        switch (level, name) {
        case (NetlinkOptions.level, NetlinkOptions.addMembership): return join(UInt32(bitPattern: number))
        case (NetlinkOptions.level, NetlinkOptions.dropMembership): return leave(UInt32(bitPattern: number))
        default: return options.set(level, name, number, isRoot: isRoot)
        }
    }

    /// getsockopt(2).
    package func getOption(_ level: Int32, _ name: Int32, capacity: Int) -> (error: Int32, value: [UInt8]) {
        options.get(self, level, name, capacity: capacity)
    }
}

import CLinux
import Glibc
import PluginAPI

/// Options of a packet socket, of SOL_SOCKET and SOL_PACKET.
struct LinkSocketOptions {
    /// TPACKET_V1 to TPACKET_V3, counted from 1.
    fileprivate(set) var version = 1
    /// PACKET_RESERVE.
    fileprivate(set) var reserve = 0
    /// Integers that are told back, by number: of SOL_PACKET, and of SOL_SOCKET.
    fileprivate var packet: [Int32: Int32] = [:] {
        didSet {
            ignoresOutgoing = packet[LinkOption.ignoreOutgoing] == 1
            copiesCutFrames = packet[LinkOption.copyThreshold, default: 0] != 0
        }
    }
    fileprivate var socket: [Int32: Int32] = [:]
    /// In force: what is set doubled, as Linux does.
    fileprivate(set) var receiveBuffer = 212_992
    fileprivate var sendBuffer = 212_992
    fileprivate var isFilterLocked = false

    // Looked at for each frame.
    private(set) var ignoresOutgoing = false
    /// PACKET_COPY_THRESH: what a slot cuts is queued whole beside the ring.
    private(set) var copiesCutFrames = false
    /// PACKET_LOSS: a transmit ring goes on after a frame that is not in order.
    var skipsBadFrames: Bool { packet[LinkOption.loss] == 1 }
    var transmitHasOffsets: Bool { packet[LinkOption.transmitHasOffset] == 1 }

    /// net.core.rmem_max and wmem_max, and what only root may ask for.
    fileprivate static let largestBuffer = 212_992
    fileprivate static let largestForced = 64 << 20
}

/// Options of SOL_PACKET (linux/if_packet.h).
enum LinkOption {
    static let level: Int32 = 263
    static let addMembership: Int32 = 1
    static let dropMembership: Int32 = 2
    static let receiveRing: Int32 = 5
    static let statistics: Int32 = 6
    static let copyThreshold: Int32 = 7
    static let auxiliaryData: Int32 = 8
    static let originalDevice: Int32 = 9
    static let version: Int32 = 10
    static let headerLength: Int32 = 11
    static let reserve: Int32 = 12
    static let transmitRing: Int32 = 13
    static let loss: Int32 = 14
    static let virtualHeader: Int32 = 15
    static let timestamp: Int32 = 17
    static let fanout: Int32 = 18
    static let transmitHasOffset: Int32 = 19
    static let bypassQueue: Int32 = 20
    static let rolloverStatistics: Int32 = 21
    static let fanoutData: Int32 = 22
    static let ignoreOutgoing: Int32 = 23
}

extension LinkSocket {
    private static func word(_ value: [UInt8]) -> Int32? {
        value.count >= 4 ? value.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) } : nil
    }

    private static func bytes<Value: BitwiseCopyable>(_ value: Value) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }

    private var hasRing: Bool { receiveRequest != nil || transmitRequest != nil }

    // MARK: setsockopt

    /// setsockopt(2). The value of SO_ATTACH_FILTER is the array of instructions itself.
    package func setOption(_ level: Int32, _ name: Int32, _ value: [UInt8], isRoot: Bool) -> Int32 {
        switch level {
        case SOL_SOCKET: return setSocketOption(name, value, isRoot: isRoot)
        case LinkOption.level: return setPacketOption(name, value)
        default: return ENOPROTOOPT
        }
    }

    private func setPacketOption(_ name: Int32, _ value: [UInt8]) -> Int32 {
        switch name {
        case LinkOption.addMembership, LinkOption.dropMembership:
            guard value.count >= 16 else { return EINVAL }
            return changeMembership(value, adds: name == LinkOption.addMembership)
        case LinkOption.receiveRing: return setRing(value, isTransmit: false)
        case LinkOption.transmitRing: return setRing(value, isTransmit: true)
        case LinkOption.fanoutData:
            guard let fanout else { return EINVAL }
            return fanout.setData(value, of: self)
        default: break
        }
        guard let option = SocketOption.find(LinkOption.level, name, on: .packet) else { return ENOPROTOOPT }
        switch option.treatment {
        case .refused(let error): return error
        case .told: return ENOPROTOOPT
        default: break
        }
        // As Linux has it: these take no more than an int.
        let isExact = name != LinkOption.auxiliaryData && name != LinkOption.originalDevice && name != LinkOption.ignoreOutgoing
        guard let number = Self.word(value), !isExact || value.count == 4 || name == LinkOption.fanout else { return EINVAL }
        switch name {
        case LinkOption.version:
            guard (0...2).contains(number) else { return EINVAL }
            guard !hasRing else { return EBUSY }
            options.version = Int(number) + 1
        case LinkOption.reserve:
            guard number >= 0 else { return EINVAL }
            guard !hasRing else { return EBUSY }
            options.reserve = Int(number)
        case LinkOption.loss:
            guard !hasRing else { return EBUSY }
            options.packet[name] = number != 0 ? 1 : 0
        case LinkOption.transmitHasOffset:
            if hasRing { return 0 }
            options.packet[name] = number != 0 ? 1 : 0
        case LinkOption.ignoreOutgoing:
            guard (0...1).contains(number) else { return EINVAL }
            options.packet[name] = number
            table.changed()
        case LinkOption.fanout: return joinFanout(UInt32(bitPattern: number))
        case LinkOption.timestamp, LinkOption.copyThreshold: options.packet[name] = number
        default: options.packet[name] = number != 0 ? 1 : 0
        }
        return 0
    }

    private func setSocketOption(_ name: Int32, _ value: [UInt8], isRoot: Bool) -> Int32 {
        if name == SO_ATTACH_FILTER { return attachFilter(value) }
        if name == Int32(SO_BINDTODEVICE) { return 0 }
        guard let number = Self.word(value) else { return EINVAL }
        switch name {
        case SO_DETACH_FILTER:
            guard !options.isFilterLocked else { return EPERM }
            guard filter != nil else { return ENOENT }
            filter = nil
        case SO_LOCK_FILTER:
            guard !options.isFilterLocked || number != 0 else { return EPERM }
            options.isFilterLocked = number != 0
        case SO_RCVBUF, SO_SNDBUF, Int32(SO_RCVBUFFORCE), Int32(SO_SNDBUFFORCE):
            let isForced = name == Int32(SO_RCVBUFFORCE) || name == Int32(SO_SNDBUFFORCE)
            guard !isForced || isRoot else { return EPERM }
            let most = isForced ? LinkSocketOptions.largestForced : LinkSocketOptions.largestBuffer
            let wanted = min(max(Int(number), 0), most) * 2
            if name == SO_RCVBUF || name == Int32(SO_RCVBUFFORCE) {
                options.receiveBuffer = max(wanted, 2304)
                onReceiveBuffer?(options.receiveBuffer)
            } else {
                options.sendBuffer = max(wanted, 4608)
            }
        case SO_TIMESTAMP, Int32(SO_TIMESTAMPNS):
            options.socket[SO_TIMESTAMP] = 0
            options.socket[Int32(SO_TIMESTAMPNS)] = 0
            options.socket[name] = number != 0 ? 1 : 0
        case SO_PRIORITY, SO_MARK: options.socket[name] = number
        case SO_REUSEADDR, SO_DONTROUTE, SO_KEEPALIVE, SO_BROADCAST, Int32(SO_RXQ_OVFL), SO_DEBUG, SO_OOBINLINE:
            options.socket[name] = number != 0 ? 1 : 0
        default:
            if let option = SocketOption.find(SOL_SOCKET, name, on: .raw), case .refused(let error) = option.treatment {
                return error
            }
            return ENOPROTOOPT
        }
        return 0
    }

    /// SO_ATTACH_FILTER.
    private func attachFilter(_ value: [UInt8]) -> Int32 {
        guard !options.isFilterLocked else { return EPERM }
        guard let new = PacketFilter(bytes: value) else { return EINVAL }
        filter = new
        return 0
    }

    private func changeMembership(_ value: [UInt8], adds: Bool) -> Int32 {
        let (index, type, length) = value.withUnsafeBytes {
            ($0.loadUnaligned(as: UInt32.self), $0.loadUnaligned(fromByteOffset: 4, as: UInt16.self),
                Int($0.loadUnaligned(fromByteOffset: 6, as: UInt16.self)))
        }
        guard length <= 8 else { return EINVAL }
        let wanted = LinkMembership(ifindex: index, type: type, address: Array(value[8..<8 + length]))
        let place = memberships.firstIndex { $0.isSame(wanted) }
        guard adds else {
            // As Linux: leaving what was never joined is no error.
            guard let place else { return 0 }
            memberships[place].count -= 1
            if memberships[place].count == 0 {
                memberships.remove(at: place)
                table.changePromiscuity(wanted, -1)
            }
            return 0
        }
        guard let interface = table.interface(index) else { return ENODEV }
        let most = Int(max(interface.raw.pointee.hardware_length, 6))
        let needsAddress = type == LinkMembership.multicast || type == LinkMembership.unicast
        guard length <= most, !needsAddress || length == most else { return EINVAL }
        if let place {
            memberships[place].count += 1
        } else {
            memberships.append(wanted)
            table.changePromiscuity(wanted, 1)
        }
        return 0
    }

    // MARK: Rings

    private func setRing(_ value: [UInt8], isTransmit: Bool) -> Int32 {
        let (error, request) = RingRequest.read(
            value, version: options.version, reserve: options.reserve, isTransmit: isTransmit)
        guard error == 0 else { return error }
        if request != nil, isTransmit ? transmitRequest != nil : receiveRequest != nil { return EBUSY }
        let before = (receiveRequest, transmitRequest)
        if isTransmit { transmitRequest = request } else { receiveRequest = request }
        do {
            try makeRings()
        } catch {
            (receiveRequest, transmitRequest) = before
            return ENOMEM
        }
        return 0
    }

    /// Both in one memory, the receive ring first, as they are mapped. Whoever has mapped the old ones keeps their memory.
    private func makeRings() throws {
        let total = (receiveRequest?.bytes ?? 0) + (transmitRequest?.bytes ?? 0)
        let memory = total > 0 ? try RingMemory(bytes: total) : nil
        ring?.close()
        ring = nil
        transmitRing = nil
        ringMemory = memory
        guard let memory else { return }
        if let receiveRequest {
            if receiveRequest.version == 3 {
                let new = BlockRing(receiveRequest, memory, at: 0, kernel: table.kernel)
                new.isLosing = { [unowned self] in lost > 0 }
                ring = new
            } else {
                ring = FrameRing(receiveRequest, memory, at: 0)
            }
            ring?.onFilled = { [unowned self] in onFilled?() }
        }
        if let transmitRequest {
            transmitRing = TransmitRing(transmitRequest, memory, at: receiveRequest?.bytes ?? 0)
        }
    }

    // MARK: getsockopt

    /// getsockopt(2).
    package func getOption(_ level: Int32, _ name: Int32, value: [UInt8], capacity: Int) -> (error: Int32, value: [UInt8]) {
        func answer(_ bytes: [UInt8]) -> (Int32, [UInt8]) { (0, Array(bytes.prefix(capacity))) }
        func answer(_ number: Int32) -> (Int32, [UInt8]) { answer(Self.bytes(number)) }
        switch level {
        case LinkOption.level:
            switch name {
            case LinkOption.statistics: return answer(takeStatistics())
            case LinkOption.headerLength:
                guard let wanted = Self.word(value) else { return (EINVAL, []) }
                guard (0...2).contains(wanted) else { return (EINVAL, []) }
                return answer(Int32(RingRequest.headerSize(Int(wanted) + 1)))
            case LinkOption.version: return answer(Int32(options.version - 1))
            case LinkOption.reserve: return answer(Int32(options.reserve))
            case LinkOption.fanout: return answer(Int32(bitPattern: fanout?.description(of: self) ?? 0))
            case LinkOption.rolloverStatistics:
                guard let fanout, fanout.hasRollover else { return (EINVAL, []) }
                return answer([UInt8](repeating: 0, count: 24))
            case LinkOption.auxiliaryData, LinkOption.originalDevice, LinkOption.loss, LinkOption.timestamp,
                LinkOption.copyThreshold,
                LinkOption.transmitHasOffset, LinkOption.bypassQueue, LinkOption.ignoreOutgoing, LinkOption.virtualHeader:
                return answer(options.packet[name] ?? 0)
            default: return (ENOPROTOOPT, [])
            }
        case SOL_SOCKET: break
        default: return (ENOPROTOOPT, [])
        }
        switch name {
        case SO_TYPE: return answer(type)
        case SO_DOMAIN: return answer(AF_PACKET)
        case SO_PROTOCOL: return answer(0)
        case SO_ERROR: return answer(takeError())
        case SO_ACCEPTCONN: return answer(0)
        case SO_RCVBUF: return answer(Int32(options.receiveBuffer))
        case SO_SNDBUF: return answer(Int32(options.sendBuffer))
        case SO_LOCK_FILTER: return answer(options.isFilterLocked ? 1 : 0)
        case SO_ATTACH_FILTER:
            // SO_GET_FILTER: the instructions; `capacity` is in bytes here.
            let program = filter?.bytes ?? []
            return capacity == 0 || capacity >= program.count ? (0, program) : (EINVAL, [])
        case Int32(SO_BPF_EXTENSIONS): return answer(64)
        case Int32(SO_BINDTODEVICE): return (0, [])
        case SO_TIMESTAMP, Int32(SO_TIMESTAMPNS), SO_PRIORITY, SO_MARK, SO_REUSEADDR, SO_DONTROUTE, SO_KEEPALIVE, SO_BROADCAST,
            Int32(SO_RXQ_OVFL), SO_DEBUG, SO_OOBINLINE:
            return answer(options.socket[name] ?? 0)
        default: return (ENOPROTOOPT, [])
        }
    }

    /// PACKET_STATISTICS: frames seen, those lost of them, and how often a ring of blocks froze, since they were asked for.
    private func takeStatistics() -> [UInt8] {
        var numbers = [seen, lost]
        if options.version == 3 {
            numbers.append((ring as? BlockRing)?.freezes ?? 0)
            (ring as? BlockRing)?.freezes = 0
        }
        seen = 0
        lost = 0
        return numbers.flatMap { Self.bytes($0) }
    }
}

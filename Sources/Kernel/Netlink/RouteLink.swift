import CLinux
import Glibc
import PluginAPI

// RTM_*LINK: interfaces (linux/if_link.h). They are made when the host starts: clients see them, set them up and down, and
// change their MTU.

/// IFLA_*.
private enum Attribute {
    static let address: UInt16 = 1
    static let broadcast: UInt16 = 2
    static let name: UInt16 = 3
    static let mtu: UInt16 = 4
    static let queueDiscipline: UInt16 = 6
    static let stats: UInt16 = 7
    static let master: UInt16 = 10
    static let queueLength: UInt16 = 13
    static let map: UInt16 = 14
    static let operationalState: UInt16 = 16
    static let linkMode: UInt16 = 17
    static let linkInfo: UInt16 = 18
    static let netnsPid: UInt16 = 19
    static let stats64: UInt16 = 23
    static let afSpec: UInt16 = 26
    static let group: UInt16 = 27
    static let netnsDescriptor: UInt16 = 28
    static let extendedMask: UInt16 = 29
    static let promiscuity: UInt16 = 30
    static let sendQueues: UInt16 = 31
    static let receiveQueues: UInt16 = 32
    static let carrier: UInt16 = 33
    static let minimumMTU: UInt16 = 50
    static let maximumMTU: UInt16 = 51
    static let alternativeName: UInt16 = 53
}

extension Netlink {
    /// struct ifinfomsg.
    private static let fixedSize = 16
    private static let lowerUp: UInt32 = 0x10000
    /// Flags that a program may change on Linux and not here: IFF_DEBUG, NOARP, PROMISC, ALLMULTI, MULTICAST.
    private static let settableElsewhere: UInt32 = 0x4 | 0x80 | 0x100 | 0x200 | 0x1000
    /// RTEXT_FILTER_SKIP_STATS.
    private static let withoutStatistics: UInt32 = 8

    static func flags(_ interface: Interface) -> UInt32 {
        var flags = interface.raw.pointee.flags
        // An interface that is down does not run, and has no carrier.
        let running = UInt32(ALPS_IFF_RUNNING)
        if interface.isUp, flags & running != 0 { flags |= lowerUp } else { flags &= ~running }
        return flags
    }

    /// What follows the header of RTM_NEWLINK.
    static func write(_ interface: Interface, to writer: inout NetlinkWriter, statistics: Bool = true) {
        let raw = interface.raw.pointee
        let flags = flags(interface)
        writer.append([UInt8(0), 0])
        writer.append(UInt16(interface.isLoopback ? ARPHRD_LOOPBACK : ARPHRD_ETHER))
        writer.append(raw.index)
        writer.append(flags)
        writer.append(UInt32(0))
        writer.attribute(Attribute.name, text: interface.name)
        writer.attribute(Attribute.queueLength, UInt32(1000))
        // IF_OPER_UNKNOWN of lo0, as Linux has it, IF_OPER_UP, IF_OPER_DOWN.
        let state: UInt8 = !interface.isUp ? 2 : interface.isLoopback ? 0 : 6
        writer.attribute(Attribute.operationalState, state)
        writer.attribute(Attribute.linkMode, UInt8(0))
        writer.attribute(Attribute.mtu, raw.mtu)
        writer.attribute(Attribute.minimumMTU, UInt32(68))
        writer.attribute(Attribute.maximumMTU, UInt32(65535))
        writer.attribute(Attribute.group, UInt32(0))
        writer.attribute(Attribute.promiscuity, UInt32(raw.flags & UInt32(ALPS_IFF_PROMISC) != 0 ? 1 : 0))
        writer.attribute(Attribute.sendQueues, UInt32(1))
        writer.attribute(Attribute.receiveQueues, UInt32(1))
        writer.attribute(Attribute.carrier, UInt8(flags & lowerUp != 0 ? 1 : 0))
        writer.attribute(Attribute.queueDiscipline, text: "noqueue")
        writer.attribute(Attribute.map, [UInt8](repeating: 0, count: 32))
        let hardware = withUnsafeBytes(of: raw.hardware) { Array($0.prefix(6)) }
        writer.attribute(Attribute.address, hardware)
        writer.attribute(Attribute.broadcast, [UInt8](repeating: interface.isLoopback ? 0 : 0xff, count: 6))
        guard statistics else { return }
        let counts = counts(interface)
        writer.attribute(Attribute.stats64, (counts + [0]).flatMap { withUnsafeBytes(of: $0) { Array($0) } })
        writer.attribute(
            Attribute.stats,
            counts.flatMap { withUnsafeBytes(of: UInt32(truncatingIfNeeded: $0)) { Array($0) } })
    }

    /// The fields of struct rtnl_link_stats.
    private static func counts(_ interface: Interface) -> [UInt64] {
        [
            interface.packetsIn, interface.packetsOut, interface.bytesIn, interface.bytesOut, interface.errorsIn,
            interface.errorsOut, interface.drops,
        ] + [UInt64](repeating: 0, count: 17)
    }

    private func message(_ request: NetlinkRequest, _ interface: Interface, _ mask: UInt32) -> [UInt8] {
        var writer = request.reply(Subject.link.new)
        Self.write(interface, to: &writer, statistics: mask & Self.withoutStatistics == 0)
        return writer.finished()
    }

    func dumpLinks(_ request: NetlinkRequest) -> NetlinkSource {
        do {
            let isStrict = request.socket.options.isStrict
            // Older programs ask with struct rtgenmsg alone.
            if isStrict { try request.require(Self.fixedSize) }
            let family = request.payload.first ?? 0
            let hasFixed = request.payload.count >= Self.fixedSize
            let attributes = hasFixed ? try NetlinkAttributes(request.payload, after: Self.fixedSize) : nil
            if isStrict {
                guard request.payload.dropFirst().prefix(Self.fixedSize - 1).allSatisfy({ $0 == 0 }) else {
                    throw NetlinkError(EINVAL, "Invalid values in header for link dump request")
                }
                let known: Set<UInt16> = [Attribute.master, Attribute.linkInfo, Attribute.extendedMask]
                guard attributes?.types.allSatisfy(known.contains) != false else {
                    throw NetlinkError(EINVAL, "Unsupported attribute in link dump request")
                }
            }
            guard family == AF_UNSPEC || family == AF_INET || family == AF_PACKET else { return NetlinkSource([]) }
            // No interface belongs to another one, and none is of a kind that can be made.
            let isFiltered = attributes?.has(Attribute.master) == true || attributes?.has(Attribute.linkInfo) == true
            let mask = try attributes?.number(Attribute.extendedMask, as: UInt32.self) ?? 0
            let messages = isFiltered ? [] : kernel.interfaces.all.map { message(request, $0, mask) }
            return NetlinkSource(messages, isFiltered: isFiltered)
        } catch { return NetlinkSource(failing: error as? NetlinkError ?? NetlinkError(EINVAL)) }
    }

    func getLink(_ request: NetlinkRequest) throws -> NetlinkOutcome {
        let (interface, attributes) = try link(request)
        guard let interface else { throw NetlinkError(EINVAL, "neither index nor name of an interface") }
        let mask = try attributes.number(Attribute.extendedMask, as: UInt32.self) ?? 0
        request.socket.deliver(message(request, interface, mask))
        return .done
    }

    /// The interface that a request names by index or name: ENODEV if there is none, nil if it names none.
    private func link(_ request: NetlinkRequest) throws -> (Interface?, NetlinkAttributes) {
        try request.require(Self.fixedSize)
        let attributes = try NetlinkAttributes(request.payload, after: Self.fixedSize)
        let index = request.payload.number(at: 4, as: Int32.self)
        guard index >= 0 else { throw NetlinkError(EINVAL, "an interface's index is not negative") }
        if index > 0 {
            guard let found = kernel.interfaces.interface(UInt32(index)) else { throw NetlinkError(ENODEV) }
            return (found, attributes)
        }
        let name =
            try attributes.text(Attribute.name, longest: 15) ?? attributes.text(Attribute.alternativeName, longest: 127)
        guard let name, !name.isEmpty else { return (nil, attributes) }
        guard let found = kernel.interfaces.find(name) else { throw NetlinkError(ENODEV) }
        return (found, attributes)
    }

    func changeLink(_ request: NetlinkRequest) throws {
        let found: (interface: Interface?, attributes: NetlinkAttributes)
        do { found = try link(request) } catch let error as NetlinkError where error.code == ENODEV {
            throw request.has(NetlinkHeader.create)
                ? NetlinkError(EOPNOTSUPP, "interfaces are made when the host starts") : error
        }
        guard let interface = found.interface else {
            throw request.has(NetlinkHeader.create)
                ? NetlinkError(EOPNOTSUPP, "interfaces are made when the host starts") : NetlinkError(ENODEV)
        }
        if request.has(NetlinkHeader.exclusive) { throw NetlinkError(EEXIST) }
        try checkChanges(interface, request, found.attributes)
        if let mtu = try found.attributes.number(Attribute.mtu, as: UInt32.self), mtu != interface.raw.pointee.mtu {
            let status = kernel.interfaces.setMTU(interface, Int(mtu))
            guard status == 0 else {
                throw NetlinkError(status, mtu < 68 ? "mtu less than device minimum" : "mtu greater than device maximum")
            }
        }
        // ifi_change: a mask, where 0 stands for all (do_setlink).
        let flags = request.payload.number(at: 8, as: UInt32.self)
        let mask = request.payload.number(at: 12, as: UInt32.self)
        if mask & UInt32(ALPS_IFF_UP) != 0 || mask == 0 && flags != 0 {
            kernel.interfaces.setUp(interface, flags & UInt32(ALPS_IFF_UP) != 0)
        }
    }

    /// What cannot be changed is refused before anything is.
    private func checkChanges(_ interface: Interface, _ request: NetlinkRequest, _ attributes: NetlinkAttributes) throws {
        let flags = request.payload.number(at: 8, as: UInt32.self)
        let mask = request.payload.number(at: 12, as: UInt32.self)
        guard (flags ^ interface.raw.pointee.flags) & mask & Self.settableElsewhere == 0 else {
            throw NetlinkError(EOPNOTSUPP, "of the flags only up can be changed")
        }
        for type in attributes.types {
            switch type {
            case Attribute.mtu, Attribute.extendedMask: continue
            case Attribute.name where try attributes.text(type, longest: 15) == interface.name: continue
            case Attribute.queueLength where try attributes.number(type, as: UInt32.self) == 1000: continue
            case Attribute.group where try attributes.number(type, as: UInt32.self) == 0: continue
            case Attribute.master where try attributes.number(type, as: UInt32.self) == 0: continue
            case Attribute.address where attributes[type].map(Array.init) == interface.hardware?.octets: continue
            default: throw NetlinkError(EOPNOTSUPP, "up, down and mtu are what can be changed of an interface")
            }
        }
    }

    func removeLink(_ request: NetlinkRequest) throws {
        guard try link(request).0 != nil else { throw NetlinkError(EINVAL, "neither index nor name of an interface") }
        throw NetlinkError(EOPNOTSUPP, "interfaces live as long as the host")
    }
}

extension HardwareAddress {
    fileprivate var octets: [UInt8] { withUnsafeBytes(of: bytes) { Array($0.prefix(6)) } }
}

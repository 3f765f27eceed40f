import Glibc
import PluginAPI

// RTM_*ADDR: addresses of interfaces (linux/if_addr.h).

/// IFA_*.
private enum Attribute {
    static let address: UInt16 = 1
    static let local: UInt16 = 2
    static let label: UInt16 = 3
    static let broadcast: UInt16 = 4
    static let cacheInformation: UInt16 = 6
    static let flags: UInt16 = 8
    static let routePriority: UInt16 = 9
    static let origin: UInt16 = 11
}

/// IFA_F_*.
private enum Flag {
    static let secondary: UInt32 = 0x01
    static let duplicate: UInt32 = 0x08
    static let tentative: UInt32 = 0x40
    static let permanent: UInt32 = 0x80
    static let noPrefixRoute: UInt32 = 0x200
}

extension Netlink {
    /// struct ifaddrmsg.
    private static let fixedSize = 8
    private static let forever = UInt32.max

    /// What follows the header of RTM_NEWADDR.
    static func write(_ address: alps_ifaddr, of interface: Interface, to writer: inout NetlinkWriter) {
        var flags = Flag.permanent
        if address.flags & UInt32(ALPS_IFA_TENTATIVE) != 0 { flags |= Flag.tentative }
        if address.flags & UInt32(ALPS_IFA_DUPLICATE) != 0 { flags |= Flag.duplicate }
        // The first address of a network is the one that is used to reach it.
        let first = interface.addresses.first { $0.prefix_length == address.prefix_length && isSameNetwork($0, address) }
        if let first, NetworkAddress(address: first.addr) != NetworkAddress(address: address.addr) { flags |= Flag.secondary }
        writer.append([UInt8(AF_INET), address.prefix_length, UInt8(truncatingIfNeeded: flags)])
        writer.append(interface.isLoopback ? RouteScope.host : RouteScope.universe)
        writer.append(interface.raw.pointee.index)
        writer.attribute(Attribute.address, address.addr.ipv4)
        writer.attribute(Attribute.local, address.addr.ipv4)
        if !NetworkAddress(address: address.broadcast).isZero {
            writer.attribute(Attribute.broadcast, address.broadcast.ipv4)
        }
        writer.attribute(Attribute.label, text: interface.name)
        writer.attribute(Attribute.flags, flags)
        writer.attribute(Attribute.cacheInformation) {
            $0.append(forever)
            $0.append(forever)
            $0.append(UInt64(0))
        }
    }

    private static func isSameNetwork(_ a: alps_ifaddr, _ b: alps_ifaddr) -> Bool {
        let mask = a.prefix_length == 0 ? 0 : UInt32.max << UInt32(32 - min(a.prefix_length, 32))
        return (a.addr.word ^ b.addr.word) & mask == 0
    }

    func dumpAddresses(_ request: NetlinkRequest) -> NetlinkSource {
        do {
            var index: UInt32 = 0
            if request.socket.options.isStrict {
                try request.require(Self.fixedSize)
                guard request.payload.dropFirst().prefix(3).allSatisfy({ $0 == 0 }) else {
                    throw NetlinkError(EINVAL, "Invalid values in header for address dump request")
                }
                guard try NetlinkAttributes(request.payload, after: Self.fixedSize).types.isEmpty else {
                    throw NetlinkError(EINVAL, "Unsupported attribute in dump request")
                }
                index = request.payload.number(at: 4)
                guard index == 0 || kernel.interfaces.interface(index) != nil else { throw NetlinkError(ENODEV) }
            }
            let family = request.payload.first ?? 0
            guard family == AF_UNSPEC || family == AF_INET else { return NetlinkSource([]) }
            let messages = kernel.interfaces.all.filter { index == 0 || $0.raw.pointee.index == index }.flatMap { interface in
                interface.addresses.map { address in
                    var writer = request.reply(Subject.address.new)
                    Self.write(address, of: interface, to: &writer)
                    return writer.finished()
                }
            }
            return NetlinkSource(messages, isFiltered: index != 0)
        } catch { return NetlinkSource(failing: error as? NetlinkError ?? NetlinkError(EINVAL)) }
    }

    /// Interface, address and prefix length of a request.
    private func address(_ request: NetlinkRequest) throws -> (Interface, NetlinkAttributes, prefixLength: Int) {
        try request.require(Self.fixedSize)
        let attributes = try NetlinkAttributes(request.payload, after: Self.fixedSize)
        guard request.payload.first == UInt8(AF_INET) else { throw NetlinkError(EAFNOSUPPORT) }
        guard let interface = kernel.interfaces.interface(request.payload.number(at: 4)) else { throw NetlinkError(ENODEV) }
        return (interface, attributes, Int(request.payload.number(at: 1, as: UInt8.self)))
    }

    func addAddress(_ request: NetlinkRequest) throws {
        let (interface, attributes, prefixLength) = try address(request)
        guard prefixLength <= 32 else { throw NetlinkError(EINVAL, "ipv4: Invalid prefix length") }
        guard let local = try attributes.address(Attribute.local) else {
            throw NetlinkError(EINVAL, "ipv4: Local address is not supplied")
        }
        // As Linux: nothing is added, and that is no mistake.
        guard local.word != 0 else { return }
        if let peer = try attributes.address(Attribute.address), peer.word != local.word {
            throw NetlinkError(EOPNOTSUPP, "no interface is point-to-point")
        }
        let flags = try attributes.number(Attribute.flags, as: UInt32.self) ?? 0
        guard flags & Flag.noPrefixRoute == 0, !attributes.has(Attribute.routePriority) else {
            throw NetlinkError(EOPNOTSUPP, "an address brings the route to its network")
        }
        if let label = try attributes.text(Attribute.label, longest: 15), label != interface.name {
            throw NetlinkError(EOPNOTSUPP, "a label is the interface's name")
        }
        // struct ifa_cacheinfo: preferred and valid seconds.
        if let times = attributes[Attribute.cacheInformation] {
            guard times.count >= 8 else { throw NetlinkError(ERANGE, "ifa_cacheinfo is too short") }
            guard times.number(at: 4, as: UInt32.self) != 0 else {
                throw NetlinkError(EINVAL, "ipv4: address lifetime invalid")
            }
            guard times.number(at: 4, as: UInt32.self) == Self.forever else {
                throw NetlinkError(EOPNOTSUPP, "addresses live until they are deleted")
            }
        }
        if let broadcast = try attributes.address(Attribute.broadcast), broadcast.word != 0, prefixLength < 31 {
            guard broadcast.word == local.word | UInt32.max >> UInt32(prefixLength) else {
                throw NetlinkError(EOPNOTSUPP, "the broadcast address follows from the prefix")
            }
        }
        if let known = interface.addresses.first(where: { $0.addr.word == local.word }) {
            guard request.has(NetlinkHeader.replace), !request.has(NetlinkHeader.exclusive),
                Int(known.prefix_length) == prefixLength
            else { throw NetlinkError(EEXIST, "ipv4: Address already assigned") }
            return
        }
        do { try kernel.interfaces.addAddress(interface, local, prefixLength: prefixLength) } catch let error as KernelError {
            throw NetlinkError(error.code, error.message)
        }
    }

    func deleteAddress(_ request: NetlinkRequest) throws {
        let (interface, attributes, prefixLength) = try address(request)
        let local = try attributes.address(Attribute.local)
        let network = try attributes.address(Attribute.address)
        let label = try attributes.text(Attribute.label, longest: 15)
        let found = interface.addresses.first {
            (local == nil || local?.word == $0.addr.word) && (label == nil || label == interface.name)
                // Without IFA_LOCAL the first address of the network will do.
                && (network == nil
                    || Int($0.prefix_length) == prefixLength && (local != nil || network?.word == $0.addr.word))
        }
        guard let found else { throw NetlinkError(EADDRNOTAVAIL, "ipv4: Address not found") }
        let status = kernel.interfaces.deleteAddress(interface, found.addr)
        guard status == 0 else { throw NetlinkError(status) }
    }
}

extension NetlinkAttributes {
    /// An IPv4 address. One that is cut short is ERANGE.
    func address(_ type: UInt16) throws -> alps_addr? {
        guard let value = self[type] else { return nil }
        guard value.count >= 4 else { throw NetlinkError(ERANGE, "attribute \(type) is too short for an address") }
        var address = alps_addr()
        withUnsafeMutableBytes(of: &address) { $0.copyBytes(from: value.prefix(4)) }
        return address
    }
}

extension alps_addr {
    /// The four bytes of an IPv4 address.
    var ipv4: [UInt8] { withUnsafeBytes(of: self) { Array($0.prefix(4)) } }
    /// The same as a number.
    var word: UInt32 { withUnsafeBytes(of: self) { UInt32(bigEndian: $0.loadUnaligned(as: UInt32.self)) } }
}

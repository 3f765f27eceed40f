import PluginAPI
import PluginKit

/// Socket options of level IPPROTO_IP, with Linux's numbers and layouts.
enum Option {
    static var tos: Int32 { 1 }
    static var ttl: Int32 { 2 }
    static var headerIncluded: Int32 { 3 }
    static var options: Int32 { 4 }
    static var receiveOptions: Int32 { 6 }
    static var returnOptions: Int32 { 7 }
    static var packetInfo: Int32 { 8 }
    static var mtuDiscover: Int32 { 10 }
    static var receiveError: Int32 { 11 }
    static var receiveTTL: Int32 { 12 }
    static var receiveTOS: Int32 { 13 }
    static var mtu: Int32 { 14 }
    static var freebind: Int32 { 15 }
    static var transparent: Int32 { 19 }
    static var receiveOriginalDestination: Int32 { 20 }
    static var bindWithoutPort: Int32 { 24 }
    static var receiveFragmentSize: Int32 { 25 }
    static var multicastInterface: Int32 { 32 }
    static var multicastTTL: Int32 { 33 }
    static var multicastLoop: Int32 { 34 }
    static var join: Int32 { 35 }
    static var leave: Int32 { 36 }
    static var joinGroup: Int32 { 42 }
    static var leaveGroup: Int32 { 45 }
    static var multicastAll: Int32 { 49 }
    /// SOL_RAW's ICMP_FILTER, which has to live beside the others. Not a number that programs use at this level.
    static var icmpFilter: Int32 { 0x4000_0001 }

    /// Those that are kept and told, for whoever makes control messages out of packets.
    static func isStored(_ name: Int32) -> Bool {
        switch name {
        case receiveOptions, returnOptions, packetInfo, receiveError, receiveTTL, receiveTOS,
            receiveOriginalDestination,
            bindWithoutPort, receiveFragmentSize:
            return true
        default: return false
        }
    }
}

/// Linux's values of IP_MTU_DISCOVER.
private enum Discovery {
    static var dont: Int32 { 0 }
    static var want: Int32 { 1 }
    static var always: Int32 { 2 }
    static var probe: Int32 { 3 }
    static var interface: Int32 { 4 }
    static var omit: Int32 { 5 }
}

func networkControlOutput(
    _ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB, _ set: Int32, _ level: Int32, _ name: Int32,
    _ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>
) -> Int32 {
    guard level == 0 else { return ALPS_ENOPROTOOPT }
    let instance = context.assumingMemoryBound(to: Instance.self)
    return set != 0
        ? instance.setOption(netpcb, name, value, Int(length.pointee)) : instance.getOption(netpcb, name, value, length)
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// An int, or the single byte that BSD programs pass.
    private func integer(_ value: UnsafeMutableRawPointer, _ length: Int) -> Int32? {
        if length >= 4 { return value.loadUnaligned(as: Int32.self) }
        return length >= 1 ? Int32(value.load(as: UInt8.self)) : nil
    }

    fileprivate func setOption(
        _ netpcb: NetworkPCB, _ name: Int32, _ value: UnsafeMutableRawPointer, _ length: Int
    ) -> Int32 {
        switch name {
        case Option.options: return setOptions(netpcb, value.assumingMemoryBound(to: UInt8.self), length)
        case Option.join, Option.leave: return setMembership(netpcb, name == Option.join, value, length)
        case Option.joinGroup, Option.leaveGroup: return setGroup(netpcb, name == Option.joinGroup, value, length)
        case Option.multicastInterface: return setMulticastInterface(netpcb, value, length)
        default: break
        }
        guard let number = integer(value, length) else { return ALPS_EINVAL }
        switch name {
        case Option.tos:
            // The ECN field of a stream is the transport's.
            let kept: UInt8 = netpcb.pointee.protocol == 6 ? 3 : 0
            netpcb.pointee.tos = UInt8(truncatingIfNeeded: number) & ~kept | netpcb.pointee.tos & kept
        case Option.ttl:
            guard number == -1 || (1...255).contains(number) else { return ALPS_EINVAL }
            netpcb.pointee.ttl = number == -1 ? 0 : UInt8(truncatingIfNeeded: number)
        case Option.headerIncluded: setFlag(netpcb, ALPS_NETPCB_HDRINCL, number != 0)
        case Option.freebind: setFlag(netpcb, ALPS_NETPCB_FREEBIND, number != 0)
        case Option.transparent: return number == 0 ? 0 : ALPS_EPERM
        case Option.multicastTTL:
            guard (-1...255).contains(number) else { return ALPS_EINVAL }
            netpcb.pointee.multicast_ttl = number == -1 ? 1 : UInt8(truncatingIfNeeded: number)
        case Option.multicastLoop: netpcb.pointee.multicast_loop = number != 0 ? 1 : 0
        case Option.mtuDiscover: return setDiscovery(netpcb, number)
        case Option.icmpFilter:
            guard let options = options(netpcb) else { return ALPS_ENOBUFS }
            options.pointee.icmpFilter = UInt32(bitPattern: number)
        case Option.multicastAll:
            guard let options = options(netpcb) else { return ALPS_ENOBUFS }
            options.pointee.multicastAll = number != 0
        default:
            guard Option.isStored(name) else { return ALPS_ENOPROTOOPT }
            return store(netpcb, name, number != 0)
        }
        return 0
    }

    private func setFlag(_ netpcb: NetworkPCB, _ bit: UInt32, _ on: Bool) {
        if on { netpcb.pointee.flags |= UInt8(bit) } else { netpcb.pointee.flags &= ~UInt8(bit) }
    }

    private func store(_ netpcb: NetworkPCB, _ name: Int32, _ on: Bool) -> Int32 {
        guard let options = options(netpcb) else { return ALPS_ENOBUFS }
        let bit = UInt64(1) << UInt64(name)
        if on { options.pointee.flags |= bit } else { options.pointee.flags &= ~bit }
        // Transports read these two from the socket.
        if let socket = options.pointee.socket {
            let mirror: UInt32 =
                name == Option.receiveError ? ALPS_SO_RECVERR : name == Option.packetInfo ? ALPS_SO_PKTINFO : 0
            if on { socket.pointee.options |= mirror } else { socket.pointee.options &= ~mirror }
        }
        return 0
    }

    private func setDiscovery(_ netpcb: NetworkPCB, _ number: Int32) -> Int32 {
        guard (Discovery.dont...Discovery.omit).contains(number) else { return ALPS_EINVAL }
        guard let options = options(netpcb) else { return ALPS_ENOBUFS }
        options.pointee.mtuDiscover = UInt8(truncatingIfNeeded: number)
        options.pointee.hasMTUDiscover = true
        let isStream = netpcb.pointee.protocol == 6
        setFlag(
            netpcb, ALPS_NETPCB_DF,
            number == Discovery.always || number == Discovery.probe || number == Discovery.want && isStream)
        setFlag(netpcb, ALPS_NETPCB_PMTU_PROBE, number == Discovery.probe || number == Discovery.interface)
        netpcb.pointee.route.size = 0
        return 0
    }

    /// What is in force: streams discover the path MTU unless told otherwise, datagrams do not.
    private func discovery(_ netpcb: NetworkPCB) -> Int32 {
        if let options = existingOptions(netpcb), options.pointee.hasMTUDiscover {
            return Int32(options.pointee.mtuDiscover)
        }
        return netpcb.pointee.flags & UInt8(ALPS_NETPCB_DF) != 0 ? Discovery.want : Discovery.dont
    }

    fileprivate func getOption(
        _ netpcb: NetworkPCB, _ name: Int32, _ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>
    ) -> Int32 {
        let options = existingOptions(netpcb)
        func has(_ bit: UInt32) -> Int32 { netpcb.pointee.flags & UInt8(bit) != 0 ? 1 : 0 }
        var number: Int32 = 0
        switch name {
        case Option.options:
            let count = min(UInt32(options?.pointee.length ?? 0), length.pointee)
            if let options {
                withUnsafeBytes(of: options.pointee.bytes) { bytes in
                    for index in 0..<Int(count) {
                        value.storeBytes(of: bytes[index], toByteOffset: index, as: UInt8.self)
                    }
                }
            }
            length.pointee = count
            return 0
        case Option.multicastInterface:
            guard length.pointee >= 4 else { return ALPS_EINVAL }
            let index = netpcb.pointee.multicast_ifindex
            value.storeBytes(of: index == 0 ? 0 : sourceAddress(index, toward: 0), as: UInt32.self)
            length.pointee = 4
            return 0
        case Option.tos: number = Int32(netpcb.pointee.tos)
        case Option.ttl:
            number = netpcb.pointee.ttl == 0 ? Int32(truncatingIfNeeded: setting(.ttl)) : Int32(netpcb.pointee.ttl)
        case Option.headerIncluded: number = has(ALPS_NETPCB_HDRINCL)
        case Option.freebind: number = has(ALPS_NETPCB_FREEBIND)
        case Option.transparent: number = 0
        case Option.multicastTTL: number = Int32(netpcb.pointee.multicast_ttl)
        case Option.multicastLoop: number = Int32(netpcb.pointee.multicast_loop)
        case Option.mtuDiscover: number = discovery(netpcb)
        case Option.multicastAll: number = options?.pointee.multicastAll == false ? 0 : 1
        case Option.icmpFilter: number = Int32(bitPattern: options?.pointee.icmpFilter ?? 0)
        case Option.mtu:
            guard ipv4(netpcb.pointee.remote) != 0 else { return ALPS_ENOTCONN }
            number = Int32(truncatingIfNeeded: networkPathMTU(UnsafeMutableRawPointer(self), netpcb))
        default:
            guard Option.isStored(name) else { return ALPS_ENOPROTOOPT }
            number = (options?.pointee.flags ?? 0) & 1 << UInt64(name) != 0 ? 1 : 0
        }
        guard length.pointee >= 1 else { return ALPS_EINVAL }
        if length.pointee < 4 {
            value.storeBytes(of: UInt8(truncatingIfNeeded: number), as: UInt8.self)
            length.pointee = 1
        } else {
            value.storeBytes(of: number, as: Int32.self)
            length.pointee = 4
        }
        return 0
    }

    // MARK: Groups

    /// struct ip_mreq {group, interface address} or ip_mreqn {group, address, index}.
    private func setMembership(
        _ netpcb: NetworkPCB, _ joins: Bool, _ value: UnsafeMutableRawPointer, _ length: Int
    ) -> Int32 {
        guard length >= 8 else { return ALPS_EINVAL }
        let group = value.loadUnaligned(as: UInt32.self)
        let address = value.loadUnaligned(fromByteOffset: 4, as: UInt32.self)
        guard AddressClass.isMulticast(group) else { return joins ? ALPS_EINVAL : ALPS_EADDRNOTAVAIL }
        var index: UInt32 = 0
        if length >= 12 { index = UInt32(bitPattern: value.loadUnaligned(fromByteOffset: 8, as: Int32.self)) }
        if index == 0, address != 0 {
            index = interface(of: address)
            guard index != 0 else { return joins ? ALPS_ENODEV : ALPS_EADDRNOTAVAIL }
        }
        return joins ? join(netpcb, group, index) : leave(netpcb, group, index)
    }

    /// struct group_req {interface index, padding, sockaddr_in}: MCAST_JOIN_GROUP.
    private func setGroup(_ netpcb: NetworkPCB, _ joins: Bool, _ value: UnsafeMutableRawPointer, _ length: Int) -> Int32
    {
        guard length >= 16, value.loadUnaligned(fromByteOffset: 8, as: UInt16.self) == UInt16(ALPS_AF_INET) else {
            return ALPS_EINVAL
        }
        let index = value.loadUnaligned(as: UInt32.self)
        let group = value.loadUnaligned(fromByteOffset: 12, as: UInt32.self)
        return joins ? join(netpcb, group, index) : leave(netpcb, group, index)
    }

    /// IP_MULTICAST_IF: struct in_addr, ip_mreq or ip_mreqn.
    private func setMulticastInterface(_ netpcb: NetworkPCB, _ value: UnsafeMutableRawPointer, _ length: Int) -> Int32 {
        guard length >= 4 else { return ALPS_EINVAL }
        var index: UInt32 = 0
        var address = value.loadUnaligned(as: UInt32.self)
        if length >= 8 { address = value.loadUnaligned(fromByteOffset: 4, as: UInt32.self) }
        if length >= 12 { index = UInt32(bitPattern: value.loadUnaligned(fromByteOffset: 8, as: Int32.self)) }
        if index == 0, address != 0 {
            index = interface(of: address)
            guard index != 0 else { return ALPS_EADDRNOTAVAIL }
        }
        guard index == 0 || ifnet(index) != nil else { return ALPS_EADDRNOTAVAIL }
        netpcb.pointee.multicast_ifindex = index
        netpcb.pointee.route.size = 0
        return 0
    }
}

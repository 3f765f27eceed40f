import PluginAPI
import PluginKit

/// Addresses, routes and path MTUs, seen from a socket.
extension UnsafeMutablePointer where Pointee == Instance {
    /// One of this stack's addresses.
    func isLocal(_ address: UInt32) -> Bool {
        if AddressClass.isLoopback(address) { return true }
        var index: UInt32 = 1
        let last = lastInterface
        while index <= last {
            if let ifnet = ifnet(index), let list = ifnet.pointee.addresses {
                for place in 0..<Int(ifnet.pointee.address_count)
                where ipv4(list[place].addr) == address && list[place].flags & ALPS_IFA_DUPLICATE == 0 {
                    return true
                }
            }
            index += 1
        }
        return false
    }

    /// The broadcast address of a network of interface `ifindex` (0: of any).
    func isDirectedBroadcast(_ address: UInt32, _ ifindex: UInt32) -> Bool {
        var index: UInt32 = ifindex == 0 ? 1 : ifindex
        let last = ifindex == 0 ? lastInterface : ifindex
        while index <= last {
            if let ifnet = ifnet(index), let list = ifnet.pointee.addresses {
                for place in 0..<Int(ifnet.pointee.address_count) {
                    let broadcast = ipv4(list[place].broadcast)
                    if broadcast != 0, broadcast == address { return true }
                }
            }
            index += 1
        }
        return false
    }

    func classify(_ address: UInt32, _ ifindex: UInt32) -> UInt32 {
        if address == 0 { return ALPS_ADDR_UNSPECIFIED }
        if AddressClass.isMulticast(address) { return ALPS_ADDR_MULTICAST }
        if AddressClass.isBroadcast(address) || isDirectedBroadcast(address, ifindex) { return ALPS_ADDR_BROADCAST }
        if AddressClass.isInvalid(address) { return ALPS_ADDR_INVALID }
        return isLocal(address) ? ALPS_ADDR_LOCAL : ALPS_ADDR_UNICAST
    }

    /// An address of interface `ifindex` to send from: the one whose network `toward` is on, else the first.
    func sourceAddress(_ ifindex: UInt32, toward: UInt32) -> UInt32 {
        guard let ifnet = ifnet(ifindex), let list = ifnet.pointee.addresses else { return 0 }
        var first: UInt32 = 0
        for place in 0..<Int(ifnet.pointee.address_count) where list[place].flags & ALPS_IFA_DUPLICATE == 0 {
            let address = ipv4(list[place].addr)
            let length = UInt32(list[place].prefix_length)
            let mask = length == 0 ? 0 : (UInt32.max << (32 - min(length, 32))).bigEndian
            if address & mask == toward & mask { return address }
            if first == 0 { first = address }
        }
        return first
    }

    @inline(__always)
    var routeGeneration: UInt64 {
        let cell = services.routeCell
        return cell.ops(alps_route_ops.self).pointee.generation(cell.instance).pointee
    }

    /// Makes sure that the cached route is good and a local address chosen.
    @inline(__always)
    func route(_ netpcb: NetworkPCB) -> Int32 {
        if netpcb.pointee.route.generation == routeGeneration, netpcb.pointee.route.size != 0,
            ipv4(netpcb.pointee.local) != 0
        {
            return 0
        }
        return findRoute(netpcb)
    }

    @inline(never)
    private func findRoute(_ netpcb: NetworkPCB) -> Int32 {
        let remote = ipv4(netpcb.pointee.remote)
        netpcb.pointee.route.size = 0
        if AddressClass.isInvalid(remote) { return ALPS_ENETUNREACH }
        var route = alps_route()
        let status = AddressClass.isMulticast(remote) || AddressClass.isBroadcast(remote)
            ? interfaceRoute(netpcb, remote, &route) : tableRoute(netpcb, remote, &route)
        guard status == 0 else { return status }
        if route.flags & ALPS_RTF_BROADCAST != 0, netpcb.pointee.flags & UInt8(ALPS_NETPCB_BROADCAST) == 0 {
            return ALPS_EACCES
        }
        if ipv4(netpcb.pointee.local) == 0 {
            // To ourselves: from the address asked for. Else from the interface the packet leaves by.
            let source = route.flags & ALPS_RTF_LOCAL != 0
                ? remote
                : sourceAddress(
                    route.ifindex, toward: route.flags & ALPS_RTF_GATEWAY != 0 ? ipv4(route.gateway) : remote)
            guard source != 0 else { return ALPS_EADDRNOTAVAIL }
            netpcb.pointee.local = neutral(source)
        }
        route.size = UInt32(MemoryLayout<alps_route>.size)
        netpcb.pointee.route = route
        return 0
    }

    private func tableRoute(_ netpcb: NetworkPCB, _ remote: UInt32, _ route: inout alps_route) -> Int32 {
        let cell = services.routeCell
        var destination = remote == 0 ? neutral(UInt32(0x7f00_0001).bigEndian) : neutral(remote)
        if remote == 0 { netpcb.pointee.remote = destination }
        let status = cell.ops(alps_route_ops.self).pointee.lookup(
            cell.instance, UInt16(ALPS_AF_INET), &destination, netpcb.pointee.bound_ifindex, &route)
        if status == 0, netpcb.pointee.flags & UInt8(ALPS_NETPCB_DONTROUTE) != 0, route.flags & ALPS_RTF_GATEWAY != 0 {
            return ALPS_ENETUNREACH
        }
        return status
    }

    /// Groups and limited broadcasts leave by the interface named, the one of the local address, or the default one.
    private func interfaceRoute(_ netpcb: NetworkPCB, _ remote: UInt32, _ route: inout alps_route) -> Int32 {
        let isMulticast = AddressClass.isMulticast(remote)
        var index = netpcb.pointee.bound_ifindex
        if index == 0, isMulticast { index = netpcb.pointee.multicast_ifindex }
        if index == 0 { index = interface(of: ipv4(netpcb.pointee.local)) }
        if index == 0, isMulticast {
            var found = alps_route()
            let cell = services.routeCell
            var destination = neutral(remote)
            if cell.ops(alps_route_ops.self).pointee.lookup(
                cell.instance, UInt16(ALPS_AF_INET), &destination, 0, &found) == 0
            {
                index = found.ifindex
            }
        }
        if index == 0 { index = firstBroadcastInterface() }
        guard index != 0, let ifnet = ifnet(index) else { return ALPS_ENETUNREACH }
        route.family = UInt16(ALPS_AF_INET)
        route.prefix_length = 32
        route.flags = ALPS_RTF_UP | ALPS_RTF_HOST | (isMulticast ? 0 : ALPS_RTF_BROADCAST)
        route.ifindex = index
        route.mtu = ifnet.pointee.mtu
        route.destination = neutral(remote)
        route.generation = routeGeneration
        return 0
    }

    func interface(of address: UInt32) -> UInt32 {
        guard address != 0 else { return 0 }
        var index: UInt32 = 1
        while index <= lastInterface {
            if let ifnet = ifnet(index), let list = ifnet.pointee.addresses {
                for place in 0..<Int(ifnet.pointee.address_count) where ipv4(list[place].addr) == address { return index }
            }
            index += 1
        }
        return 0
    }

    func firstBroadcastInterface() -> UInt32 {
        var index: UInt32 = 1
        while index <= lastInterface {
            if let ifnet = ifnet(index), ifnet.pointee.flags & ALPS_IFF_BROADCAST != 0 { return index }
            index += 1
        }
        return 0
    }
}

// MARK: "alps.network/1:2"

func networkAttach(
    _ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB, _ socket: UnsafeMutablePointer<alps_socket>?
) -> Int32 {
    netpcb.pointee.size = UInt32(MemoryLayout<alps_netpcb>.size)
    netpcb.pointee.family = UInt16(ALPS_AF_INET)
    netpcb.pointee.multicast_ttl = 1
    netpcb.pointee.multicast_loop = 1
    netpcb.pointee.header_length = UInt32(Header.minimumLength)
    return 0
}

func networkDetach(_ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    instance.releaseOptions(netpcb)
}

func networkRoute(_ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB) -> Int32 {
    context.assumingMemoryBound(to: Instance.self).route(netpcb)
}

func networkPseudoSum(
    _ context: UnsafeMutableRawPointer, _ source: UnsafePointer<alps_addr>, _ destination: UnsafePointer<alps_addr>,
    _ protocolNumber: UInt8, _ length: UInt32
) -> UInt32 {
    let a = UInt32(bigEndian: UnsafeRawPointer(source).loadUnaligned(as: UInt32.self))
    let b = UInt32(bigEndian: UnsafeRawPointer(destination).loadUnaligned(as: UInt32.self))
    return Checksum.fold(UInt64(a) + UInt64(b) + UInt64(protocolNumber) + UInt64(length))
}

func networkPathMTU(_ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB) -> UInt32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard instance.route(netpcb) == 0 else { return 576 }
    if netpcb.pointee.flags & UInt8(ALPS_NETPCB_PMTU_PROBE) != 0, let ifnet = instance.ifnet(netpcb.pointee.route.ifindex) {
        return ifnet.pointee.mtu
    }
    return netpcb.pointee.route.mtu
}

/// RFC 1191: a router's MTU, or the next plateau (section 7.1) if it told none; never below 68.
func networkLowerMTU(_ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB, _ mtu: UInt32, _ packetLength: UInt32) -> UInt32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    var mtu = mtu
    if mtu == 0 {
        mtu = 68
        let plateaus: (UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32) =
            (32000, 17914, 8166, 4352, 2002, 1492, 1006, 508)
        withUnsafeBytes(of: plateaus) { bytes in
            var index = 0
            while index < 8 {
                let plateau = bytes.load(fromByteOffset: index * 4, as: UInt32.self)
                if plateau < packetLength {
                    mtu = plateau
                    break
                }
                index += 1
            }
        }
    }
    mtu = max(mtu, 68)
    let cell = instance.services.routeCell
    var remote = netpcb.pointee.remote
    _ = cell.ops(alps_route_ops.self).pointee.update_mtu(
        cell.instance, UInt16(ALPS_AF_INET), &remote, mtu,
        UInt64(truncatingIfNeeded: instance.setting(.mtuLifetime)))
    netpcb.pointee.route.size = 0
    instance.count(.mtuLowered)
    return networkPathMTU(context, netpcb)
}

func networkClassify(_ context: UnsafeMutableRawPointer, _ address: UnsafePointer<alps_addr>, _ ifindex: UInt32) -> UInt32 {
    context.assumingMemoryBound(to: Instance.self).classify(ipv4(address.pointee), ifindex)
}

func networkError(_ context: UnsafeMutableRawPointer, _ packet: Mbuf, _ kind: UInt32) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    instance.restoreHeader(packet)
    switch kind {
    case ALPS_NETERR_PORT_UNREACHABLE: instance.sendError(packet, 3, 3, 0)
    case ALPS_NETERR_PROTOCOL_UNREACHABLE: instance.sendError(packet, 3, 2, 0)
    default: instance.sendError(packet, 3, 13, 0)
    }
}

// MARK: Text

func networkFormat(
    _ context: UnsafeMutableRawPointer, _ address: UnsafePointer<alps_addr>, _ buffer: UnsafeMutablePointer<CChar>,
    _ capacity: UInt32
) -> UInt32 {
    guard capacity >= 16 else { return 0 }
    let bytes = UnsafeRawPointer(address)
    var at = 0
    for index in 0..<4 {
        let value = bytes.load(fromByteOffset: index, as: UInt8.self)
        if index > 0 {
            buffer[at] = 46
            at += 1
        }
        if value >= 100 {
            buffer[at] = CChar(48 + value / 100)
            at += 1
        }
        if value >= 10 {
            buffer[at] = CChar(48 + value / 10 % 10)
            at += 1
        }
        buffer[at] = CChar(48 + value % 10)
        at += 1
    }
    buffer[at] = 0
    return UInt32(at)
}

func networkParse(
    _ context: UnsafeMutableRawPointer, _ text: UnsafePointer<CChar>, _ address: UnsafeMutablePointer<alps_addr>
) -> Int32 {
    var bytes: (UInt8, UInt8, UInt8, UInt8) = (0, 0, 0, 0)
    var at = 0
    for index in 0..<4 {
        var value = 0
        var digits = 0
        while text[at] >= 48, text[at] <= 57 {
            value = value * 10 + Int(text[at] - 48)
            digits += 1
            at += 1
            if digits > 3 { return ALPS_EINVAL }
        }
        guard digits > 0, value < 256 else { return ALPS_EINVAL }
        withUnsafeMutableBytes(of: &bytes) { $0[index] = UInt8(value) }
        guard text[at] == (index == 3 ? 0 : 46) else { return ALPS_EINVAL }
        at += 1
    }
    address.pointee = alps_addr()
    withUnsafeMutableBytes(of: &address.pointee) { target in
        withUnsafeBytes(of: bytes) { target.copyMemory(from: $0) }
    }
    return 0
}

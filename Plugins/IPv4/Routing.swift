import PluginAPI
import PluginKit

/// Addresses and routes, seen from a socket.
extension UnsafeMutablePointer where Pointee == Instance {
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
        for place in 0..<Int(ifnet.pointee.address_count)
        where list[place].flags & ALPS_IFA_DUPLICATE == 0 && list[place].family == UInt16(ALPS_AF_INET) {
            let address = ipv4(list[place].addr)
            let mask = networkMask(list[place].prefix_length)
            if address & mask == toward & mask { return address }
            if first == 0 { first = address }
        }
        return first
    }

    /// For an interface without an address of its own: any other's, but not loopback's (RFC 1122, section 3.3.4.3).
    private func anySource(toward: UInt32) -> UInt32 {
        var index: UInt32 = 1
        let last = lastInterface
        while index <= last {
            if let ifnet = ifnet(index), ifnet.pointee.type != ALPS_IFT_LOOP {
                let address = sourceAddress(index, toward: toward)
                if address != 0 { return address }
            }
            index += 1
        }
        return 0
    }

    @inline(__always)
    var routeGeneration: UInt64 { pointee.generation.pointee }

    /// Makes sure that the cached route is good and a local address chosen. A route is kept with the destination it was
    /// looked up for, so that a copy of the attachment with another `remote` is safe.
    @inline(__always)
    func route(_ netpcb: NetworkPCB) -> Int32 {
        if netpcb.pointee.route.generation == routeGeneration, netpcb.pointee.route.size != 0,
            ipv4(netpcb.pointee.route.destination) == ipv4(netpcb.pointee.remote), ipv4(netpcb.pointee.local) != 0
        {
            return 0
        }
        return findRoute(netpcb)
    }

    @inline(never)
    private func findRoute(_ netpcb: NetworkPCB) -> Int32 {
        netpcb.pointee.route.size = 0
        // Linux, BSD: 0.0.0.0 as a destination is this host.
        if ipv4(netpcb.pointee.remote) == 0 { netpcb.pointee.remote = neutral(AddressClass.loopback) }
        let remote = ipv4(netpcb.pointee.remote)
        if AddressClass.isInvalid(remote) { return ALPS_ENETUNREACH }
        let isGroup = AddressClass.isMulticast(remote) || AddressClass.isBroadcast(remote)
        var route = alps_route()
        let status = isGroup ? interfaceRoute(netpcb, remote, &route) : tableRoute(netpcb, remote, &route)
        guard status == 0 else { return status }
        if route.flags & ALPS_RTF_BROADCAST != 0, netpcb.pointee.flags & UInt8(ALPS_NETPCB_BROADCAST) == 0 {
            return ALPS_EACCES
        }
        if ipv4(netpcb.pointee.local) == 0 {
            let source = chooseSource(route, remote)
            // Before an interface has an address, a host may only ask for one, by broadcast (RFC 1122, 3.2.1.3 a).
            guard source != 0 || isGroup else { return ALPS_EADDRNOTAVAIL }
            netpcb.pointee.local = neutral(source)
        }
        route.size = UInt32(MemoryLayout<alps_route>.size)
        route.destination = netpcb.pointee.remote
        route.prefix_length = 32
        netpcb.pointee.route = route
        return 0
    }

    /// To ourselves: from the address asked for. Else from the interface the packet leaves by.
    private func chooseSource(_ route: alps_route, _ remote: UInt32) -> UInt32 {
        if route.flags & ALPS_RTF_LOCAL != 0 { return remote }
        let toward = route.flags & ALPS_RTF_GATEWAY != 0 ? ipv4(route.gateway) : remote
        let source = sourceAddress(route.ifindex, toward: toward)
        return source != 0 ? source : anySource(toward: toward)
    }

    private func tableRoute(_ netpcb: NetworkPCB, _ remote: UInt32, _ route: inout alps_route) -> Int32 {
        let cell = services.routeCell
        var destination = neutral(remote)
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
        if index == 0 { index = isMulticast ? groupInterface(remote) : firstBroadcastInterface() }
        guard index != 0, let ifnet = ifnet(index) else { return ALPS_ENETUNREACH }
        route.family = UInt16(ALPS_AF_INET)
        route.flags = ALPS_RTF_UP | ALPS_RTF_HOST | (isMulticast ? 0 : ALPS_RTF_BROADCAST)
        route.ifindex = index
        route.mtu = ifnet.pointee.mtu
        route.generation = routeGeneration
        return 0
    }

    /// The interface for a group that nobody has named one for.
    func groupInterface(_ group: UInt32) -> UInt32 {
        var route = alps_route()
        let cell = services.routeCell
        var destination = neutral(group)
        let status = cell.ops(alps_route_ops.self).pointee.lookup(
            cell.instance, UInt16(ALPS_AF_INET), &destination, 0, &route)
        return status == 0 ? route.ifindex : firstBroadcastInterface()
    }

    private func firstBroadcastInterface() -> UInt32 {
        var index: UInt32 = 1
        let last = lastInterface
        while index <= last {
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
    netpcb.pointee.options = SocketOptions.reference(to: socket)
    return 0
}

func networkDetach(_ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB) {
    context.assumingMemoryBound(to: Instance.self).releaseOptions(netpcb)
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

func networkClassify(_ context: UnsafeMutableRawPointer, _ address: UnsafePointer<alps_addr>, _ ifindex: UInt32)
    -> UInt32
{
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

import Glibc
import PluginAPI

extension Kernel {
    func installRouteQueries() {
        queries.add("routes") { (_: Nothing) in RoutesReply(routes: self.routes.all.map(self.row)) }
        queries.add("route.get") { (request: RouteRequest) in
            guard let address = NetworkAddress(request.destination) else {
                throw KernelError(EINVAL, "'\(request.destination)' is not an IPv4 address")
            }
            var route = alps_route()
            let status = self.routes.lookup(UInt16(ALPS_AF_INET), address.address, &route)
            guard status == 0 else { throw KernelError(status, "there is no route to \(address)") }
            return RoutesReply(routes: [self.row(route)])
        }
        queries.add("route.add") { (request: RouteRequest) in
            let route = try self.route(request)
            let status = self.routes.add(route)
            switch status {
            case 0: return Nothing()
            case EEXIST: throw KernelError(status, "there is a route to \(request.destination) already")
            case ENETUNREACH:
                throw KernelError(
                    status, "gateway \(request.gateway ?? "") is not on a network that is directly connected")
            default: throw KernelError(status, "cannot add the route: \(String(cString: strerror(status)))")
            }
        }
        queries.add("route.delete") { (request: RouteRequest) in
            let status = self.routes.remove(try self.route(request))
            guard status == 0 else { throw KernelError(status, "there is no such route to \(request.destination)") }
            return Nothing()
        }
    }

    private func route(_ request: RouteRequest) throws -> alps_route {
        guard let prefix = NetworkAddress.Prefix(request.destination) else {
            throw KernelError(
                EINVAL, "'\(request.destination)' is not a destination: use ADDRESS/LENGTH, an address, or default")
        }
        var route = alps_route()
        route.family = UInt16(ALPS_AF_INET)
        route.destination = prefix.address
        route.prefix_length = UInt8(prefix.length)
        route.flags = UInt32(ALPS_RTF_STATIC)
        route.mtu = UInt32(clamping: request.mtu ?? 0)
        route.metric = UInt32(clamping: request.metric ?? 0)
        if let gateway = request.gateway {
            guard let address = NetworkAddress(gateway) else {
                throw KernelError(EINVAL, "'\(gateway)' is not an IPv4 address")
            }
            route.flags |= UInt32(ALPS_RTF_GATEWAY)
            route.gateway = address.address
        }
        if let name = request.interface {
            guard let interface = interfaces.find(name) else {
                throw KernelError(ENODEV, "there is no interface '\(name)': `alps netstat -i` lists them")
            }
            route.ifindex = interface.raw.pointee.index
        }
        if request.reject == true { route.flags |= UInt32(ALPS_RTF_REJECT) }
        return route
    }

    private func row(_ route: alps_route) -> RoutesReply.Row {
        let letters: [(UInt32, String)] = [
            (UInt32(ALPS_RTF_UP), "U"), (UInt32(ALPS_RTF_GATEWAY), "G"), (UInt32(ALPS_RTF_HOST), "H"),
            (UInt32(ALPS_RTF_REJECT), "R"), (UInt32(ALPS_RTF_DYNAMIC), "D"), (UInt32(ALPS_RTF_CLONED), "W"),
            (UInt32(ALPS_RTF_STATIC), "S"), (UInt32(ALPS_RTF_CONNECTED), "C"), (UInt32(ALPS_RTF_LOCAL), "L"),
            (UInt32(ALPS_RTF_BROADCAST), "b"),
        ]
        let interface = interfaces.interface(route.ifindex)
        let mtu = interface.map { route.mtu == 0 ? $0.raw.pointee.mtu : min(route.mtu, $0.raw.pointee.mtu) } ?? route.mtu
        return RoutesReply.Row(
            destination: NetworkAddress(address: route.destination).description, prefixLength: Int(route.prefix_length),
            gateway: route.flags & UInt32(ALPS_RTF_GATEWAY) != 0
                ? NetworkAddress(address: route.gateway).description : nil,
            flags: letters.filter { route.flags & $0.0 != 0 }.map(\.1).joined(),
            interface: interface?.name ?? "-", mtu: Int(mtu), metric: Int(route.metric),
            expiresSeconds: route.expires == 0 ? nil : Double(route.expires &- clock.now) / 1e9)
    }

    func installNeighborQueries() {
        queries.add("neighbors") { (_: Nothing) in NeighborsReply(neighbors: try self.neighbors()) }
        queries.add("neighbor.add") { (request: NeighborRequest) in
            let (ops, instance) = try self.neighborProvider()
            var neighbor = alps_neighbor()
            neighbor.size = UInt32(MemoryLayout<alps_neighbor>.size)
            neighbor.family = UInt16(ALPS_AF_INET)
            neighbor.hardware_length = 6
            neighbor.flags = UInt32(ALPS_NEIGHBOR_STATIC) | (request.published == true ? UInt32(ALPS_NEIGHBOR_PUBLISHED) : 0)
            let (address, ifindex) = try self.neighborKey(request)
            neighbor.addr = address
            neighbor.ifindex = ifindex
            let hardware = try HardwareAddress(parsing: request.hardware ?? "").bytes
            neighbor.hardware = (hardware.0, hardware.1, hardware.2, hardware.3, hardware.4, hardware.5, 0, 0)
            let status = ops.pointee.add(instance, &neighbor)
            guard status == 0 else { throw KernelError(status, "cannot add: \(String(cString: strerror(status)))") }
            self.netlink.neighborsChanged()
            return Nothing()
        }
        queries.add("neighbor.delete") { (request: NeighborRequest) in
            let (ops, instance) = try self.neighborProvider()
            var (address, ifindex) = try self.neighborKey(request)
            let status = ops.pointee.remove(instance, ifindex, &address)
            ifindex = 0
            guard status == 0 else { throw KernelError(status, "there is no entry for \(request.address)") }
            self.netlink.neighborsChanged()
            return Nothing()
        }
    }

    private func neighborProvider() throws -> (UnsafePointer<alps_neighbor_ops>, UnsafeMutableRawPointer) {
        guard let provider = neighborOperations() else {
            throw KernelError(ENOENT, "no plugin resolves link addresses: load arp")
        }
        return provider
    }

    private func neighborKey(_ request: NeighborRequest) throws -> (alps_addr, UInt32) {
        guard let address = NetworkAddress(request.address) else {
            throw KernelError(EINVAL, "'\(request.address)' is not an IPv4 address")
        }
        if let name = request.interface {
            guard let interface = interfaces.find(name) else { throw KernelError(ENODEV, "there is no interface '\(name)'") }
            return (address.address, interface.raw.pointee.index)
        }
        var route = alps_route()
        guard routes.lookup(UInt16(ALPS_AF_INET), address.address, &route) == 0 else {
            throw KernelError(ENETUNREACH, "there is no route to \(address): name the interface with --interface")
        }
        return (address.address, route.ifindex)
    }

    private func neighbors() throws -> [NeighborsReply.Row] {
        _ = try neighborProvider()
        return allNeighbors().map { entry in
            let h = entry.hardware
            let isResolved = entry.flags & UInt32(ALPS_NEIGHBOR_RESOLVED | ALPS_NEIGHBOR_STATIC) != 0
            return NeighborsReply.Row(
                address: NetworkAddress(address: entry.addr).description,
                hardware: isResolved ? HardwareAddress((h.0, h.1, h.2, h.3, h.4, h.5)).description : nil,
                interface: interfaces.interface(entry.ifindex)?.name ?? "-",
                flags: [
                    entry.flags & UInt32(ALPS_NEIGHBOR_STATIC) != 0 ? "static" : nil,
                    entry.flags & UInt32(ALPS_NEIGHBOR_PUBLISHED) != 0 ? "published" : nil,
                    entry.flags & UInt32(ALPS_NEIGHBOR_FAILED) != 0 ? "failed" : nil,
                ].compactMap { $0 },
                expiresSeconds: entry.expires == 0 ? nil : Double(entry.expires) / 1e9, held: Int(entry.held))
        }
    }
}

import Glibc
package import PluginAPI

/// The routing table ("alps.route/1"). Blind to families: keys are bytes. A list a prefix length, longest first, which is
/// small: hosts have a handful of routes, and whoever sends keeps a copy that is good while the generation stands.
package final class RouteTable {
    private var kernel: Kernel!
    private var opsTable: UnsafeMutablePointer<alps_route_ops>?
    private let generationWord = UnsafeMutablePointer<UInt64>.allocate(capacity: 1)
    /// Sorted by prefix length, longest first, then by metric.
    private var routes: [alps_route] = []
    private var timer: HostTimer?
    /// Cloned routes at a time; the oldest to lapse goes first.
    private static let maximumClones = 4096

    package init() { generationWord.initialize(to: 1) }

    deinit {
        generationWord.deallocate()
        opsTable?.deallocate()
    }

    func attach(_ kernel: Kernel) {
        self.kernel = kernel
        timer = HostTimer(kernel) { [unowned self] in self.expire() }
        let table = UnsafeMutablePointer<alps_route_ops>.allocate(capacity: 1)
        table.initialize(to: makeRouteOps())
        opsTable = table
        kernel.plugins.publish(
            "alps.route/1", ops: UnsafeRawPointer(table), scope: .kernel(Unmanaged.passUnretained(self).toOpaque()))
    }

    /// All routes, longest prefixes first.
    package var all: [alps_route] { routes }

    fileprivate var generation: UnsafePointer<UInt64> { UnsafePointer(generationWord) }

    /// Copies that others keep are void.
    package func changed() { generationWord.pointee &+= 1 }

    // MARK: Lookup

    private static func matches(_ address: alps_addr, _ prefix: alps_addr, _ length: UInt8) -> Bool {
        withUnsafeBytes(of: address) { a in
            withUnsafeBytes(of: prefix) { b in
                let whole = Int(length) / 8
                for index in 0..<whole where a[index] != b[index] { return false }
                let rest = length % 8
                return rest == 0 || (a[whole] ^ b[whole]) >> (8 - rest) == 0
            }
        }
    }

    private static func equal(_ a: alps_addr, _ b: alps_addr) -> Bool { matches(a, b, 128) }

    private func index(_ family: UInt16, _ destination: alps_addr, _ ifindex: UInt32) -> Int? {
        routes.firstIndex {
            $0.family == family && (ifindex == 0 || $0.ifindex == ifindex || $0.flags & UInt32(ALPS_RTF_LOCAL) != 0)
                && Self.matches(destination, $0.destination, $0.prefix_length)
        }
    }

    /// Longest prefix; ENETUNREACH or EHOSTUNREACH if there is no way.
    package func lookup(_ family: UInt16, _ destination: alps_addr, ifindex: UInt32 = 0, _ route: inout alps_route) -> Int32 {
        guard let index = index(family, destination, ifindex) else { return ENETUNREACH }
        route = routes[index]
        route.generation = generationWord.pointee
        let interfaceMTU = kernel.interfaces.interface(route.ifindex)?.raw.pointee.mtu ?? 1500
        route.mtu = route.mtu == 0 ? interfaceMTU : min(route.mtu, interfaceMTU)
        return route.flags & UInt32(ALPS_RTF_REJECT) != 0 ? EHOSTUNREACH : 0
    }

    // MARK: Changes

    private func insert(_ route: alps_route) {
        var route = route
        route.size = UInt32(MemoryLayout<alps_route>.size)
        route.flags |= UInt32(ALPS_RTF_UP)
        let place = routes.firstIndex {
            $0.prefix_length < route.prefix_length
                || $0.prefix_length == route.prefix_length && $0.metric > route.metric
        }
        routes.insert(route, at: place ?? routes.count)
        changed()
    }

    package func add(_ route: alps_route) -> Int32 {
        var route = route
        guard route.prefix_length <= (route.family == UInt16(ALPS_AF_INET) ? 32 : 128) else { return EINVAL }
        Self.clearHostBits(&route)
        if route.prefix_length == (route.family == UInt16(ALPS_AF_INET) ? 32 : 128) { route.flags |= UInt32(ALPS_RTF_HOST) }
        if route.flags & UInt32(ALPS_RTF_GATEWAY) != 0 {
            // The gateway has to be on a network that is directly connected.
            var way = alps_route()
            guard lookup(route.family, route.gateway, ifindex: route.ifindex, &way) == 0,
                way.flags & UInt32(ALPS_RTF_GATEWAY | ALPS_RTF_LOCAL) == 0
            else { return ENETUNREACH }
            if route.ifindex == 0 { route.ifindex = way.ifindex }
        }
        guard route.ifindex == 0 || kernel.interfaces.interface(route.ifindex) != nil else { return ENODEV }
        guard route.ifindex != 0 || route.flags & UInt32(ALPS_RTF_REJECT) != 0 else { return EINVAL }
        let exists = routes.contains {
            $0.family == route.family && $0.prefix_length == route.prefix_length && $0.metric == route.metric
                && Self.equal($0.destination, route.destination)
                && $0.flags & UInt32(ALPS_RTF_CLONED | ALPS_RTF_DYNAMIC) == 0
        }
        guard !exists else { return EEXIST }
        insert(route)
        return 0
    }

    package func remove(_ route: alps_route) -> Int32 {
        var wanted = route
        Self.clearHostBits(&wanted)
        let before = routes.count
        routes.removeAll {
            $0.family == wanted.family && $0.prefix_length == wanted.prefix_length
                && Self.equal($0.destination, wanted.destination)
                && (wanted.ifindex == 0 || $0.ifindex == wanted.ifindex)
                && (wanted.flags & UInt32(ALPS_RTF_GATEWAY) == 0 || Self.equal($0.gateway, wanted.gateway))
                && $0.flags & UInt32(ALPS_RTF_LOCAL | ALPS_RTF_BROADCAST) == 0
        }
        guard routes.count != before else { return ESRCH }
        // Clones of a network that has gone may point anywhere now.
        routes.removeAll {
            $0.flags & UInt32(ALPS_RTF_CLONED | ALPS_RTF_DYNAMIC) != 0
                && Self.matches($0.destination, wanted.destination, wanted.prefix_length)
        }
        changed()
        return 0
    }

    private static func clearHostBits(_ route: inout alps_route) {
        let length = Int(route.prefix_length)
        withUnsafeMutableBytes(of: &route.destination) { bytes in
            for bit in length..<128 { bytes[bit / 8] &= ~(0x80 >> UInt8(bit % 8)) }
        }
    }

    /// The default route of an interface.
    package func addDefault(gateway: alps_addr, interface: Interface) throws {
        var route = alps_route()
        route.family = UInt16(ALPS_AF_INET)
        route.flags = UInt32(ALPS_RTF_GATEWAY | ALPS_RTF_STATIC)
        route.gateway = gateway
        let status = add(route)
        guard status == 0 else {
            throw KernelError(
                status, "gateway \(NetworkAddress(address: gateway)) is not on a network of \(interface.name): give --address one that covers it")
        }
    }

    // MARK: Interfaces' own routes

    func addInterfaceRoutes(_ interface: Interface, _ address: alps_ifaddr, loopback: Interface?) {
        let index = interface.raw.pointee.index
        var network = alps_route()
        network.family = address.family
        network.prefix_length = address.prefix_length
        network.destination = address.addr
        network.ifindex = index
        network.flags = UInt32(ALPS_RTF_CONNECTED)
        Self.clearHostBits(&network)
        if address.prefix_length < 32 { insert(network) }
        var own = alps_route()
        own.family = address.family
        own.prefix_length = 32
        own.destination = address.addr
        own.ifindex = loopback?.raw.pointee.index ?? index
        own.flags = UInt32(ALPS_RTF_LOCAL | ALPS_RTF_HOST)
        insert(own)
        guard !NetworkAddress(address: address.broadcast).isZero else { return }
        var broadcast = own
        broadcast.destination = address.broadcast
        broadcast.ifindex = index
        broadcast.flags = UInt32(ALPS_RTF_BROADCAST | ALPS_RTF_HOST)
        insert(broadcast)
    }

    func removeInterfaceRoutes(_ interface: Interface, _ address: alps_ifaddr) {
        let index = interface.raw.pointee.index
        routes.removeAll {
            $0.flags & UInt32(ALPS_RTF_LOCAL) != 0 && Self.equal($0.destination, address.addr)
                || $0.ifindex == index && $0.flags & UInt32(ALPS_RTF_BROADCAST) != 0
                    && Self.equal($0.destination, address.broadcast)
                || $0.ifindex == index && Self.matches($0.destination, address.addr, address.prefix_length)
                    && $0.prefix_length >= address.prefix_length && $0.flags & UInt32(ALPS_RTF_LOCAL) == 0
        }
        changed()
    }

    func removeAll(interface index: UInt32) {
        routes.removeAll { $0.ifindex == index }
        changed()
    }

    // MARK: Host routes that carry news

    private func addClone(_ clone: alps_route) {
        var clones = 0
        for route in routes where route.flags & UInt32(ALPS_RTF_CLONED | ALPS_RTF_DYNAMIC) != 0 { clones += 1 }
        if clones >= Self.maximumClones,
            let oldest = routes.indices.filter({ routes[$0].flags & UInt32(ALPS_RTF_CLONED | ALPS_RTF_DYNAMIC) != 0 })
                .min(by: { routes[$0].expires < routes[$1].expires })
        {
            routes.remove(at: oldest)
        }
        insert(clone)
        scheduleExpiry()
    }

    fileprivate func updateMTU(_ family: UInt16, _ destination: alps_addr, _ mtu: UInt32, _ lifetime: UInt64) -> Int32 {
        guard let index = index(family, destination, 0) else { return ENETUNREACH }
        let expires = lifetime == 0 ? 0 : kernel.clock.now &+ lifetime
        if routes[index].flags & UInt32(ALPS_RTF_HOST) != 0 {
            if routes[index].mtu == 0 || mtu < routes[index].mtu {
                routes[index].mtu = mtu
                if routes[index].flags & UInt32(ALPS_RTF_CLONED) != 0 { routes[index].expires = expires }
                changed()
                scheduleExpiry()
            }
            return 0
        }
        var clone = routes[index]
        clone.destination = destination
        clone.prefix_length = family == UInt16(ALPS_AF_INET) ? 32 : 128
        clone.flags &= ~UInt32(ALPS_RTF_STATIC | ALPS_RTF_CONNECTED)
        clone.flags |= UInt32(ALPS_RTF_HOST | ALPS_RTF_CLONED)
        clone.mtu = clone.mtu == 0 ? mtu : min(mtu, clone.mtu)
        clone.expires = expires
        addClone(clone)
        return 0
    }

    fileprivate func redirect(
        _ family: UInt16, _ destination: alps_addr, _ gateway: alps_addr, _ from: alps_addr, _ ifindex: UInt32
    ) -> Int32 {
        guard let index = index(family, destination, 0), routes[index].flags & UInt32(ALPS_RTF_GATEWAY) != 0,
            Self.equal(routes[index].gateway, from), routes[index].ifindex == ifindex
        else { return EPERM }
        var way = alps_route()
        guard lookup(family, gateway, ifindex: ifindex, &way) == 0, way.flags & UInt32(ALPS_RTF_CONNECTED) != 0 else {
            return EPERM
        }
        if routes[index].flags & UInt32(ALPS_RTF_DYNAMIC) != 0 {
            routes[index].gateway = gateway
            changed()
            return 0
        }
        var clone = routes[index]
        clone.destination = destination
        clone.prefix_length = family == UInt16(ALPS_AF_INET) ? 32 : 128
        clone.flags &= ~UInt32(ALPS_RTF_STATIC)
        clone.flags |= UInt32(ALPS_RTF_HOST | ALPS_RTF_DYNAMIC)
        clone.gateway = gateway
        clone.expires = kernel.clock.now &+ 600_000_000_000
        addClone(clone)
        return 0
    }

    private func scheduleExpiry() {
        guard let soonest = routes.lazy.map(\.expires).filter({ $0 != 0 }).min(), let timer else { return }
        let now = kernel.clock.now
        if !timer.isArmed || timer.deadline > soonest { timer.arm(after: soonest > now ? soonest - now : 0) }
    }

    private func expire() {
        let now = kernel.clock.now
        for index in routes.indices where routes[index].expires != 0 && routes[index].expires <= now {
            if routes[index].flags & UInt32(ALPS_RTF_CLONED | ALPS_RTF_DYNAMIC) == 0 {
                routes[index].mtu = 0
                routes[index].expires = 0
            }
        }
        routes.removeAll { $0.expires != 0 && $0.expires <= now }
        changed()
        scheduleExpiry()
    }
}

// MARK: "alps.route/1", `self` being the table

private func makeRouteOps() -> alps_route_ops {
    alps_route_ops(
        size: UInt32(MemoryLayout<alps_route_ops>.size), reserved: 0,
        generation: { context in
            Unmanaged<RouteTable>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.generation }
        },
        lookup: { context, family, destination, ifindex, route in
            Unmanaged<RouteTable>.fromOpaque(context)._withUnsafeGuaranteedRef {
                $0.lookup(family, destination.pointee, ifindex: ifindex, &route.pointee)
            }
        },
        add: { context, route in
            Unmanaged<RouteTable>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.add(route.pointee) }
        },
        remove: { context, route in
            Unmanaged<RouteTable>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.remove(route.pointee) }
        },
        update_mtu: { context, family, destination, mtu, lifetime in
            Unmanaged<RouteTable>.fromOpaque(context)._withUnsafeGuaranteedRef {
                $0.updateMTU(family, destination.pointee, mtu, lifetime)
            }
        },
        redirect: { context, family, destination, gateway, from, ifindex in
            Unmanaged<RouteTable>.fromOpaque(context)._withUnsafeGuaranteedRef {
                $0.redirect(family, destination.pointee, gateway.pointee, from.pointee, ifindex)
            }
        })
}

import Glibc
package import PluginAPI

/// The routing table ("alps.route/1"). Blind to families: keys are bytes.
///
/// Configured routes stand in one array in the order in which they are tried, longest prefix first: a host has a handful,
/// and whoever sends keeps a copy that is good while the generation stands. Host routes that carry news about one
/// destination (a path MTU, a redirect) may be many; they are found by hash, and go when a route that covers them changes.
package final class RouteTable {
    /// An address as two words, so that a prefix is compared at once.
    private struct Key: Hashable {
        var family: UInt16
        var high: UInt64
        var low: UInt64

        init(_ family: UInt16, _ address: alps_addr) {
            self.family = family
            (high, low) = withUnsafeBytes(of: address) {
                (
                    UInt64(bigEndian: $0.loadUnaligned(fromByteOffset: 0, as: UInt64.self)),
                    UInt64(bigEndian: $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
                )
            }
        }

        func covers(_ other: Key, _ length: UInt8) -> Bool {
            let shift = UInt64(length)
            let highMask: UInt64 = length == 0 ? 0 : length >= 64 ? .max : .max << (64 - shift)
            let lowMask: UInt64 = length <= 64 ? 0 : length >= 128 ? .max : .max << (128 - shift)
            return family == other.family && (high ^ other.high) & highMask == 0 && (low ^ other.low) & lowMask == 0
        }
    }

    private struct Entry {
        var key: Key
        var route: alps_route
    }

    private var kernel: Kernel!
    private var opsTable: UnsafeMutablePointer<alps_route_ops>?
    private let generationWord = UnsafeMutablePointer<UInt64>.allocate(capacity: 1)
    /// By prefix length, longest first, then by metric.
    private var entries: [Entry] = []
    /// Cloned and redirected host routes.
    private var news: [Key: alps_route] = [:]
    private var timer: HostTimer?
    /// Told of every configured route that comes (true) or goes.
    var onChange: ((alps_route, Bool) -> Void)?
    /// News at a time; what lapses first goes first.
    private static let maximumNews = 4096
    /// A redirect is believed for so long, ns.
    private static let redirectLifetime: UInt64 = 600_000_000_000

    package init() { generationWord.initialize(to: 1) }

    deinit {
        generationWord.deallocate()
        opsTable?.deallocate()
    }

    /// See `Kernel.shutdown`.
    func detach() {
        timer?.cancel()
        kernel = nil
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
    package var all: [alps_route] {
        let clones = news.sorted { ($0.key.family, $0.key.high, $0.key.low) < ($1.key.family, $1.key.high, $1.key.low) }
        return clones.map(\.value) + entries.map(\.route)
    }

    fileprivate var generation: UnsafePointer<UInt64> { UnsafePointer(generationWord) }

    /// Copies that others keep are void.
    package func changed() { generationWord.pointee &+= 1 }

    private static func fullLength(_ family: UInt16) -> UInt8 { family == UInt16(ALPS_AF_INET) ? 32 : 128 }

    // MARK: Lookup

    private func best(_ key: Key, _ ifindex: UInt32) -> alps_route? {
        // One of this stack's addresses is reached from every interface.
        func fits(_ route: alps_route) -> Bool {
            ifindex == 0 || route.ifindex == ifindex || route.flags & UInt32(ALPS_RTF_LOCAL) != 0
        }
        if !news.isEmpty, let route = news[key], fits(route) { return route }
        for index in entries.indices
        where entries[index].key.covers(key, entries[index].route.prefix_length) && fits(entries[index].route) {
            return entries[index].route
        }
        return nil
    }

    /// Longest prefix; ENETUNREACH or EHOSTUNREACH if there is no way.
    package func lookup(
        _ family: UInt16, _ destination: alps_addr, ifindex: UInt32 = 0, _ route: inout alps_route
    ) -> Int32 {
        guard let found = best(Key(family, destination), ifindex) else { return ENETUNREACH }
        route = found
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
        let place = entries.firstIndex {
            $0.route.prefix_length < route.prefix_length
                || $0.route.prefix_length == route.prefix_length && $0.route.metric > route.metric
        }
        let key = Key(route.family, route.destination)
        entries.insert(Entry(key: key, route: route), at: place ?? entries.count)
        forgetNews(within: key, route.prefix_length)
        changed()
        onChange?(route, true)
    }

    /// Takes out configured routes.
    private func removeEntries(where isWanted: (Entry) -> Bool) {
        let gone = entries.filter(isWanted)
        guard !gone.isEmpty else { return }
        entries.removeAll(where: isWanted)
        for entry in gone { onChange?(entry.route, false) }
    }

    /// Takes out the first route, in the order in which they are tried, that is wanted gone. False if there is none.
    package func removeFirst(where isWanted: (alps_route) -> Bool) -> Bool {
        if let index = entries.firstIndex(where: { isWanted($0.route) }) {
            let entry = entries.remove(at: index)
            forgetNews(within: entry.key, entry.route.prefix_length)
            changed()
            onChange?(entry.route, false)
            return true
        }
        guard let clone = news.first(where: { isWanted($0.value) }) else { return false }
        news[clone.key] = nil
        changed()
        return true
    }

    /// Puts back what was taken out, as it was.
    func restore(_ route: alps_route) { insert(route) }

    /// News that stood on a route which is another one now.
    private func forgetNews(within key: Key, _ length: UInt8) {
        for clone in news.keys where key.covers(clone, length) { news[clone] = nil }
    }

    package func add(_ route: alps_route) -> Int32 {
        var route = route
        let fullLength = Self.fullLength(route.family)
        guard route.prefix_length <= fullLength else { return EINVAL }
        Self.clearHostBits(&route)
        if route.prefix_length == fullLength { route.flags |= UInt32(ALPS_RTF_HOST) }
        if route.flags & UInt32(ALPS_RTF_GATEWAY) != 0 {
            guard let way = connected(route.family, route.gateway, route.ifindex) else { return ENETUNREACH }
            if route.ifindex == 0 { route.ifindex = way.ifindex }
        }
        guard route.ifindex == 0 || kernel.interfaces.interface(route.ifindex) != nil else { return ENODEV }
        guard route.ifindex != 0 || route.flags & UInt32(ALPS_RTF_REJECT) != 0 else { return EINVAL }
        let key = Key(route.family, route.destination)
        let exists = entries.contains {
            $0.key == key && $0.route.prefix_length == route.prefix_length && $0.route.metric == route.metric
        }
        guard !exists else { return EEXIST }
        insert(route)
        return 0
    }

    /// The route to a gateway, if that is on a network of ours.
    private func connected(_ family: UInt16, _ gateway: alps_addr, _ ifindex: UInt32) -> alps_route? {
        let indirect = UInt32(ALPS_RTF_GATEWAY | ALPS_RTF_LOCAL | ALPS_RTF_BROADCAST | ALPS_RTF_REJECT)
        guard let way = best(Key(family, gateway), ifindex), way.flags & indirect == 0 else { return nil }
        return way
    }

    package func remove(_ route: alps_route) -> Int32 {
        var wanted = route
        guard wanted.prefix_length <= Self.fullLength(wanted.family) else { return EINVAL }
        Self.clearHostBits(&wanted)
        let key = Key(wanted.family, wanted.destination)
        let gateway = Key(wanted.family, wanted.gateway)
        func matches(_ candidate: alps_route) -> Bool {
            candidate.prefix_length == wanted.prefix_length
                && (wanted.ifindex == 0 || candidate.ifindex == wanted.ifindex)
                && (wanted.flags & UInt32(ALPS_RTF_GATEWAY) == 0 || Key(candidate.family, candidate.gateway) == gateway)
                && candidate.flags & UInt32(ALPS_RTF_LOCAL | ALPS_RTF_BROADCAST) == 0
        }
        let before = entries.count + news.count
        removeEntries { $0.key == key && matches($0.route) }
        if let clone = news[key], matches(clone) { news[key] = nil }
        guard entries.count + news.count != before else { return ENOENT }
        forgetNews(within: key, wanted.prefix_length)
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
        route.ifindex = interface.raw.pointee.index
        route.gateway = gateway
        let status = add(route)
        guard status == 0 else {
            throw KernelError(
                status,
                status == EEXIST
                    ? "there is a default route already"
                    : "gateway \(NetworkAddress(address: gateway)) is not on a network of \(interface.name): "
                        + "give --address one that covers it")
        }
    }

    // MARK: Interfaces' own routes

    /// What an address brings: the network that is connected, the address itself (over lo0), the broadcast address.
    private func ownRoutes(_ interface: Interface, _ address: alps_ifaddr) -> [alps_route] {
        func route(_ destination: alps_addr, _ length: UInt8, _ flags: UInt32, _ ifindex: UInt32) -> alps_route {
            var route = alps_route()
            route.family = address.family
            route.prefix_length = length
            route.destination = destination
            route.ifindex = ifindex
            route.flags = flags
            Self.clearHostBits(&route)
            return route
        }
        let index = interface.raw.pointee.index
        let full = Self.fullLength(address.family)
        let loopback = kernel.interfaces.find("lo0")?.raw.pointee.index ?? index
        var routes = [route(address.addr, full, UInt32(ALPS_RTF_LOCAL | ALPS_RTF_HOST), loopback)]
        if address.prefix_length < full {
            routes.append(route(address.addr, address.prefix_length, UInt32(ALPS_RTF_CONNECTED), index))
        }
        if !NetworkAddress(address: address.broadcast).isZero {
            routes.append(route(address.broadcast, full, UInt32(ALPS_RTF_BROADCAST | ALPS_RTF_HOST), index))
        }
        return routes
    }

    private static func isSame(_ entry: Entry, _ route: alps_route) -> Bool {
        let kinds = UInt32(ALPS_RTF_LOCAL | ALPS_RTF_CONNECTED | ALPS_RTF_BROADCAST)
        return entry.key == Key(route.family, route.destination) && entry.route.prefix_length == route.prefix_length
            && entry.route.ifindex == route.ifindex && entry.route.flags & kinds == route.flags & kinds
    }

    func addInterfaceRoutes(_ interface: Interface, _ address: alps_ifaddr) {
        // Two addresses of one network share its routes.
        for route in ownRoutes(interface, address) where !entries.contains(where: { Self.isSame($0, route) }) {
            insert(route)
        }
    }

    /// `address` has left the interface already.
    func removeInterfaceRoutes(_ interface: Interface, _ address: alps_ifaddr) {
        let kept = kernel.interfaces.all.flatMap { other in other.addresses.flatMap { ownRoutes(other, $0) } }
        for route in ownRoutes(interface, address) {
            removeEntries { entry in Self.isSame(entry, route) && !kept.contains { Self.isSame(entry, $0) } }
        }
        // Gateways that cannot be reached any more lead nowhere.
        let index = interface.raw.pointee.index
        let gateway = UInt32(ALPS_RTF_GATEWAY)
        let stranded = entries.filter {
            $0.route.ifindex == index && $0.route.flags & gateway != 0
                && connected($0.route.family, $0.route.gateway, index) == nil
        }
        removeEntries { entry in
            stranded.contains { $0.key == entry.key && Self.isSameWay($0.route, entry.route) }
        }
        news = news.filter { $0.value.ifindex != index }
        changed()
    }

    private static func isSameWay(_ a: alps_route, _ b: alps_route) -> Bool {
        a.prefix_length == b.prefix_length && a.metric == b.metric && a.ifindex == b.ifindex
    }

    func removeAll(interface index: UInt32) {
        removeEntries { $0.route.ifindex == index }
        news = news.filter { $0.value.ifindex != index }
        changed()
    }

    // MARK: News about one destination

    private func remember(_ route: alps_route, for key: Key) {
        if news[key] == nil, news.count >= Self.maximumNews,
            let first = news.min(by: {
                ($0.value.expires, $0.key.high, $0.key.low) < ($1.value.expires, $1.key.high, $1.key.low)
            })
        {
            news[first.key] = nil
        }
        news[key] = route
        changed()
        scheduleExpiry()
    }

    private func hostRoute(_ route: alps_route, _ destination: alps_addr, _ kind: UInt32) -> alps_route {
        var clone = route
        clone.destination = destination
        clone.prefix_length = Self.fullLength(route.family)
        clone.flags &= ~UInt32(ALPS_RTF_STATIC | ALPS_RTF_CONNECTED)
        clone.flags |= UInt32(ALPS_RTF_HOST) | kind
        return clone
    }

    package func updateMTU(_ family: UInt16, _ destination: alps_addr, _ mtu: UInt32, lifetime: UInt64) -> Int32 {
        let key = Key(family, destination)
        var current = alps_route()
        let status = lookup(family, destination, &current)
        guard status == 0 else { return status }
        guard mtu < current.mtu || mtu == current.mtu && news[key]?.mtu == mtu else { return 0 }
        guard let route = best(key, 0) else { return ENETUNREACH }
        var clone = hostRoute(route, destination, UInt32(ALPS_RTF_CLONED))
        clone.mtu = mtu
        let expires = lifetime == 0 ? 0 : kernel.clock.now &+ lifetime
        // A redirect that carries the MTU too lapses with whichever lapses first.
        let isRedirect = clone.flags & UInt32(ALPS_RTF_DYNAMIC) != 0
        clone.expires = isRedirect && clone.expires != 0 && expires != 0 ? min(clone.expires, expires) : expires
        remember(clone, for: key)
        return 0
    }

    package func redirect(
        _ family: UInt16, _ destination: alps_addr, to gateway: alps_addr, from: alps_addr, ifindex: UInt32
    ) -> Int32 {
        // RFC 1122, section 3.2.2.2: from the first hop in use, to a neighbour on the same interface.
        let key = Key(family, destination)
        guard let route = best(key, 0), route.flags & UInt32(ALPS_RTF_GATEWAY) != 0, route.ifindex == ifindex,
            Key(family, route.gateway) == Key(family, from), connected(family, gateway, ifindex) != nil
        else { return EPERM }
        var clone = hostRoute(route, destination, UInt32(ALPS_RTF_DYNAMIC))
        clone.gateway = gateway
        clone.expires = kernel.clock.now &+ Self.redirectLifetime
        remember(clone, for: key)
        return 0
    }

    private func scheduleExpiry() {
        guard let soonest = news.values.lazy.map(\.expires).filter({ $0 != 0 }).min(), let timer else { return }
        let now = kernel.clock.now
        if !timer.isArmed || timer.deadline > soonest { timer.arm(after: soonest > now ? soonest - now : 0) }
    }

    private func expire() {
        let now = kernel.clock.now
        news = news.filter { $0.value.expires == 0 || $0.value.expires > now }
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
                $0.updateMTU(family, destination.pointee, mtu, lifetime: lifetime)
            }
        },
        redirect: { context, family, destination, gateway, from, ifindex in
            Unmanaged<RouteTable>.fromOpaque(context)._withUnsafeGuaranteedRef {
                $0.redirect(family, destination.pointee, to: gateway.pointee, from: from.pointee, ifindex: ifindex)
            }
        })
}

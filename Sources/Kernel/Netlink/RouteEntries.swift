import Glibc
import PluginAPI

// RTM_*ROUTE: the routing table (linux/rtnetlink.h). The stack has one table; what Linux keeps in its table "local" is shown
// as such.

/// RT_SCOPE_*.
enum RouteScope {
    static let universe: UInt8 = 0
    static let link: UInt8 = 253
    static let host: UInt8 = 254
}

/// RTA_*.
private enum Attribute {
    static let destination: UInt16 = 1
    static let source: UInt16 = 2
    static let inputInterface: UInt16 = 3
    static let outputInterface: UInt16 = 4
    static let gateway: UInt16 = 5
    static let priority: UInt16 = 6
    static let preferredSource: UInt16 = 7
    static let metrics: UInt16 = 8
    static let cacheInformation: UInt16 = 12
    static let table: UInt16 = 15
    static let mark: UInt16 = 16
    static let uid: UInt16 = 25
    static let protocolNumber: UInt16 = 27
    static let sourcePort: UInt16 = 28
    static let destinationPort: UInt16 = 29
}

/// RTAX_MTU.
private let mtuMetric: UInt16 = 2

/// RT_TABLE_*.
private enum Table {
    static let unspecified: UInt32 = 0
    static let main: UInt32 = 254
    static let local: UInt32 = 255
}

/// RTN_*.
private enum Kind {
    static let unspecified: UInt8 = 0
    static let unicast: UInt8 = 1
    static let local: UInt8 = 2
    static let broadcast: UInt8 = 3
    static let multicast: UInt8 = 5
    static let unreachable: UInt8 = 7
}

/// RTPROT_*.
private enum Origin {
    static let unspecified: UInt8 = 0
    static let redirect: UInt8 = 1
    static let kernel: UInt8 = 2
    static let boot: UInt8 = 3
}

/// rtm_flags.
private enum Flag {
    static let dead: UInt32 = 1
    static let onLink: UInt32 = 4
    static let linkDown: UInt32 = 16
    static let cloned: UInt32 = 0x200
    static let fibMatch: UInt32 = 0x2000
}

/// A route as Linux would describe it.
private struct Description {
    var table = Table.main
    var kind = Kind.unicast
    var scope = RouteScope.universe
    var origin = Origin.boot
    var interface: UInt32
    var source: alps_addr?
}

extension Netlink {
    /// struct rtmsg.
    private static let fixedSize = 12

    private func describe(_ route: alps_route) -> Description {
        var result = Description(interface: route.ifindex)
        func has(_ flag: some BinaryInteger) -> Bool { route.flags & UInt32(flag) != 0 }
        if has(ALPS_RTF_LOCAL) {
            result.table = Table.local
            result.kind = Kind.local
            result.scope = RouteScope.host
            result.origin = Origin.kernel
            result.source = route.destination
            // The stack sends it over lo0; Linux tells whose address it is.
            let owner = kernel.interfaces.all.first { $0.addresses.contains { $0.addr.word == route.destination.word } }
            result.interface = owner?.raw.pointee.index ?? route.ifindex
        } else if has(ALPS_RTF_BROADCAST) {
            result.table = Table.local
            result.kind = Kind.broadcast
            result.scope = RouteScope.link
            result.origin = Origin.kernel
            result.source = address(on: route)
        } else if has(ALPS_RTF_CONNECTED) {
            result.scope = RouteScope.link
            result.origin = Origin.kernel
            result.source = address(on: route)
            if kernel.interfaces.interface(route.ifindex)?.isLoopback == true {
                result.table = Table.local
                result.kind = Kind.local
                result.scope = RouteScope.host
            }
        } else if has(ALPS_RTF_REJECT) {
            result.kind = Kind.unreachable
        } else if !has(ALPS_RTF_GATEWAY) {
            result.scope = RouteScope.link
        }
        if has(ALPS_RTF_DYNAMIC) { result.origin = Origin.redirect }
        return result
    }

    /// The interface's address in the route's network.
    private func address(on route: alps_route) -> alps_addr? {
        let addresses = kernel.interfaces.interface(route.ifindex)?.addresses ?? []
        func covers(_ address: alps_ifaddr) -> Bool {
            let mask = address.prefix_length == 0 ? 0 : UInt32.max << UInt32(32 - min(address.prefix_length, 32))
            return (address.addr.word ^ route.destination.word) & mask == 0
        }
        return addresses.first(where: covers)?.addr
    }

    private func firstAddress(of route: alps_route) -> alps_addr? {
        kernel.interfaces.interface(route.ifindex)?.addresses.first?.addr
    }

    private func liveness(_ route: alps_route) -> UInt32 {
        guard let interface = kernel.interfaces.interface(route.ifindex), !interface.isUp else { return 0 }
        return Flag.dead | Flag.linkDown
    }

    /// What follows the header of RTM_NEWROUTE.
    func write(_ route: alps_route, to writer: inout NetlinkWriter) {
        let description = describe(route)
        let isClone = route.flags & UInt32(ALPS_RTF_CLONED | ALPS_RTF_DYNAMIC) != 0
        writer.append([UInt8(AF_INET), route.prefix_length, 0, 0])
        writer.append([UInt8(description.table), description.origin, description.scope, description.kind])
        writer.append(liveness(route) | (isClone ? Flag.cloned : 0))
        writer.attribute(Attribute.table, description.table)
        if route.prefix_length > 0 { writer.attribute(Attribute.destination, route.destination.ipv4) }
        if route.metric != 0 { writer.attribute(Attribute.priority, route.metric) }
        if route.mtu != 0 { writer.attribute(Attribute.metrics) { $0.attribute(mtuMetric, route.mtu) } }
        if let source = description.source { writer.attribute(Attribute.preferredSource, source.ipv4) }
        if route.flags & UInt32(ALPS_RTF_GATEWAY) != 0 { writer.attribute(Attribute.gateway, route.gateway.ipv4) }
        if description.interface != 0 { writer.attribute(Attribute.outputInterface, description.interface) }
        if isClone { writeLifetime(route, to: &writer) }
    }

    /// struct rta_cacheinfo: what is left, in hundredths of a second.
    private func writeLifetime(_ route: alps_route, to writer: inout NetlinkWriter) {
        let left = route.expires > kernel.clock.now ? (route.expires - kernel.clock.now) / 10_000_000 : 0
        writer.attribute(Attribute.cacheInformation) {
            $0.append(UInt64(0))
            $0.append(UInt32(clamping: left))
            $0.append([UInt8](repeating: 0, count: 20))
        }
    }

    // MARK: Asking

    func dumpRoutes(_ request: NetlinkRequest) -> NetlinkSource {
        do {
            var table = Table.unspecified
            var index: UInt32 = 0
            var kind = Kind.unspecified
            var origin = Origin.unspecified
            let flags: UInt32 = request.payload.number(at: 8)
            if request.socket.options.isStrict {
                try request.require(Self.fixedSize)
                func field(_ offset: Int) -> UInt8 { request.payload.number(at: offset) }
                guard field(1) == 0, field(2) == 0, field(3) == 0, field(6) == 0,
                    flags & ~(Flag.cloned | 0x800 /* RTM_F_PREFIX */) == 0
                else { throw NetlinkError(EINVAL, "Invalid values in header for FIB dump request") }
                let attributes = try NetlinkAttributes(request.payload, after: Self.fixedSize)
                guard attributes.types.allSatisfy({ $0 == Attribute.table || $0 == Attribute.outputInterface }) else {
                    throw NetlinkError(EINVAL, "Unsupported attribute in dump request")
                }
                table = try attributes.number(Attribute.table) ?? UInt32(field(4))
                origin = field(5)
                kind = field(7)
                index = try attributes.number(Attribute.outputInterface) ?? 0
                guard index == 0 || kernel.interfaces.interface(index) != nil else { throw NetlinkError(ENODEV) }
                guard [Table.unspecified, Table.main, Table.local].contains(table) else {
                    throw NetlinkError(ENOENT, "ipv4: FIB table does not exist")
                }
            }
            let family = request.payload.first ?? 0
            guard family == AF_UNSPEC || family == AF_INET else { return NetlinkSource([]) }
            let wantsClones = flags & Flag.cloned != 0
            let messages = kernel.routes.all.compactMap { route -> [UInt8]? in
                let isClone = route.flags & UInt32(ALPS_RTF_CLONED | ALPS_RTF_DYNAMIC) != 0
                let description = describe(route)
                guard isClone == wantsClones, table == Table.unspecified || table == description.table,
                    index == 0 || index == description.interface, kind == Kind.unspecified || kind == description.kind,
                    origin == Origin.unspecified || origin == description.origin
                else { return nil }
                var writer = request.reply(Subject.route.new)
                write(route, to: &writer)
                return writer.finished()
            }
            let isFiltered = table != 0 || index != 0 || kind != 0 || origin != 0
            return NetlinkSource(messages, isFiltered: isFiltered)
        } catch { return NetlinkSource(failing: error as? NetlinkError ?? NetlinkError(EINVAL)) }
    }

    /// The way that a packet to one address would take (`ip route get`).
    func getRoute(_ request: NetlinkRequest) throws -> NetlinkOutcome {
        try request.require(Self.fixedSize)
        let attributes = try NetlinkAttributes(request.payload, after: Self.fixedSize)
        let length: UInt8 = request.payload.number(at: 1)
        guard length == 0 || length == 32 else { throw NetlinkError(EINVAL, "Invalid values in header for route get request") }
        guard !attributes.has(Attribute.inputInterface) else {
            throw NetlinkError(EOPNOTSUPP, "the stack does not forward")
        }
        let destination = try attributes.address(Attribute.destination) ?? alps_addr()
        let index = try attributes.number(Attribute.outputInterface, as: UInt32.self) ?? 0
        guard index == 0 || kernel.interfaces.interface(index) != nil else { throw NetlinkError(ENODEV) }
        let source = try attributes.address(Attribute.source)
        let chosen = try way(to: destination, from: source, over: index)
        if request.payload.number(at: 8, as: UInt32.self) & Flag.fibMatch != 0 {
            var writer = request.reply(Subject.route.new)
            var route = chosen.route
            // The path's MTU, where the route has one of its own only if that is less than the interface's.
            if route.mtu >= interfaceMTU(route) { route.mtu = 0 }
            write(route, to: &writer)
            request.socket.deliver(writer.finished())
            return .done
        }
        var kind = describe(chosen.route).kind
        if destination.word >> 28 == 0xe { kind = Kind.multicast }
        if destination.word == UInt32.max { kind = Kind.broadcast }
        var writer = request.reply(Subject.route.new)
        writer.append([UInt8(AF_INET), 32, source == nil ? 0 : 32, 0])
        writer.append([UInt8(Table.main), Origin.unspecified, RouteScope.universe, kind])
        // RTCF_LOCAL, RTCF_BROADCAST with RTCF_LOCAL, RTCF_MULTICAST.
        let more: [UInt8: UInt32] = [Kind.local: 0x8000_0000, Kind.broadcast: 0x9000_0000, Kind.multicast: 0x2000_0000]
        writer.append(Flag.cloned | (more[kind] ?? 0))
        writer.attribute(Attribute.table, kind == Kind.local ? Table.local : Table.main)
        writer.attribute(Attribute.destination, destination.ipv4)
        if let source { writer.attribute(Attribute.source, source.ipv4) }
        writer.attribute(Attribute.outputInterface, chosen.route.ifindex)
        writer.attribute(Attribute.preferredSource, chosen.source.ipv4)
        if chosen.route.flags & UInt32(ALPS_RTF_GATEWAY) != 0 {
            writer.attribute(Attribute.gateway, chosen.route.gateway.ipv4)
        }
        if chosen.route.mtu != 0, chosen.route.mtu < interfaceMTU(chosen.route) {
            writer.attribute(Attribute.metrics) { $0.attribute(mtuMetric, chosen.route.mtu) }
        }
        writer.attribute(Attribute.uid, try attributes.number(Attribute.uid, as: UInt32.self) ?? request.socket.uid)
        writeLifetime(chosen.route, to: &writer)
        request.socket.deliver(writer.finished())
        return .done
    }

    private func interfaceMTU(_ route: alps_route) -> UInt32 {
        kernel.interfaces.interface(route.ifindex)?.raw.pointee.mtu ?? route.mtu
    }

    /// The network's own choice of route and source.
    private func way(
        to destination: alps_addr, from source: alps_addr?, over index: UInt32
    ) throws -> (route: alps_route, source: alps_addr) {
        if let source, !kernel.interfaces.all.contains(where: { $0.addresses.contains { $0.addr.word == source.word } }) {
            throw NetlinkError(ENETUNREACH)
        }
        guard let cell = kernel.plugins.providedCell("alps.network/1:\(ALPS_AF_INET)"), let ops = cell.pointee.ops,
            let instance = cell.pointee.`self`
        else {
            var route = alps_route()
            let status = kernel.routes.lookup(UInt16(ALPS_AF_INET), destination, ifindex: index, &route)
            guard status == 0 else { throw NetlinkError(status) }
            return (route, source ?? address(on: route) ?? firstAddress(of: route) ?? alps_addr())
        }
        var netpcb = alps_netpcb()
        netpcb.size = UInt32(MemoryLayout<alps_netpcb>.size)
        netpcb.family = UInt16(ALPS_AF_INET)
        netpcb.flags = UInt8(ALPS_NETPCB_BROADCAST)
        netpcb.bound_ifindex = index
        netpcb.remote = destination
        if let source { netpcb.local = source }
        let network = ops.assumingMemoryBound(to: alps_network_ops.self)
        let status = network.pointee.route(instance, &netpcb)
        guard status == 0 else { throw NetlinkError(status) }
        return (netpcb.route, netpcb.local)
    }

    // MARK: Changing

    /// The route that a request describes.
    private func route(_ request: NetlinkRequest) throws -> (alps_route, NetlinkAttributes) {
        try request.require(Self.fixedSize)
        let attributes = try NetlinkAttributes(request.payload, after: Self.fixedSize)
        let length: UInt8 = request.payload.number(at: 1)
        guard request.payload.first == UInt8(AF_INET) else { throw NetlinkError(EAFNOSUPPORT) }
        guard length <= 32 else { throw NetlinkError(EINVAL, "Invalid prefix length") }
        guard request.payload.number(at: 3, as: UInt8.self) == 0 else {
            throw NetlinkError(EOPNOTSUPP, "routes do not look at the type of service")
        }
        var route = alps_route()
        route.family = UInt16(ALPS_AF_INET)
        route.prefix_length = length
        route.flags = UInt32(ALPS_RTF_STATIC)
        route.destination = try attributes.address(Attribute.destination) ?? alps_addr()
        let hostBits = length == 32 ? 0 : UInt32.max >> UInt32(length)
        guard route.destination.word & hostBits == 0 else {
            throw NetlinkError(EINVAL, "Invalid prefix for given prefix length")
        }
        route.metric = try attributes.number(Attribute.priority) ?? 0
        route.ifindex = try attributes.number(Attribute.outputInterface) ?? 0
        guard route.ifindex == 0 || kernel.interfaces.interface(route.ifindex) != nil else { throw NetlinkError(ENODEV) }
        if let gateway = try attributes.address(Attribute.gateway), gateway.word != 0 {
            route.flags |= UInt32(ALPS_RTF_GATEWAY)
            route.gateway = gateway
        }
        let table = try attributes.number(Attribute.table) ?? UInt32(request.payload.number(at: 4, as: UInt8.self))
        guard table == Table.main || table == Table.unspecified || table == Table.local else {
            throw NetlinkError(EOPNOTSUPP, "the stack has one routing table")
        }
        return (route, attributes)
    }

    func addRoute(_ request: NetlinkRequest) throws {
        var (route, attributes) = try route(request)
        let known: Set<UInt16> = [
            Attribute.destination, Attribute.outputInterface, Attribute.gateway, Attribute.priority,
            Attribute.preferredSource, Attribute.metrics, Attribute.table,
        ]
        guard attributes.types.allSatisfy(known.contains) else {
            throw NetlinkError(EOPNOTSUPP, "a route has a gateway, an interface, a metric and an mtu")
        }
        switch request.payload.number(at: 7, as: UInt8.self) {
        case Kind.unicast: break
        case Kind.unreachable: route.flags |= UInt32(ALPS_RTF_REJECT)
        case let kind where kind > 11 /* RTN_MAX */: throw NetlinkError(EINVAL, "Invalid route type")
        default: throw NetlinkError(EOPNOTSUPP, "routes are unicast or unreachable")
        }
        if request.payload.number(at: 8, as: UInt32.self) & Flag.onLink != 0 {
            throw NetlinkError(EOPNOTSUPP, "a gateway is on a network that is connected")
        }
        if let metrics = try attributes.nested(Attribute.metrics) {
            // RTAX_LOCK goes with a fixed MTU, which it is here.
            guard metrics.types.allSatisfy({ $0 == mtuMetric || $0 == 1 }) else {
                throw NetlinkError(EOPNOTSUPP, "mtu is the only metric of a route")
            }
            route.mtu = try metrics.number(mtuMetric) ?? 0
        }
        if route.flags & UInt32(ALPS_RTF_GATEWAY | ALPS_RTF_REJECT) == 0, route.ifindex == 0 {
            throw NetlinkError(ENODEV)
        }
        if let interface = kernel.interfaces.interface(route.ifindex), !interface.isUp { throw NetlinkError(ENETDOWN) }
        if let source = try attributes.address(Attribute.preferredSource), source.word != 0 {
            let own = kernel.interfaces.all.filter { $0.addresses.contains { $0.addr.word == source.word } }
            guard !own.isEmpty else { throw NetlinkError(EINVAL, "Invalid prefsrc address") }
            guard own.contains(where: { $0.addresses.first?.addr.word == source.word }) else {
                throw NetlinkError(EOPNOTSUPP, "routes do not choose the source")
            }
        }
        try insert(route, request)
    }

    private func insert(_ route: alps_route, _ request: NetlinkRequest) throws {
        func isSame(_ other: alps_route) -> Bool {
            other.destination.word == route.destination.word && other.prefix_length == route.prefix_length
                && other.metric == route.metric
                && other.flags & UInt32(ALPS_RTF_LOCAL | ALPS_RTF_BROADCAST | ALPS_RTF_CLONED | ALPS_RTF_DYNAMIC) == 0
        }
        let old = kernel.routes.all.first(where: isSame)
        if old != nil {
            guard !request.has(NetlinkHeader.exclusive), request.has(NetlinkHeader.replace) else {
                throw NetlinkError(EEXIST, "ipv4: FIB entry already exists")
            }
        } else if !request.has(NetlinkHeader.create) {
            throw NetlinkError(ENOENT, "NLM_F_CREATE should be specified when creating new route")
        }
        if old != nil { _ = kernel.routes.removeFirst(where: isSame) }
        let status = kernel.routes.add(route)
        guard status == 0 else {
            if let old { kernel.routes.restore(old) }
            throw NetlinkError(status, status == ENETUNREACH ? "Nexthop has invalid gateway" : "")
        }
    }

    func deleteRoute(_ request: NetlinkRequest) throws {
        let (route, attributes) = try route(request)
        let kind: UInt8 = request.payload.number(at: 7)
        let scope: UInt8 = request.payload.number(at: 6)
        let origin: UInt8 = request.payload.number(at: 5)
        let source = try attributes.address(Attribute.preferredSource)
        let hasMetric = attributes.has(Attribute.priority)
        // As fib_table_delete: what the request does not say matches all. Scope 255 is "nowhere", which `ip` sends for it.
        let removed = kernel.routes.removeFirst { other in
            let description = describe(other)
            return other.destination.word == route.destination.word && other.prefix_length == route.prefix_length
                && other.flags & UInt32(ALPS_RTF_LOCAL | ALPS_RTF_BROADCAST) == 0
                && (!hasMetric || other.metric == route.metric)
                && (route.ifindex == 0 || other.ifindex == route.ifindex)
                && (route.flags & UInt32(ALPS_RTF_GATEWAY) == 0
                    || other.flags & UInt32(ALPS_RTF_GATEWAY) != 0 && other.gateway.word == route.gateway.word)
                && (kind == Kind.unspecified || kind == description.kind)
                && (scope == 255 || scope == description.scope)
                && (origin == Origin.unspecified || origin == description.origin)
                && (source == nil || source?.word == (description.source ?? firstAddress(of: other))?.word)
        }
        guard removed else { throw NetlinkError(ESRCH) }
    }
}

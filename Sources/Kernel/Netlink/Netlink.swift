import Glibc
import PluginAPI

/// AF_NETLINK as the stack answers it: sockets, their ports, and who hears of what changes.
///
/// NETLINK_ROUTE shows and changes interfaces, addresses, routes and neighbours; NETLINK_SOCK_DIAG shows sockets. Other
/// families are the kernel's business, or nobody's.
package final class Netlink {
    package static let route: Int32 = 0
    package static let socketDiagnosis: Int32 = 4
    /// Families whose sockets are made here.
    package static let families: Set<Int32> = [route, socketDiagnosis]

    private(set) var kernel: Kernel!
    private struct Port: Hashable {
        let family: Int32
        let number: UInt32
    }
    private var ports: [Port: NetlinkSocket] = [:]
    private var sockets: [ObjectIdentifier: NetlinkSocket] = [:]
    /// The next to be given to a socket whose process's number is taken.
    private var nextPort = firstPort
    private static let firstPort: Int32 = -4097
    /// The request that is being executed: what it changes is told with its numbers.
    private var current: NetlinkRequest?
    /// Groups that anybody is in.
    private var wantedGroups: UInt64 = 0
    private var neighbors: NeighborWatch!

    package init() {}

    func attach(_ kernel: Kernel) {
        self.kernel = kernel
        neighbors = NeighborWatch(kernel) { [unowned self] in self.tellNeighbor($0, isNew: $1) }
        kernel.interfaces.onChange = { [unowned self] in self.interfaceChanged($0, $1, $2) }
        kernel.routes.onChange = { [unowned self] in self.routeChanged($0, isNew: $1) }
    }

    /// See `Kernel.shutdown`.
    func detach() {
        neighbors.stop()
        kernel.interfaces.onChange = nil
        kernel.routes.onChange = nil
        ports.removeAll()
        sockets.removeAll()
        kernel = nil
    }

    // MARK: Sockets

    /// socket(2) with AF_NETLINK.
    package func create(family: Int32, type: Int32, uid: UInt32 = 0, pid: Int32 = 0) throws -> NetlinkSocket {
        guard type == ALPS_SOCK_RAW || type == ALPS_SOCK_DGRAM else {
            throw KernelError(ESOCKTNOSUPPORT, "netlink has no sockets of type \(type)")
        }
        guard Self.families.contains(family) else {
            throw KernelError(EPROTONOSUPPORT, "netlink family \(family) is not there")
        }
        guard kernel.sockets.hasRoom(beside: sockets.count) else {
            throw KernelError(ENFILE, "the limit of sockets is reached (kern.ipc.maxsockets)")
        }
        let socket = NetlinkSocket(hub: self, family: family, type: type, uid: uid, pid: pid)
        sockets[ObjectIdentifier(socket)] = socket
        return socket
    }

    package var count: Int { sockets.count }

    func closed(_ socket: NetlinkSocket) {
        sockets[ObjectIdentifier(socket)] = nil
        let port = Port(family: socket.family, number: socket.port)
        if ports[port] === socket { ports[port] = nil }
        groupsChanged()
    }

    /// The port that was asked for, or for 0 the process's number or a negative one, as Linux gives it; nil if it is taken.
    func claimPort(_ wanted: UInt32, of socket: NetlinkSocket, pid: Int32) -> UInt32? {
        func isFree(_ number: UInt32) -> Bool { ports[Port(family: socket.family, number: number)] == nil }
        var port = wanted
        if wanted == 0 {
            port = UInt32(bitPattern: max(pid, 1))
            while !isFree(port) {
                port = UInt32(bitPattern: nextPort)
                nextPort = nextPort > Int32.min ? nextPort - 1 : Self.firstPort
            }
        }
        guard isFree(port) else { return nil }
        ports[Port(family: socket.family, number: port)] = socket
        return port
    }

    // MARK: Requests

    func answer(_ request: NetlinkRequest) throws -> NetlinkOutcome {
        current = request
        defer { current = nil }
        return request.socket.family == Self.route
            ? try answerRoute(request) : try SocketDiagnosis.answer(request, kernel)
    }

    /// Types of NETLINK_ROUTE (linux/rtnetlink.h): four a subject, NEW, DEL, GET and SET.
    enum Subject: UInt16 {
        case link = 16
        case address = 20
        case route = 24
        case neighbor = 28

        var new: UInt16 { rawValue }
        var delete: UInt16 { rawValue + 1 }
    }

    private static let lastType: UInt16 = 123
    /// RTM_GETNSID: `ip` asks before it shows where something is.
    private static let getNamespace: UInt16 = 90

    private func answerRoute(_ request: NetlinkRequest) throws -> NetlinkOutcome {
        let type = request.header.type
        guard type <= Self.lastType else { throw NetlinkError(EOPNOTSUPP) }
        // A message without a family asks for nothing.
        guard let family = request.payload.first else { return .done }
        let verb = (type - NetlinkHeader.firstType) & 3
        guard verb == 2 || request.mayChange else { throw NetlinkError(EPERM) }
        if type == Self.getNamespace { return try getNamespace(request) }
        guard let subject = Subject(rawValue: type - verb) else { throw NetlinkError(EOPNOTSUPP) }
        let isIPv6 = family == 10
        if verb == 2, request.isDump {
            // There is nothing of another family, and asking is no mistake.
            if isIPv6 { return .dump(NetlinkSource([])) }
        } else if isIPv6 {
            throw NetlinkError(EAFNOSUPPORT, "the stack has no IPv6")
        }
        switch (subject, verb) {
        case (.link, 0): try changeLink(request)
        case (.link, 1): try removeLink(request)
        case (.link, 2): return try request.isDump ? .dump(dumpLinks(request)) : getLink(request)
        // RTM_SETLINK: RTM_NEWLINK of an interface that is there.
        case (.link, 3): try changeLink(request)
        case (.address, 0): try addAddress(request)
        case (.address, 1): try deleteAddress(request)
        case (.address, 2) where request.isDump: return .dump(dumpAddresses(request))
        case (.route, 0): try addRoute(request)
        case (.route, 1): try deleteRoute(request)
        case (.route, 2): return try request.isDump ? .dump(dumpRoutes(request)) : getRoute(request)
        case (.neighbor, 0): try addNeighbor(request)
        case (.neighbor, 1): try deleteNeighbor(request)
        case (.neighbor, 2): return try request.isDump ? .dump(dumpNeighbors(request)) : getNeighbor(request)
        default: throw NetlinkError(EOPNOTSUPP)
        }
        return .done
    }

    /// No other network namespace has a number here (NETNSA_NSID_NOT_ASSIGNED).
    private func getNamespace(_ request: NetlinkRequest) throws -> NetlinkOutcome {
        guard !request.isDump else { return .dump(NetlinkSource([])) }
        guard try !NetlinkAttributes(request.payload, after: 1).types.isEmpty else { throw NetlinkError(EINVAL) }
        var writer = request.reply(88 /* RTM_NEWNSID */)
        writer.append([UInt8(0), 0, 0, 0])
        writer.attribute(1 /* NETNSA_NSID */, Int32(-1))
        request.socket.deliver(writer.finished())
        return .done
    }

    // MARK: Notifications

    /// RTNLGRP_*.
    enum Group: UInt32 {
        case link = 1
        case neighbor = 3
        case ipv4Address = 5
        case ipv4Route = 7
    }

    func groupsChanged() {
        wantedGroups = sockets.values.reduce(0) { $0 | ($1.family == Self.route ? $1.groups : 0) }
        neighbors.isWanted = wantedGroups & (1 << UInt64(Group.neighbor.rawValue - 1)) != 0
    }

    /// Tells everybody in a group, and the one who asked with NLM_F_ECHO.
    private func tell(_ group: Group, _ type: UInt16, _ body: (inout NetlinkWriter) -> Void) {
        let asker = current?.has(NetlinkHeader.echo) == true ? current?.socket : nil
        guard wantedGroups & (1 << UInt64(group.rawValue - 1)) != 0 || asker != nil else { return }
        var writer = NetlinkWriter(
            NetlinkHeader(type: type, sequence: current?.header.sequence ?? 0, port: current?.socket.port ?? 0))
        body(&writer)
        let message = writer.finished()
        let listeners = sockets.values.filter { $0.family == Self.route && $0.isMember(of: group.rawValue) }
        for socket in listeners.sorted(by: { $0.port < $1.port }) { socket.deliver(message, group: group.rawValue) }
        if let asker, !asker.isMember(of: group.rawValue) { asker.deliver(message) }
    }

    private func interfaceChanged(_ kind: UInt32, _ interface: Interface, _ address: alps_ifaddr?) {
        switch kind {
        case ALPS_IFEVENT_ADDRESS_ADD, ALPS_IFEVENT_ADDRESS_DELETE:
            guard let address else { return }
            let type = kind == ALPS_IFEVENT_ADDRESS_ADD ? Subject.address.new : Subject.address.delete
            tell(.ipv4Address, type) { Self.write(address, of: interface, to: &$0) }
        case ALPS_IFEVENT_DETACH: tell(.link, Subject.link.delete) { Self.write(interface, to: &$0) }
        default: tell(.link, Subject.link.new) { Self.write(interface, to: &$0) }
        }
    }

    private func routeChanged(_ route: alps_route, isNew: Bool) {
        // Of path MTUs and redirects nobody is told, as on Linux.
        guard route.flags & UInt32(ALPS_RTF_CLONED | ALPS_RTF_DYNAMIC) == 0 else { return }
        tell(.ipv4Route, isNew ? Subject.route.new : Subject.route.delete) { self.write(route, to: &$0) }
    }

    private func tellNeighbor(_ neighbor: alps_neighbor, isNew: Bool) {
        tell(.neighbor, isNew ? Subject.neighbor.new : Subject.neighbor.delete) { Self.write(neighbor, to: &$0) }
    }

    /// Something was changed here: listeners need not wait for the next look.
    func neighborsChanged() { neighbors.look() }
}

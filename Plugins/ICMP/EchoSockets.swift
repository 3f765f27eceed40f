import PluginAPI
import PluginKit

/// A datagram socket that sends echo requests and gets the answers to them: "ping" for people who may not open raw
/// sockets. The identifier is the socket's port, as on Linux.
struct EchoSocket {
    var next: UnsafeMutablePointer<EchoSocket>?
    var socket: Socket
    /// 0 while none has been chosen.
    var identifier: UInt16
    /// What bind has been asked for.
    var bound: alps_addr
}

typealias Socket = UnsafeMutablePointer<alps_socket>
typealias EchoSocketPointer = UnsafeMutablePointer<EchoSocket>

extension UnsafeMutablePointer where Pointee == alps_socket {
    @inline(__always)
    fileprivate var echo: EchoSocketPointer? { pointee.pcb?.assumingMemoryBound(to: EchoSocket.self) }
}

extension UnsafeMutablePointer where Pointee == Instance {
    private func find(_ identifier: UInt16) -> EchoSocketPointer? {
        var entry = pointee.echoSockets
        while let current = entry {
            if current.pointee.identifier == identifier { return current }
            entry = current.pointee.next
        }
        return nil
    }

    fileprivate var echoSocketCount: Int64 {
        var total: Int64 = 0
        var entry = pointee.echoSockets
        while let current = entry {
            total += 1
            entry = current.pointee.next
        }
        return total
    }

    /// An identifier of its own; the one asked for, if it is free.
    fileprivate func reserve(_ echo: EchoSocketPointer, _ wanted: UInt16) -> Int32 {
        if echo.pointee.identifier != 0 { return 0 }
        if wanted != 0 {
            guard find(wanted) == nil else { return ALPS_EADDRINUSE }
            echo.pointee.identifier = wanted
            return 0
        }
        // There are fewer sockets than numbers, so one is soon found.
        var candidate = UInt16(truncatingIfNeeded: services.random)
        for _ in 0..<65536 {
            if candidate != 0, find(candidate) == nil {
                echo.pointee.identifier = candidate
                return 0
            }
            candidate &+= 1
        }
        return ALPS_EADDRINUSE
    }

    fileprivate func unlink(_ so: Socket) {
        guard let echo = so.echo else { return }
        if pointee.echoSockets == echo {
            pointee.echoSockets = echo.pointee.next
        } else {
            var previous = pointee.echoSockets
            while let current = previous {
                if current.pointee.next == echo {
                    current.pointee.next = echo.pointee.next
                    break
                }
                previous = current.pointee.next
            }
        }
        so.pointee.pcb = nil
        services.free(echo)
    }

    /// An echo reply: to the socket that has its identifier, if one has. [consumes]
    func deliverReply(_ packet: Mbuf) {
        let identifier = packet.pointee.data.load16(4)
        guard identifier != 0, let echo = find(identifier) else {
            count(.ignored)
            return free(packet)
        }
        let netpcb = echo.pointee.socket.pointee.netpcb
        let remote = ipv4(netpcb.pointee.remote)
        let bound = ipv4(echo.pointee.bound)
        guard remote == 0 || remote == ipv4(packet.pointee.pkt.source),
            bound == 0 || bound == ipv4(packet.pointee.pkt.destination),
            netpcb.pointee.bound_ifindex == 0 || netpcb.pointee.bound_ifindex == packet.pointee.pkt.ifindex
        else {
            count(.ignored)
            return free(packet)
        }
        var info = alps_datagram_info(
            size: UInt32(MemoryLayout<alps_datagram_info>.size), ifindex: packet.pointee.pkt.ifindex,
            source: alps_sockaddr(family: UInt16(ALPS_AF_INET), port: 0, scope: 0, addr: packet.pointee.pkt.source),
            destination: packet.pointee.pkt.destination, timestamp: packet.pointee.pkt.timestamp,
            ttl: packet.pointee.pkt.ttl, tos: packet.pointee.pkt.tos, reserved: 0)
        let cell = services.socketCell
        let status = cell.ops(alps_socket_ops.self).pointee.receive_datagram(
            cell.instance, echo.pointee.socket, packet, &info)
        count(status == 0 ? .echoDelivered : .echoDropped)
    }

    /// An error about one of our echo requests. True if a socket has been told.
    func reportToEchoSocket(_ event: inout alps_ctl_event, _ quoted: Mbuf) -> Bool {
        var header: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8) = (0, 0, 0, 0, 0, 0)
        services.mbuf.pointee.copy_out(pool, quoted, event.transport_offset, 6, &header)
        guard header.0 == Message.echo, let echo = find(UInt16(header.4) << 8 | UInt16(header.5)) else { return false }
        let so = echo.pointee.socket
        let isConnected = so.pointee.state & ALPS_SS_CONNECTED != 0
        // As for UDP: final ones to a connected socket, all of them to one that has asked for them.
        if so.pointee.options & ALPS_SO_RECVERR != 0 || event.hard != 0 && isConnected {
            let cell = services.socketCell
            cell.ops(alps_socket_ops.self).pointee.report_error(cell.instance, so, &event, event.transport_offset, 0)
        }
        return true
    }

    @inline(__always)
    fileprivate var network: (ops: UnsafePointer<alps_network_ops>, instance: UnsafeMutableRawPointer)? {
        guard let cell = pointee.networkCell, cell.isProvided else { return nil }
        return (cell.ops(alps_network_ops.self), cell.instance)
    }
}

// MARK: Requests

func echoAttach(_ context: UnsafeMutableRawPointer, _ so: Socket) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    // As on Linux: root is sent away to raw sockets, which show errors too.
    let isRoot = so.pointee.uid == 0
    guard instance.setting(.echoSockets) > (isRoot ? 1 : 0) else { return ALPS_EACCES }
    guard instance.echoSocketCount < instance.setting(.maximumEchoSockets) else { return ALPS_ENOBUFS }
    guard let echo = instance.services.allocate(EchoSocket.self) else { return ALPS_ENOBUFS }
    echo.initialize(
        to: EchoSocket(next: instance.pointee.echoSockets, socket: so, identifier: 0, bound: alps_addr()))
    instance.pointee.echoSockets = echo
    so.pointee.pcb = UnsafeMutableRawPointer(echo)
    return 0
}

func echoBind(_ context: UnsafeMutableRawPointer, _ so: Socket, _ address: UnsafePointer<alps_sockaddr>) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let echo = so.echo, let network = instance.network else { return ALPS_EINVAL }
    var wanted = address.pointee.addr
    let isFree = so.pointee.netpcb.pointee.flags & UInt8(ALPS_NETPCB_FREEBIND) != 0
    switch network.ops.pointee.classify(network.instance, &wanted, so.pointee.netpcb.pointee.bound_ifindex) {
    case ALPS_ADDR_UNSPECIFIED, ALPS_ADDR_LOCAL: break
    default: if !isFree { return ALPS_EADDRNOTAVAIL }
    }
    guard echo.pointee.identifier == 0 else { return ALPS_EINVAL }
    let status = instance.reserve(echo, address.pointee.port)
    guard status == 0 else { return status }
    echo.pointee.bound = wanted
    so.pointee.netpcb.pointee.local = wanted
    return 0
}

func echoConnect(_ context: UnsafeMutableRawPointer, _ so: Socket, _ address: UnsafePointer<alps_sockaddr>) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let echo = so.echo, let network = instance.network else { return ALPS_EINVAL }
    let netpcb = so.pointee.netpcb
    let before = netpcb.pointee
    netpcb.pointee.remote = address.pointee.addr
    netpcb.pointee.local = echo.pointee.bound
    var status = network.ops.pointee.route(network.instance, netpcb)
    if status == 0 { status = instance.reserve(echo, 0) }
    guard status == 0 else {
        netpcb.pointee = before
        return status
    }
    let cell = instance.services.socketCell
    cell.ops(alps_socket_ops.self).pointee.is_connected(cell.instance, so)
    return 0
}

func echoDisconnect(_ context: UnsafeMutableRawPointer, _ so: Socket) -> Int32 {
    guard let echo = so.echo else { return ALPS_EINVAL }
    let netpcb = so.pointee.netpcb
    netpcb.pointee.remote = alps_addr()
    netpcb.pointee.local = echo.pointee.bound
    so.pointee.state &= ~ALPS_SS_CONNECTED
    return 0
}

func echoShutdown(_ context: UnsafeMutableRawPointer, _ so: Socket, _ how: Int32) -> Int32 { 0 }

func echoClose(_ context: UnsafeMutableRawPointer, _ so: Socket) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    instance.unlink(so)
    let cell = instance.services.socketCell
    cell.ops(alps_socket_ops.self).pointee.detached(cell.instance, so)
    return 0
}

func echoRehome(_ context: UnsafeMutableRawPointer, _ so: Socket) -> Int32 {
    context.assumingMemoryBound(to: Instance.self).unlink(so)
    return 0
}

/// No options of its own.
func echoControlOutput(
    _ context: UnsafeMutableRawPointer, _ so: Socket, _ set: Int32, _ level: Int32, _ name: Int32,
    _ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>
) -> Int32 { ALPS_ENOPROTOOPT }

func echoSockaddr(_ context: UnsafeMutableRawPointer, _ so: Socket, _ address: UnsafeMutablePointer<alps_sockaddr>)
    -> Int32
{
    address.pointee = alps_sockaddr(
        family: UInt16(ALPS_AF_INET), port: so.echo?.pointee.identifier ?? 0, scope: 0,
        addr: so.pointee.netpcb.pointee.local)
    return 0
}

func echoPeeraddr(_ context: UnsafeMutableRawPointer, _ so: Socket, _ address: UnsafeMutablePointer<alps_sockaddr>)
    -> Int32
{
    address.pointee = alps_sockaddr(
        family: UInt16(ALPS_AF_INET), port: 0, scope: 0, addr: so.pointee.netpcb.pointee.remote)
    return 0
}

/// An echo request from the application: identifier and checksum are ours to fill in.
func echoSend(
    _ context: UnsafeMutableRawPointer, _ so: Socket, _ given: Mbuf, _ to: UnsafePointer<alps_sockaddr>?
) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let echo = so.echo, let network = instance.network else {
        instance.free(given)
        return ALPS_ENETDOWN
    }
    let length = given.pointee.pkt.length
    guard length >= 8, length <= 65535 - 60 else {
        instance.free(given)
        return length < 8 ? ALPS_EINVAL : ALPS_EMSGSIZE
    }
    guard to != nil || so.pointee.state & ALPS_SS_CONNECTED != 0 else {
        instance.free(given)
        return ALPS_EDESTADDRREQ
    }
    guard let packet = instance.services.mbuf.pointee.pullup(instance.pool, given, 8) else { return ALPS_ENOBUFS }
    let data = packet.pointee.data
    // Nothing but questions to hosts.
    guard data[0] == Message.echo, data[1] == 0 else {
        instance.free(packet)
        return ALPS_EINVAL
    }
    let reserved = instance.reserve(echo, 0)
    guard reserved == 0 else {
        instance.free(packet)
        return reserved
    }
    data.store16(4, echo.pointee.identifier)
    data.store16(2, 0)
    data.store16(2, Checksum.finish(instance.services.mbuf.pointee.sum(instance.pool, packet, 0, length)))
    packet.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
    instance.count(.sent)
    guard let to else { return network.ops.pointee.output(network.instance, so.pointee.netpcb, packet, 0) }
    // A copy of the socket's attachment with another end; options stay shared and are not released.
    var way = so.pointee.netpcb.pointee
    way.remote = to.pointee.addr
    way.local = echo.pointee.bound
    return network.ops.pointee.output(network.instance, &way, packet, 0)
}

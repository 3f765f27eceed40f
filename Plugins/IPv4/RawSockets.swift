import PluginAPI
import PluginKit

/// A raw socket: hears every packet of its protocol, sends packets with or without their own header.
struct RawSocket {
    var next: UnsafeMutablePointer<RawSocket>?
    var socket: UnsafeMutablePointer<alps_socket>
    /// What bind has been asked for.
    var bound: alps_addr
}

/// The raw entry of the protocol switch.
enum Raw {
    static var requestCount: Int { 12 }

    static func register(_ instance: InstancePointer) -> Int32 {
        typealias OnSocket = @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>) -> Int32
        typealias WithAddress =
            @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, UnsafePointer<alps_sockaddr>) ->
            Int32
        typealias ToAddress =
            @convention(c) (
                UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, UnsafeMutablePointer<alps_sockaddr>
            ) -> Int32
        typealias WithNumber =
            @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, Int32) -> Int32
        typealias Option =
            @convention(c) (
                UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, Int32, Int32, Int32,
                UnsafeMutableRawPointer,
                UnsafeMutablePointer<UInt32>
            ) -> Int32
        typealias ToBuffer =
            @convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer, UnsafeMutablePointer<UInt32>) -> Int32
        var next = instance.pointee.requests
        func add(_ id: UInt32, _ name: StaticString, _ signature: StaticString, _ function: alps_function) {
            next.initialize(
                to: alps_user_request(
                    size: UInt32(MemoryLayout<alps_user_request>.size), id: id, name: text(name),
                    signature: text(signature), doc: nil, function: function))
            next += 1
        }
        func onSocket(_ function: OnSocket) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        func withAddress(_ function: WithAddress) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        func toAddress(_ function: ToAddress) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        let shutdown: WithNumber = rawShutdown
        let option: Option = rawControlOutput
        add(ALPS_PRU_ATTACH, "attach", "S", onSocket(rawAttach))
        add(ALPS_PRU_BIND, "bind", "Sa", withAddress(rawBind))
        add(ALPS_PRU_CONNECT, "connect", "Sa", withAddress(rawConnect))
        add(ALPS_PRU_DISCONNECT, "disconnect", "S", onSocket(rawDisconnect))
        add(ALPS_PRU_SHUTDOWN, "shutdown", "Si", unsafeBitCast(shutdown, to: alps_function.self))
        add(ALPS_PRU_CLOSE, "close", "S", onSocket(rawClose))
        add(ALPS_PRU_ABORT, "abort", "S", onSocket(rawClose))
        add(ALPS_PRU_CTLOUTPUT, "ctloutput", "SiiiB", unsafeBitCast(option, to: alps_function.self))
        add(ALPS_PRU_SOCKADDR, "sockaddr", "SA", toAddress(rawSockaddr))
        add(ALPS_PRU_PEERADDR, "peeraddr", "SA", toAddress(rawPeeraddr))
        add(ALPS_PRU_REHOME, "rehome", "S", onSocket(rawRehome))
        let groups: ToBuffer = listGroups
        add(ALPS_PRU_FIRST_PRIVATE, "groups", "B", unsafeBitCast(groups, to: alps_function.self))
        instance.pointee.entry.initialize(
            to: alps_protosw(
                size: UInt32(MemoryLayout<alps_protosw>.size), domain: UInt16(ALPS_AF_INET),
                type: UInt16(ALPS_SOCK_RAW),
                protocol: 0, demux: UInt8(ALPS_DEMUX_NONE), reserved: 0,
                flags: ALPS_PR_ATOMIC | ALPS_PR_ADDR | ALPS_PR_RAW, name: text("raw"),
                network: text("alps.network/1:2"),
                requests: UnsafePointer(instance.pointee.requests), requests_count: UInt32(requestCount),
                connection_overhead: UInt32(MemoryLayout<RawSocket>.size), input: nil, ctlinput: rawControlInput, sent: nil,
                received: nil, send_datagram: rawSend))
        let cell = instance.services.protoswCell
        return cell.ops(alps_protosw_ops.self).pointee.add(cell.instance, instance.pointee.entry)
    }
}

extension UnsafeMutablePointer where Pointee == Instance {
    func hasRawSocket(_ protocolNumber: UInt8) -> Bool {
        var entry = pointee.rawSockets
        while let current = entry {
            if current.pointee.socket.pointee.protocol == UInt16(protocolNumber) { return true }
            entry = current.pointee.next
        }
        return false
    }

    /// Copies for all raw sockets that want this packet; `data` is at the network header, which they get too.
    func deliverRaw(_ packet: Mbuf) {
        let header = Header(bytes: packet.pointee.data)
        let source = header.source
        let destination = header.destination
        var entry = pointee.rawSockets
        while let current = entry {
            entry = current.pointee.next
            let socket = current.pointee.socket
            let netpcb = socket.pointee.netpcb
            let local = ipv4(netpcb.pointee.local)
            let remote = ipv4(netpcb.pointee.remote)
            guard socket.pointee.protocol == UInt16(header.protocol),
                local == 0 || local == destination, remote == 0 || remote == source,
                netpcb.pointee.bound_ifindex == 0 || netpcb.pointee.bound_ifindex == packet.pointee.pkt.ifindex,
                passesFilter(netpcb, packet, header), passesMembership(netpcb, packet, destination),
                var copy = services.mbuf.pointee.copy(pool, packet, 0, packet.pointee.pkt.length)
            else { continue }
            if copy.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) {
                guard let finished = services.mbuf.pointee.finish_checksum(pool, copy) else { continue }
                copy = finished
            }
            var info = alps_datagram_info()
            info.size = UInt32(MemoryLayout<alps_datagram_info>.size)
            info.ifindex = packet.pointee.pkt.ifindex
            info.source = alps_sockaddr(family: UInt16(ALPS_AF_INET), port: 0, scope: 0, addr: neutral(source))
            info.destination = neutral(destination)
            info.timestamp = packet.pointee.pkt.timestamp
            info.ttl = header.ttl
            info.tos = header.tos
            let cell = services.socketCell
            _ = cell.ops(alps_socket_ops.self).pointee.receive_datagram(cell.instance, socket, copy, &info)
        }
    }

    /// ICMP_FILTER.
    private func passesFilter(_ netpcb: NetworkPCB, _ packet: Mbuf, _ header: Header) -> Bool {
        let length = UInt32(header.length)
        guard header.protocol == 1, let options = existingOptions(netpcb), options.pointee.icmpFilter != 0,
            packet.pointee.pkt.length > length
        else { return true }
        var type: UInt8 = 0
        services.mbuf.pointee.copy_out(pool, packet, length, 1, &type)
        return type >= 32 || options.pointee.icmpFilter & (1 << UInt32(type)) == 0
    }

    /// Groups are for those who have joined them.
    private func passesMembership(_ netpcb: NetworkPCB, _ packet: Mbuf, _ destination: UInt32) -> Bool {
        !AddressClass.isMulticast(destination) || isMember(netpcb, destination, packet.pointee.pkt.ifindex)
    }
}

/// An error message about a packet of a raw protocol. As on Linux: a connected socket hears of what is final, one with
/// ALPS_SO_RECVERR of all.
func rawControlInput(_ context: UnsafeMutableRawPointer, _ event: UnsafePointer<alps_ctl_event>) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let quoted = event.pointee.quoted, event.pointee.error != 0 else { return }
    let header = Header(bytes: quoted.pointee.data)
    var entry = instance.pointee.rawSockets
    while let current = entry {
        entry = current.pointee.next
        let socket = current.pointee.socket
        let netpcb = socket.pointee.netpcb
        let local = ipv4(netpcb.pointee.local)
        let remote = ipv4(netpcb.pointee.remote)
        guard socket.pointee.protocol == UInt16(header.protocol), local == 0 || local == header.source,
            remote == 0 || remote == header.destination
        else { continue }
        let isFinal =
            event.pointee.hard != 0
            || (event.pointee.error == ALPS_EMSGSIZE && netpcb.pointee.flags & UInt8(ALPS_NETPCB_DF) != 0)
        let isConnected = socket.pointee.state & ALPS_SS_CONNECTED != 0
        guard socket.pointee.options & ALPS_SO_RECVERR != 0 || isFinal && isConnected else { continue }
        let isWhole = netpcb.pointee.flags & UInt8(ALPS_NETPCB_HDRINCL) != 0
        let cell = instance.services.socketCell
        cell.ops(alps_socket_ops.self).pointee.report_error(
            cell.instance, socket, event, isWhole ? 0 : event.pointee.transport_offset, 0)
    }
}

// MARK: Requests

private func rawAttach(_ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    // Linux: IPPROTO_IP is no protocol to speak.
    guard (1...255).contains(so.pointee.protocol) else { return ALPS_EPROTONOSUPPORT }
    guard let entry = instance.services.allocate(RawSocket.self) else { return ALPS_ENOBUFS }
    entry.initialize(
        to: RawSocket(next: instance.pointee.rawSockets, socket: so, bound: so.pointee.netpcb.pointee.local))
    instance.pointee.rawSockets = entry
    so.pointee.pcb = UnsafeMutableRawPointer(entry)
    if so.pointee.protocol == 255 { so.pointee.netpcb.pointee.flags |= UInt8(ALPS_NETPCB_HDRINCL) }
    return 0
}

private func unlink(_ instance: InstancePointer, _ so: UnsafeMutablePointer<alps_socket>) {
    guard let entry = so.pointee.pcb?.assumingMemoryBound(to: RawSocket.self) else { return }
    if instance.pointee.rawSockets == entry {
        instance.pointee.rawSockets = entry.pointee.next
    } else {
        var previous = instance.pointee.rawSockets
        while let current = previous {
            if current.pointee.next == entry {
                current.pointee.next = entry.pointee.next
                break
            }
            previous = current.pointee.next
        }
    }
    so.pointee.pcb = nil
    instance.services.free(entry)
}

private func rawClose(_ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    unlink(instance, so)
    let cell = instance.services.socketCell
    cell.ops(alps_socket_ops.self).pointee.detached(cell.instance, so)
    return 0
}

private func rawRehome(_ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>) -> Int32 {
    unlink(context.assumingMemoryBound(to: Instance.self), so)
    return 0
}

private func rawBind(
    _ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>, _ address: UnsafePointer<alps_sockaddr>
) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    let local = ipv4(address.pointee.addr)
    let isFree = so.pointee.netpcb.pointee.flags & UInt8(ALPS_NETPCB_FREEBIND) != 0
    switch instance.classify(local, so.pointee.netpcb.pointee.bound_ifindex) {
    case ALPS_ADDR_UNSPECIFIED, ALPS_ADDR_LOCAL, ALPS_ADDR_MULTICAST, ALPS_ADDR_BROADCAST: break
    default: if !isFree { return ALPS_EADDRNOTAVAIL }
    }
    so.pointee.netpcb.pointee.local = address.pointee.addr
    so.pointee.netpcb.pointee.route.size = 0
    so.pointee.pcb?.assumingMemoryBound(to: RawSocket.self).pointee.bound = address.pointee.addr
    return 0
}

private func rawConnect(
    _ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>, _ address: UnsafePointer<alps_sockaddr>
) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard address.pointee.family == UInt16(ALPS_AF_INET) else { return ALPS_EAFNOSUPPORT }
    let netpcb = so.pointee.netpcb
    let before = netpcb.pointee
    netpcb.pointee.remote = address.pointee.addr
    netpcb.pointee.local = source(instance, so)
    let status = instance.route(netpcb)
    guard status == 0 else {
        netpcb.pointee = before
        return status
    }
    let cell = instance.services.socketCell
    cell.ops(alps_socket_ops.self).pointee.is_connected(cell.instance, so)
    return 0
}

private func rawDisconnect(_ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>) -> Int32 {
    so.pointee.netpcb.pointee.remote = alps_addr()
    so.pointee.netpcb.pointee.route.size = 0
    if let entry = so.pointee.pcb?.assumingMemoryBound(to: RawSocket.self) {
        so.pointee.netpcb.pointee.local = entry.pointee.bound
    }
    so.pointee.state &= ~ALPS_SS_CONNECTED
    return 0
}

private func rawShutdown(_ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>, _ how: Int32)
    -> Int32
{ 0 }

private func rawSockaddr(
    _ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>,
    _ address: UnsafeMutablePointer<alps_sockaddr>
) -> Int32 {
    address.pointee = alps_sockaddr(
        family: UInt16(ALPS_AF_INET), port: so.pointee.protocol, scope: 0, addr: so.pointee.netpcb.pointee.local)
    return 0
}

private func rawPeeraddr(
    _ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>,
    _ address: UnsafeMutablePointer<alps_sockaddr>
) -> Int32 {
    address.pointee = alps_sockaddr(
        family: UInt16(ALPS_AF_INET), port: 0, scope: 0, addr: so.pointee.netpcb.pointee.remote)
    return 0
}

/// SOL_RAW: ICMP_FILTER.
private func rawControlOutput(
    _ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>, _ set: Int32, _ level: Int32,
    _ name: Int32, _ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>
) -> Int32 {
    guard level == 255, name == 1 else { return ALPS_ENOPROTOOPT }
    guard so.pointee.protocol == 1 else { return ALPS_EOPNOTSUPP }
    guard length.pointee >= 4 else { return ALPS_EINVAL }
    return networkControlOutput(context, so.pointee.netpcb, set, 0, Option.icmpFilter, value, length)
}

/// What a socket is bound to, if packets can come from there.
private func source(_ instance: InstancePointer, _ so: UnsafeMutablePointer<alps_socket>) -> alps_addr {
    let local = ipv4(so.pointee.netpcb.pointee.local)
    switch instance.classify(local, 0) {
    case ALPS_ADDR_MULTICAST, ALPS_ADDR_BROADCAST: return alps_addr()
    default: return neutral(local)
    }
}

private func rawSend(
    _ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>, _ packet: Mbuf,
    _ destination: UnsafePointer<alps_sockaddr>?
) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    if so.pointee.netpcb.pointee.flags & UInt8(ALPS_NETPCB_HDRINCL) != 0 {
        let isConnected = so.pointee.state & ALPS_SS_CONNECTED != 0
        let to =
            destination.map { ipv4($0.pointee.addr) } ?? (isConnected ? ipv4(so.pointee.netpcb.pointee.remote) : nil)
        return instance.outputWithHeader(so.pointee.netpcb, packet, to: to)
    }
    guard let destination else {
        guard so.pointee.state & ALPS_SS_CONNECTED != 0 else {
            instance.free(packet)
            return ALPS_EDESTADDRREQ
        }
        return networkOutput(context, so.pointee.netpcb, packet, 0)
    }
    // A copy of the socket's attachment with another end; options stay shared and are not released.
    var way = so.pointee.netpcb.pointee
    way.remote = destination.pointee.addr
    way.route.size = 0
    way.local = source(instance, so)
    return networkOutput(context, &way, packet, 0)
}

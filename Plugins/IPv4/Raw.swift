import PluginAPI
import PluginKit

/// A raw socket: hears every packet of its protocol, sends packets with or without their own header.
struct RawSocket {
    var next: UnsafeMutablePointer<RawSocket>?
    var socket: UnsafeMutablePointer<alps_socket>
}

/// The raw entry of the protocol switch.
enum Raw {
    static var requestCount: Int { 11 }

    static func register(_ instance: InstancePointer) -> Int32 {
        typealias OnSocket = @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>) -> Int32
        typealias WithAddress =
            @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, UnsafePointer<alps_sockaddr>) -> Int32
        typealias ToAddress =
            @convention(c) (
                UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, UnsafeMutablePointer<alps_sockaddr>
            ) -> Int32
        typealias WithNumber = @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, Int32) -> Int32
        typealias Option =
            @convention(c) (
                UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, Int32, Int32, Int32, UnsafeMutableRawPointer,
                UnsafeMutablePointer<UInt32>
            ) -> Int32
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
        instance.pointee.entry.initialize(
            to: alps_protosw(
                size: UInt32(MemoryLayout<alps_protosw>.size), domain: UInt16(ALPS_AF_INET), type: UInt16(ALPS_SOCK_RAW),
                protocol: 0, demux: UInt8(ALPS_DEMUX_NONE), reserved: 0,
                flags: ALPS_PR_ATOMIC | ALPS_PR_ADDR | ALPS_PR_RAW, name: text("raw"), network: text("alps.network/1:2"),
                requests: UnsafePointer(instance.pointee.requests), requests_count: UInt32(requestCount),
                connection_overhead: UInt32(MemoryLayout<RawSocket>.size), input: nil, ctlinput: nil, sent: nil,
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
            guard socket.pointee.protocol == UInt16(header.protocol) || socket.pointee.protocol == 255,
                local == 0 || local == destination, remote == 0 || remote == source,
                netpcb.pointee.bound_ifindex == 0 || netpcb.pointee.bound_ifindex == packet.pointee.pkt.ifindex,
                passesFilter(netpcb, packet, header),
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
    private func passesFilter(_ netpcb: UnsafeMutablePointer<alps_netpcb>, _ packet: Mbuf, _ header: Header) -> Bool {
        guard header.protocol == 1, let options = existingOptions(netpcb), options.pointee.icmpFilter != 0,
            Int(packet.pointee.length) > header.length
        else { return true }
        let type = packet.pointee.data[header.length]
        return type >= 32 || options.pointee.icmpFilter & (1 << UInt32(type)) == 0
    }
}

// MARK: Requests

private func rawAttach(_ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let entry = instance.services.allocate(RawSocket.self) else { return ALPS_ENOBUFS }
    entry.initialize(to: RawSocket(next: instance.pointee.rawSockets, socket: so))
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
    guard local == 0 || instance.isLocal(local) || AddressClass.isMulticast(local) else { return ALPS_EADDRNOTAVAIL }
    so.pointee.netpcb.pointee.local = address.pointee.addr
    return 0
}

private func rawConnect(
    _ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>, _ address: UnsafePointer<alps_sockaddr>
) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    so.pointee.netpcb.pointee.remote = address.pointee.addr
    so.pointee.netpcb.pointee.route.size = 0
    let status = instance.route(so.pointee.netpcb)
    guard status == 0 else {
        so.pointee.netpcb.pointee.remote = alps_addr()
        return status
    }
    let cell = instance.services.socketCell
    cell.ops(alps_socket_ops.self).pointee.is_connected(cell.instance, so)
    return 0
}

private func rawDisconnect(_ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>) -> Int32 {
    so.pointee.netpcb.pointee.remote = alps_addr()
    so.pointee.state &= ~ALPS_SS_CONNECTED
    return 0
}

private func rawShutdown(_ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>, _ how: Int32) -> Int32 { 0 }

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
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard level == 255, name == 1 else { return ALPS_ENOPROTOOPT }
    guard length.pointee >= 4, let options = instance.options(so.pointee.netpcb) else { return ALPS_EINVAL }
    if set != 0 {
        options.pointee.icmpFilter = value.loadUnaligned(as: UInt32.self)
    } else {
        value.storeBytes(of: options.pointee.icmpFilter, as: UInt32.self)
        length.pointee = 4
    }
    return 0
}

private func rawSend(
    _ context: UnsafeMutableRawPointer, _ so: UnsafeMutablePointer<alps_socket>, _ packet: Mbuf,
    _ destination: UnsafePointer<alps_sockaddr>?
) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    if so.pointee.netpcb.pointee.flags & UInt8(ALPS_NETPCB_HDRINCL) != 0 {
        return instance.outputWithHeader(so.pointee.netpcb, packet)
    }
    guard let destination else {
        guard so.pointee.state & ALPS_SS_CONNECTED != 0 else {
            instance.free(packet)
            return ALPS_EDESTADDRREQ
        }
        return instance.output(so.pointee.netpcb, packet, 0)
    }
    // A copy of the socket's attachment with another end; options stay shared and are not released.
    var way = so.pointee.netpcb.pointee
    way.remote = destination.pointee.addr
    way.route.size = 0
    return instance.output(&way, packet, 0)
}

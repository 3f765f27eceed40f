import PluginAPI
import PluginKit

func udpAttach(_ context: UnsafeMutableRawPointer, _ socket: Socket) -> Int32 {
    context.assumingMemoryBound(to: Instance.self).makeBlock(socket)
}

func udpBind(_ context: UnsafeMutableRawPointer, _ socket: Socket, _ address: UnsafePointer<alps_sockaddr>) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let block = socket.block, let network = instance.network else { return ALPS_EINVAL }
    guard !block.pointee.isInserted else { return ALPS_EINVAL }
    var wanted = address.pointee.addr
    // As Linux does, for programs that forgot to fill the family in.
    guard
        address.pointee.family == socket.pointee.domain
            || (address.pointee.family == UInt16(ALPS_AF_UNSPEC) && wanted.isZero)
    else { return ALPS_EAFNOSUPPORT }
    let netpcb = socket.pointee.netpcb
    var isSource = false
    if !wanted.isZero {
        switch network.ops.pointee.classify(network.instance, &wanted, netpcb.pointee.bound_ifindex) {
        case ALPS_ADDR_LOCAL: isSource = true
        // To receive what is sent there; never a source (RFC 1122, 3.2.1.3).
        case ALPS_ADDR_BROADCAST, ALPS_ADDR_MULTICAST: break
        default:
            guard netpcb.pointee.flags & UInt8(ALPS_NETPCB_FREEBIND) != 0 else { return ALPS_EADDRNOTAVAIL }
            isSource = true
        }
    }
    block.pointee.conn.local = wanted
    block.pointee.conn.local_port = address.pointee.port
    let result = instance.reserve(block)
    guard result == 0 else {
        block.pointee.conn.local = alps_addr()
        block.pointee.conn.local_port = 0
        return result
    }
    block.pointee.boundAddress = wanted
    block.pointee.isPortChosen = address.pointee.port != 0
    netpcb.pointee.local = isSource ? wanted : alps_addr()
    return 0
}

func udpConnect(
    _ context: UnsafeMutableRawPointer, _ socket: Socket, _ address: UnsafePointer<alps_sockaddr>
) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    if address.pointee.family == UInt16(ALPS_AF_UNSPEC) { return udpDisconnect(context, socket) }
    guard let block = socket.block, let network = instance.network else { return ALPS_EINVAL }
    guard address.pointee.family == socket.pointee.domain else { return ALPS_EAFNOSUPPORT }
    let netpcb = socket.pointee.netpcb
    let before = (netpcb.pointee.local, netpcb.pointee.remote, netpcb.pointee.route)
    if block.pointee.isConnected { netpcb.pointee.local = instance.boundSource(block, network) }
    netpcb.pointee.remote = address.pointee.addr
    netpcb.pointee.route = alps_route()
    instance.copyFlags(socket)
    var result = network.ops.pointee.route(network.instance, netpcb)
    if result == 0 {
        let old = block.pointee.conn
        let wasInserted = block.pointee.isInserted
        instance.remove(block)
        block.pointee.conn.kind = UInt8(ALPS_CONN_FULL)
        // A port of 0 is no port to send to, but programs connect to it to learn their source address.
        block.pointee.conn.remote = netpcb.pointee.remote
        block.pointee.conn.remote_port = address.pointee.port
        block.pointee.conn.local = netpcb.pointee.local
        block.pointee.conn.bound_ifindex = netpcb.pointee.bound_ifindex
        result = instance.insert(block)
        if result != 0 {
            block.pointee.conn.kind = old.kind
            block.pointee.conn.remote = old.remote
            block.pointee.conn.remote_port = old.remote_port
            block.pointee.conn.local = old.local
            block.pointee.conn.local_port = old.local_port
            if wasInserted { _ = instance.insert(block) }
        }
    }
    guard result == 0 else {
        netpcb.pointee.local = before.0
        netpcb.pointee.remote = before.1
        netpcb.pointee.route = before.2
        return result
    }
    instance.sockets.pointee.is_connected(instance.services.socketCell.instance, socket)
    return 0
}

/// Back to what bind had made of the socket (connect to AF_UNSPEC).
func udpDisconnect(_ context: UnsafeMutableRawPointer, _ socket: Socket) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let block = socket.block, let network = instance.network else { return ALPS_EINVAL }
    guard block.pointee.isConnected else { return 0 }
    instance.remove(block)
    block.pointee.conn.kind = UInt8(ALPS_CONN_BOUND)
    block.pointee.conn.remote = alps_addr()
    block.pointee.conn.remote_port = 0
    block.pointee.conn.local = block.pointee.boundAddress
    let netpcb = socket.pointee.netpcb
    netpcb.pointee.local = instance.boundSource(block, network)
    netpcb.pointee.remote = alps_addr()
    netpcb.pointee.route = alps_route()
    // As BSD's udp_disconnect: a datagram socket without a peer is neither disconnecting nor ended.
    socket.pointee.state &= ~ALPS_SS_CONNECTED
    guard block.pointee.isPortChosen || !block.pointee.boundAddress.isZero else {
        block.pointee.conn.local_port = 0
        return 0
    }
    return instance.insert(block)
}

func udpShutdown(_ context: UnsafeMutableRawPointer, _ socket: Socket, _ how: Int32) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let block = socket.block else { return ALPS_EINVAL }
    if how != ALPS_SHUT_WR {
        instance.sockets.pointee.cant_receive_more(instance.services.socketCell.instance, socket)
    }
    return block.pointee.isConnected ? 0 : ALPS_ENOTCONN
}

func udpClose(_ context: UnsafeMutableRawPointer, _ socket: Socket) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    if let block = socket.block { instance.release(block) }
    instance.sockets.pointee.detached(instance.services.socketCell.instance, socket)
    return 0
}

/// The socket goes on with another instance.
func udpRehome(_ context: UnsafeMutableRawPointer, _ socket: Socket) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let block = socket.block else { return ALPS_EINVAL }
    block.pointee.ownsNetworkAttachment = false
    instance.release(block)
    return 0
}

func udpSockaddr(
    _ context: UnsafeMutableRawPointer, _ socket: Socket, _ address: UnsafeMutablePointer<alps_sockaddr>
) -> Int32 {
    guard let block = socket.block else { return ALPS_EINVAL }
    address.initialize(
        to: alps_sockaddr(
            family: socket.pointee.domain, port: block.pointee.conn.local_port, scope: 0,
            addr: block.pointee.conn.local))
    return 0
}

func udpPeeraddr(
    _ context: UnsafeMutableRawPointer, _ socket: Socket, _ address: UnsafeMutablePointer<alps_sockaddr>
) -> Int32 {
    guard let block = socket.block else { return ALPS_EINVAL }
    guard block.pointee.isConnected else { return ALPS_ENOTCONN }
    address.initialize(
        to: alps_sockaddr(
            family: socket.pointee.domain, port: block.pointee.conn.remote_port, scope: 0,
            addr: block.pointee.conn.remote))
    return 0
}

/// Options. SO_NO_CHECK is the one that concerns UDP; the rest is the socket layer's and the network's.
func udpControlOutput(
    _ context: UnsafeMutableRawPointer, _ socket: Socket, _ set: Int32, _ level: Int32, _ name: Int32,
    _ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>
) -> Int32 {
    let solSocket: Int32 = 1
    let soNoCheck: Int32 = 11
    guard let block = socket.block else { return ALPS_EINVAL }
    guard level == solSocket, name == soNoCheck else { return ALPS_ENOPROTOOPT }
    guard length.pointee >= 4 else { return ALPS_EINVAL }
    if set != 0 {
        block.pointee.omitsChecksum = value.loadUnaligned(as: Int32.self) != 0
    } else {
        value.storeBytes(of: block.pointee.omitsChecksum ? 1 : 0, as: Int32.self)
        length.pointee = 4
    }
    return 0
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// The source address that bind fixed; zero if it left the choice open or named a group.
    func boundSource(_ block: Block, _ network: Network) -> alps_addr {
        var bound = block.pointee.boundAddress
        guard !bound.isZero else { return bound }
        switch network.ops.pointee.classify(network.instance, &bound, 0) {
        case ALPS_ADDR_BROADCAST, ALPS_ADDR_MULTICAST: return alps_addr()
        default: return bound
        }
    }

    /// Socket options that the network acts on.
    @inline(__always)
    func copyFlags(_ socket: Socket) {
        let options = socket.pointee.options
        let netpcb = socket.pointee.netpcb
        var flags = netpcb.pointee.flags & ~UInt8(ALPS_NETPCB_BROADCAST | ALPS_NETPCB_DONTROUTE)
        if options & ALPS_SO_BROADCAST != 0 { flags |= UInt8(ALPS_NETPCB_BROADCAST) }
        if options & ALPS_SO_DONTROUTE != 0 { flags |= UInt8(ALPS_NETPCB_DONTROUTE) }
        netpcb.pointee.flags = flags
    }
}

import PluginAPI
import PluginKit

// The calls of RFC 9293, 3.10.1 to 3.10.6, as the socket layer makes them.

func tcpAttach(_ context: UnsafeMutableRawPointer, _ socket: Socket) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard socket.pointee.pcb == nil else { return ALPS_EISCONN }
    return instance.makeConnection(socket) == nil ? ALPS_ENOBUFS : 0
}

func tcpBind(_ context: UnsafeMutableRawPointer, _ socket: Socket, _ address: UnsafePointer<alps_sockaddr>) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let connection = socket.connection, let network = instance.network else { return ALPS_EINVAL }
    guard connection.pointee.state == .closed, !connection.has(.inserted) else { return ALPS_EINVAL }
    guard address.pointee.family == socket.pointee.domain else { return ALPS_EAFNOSUPPORT }
    var wanted = address.pointee.addr
    let netpcb = socket.pointee.netpcb
    if !wanted.isZero {
        switch network.ops.pointee.classify(network.instance, &wanted, netpcb.pointee.bound_ifindex) {
        case ALPS_ADDR_LOCAL: break
        case ALPS_ADDR_BROADCAST, ALPS_ADDR_MULTICAST: return ALPS_EADDRNOTAVAIL
        default:
            guard netpcb.pointee.flags & UInt8(ALPS_NETPCB_FREEBIND) != 0 else { return ALPS_EADDRNOTAVAIL }
        }
    }
    connection.pointee.conn.kind = UInt8(ALPS_CONN_BOUND)
    connection.pointee.conn.local = wanted
    connection.pointee.conn.local_port = address.pointee.port
    connection.pointee.conn.bound_ifindex = netpcb.pointee.bound_ifindex
    let result = instance.bind(&connection.pointee.conn)
    guard result == 0 else {
        connection.pointee.conn.local = alps_addr()
        connection.pointee.conn.local_port = 0
        return result
    }
    connection.set([.inserted, .portChosen])
    netpcb.pointee.local = wanted
    return 0
}

func tcpListen(_ context: UnsafeMutableRawPointer, _ socket: Socket, _ backlog: Int32) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let connection = socket.connection else { return ALPS_EINVAL }
    if connection.pointee.state == .listen { return 0 }
    guard connection.pointee.state == .closed else { return ALPS_EINVAL }
    if !connection.has(.inserted) {
        connection.pointee.conn.kind = UInt8(ALPS_CONN_BOUND)
        connection.pointee.conn.bound_ifindex = socket.pointee.netpcb.pointee.bound_ifindex
        let result = instance.bind(&connection.pointee.conn)
        guard result == 0 else { return result }
        connection.set(.inserted)
    }
    connection.remove()
    connection.pointee.conn.kind = UInt8(ALPS_CONN_LISTENER)
    let result = connection.insert()
    guard result == 0 else {
        // Bound it was and bound it stays.
        connection.pointee.conn.kind = UInt8(ALPS_CONN_BOUND)
        _ = connection.insert()
        return result
    }
    connection.enter(.listen)
    return 0
}

func tcpConnect(
    _ context: UnsafeMutableRawPointer, _ socket: Socket, _ address: UnsafePointer<alps_sockaddr>
) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let connection = socket.connection, let network = instance.network else { return ALPS_EINVAL }
    switch connection.pointee.state {
    case .closed: break
    case .synSent, .synReceived: return ALPS_EALREADY
    default: return ALPS_EISCONN
    }
    guard address.pointee.family == socket.pointee.domain else { return ALPS_EAFNOSUPPORT }
    guard address.pointee.port != 0 else { return ALPS_ECONNREFUSED }
    let netpcb = socket.pointee.netpcb
    var remote = address.pointee.addr
    // RFC 9293, MUST-46.
    switch network.ops.pointee.classify(network.instance, &remote, netpcb.pointee.bound_ifindex) {
    case ALPS_ADDR_BROADCAST, ALPS_ADDR_MULTICAST, ALPS_ADDR_INVALID: return ALPS_ENETUNREACH
    default: break
    }
    let boundLocal = connection.has(.portChosen) ? connection.pointee.conn.local : alps_addr()
    netpcb.pointee.local = boundLocal
    netpcb.pointee.remote = remote
    netpcb.pointee.route = alps_route()
    if socket.pointee.options & ALPS_SO_DONTROUTE != 0 {
        netpcb.pointee.flags |= UInt8(ALPS_NETPCB_DONTROUTE)
    } else {
        netpcb.pointee.flags &= ~UInt8(ALPS_NETPCB_DONTROUTE)
    }
    var result = network.ops.pointee.route(network.instance, netpcb)
    if result == 0 {
        result = connection.take(
            local: netpcb.pointee.local, remote: netpcb.pointee.remote,
            port: address.pointee.port)
    }
    guard result == 0 else {
        netpcb.pointee.local = boundLocal
        netpcb.pointee.remote = alps_addr()
        return result
    }
    connection.open(network)
    return 0
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Takes the tuple of a connection to be opened in the connection table.
    fileprivate func take(local: alps_addr, remote: alps_addr, port: UInt16) -> Int32 {
        let before = pointee.conn
        let wasInserted = has(.inserted)
        remove()
        if !wasInserted, !has(.portChosen) { pointee.conn.local_port = 0 }
        pointee.conn.kind = UInt8(ALPS_CONN_FULL)
        pointee.conn.local = local
        pointee.conn.remote = remote
        pointee.conn.remote_port = port
        pointee.conn.bound_ifindex = netpcb.pointee.bound_ifindex
        pointee.iss = instance.initialSequence(&pointee.conn)
        var result = insert()
        var predecessor: TimeWaitPredecessor?
        if result == ALPS_EADDRINUSE {
            predecessor = instance.reuseTimeWait(&pointee.conn)
            if predecessor != nil { result = insert() }
        }
        guard result == 0 else {
            pointee.conn.kind = UInt8(ALPS_CONN_BOUND)
            pointee.conn.local = before.local
            pointee.conn.local_port = before.local_port
            pointee.conn.remote = alps_addr()
            pointee.conn.remote_port = 0
            if wasInserted { _ = insert() }
            // Linux: a tuple that is taken cannot be connected to again.
            return result == ALPS_EADDRINUSE ? ALPS_EADDRNOTAVAIL : result
        }
        pointee.iss = instance.initialSequence(&pointee.conn)
        if let predecessor, pointee.iss <= predecessor.sndNxt {
            pointee.iss = predecessor.sndNxt + 64_000 + UInt32(truncatingIfNeeded: instance.services.random & 0xffff)
        }
        return 0
    }

    /// RFC 9293, 3.10.1: an active OPEN.
    fileprivate func open(_ network: Network) {
        let instance = instance
        reset()
        pointee.sndUna = pointee.iss
        pointee.sndNxt = pointee.iss
        pointee.sndMax = pointee.iss
        pointee.sndUp = pointee.iss
        pointee.sndSmall = pointee.iss
        pointee.timestampOffset = instance.timestampOffset(&pointee.conn)
        pointee.advertisedMSS = instance.advertisedMSS(network, netpcb)
        if pointee.userMSS != 0 { pointee.advertisedMSS = min(pointee.advertisedMSS, pointee.userMSS) }
        pointee.rcvScale = instance.offersWindowScaling ? instance.windowScale(socket) : 0
        enter(.synSent)
        instance.count(.connectAttempts)
        if defersSyn() { return }
        instance.sockets.pointee.is_connecting(instance.socketLayer, socket)
        sendSyn()
        armRetransmit()
    }

    /// RFC 9293, 3.10.4: what is in the send buffer goes out, then a FIN.
    fileprivate func finish() {
        switch pointee.state {
        case .synReceived, .established: enter(.finWait1)
        case .closeWait: enter(.lastAck)
        case .synSent where has(.fastOpened):
            // What went with the SYN may have to go again; the FIN follows it.
            set(.finQueued)
            return
        default: return
        }
        set(.finQueued)
        clear([.cork, .moreToCome])
        output()
    }
}

func tcpShutdown(_ context: UnsafeMutableRawPointer, _ socket: Socket, _ how: Int32) -> Int32 {
    guard let connection = socket.connection else { return ALPS_EINVAL }
    switch connection.pointee.state {
    case .closed, .listen: return ALPS_ENOTCONN
    case .synSent where !connection.has(.fastOpened): return ALPS_ENOTCONN
    default: break
    }
    // Reading is the socket layer's: TCP has no way to tell the peer.
    if how != ALPS_SHUT_RD { connection.finish() }
    return 0
}

func tcpClose(_ context: UnsafeMutableRawPointer, _ socket: Socket) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let connection = socket.connection else {
        instance.sockets.pointee.detached(instance.socketLayer, socket)
        return 0
    }
    switch connection.pointee.state {
    case .closed, .listen, .timeWait:
        connection.release()
    case .synSent where !connection.has(.fastOpened):
        instance.count(.connectionsDropped)
        connection.release()
    default:
        connection.set(.orphan)
        connection.finish()
        // Shut down for writing before, and the peer is still there.
        if connection.pointee.state == .finWait2 { connection.armFinWait2() }
    }
    return 0
}

func tcpAbort(_ context: UnsafeMutableRawPointer, _ socket: Socket) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let connection = socket.connection else {
        instance.sockets.pointee.detached(instance.socketLayer, socket)
        return 0
    }
    switch connection.pointee.state {
    case .synReceived, .established, .finWait1, .finWait2, .closeWait:
        // RFC 9293, 3.10.5.
        connection.sendReset()
        instance.count(.drops)
    default: break
    }
    connection.release()
    return 0
}

func tcpSockaddr(
    _ context: UnsafeMutableRawPointer, _ socket: Socket, _ address: UnsafeMutablePointer<alps_sockaddr>
) -> Int32 {
    guard let connection = socket.connection else { return ALPS_EINVAL }
    address.initialize(
        to: alps_sockaddr(
            family: socket.pointee.domain, port: connection.pointee.conn.local_port, scope: 0,
            addr: connection.pointee.conn.local))
    return 0
}

func tcpPeeraddr(
    _ context: UnsafeMutableRawPointer, _ socket: Socket, _ address: UnsafeMutablePointer<alps_sockaddr>
) -> Int32 {
    guard let connection = socket.connection else { return ALPS_EINVAL }
    switch connection.pointee.state {
    case .closed, .listen, .synSent: return ALPS_ENOTCONN
    default: break
    }
    address.initialize(
        to: alps_sockaddr(
            family: socket.pointee.domain, port: connection.pointee.conn.remote_port, scope: 0,
            addr: connection.pointee.conn.remote))
    return 0
}

/// A listener or a bound socket goes on with another instance.
func tcpRehome(_ context: UnsafeMutableRawPointer, _ socket: Socket) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let connection = socket.connection else { return ALPS_EINVAL }
    switch connection.pointee.state {
    case .listen, .closed: break
    default: return ALPS_EISCONN
    }
    instance.forgetListener(connection)
    connection.enter(.closed)
    connection.discard()
    return 0
}

/// A listener that had gone to another instance closes.
func tcpOrphan(_ context: UnsafeMutableRawPointer, _ socket: Socket) -> Int32 {
    context.assumingMemoryBound(to: Instance.self).dropEmbryonics(head: socket)
    return 0
}

// MARK: Data

/// The application has written.
func tcpSent(_ context: UnsafeMutableRawPointer, _ socket: Socket, _ flags: UInt32) -> Int32 {
    guard let connection = socket.connection else { return ALPS_ENOTCONN }
    if flags & ALPS_SENT_OOB != 0, connection.pointee.state != .closed {
        // RFC 9293, 3.10.2: behind the last octet.
        connection.pointee.sndUp = connection.sendSequence(socket.pointee.snd.tail)
    }
    if flags & ALPS_SENT_EOR != 0, connection.pointee.state != .closed {
        connection.noteRecordEnd(connection.sendSequence(socket.pointee.snd.tail))
    }
    connection.set(.moreToCome, flags & ALPS_SENT_MORE != 0)
    connection.pointee.isMoreReleased = false
    if connection.has(.synDeferred) {
        connection.sendDeferredSyn()
    } else {
        connection.output()
    }
    return 0
}

/// The application has read.
func tcpReceived(_ context: UnsafeMutableRawPointer, _ socket: Socket) {
    socket.connection?.considerWindowUpdate()
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Sequence number of a position in the send stream.
    fileprivate func sendSequence(_ position: UInt64) -> SequenceNumber {
        let first = has(.synAcked) ? pointee.sndUna : pointee.iss + 1
        return first + UInt32(truncatingIfNeeded: position &- socket.pointee.snd.head)
    }
}

// MARK: Private requests

/// Ends a connection as tcpdrop(8) does: reset to the peer, ECONNABORTED to the application.
func tcpDrop(_ context: UnsafeMutableRawPointer, _ socket: Socket) -> Int32 {
    guard let connection = socket.connection else { return ALPS_ENOTCONN }
    switch connection.pointee.state {
    case .closed, .listen: return ALPS_ENOTCONN
    case .synSent: break
    default: connection.sendReset()
    }
    connection.instance.count(.drops)
    connection.close(ALPS_ECONNABORTED)
    return 0
}

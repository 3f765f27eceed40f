import Glibc
import PluginAPI

/// How sockets come to their network and transport instances, move between them when a plugin is swapped, and leave.
extension SocketLayer {
    // MARK: Network

    /// The network below a socket.
    func network(_ socket: Socket) -> (ops: UnsafePointer<alps_network_ops>, instance: UnsafeMutableRawPointer)? {
        guard let cell = socket.network, let ops = cell.pointee.ops, let instance = cell.pointee.`self` else { return nil }
        return (ops.assumingMemoryBound(to: alps_network_ops.self), instance)
    }

    func attachNetwork(_ socket: Socket) -> Int32 {
        if socket.hasNetwork { return 0 }
        guard let (ops, instance) = network(socket) else { return ENETDOWN }
        let status = ops.pointee.attach(instance, socket.raw.pointee.netpcb, socket.raw)
        if status == 0 { socket.hasNetwork = true }
        return status
    }

    func detachNetwork(_ socket: Socket) {
        guard socket.hasNetwork else { return }
        socket.hasNetwork = false
        guard let (ops, instance) = network(socket) else { return }
        ops.pointee.detach(instance, socket.raw.pointee.netpcb)
    }

    // MARK: Transport

    func markAttached(_ socket: Socket) {
        socket.isAttached = true
        socket.entry.instance.liveSockets += 1
    }

    private func markDetached(_ socket: Socket) {
        socket.isAttached = false
        socket.raw.pointee.pcb = nil
        socket.entry.instance.liveSockets -= 1
    }

    /// Attaches network and transport.
    func attach(_ socket: Socket) -> Int32 {
        var status = attachNetwork(socket)
        if status == 0 { status = socket.request(ALPS_PRU_ATTACH) }
        if status == 0 { markAttached(socket) }
        return status
    }

    /// The transport has let go of a socket.
    func detached(_ socket: Socket) {
        guard socket.isAttached else { return }
        markDetached(socket)
        socket.head?({ socket.leaveListenQueue(of: $0) })
        if !socket.isClosed {
            socket.raw.pointee.state &= ~(ALPS_SS_CONNECTING | ALPS_SS_CONNECTED | ALPS_SS_DISCONNECTING)
            socket.raw.pointee.state |= ALPS_SS_DISCONNECTED | ALPS_SS_CANTRCVMORE | ALPS_SS_CANTSENDMORE
        }
        socket.markDirty()
        socket.releaseIfUnused()
    }

    /// Gives a socket that is not connected a transport to go on with, if it has none any more or one that ends.
    func ensureAttached(_ socket: Socket) -> Int32 {
        guard !socket.isClosed else { return EINVAL }
        let isRunning = socket.entry.instance.state == .running
        if socket.isAttached, isRunning { return 0 }
        let successor = isRunning
            ? socket.entry
            : kernel.protocols.find(
                domain: Int32(socket.raw.pointee.domain), type: Int32(socket.raw.pointee.type),
                protocol: Int32(socket.raw.pointee.protocol))
        guard let successor else { return socket.isAttached ? 0 : ENETDOWN }
        if socket.isAttached { return move(socket, to: successor) ?? 0 }
        socket.entry = successor
        return attachAnew(socket, local: socket.boundAddress, peer: nil, isListening: false)
    }

    /// Brings a socket to the state it had with another transport instance.
    private func attachAnew(_ socket: Socket, local: alps_sockaddr?, peer: alps_sockaddr?, isListening: Bool) -> Int32 {
        var status = attach(socket)
        guard status == 0 else { return status }
        socket.reapplyOptions()
        if let local {
            // It had the address already; connections that were made there are no obstacle.
            let options = socket.raw.pointee.options
            socket.raw.pointee.options |= ALPS_SO_REUSEADDR
            status = socket.request(ALPS_PRU_BIND, local)
            socket.raw.pointee.options = options
        }
        if status == 0, isListening { status = socket.request(ALPS_PRU_LISTEN, Int32(socket.raw.pointee.backlog)) }
        if status == 0, let peer { status = socket.request(ALPS_PRU_CONNECT, peer) }
        return status
    }

    // MARK: Swap

    /// An instance takes another's place: listeners, sockets that are not connected and datagram sockets go to it. What
    /// cannot move stays where it is and ends there. Network attachments need no moving: they lie in the sockets, the
    /// cell below them points to the new instance, and what the old one keeps elsewhere it hands over in `quiesce`.
    package func rehome(from old: PluginInstance, to new: PluginInstance) {
        for socket in all where socket.entry.instance === old && socket.isAttached && !socket.isClosed {
            guard isMovable(socket), let entry = kernel.protocols.counterpart(of: socket.entry, in: new) else { continue }
            if let status = move(socket, to: entry), status != 0 {
                socket.raw.pointee.error = status
                socket.markDirty()
            }
        }
        for socket in all { socket.listening?({ $0.formerInstances.removeAll { $0.state == .dead } }) }
    }

    private func isMovable(_ socket: Socket) -> Bool {
        if !socket.isStream || socket.isListening { return true }
        return !socket.isConnected && !socket.isConnecting && !socket.isDisconnected && socket.head == nil
    }

    /// Nil: its instance does not let it go.
    private func move(_ socket: Socket, to entry: ProtocolEntry) -> Int32? {
        var local = socket.boundAddress
        if local == nil, socket.raw.pointee.type == UInt16(ALPS_SOCK_DGRAM) {
            // The port that a first datagram was given: answers come there.
            local = socket.localAddress
            local?.addr = alps_addr()
            if local?.port == 0 { local = nil }
        }
        let peer = !socket.isStream && socket.isConnected ? socket.remoteAddress : nil
        let old = socket.entry.instance
        guard socket.request(ALPS_PRU_REHOME) == 0 else { return nil }
        markDetached(socket)
        socket.listening?({ $0.formerInstances.append(old) })
        socket.entry = entry
        return attachAnew(socket, local: local, peer: peer, isListening: socket.isListening)
    }
}

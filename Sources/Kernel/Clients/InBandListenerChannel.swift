import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// A listening socket: every connection that is ready is one message on the pair, with the new descriptor beside it. So
/// accept is one recvmsg, and hand-out between processes is the kernel's.
final class InBandListenerChannel: Channel {
    private var handingOut: (info: alps_socket_info, descriptor: Int32)?
    var optionWords: OptionWords?

    override func ready(_ events: UInt32) {
        if events & UInt32(EPOLLHUP.rawValue) != 0 {
            socket.close()
            return
        }
        // What is written here is never read: the shim's filler.
        if events & UInt32(EPOLLIN.rawValue) != 0, hasPassedDescriptors { return socket.abort() }
        handOut()
    }

    override func update(_ socket: Socket) { handOut() }

    /// What one message adds to the bytes that SIOCOUTQ counts; the unit is the kernel's, so it is measured.
    private static let messageCost: Int32 = {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else { return 768 }
        defer { for end in ends { close(end) } }
        var info = alps_socket_info()
        guard alps_send_with_fd(ends[0], &info, MemoryLayout<alps_socket_info>.size, ends[1]) > 0 else { return 768 }
        return max(alps_bytes_unread_by_peer(ends[0]), 1)
    }()

    /// Connections in the pair that nobody has accepted yet.
    private var depth: Int { Int(alps_bytes_unread_by_peer(descriptor) / Self.messageCost) }

    /// `depth` the last time that it was looked at, and what has been sent since: no fewer than are there.
    private var mostWaiting = 0

    private func handOut() {
        guard isOpen, !socket.isClosed else { return }
        if socket.cannotReceiveMore {
            // shutdown(2): whoever waits in accept() is to hear of it, and a dead pair cannot be revived.
            closePair()
            kernel.server?.remember(socket)
            socket.close()
            return
        }
        let limit = max(Int(socket.raw.pointee.backlog), 1)
        while handingOut != nil || socket.raw.pointee.queue_length > 0 {
            // The surplus stays in the socket's own queue, whose length its transport knows.
            if mostWaiting >= limit { mostWaiting = depth }
            guard mostWaiting < limit else { return wantRoom(true) }
            if handingOut == nil { handingOut = next() }
            guard let (waiting, descriptor) = handingOut else { return }
            var info = waiting
            let sent = alps_send_with_fd(self.descriptor, &info, MemoryLayout<alps_socket_info>.size, descriptor)
            if sent < 0, errno == EAGAIN { return wantRoom(true) }
            if sent < 0, errno == ETOOMANYREFS || errno == ENOBUFS || errno == ENOMEM { return retryLater() }
            handingOut = nil
            mostWaiting += 1
            close(descriptor)
            if sent < 0 { return }
        }
        wantRoom(false)
    }

    /// The oldest connection that is ready, with a pair of its own.
    private func next() -> (info: alps_socket_info, descriptor: Int32)? {
        while let child = socket.acceptNext() {
            do {
                let pair = try SocketPair(
                    type: Int32(SOCK_STREAM.rawValue), handle: child.handle, seeded: true, isAccepted: true)
                let channel: StreamChannel
                do {
                    channel = try StreamChannel(child, descriptor: pair.host, cookie: pair.cookie, isAccepted: true)
                } catch {
                    close(pair.host)
                    close(pair.application)
                    throw error
                }
                child.channel = channel
                child.inode = pair.inode
                if child.raw.pointee.linger > 0 {
                    // Where the shim looks for it (client.h).
                    var value = Glibc.linger(l_onoff: 1, l_linger: child.raw.pointee.linger)
                    setsockopt(pair.application, SOL_SOCKET, SO_LINGER, &value, socklen_t(MemoryLayout<Glibc.linger>.size))
                }
                child.markDirty()
                var info = socketInformation(child)
                if let optionWords, let index = optionWords.open(child.handle) {
                    channel.optionWord = (optionWords, index)
                    info.flags |= (index + 1) << UInt16(ALPS_INFO_WORD_SHIFT)
                }
                return (info, pair.application)
            } catch {
                kernel.log.write(UInt32(ALPS_LOG_ERROR), nil) { "a connection was lost before accept: \(error)" }
                child.abort()
            }
        }
        return nil
    }

    override func detached(_ socket: Socket) {
        if let (_, descriptor) = handingOut { close(descriptor) }
        handingOut = nil
        kernel.server?.listeners.remove(socket.handle)
        super.detached(socket)
    }
}

/// What a client is told of a socket.
func socketInformation(_ socket: Socket) -> alps_socket_info {
    var info = alps_socket_info()
    info.handle = socket.handle.rawValue
    info.domain = socket.raw.pointee.domain
    info.type = socket.raw.pointee.type
    info.protocol = socket.raw.pointee.protocol
    info.flags = UInt16(
        (socket.isListening ? ALPS_INFO_LISTENING : 0) | (socket.isConnected ? ALPS_INFO_CONNECTED : 0))
    info.local = clientAddress(socket.localAddress)
    // Family 0 tells a client that there is no peer.
    if socket.isConnected { info.remote = clientAddress(socket.remoteAddress) }
    return info
}

func clientAddress(_ address: alps_sockaddr) -> alps_client_sockaddr {
    alps_client_sockaddr(
        family: address.family, port: address.port.bigEndian, scope: address.scope, addr: address.addr.bytes)
}

func stackAddress(_ address: alps_client_sockaddr) -> alps_sockaddr {
    alps_sockaddr(
        family: address.family, port: UInt16(bigEndian: address.port), scope: address.scope,
        addr: alps_addr(bytes: address.addr))
}

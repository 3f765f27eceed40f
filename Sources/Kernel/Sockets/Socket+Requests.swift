import Glibc
package import PluginAPI

/// What applications ask of a socket. Results are 0 or an errno, as Linux gives it.
extension Socket {
    /// bind(2)
    package func bind(_ address: alps_sockaddr) -> Int32 {
        guard isAttached else { return EINVAL }
        guard address.family == raw.pointee.domain || address.family == 0 else { return EAFNOSUPPORT }
        guard boundAddress == nil, !isConnected, !isConnecting, !isListening else { return EINVAL }
        var address = address
        address.family = raw.pointee.domain
        let status = request(UInt32(ALPS_PRU_BIND), address)
        if status == 0 { boundAddress = localAddress }
        return status
    }

    /// listen(2). Again on a listener: changes the backlog.
    package func listen(_ backlog: Int32) -> Int32 {
        guard isStream else { return EOPNOTSUPP }
        guard isAttached, !isConnected, !isConnecting, !isDisconnected else { return EINVAL }
        let limit = min(max(Int64(backlog < 0 ? Int32.max : backlog), 0), kernel.sockets.somaxconn.value)
        let before = raw.pointee.backlog
        raw.pointee.backlog = UInt32(limit)
        let status = request(UInt32(ALPS_PRU_LISTEN), Int32(limit))
        guard status == 0 else {
            raw.pointee.backlog = before
            return status
        }
        raw.pointee.options |= UInt32(ALPS_SO_ACCEPTCONN)
        boundAddress = localAddress
        return 0
    }

    /// connect(2), started: 0 for datagrams, EINPROGRESS for a stream on its way.
    package func connect(_ address: alps_sockaddr) -> Int32 {
        if isListening { return EISCONN }
        if isStream {
            if isConnected { return EISCONN }
            if isConnecting { return EALREADY }
            if raw.pointee.error != 0 { return takeError() }
            if address.family == 0 { return 0 }
            // Linux lets a program try again after a failed connect.
            if isDisconnected || !isAttached {
                let status = kernel.sockets.reattach(self)
                guard status == 0 else { return status }
            }
        } else if address.family == 0 {
            return disconnect()
        }
        guard address.family == raw.pointee.domain else { return EAFNOSUPPORT }
        let status = request(UInt32(ALPS_PRU_CONNECT), address)
        guard status == 0 else { return status }
        return isStream && !isConnected ? EINPROGRESS : 0
    }

    /// connect(2), whole: on a fiber, sleeps until the connection is there or has failed.
    package func connectAndWait(_ address: alps_sockaddr, timeout: UInt64 = 0) -> Int32 {
        let started = connect(address)
        guard started == EINPROGRESS || started == EALREADY && isConnecting else { return started }
        return waitForConnection(timeout: timeout)
    }

    /// Sleeps until a connection that has been started is there or has failed. On a fiber.
    package func waitForConnection(timeout: UInt64 = 0) -> Int32 {
        let deadline = timeout == 0 ? UInt64.max : kernel.clock.now &+ timeout
        while isConnecting {
            let now = kernel.clock.now
            guard now < deadline else { return EINPROGRESS }
            let status = kernel.fibers.tsleep(
                channel: UnsafeRawPointer(raw), wmesg: "connect", timeout: deadline == .max ? 0 : deadline - now)
            if status == EINTR || status == ALPS_ERESTART { return EINTR }
        }
        if isConnected { return 0 }
        let error = takeError()
        // Closed under us without an error of its own.
        return error != 0 ? error : (isConnected ? 0 : ECONNABORTED)
    }

    /// Forgets a datagram socket's peer.
    package func disconnect() -> Int32 {
        guard !isStream else { return EOPNOTSUPP }
        guard isConnected else { return 0 }
        let status = request(UInt32(ALPS_PRU_DISCONNECT))
        raw.pointee.state &= ~UInt32(ALPS_SS_CONNECTED)
        return status
    }

    /// shutdown(2)
    package func shutdown(_ how: Int32) -> Int32 {
        guard (0...2).contains(how) else { return EINVAL }
        if isListening {
            // Linux: shutting a listener down for reading ends its listening.
            guard how != ALPS_SHUT_WR else { return 0 }
            raw.pointee.state |= UInt32(ALPS_SS_CANTRCVMORE)
            markDirty()
            return 0
        }
        guard isConnected || isStream && isAttached && raw.pointee.state & UInt32(ALPS_SS_DISCONNECTING) != 0 else {
            return ENOTCONN
        }
        if how != ALPS_SHUT_WR { raw.pointee.state |= UInt32(ALPS_SS_CANTRCVMORE) }
        if how != ALPS_SHUT_RD {
            guard !cannotSendMore else {
                markDirty()
                return 0
            }
            raw.pointee.state |= UInt32(ALPS_SS_CANTSENDMORE)
        }
        markDirty()
        guard isAttached, entry.request(UInt32(ALPS_PRU_SHUTDOWN)) != nil else { return 0 }
        return request(UInt32(ALPS_PRU_SHUTDOWN), how)
    }

    /// The application's last reference is gone. What was written still goes out, unless SO_LINGER says 0.
    package func close() {
        guard !isClosed else { return }
        raw.pointee.state |= UInt32(ALPS_SS_CLOSED)
        let isAbort = raw.pointee.linger == 0 && isConnected && isStream
        dropListenQueue()
        if isAttached { _ = request(UInt32(isAbort ? ALPS_PRU_ABORT : ALPS_PRU_CLOSE)) }
        finish()
    }

    /// Ends the connection with a reset.
    package func abort() {
        guard !isClosed else { return }
        raw.pointee.state |= UInt32(ALPS_SS_CLOSED)
        dropListenQueue()
        if isAttached { _ = request(UInt32(ALPS_PRU_ABORT)) }
        finish()
    }

    private func finish() {
        datagrams.removeAll(kernel.mbufs)
        kernel.fibers.wakeup(UnsafeRawPointer(raw))
        releaseIfUnused()
    }

    /// Connections that nobody is going to accept are reset.
    private func dropListenQueue() {
        guard isListening else { return }
        raw.pointee.options &= ~UInt32(ALPS_SO_ACCEPTCONN)
        for instance in formerInstances where instance.state != .dead {
            guard let former = kernel.protocols.counterpart(of: entry, in: instance),
                let request = former.request(UInt32(ALPS_PRU_ORPHAN))
            else { continue }
            typealias Function = @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>) -> Int32
            _ = unsafeBitCast(request.function, to: Function.self)(former.instancePointer, raw)
        }
        formerInstances.removeAll()
        let waiting = acceptQueue
        acceptQueue.removeAll()
        raw.pointee.queue_length = 0
        for child in waiting {
            child.head = nil
            child.raw.pointee.listener = nil
            child.abort()
        }
        for child in kernel.sockets.all where child.head === self {
            child.head = nil
            child.raw.pointee.listener = nil
            child.abort()
        }
    }

    /// The oldest connection that is ready, nil if there is none. The caller becomes its application.
    package func acceptNext() -> Socket? {
        guard !acceptQueue.isEmpty else { return nil }
        let child = acceptQueue.removeFirst()
        raw.pointee.queue_length = UInt32(acceptQueue.count)
        child.head = nil
        child.raw.pointee.listener = nil
        return child
    }

    /// A child of this listener has gone before it was accepted.
    func remove(child: Socket) {
        if let index = acceptQueue.firstIndex(where: { $0 === child }) {
            acceptQueue.remove(at: index)
            raw.pointee.queue_length = UInt32(acceptQueue.count)
        } else {
            handshakes -= 1
        }
    }

    /// A transport's ioctl; ENOTTY if it has none.
    package func control(_ command: UInt32, _ data: inout [UInt8]) -> Int32 {
        guard isAttached, let request = entry.request(UInt32(ALPS_PRU_CONTROL)) else { return ENOTTY }
        let (error, results) = request.call(
            instance: entry.instancePointer, socket: raw,
            [.integer(Int64(command)), .buffer(data, capacity: data.count)])
        if error == 0, case .bytes(let bytes)? = results.first { data = bytes }
        return error
    }
}

import Glibc
package import PluginAPI

/// bind(2), connect(2), and what undoes them. Results are 0 or an errno, as Linux gives it.
extension Socket {
    package func bind(_ address: alps_sockaddr) -> Int32 {
        // Linux takes AF_UNSPEC for AF_INET if the address is the wildcard.
        guard address.family == raw.pointee.domain || address.family == UInt16(ALPS_AF_UNSPEC) && address.addr.isZero else {
            return EAFNOSUPPORT
        }
        guard boundAddress == nil, connectStage == .unconnected, !isConnected, !isListening else { return EINVAL }
        var status = kernel.sockets.ensureAttached(self)
        guard status == 0 else { return status }
        var address = address
        address.family = raw.pointee.domain
        status = request(ALPS_PRU_BIND, address)
        if status == 0 { makeUncommon().boundAddress = localAddress }
        return status
    }

    /// connect(2), started: 0 for datagrams, EINPROGRESS for a stream on its way.
    package func connect(_ address: alps_sockaddr) -> Int32 {
        guard isStream else {
            if address.family == UInt16(ALPS_AF_UNSPEC) { return disconnect() }
            guard address.family == raw.pointee.domain else { return EAFNOSUPPORT }
            guard isAttached else { return EINVAL }
            return request(ALPS_PRU_CONNECT, address)
        }
        if isListening { return EISCONN }
        if address.family == UInt16(ALPS_AF_UNSPEC) { return dissolve(leaving: 0) }
        switch connectStage {
        case .connected: return EISCONN
        case .connecting: return isConnecting ? EALREADY : concludeConnect()
        case .unconnected: break
        }
        guard address.family == raw.pointee.domain else { return EAFNOSUPPORT }
        var status = kernel.sockets.ensureAttached(self)
        if status == 0 { status = request(ALPS_PRU_CONNECT, address) }
        guard status == 0 else { return status }
        connectStage = .connecting
        return isConnecting ? EINPROGRESS : concludeConnect()
    }

    /// connect(2), whole: on a fiber, sleeps until the connection is there or has failed.
    package func connectAndWait(_ address: alps_sockaddr, timeout: UInt64 = 0) -> Int32 {
        let started = connect(address)
        guard started == EINPROGRESS || started == EALREADY else { return started }
        return waitForConnection(timeout: timeout)
    }

    /// Sleeps until a connection that has been started is there or has failed. On a fiber. `timeout` 0: SO_SNDTIMEO,
    /// after which the connection goes on and the result is EINPROGRESS.
    package func waitForConnection(timeout: UInt64 = 0) -> Int32 {
        let limit = timeout != 0 ? timeout : sendTimeout
        let deadline = limit == 0 ? UInt64.max : kernel.clock.now &+ limit
        while isConnecting, !isClosed {
            let now = kernel.clock.now
            guard now < deadline else { return EINPROGRESS }
            waiters += 1
            let status = kernel.fibers.tsleep(
                channel: UnsafeRawPointer(raw), wmesg: "connect", timeout: deadline == .max ? 0 : deadline - now)
            waiters -= 1
            if status == EINTR || status == ALPS_ERESTART { return EINTR }
            if status == ENOSYS { return EINPROGRESS }
        }
        return concludeConnect()
    }

    /// What has come of an attempt that is over.
    private func concludeConnect() -> Int32 {
        if isConnected, !isClosed {
            connectStage = .connected
            return 0
        }
        let error = takeError()
        if connectStage == .connecting, !isClosed {
            connectStage = .unconnected
            forgetConnection()
        }
        return error != 0 ? error : ECONNABORTED
    }

    /// Linux lets a program try again after a failed attempt: the socket is as new, but for its options and its name.
    private func forgetConnection() {
        raw.pointee.state &= ALPS_SS_CLOSED | ALPS_SS_NONBLOCK
        raw.pointee.snd.head = raw.pointee.snd.tail
        raw.pointee.rcv.head = raw.pointee.rcv.tail
        urgent = UrgentByte()
        let netpcb = raw.pointee.netpcb
        netpcb.pointee.local = boundAddress?.addr ?? alps_addr()
        netpcb.pointee.remote = alps_addr()
        netpcb.pointee.route = alps_route()
    }

    /// Ends a connection, an attempt or listening with a reset, and leaves a socket that can be used again; `error` is
    /// its SO_ERROR.
    func dissolve(leaving error: Int32) -> Int32 {
        guard isListening || connectStage != .unconnected || isConnecting || isConnected else { return 0 }
        dropListenQueue()
        if isAttached { _ = request(ALPS_PRU_ABORT) }
        connectStage = .unconnected
        forgetConnection()
        raw.pointee.error = error
        markDirty()
        return kernel.sockets.ensureAttached(self)
    }

    /// Forgets a datagram socket's peer.
    package func disconnect() -> Int32 {
        guard !isStream else { return dissolve(leaving: 0) }
        guard isConnected, isAttached else { return 0 }
        let status = request(ALPS_PRU_DISCONNECT)
        raw.pointee.state &= ~ALPS_SS_CONNECTED
        return status
    }
}

extension alps_addr {
    var isZero: Bool {
        let (low, high) = unsafeBitCast(self, to: (UInt64, UInt64).self)
        return low | high == 0
    }
}

import Glibc
import PluginAPI

/// shutdown(2), close(2) and the end of a socket.
extension Socket {
    package func shutdown(_ how: Int32) -> Int32 {
        guard (ALPS_SHUT_RD...ALPS_SHUT_RDWR).contains(how) else { return EINVAL }
        if isListening {
            // Linux: shutting a listener down for reading ends its listening; its port stays its own.
            guard how != ALPS_SHUT_WR else { return 0 }
            let status = dissolve(leaving: 0)
            raw.pointee.state |= ALPS_SS_CANTRCVMORE
            return status
        }
        if isStream, isConnecting { return dissolve(leaving: ECONNRESET) }
        let was = raw.pointee.state
        if isConnected || !isStream {
            // A datagram socket without a peer is told ENOTCONN, and is shut down all the same.
            if how != ALPS_SHUT_WR { raw.pointee.state |= ALPS_SS_CANTRCVMORE }
            if how != ALPS_SHUT_RD { raw.pointee.state |= ALPS_SS_CANTSENDMORE }
            markDirty()
        }
        guard isConnected else { return ENOTCONN }
        connectStage = .connected
        // What has been shut down before is not the transport's to hear of again.
        let fresh = raw.pointee.state & ~was
        let news: Int32
        switch (fresh & ALPS_SS_CANTRCVMORE != 0, fresh & ALPS_SS_CANTSENDMORE != 0) {
        case (false, false): return 0
        case (true, false): news = ALPS_SHUT_RD
        case (false, true): news = ALPS_SHUT_WR
        case (true, true): news = ALPS_SHUT_RDWR
        }
        guard isAttached, transportRequest(ALPS_PRU_SHUTDOWN) != nil else { return 0 }
        return request(ALPS_PRU_SHUTDOWN, news)
    }

    /// The application's last reference is gone. What was written still goes out, unless SO_LINGER says 0 or data have
    /// not been read: then the peer must not believe that they were (RFC 1122, 4.2.2.13).
    package func close() {
        guard !isClosed else { return }
        let isUnread = isStream && !isListening && raw.pointee.rcv.tail != raw.pointee.rcv.head
        end(asAbort: isStream && isConnected && raw.pointee.linger == 0 || isUnread)
    }

    /// Whether close(2) has something to wait for: SO_LINGER with a time, and what is not acknowledged yet.
    package var isLingering: Bool {
        isStream && raw.pointee.linger > 0 && isAttached && !isDisconnected
    }

    /// SO_LINGER: sleeps until everything, the end included, is acknowledged, or SO_LINGER's time is over; what is left then
    /// goes on in the background. On a fiber. 0, or EINTR if cancelled.
    package func waitForEnd() -> Int32 {
        let deadline = kernel.clock.now &+ UInt64(max(raw.pointee.linger, 0)) * 1_000_000_000
        while isLingering {
            let now = kernel.clock.now
            guard now < deadline else { return 0 }
            waiters += 1
            let status = kernel.fibers.tsleep(channel: UnsafeRawPointer(raw), wmesg: "linger", timeout: deadline - now)
            waiters -= 1
            if status == EINTR || status == ENOSYS { return status }
        }
        return 0
    }

    /// Ends the connection with a reset, and the socket with it.
    package func abort() {
        guard !isClosed else { return }
        end(asAbort: true)
    }

    private func end(asAbort: Bool) {
        raw.pointee.state |= ALPS_SS_CLOSED
        dropListenQueue()
        if isAttached { _ = request(asAbort ? ALPS_PRU_ABORT : ALPS_PRU_CLOSE) }
        datagrams?.removeAll(kernel.mbufs)
        if waiters > 0 { kernel.fibers.wakeup(UnsafeRawPointer(raw)) }
        releaseIfUnused()
    }

    /// A transport's ioctl; ENOTTY if it has none.
    package func control(_ command: UInt32, _ data: inout [UInt8]) -> Int32 {
        guard isAttached, let request = transportRequest(ALPS_PRU_CONTROL) else { return ENOTTY }
        let (error, results) = request.call(
            instance: instance, socket: raw, [.integer(Int64(command)), .buffer(data, capacity: data.count)])
        if error == 0, case .bytes(let bytes)? = results.first { data = bytes }
        return error
    }
}

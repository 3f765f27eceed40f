import PluginAPI

/// "alps.socket/1": what transports ask of the socket layer. `self` is the plugin instance that asks.
enum SocketInterface {
    static var table: alps_socket_ops {
        alps_socket_ops(
            size: UInt32(MemoryLayout<alps_socket_ops>.size), reserved: 0, is_connecting: isConnecting,
            is_connected: isConnected, is_disconnecting: isDisconnecting, is_disconnected: isDisconnected,
            cant_receive_more: cannotReceiveMore, set_error: setError, has_oob: hasUrgent, detached: detached,
            new_connection: newConnection, send_data: sendData, send_drop: sendDrop, receive_place: receivePlace,
            receive_advance: receiveAdvance, receive_datagram: receiveDatagram, receive_space: receiveSpace,
            grow: grow, report_error: reportError)
    }
}

private typealias RawSocket = UnsafeMutablePointer<alps_socket>

@inline(__always)
private func withSocket<Result>(_ so: RawSocket, _ body: (Socket) -> Result) -> Result {
    Socket.from(so)._withUnsafeGuaranteedRef { body($0) }
}

// MARK: State

private func isConnecting(_: UnsafeMutableRawPointer, _ so: RawSocket) {
    so.pointee.state &= ~(ALPS_SS_CONNECTED | ALPS_SS_DISCONNECTING | ALPS_SS_DISCONNECTED)
    so.pointee.state |= ALPS_SS_CONNECTING
}

private func isConnected(_: UnsafeMutableRawPointer, _ so: RawSocket) {
    withSocket(so) { socket in
        socket.head?({ socket.joinListenQueue(of: $0) })
        so.pointee.state &= ~(ALPS_SS_CONNECTING | ALPS_SS_DISCONNECTING | ALPS_SS_DISCONNECTED)
        so.pointee.state |= ALPS_SS_CONNECTED
        socket.markDirty()
    }
}

private func isDisconnecting(_: UnsafeMutableRawPointer, _ so: RawSocket) {
    so.pointee.state &= ~ALPS_SS_CONNECTING
    so.pointee.state |= ALPS_SS_DISCONNECTING | ALPS_SS_CANTRCVMORE | ALPS_SS_CANTSENDMORE
    withSocket(so) { $0.markDirty() }
}

private func isDisconnected(_: UnsafeMutableRawPointer, _ so: RawSocket) {
    so.pointee.state &= ~(ALPS_SS_CONNECTING | ALPS_SS_CONNECTED | ALPS_SS_DISCONNECTING)
    so.pointee.state |= ALPS_SS_DISCONNECTED | ALPS_SS_CANTRCVMORE | ALPS_SS_CANTSENDMORE
    withSocket(so) { $0.markDirty() }
}

private func cannotReceiveMore(_: UnsafeMutableRawPointer, _ so: RawSocket) {
    so.pointee.state |= ALPS_SS_CANTRCVMORE
    withSocket(so) { $0.markDirty() }
}

private func setError(_: UnsafeMutableRawPointer, _ so: RawSocket, _ error: Int32) {
    so.pointee.error = error
    withSocket(so) { $0.markDirty() }
}

private func reportError(
    _: UnsafeMutableRawPointer, _ so: RawSocket, _ event: UnsafePointer<alps_ctl_event>, _ payload: UInt32, _ port: UInt16
) {
    so.pointee.error = event.pointee.error
    withSocket(so) {
        if so.pointee.options & ALPS_SO_RECVERR != 0 { $0.queueError(event.pointee, payload: Int(payload), port: port) }
        $0.markDirty()
    }
}

private func hasUrgent(_: UnsafeMutableRawPointer, _ so: RawSocket, _ mark: UInt64, _ byte: Int32) {
    withSocket(so) { $0.announceUrgent(mark: mark, byte: byte) }
}

private func detached(_: UnsafeMutableRawPointer, _ so: RawSocket) {
    // Retained: the socket may be freed in here.
    let socket = Socket.from(so).takeUnretainedValue()
    socket.kernel.sockets.detached(socket)
}

private func newConnection(_ context: UnsafeMutableRawPointer, _ head: RawSocket) -> RawSocket? {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { maker in
        withSocket(head) { $0.makeChild(maker)?.raw }
    }
}

// MARK: Data

private func sendData(_: UnsafeMutableRawPointer, _ so: RawSocket, _ position: UInt64, _ length: UInt32) -> Mbuf? {
    withSocket(so) { $0.sendData(position, length) }
}

private func sendDrop(_: UnsafeMutableRawPointer, _ so: RawSocket, _ position: UInt64) {
    withSocket(so) { $0.dropSent(position) }
}

private func receivePlace(
    _: UnsafeMutableRawPointer, _ so: RawSocket, _ position: UInt64, _ packet: UnsafePointer<alps_mbuf>,
    _ offset: UInt32, _ length: UInt32
) -> UInt32 {
    withSocket(so) { $0.place(position, packet, offset, length) }
}

private func receiveAdvance(_: UnsafeMutableRawPointer, _ so: RawSocket, _ tail: UInt64) {
    so.pointee.rcv.tail = tail
    withSocket(so) {
        $0.skipUrgentByte()
        $0.markDirty()
    }
}

private func grow(_: UnsafeMutableRawPointer, _ so: RawSocket, _ isSend: Int32, _ bytes: UInt32) -> UInt32 {
    withSocket(so) { $0.grow(isSend: isSend != 0, bytes) }
}

private func receiveDatagram(
    _: UnsafeMutableRawPointer, _ so: RawSocket, _ packet: Mbuf, _ info: UnsafePointer<alps_datagram_info>
) -> Int32 {
    withSocket(so) { $0.enqueue(packet, info) }
}

private func receiveSpace(_: UnsafeMutableRawPointer, _ so: RawSocket) -> UInt32 {
    let held = so.pointee.rcv.tail &- so.pointee.rcv.head
    return held < UInt64(so.pointee.rcv.limit) ? so.pointee.rcv.limit - UInt32(held) : 0
}

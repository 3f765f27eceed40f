package import PluginAPI

/// One error message about a datagram that a socket sent (IP_RECVERR).
package struct QueuedError {
    package var error: Int32
    package var type: UInt8
    package var code: UInt8
    package var mtu: UInt32
    package var offender: alps_sockaddr
    /// Where the datagram was going.
    package var destination: alps_sockaddr
    /// As much of it as was quoted: its payload; of a raw socket's from the transport header on.
    package var payload: [UInt8]
}

/// The error queue of a socket, MSG_ERRQUEUE: oldest first, bounded.
struct ErrorQueue {
    private(set) var waiting: [QueuedError] = []
    /// Not announced to the application yet.
    var untold = 0
    static let limit = 64

    mutating func append(_ error: QueuedError) {
        guard waiting.count < Self.limit else { return }
        waiting.append(error)
        untold += 1
    }

    mutating func removeFirst() -> QueuedError? {
        guard !waiting.isEmpty else { return nil }
        untold = min(untold, waiting.count - 1)
        return waiting.removeFirst()
    }
}

extension Socket {
    /// An error message that the socket's transport has decided to tell of, or that is about a raw socket's datagram.
    func queueError(_ event: UnsafePointer<alps_ctl_event>) {
        guard let quoted = event.pointee.quoted else { return }
        var destination = alps_sockaddr(family: event.pointee.family, port: 0, scope: 0, addr: event.pointee.destination)
        var offset = event.pointee.transport_offset
        let length = quoted.pointee.pkt.length
        if raw.pointee.type == UInt16(ALPS_SOCK_DGRAM), raw.pointee.protocol == 17, length >= offset + 8 {
            var port: UInt16 = 0
            withUnsafeMutableBytes(of: &port) { kernel.mbufs.copyOut(quoted, Int(offset) + 2, 2, $0.baseAddress!) }
            destination.port = UInt16(bigEndian: port)
            offset += 8
        }
        let count = Int(length > offset ? length - offset : 0)
        let payload = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            if let to = buffer.baseAddress, count > 0 { kernel.mbufs.copyOut(quoted, Int(offset), count, to) }
            initialized = count
        }
        errors.append(
            QueuedError(
                error: event.pointee.error, type: event.pointee.type, code: event.pointee.code,
                mtu: event.pointee.error == ALPS_EMSGSIZE ? event.pointee.mtu : 0,
                offender: alps_sockaddr(family: event.pointee.family, port: 0, scope: 0, addr: event.pointee.offender),
                destination: destination, payload: payload))
        markDirty()
    }

    /// An error message that the application has not been told of.
    var untoldError: Int32? { errors.untold > 0 ? errors.waiting.last?.error ?? 0 : nil }

    func errorWasTold() { errors.untold -= 1 }

    /// MSG_ERRQUEUE: the oldest error message. Taking it makes the next one the pending error, as on Linux.
    package func takeQueuedError(peek: Bool) -> QueuedError? {
        if peek { return errors.waiting.first }
        guard let first = errors.removeFirst() else { return nil }
        raw.pointee.error = errors.waiting.first?.error ?? 0
        return first
    }
}

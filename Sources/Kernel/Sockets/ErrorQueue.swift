package import PluginAPI

/// An error message about something that a socket has sent, as IP_RECVERR and MSG_ERRQUEUE tell it.
package struct QueuedError {
    package var error: Int32
    package var origin: Origin
    /// Of the ICMP message, as on the wire.
    package var type: UInt8 = 0
    package var code: UInt8 = 0
    /// The largest packet that would have passed, with EMSGSIZE.
    package var mtu: UInt32 = 0
    /// Who sent the message; family 0: this stack itself.
    package var offender = alps_sockaddr()
    /// Where the packet was going.
    package var destination = alps_sockaddr()
    /// Wall clock, ns.
    package var timestamp: UInt64
    /// What the application had sent, as far as the message quotes it.
    package var payload: [UInt8] = []

    /// SO_EE_ORIGIN_*.
    package enum Origin: UInt8 {
        case local = 1
        case icmp = 2
    }
}

/// A socket's error messages, oldest first. Bounded: what does not fit is lost, as on Linux.
struct ErrorQueue {
    private var errors: [QueuedError] = []
    private static let limit = 64
    /// A router quotes 576 bytes at most (RFC 1812, 4.3.2.3); hosts may quote more.
    static let quoteLimit = 1500

    var first: QueuedError? { errors.first }
    var count: Int { errors.count }

    mutating func append(_ error: QueuedError) {
        if errors.count < Self.limit { errors.append(error) }
    }

    mutating func removeFirst() -> QueuedError? { errors.isEmpty ? nil : errors.removeFirst() }
}

extension Socket {
    /// Keeps an error message; `payload` is where the application's bytes begin in the quoted packet.
    func queueError(_ event: alps_ctl_event, payload: Int, port: UInt16) {
        var error = QueuedError(
            error: event.error, origin: .icmp, type: event.type, code: event.code, mtu: event.mtu,
            offender: alps_sockaddr(family: event.family, port: 0, scope: 0, addr: event.offender),
            destination: alps_sockaddr(family: event.family, port: port, scope: 0, addr: event.destination),
            timestamp: kernel.clock.wall)
        if let quoted = event.quoted {
            let count = min(max(Int(quoted.pointee.pkt.length) - payload, 0), ErrorQueue.quoteLimit)
            error.payload = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
                if let to = buffer.baseAddress, count > 0 { kernel.mbufs.copyOut(quoted, payload, count, to) }
                initialized = count
            }
        }
        makeUncommon().errors.append(error)
    }

    /// A datagram was too long for its path: with IP_RECVERR a message of this stack's own says so, and how long it may be.
    func queueTooLong(_ payload: UnsafeRawBufferPointer, to destination: alps_sockaddr?) {
        guard raw.pointee.options & ALPS_SO_RECVERR != 0 else { return }
        var error = QueuedError(
            error: ALPS_EMSGSIZE, origin: .local, destination: destination ?? remoteAddress, timestamp: kernel.clock.wall)
        let ipMTU: (level: Int32, name: Int32) = (0, 14)
        let (status, value) = getOption(level: ipMTU.level, name: ipMTU.name, capacity: 4)
        if status == 0, value.count == 4 { error.mtu = value.withUnsafeBytes { $0.loadUnaligned(as: UInt32.self) } }
        error.payload = Array(payload.prefix(ErrorQueue.quoteLimit))
        makeUncommon().errors.append(error)
    }

    /// The oldest error message, and how many are left. SO_ERROR becomes that of the next one, as on Linux.
    package func takeQueuedError() -> (error: QueuedError, left: Int)? {
        guard let uncommon else { return nil }
        // Turned off, the option takes what is there with it.
        if raw.pointee.options & ALPS_SO_RECVERR == 0 { uncommon.errors = ErrorQueue() }
        guard let taken = uncommon.errors.removeFirst() else { return nil }
        raw.pointee.error = uncommon.errors.first?.error ?? 0
        return (taken, uncommon.errors.count)
    }
}

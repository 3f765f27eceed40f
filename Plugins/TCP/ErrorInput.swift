import PluginAPI
import PluginKit

// Error messages about segments of ours (RFC 9293, 3.9.2.2; RFC 5927; RFC 1191). Anybody can forge one: only a quoted
// sequence number that is in flight makes it worth a look, and in the synchronized states none ends a connection.

func tcpControlInput(_ context: UnsafeMutableRawPointer, _ event: UnsafePointer<alps_ctl_event>) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    instance.count(.errorMessages)
    guard let conn = event.pointee.conn, let cookie = conn.pointee.cookie, let network = instance.network,
        let number = instance.quotedSequence(event)
    else { return }
    switch UInt32(conn.pointee.kind) {
    case ALPS_CONN_FULL:
        let connection = cookie.assumingMemoryBound(to: Connection.self)
        guard connection.pointee.conn.kind == UInt8(ALPS_CONN_FULL) else { return }
        connection.errorReported(event, number, network)
    case ALPS_CONN_EMBRYONIC:
        let entry = cookie.assumingMemoryBound(to: Embryonic.self)
        guard number == entry.pointee.iss, event.pointee.error != ALPS_EMSGSIZE else { return }
        // One is no proof (RFC 5927); the timer will end it.
        if event.pointee.hard != 0, entry.pointee.retransmits > 1 {
            instance.count(.cacheUnreachable)
            instance.drop(entry)
        }
    default:
        break
    }
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// What an attempt to connect fails with because of `event`; nil: it goes on.
    fileprivate func hardError(_ event: UnsafePointer<alps_ctl_event>) -> Int32? {
        guard isOn(.errorsMayReset) else { return nil }
        guard isOn(.errorsAsBSD) else { return event.pointee.hard != 0 ? event.pointee.error : nil }
        // Protocol or port unreachable, and the three kinds of "administratively prohibited" (RFC 1812, 5.2.7.1).
        switch (event.pointee.type, event.pointee.code) {
        case (3, 2), (3, 3), (3, 9), (3, 10), (3, 13): return ALPS_ECONNREFUSED
        default: return nil
        }
    }

    /// The sequence number in the quoted header, of which at least eight bytes are there (RFC 792).
    fileprivate func quotedSequence(_ event: UnsafePointer<alps_ctl_event>) -> SequenceNumber? {
        guard let quoted = event.pointee.quoted else { return nil }
        let offset = event.pointee.transport_offset
        guard offset < 65536, quoted.pointee.pkt.length >= offset &+ 8 else { return nil }
        var number: UInt32 = 0
        let cell = services.mbufCell
        cell.ops(alps_mbuf_ops.self).pointee.copy_out(cell.instance, quoted, offset &+ 4, 4, &number)
        return SequenceNumber(UInt32(bigEndian: number))
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    fileprivate func errorReported(
        _ event: UnsafePointer<alps_ctl_event>, _ number: SequenceNumber, _ network: Network
    ) {
        guard number >= pointee.sndUna, number < pointee.sndMax else { return }
        let error = event.pointee.error
        if error == ALPS_EMSGSIZE { return tooBig(event, network) }
        guard error != 0 else { return }
        switch pointee.state {
        case .synSent, .synReceived:
            // RFC 9293, 3.9.2.2: a hard error may end an attempt; a soft one counts once we have tried a while.
            if let reason = instance.hardError(event) {
                instance.count(.drops)
                if pointee.state == .synSent, has(.fastOpened) { instance.avoidFastOpen(pointee.conn.remote) }
                return close(reason)
            }
            pointee.softError = error
            if pointee.attempts > 3 { close(error) }
        case .closed, .listen, .timeWait:
            break
        default:
            // RFC 5927, section 4.3, treats all of them as soft from here on.
            pointee.softError = error
            if socket.pointee.options & ALPS_SO_RECVERR != 0 {
                instance.sockets.pointee.set_error(instance.socketLayer, socket, error)
            }
        }
    }

    private func tooBig(_ event: UnsafePointer<alps_ctl_event>, _ network: Network) {
        guard instance.isOn(.pathMTUDiscovery) else { return }
        let before = pointee.mss
        let pathBefore = network.ops.pointee.path_mtu(network.instance, netpcb)
        _ = network.ops.pointee.lower_mtu(
            network.instance, netpcb, event.pointee.mtu, event.pointee.quoted_length)
        refreshMSS()
        if pointee.state == .synSent {
            // Its data were too much: the SYN goes again at once, without them (RFC 7413, 4.1.3; RFC 1191, 6.5).
            guard pointee.sndMax - pointee.iss > 1,
                network.ops.pointee.path_mtu(network.instance, netpcb) < pathBefore
            else { return }
            clear(.timing)
            sendSyn()
            // Not for congestion: the initial window stays.
            clear(.synLost)
            return
        }
        // A whole flight may have been too big; the first report of it is enough.
        if pointee.mss < before, pointee.state.isSynchronized { resendSmaller() }
    }
}

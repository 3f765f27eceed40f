import PluginAPI
import PluginKit

/// RFC 9293, 3.8.4: off by default, only on an idle connection, never dead after one lost probe.
extension UnsafeMutablePointer where Pointee == Connection {
    var keepIdle: UInt64 { chosen(pointee.options.keepIdle, .keepIdle) }

    /// How long a handshake of ours may take (TCP_KEEPINIT).
    var connectTimeout: UInt64 { chosen(pointee.options.connectTimeout, .connectTimeout) }

    var keepInterval: UInt64 { chosen(pointee.options.keepInterval, .keepInterval) }

    var keepCount: UInt32 {
        let count = UInt32(pointee.options.keepCount)
        return count != 0 ? count : UInt32(truncatingIfNeeded: instance.setting(.keepCount))
    }

    /// TCP_USER_TIMEOUT; 0: none.
    @inline(__always)
    var userTimeout: UInt64 { UInt64(pointee.options.userTimeout) &* UInt64(ALPS_NSEC_PER_MSEC) }

    /// How long FIN-WAIT-2 lasts that nobody waits for.
    var linger2: UInt64 {
        let linger = pointee.options.linger2
        return linger < 0 ? 0 : chosen(UInt16(linger), .finWait2Timeout)
    }

    private func chosen(_ seconds: UInt16, _ setting: Setting) -> UInt64 {
        seconds != 0 ? UInt64(seconds) &* UInt64(ALPS_NSEC_PER_SEC) : instance.nanoseconds(setting)
    }

    private var isKeptAlive: Bool {
        socket.pointee.options & ALPS_SO_KEEPALIVE != 0 || instance.isOn(.alwaysKeepAlive)
    }

    /// After a change of the options.
    func restartKeep() {
        guard pointee.state.isSynchronized, pointee.keepUse == .idle else { return }
        let idle = instance.now &- pointee.lastReceived
        setKeep(after: keepIdle > idle ? keepIdle - idle : 0)
    }

    func keepAliveDue() {
        guard pointee.state.isSynchronized else { return }
        let instance = instance
        let idle = instance.now &- pointee.lastReceived
        // With data in flight the retransmission timer finds out whether the peer is there.
        guard isKeptAlive, pointee.sndMax == pointee.sndUna, pointee.retransmitUse == .none else {
            pointee.keepProbes = 0
            return setKeep(after: keepIdle)
        }
        guard idle >= keepIdle else { return setKeep(after: keepIdle - idle) }
        let isOver =
            userTimeout != 0 ? pointee.keepProbes > 0 && idle >= userTimeout : pointee.keepProbes >= keepCount
        if isOver {
            instance.count(.keepAliveDropped)
            instance.count(.drops)
            sendReset()
            return close(pointee.softError != 0 ? pointee.softError : ALPS_ETIMEDOUT)
        }
        pointee.keepProbes += 1
        instance.count(.keepAliveProbes)
        sendProbe(pointee.sndUna - 1)
        setKeep(after: keepInterval)
    }

    /// An empty segment with a number that is not new: the peer must answer it.
    func sendProbe(_ sequence: SequenceNumber) {
        guard let network = instance.network,
            let packet = makeSegment(network, sequence, 0, Flag.ack, keepsWindow: false)
        else { return }
        pointee.totals.segmentsOut &+= 1
        instance.count(.sent)
        transmit(network, packet)
    }
}

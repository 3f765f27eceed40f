import PluginAPI
import PluginKit

/// A connection in SYN-RECEIVED that a listener's SYN has made: no socket, no buffers, no control block yet (RFC 4987,
/// 3.4, "SYN cache").
struct Embryonic {
    var conn: alps_conn
    var head: Socket
    /// Its control block; nil once the listener has been re-homed to another instance.
    var listener: ConnectionPointer?
    var next: UnsafeMutablePointer<Embryonic>?
    var previous: UnsafeMutablePointer<Embryonic>?
    var irs: SequenceNumber
    var iss: SequenceNumber
    var tsRecent: UInt32
    var timestampOffset: UInt32
    var peerMSS: UInt32
    var advertisedMSS: UInt32
    /// The window of the peer's last segment, as it was on the wire.
    var window: UInt32
    var sndScale: UInt8
    var rcvScale: UInt8
    var hasScaling: Bool
    var hasTimestamps: Bool
    var isSackPermitted: Bool
    var hasECN: Bool
    var accurate = EmbryonicECN()
    /// The SYN, ACK carries a Fast Open cookie.
    var givesCookie: Bool
    var isExperimental: Bool
    /// A SYN cookie has the options in the low bits of its timestamp.
    var isCookie: Bool
    var retransmits: UInt32
    var advertisedWindow: UInt32
    var sentAt: UInt64
    var challengeStart: UInt64
    var challenges: UInt32
    var callout: alps_callout
}

typealias EmbryonicPointer = UnsafeMutablePointer<Embryonic>

/// The SYN cache of an instance, oldest first.
struct EmbryonicList {
    var first: EmbryonicPointer?
    var last: EmbryonicPointer?
    var count: Int
}

extension UnsafeMutablePointer where Pointee == Embryonic {
    var rcvNxt: SequenceNumber { pointee.irs + 1 }
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// A segment for an entry of the SYN cache: RFC 9293, 3.10.7.4 in SYN-RECEIVED after a passive open.
    func arriveEmbryonic(_ entry: EmbryonicPointer, _ segment: inout Segment, _ network: Network) {
        let distance = segment.sequence - entry.rcvNxt
        if segment.has(Flag.rst) {
            if distance == 0 {
                // Back to LISTEN: nobody is told.
                count(.cacheResets)
                return drop(entry)
            }
            if distance > 0, distance < Int(entry.pointee.advertisedWindow) { challenge(entry, segment, network) }
            return
        }
        if segment.has(Flag.syn) {
            // The SYN again, since our answer was lost; or another one, whose sender will reset this one when it sees
            // our answer.
            count(.cacheDuplicates)
            if !segment.has(Flag.ack), segment.sequence == entry.pointee.irs {
                guard repeatedSyn(entry, segment) else { return refuse(entry, segment, network) }
                if segment.options.hasTimestamp { entry.pointee.tsRecent = segment.options.timestamp }
                entry.pointee.window = segment.window
            }
            return sendSynAck(entry, network)
        }
        if entry.pointee.hasTimestamps, segment.options.hasTimestamp,
            Int32(bitPattern: segment.options.timestamp &- entry.pointee.tsRecent) < 0
        {
            count(.pawsDropped)
            return challenge(entry, segment, network)
        }
        guard distance + Int(segment.length) >= 0, distance <= Int(entry.pointee.advertisedWindow) else {
            return challenge(entry, segment, network)
        }
        guard segment.has(Flag.ack) else { return }
        guard segment.acknowledgment == entry.pointee.iss + 1 else {
            count(.cacheBadAcks)
            return reset(&segment, network)
        }
        // TCP_DEFER_ACCEPT: the bare acknowledgment waits for data, as long as the answer would be repeated anyway.
        if segment.length == 0, !segment.has(Flag.fin), let listener = entry.pointee.listener,
            UInt32(listener.pointee.options.deferAccept) > entry.pointee.retransmits
        {
            return
        }
        guard let connection = promote(entry, segment, network) else { return }
        connection.arrive(&segment)
    }

    private func challenge(_ entry: EmbryonicPointer, _ segment: Segment, _ network: Network) {
        let time = now
        if time &- entry.pointee.challengeStart >= nanoseconds(.challengePeriod) || entry.pointee.challengeStart == 0 {
            entry.pointee.challengeStart = time
            entry.pointee.challenges = 0
        }
        guard Int64(entry.pointee.challenges) < setting(.challengeLimit) else { return }
        entry.pointee.challenges += 1
        count(.sentChallenges)
        // Rounded up: what has been offered does not shrink, and neither does what is offered now.
        let unit: UInt32 = 1 << UInt32(entry.pointee.rcvScale)
        entry.pointee.advertisedWindow = (entry.pointee.advertisedWindow &+ unit &- 1) / unit &* unit
        reply(
            segment.packet, network, sequence: entry.pointee.iss + 1, acknowledgment: entry.rcvNxt, flags: Flag.ack,
            // Nothing but the SYN has come, and that is not counted.
            ace: entry.pointee.accurate.isOn ? UInt8(ECNCounters.initial.packets) : ACE.none,
            window: UInt16(truncatingIfNeeded: min(entry.pointee.advertisedWindow / unit, 65535)),
            timestamp: entry.pointee.hasTimestamps
                ? (timestampClock &+ entry.pointee.timestampOffset, entry.pointee.tsRecent) : nil)
    }

    /// SYN, ACK of an entry.
    func sendSynAck(_ entry: EmbryonicPointer, _ network: Network) {
        var netpcb = attachment(entry)
        let options = SynOptions(
            mss: UInt16(truncatingIfNeeded: entry.pointee.advertisedMSS),
            windowScale: entry.pointee.hasScaling ? entry.pointee.rcvScale : nil,
            timestamp: entry.pointee.hasTimestamps
                ? (
                    (entry.pointee.isCookie ? cookieClock(entry) : timestampClock) &+ entry.pointee.timestampOffset,
                    entry.pointee.tsRecent
                ) : nil,
            sackPermitted: entry.pointee.isSackPermitted, isScaleLast: setting(.optionOrder) == 0, endsList: setting(.optionOrder) == 2,
            cookie: entry.pointee.givesCookie
                ? makeCookie(&entry.pointee.conn, fastOpenKey(entry.pointee.listener)) : nil,
            isExperimental: entry.pointee.isExperimental, hasCounters: synAckHasOption(entry))
        entry.pointee.sentAt = now
        let bits = synAckBits(entry)
        let isCapable = bits != ACE.none && entry.pointee.retransmits == 0 && isOn(.generalizedECN)
        if isCapable { entry.pointee.accurate.wasCapable = true }
        emit(
            network, &netpcb, conn: &entry.pointee.conn, sequence: entry.pointee.iss, acknowledgment: entry.rcvNxt,
            flags: Flag.syn | Flag.ack, ace: bits,
            window: UInt16(truncatingIfNeeded: min(entry.pointee.advertisedWindow, 65535)), options: options,
            isCapable: isCapable)
    }

    /// The listener's network settings, towards this peer.
    func attachment(_ entry: EmbryonicPointer) -> alps_netpcb {
        var netpcb = entry.pointee.head.pointee.netpcb.pointee
        netpcb.local = entry.pointee.conn.local
        netpcb.remote = entry.pointee.conn.remote
        netpcb.route = alps_route()
        return netpcb
    }

    func embryonicTimerFired(_ entry: EmbryonicPointer) {
        let limit = setting(.synAckRetries)
        guard Int64(entry.pointee.retransmits) < limit, let network else {
            count(.cacheStale)
            return drop(entry)
        }
        entry.pointee.retransmits += 1
        count(.cacheRetransmits)
        sendSynAck(entry, network)
        armEmbryonic(entry)
    }

    func armEmbryonic(_ entry: EmbryonicPointer) {
        let shift = UInt64(min(entry.pointee.retransmits, 16))
        let delay = min(nanoseconds(.initialRTO) << shift, nanoseconds(.maximumRTO))
        services.arm(&entry.pointee.callout, delay: delay, function: Timer.embryonic, argument: entry)
    }

    // MARK: List

    func link(_ entry: EmbryonicPointer) {
        entry.pointee.previous = pointee.embryonics.last
        if let last = pointee.embryonics.last {
            last.pointee.next = entry
        } else {
            pointee.embryonics.first = entry
        }
        pointee.embryonics.last = entry
        pointee.embryonics.count += 1
        pointee.counters[Counter.cacheEntries.rawValue] = UInt64(pointee.embryonics.count)
        if let listener = entry.pointee.listener { listener.pointee.embryonicCount += 1 }
    }

    /// Ends an entry and frees it.
    func drop(_ entry: EmbryonicPointer) {
        remove(&entry.pointee.conn)
        services.disarm(&entry.pointee.callout)
        if let previous = entry.pointee.previous {
            previous.pointee.next = entry.pointee.next
        } else {
            pointee.embryonics.first = entry.pointee.next
        }
        if let next = entry.pointee.next {
            next.pointee.previous = entry.pointee.previous
        } else {
            pointee.embryonics.last = entry.pointee.previous
        }
        pointee.embryonics.count -= 1
        pointee.counters[Counter.cacheEntries.rawValue] = UInt64(pointee.embryonics.count)
        if let listener = entry.pointee.listener { listener.pointee.embryonicCount -= 1 }
        services.free(entry)
    }

    /// A listener goes: so do its half-open connections.
    func dropEmbryonics(of listener: ConnectionPointer) { dropEmbryonics(head: listener.pointee.socket) }

    func dropEmbryonics(head: Socket) {
        var next = pointee.embryonics.first
        while let entry = next {
            next = entry.pointee.next
            if entry.pointee.head == head { drop(entry) }
        }
    }

    /// A listener leaves for another instance; its entries stay and make their connections from here.
    func forgetListener(_ listener: ConnectionPointer) {
        var next = pointee.embryonics.first
        while let entry = next {
            next = entry.pointee.next
            if entry.pointee.listener == listener { entry.pointee.listener = nil }
        }
        listener.pointee.embryonicCount = 0
    }

    func dropAllEmbryonics() {
        while let entry = pointee.embryonics.first { drop(entry) }
    }
}

import PluginAPI
import PluginKit

extension UnsafeMutablePointer where Pointee == Instance {
    /// RFC 9293, 3.10.7.2: LISTEN.
    func arriveListen(_ listener: ConnectionPointer, _ segment: inout Segment, _ network: Network) {
        listener.pointee.totals.segmentsIn &+= segment.count
        // First: RST.
        if segment.has(Flag.rst) { return }
        // Second: ACK. Nothing of this was ever sent, unless as a SYN cookie.
        if segment.has(Flag.ack) {
            if !segment.has(Flag.syn), let connection = acceptCookie(listener, segment, network) {
                return connection.arrive(&segment)
            }
            return reset(&segment, network)
        }
        // Third: SYN.
        guard segment.has(Flag.syn) else { return }
        if segment.has(Flag.fin), isOn(.dropSynFin) { return }
        guard isUsableSource(segment.packet, network), isLocal(segment.packet, network) else {
            count(.listenDrops)
            return
        }
        arriveSyn(listener, segment, network, after: nil)
    }

    private func isLocal(_ packet: Mbuf, _ network: Network) -> Bool {
        network.ops.pointee.classify(network.instance, &packet.pointee.pkt.destination, packet.pointee.pkt.ifindex)
            == ALPS_ADDR_LOCAL
    }

    /// A new SYN: an entry in the cache, or a cookie if there is no room. `after`: the sequence number must lie behind
    /// this one, which an earlier connection with the same tuple has used.
    func arriveSyn(
        _ listener: ConnectionPointer, _ segment: Segment, _ network: Network, after previous: SequenceNumber?
    ) {
        let head = listener.pointee.socket
        // Established connections that nobody accepts: no more until somebody does.
        guard head.pointee.queue_length <= head.pointee.backlog else {
            count(.listenDrops)
            return
        }
        var segment = segment
        var givesCookie = false
        if segment.options.hasFastOpen || segment.length > 0,
            openFast(listener, &segment, network, gives: &givesCookie)
        {
            return
        }
        if setting(.cookies) == 2, !givesCookie { return sendCookie(listener, segment, network) }
        let limit = max(Int64(head.pointee.backlog), 8)
        guard Int64(listener.pointee.embryonicCount) < limit,
            Int64(pointee.embryonics.count) < setting(.cacheLimit)
        else {
            count(.cacheOverflows)
            if isOn(.cookies) { sendCookie(listener, segment, network) } else { count(.listenDrops) }
            return
        }
        guard let entry = services.allocate(Embryonic.self) else {
            count(.noMemory)
            return
        }
        fill(entry, listener, segment, network)
        entry.pointee.givesCookie = givesCookie
        entry.pointee.isExperimental = segment.options.isExperimental
        if let previous, entry.pointee.iss <= previous {
            entry.pointee.iss = previous + 64_000 + UInt32(truncatingIfNeeded: services.random & 0xffff)
        }
        guard insert(&entry.pointee.conn) == 0 else {
            services.free(entry)
            return
        }
        link(entry)
        count(.cacheAdded)
        sendSynAck(entry, network)
        armEmbryonic(entry)
    }

    /// What a SYN and its listener say.
    func fill(
        _ entry: EmbryonicPointer, _ listener: ConnectionPointer, _ segment: Segment, _ network: Network
    ) {
        let packet = segment.packet
        let head = listener.pointee.socket
        entry.pointee.head = head
        entry.pointee.listener = listener
        entry.pointee.conn.family = packet.pointee.pkt.family
        entry.pointee.conn.protocol = Registration.protocol
        entry.pointee.conn.kind = UInt8(ALPS_CONN_EMBRYONIC)
        entry.pointee.conn.local = packet.pointee.pkt.destination
        entry.pointee.conn.remote = packet.pointee.pkt.source
        entry.pointee.conn.local_port = packet.pointee.data.load16(Header.destinationPort)
        entry.pointee.conn.remote_port = packet.pointee.data.load16(Header.sourcePort)
        entry.pointee.conn.cookie = UnsafeMutableRawPointer(entry)
        entry.pointee.conn.state = State.synReceived.rawValue
        entry.pointee.irs = segment.sequence
        entry.pointee.iss = initialSequence(&entry.pointee.conn)
        entry.pointee.timestampOffset = timestampOffset(&entry.pointee.conn)
        entry.pointee.window = segment.window
        let options = segment.options
        entry.pointee.hasTimestamps = options.hasTimestamp && offersTimestamps
        entry.pointee.tsRecent = options.timestamp
        entry.pointee.hasScaling = options.hasWindowScale && offersWindowScaling
        entry.pointee.sndScale = options.windowScale
        entry.pointee.isSackPermitted = options.isSackPermitted && isOn(.sack)
        entry.pointee.accurate = acceptAccurateECN(segment)
        entry.pointee.hasECN = grantsECN && isECNSetup(segment) && !entry.pointee.accurate.isOn
        let limit = head.pointee.rcv.limit
        entry.pointee.rcvScale = entry.pointee.hasScaling ? windowScale(head) : 0
        entry.pointee.advertisedWindow = min(limit, 65535)
        var netpcb = attachment(entry)
        entry.pointee.peerMSS = options.hasMSS ? believe(mss: options.mss) : defaultMSS(&netpcb)
        entry.pointee.advertisedMSS = advertisedMSS(network, &netpcb)
        if listener.pointee.userMSS != 0 {
            entry.pointee.advertisedMSS = min(entry.pointee.advertisedMSS, listener.pointee.userMSS)
        }
    }

    /// The handshake is done: a socket and a control block take the entry's place. Nil: the accept queue or memory is
    /// full; the entry stays, and the peer will hear our SYN, ACK again.
    func promote(_ entry: EmbryonicPointer, _ segment: Segment, _ network: Network) -> ConnectionPointer? {
        guard let connection = makeChild(entry, segment, network) else {
            count(.listenDrops)
            return nil
        }
        if entry.pointee.retransmits == 0 {
            connection.noteRoundTrip(now &- entry.pointee.sentAt)
        } else {
            connection.set(.synLost)
            connection.pointee.roundTrip.rto = max(
                connection.pointee.roundTrip.rto, 3 * UInt64(ALPS_NSEC_PER_SEC))
        }
        drop(entry)
        guard connection.insert() == 0 else {
            connection.release()
            return nil
        }
        count(.cacheCompleted)
        count(.accepted)
        connection.established()
        return connection
    }

    /// Socket and control block of a connection that was opened passively, not in the connection table yet.
    func makeChild(_ entry: EmbryonicPointer, _ segment: Segment, _ network: Network) -> ConnectionPointer? {
        guard let socket = sockets.pointee.new_connection(socketLayer, entry.pointee.head) else { return nil }
        guard let connection = makeConnection(socket) else {
            count(.noMemory)
            sockets.pointee.detached(socketLayer, socket)
            return nil
        }
        let netpcb = socket.pointee.netpcb
        netpcb.pointee.local = entry.pointee.conn.local
        netpcb.pointee.remote = entry.pointee.conn.remote
        _ = network.ops.pointee.route(network.instance, netpcb)
        connection.pointee.conn.kind = UInt8(ALPS_CONN_FULL)
        connection.pointee.conn.local = entry.pointee.conn.local
        connection.pointee.conn.remote = entry.pointee.conn.remote
        connection.pointee.conn.local_port = entry.pointee.conn.local_port
        connection.pointee.conn.remote_port = entry.pointee.conn.remote_port
        if let listener = entry.pointee.listener { connection.inherit(listener) }

        let iss = entry.pointee.iss
        connection.pointee.iss = iss
        connection.pointee.sndUna = iss + 1
        connection.pointee.sndNxt = iss + 1
        connection.pointee.sndMax = iss + 1
        connection.pointee.sndUp = iss + 1
        connection.pointee.sndSmall = iss + 1
        connection.set(.synAcked)
        let irs = entry.pointee.irs
        connection.pointee.irs = irs
        connection.pointee.rcvNxt = irs + 1
        connection.pointee.lastAckSent = irs + 1
        connection.pointee.rcvUp = irs + 1
        connection.pointee.rcvAdv = irs + 1 + entry.pointee.advertisedWindow
        connection.set(.windowScaling, entry.pointee.hasScaling)
        connection.set(.timestamps, entry.pointee.hasTimestamps)
        connection.set(.sackPermitted, entry.pointee.isSackPermitted)
        connection.set(.ecn, entry.pointee.hasECN)
        connection.inheritAccurateECN(entry.pointee.accurate)
        connection.pointee.receiveTuning = ReceiveTuning(since: now, start: irs + 1)
        connection.pointee.sndScale = entry.pointee.hasScaling ? entry.pointee.sndScale : 0
        connection.pointee.rcvScale = entry.pointee.rcvScale
        connection.pointee.peerMSS = entry.pointee.peerMSS
        connection.pointee.advertisedMSS = entry.pointee.advertisedMSS
        connection.pointee.timestampOffset = entry.pointee.timestampOffset
        connection.pointee.tsRecent = entry.pointee.tsRecent
        connection.pointee.tsRecentTime = now
        let window = segment.window << UInt32(connection.pointee.sndScale)
        connection.pointee.sndWnd = window
        connection.pointee.maxSndWnd = window
        connection.pointee.sndWl1 = segment.sequence
        connection.pointee.sndWl2 = segment.acknowledgment
        connection.refreshMSS()
        return connection
    }

    // MARK: SYN cookies (RFC 4987, 3.6)

    /// A cookie holds good for one to two of these.
    private var cookiePeriod: UInt64 { 64 * UInt64(ALPS_NSEC_PER_SEC) }

    /// The MSS values a cookie can tell.
    private func cookieMSS(_ index: UInt32) -> UInt32 {
        switch index {
        case 0: return 216
        case 1: return 536
        case 2: return 1024
        case 3: return 1220
        case 4: return 1400
        case 5: return 1440
        case 6: return 1460
        default: return 8960
        }
    }

    /// 29 bits that only we can make for this tuple, peer's number and time; the MSS in the other three.
    private func cookie(
        _ conn: UnsafePointer<alps_conn>, _ irs: SequenceNumber, period: UInt64, index: UInt32
    ) -> SequenceNumber {
        var hash = SipHash(pointee.cookieKey)
        hash.add(conn.pointee.local)
        hash.add(conn.pointee.remote)
        hash.add(UInt64(conn.pointee.local_port) << 48 | UInt64(conn.pointee.remote_port) << 32 | UInt64(irs.value))
        hash.add(period << 3 | UInt64(index))
        return SequenceNumber(UInt32(truncatingIfNeeded: hash.finish()) & ~7 | index)
    }

    /// What the low bits of a cookie's timestamp tell: the peer's window scale (15: none), SACK, ECN.
    private enum CookieOptions {
        static var count: UInt32 { 6 }
        static var mask: UInt32 { (1 << count) - 1 }
        static var noScale: UInt32 { 15 }
        static var sack: UInt32 { 1 << 4 }
        static var ecn: UInt32 { 1 << 5 }
    }

    /// The clock with the options in its low bits, not ahead of the true one.
    func cookieClock(_ entry: EmbryonicPointer) -> UInt32 {
        var bits = entry.pointee.hasScaling ? UInt32(entry.pointee.sndScale) : CookieOptions.noScale
        if entry.pointee.isSackPermitted { bits |= CookieOptions.sack }
        if entry.pointee.hasECN { bits |= CookieOptions.ecn }
        let clock = timestampClock
        let value = clock & ~CookieOptions.mask | bits
        return value > clock ? value &- (1 << CookieOptions.count) : value
    }

    /// Answers a SYN and remembers nothing: the MSS is in the cookie, the other options are in the timestamp, if the peer
    /// has timestamps; else there are none (RFC 4987, 3.6).
    private func sendCookie(_ listener: ConnectionPointer, _ segment: Segment, _ network: Network) {
        var entry = Embryonic.empty(listener)
        withUnsafeMutablePointer(to: &entry) { entry in
            fill(entry, listener, segment, network)
            if !entry.pointee.hasTimestamps {
                entry.pointee.hasScaling = false
                entry.pointee.isSackPermitted = false
                entry.pointee.hasECN = false
            }
            entry.pointee.isCookie = true
            var index: UInt32 = 7
            while index > 0, cookieMSS(index) > entry.pointee.peerMSS { index -= 1 }
            entry.pointee.iss = cookie(&entry.pointee.conn, segment.sequence, period: now / cookiePeriod, index: index)
            pointee.lastCookie = now
            count(.cookiesSent)
            sendSynAck(entry, network)
        }
    }

    /// The options as they were when the cookie went out.
    private func takeCookieOptions(_ entry: EmbryonicPointer, _ segment: Segment) {
        entry.pointee.hasTimestamps = segment.options.hasTimestamp && offersTimestamps
        guard entry.pointee.hasTimestamps else {
            entry.pointee.hasScaling = false
            entry.pointee.isSackPermitted = false
            entry.pointee.hasECN = false
            entry.pointee.rcvScale = 0
            entry.pointee.sndScale = 0
            return
        }
        let bits = (segment.options.echo &- entry.pointee.timestampOffset) & CookieOptions.mask
        let scale = bits & CookieOptions.noScale
        entry.pointee.hasScaling = scale != CookieOptions.noScale && offersWindowScaling
        entry.pointee.sndScale = entry.pointee.hasScaling ? UInt8(truncatingIfNeeded: min(scale, 14)) : 0
        entry.pointee.rcvScale = entry.pointee.hasScaling ? windowScale(entry.pointee.head) : 0
        entry.pointee.isSackPermitted = bits & CookieOptions.sack != 0 && isOn(.sack)
        entry.pointee.hasECN = bits & CookieOptions.ecn != 0 && grantsECN
    }

    /// A connection for an ACK that carries a good cookie. Believed only while cookies have been sent lately, so that
    /// there is nothing to guess at other times.
    private func acceptCookie(
        _ listener: ConnectionPointer, _ segment: Segment, _ network: Network
    ) -> ConnectionPointer? {
        guard pointee.lastCookie != 0, now &- pointee.lastCookie < 2 * cookiePeriod else { return nil }
        let number = segment.acknowledgment - 1
        let index = number.value & 7
        let period = now / cookiePeriod
        var entry = Embryonic.empty(listener)
        return withUnsafeMutablePointer(to: &entry) { entry in
            fill(entry, listener, segment, network)
            let irs = segment.sequence - 1
            guard
                cookie(&entry.pointee.conn, irs, period: period, index: index) == number
                    || cookie(&entry.pointee.conn, irs, period: period &- 1, index: index) == number
            else { return nil }
            entry.pointee.irs = irs
            entry.pointee.iss = number
            takeCookieOptions(entry, segment)
            entry.pointee.accurate = recalledAccurateECN(segment)
            if entry.pointee.accurate.isOn { entry.pointee.hasECN = false }
            entry.pointee.peerMSS = cookieMSS(index)
            guard let connection = makeChild(entry, segment, network) else {
                count(.listenDrops)
                return nil
            }
            guard connection.insert() == 0 else {
                connection.release()
                return nil
            }
            count(.cookiesReceived)
            count(.accepted)
            connection.established()
            return connection
        }
    }
}

extension Embryonic {
    /// One that lives on the stack and never in the cache.
    static func empty(_ listener: ConnectionPointer) -> Embryonic {
        Embryonic(
            conn: alps_conn(), head: listener.pointee.socket, listener: listener, next: nil, previous: nil,
            irs: SequenceNumber(0), iss: SequenceNumber(0), tsRecent: 0, timestampOffset: 0, peerMSS: 0,
            advertisedMSS: 0, window: 0, sndScale: 0, rcvScale: 0, hasScaling: false, hasTimestamps: false,
            isSackPermitted: false, hasECN: false, givesCookie: false, isExperimental: false, isCookie: false, retransmits: 0, advertisedWindow: 0, sentAt: 0,
            challengeStart: 0, challenges: 0, callout: alps_callout())
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Options that a connection has from its listener.
    func inherit(_ listener: ConnectionPointer) {
        pointee.flags.formUnion(listener.pointee.flags.intersection([.noDelay, .cork, .quickAck]))
        pointee.userMSS = listener.pointee.userMSS
        pointee.options = listener.pointee.options
        _ = setPacing(listener.pacingRate)
        pointee.congestion.algorithm = listener.pointee.congestion.algorithm
    }
}

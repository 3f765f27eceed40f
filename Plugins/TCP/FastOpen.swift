import PluginAPI
import PluginKit

/// A cookie of TCP Fast Open (RFC 7413, 2): what a server gave a client to show next time. 4 to 16 bytes; of length 0 it
/// is the request for one.
struct FastOpenCookie {
    var length: UInt8
    var bytes: [16 of UInt8]

    static var request: FastOpenCookie { FastOpenCookie(length: 0, bytes: [16 of UInt8](repeating: 0)) }
}

/// A server's cookie and segment size, as a client remembers them (RFC 7413, 4.1.3).
struct FastOpenEntry {
    var address: alps_addr
    var cookie: FastOpenCookie
    var mss: UInt32
    /// net.inet.tcp.fastopen.generation when it came.
    var generation: UInt32
    /// Until then it is not used, since it has done no good (RFC 7413, 4.1.3.1). ns
    var avoidedUntil: UInt64 = 0
}

/// The client's memory: one place for an address, chosen by a keyed hash; the newer wins.
enum FastOpenCache {
    static var places: Int { 256 }
    /// How long a server is not tried again with which Fast Open has failed.
    static var avoidance: UInt64 { 900 * UInt64(ALPS_NSEC_PER_SEC) }
}

extension Options {
    static var fastOpenKind: UInt8 { 34 }
    /// The experimental option in which Fast Open began (RFC 6994, RFC 7413, 8): kind and magic number.
    static var experimentKind: UInt8 { 254 }
    static var fastOpenMagic: UInt16 { 0xf989 }
}

/// TCP_FASTOPEN_KEY and net.inet.tcp.fastopen.key0.
enum FastOpenKey {
    /// As the first half: a key nobody knows.
    static var random: Int64 { .min }
    static var length: UInt32 { 16 }
}

/// TCP_FASTOPEN_KEY of a listener: the key for new cookies, and one whose cookies are still good.
struct FastOpenKeys {
    var current: SecretKey
    var backup: SecretKey
    var hasBackup: Bool
}

// MARK: Client

extension UnsafeMutablePointer where Pointee == Instance {
    private func place(_ address: alps_addr) -> Int {
        var hash = SipHash(pointee.fastOpenKey)
        hash.add(address)
        return Int(truncatingIfNeeded: hash.finish() & UInt64(FastOpenCache.places - 1))
    }

    private var generation: UInt32 { UInt32(truncatingIfNeeded: setting(.fastOpenGeneration)) }

    func fastOpenEntry(_ address: alps_addr) -> UnsafeMutablePointer<FastOpenEntry>? {
        guard let cache = pointee.fastOpenCache else { return nil }
        let entry = cache + place(address)
        guard entry.pointee.cookie.length != 0, entry.pointee.address == address,
            entry.pointee.generation == generation
        else { return nil }
        return entry
    }

    func remember(_ cookie: FastOpenCookie, of address: alps_addr, mss: UInt32) {
        guard let cache = pointee.fastOpenCache else { return }
        cache[place(address)] = FastOpenEntry(address: address, cookie: cookie, mss: mss, generation: generation)
    }

    /// RFC 7413, 4.1.3.1: the server has taken no data, or there was an error instead of an answer, or none at all.
    func avoidFastOpen(_ address: alps_addr) {
        fastOpenEntry(address)?.pointee.avoidedUntil = now &+ FastOpenCache.avoidance
    }

    fileprivate func isAvoidingFastOpen(_ address: alps_addr) -> Bool {
        guard let entry = fastOpenEntry(address) else { return false }
        return entry.pointee.avoidedUntil > now
    }

    func freeFastOpenCache() {
        if let cache = pointee.fastOpenCache { services.freeArray(cache, FastOpenCache.places) }
        pointee.fastOpenCache = nil
    }

    /// The cookie in a header.
    func cookie(_ segment: Segment) -> FastOpenCookie {
        var cookie = FastOpenCookie.request
        cookie.length = segment.options.cookieLength
        let bytes = UnsafePointer(segment.packet.pointee.data) + Int(Header.length) + Int(segment.options.cookieOffset)
        var at = 0
        while at < Int(cookie.length) {
            cookie.bytes[at] = bytes[at]
            at += 1
        }
        return cookie
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Data goes with the SYN even if the server has not given a cookie.
    private var opensWithoutCookie: Bool {
        pointee.fastOpenNoCookie || instance.setting(.fastOpenCookieless) & 1 != 0
    }

    /// TCP_FASTOPEN_CONNECT with a cookie at hand: connect is done before anything is sent, and the SYN goes with the
    /// first data. False: an ordinary open.
    func defersSyn() -> Bool {
        guard has(.fastOpenConnect), instance.isOn(.fastOpenClient),
            opensWithoutCookie || instance.fastOpenEntry(pointee.conn.remote) != nil,
            !instance.isAvoidingFastOpen(pointee.conn.remote)
        else { return false }
        set(.synDeferred)
        // Until the connection is there, what programs are told of its segments is what the SYN takes.
        pointee.mss = max(synDataRoom, 8)
        instance.sockets.pointee.is_connected(instance.socketLayer, socket)
        return true
    }

    /// The application has written: now the SYN goes.
    func sendDeferredSyn() {
        clear(.synDeferred)
        set(.fastOpened)
        sendSyn()
        armRetransmit()
    }

    /// The cookie of a SYN that is sent for the first time; nil: none.
    var cookieToSend: FastOpenCookie? {
        guard has(.fastOpenConnect), instance.isOn(.fastOpenClient),
            !instance.isAvoidingFastOpen(pointee.conn.remote)
        else { return nil }
        guard has(.fastOpened), let entry = instance.fastOpenEntry(pointee.conn.remote) else {
            return opensWithoutCookie ? nil : .request
        }
        return entry.pointee.cookie
    }

    /// How much of what is written a first SYN takes: a segment as the server took them last time, less the options.
    var synDataLength: UInt32 {
        guard has(.fastOpened) else { return 0 }
        let waiting = socket.pointee.snd.tail &- socket.pointee.snd.head
        return UInt32(truncatingIfNeeded: min(UInt64(synDataRoom), waiting))
    }

    private var synDataRoom: UInt32 {
        let entry = instance.fastOpenEntry(pointee.conn.remote)
        guard entry != nil || opensWithoutCookie else { return 0 }
        var room = min(entry?.pointee.mss ?? instance.defaultMSS(netpcb), pointee.advertisedMSS)
        if let network = instance.network {
            // What is advertised is for the way in; the way out may be known to take less.
            let mtu = network.ops.pointee.path_mtu(network.instance, netpcb)
            let overhead = netpcb.pointee.header_length &+ Header.length
            room = min(room, mtu > overhead ? mtu - overhead : 0)
        }
        return room > 40 ? room - 40 : 0
    }

    /// The SYN, ACK of a connection whose SYN had data: what it did not take goes again at once (RFC 7413, 4.1.3).
    func concludeSynData(_ segment: Segment) {
        guard pointee.sndNxt > pointee.sndUna else { return }
        if segment.acknowledgment > pointee.sndUna {
            acknowledgeSynData(segment)
            if pointee.sndNxt > pointee.sndUna {
                // Of the rest there is nothing to wait for. tcp_info calls the data taken only if all are, as Linux does.
                loseAll()
            } else {
                pointee.isSynDataTaken = true
                instance.count(.fastOpens)
            }
        } else {
            // A server that gives a new cookie had no use for the old one only.
            if !has(.synLost), !segment.options.hasFastOpen { instance.avoidFastOpen(pointee.conn.remote) }
            loseAll()
        }
        restartLossTimer()
    }
}

// MARK: Server

extension UnsafeMutablePointer where Pointee == Instance {
    /// The key of the cookies of a listener: its own, that of the settings, or a random one.
    func fastOpenKey(_ listener: ConnectionPointer?) -> SecretKey {
        if let keys = listener?.pointee.fastOpenKeys { return keys.pointee.current }
        let low = setting(.fastOpenKeyLow)
        guard low != FastOpenKey.random else { return pointee.fastOpenKey }
        return SecretKey(k0: UInt64(bitPattern: low), k1: UInt64(bitPattern: setting(.fastOpenKeyHigh)))
    }

    /// RFC 7413, 4.1.2: only we can make it, for one client. Made as Linux does, so that hosts which share a key and an
    /// address take each other's.
    func makeCookie(_ conn: UnsafePointer<alps_conn>, _ key: SecretKey) -> FastOpenCookie {
        var hash = SipHash(key)
        let remote = conn.pointee.remote.halves
        let local = conn.pointee.local.halves
        if conn.pointee.family == UInt16(ALPS_AF_INET) {
            hash.add(remote.0 & 0xffff_ffff | local.0 << 32)
        } else {
            hash.add(remote.0)
            hash.add(remote.1)
            hash.add(local.0)
            hash.add(local.1)
        }
        var value = hash.finish()
        var cookie = FastOpenCookie.request
        cookie.length = 8
        var at = 0
        while at < 8 {
            cookie.bytes[at] = UInt8(truncatingIfNeeded: value)
            value >>= 8
            at += 1
        }
        return cookie
    }

    private func isOfBackupKey(
        _ given: FastOpenCookie, _ conn: UnsafePointer<alps_conn>, _ listener: ConnectionPointer
    ) -> Bool {
        guard let keys = listener.pointee.fastOpenKeys, keys.pointee.hasBackup else { return false }
        return isCookie(given, conn, keys.pointee.backup)
    }

    private func isCookie(_ given: FastOpenCookie, _ conn: UnsafePointer<alps_conn>, _ key: SecretKey) -> Bool {
        let right = makeCookie(conn, key)
        var at = 0
        var difference: UInt8 = 0
        while at < 8 {
            difference |= given.bytes[at] ^ right.bytes[at]
            at += 1
        }
        return difference == 0
    }

    /// A SYN to a listener with TCP_FASTOPEN. True: it had our cookie, and the connection is there already.
    /// `gives`: it wants, or needs, a cookie.
    func openFast(
        _ listener: ConnectionPointer, _ segment: inout Segment, _ network: Network, gives: inout Bool
    ) -> Bool {
        guard isOn(.fastOpenServer), listener.pointee.fastOpenBacklog > 0 || isOn(.fastOpenAllListeners) else {
            return false
        }
        let needsCookie = setting(.fastOpenCookieless) & 2 == 0 && !listener.pointee.fastOpenNoCookie
        if needsCookie {
            gives = segment.options.hasFastOpen
            guard segment.options.cookieLength == 8 else { return false }
        } else {
            guard segment.options.hasFastOpen || segment.length > 0 else { return false }
        }
        var entry = Embryonic.empty(listener)
        return withUnsafeMutablePointer(to: &entry) { entry in
            fill(entry, listener, segment, network)
            if needsCookie {
                let given = cookie(segment)
                guard isCookie(given, &entry.pointee.conn, fastOpenKey(listener))
                    || isOfBackupKey(given, &entry.pointee.conn, listener)
                else {
                    count(.fastOpenBadCookies)
                    return false
                }
            }
            gives = false
            // Section 5.1: a bound on connections that nobody has confirmed.
            let most = listener.pointee.fastOpenBacklog > 0 ? listener.pointee.fastOpenBacklog : listener.pointee.socket.pointee.backlog
            guard listener.pointee.fastOpenPending < most else {
                count(.fastOpenOverflows)
                return false
            }
            guard let connection = makeChild(entry, segment, network) else { return false }
            guard connection.insert() == 0 else {
                connection.release()
                return false
            }
            connection.beginFast(listener, &segment)
            return true
        }
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// In SYN-RECEIVED, with a socket that can be accepted and what the SYN brought (RFC 7413, 4.2).
    func beginFast(_ listener: ConnectionPointer, _ segment: inout Segment) {
        let instance = instance
        instance.count(.fastOpensAccepted)
        instance.count(.accepted)
        clear(.synAcked)
        pointee.sndUna = pointee.iss
        pointee.sndNxt = pointee.iss
        pointee.sndMax = pointee.iss
        pointee.sndSmall = pointee.iss
        pointee.sndWnd = segment.window
        pointee.maxSndWnd = segment.window
        pointee.congestion.begin(
            mss: pointee.mss, initialSegments: UInt32(truncatingIfNeeded: instance.setting(.initialWindow)),
            isSynLost: false)
        set(.fastOpened)
        pointee.fastOpenListener = listener
        listener.pointee.fastOpenPending += 1
        enter(.synReceived)
        instance.sockets.pointee.is_connected(instance.socketLayer, socket)
        segment.sequence += 1
        segment.flags &= ~(Flag.syn | Flag.fin)
        let window = receiveWindow
        if Int(segment.length) > window { segment.length = UInt32(truncatingIfNeeded: window) }
        if segment.length > 0 {
            pointee.isSynDataTaken = true
            _ = processText(&segment)
        }
        sendSyn()
        clear([.ackNow, .ackDelayed])
        armRetransmit()
        touch()
    }

    /// Confirmed, or over: the listener may take another.
    func leaveFastOpen() {
        guard let listener = pointee.fastOpenListener else { return }
        pointee.fastOpenListener = nil
        listener.pointee.fastOpenPending -= 1
    }

    /// A listener goes: those it has made do not know it any more.
    func forgetFastOpens() {
        guard pointee.fastOpenPending > 0 else { return }
        var next = instance.pointee.connections
        while let connection = next {
            next = connection.pointee.next
            if connection.pointee.fastOpenListener == self { connection.pointee.fastOpenListener = nil }
        }
        pointee.fastOpenPending = 0
    }
}

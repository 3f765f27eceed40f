import PluginAPI
import PluginKit

/// Options of level IPPROTO_TCP, with Linux's numbers and units.
private enum Option {
    static var level: Int32 { 6 }
    static var socketLevel: Int32 { 1 }
    static var keepAlive: Int32 { 9 }
    static var maximumPacingRate: Int32 { 47 }
    static var noDelay: Int32 { 1 }
    static var maxSegment: Int32 { 2 }
    static var cork: Int32 { 3 }
    static var keepIdle: Int32 { 4 }
    static var keepInterval: Int32 { 5 }
    static var keepCount: Int32 { 6 }
    static var synCount: Int32 { 7 }
    static var linger2: Int32 { 8 }
    static var deferAccept: Int32 { 9 }
    static var windowClamp: Int32 { 10 }
    static var info: Int32 { 11 }
    static var quickAck: Int32 { 12 }
    static var congestion: Int32 { 13 }
    static var userTimeout: Int32 { 18 }
    static var fastOpen: Int32 { 23 }
    static var notSentLowWater: Int32 { 25 }
    static var fastOpenConnect: Int32 { 30 }
    static var fastOpenKey: Int32 { 33 }
    static var fastOpenNoCookie: Int32 { 34 }
    /// BSD's, with BSD's number, which Linux does not use: seconds that a handshake may take.
    static var connectTimeout: Int32 { 128 }
}

private var second: UInt64 { UInt64(ALPS_NSEC_PER_SEC) }

/// How many seconds so many SYN, ACKs take: one, two, four ... up to two minutes each.
private func deferTime(_ count: UInt8) -> UInt64 {
    let doubling = min(count, 7)
    return (1 << UInt64(doubling)) - 1 + UInt64(count - doubling) * 120
}

func tcpControlOutput(
    _ context: UnsafeMutableRawPointer, _ socket: Socket, _ set: Int32, _ level: Int32, _ name: Int32,
    _ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>
) -> Int32 {
    guard let connection = socket.connection else { return ALPS_EINVAL }
    if level == Option.socketLevel, name == Option.keepAlive, set != 0 {
        // The socket layer's, which lets us know that idle time counts now.
        connection.restartKeep()
        return 0
    }
    if level == Option.socketLevel, name == Option.maximumPacingRate, set != 0 {
        return connection.setPacingLimit(value, length.pointee)
    }
    guard level == Option.level else { return ALPS_ENOPROTOOPT }
    return set != 0
        ? connection.setOption(name, value, length.pointee) : connection.getOption(name, value, length)
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Data waits that the peer's window takes.
    private var mayForce: Bool { pointee.state.isSynchronized && pointee.sndWnd > 0 && unsent > 0 }

    fileprivate func setOption(_ name: Int32, _ value: UnsafeMutableRawPointer, _ length: UInt32) -> Int32 {
        if name == Option.congestion { return setCongestion(value, length) }
        if name == Option.fastOpenKey { return setFastOpenKeys(value, length) }
        guard length >= 4 else { return ALPS_EINVAL }
        let number = value.loadUnaligned(as: Int32.self)
        let positive = UInt64(max(number, 0))
        switch name {
        case Option.noDelay:
            set(.noDelay, number != 0)
            // What is held back goes now, cork or not.
            if number != 0 { output(force: mayForce) }
        case Option.cork:
            // What was written before is not held back.
            if number != 0, !has(.cork), unsent > 0 { output() }
            set(.cork, number != 0)
            if number == 0 { output(force: mayForce) }
        case Option.maxSegment:
            guard number == 0 || (number >= 88 && number <= 32767) else { return ALPS_EINVAL }
            pointee.userMSS = UInt32(positive)
            if pointee.state.isSynchronized { refreshMSS() }
        case Option.keepIdle:
            guard number >= 1, number <= 32767 else { return ALPS_EINVAL }
            pointee.options.keepIdle = UInt16(truncatingIfNeeded: number)
            restartKeep()
        case Option.keepInterval:
            guard number >= 1, number <= 32767 else { return ALPS_EINVAL }
            pointee.options.keepInterval = UInt16(truncatingIfNeeded: number)
        case Option.keepCount:
            guard number >= 1, number <= 127 else { return ALPS_EINVAL }
            pointee.options.keepCount = UInt8(truncatingIfNeeded: number)
        case Option.synCount:
            guard number >= 1, number <= 127 else { return ALPS_EINVAL }
            pointee.options.synCount = UInt8(truncatingIfNeeded: number)
        case Option.connectTimeout:
            guard number >= 1, number <= 32767 else { return ALPS_EINVAL }
            pointee.options.connectTimeout = UInt16(truncatingIfNeeded: number)
        case Option.linger2:
            pointee.options.linger2 = number < 0 ? -1 : Int16(min(number, 120))
        case Option.deferAccept:
            // Seconds, kept as the number of SYN, ACKs that take so long (RFC 6298 backoff from one second).
            var count: UInt8 = 0
            while deferTime(count) < positive, count < 255 { count += 1 }
            pointee.options.deferAccept = count
        case Option.windowClamp:
            // 0: none. As Linux, not below half of the smallest receive buffer.
            pointee.options.windowClamp = number == 0 ? 0 : max(UInt32(bitPattern: number), 1152)
        case Option.quickAck:
            set(.quickAck, number != 0)
            if number == 0 {
                set(.interactive)
            } else {
                clear(.interactive)
                if has(.ackDelayed) {
                    set(.ackNow)
                    output()
                }
            }
        case Option.userTimeout:
            guard number >= 0 else { return ALPS_EINVAL }
            pointee.options.userTimeout = UInt32(positive)
        case Option.notSentLowWater:
            // All ones is Linux's word for no bound.
            socket.pointee.snd.low_water = UInt32(bitPattern: number)
        case Option.fastOpen:
            guard pointee.state == .closed || pointee.state == .listen, number >= 0 else { return ALPS_EINVAL }
            pointee.fastOpenBacklog = UInt32(positive)
        case Option.fastOpenConnect:
            guard pointee.state == .closed, number >= 0, number <= 1 else { return ALPS_EINVAL }
            set(.fastOpenConnect, number != 0)
        case Option.fastOpenNoCookie:
            guard pointee.state == .closed || pointee.state == .listen, number >= 0, number <= 1 else {
                return ALPS_EINVAL
            }
            pointee.fastOpenNoCookie = number != 0
        default:
            return ALPS_ENOPROTOOPT
        }
        return 0
    }

    /// TCP_FASTOPEN_KEY: 16 bytes, or twice 16 with the key that comes before.
    private func setFastOpenKeys(_ value: UnsafeMutableRawPointer, _ length: UInt32) -> Int32 {
        guard length == FastOpenKey.length || length == 2 &* FastOpenKey.length else { return ALPS_EINVAL }
        func key(_ offset: Int) -> SecretKey {
            SecretKey(
                k0: value.loadUnaligned(fromByteOffset: offset, as: UInt64.self),
                k1: value.loadUnaligned(fromByteOffset: offset + 8, as: UInt64.self))
        }
        if pointee.fastOpenKeys == nil { pointee.fastOpenKeys = instance.services.allocate(FastOpenKeys.self) }
        guard let keys = pointee.fastOpenKeys else { return ALPS_ENOMEM }
        keys.pointee.current = key(0)
        keys.pointee.hasBackup = length > FastOpenKey.length
        if keys.pointee.hasBackup { keys.pointee.backup = key(16) }
        return 0
    }

    private func getFastOpenKeys(_ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>) -> Int32 {
        // Only what has been set: the host's own key is nobody's business.
        guard let keys = pointee.fastOpenKeys else {
            length.pointee = 0
            return 0
        }
        var both = (keys.pointee.current, keys.pointee.backup)
        let count = min(length.pointee, (keys.pointee.hasBackup ? 2 : 1) &* FastOpenKey.length)
        value.copyMemory(from: &both, byteCount: Int(count))
        length.pointee = count
        return 0
    }

    /// SO_MAX_PACING_RATE: bytes a second in four or eight bytes, all ones for no limit.
    fileprivate func setPacingLimit(_ value: UnsafeMutableRawPointer, _ length: UInt32) -> Int32 {
        guard length >= 4 else { return ALPS_EINVAL }
        let short = value.loadUnaligned(as: UInt32.self)
        var rate = UInt64(short)
        if length >= 8 { rate = value.loadUnaligned(as: UInt64.self) }
        return setPacing(rate == .max || (length < 8 && short == .max) ? 0 : max(rate, 1)) ? 0 : ALPS_ENOMEM
    }

    fileprivate func getOption(
        _ name: Int32, _ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>
    ) -> Int32 {
        let number: Int32
        switch name {
        case Option.info:
            return copyInfo(value, length)
        case Option.congestion:
            return getCongestion(value, length)
        case Option.noDelay: number = has(.noDelay) ? 1 : 0
        case Option.cork: number = has(.cork) ? 1 : 0
        case Option.maxSegment:
            number =
                pointee.state.isSynchronized
                ? Int32(pointee.mss) : pointee.userMSS != 0 ? Int32(pointee.userMSS) : Int32(pointee.mss)
        case Option.keepIdle: number = Int32(truncatingIfNeeded: keepIdle / second)
        case Option.keepInterval: number = Int32(truncatingIfNeeded: keepInterval / second)
        case Option.keepCount: number = Int32(truncatingIfNeeded: keepCount)
        case Option.synCount: number = pointee.options.synCount != 0 ? Int32(pointee.options.synCount) : 7
        case Option.connectTimeout: number = Int32(truncatingIfNeeded: connectTimeout / second)
        case Option.linger2:
            number = pointee.options.linger2 < 0 ? -1 : Int32(truncatingIfNeeded: linger2 / second)
        case Option.deferAccept:
            number = Int32(truncatingIfNeeded: deferTime(pointee.options.deferAccept))
        case Option.windowClamp: number = Int32(truncatingIfNeeded: pointee.options.windowClamp)
        case Option.quickAck: number = has(.interactive) && !has(.quickAck) ? 0 : 1
        case Option.userTimeout:
            number = Int32(truncatingIfNeeded: pointee.options.userTimeout)
        case Option.notSentLowWater: number = Int32(truncatingIfNeeded: socket.pointee.snd.low_water)
        case Option.fastOpen: number = Int32(truncatingIfNeeded: pointee.fastOpenBacklog)
        case Option.fastOpenConnect: number = has(.fastOpenConnect) ? 1 : 0
        case Option.fastOpenNoCookie: number = pointee.fastOpenNoCookie ? 1 : 0
        case Option.fastOpenKey: return getFastOpenKeys(value, length)
        default:
            return ALPS_ENOPROTOOPT
        }
        let count = min(length.pointee, 4)
        withUnsafeBytes(of: number) { value.copyMemory(from: $0.baseAddress.unsafelyUnwrapped, byteCount: Int(count)) }
        length.pointee = count
        return 0
    }

    // MARK: TCP_CONGESTION: a name, at most 15 characters and NUL

    private func setCongestion(_ value: UnsafeMutableRawPointer, _ length: UInt32) -> Int32 {
        let given = value.assumingMemoryBound(to: UInt8.self)
        func isNamed(_ name: StaticString) -> Bool {
            var at = 0
            while at < name.utf8CodeUnitCount {
                if at >= Int(length) || given[at] != name.utf8Start[at] { return false }
                at += 1
            }
            return at == Int(length) || given[at] == 0
        }
        // "reno" is what programs ask for that want the classic one.
        if isNamed(CongestionAlgorithm.newReno.name) || isNamed("reno") {
            pointee.congestion.choose(.newReno)
        } else if isNamed(CongestionAlgorithm.cubic.name) {
            pointee.congestion.choose(.cubic)
        } else {
            return ALPS_ENOENT
        }
        return 0
    }

    private func getCongestion(_ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>) -> Int32 {
        let name = pointee.congestion.algorithm.name
        let count = min(Int(length.pointee), 16)
        let place = value.assumingMemoryBound(to: UInt8.self)
        var at = 0
        while at < count {
            place[at] = at < name.utf8CodeUnitCount ? name.utf8Start[at] : 0
            at += 1
        }
        length.pointee = UInt32(count)
        return 0
    }
}

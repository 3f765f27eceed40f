import PluginAPI

/// A 128-bit secret of the instance.
struct SecretKey {
    var k0: UInt64
    var k1: UInt64
}

/// SipHash-2-4 over whole 64-bit words.
struct SipHash {
    private var v0: UInt64
    private var v1: UInt64
    private var v2: UInt64
    private var v3: UInt64
    private var words: UInt64 = 0

    @inline(__always)
    init(_ key: SecretKey) {
        v0 = key.k0 ^ 0x736f_6d65_7073_6575
        v1 = key.k1 ^ 0x646f_7261_6e64_6f6d
        v2 = key.k0 ^ 0x6c79_6765_6e65_7261
        v3 = key.k1 ^ 0x7465_6462_7974_6573
    }

    @inline(__always)
    private mutating func round() {
        v0 &+= v1
        v1 = (v1 << 13 | v1 >> 51) ^ v0
        v0 = v0 << 32 | v0 >> 32
        v2 &+= v3
        v3 = (v3 << 16 | v3 >> 48) ^ v2
        v0 &+= v3
        v3 = (v3 << 21 | v3 >> 43) ^ v0
        v2 &+= v1
        v1 = (v1 << 17 | v1 >> 47) ^ v2
        v2 = v2 << 32 | v2 >> 32
    }

    @inline(__always)
    mutating func add(_ word: UInt64) {
        v3 ^= word
        round()
        round()
        v0 ^= word
        words &+= 1
    }

    @inline(__always)
    mutating func add(_ address: alps_addr) {
        let halves = address.halves
        add(halves.0)
        add(halves.1)
    }

    mutating func finish() -> UInt64 {
        add((words &* 8) << 56)
        v2 ^= 0xff
        round()
        round()
        round()
        round()
        return v0 ^ v1 ^ v2 ^ v3
    }
}

/// Numbers that a stranger cannot guess and that move forward for one tuple.
extension UnsafeMutablePointer where Pointee == Instance {
    /// RFC 6528: a clock of 4 microseconds plus a keyed hash of the tuple.
    func initialSequence(_ conn: UnsafePointer<alps_conn>) -> SequenceNumber {
        var hash = SipHash(pointee.sequenceKey)
        hash.add(conn.pointee.local)
        hash.add(conn.pointee.remote)
        hash.add(UInt64(conn.pointee.local_port) << 16 | UInt64(conn.pointee.remote_port))
        let clock = UInt32(truncatingIfNeeded: now / 4000)
        return SequenceNumber(UInt32(truncatingIfNeeded: hash.finish()) &+ clock)
    }

    /// RFC 7323, 7.1: timestamps start at a hidden offset. One for a pair of hosts, so that they go on rising from one
    /// connection to the next (RFC 6191 relies on it).
    func timestampOffset(_ conn: UnsafePointer<alps_conn>) -> UInt32 {
        var hash = SipHash(pointee.timestampKey)
        hash.add(conn.pointee.local)
        hash.add(conn.pointee.remote)
        return UInt32(truncatingIfNeeded: hash.finish())
    }

    /// The timestamp clock: milliseconds (RFC 7323, 5.4 allows 1 ms to 1 s).
    @inline(__always)
    var timestampClock: UInt32 { UInt32(truncatingIfNeeded: now / UInt64(ALPS_NSEC_PER_MSEC)) }
}

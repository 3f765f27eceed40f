import PluginKit

/// The options of one header (RFC 9293, 3.1; RFC 7323; RFC 2018).
struct Options {
    static var mssKind: UInt8 { 2 }
    static var windowScaleKind: UInt8 { 3 }
    static var sackPermittedKind: UInt8 { 4 }
    static var sackKind: UInt8 { 5 }
    static var timestampKind: UInt8 { 8 }

    /// Bytes of the timestamp option with its padding, on every segment of a connection that uses it.
    static var timestampLength: UInt32 { 12 }
    /// NOP, NOP, kind 8, length 10: how nearly every sender lays the option out (RFC 7323, appendix A).
    static var timestampPrefix: UInt32 { 0x0101_080a }

    var hasMSS = false
    var hasWindowScale = false
    var hasTimestamp = false
    var isSackPermitted = false
    var windowScale: UInt8 = 0
    /// SACK blocks, and where the first is, from the start of the options.
    var sackCount: UInt8 = 0
    var sackOffset: UInt8 = 0
    /// TCP Fast Open; of length 0 a cookie is asked for.
    var hasFastOpen = false
    /// In the option that Fast Open had before it had a number.
    var isExperimental = false
    var cookieLength: UInt8 = 0
    var cookieOffset: UInt8 = 0
    /// Accurate ECN's byte counters: how many, where the first is, and in which order.
    var hasCounters = false
    var counterFields: UInt8 = 0
    var countersOffset: UInt8 = 0
    var countersAreOrder0 = false
    var mss: UInt16 = 0
    var timestamp: UInt32 = 0
    var echo: UInt32 = 0

    /// Reads `count` bytes of options. An option whose length is wrong ends the walk: what stands behind it cannot be
    /// found (RFC 9293, MUST-7). MSS, window scale and SACK-permitted mean something only with SYN.
    @inline(__always)
    init(_ bytes: UnsafePointer<UInt8>, _ count: Int, isSyn: Bool) {
        if count == Int(Options.timestampLength), bytes.load32(0) == Options.timestampPrefix {
            hasTimestamp = true
            timestamp = bytes.load32(4)
            echo = bytes.load32(8)
        } else if count > 0 {
            walk(bytes, count, isSyn)
        }
    }

    @inline(never)
    private mutating func walk(_ bytes: UnsafePointer<UInt8>, _ count: Int, _ isSyn: Bool) {
        var at = 0
        while at < count {
            let kind = bytes[at]
            if kind == 0 { return }
            if kind == 1 {
                at += 1
                continue
            }
            guard at + 1 < count else { return }
            let length = Int(bytes[at + 1])
            guard length >= 2, at + length <= count else { return }
            switch kind {
            case Options.mssKind where length == 4 && isSyn:
                hasMSS = true
                mss = bytes.load16(at + 2)
            case Options.windowScaleKind where length == 3 && isSyn:
                hasWindowScale = true
                // RFC 7323, 2.3: a larger shift counts as 14.
                windowScale = min(bytes[at + 2], 14)
            case Options.sackPermittedKind where length == 2 && isSyn:
                isSackPermitted = true
            case Options.timestampKind where length == 10:
                hasTimestamp = true
                timestamp = bytes.load32(at + 2)
                echo = bytes.load32(at + 6)
            case Options.sackKind where !isSyn && length >= 10 && (length - 2) % 8 == 0:
                sackCount = UInt8(truncatingIfNeeded: (length - 2) / 8)
                sackOffset = UInt8(truncatingIfNeeded: at + 2)
            case Options.fastOpenKind where isSyn && (length == 2 || (length >= 6 && length <= 18 && length % 2 == 0)):
                hasFastOpen = true
                cookieLength = UInt8(truncatingIfNeeded: length - 2)
                cookieOffset = UInt8(truncatingIfNeeded: at + 2)
            case Options.experimentKind
            where isSyn && (length == 4 || (length >= 8 && length <= 20 && length % 2 == 0))
                && bytes.load16(at + 2) == Options.fastOpenMagic:
                hasFastOpen = true
                isExperimental = true
                cookieLength = UInt8(truncatingIfNeeded: length - 4)
                cookieOffset = UInt8(truncatingIfNeeded: at + 4)
            case Options.accurateECN0Kind, Options.accurateECN1Kind:
                hasCounters = true
                // RFC 9768, 3.2.3: whole fields only, whatever the length is.
                counterFields = UInt8(truncatingIfNeeded: min((length - 2) / 3, 3))
                countersOffset = UInt8(truncatingIfNeeded: at + 2)
                countersAreOrder0 = kind == Options.accurateECN0Kind
            default:
                break
            }
            at += length
        }
    }
}

/// What a SYN of ours offers.
struct SynOptions {
    var mss: UInt16
    /// Nil: none offered.
    var windowScale: UInt8?
    /// Value and echo; nil: none.
    var timestamp: (value: UInt32, echo: UInt32)?
    var sackPermitted: Bool
    /// Linux's order, else BSD's.
    var isScaleLast: Bool
    /// Padding is the end of the list behind the last option, as BSD has it.
    var endsList = false
    /// TCP Fast Open; nil: nothing of it. `isExperimental`: in the option of old.
    var cookie: FastOpenCookie?
    var isExperimental = false
    /// Accurate ECN's byte counters, as they begin.
    var hasCounters = false

    /// Writes the options, padded to words, at `place`, which has room for 40 bytes. Returns their length.
    func write(_ place: UnsafeMutablePointer<UInt8>) -> UInt32 {
        var at = 0
        place[0] = Options.mssKind
        place[1] = 4
        place.store16(2, mss)
        at = 4
        if !isScaleLast { at += writeScale(place + at) }
        if let timestamp {
            place.store32(at, Options.timestampPrefix)
            if sackPermitted {
                // In the place of the padding.
                place[at] = Options.sackPermittedKind
                place[at + 1] = 2
            }
            place.store32(at + 4, timestamp.value)
            place.store32(at + 8, timestamp.echo)
            at += 12
        }
        if hasCounters {
            let behind = (timestamp == nil && sackPermitted ? 4 : 0) + (isScaleLast && windowScale != nil ? 4 : 0)
            let cookieLength = cookie.map { (Int($0.length) + 5) / 4 * 4 } ?? 0
            at += ECNCounters.writeInitial(place + at, room: 40 - at - behind - cookieLength)
        }
        if timestamp == nil, sackPermitted {
            // Padding in front of it, or the end of the list behind it.
            let padding = endsList && cookie == nil ? 0 : 2
            place.store32(at, padding == 0 ? 0 : 0x0101_0000)
            place[at + padding] = Options.sackPermittedKind
            place[at + padding + 1] = 2
            at += 4
        }
        if isScaleLast { at += writeScale(place + at) }
        if let cookie { at += write(cookie, place + at) }
        return UInt32(at)
    }

    private func write(_ cookie: FastOpenCookie, _ place: UnsafeMutablePointer<UInt8>) -> Int {
        let length = Int(cookie.length)
        let start = isExperimental ? 4 : 2
        place[0] = isExperimental ? Options.experimentKind : Options.fastOpenKind
        place[1] = UInt8(truncatingIfNeeded: start + length)
        if isExperimental { place.store16(2, Options.fastOpenMagic) }
        var at = 0
        while at < length {
            place[start + at] = cookie.bytes[at]
            at += 1
        }
        at = start + length
        while at % 4 != 0 {
            place[at] = endsList ? 0 : 1
            at += 1
        }
        return at
    }

    private func writeScale(_ place: UnsafeMutablePointer<UInt8>) -> Int {
        guard let windowScale else { return 0 }
        place[0] = 1
        place[1] = Options.windowScaleKind
        place[2] = 3
        place[3] = windowScale
        return 4
    }
}

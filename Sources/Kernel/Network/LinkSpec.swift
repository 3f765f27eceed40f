import Glibc

/// How an emulated link treats packets.
package struct LinkSpec: Equatable {
    /// Bits a second, 0 = infinitely fast.
    package var rate: UInt64 = 0
    /// One way, ns.
    package var delay: UInt64 = 0
    /// Uniformly distributed, added to the delay, ns. Order is kept unless `reorder` says otherwise.
    package var jitter: UInt64 = 0
    /// Probabilities, 0...1.
    package var loss = 0.0
    /// Mean length of a run of losses, packets (Gilbert's model: good and bad states, all is lost in the bad one).
    /// 0: losses are independent. `loss` stays the share of packets lost in the long run.
    package var burst = 0.0
    package var duplicate = 0.0
    package var reorder = 0.0
    package var corrupt = 0.0
    /// Of ECN-capable packets: how many get a mark (RFC 3168).
    package var mark = 0.0
    /// Numbers of the packets that are lost, each way counted from 1.
    package var lossPattern: Set<UInt64> = []
    /// Packets that may be on the way, each way.
    package var limit = 1000
    /// Bytes of network packet; larger ones vanish silently, as in a tunnel whose ICMP errors are filtered. 0 = any.
    package var mtu = 0
    /// Bytes of network packet that a router on the way takes; larger ones that may not be fragmented vanish, or, with
    /// `narrow`, are answered by "fragmentation needed" (RFC 1191). 0 = any.
    package var hole = 0
    package var narrow = 0
    package var seed: UInt64 = 1

    package init() {}

    /// `loss 5% burst 4 delay 5ms rate 10mbit jitter 1ms duplicate 1% reorder 2% corrupt 0.1% mark 1% drop 3,7 limit 1000 mtu 1500 hole 1400 narrow 1400 seed 7`
    package init(parsing text: String) throws {
        let words = text.split(whereSeparator: { $0 == " " || $0 == "\t" }).map(String.init)
        guard !words.isEmpty, words.count % 2 == 0 else {
            throw KernelError(EINVAL, "'\(text)' is not a link: use pairs such as \"loss 5% delay 5ms rate 10mbit\"")
        }
        for index in stride(from: 0, to: words.count, by: 2) { try set(words[index], words[index + 1]) }
    }

    private mutating func set(_ key: String, _ value: String) throws {
        switch key {
        case "loss": loss = try Self.share(key, value)
        case "duplicate": duplicate = try Self.share(key, value)
        case "reorder": reorder = try Self.share(key, value)
        case "corrupt": corrupt = try Self.share(key, value)
        case "mark": mark = try Self.share(key, value)
        case "delay": delay = try Self.time(key, value)
        case "jitter": jitter = try Self.time(key, value)
        case "rate":
            let units: [(String, Double)] = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1)]
            guard let (unit, factor) = units.first(where: { value.hasSuffix($0.0) }),
                let number = Double(value.dropLast(unit.count)), number * factor >= 1, number * factor <= 1e12
            else { throw Self.refusal(key, value, "10mbit") }
            rate = UInt64(number * factor)
        case "burst":
            guard let number = Double(value), number >= 1, number <= 1000 else { throw Self.refusal(key, value, "4") }
            burst = number
        case "drop":
            let numbers = value.split(separator: ",", omittingEmptySubsequences: false).map { UInt64($0) }
            guard !numbers.contains(nil) else { throw Self.refusal(key, value, "3,7") }
            lossPattern = Set(numbers.compactMap { $0 })
        case "limit": limit = try Self.number(key, value, 1...1_000_000, "1000")
        case "mtu": mtu = try Self.number(key, value, 68...65535, "1500")
        case "hole": hole = try Self.number(key, value, 68...65535, "1400")
        case "narrow": narrow = try Self.number(key, value, 68...65535, "1400")
        case "seed":
            guard let number = UInt64(value) else { throw Self.refusal(key, value, "7") }
            seed = number
        default:
            throw KernelError(
                EINVAL,
                "link: '\(key)' is unknown: use loss, burst, delay, rate, jitter, duplicate, reorder, corrupt, mark, "
                    + "drop, limit, mtu, hole, narrow, seed")
        }
    }

    private static func refusal(_ key: String, _ value: String, _ example: String) -> KernelError {
        KernelError(EINVAL, "link: '\(key) \(value)' makes no sense: use e.g. \(key) \(example)")
    }

    private static func number(_ key: String, _ value: String, _ range: ClosedRange<Int>, _ example: String) throws -> Int {
        guard let number = Int(value), range.contains(number) else { throw refusal(key, value, example) }
        return number
    }

    private static func share(_ key: String, _ value: String) throws -> Double {
        let isPercent = value.hasSuffix("%")
        guard let number = Double(isPercent ? String(value.dropLast()) : value), number >= 0,
            number <= (isPercent ? 100 : 1)
        else { throw refusal(key, value, "5%") }
        return isPercent ? number / 100 : number
    }

    private static func time(_ key: String, _ value: String) throws -> UInt64 {
        // A number alone would be nanoseconds, which nobody means.
        guard let number = Tunable.parse(value, .nanoseconds), number >= 0, value.last?.isLetter == true else {
            throw refusal(key, value, "5ms")
        }
        return UInt64(number)
    }
}

internal import PluginAPI

/// One setting, as BSD's sysctl has them: typed, ranged, read where it lies.
package final class Tunable {
    /// How values are written.
    package enum Kind: UInt32 {
        case integer = 1
        case boolean, nanoseconds, bytes

        /// For people.
        package var name: String {
            switch self {
            case .integer: "int"
            case .boolean: "bool"
            case .nanoseconds: "time"
            case .bytes: "bytes"
            }
        }
    }

    /// The plugin instance it belongs to; nil for the host's own.
    package let owner: PluginInstance?
    package let name: String
    package let doc: String
    package let kind: Kind
    package let isReadOnly: Bool
    package let minimum: Int64
    package let maximum: Int64
    package let defaultValue: Int64
    /// Set by somebody, not just left at its default.
    package internal(set) var isSet = false
    /// Told after a change.
    package var onChange: ((Int64) -> Void)?

    private let storage: UnsafeMutablePointer<Int64>
    private let ownsStorage: Bool

    init(
        owner: PluginInstance?, name: String, doc: String, kind: Kind, isReadOnly: Bool, minimum: Int64,
        maximum: Int64, storage: UnsafeMutablePointer<Int64>, ownsStorage: Bool
    ) {
        self.owner = owner
        self.name = name
        self.doc = doc
        self.kind = kind
        self.isReadOnly = isReadOnly
        self.minimum = minimum
        self.maximum = maximum
        self.storage = storage
        self.ownsStorage = ownsStorage
        defaultValue = storage.pointee
    }

    deinit {
        if ownsStorage { storage.deallocate() }
    }

    package var value: Int64 { storage.pointee }

    /// The value as `set` would take it.
    package var text: String { Self.format(value, kind) }

    /// Sets a value within the range.
    package func set(_ value: Int64) throws {
        guard !isReadOnly else { throw KernelError(ALPS_EPERM, "\(name) is read-only") }
        guard value >= minimum, value <= maximum else {
            throw KernelError(
                ALPS_ERANGE,
                "\(name): \(Self.format(value, kind)) is outside "
                    + "\(Self.format(minimum, kind)) ... \(Self.format(maximum, kind))"
            )
        }
        store(value)
    }

    func store(_ value: Int64) {
        storage.pointee = value
        isSet = true
        onChange?(value)
    }

    // MARK: Text

    private static let timeUnits: [(String, Int64)] = [
        ("ns", 1), ("us", 1_000), ("µs", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000),
        ("min", 60_000_000_000), ("h", 3_600_000_000_000), ("d", 86_400_000_000_000),
    ]
    private static let byteUnits: [(String, Int64)] = [
        ("", 1), ("b", 1), ("k", 1 << 10), ("kb", 1 << 10), ("kib", 1 << 10), ("m", 1 << 20), ("mb", 1 << 20),
        ("mib", 1 << 20), ("g", 1 << 30), ("gb", 1 << 30), ("gib", 1 << 30),
    ]

    /// Reads "200ms", "64K", "on", "-3", "0x10"; nil if it is none of the kind. A time without unit is in ns.
    package static func parse(_ text: String, _ kind: Kind) -> Int64? {
        let text = text.lowercased().filter { $0 != " " && $0 != "_" }
        switch kind {
        case .boolean:
            switch text {
            case "1", "on", "yes", "true": return 1
            case "0", "off", "no", "false": return 0
            default: return nil
            }
        case .integer:
            if text.hasPrefix("0x") { return Int64(text.dropFirst(2), radix: 16) }
            return Int64(text)
        case .nanoseconds:
            return scaled(text, timeUnits + [("", 1)])
        case .bytes:
            return scaled(text, byteUnits)
        }
    }

    private static func scaled(_ text: String, _ units: [(String, Int64)]) -> Int64? {
        let digits = text.prefix { $0.isNumber || $0 == "." || $0 == "-" }
        let unit = String(text.dropFirst(digits.count))
        guard let factor = units.first(where: { $0.0 == unit })?.1 else { return nil }
        if let whole = Int64(digits) {
            let (value, overflow) = whole.multipliedReportingOverflow(by: factor)
            return overflow ? nil : value
        }
        guard let number = Double(digits) else { return nil }
        return Int64(exactly: (number * Double(factor)).rounded())
    }

    /// The shortest exact text for a value.
    package static func format(_ value: Int64, _ kind: Kind) -> String {
        switch kind {
        case .boolean: return value != 0 ? "1" : "0"
        case .integer: return String(value)
        case .nanoseconds:
            if value == 0 { return "0s" }
            for (unit, factor) in [("s", Int64(1_000_000_000)), ("ms", 1_000_000), ("us", 1_000)]
            where value % factor == 0 {
                return "\(value / factor)\(unit)"
            }
            return "\(value)ns"
        case .bytes:
            if value == 0 { return "0" }
            for (unit, factor) in [("G", Int64(1 << 30)), ("M", 1 << 20), ("K", 1 << 10)] where value % factor == 0 {
                return "\(value / factor)\(unit)"
            }
            return String(value)
        }
    }
}

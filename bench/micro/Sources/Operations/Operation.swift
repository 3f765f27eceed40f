import PluginAPI

/// Something small that is done many times.
public struct Operation: Sendable {
    /// For people and for thresholds.json.
    public let name: String
    /// Gets all ready; the closure does the operation as often as it is told. `plugins`: directory of the plugin libraries.
    public let prepare: @Sendable (_ plugins: String) throws -> (_ count: Int) -> Void

    public static let all = memory + timers + checksums + lookups + segments
}

/// Keeps the optimiser from leaving out what computes the value.
@inline(never)
@_optimize(none)
public func keep<Value>(_ value: Value) {}

/// An IPv4 address.
func address(_ a: UInt8, _ b: UInt8, _ c: UInt8, _ d: UInt8) -> alps_addr {
    var address = alps_addr()
    withUnsafeMutableBytes(of: &address) { $0.copyBytes(from: [a, b, c, d]) }
    return address
}

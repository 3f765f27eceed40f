import PluginAPI

/// Addresses are bytes to a transport: equal or not, zero or not.
extension alps_addr {
    @inline(__always)
    private var halves: (UInt64, UInt64) { unsafeBitCast(bytes, to: (UInt64, UInt64).self) }

    @inline(__always)
    var isZero: Bool {
        let halves = halves
        return halves.0 | halves.1 == 0
    }

    @inline(__always)
    static func == (a: alps_addr, b: alps_addr) -> Bool {
        let (a, b) = (a.halves, b.halves)
        return (a.0 ^ b.0) | (a.1 ^ b.1) == 0
    }
}

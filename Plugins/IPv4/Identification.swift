import PluginAPI
import PluginKit

/// The identification field (RFC 6864): unique only where it is needed, for datagrams that may be fragmented. Counters
/// keyed by a secret and both ends, so that nobody learns another's rate.
enum Identification {
    static var slots: Int { 1024 }
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// For a datagram that may be fragmented, here or on its way; or for `count` of them, numbered from here on.
    @inline(__always)
    func identification(
        _ source: UInt32, _ destination: UInt32, _ protocolNumber: UInt8, count: UInt16 = 1
    ) -> UInt16 {
        var hash = pointee.identificationKey ^ (UInt64(source) << 32 | UInt64(destination))
        hash = (hash ^ hash >> 31) &* 0x9e37_79b9_7f4a_7c15 ^ UInt64(protocolNumber) &* 0x2545_f491_4f6c_dd1d
        hash ^= hash >> 29
        let slot = Int(truncatingIfNeeded: hash >> 40) & (Identification.slots - 1)
        let number = UInt16(truncatingIfNeeded: pointee.identification[slot] &+ UInt32(truncatingIfNeeded: hash))
        pointee.identification[slot] &+= UInt32(max(count, 1))
        // Zero asks whoever sends raw packets to choose: not a number to give away.
        return number == 0 ? 1 : number
    }
}

import PluginAPI
import PluginKit

/// The identification field (RFC 6864): unique only where it is needed, for datagrams that may be fragmented. Counters
/// keyed by a secret and both ends, so that nobody learns another's rate.
enum Identification {
    static var slots: Int { 1024 }
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// 0 for atomic datagrams (DF set, not a fragment).
    @inline(__always)
    func identification(_ source: UInt32, _ destination: UInt32, _ protocolNumber: UInt8, isAtomic: Bool) -> UInt16 {
        if isAtomic { return 0 }
        var hash = pointee.identificationKey ^ (UInt64(source) << 32 | UInt64(destination))
        hash = (hash ^ hash >> 31) &* 0x9e37_79b9_7f4a_7c15 ^ UInt64(protocolNumber)
        let slot = Int(truncatingIfNeeded: hash >> 40) & (Identification.slots - 1)
        pointee.identification[slot] &+= 1
        return UInt16(truncatingIfNeeded: pointee.identification[slot] &+ UInt32(truncatingIfNeeded: hash >> 8))
    }
}

/// The Internet checksum (RFC 1071).
public enum Checksum {
    /// Running sum of `count` bytes in network order, added to `initial`, folded to 16 bits, not inverted. An odd last
    /// byte counts as the high half of a word.
    @inline(__always)
    public static func sum(_ bytes: UnsafePointer<UInt8>, _ count: Int, initial: UInt32 = 0) -> UInt32 {
        var total = UInt64(initial)
        var offset = 0
        let raw = UnsafeRawPointer(bytes)
        while offset + 4 <= count {
            total &+= UInt64(UInt32(bigEndian: raw.loadUnaligned(fromByteOffset: offset, as: UInt32.self)))
            offset += 4
        }
        if offset + 2 <= count {
            total &+= UInt64(UInt16(bigEndian: raw.loadUnaligned(fromByteOffset: offset, as: UInt16.self)))
            offset += 2
        }
        if offset < count { total &+= UInt64(bytes[offset]) << 8 }
        return fold(total)
    }

    /// Folds carries until 16 bits are left.
    @inline(__always)
    public static func fold(_ sum: UInt64) -> UInt32 {
        var sum = (sum & 0xffff_ffff) &+ (sum >> 32)
        sum = (sum & 0xffff) &+ (sum >> 16)
        sum = (sum & 0xffff) &+ (sum >> 16)
        sum = (sum & 0xffff) &+ (sum >> 16)
        return UInt32(truncatingIfNeeded: sum)
    }

    /// The value that goes on the wire for a folded sum.
    @inline(__always)
    public static func finish(_ sum: UInt32) -> UInt16 { ~UInt16(truncatingIfNeeded: sum) }
}

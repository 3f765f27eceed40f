/// The Internet checksum (RFC 1071) over raw memory.
///
/// Sums are kept as the host sees network-order words: folded to 16 bits, not inverted, ready to be added.
package enum InternetChecksum {
    /// Folded sum of `count` bytes; an odd last byte counts as the high half of a word.
    ///
    /// Adds in the machine's own byte order and swaps at the end, which the one's complement sum allows (section 2.B).
    package static func sum(_ bytes: UnsafeRawPointer, _ count: Int) -> UInt32 {
        var offset = 0
        var even: UInt64 = 0
        var odd: UInt64 = 0
        while offset &+ 32 <= count {
            let a = bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
            let b = bytes.loadUnaligned(fromByteOffset: offset &+ 8, as: UInt64.self)
            let c = bytes.loadUnaligned(fromByteOffset: offset &+ 16, as: UInt64.self)
            let d = bytes.loadUnaligned(fromByteOffset: offset &+ 24, as: UInt64.self)
            even &+= (a & 0xffff_ffff) &+ (b & 0xffff_ffff) &+ (c & 0xffff_ffff) &+ (d & 0xffff_ffff)
            odd &+= (a >> 32) &+ (b >> 32) &+ (c >> 32) &+ (d >> 32)
            offset &+= 32
        }
        while offset &+ 4 <= count {
            even &+= UInt64(bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
            offset &+= 4
        }
        if offset &+ 2 <= count {
            even &+= UInt64(bytes.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
            offset &+= 2
        }
        if offset < count {
            let last = UInt16(bytes.load(fromByteOffset: offset, as: UInt8.self))
            even &+= UInt64(UInt16(littleEndian: last))
        }
        let folded = UInt16(truncatingIfNeeded: fold(even &+ odd))
        return UInt32(UInt16(bigEndian: folded))
    }

    /// Folds carries until 16 bits are left.
    package static func fold(_ sum: UInt64) -> UInt32 {
        var sum = (sum & 0xffff_ffff) &+ (sum >> 32)
        sum = (sum & 0xffff) &+ (sum >> 16)
        sum = (sum & 0xffff) &+ (sum >> 16)
        sum = (sum & 0xffff) &+ (sum >> 16)
        return UInt32(truncatingIfNeeded: sum)
    }

    /// The sum of two folded sums, folded.
    package static func add(_ a: UInt32, _ b: UInt32) -> UInt32 {
        let sum = a &+ b
        return (sum & 0xffff) &+ (sum >> 16)
    }

    /// A folded sum of bytes that stand at an odd offset of the whole (section 2.B).
    package static func swapped(_ sum: UInt32) -> UInt32 {
        UInt32(UInt16(truncatingIfNeeded: sum).byteSwapped)
    }

    /// The value for the wire.
    package static func finish(_ sum: UInt32) -> UInt16 { ~UInt16(truncatingIfNeeded: sum) }
}

/// A number of TCP's sequence space: 32 bits, compared modulo 2^32 (RFC 9293, 3.4).
///
/// The order is meaningful only among numbers less than 2^31 apart, hence no conformance to `Comparable`.
struct SequenceNumber: Equatable {
    var value: UInt32

    @inline(__always)
    init(_ value: UInt32) { self.value = value }

    @inline(__always)
    static func + (number: SequenceNumber, count: UInt32) -> SequenceNumber {
        SequenceNumber(number.value &+ count)
    }

    @inline(__always)
    static func - (number: SequenceNumber, count: UInt32) -> SequenceNumber {
        SequenceNumber(number.value &- count)
    }

    @inline(__always)
    static func += (number: inout SequenceNumber, count: UInt32) { number.value &+= count }

    /// How far `a` lies behind `b`; negative if it lies in front.
    @inline(__always)
    static func - (a: SequenceNumber, b: SequenceNumber) -> Int {
        Int(Int32(bitPattern: a.value &- b.value))
    }

    @inline(__always)
    static func < (a: SequenceNumber, b: SequenceNumber) -> Bool { a - b < 0 }

    @inline(__always)
    static func <= (a: SequenceNumber, b: SequenceNumber) -> Bool { a - b <= 0 }

    @inline(__always)
    static func > (a: SequenceNumber, b: SequenceNumber) -> Bool { a - b > 0 }

    @inline(__always)
    static func >= (a: SequenceNumber, b: SequenceNumber) -> Bool { a - b >= 0 }
}

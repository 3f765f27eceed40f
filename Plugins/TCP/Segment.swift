import PluginAPI
import PluginKit

/// Control bits of the header.
enum Flag {
    static var fin: UInt8 { 0x01 }
    static var syn: UInt8 { 0x02 }
    static var rst: UInt8 { 0x04 }
    static var psh: UInt8 { 0x08 }
    static var ack: UInt8 { 0x10 }
    static var urg: UInt8 { 0x20 }
    static var ece: UInt8 { 0x40 }
    static var cwr: UInt8 { 0x80 }
}

/// Offsets in the fixed header (RFC 9293, 3.1).
enum Header {
    static var length: UInt32 { 20 }
    static var sourcePort: Int { 0 }
    static var destinationPort: Int { 2 }
    static var sequence: Int { 4 }
    static var acknowledgment: Int { 8 }
    static var dataOffset: Int { 12 }
    static var flags: Int { 13 }
    static var window: Int { 14 }
    static var checksum: Int { 16 }
    static var urgentPointer: Int { 18 }
}

/// A segment that has arrived, read once from its header. `sequence`, `offset` and `length` move when parts of the
/// payload turn out to be outside the window.
struct Segment {
    var packet: Mbuf
    var sequence: SequenceNumber
    var acknowledgment: SequenceNumber
    /// As on the wire, not scaled.
    var window: UInt32
    var flags: UInt8
    var urgentPointer: UInt16
    /// Where the payload starts, in bytes from the start of the header.
    var offset: UInt32
    /// Bytes of payload.
    var length: UInt32
    /// `sequence` as it came.
    let number: SequenceNumber
    /// It came with payload, whatever has been cut off since.
    let hasText: Bool
    /// It had a SYN, whose window is never scaled (RFC 7323, 2.2).
    let hadSyn: Bool
    /// Segments the sender sent for this packet: more than one if device or host joined them.
    var count: UInt32
    /// Payload bytes of the largest of them.
    var size: UInt32
    var options: Options

    @inline(__always)
    func has(_ flag: UInt8) -> Bool { flags & flag != 0 }

    /// SEG.LEN: SYN and FIN count.
    @inline(__always)
    var sequenceLength: UInt32 {
        length &+ (has(Flag.syn) ? 1 : 0) &+ (has(Flag.fin) ? 1 : 0)
    }

    /// The sequence number behind the payload.
    @inline(__always)
    var end: SequenceNumber { sequence + length }

    /// Reads a header that is contiguous and complete.
    @inline(__always)
    init(_ packet: Mbuf, headerLength: UInt32) {
        let header = UnsafePointer(packet.pointee.data)
        self.packet = packet
        sequence = SequenceNumber(header.load32(Header.sequence))
        number = sequence
        acknowledgment = SequenceNumber(header.load32(Header.acknowledgment))
        window = UInt32(header.load16(Header.window))
        flags = header[Header.flags]
        urgentPointer = header.load16(Header.urgentPointer)
        offset = headerLength
        length = packet.pointee.pkt.length &- headerLength
        hasText = length > 0
        hadSyn = flags & Flag.syn != 0
        options = Options(
            header + Int(Header.length), Int(headerLength &- Header.length),
            isSyn: header[Header.flags] & Flag.syn != 0)
        let cut = UInt32(packet.pointee.pkt.gso_size)
        if packet.pointee.pkt.gso_type != UInt8(ALPS_GSO_NONE), cut != 0, length > cut {
            count = (length &+ cut &- 1) / cut
            size = cut
        } else {
            count = 1
            size = length
        }
    }

    /// Takes `count` bytes (<= length) off the front of the payload.
    @inline(__always)
    mutating func dropFront(_ count: UInt32) {
        sequence += count
        offset &+= count
        length &-= count
    }
}

/// The fixed part of a header on its way out. `ace`: AE, CWR and ECE, as far as they are not in `flags`.
@inline(__always)
func writeHeader(
    _ place: UnsafeMutablePointer<UInt8>, source: UInt16, destination: UInt16, sequence: SequenceNumber,
    acknowledgment: SequenceNumber, length: UInt32, flags: UInt8, window: UInt16, checksum: UInt16, urgent: UInt16,
    ace: UInt8 = 0
) {
    place.store16(Header.sourcePort, source)
    place.store16(Header.destinationPort, destination)
    place.store32(Header.sequence, sequence.value)
    place.store32(Header.acknowledgment, acknowledgment.value)
    place[Header.dataOffset] = UInt8(truncatingIfNeeded: length << 2) | ace >> 2
    place[Header.flags] = flags | ace << 6
    place.store16(Header.window, window)
    place.store16(Header.checksum, checksum)
    place.store16(Header.urgentPointer, urgent)
}

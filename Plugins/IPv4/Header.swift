import PluginAPI
import PluginKit

/// An IPv4 header in place (RFC 791, section 3.1). Whoever makes one has checked that its bytes are there.
struct Header {
    let bytes: UnsafeMutablePointer<UInt8>

    static var minimumLength: Int { 20 }
    static var maximumLength: Int { 60 }
    static var dontFragment: UInt16 { 0x4000 }
    static var moreFragments: UInt16 { 0x2000 }
    static var offsetMask: UInt16 { 0x1fff }

    @inline(__always) var version: UInt8 { bytes[0] >> 4 }
    @inline(__always) var length: Int { Int(bytes[0] & 15) * 4 }
    @inline(__always) var tos: UInt8 { bytes[1] }
    @inline(__always) var totalLength: Int { Int(bytes.load16(2)) }
    @inline(__always) var identification: UInt16 { bytes.load16(4) }
    @inline(__always) var fragment: UInt16 { bytes.load16(6) }
    @inline(__always) var ttl: UInt8 { bytes[8] }
    @inline(__always) var `protocol`: UInt8 { bytes[9] }
    @inline(__always) var source: UInt32 { UnsafeRawPointer(bytes).loadUnaligned(fromByteOffset: 12, as: UInt32.self) }
    @inline(__always) var destination: UInt32 {
        UnsafeRawPointer(bytes).loadUnaligned(fromByteOffset: 16, as: UInt32.self)
    }

    @inline(__always)
    func setSource(_ address: UInt32) {
        UnsafeMutableRawPointer(bytes).storeBytes(of: address, toByteOffset: 12, as: UInt32.self)
    }

    @inline(__always)
    func setDestination(_ address: UInt32) {
        UnsafeMutableRawPointer(bytes).storeBytes(of: address, toByteOffset: 16, as: UInt32.self)
    }

    /// Computes and stores the header checksum.
    @inline(__always)
    func finish() {
        bytes.store16(10, 0)
        bytes.store16(10, Checksum.finish(Checksum.sum(bytes, length)))
    }
}

/// Classes of addresses that need no table.
enum AddressClass {
    /// 127.0.0.1
    @inline(__always) static var loopback: UInt32 { UInt32(0x7f00_0001).bigEndian }

    @inline(__always) static func first(_ address: UInt32) -> UInt8 { UInt8(truncatingIfNeeded: address) }
    @inline(__always) static func isMulticast(_ address: UInt32) -> Bool { first(address) & 0xf0 == 0xe0 }
    @inline(__always) static func isLoopback(_ address: UInt32) -> Bool { first(address) == 127 }
    @inline(__always) static func isBroadcast(_ address: UInt32) -> Bool { address == .max }
    /// 0.0.0.0/8 except 0.0.0.0 itself, and class E except the limited broadcast.
    @inline(__always) static func isInvalid(_ address: UInt32) -> Bool {
        first(address) == 0 && address != 0 || first(address) & 0xf0 == 0xf0 && address != .max
    }
}

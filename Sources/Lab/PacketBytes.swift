package import Kernel
package import PluginAPI

// Small pieces of which packets are put together and taken apart, where speed does not matter.

/// In network byte order.
package func big(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(value & 255)] }

package func big(_ value: UInt32) -> [UInt8] { big(UInt16(value >> 16)) + big(UInt16(value & 0xffff)) }

package func big16(_ bytes: [UInt8], _ at: Int) -> UInt16 { UInt16(bytes[at]) << 8 | UInt16(bytes[at + 1]) }

package func big32(_ bytes: [UInt8], _ at: Int) -> UInt32 {
    UInt32(big16(bytes, at)) << 16 | UInt32(big16(bytes, at + 2))
}

/// The Internet checksum (RFC 1071), for the wire.
package func checksum(_ bytes: [UInt8]) -> UInt16 { InternetSum.of(bytes[...]) }

enum InternetSum {
    /// Of `pseudo`, whose length is even, and `bytes`.
    static func of(_ bytes: ArraySlice<UInt8>, pseudo: [UInt8] = []) -> UInt16 {
        var sum: UInt64 = 0
        func add(_ bytes: ArraySlice<UInt8>) {
            var at = bytes.startIndex
            while at + 1 < bytes.endIndex {
                sum += UInt64(bytes[at]) << 8 | UInt64(bytes[at + 1])
                at += 2
            }
            if at < bytes.endIndex { sum += UInt64(bytes[at]) << 8 }
        }
        add(pseudo[...])
        add(bytes)
        while sum >> 16 != 0 { sum = sum & 0xffff + sum >> 16 }
        return ~UInt16(sum)
    }
}

/// The byte at a place of a test stream.
package func pattern(_ position: Int) -> UInt8 { UInt8(truncatingIfNeeded: position &* 7 &+ position >> 8) }

package func pattern(_ range: Range<Int>) -> [UInt8] { range.map { pattern($0) } }

/// All bytes of a packet. It stays the caller's.
package func contents(of packet: Mbuf) -> [UInt8] {
    var bytes: [UInt8] = []
    var buffer: Mbuf? = packet
    while let current = buffer {
        bytes += UnsafeBufferPointer(start: current.pointee.data, count: Int(current.pointee.length))
        buffer = current.pointee.next
    }
    return bytes
}

/// An IPv4 address and a port.
package func endpoint(_ text: String, _ port: UInt16) -> alps_sockaddr {
    guard let parsed = NetworkAddress(text) else { preconditionFailure("'\(text)' is no address") }
    var address = alps_sockaddr()
    address.family = UInt16(ALPS_AF_INET)
    address.port = port
    address.addr = parsed.address
    return address
}

/// An Ethernet address.
package struct HardwareAddress: Equatable, CustomStringConvertible {
    package var bytes: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8)

    package init(_ bytes: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8)) { self.bytes = bytes }

    /// `02:00:00:00:00:01`
    package init(parsing text: String) throws {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false).map { UInt8($0, radix: 16) }
        guard parts.count == 6, !parts.contains(nil) else {
            throw KernelError(22, "'\(text)' is not a hardware address: use e.g. 02:00:00:00:00:01")
        }
        guard parts[0]! & 1 == 0 else { throw KernelError(22, "'\(text)' is a group address, not one of an interface") }
        bytes = (parts[0]!, parts[1]!, parts[2]!, parts[3]!, parts[4]!, parts[5]!)
    }

    /// Random and locally administered.
    package static func random(_ source: RandomSource) -> HardwareAddress {
        let value = source.next()
        func byte(_ index: UInt64) -> UInt8 { UInt8(truncatingIfNeeded: value >> (8 * index)) }
        return HardwareAddress(((byte(0) & 0xfc) | 2, byte(1), byte(2), byte(3), byte(4), byte(5)))
    }

    package static func == (a: HardwareAddress, b: HardwareAddress) -> Bool { a.description == b.description }

    package var description: String {
        withUnsafeBytes(of: bytes) { raw in
            raw.prefix(6).map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
        }
    }
}

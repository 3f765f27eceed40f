package import PluginAPI

/// Text of IPv4 addresses for the host's tools. Protocol plugins have their own; this one serves commands and
/// configuration, where no plugin may be loaded yet.
package struct NetworkAddress: Equatable, CustomStringConvertible {
    package var address = alps_addr()

    package init(address: alps_addr) { self.address = address }

    /// Four decimal numbers; nil for anything else.
    package init?(_ text: some StringProtocol) {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 4 else { return nil }
        for (index, part) in parts.enumerated() {
            guard let byte = UInt8(part), part.count <= 3, part.first != "+" else { return nil }
            withUnsafeMutableBytes(of: &address) { $0[index] = byte }
        }
    }

    /// `A/LENGTH`, or `default`, or an address alone (a full-length prefix).
    package struct Prefix {
        package var address: alps_addr
        package var length: Int

        package init?(_ text: String) {
            if text == "default" {
                address = alps_addr()
                length = 0
                return
            }
            let parts = text.split(separator: "/", omittingEmptySubsequences: false)
            guard parts.count <= 2, let network = NetworkAddress(parts[0]) else { return nil }
            address = network.address
            length = 32
            if parts.count == 2 {
                guard let number = Int(parts[1]), (0...32).contains(number) else { return nil }
                length = number
            }
        }
    }

    package var description: String {
        withUnsafeBytes(of: address) { "\($0[0]).\($0[1]).\($0[2]).\($0[3])" }
    }

    package var isZero: Bool { withUnsafeBytes(of: address) { $0.allSatisfy { $0 == 0 } } }

    package static func == (a: NetworkAddress, b: NetworkAddress) -> Bool {
        withUnsafeBytes(of: a.address) { left in
            withUnsafeBytes(of: b.address) { right in left.elementsEqual(right) }
        }
    }
}

import CLinux
import Glibc

/// The operating system's side of a tap interface: address and state. Touches the named interface only.
package enum KernelSide {
    /// Gives the interface an address and brings it up.
    package static func configure(interface: String, address: String, prefixLength: Int, mtu: Int?) throws {
        guard let parsed = NetworkAddress(address) else { throw KernelError(EINVAL, "'\(address)' is not an address") }
        try withSocket(interface) { descriptor, request in
            setAddress(&request, parsed)
            try call(descriptor, UInt(SIOCSIFADDR), &request, interface, "give an address to")
            let mask = prefixLength == 0 ? 0 : UInt32.max << UInt32(32 - prefixLength)
            setAddress(
                &request,
                NetworkAddress("\(mask >> 24).\(mask >> 16 & 255).\(mask >> 8 & 255).\(mask & 255)") ?? parsed)
            try call(descriptor, UInt(SIOCSIFNETMASK), &request, interface, "set the netmask of")
        }
        try bringUp(interface: interface, mtu: mtu)
    }

    package static func bringUp(interface: String, mtu: Int? = nil) throws {
        try withSocket(interface) { descriptor, request in
            if let mtu {
                request.ifr_ifru.ifru_mtu = Int32(mtu)
                try call(descriptor, UInt(SIOCSIFMTU), &request, interface, "set the MTU of")
            }
            try call(descriptor, UInt(SIOCGIFFLAGS), &request, interface, "read the flags of")
            request.ifr_ifru.ifru_flags |= Int16(IFF_UP)
            try call(descriptor, UInt(SIOCSIFFLAGS), &request, interface, "bring up")
        }
    }

    private static func withSocket(_ interface: String, _ body: (Int32, inout ifreq) throws -> Void) throws {
        let descriptor = socket(AF_INET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw KernelError(errno, "socket: \(String(cString: strerror(errno)))") }
        defer { close(descriptor) }
        var request = ifreq()
        withUnsafeMutableBytes(of: &request.ifr_ifrn) { bytes in
            for (index, byte) in interface.utf8.prefix(15).enumerated() { bytes[index] = byte }
        }
        try body(descriptor, &request)
    }

    private static func setAddress(_ request: inout ifreq, _ address: NetworkAddress) {
        var name = sockaddr_in()
        name.sin_family = sa_family_t(AF_INET)
        withUnsafeMutableBytes(of: &name.sin_addr) { bytes in
            withUnsafeBytes(of: address.address) { bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[0..<4])) }
        }
        withUnsafeMutableBytes(of: &request.ifr_ifru) { bytes in
            withUnsafeBytes(of: name) { bytes.copyMemory(from: $0) }
        }
    }

    private static func call(
        _ descriptor: Int32, _ command: UInt, _ request: inout ifreq, _ interface: String, _ what: String
    ) throws {
        guard alps_ioctl(descriptor, command, &request) == 0 else {
            throw KernelError(errno, "cannot \(what) \(interface): \(String(cString: strerror(errno)))")
        }
    }
}

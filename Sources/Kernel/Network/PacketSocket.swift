import CLinux
import Glibc
import PluginAPI

/// A real interface of the system, shared with it through a packet socket: the stack has an address of its own behind the
/// interface's hardware address, and the kernel is kept from answering what is meant for it.
package final class PacketSocket: FrameDevice {
    package let name: String
    /// The interface's own, which the stack uses too.
    package let hardware: HardwareAddress
    package let mtu: Int

    /// Opens the system's interface `name`.
    package init(name: String, kernel: Kernel) throws {
        self.name = name
        let descriptor = socket(AF_PACKET, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0)
        guard descriptor >= 0 else {
            throw KernelError(errno, "cannot open a packet socket: \(String(cString: strerror(errno))); run as root")
        }
        do {
            let request = try Self.question(descriptor, name, UInt(SIOCGIFHWADDR))
            guard request.ifr_ifru.ifru_hwaddr.sa_family == sa_family_t(ARPHRD_ETHER) else {
                throw KernelError(EINVAL, "'\(name)' is no Ethernet interface")
            }
            let bytes = request.ifr_ifru.ifru_hwaddr.sa_data
            hardware = withUnsafeBytes(of: bytes) { HardwareAddress(($0[0], $0[1], $0[2], $0[3], $0[4], $0[5])) }
            mtu = Int(try Self.question(descriptor, name, UInt(SIOCGIFMTU)).ifr_ifru.ifru_mtu)
            try Self.set(descriptor, PACKET_VNET_HDR, name)
            // What the kernel itself sends through the interface is none of the stack's business.
            try Self.set(descriptor, PACKET_IGNORE_OUTGOING, name)
            var address = sockaddr_ll()
            address.sll_family = sa_family_t(AF_PACKET)
            address.sll_protocol = UInt16(ETH_P_ALL).bigEndian
            address.sll_ifindex = Int32(if_nametoindex(name))
            let status = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_ll>.size))
                }
            }
            guard status == 0 else {
                throw KernelError(errno, "cannot listen to '\(name)': \(String(cString: strerror(errno)))")
            }
        } catch {
            Glibc.close(descriptor)
            throw error
        }
        try super.init(descriptor: descriptor, headerSize: MemoryLayout<virtio_net_hdr>.size, kernel: kernel)
    }

    package override func setPromiscuous(_ on: Bool) {
        var request = packet_mreq()
        request.mr_ifindex = Int32(if_nametoindex(name))
        request.mr_type = UInt16(PACKET_MR_PROMISC)
        // Without effect on an interface that is gone.
        setsockopt(
            descriptor, SOL_PACKET, on ? PACKET_ADD_MEMBERSHIP : PACKET_DROP_MEMBERSHIP, &request,
            socklen_t(MemoryLayout<packet_mreq>.size))
    }

    private static func question(_ descriptor: Int32, _ name: String, _ number: UInt) throws -> ifreq {
        guard (1...15).contains(name.utf8.count) else {
            throw KernelError(EINVAL, "'\(name)' is not an interface name: 1 to 15 characters")
        }
        var request = ifreq()
        withUnsafeMutableBytes(of: &request.ifr_ifrn) { $0.copyBytes(from: name.utf8) }
        guard alps_ioctl(descriptor, number, &request) == 0 else {
            throw KernelError(
                errno, "the system has no usable interface '\(name)': \(String(cString: strerror(errno)))")
        }
        return request
    }

    private static func set(_ descriptor: Int32, _ option: Int32, _ name: String) throws {
        var on: Int32 = 1
        guard setsockopt(descriptor, SOL_PACKET, option, &on, 4) == 0 else {
            throw KernelError(errno, "'\(name)' cannot be shared: \(String(cString: strerror(errno))) (Linux 4.20 or newer is needed)")
        }
    }
}

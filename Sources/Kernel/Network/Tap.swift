import CLinux
import Glibc
import PluginAPI

/// A tap interface, with offloads both ways unless told otherwise.
package final class Tap: FrameDevice {
    package let name: String

    /// Opens (and so makes) the tap interface `name`. Without `offload` every frame is one finished packet, as on a wire.
    package init(name: String, offload: Bool = true, kernel: Kernel) throws {
        self.name = name
        try super.init(
            descriptor: try Self.open(name, offload), headerSize: MemoryLayout<virtio_net_hdr_v1>.size,
            capabilities: offload ? UInt32(ALPS_IFCAP_TXCSUM | ALPS_IFCAP_TSO4) : 0, kernel: kernel)
        steering = ReceiveSteering(interface: name, tap: descriptor, kernel: kernel)
    }

    private static func open(_ name: String, _ offload: Bool) throws -> Int32 {
        guard (1...15).contains(name.utf8.count) else {
            throw KernelError(EINVAL, "'\(name)' is not an interface name: 1 to 15 characters")
        }
        let descriptor = Glibc.open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else {
            throw KernelError(
                errno, "cannot open /dev/net/tun: \(String(cString: strerror(errno))); run as root, or load the module tun")
        }
        var request = ifreq()
        withUnsafeMutableBytes(of: &request.ifr_ifrn) { bytes in
            for (index, byte) in name.utf8.enumerated() { bytes[index] = byte }
        }
        request.ifr_ifru.ifru_flags = Int16(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        guard alps_ioctl(descriptor, alps_TUNSETIFF, &request) == 0 else {
            let error = errno
            Glibc.close(descriptor)
            throw KernelError(
                error, "cannot make tap interface '\(name)': \(String(cString: strerror(error)))"
                    + (error == EBUSY ? "; another process has it" : "")
                    + (error == EINVAL ? "; an interface of another kind may have that name" : ""))
        }
        var size = Int32(MemoryLayout<virtio_net_hdr_v1>.size)
        let offloads = offload ? UInt(TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN) : 0
        guard alps_ioctl(descriptor, alps_TUNSETVNETHDRSZ, &size) == 0,
            alps_ioctl_value(descriptor, alps_TUNSETOFFLOAD, offloads) == 0
        else {
            let error = errno
            Glibc.close(descriptor)
            throw KernelError(error, "tap interface '\(name)' has no offloads: \(String(cString: strerror(error)))")
        }
        return descriptor
    }
}

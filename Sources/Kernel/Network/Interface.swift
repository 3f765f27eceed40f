package import PluginAPI

/// One network interface: what plugins see of it, its device, its addresses and counters.
package final class Interface {
    package let kernel: Kernel
    /// The kernel's link layer.
    let ethernet: Borrowed<Ethernet>
    package let raw: UnsafeMutablePointer<alps_ifnet>
    package let name: String
    package let device: Device
    package internal(set) var addresses: [alps_ifaddr] = []
    private var addressStorage: UnsafeMutablePointer<alps_ifaddr>?
    package internal(set) var capture: Capture?
    package var packetsIn: UInt64 = 0
    package var bytesIn: UInt64 = 0
    package var errorsIn: UInt64 = 0
    package var packetsOut: UInt64 = 0
    package var bytesOut: UInt64 = 0
    package var errorsOut: UInt64 = 0
    package var drops: UInt64 = 0

    init(
        kernel: Kernel, index: UInt32, name: String, device: Device, type: UInt32, hardware: HardwareAddress?, mtu: Int
    ) {
        self.kernel = kernel
        ethernet = Borrowed(kernel.interfaces.ethernet)
        self.name = name
        self.device = device
        raw = .allocate(capacity: 1)
        raw.initialize(to: alps_ifnet())
        raw.pointee.size = UInt32(MemoryLayout<alps_ifnet>.size)
        raw.pointee.index = index
        withUnsafeMutableBytes(of: &raw.pointee.name) { buffer in
            for (offset, byte) in name.utf8.prefix(15).enumerated() { buffer[offset] = byte }
        }
        raw.pointee.type = type
        raw.pointee.mtu = UInt32(mtu)
        raw.pointee.capabilities = device.capabilities
        let common = UInt32(ALPS_IFF_UP | ALPS_IFF_RUNNING | ALPS_IFF_MULTICAST)
        if hardware != nil {
            raw.pointee.hardware_length = 6
            raw.pointee.flags = common | UInt32(ALPS_IFF_BROADCAST)
        } else {
            raw.pointee.flags = common | UInt32(ALPS_IFF_LOOPBACK)
        }
        if let hardware { store(hardware) }
        device.interface = self
    }

    func store(_ hardware: HardwareAddress) {
        withUnsafeMutableBytes(of: &raw.pointee.hardware) { buffer in
            withUnsafeBytes(of: hardware.bytes) { buffer.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[0..<6])) }
        }
    }

    deinit {
        device.interface = nil
        addressStorage?.deallocate()
        raw.deallocate()
    }

    package var isUp: Bool { raw.pointee.flags & UInt32(ALPS_IFF_UP) != 0 }
    package var isLoopback: Bool { raw.pointee.type == UInt32(ALPS_IFT_LOOP) }
    package var hardware: HardwareAddress? {
        guard raw.pointee.hardware_length == 6 else { return nil }
        let h = raw.pointee.hardware
        return HardwareAddress((h.0, h.1, h.2, h.3, h.4, h.5))
    }

    /// Plugins read the addresses from memory of their own, rewritten whole at a change.
    func publishAddresses() {
        let old = addressStorage
        let storage = UnsafeMutablePointer<alps_ifaddr>.allocate(capacity: max(addresses.count, 1))
        for (index, address) in addresses.enumerated() { (storage + index).initialize(to: address) }
        addressStorage = storage
        raw.pointee.addresses = UnsafePointer(storage)
        raw.pointee.address_count = UInt32(addresses.count)
        old?.deallocate()
    }

    /// In place: whoever calls this may be walking the addresses.
    func setFlags(_ flags: UInt32, ofAddress place: Int) {
        addresses[place].flags = flags
        addressStorage?[place].flags = flags
    }

    /// Writes every packet from now on to a pcapng file.
    package func startCapture(path: String) throws {
        capture = try Capture(path: path, interface: name, isEthernet: !isLoopback, kernel: kernel)
    }
}

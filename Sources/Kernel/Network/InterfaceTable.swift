import Glibc
package import PluginAPI

/// One network interface: what plugins see of it, its device, its addresses and counters.
package final class Interface {
    package let kernel: Kernel
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

    init(kernel: Kernel, index: UInt32, name: String, device: Device, type: UInt32, hardware: HardwareAddress?, mtu: Int) {
        self.kernel = kernel
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

    fileprivate func store(_ hardware: HardwareAddress) {
        withUnsafeMutableBytes(of: &raw.pointee.hardware) { buffer in
            withUnsafeBytes(of: hardware.bytes) { buffer.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[0..<6])) }
        }
    }

    deinit {
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

/// The interfaces of a kernel ("alps.ifnet/1"), and who takes which ethertype.
package final class InterfaceTable {
    private(set) var kernel: Kernel!
    private var opsTable: UnsafeMutablePointer<alps_ifnet_ops>?
    /// By index; index 0 is never used.
    private var slots: [Interface?] = [nil]
    private struct EthertypeTaker {
        var instance: PluginInstance
        var registration: alps_ethertype
    }
    private var takers: [UInt16: EthertypeTaker] = [:]
    private var replaced: [UInt16: EthertypeTaker] = [:]
    /// Pointers only, for the data path: ethertypes 0x0800, 0x0806 and 0x86dd, then the rest by search.
    let ethernet = Ethernet()

    package init() {}

    deinit { opsTable?.deallocate() }

    func attach(_ kernel: Kernel) {
        self.kernel = kernel
        ethernet.attach(kernel)
        let table = UnsafeMutablePointer<alps_ifnet_ops>.allocate(capacity: 1)
        table.initialize(to: makeIfnetOps())
        opsTable = table
        kernel.plugins.publish("alps.ifnet/1", ops: UnsafeRawPointer(table), scope: .perInstance)
    }

    /// In order of their indexes.
    package var all: [Interface] { slots.compactMap { $0 } }

    package func interface(_ index: UInt32) -> Interface? {
        Int(index) < slots.count ? slots[Int(index)] : nil
    }

    package func find(_ name: String) -> Interface? { all.first { $0.name == name } }

    var lastIndex: UInt32 { UInt32(slots.count - 1) }

    // MARK: Interfaces

    /// Makes lo0 with 127.0.0.1/8.
    @discardableResult
    package func addLoopback() throws -> Interface {
        let interface = insert("lo0", Loopback(kernel: kernel), UInt32(ALPS_IFT_LOOP), nil, 65535)
        try addAddress(interface, NetworkAddress("127.0.0.1")!.address, prefixLength: 8)
        return interface
    }

    /// Makes an Ethernet interface over a device.
    @discardableResult
    package func add(name: String, device: Device, hardware: HardwareAddress, mtu: Int = 1500) throws -> Interface {
        guard find(name) == nil else { throw KernelError(EEXIST, "there is an interface '\(name)' already") }
        return insert(name, device, UInt32(ALPS_IFT_ETHER), hardware, mtu)
    }

    private func insert(_ name: String, _ device: Device, _ type: UInt32, _ hardware: HardwareAddress?, _ mtu: Int) -> Interface {
        let interface = Interface(
            kernel: kernel, index: UInt32(slots.count), name: name, device: device, type: type, hardware: hardware, mtu: mtu)
        slots.append(interface)
        fire(UInt32(ALPS_IFEVENT_ATTACH), interface)
        return interface
    }

    package func remove(_ interface: Interface) {
        for address in interface.addresses { _ = deleteAddress(interface, address.addr) }
        setUp(interface, false)
        fire(UInt32(ALPS_IFEVENT_DETACH), interface)
        kernel.routes.removeAll(interface: interface.raw.pointee.index)
        interface.device.close()
        interface.capture?.close()
        interface.capture = nil
        slots[Int(interface.raw.pointee.index)] = nil
    }

    func shutdown() {
        for interface in all {
            interface.device.close()
            interface.capture?.close()
            interface.capture = nil
        }
    }

    package func setUp(_ interface: Interface, _ up: Bool) {
        guard interface.isUp != up else { return }
        interface.raw.pointee.flags ^= UInt32(ALPS_IFF_UP)
        fire(UInt32(up ? ALPS_IFEVENT_UP : ALPS_IFEVENT_DOWN), interface)
    }

    package func setMTU(_ interface: Interface, _ mtu: Int) -> Int32 {
        guard (68...65535).contains(mtu) else { return EINVAL }
        interface.raw.pointee.mtu = UInt32(mtu)
        kernel.routes.changed()
        fire(UInt32(ALPS_IFEVENT_MTU), interface)
        return 0
    }

    package func setHardware(_ interface: Interface, _ hardware: HardwareAddress) -> Int32 {
        guard interface.raw.pointee.hardware_length == 6 else { return EOPNOTSUPP }
        interface.store(hardware)
        fire(UInt32(ALPS_IFEVENT_HARDWARE), interface)
        return 0
    }

    private func fire(_ kind: UInt32, _ interface: Interface, _ address: UnsafePointer<alps_ifaddr>? = nil) {
        var event = alps_ifnet_event(
            size: UInt32(MemoryLayout<alps_ifnet_event>.size), kind: kind, ifnet: UnsafePointer(interface.raw),
            address: address)
        kernel.plugins.broadcast(&event)
    }

    // MARK: Addresses

    /// Adds an IPv4 address, its connected network, its own and its broadcast routes.
    package func addAddress(_ interface: Interface, _ addr: alps_addr, prefixLength: Int) throws {
        guard (0...32).contains(prefixLength) else { throw KernelError(EINVAL, "a prefix has 0 to 32 bits") }
        guard !interface.addresses.contains(where: { NetworkAddress(address: $0.addr) == NetworkAddress(address: addr) })
        else { throw KernelError(EEXIST, "\(interface.name) has that address already") }
        var address = alps_ifaddr()
        address.size = UInt32(MemoryLayout<alps_ifaddr>.size)
        address.family = UInt16(ALPS_AF_INET)
        address.prefix_length = UInt8(prefixLength)
        address.ifindex = interface.raw.pointee.index
        address.addr = addr
        if !interface.isLoopback, prefixLength < 31 { address.broadcast = Self.broadcast(addr, prefixLength) }
        interface.addresses.append(address)
        interface.publishAddresses()
        kernel.routes.addInterfaceRoutes(interface, address)
        withUnsafePointer(to: &address) { fire(UInt32(ALPS_IFEVENT_ADDRESS_ADD), interface, $0) }
    }

    package func deleteAddress(_ interface: Interface, _ addr: alps_addr) -> Int32 {
        guard
            let index = interface.addresses.firstIndex(where: {
                NetworkAddress(address: $0.addr) == NetworkAddress(address: addr)
            })
        else { return EADDRNOTAVAIL }
        var address = interface.addresses.remove(at: index)
        interface.publishAddresses()
        kernel.routes.removeInterfaceRoutes(interface, address)
        withUnsafePointer(to: &address) { fire(UInt32(ALPS_IFEVENT_ADDRESS_DELETE), interface, $0) }
        return 0
    }

    private static func broadcast(_ addr: alps_addr, _ prefixLength: Int) -> alps_addr {
        var result = addr
        withUnsafeMutableBytes(of: &result) { bytes in
            for bit in prefixLength..<32 { bytes[bit / 8] |= 0x80 >> UInt8(bit % 8) }
        }
        return result
    }

    fileprivate func setAddressFlags(_ index: UInt32, _ addr: alps_addr, _ flags: UInt32) -> Int32 {
        guard let interface = interface(index),
            let place = interface.addresses.firstIndex(where: {
                NetworkAddress(address: $0.addr) == NetworkAddress(address: addr)
            })
        else { return ENOENT }
        interface.setFlags(flags, ofAddress: place)
        return 0
    }

    // MARK: Ethertypes

    fileprivate func register(_ instance: PluginInstance, _ registration: alps_ethertype) -> Int32 {
        if let taker = takers[registration.ethertype] {
            guard taker.instance === instance.replaces else { return EEXIST }
            replaced[registration.ethertype] = taker
        }
        takers[registration.ethertype] = EthertypeTaker(instance: instance, registration: registration)
        refreshEthernet()
        return 0
    }

    func removeEthertypes(of instance: PluginInstance) {
        takers = takers.filter { $0.value.instance !== instance }
        replaced = replaced.filter { $0.value.instance !== instance }
        refreshEthernet()
    }

    /// A swap has failed: the old instance takes its ethertypes back.
    func restoreEthertypes(of instance: PluginInstance) {
        for (ethertype, taker) in replaced where taker.instance === instance { takers[ethertype] = taker }
        replaced = replaced.filter { $0.value.instance !== instance }
        refreshEthernet()
    }

    private func refreshEthernet() {
        ethernet.setTakers(
            takers.map { ($0.key, $0.value.registration.input, $0.value.instance) }.sorted { $0.0 < $1.0 })
    }

    // MARK: Turns

    package var hasQueuedPackets: Bool {
        for interface in slots { if interface?.device.hasQueuedPackets == true { return true } }
        return false
    }

    /// Buffers that devices keep ready and that hold no packet.
    package var sparePackets: Int { slots.reduce(0) { $0 + ($1?.device.spareBuffers ?? 0) } }

    package func drainQueues() {
        for interface in slots { interface?.device.drainQueue() }
    }
}

// MARK: "alps.ifnet/1", `self` being the plugin instance

private func makeIfnetOps() -> alps_ifnet_ops {
    alps_ifnet_ops(
        size: UInt32(MemoryLayout<alps_ifnet_ops>.size), reserved: 0,
        get: { context, index in
            Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
                $0.kernel.interfaces.interface(index).map { UnsafePointer($0.raw) }
            }
        },
        last_index: { context in
            Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.kernel.interfaces.lastIndex }
        },
        register_ethertype: { context, registration in
            let instance = Unmanaged<PluginInstance>.fromOpaque(context).takeUnretainedValue()
            return instance.kernel.interfaces.register(instance, registration.pointee)
        },
        output: { context, ifindex, list, family, nextHop in
            Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
                $0.kernel.interfaces.ethernet.output(ifindex, list, family, nextHop)
            }
        },
        output_link: { context, ifindex, packet, ethertype, destination in
            Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
                $0.kernel.interfaces.ethernet.outputLink(ifindex, packet, ethertype, destination)
            }
        },
        address_flags: { context, ifindex, addr, flags in
            Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
                $0.kernel.interfaces.setAddressFlags(ifindex, addr.pointee, flags)
            }
        })
}

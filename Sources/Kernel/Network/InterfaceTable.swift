import Glibc
package import PluginAPI

/// The interfaces of a kernel ("alps.ifnet/1"), and who takes which ethertype.
package final class InterfaceTable {
    private(set) var kernel: Kernel!
    private var opsTable: UnsafeMutablePointer<alps_ifnet_ops>?
    /// By index; index 0 is never used.
    private var slots: [Interface?] = [nil] {
        didSet {
            borrowed = slots.map { $0.map { Borrowed($0) } }
            devices.deallocate()
            let list = slots.compactMap { $0?.device }
            deviceCount = list.count
            devices = .allocate(capacity: list.count)
            for (index, device) in list.enumerated() { (devices + index).initialize(to: Borrowed(device)) }
        }
    }
    /// By index, as `slots`.
    private var borrowed: [Borrowed<Interface>?] = []
    /// The devices of all interfaces, which own them.
    private var devices = UnsafeMutablePointer<Borrowed<Device>>.allocate(capacity: 0)
    private var deviceCount = 0
    private struct EthertypeTaker {
        var instance: PluginInstance
        var registration: alps_ethertype
    }
    private var takers: [UInt16: EthertypeTaker] = [:]
    private var replaced: [UInt16: EthertypeTaker] = [:]
    /// Told of every ALPS_IFEVENT_*, with the address it is about.
    var onChange: ((UInt32, Interface, alps_ifaddr?) -> Void)?
    private(set) var tapSteer: Tunable!
    /// The link layer of all interfaces.
    package let ethernet = Ethernet()

    package init() {}

    deinit {
        opsTable?.deallocate()
        devices.deallocate()
    }

    /// See `Kernel.shutdown`. Interfaces and their devices belong to the kernel.
    func detach() {
        slots = [nil]
        kernel = nil
    }

    func attach(_ kernel: Kernel) {
        self.kernel = kernel
        ethernet.attach(kernel)
        tapSteer = kernel.tunables.add(
            "net.link.tap.steer",
            "while much passes, other CPUs than the loop's do the system's receive work for a tap, if the loop is kept from some",
            kind: .boolean, default: 1, range: 0...1)
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

    /// For the length of a call.
    func borrow(_ index: UInt32) -> Borrowed<Interface>? { Int(index) < borrowed.count ? borrowed[Int(index)] : nil }

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

    private func insert(
        _ name: String, _ device: Device, _ type: UInt32, _ hardware: HardwareAddress?, _ mtu: Int
    ) -> Interface {
        let interface = Interface(
            kernel: kernel, index: UInt32(slots.count), name: name, device: device, type: type, hardware: hardware,
            mtu: mtu)
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
        onChange?(kind, interface, address?.pointee)
        kernel.linkSockets.interfaceChanged(kind, interface)
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
        // Source addresses chosen before are void.
        kernel.routes.changed()
        return 0
    }

    // MARK: Ethertypes

    fileprivate func register(_ instance: PluginInstance, _ registration: alps_ethertype) -> Int32 {
        if let taker = takers[registration.ethertype] {
            guard taker.instance === instance.replaces else { return EEXIST }
            replaced[registration.ethertype] = taker
        } else if takers.count == Ethernet.maximumTakers {
            return ENOSPC
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
        for index in 0..<deviceCount where devices[index]({ $0.hasQueuedPackets }) { return true }
        return false
    }

    /// Buffers that devices keep ready and that hold no packet.
    package var sparePackets: Int { slots.reduce(0) { $0 + ($1?.device.spareBuffers ?? 0) } }

    /// Frames that devices hold back are written: the last thing of the live loop's turn.
    package func flush() {
        for index in 0..<deviceCount { devices[index]({ $0.flush() }) }
    }

    package func drainQueues() {
        var index = 0
        while index < deviceCount {
            devices[index]({ $0.drainQueue() })
            index += 1
        }
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
                $0.ethernet { $0.output(ifindex, list, family, nextHop) }
            }
        },
        output_link: { context, ifindex, packet, ethertype, destination in
            Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
                $0.ethernet { $0.outputLink(ifindex, packet, ethertype, destination) }
            }
        },
        address_flags: { context, ifindex, addr, flags in
            Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
                $0.kernel.interfaces.setAddressFlags(ifindex, addr.pointee, flags)
            }
        })
}

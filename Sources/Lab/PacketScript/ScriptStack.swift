import Kernel
import PluginAPI

/// The stack under test: a kernel in virtual time, whose only interface ends here.
final class ScriptStack {
    let network: VirtualNetwork
    let kernel: Kernel
    let interface: Interface
    private let device: MemoryDevice
    private let neighbor: SingleNeighbor
    /// What the stack has sent and no event has taken yet, oldest first.
    var sent: [LivePacket] = []
    var onSent: ((LivePacket) -> Void)?

    private static let ownHardware = HardwareAddress((2, 0, 0, 0, 0, 1))
    private static let peerHardware = HardwareAddress((2, 0, 0, 0, 0, 2))
    private static let frameHeader: [UInt8] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]

    init(_ options: PacketScriptOptions) throws {
        network = VirtualNetwork(seed: options.seed, plugins: options.pluginDirectory)
        kernel = try network.addKernel(
            "pkt", plugins: ["ipv4", "icmp", "udp", "tcp"].map { options.plugins[$0] ?? $0 })
        neighbor = SingleNeighbor(kernel: kernel, hardware: Self.peerHardware)
        device = MemoryDevice(kernel: kernel)
        interface = try kernel.interfaces.add(
            name: "tun0", device: device, hardware: Self.ownHardware, mtu: options.mtu)
        try kernel.interfaces.addAddress(
            interface, alps_addr(ipv4: options.localAddress), prefixLength: options.prefixLength)
        var gateway = options.gateway
        if gateway == options.localAddress { gateway ^= 1 }
        try kernel.routes.addDefault(gateway: alps_addr(ipv4: gateway), interface: interface)
        device.onTransmit = { [unowned self] in self.take($0) }
        settle()
        sent.removeAll()
    }

    private func take(_ frame: UnsafeRawBufferPointer) {
        guard frame.count > 34, frame[12] == 8, frame[13] == 0,
            let packet = LivePacket(Array(frame.dropFirst(14)), time: now)
        else { return }
        onSent?(packet)
        sent.append(packet)
    }

    var now: UInt64 { network.clock.now }

    /// Everything that is to happen at this instant happens.
    func settle() { network.run(for: 0) }

    func inject(_ packet: [UInt8]) {
        device.receive(Self.frameHeader + packet)
    }

    /// Runs until `time`, or until `condition` holds: then true.
    @discardableResult
    func run(until time: UInt64, _ condition: () -> Bool) -> Bool {
        network.run(limit: time > now ? time - now : 0, until: condition)
    }

    /// Ends the kernel. What is left over in it would be a leak.
    func finish() -> Bool {
        network.shutdown()
        return kernel.mbufs.isIdle && kernel.sockets.count == 0
    }
}

extension alps_addr {
    init(ipv4 address: UInt32) {
        self.init()
        withUnsafeMutableBytes(of: &self) { bytes in
            for (index, byte) in big(address).enumerated() { bytes[index] = byte }
        }
    }

    var ipv4: UInt32 {
        UInt32(bytes.0) << 24 | UInt32(bytes.1) << 16 | UInt32(bytes.2) << 8 | UInt32(bytes.3)
    }
}

extension alps_sockaddr {
    init(_ endpoint: LivePacket.Endpoint) {
        self.init(
            family: UInt16(ALPS_AF_INET), port: endpoint.port, scope: 0, addr: alps_addr(ipv4: endpoint.address))
    }

    var endpoint: LivePacket.Endpoint { LivePacket.Endpoint(address: addr.ipv4, port: port) }
}

import Kernel
import PluginAPI

/// The stack under test: a kernel whose only interface ends here. In virtual time, or live behind a tap interface.
final class ScriptStack {
    let kernel: Kernel
    let interface: Interface
    private let world: World
    private let neighbor: SingleNeighbor
    /// What the stack has sent and no event has taken yet, oldest first.
    var sent: [LivePacket] = []
    var onSent: ((LivePacket) -> Void)?

    private enum World {
        case virtual(VirtualNetwork, MemoryDevice)
        case live(Reactor, LiveWire)
    }

    private static let ownHardware = HardwareAddress((2, 0, 0, 0, 0, 1))
    private static let peerHardware = HardwareAddress((2, 0, 0, 0, 0, 2))
    private static let frameHeader: [UInt8] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]

    private static let protocols = ["ipv4", "icmp", "udp", "tcp"]

    init(_ options: PacketScriptOptions) throws {
        let plugins = Self.protocols.map { options.plugins[$0] ?? $0 }
        if let name = options.liveInterface {
            kernel = Kernel(KernelConfiguration(name: "pkt"))
            let reactor = try Reactor(kernel: kernel)
            kernel.reactor = reactor
            try kernel.interfaces.addLoopback()
            let search = options.pluginDirectory.map { PluginSearchPath(directory: $0) } ?? PluginSearchPath()
            for plugin in plugins { try kernel.plugins.load(path: plugin.contains("/") ? plugin : search.find(plugin)) }
            let tap = try Tap(name: name, kernel: kernel)
            interface = try kernel.interfaces.add(name: name, device: tap, hardware: Self.ownHardware, mtu: options.mtu)
            // Packets are to be seen as they are on a wire: segmented, and with their checksums.
            interface.raw.pointee.capabilities = 0
            try KernelSide.bringUp(interface: name, mtu: options.mtu)
            world = .live(reactor, try LiveWire(interface: name))
        } else {
            let network = VirtualNetwork(seed: options.seed, plugins: options.pluginDirectory)
            kernel = try network.addKernel("pkt", plugins: plugins)
            let device = MemoryDevice(kernel: kernel)
            interface = try kernel.interfaces.add(
                name: "tun0", device: device, hardware: Self.ownHardware, mtu: options.mtu)
            world = .virtual(network, device)
        }
        neighbor = SingleNeighbor(kernel: kernel, hardware: Self.peerHardware)
        try kernel.interfaces.addAddress(
            interface, alps_addr(ipv4: options.localAddress), prefixLength: options.prefixLength)
        var gateway = options.gateway
        if gateway == options.localAddress { gateway ^= 1 }
        try kernel.routes.addDefault(gateway: alps_addr(ipv4: gateway), interface: interface)
        switch world {
        case .virtual(_, let device): device.onTransmit = { [unowned self] in self.take($0) }
        case .live(let reactor, let wire): try wire.attach(reactor) { [unowned self] in self.take($0) }
        }
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

    var now: UInt64 { kernel.clock.now }

    /// Everything that is to happen at this instant happens.
    func settle() { run(until: now) { false } }

    func inject(_ packet: [UInt8]) {
        switch world {
        case .virtual(_, let device): device.receive(Self.frameHeader + packet)
        case .live(_, let wire): wire.send(Self.frameHeader + packet)
        }
    }

    /// How long a live stack may take for what is due at once, ns.
    private static let liveInstant: UInt64 = 300_000

    /// Runs until `time`, or until `condition` holds: then true.
    @discardableResult
    func run(until time: UInt64, _ condition: () -> Bool) -> Bool {
        let left = time > now ? time - now : 0
        switch world {
        case .virtual(let network, _): return network.run(limit: left, until: condition)
        case .live(let reactor, _): return reactor.run(limit: max(left, Self.liveInstant), until: condition)
        }
    }

    /// Ends the kernel. False: something is left over in it.
    func finish() -> Bool {
        switch world {
        case .virtual(let network, _):
            network.shutdown()
            return kernel.mbufs.isIdle && kernel.sockets.count == 0
        case .live(_, let wire):
            wire.close()
            kernel.shutdown()
            return kernel.sockets.count == 0
        }
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

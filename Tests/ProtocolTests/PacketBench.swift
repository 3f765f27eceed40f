import Kernel
import Lab
import PluginAPI
import Testing

/// A stack under test at 10.0.0.1 on a link whose other end, at 10.0.0.2, is played by the test: it sends packets and
/// frames, and sees what the stack sends.
final class PacketBench {
    /// An IPv4 packet that the stack has sent.
    struct Sent {
        var time: UInt64
        var bytes: [UInt8]

        var headerLength: Int { Int(bytes[0] & 15) * 4 }
        var tos: UInt8 { bytes[1] }
        var totalLength: Int { Int(bytes[2]) << 8 | Int(bytes[3]) }
        var identification: UInt16 { UInt16(bytes[4]) << 8 | UInt16(bytes[5]) }
        var fragmentField: UInt16 { UInt16(bytes[6]) << 8 | UInt16(bytes[7]) }
        var fragmentOffset: Int { Int(fragmentField & 0x1fff) * 8 }
        var hasMore: Bool { fragmentField & 0x2000 != 0 }
        var dontFragment: Bool { fragmentField & 0x4000 != 0 }
        var ttl: UInt8 { bytes[8] }
        var `protocol`: UInt8 { bytes[9] }
        var source: [UInt8] { Array(bytes[12..<16]) }
        var destination: [UInt8] { Array(bytes[16..<20]) }
        var options: [UInt8] { Array(bytes[20..<headerLength]) }
        var payload: [UInt8] { Array(bytes[headerLength...]) }
    }

    /// An ARP packet that the stack has sent.
    struct ARP: Equatable {
        var time: UInt64
        var to: [UInt8]
        var operation: Int
        var senderHardware: [UInt8]
        var sender: [UInt8]
        var targetHardware: [UInt8]
        var target: [UInt8]
    }

    static let stackHardware: [UInt8] = [2, 0, 0, 1, 0, 1]
    static let peerHardware: [UInt8] = [2, 0, 0, 1, 0, 2]
    static let everybody = [UInt8](repeating: 255, count: 6)
    static let stackAddress: [UInt8] = [10, 0, 0, 1]
    static let peerAddress: [UInt8] = [10, 0, 0, 2]

    let network: VirtualNetwork
    let stack: Kernel
    let wire: Kernel
    private(set) var sent: [Sent] = []
    private(set) var arp: [ARP] = []
    /// Link addresses that IPv4 packets have been sent to.
    var frames: [[UInt8]] = []
    var now: UInt64 { network.clock.now }

    /// `answersARP`: the peer resolves its address by itself, and the stack's first probes and announcements are over.
    init(
        mtu: Int = 1500, seed: UInt64 = 1, answersARP: Bool = true,
        plugins: [String] = ["arp", "ipv4", "icmp", "udp", "tcp"],
        _ tunables: [String: String] = [:]
    ) throws {
        network = VirtualNetwork(seed: seed)
        stack = try network.addKernel("stack", plugins: plugins)
        wire = try network.addKernel("wire", plugins: answersARP ? ["arp"] : [])
        for (name, value) in tunables { try stack.tunables.set("net." + name, value) }
        var spec = LinkSpec()
        spec.mtu = mtu
        let ends = try network.link(stack, "10.0.0.1/24", wire, "10.0.0.2/24", spec)
        ends.0.tap = { [unowned self] in self.takeFrame(contents(of: $0)) }
        wire.interfaces.ethernet.listen(0x0800, context: Unmanaged.passUnretained(self).toOpaque()) { context, list in
            Unmanaged<PacketBench>.fromOpaque(context).takeUnretainedValue().take(list)
        }
        if answersARP {
            run(ms: 10_000)
            clear()
        }
    }

    /// Ends both kernels; nothing may be left.
    func finish(sourceLocation: SourceLocation = #_sourceLocation) {
        network.shutdown()
        #expect(stack.mbufs.isIdle, "mbufs left", sourceLocation: sourceLocation)
        #expect(wire.mbufs.isIdle, sourceLocation: sourceLocation)
    }

    func settle() { network.run(for: 0) }
    func run(ms: UInt64) { network.run(for: ms * 1_000_000) }

    var interface: Interface { stack.interfaces.find("link1")! }
    func counter(_ plugin: String, _ name: String) -> UInt64 { stack.counters.value(plugin, name) ?? .max }

    /// Routes to everywhere lead through the peer.
    func addDefaultRoute() throws {
        try stack.routes.addDefault(gateway: NetworkAddress("10.0.0.2")!.address, interface: interface)
    }

    // MARK: What comes out

    private func take(_ list: Mbuf) {
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            let bytes = contents(of: packet)
            wire.mbufs.freePacket(packet)
            #expect(checksum(Array(bytes[..<(Int(bytes[0] & 15) * 4)])) == 0, "header checksum")
            sent.append(Sent(time: now, bytes: bytes))
        }
    }

    private func takeFrame(_ frame: [UInt8]) {
        if frame[12] == 8, frame[13] == 0 { frames.append(Array(frame[0..<6])) }
        guard frame.count >= 42, frame[12] == 8, frame[13] == 6 else { return }
        arp.append(
            ARP(
                time: now, to: Array(frame[0..<6]), operation: Int(frame[21]), senderHardware: Array(frame[22..<28]),
                sender: Array(frame[28..<32]), targetHardware: Array(frame[32..<38]), target: Array(frame[38..<42])))
    }

    func clear() {
        sent.removeAll()
        arp.removeAll()
        frames.removeAll()
    }

    /// All packets sent and not yet looked at.
    func takeAll() -> [Sent] {
        settle()
        defer { sent.removeAll() }
        return sent
    }

    func takeARP() -> [ARP] {
        settle()
        defer { arp.removeAll() }
        return arp
    }

    /// The next packet must be there now, and be the only one.
    func expectOne(sourceLocation: SourceLocation = #_sourceLocation) throws -> Sent {
        let all = takeAll()
        #expect(all.count == 1, sourceLocation: sourceLocation)
        return try #require(all.first, sourceLocation: sourceLocation)
    }

    func expectNothing(sourceLocation: SourceLocation = #_sourceLocation) {
        #expect(takeAll().map(\.bytes) == [], sourceLocation: sourceLocation)
    }

    // MARK: What goes in

    static func packet(
        _ protocolNumber: UInt8, _ payload: [UInt8], from source: [UInt8] = peerAddress,
        to destination: [UInt8] = stackAddress,
        identification: UInt16 = 7, fragment: UInt16 = 0, ttl: UInt8 = 64, tos: UInt8 = 0, options: [UInt8] = []
    ) -> [UInt8] {
        var header: [UInt8] = [0x40 | UInt8(5 + options.count / 4), tos]
        header += big(UInt16(20 + options.count + payload.count)) + big(identification) + big(fragment)
        header += [ttl, protocolNumber, 0, 0] + source + destination + options
        let sum = checksum(header)
        header[10] = UInt8(sum >> 8)
        header[11] = UInt8(sum & 255)
        return header + payload
    }

    /// Fixes the header checksum of a changed packet.
    static func repaired(_ packet: [UInt8]) -> [UInt8] {
        var packet = packet
        packet[10] = 0
        packet[11] = 0
        let sum = checksum(Array(packet[..<(Int(packet[0] & 15) * 4)]))
        packet[10] = UInt8(sum >> 8)
        packet[11] = UInt8(sum & 255)
        return packet
    }

    static func icmp(_ type: UInt8, _ code: UInt8 = 0, rest: [UInt8] = [0, 0, 0, 0], _ payload: [UInt8] = []) -> [UInt8]
    {
        var message = [type, code, 0, 0] + rest + payload
        let sum = checksum(message)
        message[2] = UInt8(sum >> 8)
        message[3] = UInt8(sum & 255)
        return message
    }

    static func udp(_ source: UInt16, _ destination: UInt16, _ payload: [UInt8]) -> [UInt8] {
        big(source) + big(destination) + big(UInt16(8 + payload.count)) + [0, 0] + payload
    }

    func send(_ packet: [UInt8], to hardware: [UInt8] = stackHardware, ethertype: UInt16 = 0x0800) {
        let mbuf = wire.mbufs.cluster(headroom: 128, capacity: max(packet.count, 1))!
        mbuf.pointee.data.update(from: packet, count: packet.count)
        mbuf.pointee.length = UInt32(packet.count)
        mbuf.pointee.pkt.length = UInt32(packet.count)
        let index = wire.interfaces.find("link1")!.raw.pointee.index
        _ = hardware.withUnsafeBufferPointer {
            wire.interfaces.ethernet.outputLink(index, mbuf, ethertype, $0.baseAddress!)
        }
        settle()
    }

    func sendARP(
        _ operation: UInt16, senderHardware: [UInt8] = peerHardware, sender: [UInt8] = peerAddress,
        targetHardware: [UInt8] = [0, 0, 0, 0, 0, 0], target: [UInt8] = stackAddress, to: [UInt8] = everybody
    ) {
        send(
            [0, 1, 8, 0, 6, 4] + big(operation) + senderHardware + sender + targetHardware + target, to: to,
            ethertype: 0x0806)
    }

    // MARK: Sockets

    func rawSocket(_ protocolNumber: Int32) throws -> Socket {
        try stack.sockets.create(domain: 2, type: 3, protocol: protocolNumber)
    }

    func udpSocket(port: UInt16 = 0) throws -> Socket {
        let socket = try stack.sockets.create(domain: 2, type: 2, protocol: 17)
        if port != 0 { #expect(socket.bind(endpoint("0.0.0.0", port)) == 0) }
        return socket
    }
}

extension Socket {
    func set(_ level: Int32, _ name: Int32, _ value: Int32) -> Int32 {
        setOption(level: level, name: name, withUnsafeBytes(of: value) { Array($0) })
    }

    func get(_ level: Int32, _ name: Int32) -> Int32? {
        let (error, value) = getOption(level: level, name: name, capacity: 4)
        guard error == 0, value.count == 4 else { return nil }
        return value.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) }
    }
}

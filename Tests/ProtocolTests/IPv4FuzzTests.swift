import Glibc
import Kernel
import Lab
import PluginAPI
import Testing

/// Packets whose checksums are right and whose contents are not: options, fragments, control messages, group messages,
/// each damaged behind the first look. FrameFuzzTests does the same below.
@Suite struct IPv4FuzzTests {
    private struct Generator: RandomNumberGenerator {
        var state: UInt64

        mutating func next() -> UInt64 {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return state
        }

        mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
        mutating func bytes(_ count: Int) -> [UInt8] { (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) } }
    }

    /// Options that are nearly right.
    private func options(_ generator: inout Generator) -> [UInt8] {
        var options: [UInt8] = []
        while options.count < 36, generator.below(4) > 0 {
            let type: UInt8 = [7, 68, 131, 137, 148, 1, 0, 130, 255][generator.below(9)]
            let length = generator.below(12)
            options += [type, UInt8(length), UInt8(generator.below(16))] + generator.bytes(max(length - 3, 0))
        }
        options = Array(options.prefix(40))
        while options.count % 4 != 0 { options.append(0) }
        return options
    }

    private func message(_ generator: inout Generator, _ protocolNumber: UInt8) -> [UInt8] {
        switch protocolNumber {
        case 1:
            let type: UInt8 = [0, 3, 3, 3, 4, 5, 5, 8, 8, 11, 12, 13][generator.below(12)]
            // Something of ours that is quoted, cut off anywhere.
            var quoted = PacketBench.packet(
                [1, 6, 17, 253][generator.below(4)], generator.bytes(generator.below(40)),
                from: PacketBench.stackAddress,
                to: PacketBench.peerAddress, options: options(&generator))
            if generator.below(2) == 0 {
                quoted[generator.below(quoted.count)] = UInt8(truncatingIfNeeded: generator.next())
            }
            return PacketBench.icmp(
                type, UInt8(generator.below(16)), rest: [10, 0, 0, UInt8(generator.below(8))],
                Array(quoted.prefix(generator.below(quoted.count + 1))))
        case 2:
            let type: UInt8 = [0x11, 0x12, 0x16, 0x17, 0x22][generator.below(5)]
            return PacketBench.icmp(
                type, UInt8(truncatingIfNeeded: generator.next()), rest: [239, 1, 2, UInt8(generator.below(4))],
                generator.bytes(generator.below(12)))
        default: return generator.bytes(generator.below(200))
        }
    }

    private func packet(_ generator: inout Generator) -> [UInt8] {
        let protocolNumber: UInt8 = [1, 1, 2, 6, 17, 253][generator.below(6)]
        let destination: [UInt8] =
            generator.below(4) == 0
            ? [[10, 0, 0, 255], [224, 0, 0, 1], [239, 1, 2, 3]][generator.below(3)] : PacketBench.stackAddress
        var payload = message(&generator, protocolNumber)
        var fragment: UInt16 = 0
        if generator.below(3) == 0 {
            payload = Array(payload.prefix(payload.count & ~7))
            fragment = UInt16(generator.below(12)) | (generator.below(2) == 0 ? 0x2000 : 0)
        }
        var packet = PacketBench.packet(
            protocolNumber, payload, from: [10, 0, 0, UInt8(2 + generator.below(6))], to: destination,
            identification: UInt16(generator.below(16)), fragment: fragment, tos: UInt8(generator.below(4)),
            options: generator.below(2) == 0 ? options(&generator) : [])
        if generator.below(4) == 0 {
            packet[generator.below(min(packet.count, 60))] = UInt8(truncatingIfNeeded: generator.next())
        }
        if generator.below(8) > 0, Int(packet[0] & 15) * 4 <= packet.count, packet[0] & 15 >= 5 {
            packet = PacketBench.repaired(packet)
        }
        return generator.below(8) == 0 ? Array(packet.prefix(generator.below(packet.count + 1))) : packet
    }

    @Test func nearlyRightPacketsNeitherCrashNorLeak() throws {
        let count = getenv("ALPS_FUZZ_FRAMES").flatMap { Int(String(cString: $0)) } ?? 100_000
        let network = VirtualNetwork(seed: 11)
        let stack = try network.addKernel("stack")
        let wire = try network.addKernel("wire", plugins: [])
        let (end, _) = try network.link(stack, "10.0.0.1/24", wire, "10.0.0.2/24")
        stack.log.sink = { _ in }
        for name in ["net.inet.icmp.bmcastecho", "net.inet.ip.accept_sourceroute"] { try stack.tunables.set(name, "1") }
        try stack.tunables.set("net.inet.ip.maxfragbytes", "200000")
        try stack.tunables.set("net.inet.icmp.echo_sockets", "2")
        var sockets: [Socket] = []
        for protocolNumber in [1, 2, 253] as [Int32] {
            sockets.append(try stack.sockets.create(domain: 2, type: 3, protocol: protocolNumber))
        }
        sockets.append(try stack.sockets.create(domain: 2, type: 2, protocol: 1))
        let member = try stack.sockets.create(domain: 2, type: 2, protocol: 17)
        #expect(member.setOption(level: 0, name: 35, [239, 1, 2, 3, 0, 0, 0, 0]) == 0)
        sockets.append(member)
        var generator = Generator(state: 0x1234_5678_9abc_def1)
        for number in 0..<count {
            let frame = PacketBench.stackHardware + PacketBench.peerHardware + [8, 0] + packet(&generator)
            frame.withUnsafeBytes { end.inject($0) }
            guard number % 64 == 63 else { continue }
            network.run(for: number % 4096 < 64 ? 30_000_000_000 : 1_000_000)
            for socket in sockets { while let (_, packet) = socket.nextDatagram() { stack.mbufs.freePacket(packet) } }
        }
        network.run(for: 600_000_000_000)
        #expect(stack.counters.value("ipv4", "datagrams_held") == 0)
        #expect(stack.counters.value("ipv4", "reassembled") ?? 0 > 0)
        #expect(stack.counters.value("icmp", "errors_received") ?? 0 > 0)
        for socket in sockets { socket.close() }
        network.shutdown()
        #expect(stack.mbufs.isIdle)
    }
}

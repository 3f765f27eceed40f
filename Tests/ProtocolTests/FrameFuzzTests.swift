import Glibc
import Kernel
import Lab
import PluginAPI
import Testing

/// Random and mutated Ethernet frames against a whole stack: it must neither crash, hang nor leak.
@Suite struct FrameFuzzTests {
    /// A small generator with a fixed seed, so that a failure can be run again.
    private struct Generator {
        var state: UInt64

        mutating func next() -> UInt64 {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return state
        }

        mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
    }

    private static func put16(_ frame: inout [UInt8], _ at: Int, _ value: Int) {
        frame[at] = UInt8(truncatingIfNeeded: value >> 8)
        frame[at + 1] = UInt8(truncatingIfNeeded: value)
    }

    private static func sum(_ bytes: ArraySlice<UInt8>, _ initial: UInt32 = 0) -> Int {
        var total = initial
        var index = bytes.startIndex
        while index + 1 < bytes.endIndex {
            total += UInt32(bytes[index]) << 8 | UInt32(bytes[index + 1])
            index += 2
        }
        if index < bytes.endIndex { total += UInt32(bytes[index]) << 8 }
        while total >> 16 != 0 { total = (total & 0xffff) + (total >> 16) }
        return Int(~total & 0xffff)
    }

    /// Ethernet and IPv4 headers of a frame to the stack, checksums filled in behind.
    private static func packet(_ protocolNumber: UInt8, _ body: [UInt8], fragment: Int = 0, source: UInt8 = 2) -> [UInt8] {
        var frame: [UInt8] = [2, 0, 0, 1, 0, 1, 2, 0, 0, 1, 0, 2, 8, 0]
        var header: [UInt8] = [
            0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocolNumber, 0, 0, 10, 0, 0, source, 10, 0, 0, 1,
        ]
        put16(&header, 2, 20 + body.count)
        put16(&header, 6, fragment)
        put16(&header, 10, sum(header[...]))
        var body = body
        // Words of the addresses, protocol and length.
        let words: [UInt32] = [0x0a00, UInt32(source), 0x0a00, 1, UInt32(protocolNumber), UInt32(body.count)]
        let pseudo = words.reduce(0, +)
        if fragment == 0 {
            switch protocolNumber {
            case 1 where body.count >= 8:
                put16(&body, 2, 0)
                put16(&body, 2, sum(body[...]))
            case 6 where body.count >= 20:
                put16(&body, 16, 0)
                put16(&body, 16, sum(body[...], pseudo))
            case 17 where body.count >= 8:
                put16(&body, 6, 0)
                put16(&body, 6, sum(body[...], pseudo))
            default: break
            }
        }
        frame += header + body
        return frame
    }

    /// Frames that make sense, to be mutated or sent as they are.
    private static func template(_ generator: inout Generator) -> [UInt8] {
        let body = (0..<generator.below(64)).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
        switch generator.below(8) {
        case 0:
            var frame: [UInt8] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 1, 0, 2, 8, 6]
            frame += [0, 1, 8, 0, 6, 4, 0, UInt8(1 + generator.below(2)), 2, 0, 0, 1, 0, 2, 10, 0, 0]
            // Not as the stack itself: it would give its address up (RFC 5227), and that would be the end of the test.
            frame += [UInt8(2 + generator.below(200)), 0, 0, 0, 0, 0, 0, 10, 0, 0, UInt8(1 + generator.below(3))]
            return frame
        case 1: return packet(1, [UInt8(generator.below(20)), UInt8(generator.below(6)), 0, 0, 0, 1, 0, 1] + body)
        case 2:
            // An error about a packet of ours.
            let transport: UInt8 = generator.below(2) == 0 ? 6 : 17
            let ports: [UInt8] = [0, 80, 0x9c, 0x40, 0, 0, 0, 0]
            let quoted = packet(transport, ports + body)
            let head: [UInt8] = [3, UInt8(generator.below(16)), 0, 0, 0, 0, 0, UInt8(generator.below(255))]
            return packet(1, head + quoted[14...])
        case 3:
            let port = [7, 9, 80][generator.below(3)]
            let head: [UInt8] = [0x9c, 0x40, 0, UInt8(port), 0, UInt8(8 + body.count), 0, 0]
            return packet(17, head + body)
        case 4:
            return packet(UInt8(generator.below(256)), body, fragment: generator.below(2) << 13 | generator.below(200))
        case 5:
            let type: UInt8 = [0x11, 0x16, 0x17][generator.below(3)]
            let head: [UInt8] = [type, 1, 0, 0, 224, 0, 0, 1]
            return packet(2, head + body)
        default:
            // TCP to a listener: few ports and few sequence numbers, so that states are reached.
            let flags = UInt8([2, 16, 24, 17, 4, 18, 0, 41][generator.below(8)])
            var options: [UInt8] = []
            if generator.below(2) == 0 {
                options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, UInt8(generator.below(9)), 0, 0, 0, 0, 1, 3, 3, 7]
            }
            var segment: [UInt8] = [0x9c, UInt8(0x40 + generator.below(4)), 0, 80]
            segment += [0, 0, 0, UInt8(generator.below(16)), 0, 0, 0, UInt8(generator.below(16))]
            segment += [UInt8((20 + options.count) / 4 << 4), flags, UInt8(generator.below(256)), 0, 0, 0, 0, 0]
            return packet(6, segment + options + body, source: UInt8(2 + generator.below(3)))
        }
    }

    @Test func tenMillionFramesNeitherCrashNorLeak() throws {
        let count = getenv("ALPS_FUZZ_FRAMES").flatMap { Int(String(cString: $0)) } ?? 10_000_000
        let network = VirtualNetwork(seed: 7)
        let kernel = try network.addKernel("victim")
        let other = try network.addKernel("other", plugins: [])
        let (end, _) = try network.link(kernel, "10.0.0.1/24", other, "10.0.0.2/24")
        kernel.log.sink = { _ in }
        try kernel.tunables.set("net.link.ether.inet.always_defend", "1")
        // Until the address has been probed and announced.
        network.run(for: 20_000_000_000)
        let listener = try kernel.sockets.create(domain: 2, type: 1, protocol: 6)
        #expect(listener.bind(alps_sockaddr(family: 2, port: 80, scope: 0, addr: alps_addr())) == 0)
        #expect(listener.listen(16) == 0)
        let datagram = try kernel.sockets.create(domain: 2, type: 2, protocol: 17)
        #expect(datagram.bind(alps_sockaddr(family: 2, port: 7, scope: 0, addr: alps_addr())) == 0)
        var generator = Generator(state: 0x9e37_79b9_7f4a_7c15)
        var templates = (0..<4096).map { _ in Self.template(&generator) }
        var batch = 0
        var datagrams = 0
        var connections = 0
        for number in 0..<count {
            let chosen = generator.below(templates.count)
            if generator.below(4) == 0 { templates[chosen] = Self.template(&generator) }
            templates[chosen].withUnsafeMutableBytes { frame in
                let kind = generator.below(4)
                // One in four is sent as it is; others get a few bytes changed, or are cut off.
                var saved: (Int, UInt8)?
                if kind > 0, frame.count > 14 {
                    let at = kind == 1 ? 14 + generator.below(frame.count - 14) : generator.below(frame.count)
                    saved = (at, frame[at])
                    frame[at] = UInt8(truncatingIfNeeded: generator.next())
                }
                let length = kind == 3 ? generator.below(frame.count + 1) : frame.count
                end.inject(UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(frame)[0..<length]))
                if let saved { frame[saved.0] = saved.1 }
            }
            batch += 1
            guard batch == 64 else { continue }
            batch = 0
            // Time goes on, so that timers fire too.
            network.run(for: number % 4096 < 64 ? 2_000_000_000 : 100_000)
            while let (_, packet) = datagram.nextDatagram() {
                datagrams += 1
                kernel.mbufs.freePacket(packet)
            }
            while let accepted = listener.acceptNext() {
                connections += 1
                generator.below(2) == 0 ? accepted.close() : accepted.abort()
            }
        }
        listener.close()
        datagram.close()
        // The frames got somewhere: what was not dropped as nonsense was taken for what it is.
        let interface = try #require(kernel.interfaces.find("link1"))
        #expect(Int(interface.packetsIn) > count * 9 / 10)
        #expect(datagrams > count / 1000)
        for (instance, counter) in [("tcp", "received"), ("udp", "received"), ("icmp", "received"), ("ipv4", "received"), ("arp", "received")] {
            let value = kernel.counters.all().filter { $0.instance == instance }.map(\.value).max() ?? 0
            #expect(Int(value) > count / 100, "\(instance) \(counter)")
        }
        // Fragments, TIME-WAIT and handshakes run out.
        network.run(for: 600_000_000_000)
        #expect(kernel.sockets.count == 0)
        #expect(kernel.connections.count == 0)
        network.shutdown()
        #expect(kernel.mbufs.isIdle)
    }
}

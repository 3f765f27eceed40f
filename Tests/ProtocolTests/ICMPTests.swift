import Kernel
import Lab
import PluginAPI
import Testing

/// Control messages (RFC 792, RFC 1122 section 3.2.2).
@Suite struct ICMPTests {
    private func echo(_ bench: PacketBench, _ payload: [UInt8] = [1, 2, 3], to: [UInt8] = PacketBench.stackAddress)
        -> [UInt8]
    {
        PacketBench.packet(1, PacketBench.icmp(8, rest: [0x12, 0x34, 0, 1], payload), to: to)
    }

    // MARK: Questions

    @Test(arguments: [0, 1, 2, 55, 56, 1472]) func anEchoComesBackAsItWas(length: Int) throws {
        let bench = try PacketBench()
        bench.send(
            PacketBench.packet(1, PacketBench.icmp(8, rest: [0x12, 0x34, 0, 1], pattern(0..<length)), tos: 0xb9))
        let reply = try bench.expectOne()
        #expect(reply.payload == PacketBench.icmp(0, rest: [0x12, 0x34, 0, 1], pattern(0..<length)))
        #expect(reply.source == PacketBench.stackAddress)
        #expect(reply.destination == PacketBench.peerAddress)
        #expect(reply.ttl == 64)
        #expect(reply.tos == 0xb8, "not the congestion field")
        bench.finish()
    }

    @Test func aLargeEchoComesBackInFragments() throws {
        let bench = try PacketBench()
        let message = PacketBench.icmp(8, rest: [0x12, 0x34, 0, 1], pattern(0..<30_000))
        for offset in stride(from: 0, to: message.count, by: 1480) {
            let end = min(offset + 1480, message.count)
            bench.send(
                PacketBench.packet(
                    1, Array(message[offset..<end]), fragment: UInt16(offset / 8) | (end < message.count ? 0x2000 : 0)))
        }
        let all = bench.takeAll()
        #expect(all.count == 21)
        #expect(all.flatMap(\.payload) == PacketBench.icmp(0, rest: [0x12, 0x34, 0, 1], pattern(0..<30_000)))
        bench.finish()
    }

    @Test func recordedRoutesGoBackWithTheAnswer() throws {
        let bench = try PacketBench()
        let options: [UInt8] = [1, 7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 94, 4, 1, 2]
        bench.send(PacketBench.packet(1, PacketBench.icmp(8, rest: [1, 2, 3, 4]), options: options))
        let reply = try bench.expectOne()
        #expect(reply.options == [7, 11, 8, 10, 0, 0, 1, 0, 0, 0, 0, 0])
        #expect(reply.payload == PacketBench.icmp(0, rest: [1, 2, 3, 4]))
        bench.finish()
    }

    @Test func damagedMessagesAreDropped() throws {
        let bench = try PacketBench()
        var damaged = PacketBench.icmp(8, rest: [1, 2, 3, 4], [5])
        damaged[8] ^= 1
        bench.send(PacketBench.packet(1, damaged))
        for length in 0..<8 { bench.send(PacketBench.packet(1, Array(PacketBench.icmp(8).prefix(length)))) }
        bench.expectNothing()
        #expect(bench.counter("icmp", "bad_checksum") == 1)
        #expect(bench.counter("icmp", "too_short") == 8)
        bench.finish()
    }

    @Test func echoesToEverybodyAreAnsweredOnlyIfAskedFor() throws {
        let bench = try PacketBench()
        for destination in [[10, 0, 0, 255], [255, 255, 255, 255], [224, 0, 0, 1]] as [[UInt8]] {
            bench.send(echo(bench, to: destination), to: PacketBench.everybody)
        }
        bench.expectNothing()
        try bench.stack.tunables.set("net.inet.icmp.bmcastecho", "1")
        bench.send(echo(bench, to: [224, 0, 0, 1]), to: PacketBench.everybody)
        #expect(try bench.expectOne().source == PacketBench.stackAddress)
        bench.finish()
    }

    @Test func theTimeIsTold() throws {
        let bench = try PacketBench()
        let question = PacketBench.icmp(13, rest: [0, 9, 0, 1], [0, 0, 0, 77] + [UInt8](repeating: 0, count: 8))
        bench.send(PacketBench.packet(1, question))
        let answer = try bench.expectOne().payload
        #expect(answer[0] == 14)
        #expect(checksum(answer) == 0)
        #expect(Array(answer[4..<12]) == [0, 9, 0, 1, 0, 0, 0, 77])
        let received = answer[12..<16].reduce(0) { $0 << 8 | UInt64($1) }
        #expect(received == bench.stack.clock.wall / 1_000_000 % 86_400_000)
        #expect(answer[12..<16].elementsEqual(answer[16..<20]))
        try bench.stack.tunables.set("net.inet.icmp.tstamprepl", "0")
        bench.send(PacketBench.packet(1, question))
        bench.expectNothing()
        bench.finish()
    }

    @Test func obsoleteAndUnknownMessagesAreIgnored() throws {
        let bench = try PacketBench()
        for type in [0, 1, 2, 4, 6, 7, 9, 10, 14, 15, 16, 17, 18, 30, 37, 40, 255] as [UInt8] {
            bench.send(
                PacketBench.packet(1, PacketBench.icmp(type, rest: [1, 2, 3, 4], [UInt8](repeating: 0, count: 40))))
        }
        bench.expectNothing()
        bench.finish()
    }

    // MARK: Errors that we send

    @Test func aClosedPortIsReported() throws {
        let bench = try PacketBench()
        let packet = PacketBench.packet(17, PacketBench.udp(5, 6, pattern(0..<700)), tos: 4)
        bench.send(packet)
        let error = try bench.expectOne()
        #expect(error.bytes.count == 576)
        #expect(Array(error.payload.prefix(2)) == [3, 3])
        #expect(checksum(error.payload) == 0)
        #expect(Array(error.payload.dropFirst(8)) == Array(packet.prefix(548)))
        #expect(error.source == PacketBench.stackAddress)
        bench.finish()
    }

    @Test func errorsAreLimitedInRate() throws {
        let bench = try PacketBench(["inet.icmp.icmplim": "50"])
        let packet = PacketBench.packet(17, PacketBench.udp(5, 6, [1]))
        for _ in 0..<200 { bench.send(packet) }
        #expect(bench.takeAll().count == 50)
        #expect(bench.counter("icmp", "limited") == 150)
        bench.run(ms: 100)
        for _ in 0..<20 { bench.send(packet) }
        #expect(bench.takeAll().count == 5)
        try bench.stack.tunables.set("net.inet.icmp.icmplim", "0")
        for _ in 0..<300 { bench.send(packet) }
        #expect(bench.takeAll().count == 300)
        bench.finish()
    }

    @Test func answersAreLimitedInRate() throws {
        let bench = try PacketBench(["inet.icmp.answerlim": "10"])
        for _ in 0..<30 { bench.send(echo(bench)) }
        #expect(bench.takeAll().count == 10)
        bench.finish()
    }

    @Test func someThingsAreNeverComplainedAbout() throws {
        let bench = try PacketBench()
        try bench.addDefaultRoute()
        let udp = PacketBench.udp(5, 6, pattern(0..<100))
        // Everybody's datagrams.
        bench.send(PacketBench.packet(17, udp, to: [10, 0, 0, 255]), to: PacketBench.everybody)
        bench.send(PacketBench.packet(17, udp, to: [255, 255, 255, 255]), to: PacketBench.everybody)
        bench.send(PacketBench.packet(17, udp, to: [224, 0, 0, 1]), to: [1, 0, 0x5e, 0, 0, 1])
        bench.send(PacketBench.packet(253, udp, to: [224, 0, 0, 1]), to: [1, 0, 0x5e, 0, 0, 1])
        bench.send(PacketBench.packet(253, udp, to: [10, 0, 0, 255]), to: PacketBench.everybody)
        // Whom no single host has sent.
        bench.send(
            PacketBench.packet(253, udp, from: [0, 0, 0, 0], to: [255, 255, 255, 255]), to: PacketBench.everybody)
        // Errors about errors: a bad option in front of one.
        for type in [3, 4, 5, 11, 12] as [UInt8] {
            bench.send(PacketBench.packet(1, PacketBench.icmp(type, rest: [0, 0, 0, 0], udp), options: [7, 0, 0, 0]))
        }
        // Later fragments.
        bench.send(PacketBench.packet(17, udp, fragment: 10, options: [7, 0, 0, 0]))
        bench.expectNothing()
        #expect(bench.counter("icmp", "errors_sent") == 0)
        // But about a question with a bad option.
        bench.send(PacketBench.packet(1, PacketBench.icmp(8), options: [7, 0, 0, 0]))
        #expect(bench.takeAll().count == 1)
        bench.finish()
    }

    // MARK: Errors about what we sent

    /// A connected socket's datagram, and what it says about `error`.
    private func outcome(
        _ type: UInt8, _ code: UInt8, hearsAll: Bool = false, change: (inout [UInt8]) -> Void = { _ in }
    ) throws -> Int32 {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        if hearsAll { #expect(socket.set(0, 11, 1) == 0) }
        #expect(socket.connect(endpoint("10.0.0.2", 9)) == 0)
        #expect(socket.send([1, 2, 3]) == 0)
        var quoted = try bench.expectOne().bytes
        change(&quoted)
        bench.send(PacketBench.packet(1, PacketBench.icmp(type, code, quoted)))
        let error = socket.takeError()
        bench.finish()
        return error
    }

    @Test(arguments: [(2, 92), (3, 111), (6, 101), (7, 112), (9, 101), (10, 113), (13, 113)] as [(UInt8, Int32)])
    func finalErrorsReachTheSender(code: UInt8, expected: Int32) throws {
        #expect(try outcome(3, code) == expected)
    }

    @Test(
        arguments: [(3, 0, 101), (3, 1, 113), (3, 5, 95), (3, 11, 101), (11, 0, 113), (12, 0, 71)]
            as [(UInt8, UInt8, Int32)])
    func passingErrorsReachWhoAsksForThem(type: UInt8, code: UInt8, expected: Int32) throws {
        #expect(try outcome(type, code) == 0)
        #expect(try outcome(type, code, hearsAll: true) == expected)
    }

    @Test func errorsAboutWhatNobodyHasSentAreIgnored() throws {
        #expect(try outcome(3, 3) { $0[15] = 9 } == 0, "not our address")
        #expect(try outcome(3, 3) { $0[19] = 9 } == 0, "not our peer")
        #expect(try outcome(3, 3) { $0[23] ^= 1 } == 0, "not our port")
        #expect(try outcome(3, 3) { $0[7] = 3 } == 0, "no first fragment")
        #expect(try outcome(3, 3) { $0[0] = 0x65 } == 0)
        #expect(try outcome(3, 3) { $0[0] = 0x4f } == 0)
        #expect(try outcome(3, 3) { $0[0] = 0x41 } == 0)
        #expect(try outcome(3, 3) { $0 = Array($0.prefix(27)) } == 0, "too little")
        #expect(try outcome(3, 3) { $0 = Array($0.prefix(28)) } == 111, "just enough")
        #expect(try outcome(3, 3) { $0 = [] } == 0)
        #expect(try outcome(4, 0, hearsAll: true) == 0, "source quench")
    }

    // MARK: Redirects

    @Test func redirectsAreBelievedFromTheGatewayInUse() throws {
        let bench = try PacketBench()
        try bench.addDefaultRoute()
        let socket = try bench.udpSocket()
        #expect(socket.send([1], to: endpoint("192.0.2.9", 9)) == 0)
        let packet = try bench.expectOne()
        func redirect(from: [UInt8], to gateway: [UInt8]) {
            bench.send(PacketBench.packet(1, PacketBench.icmp(5, 1, rest: gateway, packet.bytes), from: from))
        }
        func gateway() -> [UInt8] {
            var route = alps_route()
            _ = bench.stack.routes.lookup(2, NetworkAddress("192.0.2.9")!.address, &route)
            return withUnsafeBytes(of: route.gateway) { Array($0.prefix(4)) }
        }
        redirect(from: [10, 0, 0, 66], to: [10, 0, 0, 5])
        #expect(gateway() == [10, 0, 0, 2], "not from the gateway")
        redirect(from: [10, 0, 0, 2], to: [192, 0, 2, 5])
        #expect(gateway() == [10, 0, 0, 2], "not on the link")
        redirect(from: [10, 0, 0, 2], to: [10, 0, 0, 1])
        #expect(gateway() == [10, 0, 0, 2], "ourselves")
        #expect(bench.counter("icmp", "redirects_refused") == 3)
        redirect(from: [10, 0, 0, 2], to: [10, 0, 0, 5])
        #expect(gateway() == [10, 0, 0, 5])
        try bench.stack.tunables.set("net.inet.icmp.accept_redirect", "0")
        redirect(from: [10, 0, 0, 5], to: [10, 0, 0, 6])
        #expect(gateway() == [10, 0, 0, 5])
        bench.finish()
    }

    // MARK: Echo sockets

    @Test func rootIsSentAwayToRawSockets() throws {
        let bench = try PacketBench()
        #expect(throws: KernelError.self) { try bench.stack.sockets.create(domain: 2, type: 2, protocol: 1) }
        bench.finish()
    }

    @Test func anEchoSocketGetsTheAnswersToItsOwnQuestions() throws {
        let bench = try PacketBench(["inet.icmp.echo_sockets": "2"])
        let socket = try bench.stack.sockets.create(domain: 2, type: 2, protocol: 1)
        let other = try bench.stack.sockets.create(domain: 2, type: 2, protocol: 1)
        #expect(socket.send(PacketBench.icmp(8, rest: [9, 9, 0, 5], [1, 2, 3]), to: endpoint("10.0.0.2", 0)) == 0)
        #expect(other.send(PacketBench.icmp(8, rest: [9, 9, 0, 6]), to: endpoint("10.0.0.2", 0)) == 0)
        let asked = bench.takeAll()
        #expect(asked.count == 2)
        #expect(checksum(asked[0].payload) == 0)
        let identifier = Array(asked[0].payload[4..<6])
        #expect(identifier == big(socket.localAddress.port))
        #expect(identifier != Array(asked[1].payload[4..<6]))
        let answer = PacketBench.icmp(0, rest: identifier + [0, 5], [1, 2, 3])
        bench.send(PacketBench.packet(1, answer))
        bench.send(PacketBench.packet(1, PacketBench.icmp(0, rest: [0, 0, 0, 5])))
        #expect(socket.receive()?.bytes == answer)
        #expect(socket.receive() == nil)
        #expect(other.receive() == nil)
        // Nothing but questions.
        #expect(socket.send(PacketBench.icmp(0), to: endpoint("10.0.0.2", 0)) == 22)
        #expect(socket.send([8, 0], to: endpoint("10.0.0.2", 0)) == 22)
        #expect(socket.send(PacketBench.icmp(8)) == 89)
        bench.finish()
    }

    @Test func anEchoSocketReachesItself() throws {
        let bench = try PacketBench(["inet.icmp.echo_sockets": "2"])
        let socket = try bench.stack.sockets.create(domain: 2, type: 2, protocol: 1)
        #expect(socket.connect(endpoint("127.0.0.1", 0)) == 0)
        #expect(socket.send(PacketBench.icmp(8, rest: [0, 0, 0, 5], [1, 2, 3])) == 0)
        bench.settle()
        #expect(socket.receive()?.bytes.first == 0)
        socket.close()
        bench.finish()
    }
}

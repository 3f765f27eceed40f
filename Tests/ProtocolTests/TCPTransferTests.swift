import Kernel
import Lab
import PluginAPI
import Testing

/// Two whole stacks and a link between them.
@Suite struct TCPTransferTests {
    final class Pair {
        let network: VirtualNetwork
        let a: Kernel
        let b: Kernel
        let listener: Socket
        let client: Socket
        let server: Socket

        init(_ link: String, seed: UInt64 = 1, receiveBuffer: UInt32 = 0) throws {
            network = VirtualNetwork(seed: seed)
            a = try network.addKernel("a")
            b = try network.addKernel("b")
            try network.link(a, "10.0.0.1/24", b, "10.0.0.2/24", LinkSpec(parsing: link))
            listener = try b.sockets.create(domain: 2, type: 1, protocol: 6)
            #expect(listener.bind(endpoint("0.0.0.0", 80)) == 0)
            #expect(listener.listen(5) == 0)
            if receiveBuffer != 0 { listener.raw.pointee.rcv.limit = receiveBuffer }
            client = try a.sockets.create(domain: 2, type: 1, protocol: 6)
            #expect(client.connect(endpoint("10.0.0.2", 80)) == 115)
            var accepted: Socket?
            let listener = listener
            network.run(limit: 300_000_000_000) {
                if accepted == nil { accepted = listener.acceptNext() }
                return accepted != nil
            }
            server = try #require(accepted)
        }

        func finish() {
            network.shutdown()
            #expect(a.mbufs.isIdle && b.mbufs.isIdle)
        }
    }

    /// Sends `count` bytes one way or both, and closes. Every byte must arrive, once and in order.
    private func transfer(
        _ link: String, count: Int, bothWays: Bool = false, seed: UInt64 = 1, receiveBuffer: UInt32 = 0,
        limit: UInt64 = 3600, readEvery: UInt64 = 5_000_000
    ) throws -> UInt64 {
        let pair = try Pair(link, seed: seed, receiveBuffer: receiveBuffer)
        let start = pair.network.clock.now
        var directions = [(from: pair.client, to: pair.server, sent: 0, received: 0, isRight: true, ended: false)]
        if bothWays { directions.append((pair.server, pair.client, 0, 0, true, false)) }
        while pair.network.clock.now - start < limit * 1_000_000_000, directions.contains(where: { !$0.ended }) {
            for index in directions.indices {
                while directions[index].sent < count {
                    let at = directions[index].sent
                    let room = directions[index].from.sendSpace
                    guard room > 0 else { break }
                    let written = directions[index].from.write(pattern(at..<min(count, at + room)))
                    guard written > 0 else { break }
                    directions[index].sent += written
                    if directions[index].sent == count { #expect(directions[index].from.shutdown(1) == 0) }
                }
                while let bytes = directions[index].to.read(max: 65536) {
                    if bytes.isEmpty {
                        directions[index].ended = true
                        break
                    }
                    let at = directions[index].received
                    if bytes != pattern(at..<(at + bytes.count)) { directions[index].isRight = false }
                    directions[index].received += bytes.count
                }
            }
            pair.network.run(for: readEvery)
        }
        for direction in directions {
            #expect(direction.ended)
            #expect(direction.isRight)
            #expect(direction.received == count)
        }
        let elapsed = pair.network.clock.now - start
        pair.client.close()
        pair.server.close()
        pair.network.run(for: 200_000_000_000)
        #expect(pair.a.sockets.count == 0)
        #expect(pair.b.sockets.count == 1, "the listener")
        pair.finish()
        return elapsed
    }

    @Test func bulkOneWay() throws {
        let elapsed = try transfer("delay 5ms rate 100mbit", count: 4_000_000, readEvery: 1_000_000)
        // 0.32 s at line rate.
        #expect(elapsed < 600_000_000)
    }

    @Test func bulkBothWaysAtOnce() throws {
        _ = try transfer("delay 5ms rate 100mbit", count: 1_000_000, bothWays: true)
    }

    @Test(arguments: [1, 2, 3] as [UInt64])
    func lossIsRepaired(seed: UInt64) throws {
        _ = try transfer("delay 5ms rate 10mbit loss 3%", count: 300_000, bothWays: true, seed: seed)
    }

    @Test func heavyLossIsSurvived() throws {
        _ = try transfer("delay 2ms rate 10mbit loss 20%", count: 100_000)
    }

    @Test(arguments: [1, 2, 3] as [UInt64])
    func reorderingDuplicationAndDamageAreSurvived(seed: UInt64) throws {
        _ = try transfer(
            "delay 5ms jitter 3ms rate 20mbit reorder 10% duplicate 5% corrupt 1% loss 1%", count: 500_000,
            bothWays: true, seed: seed)
    }

    /// RFC 1191: a router's words make smaller segments at once; nobody waits for a time-out.
    @Test func aNarrowPathIsFoundByWhatARouterSays() throws {
        let elapsed = try transfer("delay 5ms rate 100mbit narrow 1000", count: 500_000, readEvery: 1_000_000)
        #expect(elapsed < 300_000_000)
    }

    /// RFC 4821: nobody says anything.
    @Test(arguments: [1 as UInt64, 2])
    func aBlackHoleIsGotOver(seed: UInt64) throws {
        _ = try transfer("delay 5ms rate 100mbit hole 1300", count: 300_000, bothWays: true, seed: seed)
    }

    @Test func aSmallReceiveBufferThrottles() throws {
        _ = try transfer("delay 1ms", count: 300_000, receiveBuffer: 4096)
    }

    @Test func aSlowReaderClosesTheWindowAndOpensItAgain() throws {
        let pair = try Pair("delay 1ms")
        let data = pattern(0..<2_000_000)
        var sent = 0
        var received = 0
        while received < data.count {
            while sent < data.count, pair.client.sendSpace > 0 {
                let written = pair.client.write(Array(data[sent..<min(data.count, sent + pair.client.sendSpace)]))
                guard written > 0 else { break }
                sent += written
            }
            // Long enough for the window to close and be probed.
            pair.network.run(for: 700_000_000)
            while let bytes = pair.server.read(max: 65536) {
                #expect(bytes == Array(data[received..<(received + bytes.count)]))
                received += bytes.count
            }
        }
        pair.finish()
    }

    @Test func theSameSeedGivesTheSameRun() throws {
        let link = "delay 5ms jitter 2ms rate 10mbit loss 5%"
        let first = try transfer(link, count: 300_000, seed: 9)
        let second = try transfer(link, count: 300_000, seed: 9)
        #expect(first == second)
    }

    @Test func loopbackCarriesConnections() throws {
        let network = VirtualNetwork()
        let kernel = try network.addKernel("only")
        let listener = try kernel.sockets.create(domain: 2, type: 1, protocol: 6)
        #expect(listener.bind(endpoint("127.0.0.1", 80)) == 0)
        #expect(listener.listen(5) == 0)
        let client = try kernel.sockets.create(domain: 2, type: 1, protocol: 6)
        #expect(client.connect(endpoint("127.0.0.1", 80)) == 115)
        network.run(for: 1_000_000)
        let server = try #require(listener.acceptNext())
        #expect(client.write(pattern(0..<200_000)) == 200_000)
        var received: [UInt8] = []
        for _ in 0..<1000 where received.count < 200_000 {
            network.run(for: 1_000_000)
            received += server.read() ?? []
        }
        #expect(received == pattern(0..<200_000))
        network.shutdown()
        #expect(kernel.mbufs.isIdle)
    }

    @Test func aThousandConnectionsComeAndGo() throws {
        let network = VirtualNetwork()
        let a = try network.addKernel("a")
        let b = try network.addKernel("b")
        try network.link(a, "10.0.0.1/24", b, "10.0.0.2/24", LinkSpec(parsing: "delay 1ms limit 100000"))
        let listener = try b.sockets.create(domain: 2, type: 1, protocol: 6)
        #expect(listener.bind(endpoint("0.0.0.0", 80)) == 0)
        #expect(listener.listen(2000) == 0)
        let clients = try (0..<1000).map { _ in try a.sockets.create(domain: 2, type: 1, protocol: 6) }
        for client in clients { #expect(client.connect(endpoint("10.0.0.2", 80)) == 115) }
        // Most of the first SYNs find the address not resolved and are lost.
        network.run(for: 5_000_000_000)
        var servers: [Socket] = []
        while let server = listener.acceptNext() { servers.append(server) }
        #expect(servers.count == 1000)
        for (index, client) in clients.enumerated() { #expect(client.write([UInt8(index & 255)]) == 1) }
        network.run(for: 100_000_000)
        let counts = servers.map { $0.read()?.count }
        #expect(counts == Array(repeating: 1, count: 1000))
        for client in clients { client.close() }
        network.run(for: 100_000_000)
        for server in servers { server.close() }
        network.run(for: 100_000_000)
        #expect(b.sockets.count == 1)
        #expect(a.counters.value("tcp", "timewait") == 1000)
        network.run(for: 120_000_000_000)
        #expect(a.counters.value("tcp", "timewait") == 0)
        network.shutdown()
        #expect(a.mbufs.isIdle && b.mbufs.isIdle)
    }
}

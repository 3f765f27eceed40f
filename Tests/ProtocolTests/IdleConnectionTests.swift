import Kernel
import Lab
import PluginAPI
import Testing

/// What connections cost that only stay.
@Suite struct IdleConnectionTests {
    private func holdsRings(_ socket: Socket) -> (send: Bool, receive: Bool) {
        (socket.raw.pointee.snd.base != nil, socket.raw.pointee.rcv.base != nil)
    }

    @Test func ringsThatAreEmptyForAWhileGoBackAndComeAgain() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(holdsRings(socket) == (false, false))
        for round in 0..<3 {
            let at = 1 + 10 * round
            ladder.inject([.ack, .psh], seq: at, ack: 1 + 3 * round, length: 10)
            #expect(socket.read() == pattern(at..<(at + 10)))
            #expect(socket.write([1, 2, 3]) == 3)
            ladder.inject(.ack, seq: at + 10, ack: 4 + 3 * round)
            #expect(holdsRings(socket) == (true, true))
            ladder.run(2500)
            #expect(holdsRings(socket) == (false, false))
            #expect(socket.arena.slotsInUse == 0)
        }
        _ = ladder.takeAll()
        ladder.finish()
    }

    @Test func ringsInUseStay() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        // Never for long without something new.
        for at in stride(from: 1, to: 101, by: 10) {
            ladder.inject([.ack, .psh], seq: at, ack: 1, length: 10)
            #expect(socket.read() == pattern(at..<(at + 10)))
            #expect(holdsRings(socket).receive)
            ladder.run(900)
            #expect(holdsRings(socket).receive)
        }
        // What nobody has read yet.
        ladder.inject([.ack, .psh], seq: 101, ack: 1, length: 10)
        ladder.run(10_000)
        #expect(socket.read() == pattern(101..<111))
        // What has arrived out of order.
        ladder.inject([.ack, .psh], seq: 121, ack: 1, length: 10)
        ladder.run(10_000)
        #expect(holdsRings(socket).receive)
        ladder.inject([.ack, .psh], seq: 111, ack: 1, length: 10)
        #expect(socket.read() == pattern(111..<131))
        // What the peer has not acknowledged.
        #expect(socket.write([1, 2, 3]) == 3)
        _ = ladder.takeAll()
        ladder.run(500)
        #expect(holdsRings(socket).send)
        #expect(ladder.takeAll().allSatisfy { $0.payload == [1, 2, 3] })
        ladder.inject(.ack, seq: 131, ack: 4)
        ladder.run(2500)
        #expect(holdsRings(socket) == (false, false))
        _ = ladder.takeAll()
        ladder.finish()
    }

    /// Opened a thousand at a time, a byte forth and back on each; then nothing for an hour.
    @Test func aHundredThousandConnectionsCostNothingWhileTheyStay() throws {
        let (count, addresses) = (100_000, 4)
        let network = VirtualNetwork(seed: 7)
        let (a, b) = (try network.addKernel("a"), try network.addKernel("b"))
        try network.link(a, "10.0.0.1/16", b, "10.0.1.1/16", LinkSpec(parsing: "delay 1ms"))
        let interface = try #require(a.interfaces.all.first { $0.name != "lo0" })
        for index in 1..<addresses {
            try a.interfaces.addAddress(interface, endpoint("10.0.0.\(1 + index)", 0).addr, prefixLength: 16)
        }
        let listener = try b.sockets.create(domain: 2, type: 1, protocol: 6)
        #expect(listener.bind(endpoint("0.0.0.0", 80)) == 0)
        #expect(listener.listen(4096) == 0)
        var (clients, servers): ([Socket], [Socket]) = ([], [])
        while clients.count < count {
            let first = clients.count
            for index in first..<first + 1000 {
                let client = try a.sockets.create(domain: 2, type: 1, protocol: 6)
                // Without it a port that some other address has is looked for in the whole table.
                client.raw.pointee.options |= ALPS_SO_REUSEADDR
                #expect(client.bind(endpoint("10.0.0.\(1 + index % addresses)", UInt16(1024 + index / addresses))) == 0)
                #expect(client.connect(endpoint("10.0.1.1", 80)) == 115)
                clients.append(client)
            }
            #expect(network.run(limit: 60_000_000_000) {
                while let server = listener.acceptNext() { servers.append(server) }
                return servers.count == clients.count
            })
            for client in clients[first...] { #expect(client.write([1]) == 1) }
            network.run(for: 10_000_000)
            for server in servers[first...] {
                #expect(server.read() == [1])
                #expect(server.write([2]) == 1)
            }
            network.run(for: 10_000_000)
            for client in clients[first...] { #expect(client.read() == [2]) }
            network.run(for: 3_000_000_000)
        }
        for kernel in [a, b] {
            #expect(kernel.connections.count >= count)
            #expect(kernel.mbufs.isIdle)
            let tcp = try #require(kernel.plugins.instance("tcp"))
            #expect(tcp.zone.bytesInUse / count <= 1024, "\(tcp.zone.bytesInUse / count) bytes of TCP each")
        }
        #expect(clients.allSatisfy { holdsRings($0) == (false, false) })
        #expect(servers.allSatisfy { holdsRings($0) == (false, false) })
        #expect(clients[0].arena.slotsInUse == 0 && servers[0].arena.slotsInUse == 0)
        let turns = network.turns
        network.run(for: 3_600_000_000_000)
        #expect(network.turns - turns < 1000, "\(network.turns - turns) turns in an hour")
        // They are there all the same.
        #expect(clients[count / 2].write([3]) == 1)
        network.run(for: 1_000_000_000)
        #expect(servers.filter { $0.receiveAvailable > 0 }.map { $0.read() } == [[3]])
        network.shutdown()
        #expect(a.mbufs.isIdle && b.mbufs.isIdle)
    }
}

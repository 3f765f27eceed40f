import Glibc
import Kernel
import Lab
import PluginAPI
import Testing

/// What becomes of sockets when a plugin is swapped below them.
@Suite struct SocketSwapTests {
    let search = PluginSearchPath()

    @discardableResult
    private func swap(_ kernel: Kernel, _ name: String) throws -> (old: PluginInstance, new: PluginInstance) {
        let old = try #require(kernel.plugins.instance(name))
        let new = try kernel.plugins.swap(name, path: search.find(name))
        return (old, new)
    }

    @Test func listenerMovesAndItsConnectionsStay() throws {
        let hosts = try Hosts()
        let listener = try hosts.listener()
        #expect(listener.setOption(level: Int32(IPPROTO_TCP), name: TCP_NODELAY, option(1)) == 0)
        let (client, server) = try hosts.connection(to: listener)
        let (old, new) = try swap(hosts.b, "tcp")
        #expect(listener.entry.instance === new)
        #expect(listener.isListening)
        #expect(listener.localAddress.port == 80)
        #expect(number(listener.getOption(level: Int32(IPPROTO_TCP), name: TCP_NODELAY, capacity: 4)) == 1)
        #expect(server.entry.instance === old)
        #expect(client.write([1]) == 1)
        let (_, later) = try hosts.connection(to: listener)
        #expect(later.entry.instance === new)
        #expect(number(later.getOption(level: Int32(IPPROTO_TCP), name: TCP_NODELAY, capacity: 4)) == 1)
        #expect(server.read() == [1])
        #expect(server.write([2]) == 1)
        hosts.run(100)
        #expect(client.read() == [2])
        #expect(old.state == .draining)
        server.abort()
        hosts.run(100)
        #expect(old.state == .dead, "nothing was left to it")
        hosts.finish()
    }

    @Test func handshakesEndWhereTheyBegan() throws {
        let hosts = try Hosts("delay 10ms")
        let listener = try hosts.listener()
        let client = try hosts.stream(hosts.a)
        // Address resolution is over.
        let probe = try hosts.datagram(hosts.a)
        #expect(probe.send([1], to: at("10.0.0.2", 9)) == 0)
        hosts.run(100)
        #expect(client.connect(at("10.0.0.2", 80)) == EINPROGRESS)
        hosts.run(15)
        let (old, new) = try swap(hosts.b, "tcp")
        hosts.run(100)
        let server = try #require(listener.acceptNext())
        #expect(server.entry.instance === old)
        #expect(listener.entry.instance === new)
        #expect(client.write([1, 2]) == 2)
        hosts.run(100)
        #expect(server.read() == [1, 2])
        #expect(number(server.getOption(level: Int32(IPPROTO_TCP), name: TCP_NODELAY, capacity: 4)) == 0)
        hosts.finish()
    }

    @Test func closingAMovedListenerEndsHandshakesOfItsPast() throws {
        let hosts = try Hosts("delay 10ms")
        let listener = try hosts.listener()
        let probe = try hosts.datagram(hosts.a)
        #expect(probe.send([1], to: at("10.0.0.2", 9)) == 0)
        hosts.run(100)
        let client = try hosts.stream(hosts.a)
        #expect(client.connect(at("10.0.0.2", 80)) == EINPROGRESS)
        hosts.run(15)
        let (old, _) = try swap(hosts.b, "tcp")
        listener.close()
        hosts.run(100)
        #expect(!client.isConnected)
        #expect(old.state == .dead)
        #expect(hosts.b.sockets.count == 0)
        hosts.finish()
    }

    @Test func datagramSocketsMoveWithPortAndPeer() throws {
        let hosts = try Hosts()
        let server = try hosts.datagram(hosts.b, port: 53)
        let unbound = try hosts.datagram(hosts.a)
        #expect(unbound.send([1], to: at("10.0.0.2", 53)) == 0)
        let connected = try hosts.datagram(hosts.a)
        #expect(connected.connect(at("10.0.0.2", 53)) == 0)
        #expect(connected.send([2]) == 0)
        hosts.run(100)
        let ports = (unbound.localAddress.port, connected.localAddress.port)
        let (old, new) = try swap(hosts.a, "udp")
        try swap(hosts.b, "udp")
        #expect(old.state == .dead)
        #expect(unbound.entry.instance === new)
        #expect((unbound.localAddress.port, connected.localAddress.port) == ports)
        #expect(connected.isConnected)
        for _ in 0..<2 {
            let (bytes, from) = try #require(server.receive())
            #expect(server.send(bytes, to: from) == 0)
        }
        #expect(connected.send([3]) == 0)
        hosts.run(100)
        #expect(unbound.receive()?.bytes == [1])
        #expect(connected.receive()?.bytes == [2])
        #expect(server.receive()?.bytes == [3])
        hosts.finish()
    }

    @Test func aSocketMadeBeforeTheSwapConnectsByTheNewInstance() throws {
        let hosts = try Hosts()
        _ = try hosts.listener()
        let bound = try hosts.stream(hosts.a)
        #expect(bound.bind(any(4444)) == 0)
        let failed = try hosts.stream(hosts.a)
        #expect(failed.connect(at("10.0.0.2", 81)) == EINPROGRESS)
        hosts.run(100)
        let (old, new) = try swap(hosts.a, "tcp")
        #expect(bound.entry.instance === new)
        #expect(failed.connect(at("10.0.0.2", 81)) == ECONNREFUSED)
        for socket in [bound, failed] {
            #expect(socket.connect(at("10.0.0.2", 80)) == EINPROGRESS)
            #expect(socket.entry.instance === new)
        }
        hosts.run(100)
        #expect(bound.isConnected && failed.isConnected)
        #expect(bound.localAddress.port == 4444)
        #expect(old.state == .dead)
        hosts.finish()
    }

    @Test func theNetworkBelowALiveConnectionIsSwapped() throws {
        let hosts = try Hosts()
        let listener = try hosts.listener()
        let (client, server) = try hosts.connection(to: listener)
        #expect(server.setOption(level: 0, name: IP_TTL, option(33)) == 0)
        let member = try hosts.datagram(hosts.b, port: 7000)
        let group = Array(at("239.1.2.3", 0).addr.bytesOfFour) + Array(at("10.0.0.2", 0).addr.bytesOfFour)
        #expect(member.setOption(level: 0, name: IP_ADD_MEMBERSHIP, group) == 0)
        let (old, _) = try swap(hosts.b, "ipv4")
        #expect(old.state == .dead)
        #expect(number(server.getOption(level: 0, name: IP_TTL, capacity: 4)) == 33)
        #expect(server.write([5]) == 1)
        let sender = try hosts.datagram(hosts.a)
        #expect(sender.send([6], to: at("239.1.2.3", 7000)) == 0)
        hosts.run(1000)
        #expect(client.read() == [5])
        #expect(member.receive()?.bytes == [6], "still in the group")
        hosts.finish()
    }
}

extension alps_addr {
    fileprivate var bytesOfFour: [UInt8] { withUnsafeBytes(of: self) { Array($0.prefix(4)) } }
}

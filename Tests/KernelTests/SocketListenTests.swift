import Glibc
import Kernel
import PluginAPI
import Testing

/// Listeners: their queue, their children, their end.
@Suite struct SocketListenTests {
    let hosts: Hosts

    init() throws { hosts = try Hosts() }

    private func clients(_ count: Int, apart: UInt64 = 10) throws -> [Socket] {
        try (0..<count).map { _ in
            let client = try hosts.stream(hosts.a)
            #expect(client.connect(at("10.0.0.2", 80)) == EINPROGRESS)
            hosts.run(apart)
            return client
        }
    }

    @Test func listenWantsAStreamWithoutPeer() throws {
        let datagram = try hosts.datagram(hosts.b)
        #expect(datagram.listen(5) == EOPNOTSUPP)
        let listener = try hosts.listener()
        #expect(listener.connect(at("10.0.0.1", 80)) == EISCONN)
        #expect(listener.isListening)
        #expect(number(listener.getOption(level: SOL_SOCKET, name: SO_ACCEPTCONN, capacity: 4)) == 1)
        #expect(listener.write([1]) == -Int(EPIPE))
        hosts.finish()
    }

    @Test func listenWithoutBindTakesAPort() throws {
        let listener = try hosts.stream(hosts.b)
        #expect(listener.listen(1) == 0)
        #expect(listener.localAddress.port != 0)
        let (client, _) = try hosts.connection(to: listener)
        #expect(client.isConnected)
        hosts.finish()
    }

    @Test func connectionsAreAcceptedInOrder() throws {
        let listener = try hosts.listener()
        let clients = try clients(3)
        hosts.run(100)
        #expect(listener.raw.pointee.queue_length == 3)
        for client in clients {
            let server = try #require(listener.acceptNext())
            #expect(server.remoteAddress.port == client.localAddress.port)
            #expect(server.madeBy == listener.handle)
        }
        #expect(listener.acceptNext() == nil)
        #expect(listener.raw.pointee.queue_length == 0)
        hosts.finish()
    }

    @Test func queueHoldsOneMoreThanTheBacklog() throws {
        let listener = try hosts.listener(backlog: 2)
        // Together, so that the queue fills while handshakes are under way.
        _ = try clients(6, apart: 0)
        hosts.run(500)
        #expect(listener.raw.pointee.queue_length == 3)
        hosts.finish()
    }

    @Test func backlogIsLimitedAndMayChange() throws {
        let listener = try hosts.listener(backlog: -1)
        #expect(listener.raw.pointee.backlog == 4096)
        #expect(listener.listen(7) == 0)
        #expect(listener.raw.pointee.backlog == 7)
        try hosts.b.tunables.set("kern.ipc.somaxconn", "5")
        #expect(listener.listen(100) == 0)
        #expect(listener.raw.pointee.backlog == 5)
        hosts.finish()
    }

    @Test func childrenInheritTheListenersOptions() throws {
        let listener = try hosts.listener()
        #expect(listener.setOption(level: SOL_SOCKET, name: SO_KEEPALIVE, option(1)) == 0)
        #expect(listener.setOption(level: SOL_SOCKET, name: SO_RCVBUF, option(20_000)) == 0)
        #expect(listener.setOption(level: Int32(IPPROTO_TCP), name: TCP_NODELAY, option(1)) == 0)
        #expect(listener.setOption(level: 0, name: IP_TOS, option(0x10)) == 0)
        let (_, server) = try hosts.connection(to: listener)
        #expect(number(server.getOption(level: SOL_SOCKET, name: SO_KEEPALIVE, capacity: 4)) == 1)
        #expect(number(server.getOption(level: SOL_SOCKET, name: SO_RCVBUF, capacity: 4)) == 40_000)
        #expect(number(server.getOption(level: Int32(IPPROTO_TCP), name: TCP_NODELAY, capacity: 4)) == 1)
        #expect(number(server.getOption(level: 0, name: IP_TOS, capacity: 4)) == 0x10)
        #expect(number(server.getOption(level: SOL_SOCKET, name: SO_ACCEPTCONN, capacity: 4)) == 0)
        hosts.finish()
    }

    @Test func closingAListenerResetsWhatNobodyAccepted() throws {
        let listener = try hosts.listener()
        let clients = try clients(2)
        hosts.run(100)
        let accepted = try #require(listener.acceptNext())
        listener.close()
        hosts.run(100)
        #expect(accepted.isConnected)
        #expect(clients[0].isConnected)
        #expect(clients[1].takeError() == ECONNRESET)
        #expect(hosts.b.sockets.count == 1)
        hosts.finish()
    }

    @Test func aConnectionThatWasResetIsStillAccepted() throws {
        let listener = try hosts.listener()
        let client = try #require(clients(1).first)
        hosts.run(100)
        client.abort()
        hosts.run(100)
        let server = try #require(listener.acceptNext())
        #expect(server.takeError() == ECONNRESET)
        server.close()
        #expect(hosts.b.sockets.count == 1)
        hosts.finish()
    }

    @Test func shutdownEndsListeningButKeepsThePort() throws {
        let listener = try hosts.listener()
        let client = try #require(clients(1).first)
        hosts.run(100)
        #expect(listener.shutdown(1) == 0)
        #expect(listener.isListening, "for writing it means nothing")
        #expect(listener.shutdown(0) == 0)
        #expect(!listener.isListening)
        hosts.run(100)
        #expect(client.takeError() == ECONNRESET)
        #expect(try hosts.stream(hosts.b).bind(any(80)) == EADDRINUSE)
        #expect(listener.listen(3) == 0)
        let (again, _) = try hosts.connection(to: listener)
        #expect(again.isConnected)
        hosts.finish()
    }
}

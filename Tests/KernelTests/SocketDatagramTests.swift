import Glibc
import Kernel
import PluginAPI
import Testing

/// Datagram sockets: queue, peer, errors, shutdown.
@Suite struct SocketDatagramTests {
    let hosts: Hosts

    init() throws { hosts = try Hosts() }

    @Test func datagramsArriveWithTheirSource() throws {
        let server = try hosts.datagram(hosts.b, port: 53)
        let client = try hosts.datagram(hosts.a)
        #expect(client.send([1, 2, 3], to: at("10.0.0.2", 53)) == 0)
        #expect(client.send([], to: at("10.0.0.2", 53)) == 0)
        hosts.run(100)
        #expect(server.datagramCount == 2)
        let first = try #require(server.receive())
        #expect(first.bytes == [1, 2, 3])
        #expect(first.from.port == client.localAddress.port)
        #expect(try #require(server.receive()).bytes == [], "an empty datagram is one")
        #expect(server.receive() == nil)
        hosts.finish()
    }

    @Test func sendWantsADestination() throws {
        let client = try hosts.datagram(hosts.a)
        #expect(client.send([1]) == EDESTADDRREQ)
        #expect(client.send([UInt8](repeating: 0, count: 65508), to: at("10.0.0.2", 53)) == EMSGSIZE)
        #expect(client.connect(at("10.0.0.2", 53)) == 0)
        #expect(client.remoteAddress.port == 53)
        #expect(client.bind(any(0)) == EINVAL)
        hosts.finish()
    }

    @Test func aFullQueueDropsAndCounts() throws {
        let server = try hosts.datagram(hosts.b, port: 53)
        #expect(server.setOption(level: SOL_SOCKET, name: SO_RCVBUF, option(2500)) == 0)
        let client = try hosts.datagram(hosts.a)
        for number in 0..<10 { #expect(client.send([UInt8](repeating: UInt8(number), count: 1000), to: at("10.0.0.2", 53)) == 0) }
        hosts.run(100)
        // 5000 bytes at 1256 each.
        #expect(server.datagramCount == 3)
        #expect(hosts.b.sockets.datagramsDropped == 7)
        #expect(try #require(server.receive()).bytes.first == 0)
        hosts.finish()
    }

    @Test func oneDatagramAlwaysFits() throws {
        let server = try hosts.datagram(hosts.b, port: 53)
        #expect(server.setOption(level: SOL_SOCKET, name: SO_RCVBUF, option(0)) == 0)
        let client = try hosts.datagram(hosts.a)
        let large = stretch(0..<20_000)
        #expect(client.send(large, to: at("10.0.0.2", 53)) == 0)
        hosts.run(100)
        #expect(try #require(server.receive()).bytes == large)
        hosts.finish()
    }

    @Test func orderIsKeptWhileTheQueueGoesRound() throws {
        let server = try hosts.datagram(hosts.b, port: 53)
        let client = try hosts.datagram(hosts.a)
        var expected: UInt8 = 0
        var next: UInt8 = 0
        for round in 0..<20 {
            for _ in 0..<(5 + round) {
                #expect(client.send([next], to: at("10.0.0.2", 53)) == 0)
                next &+= 1
            }
            hosts.run(10)
            for _ in 0..<(3 + round) {
                #expect(server.receive()?.bytes == [expected])
                expected &+= 1
            }
        }
        #expect(server.datagramCount == 40)
        // What waits goes with its socket.
        server.close()
        hosts.finish()
    }

    @Test func aConnectedSocketHearsItsPeerOnly() throws {
        let server = try hosts.datagram(hosts.b, port: 53)
        let stranger = try hosts.datagram(hosts.b, port: 54)
        let client = try hosts.datagram(hosts.a, port: 1000)
        #expect(client.connect(at("10.0.0.2", 53)) == 0)
        #expect(stranger.send([1], to: at("10.0.0.1", 1000)) == 0)
        #expect(server.send([2], to: at("10.0.0.1", 1000)) == 0)
        hosts.run(100)
        #expect(client.receive()?.bytes == [2])
        #expect(client.receive() == nil)
        #expect(client.connect(unspecified()) == 0)
        #expect(!client.isConnected)
        #expect(client.send([1]) == EDESTADDRREQ)
        #expect(stranger.send([3], to: at("10.0.0.1", 1000)) == 0)
        hosts.run(100)
        #expect(client.receive()?.bytes == [3])
        hosts.finish()
    }

    @Test func portUnreachableIsToldByTheNextCall() throws {
        let client = try hosts.datagram(hosts.a)
        #expect(client.connect(at("10.0.0.2", 99)) == 0)
        #expect(client.send([1]) == 0)
        hosts.run(100)
        #expect(client.pendingError == ECONNREFUSED)
        #expect(client.send([1]) == ECONNREFUSED)
        #expect(client.send([1]) == 0)
        hosts.finish()
    }

    @Test func shutdownWorksWithoutAPeerButSaysSo() throws {
        let client = try hosts.datagram(hosts.a)
        #expect(client.shutdown(1) == ENOTCONN)
        #expect(client.send([1], to: at("10.0.0.2", 53)) == EPIPE)
        let other = try hosts.datagram(hosts.a)
        #expect(other.connect(at("10.0.0.2", 53)) == 0)
        #expect(other.shutdown(0) == 0)
        #expect(other.atEndOfStream)
        #expect(other.send([1]) == 0)
        hosts.finish()
    }
}

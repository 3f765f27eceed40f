import Glibc
import Kernel
import PluginAPI
import Testing

/// bind, connect, listen and shutdown answer as Linux does.
@Suite struct SocketConnectTests {
    let hosts: Hosts

    init() throws { hosts = try Hosts() }

    // MARK: socket

    @Test func socketRefusesWhatDoesNotExist() throws {
        func refusal(_ domain: Int32, _ type: Int32, _ protocolNumber: Int32) -> Int32 {
            do {
                _ = try hosts.a.sockets.create(domain: domain, type: type, protocol: protocolNumber)
                return 0
            } catch { return (error as? KernelError)?.code ?? -1 }
        }
        #expect(refusal(AF_INET, 1, 6) == 0)
        #expect(refusal(AF_INET6, 1, 0) == EAFNOSUPPORT)
        #expect(refusal(AF_INET, 5, 0) == ESOCKTNOSUPPORT)
        #expect(refusal(AF_INET, 11, 0) == EINVAL)
        #expect(refusal(AF_INET, 1, 17) == EPROTONOSUPPORT)
        #expect(refusal(AF_INET, 1, 262) == EPROTONOSUPPORT, "IPPROTO_MPTCP: programs fall back to TCP")
        #expect(refusal(AF_INET, 1, -1) == EINVAL)
        #expect(refusal(AF_INET, 3, 0) == EPROTONOSUPPORT)
        hosts.finish()
    }

    // MARK: bind

    @Test func bindGivesANameOnce() throws {
        let socket = try hosts.stream(hosts.a)
        #expect(socket.bind(any(0)) == 0)
        #expect(socket.localAddress.port >= 1024)
        #expect(socket.bind(any(0)) == EINVAL)
        hosts.finish()
    }

    @Test func bindRefusesWrongAddresses() throws {
        let socket = try hosts.stream(hosts.a)
        var address = any(80)
        address.family = UInt16(AF_INET6)
        #expect(socket.bind(address) == EAFNOSUPPORT)
        address = at("10.0.0.1", 80)
        address.family = 0
        #expect(socket.bind(address) == EAFNOSUPPORT)
        #expect(socket.bind(at("10.0.0.7", 80)) == EADDRNOTAVAIL)
        address = any(80)
        address.family = 0
        #expect(socket.bind(address) == 0, "AF_UNSPEC with the wildcard is AF_INET")
        let other = try hosts.stream(hosts.a)
        #expect(other.bind(any(80)) == EADDRINUSE)
        hosts.finish()
    }

    // MARK: connect

    @Test func connectTellsHowFarItIs() throws {
        _ = try hosts.listener()
        let client = try hosts.stream(hosts.a)
        #expect(client.connect(at("10.0.0.2", 80)) == EINPROGRESS)
        #expect(client.connect(at("10.0.0.2", 80)) == EALREADY)
        #expect(client.write([1]) == -Int(EAGAIN))
        hosts.run(100)
        #expect(client.connect(at("10.0.0.2", 80)) == 0, "the first call after the handshake")
        #expect(client.connect(at("10.0.0.2", 80)) == EISCONN)
        #expect(client.bind(any(0)) == EINVAL)
        #expect(client.listen(1) == EINVAL)
        #expect(client.remoteAddress.port == 80)
        hosts.finish()
    }

    @Test func connectWantsItsFamily() throws {
        let client = try hosts.stream(hosts.a)
        var address = at("10.0.0.2", 80)
        address.family = UInt16(AF_INET6)
        #expect(client.connect(address) == EAFNOSUPPORT)
        #expect(client.connect(at("192.168.77.1", 80)) == ENETUNREACH)
        #expect(client.write([1]) == -Int(EPIPE))
        hosts.finish()
    }

    @Test func refusedConnectReportsOnceAndMayBeTriedAgain() throws {
        let client = try hosts.stream(hosts.a)
        #expect(client.connect(at("10.0.0.2", 81)) == EINPROGRESS)
        hosts.run(100)
        #expect(client.isDisconnected)
        #expect(client.connect(at("10.0.0.2", 81)) == ECONNREFUSED)
        _ = try hosts.listener(port: 81)
        #expect(client.connect(at("10.0.0.2", 81)) == EINPROGRESS)
        hosts.run(100)
        #expect(client.isConnected)
        #expect(client.write([1, 2, 3]) == 3)
        hosts.finish()
    }

    @Test func errorThatWasReadIsNotReadAgain() throws {
        let client = try hosts.stream(hosts.a)
        #expect(client.connect(at("10.0.0.2", 81)) == EINPROGRESS)
        hosts.run(100)
        #expect(number(client.getOption(level: SOL_SOCKET, name: SO_ERROR, capacity: 4)) == ECONNREFUSED)
        #expect(number(client.getOption(level: SOL_SOCKET, name: SO_ERROR, capacity: 4)) == 0)
        #expect(client.connect(at("10.0.0.2", 81)) == ECONNABORTED)
        #expect(client.connect(at("10.0.0.2", 81)) == EINPROGRESS)
        hosts.finish()
    }

    @Test func retryKeepsTheBoundPort() throws {
        let client = try hosts.stream(hosts.a)
        #expect(client.bind(any(5555)) == 0)
        #expect(client.connect(at("10.0.0.2", 80)) == EINPROGRESS)
        hosts.run(100)
        #expect(client.connect(at("10.0.0.2", 80)) == ECONNREFUSED)
        let listener = try hosts.listener()
        #expect(client.connect(at("10.0.0.2", 80)) == EINPROGRESS)
        hosts.run(100)
        #expect(try #require(listener.acceptNext()).remoteAddress.port == 5555)
        hosts.finish()
    }

    @Test func waitingConnectSleepsUntilTheHandshakeIsDone() throws {
        _ = try hosts.listener()
        let hosts = hosts
        let client = try hosts.stream(hosts.a)
        #expect(try hosts.onFiber(hosts.a) { client.connectAndWait(at("10.0.0.2", 80)) } == 0)
        #expect(client.connect(at("10.0.0.2", 80)) == EISCONN)
        let refused = try hosts.stream(hosts.a)
        #expect(try hosts.onFiber(hosts.a) { refused.connectAndWait(at("10.0.0.2", 81)) } == ECONNREFUSED)
        #expect(refused.pendingError == 0)
        hosts.finish()
    }

    @Test func sendTimeoutEndsTheWaitNotTheAttempt() throws {
        let hosts = hosts
        let client = try hosts.stream(hosts.a)
        let time = withUnsafeBytes(of: timeval(tv_sec: 0, tv_usec: 250_000)) { Array($0) }
        #expect(client.setOption(level: SOL_SOCKET, name: SO_SNDTIMEO, time) == 0)
        let start = hosts.network.clock.now
        // Nobody has this address: the SYN waits for a neighbor.
        #expect(try hosts.onFiber(hosts.a) { client.connectAndWait(at("10.0.0.9", 80)) } == EINPROGRESS)
        #expect(hosts.network.clock.now - start == 250_000_000)
        #expect(client.isConnecting)
        hosts.finish()
    }

    @Test func unspecifiedAddressDissolvesAConnection() throws {
        let listener = try hosts.listener()
        let (client, server) = try hosts.connection(to: listener)
        #expect(client.connect(unspecified()) == 0)
        hosts.run(100)
        #expect(server.takeError() == ECONNRESET)
        #expect(client.connect(at("10.0.0.2", 80)) == EINPROGRESS)
        hosts.run(100)
        #expect(client.isConnected)
        hosts.finish()
    }

    // MARK: shutdown

    @Test func shutdownWantsAConnection() throws {
        let listener = try hosts.listener()
        let fresh = try hosts.stream(hosts.a)
        #expect(fresh.shutdown(1) == ENOTCONN)
        #expect(fresh.shutdown(3) == EINVAL)
        let (client, server) = try hosts.connection(to: listener)
        #expect(client.shutdown(1) == 0)
        #expect(client.shutdown(1) == 0)
        #expect(client.write([1]) == -Int(EPIPE))
        hosts.run(100)
        #expect(server.read() == [])
        #expect(server.write([7]) == 1)
        hosts.run(100)
        #expect(client.read() == [7], "half closed")
        server.close()
        hosts.run(100)
        #expect(client.read() == [])
        #expect(client.shutdown(2) == ENOTCONN)
        hosts.finish()
    }

    @Test func shutdownEndsAnAttempt() throws {
        let hosts = hosts
        let client = try hosts.stream(hosts.a)
        #expect(client.connect(at("10.0.0.9", 80)) == EINPROGRESS)
        #expect(client.shutdown(2) == 0)
        #expect(client.takeError() == ECONNRESET)
        #expect(client.connect(at("10.0.0.9", 80)) == EINPROGRESS)
        hosts.finish()
    }
}

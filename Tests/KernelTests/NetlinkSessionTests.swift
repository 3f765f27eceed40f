import ClientAPI
import CLinux
import Glibc
import Kernel
import PluginAPI
import Testing

/// Netlink sockets as the protocol on the control socket has them.
@Suite struct NetlinkSessionTests {
    private let request = NetlinkClient.message(18, 4, sequence: 7) { $0.link(1) }
    private let change = NetlinkClient.message(16, 4, sequence: 8) { $0.link(1); $0.attribute(4, UInt32(16000)) }
    private let headerSize = MemoryLayout<alps_datagram_header>.size

    private func header() -> [UInt8] {
        var header = alps_datagram_header()
        header.magic = ALPS_DATAGRAM_MAGIC
        return TestClient.bytes(header)
    }

    @Test func answersLieInThePairWhenTheRequestIsAnswered() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let socket = try client.netlinkSocket(family: 0)
        #expect(try client.ask(ALPS_OP_SEND_DATAGRAM, header() + request, socket: socket.handle).frame.error == 0)
        var buffer = [UInt8](repeating: 0, count: 8192)
        let got = recv(socket.fd, &buffer, buffer.count, 0)
        #expect(got > headerSize)
        #expect(buffer[0..<4].elementsEqual(TestClient.bytes(ALPS_DATAGRAM_MAGIC)))
        // RTM_NEWLINK with the request's number; then the acknowledgment.
        #expect(buffer[headerSize...].number(at: 4, as: UInt16.self) == 16)
        #expect(buffer[headerSize...].number(at: 8, as: UInt32.self) == 7)
        #expect(recv(socket.fd, &buffer, buffer.count, 0) == headerSize + 36)
        close(socket.fd)
        client.end()
        host.finish()
    }

    @Test func whatIsWrittenIntoThePairMayLookButNotChange() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let socket = try client.netlinkSocket(family: 0)
        for message in [request, header() + request, change] {
            _ = message.withUnsafeBytes { send(socket.fd, $0.baseAddress, $0.count, 0) }
        }
        var answers: [[UInt8]] = []
        host.run {
            var buffer = [UInt8](repeating: 0, count: 8192)
            var got = recv(socket.fd, &buffer, buffer.count, 0)
            while got > headerSize {
                answers.append(Array(buffer[headerSize..<got]))
                got = recv(socket.fd, &buffer, buffer.count, 0)
            }
            return answers.count == 5
        }
        #expect(answers.map { $0[...].number(at: 4, as: UInt16.self) } == [16, 2, 16, 2, 2])
        #expect(answers.last?[...].number(at: 16, as: Int32.self) == -EPERM)
        close(socket.fd)
        client.end()
        host.finish()
    }

    @Test func aReaderWhoIsTooSlowIsToldSo() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let socket = try client.netlinkSocket(family: 0)
        var name = alps_client_sockaddr()
        name.family = UInt16(AF_NETLINK)
        withUnsafeMutableBytes(of: &name.addr) { $0.storeBytes(of: 1, toByteOffset: 4, as: UInt32.self) }
        #expect(try client.ask(ALPS_OP_BIND, TestClient.bytes(name), socket: socket.handle).frame.error == 0)
        let interface = try #require(host.kernel.interfaces.find("lo0"))
        for number in 0..<4000 { #expect(host.kernel.interfaces.setMTU(interface, 10_000 + number) == 0) }
        // Datagrams, then a message of no bytes that stands for the error.
        var datagrams = 0
        var buffer = [UInt8](repeating: 0, count: 8192)
        host.run {
            var got = recv(socket.fd, &buffer, buffer.count, 0)
            while got > 0 {
                datagrams += 1
                got = recv(socket.fd, &buffer, buffer.count, 0)
            }
            return got == 0
        }
        #expect(datagrams > 100 && datagrams < 4000)
        let event = try client.ask(ALPS_OP_TAKE_EVENT, socket: socket.handle)
        #expect(event.load(alps_datagram_event.self).error == ENOBUFS)
        #expect(try client.ask(ALPS_OP_TAKE_EVENT, socket: socket.handle).frame.error == EAGAIN)
        // It goes on.
        #expect(host.kernel.interfaces.setMTU(interface, 9000) == 0)
        #expect(host.run { recv(socket.fd, &buffer, buffer.count, 0) > headerSize })
        close(socket.fd)
        client.end()
        host.finish()
    }

    /// What does not fit into the pair comes as the program reads.
    @Test func aDumpWaitsForItsReader() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let socket = try client.netlinkSocket(family: 0)
        for number in 0..<8000 {
            var route = alps_route()
            route.family = UInt16(ALPS_AF_INET)
            route.prefix_length = 32
            route.flags = UInt32(ALPS_RTF_REJECT | ALPS_RTF_STATIC)
            withUnsafeMutableBytes(of: &route.destination) { $0.copyBytes(from: [9, 9, UInt8(number >> 8), UInt8(number & 0xff)]) }
            #expect(host.kernel.routes.add(route) == 0)
        }
        let dump = NetlinkClient.message(26, NetlinkClient.dump, sequence: 3) { $0.route(0, kind: 0) }
        #expect(try client.ask(ALPS_OP_SEND_DATAGRAM, header() + dump, socket: socket.handle).frame.error == 0)
        host.settle()
        var routes = 0
        var rounds = 0
        var isOver = false
        var buffer = [UInt8](repeating: 0, count: 8192)
        while !isOver, rounds < 1000 {
            rounds += 1
            var got = recv(socket.fd, &buffer, buffer.count, 0)
            while got > headerSize {
                var rest = buffer[headerSize..<got]
                while let message = NetlinkHeader(rest) {
                    if message.type == 24 { routes += 1 }
                    if message.type == 3 { isOver = true }
                    rest = rest.dropFirst((Int(message.length) + 3) & ~3)
                }
                got = recv(socket.fd, &buffer, buffer.count, 0)
            }
            host.settle(1)
        }
        #expect(isOver && routes == host.kernel.routes.all.count)
        // It did not all fit at once.
        #expect(rounds > 1)
        close(socket.fd)
        client.end()
        host.finish()
    }

    @Test func theirNumberIsLimited() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        try host.kernel.tunables.set("kern.ipc.maxsockets", "3")
        let sockets = try (0..<3).map { _ in try client.netlinkSocket(family: 4) }
        let request = alps_socket_request(domain: AF_NETLINK, type: 3, protocol: 0, flags: 0)
        #expect(try client.ask(ALPS_OP_SOCKET, TestClient.bytes(request)).frame.error == ENFILE)
        for socket in sockets { close(socket.fd) }
        host.run { host.server.pairs == 0 }
        #expect(host.kernel.netlink.count == 0)
        client.end()
        host.finish()
    }
}

import Glibc
import Kernel
import PluginAPI
import Testing

@Suite struct SocketDiagnosisTests {
    private let hosts: Hosts
    private let client: NetlinkClient
    private let tcp = UInt8(IPPROTO_TCP)

    init() throws {
        hosts = try Hosts()
        client = try NetlinkClient(hosts.a, family: 4)
    }

    /// "LOCAL REMOTE STATE" of every socket in an answer, ports alone.
    private func rows(_ messages: [NetlinkMessage]) -> [String] {
        messages.filter { $0.type == 20 }.map {
            "\(UInt16(bigEndian: $0.number(4))) \(UInt16(bigEndian: $0.number(6))) \($0.payload[1])"
        }.sorted()
    }

    private func sockets(
        _ protocolNumber: UInt8, states: UInt32 = .max, filter: [UInt8]? = nil
    ) -> [NetlinkMessage] {
        client.dump(20) {
            $0.sockets(protocolNumber, states: states)
            if let filter { $0.attribute(1, filter) }
        }
    }

    @Test func connectionsListenersAndDatagramSocketsAreShown() throws {
        let listener = try hosts.listener(port: 80)
        let own = try hosts.stream(hosts.a)
        #expect(own.bind(any(8080)) == 0)
        #expect(sockets(tcp).isEmpty)
        #expect(own.listen(5) == 0)
        let (socket, peer) = try hosts.connection(to: listener)
        let udp = try hosts.datagram(hosts.a, port: 5353)
        let port = socket.localAddress.port
        #expect(rows(sockets(tcp)) == ["\(port) 80 1", "8080 0 10"].sorted())
        #expect(rows(sockets(tcp, states: 1 << 10)) == ["8080 0 10"])
        #expect(rows(sockets(UInt8(IPPROTO_UDP))) == ["5353 0 7"])
        #expect(sockets(tcp, states: 1 << 10).first?.number(56 + 4, as: UInt32.self) == 5, "the backlog")
        // INET_DIAG_INFO, INET_DIAG_CONG.
        let connected = client.dump(20) { $0.sockets(tcp, extensions: 1 << 1 | 1 << 3, states: 1 << 1) }.first
        let attributes = connected?.attributes(after: 72) ?? [:]
        #expect(attributes[2]?.first == 1)
        #expect(attributes[2]?.count ?? 0 > 200)
        #expect(attributes[4] == Array("newreno".utf8) + [0])
        for each in [socket, peer, own, listener, udp] { each.close() }
        hosts.run(1000)
        // This end closed first.
        #expect(rows(sockets(tcp)) == ["\(port) 80 6"])
    }

    @Test func oneConnectionIsFoundByItsTuple() throws {
        let listener = try hosts.listener(port: 80)
        let (socket, peer) = try hosts.connection(to: listener)
        let local = ("10.0.0.1", socket.localAddress.port)
        func ask(_ remote: UInt16, cookie: UInt64 = .max) -> NetlinkMessage? {
            client.ask(20, 0) { $0.sockets(tcp, local: local, remote: ("10.0.0.2", remote), cookie: cookie) }.first
        }
        let found = try #require(ask(80))
        #expect(found.type == 20)
        #expect(ask(80, cookie: found.number(44))?.type == 20)
        #expect(ask(80, cookie: 12345)?.errno == ESTALE)
        #expect(ask(81)?.errno == ENOENT)
        for each in [socket, peer, listener] { each.close() }
    }

    @Test func whatIsNotTheStacksIsNotFound() {
        // AF_UNIX, SCTP, a type that is none.
        #expect(client.ask(20, NetlinkClient.dump) { $0.sockets(0, family: 1) }.last?.errno == ENOENT)
        #expect(client.ask(20, NetlinkClient.dump) { $0.sockets(132) }.last?.errno == ENOENT)
        #expect(client.ask(99, NetlinkClient.dump) { $0.sockets(6) }.last?.errno == EINVAL)
        #expect(client.dump(20) { $0.sockets(6, family: 10) }.isEmpty)
        #expect(client.ask(20, NetlinkClient.dump) { $0.append([UInt8(2), 6, 0, 0]) }.last?.errno == EINVAL)
        client.mayChange = false
        #expect(client.change(21, 0) { $0.sockets(6) } == EPERM)
    }

    /// An operation of struct inet_diag_bc_op.
    private func operation(_ code: UInt8, yes: UInt8, no: UInt16, _ rest: [UInt8] = []) -> [UInt8] {
        [code, yes] + withUnsafeBytes(of: no) { Array($0) } + rest
    }

    /// The second half of a comparison of ports: an operation whose `no` is the port.
    private func port(_ number: UInt16) -> [UInt8] { operation(0, yes: 0, no: number) }

    @Test func conditionsChooseSockets() throws {
        for number in [UInt16(80), 443, 8080] {
            let socket = try hosts.stream(hosts.a)
            #expect(socket.bind(number == 443 ? at("10.0.0.1", number) : any(number)) == 0)
            #expect(socket.listen(1) == 0)
        }
        // sport >= 443: past the end on "no".
        let atLeast = operation(2, yes: 8, no: 12, port(443))
        #expect(rows(sockets(tcp, filter: atLeast)) == ["443 0 10", "8080 0 10"])
        let atMost = operation(3, yes: 8, no: 12, port(443))
        #expect(rows(sockets(tcp, filter: atMost)) == ["443 0 10", "80 0 10"])
        // Both, one behind the other.
        let both = operation(2, yes: 8, no: 20, port(443)) + operation(3, yes: 8, no: 12, port(443))
        #expect(rows(sockets(tcp, filter: both)) == ["443 0 10"])
        // Source 10.0.0.0/24, any port.
        let host = operation(7, yes: 16, no: 20, [2, 24, 0, 0, 0xff, 0xff, 0xff, 0xff, 10, 0, 0, 99])
        #expect(rows(sockets(tcp, filter: host)) == ["443 0 10"])
        for bad in [
            operation(2, yes: 4, no: 12, port(1)), operation(2, yes: 8, no: 12), operation(1, yes: 4, no: 0),
            operation(99, yes: 4, no: 8), operation(1, yes: 6, no: 8), operation(1, yes: 4, no: 44),
            operation(7, yes: 16, no: 20, [2, 64, 0, 0, 0xff, 0xff, 0xff, 0xff, 10, 0, 0, 99]), [1, 2, 3],
        ] {
            let answer = client.ask(20, NetlinkClient.dump) { $0.sockets(6); $0.attribute(1, bad) }
            #expect(answer.last?.errno == EINVAL, "\(bad)")
        }
    }
}

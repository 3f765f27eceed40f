import CLinux
import ClientAPI
import Glibc
import Kernel
import Testing

/// Datagram sockets: messages in the pair, with a header as long as there is no peer.
@Suite(.serialized) struct InBandDatagramTests {
    private func header(to port: UInt16) -> [UInt8] {
        var header = alps_datagram_header()
        header.magic = ALPS_DATAGRAM_MAGIC
        header.address = TestClient.address(port)
        return TestClient.bytes(header)
    }

    private func bound(_ client: TestClient, _ port: UInt16) throws -> TestClient.Descriptor {
        let socket = try client.socket(type: 2)
        #expect(try client.bind(socket, port: port) == 0)
        return socket
    }

    private func send(_ socket: TestClient.Descriptor, _ bytes: [UInt8]) -> Int {
        bytes.withUnsafeBytes { Glibc.send(socket.fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
    }

    @Test func datagramsKeepTheirBoundsAndTellTheirSource() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = (try bound(client, 5000), try bound(client, 5001))
        for size in [0, 1, 2, 1471, 1472, 1473, 9000, 40_000, 65_507] {
            let payload = (0..<size).map { UInt8(truncatingIfNeeded: $0) }
            #expect(send(a, header(to: 5001) + payload) == 72 + size)
            guard case .success(let bytes) = client.read(b, atMost: 70_000) else {
                Issue.record("nothing of \(size) bytes")
                continue
            }
            #expect(bytes.count == 72 + size)
            #expect(Array(bytes.dropFirst(72)) == payload)
            let came = bytes.withUnsafeBytes { $0.loadUnaligned(as: alps_datagram_header.self) }
            #expect(came.magic == ALPS_DATAGRAM_MAGIC && came.address.port == UInt16(5000).bigEndian)
            #expect(came.ttl == 64)
        }
        for socket in [a, b] { close(socket.fd) }
        client.end()
        host.finish()
    }

    @Test func aConnectedSocketHasBarePayloadAndHearsItsPeerOnly() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b, c) = (try bound(client, 5000), try bound(client, 5001), try bound(client, 5002))
        #expect(try client.connect(b, port: 5000) == 0)
        #expect(send(c, header(to: 5001) + [9]) == 73)
        #expect(send(a, header(to: 5001) + [1, 2]) == 74)
        #expect(client.read(b) == .success([1, 2]))
        #expect(send(b, [3]) == 1)
        guard case .success(let bytes) = client.read(a) else {
            Issue.record("no datagram")
            return
        }
        #expect(bytes.count == 73 && bytes[72] == 3)
        for socket in [a, b, c] { close(socket.fd) }
        client.end()
        host.finish()
    }

    @Test func aClosedPortIsToldAsAnEvent() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let socket = try client.socket(type: 2)
        #expect(try client.connect(socket, port: 9) == 0)
        #expect(send(socket, [1]) == 1)
        // An empty message stands for it.
        #expect(client.read(socket) == .success([]))
        let answer = try client.ask(ALPS_OP_TAKE_EVENT, socket: socket.handle)
        #expect(answer.load(alps_datagram_event.self).error == ECONNREFUSED)
        close(socket.fd)
        client.end()
        host.finish()
    }

    @Test func messagesThatAreNoDatagramsAreDropped() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = (try bound(client, 5000), try bound(client, 5001))
        var wrong = alps_datagram_header()
        wrong.magic = 1
        for bytes in [[1], [UInt8](repeating: 0, count: 71), TestClient.bytes(wrong) + [1]] { _ = send(a, bytes) }
        #expect(send(a, header(to: 5001) + [7]) == 73)
        guard case .success(let bytes) = client.read(b) else {
            Issue.record("no datagram")
            return
        }
        #expect(bytes.last == 7)
        for socket in [a, b] { close(socket.fd) }
        client.end()
        host.finish()
    }

    @Test func manyDatagramsKeepTheirOrderAndBounds() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = (try bound(client, 5000), try bound(client, 5001))
        // More than one call of the host's moves, of sizes that need one buffer, two, and many.
        let sizes = (0..<100).map { [0, 1, 160, 161, 1472, 9000][$0 % 6] }
        for (index, size) in sizes.enumerated() {
            #expect(send(a, header(to: 5001) + [UInt8](repeating: UInt8(index), count: size)) == 72 + size)
        }
        for (index, size) in sizes.enumerated() {
            guard case .success(let bytes) = client.read(b, atMost: 70_000) else {
                Issue.record("datagram \(index) is missing")
                return
            }
            #expect(Array(bytes.dropFirst(72)) == [UInt8](repeating: UInt8(index), count: size))
        }
        for socket in [a, b] { close(socket.fd) }
        client.end()
        host.finish()
    }

    @Test func whatWasWrittenBehindAnEmptyDatagramIsSentThoughTheProgramHasGone() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = (try bound(client, 5000), try bound(client, 5001))
        #expect(try client.connect(b, port: 5000) == 0)
        for bytes in [[], [1, 2], [], [3]] as [[UInt8]] { #expect(send(b, bytes) == bytes.count) }
        close(b.fd)
        for expected in [[], [1, 2], [], [3]] as [[UInt8]] {
            guard case .success(let bytes) = client.read(a) else {
                Issue.record("\(expected) is missing")
                return
            }
            #expect(Array(bytes.dropFirst(72)) == expected)
        }
        close(a.fd)
        client.end()
        host.finish()
    }

    @Test func anEventThatWasReadWithOthersIsAnnouncedAgain() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let socket = try client.socket(type: 2)
        #expect(try client.ask(ALPS_OP_ANNOUNCE_EVENT, socket: socket.handle).frame.error == 0)
        #expect(try client.connect(socket, port: 9) == 0)
        #expect(send(socket, [1]) == 1)
        #expect(client.read(socket) == .success([]))
        #expect(try client.ask(ALPS_OP_ANNOUNCE_EVENT, socket: socket.handle).frame.error == 0)
        #expect(client.read(socket) == .success([]))
        #expect(try client.ask(ALPS_OP_TAKE_EVENT, socket: socket.handle).load(alps_datagram_event.self).error == ECONNREFUSED)
        close(socket.fd)
        client.end()
        host.finish()
    }

    @Test func whatThereIsNoMemoryForWaitsInThePair() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = (try bound(client, 5000), try bound(client, 5001))
        var held: [Mbuf] = []
        while host.kernel.mbufs.hasRoom, let cluster = host.kernel.mbufs.cluster(headroom: 0, capacity: 60_000) { held.append(cluster) }
        #expect(!held.isEmpty)
        for index in 0..<10 { #expect(send(a, header(to: 5001) + [UInt8(index)]) == 73) }
        host.settle(30)
        var byte: UInt8 = 0
        #expect(recv(b.fd, &byte, 1, Int32(MSG_DONTWAIT)) == -1)
        for cluster in held { host.kernel.mbufs.freePacket(cluster) }
        for index in 0..<10 {
            guard case .success(let bytes) = client.read(b) else {
                Issue.record("datagram \(index) is missing")
                return
            }
            #expect(bytes.last == UInt8(index))
        }
        for socket in [a, b] { close(socket.fd) }
        client.end()
        host.finish()
    }

    @Test func whoDoesNotReadLosesAndTheLossIsCounted() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = (try bound(client, 5000), try bound(client, 5001))
        var sent = 0
        for _ in 0..<4000 {
            if send(a, header(to: 5001) + [UInt8](repeating: 1, count: 1000)) > 0 { sent += 1 }
            if sent % 16 == 0 { host.settle(0) }
        }
        host.settle()
        var got = 0
        while true {
            var buffer = [UInt8](repeating: 0, count: 2000)
            if recv(b.fd, &buffer, 2000, 0) <= 0 {
                host.settle(2)
                if recv(b.fd, &buffer, 2000, 0) <= 0 { break }
            }
            got += 1
        }
        #expect(got > 50 && got < sent)
        #expect(UInt64(sent - got) == host.kernel.sockets.datagramsDropped)
        for socket in [a, b] { close(socket.fd) }
        client.end()
        host.finish()
    }
}

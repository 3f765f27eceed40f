import CLinux
import ClientAPI
import Glibc
import Kernel
import Testing

/// Small messages in the socketpair, which the host looks at first and reads away later.
@Suite(.serialized) struct SmallMessageTests {
    private let host: LiveHost
    private let client: TestClient
    private let a: TestClient.Descriptor
    private let b: TestClient.Descriptor

    init() throws {
        host = try LiveHost()
        client = try TestClient(host)
        // Each message waits for the acknowledgment of the one before.
        try host.kernel.tunables.set("net.inet.tcp.delacktime", "1ms")
        (a, b) = try client.connection()
    }

    private func finish(_ open: TestClient.Descriptor...) {
        for socket in open { close(socket.fd) }
        client.end()
        host.finish()
    }

    private func pattern(_ position: Int, _ count: Int) -> [UInt8] {
        (position..<position + count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) }
    }

    /// Writes, and reads it at the other end.
    private func pass(_ bytes: [UInt8]) throws {
        var sent = 0
        var got: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        host.run {
            let count = bytes.dropFirst(sent).withUnsafeBytes { send(a.fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            if count > 0 { sent += count }
            let read = recv(b.fd, &buffer, buffer.count, 0)
            if read > 0 { got += buffer[0..<read] }
            return got.count == bytes.count
        }
        try #require(got == bytes)
    }

    /// Memory of the pair that is charged to the writer, bytes.
    private var charged: Int { Int(alps_bytes_unread_by_peer(a.fd)) }

    @Test func anySizesInAnyOrder() throws {
        var position = 0
        var random = SeededGenerator(seed: 1)
        for turn in 0..<1500 {
            let count = switch turn < 20 ? 0 : Int.random(in: 0..<12, using: &random) {
            case 0..<6: Int.random(in: 1...300, using: &random)
            case 6..<9: Int.random(in: 1...1500, using: &random)
            case 9: 512
            case 10: 513
            default: Int.random(in: 1...200_000, using: &random)
            }
            try pass(pattern(position, count))
            position += count
        }
        finish(a, b)
    }

    /// The kernel calls a UNIX socket writable while no more than a quarter of its buffer is taken.
    @Test func theWriterFindsRoomAndIdleConnectionsKeepOneByte() throws {
        try pass([1])
        let least = charged
        for turn in 0..<100 {
            try pass(pattern(turn, 1 + turn % 50 * 11))
            var entry = pollfd(fd: a.fd, events: Int16(POLLOUT), revents: 0)
            #expect(poll(&entry, 1, 0) == 1 && charged < 20_000)
        }
        try pass([1])
        host.settle(2500)
        #expect(charged <= least)
        finish(a, b)
    }

    @Test func theEndComesBehindThem() throws {
        for turn in 0..<7 { try pass(pattern(turn, 10)) }
        close(a.fd)
        #expect(client.read(b) == .success([]))
        finish(b)
    }

    /// The reset of the pair is told once, and may be met by a look at the pair before the event comes.
    @Test func closingWithDataUnreadIsAReset() throws {
        for turn in 0..<7 { try pass(pattern(turn, 10)) }
        #expect(send(b.fd, "unread", 6, 0) == 6)
        host.settle()
        let option = alps_sockopt_request(level: SOL_SOCKET, name: SO_ERROR, length: 4, reserved: 0)
        _ = client.request(ALPS_OP_GETSOCKOPT, TestClient.bytes(option), socket: a.handle)
        close(a.fd)
        #expect(client.read(b) == .failure(ErrorNumber(number: ECONNRESET)))
        _ = try client.answer()
        finish(b)
    }

    @Test func descriptorsAmongThemEndTheConnection() throws {
        for turn in 0..<7 { try pass(pattern(turn, 10)) }
        #expect(alps_send_with_fd(a.fd, "x", 1, a.fd) == 1)
        close(a.fd)
        #expect(client.read(b) == .failure(ErrorNumber(number: ECONNRESET)))
        finish(b)
    }

    @Test func aSocketThatConnectsAgainBeginsAnew() throws {
        for turn in 0..<7 { try pass(pattern(turn, 10)) }
        let again = try client.listener(port: 81)
        let nowhere = alps_connect_request(address: alps_client_sockaddr(), flags: 0, plug_bytes: 0)
        #expect(try client.ask(ALPS_OP_CONNECT, TestClient.bytes(nowhere), socket: a.handle).frame.error == 0)
        #expect(try client.connect(a, port: 81) == 0)
        let c = try client.accept(again)
        let bytes = pattern(3, 5000)
        #expect(send(a.fd, bytes, bytes.count, 0) == bytes.count)
        #expect(client.read(c) == .success(bytes))
        finish(a, b, c, again)
    }
}

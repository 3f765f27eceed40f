import CLinux
import ClientAPI
import Glibc
import Kernel
import Testing

/// Streams whose payload travels in the socketpair, over lo0, seen from the application's ends.
@Suite(.serialized) struct InBandStreamTests {
    private func pattern(_ range: Range<Int>) -> [UInt8] { range.map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 9) } }

    /// write(2) for as long as the host runs: how many bytes went.
    private func write(_ host: LiveHost, _ fd: Int32, _ bytes: ArraySlice<UInt8>) -> Int {
        var done = 0
        host.run {
            let sent = bytes.dropFirst(done).withUnsafeBytes { send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            if sent > 0 { done += sent }
            return done == bytes.count || sent < 0 && errno != EAGAIN
        }
        return done
    }

    private func closeAll(_ host: LiveHost, _ client: TestClient, _ sockets: TestClient.Descriptor...) {
        for socket in sockets { close(socket.fd) }
        client.end()
        host.finish()
    }

    @Test func bytesArriveInOrderInPiecesOfAnySize() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = try client.connection()
        let all = pattern(0..<3_000_000)
        var sent = 0
        var got: [UInt8] = []
        var step = 1
        while got.count < all.count {
            if sent < all.count {
                let piece = all[sent..<min(sent + step, all.count)]
                let count = piece.withUnsafeBytes { send(a.fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
                if count > 0 { sent += count }
                step = step * 7 % 100_003 + 1
            }
            host.settle(0)
            var buffer = [UInt8](repeating: 0, count: step % 5 == 0 ? 1 : 70_000)
            let count = recv(b.fd, &buffer, buffer.count, 0)
            if count > 0 { got += buffer[0..<count] }
            if count == 0 { break }
        }
        #expect(got == all)
        closeAll(host, client, a, b)
    }

    @Test func bothDirectionsCloseByThemselves() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = try client.connection()
        #expect(write(host, a.fd, [1, 2, 3]) == 3)
        #expect(try client.ask(ALPS_OP_SHUTDOWN, TestClient.bytes(Int32(1)), socket: a.handle).frame.error == 0)
        shutdown(a.fd, Int32(SHUT_WR))
        #expect(client.read(b) == .success([1, 2, 3]))
        #expect(client.read(b) == .success([]))
        // The other direction goes on.
        let back = pattern(0..<200_000)
        var got: [UInt8] = []
        var sent = 0
        host.run {
            if sent < back.count {
                let count = back.dropFirst(sent).withUnsafeBytes { send(b.fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
                if count > 0 { sent += count }
            }
            var buffer = [UInt8](repeating: 0, count: 65536)
            let count = recv(a.fd, &buffer, buffer.count, 0)
            if count > 0 { got += buffer[0..<count] }
            return got.count == back.count
        }
        #expect(got == back)
        close(b.fd)
        #expect(client.read(a) == .success([]))
        closeAll(host, client, a)
    }

    @Test func closingWithDataUnreadIsAReset() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = try client.connection()
        #expect(write(host, a.fd, [1, 2, 3]) == 3)
        host.settle()
        close(b.fd)
        #expect(client.read(a) == .failure(ErrorNumber(number: ECONNRESET)))
        closeAll(host, client, a)
    }

    @Test func aResetIsNeverACleanEnd() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = try client.connection()
        var linger = linger(l_onoff: 1, l_linger: 0)
        let request = alps_sockopt_request(level: SOL_SOCKET, name: SO_LINGER, length: 8, reserved: 0)
        #expect(try client.ask(
            ALPS_OP_SETSOCKOPT, TestClient.bytes(request) + withUnsafeBytes(of: &linger) { Array($0) }, socket: b.handle).frame.error == 0)
        close(b.fd)
        #expect(client.read(a) == .failure(ErrorNumber(number: ECONNRESET)))
        // The true error is told once, on request.
        let get = alps_sockopt_request(level: SOL_SOCKET, name: SO_ERROR, length: 4, reserved: 0)
        let answer = try client.ask(ALPS_OP_GETSOCKOPT, TestClient.bytes(get), socket: a.handle)
        #expect(answer.payload == TestClient.bytes(ECONNRESET))
        closeAll(host, client, a)
    }

    /// A peer that does not read holds the writer up; nothing is lost.
    @Test func aSlowReaderHoldsTheWriterUp() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = try client.connection()
        let all = pattern(0..<8_000_000)
        var sent = 0
        var idle = 0
        while idle < 20 {
            let count = all.dropFirst(sent).prefix(50_000).withUnsafeBytes { send(a.fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            if count > 0 { sent += count } else { idle += 1 }
            host.settle(1)
        }
        #expect(sent < all.count)
        var got: [UInt8] = []
        while got.count < sent {
            guard case .success(let bytes) = client.read(b), !bytes.isEmpty else { break }
            got += bytes
        }
        #expect(got == Array(all.prefix(sent)))
        closeAll(host, client, a, b)
    }

    /// What was written before a request counts before it.
    @Test func requestsKeepTheirPlaceAmongTheData() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = try client.connection()
        let data = pattern(0..<60_000)
        for round in 0..<20 {
            let sent = data.withUnsafeBytes { send(a.fd, $0.baseAddress, 1000 + round, Int32(MSG_NOSIGNAL)) }
            #expect(sent == 1000 + round)
            // The urgent byte goes behind all of it.
            #expect(try client.ask(ALPS_OP_SEND_OOB, [UInt8(round)], socket: a.handle).frame.error == 0)
            var got = 0
            while got < 1000 + round {
                guard case .success(let bytes) = client.read(b), !bytes.isEmpty else { break }
                got += bytes.count
            }
            #expect(got == 1000 + round)
            var answer = try client.ask(ALPS_OP_RECV_OOB, TestClient.bytes(UInt32(0)), socket: b.handle)
            for _ in 0..<50 where answer.frame.error == EAGAIN {
                host.settle(1)
                answer = try client.ask(ALPS_OP_RECV_OOB, TestClient.bytes(UInt32(0)), socket: b.handle)
            }
            #expect(answer.payload == [UInt8(round)])
        }
        closeAll(host, client, a, b)
    }

    /// A read of the pair begins with a byte that the host has already, and that is not always the last one of its stream: an
    /// urgent byte comes another way. Here it still waits for the peer's window when more is read behind it.
    @Test func whatIsReadBehindAnUrgentByteLeavesItAlone() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        try host.kernel.tunables.set("net.inet.tcp.delacktime", "1ms")
        let (a, b) = try client.connection()
        for (name, value) in [(SO_OOBINLINE, 1), (SO_RCVBUF, 65536)] as [(Int32, Int32)] {
            let request = alps_sockopt_request(level: SOL_SOCKET, name: name, length: 4, reserved: 0)
            let answer = try client.ask(
                ALPS_OP_SETSOCKOPT, TestClient.bytes(request) + TestClient.bytes(value), socket: b.handle)
            #expect(answer.frame.error == 0)
        }
        let sender = try #require(host.kernel.sockets.find(SocketHandle(rawValue: a.handle)))
        var expected: [UInt8] = []
        // The peer does not read: at last what is written stays here.
        while sender.sendQueued < 50_000, expected.count < 8_000_000 {
            let piece = pattern(expected.count..<(expected.count + 10_000))
            #expect(write(host, a.fd, piece[...]) == piece.count)
            expected += piece
            host.settle(5)
        }
        let urgent = ~expected[expected.count - 1]
        #expect(try client.ask(ALPS_OP_SEND_OOB, [urgent], socket: a.handle).frame.error == 0)
        let rest = pattern(0..<100)
        #expect(write(host, a.fd, rest[...]) == rest.count)
        host.settle(5)
        expected += [urgent] + rest
        #expect(sender.sendQueued > 50_000)
        var got: [UInt8] = []
        while got.count < expected.count {
            guard case .success(let bytes) = client.read(b), !bytes.isEmpty else { break }
            got += bytes
        }
        #expect(got == expected)
        closeAll(host, client, a, b)
    }

    /// Most connections of a busy server are idle, and what each takes counts a hundred thousand times. What few of them need
    /// belongs into objects that are made on demand.
    @Test func anIdleConnectionTakesLittleMemory() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let symbol = try #require(dlsym(nil, "malloc_usable_size"))
        let usableSize = unsafeBitCast(symbol, to: (@convention(c) (UnsafeMutableRawPointer) -> Int).self)
        // A block has now and then 16 bytes more than was asked for, where they are of use to nobody else.
        let connections = try (0..<8).map { try client.connection(port: 7100 + $0) }
        let accepted = connections.compactMap { host.kernel.sockets.find(SocketHandle(rawValue: $0.1.handle)) }
        try #require(accepted.count == 8)
        let socketSize = try #require(accepted.map { usableSize(Unmanaged.passUnretained($0).toOpaque()) }.min())
        let channels = accepted.compactMap(\.channel)
        let channelSize = try #require(channels.map { usableSize(Unmanaged.passUnretained($0).toOpaque()) }.min())
        #expect(socketSize + channelSize <= 320)
        for (a, b) in connections.dropFirst() { [a, b].forEach { close($0.fd) } }
        closeAll(host, client, connections[0].0, connections[0].1)
    }

    @Test func aThousandConnectionsLeaveNothing() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        try host.kernel.tunables.set("net.inet.tcp.msl", "1ms")
        let listener = try client.listener(port: 80)
        for number in 0..<1000 {
            let a = try client.socket(type: 1)
            #expect(try client.connect(a, port: 80) == 0)
            let b = try client.accept(listener)
            #expect(write(host, a.fd, [UInt8(truncatingIfNeeded: number)]) == 1)
            #expect(client.read(b) == .success([UInt8(truncatingIfNeeded: number)]))
            close(a.fd)
            #expect(client.read(b) == .success([]))
            close(b.fd)
        }
        closeAll(host, client, listener)
    }

    @Test func connectionsInAClosedListenersQueueEnd() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let listener = try client.listener(port: 80)
        let waiting = try (0..<5).map { _ in
            let socket = try client.socket(type: 1)
            #expect(try client.connect(socket, port: 80) == 0)
            return socket
        }
        close(listener.fd)
        for socket in waiting {
            // Nobody had taken them from the pair; the host cannot tell that from an accept and a close.
            #expect([.success([]), .failure(ErrorNumber(number: ECONNRESET))].contains(client.read(socket)))
            close(socket.fd)
        }
        client.end()
        host.finish()
    }
}

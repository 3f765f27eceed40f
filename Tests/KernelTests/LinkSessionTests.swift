import ClientAPI
import CLinux
import Glibc
import Kernel
import Testing

/// Packet sockets as the protocol on the control socket has them.
@Suite struct LinkSessionTests {
    private let headerSize = MemoryLayout<alps_datagram_header>.size
    /// For nobody's protocol, on the loopback interface.
    private let frame = [UInt8](repeating: 0, count: 12) + [0x88, 0xb5] + [UInt8](repeating: 7, count: 46)

    private func option(_ name: Int32, _ words: [UInt32]) -> [UInt8] {
        let value = words.flatMap { TestClient.bytes($0) }
        return TestClient.bytes(alps_sockopt_request(level: 263, name: name, length: UInt32(value.count), reserved: 0)) + value
    }

    private func header(magic: UInt32 = ALPS_DATAGRAM_MAGIC) -> [UInt8] {
        var header = alps_datagram_header()
        header.magic = magic
        return TestClient.bytes(header)
    }

    /// The next message of a pair, empty if there is none.
    private func message(_ descriptor: Int32) -> [UInt8] {
        var buffer = [UInt8](repeating: 0, count: 70000)
        let got = recv(descriptor, &buffer, buffer.count, 0)
        return Array(buffer.prefix(max(got, 0)))
    }

    private func isToken(_ message: [UInt8]) -> Bool {
        guard message.count == headerSize else { return false }
        let header = message.withUnsafeBytes { $0.loadUnaligned(as: alps_datagram_header.self) }
        return header.magic == ALPS_DATAGRAM_MAGIC && UInt32(header.flags) & ALPS_DATAGRAM_TOKEN != 0
    }

    @Test func framesLieInThePairBehindTheirHeader() throws {
        let host = try LiveHost(plugins: [])
        let client = try TestClient(host)
        let watcher = try client.packetSocket(1)
        let sender = try client.packetSocket(1)
        let answer = try client.ask(ALPS_OP_SEND_DATAGRAM, header() + frame, socket: sender.handle)
        #expect(answer.frame.error == 0 && answer.load(UInt32.self) == UInt32(frame.count))
        // It leaves, and on lo0 it arrives too.
        for kind in [UInt8(4), 0] {
            var got: [UInt8] = []
            host.run {
                got = message(watcher.fd)
                return !got.isEmpty
            }
            #expect(got.dropFirst(headerSize).elementsEqual(frame))
            let name = got.withUnsafeBytes { $0.loadUnaligned(as: alps_datagram_header.self) }.address
            #expect(name.family == UInt16(AF_PACKET) && name.scope == 1 && name.port == UInt16(0x88b5).bigEndian)
            #expect(name.addr.2 == kind && name.addr.3 == 6)
        }
        [watcher.fd, sender.fd].forEach { close($0) }
        client.end()
        host.finish()
    }

    /// One token at most, and a new one for who took it before the ring was empty.
    @Test func aTokenStandsForTheRing() throws {
        let host = try LiveHost(plugins: [])
        let client = try TestClient(host)
        let watcher = try client.packetSocket(1)
        let sender = try client.packetSocket(1)
        #expect(try client.ask(ALPS_OP_RING, socket: watcher.handle).frame.error == EINVAL)
        for (name, words) in [(10, [1]), (5, [4096, 2, 2048, 4])] as [(Int32, [UInt32])] {
            #expect(try client.ask(ALPS_OP_SETSOCKOPT, option(name, words), socket: watcher.handle).frame.error == 0)
        }
        let answer = try client.ask(ALPS_OP_RING, socket: watcher.handle)
        let information = answer.load(alps_ring_info.self)
        #expect(information.bytes == 8192 && information.control == 8192 && answer.descriptor >= 0)
        let memory = try #require(mmap(nil, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, answer.descriptor, 0))
        defer { munmap(memory, 12288) }
        func control() -> alps_ring_control { (memory + 8192).loadUnaligned(as: alps_ring_control.self) }
        func send() throws {
            #expect(try client.ask(ALPS_OP_SEND_DATAGRAM, header() + frame, socket: sender.handle).frame.error == 0)
        }
        func takeToken() {
            var byte = UInt8(ALPS_TOKEN_TAKEN)
            #expect(Glibc.send(watcher.fd, &byte, 1, 0) == 1)
        }
        #expect(message(watcher.fd).isEmpty && control().filled == 0)
        try send()
        host.run { control().filled == 2 }
        #expect(control().last_status == 512)
        #expect(isToken(message(watcher.fd)))
        #expect(message(watcher.fd).isEmpty, "one is enough")
        // Taken although the ring is not empty: another one.
        takeToken()
        var got: [UInt8] = []
        host.run {
            got = message(watcher.fd)
            return !got.isEmpty
        }
        #expect(isToken(got))
        // Taken when it is: none, until something comes.
        for slot in 0..<4 { memory.storeBytes(of: 0, toByteOffset: slot * 2048, as: UInt32.self) }
        takeToken()
        host.settle()
        #expect(message(watcher.fd).isEmpty)
        try send()
        host.run {
            got = message(watcher.fd)
            return !got.isEmpty
        }
        #expect(isToken(got))
        [watcher.fd, sender.fd, answer.descriptor].forEach { close($0) }
        client.end()
        host.finish()
    }

    private struct Random: RandomNumberGenerator {
        var state: UInt64

        mutating func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state ^ state >> 31
        }
    }

    /// Requests and messages that make no sense, whatever the order: the host answers each request and goes on.
    @Test func nonsenseIsRefused() throws {
        var random = Random(state: 9)
        let host = try LiveHost(plugins: [])
        let client = try TestClient(host)
        let socket = try client.packetSocket(1)
        let operations = [
            ALPS_OP_BIND, ALPS_OP_LISTEN, ALPS_OP_CONNECT, ALPS_OP_SHUTDOWN, ALPS_OP_GETSOCKOPT, ALPS_OP_SETSOCKOPT,
            ALPS_OP_GETSOCKNAME, ALPS_OP_GETPEERNAME, ALPS_OP_IOCTL, ALPS_OP_SEND_DATAGRAM, ALPS_OP_TAKE_EVENT, ALPS_OP_RING,
            ALPS_OP_SEND_OOB, ALPS_OP_UNCONNECT,
        ]
        for _ in 0..<4000 {
            var payload = (0..<Int.random(in: 0...120, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
            let operation = operations.randomElement(using: &random)!
            switch operation {
            case ALPS_OP_SETSOCKOPT where payload.count >= 4, ALPS_OP_GETSOCKOPT where payload.count >= 4:
                let level: Int32 = Bool.random(using: &random) ? 263 : SOL_SOCKET
                payload = TestClient.bytes(
                    alps_sockopt_request(
                        level: level, name: Int32.random(in: 0...50, using: &random), length: UInt32(payload.count),
                        reserved: 0)) + payload
            case ALPS_OP_SEND_DATAGRAM where payload.count >= 4:
                payload = header(magic: UInt32.random(in: 0 ... .max, using: &random)) + payload
            default: break
            }
            let answer = try client.ask(operation, payload, socket: socket.handle)
            if answer.descriptor >= 0 { close(answer.descriptor) }
            if Bool.random(using: &random), !payload.isEmpty {
                _ = Glibc.send(socket.fd, payload, payload.count, Int32(MSG_DONTWAIT))
            }
            _ = message(socket.fd)
        }
        #expect(try client.ask(ALPS_OP_GETSOCKNAME, socket: socket.handle).frame.error == 0)
        close(socket.fd)
        client.end()
        host.finish()
    }
}

import CLinux
import ClientAPI
import Glibc
import Kernel
import Testing

/// Frames on the control socket. Every byte of them may be hostile.
@Suite(.serialized) struct SessionTests {
    @Test func aHelloComesFirst() throws {
        let host = try LiveHost()
        let early = try TestClient(host, hello: false)
        _ = early.request(ALPS_OP_SOCKET, [UInt8](repeating: 0, count: 16))
        host.run { early.isClosed }
        #expect(early.isClosed)
        var wrong = TestClient.hello()
        wrong.version = 99
        let other = try TestClient(host, hello: false)
        #expect(try other.ask(ALPS_OP_HELLO, TestClient.bytes(wrong)).frame.error != 0)
        let short = try TestClient(host, hello: false)
        _ = short.request(ALPS_OP_HELLO, [1, 2, 3])
        host.run { short.isClosed }
        #expect(short.isClosed)
        let right = try TestClient(host, hello: false)
        let answer = try right.ask(ALPS_OP_HELLO, TestClient.bytes(TestClient.hello()))
        let hello = answer.load(alps_hello_reply.self)
        #expect(hello.version == ALPS_CLIENT_VERSION && hello.instance != 0 && hello.session != 0)
        #expect(answer.payload.count == MemoryLayout<alps_hello_reply>.size + Int(hello.triples) * 8)
        #expect(hello.triples > 3)
        for client in [early, other, short, right] { client.end() }
        host.finish()
    }

    /// Nobody need hold the other end of what a client has handed in as a session.
    @Test func aSessionThatNeverSaysHelloIsEnded() throws {
        let host = try LiveHost()
        let greeted = try TestClient(host)
        host.server.helloTime = 20_000_000
        let silent = try TestClient(host, hello: false)
        // Half a hello is none.
        let slow = try TestClient(host, hello: false)
        slow.send(raw: Array(TestClient.bytes(TestClient.frame(ALPS_OP_HELLO, length: 136, id: 1)).prefix(20)))
        host.run { silent.isClosed && slow.isClosed }
        #expect(silent.isClosed && slow.isClosed)
        #expect(try greeted.ask(ALPS_OP_INTERFACES).frame.error == 0)
        for client in [greeted, silent, slow] { client.end() }
        host.finish()
    }

    @Test func wrongFramesEndTheSessionThatSentThem() throws {
        let host = try LiveHost()
        let good = try TestClient(host)
        var magic = TestClient.frame(ALPS_OP_SOCKET, length: 0, id: 1)
        magic.magic = 7
        let long = TestClient.frame(ALPS_OP_SOCKET, length: Int(ALPS_FRAME_MAX_PAYLOAD) + 1, id: 1)
        for frame in [magic, long] {
            let bad = try TestClient(host)
            bad.send(raw: TestClient.bytes(frame))
            host.run { bad.isClosed }
            #expect(bad.isClosed)
        }
        #expect(!good.isClosed)
        #expect(try good.ask(9999).frame.error == ENOSYS || good.isClosed == false)
        let socket = try good.socket(type: 1)
        close(socket.fd)
        good.end()
        host.finish()
    }

    @Test func framesMayComeInAnyPieces() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let request = alps_socket_request(domain: AF_INET, type: 1, protocol: 0, flags: 0)
        let bytes = TestClient.bytes(TestClient.frame(ALPS_OP_SOCKET, length: 16, id: 77)) + TestClient.bytes(request)
        for byte in bytes {
            client.send(raw: [byte])
            host.settle(1)
        }
        let answer = try client.answer()
        #expect(answer.frame.request_id == 77 && answer.frame.error == 0 && answer.descriptor >= 0)
        close(answer.descriptor)
        // Many in one piece.
        client.send(raw: (1...200).flatMap { TestClient.bytes(TestClient.frame(ALPS_OP_INTERFACES, length: 0, id: 1000 + $0)) })
        for id in 1...200 { #expect(try client.answer().frame.request_id == 1000 + UInt64(id)) }
        client.end()
        host.finish()
    }

    @Test func aRequestThatWaitsIsCancelled() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let socket = try client.socket(type: 1)
        // Nobody answers there: a blackholed connect waits.
        try host.kernel.tunables.set("net.inet.tcp.blackhole", "2")
        let request = alps_connect_request(address: TestClient.address(9), flags: 0, plug_bytes: 0)
        let id = client.request(ALPS_OP_CONNECT, TestClient.bytes(request), socket: socket.handle)
        host.settle()
        #expect(host.kernel.fibers.all.count == 1)
        client.send(raw: TestClient.bytes(TestClient.frame(ALPS_OP_CONNECT, length: 0, id: id, kind: ALPS_FRAME_CANCEL)))
        let answer = try client.answer()
        #expect(answer.frame.request_id == id && answer.frame.error == EINTR)
        #expect(host.kernel.fibers.all.isEmpty)
        // The end of a session wakes what it has waiting.
        _ = client.request(ALPS_OP_CONNECT, TestClient.bytes(request), socket: socket.handle)
        host.settle()
        client.end()
        close(socket.fd)
        host.run { host.kernel.fibers.all.isEmpty }
        #expect(host.kernel.fibers.all.isEmpty)
        host.finish()
    }

    @Test func socketsOfOthersAreRefused() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        for handle: UInt64 in [0, 1, .max, 0x0100_0001_0000_0000] {
            #expect(try client.ask(ALPS_OP_GETSOCKNAME, socket: handle).frame.error == EBADF)
        }
        client.end()
        host.finish()
    }

    @Test func descriptorsThatNobodyAskedForAreClosed() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        for _ in 0..<50 {
            var ends: [Int32] = [0, 0]
            #expect(pipe(&ends) == 0)
            let answer = try client.ask(ALPS_OP_INTERFACES, passing: ends[1])
            #expect(answer.frame.error == 0)
            close(ends[1])
            // The host's copy is gone too: the pipe has no writer.
            _ = alps_ioctl_nonblocking(ends[0])
            var byte: UInt8 = 0
            host.run { Glibc.read(ends[0], &byte, 1) == 0 }
            #expect(Glibc.read(ends[0], &byte, 1) == 0)
            close(ends[0])
        }
        client.end()
        host.finish()
    }

    @Test func aClientThatReadsNoRepliesIsHeldBack() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let frame = TestClient.bytes(TestClient.frame(ALPS_OP_INTERFACES, length: 0, id: 5))
        var sent = 0
        var refused = 0
        while refused < 50, sent < 1_000_000 {
            let count = frame.withUnsafeBytes { send(client.descriptor, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL)) }
            if count == frame.count {
                sent += 1
                refused = 0
            } else {
                refused += 1
                host.settle(1)
            }
        }
        #expect(sent > 100 && sent < 1_000_000)
        #expect(host.server.sessionCount == 1)
        #expect(!host.kernel.hasPendingWork)
        // Once it reads, everything goes on.
        let other = try TestClient(host)
        #expect(try other.ask(ALPS_OP_INTERFACES).frame.error == 0)
        client.end()
        other.end()
        host.finish()
    }

    // MARK: Fuzz

    private struct Generator {
        var state: UInt64
        mutating func next(_ bound: Int) -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(state >> 33) % max(bound, 1)
        }
        mutating func bytes(_ count: Int) -> [UInt8] { (0..<count).map { _ in UInt8(truncatingIfNeeded: next(256)) } }
    }

    /// Random and nearly right frames of whole sessions, with random descriptors beside them.
    @Test func randomSessionsNeitherCrashNorLeak() throws {
        let host = try LiveHost()
        var random = Generator(state: 42)
        var frames = 0
        for _ in 0..<300 {
            let client = try TestClient(host, hello: random.next(8) != 0)
            var handles: [UInt64] = []
            var descriptors: [Int32] = []
            if client.isGreeted, random.next(3) > 0 {
                for family in [Int32(0), 4] where random.next(3) == 0 {
                    if let made = try? client.netlinkSocket(family: family) {
                        handles.append(made.handle)
                        descriptors.append(made.fd)
                    }
                }
                for type in [Int32(1), 2, 3] where random.next(2) == 0 {
                    if let made = try? client.socket(type: type, protocol: type == 3 ? 1 : 0) {
                        handles.append(made.handle)
                        descriptors.append(made.fd)
                    }
                }
            }
            for _ in 0..<random.next(1200) {
                let size = [0, 1, 4, 8, 12, 16, 24, 32, 40, 64, 128, 200][random.next(12)]
                var frame = TestClient.frame(
                    UInt32(random.next(24)), length: size, id: UInt64(random.next(1 << 20)),
                    socket: handles.isEmpty || random.next(4) == 0 ? UInt64(random.next(1 << 40)) : handles[random.next(handles.count)],
                    kind: random.next(20) == 0 ? UInt32(random.next(5)) : ALPS_FRAME_REQUEST)
                // A query may shut things down; hello a second time, too, is tried.
                if UInt32(frame.op) == ALPS_OP_QUERY { frame.op = UInt16(ALPS_OP_PROC_NET) }
                var payload = random.bytes(size)
                if size >= 4, random.next(2) == 0 {
                    // Small numbers are the interesting ones.
                    for place in stride(from: 0, to: size - 3, by: 4) {
                        let value = UInt32(random.next(20))
                        payload.replaceSubrange(place..<place + 4, with: withUnsafeBytes(of: value) { Array($0) })
                    }
                }
                if random.next(500) == 0 { frame.length &+= UInt32(random.next(5)) }
                if random.next(900) == 0 { frame.magic ^= 1 << UInt32(random.next(32)) }
                var passing: Int32 = -1
                var other: Int32 = -1
                if random.next(60) == 0 {
                    var ends: [Int32] = [-1, -1]
                    if random.next(2) == 0 { pipe(&ends) } else { socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) }
                    (passing, other) = (ends[0], ends[1])
                }
                let isOpen = client.send(raw: TestClient.bytes(frame) + payload, passing: passing)
                if passing >= 0 { close(passing) }
                if other >= 0 { close(other) }
                frames += 1
                if frames % 64 == 0 { host.settle(1) }
                if !isOpen { break }
                if frames % 256 == 0, client.isClosed { break }
                // Garbage in the pairs as well.
                if let descriptor = descriptors.last, random.next(10) == 0 {
                    let garbage = random.bytes(random.next(300))
                    _ = garbage.withUnsafeBytes { send(descriptor, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL)) }
                }
            }
            for descriptor in descriptors { close(descriptor) }
            client.end()
            host.settle(1)
        }
        #expect(frames > 10_000)
        let client = try TestClient(host)
        #expect(try client.ask(ALPS_OP_INTERFACES).frame.error == 0)
        client.end()
        // Connections that the fuzzer made end by themselves.
        host.run { host.kernel.sockets.count == 0 }
        host.finish()
    }
}

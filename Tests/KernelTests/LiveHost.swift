import CLinux
import ClientAPI
import Foundation
import Glibc
import Kernel
import Testing

/// A host with its reactor and control socket, driven turn by turn by the test, and what clients are made of. lo0 only.
final class LiveHost {
    let kernel: Kernel
    let reactor: Reactor
    let server: ControlServer
    let path: String
    private let descriptorsBefore: Int

    init(name: String = "test", plugins: [String] = ["ipv4", "icmp", "udp", "tcp"]) throws {
        descriptorsBefore = Self.descriptors()
        path = NSTemporaryDirectory() + "alps-\(getpid())-\(UInt32.random(in: 0 ... .max)).sock"
        // Hosts of one name and one seed would give their sockets the same names in the system, and tests run side by side.
        kernel = Kernel(KernelConfiguration(name: name, seed: .random(in: 1 ... .max)))
        reactor = try Reactor(kernel: kernel)
        kernel.reactor = reactor
        server = try ControlServer(kernel: kernel, path: path)
        kernel.server = server
        try kernel.interfaces.addLoopback()
        let search = PluginSearchPath()
        for plugin in plugins { try kernel.plugins.load(path: search.find(plugin)) }
        try server.start()
    }

    static func descriptors() -> Int {
        ((try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? []).count
    }

    /// Runs the host until `condition` holds, five seconds at most.
    @discardableResult
    func run(until condition: () -> Bool) -> Bool { reactor.run(limit: 5_000_000_000, until: condition) }

    /// Runs the host for some turns' time.
    func settle(_ milliseconds: UInt64 = 20) { _ = reactor.run(limit: milliseconds * 1_000_000) { false } }

    func finish(sourceLocation: SourceLocation = #_sourceLocation) {
        run { kernel.sockets.count == 0 && server.sessionCount == 0 && server.pairs == 0 }
        #expect(kernel.sockets.count == 0, "sockets", sourceLocation: sourceLocation)
        #expect(server.pairs == 0, "pairs", sourceLocation: sourceLocation)
        #expect(server.sessionCount == 0, "sessions", sourceLocation: sourceLocation)
        kernel.shutdown()
        #expect(kernel.mbufs.isIdle, sourceLocation: sourceLocation)
        #expect(access(path, F_OK) != 0, "the socket file is left", sourceLocation: sourceLocation)
    }
}

/// A process of the host's, as the protocol on the control socket sees it.
final class TestClient {
    struct Answer {
        var frame: alps_frame
        var payload: [UInt8]
        var descriptor: Int32

        func load<T>(_ type: T.Type) -> T { payload.withUnsafeBytes { $0.loadUnaligned(as: type) } }
    }

    let host: LiveHost
    private(set) var descriptor: Int32
    let isGreeted: Bool
    private var lastRequest: UInt64 = 0
    private var input: [UInt8] = []
    private var passed: [Int32] = []

    init(_ host: LiveHost, hello: Bool = true) throws {
        self.host = host
        isGreeted = hello
        descriptor = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: host.path.utf8) }
        let status = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(status == 0)
        _ = alps_ioctl_nonblocking(descriptor)
        if hello {
            let answer = try ask(ALPS_OP_HELLO, Self.bytes(Self.hello()))
            #expect(answer.frame.error == 0)
        }
    }

    deinit { end() }

    func end() {
        if descriptor >= 0 { close(descriptor) }
        descriptor = -1
        for descriptor in passed { close(descriptor) }
        passed.removeAll()
    }

    static func bytes<T>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }

    static func hello() -> alps_hello {
        var hello = alps_hello()
        hello.size = UInt32(MemoryLayout<alps_hello>.size)
        hello.version = ALPS_CLIENT_VERSION
        hello.pid = UInt32(getpid())
        return hello
    }

    static func frame(
        _ op: UInt32, length: Int, id: UInt64, socket: UInt64 = 0, kind: UInt32 = ALPS_FRAME_REQUEST
    ) -> alps_frame {
        var frame = alps_frame()
        frame.magic = ALPS_FRAME_MAGIC
        frame.length = UInt32(length)
        frame.kind = UInt16(kind)
        frame.op = UInt16(truncatingIfNeeded: op)
        frame.request_id = id
        frame.socket = socket
        return frame
    }

    /// Sends raw bytes, with a descriptor beside the first if given. False: the host has closed the session.
    @discardableResult
    func send(raw bytes: [UInt8], passing: Int32 = -1) -> Bool {
        var done = 0
        while done < bytes.count {
            let sent = bytes.withUnsafeBytes {
                alps_send_with_fd(descriptor, $0.baseAddress! + done, $0.count - done, done == 0 ? passing : -1)
            }
            if sent > 0 {
                done += sent
            } else if errno == EAGAIN {
                host.settle(1)
            } else {
                return false
            }
        }
        return true
    }

    /// Sends a request; returns its number.
    func request(_ op: UInt32, _ payload: [UInt8] = [], socket: UInt64 = 0, passing: Int32 = -1) -> UInt64 {
        lastRequest += 1
        send(raw: Self.bytes(Self.frame(op, length: payload.count, id: lastRequest, socket: socket)) + payload, passing: passing)
        return lastRequest
    }

    /// Takes over what has come. False: the host has closed the session.
    private func pull() -> Bool {
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            var came: Int32 = -1
            let got = buffer.withUnsafeMutableBytes { alps_receive_with_fd(descriptor, $0.baseAddress!, $0.count, &came) }
            if came >= 0 { passed.append(came) }
            if got > 0 { input += buffer[0..<got] } else { return got < 0 && errno == EAGAIN }
        }
    }

    /// Whether the host has closed the session.
    var isClosed: Bool { !pull() }

    private var whole: Int? {
        guard input.count >= MemoryLayout<alps_frame>.size else { return nil }
        let frame = input.withUnsafeBytes { $0.loadUnaligned(as: alps_frame.self) }
        let size = MemoryLayout<alps_frame>.size + Int(frame.length)
        return input.count >= size ? size : nil
    }

    /// The next reply.
    func answer() throws -> Answer {
        host.run { !pull() || whole != nil }
        let size = try #require(whole, "no reply")
        let frame = input.withUnsafeBytes { $0.loadUnaligned(as: alps_frame.self) }
        let payload = Array(input[MemoryLayout<alps_frame>.size..<size])
        input.removeFirst(size)
        let op = UInt32(frame.op)
        let carries = [ALPS_OP_SOCKET, ALPS_OP_RING, ALPS_OP_STREAM_RING].contains(op) && frame.error == 0
        return Answer(frame: frame, payload: payload, descriptor: carries && !passed.isEmpty ? passed.removeFirst() : -1)
    }

    func ask(_ op: UInt32, _ payload: [UInt8] = [], socket: UInt64 = 0, passing: Int32 = -1) throws -> Answer {
        let id = request(op, payload, socket: socket, passing: passing)
        let reply = try answer()
        #expect(reply.frame.request_id == id && UInt32(reply.frame.kind) == ALPS_FRAME_REPLY && UInt32(reply.frame.op) == op)
        return reply
    }

    // MARK: Sockets

    struct Descriptor {
        var handle: UInt64
        var fd: Int32
    }

    func socket(type: Int32, protocol number: Int32 = 0) throws -> Descriptor {
        let request = alps_socket_request(domain: AF_INET, type: type, protocol: number, flags: 0)
        let answer = try ask(ALPS_OP_SOCKET, Self.bytes(request))
        try #require(answer.frame.error == 0, "errno \(answer.frame.error)")
        try #require(answer.descriptor >= 0)
        _ = alps_ioctl_nonblocking(answer.descriptor)
        return Descriptor(handle: answer.load(alps_socket_info.self).handle, fd: answer.descriptor)
    }

    func netlinkSocket(family: Int32) throws -> Descriptor {
        let request = alps_socket_request(domain: AF_NETLINK, type: 3, protocol: family, flags: 0)
        let answer = try ask(ALPS_OP_SOCKET, Self.bytes(request))
        try #require(answer.frame.error == 0, "errno \(answer.frame.error)")
        try #require(answer.descriptor >= 0)
        _ = alps_ioctl_nonblocking(answer.descriptor)
        return Descriptor(handle: answer.load(alps_socket_info.self).handle, fd: answer.descriptor)
    }

    /// Of all frames, bound to an interface.
    func packetSocket(_ ifindex: UInt32) throws -> Descriptor {
        let request = alps_socket_request(domain: AF_PACKET, type: 3, protocol: Int32(UInt16(3).bigEndian), flags: 0)
        let answer = try ask(ALPS_OP_SOCKET, Self.bytes(request))
        try #require(answer.frame.error == 0, "errno \(answer.frame.error)")
        try #require(answer.descriptor >= 0)
        _ = alps_ioctl_nonblocking(answer.descriptor)
        let made = Descriptor(handle: answer.load(alps_socket_info.self).handle, fd: answer.descriptor)
        var name = alps_client_sockaddr()
        name.family = UInt16(AF_PACKET)
        name.scope = ifindex
        #expect(try ask(ALPS_OP_BIND, Self.bytes(name), socket: made.handle).frame.error == 0)
        return made
    }

    static func address(_ port: UInt16, _ host: [UInt8] = [127, 0, 0, 1]) -> alps_client_sockaddr {
        var address = alps_client_sockaddr()
        address.family = UInt16(AF_INET)
        address.port = port.bigEndian
        withUnsafeMutableBytes(of: &address.addr) { $0.copyBytes(from: host) }
        return address
    }

    func bind(_ socket: Descriptor, port: UInt16) throws -> Int32 {
        try ask(ALPS_OP_BIND, Self.bytes(Self.address(port)), socket: socket.handle).frame.error
    }

    func listener(port: UInt16, backlog: Int32 = 16) throws -> Descriptor {
        let listener = try socket(type: 1)
        #expect(try bind(listener, port: port) == 0)
        #expect(try ask(ALPS_OP_LISTEN, Self.bytes(backlog), socket: listener.handle).frame.error == 0)
        return listener
    }

    func connect(_ socket: Descriptor, port: UInt16) throws -> Int32 {
        let request = alps_connect_request(address: Self.address(port), flags: 0, plug_bytes: 0)
        return try ask(ALPS_OP_CONNECT, Self.bytes(request), socket: socket.handle).frame.error
    }

    /// accept(2): the message on the listener's pair, with the new descriptor.
    func accept(_ listener: Descriptor) throws -> Descriptor {
        var message = alps_socket_info()
        var fd: Int32 = -1
        host.run { alps_receive_with_fd(listener.fd, &message, MemoryLayout<alps_socket_info>.size, &fd) > 0 }
        try #require(fd >= 0)
        _ = alps_ioctl_nonblocking(fd)
        return Descriptor(handle: message.handle, fd: fd)
    }

    /// A connection over lo0, both ends of this process.
    func connection(port: UInt16 = 80) throws -> (client: Descriptor, server: Descriptor) {
        let listener = try listener(port: port)
        let client = try socket(type: 1)
        #expect(try connect(client, port: port) == 0)
        let server = try accept(listener)
        close(listener.fd)
        return (client, server)
    }

    /// read(2) as long as the host runs: bytes, or the error, or an empty array at the end.
    func read(_ socket: Descriptor, atMost count: Int = 65536) -> Result<[UInt8], ErrorNumber> {
        var buffer = [UInt8](repeating: 0, count: count)
        var got = -1
        var error: Int32 = EAGAIN
        host.run {
            got = recv(socket.fd, &buffer, count, 0)
            error = got < 0 ? errno : 0
            return error != EAGAIN
        }
        return got >= 0 ? .success(Array(buffer[0..<got])) : .failure(ErrorNumber(number: error))
    }
}

struct ErrorNumber: Error, Equatable {
    var number: Int32
}

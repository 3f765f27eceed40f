import Glibc
import Kernel
import Lab
import PluginAPI
import Testing

/// Two whole stacks on one link, "a" at 10.0.0.1 and "b" at 10.0.0.2, and the sockets of programs on them.
final class Hosts {
    let network: VirtualNetwork
    let a: Kernel
    let b: Kernel

    init(_ link: String = "", seed: UInt64 = 1) throws {
        network = VirtualNetwork(seed: seed)
        a = try network.addKernel("a")
        b = try network.addKernel("b")
        try network.link(a, "10.0.0.1/24", b, "10.0.0.2/24", link.isEmpty ? LinkSpec() : LinkSpec(parsing: link))
        run(3000)
    }

    func run(_ milliseconds: UInt64) { network.run(for: milliseconds * 1_000_000) }

    /// Ends both kernels; nothing may be left.
    func finish(sourceLocation: SourceLocation = #_sourceLocation) {
        network.shutdown()
        for kernel in [a, b] {
            #expect(kernel.mbufs.isIdle, sourceLocation: sourceLocation)
            #expect(kernel.sockets.count == 0, sourceLocation: sourceLocation)
            #expect(kernel.connections.count == 0, sourceLocation: sourceLocation)
        }
    }

    func stream(_ kernel: Kernel) throws -> Socket { try kernel.sockets.create(domain: AF_INET, type: 1, protocol: 0) }

    func datagram(_ kernel: Kernel, port: UInt16? = nil) throws -> Socket {
        let socket = try kernel.sockets.create(domain: AF_INET, type: 2, protocol: 0)
        if let port { #expect(socket.bind(any(port)) == 0) }
        return socket
    }

    /// A listener on "b".
    func listener(port: UInt16 = 80, backlog: Int32 = 5) throws -> Socket {
        let socket = try stream(b)
        #expect(socket.bind(any(port)) == 0)
        #expect(socket.listen(backlog) == 0)
        return socket
    }

    /// A connection from "a" to `listener`.
    func connection(to listener: Socket) throws -> (client: Socket, server: Socket) {
        let client = try stream(a)
        #expect(client.connect(at("10.0.0.2", listener.localAddress.port)) == EINPROGRESS)
        run(100)
        #expect(client.isConnected)
        return (client, try #require(listener.acceptNext()))
    }

    /// Runs `body` on a fiber of `kernel` and the network until it has returned.
    func onFiber<Result>(_ kernel: Kernel, _ body: @escaping () -> Result) throws -> Result {
        var result: Result?
        kernel.fibers.spawn(name: "test") { result = body() }
        network.run(limit: 300_000_000_000) { result != nil }
        return try #require(result)
    }
}

func at(_ host: String, _ port: UInt16) -> alps_sockaddr {
    var address = alps_sockaddr()
    address.family = UInt16(ALPS_AF_INET)
    address.port = port
    let numbers = host.split(separator: ".").map { UInt8($0) ?? 0 }
    withUnsafeMutableBytes(of: &address.addr) { $0.copyBytes(from: numbers) }
    return address
}

func any(_ port: UInt16) -> alps_sockaddr { at("0.0.0.0", port) }

func unspecified() -> alps_sockaddr { alps_sockaddr() }

func option(_ number: Int32) -> [UInt8] { withUnsafeBytes(of: number) { Array($0) } }

func number(_ answer: (error: Int32, value: [UInt8])) -> Int32? {
    answer.error == 0 && answer.value.count >= 4 ? answer.value.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) } : nil
}

/// Bytes that tell where they belong.
func stretch(_ range: Range<Int>) -> [UInt8] { range.map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) } }

import Glibc
import Kernel
import Lab
import PluginAPI
import Testing

/// What a stack sends itself comes in with the next turn, never in the same call: so the depth of calls does not grow with
/// what is on its way.
@Suite struct CallDepthTests {
    /// Runs `body` on a thread whose stack has been painted, and counts the bytes that have lost their paint.
    private func stackUsed(by body: @escaping () -> Void) -> Int {
        final class Work {
            let body: () -> Void
            init(_ body: @escaping () -> Void) { self.body = body }
        }
        let size = 1 << 20
        let stack = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 65_536)
        defer { stack.deallocate() }
        memset(stack, 0xa5, size)
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        pthread_attr_setstack(&attributes, stack, size)
        var thread = pthread_t()
        let status = pthread_create(
            &thread, &attributes,
            { argument in
                Unmanaged<Work>.fromOpaque(argument!).takeRetainedValue().body()
                return nil
            }, Unmanaged.passRetained(Work(body)).toOpaque())
        #expect(status == 0)
        pthread_join(thread, nil)
        pthread_attr_destroy(&attributes)
        var untouched = 0
        while untouched < size, stack.load(fromByteOffset: untouched, as: UInt8.self) == 0xa5 { untouched += 1 }
        return size - untouched
    }

    /// Two sockets of one stack send each other `bytes`, each 200,000 at a time.
    private func talkToOneself(_ bytes: Int) throws -> Int {
        let network = VirtualNetwork()
        let kernel = try network.addKernel("a")
        let listener = try kernel.sockets.create(domain: 2, type: 1, protocol: 0)
        #expect(listener.bind(endpoint("127.0.0.1", 80)) == 0)
        #expect(listener.listen(5) == 0)
        let client = try kernel.sockets.create(domain: 2, type: 1, protocol: 0)
        #expect(client.connect(endpoint("127.0.0.1", 80)) == 115)
        network.run(for: 1_000_000)
        let server = try #require(listener.acceptNext())
        var received = 0
        let used = stackUsed {
            let chunk = [UInt8](repeating: 7, count: 200_000)
            var left = [bytes, bytes]
            while received < 2 * bytes {
                for (index, socket) in [client, server].enumerated() {
                    let written = socket.write(Array(chunk.prefix(left[index])))
                    if written > 0 { left[index] -= written }
                    received += socket.read(max: 1 << 20)?.count ?? 0
                }
                network.run(for: 1_000_000)
            }
        }
        #expect(received == 2 * bytes)
        for socket in [client, server, listener] { socket.abort() }
        network.shutdown()
        #expect(kernel.mbufs.isIdle)
        return used
    }

    @Test func theDepthDoesNotGrowWithTheTraffic() throws {
        let little = try talkToOneself(50_000)
        let much = try talkToOneself(8_000_000)
        #expect(little > 1000)
        #expect(much < little + 8192, "\(little) bytes of stack for little traffic, \(much) for much")
        #expect(much < 100_000)
    }
}

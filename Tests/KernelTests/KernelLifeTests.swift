import Kernel
import Lab
import PluginAPI
import Testing

@Suite struct KernelLifeTests {
    private final class Watch {
        weak var kernel: Kernel?
        weak var pool: MbufPool?
        weak var socket: Socket?
    }

    /// Two kernels that have talked, shut down and dropped.
    private func live(_ watch: Watch) throws {
        let network = VirtualNetwork()
        let a = try network.addKernel("a")
        let b = try network.addKernel("b")
        try network.link(a, "10.0.0.1/24", b, "10.0.0.2/24", LinkSpec(parsing: "delay 1ms"))
        network.run(for: 10_000_000_000)
        let server = try b.sockets.create(domain: 2, type: 2, protocol: 17)
        var address = alps_sockaddr()
        address.family = 2
        address.port = 7
        #expect(server.bind(address) == 0)
        let listener = try b.sockets.create(domain: 2, type: 1, protocol: 6)
        address.port = 80
        #expect(listener.bind(address) == 0)
        #expect(listener.listen(5) == 0)
        let client = try a.sockets.create(domain: 2, type: 1, protocol: 6)
        address.addr = NetworkAddress("10.0.0.2")!.address
        #expect(client.connect(address) == 115)
        network.run(for: 100_000_000)
        #expect(client.isConnected)
        #expect(client.write([1, 2, 3]) == 3)
        network.run(for: 1_000_000)
        watch.kernel = a
        watch.pool = b.mbufs
        watch.socket = listener
        network.shutdown()
        #expect(a.mbufs.isIdle && b.mbufs.isIdle)
        // A second time does nothing.
        network.shutdown()
    }

    @Test func aKernelThatHasBeenShutDownIsFreedWithItsLastUser() throws {
        let watch = Watch()
        try live(watch)
        #expect(watch.kernel == nil)
        #expect(watch.pool == nil)
        #expect(watch.socket == nil)
    }
}

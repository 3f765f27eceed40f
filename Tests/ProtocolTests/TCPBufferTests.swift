import Kernel
import Lab
import PluginAPI
import Testing

/// Buffers that follow the path.
@Suite struct TCPBufferTests {
    /// Sends for `seconds` over a path of 100 Mbit/s and 100 ms, and returns the limits at the end and the rate in Mbit/s
    /// of the last second.
    private func transfer(
        _ tunables: [String: String] = [:], seconds: UInt64 = 12, prepare: (Socket, Socket) -> Void = { _, _ in }
    ) throws -> (send: UInt32, receive: UInt32, rate: Double) {
        let pair = try TCPTransferTests.Pair("rate 100mbit delay 50ms")
        for kernel in [pair.a, pair.b] {
            for (name, value) in tunables { try kernel.tunables.set("net.inet.tcp." + name, value) }
        }
        prepare(pair.client, pair.server)
        var written = 0
        var received = 0
        var before = 0
        for tick in 0..<(seconds * 200) {
            if tick == (seconds - 1) * 200 { before = received }
            while pair.client.sendSpace > 0 {
                let count = pair.client.write(pattern(written..<written + min(pair.client.sendSpace, 65536)))
                guard count > 0 else { break }
                written += count
            }
            while let bytes = pair.server.read(), !bytes.isEmpty { received += bytes.count }
            pair.network.run(for: 5_000_000)
        }
        let limits = (pair.client.raw.pointee.snd.limit, pair.server.raw.pointee.rcv.limit)
        pair.finish()
        return (limits.0, limits.1, Double(received - before) * 8 / 1e6)
    }

    @Test func bothGrowUntilThePathIsFull() throws {
        let result = try transfer()
        // The path holds 1.25 MB.
        #expect(result.send > 1 << 20 && result.receive > 1 << 20)
        #expect(result.rate > 80)
    }

    @Test func withoutItTheReceiverHoldsTheSenderBack() throws {
        let result = try transfer(["recvbuf_auto": "0"])
        #expect(result.receive == 256 << 10)
        #expect(result.rate < 25)
    }

    @Test func withoutItTheSenderHoldsItselfBack() throws {
        let result = try transfer(["sendbuf_auto": "0"])
        #expect(result.send == 256 << 10)
        #expect(result.rate < 25)
    }

    @Test func whatTheApplicationHasChosenStays() throws {
        let result = try transfer { client, server in
            #expect(client.setOption(level: 1, name: 7, [0, 0, 1, 0]) == 0)
            #expect(server.setOption(level: 1, name: 8, [0, 0, 1, 0]) == 0)
        }
        #expect(result.send == 131_072 && result.receive == 131_072)
    }

    @Test func theTunablesBound() throws {
        let result = try transfer(["recvbuf_max": "524288", "sendbuf_max": "400000"])
        #expect(result.receive == 512 << 10)
        #expect(result.send == 400_000)
    }
}

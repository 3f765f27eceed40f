import Kernel
import Lab
import PluginAPI
import Testing

/// CUBIC (RFC 9438) over an emulated path: 20 ms each way, without a bottleneck, so that all reductions are the test's.
@Suite struct TCPCubicTests {
    /// Windows in segments, one a second, of a sender that always has something to send, after one reduction from
    /// `start` segments.
    private func windows(_ algorithm: String, from start: Int, seconds: Int) throws -> [Int] {
        let ladder = try Ladder(seed: 7, ["sendbuf_auto": "0", "recvbuf_auto": "0"])
        let socket = try ladder.accept(scale: 14)
        #expect(socket.setOption(level: 6, name: 13, Array(algorithm.utf8)) == 0)
        #expect(socket.setOption(level: 1, name: 7, [0, 0, 32, 0]) == 0)
        var windows: [Int] = []
        var acknowledged = 1
        var hasLost = false
        /// One round: everything that was sent is acknowledged, two segments a time, after 40 ms.
        func round() {
            _ = socket.write([UInt8](repeating: 0, count: min(socket.sendSpace, 4 << 20)))
            ladder.run(40)
            let end = ladder.takeAll().map { ladder.sequence(of: $0) + $0.payload.count }.max() ?? acknowledged
            if !hasLost, (end - acknowledged) / 1460 >= start {
                hasLost = true
                // The first is lost, the others are reported one by one as duplicates.
                for _ in 0..<3 { ladder.inject(.ack, seq: 1, ack: acknowledged) }
                ladder.run(40)
                _ = ladder.takeAll()
            }
            while acknowledged < end {
                acknowledged = min(acknowledged + 2920, end)
                ladder.inject(.ack, seq: 1, ack: acknowledged)
            }
        }
        while !hasLost { round() }
        for _ in 0..<seconds {
            for _ in 0..<25 { round() }
            // tcpi_snd_cwnd of Linux's struct tcp_info.
            let info = socket.getOption(level: 6, name: 11, capacity: 248).1
            windows.append(Int(info[80]) | Int(info[81]) << 8 | Int(info[82]) << 16)
        }
        ladder.finish()
        return windows
    }

    @Test func theWindowFollowsTheCube() throws {
        let windows = try windows("cubic", from: 200, seconds: 8)
        // K = cbrt(200 * 0.3 / 0.4) = 5.3 s: concave up to the plateau at the old window, convex behind it.
        #expect(windows[0] > 140 && windows[0] < 200)
        #expect(windows[1] - windows[0] > windows[3] - windows[2])
        #expect((190...215).contains(windows[5]))
        #expect(windows[7] > windows[5])
    }

    @Test func neverSlowerThanNewReno() throws {
        let cubic = try windows("cubic", from: 20, seconds: 3)
        let reno = try windows("newreno", from: 20, seconds: 3)
        // NewReno grows by a segment a round; CUBIC's estimate of it by 0.53 from a higher start, then by one.
        #expect(cubic[0] >= reno[0] - 2)
        #expect(cubic[2] >= reno[2] - 12)
        #expect(cubic[2] > cubic[0])
    }
}

import Glibc
import Kernel
import Lab
import PluginAPI
import Testing

/// CUBIC (RFC 9438) over an emulated path: 20 ms each way, without a bottleneck, so that all reductions are the test's.
@Suite struct TCPCubicTests {
    /// Windows in segments of a sender that always has something to send: before a reduction, of at least `start`, and
    /// then one a second.
    private func windows(_ algorithm: String, from start: Int, seconds: Int) throws -> [Int] {
        let ladder = try Ladder(seed: 7, ["sendbuf_auto": "0", "recvbuf_auto": "0"])
        let socket = try ladder.accept(scale: 14)
        #expect(socket.setOption(level: 6, name: 13, Array(algorithm.utf8)) == 0)
        #expect(socket.setOption(level: 1, name: 7, [0, 0, 32, 0]) == 0)
        var windows: [Int] = []
        func note() {
            // tcpi_snd_cwnd of Linux's struct tcp_info.
            let info = socket.getOption(level: 6, name: 11, capacity: 248).1
            windows.append(Int(info[80]) | Int(info[81]) << 8 | Int(info[82]) << 16)
        }
        var acknowledged = 1
        var hasLost = false
        /// One round: everything that was sent is acknowledged, two segments a time, after 40 ms.
        func round() {
            _ = socket.write([UInt8](repeating: 0, count: min(socket.sendSpace, 4 << 20)))
            ladder.run(40)
            let end = ladder.takeAll().map { ladder.sequence(of: $0) + $0.payload.count }.max() ?? acknowledged
            if !hasLost, (end - acknowledged) / 1460 >= start {
                hasLost = true
                note()
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
            note()
        }
        ladder.finish()
        return windows
    }

    @Test func theWindowFollowsTheCube() throws {
        let windows = try windows("cubic", from: 200, seconds: 8)
        let before = windows[0]
        // 0.7 of the window before, back at it after K = cbrt(before * 0.3 / 0.4) seconds: concave until then, convex
        // behind it.
        let plateau = Int(cbrt(Double(before) * 0.75).rounded())
        #expect((before * 7 / 10..<before).contains(windows[1]))
        #expect(windows[2] - windows[1] > windows[4] - windows[3])
        #expect((before * 97 / 100...before * 103 / 100).contains(windows[plateau]), "\(windows)")
        #expect(windows[8] > windows[plateau])
    }

    @Test func neverSlowerThanNewReno() throws {
        let cubic = try windows("cubic", from: 20, seconds: 3)
        let reno = try windows("newreno", from: 20, seconds: 3)
        // Both are back at the window before at about the same time, and then grow by a segment a round.
        for (mine, theirs) in zip(cubic, reno) { #expect(mine >= theirs - 4, "\(cubic) \(reno)") }
        #expect(cubic[3] > cubic[1])
    }
}

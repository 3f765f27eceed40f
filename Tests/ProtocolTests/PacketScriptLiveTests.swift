import Glibc
import Lab
import Testing

/// Scripts in real time, over a tap interface of their own.
@Suite(.serialized, .enabled(if: geteuid() == 0 && access("/dev/net/tun", R_OK | W_OK) == 0))
struct PacketScriptLiveTests {
    private func run(_ text: String) throws -> PacketScriptResult {
        var options = PacketScriptOptions()
        options.liveInterface = "alpspkt\(getpid() % 10000)"
        // The machine may be busy.
        try options.set("tolerance_usecs", "500000")
        return PacketScript.run(text: Array(text.utf8), path: "live.pkt", options)
    }

    private static let script = """
            0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
           +0 bind(3, ..., ...) = 0
           +0 listen(3, 1) = 0
           +0...0.1 accept(3, ..., ...) = 4
           +0 < S 0:0(0) win 32792 <mss 1000>
           +0 > S. 0:0(0) ack 1 <mss 1460>
          +.1 < . 1:1(0) ack 1 win 32792
           +0 write(4, ..., 2500) = 2500
           +0 > P. 1:2501(2500) ack 1
           +0 close(4) = 0
           +0 > F. 2501:2501(0) ack 1

        """

    @Test func scriptRunsOverATap() throws {
        let clock = ContinuousClock.now
        let result = try run(Self.script)
        #expect(result.outcome == .passed, "\(result.error?.description ?? "")")
        #expect(ContinuousClock.now - clock >= .milliseconds(100))
    }

    @Test func mismatchIsReported() throws {
        let result = try run(
            Self.script + "+0 < . 1:1(0) ack 2502 win 257\n+0 < P. 1:2(1) ack 2502 win 257\n+0 > F. 1:1(0) ack 1\n")
        guard case .failed(let error) = result.outcome else {
            Issue.record("\(result.outcome)")
            return
        }
        #expect(error.message.contains("error handling packet: live packet field"))
    }
}

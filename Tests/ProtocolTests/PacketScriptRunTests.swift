import Foundation
import Lab
import Testing

/// Runs the scripts under Tests/Packets. Those of the folder `mismatch` must fail, with the message that their first line
/// names.
@Suite struct PacketScriptRunTests {
    static let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("Packets").path

    static func scripts(_ isMismatch: Bool) -> [String] {
        let found = FileManager.default.enumerator(atPath: folder)?.compactMap { $0 as? String } ?? []
        return found.filter { $0.hasSuffix(".pkt") && $0.hasPrefix("mismatch/") == isMismatch }.sorted()
    }

    /// Times in virtual time are exact: no percentage is granted.
    static var options: PacketScriptOptions {
        get throws {
            var options = PacketScriptOptions()
            try options.set("tolerance_percent", "0")
            try options.set("no_extra_packets", nil)
            return options
        }
    }

    static func run(_ text: String, _ options: PacketScriptOptions? = nil) throws -> PacketScriptResult {
        PacketScript.run(text: Array(text.utf8), path: "t.pkt", try options ?? Self.options)
    }

    @Test(arguments: scripts(false)) func scriptPasses(_ name: String) throws {
        let result = PacketScript.run(path: "\(Self.folder)/\(name)", try Self.options)
        #expect(result.outcome == .passed, "\(result.error?.description ?? "")")
        #expect(result.warnings == [])
    }

    @Test(arguments: scripts(true)) func mismatchIsReported(_ name: String) throws {
        let path = "\(Self.folder)/\(name)"
        let first = try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n")[0]
        let wanted = first.replacingOccurrences(of: "// FAILS: ", with: "")
        let result = PacketScript.run(path: path, try Self.options)
        guard case .failed(let error) = result.outcome else {
            Issue.record("\(name): \(result.outcome)")
            return
        }
        #expect(error.message.contains(wanted))
        #expect(error.line > 0)
    }

    @Test func thereAreManyScripts() {
        #expect(Self.scripts(false).count >= 250)
        #expect(Self.scripts(true).count >= 15)
    }

    // MARK: What a report looks like

    private static let handshake = """
            0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
           +0 bind(3, ..., ...) = 0
           +0 listen(3, 1) = 0
           +0 < S 0:0(0) win 32792 <mss 1000>
           +0 > S. 0:0(0) ack 1 <...>
           +0 < . 1:1(0) ack 1 win 32792
           +0 accept(3, ..., ...) = 4

        """

    @Test func mismatchShowsScriptAndActualPacket() throws {
        let result = try Self.run(Self.handshake + "+0 write(4, ..., 10) = 10\n+0 > P. 1:11(10) ack 2 win 99\n")
        #expect(
            result.error?.description == """
                t.pkt:9: error handling packet: live packet field tcp_ack_seq: expected: 2 (0x2) vs actual: 1 (0x1)
                script packet: 0.000000 P. 1:11(10) ack 2 win 99
                actual packet: 0.000000 P. 1:11(10) ack 1 win 65535
                """)
    }

    @Test func nonFatalMismatchIsAWarning() throws {
        let result = try Self.run(
            "--non_fatal=packet,syscall\n" + Self.handshake
                + "+0 write(4, ..., 10) = 9\n+0 > P. 1:11(10) ack 2\n+0 close(4) = 0\n",
            PacketScriptOptions())
        #expect(result.outcome == .passed)
        #expect(result.warnings.count == 2)
    }

    @Test func unexpectedPacketIsFoundWhenTheNextIsDue() throws {
        let result = try Self.run(
            Self.handshake + "+0 write(4, ..., 10) = 10\n+0 close(4) = 0\n+0 > F. 11:11(0) ack 1\n")
        #expect(result.error?.message.contains("tcp_fin: expected: 1") == true)
    }

    @Test func extraPacketsAreAMismatchIfAsked() throws {
        let script = Self.handshake + "+0 write(4, ..., 10) = 10\n"
        let message = "t.pkt:8: a packet that the script does not name: 192.168.0.1:8080 > 192.0.2.1:49152 P."
        #expect(try Self.run(script).error?.description.hasPrefix(message) == true)
        #expect(try Self.run(script, PacketScriptOptions()).outcome == .passed)
    }

    @Test func missingPacketNamesWhatWasSentInstead() throws {
        let result = try Self.run(Self.handshake + "+0 < . 1:11(10) ack 1 win 10\n+.1 > icmp echo_reply\n")
        #expect(
            result.error?.message.contains("none was sent; others were: 192.168.0.1:8080 > 192.0.2.1:49152 .") == true)
    }

    @Test func verboseRunShowsPacketsAndCalls() throws {
        var options = try Self.options
        options.isVerbose = true
        let result = try Self.run(Self.handshake, options)
        #expect(result.output.contains("accept syscall: 0.000000"))
        #expect(
            result.output.contains {
                $0.hasPrefix("inbound packet: 0.000000 192.0.2.1:49152 > 192.168.0.1:8080 S 0:0(0)")
            })
        #expect(
            result.output.contains { $0.hasPrefix("outbound packet: 0.000000 192.168.0.1:8080 > 192.0.2.1:49152 S.") })
    }

    @Test func sameSeedSameRun() throws {
        var options = try Self.options
        options.isVerbose = true
        #expect(try Self.run(Self.handshake, options).output == Self.run(Self.handshake, options).output)
        let first = try Self.run(Self.handshake, options).output
        try options.set("seed", "2")
        #expect(try Self.run(Self.handshake, options).output != first)
    }

    // MARK: Refusals

    @Test(arguments: [
        ("0 `reboot`", "error executing command: command `reboot` is not understood here, and no shell is run"),
        ("0 `sysctl -q net.ipv4.tcp_nonsense=1`", "sysctl net.ipv4.tcp_nonsense has no counterpart here"),
        ("0 `sysctl net.inet.tcp.msl=banana`", "sysctl net.inet.tcp.msl=bananams: not a value of it"),
        ("0 `sysctl net.ipv4.tcp_congestion_control=bbr`", "can only be reno or cubic"),
        ("0 `ip route add default via 1.2.3.4`", "is not understood here"),
        ("0 fork() = 0", "there is no system call fork here"),
        ("0 socket(..., SOCK_NONSENSE, 0) = 3", "unknown symbol 'SOCK_NONSENSE'"),
        ("0 read(3, ..., 1) = 1", "the script has no descriptor 3"),
        ("0 %{ while True: pass }%", "'while' is beyond what is evaluated here"),
        ("0 %{ assert nonsense }%", "assertion: 'nonsense' is not known here"),
        ("--ip_version=ipv6\n0 close(3) = 0", "the stack speaks IPv4 only"),
        ("--wire_client\n0 close(3) = 0", "option --wire_client is refused: there is no wire"),
        ("--nonsense=1\n0 close(3) = 0", "there is no option --nonsense"),
    ])
    func refusalSaysWhy(_ script: String, _ message: String) throws {
        guard case .refused(let error) = try Self.run(script).outcome else {
            Issue.record("'\(script)' was not refused")
            return
        }
        #expect(error.message.contains(message), "\(error)")
        #expect(error.line == script.split(separator: "\n").count || script.hasPrefix("--") && error.line == 1)
    }

    @Test func missingFileIsRefused() throws {
        let result = PacketScript.run(path: "/nonexistent/a.pkt", try Self.options)
        #expect(result.error?.message == "cannot be read: ENOENT")
    }

    @Test func dryRunOnlyParses() throws {
        var options = try Self.options
        options.isDryRun = true
        #expect(try Self.run("0 fork() = 0", options).outcome == .passed)
        #expect(try Self.run("0 fork( = 0", options).outcome != .passed)
    }

    @Test func scriptsTakeMilliseconds() throws {
        let start = ContinuousClock.now
        for _ in 0..<100 {
            let result = try Self.run(Self.handshake)
            #expect(result.outcome == .passed)
        }
        // Ten times what it should be: the machine may be busy.
        #expect(ContinuousClock.now - start < .seconds(10))
    }
}

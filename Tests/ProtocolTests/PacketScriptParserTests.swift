import Lab
import Testing

/// The language of packet scripts: what is taken, and what is said of what is not.
@Suite struct PacketScriptParserTests {
    private func error(_ text: String, definitions: [String: String] = [:]) -> PacketScriptError? {
        do {
            _ = try PacketScript(text: text, path: "t.pkt", definitions: definitions)
            return nil
        } catch { return error as? PacketScriptError }
    }

    @Test(arguments: [
        "0 close(3) = 0",
        "+0.000 close(3) = 0 // note",
        "0 < S 0:0(0) win 65535 <mss 1460,sackOK,TS val 1 ecr 0,nop,wscale 14>",
        "0 < S 0:0(0) win 65535 <mss 1460, nop, wscale 6, sackOK, eol, nop>",
        "0 < S 4294967295:4294967295(0) win 0",
        "0 < FPU. 1:11(10) ack 1 win 5 urg 7",
        "0 < SEWA 0:0(0) win 5",
        "0 < .5 1:1(0) ack 1 win 5",
        "0 < P.7 1:2(1) ack 1 win 5",
        "0 < - 1:1(0) win 5",
        "0 < R. 1:1(0) ack 1",
        "0 > S. 0:0(0) ack 1 <...>",
        "0 > . 1:1(0) ack 1 <nop,nop,sack 1:2 3:4 5:6>",
        "0 > . 1:1(0) ack 1 <nop,nop,TS val ... ecr 5!>",
        "0 > . 4000000000:4000000010(10)! ack 1",
        "0 > . ...(10) ack 1",
        "0 > S 0:0(0) <mss 1460,FO,nop,nop>",
        "0 < S 0:10(10) win 5 <mss 1460,FO 0123456789abcdef,nop,nop>",
        "0 < S 0:0(0) win 5 <FOEXP,exp-FO aabb,nop,nop>",
        "0 < . 1:1(0) ack 1 win 5 <md5 000102030405060708090a0b0c0d0e0f,nop,nop>",
        "0 > . 1:1(0) ack 1 <AccECN0 ee0b 1 eceb 0 ee1b 1,nop>",
        "0 > [ect0] WAP.  1:1(0) ack 1 <ECN e1b 1 ceb 0 e0b 1 ,nop>",
        "0 <[noecn] . 1:1(0) ack 1 win 5",
        "0 >[ect01] . 1:1(0) ack 1",
        "0 > (ecn ce, ttl 5) . 1:1(0) ack 1",
        "0 > [dscp AF41, ecn ect1] . 1:1(0) ack 1",
        "0 > [tos 0x03] 8080 > 5000 . 1:1(0) ack 1",
        "0 < udp (100)",
        "0 > udp 80 > 81 (0)",
        "0 < icmp unreachable frag_needed mtu 1200 [1:1461(1460)]",
        "0 < icmp type_3 code_13 [udp (1000)]",
        "0 > icmp echo_reply id 5 [raw (64)]",
        "0 < icmp time_exceeded\n0 < icmp redirect",
        "*  > . 1:1(0) ack 1",
        "0~1.5 > . 1:1(0) ack 1",
        "+.1~+.2 > . 1:1(0) ack 1",
        "0...0.5 accept(3, ..., ...) = 4",
        "+.1...1 connect(3, ..., ...) = -1 ETIMEDOUT (Connection timed out)",
        "0 fcntl(3, F_GETFL) = 0x2 (flags O_RDWR|O_NONBLOCK)",
        "0 setsockopt(3, SOL_SOCKET, SO_LINGER, {onoff=1, linger=5}, 8) = 0",
        "0 recvmsg(3, {msg_name(...)=..., msg_iov(2)=[{..., 10}, {..., 20}], msg_flags=MSG_TRUNC|MSG_CTRUNC}, 0) = 30",
        "0 bind(3, {sa_family = AF_INET, sin_port = htons(80), sin_addr = inet_addr(\"1.2.3.4\")}, ...) = 0",
        "0 poll([{fd=4, events=POLLIN|POLLOUT, revents=POLLOUT}], 1, 0) = 1",
        "0 epoll_ctl(5, EPOLL_CTL_ADD, 4, {events=EPOLLIN|EPOLLET, u64=4}) = 0",
        "0 write(3, \"ab\\x00\\n\" \"cd\"..., 6) = 6",
        "0 foo([]) = 0",
        "`true`\n0 close(3) = 0\n`true`",
        "--mtu=1500 --define=A=\"b c\"\n--strict_segments\n0 close(3) = 0",
        "/* a\n* b */ 0 close(3) = 0 // end",
        "# shell\n0 close(3) = 0",
        "0 %{ assert 1 }% 0 close(3) = 0",
    ])
    func accepts(_ script: String) { #expect(error(script) == nil) }

    @Test(arguments: [
        ("", 1, "the script has no events"),
        ("close(3) = 0", 1, "parse error at 'close': expected a time"),
        ("0 close(3", 1, "expected ')'"),
        ("0 close(3)", 1, "expected '='"),
        ("0 close(3) =", 1, "expected an expression"),
        ("0 close(3) = 0 (no end", 1, "expected ')'"),
        ("\n\n0 < X 0:0(0) win 1", 3, "'X' is not a TCP flag"),
        ("0 < S 0:1(0) win 1", 1, "start and length do not make the end"),
        ("0 < S 0:0(0)", 1, "an inbound TCP packet needs its window"),
        ("0 < S 0:0(0) win 65536", 1, "the window 65536 is outside"),
        ("0 < S 0:0(0) win 1 <mss 1460,nop>", 1, "the TCP options take 5 bytes: pad them"),
        ("0 < S 0:0(0) win 1 <...>", 1, "<...> is for outbound packets only"),
        ("0 < S 0:0(0) win 1 <mss>", 1, "expected mss"),
        ("0 < S 0:0(0) win 1 <foo>", 1, "'foo' is not a TCP option"),
        ("0 < S 0:0(0) win 1 <FO abc,nop>", 1, "odd number of hexadecimal digits"),
        ("0 < S 0:0(0) win 1 <FO zz,nop>", 1, "'zz' is not hexadecimal"),
        ("0 < S 0:0(0) win 1 <sack 1:2 3:4 5:6 7:8,TS val 1 ecr 2>", 1, "take 44 bytes; 40 is the most"),
        ("0 < . 1:1(0) ack 5000000000 win 1", 1, "the acknowledgment 5000000000 is outside"),
        ("0 < [ect01] . 1:1(0) ack 1 win 1", 1, "[ect01] is for outbound packets only"),
        ("0 < [bogus] . 1:1(0) ack 1 win 1", 1, "'bogus' is not an IPv4 field"),
        ("0 < icmp nonsense", 1, "'nonsense' is not an ICMP type"),
        ("0 < icmp unreachable nonsense", 1, "'nonsense' is not a code of ICMP unreachable"),
        ("0 < icmp echo_request mtu 5", 1, "an MTU is for unreachable frag_needed only"),
        ("0 < sctp: INIT", 1, "sctp is not supported"),
        ("0 < ipv4 1.2.3.4 > 2.3.4.5: udp (1)", 1, "packets inside packets (ipv4) are not supported"),
        ("-1 close(3) = 0", 1, "-1 is not a time"),
        ("2~1 > . 1:1(0)", 1, "the time range runs backwards"),
        ("* close(3) = 0", 1, "a time range or '*' is for outbound packets only"),
        ("0~1 < . 1:1(0) win 1", 1, "a time range or '*' is for outbound packets only"),
        ("0 close(3) = 0\n`true`\n0 close(4) = 0", 2, "a command between events needs a time"),
        ("0 close(3) = 0\n--mtu=5", 2, "option --mtu must stand before the first event"),
        ("0 %{ assert 1", 1, "%{ has no }%"),
        ("0 `sysctl", 1, "a command has no end"),
        ("0 write(3, \"abc, 3) = 3", 1, "a string has no end"),
        ("/* 0 close(3) = 0", 1, "a comment /* has no end"),
        ("0 ?", 1, "parse error at '?'"),
    ])
    func explains(_ script: String, _ line: Int, _ message: String) {
        let found = error(script)
        #expect(found?.message.contains(message) == true, "\(found?.description ?? "accepted")")
        #expect(found?.line == line)
    }

    @Test func definitionsStandForTokens() {
        #expect(error("0 < S 0:0(0) win WINDOW", definitions: ["WINDOW": "100"]) == nil)
        #expect(error("0 < S 0:0(0) win WINDOW") != nil)
        #expect(error("0 COMMAND", definitions: ["COMMAND": "`true`"]) == nil)
        #expect(error("--define=WINDOW=100\n0 < S 0:0(0) win WINDOW") == nil)
    }

    @Test func deepNestingIsRefused() {
        let brackets = String(repeating: "[", count: 1000)
        #expect(error("0 foo(\(brackets)") != nil)
        #expect(error("0 foo(" + String(repeating: "{a=", count: 1000)) != nil)
    }

    @Test func errorsNameFileAndLine() {
        #expect(error("0 close(3) = 0\n0 close(")?.description.hasPrefix("t.pkt:2: parse error at the end") == true)
    }
}

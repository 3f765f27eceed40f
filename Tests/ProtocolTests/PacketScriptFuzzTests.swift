import Foundation
import Lab
import Testing

/// Whatever text it is given, the runner answers: with a result or with an error, never with a crash.
@Suite struct PacketScriptFuzzTests {
    /// xorshift64*: the same scripts every time.
    private struct Random {
        var state: UInt64

        mutating func next(_ bound: Int) -> Int {
            state ^= state >> 12
            state ^= state << 25
            state ^= state >> 27
            return Int((state &* 2_685_821_657_736_338_717) >> 33) % max(bound, 1)
        }

        mutating func pick<Element>(_ list: [Element]) -> Element { list[next(list.count)] }
    }

    private static let pieces = [
        "0 ", "+0 ", "+.1 ", "* ", "0~1 ", "...", "< ", "> ", "S ", ". ", "S. ", "P. ", "F. ", "R ", ".5 ", "- ",
        "0:0(0) ", "1:1(0) ", "1:101(100) ", "ack 1 ", "win 100 ", "urg 5 ", "<mss 1000>", "<...>", "<sack 1:2>", "<",
        ">", "(", ")", "[", "]", "{", "}", "=", "|", ",", "socket(..., SOCK_STREAM, IPPROTO_TCP) = 3\n",
        "close(3) = 0\n", "write(3, ..., 100) = 100\n", "accept(3, ..., ...) = 4\n", "udp (10)\n",
        "icmp echo_request\n",
        "icmp unreachable frag_needed mtu 60 ", "%{ assert 1 }%\n", "%{", "}%", "`sysctl a=b`\n", "`", "\"", "/*", "*/",
        "//", "#", "\n", "--mtu=70\n", "--define=a=b\n", "-1 ", "0x ", "0xffff ", "99999999999999999999 ", "1.2.3.4 ",
        "2147483647:2147483647(0) ", "4294967295 ", "é", "\u{0}", "EAGAIN (x) ", "htons(80) ", "-1 EINVAL\n",
    ]

    private static let seeds: [String] = PacketScriptRunTests.scripts(false).compactMap {
        try? String(contentsOfFile: "\(PacketScriptRunTests.folder)/\($0)", encoding: .utf8)
    }

    private func mutated(_ random: inout Random) -> [UInt8] {
        var bytes = Array(random.pick(Self.seeds).utf8)
        for _ in 0...random.next(4) {
            let at = random.next(bytes.count + 1)
            switch random.next(6) {
            case 0: bytes.insert(contentsOf: Array(random.pick(Self.pieces).utf8), at: at)
            case 1 where at < bytes.count: bytes[at] = UInt8(random.next(256))
            case 2:
                let end = min(bytes.count, at + random.next(30))
                bytes.removeSubrange(at..<end)
            case 3:
                let end = min(bytes.count, at + random.next(80))
                bytes.insert(contentsOf: Array(bytes[at..<end]), at: random.next(bytes.count + 1))
            case 4 where at < bytes.count: bytes[at] = UInt8(48 + random.next(10))
            default: bytes.removeLast(min(bytes.count, random.next(40)))
            }
        }
        return bytes
    }

    private func check(_ text: [UInt8], _ options: PacketScriptOptions) {
        let result = PacketScript.run(text: text, path: "fuzz.pkt", options)
        if case .refused(let error) = result.outcome { #expect(!error.message.isEmpty) }
        if case .failed(let error) = result.outcome {
            #expect(!error.message.contains("are left after the end"), "\(String(decoding: text, as: UTF8.self))")
        }
    }

    @Test(arguments: 1...4) func anyWordsParseOrFailInOrder(_ seed: UInt64) {
        var random = Random(state: seed &* 0x9e37_79b9_7f4a_7c15)
        for _ in 0..<3000 {
            let text = (0...random.next(25)).map { _ in random.pick(Self.pieces) }.joined()
            do { _ = try PacketScript(text: text) } catch {
                #expect((error as? PacketScriptError)?.message.isEmpty == false)
            }
        }
    }

    @Test(arguments: 1...4) func anyBytesParseOrFailInOrder(_ seed: UInt64) {
        var random = Random(state: seed &* 0x9e37_79b9_7f4a_7c15)
        for _ in 0..<1000 {
            let bytes = (0...random.next(200)).map { _ in UInt8(random.next(256)) }
            do { _ = try PacketScript(text: bytes, path: "f.pkt") } catch {
                #expect((error as? PacketScriptError)?.message.isEmpty == false)
            }
        }
    }

    @Test(arguments: 1...4) func changedScriptsRunOrFailInOrder(_ seed: UInt64) throws {
        var random = Random(state: seed &* 0x9e37_79b9_7f4a_7c15)
        let options = try PacketScriptRunTests.options
        #expect(Self.seeds.count > 40)
        for _ in 0..<200 { check(mutated(&random), options) }
    }
}

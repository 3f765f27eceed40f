import Glibc
import Kernel
import PluginAPI
import Testing

/// Bytes from outside: what is no request is refused or ignored, and every answer is well-formed.
@Suite struct NetlinkFuzzTests {
    private struct Random: RandomNumberGenerator {
        var state: UInt64

        mutating func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state ^ state >> 31
        }
    }

    /// Requests that are in order, to be damaged.
    private static let route: [[UInt8]] = [
        NetlinkClient.message(18, 0x300) { $0.link(); $0.attribute(29, UInt32(1)) },
        NetlinkClient.message(18, 4) { $0.link(2); $0.attribute(3, text: "a0") },
        NetlinkClient.message(16, 4) { $0.link(2, flags: 1, change: 1); $0.attribute(4, UInt32(1400)) },
        NetlinkClient.message(17, 4) { $0.link(2) },
        NetlinkClient.message(22, 0x300) { $0.address(0, 0) },
        NetlinkClient.message(20, 0x604) {
            $0.address(2, 24)
            $0.attribute(2, ipv4Bytes("10.9.0.1"))
            $0.attribute(1, ipv4Bytes("10.9.0.1"))
            $0.attribute(4, ipv4Bytes("10.9.0.255"))
            $0.attribute(6, [UInt8](repeating: 0xff, count: 16))
        },
        NetlinkClient.message(21, 4) { $0.address(2, 24); $0.attribute(2, ipv4Bytes("10.9.0.1")) },
        NetlinkClient.message(26, 0x300) { $0.route(0, kind: 0); $0.attribute(15, UInt32(254)) },
        NetlinkClient.message(26, 4) { $0.route(32, kind: 0); $0.attribute(1, ipv4Bytes("10.0.0.2")) },
        NetlinkClient.message(24, 0x604) {
            $0.route(24)
            $0.attribute(1, ipv4Bytes("192.0.2.0"))
            $0.attribute(5, ipv4Bytes("10.0.0.2"))
            $0.attribute(6, UInt32(3))
            $0.attribute(8) { $0.attribute(2, UInt32(1300)) }
        },
        NetlinkClient.message(25, 4) { $0.route(24, kind: 0, scope: 255); $0.attribute(1, ipv4Bytes("192.0.2.0")) },
        NetlinkClient.message(30, 0x300) { $0.neighbor(0) },
        NetlinkClient.message(28, 0x604) {
            $0.neighbor(2, state: 0x80)
            $0.attribute(1, ipv4Bytes("10.0.0.77"))
            $0.attribute(2, [2, 0, 0, 0, 0, 1] as [UInt8])
        },
        NetlinkClient.message(29, 4) { $0.neighbor(2); $0.attribute(1, ipv4Bytes("10.0.0.77")) },
        NetlinkClient.message(90, 4) { $0.append([UInt8(0), 0, 0, 0]); $0.attribute(4, UInt32(3)) },
    ]

    private static let diagnosis: [[UInt8]] = [
        NetlinkClient.message(20, 0x300) {
            $0.sockets(6, extensions: 0xff)
            $0.attribute(1, [2, 8, 20, 0, 0, 0, 80, 0, 7, 16, 20, 0, 2, 24, 0, 0, 255, 255, 255, 255, 10, 0, 0, 9] as [UInt8])
        },
        NetlinkClient.message(20, 0x300) { $0.sockets(17) },
        NetlinkClient.message(20, 4) { $0.sockets(6, local: ("10.0.0.1", 80), remote: ("10.0.0.2", 0)) },
        NetlinkClient.message(21, 4) { $0.sockets(6) },
    ]

    private func damaged(_ original: [UInt8], _ random: inout Random) -> [UInt8] {
        var bytes = original
        for _ in 0..<Int.random(in: 1...6, using: &random) {
            let place = Int.random(in: 0..<bytes.count, using: &random)
            switch Int.random(in: 0..<6, using: &random) {
            case 0: bytes[place] = UInt8.random(in: 0...255, using: &random)
            case 1: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            case 2: bytes[place] = [0, 1, 3, 4, 0x7f, 0x80, 0xff].randomElement(using: &random)!
            case 3: bytes.insert(UInt8.random(in: 0...255, using: &random), at: place)
            case 4 where bytes.count > 1: bytes.removeLast(Int.random(in: 1..<bytes.count, using: &random))
            default: bytes += bytes[place...]
            }
            if bytes.count > 4096 { bytes.removeLast(bytes.count - 4096) }
        }
        // Mostly with a length that is right, so that what is behind the header is looked at.
        if bytes.count >= 16, Int.random(in: 0..<4, using: &random) != 0 {
            withUnsafeBytes(of: UInt32(bytes.count)) { bytes.replaceSubrange(0..<4, with: $0) }
        }
        return bytes
    }

    @Test(arguments: [Int32(0), 4]) func aHundredThousandMessagesDoNoHarm(family: Int32) throws {
        let hosts = try Hosts()
        let kernel = hosts.a
        let client = try NetlinkClient(kernel, family: family)
        let listener = try NetlinkClient(kernel)
        #expect(listener.socket.bind(port: 0, groups: .max) == 0)
        let device = try #require(kernel.interfaces.all.first { !$0.isLoopback })
        let socket = try hosts.stream(kernel)
        #expect(socket.bind(any(80)) == 0 && socket.listen(1) == 0)
        let templates = family == 0 ? Self.route : Self.diagnosis
        var random = Random(state: UInt64(family) + 42)
        var answers = 0
        var errors: Set<Int32> = []
        for round in 0..<50_000 {
            if round % 8 == 0 {
                let isStrict = round % 16 == 0
                _ = client.socket.setOption(270, 12, option(isStrict ? 1 : 0), isRoot: true)
                _ = client.socket.setOption(270, 11, option(isStrict ? 1 : 0), isRoot: true)
            }
            let bytes: [UInt8]
            if round % 5 == 0 {
                bytes = (0..<Int.random(in: 1...120, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
            } else {
                bytes = damaged(templates.randomElement(using: &random)!, &random)
            }
            _ = client.socket.send(bytes, mayChange: round % 3 != 0)
            for message in client.receive() {
                answers += 1
                if message.type == 2 { errors.insert(message.errno) }
            }
            _ = listener.receive()
            guard round % 500 == 0 else { continue }
            // What came to be is taken away, so that the tables stay small.
            while kernel.routes.removeFirst(where: { $0.flags & UInt32(ALPS_RTF_STATIC) != 0 }) {}
            for address in device.addresses.dropFirst() { _ = kernel.interfaces.deleteAddress(device, address.addr) }
            hosts.run(10)
        }
        #expect(answers > 10_000)
        #expect(errors.contains(EINVAL))
        #expect(errors.allSatisfy { (0..<134).contains($0) })
        #expect(kernel.interfaces.all.count == 2)
        // Whole, it still answers.
        _ = client.socket.setOption(270, 12, option(0), isRoot: true)
        if family == 0 { #expect(client.dump(18) { $0.link() }.count == 2) }
        socket.close()
    }
}

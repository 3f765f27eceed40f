import CLinux
import Glibc
import Kernel
import Testing

/// A frame whose bytes end where memory ends: a read beyond them is a crash.
final class GuardedFrame {
    private let base: UnsafeMutableRawPointer
    let frame: LinkFrame

    init(_ bytes: [UInt8], protocolNumber: UInt16 = 0x0800, kind: UInt8 = 0) {
        base = mmap(nil, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
        mprotect(base + 2 * 4096, 4096, PROT_NONE)
        let start = base + 2 * 4096 - bytes.count
        start.copyMemory(from: bytes, byteCount: bytes.count)
        frame = LinkFrame(
            bytes: UnsafePointer(start.assumingMemoryBound(to: UInt8.self)), length: bytes.count,
            protocolNumber: protocolNumber, kind: kind, ifindex: 7, hardwareType: 1, timestamp: 0)
    }

    deinit { munmap(base, 3 * 4096) }
}

@Suite struct PacketFilterTests {
    private typealias I = FilterInstruction

    /// What `tcpdump -ddd tcp port 80` prints for Ethernet, IPv4 alone.
    private static let web: [I] = [
        I(0x28, 12), I(0x15, jt: 0, jf: 10, 0x0800), I(0x30, 23), I(0x15, jt: 0, jf: 8, 6), I(0x28, 20),
        I(0x45, jt: 6, jf: 0, 0x1fff), I(0xb1, 14), I(0x48, 14), I(0x15, jt: 2, jf: 0, 80), I(0x48, 16),
        I(0x15, jt: 0, jf: 1, 80), I(0x06, 262_144), I(0x06, 0),
    ]

    private static func segment(from source: UInt16, to target: UInt16, options: Int = 0) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 14 + 20 + options + 20)
        bytes[12] = 8
        bytes[14] = 0x45 + UInt8(options / 4)
        bytes[23] = 6
        let ports = 14 + 20 + options
        for (offset, port) in [(0, source), (2, target)] {
            bytes[ports + offset] = UInt8(port >> 8)
            bytes[ports + offset + 1] = UInt8(port & 255)
        }
        return bytes
    }

    private func run(_ program: [FilterInstruction], _ bytes: [UInt8], from origin: Int = 0) throws -> UInt32 {
        let filter = try #require(PacketFilter(program))
        let guarded = GuardedFrame(bytes)
        return filter.run(guarded.frame, from: origin) { 42 }
    }

    @Test func anExpressionPicksItsFrames() throws {
        #expect(try run(Self.web, Self.segment(from: 1025, to: 80)) == 262_144)
        #expect(try run(Self.web, Self.segment(from: 80, to: 1025)) == 262_144)
        // Options move the ports.
        #expect(try run(Self.web, Self.segment(from: 1025, to: 80, options: 8)) == 262_144)
        #expect(try run(Self.web, Self.segment(from: 1025, to: 81)) == 0)
        var datagram = Self.segment(from: 80, to: 80)
        datagram[23] = 17
        #expect(try run(Self.web, datagram) == 0)
        // A frame that ends before what is asked for.
        #expect(try run(Self.web, Array(Self.segment(from: 80, to: 80).prefix(30))) == 0)
    }

    @Test func whatIsNotOfTheFrameHasOffsetsOfItsOwn() throws {
        let bytes = (0..<64).map { UInt8($0) }
        func loaded(_ offset: Int32, _ origin: Int, size: UInt16 = 0x20) throws -> UInt32 {
            try run([I(size, UInt32(bitPattern: offset)), I(0x16, 0)], bytes, from: origin)
        }
        #expect(try loaded(-0x1000, 0) == 0x0800)  // SKF_AD_PROTOCOL
        #expect(try loaded(-0x1000 + 8, 0) == 7)  // the interface
        #expect(try loaded(-0x1000 + 28, 0) == 1)  // ARPHRD_ETHER
        #expect(try loaded(-0x1000 + 56, 0) == 42)  // a random number
        // From the network header, from the link header, from what the socket sees.
        #expect(try loaded(-0x100000, 0, size: 0x30) == 14)
        #expect(try loaded(-0x200000, 14, size: 0x30) == 0)
        #expect(try loaded(0, 14, size: 0x30) == 14)
        // LEN counts what the socket sees.
        #expect(try run([I(0x80), I(0x16, 0)], bytes, from: 14) == 50)
        #expect(try loaded(-0x1000 + 4, 0) == 0)
    }

    @Test(arguments: [
        ("nothing", []),
        ("too long", [FilterInstruction](repeating: FilterInstruction(0x06, 1), count: 4097)),
        ("no end", [FilterInstruction(0x00, 1)]),
        ("an unknown code", [FilterInstruction(0xff, 1), FilterInstruction(0x06, 1)]),
        ("a return of X", [FilterInstruction(0x0e, 1)]),
        ("a jump past the end", [FilterInstruction(0x05, 1), FilterInstruction(0x06, 1)]),
        ("a long jump", [FilterInstruction(0x05, .max), FilterInstruction(0x06, 1)]),
        ("a branch past the end", [FilterInstruction(0x15, jt: 1, jf: 0, 0), FilterInstruction(0x06, 1)]),
        ("a division by nothing", [FilterInstruction(0x34, 0), FilterInstruction(0x06, 1)]),
        ("a remainder of nothing", [FilterInstruction(0x94, 0), FilterInstruction(0x06, 1)]),
        ("a shift too far", [FilterInstruction(0x64, 32), FilterInstruction(0x06, 1)]),
        ("memory that is not there", [FilterInstruction(0x02, 16), FilterInstruction(0x06, 1)]),
        ("memory never written", [FilterInstruction(0x60, 0), FilterInstruction(0x06, 1)]),
        ("memory written on one way only", [
            FilterInstruction(0x15, jt: 1, jf: 0, 0), FilterInstruction(0x02, 3), FilterInstruction(0x60, 3),
            FilterInstruction(0x06, 1),
        ]),
        ("an unknown extension", [FilterInstruction(0x20, UInt32(bitPattern: -0x1000 + 1)), FilterInstruction(0x06, 1)]),
    ] as [(String, [FilterInstruction])]) func isRefused(what: String, program: [FilterInstruction]) {
        #expect(PacketFilter(program) == nil, "\(what)")
    }

    @Test func theBytesOfAProgramAreThoseThatCame() throws {
        let filter = try #require(PacketFilter(Self.web))
        #expect(try #require(PacketFilter(bytes: filter.bytes)).instructions == Self.web)
        #expect(PacketFilter(bytes: Array(filter.bytes.dropLast())) == nil)
    }

    // MARK: Beside the system's

    private struct Random: RandomNumberGenerator {
        var state: UInt64

        mutating func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state ^ state >> 31
        }
    }

    private static let codes: [UInt16] = [
        0x00, 0x01, 0x02, 0x03, 0x04, 0x0c, 0x14, 0x1c, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x3c, 0x40, 0x44, 0x48, 0x4c, 0x50,
        0x54, 0x5c, 0x60, 0x61, 0x64, 0x6c, 0x74, 0x7c, 0x80, 0x81, 0x84, 0x94, 0x9c, 0xa4, 0xac, 0xb1, 0x05, 0x15, 0x1d, 0x25,
        0x2d, 0x35, 0x3d, 0x45, 0x4d, 0x06, 0x16, 0x07, 0x87,
    ]

    private func program(_ random: inout Random) -> [FilterInstruction] {
        let count = Int.random(in: 1...14, using: &random)
        var program: [FilterInstruction] = []
        for place in 0..<count {
            // Now and then one that nobody knows.
            let code = Int.random(in: 0..<60, using: &random) == 0
                ? UInt16.random(in: 0...255, using: &random) : Self.codes.randomElement(using: &random)!
            let left = count - place - 1
            let k: UInt32 = switch Int.random(in: 0..<16, using: &random) {
            case 0: UInt32.random(in: 0 ... .max, using: &random)
            case 1: UInt32(bitPattern: -0x1000 + Int32.random(in: 0...64, using: &random))
            default: UInt32.random(in: 0...UInt32(code == 0x05 ? max(left, 1) : code & 7 == 0 ? 70 : 17), using: &random)
            }
            program.append(
                FilterInstruction(
                    code, jt: UInt8.random(in: 0...UInt8(max(left, 1)), using: &random),
                    jf: UInt8.random(in: 0...UInt8(max(left, 1)), using: &random), k))
        }
        if Int.random(in: 0..<8, using: &random) != 0 {
            let end: UInt16 = Bool.random(using: &random) ? 0x06 : 0x16
            program.append(FilterInstruction(end, UInt32.random(in: 0...80, using: &random)))
        }
        return program
    }

    /// Loads of what differs between a frame and a message of the system's sockets.
    private func isComparable(_ program: [FilterInstruction]) -> Bool {
        program.allSatisfy { $0.code & 0xe7 != 0x20 || $0.k < 0x8000_0000 }
            && !program.contains { $0.code & 0xe7 == 0x40 && $0.k >= 0x8000_0000 }
    }

    /// The kernel of this machine as the reference: the same programs are accepted, and they want the same of a message.
    @Test func randomProgramsDoWhatTheSystemsDo() throws {
        var random = Random(state: 20)
        var ends: [Int32] = [-1, -1]
        try #require(socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0, &ends) == 0)
        defer { ends.forEach { close($0) } }
        var accepted = 0
        var compared = 0
        for _ in 0..<40_000 {
            var program = program(&random)
            let filter = PacketFilter(program)
            let status = program.withUnsafeMutableBytes { raw in
                var code = sock_fprog()
                // The same layout: a code, two bytes, a word.
                code.len = UInt16(raw.count / 8)
                code.filter = raw.baseAddress?.assumingMemoryBound(to: sock_filter.self)
                return setsockopt(ends[1], SOL_SOCKET, SO_ATTACH_FILTER, &code, socklen_t(MemoryLayout<sock_fprog>.size))
            }
            #expect((filter != nil) == (status == 0), "\(program)")
            guard let filter, status == 0 else { continue }
            accepted += 1
            let bytes = (0..<Int.random(in: 1...80, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
            let guarded = GuardedFrame(bytes)
            let wanted = Int(filter.run(guarded.frame, from: 0) { 0 })
            guard isComparable(program) else { continue }
            compared += 1
            // What a filter does not want is tossed, and its sender hears nothing.
            #expect(send(ends[0], bytes, bytes.count, Int32(MSG_DONTWAIT)) == bytes.count)
            var place = [UInt8](repeating: 0, count: 128)
            let got = recv(ends[1], &place, place.count, Int32(MSG_DONTWAIT))
            #expect(max(got, 0) == min(wanted, bytes.count), "\(program) on \(bytes)")
        }
        #expect(accepted > 3_000 && compared > 2_000)
    }
}

import CLinux
import Glibc
import Kernel
import PluginAPI
import Testing

/// Rings of packet sockets: what the host writes for a program that has mapped them, and what it makes of what the program
/// writes.
@Suite struct PacketRingTests {
    private typealias Bench = LinkSocketTests.Bench

    private func request(
        _ blockSize: UInt32, _ blocks: UInt32, _ frameSize: UInt32, _ more: [UInt32] = []
    ) -> [UInt8] {
        ([blockSize, blocks, frameSize, frameSize == 0 ? 0 : blockSize / frameSize * blocks] + more).flatMap { word in
            withUnsafeBytes(of: word) { Array($0) }
        }
    }

    /// A socket with a receive ring of so many frames, or blocks.
    private func ring(_ bench: Bench, version: UInt8, _ value: [UInt8]) throws -> (LinkSocket, RingMemory) {
        let socket = try bench.socket()
        #expect(socket.setOption(263, 10, [version - 1, 0, 0, 0], isRoot: true) == 0)
        try #require(socket.setOption(263, 5, value, isRoot: true) == 0)
        return (socket, try #require(socket.ringMemory))
    }

    private func word(_ memory: RingMemory, _ offset: Int) -> UInt32 {
        memory.base.loadUnaligned(fromByteOffset: offset, as: UInt32.self)
    }
    private func half(_ memory: RingMemory, _ offset: Int) -> UInt16 {
        memory.base.loadUnaligned(fromByteOffset: offset, as: UInt16.self)
    }
    private func give(_ memory: RingMemory, _ offset: Int) {
        memory.base.storeBytes(of: 0, toByteOffset: offset, as: UInt32.self)
    }
    private func bytes(_ memory: RingMemory, _ offset: Int, _ count: Int) -> [UInt8] {
        Array(UnsafeRawBufferPointer(start: memory.base + offset, count: count))
    }

    private func statistics(_ socket: LinkSocket) -> [UInt32] {
        let value = socket.getOption(263, 6, value: [], capacity: 64).value
        return value.withUnsafeBytes { raw in
            (0..<raw.count / 4).map { raw.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self) }
        }
    }

    // MARK: Frames

    @Test(arguments: [UInt8(1), 2]) func aFrameLiesInItsSlotAsLinuxPutsIt(version: UInt8) throws {
        let bench = try Bench()
        let (socket, memory) = try ring(bench, version: version, request(4096, 2, 2048))
        var filled = 0
        socket.onFilled = { filled += 1 }
        let frame = Bench.frame(100, type: 0x88b5)
        bench.arrive(frame)
        #expect(filled == 1 && socket.isRingReadable)
        #expect(word(memory, 0) & 1 == 1)
        let at = version == 1 ? 8 : 4
        #expect(word(memory, at) == 100 && word(memory, at + 4) == 100)
        #expect(half(memory, at + 8) == 66 && half(memory, at + 10) == 80)
        #expect(bytes(memory, 66, 100) == frame)
        // struct sockaddr_ll.
        #expect(half(memory, 32) == 17 && half(memory, 34) == 0xb588 && word(memory, 36) == bench.index)
        #expect(bytes(memory, 42, 2) == [0, 6] && bytes(memory, 44, 6) == Bench.other)
        give(memory, 0)
        #expect(!socket.isRingReadable)
        bench.finish()
    }

    @Test func aFullRingLosesFramesAndSaysSo() throws {
        let bench = try Bench()
        let (socket, memory) = try ring(bench, version: 2, request(4096, 2, 2048))
        for tag in 0..<6 { bench.arrive(Bench.frame(60, tag: UInt8(tag))) }
        #expect((0..<4).allSatisfy { word(memory, $0 * 2048) & 1 == 1 })
        // The last one is not given back: readable, as Linux' poll has it.
        for slot in 0..<3 { give(memory, slot * 2048) }
        #expect(socket.isRingReadable)
        bench.arrive(Bench.frame(60, tag: 9))
        // Losses are told with the next frame, in the first slot again.
        #expect(word(memory, 0) & 4 == 4)
        #expect(bytes(memory, 66, 60) == Bench.frame(60, tag: 9))
        #expect(statistics(socket) == [7, 2])
        #expect(statistics(socket) == [0, 0])
        bench.finish()
    }

    @Test func whatDoesNotFitIsCut() throws {
        let bench = try Bench()
        let (_, memory) = try ring(bench, version: 2, request(4096, 1, 128))
        bench.arrive(Bench.frame(1000))
        #expect(word(memory, 4) == 1000 && word(memory, 8) == 128 - 66)
        #expect(bytes(memory, 66, 62) == Array(Bench.frame(1000).prefix(62)))
        // The next slot is untouched.
        #expect(bytes(memory, 128, 128).allSatisfy { $0 == 0 })
        bench.finish()
    }

    // MARK: Blocks

    @Test func aBlockIsHandedOverWhenItIsFull() throws {
        let bench = try Bench()
        let (socket, memory) = try ring(bench, version: 3, request(4096, 3, 2048, [1000, 0, 0]))
        var filled = 0
        socket.onFilled = { filled += 1 }
        // Each takes 82 + 400 bytes, rounded up to 488: eight fit into 4096 - 48.
        for tag in 0..<8 { bench.arrive(Bench.frame(400, tag: UInt8(tag))) }
        #expect(filled == 0 && word(memory, 8) == 0)
        bench.arrive(Bench.frame(400, tag: 8))
        #expect(filled == 1 && word(memory, 8) == 1)
        #expect(word(memory, 0) == 2 && word(memory, 4) == 48)
        #expect(word(memory, 12) == 8 && word(memory, 16) == 48 && word(memory, 20) == 48 + 8 * 488)
        #expect(word(memory, 24) == 1 && word(memory, 28) == 0)
        // The chain of frames in it.
        var place = 48
        for tag in 0..<8 {
            #expect(word(memory, place + 12) == 400 && word(memory, place + 16) == 400)
            #expect(half(memory, place + 24) == 82 && half(memory, place + 26) == 96)
            #expect(bytes(memory, place + 82, 400) == Bench.frame(400, tag: UInt8(tag)))
            #expect(half(memory, place + 48) == 17)
            let next = Int(word(memory, place))
            #expect(next == (tag == 7 ? 0 : 488))
            place += next
        }
        bench.finish()
    }

    @Test func aBlockIsHandedOverWhenItIsOld() throws {
        let bench = try Bench()
        let (socket, memory) = try ring(bench, version: 3, request(4096, 2, 2048, [50, 0, 0]))
        bench.network.run(for: 500_000_000)
        #expect(word(memory, 8) == 0, "an empty block is not handed over")
        bench.arrive(Bench.frame(60))
        bench.network.run(for: 40_000_000)
        #expect(word(memory, 8) == 0)
        bench.network.run(for: 11_000_000)
        #expect(word(memory, 8) == 33, "TP_STATUS_USER and TP_STATUS_BLK_TMO")
        #expect(word(memory, 12) == 1 && socket.isRingReadable)
        bench.finish()
    }

    @Test func aSlowReaderFreezesTheRingUntilABlockComesBack() throws {
        let bench = try Bench()
        let (socket, memory) = try ring(bench, version: 3, request(4096, 2, 2048, [1000, 0, 0]))
        for _ in 0..<16 { bench.arrive(Bench.frame(400)) }
        // Both blocks are out or full: the next two are lost.
        bench.arrive(Bench.frame(400), Bench.frame(400))
        #expect(word(memory, 8) & 1 == 1 && word(memory, 4096 + 8) & 1 == 1)
        #expect(statistics(socket) == [18, 2, 1])
        give(memory, 8)
        bench.arrive(Bench.frame(400, tag: 77))
        #expect(word(memory, 12) == 1 && word(memory, 24) == 3)
        #expect(bytes(memory, 48 + 82, 400) == Bench.frame(400, tag: 77))
        bench.finish()
    }

    @Test func aLargeFrameIsCutToABlock() throws {
        let bench = try Bench()
        let (_, memory) = try ring(bench, version: 3, request(4096, 2, 4096, [10, 16, 0]))
        bench.arrive(Bench.frame(9000))
        bench.network.run(for: 20_000_000)
        #expect(word(memory, 16) == 64, "behind 16 private bytes")
        #expect(word(memory, 64 + 16) == 9000 && word(memory, 64 + 12) == 4096 - 64 - 82)
        bench.finish()
    }

    // MARK: Requests

    @Test(arguments: [
        (2, [4095, 1, 2048, 1], EINVAL), (2, [0, 1, 2048, 1], EINVAL), (2, [0x8000_0000, 1, 2048, 1], EINVAL),
        (2, [4096, 1, 2040, 2], EINVAL), (2, [4096, 1, 32, 128], EINVAL), (2, [4096, 1, 0, 0], EINVAL),
        (2, [4096, 1, 8192, 0], EINVAL), (2, [4096, 1, 2048, 3], EINVAL), (2, [4096, 0, 2048, 2], EINVAL),
        (2, [4096, .max, 2048, .max], EINVAL), (2, [0x7fff_f000, .max, 0x7fff_f000, .max], ENOMEM),
        (2, [4096, 0x10_0000, 2048, 0x20_0000], ENOMEM), (3, [4096, 1, 2048, 2], EINVAL),
        (3, [4096, 1, 2048, 2, 0, 4096, 0], EINVAL), (3, [4096, 1, 2048, 2, 0, .max, 0], EINVAL),
        (2, [4096, 1], EINVAL),
    ] as [(UInt8, [UInt32], Int32)]) func isRefused(version: UInt8, words: [UInt32], error: Int32) throws {
        let bench = try Bench()
        let socket = try bench.socket()
        #expect(socket.setOption(263, 10, [version - 1, 0, 0, 0], isRoot: true) == 0)
        let value = words.flatMap { word in withUnsafeBytes(of: word) { Array($0) } }
        #expect(socket.setOption(263, 5, value, isRoot: true) == error)
        bench.finish()
    }

    @Test func whatAPresentRingForbids() throws {
        let bench = try Bench()
        let (socket, memory) = try ring(bench, version: 2, request(4096, 1, 2048))
        #expect(socket.setOption(263, 5, request(4096, 1, 2048), isRoot: true) == EBUSY)
        #expect(socket.setOption(263, 10, [2, 0, 0, 0], isRoot: true) == EBUSY)
        #expect(socket.setOption(263, 12, [2, 0, 0, 0], isRoot: true) == EBUSY)
        // The file can be neither shortened nor sealed against writing.
        #expect(ftruncate(memory.descriptor, 0) == -1)
        #expect(fcntl(memory.descriptor, 1033, 8) == -1)
        // No frames: it is to go.
        #expect(socket.setOption(263, 5, request(0, 0, 0), isRoot: true) == 0)
        #expect(socket.ringMemory == nil && !socket.isRingReadable)
        bench.finish()
    }

    // MARK: Sending

    @Test(arguments: [UInt8(1), 2, 3]) func whatIsReadyInATransmitRingIsSent(version: UInt8) throws {
        let bench = try Bench()
        let socket = try bench.socket()
        #expect(socket.setOption(263, 10, [version - 1, 0, 0, 0], isRoot: true) == 0)
        try #require(socket.setOption(263, 13, request(4096, 2, 2048, version == 3 ? [0, 0, 0] : []), isRoot: true) == 0)
        let memory = try #require(socket.ringMemory)
        let (status, length, data) = version == 1 ? (0, 8, 32) : version == 2 ? (0, 4, 32) : (20, 16, 48)
        func put(_ slot: Int, _ frame: [UInt8], claims: Int? = nil) {
            (memory.base + slot * 2048 + data).copyMemory(from: frame, byteCount: frame.count)
            memory.base.storeBytes(of: UInt32(claims ?? frame.count), toByteOffset: slot * 2048 + length, as: UInt32.self)
            memory.base.storeBytes(of: 1, toByteOffset: slot * 2048 + status, as: UInt32.self)
        }
        let frames = (0..<3).map { Bench.frame(60 + $0, to: Bench.other, type: 0x88b5) }
        for (slot, frame) in frames.enumerated() { put(slot, frame) }
        let sent = socket.sendRing(to: nil)
        #expect(sent.error == 0 && sent.bytes == 183 && bench.sent == frames)
        #expect((0..<4).allSatisfy { word(memory, $0 * 2048 + status) == 0 })
        // A length that does not fit is the frame's fault, and nothing behind it is sent.
        put(3, frames[0], claims: 2048)
        put(0, frames[1])
        #expect(socket.sendRing(to: nil).error == EMSGSIZE)
        #expect(word(memory, 3 * 2048 + status) == 4 && bench.sent.count == 3)
        bench.finish()
    }

    // MARK: Hostile programs

    private struct Random: RandomNumberGenerator {
        var state: UInt64

        mutating func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state ^ state >> 31
        }
    }

    /// Whatever a program writes into its rings, at whatever time: the host goes on, writes nowhere else, and a ring that has
    /// been cleaned up works.
    @Test(arguments: [UInt8(1), 2, 3]) func scribbledRingsHarmNobody(version: UInt8) throws {
        var random = Random(state: UInt64(version))
        let bench = try Bench()
        let (socket, memory) = try ring(bench, version: version, request(4096, 4, 512, version == 3 ? [1, 8, 0] : []))
        #expect(socket.setOption(263, 13, request(4096, 2, 1024, version == 3 ? [0, 0, 0] : []), isRoot: true) == 0)
        let both = try #require(socket.ringMemory)
        #expect(both.ringBytes == memory.ringBytes + 2 * 4096)
        for _ in 0..<20_000 {
            switch Int.random(in: 0..<4, using: &random) {
            case 0:
                let start = Int.random(in: 0..<both.ringBytes, using: &random)
                for place in start..<min(start + Int.random(in: 1...200, using: &random), both.ringBytes) {
                    both.base.storeBytes(of: UInt8.random(in: 0...255, using: &random), toByteOffset: place, as: UInt8.self)
                }
            case 1:
                // Statuses, where they are looked at.
                let slot = Int.random(in: 0..<both.ringBytes / 512, using: &random) * 512
                let offset = version == 3 ? [8, 20].randomElement(using: &random)! : 0
                both.base.storeBytes(of: UInt32.random(in: 0...2, using: &random), toByteOffset: slot + offset, as: UInt32.self)
            case 2: _ = socket.sendRing(to: nil)
            default:
                bench.arrive(Bench.frame(Int.random(in: 14...1600, using: &random)))
                bench.network.run(for: UInt64.random(in: 0...3_000_000, using: &random))
            }
            _ = socket.isRingReadable
        }
        memset(both.base, 0, both.ringBytes)
        _ = statistics(socket)
        for _ in 0..<200 {
            bench.arrive(Bench.frame(200))
            bench.network.run(for: 2_000_000)
            memset(both.base, 0, both.ringBytes)
        }
        // A block may have been taken from the ring under its feet, no more.
        #expect(statistics(socket)[1] <= 1)
        bench.finish()
    }
}

import Glibc
import Kernel
import Lab
import PluginAPI
import Testing

@Suite struct CaptureTests {
    private struct Block {
        var type: UInt32
        var body: [UInt8]

        func word(_ index: Int) -> UInt32 {
            body.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: index * 4, as: UInt32.self) }
        }
    }

    private func read(_ path: String) -> [UInt8] {
        guard let file = fopen(path, "rb") else { return [] }
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 1 << 20)
        let count = fread(&bytes, 1, bytes.count, file)
        return Array(bytes[..<count])
    }

    /// Cuts a file into blocks; both lengths of each must agree.
    private func blocks(_ bytes: [UInt8]) throws -> [Block] {
        var blocks: [Block] = []
        var offset = 0
        while offset < bytes.count {
            let (type, length) = bytes.withUnsafeBytes {
                (
                    $0.loadUnaligned(fromByteOffset: offset, as: UInt32.self),
                    Int($0.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self))
                )
            }
            try #require(length >= 12 && length % 4 == 0 && offset + length <= bytes.count)
            let end = bytes.withUnsafeBytes { Int($0.loadUnaligned(fromByteOffset: offset + length - 4, as: UInt32.self)) }
            #expect(end == length)
            blocks.append(Block(type: type, body: Array(bytes[(offset + 8)..<(offset + length - 4)])))
            offset += length
        }
        return blocks
    }

    @Test func everyPacketIsInTheFileWithTimeDirectionAndWholeChecksum() throws {
        let path = "/tmp/alps-capture-\(getpid()).pcapng"
        defer { unlink(path) }
        let wire = try Wire("delay 5ms")
        try wire.interfaceA.startCapture(path: path)
        let segment = wire.largeSegment(100, cutInto: 1000)
        segment.pointee.pkt.gso_type = UInt8(ALPS_GSO_NONE)
        wire.send(segment)
        wire.network.run(for: 2 * .ms)
        let reply: [UInt8] = [2, 0, 0, 1, 0, 1, 2, 0, 0, 1, 0, 2, 0x88, 0xb5, 1, 2, 3]
        reply.withUnsafeBytes { wire.ends.0.inject($0) }
        wire.network.run(for: .ms)
        wire.finish()

        let found = try blocks(read(path))
        try #require(found.map(\.type) == [0x0a0d_0d0a, 1, 6, 6])
        #expect(found[0].word(0) == 0x1a2b_3c4d)
        #expect(found[1].word(0) & 0xffff == 1)
        func time(_ block: Block) -> UInt64 { UInt64(block.word(1)) << 32 | UInt64(block.word(2)) }
        #expect(time(found[3]) - time(found[2]) == 2 * .ms)
        #expect(time(found[2]) == KernelClock.virtualEpoch + KernelClock.start)
        #expect(found[2].word(3) == 154 && found[2].word(4) == 154)
        #expect(tcpChecksumHolds(Array(found[2].body[(20 + 14)..<(20 + 154)])))
        #expect(found[2].word(5 + 156 / 4 + 1) == 2)
        #expect(Array(found[3].body[20..<37]) == reply)
        #expect(found[3].word(5 + 20 / 4 + 1) == 1)
    }

    @Test func theCaptureDoesNotFinishTheChecksumOfThePacketItself() throws {
        let path = "/tmp/alps-capture-partial-\(getpid()).pcapng"
        defer { unlink(path) }
        let wire = try Wire()
        try wire.interfaceA.startCapture(path: path)
        var checksums: [UInt8] = []
        wire.ends.0.tap = { checksums.append($0.pointee.pkt.csum) }
        wire.send(wire.largeSegment(3000, cutInto: 1000))
        #expect(checksums == [UInt8(ALPS_CSUM_PARTIAL)])
        wire.finish()
    }

    @Test func aPathThatCannotBeWrittenIsNamed() throws {
        let wire = try Wire()
        #expect {
            try wire.interfaceA.startCapture(path: "/no/such/place.pcapng")
        } throws: { error in
            (error as? KernelError)?.message.contains("/no/such/place.pcapng") == true
        }
        wire.finish()
    }
}

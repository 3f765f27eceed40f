import Kernel
import PluginAPI
import Testing

/// RFC 1071 word by word, as slow as it reads.
private func reference(_ bytes: [UInt8]) -> UInt32 {
    var total: UInt64 = 0
    for (index, byte) in bytes.enumerated() { total += index % 2 == 0 ? UInt64(byte) << 8 : UInt64(byte) }
    while total > 0xffff { total = (total & 0xffff) + (total >> 16) }
    return UInt32(total)
}

@Suite struct ChecksumTests {
    @Test func theExampleOfTheRFC() {
        // RFC 1071, section 3.
        let bytes: [UInt8] = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]
        #expect(InternetChecksum.sum(bytes, bytes.count) == 0xddf2)
        #expect(InternetChecksum.finish(0xddf2) == 0x220d)
    }

    @Test func anyLengthAndAlignmentAgreesWithTheReference() {
        var generator = SeededGenerator(seed: 1)
        let memory = (0..<300).map { _ in UInt8.random(in: 0...255, using: &generator) }
        for start in 0..<9 {
            for length in 0..<200 {
                let expected = reference(Array(memory[start..<start + length]))
                let actual = memory.withUnsafeBytes { InternetChecksum.sum($0.baseAddress! + start, length) }
                #expect(actual == expected, "start \(start) length \(length)")
            }
        }
    }

    @Test func allOnesDoNotOverflow() {
        let bytes = [UInt8](repeating: 0xff, count: 65535)
        #expect(InternetChecksum.sum(bytes, bytes.count) == reference(bytes))
    }

    @Test func aChainSumsAsItsBytesDo() throws {
        let pool = MbufPool()
        var generator = SeededGenerator(seed: 2)
        // Odd lengths put later buffers at odd offsets.
        let packet = try #require(pool.packet(headroom: 0))
        var all: [UInt8] = []
        for length in [13, 1, 7, 500, 3, 64] {
            let part = (0..<length).map { _ in UInt8.random(in: 0...255, using: &generator) }
            let mbuf = try #require(pool.packet(headroom: 3))
            #expect(pool.append(mbuf, part, length) == 0)
            pool.concatenate(packet, mbuf)
            all += part
        }
        for offset in [0, 1, 13, 14, 20, 300] {
            for length in [0, 1, 7, 100, all.count - offset] where offset + length <= all.count {
                #expect(pool.sum(packet, offset, length) == reference(Array(all[offset..<offset + length])))
            }
        }
        pool.freePacket(packet)
        #expect(pool.isIdle)
    }
}

import PluginKitHosted
import Testing

@Suite struct WireTests {
    @Test func networkByteOrderAtAnyAlignment() {
        var bytes = [UInt8](repeating: 0, count: 9)
        bytes.withUnsafeMutableBufferPointer { buffer in
            let base = buffer.baseAddress!
            base.store16(1, 0x1234)
            base.store32(3, 0xdead_beef)
            #expect(base.load16(1) == 0x1234)
            #expect(base.load32(3) == 0xdead_beef)
        }
        #expect(bytes == [0, 0x12, 0x34, 0xde, 0xad, 0xbe, 0xef, 0, 0])
    }

    /// The example of RFC 1071, section 3.
    @Test func checksumOfTheStandardsExample() {
        let bytes: [UInt8] = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]
        let sum = bytes.withUnsafeBufferPointer { Checksum.sum($0.baseAddress!, $0.count) }
        #expect(sum == 0xddf2)
        #expect(Checksum.finish(sum) == 0x220d)
    }

    @Test(arguments: 1...9) func anOddLastByteIsTheHighHalfOfAWord(count: Int) {
        let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 * 37 + 11) }
        var expected: UInt32 = 0
        for (index, byte) in bytes.enumerated() { expected += index % 2 == 0 ? UInt32(byte) << 8 : UInt32(byte) }
        while expected >> 16 != 0 { expected = (expected & 0xffff) + (expected >> 16) }
        #expect(bytes.withUnsafeBufferPointer { Checksum.sum($0.baseAddress!, $0.count) } == expected)
    }
}

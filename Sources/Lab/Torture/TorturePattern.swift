import Glibc

/// What every byte of a test stream is, by its position: a table longer than any segment, of a length that no segment
/// size divides, so that a byte in a wrong place is another byte.
enum TorturePattern {
    static let period = 65_521

    nonisolated(unsafe) private static let table: UnsafePointer<UInt8> = {
        let memory = UnsafeMutablePointer<UInt8>.allocate(capacity: period)
        var state: UInt32 = 0x1234_5678
        for index in 0..<period {
            // xorshift32 (Marsaglia).
            state ^= state << 13
            state ^= state >> 17
            state ^= state << 5
            memory[index] = UInt8(truncatingIfNeeded: state >> 8)
        }
        return UnsafePointer(memory)
    }()

    /// The stream `salt` from `position` on, as far as the table reaches in one piece.
    static func piece(_ salt: Int, _ position: Int, max count: Int) -> UnsafeRawBufferPointer {
        let at = (salt + position) % period
        return UnsafeRawBufferPointer(start: table + at, count: min(count, period - at))
    }

    static func byte(_ salt: Int, _ position: Int) -> UInt8 { table[(salt + position) % period] }

    /// Where `bytes` first differ from the stream at `position`; nil if they do not.
    static func mismatch(_ bytes: UnsafeRawBufferPointer, _ salt: Int, _ position: Int) -> Int? {
        var done = 0
        while done < bytes.count {
            let expected = piece(salt, position + done, max: bytes.count - done)
            guard let base = bytes.baseAddress, let other = expected.baseAddress else { return nil }
            if memcmp(base + done, other, expected.count) != 0 {
                for index in 0..<expected.count where bytes[done + index] != expected[index] { return done + index }
            }
            done += expected.count
        }
        return nil
    }
}

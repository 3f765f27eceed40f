import CLibc

/// memcpy for payload. Where the destination lies 1 to 15 bytes further into its page than the source, the instruction that
/// libraries copy much with takes many times as long on some processors (AMD Zen: 18.7 us for 64 KiB instead of 1.4), and every
/// call of a program may have such addresses, which a small header in front of the data is enough for. Short pieces are copied
/// in another way (3.2 us).
@inline(__always)
func copyPayload(_ target: UnsafeMutableRawPointer, _ source: UnsafeRawPointer, _ count: Int) {
    let distance = (UInt(bitPattern: target) &- UInt(bitPattern: source)) & 4095
    if distance &- 1 >= 15 {
        memcpy(target, source, count)
    } else {
        copyInPieces(target, source, count)
    }
}

/// Below every threshold of the C library.
private var piece: Int { 1920 }

@inline(never)
private func copyInPieces(_ target: UnsafeMutableRawPointer, _ source: UnsafeRawPointer, _ count: Int) {
    var done = 0
    while done < count {
        memcpy(target + done, source + done, min(piece, count - done))
        done += piece
    }
}

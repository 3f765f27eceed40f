import Glibc

/// Short frames of a turn that wait to be written one right after the other.
///
/// If another CPU does the system's receive work for them (`ReceiveSteering`), a frame that finds it idle wakes it: an interrupt
/// from CPU to CPU, 1 us on a virtual machine. Written as they come, most frames of a turn do, since by then it has done its
/// work for the one before. Written together, they wake it once.
struct HeldFrames {
    private let bytes = UnsafeMutableRawPointer.allocate(byteCount: most * slot, alignment: 64)
    private let lengths = UnsafeMutablePointer<Int>.allocate(capacity: most)
    private(set) var count = 0
    /// With more the other CPU waits while it could work: pipelined Redis is as fast with 4 and with 16, slower with 32.
    static let most = 8
    /// Bytes for each.
    private static let slot = 2112

    /// Copies a frame of `length` bytes with its virtio header, 2112 at most. Not if it is full.
    @inline(__always)
    mutating func append(_ frame: UnsafeRawPointer, _ length: Int) {
        memcpy(bytes + count * Self.slot, frame, length)
        lengths[count] = length
        count += 1
    }

    var isFull: Bool { count == Self.most }

    /// Writes all in their order. Returns how many the system has not taken.
    mutating func write(to descriptor: Int32) -> Int {
        var failed = 0
        for index in 0..<count where Glibc.write(descriptor, bytes + index * Self.slot, lengths[index]) < 0 { failed += 1 }
        count = 0
        return failed
    }

    func deallocate() {
        bytes.deallocate()
        lengths.deallocate()
    }
}

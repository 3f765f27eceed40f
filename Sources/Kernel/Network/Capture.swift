import Glibc
import PluginAPI

/// Writes packets to a pcapng file. The loop thread only copies bytes into a buffer; a thread of its own writes the file.
/// If that falls behind, packets are dropped from the capture and counted.
package final class Capture {
    private let kernel: Kernel
    private let writer: CaptureWriter
    private var scratch: [UInt8] = []
    /// Bytes that may wait to be written.
    private static let limit = 64 << 20
    /// More of a packet is not kept.
    private static let snapLength = 262_144

    package var dropped: UInt64 { writer.dropped }

    init(path: String, interface: String, isEthernet: Bool, kernel: Kernel) throws {
        self.kernel = kernel
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else {
            throw KernelError(errno, "cannot write capture file \(path): \(String(cString: strerror(errno)))")
        }
        writer = CaptureWriter(descriptor: descriptor, limit: Self.limit)
        var header: [UInt8] = []
        // Section header block (draft-ietf-opsawg-pcapng, section 4.1).
        Self.put32(&header, 0x0a0d_0d0a)
        Self.put32(&header, 28)
        Self.put32(&header, 0x1a2b_3c4d)
        Self.put32(&header, 1)
        Self.put32(&header, 0xffff_ffff)
        Self.put32(&header, 0xffff_ffff)
        Self.put32(&header, 28)
        // Interface description block with name and nanosecond resolution (section 4.2).
        var body: [UInt8] = []
        Self.put32(&body, isEthernet ? 1 : 101)
        Self.put32(&body, UInt32(Self.snapLength))
        Self.option(&body, 2, Array(interface.utf8))
        Self.option(&body, 9, [9])
        Self.put32(&body, 0)
        Self.put32(&header, 1)
        Self.put32(&header, UInt32(body.count + 12))
        header += body
        Self.put32(&header, UInt32(body.count + 12))
        writer.append(header)
    }

    private static func put32(_ bytes: inout [UInt8], _ value: UInt32) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    private static func option(_ bytes: inout [UInt8], _ code: UInt16, _ value: [UInt8]) {
        put32(&bytes, UInt32(value.count) << 16 | UInt32(code))
        bytes += value
        while bytes.count % 4 != 0 { bytes.append(0) }
    }

    /// One packet, `data` at the link header. An unfinished checksum is finished in the copy. [borrows]
    func record(_ packet: Mbuf, isOutput: Bool) {
        let pool = kernel.mbufs
        let length = Int(packet.pointee.pkt.length)
        let kept = min(length, Self.snapLength)
        scratch.removeAll(keepingCapacity: true)
        let padded = (kept + 3) & ~3
        let total = UInt32(32 + padded + 12)
        let time = kernel.clock.wall
        // Enhanced packet block (section 4.3) with the direction in epb_flags.
        Self.put32(&scratch, 6)
        Self.put32(&scratch, total)
        Self.put32(&scratch, 0)
        Self.put32(&scratch, UInt32(truncatingIfNeeded: time >> 32))
        Self.put32(&scratch, UInt32(truncatingIfNeeded: time))
        Self.put32(&scratch, UInt32(kept))
        Self.put32(&scratch, UInt32(length))
        let start = scratch.count
        scratch.append(contentsOf: repeatElement(0, count: padded))
        scratch.withUnsafeMutableBytes { pool.copyOut(packet, 0, kept, $0.baseAddress! + start) }
        if packet.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) {
            finishChecksum(at: start, length: kept, Int(packet.pointee.pkt.csum_start), Int(packet.pointee.pkt.csum_offset))
        }
        Self.put32(&scratch, 4 << 16 | 2)
        Self.put32(&scratch, isOutput ? 2 : 1)
        Self.put32(&scratch, 0)
        Self.put32(&scratch, total)
        writer.append(scratch)
    }

    private func finishChecksum(at start: Int, length: Int, _ from: Int, _ offset: Int) {
        guard from + offset + 2 <= length, from < length else { return }
        let sum = scratch.withUnsafeBytes { InternetChecksum.sum($0.baseAddress! + start + from, length - from) }
        let value = InternetChecksum.finish(sum)
        withUnsafeBytes(of: value.bigEndian) { bytes in
            scratch[start + from + offset] = bytes[0]
            scratch[start + from + offset + 1] = bytes[1]
        }
    }

    /// Writes what waits and closes the file.
    func close() { writer.close() }
}

/// The thread behind a capture.
private final class CaptureWriter: @unchecked Sendable {
    private let descriptor: Int32
    private let limit: Int
    private let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let ready = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var waiting: [UInt8] = []
    private var isClosing = false
    /// The file cannot take more: a full disk.
    private var hasFailed = false
    private var thread = pthread_t()
    private(set) var dropped: UInt64 = 0

    init(descriptor: Int32, limit: Int) {
        self.descriptor = descriptor
        self.limit = limit
        pthread_mutex_init(lock, nil)
        pthread_cond_init(ready, nil)
        let context = Unmanaged.passRetained(self).toOpaque()
        pthread_create(
            &thread, nil,
            { context in
                Unmanaged<CaptureWriter>.fromOpaque(context!).takeRetainedValue().run()
                return nil
            }, context)
    }

    deinit {
        pthread_mutex_destroy(lock)
        pthread_cond_destroy(ready)
        lock.deallocate()
        ready.deallocate()
    }

    func append(_ bytes: [UInt8]) {
        pthread_mutex_lock(lock)
        if waiting.count + bytes.count <= limit, !hasFailed { waiting += bytes } else { dropped &+= 1 }
        pthread_mutex_unlock(lock)
        pthread_cond_signal(ready)
    }

    private func run() {
        var batch: [UInt8] = []
        while true {
            pthread_mutex_lock(lock)
            while waiting.isEmpty && !isClosing { pthread_cond_wait(ready, lock) }
            let ends = waiting.isEmpty && isClosing
            swap(&batch, &waiting)
            pthread_mutex_unlock(lock)
            if ends { break }
            var done = 0
            while done < batch.count {
                let count = batch.withUnsafeBytes { write(descriptor, $0.baseAddress! + done, $0.count - done) }
                if count < 0, errno == EINTR { continue }
                if count <= 0 {
                    // A block cut short would spoil all that follow.
                    pthread_mutex_lock(lock)
                    hasFailed = true
                    pthread_mutex_unlock(lock)
                    break
                }
                done += count
            }
            batch.removeAll(keepingCapacity: true)
        }
        Glibc.close(descriptor)
    }

    func close() {
        pthread_mutex_lock(lock)
        isClosing = true
        pthread_mutex_unlock(lock)
        pthread_cond_signal(ready)
        pthread_join(thread, nil)
    }
}

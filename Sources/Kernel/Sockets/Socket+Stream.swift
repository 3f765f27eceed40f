import CLinux
import Glibc
import PluginAPI

/// The urgent byte of a stream (RFC 9293, section 3.8.5, with RFC 6093's semantics: one byte, kept out of the stream
/// unless SO_OOBINLINE).
struct UrgentByte {
    /// The byte, once it has arrived.
    var value: UInt8?
    /// Stream position of the urgent byte itself, while the reader has not passed it.
    var position: UInt64?
    /// Announced, not read by the application.
    var isPending = false
}

/// The stream data path: rings addressed by stream position. No allocation once a ring is there.
extension Socket {
    // MARK: Sending

    /// Free bytes of the send ring.
    package var sendSpace: Int {
        let used = raw.pointee.snd.tail &- raw.pointee.snd.head
        let limit = UInt64(min(raw.pointee.snd.limit, raw.pointee.snd.base == nil ? .max : raw.pointee.snd.capacity))
        return used < limit ? Int(limit - used) : 0
    }

    /// Bytes written and not acknowledged yet.
    package var sendQueued: Int { Int(raw.pointee.snd.tail &- raw.pointee.snd.head) }

    /// The free part of the send ring behind what is written, in one or two pieces; nil without memory. Fill it, then
    /// `sendCommit`.
    package func sendPieces() -> (first: UnsafeMutableRawBufferPointer, second: UnsafeMutableRawBufferPointer)? {
        guard prepare(&raw.pointee.snd) else { return nil }
        return Self.pieces(&raw.pointee.snd, from: raw.pointee.snd.tail, count: sendSpace)
    }

    /// `count` bytes have been put behind the stream: the transport may send them.
    package func sendCommit(_ count: Int, flags: UInt32 = 0) {
        raw.pointee.snd.tail &+= UInt64(count)
        guard isAttached, let sent = entry.sw.pointee.sent else { return }
        _ = sent(entry.instancePointer, raw, flags)
    }

    /// Writes as much as fits. Returns bytes written or a negative errno. For tests and in-process users.
    @discardableResult
    package func write(_ bytes: UnsafeRawBufferPointer, flags: UInt32 = 0) -> Int {
        if raw.pointee.error != 0 { return -Int(takeError()) }
        if cannotSendMore || isDisconnected { return -Int(ALPS_EPIPE) }
        guard isConnected else { return -Int(isConnecting ? ALPS_EAGAIN : ALPS_ENOTCONN) }
        guard let (first, second) = sendPieces() else { return -Int(ALPS_ENOBUFS) }
        let head = min(bytes.count, first.count)
        let rest = min(bytes.count - head, second.count)
        guard head + rest > 0 || bytes.isEmpty else { return -Int(ALPS_EAGAIN) }
        if head > 0 { memcpy(first.baseAddress!, bytes.baseAddress!, head) }
        if rest > 0 { memcpy(second.baseAddress!, bytes.baseAddress! + head, rest) }
        sendCommit(head + rest, flags: flags)
        return head + rest
    }

    @discardableResult
    package func write(_ bytes: [UInt8], flags: UInt32 = 0) -> Int {
        bytes.withUnsafeBytes { write($0, flags: flags) }
    }

    // MARK: Receiving

    /// In-order bytes the application has not taken. An urgent byte that is kept aside ends the run.
    package var receiveAvailable: Int {
        let available = Int(raw.pointee.rcv.tail &- raw.pointee.rcv.head)
        if let mark = outOfLineMark, mark >= raw.pointee.rcv.head {
            let before = Int(mark &- raw.pointee.rcv.head)
            if before < available { return before }
        }
        return available
    }

    /// Position of an urgent byte that is to be left out of the stream.
    private var outOfLineMark: UInt64? {
        raw.pointee.options & UInt32(ALPS_SO_OOBINLINE) == 0 ? urgent.position : nil
    }

    /// The in-order bytes in one or two pieces. Take some, then `receiveConsume`.
    package func receivePieces() -> (first: UnsafeMutableRawBufferPointer, second: UnsafeMutableRawBufferPointer) {
        Self.pieces(&raw.pointee.rcv, from: raw.pointee.rcv.head, count: receiveAvailable)
    }

    /// The application has taken `count` bytes: the window opens.
    package func receiveConsume(_ count: Int) {
        raw.pointee.rcv.head &+= UInt64(count)
        skipUrgentByte()
        guard isAttached, let received = entry.sw.pointee.received else { return }
        received(entry.instancePointer, raw)
    }

    /// Steps over an urgent byte that stands next in the stream and is kept aside.
    func skipUrgentByte() {
        guard let mark = outOfLineMark, mark == raw.pointee.rcv.head, raw.pointee.rcv.tail > mark else { return }
        if urgent.value == nil, let base = raw.pointee.rcv.base {
            urgent.value = base[Int(mark & UInt64(raw.pointee.rcv.capacity - 1))]
        }
        urgent.position = nil
        raw.pointee.rcv.head &+= 1
    }

    /// Nothing more will come, and all has been taken.
    package var atEndOfStream: Bool {
        cannotReceiveMore && receiveAvailable == 0 && raw.pointee.rcv.head == raw.pointee.rcv.tail
    }

    /// The reader stands at the urgent mark (SIOCATMARK).
    package var isAtMark: Bool {
        raw.pointee.state & UInt32(ALPS_SS_OOB) != 0 && raw.pointee.rcv.head >= raw.pointee.oob_mark &- 1
            && raw.pointee.rcv.head <= raw.pointee.oob_mark
    }

    /// MSG_OOB: the urgent byte, or EINVAL (none, or inline), EAGAIN (announced, not here).
    package func takeUrgent(peek: Bool) -> (error: Int32, byte: UInt8) {
        guard raw.pointee.options & UInt32(ALPS_SO_OOBINLINE) == 0, urgent.isPending else {
            return (Int32(ALPS_EINVAL), 0)
        }
        if urgent.value == nil, let mark = urgent.position, raw.pointee.rcv.tail > mark, let base = raw.pointee.rcv.base {
            urgent.value = base[Int(mark & UInt64(raw.pointee.rcv.capacity - 1))]
        }
        guard let value = urgent.value else { return (Int32(ALPS_EAGAIN), 0) }
        if !peek {
            urgent.isPending = false
            urgent.value = nil
        }
        return (0, value)
    }

    /// Reads at most `max` bytes. Empty at the end of the stream, nil if there is nothing now. For tests.
    package func read(max: Int = 65536) -> [UInt8]? {
        let (first, second) = receivePieces()
        let head = min(max, first.count)
        let rest = min(max - head, second.count)
        guard head + rest > 0 else { return atEndOfStream ? [] : nil }
        let bytes = Array(first.prefix(head)) + Array(second.prefix(rest))
        receiveConsume(head + rest)
        return bytes
    }

    // MARK: Rings

    /// Makes sure that the ring is there.
    func prepare(_ buffer: inout alps_sockbuf) -> Bool {
        if buffer.base != nil { return true }
        var capacity = 4096
        while capacity < Int(buffer.limit) { capacity <<= 1 }
        guard let ext = arena.allocate(capacity: capacity) else { return false }
        buffer.ext = ext
        buffer.base = ext.pointee.base
        buffer.capacity = UInt32(capacity)
        return true
    }

    /// Changes how much of a ring may be used. A ring that is in use keeps its size.
    func setLimit(_ buffer: inout alps_sockbuf, _ limit: UInt32) {
        buffer.limit = buffer.base == nil ? limit : min(limit, buffer.capacity)
    }

    func releaseBuffers() {
        for keyPath in [\alps_socket.snd, \alps_socket.rcv] {
            if let ext = raw.pointee[keyPath: keyPath].ext { Arena.release(ext) }
            raw.pointee[keyPath: keyPath].ext = nil
            raw.pointee[keyPath: keyPath].base = nil
        }
    }

    @inline(__always)
    static func pieces(
        _ buffer: inout alps_sockbuf, from position: UInt64, count: Int
    ) -> (first: UnsafeMutableRawBufferPointer, second: UnsafeMutableRawBufferPointer) {
        guard let base = buffer.base, count > 0 else {
            return (UnsafeMutableRawBufferPointer(start: nil, count: 0), UnsafeMutableRawBufferPointer(start: nil, count: 0))
        }
        let start = Int(position & UInt64(buffer.capacity - 1))
        let first = min(count, Int(buffer.capacity) - start)
        return (
            UnsafeMutableRawBufferPointer(start: base + start, count: first),
            UnsafeMutableRawBufferPointer(start: base, count: count - first)
        )
    }
}

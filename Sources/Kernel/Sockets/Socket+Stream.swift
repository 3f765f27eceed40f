import Glibc
import PluginAPI

/// The stream data path towards the application.
extension Socket {
    // MARK: Sending

    /// Free bytes of the send ring. A caller that gets 0 hears by an update when there is room again.
    package var sendSpace: Int {
        let used = raw.pointee.snd.tail &- raw.pointee.snd.head
        let limit = UInt64(raw.pointee.snd.limit)
        guard used < limit else {
            isWriterWaiting = true
            return 0
        }
        let bound = raw.pointee.snd.low_water
        return bound == 0 ? Int(limit - used) : boundedSpace(Int(limit - used), Int(bound))
    }

    /// TCP_NOTSENT_LOWAT: what waits for the network may not be more than `bound`. Never less than a little at once, so
    /// that a bound of a few bytes does not mean a few bytes a call.
    private func boundedSpace(_ space: Int, _ bound: Int) -> Int {
        let unsent = Int(raw.pointee.snd.unsent)
        if unsent < bound { return min(space, max(bound - unsent, 4096)) }
        isWriterWaiting = true
        return 0
    }

    /// Bytes written and not acknowledged yet.
    package var sendQueued: Int { Int(raw.pointee.snd.tail &- raw.pointee.snd.head) }

    /// The free part of the send ring behind what is written, in one or two pieces; nil without memory. Fill it, then
    /// `sendCommit`.
    package func sendPieces() -> (first: UnsafeMutableRawBufferPointer, second: UnsafeMutableRawBufferPointer)? {
        guard prepare(&raw.pointee.snd) else { return nil }
        return Self.pieces(raw.pointee.snd, from: raw.pointee.snd.tail, count: sendSpace)
    }

    /// What is written next goes to the first byte of the send ring's memory.
    package var isSendRingAtStart: Bool {
        raw.pointee.snd.capacity == 0 || raw.pointee.snd.tail & UInt64(raw.pointee.snd.capacity - 1) == 0
    }

    /// `count` bytes have been put behind the stream: the transport may send them. `flags`: ALPS_SENT_*.
    package func sendCommit(_ count: Int, flags: UInt32 = 0) {
        raw.pointee.snd.tail &+= UInt64(count)
        if raw.pointee.snd.tail &- raw.pointee.snd.head >= UInt64(raw.pointee.snd.limit) { isWriterWaiting = true }
        guard isAttached, let sent = protosw.pointee.sent else { return }
        _ = sent(instance, raw, flags)
    }

    /// Writes as much as fits. Returns bytes written or a negative errno. For tests and in-process users.
    ///
    /// `queues`: what is written before the connection is there waits for it (RFC 9293, 3.10.2).
    @discardableResult
    package func write(_ bytes: UnsafeRawBufferPointer, flags: UInt32 = 0, queues: Bool = false) -> Int {
        if raw.pointee.error != 0 { return -Int(takeError()) }
        if isConnecting, !queues { return -Int(EAGAIN) }
        guard isConnected || isConnecting, !cannotSendMore, !isDisconnected else { return -Int(EPIPE) }
        guard let (first, second) = sendPieces() else { return -Int(ENOBUFS) }
        let head = min(bytes.count, first.count)
        let rest = min(bytes.count - head, second.count)
        guard head + rest > 0 else { return bytes.isEmpty ? 0 : -Int(EAGAIN) }
        if head > 0, let to = first.baseAddress, let from = bytes.baseAddress { memcpy(to, from, head) }
        if rest > 0, let to = second.baseAddress, let from = bytes.baseAddress { memcpy(to, from + head, rest) }
        sendCommit(head + rest, flags: flags)
        return head + rest
    }

    @discardableResult
    package func write(_ bytes: [UInt8], flags: UInt32 = 0) -> Int {
        bytes.withUnsafeBytes { write($0, flags: flags) }
    }

    // MARK: Receiving

    /// In-order bytes that can be taken now. They end at an urgent byte.
    package var receiveAvailable: Int { bytesBeforeMark(Int(raw.pointee.rcv.tail &- raw.pointee.rcv.head)) }

    /// The in-order bytes in one or two pieces. Take some, then `receiveConsume`.
    package func receivePieces() -> (first: UnsafeMutableRawBufferPointer, second: UnsafeMutableRawBufferPointer) {
        Self.pieces(raw.pointee.rcv, from: raw.pointee.rcv.head, count: receiveAvailable)
    }

    /// The application has taken `count` bytes: the window opens.
    package func receiveConsume(_ count: Int) {
        raw.pointee.rcv.head &+= UInt64(count)
        skipUrgentByte()
        if raw.pointee.rcv.head == raw.pointee.rcv.tail { becameEmpty() }
        guard isAttached, let received = protosw.pointee.received else { return }
        received(instance, raw)
    }

    /// Nothing more will come, and all has been taken.
    package var atEndOfStream: Bool { cannotReceiveMore && raw.pointee.rcv.head == raw.pointee.rcv.tail }

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
}

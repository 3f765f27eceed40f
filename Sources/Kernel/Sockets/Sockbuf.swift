import Glibc
import PluginAPI

/// Rings of stream sockets: arena memory addressed by stream position. Nothing here is allocated once a ring is there.
extension Socket {
    /// Makes sure that a ring is there.
    func prepare(_ buffer: inout alps_sockbuf) -> Bool {
        if buffer.base != nil { return true }
        guard let ext = arena.allocate(capacity: Int(buffer.limit)) else { return false }
        buffer.ext = ext
        buffer.base = ext.pointee.base
        buffer.capacity = ext.pointee.length
        return true
    }

    /// Changes how much of a ring may be used. A ring in use grows if it has to, unless a client maps it; it never shrinks.
    func setLimit(_ buffer: inout alps_sockbuf, _ limit: UInt32, isMapped: Bool) {
        guard buffer.base != nil, limit > buffer.capacity else {
            buffer.limit = limit
            return
        }
        guard !isMapped, let ext = arena.allocate(capacity: Int(limit)) else {
            buffer.limit = buffer.capacity
            return
        }
        replace(&buffer, with: ext, capacity: ext.pointee.length)
        buffer.limit = limit
    }

    /// As `setLimit`. A ring that a client maps may have to grow first, which takes its channel.
    func setSendLimit(_ limit: UInt32) {
        setLimit(&raw.pointee.snd, limit, isMapped: isSendMapped)
        if limit > raw.pointee.snd.limit { channel?.sendRingIsShort(limit) }
    }

    /// The buffers live in memory that a client maps from now on. `ext` is not smaller than what there is, and owned by the
    /// socket then. `capacity`: how much of it is used as a ring, bytes, a power of two.
    func moveSendBuffer(to ext: UnsafeMutablePointer<alps_ext>, capacity: UInt32) {
        replace(&raw.pointee.snd, with: ext, capacity: capacity)
        raw.pointee.snd.limit = min(raw.pointee.snd.limit, capacity)
        isSendMapped = true
    }

    /// More or less of its memory is used as a ring. What is in it must fit, and goes to its new place; nothing may refer to the
    /// old one.
    func resizeSendRing(to capacity: UInt32) {
        guard let ext = raw.pointee.snd.ext, capacity <= ext.pointee.length else { return }
        copyRing(raw.pointee.snd, raw.pointee.snd.head..<raw.pointee.snd.tail, to: ext, capacity: capacity)
        raw.pointee.snd.capacity = capacity
        raw.pointee.snd.limit = min(raw.pointee.snd.limit, capacity)
    }

    func moveReceiveBuffer(to ext: UnsafeMutablePointer<alps_ext>) {
        replace(&raw.pointee.rcv, with: ext, capacity: ext.pointee.length)
        raw.pointee.rcv.limit = min(raw.pointee.rcv.limit, ext.pointee.length)
        isReceiveMapped = true
    }

    private func replace(_ buffer: inout alps_sockbuf, with ext: UnsafeMutablePointer<alps_ext>, capacity: UInt32) {
        // All that can matter lies within one capacity behind `head`, data that arrived out of order included.
        copyRing(buffer, buffer.head..<buffer.head &+ UInt64(buffer.capacity), to: ext, capacity: capacity)
        // Segments under way may still refer to the old ring.
        if let old = buffer.ext { Arena.release(old) }
        buffer.ext = ext
        buffer.base = ext.pointee.base
        buffer.capacity = capacity
    }

    /// More room, because the path takes it. What the application has chosen stays.
    func grow(isSend: Bool, _ bytes: UInt32) -> UInt32 {
        var limit = min(bytes, UInt32(truncatingIfNeeded: kernel.sockets.maxSockbuf.value))
        if isSend {
            limit = min(limit, channel?.sendCeiling ?? .max)
            guard !isSendSizeChosen, limit > raw.pointee.snd.limit else { return raw.pointee.snd.limit }
            setSendLimit(limit)
            if isWriterWaiting {
                isWriterWaiting = false
                markDirty()
            }
            return raw.pointee.snd.limit
        }
        guard !isReceiveSizeChosen, limit > raw.pointee.rcv.limit else { return raw.pointee.rcv.limit }
        setLimit(&raw.pointee.rcv, limit, isMapped: isReceiveMapped)
        return raw.pointee.rcv.limit
    }

    /// To a ring of `capacity` bytes in `ext`, which may be larger, and the same memory.
    private func copyRing(
        _ buffer: alps_sockbuf, _ positions: Range<UInt64>, to ext: UnsafeMutablePointer<alps_ext>, capacity: UInt32
    ) {
        guard let base = buffer.base else { return }
        var position = positions.lowerBound
        while position < positions.upperBound {
            let from = Int(position & UInt64(buffer.capacity - 1))
            let to = Int(position & UInt64(capacity - 1))
            let count = min(Int(positions.upperBound - position), Int(buffer.capacity) - from, Int(capacity) - to)
            if ext.pointee.base + to != base + from { memcpy(ext.pointee.base + to, base + from, count) }
            position &+= UInt64(count)
        }
    }

    func releaseBuffers() {
        releaseSendBuffer()
        releaseReceiveBuffer()
    }

    /// `isIdle`: the connection stays, and its pages are to go back rather than wait for another one.
    func releaseSendBuffer(isIdle: Bool = false) {
        Self.release(&raw.pointee.snd, end: raw.pointee.snd.tail, keepsPages: !isIdle)
        isSendMapped = false
    }

    func releaseReceiveBuffer(isIdle: Bool = false) {
        Self.release(&raw.pointee.rcv, end: max(raw.pointee.rcv.tail, idle.placedEnd), keepsPages: !isIdle)
        isReceiveMapped = false
    }

    /// `end`: of the part of the stream that has been in it. Streams begin at 0.
    private static func release(_ buffer: inout alps_sockbuf, end: UInt64, keepsPages: Bool) {
        if let ext = buffer.ext { Arena.release(ext, used: Int(min(end, UInt64(buffer.capacity))), keepsPages: keepsPages) }
        buffer.ext = nil
        buffer.base = nil
        buffer.capacity = 0
    }

    /// The bytes from a position on, in one or two pieces.
    @inline(__always)
    static func pieces(
        _ buffer: alps_sockbuf, from position: UInt64, count: Int
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

    // MARK: For transports

    /// One or two mbufs over the send ring. Nil if that part of the stream is not there, or without mbufs.
    @inline(__always)
    func sendData(_ position: UInt64, _ length: UInt32) -> Mbuf? {
        guard let base = raw.pointee.snd.base, let ext = raw.pointee.snd.ext, length > 0,
            position >= raw.pointee.snd.head, position &+ UInt64(length) <= raw.pointee.snd.tail
        else { return nil }
        let capacity = Int(raw.pointee.snd.capacity)
        let start = Int(position & UInt64(capacity - 1))
        let first = min(Int(length), capacity - start)
        return pool._withUnsafeGuaranteedRef { pool in
            guard let head = pool.refer(ext, base + start, first, flags: ALPS_M_RING) else { return nil }
            if first < Int(length) {
                guard let tail = pool.refer(ext, base, Int(length) - first, flags: ALPS_M_RING) else {
                    pool.freePacket(head)
                    return nil
                }
                head.pointee.next = tail
            }
            return head
        }
    }

    /// Bytes before `position` are acknowledged. A writer that has found the buffer full is woken when a third is free,
    /// so that it does not come back for every segment.
    @inline(__always)
    func dropSent(_ position: UInt64) {
        let tail = raw.pointee.snd.tail
        guard position > raw.pointee.snd.head, position <= tail else { return }
        raw.pointee.snd.head = position
        if isSendMapped { markDirty() }
        if position == tail { becameEmpty() }
        guard isWriterWaiting else { return }
        let used = tail &- position
        let limit = UInt64(raw.pointee.snd.limit)
        if used &+ limit / 3 <= limit || raw.pointee.snd.low_water != 0 {
            isWriterWaiting = false
            markDirty()
        }
    }

    /// Payload longer than this may tell where the next will be.
    private static let longPacket: UInt32 = 8192

    /// Copies payload to its place in the receive ring, unless it has been read there. Returns bytes placed.
    @inline(__always)
    func place(_ position: UInt64, _ packet: UnsafePointer<alps_mbuf>, _ offset: UInt32, _ length: UInt32) -> UInt32 {
        guard prepare(&raw.pointee.rcv), let base = raw.pointee.rcv.base, position >= raw.pointee.rcv.head else { return 0 }
        let capacity = UInt64(raw.pointee.rcv.capacity)
        let edge = raw.pointee.rcv.head &+ min(UInt64(raw.pointee.rcv.limit), capacity)
        guard position < edge else { return 0 }
        let count = min(UInt64(length), edge &- position)
        idle.placedEnd = max(idle.placedEnd, position &+ count)
        let start = Int(position & (capacity - 1))
        let first = min(Int(count), Int(capacity) - start)
        if isReceiveMapped, packet.pointee.pkt.length > Self.longPacket {
            let headers = Int(packet.pointee.pkt.l2_length) + Int(packet.pointee.pkt.l3_length) + Int(offset)
            kernel.sockets.placed = PlacedPayload(socket: .passUnretained(self), packet: packet, headerLength: headers)
        }
        if let read = packet.pointee.next, read.pointee.ext == raw.pointee.rcv.ext {
            let skipped = Int(offset) - Int(packet.pointee.length)
            if skipped >= 0, skipped + Int(count) <= Int(read.pointee.length), read.pointee.data + skipped == base + start {
                return UInt32(truncatingIfNeeded: count)
            }
            return placeByWay(packet, Int(offset), Int(count), base, start, first)
        }
        pool._withUnsafeGuaranteedRef { pool in
            pool.copyOut(packet, Int(offset), first, base + start)
            if first < Int(count) { pool.copyOut(packet, Int(offset) + first, Int(count) - first, base) }
        }
        return UInt32(truncatingIfNeeded: count)
    }

    /// Payload that lies elsewhere in the same ring, perhaps across its place.
    @inline(never)
    private func placeByWay(
        _ packet: UnsafePointer<alps_mbuf>, _ offset: Int, _ count: Int, _ base: UnsafeMutablePointer<UInt8>, _ start: Int,
        _ first: Int
    ) -> UInt32 {
        let copy = UnsafeMutableRawPointer.allocate(byteCount: count, alignment: 16)
        pool._withUnsafeGuaranteedRef { $0.copyOut(packet, offset, count, copy) }
        memcpy(base + start, copy, first)
        memcpy(base, copy + first, count - first)
        copy.deallocate()
        return UInt32(truncatingIfNeeded: count)
    }
}

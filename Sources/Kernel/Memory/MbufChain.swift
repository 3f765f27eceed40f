internal import Glibc
package import PluginAPI

/// Work on packets: chains of mbufs, see alps/mbuf.h for what each operation promises.
extension MbufPool {
    // MARK: What a chain is like

    /// Whether bytes may be written into this buffer: inline, or the only user of a cluster.
    package static func isWritable(_ mbuf: Mbuf) -> Bool {
        guard mbuf.pointee.flags & ALPS_M_EXT != 0, let ext = mbuf.pointee.ext else { return true }
        return mbuf.pointee.reserved & referredMark == 0 && ext.pointee.references == 1
    }

    /// Bytes free in front of `data`.
    static func front(_ mbuf: Mbuf) -> Int { mbuf.pointee.data - mbuf.pointee.storage }

    /// Bytes free behind the valid ones.
    static func back(_ mbuf: Mbuf) -> Int {
        Int(mbuf.pointee.storage_size) - front(mbuf) - Int(mbuf.pointee.length)
    }

    /// Memory that one buffer pins.
    static func truesize(_ mbuf: Mbuf) -> UInt32 {
        ALPS_MBUF_SIZE + (mbuf.pointee.flags & ALPS_M_EXT != 0 ? mbuf.pointee.storage_size : 0)
    }

    static func last(_ mbuf: Mbuf) -> Mbuf {
        var last = mbuf
        while let next = last.pointee.next { last = next }
        return last
    }

    /// The buffer that holds byte `offset` (or ends there), and the offset within it.
    private static func locate(_ packet: Mbuf, _ offset: Int) -> (mbuf: Mbuf, offset: Int)? {
        var mbuf: Mbuf? = packet
        var left = offset
        while let current = mbuf {
            let length = Int(current.pointee.length)
            if left < length || (left == length && current.pointee.next == nil) { return (current, left) }
            left -= length
            mbuf = current.pointee.next
        }
        return nil
    }

    // MARK: Growing and shrinking

    /// Room for `bytes` (<= 256) more in front, contiguous and writable.
    package func prepend(_ packet: Mbuf, _ bytes: Int) -> Mbuf? {
        if Self.front(packet) >= bytes, Self.isWritable(packet) {
            packet.pointee.data -= bytes
            packet.pointee.length += UInt32(bytes)
            grow(packet, front: bytes)
            return packet
        }
        guard bytes <= 256, let head = take() else {
            freePacket(packet)
            return nil
        }
        head.pointee.data += Int(ALPS_MBUF_INLINE) - bytes
        head.pointee.length = UInt32(bytes)
        head.pointee.next = packet
        moveHeader(from: packet, to: head)
        head.pointee.pkt.truesize += ALPS_MBUF_SIZE
        grow(head, front: bytes)
        return head
    }

    private func grow(_ packet: Mbuf, front bytes: Int) {
        packet.pointee.pkt.length += UInt32(bytes)
        if packet.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) { packet.pointee.pkt.csum_start += UInt16(bytes) }
    }

    private func moveHeader(from old: Mbuf, to new: Mbuf) {
        new.pointee.pkt = old.pointee.pkt
        new.pointee.nextpkt = old.pointee.nextpkt
        new.pointee.flags |= ALPS_M_PKTHDR
        old.pointee.nextpkt = nil
        old.pointee.flags &= ~ALPS_M_PKTHDR
    }

    /// Makes the first `bytes` contiguous and writable. Up to 128 bytes in front of `data` stay readable in front of
    /// it.
    package func pullup(_ packet: Mbuf, _ bytes: Int) -> Mbuf? {
        if Int(packet.pointee.length) >= bytes, Self.isWritable(packet) {
            packet.pointee.flags &= ~ALPS_M_RDONLY
            return packet
        }
        guard bytes <= Int(packet.pointee.pkt.length), bytes <= Int(ALPS_CLUSTER_SIZE) else {
            freePacket(packet)
            return nil
        }
        if Self.isWritable(packet), Self.back(packet) >= bytes - Int(packet.pointee.length) {
            packet.pointee.flags &= ~ALPS_M_RDONLY
            let wanted = bytes - Int(packet.pointee.length)
            let end = packet.pointee.data + Int(packet.pointee.length)
            packet.pointee.next = moveFront(of: packet.pointee.next, wanted, to: end, packet)
            packet.pointee.length += UInt32(wanted)
            return packet
        }
        let kept = min(Self.front(packet), Self.keptFront)
        let room = max(kept, Int(ALPS_MBUF_HEADROOM))
        guard let head = buffer(capacity: room + bytes) else {
            freePacket(packet)
            return nil
        }
        head.pointee.data += room
        memcpy(head.pointee.data - kept, packet.pointee.data - kept, kept)
        moveHeader(from: packet, to: head)
        head.pointee.pkt.truesize += Self.truesize(head)
        head.pointee.length = UInt32(bytes)
        head.pointee.next = moveFront(of: packet, bytes, to: head.pointee.data, head)
        return head
    }

    /// Moves `count` bytes out of a chain, freeing emptied buffers; returns what remains. `head` carries the sizes.
    private func moveFront(of chain: Mbuf?, _ count: Int, to destination: UnsafeMutablePointer<UInt8>, _ head: Mbuf)
        -> Mbuf?
    {
        var chain = chain
        var destination = destination
        var left = count
        while left > 0, let mbuf = chain {
            let part = min(left, Int(mbuf.pointee.length))
            memcpy(destination, mbuf.pointee.data, part)
            destination += part
            left -= part
            if part == Int(mbuf.pointee.length) {
                chain = mbuf.pointee.next
                head.pointee.pkt.truesize &-= Self.truesize(mbuf)
                freeMbuf(mbuf)
            } else {
                mbuf.pointee.data += part
                mbuf.pointee.length -= UInt32(part)
            }
        }
        return chain
    }

    /// Removes bytes at both ends. The first buffer stays, even empty: it carries the packet header.
    package func adjust(_ packet: Mbuf, front: Int, back: Int) {
        let total = Int(packet.pointee.pkt.length)
        let front = min(front, total)
        let back = min(back, total - front)
        var left = front
        var mbuf: Mbuf? = packet
        while left > 0, let current = mbuf {
            let part = min(left, Int(current.pointee.length))
            current.pointee.data += part
            current.pointee.length -= UInt32(part)
            left -= part
            mbuf = current.pointee.next
        }
        if front > 0 {
            // Emptied buffers behind the first go; if the first is empty too, it stays in front of what is left.
            while let next = packet.pointee.next, packet.pointee.length == 0, next.pointee.length == 0 {
                packet.pointee.next = next.pointee.next
                packet.pointee.pkt.truesize &-= Self.truesize(next)
                freeMbuf(next)
            }
            if packet.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) {
                packet.pointee.pkt.csum_start -= UInt16(min(front, Int(packet.pointee.pkt.csum_start)))
            }
        }
        packet.pointee.pkt.length = UInt32(total - front - back)
        if back > 0 { truncate(packet, to: total - front - back) }
    }

    /// Cuts the chain behind `length` bytes; the packet header's length is the caller's.
    private func truncate(_ packet: Mbuf, to length: Int) {
        var left = length
        var mbuf = packet
        while left > Int(mbuf.pointee.length), let next = mbuf.pointee.next {
            left -= Int(mbuf.pointee.length)
            mbuf = next
        }
        mbuf.pointee.length = UInt32(min(left, Int(mbuf.pointee.length)))
        var rest = mbuf.pointee.next
        mbuf.pointee.next = nil
        while let current = rest {
            rest = current.pointee.next
            packet.pointee.pkt.truesize &-= Self.truesize(current)
            freeMbuf(current)
        }
    }

    /// Appends bytes. ENOBUFS leaves the packet as it was.
    package func append(_ packet: Mbuf, _ bytes: UnsafeRawPointer, _ length: Int) -> Int32 {
        let tail = Self.last(packet)
        let here = Self.isWritable(tail) ? min(length, Self.back(tail)) : 0
        var first: Mbuf?
        var end: Mbuf?
        var offset = here
        var added: UInt32 = 0
        while offset < length {
            let left = length - offset
            let piece = left <= Int(ALPS_MBUF_INLINE) || left >= 16384 ? left : Int(ALPS_CLUSTER_SIZE)
            guard let mbuf = buffer(capacity: min(piece, Int(ALPS_BIG_CLUSTER_SIZE))) else {
                if let first { freePacket(first) }
                return ALPS_ENOBUFS
            }
            let count = min(left, Int(mbuf.pointee.storage_size))
            memcpy(mbuf.pointee.data, bytes + offset, count)
            mbuf.pointee.length = UInt32(count)
            added += Self.truesize(mbuf)
            offset += count
            if let end { end.pointee.next = mbuf } else { first = mbuf }
            end = mbuf
        }
        if here > 0 {
            memcpy(tail.pointee.data + Int(tail.pointee.length), bytes, here)
            tail.pointee.length += UInt32(here)
        }
        tail.pointee.next = first
        packet.pointee.pkt.length += UInt32(length)
        packet.pointee.pkt.truesize += added
        return 0
    }

    /// Joins `tail`, a packet or a chain without header, behind `head`.
    package func concatenate(_ head: Mbuf, _ tail: Mbuf) {
        var length: UInt32 = 0
        var size: UInt32 = 0
        var mbuf: Mbuf? = tail
        while let current = mbuf {
            length += current.pointee.length
            size += Self.truesize(current)
            mbuf = current.pointee.next
        }
        Self.last(head).pointee.next = tail
        tail.pointee.flags &= ~ALPS_M_PKTHDR
        tail.pointee.nextpkt = nil
        head.pointee.pkt.length += length
        head.pointee.pkt.truesize += size
    }

    // MARK: Reading and writing

    /// Copies `length` bytes from `offset` on.
    package func copyOut(
        _ packet: UnsafePointer<alps_mbuf>, _ offset: Int, _ length: Int, _ destination: UnsafeMutableRawPointer
    ) {
        var destination = destination
        walk(packet, offset, length) { bytes, count in
            memcpy(destination, bytes, count)
            destination += count
        }
    }

    /// Overwrites `length` bytes from `offset` on; the buffers must be writable.
    package func copyIn(_ packet: Mbuf, _ offset: Int, _ length: Int, _ source: UnsafeRawPointer) {
        var source = source
        walk(packet, offset, length) { bytes, count in
            memcpy(UnsafeMutablePointer(mutating: bytes), source, count)
            source += count
        }
    }

    /// The running sum (RFC 1071) over a part of the packet.
    package func sum(_ packet: UnsafePointer<alps_mbuf>, _ offset: Int, _ length: Int) -> UInt32 {
        var total: UInt32 = 0
        var position = 0
        walk(packet, offset, length) { bytes, count in
            let part = InternetChecksum.sum(bytes, count)
            total = InternetChecksum.add(total, position & 1 == 0 ? part : InternetChecksum.swapped(part))
            position &+= count
        }
        return total
    }

    /// Calls `body` for each contiguous run of the range.
    @inline(__always)
    private func walk(
        _ packet: UnsafePointer<alps_mbuf>, _ offset: Int, _ length: Int, _ body: (UnsafePointer<UInt8>, Int) -> Void
    ) {
        var skip = offset
        var left = length
        var mbuf: UnsafePointer<alps_mbuf>? = packet
        while left > 0, let current = mbuf {
            let here = Int(current.pointee.length)
            if skip < here {
                let count = min(left, here &- skip)
                body(UnsafePointer(current.pointee.data) + skip, count)
                left &-= count
                skip = 0
            } else {
                skip &-= here
            }
            mbuf = current.pointee.next.map { UnsafePointer($0) }
        }
    }

    // MARK: Copies

    /// A second packet over `length` bytes from `offset` on (clamped); ring memory is copied.
    package func copy(_ packet: UnsafePointer<alps_mbuf>, _ offset: Int, _ length: Int) -> Mbuf? {
        share(packet, offset, length, ring: false)
    }

    /// The same; with `ring`, ring memory is referred to as well: for use within this turn.
    func share(_ packet: UnsafePointer<alps_mbuf>, _ offset: Int, _ length: Int, ring: Bool) -> Mbuf? {
        let total = Int(packet.pointee.pkt.length)
        let offset = min(offset, total)
        var left = min(length, total - offset)
        let size = left
        var skip = offset
        var head: Mbuf?
        var end: Mbuf?
        var truesize: UInt32 = 0
        var mbuf: Mbuf? = UnsafeMutablePointer(mutating: packet)
        while let current = mbuf, left > 0 || head == nil {
            mbuf = current.pointee.next
            let here = Int(current.pointee.length)
            // A buffer without a wanted byte is left out, unless nothing is left to carry the header.
            if skip >= here, mbuf != nil || left > 0 {
                skip -= here
                continue
            }
            let count = min(left, here - skip)
            guard let part = piece(of: current, skip, count, ring: ring, keepFront: head == nil) else {
                if let head { freePacket(head) }
                return nil
            }
            truesize += Self.truesize(part)
            if let end { end.pointee.next = part } else { head = part }
            end = part
            left -= count
            skip = 0
        }
        guard let head else { return nil }
        head.pointee.flags |= ALPS_M_PKTHDR
        head.pointee.pkt = packet.pointee.pkt
        head.pointee.pkt.length = UInt32(size)
        head.pointee.pkt.truesize = truesize
        if head.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL), offset > 0 {
            head.pointee.pkt.csum_start -= UInt16(min(offset, Int(head.pointee.pkt.csum_start)))
        }
        return head
    }

    /// One buffer over a part of another: shared where that is allowed and pays, else copied.
    func piece(of mbuf: Mbuf, _ offset: Int, _ count: Int, ring: Bool, keepFront: Bool) -> Mbuf? {
        let bytes = mbuf.pointee.data + offset
        let isExternal = mbuf.pointee.flags & ALPS_M_EXT != 0
        let mayShare = isExternal && (ring || mbuf.pointee.flags & ALPS_M_RING == 0)
        if mayShare, let ext = mbuf.pointee.ext {
            guard let part = take() else { return nil }
            ext.pointee.references += 1
            part.pointee.ext = ext
            part.pointee.storage = mbuf.pointee.storage
            part.pointee.storage_size = mbuf.pointee.storage_size
            part.pointee.data = bytes
            part.pointee.length = UInt32(count)
            part.pointee.reserved = mbuf.pointee.reserved
            // The flag warns plugins, on both sides; `isWritable` counts references.
            mbuf.pointee.flags |= ALPS_M_RDONLY
            part.pointee.flags = mbuf.pointee.flags & ~ALPS_M_PKTHDR
            return part
        }
        let kept = keepFront ? min(bytes - mbuf.pointee.storage, Self.keptFront) : 0
        let room = keepFront ? max(kept, Int(ALPS_MBUF_HEADROOM)) : 0
        guard let part = buffer(capacity: room + count) else { return nil }
        part.pointee.data += room
        memcpy(part.pointee.data - kept, bytes - kept, kept + count)
        part.pointee.length = UInt32(count)
        return part
    }

    /// Cuts the packet at `at` and returns the rest as a packet of its own; nil if there is none, or no memory.
    package func split(_ packet: Mbuf, _ at: Int) -> Mbuf? {
        let total = Int(packet.pointee.pkt.length)
        guard at >= 0, at < total, let (mbuf, offset) = Self.locate(packet, at) else { return nil }
        let rest: Mbuf
        if offset == 0, mbuf != packet {
            var previous = packet
            while let next = previous.pointee.next, next != mbuf { previous = next }
            previous.pointee.next = nil
            rest = mbuf
        } else {
            guard
                let part = piece(
                    of: mbuf, offset, Int(mbuf.pointee.length) - offset, ring: true, keepFront: false)
            else { return nil }
            part.pointee.next = mbuf.pointee.next
            mbuf.pointee.next = nil
            mbuf.pointee.length = UInt32(offset)
            rest = part
        }
        rest.pointee.flags |= ALPS_M_PKTHDR
        rest.pointee.pkt = packet.pointee.pkt
        rest.pointee.pkt.length = UInt32(total - at)
        packet.pointee.pkt.length = UInt32(at)
        packet.pointee.pkt.truesize = Self.chainTruesize(packet)
        rest.pointee.pkt.truesize = Self.chainTruesize(rest)
        return rest
    }

    private static func chainTruesize(_ packet: Mbuf) -> UInt32 {
        var size: UInt32 = 0
        var mbuf: Mbuf? = packet
        while let current = mbuf {
            size += truesize(current)
            mbuf = current.pointee.next
        }
        return size
    }

    /// Makes a packet fit to be kept past this turn: no ring memory, and no large storage for little content.
    package func hold(_ packet: Mbuf) -> Mbuf? {
        var mbuf: Mbuf? = packet
        var mustCopy = false
        while let current = mbuf {
            let flags = current.pointee.flags
            if flags & ALPS_M_RING != 0
                || (flags & ALPS_M_EXT != 0 && current.pointee.storage_size > ALPS_CLUSTER_SIZE
                    && current.pointee.storage_size > 4 * current.pointee.length)
            {
                mustCopy = true
                break
            }
            mbuf = current.pointee.next
        }
        guard mustCopy else { return packet }
        defer { freePacket(packet) }
        let length = Int(packet.pointee.pkt.length)
        let kept = min(Self.front(packet), Self.keptFront)
        let room = max(kept, Int(ALPS_MBUF_HEADROOM))
        guard let copy = buffer(capacity: min(room + length, Int(ALPS_CLUSTER_SIZE))) else { return nil }
        copy.pointee.flags |= ALPS_M_PKTHDR
        copy.pointee.pkt = packet.pointee.pkt
        copy.pointee.nextpkt = packet.pointee.nextpkt
        copy.pointee.data += room
        memcpy(copy.pointee.data - kept, packet.pointee.data - kept, kept)
        copy.pointee.pkt.length = 0
        copy.pointee.pkt.truesize = Self.truesize(copy)
        var failed = false
        walk(packet, 0, length) { bytes, count in
            if !failed, append(copy, bytes, count) != 0 { failed = true }
        }
        if failed {
            freePacket(copy)
            return nil
        }
        return copy
    }
}

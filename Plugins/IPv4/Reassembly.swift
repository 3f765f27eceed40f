import PluginAPI
import PluginKit

/// Datagrams being put together (RFC 791, section 3.2; RFC 815). Bounded in number, in number for one sender, in bytes, in
/// fragments, and in time (RFC 1122, section 3.3.2). Fragments that overlap make the whole datagram void, as RFC 5722 has
/// it for IPv6: nobody sends them in good faith.
struct ReassemblyTable {
    /// By sender, so that what one sender has under way is one chain.
    var buckets: UnsafeMutablePointer<UnsafeMutablePointer<Datagram>?>?
    /// In order of arrival.
    var oldest: UnsafeMutablePointer<Datagram>?
    var newest: UnsafeMutablePointer<Datagram>?
    var datagrams = 0
    var bytes = 0

    static var bucketCount: Int { 256 }
}

struct Datagram {
    var next: UnsafeMutablePointer<Datagram>?
    var older: UnsafeMutablePointer<Datagram>?
    var newer: UnsafeMutablePointer<Datagram>?
    var timer: alps_callout
    var source: UInt32
    var destination: UInt32
    var identification: UInt16
    var `protocol`: UInt8
    /// ECN fields seen: bit i set if some fragment had value i (RFC 3168, section 5.3).
    var ecnSeen: UInt8
    /// Payload length, once the last fragment is there; -1 before.
    var total: Int32
    var received: Int32
    /// By offset; `pkt.scratch` of each holds its payload offset.
    var fragments: Mbuf?
    var last: Mbuf?
    var count: Int32
    var pinned: Int
}

typealias DatagramPointer = UnsafeMutablePointer<Datagram>

extension UnsafeMutablePointer where Pointee == Instance {
    /// Takes one fragment, at its header. The whole datagram comes back when nothing is missing. [consumes]
    @inline(never)
    func reassemble(_ arrived: Mbuf) -> Mbuf? {
        // It stays past this turn: a small fragment must not pin a big cluster.
        guard let packet = services.mbuf.pointee.hold(pool, arrived) else { return nil }
        let header = Header(bytes: packet.pointee.data)
        let headerLength = header.length
        let payload = Int(packet.pointee.pkt.length) - headerLength
        let offset = Int(header.fragment & Header.offsetMask) * 8
        let more = header.fragment & Header.moreFragments != 0
        guard payload > 0, !more || payload & 7 == 0, offset + payload + headerLength <= 65535,
            !isTiny(header, offset, payload, more), let datagram = find(header) ?? make(header),
            Int64(datagram.pointee.count) < setting(.maximumFragments)
        else {
            count(.fragmentsDropped)
            free(packet)
            return nil
        }
        packet.pointee.pkt.scratch = UInt64(offset)
        let ecn = header.tos & 3
        guard insert(datagram, packet, offset, payload, more) else { return nil }
        datagram.pointee.ecnSeen |= 1 << ecn
        if datagram.pointee.total >= 0, datagram.pointee.received == datagram.pointee.total {
            return complete(datagram)
        }
        keepWithinBytes()
        return nil
    }

    /// RFC 1858, RFC 3128: a first fragment too short for the ports, or one that begins inside a TCP header, hides
    /// something from filters.
    @inline(__always)
    private func isTiny(_ header: Header, _ offset: Int, _ payload: Int, _ more: Bool) -> Bool {
        offset == 0 && more && payload < 8 || offset == 8 && header.protocol == 6
    }

    private func bucket(_ source: UInt32) -> UnsafeMutablePointer<DatagramPointer?>? {
        let table = pointee.reassembly
        if table.pointee.buckets == nil {
            table.pointee.buckets = services.allocateArray(DatagramPointer?.self, ReassemblyTable.bucketCount)
        }
        let key = source ^ UInt32(truncatingIfNeeded: pointee.identificationKey)
        return table.pointee.buckets.map { $0 + Int((key &* 0x9e37_79b9) >> 24) % ReassemblyTable.bucketCount }
    }

    private func find(_ header: Header) -> DatagramPointer? {
        var entry = bucket(header.source)?.pointee
        while let current = entry {
            if current.pointee.identification == header.identification, current.pointee.source == header.source,
                current.pointee.destination == header.destination, current.pointee.protocol == header.protocol
            {
                return current
            }
            entry = current.pointee.next
        }
        return nil
    }

    private func make(_ header: Header) -> DatagramPointer? {
        let table = pointee.reassembly
        guard let bucket = bucket(header.source) else { return nil }
        var fromSource: Int64 = 0
        var entry = bucket.pointee
        while let current = entry {
            if current.pointee.source == header.source { fromSource += 1 }
            entry = current.pointee.next
        }
        // One sender may not fill the table.
        guard fromSource < setting(.maximumFromSource) else { return nil }
        if Int64(table.pointee.datagrams) >= setting(.maximumDatagrams) { dropOldest() }
        guard let datagram = services.allocate(Datagram.self) else { return nil }
        datagram.pointee.source = header.source
        datagram.pointee.destination = header.destination
        datagram.pointee.identification = header.identification
        datagram.pointee.protocol = header.protocol
        datagram.pointee.total = -1
        datagram.pointee.next = bucket.pointee
        bucket.pointee = datagram
        datagram.pointee.older = table.pointee.newest
        if let newest = table.pointee.newest {
            newest.pointee.newer = datagram
        } else {
            table.pointee.oldest = datagram
        }
        table.pointee.newest = datagram
        changeCount(by: 1)
        services.arm(
            timer(datagram), delay: UInt64(truncatingIfNeeded: setting(.reassemblyTime)),
            function: TimerFunction.reassembly, argument: UnsafeMutableRawPointer(datagram))
        return datagram
    }

    private func timer(_ datagram: DatagramPointer) -> UnsafeMutablePointer<alps_callout> {
        withUnsafeMutablePointer(to: &datagram.pointee.timer) { $0 }
    }

    private func changeCount(by change: Int) {
        pointee.reassembly.pointee.datagrams += change
        pointee.counters[Counter.datagramsHeld.rawValue] = UInt64(
            truncatingIfNeeded: pointee.reassembly.pointee.datagrams)
    }

    /// False if the fragment was not wanted; it has been freed then, and with an overlap the datagram too. [consumes]
    private func insert(_ datagram: DatagramPointer, _ packet: Mbuf, _ offset: Int, _ payload: Int, _ more: Bool)
        -> Bool
    {
        let end = offset + payload
        // Two ends, or bytes behind the end.
        if !more, datagram.pointee.total >= 0, datagram.pointee.total != Int32(end) { return void(datagram, packet) }
        if datagram.pointee.total >= 0, end > Int(datagram.pointee.total) { return void(datagram, packet) }
        var previous: Mbuf?
        var following = datagram.pointee.fragments
        if let last = datagram.pointee.last, Int(last.pointee.pkt.scratch) < offset {
            // In order, as nearly always.
            previous = last
            following = nil
        } else {
            while let current = following, Int(current.pointee.pkt.scratch) < offset {
                previous = current
                following = current.pointee.nextpkt
            }
        }
        if let following, Int(following.pointee.pkt.scratch) == offset, payloadLength(following) == payload {
            // A duplicate, which networks make.
            count(.fragmentsDropped)
            free(packet)
            return false
        }
        if let previous, Int(previous.pointee.pkt.scratch) + payloadLength(previous) > offset {
            return void(datagram, packet)
        }
        if let following, !more || Int(following.pointee.pkt.scratch) < end { return void(datagram, packet) }
        if !more { datagram.pointee.total = Int32(end) }
        packet.pointee.nextpkt = following
        if let previous { previous.pointee.nextpkt = packet } else { datagram.pointee.fragments = packet }
        if following == nil { datagram.pointee.last = packet }
        datagram.pointee.received += Int32(payload)
        datagram.pointee.count += 1
        let pinned = max(Int(packet.pointee.pkt.truesize), payload + Int(ALPS_MBUF_SIZE))
        datagram.pointee.pinned += pinned
        pointee.reassembly.pointee.bytes += pinned
        return true
    }

    private func payloadLength(_ packet: Mbuf) -> Int {
        Int(packet.pointee.pkt.length) - Header(bytes: packet.pointee.data).length
    }

    private func void(_ datagram: DatagramPointer, _ packet: Mbuf) -> Bool {
        count(.overlaps)
        pointee.counters[Counter.fragmentsDropped.rawValue] &+= UInt64(datagram.pointee.count) + 1
        free(packet)
        remove(datagram)
        return false
    }

    /// Joins the fragments: the first keeps its header, with new length and no fragment field.
    private func complete(_ datagram: DatagramPointer) -> Mbuf? {
        guard let first = datagram.pointee.fragments else { return nil }
        var rest = first.pointee.nextpkt
        first.pointee.nextpkt = nil
        datagram.pointee.fragments = nil
        let seen = datagram.pointee.ecnSeen
        let fragments = UInt64(datagram.pointee.count)
        remove(datagram)
        // RFC 3168, section 5.3: not-ECT among ECT or CE fragments makes no sense. And the header is written to.
        let isMixed = seen & 1 != 0 && seen & 0b1110 != 0
        let headerLength = UInt32(Header(bytes: first.pointee.data).length)
        if isMixed { free(first) }
        guard !isMixed, let head = services.mbuf.pointee.pullup(pool, first, headerLength) else {
            pointee.counters[Counter.fragmentsDropped.rawValue] &+= fragments
            services.free(rest)
            return nil
        }
        while let fragment = rest {
            rest = fragment.pointee.nextpkt
            fragment.pointee.nextpkt = nil
            services.mbuf.pointee.adjust(pool, fragment, UInt32(Header(bytes: fragment.pointee.data).length), 0)
            services.mbuf.pointee.concatenate(pool, head, fragment)
        }
        guard head.pointee.pkt.length <= 65535 else {
            // The first one's header is longer than the others' were.
            count(.fragmentsDropped)
            free(head)
            return nil
        }
        let header = Header(bytes: head.pointee.data)
        if seen & 0b1000 != 0 { header.bytes[1] |= 3 }
        header.bytes.store16(2, UInt16(truncatingIfNeeded: head.pointee.pkt.length))
        header.bytes.store16(6, 0)
        header.finish()
        head.pointee.pkt.flags |= UInt16(ALPS_PKT_FRAGMENT)
        // The device can only have checked what was whole.
        head.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
        head.pointee.pkt.gso_type = UInt8(ALPS_GSO_NONE)
        head.pointee.pkt.gso_segments = 1
        count(.reassembled)
        return head
    }

    private func remove(_ datagram: DatagramPointer) {
        services.disarm(timer(datagram))
        services.free(datagram.pointee.fragments)
        let table = pointee.reassembly
        table.pointee.bytes -= datagram.pointee.pinned
        changeCount(by: -1)
        if let older = datagram.pointee.older {
            older.pointee.newer = datagram.pointee.newer
        } else {
            table.pointee.oldest = datagram.pointee.newer
        }
        if let newer = datagram.pointee.newer {
            newer.pointee.older = datagram.pointee.older
        } else {
            table.pointee.newest = datagram.pointee.older
        }
        if var link = bucket(datagram.pointee.source) {
            while let current = link.pointee {
                if current == datagram {
                    link.pointee = current.pointee.next
                    break
                }
                link = withUnsafeMutablePointer(to: &current.pointee.next) { $0 }
            }
        }
        services.free(datagram)
    }

    private func dropOldest() {
        guard let datagram = pointee.reassembly.pointee.oldest else { return }
        pointee.counters[Counter.fragmentsDropped.rawValue] &+= UInt64(datagram.pointee.count)
        remove(datagram)
    }

    private func keepWithinBytes() {
        while Int64(pointee.reassembly.pointee.bytes) > setting(.maximumReassemblyBytes),
            pointee.reassembly.pointee.oldest != nil
        {
            dropOldest()
        }
    }

    func dropAllDatagrams() {
        while let datagram = pointee.reassembly.pointee.oldest { remove(datagram) }
        if let buckets = pointee.reassembly.pointee.buckets {
            services.freeArray(buckets, ReassemblyTable.bucketCount)
            pointee.reassembly.pointee.buckets = nil
        }
    }

    /// RFC 792: time exceeded, code 1, if the first fragment is there.
    func datagramTimer(_ datagram: DatagramPointer) {
        count(.reassemblyTimeouts)
        pointee.counters[Counter.fragmentsDropped.rawValue] &+= UInt64(datagram.pointee.count)
        var first: Mbuf?
        if let head = datagram.pointee.fragments, head.pointee.pkt.scratch == 0 {
            datagram.pointee.fragments = head.pointee.nextpkt
            head.pointee.nextpkt = nil
            first = head
        }
        remove(datagram)
        if let first { sendError(first, 11, 1, 0) }
    }
}

import PluginAPI
import PluginKit

/// Datagrams being put together. Bounded in number, in bytes, and in time (RFC 1122, section 3.3.2). Fragments that
/// overlap make the whole datagram void, as RFC 5722 has it for IPv6: nobody sends them in good faith.
struct ReassemblyTable {
    /// Newest first.
    var first: UnsafeMutablePointer<Datagram>?
    var datagrams = 0
    var bytes = 0
}

struct Datagram {
    var next: UnsafeMutablePointer<Datagram>?
    var timer: alps_callout
    var source: UInt32
    var destination: UInt32
    var identification: UInt16
    var `protocol`: UInt8
    /// ECN field seen: bit i set if some fragment had value i (RFC 3168, section 5.3).
    var ecnSeen: UInt8
    /// Payload length, once the last fragment is there; -1 before.
    var total: Int32
    var received: Int32
    /// By offset; `pkt.scratch` of each holds its payload offset.
    var fragments: Mbuf?
    var count: Int32
    var pinned: Int32
}

typealias DatagramPointer = UnsafeMutablePointer<Datagram>

extension UnsafeMutablePointer where Pointee == Instance {
    /// Takes one fragment, at its header. The whole datagram comes back when nothing is missing. [consumes]
    func reassemble(_ arrived: Mbuf) -> Mbuf? {
        // It stays past this turn: a small fragment must not pin a big cluster.
        guard let packet = services.mbuf.pointee.hold(pool, arrived) else { return nil }
        let header = Header(bytes: packet.pointee.data)
        let headerLength = header.length
        let payload = Int(packet.pointee.pkt.length) - headerLength
        let offset = Int(header.fragment & Header.offsetMask) * 8
        let more = header.fragment & Header.moreFragments != 0
        guard payload > 0, !more || payload & 7 == 0, offset + payload + headerLength <= 65535,
            // RFC 1858: a first fragment without a transport header, or a second one at offset 8, hides ports.
            !(offset == 0 && more && payload < 8), !(offset == 8 && header.protocol == 6)
        else {
            count(.fragmentsDropped)
            free(packet)
            return nil
        }
        guard let datagram = find(header) ?? make(header) else {
            count(.fragmentsDropped)
            free(packet)
            return nil
        }
        packet.pointee.pkt.scratch = UInt64(offset)
        guard insert(datagram, packet, offset, payload, more) else {
            count(.fragmentsDropped)
            return nil
        }
        datagram.pointee.ecnSeen |= 1 << (header.tos & 3)
        guard datagram.pointee.total >= 0, datagram.pointee.received == datagram.pointee.total else { return nil }
        return complete(datagram)
    }

    private func find(_ header: Header) -> DatagramPointer? {
        var entry = pointee.reassembly.pointee.first
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
        if table.pointee.datagrams >= Int(setting(.maximumDatagrams)) || table.pointee.bytes >= Int(setting(.maximumReassemblyBytes)) {
            dropOldest()
        }
        var fromSource = 0
        var entry = table.pointee.first
        while let current = entry {
            if current.pointee.source == header.source { fromSource += 1 }
            entry = current.pointee.next
        }
        // One sender may not fill the table.
        guard fromSource < max(Int(setting(.maximumDatagrams)) / 4, 1), let datagram = services.allocate(Datagram.self) else {
            return nil
        }
        datagram.pointee.source = header.source
        datagram.pointee.destination = header.destination
        datagram.pointee.identification = header.identification
        datagram.pointee.protocol = header.protocol
        datagram.pointee.total = -1
        datagram.pointee.next = table.pointee.first
        table.pointee.first = datagram
        table.pointee.datagrams += 1
        services.arm(
            timer(datagram), delay: UInt64(truncatingIfNeeded: setting(.reassemblyTime)),
            function: TimerFunction.reassembly, argument: UnsafeMutableRawPointer(datagram))
        return datagram
    }

    private func timer(_ datagram: DatagramPointer) -> UnsafeMutablePointer<alps_callout> {
        withUnsafeMutablePointer(to: &datagram.pointee.timer) { $0 }
    }

    /// False if the fragment was not wanted; it has been freed then, and with an overlap the datagram too. [consumes]
    private func insert(_ datagram: DatagramPointer, _ packet: Mbuf, _ offset: Int, _ payload: Int, _ more: Bool) -> Bool {
        let end = offset + payload
        if !more {
            guard datagram.pointee.total < 0 || datagram.pointee.total == Int32(end) else { return void(datagram, packet) }
            datagram.pointee.total = Int32(end)
        }
        if datagram.pointee.total >= 0, end > Int(datagram.pointee.total) { return void(datagram, packet) }
        var previous: Mbuf?
        var following = datagram.pointee.fragments
        while let current = following, Int(current.pointee.pkt.scratch) < offset {
            previous = current
            following = current.pointee.nextpkt
        }
        if let following, Int(following.pointee.pkt.scratch) == offset, payloadLength(following) == payload {
            // A duplicate, which networks make.
            free(packet)
            return false
        }
        if let previous, Int(previous.pointee.pkt.scratch) + payloadLength(previous) > offset { return void(datagram, packet) }
        if let following, Int(following.pointee.pkt.scratch) < end { return void(datagram, packet) }
        if !more, following != nil { return void(datagram, packet) }
        packet.pointee.nextpkt = following
        if let previous { previous.pointee.nextpkt = packet } else { datagram.pointee.fragments = packet }
        datagram.pointee.received += Int32(payload)
        datagram.pointee.count += 1
        let pinned = Int32(clamping: max(Int(packet.pointee.pkt.truesize), payload + 512))
        datagram.pointee.pinned += pinned
        pointee.reassembly.pointee.bytes += Int(pinned)
        return true
    }

    private func payloadLength(_ packet: Mbuf) -> Int {
        Int(packet.pointee.pkt.length) - Header(bytes: packet.pointee.data).length
    }

    private func void(_ datagram: DatagramPointer, _ packet: Mbuf) -> Bool {
        count(.overlaps)
        free(packet)
        remove(datagram)
        return false
    }

    /// Joins the fragments: the first keeps its header, with new length and no fragment field.
    private func complete(_ datagram: DatagramPointer) -> Mbuf? {
        guard let head = datagram.pointee.fragments else { return nil }
        // RFC 3168, section 5.3: not-ECT among ECT or CE fragments makes no sense.
        let seen = datagram.pointee.ecnSeen
        if seen & 1 != 0, seen & 0b1110 != 0 {
            remove(datagram)
            count(.fragmentsDropped)
            return nil
        }
        var rest = head.pointee.nextpkt
        head.pointee.nextpkt = nil
        datagram.pointee.fragments = nil
        while let fragment = rest {
            rest = fragment.pointee.nextpkt
            fragment.pointee.nextpkt = nil
            services.mbuf.pointee.adjust(pool, fragment, UInt32(Header(bytes: fragment.pointee.data).length), 0)
            services.mbuf.pointee.concatenate(pool, head, fragment)
        }
        remove(datagram)
        let header = Header(bytes: head.pointee.data)
        if seen & 0b1000 != 0 { header.bytes[1] |= 3 }
        header.bytes.store16(2, UInt16(truncatingIfNeeded: head.pointee.pkt.length))
        header.bytes.store16(6, 0)
        header.finish()
        head.pointee.pkt.flags |= UInt16(ALPS_PKT_FRAGMENT)
        // The device can only have checked what was whole.
        head.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
        head.pointee.pkt.gso_segments = 1
        count(.reassembled)
        return head
    }

    private func remove(_ datagram: DatagramPointer) {
        services.disarm(timer(datagram))
        services.free(datagram.pointee.fragments)
        let table = pointee.reassembly
        table.pointee.bytes -= Int(datagram.pointee.pinned)
        table.pointee.datagrams -= 1
        if table.pointee.first == datagram {
            table.pointee.first = datagram.pointee.next
        } else {
            var previous = table.pointee.first
            while let current = previous {
                if current.pointee.next == datagram {
                    current.pointee.next = datagram.pointee.next
                    break
                }
                previous = current.pointee.next
            }
        }
        services.free(datagram)
    }

    private func dropOldest() {
        guard var entry = pointee.reassembly.pointee.first else { return }
        while let next = entry.pointee.next { entry = next }
        count(.fragmentsDropped)
        remove(entry)
    }

    func dropAllDatagrams() {
        while let datagram = pointee.reassembly.pointee.first { remove(datagram) }
    }

    /// RFC 792: time exceeded, code 1, if the first fragment is there.
    func datagramTimer(_ datagram: DatagramPointer) {
        count(.reassemblyTimeouts)
        if let head = datagram.pointee.fragments, head.pointee.pkt.scratch == 0 {
            datagram.pointee.fragments = head.pointee.nextpkt
            head.pointee.nextpkt = nil
            sendError(head, 11, 1, 0)
        }
        remove(datagram)
    }
}

import PluginAPI
import PluginKit

/// What is known of one neighbour. In zone memory.
struct Neighbor {
    var next: UnsafeMutablePointer<Neighbor>?
    var timer: alps_callout
    var ifindex: UInt32
    /// ALPS_NEIGHBOR_*
    var flags: UInt32
    /// IPv4 address as it lies in a packet.
    var address: UInt32
    var hardware: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8, UInt8, UInt8)
    /// Packets waiting for the answer, oldest first.
    var heldFirst: Mbuf?
    var heldLast: Mbuf?
    var heldCount: UInt32
    /// Requests sent since the last answer.
    var tries: UInt32
    /// ns; when a failed resolution may be tried again, or a good entry lapses.
    var until: UInt64
    var wasUsed: Bool
}

typealias NeighborPointer = UnsafeMutablePointer<Neighbor>

/// IPv4 address out of the neutral form.
@inline(__always)
func ipv4(_ address: UnsafePointer<alps_addr>) -> UInt32 { UnsafeRawPointer(address).loadUnaligned(as: UInt32.self) }

extension UnsafeMutablePointer where Pointee == Instance {
    @inline(__always)
    private func bucket(_ address: UInt32) -> UnsafeMutablePointer<NeighborPointer?> {
        pointee.buckets + Int((address &* 0x9e37_79b9) >> 24) % Instance.bucketCount
    }

    @inline(__always)
    func neighbor(_ ifindex: UInt32, _ address: UInt32) -> NeighborPointer? {
        var entry = bucket(address).pointee
        while let current = entry {
            if current.pointee.address == address, current.pointee.ifindex == ifindex { return current }
            entry = current.pointee.next
        }
        return nil
    }

    /// A new entry; nil at the limit or without memory.
    func makeNeighbor(_ ifindex: UInt32, _ address: UInt32) -> NeighborPointer? {
        if pointee.neighborCount >= Int(setting(.maximumEntries)) { evict() }
        guard pointee.neighborCount < Int(setting(.maximumEntries)), let entry = services.allocate(Neighbor.self) else {
            count(.tableFull)
            return nil
        }
        entry.pointee.ifindex = ifindex
        entry.pointee.address = address
        let head = bucket(address)
        entry.pointee.next = head.pointee
        head.pointee = entry
        pointee.neighborCount += 1
        pointee.counters[Counter.entries.rawValue] = UInt64(pointee.neighborCount)
        return entry
    }

    /// Makes room: the first entry found that is neither static nor waited for.
    private func evict() {
        for index in 0..<Instance.bucketCount {
            var entry = pointee.buckets[index]
            while let current = entry {
                entry = current.pointee.next
                if current.pointee.flags & ALPS_NEIGHBOR_STATIC == 0, current.pointee.heldCount == 0 {
                    removeNeighbor(current)
                    return
                }
            }
        }
    }

    func removeNeighbor(_ entry: NeighborPointer) {
        dropHeld(entry)
        services.disarm(timer(entry))
        var link = bucket(entry.pointee.address)
        while let current = link.pointee {
            if current == entry {
                link.pointee = current.pointee.next
                break
            }
            link = nextLink(current)
        }
        pointee.neighborCount -= 1
        pointee.counters[Counter.entries.rawValue] = UInt64(pointee.neighborCount)
        services.free(entry)
    }

    private func nextLink(_ entry: NeighborPointer) -> UnsafeMutablePointer<NeighborPointer?> {
        withUnsafeMutablePointer(to: &entry.pointee.next) { $0 }
    }

    @inline(__always)
    private func timer(_ entry: NeighborPointer) -> UnsafeMutablePointer<alps_callout> {
        withUnsafeMutablePointer(to: &entry.pointee.timer) { $0 }
    }

    func disarm(_ entry: NeighborPointer) { services.disarm(timer(entry)) }

    func removeAllNeighbors() {
        for index in 0..<Instance.bucketCount {
            while let entry = pointee.buckets[index] { removeNeighbor(entry) }
        }
    }

    func removeNeighbors(of ifindex: UInt32) {
        for index in 0..<Instance.bucketCount {
            var entry = pointee.buckets[index]
            while let current = entry {
                entry = current.pointee.next
                if current.pointee.ifindex == ifindex { removeNeighbor(current) }
            }
        }
    }

    func dropHeld(_ entry: NeighborPointer) {
        services.free(entry.pointee.heldFirst)
        entry.pointee.heldFirst = nil
        entry.pointee.heldLast = nil
        entry.pointee.heldCount = 0
    }

    // MARK: Resolution

    /// RFC 1122, section 2.3.2: packets wait while a request is out, requests are sent at most once a second.
    @inline(__always)
    func resolve(_ ifindex: UInt32, _ address: UInt32, _ list: Mbuf, _ hardware: UnsafeMutablePointer<UInt8>) -> Int32 {
        if let entry = neighbor(ifindex, address),
            entry.pointee.flags & (ALPS_NEIGHBOR_RESOLVED | ALPS_NEIGHBOR_STATIC) != 0
        {
            entry.pointee.wasUsed = true
            withUnsafeBytes(of: entry.pointee.hardware) { bytes in
                for index in 0..<6 { hardware[index] = bytes[index] }
            }
            return 0
        }
        return resolveSlowly(ifindex, address, list)
    }

    @inline(never)
    private func resolveSlowly(_ ifindex: UInt32, _ address: UInt32, _ list: Mbuf) -> Int32 {
        var found = neighbor(ifindex, address)
        if let entry = found, entry.pointee.flags & ALPS_NEIGHBOR_FAILED != 0 {
            guard services.now >= entry.pointee.until else {
                // Their senders are told as those were who waited in vain; not from here, where they still send.
                count(.droppedUnresolved)
                hold(entry, list)
                services.arm(
                    timer(entry), delay: 0, function: TimerFunction.neighbor,
                    argument: UnsafeMutableRawPointer(entry))
                return ALPS_EHOSTDOWN
            }
            entry.pointee.flags &= ~ALPS_NEIGHBOR_FAILED
            entry.pointee.tries = 0
        }
        if found == nil { found = makeNeighbor(ifindex, address) }
        guard let entry = found else {
            services.free(list)
            return ALPS_ENOBUFS
        }
        hold(entry, list)
        if entry.pointee.tries == 0 { sendTry(entry) }
        return ALPS_EAGAIN
    }

    /// Keeps packets until the answer comes; the oldest goes when there are too many.
    private func hold(_ entry: NeighborPointer, _ list: Mbuf) {
        let ops = services.mbuf
        let pool = services.mbufCell.instance
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            guard let held = ops.pointee.hold(pool, packet) else { continue }
            if let last = entry.pointee.heldLast { last.pointee.nextpkt = held } else { entry.pointee.heldFirst = held }
            entry.pointee.heldLast = held
            entry.pointee.heldCount += 1
            if entry.pointee.heldCount > UInt32(truncatingIfNeeded: setting(.maximumHeld)),
                let oldest = entry.pointee.heldFirst
            {
                entry.pointee.heldFirst = oldest.pointee.nextpkt
                oldest.pointee.nextpkt = nil
                entry.pointee.heldCount -= 1
                ops.pointee.free_packet(pool, oldest)
                count(.droppedHeld)
            }
        }
    }

    private func sendTry(_ entry: NeighborPointer) {
        entry.pointee.tries += 1
        sendRequest(entry.pointee.ifindex, entry.pointee.address, to: nil)
        // Once a second (RFC 1122, section 2.3.2.1). The back-off comes when nobody has answered: see `downTime`.
        services.arm(
            timer(entry), delay: ALPS_NSEC_PER_SEC, function: TimerFunction.neighbor,
            argument: UnsafeMutableRawPointer(entry))
    }

    func neighborTimer(_ entry: NeighborPointer) {
        if entry.pointee.flags & ALPS_NEIGHBOR_STATIC != 0 { return }
        if entry.pointee.flags & ALPS_NEIGHBOR_FAILED != 0 {
            guard entry.pointee.heldFirst != nil else { return removeNeighbor(entry) }
            keepFailed(entry)
            return reportHeld(entry)
        }
        if entry.pointee.flags & ALPS_NEIGHBOR_RESOLVED != 0 { return verify(entry) }
        if Int64(entry.pointee.tries) < setting(.maximumTries) {
            sendTry(entry)
            return
        }
        // Nobody answers.
        count(.timeouts)
        entry.pointee.flags |= ALPS_NEIGHBOR_FAILED
        entry.pointee.until = services.now &+ UInt64(truncatingIfNeeded: setting(.downTime))
        keepFailed(entry)
        reportHeld(entry)
    }

    /// The entry is remembered a little longer than it says no.
    private func keepFailed(_ entry: NeighborPointer) {
        let left = entry.pointee.until > services.now ? entry.pointee.until - services.now : 0
        services.arm(
            timer(entry), delay: left &+ 10 * ALPS_NSEC_PER_SEC, function: TimerFunction.neighbor,
            argument: UnsafeMutableRawPointer(entry))
    }

    /// Aged. One in use is asked by unicast before it goes (RFC 1122, section 2.3.2.1), so that traffic does not stall.
    private func verify(_ entry: NeighborPointer) {
        guard entry.pointee.wasUsed, Int64(entry.pointee.tries) < setting(.maximumTries) else {
            return removeNeighbor(entry)
        }
        entry.pointee.tries += 1
        var hardware = entry.pointee.hardware
        withUnsafeBytes(of: &hardware) { bytes in
            guard let base = bytes.baseAddress else { return }
            sendRequest(entry.pointee.ifindex, entry.pointee.address, to: base.assumingMemoryBound(to: UInt8.self))
        }
        services.arm(
            timer(entry), delay: ALPS_NSEC_PER_SEC, function: TimerFunction.neighbor,
            argument: UnsafeMutableRawPointer(entry))
    }

    /// The packets that waited in vain: their senders, who are here, are told by ICMP (RFC 1122, section 3.3.1.4), which
    /// goes over lo0's queue.
    private func reportHeld(_ entry: NeighborPointer) {
        var next = entry.pointee.heldFirst
        entry.pointee.heldFirst = nil
        entry.pointee.heldLast = nil
        entry.pointee.heldCount = 0
        let ops = services.mbuf
        let pool = services.mbufCell.instance
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            guard let cell = pointee.errorCell, cell.isProvided, packet.pointee.length >= 20,
                isOurs(UnsafeRawPointer(packet.pointee.data).loadUnaligned(fromByteOffset: 12, as: UInt32.self))
            else {
                ops.pointee.free_packet(pool, packet)
                continue
            }
            cell.ops(alps_neterror_ops.self).pointee.send(cell.instance, packet, 3, 1, 0)
        }
    }

    /// An address of this stack, on any interface.
    private func isOurs(_ address: UInt32) -> Bool {
        var index: UInt32 = 1
        let last = lastInterface
        while index <= last {
            if let ifnet = ifnet(index), ownAddress(ifnet, address) != nil { return true }
            index += 1
        }
        return false
    }

    /// Somebody has told us his address: packets that waited go out.
    func resolved(_ entry: NeighborPointer, _ hardware: UnsafePointer<UInt8>) {
        guard entry.pointee.flags & ALPS_NEIGHBOR_STATIC == 0 else { return }
        withUnsafeMutableBytes(of: &entry.pointee.hardware) { bytes in
            for index in 0..<6 { bytes[index] = hardware[index] }
        }
        entry.pointee.flags = (entry.pointee.flags | ALPS_NEIGHBOR_RESOLVED) & ~ALPS_NEIGHBOR_FAILED
        entry.pointee.tries = 0
        entry.pointee.wasUsed = false
        let lifetime = UInt64(truncatingIfNeeded: setting(.lifetime))
        entry.pointee.until = services.now &+ lifetime
        services.arm(
            timer(entry), delay: lifetime, function: TimerFunction.neighbor, argument: UnsafeMutableRawPointer(entry))
        flushHeld(entry)
    }

    func flushHeld(_ entry: NeighborPointer) {
        guard let list = entry.pointee.heldFirst else { return }
        entry.pointee.heldFirst = nil
        entry.pointee.heldLast = nil
        entry.pointee.heldCount = 0
        let cell = services.ifnetCell
        var hop = alps_addr()
        withUnsafeMutableBytes(of: &hop) { $0.storeBytes(of: entry.pointee.address, as: UInt32.self) }
        _ = cell.ops(alps_ifnet_ops.self).pointee.output(
            cell.instance, entry.pointee.ifindex, list, UInt16(ALPS_AF_INET), &hop)
    }
}

// MARK: "alps.neighbor/1:2"

func neighborResolve(
    _ context: UnsafeMutableRawPointer, _ ifindex: UInt32, _ nextHop: UnsafePointer<alps_addr>, _ list: Mbuf,
    _ hardware: UnsafeMutablePointer<UInt8>
) -> Int32 {
    context.assumingMemoryBound(to: Instance.self).resolve(ifindex, ipv4(nextHop), list, hardware)
}

func neighborAdd(_ context: UnsafeMutableRawPointer, _ neighbor: UnsafePointer<alps_neighbor>) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    let address = withUnsafeBytes(of: neighbor.pointee.addr) { $0.loadUnaligned(as: UInt32.self) }
    guard instance.ifnet(neighbor.pointee.ifindex) != nil, address != 0 else { return ALPS_EINVAL }
    guard
        let entry = instance.neighbor(neighbor.pointee.ifindex, address)
            ?? instance.makeNeighbor(neighbor.pointee.ifindex, address)
    else { return ALPS_ENOBUFS }
    entry.pointee.hardware = neighbor.pointee.hardware
    entry.pointee.flags =
        ALPS_NEIGHBOR_STATIC | ALPS_NEIGHBOR_RESOLVED | (neighbor.pointee.flags & ALPS_NEIGHBOR_PUBLISHED)
    entry.pointee.until = 0
    entry.pointee.tries = 0
    instance.disarm(entry)
    instance.flushHeld(entry)
    return 0
}

func neighborRemove(_ context: UnsafeMutableRawPointer, _ ifindex: UInt32, _ address: UnsafePointer<alps_addr>) -> Int32
{
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let entry = instance.neighbor(ifindex, ipv4(address)) else { return ALPS_ENOENT }
    instance.removeNeighbor(entry)
    return 0
}

func neighborList(
    _ context: UnsafeMutableRawPointer, _ start: UInt32, _ entries: UnsafeMutablePointer<alps_neighbor>,
    _ capacity: UInt32
) -> UInt32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    var seen: UInt32 = 0
    var written: UInt32 = 0
    let now = instance.services.now
    for index in 0..<Instance.bucketCount {
        var entry = instance.pointee.buckets[index]
        while let current = entry {
            entry = current.pointee.next
            seen += 1
            guard seen > start, written < capacity else { continue }
            var record = alps_neighbor()
            record.size = UInt32(MemoryLayout<alps_neighbor>.size)
            record.ifindex = current.pointee.ifindex
            record.flags = current.pointee.flags
            record.family = UInt16(ALPS_AF_INET)
            record.hardware_length = 6
            record.hardware = current.pointee.hardware
            record.held = current.pointee.heldCount
            record.expires = current.pointee.until > now ? current.pointee.until - now : 0
            withUnsafeMutableBytes(of: &record.addr) { $0.storeBytes(of: current.pointee.address, as: UInt32.self) }
            (entries + Int(written)).initialize(to: record)
            written += 1
        }
    }
    return written
}

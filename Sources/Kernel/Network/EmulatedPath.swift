import PluginAPI

/// One direction of an emulated link. Cuts large packets into real ones before anything else, since a wire loses single
/// packets; keeps what travels in memory of its own.
package final class EmulatedPath {
    private let kernel: Kernel
    private let spec: LinkSpec
    private var generator: SeededGenerator
    private let deliver: (Mbuf) -> Void
    /// Takes a frame back to who has sent something; nil: nothing goes back.
    package var answer: (([UInt8]) -> Void)?
    private var timer: HostTimer?

    private struct Traveller {
        var due: UInt64
        var packet: Mbuf
    }
    /// In order of arrival from `first` on; what lies before has arrived.
    private var travelling: [Traveller] = []
    private var first = 0
    /// When the last bit of what has been sent has left.
    private var lineFree: UInt64 = 0
    private var lastDue: UInt64 = 0
    private var isClosed = false
    /// In a run of losses.
    private var isBursting = false

    /// Packets that came, and those of them that did not arrive.
    package private(set) var seen: UInt64 = 0
    package private(set) var lost: UInt64 = 0
    /// Packets on their way.
    package var count: Int { travelling.count - first }

    /// A reordered packet on a link without delay is held back for so long, ns.
    private static let holdBack: UInt64 = 1_000_000

    /// `kernel` owns the packets and the timer; `deliver` gets lists of frames. [consumes]
    package init(kernel: Kernel, spec: LinkSpec, salt: UInt64, deliver: @escaping (Mbuf) -> Void) {
        self.kernel = kernel
        self.spec = spec
        self.deliver = deliver
        generator = SeededGenerator(seed: spec.seed &* 0x9e37_79b9_7f4a_7c15 &+ salt)
        timer = HostTimer(kernel) { [unowned self] in self.arrive() }
    }

    // MARK: Sending

    /// A list of frames, `data` at the link header. [consumes]
    package func receive(_ list: Mbuf) {
        guard !isClosed else { return kernel.mbufs.free(list) }
        var next: Mbuf? = list
        while let frame = next {
            next = frame.pointee.nextpkt
            frame.pointee.nextpkt = nil
            var pieces = plain(frame)
            if pieces == nil { lost &+= 1 }
            while let piece = pieces {
                pieces = piece.pointee.nextpkt
                piece.pointee.nextpkt = nil
                send(piece)
            }
        }
        schedule()
    }

    /// Single packets with complete checksums, link header kept.
    private func plain(_ frame: Mbuf) -> Mbuf? {
        let pool = kernel.mbufs
        guard frame.pointee.pkt.gso_type != UInt8(ALPS_GSO_NONE), frame.pointee.pkt.gso_size > 0 else {
            return pool.finishChecksum(frame)
        }
        guard let frame = pool.pullup(frame, Ethernet.headerLength) else { return nil }
        // `segment` repeats what stands in front of the network header.
        frame.pointee.pkt.l2_length = UInt16(Ethernet.headerLength)
        pool.adjust(frame, front: Ethernet.headerLength, back: 0)
        var first: Mbuf?
        var last: Mbuf?
        var pieces = pool.segment(frame)
        while let piece = pieces {
            pieces = piece.pointee.nextpkt
            piece.pointee.nextpkt = nil
            piece.pointee.data -= Ethernet.headerLength
            piece.pointee.length += UInt32(Ethernet.headerLength)
            piece.pointee.pkt.length += UInt32(Ethernet.headerLength)
            if let last { last.pointee.nextpkt = piece } else { first = piece }
            last = piece
        }
        return first
    }

    private func chance(_ probability: Double) -> Bool {
        probability > 0 && Double(generator.next() >> 11) * 0x1p-53 < probability
    }

    /// Gilbert (1960): the bad state is left with 1/burst a packet, and entered so that `loss` is its share of time.
    private func isLost() -> Bool {
        guard spec.burst > 1, spec.loss < 1 else { return chance(spec.loss) }
        isBursting = isBursting ? !chance(1 / spec.burst) : chance(spec.loss / (spec.burst * (1 - spec.loss)))
        return isBursting
    }

    /// ARP has no checksum: what is damaged in it stands for a frame that the link's own check has thrown away.
    private func hasOwnCheck(_ packet: Mbuf) -> Bool {
        var type: UInt16 = 0
        withUnsafeMutableBytes(of: &type) {
            if let place = $0.baseAddress { kernel.mbufs.copyOut(packet, Ethernet.headerLength - 2, 2, place) }
        }
        return UInt16(bigEndian: type) != 0x0806
    }

    private func send(_ packet: Mbuf) {
        let pool = kernel.mbufs
        let length = Int(packet.pointee.pkt.length)
        seen &+= 1
        guard travelling.count - first < spec.limit, spec.mtu == 0 || length <= spec.mtu + Ethernet.headerLength,
            !spec.lossPattern.contains(seen), !isLost()
        else {
            lost &+= 1
            pool.freePacket(packet)
            return
        }
        guard !isStopped(packet, length) else {
            lost &+= 1
            return pool.freePacket(packet)
        }
        if chance(spec.duplicate), let copy = pool.copy(packet, 0, length) { travel(copy) }
        travel(packet)
    }

    /// By a network on the way that is too small for it.
    private func isStopped(_ packet: Mbuf, _ length: Int) -> Bool {
        let mtu = spec.narrow != 0 ? spec.narrow : spec.hole
        guard mtu != 0, length > mtu + Ethernet.headerLength else { return false }
        return withUnsafeTemporaryAllocation(byteCount: 64, alignment: 8) { place in
            guard let base = place.baseAddress else { return false }
            kernel.mbufs.copyOut(packet, 0, min(length, 64), base)
            let bytes = UnsafeRawBufferPointer(place)
            guard PathTooNarrow.stops(bytes, length: length, mtu: mtu) else { return false }
            if spec.narrow != 0 { answer?(PathTooNarrow.answer(bytes, mtu: mtu)) }
            return true
        }
    }

    private func travel(_ packet: Mbuf) {
        let isDamaged = chance(spec.corrupt)
        guard !isDamaged || hasOwnCheck(packet) else {
            lost &+= 1
            return kernel.mbufs.freePacket(packet)
        }
        guard let packet = isDamaged ? damaged(packet) : kernel.mbufs.hold(packet) else {
            lost &+= 1
            return
        }
        if chance(spec.mark) { mark(packet) }
        let now = kernel.clock.now
        var due = now
        if spec.rate > 0 {
            let bits = UInt64(packet.pointee.pkt.length) &* 8
            lineFree = max(now, lineFree) &+ bits &* 1_000_000_000 / spec.rate
            due = lineFree
        }
        due &+= spec.delay
        if spec.jitter > 0 { due &+= generator.next() % (spec.jitter &+ 1) }
        if chance(spec.reorder) {
            // It overtakes what is on its way, or, where nothing is, lets others overtake.
            due = spec.delay > 0 ? now &+ spec.delay / 2 : due &+ Self.holdBack
        } else {
            due = max(due, lastDue)
            lastDue = due
        }
        var index = travelling.count
        while index > first, travelling[index - 1].due > due { index -= 1 }
        travelling.insert(Traveller(due: due, packet: packet), at: index)
    }

    /// Congestion experienced, as a router says it of ECN-capable IPv4 packets (RFC 3168, section 5).
    private func mark(_ packet: Mbuf) {
        let header = packet.pointee.data + Ethernet.headerLength
        guard packet.pointee.length >= UInt32(Ethernet.headerLength + 20), header[-2] == 8, header[-1] == 0,
            header[0] >> 4 == 4, header[1] & 3 == 1 || header[1] & 3 == 2
        else { return }
        // The type of service is the low byte of its word: RFC 1624, equation 3.
        let old = UInt32(header[1])
        header[1] |= 3
        var sum = UInt32(~(UInt16(header[10]) << 8 | UInt16(header[11]))) + UInt32(~UInt16(old)) + UInt32(header[1])
        while sum > 0xffff { sum = (sum & 0xffff) + sum >> 16 }
        let checksum = ~UInt16(sum)
        header[10] = UInt8(checksum >> 8)
        header[11] = UInt8(checksum & 0xff)
    }

    /// A copy of its own with one bit behind the link header turned over. [consumes]
    private func damaged(_ packet: Mbuf) -> Mbuf? {
        let pool = kernel.mbufs
        defer { pool.freePacket(packet) }
        let length = Int(packet.pointee.pkt.length)
        guard let copy = pool.cluster(headroom: Device.headroom, capacity: length) else { return nil }
        pool.copyOut(packet, 0, length, copy.pointee.data)
        let truesize = copy.pointee.pkt.truesize
        copy.pointee.pkt = packet.pointee.pkt
        copy.pointee.pkt.truesize = truesize
        copy.pointee.length = UInt32(length)
        // Nobody vouches for it any more.
        copy.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
        if length > Ethernet.headerLength {
            let at = Ethernet.headerLength + Int(generator.next() % UInt64(length - Ethernet.headerLength))
            copy.pointee.data[at] ^= 1 << UInt8(generator.next() % 8)
        }
        return copy
    }

    // MARK: Arriving

    private func schedule() {
        guard first < travelling.count, let timer else { return }
        let due = travelling[first].due
        let now = kernel.clock.now
        if !timer.isArmed || timer.deadline > due { timer.arm(after: due > now ? due - now : 0) }
    }

    private func arrive() {
        let now = kernel.clock.now
        var head: Mbuf?
        var last: Mbuf?
        while first < travelling.count, travelling[first].due <= now {
            let packet = travelling[first].packet
            if let last { last.pointee.nextpkt = packet } else { head = packet }
            last = packet
            first += 1
        }
        if first == travelling.count || first >= 1024 {
            travelling.removeFirst(first)
            first = 0
        }
        if let head { deliver(head) }
        schedule()
    }

    /// Loses what is on the way, and everything from now on.
    package func close() {
        isClosed = true
        timer?.cancel()
        for traveller in travelling[first...] { kernel.mbufs.freePacket(traveller.packet) }
        travelling.removeAll()
        first = 0
    }
}

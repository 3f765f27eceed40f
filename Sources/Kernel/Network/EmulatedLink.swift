import Glibc
import PluginAPI

/// How an emulated link treats packets.
package struct LinkSpec: Equatable {
    /// Bits a second, 0 = infinitely fast.
    package var rate: UInt64 = 0
    /// One way, ns.
    package var delay: UInt64 = 0
    /// Uniformly distributed, added to the delay, ns. Order is kept unless `reorder` says otherwise.
    package var jitter: UInt64 = 0
    /// Probabilities, 0...1.
    package var loss = 0.0
    package var duplicate = 0.0
    package var reorder = 0.0
    package var corrupt = 0.0
    /// Numbers of the packets that are lost, each way counted from 1.
    package var lossPattern: Set<UInt64> = []
    /// Packets that may wait, each way.
    package var limit = 1000
    /// Bytes of network packet.
    package var mtu = 1500
    package var seed: UInt64 = 1

    package init() {}

    /// `loss 5% delay 5ms rate 10mbit jitter 1ms duplicate 1% reorder 2% corrupt 0.1% drop 3,7 limit 1000 mtu 1500 seed 7`
    package init(parsing text: String) throws {
        let words = text.split(whereSeparator: { $0 == " " || $0 == "\t" }).map(String.init)
        guard !words.isEmpty, words.count % 2 == 0 else {
            throw KernelError(EINVAL, "'\(text)' is not a link: use pairs such as \"loss 5% delay 5ms rate 10mbit\"")
        }
        for index in stride(from: 0, to: words.count, by: 2) {
            let (key, value) = (words[index], words[index + 1])
            func refuse(_ example: String) -> KernelError {
                KernelError(EINVAL, "link: '\(key) \(value)' makes no sense: use e.g. \(key) \(example)")
            }
            func share() throws -> Double {
                let isPercent = value.hasSuffix("%")
                guard let number = Double(isPercent ? String(value.dropLast()) : value), number >= 0 else { throw refuse("5%") }
                let result = isPercent ? number / 100 : number
                guard result <= 1 else { throw refuse("5%") }
                return result
            }
            func time() throws -> UInt64 {
                guard let number = Tunable.parse(value, .nanoseconds), number >= 0, value.last?.isLetter == true else {
                    throw refuse("5ms")
                }
                return UInt64(number)
            }
            switch key {
            case "loss": loss = try share()
            case "duplicate": duplicate = try share()
            case "reorder": reorder = try share()
            case "corrupt": corrupt = try share()
            case "delay": delay = try time()
            case "jitter": jitter = try time()
            case "rate":
                let units: [(String, Double)] = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1)]
                guard let (unit, factor) = units.first(where: { value.hasSuffix($0.0) }),
                    let number = Double(value.dropLast(unit.count)), number > 0, number * factor <= 1e12
                else { throw refuse("10mbit") }
                rate = UInt64(number * factor)
            case "drop":
                let numbers = value.split(separator: ",").map { UInt64($0) }
                guard !numbers.contains(nil) else { throw refuse("3,7") }
                lossPattern = Set(numbers.compactMap { $0 })
            case "limit":
                guard let number = Int(value), number > 0 else { throw refuse("1000") }
                limit = number
            case "mtu":
                guard let number = Int(value), (68...65535).contains(number) else { throw refuse("1500") }
                mtu = number
            case "seed":
                guard let number = UInt64(value) else { throw refuse("7") }
                seed = number
            default:
                throw KernelError(
                    EINVAL,
                    "link: '\(key)' is unknown: use loss, delay, rate, jitter, duplicate, reorder, corrupt, drop, limit, mtu, seed")
            }
        }
    }
}

/// One direction of an emulated link. Cuts segmentation off before anything else, since a real wire loses single
/// packets; keeps what travels in copies of its own.
package final class EmulatedPath {
    private let kernel: Kernel
    private let spec: LinkSpec
    private var generator: SeededGenerator
    private let deliver: (Mbuf) -> Void
    private var timer: HostTimer!
    private struct Traveller {
        var due: UInt64
        var order: UInt64
        var packet: Mbuf
    }
    /// By (due, order).
    private var travelling: [Traveller] = []
    private var lineFree: UInt64 = 0
    private var lastDue: UInt64 = 0
    private var sequence: UInt64 = 0
    package private(set) var seen: UInt64 = 0
    package private(set) var lost: UInt64 = 0

    /// `kernel` owns the packets and the timer; `deliver` gets lists of frames. [consumes]
    package init(kernel: Kernel, spec: LinkSpec, salt: UInt64, deliver: @escaping (Mbuf) -> Void) {
        self.kernel = kernel
        self.spec = spec
        self.deliver = deliver
        generator = SeededGenerator(seed: spec.seed &* 0x9e37_79b9_7f4a_7c15 &+ salt)
        timer = HostTimer(kernel) { [unowned self] in self.arrive() }
    }

    private func chance(_ probability: Double) -> Bool {
        probability > 0 && Double(generator.next() >> 11) * 0x1p-53 < probability
    }

    package func receive(_ list: Mbuf) {
        let pool = kernel.mbufs
        var next: Mbuf? = list
        while let frame = next {
            next = frame.pointee.nextpkt
            frame.pointee.nextpkt = nil
            var pieces: Mbuf? = plain(frame)
            while let piece = pieces {
                pieces = piece.pointee.nextpkt
                piece.pointee.nextpkt = nil
                send(piece)
            }
        }
        _ = pool
        schedule()
    }

    /// Single packets with complete checksums, link header kept.
    private func plain(_ frame: Mbuf) -> Mbuf? {
        let pool = kernel.mbufs
        guard frame.pointee.pkt.gso_type != UInt8(ALPS_GSO_NONE) || frame.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) else {
            return frame
        }
        if frame.pointee.pkt.gso_type == UInt8(ALPS_GSO_NONE) { return pool.finishChecksum(frame) }
        let headerLength = Ethernet.headerLength
        var header = [UInt8](repeating: 0, count: headerLength)
        guard frame.pointee.pkt.length > UInt32(headerLength) else { return frame }
        pool.copyOut(frame, 0, headerLength, &header)
        pool.adjust(frame, front: headerLength, back: 0)
        if frame.pointee.pkt.csum_start >= UInt16(headerLength), frame.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) {
            frame.pointee.pkt.csum_start = plainStart(frame)
        }
        var first: Mbuf?
        var last: Mbuf?
        var pieces = pool.segment(frame)
        while let piece = pieces {
            pieces = piece.pointee.nextpkt
            piece.pointee.nextpkt = nil
            guard let whole = pool.prepend(piece, headerLength) else { continue }
            pool.copyIn(whole, 0, headerLength, header)
            if let last { last.pointee.nextpkt = whole } else { first = whole }
            last = whole
        }
        return first
    }

    /// csum_start without the link header: the IPv4 header's length tells it.
    private func plainStart(_ packet: Mbuf) -> UInt16 { UInt16(packet.pointee.data[0] & 15) * 4 }

    private func send(_ packet: Mbuf) {
        let pool = kernel.mbufs
        seen &+= 1
        guard travelling.count < spec.limit, !spec.lossPattern.contains(seen), !chance(spec.loss) else {
            lost &+= 1
            pool.freePacket(packet)
            return
        }
        if chance(spec.duplicate), let copy = pool.copy(packet, 0, Int(packet.pointee.pkt.length)) { travel(copy) }
        travel(packet)
    }

    private func travel(_ packet: Mbuf) {
        let pool = kernel.mbufs
        guard let held = pool.hold(packet) else { return }
        let length = Int(held.pointee.pkt.length)
        if chance(spec.corrupt), length > Ethernet.headerLength {
            let at = Ethernet.headerLength + Int(generator.next() % UInt64(length - Ethernet.headerLength))
            var byte: UInt8 = 0
            pool.copyOut(held, at, 1, &byte)
            byte ^= 1 << UInt8(generator.next() % 8)
            // The buffer may be shared: only a private copy may be damaged.
            if MbufPool.isWritable(held) { pool.copyIn(held, at, 1, &byte) }
            held.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
        }
        let now = kernel.clock.now
        var due = now
        if spec.rate > 0 {
            let start = max(now, lineFree)
            lineFree = start &+ UInt64(length) &* 8_000_000_000 / spec.rate
            due = lineFree
        }
        due &+= spec.delay
        if spec.jitter > 0 { due &+= generator.next() % (spec.jitter + 1) }
        if chance(spec.reorder) {
            // Overtakes what is on the way.
            due = now &+ spec.delay / 2
        } else {
            due = max(due, lastDue)
            lastDue = due
        }
        sequence &+= 1
        let traveller = Traveller(due: due, order: sequence, packet: held)
        var index = travelling.count
        while index > 0, travelling[index - 1].due > due { index -= 1 }
        travelling.insert(traveller, at: index)
    }

    private func schedule() {
        guard let first = travelling.first else { return }
        let now = kernel.clock.now
        if !timer.isArmed || timer.deadline > first.due { timer.arm(after: first.due > now ? first.due - now : 0) }
    }

    private func arrive() {
        let now = kernel.clock.now
        var first: Mbuf?
        var last: Mbuf?
        var count = 0
        while count < travelling.count, travelling[count].due <= now {
            let packet = travelling[count].packet
            if let last { last.pointee.nextpkt = packet } else { first = packet }
            last = packet
            count += 1
        }
        travelling.removeFirst(count)
        if let first { deliver(first) }
        schedule()
    }

    package func close() {
        timer.cancel()
        for traveller in travelling { kernel.mbufs.freePacket(traveller.packet) }
        travelling.removeAll()
    }
}

/// An emulated link in front of a real device, both ways (`alps host --link`).
package final class LinkedDevice: Device {
    private let inner: Device
    private var outgoing: EmulatedPath!

    package init(_ inner: Device, spec: LinkSpec, kernel: Kernel) {
        self.inner = inner
        super.init(capabilities: inner.capabilities)
        outgoing = EmulatedPath(kernel: kernel, spec: spec, salt: 1) { [unowned self] in self.inner.transmit($0) }
        receiving = EmulatedPath(kernel: kernel, spec: spec, salt: 2) { [unowned self] list in
            if let interface = self.interface { interface.inputFrames(list) } else { kernel.mbufs.free(list) }
        }
    }

    package override var interface: Interface? {
        didSet { inner.interface = interface }
    }

    package override func transmit(_ list: Mbuf) { outgoing.receive(list) }

    package override func close() {
        outgoing.close()
        receiving?.close()
        inner.close()
    }
}

/// One end of an emulated link between two kernels. Packets change their owner on the way: each kernel has its own pool.
package final class LinkEnd: Device {
    private let kernel: Kernel
    private var path: EmulatedPath!
    package weak var peer: LinkEnd?
    private var arrivedFirst: Mbuf?
    private var arrivedLast: Mbuf?
    /// Sees every frame on its way out, before the link has treated it.
    package var tap: ((Mbuf) -> Void)?

    package init(kernel: Kernel, spec: LinkSpec, salt: UInt64) {
        self.kernel = kernel
        super.init(capabilities: UInt32(ALPS_IFCAP_TXCSUM | ALPS_IFCAP_TSO4))
        path = EmulatedPath(kernel: kernel, spec: spec, salt: salt) { [unowned self] in self.handOver($0) }
    }

    /// Packets seen and lost on the way out of this end.
    package var seen: UInt64 { path.seen }
    package var lost: UInt64 { path.lost }

    package override func transmit(_ list: Mbuf) {
        if let tap {
            var next: Mbuf? = list
            while let frame = next {
                next = frame.pointee.nextpkt
                tap(frame)
            }
        }
        path.receive(list)
    }

    /// Copies frames into the other kernel's memory; they wait there for its next turn.
    private func handOver(_ list: Mbuf) {
        var next: Mbuf? = list
        while let frame = next {
            next = frame.pointee.nextpkt
            frame.pointee.nextpkt = nil
            let length = Int(frame.pointee.pkt.length)
            if let peer, let copy = peer.kernel.mbufs.cluster(headroom: 64, capacity: length) {
                kernel.mbufs.copyOut(frame, 0, length, copy.pointee.data)
                copy.pointee.length = UInt32(length)
                copy.pointee.pkt.length = UInt32(length)
                copy.pointee.pkt.gso_segments = 1
                if let last = peer.arrivedLast { last.pointee.nextpkt = copy } else { peer.arrivedFirst = copy }
                peer.arrivedLast = copy
            }
            kernel.mbufs.freePacket(frame)
        }
    }

    /// Puts a frame into this end as if it had come over the link (tests, fuzzers). [borrows]
    package func inject(_ bytes: UnsafeRawBufferPointer) {
        guard let packet = kernel.mbufs.cluster(headroom: 64, capacity: bytes.count) else { return }
        if bytes.count > 0 { memcpy(packet.pointee.data, bytes.baseAddress!, bytes.count) }
        packet.pointee.length = UInt32(bytes.count)
        packet.pointee.pkt.length = UInt32(bytes.count)
        packet.pointee.pkt.gso_segments = 1
        if let last = arrivedLast { last.pointee.nextpkt = packet } else { arrivedFirst = packet }
        arrivedLast = packet
    }

    package override var hasQueuedPackets: Bool { arrivedFirst != nil }

    package override func drainQueue() {
        guard let list = arrivedFirst else { return }
        arrivedFirst = nil
        arrivedLast = nil
        interface?.inputFrames(list)
    }

    package override func close() {
        path.close()
        kernel.mbufs.free(arrivedFirst)
        arrivedFirst = nil
        arrivedLast = nil
    }
}

package import Kernel
import PluginAPI

/// Watches all links of a network: finds the connections on them, holds each sender to its bounds, compares what is on
/// the wire with what the applications write, and keeps a trace.
package final class WireObserver {
    private final class End {
        let link: Int
        let kernel: Int
        /// When it last asked for a neighbour's address: packets may wait for the answer.
        var arpAt: UInt64 = 0

        init(link: Int, kernel: Int) {
            self.link = link
            self.kernel = kernel
        }
    }

    private struct Flow {
        var sender: SenderFlow
        var salt: Int?
    }

    /// A kernel's count of retransmission time-outs, or of tail loss probes, and how far it has been looked at.
    private struct Timeouts {
        var counter: UnsafePointer<UInt64>?
        var seen: UInt64 = 0

        /// Whether one has happened since the last look.
        mutating func look() -> Bool {
            guard let counter else { return false }
            defer { seen = counter.pointee }
            return counter.pointee != seen
        }
    }

    private let network: VirtualNetwork
    private let settings: (Int, WireSegment.Key) -> SenderFlow.Settings
    private var flows: [WireSegment.Key: Flow] = [:]
    /// SYNs that have come before the answer has made a flow, by the answer's key.
    private var openings: [WireSegment.Key: WireSegment] = [:]
    private var timeouts: [Timeouts]
    private var probes: [Timeouts]
    /// The same of ends of the reordering window.
    private var reorderings: [Timeouts]
    private let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: 256, alignment: 8)

    /// What must not have happened.
    package private(set) var faults: [String] = []
    /// Of every TCP segment sent, with its time and sender.
    package private(set) var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    /// Frames sent with IPv4 in them, as cut by the links.
    package private(set) var packets: UInt64 = 0
    package var onLine: ((String) -> Void)?
    package var onFault: (() -> Void)?

    /// `settings` of the sender with a key, on the kernel of a number.
    package init(_ network: VirtualNetwork, settings: @escaping (Int, WireSegment.Key) -> SenderFlow.Settings) {
        self.network = network
        self.settings = settings
        timeouts = network.kernels.map { Timeouts(counter: $0.counters.place("tcp", "rexmttimeo")) }
        probes = network.kernels.map { Timeouts(counter: $0.counters.place("tcp", "tlpsnt")) }
        reorderings = network.kernels.map { Timeouts(counter: $0.counters.place("tcp", "racktimeo")) }
    }

    deinit { scratch.deallocate() }

    /// Watches one end of a link, which belongs to the kernel of that number.
    package func watch(_ end: LinkEnd, link: Int, kernel: Int, tamper: ((UnsafeMutableRawBufferPointer) -> Void)? = nil) {
        let place = End(link: link, kernel: kernel)
        end.tap = { [unowned self] frame in self.leaves(frame, place) }
        end.arrivalTap = { [unowned self] frame in
            tamper?(frame)
            self.arrives(UnsafeRawBufferPointer(frame), place)
        }
    }

    package func finish() {
        for flow in flows.values.sorted(by: { $0.sender.name < $1.sender.name }) { flow.sender.finish(at: network.clock.now) }
    }

    private func fault(_ text: String) {
        if faults.count < 10 { faults.append("\(Self.seconds(network.clock.now)) \(text)") }
        onLine?("\(Self.seconds(network.clock.now)) *** \(text)")
        onFault?()
    }

    // MARK: Leaving

    private func leaves(_ frame: Mbuf, _ end: End) {
        let total = Int(frame.pointee.pkt.length)
        let count = min(total, 134)
        guard count >= 34, let place = scratch.baseAddress else { return }
        let kernel = network.kernels[end.kernel]
        kernel.mbufs.copyOut(frame, 0, count, place)
        let now = network.clock.now
        if scratch[12] == 8, scratch[13] == 6 { end.arpAt = now }
        guard scratch[12] == 8, scratch[13] == 0 else { return }
        let size = Int(frame.pointee.pkt.gso_size)
        packets &+= UInt64(size > 0 ? (total + size - 1) / size : 1)
        let packet = UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(scratch)[14..<count])
        guard let segment = WireSegment(ip: packet, total: total - 14) else { return }
        mix(now)
        mix(UInt64(end.link) << 8 | UInt64(end.kernel))
        mix(segment.headerHash)
        mix(UInt64(segment.length))
        let key = segment.key
        if segment.flags.contains(.syn), flows[key]?.sender.initialSequence != segment.sequence {
            begin(key, segment, end.kernel)
        }
        print(segment, end, isArrival: false)
        guard let flow = flows[key] else { return }
        checkPayload(frame, segment, flow, kernel)
        checkSize(frame, segment, flow, total)
        // A time-out sends at once, so the first segment after it is its own.
        let isTimeout = segment.space > 0 && timeouts[end.kernel].look()
        if segment.space > 0 {
            if probes[end.kernel].look() { flow.sender.grantProbe() }
            if reorderings[end.kernel].look() { flow.sender.grantProbe() }
        }
        flow.sender.emitted(
            segment, at: now, isTimeout: isTimeout, isOnTime: end.arpAt == 0 || end.arpAt < flow.sender.lastHeard)
    }

    private func begin(_ key: WireSegment.Key, _ segment: WireSegment, _ kernel: Int) {
        let settings = settings(kernel, key)
        let name = "\(Self.address(key.source, key.sourcePort)) > \(Self.address(key.destination, key.destinationPort))"
        let sender = SenderFlow(name, settings, initialSequence: segment.sequence) { [unowned self] in self.fault($0) }
        flows[key] = Flow(sender: sender, salt: settings.salt)
        if let opening = openings.removeValue(forKey: key) { sender.arrived(opening, at: network.clock.now) }
    }

    /// Every byte of the stream is the one that the application has written at its position.
    private func checkPayload(_ frame: Mbuf, _ segment: WireSegment, _ flow: Flow, _ kernel: Kernel) {
        guard let salt = flow.salt, segment.length > 0 else { return }
        var skip = 14 + segment.payloadOffset
        var position = Int(Int32(bitPattern: segment.sequence &- flow.sender.initialSequence)) - 1
        if segment.flags.contains(.syn) { position += 1 }
        var mbuf: Mbuf? = frame
        while let current = mbuf {
            mbuf = current.pointee.next
            let length = Int(current.pointee.length)
            guard skip < length else {
                skip -= length
                continue
            }
            let bytes = UnsafeRawBufferPointer(start: current.pointee.data + skip, count: length - skip)
            skip = 0
            if let at = TorturePattern.mismatch(bytes, salt, position) {
                fault("\(flow.sender.name): byte \(position + at) of the stream is wrong on the wire")
            }
            position += bytes.count
        }
    }

    /// What the device has to cut must be cut to the size the peer asked for.
    private func checkSize(_ frame: Mbuf, _ segment: WireSegment, _ flow: Flow, _ total: Int) {
        // A SYN with data goes by what the server has said the last time.
        guard !segment.flags.contains(.syn) else { return }
        let size = frame.pointee.pkt.gso_type != 0 ? Int(frame.pointee.pkt.gso_size) : segment.length
        if size > flow.sender.largestSegment {
            fault("\(flow.sender.name): segments of \(size) bytes, at most \(flow.sender.largestSegment)")
        }
    }

    private func mix(_ word: UInt64) {
        hash = (hash ^ word) &* 0x9e37_79b9_7f4a_7c15
        hash ^= hash >> 29
    }

    // MARK: Arriving

    private func arrives(_ frame: UnsafeRawBufferPointer, _ end: End) {
        guard frame.count >= 54, frame[12] == 8, frame[13] == 0 else { return }
        let packet = UnsafeRawBufferPointer(rebasing: frame[14...])
        guard let segment = WireSegment(ip: packet, total: packet.count) else { return noteTooBig(packet) }
        print(segment, end, isArrival: true)
        _ = timeouts[end.kernel].look()
        guard WireSegment.isIntact(packet) else { return }
        let key = segment.key.reversed
        if let flow = flows[key] {
            flow.sender.arrived(segment, at: network.clock.now)
        }
        // The answer may begin a new flow, of a listener that has forgotten the old one.
        if segment.flags.contains(.syn) { openings[key] = segment }
    }

    /// "Fragmentation needed": whoever is told sends again in smaller pieces.
    private func noteTooBig(_ packet: UnsafeRawBufferPointer) {
        guard packet.count >= 56, packet[0] == 0x45, packet[9] == 1, packet[20] == 3, packet[21] == 4 else { return }
        func word(_ at: Int) -> UInt32 { (0..<4).reduce(0) { $0 << 8 | UInt32(packet[at + $1]) } }
        let key = WireSegment.Key(
            source: word(40), destination: word(44), sourcePort: UInt16(word(48) >> 16),
            destinationPort: UInt16(word(48) & 0xffff))
        flows[key]?.sender.grantRepetition(at: network.clock.now)
    }

    /// The sender from or to this port of the server: that of the client, or the server's own.
    package func sender(port: UInt16, ofClient: Bool) -> (key: WireSegment.Key, flow: SenderFlow)? {
        let found = flows.filter { (ofClient ? $0.key.destinationPort : $0.key.sourcePort) == port }
        return found.min { ($0.key.sourcePort, $0.key.destinationPort) < ($1.key.sourcePort, $1.key.destinationPort) }
            .map { ($0.key, $0.value.sender) }
    }

    // MARK: Trace

    private func print(_ segment: WireSegment, _ end: End, isArrival: Bool) {
        guard let onLine else { return }
        let own = flows[segment.key]?.sender.initialSequence ?? 0
        let peer = flows[segment.key.reversed]?.sender.initialSequence ?? 0
        let key = segment.key
        let direction = isArrival ? "  \(TorturePlan.kernelName(end.kernel)) <" : "\(TorturePlan.kernelName(end.kernel)) >  "
        onLine(
            "\(Self.seconds(network.clock.now)) \(direction) IP \(Self.address(key.source, key.sourcePort)) > "
                + "\(Self.address(key.destination, key.destinationPort)): \(segment.text(origin: (own, peer)))")
    }

    private static func address(_ address: UInt32, _ port: UInt16) -> String {
        "\(address >> 24).\(address >> 16 & 255).\(address >> 8 & 255).\(address & 255).\(port)"
    }

    static func seconds(_ time: UInt64) -> String {
        let time = time &- KernelClock.start
        let fraction = String(time % 1_000_000_000 / 1000)
        return "\(time / 1_000_000_000)." + String(repeating: "0", count: 6 - fraction.count) + fraction
    }
}

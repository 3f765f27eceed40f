import Kernel
import Lab
import PluginAPI
import Testing

/// A stack under test at 10.0.0.1 and, at 10.0.0.2, a peer made of nothing but the segments a test sends. Sequence
/// numbers are relative to the initial one of their sender. What the stack sends has to be expected, one by one.
final class Ladder {
    struct Flags: OptionSet {
        let rawValue: UInt8
        static let fin = Flags(rawValue: 1)
        static let syn = Flags(rawValue: 2)
        static let rst = Flags(rawValue: 4)
        static let psh = Flags(rawValue: 8)
        static let ack = Flags(rawValue: 16)
        static let urg = Flags(rawValue: 32)
    }

    /// A segment that the stack has sent.
    struct Sent: CustomStringConvertible {
        var time: UInt64
        var sourcePort: UInt16
        var destinationPort: UInt16
        var rawSequence: UInt32
        var rawAcknowledgment: UInt32
        var flags: Flags
        var window: Int
        var urgentPointer: Int
        var options: [UInt8]
        var payload: [UInt8]
        /// AE, CWR and ECE; the type of service.
        var ace: UInt8 = 0
        var tos: UInt8 = 0

        var description: String {
            "\(flags.description) \(rawSequence):\(payload.count) ack \(rawAcknowledgment) win \(window)"
        }

        /// The value bytes of an option.
        func option(_ kind: UInt8) -> [UInt8]? {
            var at = 0
            while at < options.count {
                if options[at] == 0 { return nil }
                if options[at] == 1 {
                    at += 1
                    continue
                }
                guard at + 1 < options.count, options[at + 1] >= 2, at + Int(options[at + 1]) <= options.count else {
                    return nil
                }
                if options[at] == kind { return Array(options[(at + 2)..<(at + Int(options[at + 1]))]) }
                at += Int(options[at + 1])
            }
            return nil
        }

        var timestamp: (value: UInt32, echo: UInt32)? {
            guard let bytes = option(8), bytes.count == 8 else { return nil }
            return (big32(bytes, 0), big32(bytes, 4))
        }
    }

    static let stackPort: UInt16 = 80
    static let peerPort: UInt16 = 4000

    let network: VirtualNetwork
    let stack: Kernel
    let wire: Kernel
    private(set) var sent: [Sent] = []
    /// Where the stack's numbers start; known from its first SYN on.
    var stackISN: UInt32?
    var peerISN: UInt32 = 1_000_000
    var stackPort = Ladder.stackPort
    var peerPort = Ladder.peerPort
    var clock: UInt64 { network.clock.now }
    /// What every injected segment carries as timestamp option, if anything.
    var peerTimestamp: UInt32?
    var lastStackTimestamp: UInt32 = 0

    init(seed: UInt64 = 1, mtu: Int = 1500, _ tunables: [String: String] = [:]) throws {
        network = VirtualNetwork(seed: seed)
        stack = try network.addKernel("stack", plugins: ["arp", "ipv4", "icmp", "tcp"])
        wire = try network.addKernel("wire", plugins: ["arp"])
        var spec = LinkSpec()
        spec.mtu = mtu
        try network.link(stack, "10.0.0.1/24", wire, "10.0.0.2/24", spec)
        for (name, value) in tunables { try stack.tunables.set("net.inet.tcp." + name, value) }
        wire.interfaces.ethernet.listen(0x0800, context: Unmanaged.passUnretained(self).toOpaque()) { context, list in
            Unmanaged<Ladder>.fromOpaque(context).takeUnretainedValue().take(list)
        }
        // Address resolution and announcements are not what these tests are about.
        run(3000)
        sent.removeAll()
    }

    /// Ends both kernels; nothing may be left.
    func finish(sourceLocation: SourceLocation = #_sourceLocation) {
        network.shutdown()
        #expect(stack.mbufs.isIdle, sourceLocation: sourceLocation)
        #expect(wire.mbufs.isIdle, sourceLocation: sourceLocation)
    }

    // MARK: Time

    /// Lets everything happen that is due now.
    func settle() { network.run(for: 0) }

    func run(_ milliseconds: UInt64) { network.run(for: milliseconds * 1_000_000) }

    // MARK: What comes out

    private func take(_ list: Mbuf) {
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            let bytes = contents(of: packet)
            wire.mbufs.freePacket(packet)
            guard bytes.count >= 40, bytes[0] == 0x45, bytes[9] == 6 else { continue }
            let total = Int(bytes[2]) << 8 | Int(bytes[3])
            #expect(isChecksumRight(Array(bytes[..<total])), "TCP checksum")
            let header = Array(bytes[20..<total])
            let length = Int(header[12] >> 4) * 4
            let segment = Sent(
                time: clock, sourcePort: UInt16(header[0]) << 8 | UInt16(header[1]),
                destinationPort: UInt16(header[2]) << 8 | UInt16(header[3]), rawSequence: big32(header, 4),
                rawAcknowledgment: big32(header, 8), flags: Flags(rawValue: header[13]),
                window: Int(header[14]) << 8 | Int(header[15]), urgentPointer: Int(header[18]) << 8 | Int(header[19]),
                options: Array(header[20..<length]), payload: Array(header[length...]),
                ace: (header[12] & 1) << 2 | header[13] >> 6, tos: bytes[1])
            if segment.flags.contains(.syn), stackISN == nil { stackISN = segment.rawSequence }
            if let timestamp = segment.timestamp { lastStackTimestamp = timestamp.value }
            sent.append(segment)
        }
    }

    func sequence(of segment: Sent) -> Int { Int(Int32(bitPattern: segment.rawSequence &- (stackISN ?? 0))) }
    func acknowledgment(of segment: Sent) -> Int { Int(Int32(bitPattern: segment.rawAcknowledgment &- peerISN)) }

    /// The next segment must be there now, with these properties.
    @discardableResult
    func expect(
        _ flags: Flags, seq: Int? = nil, ack: Int? = nil, length: Int? = 0, window: Int? = nil,
        sourceLocation: SourceLocation = #_sourceLocation
    ) -> Sent? {
        settle()
        guard !sent.isEmpty else {
            Issue.record("nothing was sent where \(flags) was expected", sourceLocation: sourceLocation)
            return nil
        }
        let segment = sent.removeFirst()
        #expect(segment.flags == flags, sourceLocation: sourceLocation)
        if let seq { #expect(sequence(of: segment) == seq, "sequence", sourceLocation: sourceLocation) }
        if let ack { #expect(acknowledgment(of: segment) == ack, "acknowledgment", sourceLocation: sourceLocation) }
        if let length { #expect(segment.payload.count == length, "length", sourceLocation: sourceLocation) }
        if let window { #expect(segment.window == window, "window", sourceLocation: sourceLocation) }
        return segment
    }

    func expectNothing(sourceLocation: SourceLocation = #_sourceLocation) {
        settle()
        #expect(sent.isEmpty, sourceLocation: sourceLocation)
        sent.removeAll()
    }

    /// All that has been sent and not been expected.
    func takeAll() -> [Sent] {
        settle()
        defer { sent.removeAll() }
        return sent
    }

    // MARK: What goes in

    func inject(
        _ flags: Flags, seq: Int, ack: Int? = nil, window: Int = 65535, length: Int = 0, payload: [UInt8]? = nil,
        options: [UInt8] = [], urgent: Int = 0, from source: [UInt8] = [10, 0, 0, 2], port: UInt16? = nil,
        ace: UInt8 = 0, tos: UInt8 = 0, settles: Bool = true
    ) {
        var options = options
        if let peerTimestamp, !flags.contains(.rst) {
            options += [1, 1, 8, 10] + big(peerTimestamp) + big(flags.contains(.ack) ? lastStackTimestamp : 0)
        }
        while options.count % 4 != 0 { options.append(1) }
        let data = payload ?? (0..<length).map { pattern(seq + $0) }
        var tcp: [UInt8] = []
        tcp += big(port ?? peerPort) + big(stackPort)
        tcp += big(peerISN &+ UInt32(truncatingIfNeeded: seq))
        tcp += big(flags.contains(.ack) ? (stackISN ?? 0) &+ UInt32(truncatingIfNeeded: ack ?? 0) : 0)
        tcp += [UInt8((20 + options.count) / 4) << 4 | ace >> 2, flags.rawValue | ace << 6]
        tcp += big(UInt16(window)) + [0, 0] + big(UInt16(urgent))
        tcp += options + data
        send(tcp: tcp, from: source, tos: tos)
        if settles { settle() }
    }

    /// Puts an IPv4 header in front, with right checksums, and sends it to the stack.
    func send(tcp: [UInt8], from source: [UInt8] = [10, 0, 0, 2], tos: UInt8 = 0) {
        var tcp = tcp
        let pseudo = source + [10, 0, 0, 1, 0, 6] + big(UInt16(tcp.count))
        let sum = checksum(pseudo + tcp)
        if tcp.count >= 18 {
            tcp[16] = UInt8(sum >> 8)
            tcp[17] = UInt8(sum & 255)
        }
        send(ip: 6, payload: tcp, from: source, tos: tos)
    }

    func send(ip protocolNumber: UInt8, payload: [UInt8], from source: [UInt8] = [10, 0, 0, 2], tos: UInt8 = 0) {
        var ip: [UInt8] = [0x45, tos] + big(UInt16(20 + payload.count)) + [0, 1, 0x40, 0, 64, protocolNumber, 0, 0]
        ip += source + [10, 0, 0, 1]
        let sum = checksum(ip)
        ip[10] = UInt8(sum >> 8)
        ip[11] = UInt8(sum & 255)
        let bytes = ip + payload
        let packet = wire.mbufs.cluster(headroom: 128, capacity: bytes.count)!
        packet.pointee.data.update(from: bytes, count: bytes.count)
        packet.pointee.length = UInt32(bytes.count)
        packet.pointee.pkt.length = UInt32(bytes.count)
        var destination = stack.interfaces.find("link1")!.raw.pointee.hardware
        let index = wire.interfaces.find("link1")!.raw.pointee.index
        _ = withUnsafeBytes(of: &destination) {
            wire.interfaces.ethernet.outputLink(
                index, packet, 0x0800, $0.baseAddress!.assumingMemoryBound(to: UInt8.self))
        }
    }

    // MARK: Sockets

    func socket() throws -> Socket { try stack.sockets.create(domain: 2, type: 1, protocol: 6) }

    func listener(backlog: Int32 = 5) throws -> Socket {
        let socket = try socket()
        #expect(socket.bind(endpoint("0.0.0.0", Ladder.stackPort)) == 0)
        #expect(socket.listen(backlog) == 0)
        return socket
    }

    /// Options of the peer's SYN: MSS 1460, window scale, timestamps.
    static func synOptions(mss: UInt16? = 1460, scale: UInt8? = nil) -> [UInt8] {
        (mss.map { [2, 4] + big($0) } ?? []) + (scale.map { [1, 3, 3, $0] } ?? [])
    }

    /// A passive connection, established, nothing in flight.
    func accept(
        _ listener: Socket? = nil, window: Int = 65535, mss: UInt16? = 1460, scale: UInt8? = nil
    ) throws -> Socket {
        let listener = try listener ?? self.listener()
        stackISN = nil
        inject(.syn, seq: 0, window: window, options: Self.synOptions(mss: mss, scale: scale))
        expect([.syn, .ack], seq: 0, ack: 1)
        inject(.ack, seq: 1, ack: 1, window: window)
        expectNothing()
        return try #require(listener.acceptNext())
    }

    /// An active connection, established, nothing in flight.
    func connect(window: Int = 65535, mss: UInt16? = 1460, scale: UInt8? = nil) throws -> Socket {
        let socket = try socket()
        stackISN = nil
        #expect(socket.connect(endpoint("10.0.0.2", Ladder.peerPort)) == 115)
        let syn = try #require(expect(.syn, seq: 0))
        stackPort = syn.sourcePort
        inject([.syn, .ack], seq: 0, ack: 1, window: window, options: Self.synOptions(mss: mss, scale: scale))
        expect(.ack, seq: 1, ack: 1)
        #expect(socket.isConnected)
        return socket
    }

    /// Sockets of the stack that are not listeners.
    var connectionSockets: Int { stack.sockets.all.count { !$0.isListening } }

    func counter(_ name: String) -> UInt64 { stack.counters.value("tcp", name) ?? 0 }
}

extension Ladder.Flags: CustomStringConvertible {
    var description: String {
        let names: [(Ladder.Flags, String)] = [
            (.syn, "SYN"), (.fin, "FIN"), (.rst, "RST"), (.psh, "PSH"), (.ack, "ACK"), (.urg, "URG"),
        ]
        return names.filter { contains($0.0) }.map(\.1).joined(separator: "|")
    }
}

/// The byte at a place of a test stream.
func pattern(_ position: Int) -> UInt8 { UInt8(truncatingIfNeeded: position &* 7 &+ position >> 8) }

func pattern(_ range: Range<Int>) -> [UInt8] { range.map { pattern($0) } }

func big(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(value & 255)] }

func big(_ value: UInt32) -> [UInt8] { big(UInt16(value >> 16)) + big(UInt16(value & 0xffff)) }

private func big32(_ bytes: [UInt8], _ at: Int) -> UInt32 {
    bytes[at..<(at + 4)].reduce(0) { $0 << 8 | UInt32($1) }
}

func checksum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
        sum += UInt32(bytes[index]) << 8 | (index + 1 < bytes.count ? UInt32(bytes[index + 1]) : 0)
    }
    while sum > 0xffff { sum = (sum & 0xffff) + (sum >> 16) }
    return ~UInt16(sum)
}

private func isChecksumRight(_ packet: [UInt8]) -> Bool {
    let tcp = Array(packet[20...])
    return checksum(Array(packet[12..<20]) + [0, 6] + big(UInt16(tcp.count)) + tcp) == 0
}

func contents(of packet: Mbuf) -> [UInt8] {
    var bytes: [UInt8] = []
    var buffer: Mbuf? = packet
    while let current = buffer {
        bytes += UnsafeBufferPointer(start: current.pointee.data, count: Int(current.pointee.length))
        buffer = current.pointee.next
    }
    return bytes
}

func endpoint(_ text: String, _ port: UInt16) -> alps_sockaddr {
    var address = alps_sockaddr()
    address.family = 2
    address.port = port
    address.addr = NetworkAddress(text)!.address
    return address
}

import Kernel
import Lab
import PluginAPI

/// A stack with connections at 10.0.0.1 port 80, whose peers, all at 10.0.0.2, are made of frames.
private final class Connections {
    static let payload = 1448
    private static let header = 54

    /// One end of a connection that is made of frames.
    private struct Peer {
        var socket: Socket!
        var sequence: UInt32 = 1_000_000
        /// Next byte that the peer expects.
        var expected: UInt32 = 0
    }

    let network: VirtualNetwork
    let kernel: Kernel
    let device: MemoryDevice
    private let neighbor: SingleNeighbor
    private let listener: Socket
    private var peers: [Peer]
    private var frame: [UInt8]
    private var acknowledgment: [UInt8]
    private var syn: [UInt8]
    private var fin: [UInt8]
    private var current = 0
    private var next = 0
    private var hasUnacknowledged = false
    /// What left without data since it was last looked at.
    private var acknowledgments = 0
    let data = [UInt8](repeating: 0x5a, count: Connections.payload)

    /// With `count` connections, and one place for another.
    init(_ count: Int, plugins: String) throws {
        network = VirtualNetwork(plugins: plugins)
        kernel = try network.addKernel("stack", plugins: ["ipv4", "icmp", "udp", "tcp"])
        device = MemoryDevice(kernel: kernel)
        let interface = try kernel.interfaces.add(
            name: "mem0", device: device, hardware: HardwareAddress((2, 0, 0, 0, 0, 1)), mtu: 1500)
        neighbor = SingleNeighbor(kernel: kernel, hardware: HardwareAddress((2, 0, 0, 0, 0, 2)))
        try kernel.interfaces.addAddress(interface, address(10, 0, 0, 1), prefixLength: 24)
        frame = Self.segment(flags: 0x10, payload: Self.payload)
        acknowledgment = Self.segment(flags: 0x10, payload: 0)
        fin = Self.segment(flags: 0x11, payload: 0)
        syn = Self.segment(flags: 2, payload: 0, options: [2, 4, 0x05, 0xb4, 1, 3, 3, 7])
        peers = [Peer](repeating: Peer(), count: count + 1)
        listener = try kernel.sockets.create(domain: 2, type: 1, protocol: 6)
        var any = alps_sockaddr()
        any.family = UInt16(ALPS_AF_INET)
        any.port = 80
        guard listener.bind(any) == 0, listener.listen(5) == 0 else { throw KernelError(98, "port 80 is not to be had") }
        device.onTransmit = { [unowned self] in self.take($0) }
        // Which segments are acknowledged is not to depend on a connection's age, nor do rings grow.
        try kernel.tunables.set("net.inet.tcp.quickacks", "0")
        try kernel.tunables.set("kern.ipc.maxsockbuf", "262144")
        for index in 0..<count { try open(index) }
    }

    deinit {
        device.onTransmit = nil
        network.shutdown()
    }

    private static func port(_ index: Int) -> UInt16 { UInt16(4000 + index) }

    // MARK: Frames

    /// Sequence and acknowledgment are put in later.
    private static func segment(flags: UInt8, payload: Int, options: [UInt8] = []) -> [UInt8] {
        let tcp = 20 + options.count
        let total = 20 + tcp + payload
        var bytes: [UInt8] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]
        bytes += [0x45, 0, UInt8(total >> 8), UInt8(total & 255), 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1 + 1, 10, 0, 0, 1]
        bytes += [0x0f, 0xa0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, UInt8(tcp / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]
        bytes += options
        bytes += [UInt8](repeating: 0x5a, count: payload)
        let sum = bytes.withUnsafeBytes { InternetChecksum.finish(InternetChecksum.sum($0.baseAddress! + 14, 20)) }
        bytes[24] = UInt8(sum >> 8)
        bytes[25] = UInt8(sum & 255)
        return bytes
    }

    /// Sends `bytes` to the stack with the current peer's port and numbers and a right checksum.
    private func inject(_ bytes: inout [UInt8], constant: UInt32) {
        let (sequence, expected) = (peers[current].sequence, peers[current].expected)
        let port = Self.port(current)
        bytes[34] = UInt8(port >> 8)
        bytes[35] = UInt8(port & 255)
        Self.put(sequence, &bytes, 38)
        Self.put(expected, &bytes, 42)
        let numbers = UInt64(sequence >> 16) + UInt64(sequence & 0xffff) + UInt64(expected >> 16) + UInt64(expected & 0xffff)
            + UInt64(port)
        let sum = InternetChecksum.finish(InternetChecksum.fold(UInt64(constant) + numbers))
        bytes[50] = UInt8(sum >> 8)
        bytes[51] = UInt8(sum & 255)
        device.receive(bytes)
    }

    /// The part of the checksum that is the same in each segment of a kind.
    private static func constantSum(_ bytes: [UInt8]) -> UInt32 {
        var copy = bytes
        for index in [34, 35] + Array(38..<46) { copy[index] = 0 }
        copy[50] = 0
        copy[51] = 0
        return copy.withUnsafeBytes { buffer in
            let base = buffer.baseAddress!
            let pseudo = UInt64(InternetChecksum.sum(base + 26, 8)) + 6 + UInt64(bytes.count - 34)
            return InternetChecksum.fold(pseudo + UInt64(InternetChecksum.sum(base + 34, bytes.count - 34)))
        }
    }

    private static func put(_ value: UInt32, _ bytes: inout [UInt8], _ offset: Int) {
        for index in 0..<4 { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt32(24 - 8 * index)) }
    }

    private lazy var frameConstant = Self.constantSum(frame)
    private lazy var acknowledgmentConstant = Self.constantSum(acknowledgment)
    private lazy var finConstant = Self.constantSum(fin)
    private lazy var synConstant = Self.constantSum(syn)

    /// What the stack sends moves what the peer expects.
    private func take(_ sent: UnsafeRawBufferPointer) {
        guard sent.count >= Self.header, sent[12] == 8, sent[13] == 0, sent[23] == 6 else { return }
        let number = UInt32(bigEndian: sent.loadUnaligned(fromByteOffset: 38, as: UInt32.self))
        let total = Int(sent[16]) << 8 | Int(sent[17])
        let length = total - 20 - Int(sent[46] >> 4) * 4 + (sent[47] & 3 != 0 ? 1 : 0)
        guard length > 0 else {
            acknowledgments += 1
            return
        }
        peers[current].expected = number &+ UInt32(length)
        hasUnacknowledged = true
    }

    private func open(_ index: Int) throws {
        current = index
        peers[index].expected = 0
        inject(&syn, constant: synConstant)
        settle()
        guard hasUnacknowledged else { throw KernelError(110, "the stack does not answer a SYN") }
        peers[index].sequence &+= 1
        inject(&acknowledgment, constant: acknowledgmentConstant)
        settle()
        peers[index].socket = listener.acceptNext()
        guard peers[index].socket != nil else { throw KernelError(110, "there is no connection") }
        hasUnacknowledged = false
    }

    /// One connection after the other, in an order that no cache foresees.
    private func turn() -> Int {
        next = (next &* 1_664_525 &+ 1_013_904_223) & 0xffff_ffff
        return (next >> 8) % (peers.count - 1)
    }

    // MARK: Operations

    /// Has every connection used once: what the first segments of one cost is not counted.
    func warm() {
        for index in 0..<peers.count - 1 {
            receive(on: index)
            receive(on: index)
            send(on: index)
        }
        acknowledgments = 0
    }

    /// Turns until nothing is left to do now; without the lab's look at its kernels, which would count.
    private func settle() {
        while kernel.hasPendingWork || kernel.nextDeadline <= kernel.clock.now { kernel.endTurn() }
    }

    /// Two segments of data arrive, one after the other, and are read; the second is acknowledged, and with it the first.
    func receive() {
        let index = turn()
        receive(on: index)
        receive(on: index)
        // Once in a while the window is told to have opened, too.
        guard (1...2).contains(acknowledgments) else { fatalError("\(acknowledgments) acknowledgments for two segments") }
        acknowledgments = 0
    }

    private func receive(on index: Int) {
        current = index
        inject(&frame, constant: frameConstant)
        peers[current].sequence &+= UInt32(Self.payload)
        settle()
        let socket = peers[current].socket.unsafelyUnwrapped
        let pieces = socket.receivePieces()
        let count = pieces.first.count + pieces.second.count
        guard count == Self.payload else { fatalError("\(count) bytes have arrived instead of \(Self.payload)") }
        socket.receiveConsume(count)
    }

    /// A segment of data is written and sent, and its acknowledgment arrives.
    func send() { send(on: turn()) }

    private func send(on index: Int) {
        current = index
        guard data.withUnsafeBytes({ peers[current].socket.write($0) }) == Self.payload else {
            fatalError("the send buffer is full")
        }
        settle()
        guard hasUnacknowledged else { fatalError("nothing was sent") }
        hasUnacknowledged = false
        inject(&acknowledgment, constant: acknowledgmentConstant)
        settle()
    }

    /// A connection comes, is accepted, and ends, the peer first.
    func openAndClose() {
        let last = peers.count - 1
        do { try open(last) } catch { fatalError("\(error)") }
        inject(&fin, constant: finConstant)
        peers[last].sequence &+= 1
        settle()
        peers[last].socket.close()
        settle()
        guard hasUnacknowledged else { fatalError("the stack does not close") }
        hasUnacknowledged = false
        inject(&acknowledgment, constant: acknowledgmentConstant)
        settle()
        peers[last].socket = nil
        peers[last].sequence &+= 1_000_000
    }
}

extension Operation {
    static let populations = [1, 10, 100, 1000, 10_000]

    /// What bench/micro/check wants to cost the same however many connections there are: the names end so.
    static let segments = populations.flatMap { open in
        [
            Operation(name: "two segments in, an acknowledgment out, \(open) open") { plugins in
                let connections = try Connections(open, plugins: plugins)
                connections.warm()
                return { count in for _ in 0..<count { connections.receive() } }
            },
            Operation(name: "segment out, and its acknowledgment in, \(open) open") { plugins in
                let connections = try Connections(open, plugins: plugins)
                connections.warm()
                return { count in for _ in 0..<count { connections.send() } }
            },
            Operation(name: "connection opened and closed, \(open) open") { plugins in
                let connections = try Connections(open, plugins: plugins)
                return { count in for _ in 0..<count { connections.openAndClose() } }
            },
        ]
    }
}

import Kernel
import Lab
import PluginAPI

/// A stack with one connection, at 10.0.0.1 port 80, whose peer is made of frames.
private final class OneConnection {
    static let payload = 1448
    private static let header = 54

    let network: VirtualNetwork
    let kernel: Kernel
    let device: MemoryDevice
    private let neighbor: SingleNeighbor
    private(set) var socket: Socket!
    private var frame: [UInt8]
    private var sequence: UInt32 = 1_000_000
    /// Next byte that the peer expects.
    private var expected: UInt32 = 0
    private var hasUnacknowledged = false
    private var acknowledgment: [UInt8]
    let data = [UInt8](repeating: 0x5a, count: OneConnection.payload)

    init(plugins: String) throws {
        network = VirtualNetwork(plugins: plugins)
        kernel = try network.addKernel("stack", plugins: ["ipv4", "icmp", "udp", "tcp"])
        device = MemoryDevice(kernel: kernel)
        let interface = try kernel.interfaces.add(
            name: "mem0", device: device, hardware: HardwareAddress((2, 0, 0, 0, 0, 1)), mtu: 1500)
        neighbor = SingleNeighbor(kernel: kernel, hardware: HardwareAddress((2, 0, 0, 0, 0, 2)))
        try kernel.interfaces.addAddress(interface, address(10, 0, 0, 1), prefixLength: 24)
        frame = Self.segment(flags: 0x10, payload: Self.payload)
        acknowledgment = Self.segment(flags: 0x10, payload: 0)
        device.onTransmit = { [unowned self] in self.take($0) }
        try open()
    }

    deinit {
        device.onTransmit = nil
        network.shutdown()
    }

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

    /// Sends `bytes` to the stack with the numbers of now and a right checksum.
    private func inject(_ bytes: inout [UInt8], constant: UInt32) {
        Self.put(sequence, &bytes, 38)
        Self.put(expected, &bytes, 42)
        let numbers = UInt64(sequence >> 16) + UInt64(sequence & 0xffff) + UInt64(expected >> 16) + UInt64(expected & 0xffff)
        let sum = InternetChecksum.finish(InternetChecksum.fold(UInt64(constant) + numbers))
        bytes[50] = UInt8(sum >> 8)
        bytes[51] = UInt8(sum & 255)
        device.receive(bytes)
    }

    /// The part of the checksum that is the same in each segment of a kind.
    private static func constantSum(_ bytes: [UInt8]) -> UInt32 {
        var copy = bytes
        for index in 38..<46 { copy[index] = 0 }
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

    /// What the stack sends moves what the peer expects.
    private func take(_ sent: UnsafeRawBufferPointer) {
        guard sent.count >= Self.header, sent[12] == 8, sent[13] == 0, sent[23] == 6 else { return }
        let number = UInt32(bigEndian: sent.loadUnaligned(fromByteOffset: 38, as: UInt32.self))
        let total = Int(sent[16]) << 8 | Int(sent[17])
        let length = total - 20 - Int(sent[46] >> 4) * 4 + (sent[47] & 2 != 0 ? 1 : 0)
        guard length > 0 else { return }
        expected = number &+ UInt32(length)
        hasUnacknowledged = true
    }

    private func open() throws {
        let listener = try kernel.sockets.create(domain: 2, type: 1, protocol: 6)
        var any = alps_sockaddr()
        any.family = UInt16(ALPS_AF_INET)
        any.port = 80
        guard listener.bind(any) == 0, listener.listen(5) == 0 else { throw KernelError(98, "port 80 is not to be had") }
        var syn = Self.segment(flags: 2, payload: 0, options: [2, 4, 0x05, 0xb4, 1, 3, 3, 7])
        inject(&syn, constant: Self.constantSum(syn))
        settle()
        guard hasUnacknowledged else { throw KernelError(110, "the stack does not answer a SYN") }
        sequence &+= 1
        inject(&acknowledgment, constant: acknowledgmentConstant)
        settle()
        socket = listener.acceptNext()
        guard socket != nil else { throw KernelError(110, "there is no connection") }
        hasUnacknowledged = false
    }

    // MARK: Operations

    /// Turns until nothing is left to do now; without the lab's look at its kernels, which would count.
    private func settle() {
        while kernel.hasPendingWork || kernel.nextDeadline <= kernel.clock.now { kernel.endTurn() }
    }

    /// A segment of data arrives and is read; what the stack acknowledges leaves.
    func receive() {
        inject(&frame, constant: frameConstant)
        sequence &+= UInt32(Self.payload)
        settle()
        let pieces = socket.receivePieces()
        let count = pieces.first.count + pieces.second.count
        guard count == Self.payload else { fatalError("\(count) bytes have arrived instead of \(Self.payload)") }
        socket.receiveConsume(count)
    }

    /// A segment of data is written and sent, and its acknowledgment arrives.
    func send() {
        guard data.withUnsafeBytes({ socket.write($0) }) == Self.payload else { fatalError("the send buffer is full") }
        settle()
        guard hasUnacknowledged else { fatalError("nothing was sent") }
        hasUnacknowledged = false
        inject(&acknowledgment, constant: acknowledgmentConstant)
        settle()
    }
}

extension Operation {
    static let segments = [
        Operation(name: "segment in") { plugins in
            let connection = try OneConnection(plugins: plugins)
            return { count in for _ in 0..<count { connection.receive() } }
        },
        Operation(name: "segment out, and its acknowledgment in") { plugins in
            let connection = try OneConnection(plugins: plugins)
            return { count in for _ in 0..<count { connection.send() } }
        },
    ]
}

import Kernel
import Lab
import PluginAPI
import Testing

/// Two kernels without plugins on one link: "a" sends, "b" writes down what arrives.
final class Wire {
    struct Arrival {
        var time: UInt64
        /// From the network header on.
        var bytes: [UInt8]
        var header: alps_pkthdr
        /// Which call brought it: packets of one list share a number.
        var list: Int
    }

    let network: VirtualNetwork
    let a: Kernel
    let b: Kernel
    let ends: (LinkEnd, LinkEnd)
    var arrivals: [Arrival] = []
    private var lists = 0

    init(_ spec: LinkSpec = LinkSpec(), seed: UInt64 = 1) throws {
        network = VirtualNetwork(seed: seed)
        a = try network.addKernel("a", plugins: [])
        b = try network.addKernel("b", plugins: [])
        ends = try network.link(a, "10.0.0.1/24", b, "10.0.0.2/24", spec)
        listen(b, 0x0800)
    }

    convenience init(_ spec: String, seed: UInt64 = 1) throws { try self.init(LinkSpec(parsing: spec), seed: seed) }

    /// Ends both kernels; nothing may be left.
    func finish() {
        network.shutdown()
        #expect(a.mbufs.isIdle && b.mbufs.isIdle)
    }

    func listen(_ kernel: Kernel, _ ethertype: UInt16) {
        kernel.interfaces.ethernet.listen(ethertype, context: Unmanaged.passUnretained(self).toOpaque()) { context, list in
            Unmanaged<Wire>.fromOpaque(context).takeUnretainedValue().take(list)
        }
    }

    private func take(_ list: Mbuf) {
        lists += 1
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            let pool = Unmanaged<MbufPool>.fromOpaque(packet.pointee.owner!).takeUnretainedValue()
            arrivals.append(
                Arrival(time: network.clock.now, bytes: bytes(of: packet), header: packet.pointee.pkt, list: lists))
            pool.freePacket(packet)
        }
    }

    var interfaceA: Interface { a.interfaces.find("link1")! }
    var interfaceB: Interface { b.interfaces.find("link1")! }

    func packet(_ bytes: [UInt8], of kernel: Kernel? = nil) -> Mbuf {
        let packet = (kernel ?? a).mbufs.cluster(headroom: 128, capacity: bytes.count)!
        packet.pointee.data.update(from: bytes, count: bytes.count)
        packet.pointee.length = UInt32(bytes.count)
        packet.pointee.pkt.length = UInt32(bytes.count)
        return packet
    }

    /// Sends a packet from "a" to b's hardware address.
    @discardableResult
    func send(_ bytes: [UInt8], ethertype: UInt16 = 0x0800) -> Int32 { send(packet(bytes), ethertype: ethertype) }

    @discardableResult
    func send(_ packet: Mbuf, ethertype: UInt16 = 0x0800) -> Int32 {
        var destination = interfaceB.raw.pointee.hardware
        return withUnsafeBytes(of: &destination) {
            a.interfaces.ethernet.outputLink(
                interfaceA.raw.pointee.index, packet, ethertype, $0.baseAddress!.assumingMemoryBound(to: UInt8.self))
        }
    }

    /// A TCP segment of `payload` bytes without options, checksum unfinished, to be cut into pieces of `size`.
    func largeSegment(_ payload: Int, cutInto size: Int) -> Mbuf {
        var bytes: [UInt8] = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]
        let total = UInt16(40 + payload)
        bytes[2] = UInt8(total >> 8)
        bytes[3] = UInt8(total & 0xff)
        let ipSum = bytes.withUnsafeBytes { InternetChecksum.finish(InternetChecksum.sum($0.baseAddress!, 20)) }
        bytes[10] = UInt8(ipSum >> 8)
        bytes[11] = UInt8(ipSum & 0xff)
        bytes += [0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]
        let pseudo = bytes.withUnsafeBytes {
            InternetChecksum.fold(UInt64(InternetChecksum.sum($0.baseAddress! + 12, 8)) + 6 + UInt64(20 + payload))
        }
        bytes[36] = UInt8(pseudo >> 8)
        bytes[37] = UInt8(pseudo & 0xff)
        bytes += (0..<payload).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        let packet = packet(bytes)
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_PARTIAL)
        packet.pointee.pkt.csum_start = 20
        packet.pointee.pkt.csum_offset = 16
        packet.pointee.pkt.gso_type = UInt8(ALPS_GSO_TCP4)
        packet.pointee.pkt.gso_size = UInt16(size)
        return packet
    }
}

func bytes(of packet: Mbuf) -> [UInt8] {
    var bytes: [UInt8] = []
    var buffer: Mbuf? = packet
    while let current = buffer {
        bytes += UnsafeBufferPointer(start: current.pointee.data, count: Int(current.pointee.length))
        buffer = current.pointee.next
    }
    return bytes
}

/// Whether the TCP checksum of an IPv4 packet without options is right.
func tcpChecksumHolds(_ packet: [UInt8]) -> Bool {
    packet.withUnsafeBytes { bytes in
        let length = bytes.count - 20
        let pseudo = UInt64(InternetChecksum.sum(bytes.baseAddress! + 12, 8)) + 6 + UInt64(length)
        return InternetChecksum.fold(pseudo + UInt64(InternetChecksum.sum(bytes.baseAddress! + 20, length))) == 0xffff
    }
}

func address(_ text: String) -> alps_addr { NetworkAddress(text)!.address }

extension UInt64 {
    static let ms: UInt64 = 1_000_000
    static let us: UInt64 = 1000
}

import CLinux
import Glibc
import Kernel
import PluginAPI
import Testing

/// The tests of this suite make a tap interface of their own and touch no other.
@Suite(.serialized, .enabled(if: geteuid() == 0 && access("/dev/net/tun", R_OK | W_OK) == 0))
struct TapTests {
    /// A host with a tap, as far as `alps host` gets without plugins. The operating system has 10.255.77.1 on it.
    private final class Rig {
        let kernel = Kernel(KernelConfiguration(name: "tap"))
        let reactor: Reactor
        let interface: Interface
        var packets: [Packet] = []

        init(_ name: String, link: String? = nil) throws {
            reactor = try Reactor(kernel: kernel)
            kernel.reactor = reactor
            try kernel.interfaces.addLoopback()
            var device: Device = try Tap(name: name, kernel: kernel)
            if let link {
                device = EmulatedLink.wrapping(device, spec: try LinkSpec(parsing: link), kernel: kernel)
            }
            interface = try kernel.interfaces.add(
                name: name, device: device, hardware: HardwareAddress((2, 0xa1, 0, 0, 0, 7)))
            try KernelSide.configure(interface: name, address: "10.255.77.1", prefixLength: 24, mtu: nil)
            kernel.interfaces.ethernet.listen(0x0800, context: Unmanaged.passUnretained(self).toOpaque()) { context, list in
                Unmanaged<Rig>.fromOpaque(context).takeUnretainedValue().take(list)
            }
        }

        private func take(_ list: Mbuf) {
            var next: Mbuf? = list
            while let packet = next {
                next = packet.pointee.nextpkt
                packets.append((bytes(of: packet), packet.pointee.pkt))
                kernel.mbufs.freePacket(packet)
            }
        }

        typealias Packet = (bytes: [UInt8], header: alps_pkthdr)

        /// The packets that match, when there is one, or after two seconds.
        func waitForPackets(_ matching: @escaping ([UInt8]) -> Bool) -> [Packet] {
            let found = { self.packets.filter { matching($0.bytes) } }
            _ = reactor.run(limit: 2_000_000_000) { !found().isEmpty }
            return found()
        }

        /// Sends a packet to everybody on the interface: the hardware address of the other side need not be known.
        func send(_ packet: Mbuf) -> Int32 {
            let broadcast = [UInt8](repeating: 0xff, count: 6)
            return kernel.interfaces.ethernet.outputLink(interface.raw.pointee.index, packet, 0x0800, broadcast)
        }

        func finish() {
            kernel.shutdown()
            #expect(kernel.mbufs.isIdle)
        }
    }

    private func inet(_ text: String, _ port: UInt16) -> sockaddr_in {
        var name = sockaddr_in()
        name.sin_family = sa_family_t(AF_INET)
        name.sin_port = port.bigEndian
        inet_pton(AF_INET, text, &name.sin_addr)
        return name
    }

    private func withName<Result>(_ name: sockaddr_in, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result) -> Result {
        withUnsafePointer(to: name) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
        }
    }

    private func makeSocket(_ type: __socket_type, _ proto: Int32 = 0) -> Int32 {
        socket(AF_INET, Int32(type.rawValue) | Int32(SOCK_NONBLOCK.rawValue) | Int32(SOCK_CLOEXEC.rawValue), proto)
    }

    @Test(arguments: [nil, "delay 5ms"] as [String?])
    func aDatagramFromTheSystemArrivesWithItsSumToBeFinished(link: String?) throws {
        let rig = try Rig("alpst1", link: link)
        let sender = makeSocket(SOCK_DGRAM)
        defer { close(sender) }
        var yes: Int32 = 1
        setsockopt(sender, SOL_SOCKET, SO_BROADCAST, &yes, 4)
        let payload = [UInt8](repeating: 0x61, count: 1000)
        let sent = withName(inet("10.255.77.255", 7777)) { sendto(sender, payload, payload.count, 0, $0, $1) }
        #expect(sent == 1000)
        let found = rig.waitForPackets { $0.count == 1028 && $0[9] == 17 }
        try #require(found.count == 1)
        #expect(Array(found[0].bytes[28...]) == payload)
        #expect(found[0].header.flags == UInt16(ALPS_PKT_BROADCAST))
        if link == nil {
            #expect(found[0].header.csum == UInt8(ALPS_CSUM_PARTIAL))
            #expect(found[0].header.csum_start == 20)
            #expect(found[0].header.csum_offset == 6)
        } else {
            #expect(found[0].header.csum == UInt8(ALPS_CSUM_NONE))
        }
        rig.finish()
    }

    @Test func theSystemTakesADatagramWhoseSumItHasToFinish() throws {
        let rig = try Rig("alpst2")
        let receiver = makeSocket(SOCK_DGRAM)
        defer { close(receiver) }
        #expect(withName(inet("10.255.77.1", 7778)) { bind(receiver, $0, $1) } == 0)
        var bytes: [UInt8] = [0x45, 0, 0, 33, 0, 1, 0, 0, 64, 17, 0, 0, 10, 255, 77, 2, 10, 255, 77, 1]
        let header = bytes.withUnsafeBytes { InternetChecksum.finish(InternetChecksum.sum($0.baseAddress!, 20)) }
        (bytes[10], bytes[11]) = (UInt8(header >> 8), UInt8(header & 255))
        let pseudo = bytes.withUnsafeBytes {
            InternetChecksum.fold(UInt64(InternetChecksum.sum($0.baseAddress! + 12, 8)) + 17 + 13)
        }
        bytes += [0x30, 0x39, 0x1e, 0x62, 0, 13, UInt8(pseudo >> 8), UInt8(pseudo & 255)] + Array("hello".utf8)
        let packet = rig.kernel.mbufs.packet(headroom: 64)!
        #expect(rig.kernel.mbufs.append(packet, bytes, bytes.count) == 0)
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_PARTIAL)
        packet.pointee.pkt.csum_start = 20
        packet.pointee.pkt.csum_offset = 6
        #expect(rig.send(packet) == 0)
        var got = [UInt8](repeating: 0, count: 100)
        var count = -1
        _ = rig.reactor.run(limit: 2_000_000_000) {
            count = recv(receiver, &got, got.count, 0)
            return count >= 0
        }
        #expect(count == 5)
        #expect(Array(got.prefix(5)) == Array("hello".utf8))
        #expect(rig.interface.errorsOut == 0)
        rig.finish()
    }

    @Test(arguments: [3000, 30000]) func largeSegmentsPassWholeBothWays(payload: Int) throws {
        let rig = try Rig("alpst3")
        // Out: a raw socket of the system sees the segment as it came.
        let raw = makeSocket(SOCK_RAW, Int32(IPPROTO_TCP))
        defer { close(raw) }
        #expect(withName(inet("10.255.77.1", 0)) { bind(raw, $0, $1) } == 0)
        let segment = try tcpSegment(payload)
        let packet = rig.kernel.mbufs.packet(headroom: 64)!
        #expect(rig.kernel.mbufs.append(packet, segment, segment.count) == 0)
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_PARTIAL)
        packet.pointee.pkt.csum_start = 20
        packet.pointee.pkt.csum_offset = 16
        packet.pointee.pkt.gso_type = UInt8(ALPS_GSO_TCP4)
        packet.pointee.pkt.gso_size = 1400
        #expect(rig.send(packet) == 0)
        var got = [UInt8](repeating: 0, count: 65536)
        var count = -1
        _ = rig.reactor.run(limit: 2_000_000_000) {
            count = recv(raw, &got, got.count, 0)
            return count >= 0
        }
        #expect(count == segment.count)
        // Not the arrays themselves: a failure would print them.
        let isSame = got.prefix(max(count, 40)).dropFirst(40).elementsEqual(segment.dropFirst(40))
        #expect(isSame)

        // In: a packet socket of the system hands the interface a segment to be cut by the "card", which is us.
        let outlet = socket(AF_PACKET, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        defer { close(outlet) }
        var yes: Int32 = 1
        #expect(setsockopt(outlet, 263, 15, &yes, 4) == 0)  // SOL_PACKET, PACKET_VNET_HDR
        var name = sockaddr_ll()
        name.sll_family = UInt16(AF_PACKET)
        name.sll_protocol = UInt16(0x0800).bigEndian
        name.sll_ifindex = Int32(if_nametoindex("alpst3"))
        let bound = withUnsafePointer(to: name) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(outlet, $0, socklen_t(MemoryLayout<sockaddr_ll>.size))
            }
        }
        #expect(bound == 0)
        // flags NEEDS_CSUM, TCPv4, hdr_len 54, gso_size 1400, csum_start 34, csum_offset 16; little endian.
        let virtio: [UInt8] = [1, 1, 54, 0, 0x78, 0x05, 34, 0, 16, 0]
        let frame = [2, 0xa1, 0, 0, 0, 7, 2, 0xa1, 0, 0, 0, 8, 8, 0] + segment
        #expect(send(outlet, virtio + frame, virtio.count + frame.count, 0) == virtio.count + frame.count)
        let found = rig.waitForPackets { $0.count == segment.count && $0[9] == 6 }
        try #require(found.count == 1)
        let isWhole = found[0].bytes == segment
        #expect(isWhole)
        #expect(found[0].header.gso_type == UInt8(ALPS_GSO_TCP4))
        #expect(found[0].header.gso_size == 1400)
        #expect(found[0].header.gso_segments == UInt16((payload + 1399) / 1400))
        #expect(found[0].header.csum == UInt8(ALPS_CSUM_PARTIAL))
        rig.finish()
    }

    /// From 10.255.77.2 to .1, checksum unfinished.
    private func tcpSegment(_ payload: Int) throws -> [UInt8] {
        var bytes: [UInt8] = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 255, 77, 2, 10, 255, 77, 1]
        (bytes[2], bytes[3]) = (UInt8((40 + payload) >> 8), UInt8((40 + payload) & 255))
        let header = bytes.withUnsafeBytes { InternetChecksum.finish(InternetChecksum.sum($0.baseAddress!, 20)) }
        (bytes[10], bytes[11]) = (UInt8(header >> 8), UInt8(header & 255))
        let pseudo = bytes.withUnsafeBytes {
            InternetChecksum.fold(UInt64(InternetChecksum.sum($0.baseAddress! + 12, 8)) + 6 + UInt64(20 + payload))
        }
        bytes += [0x30, 0x39, 0x1e, 0x62, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]
        bytes += [UInt8(pseudo >> 8), UInt8(pseudo & 255), 0, 0]
        return bytes + (0..<payload).map { UInt8(truncatingIfNeeded: $0 &* 13) }
    }

    @Test func aNameThatIsTakenIsRefusedInWords() throws {
        let rig = try Rig("alpst4")
        #expect {
            try Tap(name: "alpst4", kernel: rig.kernel)
        } throws: { error in
            (error as? KernelError)?.message.contains("another process has it") == true
        }
        #expect(throws: KernelError.self) { try Tap(name: "lo", kernel: rig.kernel) }
        #expect(throws: KernelError.self) { try Tap(name: "a-name-that-is-too-long", kernel: rig.kernel) }
        rig.finish()
    }

    @Test func theInterfaceGoesWithItsDescriptor() throws {
        let rig = try Rig("alpst5")
        #expect(if_nametoindex("alpst5") != 0)
        rig.finish()
        #expect(if_nametoindex("alpst5") == 0)
    }
}

import CLinux
import ClientAPI
import Glibc
import Kernel
import Testing

/// Long frames whose payload the device reads to where it probably belongs: whatever comes, every byte of every stream ends
/// in its place.
@Suite(.serialized) struct FramePredictionTests {
    /// The other end of a link, on a socket: 10.0.0.1, which sends segments of its own making to 10.0.0.2.
    private final class Peer {
        let host: LiveHost
        let wire: Int32
        let interface: Interface
        private let own: [UInt8] = [2, 0, 0, 0, 0, 1]
        private let other: [UInt8] = [2, 0, 0, 0, 0, 2]
        private static let virtioSize = 12
        /// By port: the next byte that the stack will send, and what it has acknowledged of the stream sent to it.
        var next: [UInt16: UInt32] = [:]
        var acknowledged: [UInt16: UInt32] = [:]

        init(_ host: LiveHost) throws {
            self.host = host
            var ends: [Int32] = [-1, -1]
            let type = Int32(SOCK_SEQPACKET.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
            try #require(socketpair(AF_UNIX, type, 0, &ends) == 0)
            wire = ends[0]
            var bytes: Int32 = 8 << 20
            setsockopt(wire, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, 4)
            let device = try FrameDevice(descriptor: ends[1], headerSize: Self.virtioSize, kernel: host.kernel)
            interface = try host.kernel.interfaces.add(name: "w0", device: device, hardware: HardwareAddress((2, 0, 0, 0, 0, 2)))
            try host.kernel.interfaces.addAddress(interface, NetworkAddress("10.0.0.2")!.address, prefixLength: 24)
        }

        deinit { close(wire) }

        private func put(_ bytes: [UInt8]) {
            while bytes.withUnsafeBytes({ write(wire, $0.baseAddress, $0.count) }) < 0, errno == EAGAIN { host.settle(1) }
        }

        private func big(_ value: UInt32, _ size: Int) -> [UInt8] {
            (0..<size).map { UInt8(truncatingIfNeeded: value >> (8 * (size - 1 - $0))) }
        }

        /// A segment to port 80. `padding`: bytes of options without meaning.
        func segment(
            from port: UInt16, _ sequence: UInt32, _ payload: [UInt8] = [], flags: UInt8 = 0x10, options: [UInt8] = [],
            padding: Int = 0
        ) {
            let options = options + [UInt8](repeating: 1, count: padding)
            let tcp =
                big(UInt32(port), 2) + big(80, 2) + big(sequence, 4) + big(next[port] ?? 0, 4)
                + [UInt8(5 + options.count / 4) << 4, flags] + big(60000, 2) + [0, 0, 0, 0] + options
            var ip: [UInt8] =
                [0x45, 0] + big(UInt32(20 + tcp.count + payload.count), 2) + [0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]
            let sum = ip.withUnsafeBytes { InternetChecksum.finish(InternetChecksum.sum($0.baseAddress!, 20)) }
            (ip[10], ip[11]) = (UInt8(sum >> 8), UInt8(sum & 255))
            var virtio = virtio_net_hdr_v1()
            virtio.flags = UInt8(VIRTIO_NET_HDR_F_NEEDS_CSUM)
            (virtio.csum_start, virtio.csum_offset) = (34, 16)
            if payload.count > 1448 {
                (virtio.gso_type, virtio.gso_size) = (UInt8(VIRTIO_NET_HDR_GSO_TCPV4), 1448)
            }
            put(withUnsafeBytes(of: virtio) { Array($0) } + other + own + [8, 0] + ip + tcp + payload)
        }

        /// Takes what the stack has sent.
        func look() {
            var frame = [UInt8](repeating: 0, count: 65600)
            while true {
                let count = read(wire, &frame, frame.count) - Self.virtioSize
                if count <= 0 { return }
                let bytes = Array(frame[Self.virtioSize..<Self.virtioSize + count])
                if bytes[12..<14] == [8, 6] {
                    put([UInt8](repeating: 0, count: Self.virtioSize) + other + own + [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]
                        + own + [10, 0, 0, 1] + other + [10, 0, 0, 2])
                    continue
                }
                func number(_ at: Int) -> UInt32 { bytes[at..<at + 4].reduce(0) { $0 << 8 | UInt32($1) } }
                let port = UInt16(bytes[36]) << 8 | UInt16(bytes[37])
                if bytes[47] & 2 != 0 { next[port] = number(38) &+ 1 }
                acknowledged[port] = number(42)
            }
        }

        /// Opens a connection whose stream begins at number 1.
        func connect(from port: UInt16) {
            segment(from: port, 0, flags: 2, options: [2, 4, 5, 0xb4, 1, 3, 3, 7])
            host.run {
                look()
                return next[port] != nil
            }
            segment(from: port, 1)
        }
    }

    /// A stream to a client that has a ring.
    private final class Flow {
        let port: UInt16
        let socket: TestClient.Descriptor
        let page: UnsafeMutablePointer<alps_stream_ring>
        var sent = 0
        var holes: [Range<Int>] = []
        private var checked = 0

        init(_ port: UInt16, _ socket: TestClient.Descriptor, _ page: UnsafeMutablePointer<alps_stream_ring>) {
            (self.port, self.socket, self.page) = (port, socket, page)
        }

        func bytes(_ range: Range<Int>) -> [UInt8] {
            range.map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8 &+ Int(port) &* 101) }
        }

        func send(_ peer: Peer, _ range: Range<Int>, padding: Int = 0) {
            peer.segment(from: port, 1 &+ UInt32(range.lowerBound), bytes(range), padding: padding)
        }

        /// Compares what has come and gives its room back. The first byte that is wrong.
        func read(_ client: TestClient) throws -> Int? {
            let tail = Int(alps_load_position(&page.pointee.receive_tail))
            let ring = UnsafeMutableRawPointer(page).assumingMemoryBound(to: UInt8.self) + Int(page.pointee.receive_offset)
            let mask = Int(page.pointee.receive_capacity) - 1
            let wrong = zip(checked..<tail, bytes(checked..<max(tail, checked))).first { ring[$0 & mask] != $1 }?.0
            checked = max(tail, checked)
            var byte: UInt8 = 0
            while recv(socket.fd, &byte, 1, 0) == 1 {}
            alps_store_position(&page.pointee.receive_head, UInt64(checked))
            _ = try client.ask(ALPS_OP_STREAM_BELL, socket: socket.handle)
            return wrong
        }
    }

    private func withFlows(
        _ count: Int, _ body: (LiveHost, TestClient, Peer, [Flow]) throws -> Void
    ) throws {
        let host = try LiveHost(plugins: ["arp", "ipv4", "icmp", "udp", "tcp"])
        let client = try TestClient(host)
        let listener = try client.socket(type: 1)
        let name = TestClient.bytes(TestClient.address(80, [0, 0, 0, 0]))
        #expect(try client.ask(ALPS_OP_BIND, name, socket: listener.handle).frame.error == 0)
        #expect(try client.ask(ALPS_OP_LISTEN, TestClient.bytes(Int32(4)), socket: listener.handle).frame.error == 0)
        let peer = try Peer(host)
        var flows: [Flow] = []
        for number in 0..<count {
            peer.connect(from: 5000 + UInt16(number))
            let socket = try client.accept(listener)
            let answer = try client.ask(ALPS_OP_STREAM_RING, TestClient.bytes(ALPS_RING_RECEIVE), socket: socket.handle)
            try #require(answer.frame.error == 0)
            let bytes = Int(answer.load(alps_stream_ring_info.self).bytes)
            let memory = try #require(mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, answer.descriptor, 0))
            try #require(memory != MAP_FAILED)
            close(answer.descriptor)
            let page = memory.assumingMemoryBound(to: alps_stream_ring.self)
            page.pointee.receive_head = page.pointee.receive_inband
            alps_unlock_word(&page.pointee.read_lock, ALPS_RING_WAITED)
            flows.append(Flow(5000 + UInt16(number), socket, page))
        }
        try body(host, client, peer, flows)
        for flow in flows {
            peer.segment(from: flow.port, 1 &+ UInt32(flow.sent), flags: 0x14)
            close(flow.socket.fd)
            let page = flow.page.pointee
            munmap(flow.page, Int(page.send_offset) + Int(page.send_capacity))
        }
        close(listener.fd)
        client.end()
        host.finish()
    }

    private func counter(_ host: LiveHost, _ name: String) -> UInt64 { host.kernel.counters.value("socket", name) ?? .max }

    /// Runs the host until all that was sent is acknowledged, while the client reads. What found no room is sent again.
    private func drain(_ host: LiveHost, _ client: TestClient, _ peer: Peer, _ flows: [Flow]) throws {
        for turn in 1...2000 {
            peer.look()
            for flow in flows { try #require(try flow.read(client) == nil, "a wrong byte") }
            if flows.allSatisfy({ peer.acknowledged[$0.port] == 1 &+ UInt32($0.sent) }) { return }
            host.settle(1)
            guard turn % 50 == 0 else { continue }
            for flow in flows {
                let start = Int((peer.acknowledged[flow.port] ?? 1) &- 1)
                if start < flow.sent { flow.send(peer, start..<min(start + 60_000, flow.sent)) }
            }
        }
        try #require(Bool(false), "the stack has not taken everything")
    }

    @Test func theNextPayloadIsReadToItsPlace() throws {
        try withFlows(1) { host, client, peer, flows in
            let flow = flows[0]
            for _ in 0..<200 {
                flow.send(peer, flow.sent..<flow.sent + 60_000)
                flow.sent += 60_000
                try drain(host, client, peer, flows)
            }
            // All but the first two, and those that would go round the end of the ring.
            #expect(counter(host, "payloads_read_to_place") >= 190)
            #expect(counter(host, "payloads_taken_back") == 0)
        }
    }

    @Test func nothingIsReadThereWhileClientsAreOfSeveralUsersOrItIsOff() throws {
        try withFlows(1) { host, client, peer, flows in
            let flow = flows[0]
            func send() throws {
                for _ in 0..<10 {
                    flow.send(peer, flow.sent..<flow.sent + 60_000)
                    flow.sent += 60_000
                    try drain(host, client, peer, flows)
                }
            }
            try host.kernel.tunables.set("kern.ipc.ringdirect", "0")
            try send()
            #expect(counter(host, "payloads_read_to_place") == 0)
            try host.kernel.tunables.set("kern.ipc.ringdirect", "1")
            host.kernel.sockets.hasOneUser = false
            try send()
            #expect(counter(host, "payloads_read_to_place") == 0)
            host.kernel.sockets.hasOneUser = true
            try send()
            #expect(counter(host, "payloads_read_to_place") > 0)
        }
    }

    /// Runs of frames of one stream, then another's; holes, frames that come twice or overlap, headers that grow.
    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func whateverComesEveryByteEndsInItsPlace(seed: UInt64) throws {
        var random = seed &* 0x9e37_79b9_7f4a_7c15
        func below(_ bound: Int) -> Int {
            random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(random >> 33) % bound
        }
        try withFlows(2) { host, client, peer, flows in
            var flow = flows[0]
            var waiting = 0
            for _ in 0..<250 {
                if below(8) == 0 { flow = flows[below(2)] }
                let size = [60_000, 60_000, 60_000, 40_000, 9000, 8192, 1448, 1 + below(3000)][below(8)]
                let padding = below(12) == 0 ? 4 * (1 + below(4)) : 0
                switch below(12) {
                case 0:
                    // A hole first.
                    flow.holes.append(flow.sent..<flow.sent + 1 + below(5000))
                    flow.sent = flow.holes.last!.upperBound
                case 1:
                    if let hole = flow.holes.popLast() { flow.send(peer, hole) }
                case 2:
                    // Once more, and a little new, a part of which lies across a place for it.
                    let start = max(flow.sent - below(30_000), 0)
                    flow.send(peer, start..<flow.sent + 1000)
                    flow.sent += 1000
                default: break
                }
                flow.send(peer, flow.sent..<flow.sent + size, padding: padding)
                flow.sent += size
                waiting += size
                if below(3) == 0 || waiting > 100_000 {
                    waiting = 0
                    for each in flows {
                        for hole in each.holes { each.send(peer, hole) }
                        each.holes.removeAll()
                    }
                    try drain(host, client, peer, flows)
                }
            }
            for each in flows { for hole in each.holes { each.send(peer, hole) } }
            try drain(host, client, peer, flows)
            #expect(counter(host, "payloads_read_to_place") > 20)
            #expect(counter(host, "payloads_taken_back") > 0)
        }
    }
}

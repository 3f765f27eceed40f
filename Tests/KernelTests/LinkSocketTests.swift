import CLinux
import Glibc
import Kernel
import Lab
import PluginAPI
import Testing

/// Packet sockets on an interface whose device is the test.
@Suite struct LinkSocketTests {
    final class Bench {
        let network = VirtualNetwork(seed: 3)
        let kernel: Kernel
        let device: MemoryDevice
        let interface: Interface
        var sent: [[UInt8]] = []

        static let own: [UInt8] = [2, 0, 0, 0, 0, 9]
        static let other: [UInt8] = [2, 0, 0, 0, 0, 7]

        init() throws {
            kernel = try network.addKernel("a", plugins: [])
            device = MemoryDevice(kernel: kernel)
            interface = try kernel.interfaces.add(
                name: "m0", device: device, hardware: HardwareAddress((2, 0, 0, 0, 0, 9)), mtu: 1500)
            device.onTransmit = { [unowned self] in sent.append(Array($0)) }
        }

        var index: UInt32 { interface.raw.pointee.index }

        func socket(_ type: Int32 = 3, _ protocolNumber: UInt16 = 3, bound: Bool = true) throws -> LinkSocket {
            let socket = try kernel.linkSockets.create(type: type, protocolNumber: protocolNumber)
            if bound { #expect(socket.bind(protocolNumber: 0, ifindex: index) == 0) }
            return socket
        }

        static func frame(_ length: Int, to target: [UInt8] = own, type: UInt16 = 0x0800, tag: UInt8 = 0) -> [UInt8] {
            var bytes = target + other + [UInt8(type >> 8), UInt8(type & 255)]
            while bytes.count < length { bytes.append(UInt8(truncatingIfNeeded: bytes.count) ^ tag) }
            return bytes
        }

        func arrive(_ frames: [UInt8]...) {
            for frame in frames { device.receive(frame) }
            network.run(for: 1)
        }

        func finish() {
            for socket in kernel.linkSockets.all { socket.close() }
            network.shutdown()
            #expect(kernel.mbufs.isIdle)
        }
    }

    struct Seen: Equatable {
        var bytes: [UInt8]
        var kind: UInt8
        var protocolNumber: UInt16
    }

    /// What a socket without a ring gets.
    private final class Log {
        var seen: [Seen] = []

        init(_ socket: LinkSocket) {
            socket.onFrame = { [unowned self] frame, origin, length in
                seen.append(
                    Seen(
                        bytes: Array(UnsafeBufferPointer(start: frame.bytes + origin, count: length)), kind: frame.kind,
                        protocolNumber: frame.protocolNumber))
                return true
            }
        }
    }

    // MARK: Frames in and out

    @Test func framesOfEveryKindAreShown() throws {
        let bench = try Bench()
        let log = Log(try bench.socket())
        let all: [([UInt8], UInt8)] = [
            (Bench.own, 0), ([255, 255, 255, 255, 255, 255], 1), ([1, 0, 0x5e, 0, 0, 1], 2), ([2, 9, 9, 9, 9, 9], 3),
        ]
        for (target, kind) in all {
            let frame = Bench.frame(60, to: target, type: 0x88b5)
            bench.arrive(frame)
            #expect(log.seen.last == Seen(bytes: frame, kind: kind, protocolNumber: 0x88b5))
        }
        #expect(log.seen.count == 4)
        // A length where the type is.
        bench.arrive(Bench.frame(60, type: 46))
        #expect(log.seen.last?.protocolNumber == 4)
        withExtendedLifetime(log) { bench.finish() }
    }

    @Test func aProtocolChoosesAndCookedSocketsSeeNoLinkHeader() throws {
        let bench = try Bench()
        let log = Log(try bench.socket(2, 0x0800))
        bench.arrive(Bench.frame(60, type: 0x0806), Bench.frame(60))
        #expect(log.seen == [Seen(bytes: Array(Bench.frame(60).dropFirst(14)), kind: 0, protocolNumber: 0x0800)])
        withExtendedLifetime(log) { bench.finish() }
    }

    @Test func whatLeavesIsShownToAllButItsSender() throws {
        let bench = try Bench()
        let sender = try bench.socket()
        let own = Log(sender)
        let others = Log(try bench.socket())
        let deaf = try bench.socket()
        #expect(deaf.setOption(263, 23, [1, 0, 0, 0], isRoot: true) == 0)
        let ignoring = Log(deaf)
        let frame = Bench.frame(60, to: Bench.other, type: 0x88b5)
        #expect(frame.withUnsafeBytes { sender.send($0, to: nil) } == 0)
        #expect(bench.sent == [frame])
        #expect(others.seen == [Seen(bytes: frame, kind: 4, protocolNumber: 0x88b5)])
        #expect(own.seen.isEmpty && ignoring.seen.isEmpty)
        // One that wants a single protocol gets what arrives only, as on Linux.
        let single = Log(try bench.socket(3, 0x88b5))
        _ = frame.withUnsafeBytes { sender.send($0, to: nil) }
        #expect(single.seen.isEmpty)
        withExtendedLifetime((own, others, ignoring, single)) { bench.finish() }
    }

    @Test func aCookedSocketBuildsTheLinkHeader() throws {
        let bench = try Bench()
        let socket = try bench.socket(2, 0x0800)
        let name = LinkSocket.Name(protocolNumber: 0x88b5, ifindex: bench.index, hardware: Bench.other)
        #expect(([1, 2, 3] as [UInt8]).withUnsafeBytes { socket.send($0, to: name) } == 0)
        #expect(bench.sent == [Bench.other + Bench.own + [0x88, 0xb5, 1, 2, 3]])
        // It knows no destination by itself.
        #expect(([1] as [UInt8]).withUnsafeBytes { socket.send($0, to: nil) } == EINVAL)
        bench.finish()
    }

    @Test func sendingIsRefusedAsOnLinux() throws {
        let bench = try Bench()
        let socket = try bench.socket(bound: false)
        func send(_ count: Int, _ index: UInt32? = nil) -> Int32 {
            let name = index.map { LinkSocket.Name(protocolNumber: 0, ifindex: $0, hardware: Bench.other) }
            return Bench.frame(count).prefix(count).withUnsafeBytes { socket.send($0, to: name) }
        }
        #expect(send(60) == ENXIO)
        #expect(send(60, 77) == ENXIO)
        #expect(send(13, bench.index) == EINVAL)
        #expect(send(1514, bench.index) == 0)
        #expect(send(1515, bench.index) == EMSGSIZE)
        bench.kernel.interfaces.setUp(bench.interface, false)
        #expect(send(60, bench.index) == ENETDOWN)
        bench.finish()
    }

    @Test func anInterfaceThatGoesDownIsAnError() throws {
        let bench = try Bench()
        let socket = try bench.socket()
        let log = Log(socket)
        var told = 0
        socket.onError = { told += 1 }
        bench.kernel.interfaces.setUp(bench.interface, false)
        #expect(told == 1 && socket.pendingError == ENETDOWN)
        bench.arrive(Bench.frame(60))
        #expect(log.seen.isEmpty)
        bench.kernel.interfaces.setUp(bench.interface, true)
        bench.arrive(Bench.frame(60))
        #expect(log.seen.count == 1)
        #expect(socket.bind(protocolNumber: 0, ifindex: 99) == ENODEV)
        withExtendedLifetime(log) { bench.finish() }
    }

    @Test func anUnfinishedChecksumIsFinishedInWhatIsShown() throws {
        let bench = try Bench()
        let log = Log(try bench.socket())
        let packet = try #require(bench.kernel.mbufs.cluster(headroom: 66, capacity: 1500))
        let bytes = Bench.frame(64, type: 0x88b5)
        #expect(bench.kernel.mbufs.append(packet, bytes, bytes.count) == 0)
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_PARTIAL)
        packet.pointee.pkt.csum_start = 34
        packet.pointee.pkt.csum_offset = 6
        bench.interface.receiveFrames(packet)
        let seen = try #require(log.seen.first).bytes
        // The sum over what it covers, with the sum itself in place, is what it is over a right packet: its seed.
        var sum = UInt32(0)
        for place in stride(from: 34, to: 64, by: 2) where place != 40 {
            sum += UInt32(bytes[place]) << 8 | UInt32(bytes[place + 1])
        }
        sum += UInt32(bytes[40]) << 8 | UInt32(bytes[41])
        while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
        #expect(UInt32(seen[40]) << 8 | UInt32(seen[41]) == ~sum & 0xffff)
        #expect(seen.prefix(40).elementsEqual(bytes.prefix(40)))
        withExtendedLifetime(log) { bench.finish() }
    }

    @Test func aFilterChoosesAndCuts() throws {
        let bench = try Bench()
        let socket = try bench.socket()
        let log = Log(socket)
        // Type 0x88b5: 20 bytes of it.
        let program: [UInt8] = [
            0x28, 0, 0, 0, 12, 0, 0, 0, 0x15, 0, 0, 1, 0xb5, 0x88, 0, 0, 6, 0, 0, 0, 20, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
        ]
        #expect(socket.setOption(SOL_SOCKET, SO_ATTACH_FILTER, program, isRoot: true) == 0)
        bench.arrive(Bench.frame(60), Bench.frame(60, type: 0x88b5))
        #expect(log.seen.map(\.bytes) == [Array(Bench.frame(60, type: 0x88b5).prefix(20))])
        #expect(socket.getOption(SOL_SOCKET, SO_ATTACH_FILTER, value: [], capacity: 4096).value == program)
        #expect(socket.setOption(SOL_SOCKET, SO_ATTACH_FILTER, [0, 0, 0, 0, 0, 0, 0, 0], isRoot: true) == EINVAL)
        #expect(socket.setOption(SOL_SOCKET, SO_LOCK_FILTER, [1, 0, 0, 0], isRoot: true) == 0)
        #expect(socket.setOption(SOL_SOCKET, SO_DETACH_FILTER, [0, 0, 0, 0], isRoot: true) == EPERM)
        #expect(socket.setOption(SOL_SOCKET, SO_LOCK_FILTER, [0, 0, 0, 0], isRoot: true) == EPERM)
        withExtendedLifetime(log) { bench.finish() }
    }

    @Test func nobodyListensNobodyPays() throws {
        let bench = try Bench()
        #expect(bench.kernel.interfaces.ethernet.frameListeners == 0)
        let silent = try bench.socket(3, 0)
        #expect(bench.kernel.interfaces.ethernet.frameListeners == 0)
        let listening = try bench.socket()
        #expect(bench.kernel.interfaces.ethernet.frameListeners == 1)
        listening.close()
        silent.close()
        #expect(bench.kernel.interfaces.ethernet.frameListeners == 0)
        bench.finish()
    }

    @Test func aGroupSharesWhatArrives() throws {
        let bench = try Bench()
        let sockets = try (0..<3).map { _ in try bench.socket() }
        let logs = sockets.map { Log($0) }
        // Identifier 5, one after the other (PACKET_FANOUT_LB).
        for socket in sockets { #expect(socket.setOption(263, 18, [5, 0, 1, 0], isRoot: true) == 0) }
        #expect(sockets[0].setOption(263, 18, [5, 0, 1, 0], isRoot: true) == EALREADY)
        for _ in 0..<30 { bench.arrive(Bench.frame(60)) }
        #expect(logs.map(\.seen.count) == [10, 10, 10])
        sockets[0].close()
        for _ in 0..<10 { bench.arrive(Bench.frame(60)) }
        #expect(logs.map(\.seen.count) == [10, 15, 15])
        let stranger = try bench.socket()
        #expect(stranger.setOption(263, 18, [5, 0, 0, 0], isRoot: true) == EINVAL)
        withExtendedLifetime(logs) { bench.finish() }
    }

    @Test(arguments: [
        (1, [0, 0, 0, 0], EINVAL), (10, [3, 0, 0, 0], EINVAL), (15, [1, 0, 0, 0], EINVAL), (99, [1, 0, 0, 0], ENOPROTOOPT),
        (6, [1, 0, 0, 0], ENOPROTOOPT), (12, [0, 0, 0, 0x80], EINVAL), (22, [1, 0, 0, 0], EINVAL), (8, [1], EINVAL),
        (23, [2, 0, 0, 0], EINVAL),
    ] as [(Int32, [UInt8], Int32)]) func optionsAreRefused(name: Int32, value: [UInt8], error: Int32) throws {
        let bench = try Bench()
        #expect(try bench.socket().setOption(263, name, value, isRoot: true) == error)
        bench.finish()
    }
}

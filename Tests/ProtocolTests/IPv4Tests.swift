import Kernel
import Lab
import PluginAPI
import Testing

/// What comes in and goes out (RFC 791, RFC 1122 section 3). Protocol 253 is for experiments (RFC 3692): a raw socket is
/// its only listener.
@Suite struct IPv4Tests {
    private static let experiment: UInt8 = 253

    private func received(_ socket: Socket) -> [[UInt8]] {
        var all: [[UInt8]] = []
        while let (bytes, _) = socket.receive() { all.append(bytes) }
        return all
    }

    // MARK: Input

    @Test func aPacketForUsIsDelivered() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        let packet = PacketBench.packet(Self.experiment, [1, 2, 3])
        bench.send(packet)
        #expect(received(socket) == [packet])
        bench.finish()
    }

    @Test func paddingOfTheLinkIsCutOff() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        let packet = PacketBench.packet(Self.experiment, [1, 2, 3])
        bench.send(packet + [UInt8](repeating: 0xee, count: 23))
        #expect(received(socket) == [packet])
        bench.finish()
    }

    @Test func damagedHeadersAreDroppedAndCounted() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        let good = PacketBench.packet(Self.experiment, [1, 2, 3, 4])
        func variant(repair: Bool = true, _ change: (inout [UInt8]) -> Void) -> [UInt8] {
            var packet = good
            change(&packet)
            return repair ? PacketBench.repaired(packet) : packet
        }
        bench.send([])
        bench.send(Array(good.prefix(19)))
        bench.send(variant { $0[0] = 0x65 })
        bench.send(variant(repair: false) { $0[0] = 0x44 })
        bench.send(variant(repair: false) { $0[0] = 0x4f })
        bench.send(variant(repair: false) { $0[8] = 63 })
        bench.send(variant { $0[3] = 19 })
        bench.send(variant { $0[3] = 25 })
        bench.send(variant { $0[2] = 0xff })
        #expect(received(socket) == [])
        #expect(bench.counter("ipv4", "too_short") == 2)
        #expect(bench.counter("ipv4", "bad_version") == 1)
        #expect(bench.counter("ipv4", "bad_header_length") == 2)
        #expect(bench.counter("ipv4", "bad_checksum") == 1)
        #expect(bench.counter("ipv4", "bad_length") == 3)
        bench.expectNothing()
        bench.finish()
    }

    @Test(
        arguments: [
            [127, 0, 0, 1], [224, 0, 0, 1], [239, 1, 2, 3], [255, 255, 255, 255], [10, 0, 0, 255], [10, 0, 0, 1],
            [0, 0, 0, 5],
            [0, 0, 0, 0], [240, 0, 0, 1],
        ] as [[UInt8]]) func sourcesThatCannotBeAreDropped(source: [UInt8]) throws
    {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        bench.send(PacketBench.packet(Self.experiment, [1], from: source))
        #expect(received(socket) == [])
        #expect(bench.counter("ipv4", "bad_address") == 1)
        bench.expectNothing()
        bench.finish()
    }

    @Test(arguments: [[10, 0, 0, 77], [192, 168, 1, 1], [8, 8, 8, 8], [239, 1, 2, 3]] as [[UInt8]])
    func packetsForOthersAreNotForwarded(destination: [UInt8]) throws {
        let bench = try PacketBench()
        try bench.addDefaultRoute()
        bench.send(PacketBench.packet(Self.experiment, [1], to: destination))
        #expect(bench.counter("ipv4", "not_for_us") == 1)
        bench.expectNothing()
        bench.finish()
    }

    @Test func loopbackAddressesNeverComeFromOutside() throws {
        let bench = try PacketBench()
        bench.send(PacketBench.packet(Self.experiment, [1], to: [127, 0, 0, 1]))
        #expect(bench.counter("ipv4", "bad_address") == 1)
        bench.expectNothing()
        bench.finish()
    }

    @Test func broadcastsAreForEverybody() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        bench.send(PacketBench.packet(Self.experiment, [1], to: [255, 255, 255, 255]), to: PacketBench.everybody)
        bench.send(PacketBench.packet(Self.experiment, [2], to: [10, 0, 0, 255]), to: PacketBench.everybody)
        // One for a host alone has no business in a broadcast frame (RFC 1122, 3.3.6).
        bench.send(PacketBench.packet(Self.experiment, [3]), to: PacketBench.everybody)
        // A host without an address may only broadcast.
        bench.send(
            PacketBench.packet(Self.experiment, [4], from: [0, 0, 0, 0], to: [255, 255, 255, 255]),
            to: PacketBench.everybody)
        #expect(received(socket).map(\.last) == [1, 2, 4])
        bench.finish()
    }

    @Test func anUnknownProtocolIsReportedUnlessARawSocketListens() throws {
        let bench = try PacketBench()
        let packet = PacketBench.packet(Self.experiment, [1, 2, 3, 4, 5, 6, 7, 8])
        bench.send(packet)
        let error = try bench.expectOne()
        #expect(error.protocol == 1)
        #expect(Array(error.payload.prefix(2)) == [3, 2])
        #expect(Array(error.payload.dropFirst(8)) == packet)
        let socket = try bench.rawSocket(253)
        bench.send(packet)
        bench.expectNothing()
        #expect(received(socket) == [packet])
        bench.finish()
    }

    // MARK: Options

    @Test func anUnknownOptionIsIgnored() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        let packet = PacketBench.packet(Self.experiment, [9], options: [1, 130, 4, 0, 0, 94, 2, 0])
        bench.send(packet)
        #expect(received(socket) == [packet])
        bench.finish()
    }

    @Test(
        arguments: [
            [7, 0, 0, 0], [7, 1, 0, 0], [7, 5, 4, 0], [1, 1, 1, 7], [7, 3, 3, 0], [68, 4, 4, 0], [131, 3, 2, 0],
        ] as [[UInt8]])
    func damagedOptionsAreReported(options: [UInt8]) throws {
        let bench = try PacketBench()
        bench.send(PacketBench.packet(Self.experiment, [9], options: options))
        let error = try bench.expectOne()
        #expect(Array(error.payload.prefix(2)) == [12, 0])
        #expect((20..<24).contains(error.payload[4]))
        #expect(bench.counter("ipv4", "bad_options") == 1)
        bench.finish()
    }

    @Test func sourceRoutesAreRefused() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        let exhausted = PacketBench.packet(Self.experiment, [9], options: [131, 7, 8, 10, 0, 0, 9, 0])
        bench.send(exhausted)
        bench.send(PacketBench.packet(Self.experiment, [9], options: [137, 7, 4, 10, 0, 0, 9, 0]))
        #expect(bench.counter("ipv4", "source_routed") == 2)
        try bench.stack.tunables.set("net.inet.ip.accept_sourceroute", "1")
        bench.send(exhausted)
        bench.send(PacketBench.packet(Self.experiment, [9], options: [137, 7, 4, 10, 0, 0, 9, 0]))
        #expect(bench.counter("ipv4", "source_routed") == 3)
        #expect(received(socket).count == 1)
        bench.expectNothing()
        bench.finish()
    }

    @Test func recordRouteAndTimestampGetOurEntry() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        bench.send(PacketBench.packet(Self.experiment, [9], options: [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 1]))
        #expect(received(socket).first.map { Array($0[20..<32]) } == [7, 11, 8, 10, 0, 0, 1, 0, 0, 0, 0, 1])
        // Full: left as it is.
        bench.send(PacketBench.packet(Self.experiment, [9], options: [7, 7, 8, 1, 2, 3, 4, 1]))
        #expect(received(socket).first.map { Array($0[20..<28]) } == [7, 7, 8, 1, 2, 3, 4, 1])
        bench.send(PacketBench.packet(Self.experiment, [9], options: [68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0]))
        let stamped = try #require(received(socket).first)
        #expect(Array(stamped[20..<28]) == [68, 12, 13, 1, 10, 0, 0, 1])
        #expect(Array(stamped[28..<32]) != [0, 0, 0, 0])
        // Overflow is counted.
        bench.send(PacketBench.packet(Self.experiment, [9], options: [68, 4, 5, 0]))
        #expect(received(socket).first.map { Array($0[20..<24]) } == [68, 4, 5, 0x10])
        bench.finish()
    }

    // MARK: Output

    @Test func aDatagramHasOurDefaults() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(socket.send([1, 2, 3], to: endpoint("10.0.0.2", 9)) == 0)
        let packet = try bench.expectOne()
        #expect(packet.bytes.count == 31)
        #expect(packet.totalLength == 31)
        #expect(packet.source == PacketBench.stackAddress)
        #expect(packet.destination == PacketBench.peerAddress)
        #expect(packet.ttl == 64)
        #expect(packet.tos == 0)
        #expect(packet.fragmentField == 0)
        bench.finish()
    }

    @Test func onlyDatagramsThatMayBeFragmentedAreNumbered() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        for _ in 0..<3 { #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0) }
        let numbers = bench.takeAll().map(\.identification)
        #expect(Set(numbers).count == 3)
        #expect(socket.set(0, 10, 2) == 0)
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        let atomic = try bench.expectOne()
        #expect(atomic.dontFragment)
        #expect(atomic.identification == 0)
        bench.finish()
    }

    @Test func otherEndsHaveCountersOfTheirOwn() throws {
        let bench = try PacketBench()
        try bench.addDefaultRoute()
        let socket = try bench.udpSocket()
        var last: [Int: UInt16] = [:]
        for round in 0..<3 {
            for host in 1..<20 {
                #expect(socket.send([1], to: endpoint("192.0.2.\(host)", 9)) == 0)
                let number = try bench.expectOne().identification
                if round > 0 { #expect(number == last[host]! &+ 1 || number == 1) }
                last[host] = number
            }
        }
        #expect(Set(last.values.map { Int($0) / 512 }).count > 5, "spread, not one counter")
        bench.finish()
    }

    @Test func socketOptionsShowInTheHeader() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(socket.set(0, 2, 9) == 0)
        #expect(socket.set(0, 1, 0xb8) == 0)
        #expect(socket.setOption(level: 0, name: 4, [7, 7, 4, 0, 0, 0, 0]) == 0)
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        let packet = try bench.expectOne()
        #expect(packet.ttl == 9)
        #expect(packet.tos == 0xb8)
        #expect(packet.options == [7, 7, 4, 0, 0, 0, 0, 0])
        #expect(packet.payload.last == 1)
        #expect(socket.getOption(level: 0, name: 4, capacity: 40).value == [7, 7, 4, 0, 0, 0, 0, 0])
        #expect(socket.setOption(level: 0, name: 4, []) == 0)
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        #expect(try bench.expectOne().options == [])
        // Source routes, and what is no option at all.
        #expect(socket.setOption(level: 0, name: 4, [131, 7, 4, 10, 0, 0, 9]) == 1)
        #expect(socket.setOption(level: 0, name: 4, [7, 70, 4]) == 22)
        #expect(socket.setOption(level: 0, name: 4, [UInt8](repeating: 1, count: 41)) == 22)
        bench.finish()
    }

    @Test func broadcastsNeedPermission() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        for destination in ["255.255.255.255", "10.0.0.255"] {
            #expect(socket.send([1], to: endpoint(destination, 9)) == 13)
        }
        #expect(socket.set(1, 6, 1) == 0)
        for destination in ["255.255.255.255", "10.0.0.255"] {
            #expect(socket.send([1], to: endpoint(destination, 9)) == 0)
            #expect(try bench.expectOne().source == PacketBench.stackAddress)
        }
        #expect(bench.frames.suffix(2) == [PacketBench.everybody, PacketBench.everybody])
        bench.finish()
    }

    @Test func ourOwnSocketsHearOurBroadcasts() throws {
        let bench = try PacketBench()
        let listener = try bench.udpSocket(port: 9)
        let socket = try bench.udpSocket()
        #expect(socket.set(1, 6, 1) == 0)
        #expect(socket.send([7], to: endpoint("10.0.0.255", 9)) == 0)
        bench.settle()
        #expect(listener.receive()?.bytes == [7])
        bench.finish()
    }

    @Test func loopbackAddressesNeverLeave() throws {
        let bench = try PacketBench()
        try bench.addDefaultRoute()
        let socket = try bench.udpSocket()
        #expect(socket.bind(endpoint("127.0.0.1", 5)) == 0)
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 22)
        let other = try bench.udpSocket()
        #expect(other.send([1], to: endpoint("127.0.0.1", 5)) == 0)
        bench.settle()
        #expect(socket.receive()?.bytes == [1])
        bench.expectNothing()
        // Anything in 127/8 is ours, and 0.0.0.0 is too.
        let any = try bench.udpSocket(port: 6)
        #expect(other.send([2], to: endpoint("127.9.8.7", 6)) == 0)
        #expect(other.send([3], to: endpoint("0.0.0.0", 6)) == 0)
        bench.settle()
        #expect(any.receive()?.bytes == [2])
        #expect(any.receive()?.bytes == [3])
        bench.expectNothing()
        bench.finish()
    }

    @Test func withoutARouteNothingGoes() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(socket.send([1], to: endpoint("192.0.2.1", 9)) == 101)
        #expect(socket.send([1], to: endpoint("240.0.0.1", 9)) == 101)
        #expect(socket.send([1], to: endpoint("0.0.0.7", 9)) == 101)
        try bench.addDefaultRoute()
        #expect(socket.send([1], to: endpoint("192.0.2.1", 9)) == 0)
        #expect(try bench.expectOne().destination == [192, 0, 2, 1])
        #expect(bench.frames.last == PacketBench.peerHardware)
        // SO_DONTROUTE
        #expect(socket.set(1, 5, 1) == 0)
        #expect(socket.send([1], to: endpoint("192.0.2.1", 9)) == 101)
        bench.finish()
    }

    @Test func aKeptRouteIsForOneDestination() throws {
        let bench = try PacketBench()
        try bench.addDefaultRoute()
        let socket = try bench.udpSocket()
        #expect(socket.connect(endpoint("10.0.0.2", 9)) == 0)
        #expect(socket.send([1]) == 0)
        #expect(socket.send([2], to: endpoint("127.0.0.1", 9)) == 0, "stays here")
        #expect(socket.send([3], to: endpoint("192.0.2.9", 9)) == 0)
        #expect(socket.send([4]) == 0)
        #expect(bench.takeAll().map(\.destination) == [[10, 0, 0, 2], [192, 0, 2, 9], [10, 0, 0, 2]])
        bench.finish()
    }

    // MARK: Path MTU

    @Test func theFloorAndThePlateausOfThePathMTUHold() throws {
        let bench = try PacketBench()
        try bench.addDefaultRoute()
        let socket = try bench.udpSocket()
        #expect(socket.set(0, 10, 2) == 0)
        #expect(socket.connect(endpoint("192.0.2.9", 9)) == 0)
        #expect(socket.get(0, 14) == 1500)
        func tooBig(_ mtu: UInt16) throws {
            #expect(socket.send([UInt8](repeating: 7, count: Int(socket.get(0, 14)!) - 28)) == 0)
            let packet = try bench.expectOne()
            bench.send(
                PacketBench.packet(1, PacketBench.icmp(3, 4, rest: [0, 0] + big(mtu), packet.bytes.prefix(28) + [])))
            _ = socket.takeError()
        }
        try tooBig(1400)
        #expect(socket.get(0, 14) == 1400)
        #expect(socket.send([UInt8](repeating: 7, count: 1373)) == 90)
        // Old routers tell no MTU: the next plateau.
        try tooBig(0)
        #expect(socket.get(0, 14) == 1006)
        try tooBig(0)
        #expect(socket.get(0, 14) == 508)
        try tooBig(20)
        #expect(socket.get(0, 14) == 68)
        // Ten minutes later it is tried anew.
        bench.run(ms: 599_000)
        #expect(socket.get(0, 14) == 68)
        bench.run(ms: 2_000)
        #expect(socket.get(0, 14) == 1500)
        bench.finish()
    }

    @Test func aReportThatRaisesThePathMTUIsIgnored() throws {
        let bench = try PacketBench()
        try bench.addDefaultRoute()
        let socket = try bench.udpSocket()
        #expect(socket.connect(endpoint("192.0.2.9", 9)) == 0)
        #expect(socket.send([1]) == 0)
        let packet = try bench.expectOne()
        bench.send(PacketBench.packet(1, PacketBench.icmp(3, 4, rest: [0, 0] + big(UInt16(1000)), packet.bytes)))
        #expect(socket.get(0, 14) == 1000)
        bench.send(PacketBench.packet(1, PacketBench.icmp(3, 4, rest: [0, 0] + big(UInt16(1400)), packet.bytes)))
        #expect(socket.get(0, 14) == 1000)
        bench.finish()
    }
}

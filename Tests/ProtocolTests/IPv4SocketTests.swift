import Kernel
import Lab
import PluginAPI
import Testing

/// Raw sockets, groups (RFC 1112, RFC 2236), and options of level IPPROTO_IP.
@Suite struct IPv4SocketTests {
    private func received(_ socket: Socket) -> [[UInt8]] {
        var all: [[UInt8]] = []
        while let (bytes, _) = socket.receive() { all.append(bytes) }
        return all
    }

    // MARK: Raw sockets

    @Test func rawSocketsGetCopiesOfTheirProtocolAndOthersAreServedAllTheSame() throws {
        let bench = try PacketBench()
        let first = try bench.rawSocket(1)
        let second = try bench.rawSocket(1)
        let other = try bench.rawSocket(17)
        let packet = PacketBench.packet(1, PacketBench.icmp(8, rest: [1, 2, 3, 4], pattern(0..<100)))
        bench.send(packet)
        #expect(received(first) == [packet])
        #expect(received(second) == [packet])
        #expect(received(other) == [])
        #expect(try bench.expectOne().payload == PacketBench.icmp(0, rest: [1, 2, 3, 4], pattern(0..<100)))
        first.close()
        bench.finish()
    }

    @Test func aRawSocketHearsOnlyItsEnds() throws {
        let bench = try PacketBench()
        let bound = try bench.rawSocket(253)
        #expect(bound.bind(endpoint("10.0.0.1", 0)) == 0)
        let connected = try bench.rawSocket(253)
        #expect(connected.connect(endpoint("10.0.0.2", 0)) == 0)
        bench.send(PacketBench.packet(253, [1]))
        bench.send(PacketBench.packet(253, [2], from: [10, 0, 0, 3]))
        bench.send(PacketBench.packet(253, [3], to: [10, 0, 0, 255]), to: PacketBench.everybody)
        #expect(received(bound).map(\.last) == [1, 2])
        #expect(received(connected).map(\.last) == [1])
        #expect(connected.send([9]) == 0)
        #expect(try bench.expectOne().payload == [9])
        #expect(connected.disconnect() == 0)
        bench.send(PacketBench.packet(253, [4], from: [10, 0, 0, 3]))
        #expect(received(connected).map(\.last) == [4])
        #expect(bound.send([9]) == 89)
        let stranger = try bench.rawSocket(253)
        #expect(stranger.bind(endpoint("10.0.0.9", 0)) == 99)
        bench.finish()
    }

    @Test func theFilterOfControlMessagesHolds() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(1)
        #expect(socket.set(255, 1, ~(1 << 0)) == 0)
        #expect(socket.get(255, 1) == ~(1 << 0))
        bench.send(PacketBench.packet(1, PacketBench.icmp(8)))
        bench.send(PacketBench.packet(1, PacketBench.icmp(0)))
        #expect(received(socket).map { $0[20] } == [0])
        #expect(try bench.rawSocket(253).set(255, 1, 0) == 95)
        bench.finish()
    }

    @Test func aHeaderOfOnesOwnIsCompleted() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(255)
        var packet = PacketBench.packet(
            253, [1, 2, 3], from: [0, 0, 0, 0], to: [10, 0, 0, 2], identification: 0, ttl: 9)
        packet[3] = 0
        packet[10] = 0xff
        #expect(socket.send(packet, to: endpoint("10.0.0.2", 0)) == 0)
        let sent = try bench.expectOne()
        #expect(sent.source == PacketBench.stackAddress)
        #expect(sent.identification != 0)
        #expect(sent.totalLength == 23)
        #expect(sent.ttl == 9)
        #expect(sent.payload == [1, 2, 3])
        // What is given stays, even a source that is not ours.
        let forged = PacketBench.packet(253, [4], from: [192, 0, 2, 1], to: [10, 0, 0, 2], identification: 77)
        #expect(socket.send(forged, to: endpoint("10.0.0.2", 0)) == 0)
        #expect(try bench.expectOne().bytes == forged)
        // Too long, too short, or no header at all.
        #expect(socket.send(PacketBench.packet(253, pattern(0..<1481)), to: endpoint("10.0.0.2", 0)) == 90)
        #expect(socket.send(Array(forged.prefix(19)), to: endpoint("10.0.0.2", 0)) == 22)
        #expect(socket.send([0x4f] + forged.dropFirst(), to: endpoint("10.0.0.2", 0)) == 22)
        #expect(socket.send([0x42] + forged.dropFirst(), to: endpoint("10.0.0.2", 0)) == 22)
        // Never on a wire.
        #expect(socket.send(PacketBench.packet(253, [4], from: [127, 0, 0, 1]), to: endpoint("10.0.0.2", 0)) == 22)
        bench.expectNothing()
        bench.finish()
    }

    @Test func aRawSocketPingsTheStackItself() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(1)
        #expect(socket.send(PacketBench.icmp(8, rest: [1, 2, 3, 4], [5]), to: endpoint("10.0.0.1", 0)) == 0)
        bench.settle()
        #expect(received(socket).map { $0[20] } == [8, 0])
        bench.finish()
    }

    @Test func anyProtocolButZeroMayBeSpoken() throws {
        let bench = try PacketBench()
        #expect(throws: KernelError.self) { try bench.rawSocket(0) }
        _ = try bench.rawSocket(255)
        bench.finish()
    }

    // MARK: Groups

    private static let group: [UInt8] = [239, 1, 2, 3]
    private static let groupText = "239.1.2.3"

    private func membership(_ interface: [UInt8] = [0, 0, 0, 0], index: UInt32? = nil) -> [UInt8] {
        Self.group + interface + (index.map { withUnsafeBytes(of: $0) { Array($0) } } ?? [])
    }

    private func join(_ socket: Socket, _ value: [UInt8]) -> Int32 { socket.setOption(level: 0, name: 35, value) }
    private func leave(_ socket: Socket, _ value: [UInt8]) -> Int32 { socket.setOption(level: 0, name: 36, value) }

    private func isReport(_ packet: PacketBench.Sent, _ type: UInt8 = 0x16) -> Bool {
        packet.protocol == 2 && packet.payload == PacketBench.icmp(type, rest: Self.group) && packet.ttl == 1
            && packet.options == [148, 4, 0, 0] && packet.destination == Self.group
    }

    @Test func joiningIsReportedTwiceAndLeavingOnce() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket(port: 9)
        let other = try bench.udpSocket()
        #expect(join(socket, membership()) == 0)
        #expect(isReport(try bench.expectOne()))
        #expect(bench.frames == [[1, 0, 0x5e, 1, 2, 3]])
        bench.run(ms: 10_001)
        #expect(isReport(try bench.expectOne()))
        // Another member is nothing new to the network.
        #expect(join(other, membership([10, 0, 0, 1])) == 0)
        #expect(join(other, membership()) == 98)
        bench.run(ms: 20_000)
        bench.expectNothing()
        #expect(leave(socket, membership()) == 0)
        #expect(leave(socket, membership()) == 99)
        bench.expectNothing()
        other.close()
        let farewell = try bench.expectOne()
        #expect(farewell.destination == [224, 0, 0, 2])
        #expect(farewell.payload == PacketBench.icmp(0x17, rest: Self.group))
        bench.run(ms: 20_000)
        bench.expectNothing()
        bench.finish()
    }

    @Test func aMemberGetsTheGroupsDatagrams() throws {
        let bench = try PacketBench()
        let member = try bench.udpSocket(port: 9)
        let datagram = PacketBench.packet(17, PacketBench.udp(5, 9, [7]), to: Self.group)
        let hardware: [UInt8] = [1, 0, 0x5e, 1, 2, 3]
        bench.send(datagram, to: hardware)
        #expect(member.receive() == nil)
        #expect(join(member, membership(index: bench.interface.raw.pointee.index)) == 0)
        bench.send(datagram, to: hardware)
        #expect(member.receive()?.bytes == [7])
        #expect(leave(member, membership()) == 0)
        bench.send(datagram, to: hardware)
        #expect(member.receive() == nil)
        bench.finish()
    }

    @Test func othersMayBeSparedTheGroup() throws {
        let bench = try PacketBench()
        let member = try bench.udpSocket()
        #expect(member.set(1, 2, 1) == 0)
        #expect(member.bind(endpoint("0.0.0.0", 9)) == 0)
        let bystander = try bench.udpSocket()
        #expect(bystander.set(1, 2, 1) == 0)
        #expect(bystander.bind(endpoint("0.0.0.0", 9)) == 0)
        #expect(join(member, membership()) == 0)
        let datagram = PacketBench.packet(17, PacketBench.udp(5, 9, [7]), to: Self.group)
        bench.send(datagram, to: [1, 0, 0x5e, 1, 2, 3])
        #expect(received(member).count == 1)
        #expect(received(bystander).count == 1, "Linux: a group is for every socket of the host")
        #expect(bystander.set(0, 49, 0) == 0)
        bench.send(datagram, to: [1, 0, 0x5e, 1, 2, 3])
        #expect(received(member).count == 1)
        #expect(received(bystander).count == 0)
        bench.finish()
    }

    @Test func queriesAreAnsweredInTimeUnlessSomebodyElseDoes() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(join(socket, membership()) == 0)
        bench.run(ms: 20_000)
        _ = bench.takeAll()
        func query(_ group: [UInt8], tenths: UInt8) {
            bench.send(
                PacketBench.packet(2, PacketBench.icmp(0x11, tenths, rest: group), to: [224, 0, 0, 1], ttl: 1),
                to: [1, 0, 0x5e, 0, 0, 1])
        }
        query([0, 0, 0, 0], tenths: 20)
        bench.run(ms: 2_001)
        #expect(isReport(try bench.expectOne()))
        query([239, 9, 9, 9], tenths: 20)
        bench.run(ms: 2_001)
        bench.expectNothing()
        query([0, 0, 0, 0], tenths: 200)
        bench.send(
            PacketBench.packet(2, PacketBench.icmp(0x16, rest: Self.group), to: Self.group), to: [1, 0, 0x5e, 1, 2, 3])
        bench.run(ms: 21_000)
        bench.expectNothing()
        // Somebody else has reported last: no word at leaving.
        #expect(leave(socket, membership()) == 0)
        bench.expectNothing()
        bench.finish()
    }

    @Test func aVersion1RouterGetsVersion1Reports() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(join(socket, membership()) == 0)
        bench.run(ms: 20_000)
        _ = bench.takeAll()
        bench.send(
            PacketBench.packet(2, PacketBench.icmp(0x11, 0, rest: [0, 0, 0, 0]), to: [224, 0, 0, 1], ttl: 1),
            to: [1, 0, 0x5e, 0, 0, 1])
        bench.run(ms: 10_001)
        #expect(isReport(try bench.expectOne(), 0x12))
        #expect(leave(socket, membership()) == 0)
        bench.expectNothing()
        bench.finish()
    }

    @Test func damagedGroupMessagesAreDropped() throws {
        let bench = try PacketBench()
        bench.send(PacketBench.packet(2, [0x11, 1, 0, 0, 0, 0, 0, 0], to: [224, 0, 0, 1]), to: [1, 0, 0x5e, 0, 0, 1])
        bench.send(PacketBench.packet(2, [0x11, 1, 0], to: [224, 0, 0, 1]), to: [1, 0, 0x5e, 0, 0, 1])
        #expect(bench.counter("ipv4", "igmp_malformed") == 2)
        bench.finish()
    }

    @Test func groupDatagramsHaveOptionsOfTheirOwn() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(socket.send([1], to: endpoint(Self.groupText, 9)) == 0)
        let packet = try bench.expectOne()
        #expect(packet.ttl == 1)
        #expect(packet.source == PacketBench.stackAddress)
        #expect(bench.frames == [[1, 0, 0x5e, 1, 2, 3]])
        #expect(socket.set(0, 33, 7) == 0)
        #expect(socket.send([1], to: endpoint(Self.groupText, 9)) == 0)
        #expect(try bench.expectOne().ttl == 7)
        #expect(socket.set(0, 33, 0) == 0)
        #expect(socket.send([1], to: endpoint(Self.groupText, 9)) == 0)
        bench.expectNothing()
        bench.finish()
    }

    @Test func membersOnThisHostHearUsUnlessWeForbidIt() throws {
        let bench = try PacketBench()
        let member = try bench.udpSocket(port: 9)
        #expect(join(member, membership()) == 0)
        let socket = try bench.udpSocket()
        #expect(socket.send([1], to: endpoint(Self.groupText, 9)) == 0)
        bench.settle()
        #expect(member.receive()?.bytes == [1])
        #expect(socket.set(0, 34, 0) == 0)
        #expect(socket.send([2], to: endpoint(Self.groupText, 9)) == 0)
        bench.settle()
        #expect(member.receive() == nil)
        bench.finish()
    }

    @Test func membershipsAreCheckedAndBounded() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(join(socket, [10, 0, 0, 9, 0, 0, 0, 0]) == 22)
        #expect(join(socket, [239, 1, 2]) == 22)
        #expect(join(socket, membership([192, 0, 2, 1])) == 19)
        #expect(join(socket, membership(index: 99)) == 19)
        #expect(leave(socket, membership()) == 99)
        for index in 0..<20 { #expect(join(socket, [239, 9, 9, UInt8(index), 0, 0, 0, 0]) == 0) }
        #expect(join(socket, [239, 9, 9, 99, 0, 0, 0, 0]) == 105)
        // MCAST_JOIN_GROUP
        let other = try bench.udpSocket()
        let request = [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0] + Self.group + [UInt8](repeating: 0, count: 120)
        #expect(other.setOption(level: 0, name: 42, request) == 0)
        #expect(other.setOption(level: 0, name: 42, request) == 98)
        #expect(other.setOption(level: 0, name: 45, request) == 0)
        bench.finish()
    }

    // MARK: Options

    @Test func optionsAreKeptAndTold() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(socket.get(0, 2) == 64)
        for (name, value) in [
            (1, 0x10), (2, 33), (6, 1), (7, 1), (8, 1), (10, 2), (11, 1), (12, 1), (13, 1), (15, 1), (24, 1),
            (33, 5), (34, 0), (49, 0),
        ] as [(Int32, Int32)] {
            #expect(socket.set(0, name, value) == 0, "\(name)")
            #expect(socket.get(0, name) == value, "\(name)")
        }
        #expect(socket.set(0, 2, -1) == 0)
        #expect(socket.get(0, 2) == 64)
        #expect(socket.set(0, 2, 0) == 22)
        #expect(socket.set(0, 2, 256) == 22)
        #expect(socket.set(0, 33, 256) == 22)
        #expect(socket.set(0, 10, 6) == 22)
        #expect(socket.set(0, 19, 1) == 1, "IP_TRANSPARENT")
        #expect(socket.set(0, 999, 1) == 92)
        #expect(socket.get(0, 999) == nil)
        #expect(socket.get(0, 14) == nil, "not connected")
        // One byte, as BSD programs pass it.
        #expect(socket.setOption(level: 0, name: 33, [9]) == 0)
        #expect(socket.getOption(level: 0, name: 33, capacity: 1).value == [9])
        #expect(socket.setOption(level: 0, name: 2, []) == 22)
        bench.finish()
    }

    @Test func theInterfaceForGroupsMayBeNamedInThreeWays() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        let index = withUnsafeBytes(of: bench.interface.raw.pointee.index) { Array($0) }
        for value in [
            [10, 0, 0, 1], [0, 0, 0, 0, 10, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0] + index,
        ] as [[UInt8]] {
            #expect(socket.setOption(level: 0, name: 32, value) == 0)
            #expect(socket.getOption(level: 0, name: 32, capacity: 4).value == [10, 0, 0, 1])
            #expect(socket.setOption(level: 0, name: 32, [0, 0, 0, 0]) == 0)
            #expect(socket.getOption(level: 0, name: 32, capacity: 4).value == [0, 0, 0, 0])
        }
        #expect(socket.setOption(level: 0, name: 32, [10, 9, 9, 9]) == 99)
        #expect(socket.setOption(level: 0, name: 32, [10]) == 22)
        bench.finish()
    }

    @Test func optionsAndMembershipsSurviveASwapOfThePlugin() throws {
        let bench = try PacketBench()
        let member = try bench.udpSocket(port: 9)
        #expect(join(member, membership()) == 0)
        #expect(member.setOption(level: 0, name: 4, [148, 4, 0, 0]) == 0)
        #expect(member.set(0, 49, 0) == 0)
        #expect(member.set(0, 12, 1) == 0)
        let raw = try bench.rawSocket(253)
        bench.run(ms: 20_000)
        bench.clear()
        _ = try bench.stack.plugins.swap("ipv4", path: PluginSearchPath().find("ipv4"))
        bench.settle()
        #expect(bench.stack.plugins.instances.count { $0.name == "ipv4" } == 1)
        let told = bench.takeAll()
        #expect(told.allSatisfy { isReport($0) }, "no leaving: \(told.map(\.bytes))")
        bench.send(PacketBench.packet(17, PacketBench.udp(5, 9, [7]), to: Self.group), to: [1, 0, 0x5e, 1, 2, 3])
        #expect(member.receive()?.bytes == [7])
        #expect(member.get(0, 49) == 0)
        #expect(member.get(0, 12) == 1)
        #expect(member.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        #expect(try bench.expectOne().options == [148, 4, 0, 0])
        bench.send(PacketBench.packet(253, [1]))
        #expect(received(raw).count == 1)
        member.close()
        raw.close()
        bench.finish()
    }
}

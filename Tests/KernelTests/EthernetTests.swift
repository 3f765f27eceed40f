import Kernel
import Lab
import PluginAPI
import Testing

@Suite struct EthernetTests {
    private static let hardwareA: [UInt8] = [2, 0, 0, 1, 0, 1]
    private static let hardwareB: [UInt8] = [2, 0, 0, 1, 0, 2]

    private func frame(to destination: [UInt8], type: UInt16 = 0x0800, _ payload: [UInt8]) -> [UInt8] {
        destination + Self.hardwareA + [UInt8(type >> 8), UInt8(type & 255)] + payload
    }

    /// Frames that leave "a", as the device gets them.
    private func record(_ wire: Wire) -> Frames {
        let frames = Frames()
        wire.ends.0.tap = { frames.all.append((bytes(of: $0), $0.pointee.pkt)) }
        return frames
    }

    private final class Frames {
        var all: [(bytes: [UInt8], header: alps_pkthdr)] = []
    }

    private func output(_ wire: Wire, _ bytes: [UInt8], to nextHop: String) -> Int32 {
        var hop = address(nextHop)
        return wire.a.interfaces.ethernet.output(
            wire.interfaceA.raw.pointee.index, wire.packet(bytes), UInt16(ALPS_AF_INET), &hop)
    }

    // MARK: Output

    @Test(arguments: [
        ("255.255.255.255", [255, 255, 255, 255, 255, 255]), ("10.0.0.255", [255, 255, 255, 255, 255, 255]),
        ("224.0.0.1", [1, 0, 0x5e, 0, 0, 1]), ("239.255.1.2", [1, 0, 0x5e, 0x7f, 1, 2]),
    ] as [(String, [UInt8])]) func groupsHaveAddressesOfTheirOwn(nextHop: String, destination: [UInt8]) throws {
        let wire = try Wire()
        let frames = record(wire)
        #expect(output(wire, [1, 2, 3], to: nextHop) == 0)
        #expect(frames.all.map(\.bytes) == [frame(to: destination, [1, 2, 3])])
        wire.finish()
    }

    @Test func withoutAResolverNobodyIsReached() throws {
        let wire = try Wire()
        let frames = record(wire)
        #expect(output(wire, [1, 2, 3], to: "10.0.0.2") == ALPS_EHOSTUNREACH)
        #expect(frames.all.isEmpty)
        wire.finish()
    }

    @Test func theResolverNamesTheDestination() throws {
        let wire = try Wire()
        let frames = record(wire)
        let ops = alps_neighbor_ops(
            size: UInt32(MemoryLayout<alps_neighbor_ops>.size), reserved: 0,
            resolve: { _, _, nextHop, list, hardware in
                guard nextHop.pointee.bytes.3 == 2 else {
                    Unmanaged<MbufPool>.fromOpaque(list.pointee.owner!).takeUnretainedValue().free(list)
                    return nextHop.pointee.bytes.3 == 3 ? ALPS_EAGAIN : ALPS_EHOSTDOWN
                }
                for (index, byte) in EthernetTests.hardwareB.enumerated() { hardware[index] = byte }
                return 0
            },
            add: { _, _ in ALPS_EOPNOTSUPP }, remove: { _, _, _ in ALPS_EOPNOTSUPP }, list: { _, _, _, _ in 0 })
        let table = UnsafeMutablePointer<alps_neighbor_ops>.allocate(capacity: 1)
        table.initialize(to: ops)
        defer { table.deallocate() }
        let cell = UnsafeMutablePointer(mutating: wire.a.plugins.providedCell("alps.neighbor/1:2")!)
        cell.pointee.ops = UnsafeRawPointer(table)
        cell.pointee.`self` = UnsafeMutableRawPointer(table)
        #expect(output(wire, [1, 2, 3], to: "10.0.0.2") == 0)
        #expect(frames.all.map(\.bytes) == [frame(to: Self.hardwareB, [1, 2, 3])])
        // Held while a request is out is success; given up is not.
        #expect(output(wire, [1, 2, 3], to: "10.0.0.3") == 0)
        #expect(output(wire, [1, 2, 3], to: "10.0.0.4") == ALPS_EHOSTDOWN)
        #expect(frames.all.count == 1)
        wire.finish()
    }

    @Test func whatIsTooLargeIsRefused() throws {
        let wire = try Wire()
        #expect(wire.send([UInt8](repeating: 0, count: 1501)) == ALPS_EMSGSIZE)
        #expect(wire.send([UInt8](repeating: 0, count: 1500)) == 0)
        #expect(wire.interfaceA.errorsOut == 1)
        wire.finish()
    }

    @Test func anInterfaceThatIsDownSendsAndReceivesNothing() throws {
        let wire = try Wire()
        wire.a.interfaces.setUp(wire.interfaceA, false)
        #expect(wire.send([1, 2, 3]) == ALPS_ENETDOWN)
        wire.a.interfaces.setUp(wire.interfaceA, true)
        wire.b.interfaces.setUp(wire.interfaceB, false)
        #expect(wire.send([1, 2, 3]) == 0)
        wire.network.run(for: .ms)
        #expect(wire.arrivals.isEmpty)
        wire.finish()
    }

    @Test func aCapableDeviceGetsTheSegmentWhole() throws {
        let wire = try Wire()
        let frames = record(wire)
        #expect(wire.send(wire.largeSegment(3000, cutInto: 1000)) == 0)
        #expect(frames.all.map(\.bytes.count) == [3054])
        #expect(frames.all[0].header.csum == UInt8(ALPS_CSUM_PARTIAL))
        #expect(frames.all[0].header.csum_start == 34)
        wire.finish()
    }

    @Test func forAnIncapableDeviceTheSegmentIsCutAndSummed() throws {
        let wire = try Wire()
        wire.interfaceA.raw.pointee.capabilities = 0
        let frames = record(wire)
        #expect(wire.send(wire.largeSegment(2500, cutInto: 1000)) == 0)
        #expect(frames.all.map(\.bytes.count) == [1054, 1054, 554])
        for frame in frames.all {
            #expect(Array(frame.bytes[0..<14]) == Self.hardwareB + Self.hardwareA + [8, 0])
            #expect(tcpChecksumHolds(Array(frame.bytes[14...])))
            #expect(frame.header.csum == UInt8(ALPS_CSUM_NONE))
        }
        #expect(wire.interfaceA.packetsOut == 3)
        wire.finish()
    }

    @Test func forAnIncapableDeviceTheChecksumIsFinished() throws {
        let wire = try Wire()
        wire.interfaceA.raw.pointee.capabilities = 0
        let frames = record(wire)
        let segment = wire.largeSegment(100, cutInto: 1000)
        segment.pointee.pkt.gso_type = UInt8(ALPS_GSO_NONE)
        #expect(wire.send(segment) == 0)
        #expect(tcpChecksumHolds(Array(frames.all[0].bytes[14...])))
        wire.finish()
    }

    // MARK: Input

    private func inject(_ wire: Wire, _ frame: [UInt8]) {
        frame.withUnsafeBytes { wire.ends.1.inject($0) }
    }

    @Test func listsGoByEthertypeAndOrderIsKept() throws {
        let wire = try Wire()
        for (type, number) in [(0x0800, 1), (0x0800, 2), (0x88b5, 3), (0x0800, 4)] as [(UInt16, UInt8)] {
            inject(wire, frame(to: Self.hardwareB, type: type, [number]))
        }
        wire.network.run(for: .ms)
        #expect(wire.arrivals.map(\.bytes) == [[1], [2], [4]])
        #expect(wire.arrivals.map(\.list) == [1, 1, 2])
        #expect(wire.interfaceB.packetsIn == 4)
        #expect(wire.interfaceB.drops == 1)
        wire.finish()
    }

    @Test func thePacketKnowsWhereItCameFrom() throws {
        let wire = try Wire()
        inject(wire, frame(to: Self.hardwareB, [9]))
        inject(wire, frame(to: [255, 255, 255, 255, 255, 255], [9]))
        inject(wire, frame(to: [1, 0, 0x5e, 0, 0, 1], [9]))
        wire.network.run(for: .ms)
        #expect(wire.arrivals.map(\.header.flags) == [0, UInt16(ALPS_PKT_BROADCAST), UInt16(ALPS_PKT_MULTICAST)])
        for arrival in wire.arrivals {
            #expect(arrival.header.ifindex == wire.interfaceB.raw.pointee.index)
            #expect(arrival.header.l2_length == 14)
            #expect(arrival.header.ethertype == 0x0800)
            #expect(arrival.header.timestamp == arrival.time)
            #expect(arrival.header.length == 1)
        }
        wire.finish()
    }

    @Test func strangeFramesAreDroppedAndCounted() throws {
        let wire = try Wire()
        for length in 0..<14 { inject(wire, [UInt8](repeating: 0xff, count: length)) }
        #expect(wire.interfaceB.errorsIn == 0)
        wire.network.run(for: .ms)
        #expect(wire.interfaceB.errorsIn == 14)
        inject(wire, frame(to: Self.hardwareB, type: 60, [UInt8](repeating: 0, count: 60)))  // IEEE 802.3 length
        inject(wire, frame(to: [2, 9, 9, 9, 9, 9], [1]))
        wire.network.run(for: .ms)
        #expect(wire.interfaceB.drops == 2)
        #expect(wire.arrivals.isEmpty)
        wire.finish()
    }

    // MARK: lo0

    @Test func whatIsSentToLoopbackComesInTheNextTurn() throws {
        let wire = try Wire()
        wire.listen(wire.a, 0x0800)
        let loopback = wire.a.interfaces.find("lo0")!.raw.pointee.index
        var hop = address("127.0.0.1")
        let whole = wire.packet([0x45, 1, 2, 3])
        whole.pointee.nextpkt = wire.largeSegment(2000, cutInto: 1000)
        #expect(wire.a.interfaces.ethernet.output(loopback, whole, UInt16(ALPS_AF_INET), &hop) == 0)
        #expect(wire.arrivals.isEmpty)
        #expect(wire.a.hasPendingWork)
        wire.a.endTurn()
        #expect(wire.arrivals.map(\.bytes.count) == [4, 2040])
        #expect(wire.arrivals.map(\.header.csum) == [UInt8(ALPS_CSUM_VALID), UInt8(ALPS_CSUM_PARTIAL)])
        #expect(wire.arrivals.map(\.header.flags) == [UInt16(ALPS_PKT_LOOPBACK), UInt16(ALPS_PKT_LOOPBACK)])
        #expect(wire.arrivals[1].header.gso_size == 1000)
        wire.finish()
    }
}

import Kernel
import Lab
import PluginAPI
import Testing

/// Cutting datagrams up and putting them together (RFC 791, section 3.2; RFC 815; RFC 5722).
@Suite struct IPv4FragmentTests {
    private static let experiment: UInt8 = 253

    private struct Piece {
        var offset: Int
        var bytes: [UInt8]
        var more: Bool
    }

    /// `count` bytes in pieces of `size`.
    private func pieces(_ count: Int, _ size: Int) -> [Piece] {
        stride(from: 0, to: count, by: size).map { offset in
            let end = min(offset + size, count)
            return Piece(offset: offset, bytes: pattern(offset..<end), more: end < count)
        }
    }

    private func send(
        _ bench: PacketBench, _ piece: Piece, identification: UInt16 = 7,
        from source: [UInt8] = PacketBench.peerAddress,
        protocol protocolNumber: UInt8 = experiment, tos: UInt8 = 0
    ) {
        bench.send(
            PacketBench.packet(
                protocolNumber, piece.bytes, from: source, identification: identification,
                fragment: UInt16(piece.offset / 8) | (piece.more ? 0x2000 : 0), tos: tos))
    }

    private func received(_ socket: Socket) -> [[UInt8]] {
        var all: [[UInt8]] = []
        while let (bytes, _) = socket.receive() { all.append(Array(bytes.dropFirst(Int(bytes[0] & 15) * 4))) }
        return all
    }

    // MARK: Output

    @Test func aLargeDatagramIsCutIntoFragments() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(socket.send(pattern(0..<4000), to: endpoint("10.0.0.2", 9)) == 0)
        let all = bench.takeAll()
        #expect(all.map(\.bytes.count) == [1500, 1500, 1068])
        #expect(all.map(\.fragmentOffset) == [0, 1480, 2960])
        #expect(all.map(\.hasMore) == [true, true, false])
        #expect(Set(all.map(\.identification)).count == 1)
        #expect(all.allSatisfy { !$0.dontFragment })
        let whole = all.flatMap(\.payload)
        #expect(Array(whole.dropFirst(8)) == pattern(0..<4000))
        #expect(
            checksum(PacketBench.stackAddress + PacketBench.peerAddress + [0, 17] + big(UInt16(4008)) + whole) == 0)
        bench.finish()
    }

    @Test func anOddMTUIsUsedInUnitsOfEight() throws {
        let bench = try PacketBench(mtu: 99)
        let socket = try bench.udpSocket()
        #expect(socket.send(pattern(0..<200), to: endpoint("10.0.0.2", 9)) == 0)
        let all = bench.takeAll()
        #expect(all.map(\.payload.count) == [72, 72, 64])
        bench.finish()
    }

    @Test func onlyCopiedOptionsAreInLaterFragments() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(socket.setOption(level: 0, name: 4, [7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0]) == 0)
        #expect(socket.send(pattern(0..<2000), to: endpoint("10.0.0.2", 9)) == 0)
        let all = bench.takeAll()
        #expect(
            all.map(\.options) == [[7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 148, 4, 0, 0]])
        #expect(Array(all.flatMap(\.payload).dropFirst(8)) == pattern(0..<2000))
        bench.finish()
    }

    @Test func whatMayNotBeCutIsRefused() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(socket.set(0, 10, 2) == 0)
        #expect(socket.send(pattern(0..<1473), to: endpoint("10.0.0.2", 9)) == 90)
        #expect(socket.send(pattern(0..<1472), to: endpoint("10.0.0.2", 9)) == 0)
        #expect(try bench.expectOne().dontFragment)
        #expect(socket.set(0, 10, 0) == 0)
        #expect(socket.send(pattern(0..<1473), to: endpoint("10.0.0.2", 9)) == 0)
        #expect(bench.takeAll().count == 2)
        bench.finish()
    }

    @Test func theLargestDatagramGoesAndNoLarger() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket()
        #expect(socket.send(pattern(0..<65507), to: endpoint("10.0.0.2", 9)) == 0)
        #expect(bench.takeAll().reduce(0) { $0 + $1.payload.count } == 65515)
        #expect(socket.send(pattern(0..<65508), to: endpoint("10.0.0.2", 9)) == 90)
        let raw = try bench.rawSocket(253)
        #expect(raw.send(pattern(0..<65516), to: endpoint("10.0.0.2", 0)) == 90)
        bench.expectNothing()
        bench.finish()
    }

    // MARK: Input

    @Test(arguments: 0..<5) func fragmentsInAnyOrderMakeTheDatagram(order: Int) throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        var all = pieces(5000, 1480)
        switch order {
        case 1: all.reverse()
        case 2: all.swapAt(0, 3)
        case 3: all.swapAt(1, 2)
        case 4: all = all + all.dropLast()
        default: break
        }
        for piece in all { send(bench, piece) }
        #expect(received(socket) == [pattern(0..<5000)])
        bench.run(ms: 70_000)
        bench.finish()
    }

    @Test func duplicatesDoNoHarm() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        let all = pieces(4000, 1000)
        for index in [0, 0, 2, 2, 1, 1, 0] { send(bench, all[index]) }
        send(bench, all[3])
        #expect(received(socket) == [pattern(0..<4000)])
        bench.finish()
    }

    @Test func datagramsMixedWithEachOtherAreKeptApart() throws {
        let bench = try PacketBench()
        try bench.addDefaultRoute()
        let socket = try bench.rawSocket(253)
        let other = try bench.rawSocket(252)
        for piece in pieces(3000, 1000) {
            send(bench, piece)
            send(
                bench, Piece(offset: piece.offset, bytes: piece.bytes.map { ~$0 }, more: piece.more), identification: 8)
            send(
                bench, Piece(offset: piece.offset, bytes: piece.bytes.reversed(), more: piece.more),
                from: [10, 0, 0, 3])
            send(bench, piece, protocol: 252)
        }
        #expect(received(socket).map(\.count) == [3000, 3000, 3000])
        #expect(received(other) == [pattern(0..<3000)])
        bench.finish()
    }

    @Test func aGapKeepsTheDatagramBackUntilTheTimeIsUp() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        let all = pieces(3000, 1000)
        send(bench, all[0])
        send(bench, all[2])
        bench.run(ms: 59_000)
        #expect(received(socket) == [])
        bench.expectNothing()
        #expect(bench.counter("ipv4", "datagrams_held") == 1)
        bench.run(ms: 1_001)
        let error = try bench.expectOne()
        #expect(Array(error.payload.prefix(8).prefix(2)) == [11, 1])
        #expect(Array(error.payload[28..<36]) == pattern(0..<8))
        #expect(bench.counter("ipv4", "datagrams_held") == 0)
        // The rest makes nothing of it.
        send(bench, all[1])
        #expect(received(socket) == [])
        bench.run(ms: 61_000)
        bench.expectNothing()
        bench.finish()
    }

    @Test func withoutTheFirstFragmentNobodyIsTold() throws {
        let bench = try PacketBench()
        send(bench, pieces(3000, 1000)[1])
        bench.run(ms: 61_000)
        #expect(bench.counter("ipv4", "reassembly_timeouts") == 1)
        bench.expectNothing()
        bench.finish()
    }

    @Test(
        arguments: [
            // A second first fragment with other bytes behind it; one inside another; one that overlaps the end.
            (0, 1008), (8, 16), (992, 1000), (504, 1000), (1992, 500),
        ] as [(Int, Int)]) func overlappingFragmentsVoidTheDatagram(offset: Int, length: Int) throws
    {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        let all = pieces(3000, 1000)
        send(bench, all[0])
        send(bench, Piece(offset: offset, bytes: [UInt8](repeating: 0xee, count: length & ~7), more: true))
        if offset > 1000 { send(bench, all[1]) }
        #expect(bench.counter("ipv4", "overlaps") == 1)
        #expect(bench.counter("ipv4", "datagrams_held") == 0)
        #expect(received(socket) == [])
        bench.run(ms: 61_000)
        bench.finish()
    }

    @Test func contradictingEndsVoidTheDatagram() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        send(bench, Piece(offset: 1000, bytes: pattern(0..<100), more: false))
        send(bench, Piece(offset: 1200, bytes: pattern(0..<100), more: false))
        #expect(bench.counter("ipv4", "overlaps") == 1)
        send(bench, Piece(offset: 1000, bytes: pattern(0..<100), more: false))
        send(bench, Piece(offset: 1200, bytes: pattern(0..<104), more: true))
        #expect(bench.counter("ipv4", "overlaps") == 2)
        send(bench, Piece(offset: 1200, bytes: pattern(0..<104), more: true))
        send(bench, Piece(offset: 1000, bytes: pattern(0..<100), more: false))
        #expect(bench.counter("ipv4", "overlaps") == 3)
        #expect(received(socket) == [])
        bench.finish()
    }

    @Test func nonsenseIsDroppedAtOnce() throws {
        let bench = try PacketBench()
        // Not a multiple of eight; empty; beyond 65535; no room for ports; inside a TCP header (RFC 1858, RFC 3128).
        send(bench, Piece(offset: 0, bytes: pattern(0..<13), more: true))
        send(bench, Piece(offset: 8, bytes: [], more: false))
        send(bench, Piece(offset: 65528, bytes: pattern(0..<8), more: false))
        send(bench, Piece(offset: 0, bytes: [], more: true))
        send(bench, Piece(offset: 8, bytes: pattern(0..<16), more: true), protocol: 6)
        #expect(bench.counter("ipv4", "fragments_dropped") == 5)
        #expect(bench.counter("ipv4", "datagrams_held") == 0)
        bench.expectNothing()
        bench.finish()
    }

    @Test func aTCPHeaderMayNotBeSpreadOverFragments() throws {
        let bench = try PacketBench()
        send(bench, Piece(offset: 0, bytes: pattern(0..<8), more: true), protocol: 6)
        send(bench, Piece(offset: 8, bytes: pattern(8..<40), more: false), protocol: 6)
        #expect(bench.counter("ipv4", "reassembled") == 0)
        bench.finish()
    }

    @Test func congestionMarksSurviveAndMixturesDoNot() throws {
        let bench = try PacketBench()
        let socket = try bench.rawSocket(253)
        func tosOfWhole(_ fields: [UInt8]) -> UInt8? {
            for (piece, tos) in zip(pieces(3000, 1000), fields) { send(bench, piece, tos: tos) }
            return socket.receive().map { $0.bytes[1] }
        }
        #expect(tosOfWhole([2, 3, 2]) == 3)
        #expect(tosOfWhole([0x22, 0x22, 0x22]) == 0x22)
        #expect(tosOfWhole([1, 1, 3]) == 3)
        #expect(tosOfWhole([3, 2, 2]) == 3)
        #expect(tosOfWhole([0, 3, 0]) == nil)
        #expect(tosOfWhole([0, 2, 0]) == nil)
        bench.finish()
    }

    @Test func oneSenderMayNotFillTheTable() throws {
        let bench = try PacketBench(["inet.ip.maxfragpacketspersource": "10"])
        let socket = try bench.rawSocket(253)
        for number in 0..<100 { send(bench, pieces(2000, 1000)[0], identification: UInt16(number)) }
        #expect(bench.counter("ipv4", "datagrams_held") == 10)
        for piece in pieces(2000, 1000) { send(bench, piece, from: [10, 0, 0, 3]) }
        #expect(received(socket).count == 1)
        bench.finish()
    }

    @Test func memoryIsBounded() throws {
        let bench = try PacketBench(["inet.ip.maxfragpackets": "16", "inet.ip.maxfragbytes": "65536"])
        for number in 0..<64 {
            for index in 0..<4 {
                send(
                    bench, pieces(8000, 1000)[index], identification: UInt16(number),
                    from: [10, 0, 0, UInt8(3 + number)])
            }
            #expect(bench.counter("ipv4", "datagrams_held") <= 16)
            #expect(bench.stack.mbufs.statistics.clusters.inUse <= 64)
        }
        // Endless fragments of one datagram.
        try bench.stack.tunables.set("net.inet.ip.maxfragsperpacket", "20")
        for piece in pieces(8000, 8) { send(bench, piece, identification: 999) }
        #expect(bench.counter("ipv4", "reassembled") == 0)
        bench.run(ms: 61_000)
        #expect(bench.counter("ipv4", "datagrams_held") == 0)
        bench.finish()
    }

    @Test func aDatagramOfManySmallFragmentsArrives() throws {
        let bench = try PacketBench(mtu: 68)
        let socket = try bench.rawSocket(253)
        let all = pieces(30_000, 48)
        for piece in all { send(bench, piece) }
        #expect(received(socket) == [pattern(0..<30_000)])
        for piece in all.reversed() { send(bench, piece) }
        #expect(received(socket) == [pattern(0..<30_000)])
        bench.finish()
    }
}

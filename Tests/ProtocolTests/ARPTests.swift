import Kernel
import Lab
import PluginAPI
import Testing

/// Address resolution (RFC 826) and conflict detection (RFC 5227).
@Suite struct ARPTests {
    private static let ms: UInt64 = 1_000_000
    private static let stranger: [UInt8] = [2, 0, 0, 9, 9, 9]

    // MARK: Answers

    @Test func aRequestForOurAddressIsAnsweredToWhoAsked() throws {
        let bench = try PacketBench()
        bench.sendARP(1, senderHardware: Self.stranger, sender: [10, 0, 0, 9])
        let replies = bench.takeARP()
        #expect(replies.count == 1)
        let reply = try #require(replies.first)
        #expect(reply.operation == 2)
        #expect(reply.to == Self.stranger)
        #expect(reply.senderHardware == PacketBench.stackHardware)
        #expect(reply.sender == [10, 0, 0, 1])
        #expect(reply.targetHardware == Self.stranger)
        #expect(reply.target == [10, 0, 0, 9])
        // Who asks is going to talk: he need not be asked in return.
        bench.send(PacketBench.packet(1, PacketBench.icmp(8), from: [10, 0, 0, 9]))
        #expect(try bench.expectOneFrame(to: Self.stranger))
        #expect(bench.takeARP() == [])
        bench.finish()
    }

    @Test func requestsForOthersAreIgnored() throws {
        let bench = try PacketBench()
        bench.sendARP(1, target: [10, 0, 0, 77])
        #expect(bench.takeARP() == [])
        #expect(bench.counter("arp", "entries") == 0)
        bench.finish()
    }

    @Test func malformedPacketsAreIgnored() throws {
        let bench = try PacketBench()
        let good: [UInt8] =
            [0, 1, 8, 0, 6, 4, 0, 1] + PacketBench.peerHardware + [10, 0, 0, 2] + [0, 0, 0, 0, 0, 0] + [10, 0, 0, 1]
        for (place, value) in [(1, 2), (2, 9), (4, 5), (4, 8), (5, 6), (7, 9), (7, 0)] as [(Int, UInt8)] {
            var packet = good
            packet[place] = value
            bench.send(packet, to: PacketBench.everybody, ethertype: 0x0806)
        }
        for length in [0, 1, 8, 27] {
            bench.send(Array(good.prefix(length)), to: PacketBench.everybody, ethertype: 0x0806)
        }
        #expect(bench.takeARP() == [])
        #expect(bench.counter("arp", "malformed") == 11)
        // A group address is nobody's.
        bench.sendARP(1, senderHardware: [3, 0, 0, 0, 0, 1], sender: [10, 0, 0, 9])
        bench.sendARP(1, senderHardware: [0, 0, 0, 0, 0, 0], sender: [10, 0, 0, 9])
        #expect(bench.takeARP() == [])
        // Padding is no harm.
        bench.send(good + [UInt8](repeating: 0, count: 18), to: PacketBench.everybody, ethertype: 0x0806)
        #expect(bench.takeARP().count == 1)
        bench.finish()
    }

    @Test func aKnownNeighbourThatMovesIsFollowed() throws {
        let bench = try PacketBench()
        bench.sendARP(1)
        _ = bench.takeARP()
        // A gratuitous announcement with another link address, not addressed to us.
        bench.sendARP(1, senderHardware: Self.stranger, target: [10, 0, 0, 2])
        bench.send(PacketBench.packet(1, PacketBench.icmp(8)))
        #expect(try bench.expectOneFrame(to: Self.stranger))
        bench.finish()
    }

    @Test func anUnknownHostsAnnouncementMakesNoEntry() throws {
        let bench = try PacketBench()
        bench.sendARP(1, senderHardware: Self.stranger, sender: [10, 0, 0, 9], target: [10, 0, 0, 9])
        bench.sendARP(2, senderHardware: Self.stranger, sender: [10, 0, 0, 9], target: [10, 0, 0, 9])
        #expect(bench.counter("arp", "entries") == 0)
        bench.finish()
    }

    // MARK: Resolution

    @Test func packetsWaitForTheAnswer() throws {
        let bench = try quietBench()
        let socket = try bench.udpSocket()
        for index in UInt8(0)..<3 { #expect(socket.send([index], to: endpoint("10.0.0.2", 9)) == 0) }
        let asked = bench.takeARP()
        #expect(asked.map(\.to) == [PacketBench.everybody], "one question for all of them")
        #expect(asked.first?.target == [10, 0, 0, 2])
        #expect(asked.first?.sender == [10, 0, 0, 1])
        bench.expectNothing()
        bench.sendARP(2, to: PacketBench.stackHardware)
        #expect(bench.takeAll().map { $0.payload.last } == [0, 1, 2])
        #expect(socket.send([3], to: endpoint("10.0.0.2", 9)) == 0)
        #expect(bench.takeAll().count == 1)
        bench.finish()
    }

    @Test func ofManyWaitingPacketsTheOldestGo() throws {
        let bench = try quietBench(["link.ether.inet.maxhold": "4"])
        let socket = try bench.udpSocket()
        for index in UInt8(0)..<10 { #expect(socket.send([index], to: endpoint("10.0.0.2", 9)) == 0) }
        bench.settle()
        bench.sendARP(2, to: PacketBench.stackHardware)
        #expect(bench.takeAll().map { $0.payload.last } == [6, 7, 8, 9])
        #expect(bench.counter("arp", "dropped_held") == 6)
        bench.finish()
    }

    @Test func aHostThatIsDownIsAskedAFewTimesAndThenLeftAlone() throws {
        let bench = try quietBench()
        let socket = try bench.udpSocket()
        let start = bench.now
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        bench.run(ms: 30_000)
        #expect(bench.takeARP().map { ($0.time - start) / Self.ms } == [0, 1000, 2000, 3000, 4000])
        #expect(bench.counter("arp", "timeouts") == 1)
        // While it is down, nobody waits and nobody asks.
        bench.run(ms: 10_000)
        let second = bench.now
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        bench.run(ms: 8_000)
        #expect(bench.takeARP().map { ($0.time - second) / Self.ms } == [0, 1000, 2000, 3000, 4000])
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 112)
        #expect(bench.takeARP() == [])
        bench.run(ms: 20_000)
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        #expect(bench.takeARP().count == 1)
        bench.finish()
    }

    @Test func whoWaitedInVainIsTold() throws {
        let bench = try quietBench()
        let socket = try bench.udpSocket()
        #expect(socket.connect(endpoint("10.0.0.2", 9)) == 0)
        #expect(socket.send([1]) == 0)
        bench.run(ms: 10_000)
        #expect(socket.takeError() == 113)
        // So are those who come while it is known to be down.
        #expect(socket.send([1]) == 112)
        bench.settle()
        #expect(socket.takeError() == 113)
        #expect(bench.stack.mbufs.statistics.mbufs.inUse == 0)
        bench.finish()
    }

    @Test func anEntryInUseIsVerifiedByUnicastBeforeItGoes() throws {
        let bench = try quietBench(["link.ether.inet.max_age": "60s", "link.ether.inet.maxtries": "3"])
        let socket = try bench.udpSocket()
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        bench.settle()
        bench.sendARP(2, to: PacketBench.stackHardware)
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        _ = bench.takeARP()
        let start = bench.now
        bench.run(ms: 60_000)
        let question = try #require(bench.takeARP().first)
        #expect(question.to == PacketBench.peerHardware)
        #expect((question.time - start) / Self.ms == 60_000)
        bench.sendARP(2, to: PacketBench.stackHardware)
        // Not used since: it goes without a word.
        bench.run(ms: 70_000)
        #expect(bench.takeARP() == [])
        #expect(bench.counter("arp", "entries") == 0)
        // In use, but the neighbour has gone.
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        bench.settle()
        bench.sendARP(2, to: PacketBench.stackHardware)
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        _ = bench.takeARP()
        bench.run(ms: 70_000)
        #expect(
            bench.takeARP().map(\.to) == [PacketBench.peerHardware, PacketBench.peerHardware, PacketBench.peerHardware])
        #expect(bench.counter("arp", "entries") == 0)
        bench.finish()
    }

    @Test func theTableIsBounded() throws {
        let bench = try quietBench(["link.ether.inet.maxentries": "16"])
        let socket = try bench.udpSocket()
        for host in 10..<100 { _ = socket.send([1], to: endpoint("10.0.0.\(host)", 9)) }
        #expect(bench.counter("arp", "entries") <= 16)
        #expect(bench.counter("arp", "table_full") > 0, "all of them are waited for")
        bench.run(ms: 60_000)
        #expect(bench.counter("arp", "entries") == 0)
        bench.finish()
    }

    @Test func staticEntriesStayAndPublishedOnesAreAnsweredFor() throws {
        let bench = try quietBench()
        let ops = try #require(bench.neighbors)
        var entry = alps_neighbor()
        entry.size = UInt32(MemoryLayout<alps_neighbor>.size)
        entry.ifindex = bench.interface.raw.pointee.index
        entry.flags = UInt32(ALPS_NEIGHBOR_STATIC | ALPS_NEIGHBOR_PUBLISHED)
        entry.family = 2
        entry.hardware_length = 6
        entry.addr = NetworkAddress("10.0.0.50")!.address
        withUnsafeMutableBytes(of: &entry.hardware) { $0.copyBytes(from: Self.stranger) }
        #expect(ops.table.pointee.add(ops.instance, &entry) == 0)
        bench.run(ms: 4_000_000)
        let socket = try bench.udpSocket()
        #expect(socket.send([1], to: endpoint("10.0.0.50", 9)) == 0)
        #expect(bench.takeARP() == [])
        // Others may say what they like.
        bench.sendARP(2, sender: [10, 0, 0, 50], to: PacketBench.stackHardware)
        var list = [alps_neighbor](repeating: alps_neighbor(), count: 4)
        #expect(ops.table.pointee.list(ops.instance, 0, &list, 4) == 1)
        #expect(withUnsafeBytes(of: list[0].hardware) { Array($0.prefix(6)) } == Self.stranger)
        bench.sendARP(1, target: [10, 0, 0, 50])
        #expect(bench.takeARP().map(\.sender) == [[10, 0, 0, 50]])
        #expect(ops.table.pointee.remove(ops.instance, entry.ifindex, &entry.addr) == 0)
        #expect(ops.table.pointee.remove(ops.instance, entry.ifindex, &entry.addr) == 2)
        bench.finish()
    }

    // MARK: Conflict detection

    @Test func aNewAddressIsProbedAndAnnounced() throws {
        let bench = try PacketBench(answersARP: false)
        #expect(bench.interface.addresses[0].flags == UInt32(ALPS_IFA_TENTATIVE))
        bench.run(ms: 20_000)
        let all = bench.takeARP()
        #expect(all.map(\.operation) == [1, 1, 1, 1, 1])
        #expect(all.map(\.sender) == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [10, 0, 0, 1], [10, 0, 0, 1]])
        #expect(all.allSatisfy { $0.target == [10, 0, 0, 1] && $0.to == PacketBench.everybody })
        for (earlier, later) in zip(all.prefix(3), all.prefix(3).dropFirst()) {
            #expect((1000...2000).contains((later.time - earlier.time) / Self.ms))
        }
        #expect(all[3].time - all[2].time == 2000 * Self.ms)
        #expect(all[4].time - all[3].time == 2000 * Self.ms)
        #expect(bench.interface.addresses[0].flags == 0)
        bench.finish()
    }

    @Test(arguments: [false, true]) func anAddressThatIsTakenIsNotUsed(byProbe: Bool) throws {
        let bench = try PacketBench(answersARP: false)
        bench.run(ms: 1500)
        if byProbe {
            bench.sendARP(1, senderHardware: Self.stranger, sender: [0, 0, 0, 0], target: [10, 0, 0, 1])
        } else {
            bench.sendARP(2, senderHardware: Self.stranger, sender: [10, 0, 0, 1], target: [0, 0, 0, 0])
        }
        #expect(bench.interface.addresses[0].flags == UInt32(ALPS_IFA_DUPLICATE))
        bench.clear()
        bench.sendARP(1)
        bench.send(PacketBench.packet(1, PacketBench.icmp(8)))
        #expect(bench.takeARP() == [], "neither answered for nor used")
        let socket = try bench.udpSocket()
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 99)
        // It is tried again later, and there it is.
        bench.run(ms: 30_000)
        #expect(bench.interface.addresses[0].flags == 0)
        #expect(bench.takeARP().count == 5)
        bench.finish()
    }

    @Test func withoutOptimismAnAddressIsUsedOnlyAfterProbing() throws {
        let bench = try PacketBench(answersARP: false, ["link.ether.inet.optimistic": "0"])
        bench.sendARP(1)
        #expect(bench.takeARP() == [])
        let socket = try bench.udpSocket()
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 99)
        bench.run(ms: 10_000)
        _ = bench.takeARP()
        #expect(socket.send([1], to: endpoint("10.0.0.2", 9)) == 0)
        bench.finish()
    }

    @Test func anAddressInUseIsDefendedOnceAndThenGivenUp() throws {
        let bench = try PacketBench()
        bench.sendARP(1, senderHardware: Self.stranger, sender: [10, 0, 0, 1], target: [10, 0, 0, 9])
        let defense = bench.takeARP()
        #expect(defense.map(\.sender) == [[10, 0, 0, 1]])
        #expect(defense.map(\.target) == [[10, 0, 0, 1]])
        bench.run(ms: 11_000)
        bench.sendARP(1, senderHardware: Self.stranger, sender: [10, 0, 0, 1], target: [10, 0, 0, 9])
        #expect(bench.takeARP().count == 1, "long after the first one")
        bench.run(ms: 5_000)
        bench.sendARP(1, senderHardware: Self.stranger, sender: [10, 0, 0, 1], target: [10, 0, 0, 9])
        #expect(bench.takeARP() == [])
        #expect(bench.interface.addresses[0].flags == UInt32(ALPS_IFA_DUPLICATE))
        bench.finish()
    }

    @Test func anAddressMayBeDefendedForEverButNotTooOften() throws {
        let bench = try PacketBench(["link.ether.inet.always_defend": "1"])
        var defenses = 0
        for _ in 0..<60 {
            bench.sendARP(1, senderHardware: Self.stranger, sender: [10, 0, 0, 1], target: [10, 0, 0, 9])
            bench.run(ms: 1000)
            defenses += bench.takeARP().count
        }
        #expect(defenses == 6)
        #expect(bench.interface.addresses[0].flags == 0)
        bench.finish()
    }

    @Test func ourOwnPacketsComingBackAreNoConflict() throws {
        let bench = try PacketBench()
        bench.sendARP(1, senderHardware: PacketBench.stackHardware, sender: [10, 0, 0, 1], target: [10, 0, 0, 9])
        #expect(bench.takeARP() == [])
        #expect(bench.counter("arp", "conflicts") == 0)
        bench.finish()
    }

    @Test func aLinkThatComesUpAgainIsProbedAgain() throws {
        let bench = try PacketBench()
        bench.sendARP(1)
        #expect(bench.counter("arp", "entries") == 1)
        _ = bench.takeARP()
        bench.stack.interfaces.setUp(bench.interface, false)
        #expect(bench.counter("arp", "entries") == 0)
        bench.run(ms: 10_000)
        bench.stack.interfaces.setUp(bench.interface, true)
        bench.run(ms: 10_000)
        #expect(bench.takeARP().count == 5)
        bench.finish()
    }

    // MARK: Set-up

    /// The peer answers nothing by itself; the stack has done its probing.
    private func quietBench(_ tunables: [String: String] = [:]) throws -> PacketBench {
        let bench = try PacketBench(answersARP: false, tunables)
        bench.run(ms: 10_000)
        bench.clear()
        return bench
    }
}

extension PacketBench {
    /// ARP's own interface.
    var neighbors: (table: UnsafePointer<alps_neighbor_ops>, instance: UnsafeMutableRawPointer)? {
        guard let cell = stack.plugins.providedCell("alps.neighbor/1:2"), let ops = cell.pointee.ops,
            let instance = cell.pointee.`self`
        else { return nil }
        return (ops.assumingMemoryBound(to: alps_neighbor_ops.self), instance)
    }

    /// The stack has just sent one IPv4 frame to this link address, and nothing else.
    func expectOneFrame(to hardware: [UInt8]) throws -> Bool {
        settle()
        defer { frames.removeAll() }
        return frames == [hardware]
    }
}

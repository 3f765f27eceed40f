import Kernel
import Lab
import PluginAPI
import Testing

@Suite struct LinkTests {
    private func numbered(_ number: Int, length: Int = 100) -> [UInt8] {
        [UInt8(number >> 8), UInt8(number & 255)] + [UInt8](repeating: 0x55, count: length - 2)
    }

    private func numbers(_ wire: Wire) -> [Int] { wire.arrivals.map { Int($0.bytes[0]) << 8 | Int($0.bytes[1]) } }

    @Test func aPacketArrivesAfterTheDelayToTheNanosecond() throws {
        let wire = try Wire("delay 5ms")
        let start = wire.network.clock.now
        wire.send(numbered(1))
        wire.network.run(for: 4_999_999)
        #expect(wire.arrivals.isEmpty)
        wire.network.run(for: 1)
        #expect(wire.arrivals.map(\.time) == [start + 5 * .ms])
        #expect(wire.arrivals[0].bytes == numbered(1))
        wire.finish()
    }

    @Test func theRateSpacesPacketsByTheirLength() throws {
        let wire = try Wire("rate 10mbit delay 1ms")
        let start = wire.network.clock.now
        for number in 1...3 { wire.send(numbered(number, length: 1236)) }
        wire.network.run(for: 100 * .ms)
        // 1250 bytes with the link header: one millisecond each.
        #expect(wire.arrivals.map(\.time) == [2, 3, 4].map { start + $0 * .ms })
        wire.finish()
    }

    @Test func namedPacketsAreLost() throws {
        let wire = try Wire("drop 2,4")
        for number in 1...5 { wire.send(numbered(number)) }
        wire.network.run(for: .ms)
        #expect(numbers(wire) == [1, 3, 5])
        #expect(wire.ends.0.lost == 2)
        #expect(wire.ends.0.seen == 5)
        wire.finish()
    }

    @Test func lossIsAboutAsFrequentAsAskedAndTheSameForTheSameSeed() throws {
        func lossesOf(seed: UInt64) throws -> [Int] {
            let wire = try Wire("loss 10% limit 10000", seed: seed)
            for number in 0..<2000 { wire.send(numbered(number)) }
            wire.network.run(for: .ms)
            let kept = numbers(wire)
            wire.finish()
            return kept
        }
        let first = try lossesOf(seed: 3)
        #expect((1740...1860).contains(first.count))
        #expect(try lossesOf(seed: 3) == first)
        #expect(try lossesOf(seed: 4) != first)
    }

    @Test func jitterKeepsTheOrder() throws {
        let wire = try Wire("delay 5ms jitter 5ms")
        let start = wire.network.clock.now
        for number in 0..<100 {
            wire.send(numbered(number))
            wire.network.run(for: 100 * .us)
        }
        wire.network.run(for: 100 * .ms)
        #expect(numbers(wire) == Array(0..<100))
        #expect(wire.arrivals[0].time >= start + 5 * .ms)
        #expect(Set(wire.arrivals.map(\.time)).count > 2)
        wire.finish()
    }

    @Test(arguments: ["delay 5ms reorder 20%", "reorder 20%"]) func reorderingLosesNothing(spec: String) throws {
        let wire = try Wire(spec)
        for number in 0..<100 {
            wire.send(numbered(number))
            wire.network.run(for: 100 * .us)
        }
        wire.network.run(for: 100 * .ms)
        #expect(numbers(wire) != Array(0..<100))
        #expect(numbers(wire).sorted() == Array(0..<100))
        wire.finish()
    }

    @Test func duplicatesComeTwice() throws {
        let wire = try Wire("duplicate 100%")
        wire.send(numbered(7))
        wire.network.run(for: .ms)
        #expect(wire.arrivals.map(\.bytes) == [numbered(7), numbered(7)])
        wire.finish()
    }

    @Test func corruptionTurnsOneBitBehindTheLinkHeader() throws {
        let wire = try Wire("corrupt 100%")
        for number in 0..<20 { wire.send(numbered(number)) }
        wire.network.run(for: .ms)
        #expect(wire.arrivals.count == 20)
        for (number, arrival) in wire.arrivals.enumerated() {
            let changed = zip(arrival.bytes, numbered(number)).reduce(0) { $0 + ($1.0 ^ $1.1).nonzeroBitCount }
            #expect(changed == 1)
        }
        wire.finish()
    }

    @Test func aDuplicateOfADamagedPacketIsDamagedByItself() throws {
        let wire = try Wire("corrupt 50% duplicate 100%")
        for number in 0..<50 { wire.send(numbered(number)) }
        wire.network.run(for: .ms)
        #expect(wire.arrivals.count == 100)
        let intact = wire.arrivals.filter { arrival in (0..<50).contains { numbered($0) == arrival.bytes } }
        #expect((30...70).contains(intact.count))
        wire.finish()
    }

    @Test func aFullQueueDropsTheNewest() throws {
        let wire = try Wire("delay 5ms limit 3")
        for number in 1...5 { wire.send(numbered(number)) }
        wire.network.run(for: 100 * .ms)
        #expect(numbers(wire) == [1, 2, 3])
        wire.send(numbered(6))
        wire.network.run(for: 100 * .ms)
        #expect(numbers(wire) == [1, 2, 3, 6])
        wire.finish()
    }

    @Test func aNarrowLinkSwallowsWhatIsTooLarge() throws {
        let wire = try Wire("mtu 600")
        #expect(wire.interfaceA.raw.pointee.mtu == 600)
        #expect(wire.a.interfaces.setMTU(wire.interfaceA, 1500) == 0)
        wire.send(numbered(1, length: 601))
        wire.send(numbered(2, length: 600))
        wire.network.run(for: .ms)
        #expect(numbers(wire) == [2])
        wire.finish()
    }

    @Test func aLargeSegmentIsCutBeforeItIsLost() throws {
        let wire = try Wire("drop 2")
        wire.send(wire.largeSegment(3000, cutInto: 1000))
        wire.network.run(for: .ms)
        #expect(wire.ends.0.seen == 3)
        #expect(wire.arrivals.map(\.bytes.count) == [1040, 1040])
        #expect(wire.arrivals.allSatisfy { tcpChecksumHolds($0.bytes) })
        // Sequence numbers 1 and 2001; PSH on the last only.
        #expect(wire.arrivals.map { Int($0.bytes[26]) << 8 | Int($0.bytes[27]) } == [1, 2001])
        #expect(wire.arrivals.map { $0.bytes[33] } == [0x10, 0x18])
        wire.finish()
    }

    @Test func whatIsOnTheWayAtTheEndIsFreed() throws {
        let wire = try Wire("delay 1s")
        for number in 0..<10 { wire.send(numbered(number)) }
        wire.network.run(for: .ms)
        wire.finish()
    }

    @Test func aWrappedDeviceDelaysBothWays() throws {
        let network = VirtualNetwork()
        let a = try network.addKernel("a", plugins: [])
        let b = try network.addKernel("b", plugins: [])
        let ends = LinkEnd.pair(a, b, spec: LinkSpec(), salt: 1)
        let wrapped = EmulatedLink.wrapping(ends.a, spec: try LinkSpec(parsing: "delay 3ms"), kernel: a)
        let here = try a.interfaces.add(name: "e0", device: wrapped, hardware: HardwareAddress((2, 0, 0, 0, 0, 1)))
        let there = try b.interfaces.add(name: "e0", device: ends.b, hardware: HardwareAddress((2, 0, 0, 0, 0, 2)))
        let start = network.clock.now
        var broadcast: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8) = (255, 255, 255, 255, 255, 255)
        for (kernel, interface) in [(a, here), (b, there)] {
            let packet = kernel.mbufs.packet(headroom: 64)!
            #expect(kernel.mbufs.append(packet, [1, 2, 3, 4], 4) == 0)
            withUnsafeBytes(of: &broadcast) {
                #expect(
                    kernel.interfaces.ethernet.outputLink(
                        interface.raw.pointee.index, packet, 0x88b5,
                        $0.baseAddress!.assumingMemoryBound(to: UInt8.self)) == 0)
            }
        }
        network.run(limit: 100 * .ms) { there.packetsIn == 1 }
        #expect(network.clock.now == start + 3 * .ms)
        network.run(limit: 100 * .ms) { here.packetsIn == 1 }
        #expect(network.clock.now == start + 3 * .ms)
        network.shutdown()
        #expect(a.mbufs.isIdle && b.mbufs.isIdle)
    }

    @Test func aSpecificationIsReadAsWritten() throws {
        let spec = try LinkSpec(
            parsing: "loss 5% delay 5ms rate 10mbit jitter 250us duplicate 0.01 reorder 2% corrupt 0.1% drop 3,7 "
                + "limit 50 mtu 1400 seed 9")
        #expect(spec.loss == 0.05 && spec.duplicate == 0.01 && spec.reorder == 0.02 && spec.corrupt == 0.001)
        #expect(spec.delay == 5 * .ms && spec.jitter == 250 * .us && spec.rate == 10_000_000)
        #expect(spec.lossPattern == [3, 7] && spec.limit == 50 && spec.mtu == 1400 && spec.seed == 9)
    }

    @Test(arguments: [
        "", "loss", "loss 5% delay", "loss 101%", "loss -1%", "loss x", "delay 5", "delay -5ms", "rate 10", "rate 0mbit",
        "drop 1,,2", "drop x", "limit 0", "mtu 10", "mtu 100000", "seed -1", "colour blue", "loss nan", "rate infmbit",
    ]) func aSenselessSpecificationIsRefused(text: String) {
        #expect(throws: KernelError.self) { try LinkSpec(parsing: text) }
    }
}

@Suite struct LinkBurstTests {
    private func lost(_ spec: String, count: Int) throws -> [Int] {
        let wire = try Wire(spec)
        for number in 0..<count { wire.send([UInt8(number >> 8), UInt8(number & 255)] + [UInt8](repeating: 0, count: 98)) }
        wire.network.run(for: .ms)
        let kept = Set(wire.arrivals.map { Int($0.bytes[0]) << 8 | Int($0.bytes[1]) })
        wire.finish()
        return (0..<count).filter { !kept.contains($0) }
    }

    @Test func burstsLoseTheSameShareInLongerRuns() throws {
        let single = try lost("loss 10% limit 30000", count: 20_000)
        let bursts = try lost("loss 10% burst 8 limit 30000", count: 20_000)
        func meanRun(_ list: [Int]) -> Double {
            let runs = list.indices.count { $0 == 0 || list[$0] != list[$0 - 1] + 1 }
            return Double(list.count) / Double(max(runs, 1))
        }
        #expect((1800...2200).contains(single.count))
        #expect((1500...2500).contains(bursts.count))
        #expect(meanRun(single) < 1.3)
        #expect((6.0...10.0).contains(meanRun(bursts)))
    }

    @Test func theTwoWaysOfALinkMayDiffer() throws {
        let network = VirtualNetwork()
        let a = try network.addKernel("a")
        let b = try network.addKernel("b")
        var back = LinkSpec()
        back.mtu = 576
        let (endA, endB) = try network.link(a, "10.0.0.1/24", b, "10.0.0.2/24", LinkSpec(parsing: "mtu 1400"), back: back)
        #expect(endA.interface?.raw.pointee.mtu == 1400)
        #expect(endB.interface?.raw.pointee.mtu == 576)
        network.shutdown()
    }
}

import Kernel
import PluginAPI
import Testing

/// A packet whose bytes count up from `first`, in buffers of the given sizes.
private func makePacket(_ pool: MbufPool, _ sizes: [Int], first: Int = 0) throws -> Mbuf {
    var next = first
    func bytes(_ count: Int) -> [UInt8] {
        defer { next += count }
        return (next..<next + count).map { UInt8(truncatingIfNeeded: $0) }
    }
    let packet = try #require(pool.packet(headroom: 64))
    for (index, size) in sizes.enumerated() {
        let part = index == 0 ? packet : try #require(pool.cluster(headroom: 16, capacity: size))
        let content = bytes(size)
        if index == 0 {
            #expect(pool.append(part, content, size) == 0)
        } else {
            #expect(pool.append(part, content, size) == 0)
            pool.concatenate(packet, part)
        }
    }
    return packet
}

private func contents(_ pool: MbufPool, _ packet: Mbuf) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Int(packet.pointee.pkt.length))
    let count = bytes.count
    bytes.withUnsafeMutableBytes { if count > 0 { pool.copyOut(packet, 0, count, $0.baseAddress!) } }
    return bytes
}

private func counting(_ range: Range<Int>) -> [UInt8] { range.map { UInt8(truncatingIfNeeded: $0) } }

@Suite struct MbufTests {
    let pool = MbufPool()

    @Test func everythingFreedIsCountedBack() throws {
        let packet = try makePacket(pool, [100, 2000, 5000])
        #expect(pool.statistics.mbufs.inUse == 3)
        #expect(pool.statistics.clusters.inUse == 1)
        #expect(pool.statistics.bigClusters.inUse == 1)
        pool.freePacket(packet)
        #expect(pool.isIdle)
    }

    @Test func prependUsesHeadroomAndThenAnotherBuffer() throws {
        var packet = try makePacket(pool, [10])
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_PARTIAL)
        packet = try #require(pool.prepend(packet, 60))
        #expect(packet.pointee.next == nil)
        packet = try #require(pool.prepend(packet, 20))
        #expect(packet.pointee.next != nil)
        #expect(packet.pointee.pkt.length == 90)
        #expect(packet.pointee.pkt.csum_start == 80)
        #expect(packet.pointee.next!.pointee.flags & ALPS_M_PKTHDR == 0)
        pool.freePacket(packet)
        #expect(pool.isIdle)
    }

    @Test func pullupJoinsBuffersAndKeepsTheBytesInFront() throws {
        var packet = try makePacket(pool, [40, 300, 1000])
        // The first 20 bytes play a network header that has been stepped over.
        pool.adjust(packet, front: 20, back: 0)
        packet = try #require(pool.pullup(packet, 600))
        #expect(packet.pointee.length >= 600)
        #expect(Array(UnsafeBufferPointer(start: packet.pointee.data - 20, count: 620)) == counting(0..<620))
        #expect(contents(pool, packet) == counting(20..<1340))
        pool.freePacket(packet)
        #expect(pool.isIdle)
    }

    @Test func pullupOfMoreThanThereIsFreesThePacket() throws {
        let packet = try makePacket(pool, [40])
        #expect(pool.pullup(packet, 41) == nil)
        #expect(pool.isIdle)
    }

    @Test func pullupMakesASharedPacketWritable() throws {
        let original = try #require(pool.cluster(headroom: 64, capacity: 1000))
        #expect(pool.append(original, counting(0..<1000), 1000) == 0)
        var copy = try #require(pool.copy(original, 0, 1000))
        #expect(!MbufPool.isWritable(copy) && !MbufPool.isWritable(original))
        copy = try #require(pool.pullup(copy, 20))
        copy.pointee.data[0] = 99
        #expect(original.pointee.data[0] == 0)
        #expect(contents(pool, copy)[1...] == counting(0..<1000)[1...])
        pool.freePacket(copy)
        // The last user may write again.
        #expect(MbufPool.isWritable(original))
        pool.freePacket(original)
        #expect(pool.isIdle)
    }

    @Test(arguments: [0, 1, 99, 100, 101, 1099, 1100, 1500])
    func splitGivesBothParts(at: Int) throws {
        let packet = try makePacket(pool, [100, 1000, 400])
        let rest = pool.split(packet, at)
        #expect(contents(pool, packet) == counting(0..<at))
        if at < 1500 {
            let rest = try #require(rest)
            #expect(contents(pool, rest) == counting(at..<1500))
            pool.freePacket(rest)
        } else {
            #expect(rest == nil)
        }
        pool.freePacket(packet)
        #expect(pool.isIdle)
    }

    @Test(arguments: [(0, 0), (50, 0), (100, 100), (150, 50), (0, 1450), (1500, 0), (700, 800)])
    func adjustRemovesAtBothEnds(front: Int, back: Int) throws {
        let packet = try makePacket(pool, [100, 1000, 400])
        pool.adjust(packet, front: front, back: back)
        #expect(contents(pool, packet) == counting(front..<1500 - back))
        pool.freePacket(packet)
        #expect(pool.isIdle)
    }

    @Test(arguments: [(0, 1500), (99, 2), (100, 1000), (1400, 500), (1500, 10), (3, 0)])
    func copyTakesTheRange(offset: Int, length: Int) throws {
        let packet = try makePacket(pool, [100, 1000, 400])
        let copy = try #require(pool.copy(packet, offset, length))
        pool.freePacket(packet)
        #expect(contents(pool, copy) == counting(offset..<min(1500, offset + length)))
        pool.freePacket(copy)
        #expect(pool.isIdle)
    }

    @Test func copyDoesNotKeepRingMemoryButAReferenceDoes() throws {
        let arena = try #require(Arena(name: "test", limitBytes: 1 << 20))
        let ext = try #require(arena.allocate(capacity: 4096))
        ext.pointee.base.update(repeating: 7, count: 4096)
        let packet = try #require(pool.packet(headroom: 64))
        pool.concatenate(packet, try #require(pool.refer(ext, ext.pointee.base, 3000, flags: ALPS_M_RING)))
        let copy = try #require(pool.copy(packet, 0, 3000))
        #expect(ext.pointee.references == 2)
        var held = try #require(pool.hold(packet))
        #expect(ext.pointee.references == 1)
        ext.pointee.base.update(repeating: 9, count: 4096)
        #expect(contents(pool, held) == [UInt8](repeating: 7, count: 3000))
        #expect(contents(pool, copy) == contents(pool, held))
        held = try #require(pool.hold(held))
        pool.freePacket(held)
        pool.freePacket(copy)
        Arena.release(ext)
        #expect(arena.slotsInUse == 0)
        #expect(pool.isIdle)
    }

    @Test func holdDoesNotLetATinyFragmentPinABigCluster() throws {
        let packet = try #require(pool.cluster(headroom: 64, capacity: 60000))
        #expect(pool.append(packet, counting(0..<50), 50) == 0)
        let held = try #require(pool.hold(packet))
        #expect(pool.statistics.bigClusters.inUse == 0)
        #expect(contents(pool, held) == counting(0..<50))
        pool.freePacket(held)
        #expect(pool.isIdle)
    }

    @Test func theLimitFailsCleanlyAndDrainGivesMemoryBack() throws {
        let small = MbufPool(limitBytes: 1 << 20)
        var list: Mbuf?
        var made = 0
        while let packet = small.cluster(headroom: 0, capacity: 2048) {
            packet.pointee.nextpkt = list
            list = packet
            made += 1
            try #require(made < 10000)
        }
        #expect(made > 100)
        #expect(small.statistics.clusters.failed + small.statistics.mbufs.failed > 0)
        small.free(list)
        #expect(small.isIdle)
        small.drain()
        #expect(small.statistics.bytes == 0)
        let again = try #require(small.packet(headroom: 0))
        small.freePacket(again)
    }

    @Test func appendGrowsAcrossBuffers() throws {
        let packet = try #require(pool.packet(headroom: 64))
        let bytes = counting(0..<70000)
        #expect(pool.append(packet, bytes, bytes.count) == 0)
        #expect(contents(pool, packet) == bytes)
        pool.freePacket(packet)
        #expect(pool.isIdle)
    }
}

@Suite struct MbufOffloadTests {
    let pool = MbufPool()

    /// An IPv4 packet with a TCP or UDP header in front of `payload` counting bytes, its checksum left to the device.
    private func largePacket(udp: Bool, payload: Int, size: Int, flags: UInt8 = 0x18, ecn: Bool = false) throws -> Mbuf
    {
        let transport = udp ? 8 : 20
        var header: [UInt8] = [
            0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, udp ? 17 : 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]
        let total = 20 + transport + payload
        header[2] = UInt8(truncatingIfNeeded: total >> 8)
        header[3] = UInt8(truncatingIfNeeded: total)
        header += [0x30, 0x39, 0, 80]
        header += udp ? [0, 0, 0, 0] : [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0x50, flags, 0x10, 0, 0, 0, 0, 0]
        let packet = try #require(pool.packet(headroom: 64))
        #expect(pool.append(packet, header, header.count) == 0)
        #expect(pool.append(packet, counting(0..<payload), payload) == 0)
        packet.pointee.pkt.gso_type = UInt8(udp ? ALPS_GSO_UDP : ALPS_GSO_TCP4) | (ecn ? UInt8(ALPS_GSO_ECN) : 0)
        packet.pointee.pkt.gso_size = UInt16(size)
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_PARTIAL)
        packet.pointee.pkt.csum_start = 20
        packet.pointee.pkt.csum_offset = udp ? 6 : 16
        return packet
    }

    /// Whether IP header and transport checksums of a packet are right.
    private func checksumsHold(_ bytes: [UInt8]) -> Bool {
        func sum(_ part: ArraySlice<UInt8>) -> UInt32 {
            var total: UInt32 = 0
            for (index, byte) in part.enumerated() { total += index % 2 == 0 ? UInt32(byte) << 8 : UInt32(byte) }
            while total > 0xffff { total = (total & 0xffff) + (total >> 16) }
            return total
        }
        var transport = UInt32(bytes[9]) + UInt32(bytes.count - 20) + sum(bytes[12..<20]) + sum(bytes[20...])
        while transport > 0xffff { transport = (transport & 0xffff) + (transport >> 16) }
        return sum(bytes[0..<20]) == 0xffff && transport == 0xffff
    }

    @Test func tcpSegmentsCarryTheirOwnHeaders() throws {
        let packet = try largePacket(udp: false, payload: 3500, size: 1000, flags: 0x99, ecn: true)
        var segment = pool.segment(packet)
        var payload: [UInt8] = []
        var index = 0
        while let current = segment {
            segment = current.pointee.nextpkt
            let bytes = contents(pool, current)
            #expect(checksumsHold(bytes))
            #expect(Int(bytes[2]) << 8 | Int(bytes[3]) == bytes.count)
            #expect(Int(bytes[4]) << 8 | Int(bytes[5]) == 0x1234 + index)
            let sequence = bytes[24..<28].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
            #expect(sequence == 0xffff_ff00 &+ UInt32(1000 * index))
            // CWR on the first only, PSH and FIN on the last only.
            #expect(bytes[33] == (index == 0 ? 0x90 : index == 3 ? 0x19 : 0x10))
            #expect(current.pointee.pkt.gso_type == 0 && current.pointee.pkt.csum == 0)
            payload += bytes[40...]
            pool.freePacket(current)
            index += 1
        }
        #expect(index == 4)
        #expect(payload == counting(0..<3500))
        #expect(pool.isIdle)
    }

    @Test func udpSegmentsAreDatagrams() throws {
        var segment = pool.segment(try largePacket(udp: true, payload: 2100, size: 700))
        var index = 0
        while let current = segment {
            segment = current.pointee.nextpkt
            let bytes = contents(pool, current)
            #expect(checksumsHold(bytes))
            #expect(bytes.count == 728 && Int(bytes[24]) << 8 | Int(bytes[25]) == 708)
            pool.freePacket(current)
            index += 1
        }
        #expect(index == 3)
        #expect(pool.isIdle)
    }

    @Test func nonsenseIsDroppedWithoutALeak() throws {
        for broken in 0..<4 {
            let packet = try largePacket(udp: false, payload: 3000, size: 1000)
            switch broken {
            case 0: packet.pointee.data[0] = 0x4f
            case 1: packet.pointee.data[9] = 17
            case 2: packet.pointee.data[32] = 0x10
            default: pool.adjust(packet, front: 0, back: 3025)
            }
            pool.free(pool.segment(packet))
            #expect(pool.isIdle)
        }
    }

    @Test func aPartialChecksumIsFinishedFromThePseudoSum() throws {
        let packet = try largePacket(udp: true, payload: 333, size: 0)
        packet.pointee.pkt.gso_type = 0
        let bytes = packet.pointee.data
        let length = 341
        bytes[24] = UInt8(length >> 8)
        bytes[25] = UInt8(length & 255)
        let pseudo = InternetChecksum.fold(UInt64(InternetChecksum.sum(bytes + 12, 8)) + 17 + UInt64(length))
        bytes[26] = UInt8(pseudo >> 8)
        bytes[27] = UInt8(pseudo & 255)
        let finished = try #require(pool.finishChecksum(packet))
        let header = InternetChecksum.finish(InternetChecksum.sum(finished.pointee.data, 20))
        finished.pointee.data[10] = UInt8(header >> 8)
        finished.pointee.data[11] = UInt8(header & 255)
        #expect(checksumsHold(contents(pool, finished)))
        pool.freePacket(finished)
        #expect(pool.isIdle)
    }
}

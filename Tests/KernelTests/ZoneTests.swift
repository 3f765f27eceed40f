import Kernel
import Testing

@Suite struct ZoneTests {
    @Test func memoryIsZeroedAlignedAndCounted() throws {
        let zone = Zone()
        for size in [1, 15, 16, 17, 48, 64, 65, 80, 81, 96, 127, 128, 129, 700, 4000, 8192, 8193, 100_000] {
            var pieces: [UnsafeMutableRawPointer] = []
            for round in 0..<20 {
                let memory = try #require(zone.alloc(size))
                #expect(Int(bitPattern: memory) % 16 == 0)
                #expect(UnsafeRawBufferPointer(start: memory, count: size).allSatisfy { $0 == 0 })
                memory.initializeMemory(as: UInt8.self, repeating: UInt8(round + 1), count: size)
                pieces.append(memory)
            }
            #expect(zone.objectsInUse == 20 && zone.bytesInUse == 20 * size)
            for (round, memory) in pieces.enumerated() {
                // Nobody else wrote here.
                #expect(UnsafeRawBufferPointer(start: memory, count: size).allSatisfy { $0 == UInt8(round + 1) })
                zone.free(memory, size)
            }
        }
        #expect(zone.objectsInUse == 0 && zone.bytesInUse == 0)
    }

    @Test func theLimitHolds() throws {
        let zone = Zone(limitBytes: 1000)
        let first = try #require(zone.alloc(900))
        #expect(zone.alloc(101) == nil)
        #expect(zone.failed == 1)
        zone.free(first, 900)
        #expect(zone.alloc(101) != nil)
    }

    @Test func freedMemoryIsUsedAgain() throws {
        let zone = Zone()
        let first = try #require(zone.alloc(200))
        zone.free(first, 200)
        #expect(zone.alloc(200) == first)
    }
}

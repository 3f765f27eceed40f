import Glibc
import Kernel
import PluginAPI
import Testing

@Suite struct ArenaTests {
    @Test func slotsArePowersOfTwoAndDoNotOverlap() throws {
        let arena = try #require(Arena(name: "test", limitBytes: 64 << 20))
        var used: [Range<Int>] = []
        var slots: [UnsafeMutablePointer<alps_ext>] = []
        for capacity in [1, 4096, 4097, 100_000, 262_144, 1 << 20] {
            for _ in 0..<3 {
                let ext = try #require(arena.allocate(capacity: capacity))
                slots.append(ext)
                let length = Int(ext.pointee.length)
                #expect(length >= max(capacity, 4096) && length & (length - 1) == 0)
                let range = arena.offset(of: ext)..<arena.offset(of: ext) + length
                #expect(!used.contains { $0.overlaps(range) })
                used.append(range)
                ext.pointee.base[0] = 1
                ext.pointee.base[length - 1] = 1
            }
        }
        #expect(arena.slotsInUse == 18)
        for slot in slots { Arena.release(slot) }
        #expect(arena.slotsInUse == 0)
    }

    @Test func aSlotComesBackOnlyWithItsLastReference() throws {
        let arena = try #require(Arena(name: "test", limitBytes: 1 << 20))
        let first = try #require(arena.allocate(capacity: 8192))
        first.pointee.references += 1
        Arena.release(first)
        #expect(arena.slotsInUse == 1)
        let second = try #require(arena.allocate(capacity: 8192))
        #expect(second.pointee.base != first.pointee.base)
        let base = first.pointee.base
        Arena.release(first)
        #expect(arena.slotsInUse == 1)
        let third = try #require(arena.allocate(capacity: 8192))
        #expect(third.pointee.base == base)
        Arena.release(second)
        Arena.release(third)
    }

    @Test func theLimitHoldsAndFreedSlotsCount() throws {
        let arena = try #require(Arena(name: "test", limitBytes: 64 << 10))
        let slots = (0..<4).compactMap { _ in arena.allocate(capacity: 16 << 10) }
        #expect(slots.count == 4)
        #expect(arena.allocate(capacity: 4096) == nil)
        for slot in slots { Arena.release(slot) }
        let again = try #require(arena.allocate(capacity: 16 << 10))
        Arena.release(again)
    }

    /// Bytes that the file has in memory.
    private func pages(_ arena: Arena) -> Int {
        var status = stat()
        fstat(arena.fd, &status)
        return Int(status.st_blocks) * 512
    }

    @Test func freeSlotsGiveTheirPagesBack() throws {
        let arena = try #require(Arena(name: "test", limitBytes: 64 << 20))
        let slots = (0..<4).compactMap { _ in arena.allocate(capacity: 4 << 20) }
        for slot in slots { memset(slot.pointee.base, 1, 4 << 20) }
        #expect(pages(arena) >= 16 << 20)
        for slot in slots { Arena.release(slot) }
        #expect(pages(arena) <= Arena.cacheLimit)
        arena.trim()
        #expect(pages(arena) == 0)
    }

    /// Those of an idle connection go back at once: they must not take the place of pages that the next connection can use.
    @Test func pagesThatAreNotKeptDisplaceNone() throws {
        let arena = try #require(Arena(name: "test", limitBytes: 64 << 20))
        let idle = (0..<64).compactMap { _ in arena.allocate(capacity: 64 << 10) }
        let ended = try #require(arena.allocate(capacity: 64 << 10))
        for slot in idle + [ended] { memset(slot.pointee.base, 1, 4096) }
        for slot in idle { Arena.release(slot, used: 64 << 10, keepsPages: false) }
        #expect(pages(arena) == 4096)
        Arena.release(ended, used: 4096, keepsPages: true)
        #expect(pages(arena) == 4096)
    }

    @Test func slotsThatHaveTheirPagesAreUsedFirst() throws {
        let arena = try #require(Arena(name: "test", limitBytes: 64 << 20))
        let slots = (0..<3).compactMap { _ in arena.allocate(capacity: 64 << 10) }
        let base = slots[1].pointee.base
        Arena.release(slots[1], used: 4096, keepsPages: true)
        Arena.release(slots[0], used: 4096, keepsPages: false)
        let next = try #require(arena.allocate(capacity: 64 << 10))
        #expect(next.pointee.base == base)
        Arena.release(next)
        Arena.release(slots[2])
    }

    @Test func aPeerCannotShrinkTheFile() throws {
        let arena = try #require(Arena(name: "test", limitBytes: 1 << 20))
        let slot = try #require(arena.allocate(capacity: 65536))
        #expect(ftruncate(arena.fd, 0) == -1)
        slot.pointee.base[65535] = 1
        Arena.release(slot)
    }

    @Test func bytesOutliveTheArenasOwner() throws {
        var arena = Arena(name: "test", limitBytes: 1 << 20)
        let slot = try #require(arena?.allocate(capacity: 4096))
        slot.pointee.base[0] = 5
        arena = nil
        #expect(slot.pointee.base[0] == 5)
        Arena.release(slot)
    }
}

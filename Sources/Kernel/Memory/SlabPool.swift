internal import Glibc

/// Objects of one size, carved from slabs of 256 KiB, with one free list (last in, first out: it is still in the
/// cache).
struct SlabPool {
    static let slabSize = 256 << 10

    /// Stands in front of every slab and keeps the objects aligned.
    private struct SlabHeader {
        var next: UnsafeMutablePointer<SlabHeader>?
        /// Used while draining only.
        var free: Int
    }
    private static let headerSize = 512

    private let objectSize: Int
    private let perSlab: Int
    private var slabs: UnsafeMutablePointer<SlabHeader>?
    private var slabCount = 0
    private var freeList: UnsafeMutableRawPointer?

    private(set) var inUse = 0
    private(set) var peak = 0
    private(set) var failed = 0

    /// Objects waiting to be used again.
    var cached: Int { slabCount * perSlab - inUse }
    /// Memory taken from the system.
    var bytes: Int { slabCount * Self.slabSize }

    /// `objectSize` must be a multiple of 16 and at least a pointer.
    init(objectSize: Int) {
        self.objectSize = objectSize
        perSlab = (Self.slabSize - Self.headerSize) / objectSize
    }

    /// An object with undefined contents; nil if the list is empty and no slab may be added.
    @inline(__always)
    mutating func take() -> UnsafeMutableRawPointer? {
        guard let object = freeList else { return nil }
        freeList = object.load(as: UnsafeMutableRawPointer?.self)
        inUse &+= 1
        if inUse > peak { peak = inUse }
        return object
    }

    @inline(__always)
    mutating func give(_ object: UnsafeMutableRawPointer) {
        object.storeBytes(of: freeList, as: UnsafeMutableRawPointer?.self)
        freeList = object
        inUse &-= 1
    }

    mutating func noteFailure() { failed += 1 }

    /// Adds a slab. False without memory.
    mutating func grow() -> Bool {
        var memory: UnsafeMutableRawPointer?
        guard posix_memalign(&memory, Self.slabSize, Self.slabSize) == 0, let slab = memory else { return false }
        let header = slab.bindMemory(to: SlabHeader.self, capacity: 1)
        header.initialize(to: SlabHeader(next: slabs, free: 0))
        slabs = header
        slabCount += 1
        var index = perSlab
        while index > 0 {
            index -= 1
            let object = slab + Self.headerSize + index * objectSize
            object.storeBytes(of: freeList, as: UnsafeMutableRawPointer?.self)
            freeList = object
        }
        return true
    }

    /// Gives slabs without an object in use back to the system.
    mutating func drain() {
        func header(_ object: UnsafeMutableRawPointer) -> UnsafeMutablePointer<SlabHeader> {
            UnsafeMutableRawPointer(bitPattern: UInt(bitPattern: object) & ~UInt(Self.slabSize - 1))
                .unsafelyUnwrapped.assumingMemoryBound(to: SlabHeader.self)
        }
        var object = freeList
        while let current = object {
            header(current).pointee.free += 1
            object = current.load(as: UnsafeMutableRawPointer?.self)
        }
        var kept: UnsafeMutableRawPointer?
        object = freeList
        while let current = object {
            object = current.load(as: UnsafeMutableRawPointer?.self)
            if header(current).pointee.free < perSlab {
                current.storeBytes(of: kept, as: UnsafeMutableRawPointer?.self)
                kept = current
            }
        }
        freeList = kept
        var slab = slabs
        slabs = nil
        while let current = slab {
            slab = current.pointee.next
            if current.pointee.free == perSlab {
                Glibc.free(current)
                slabCount -= 1
            } else {
                current.pointee.free = 0
                current.pointee.next = slabs
                slabs = current
            }
        }
    }

    /// Gives all slabs back, whatever is in use.
    mutating func release() {
        while let slab = slabs {
            slabs = slab.pointee.next
            Glibc.free(slab)
        }
        slabCount = 0
        freeList = nil
    }
}

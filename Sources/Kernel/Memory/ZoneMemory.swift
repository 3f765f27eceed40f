internal import Glibc
internal import PluginAPI

/// Memory of one plugin instance: size-classed, zeroed, counted. What is left at the end is the instance's leak.
package final class Zone {
    private struct Chunk {
        var next: UnsafeMutablePointer<Chunk>?
        var padding: UInt
    }
    /// In front of an allocation that has a block of the system's to itself.
    private struct LargeHeader {
        var next: UnsafeMutablePointer<LargeHeader>?
        var prev: UnsafeMutablePointer<LargeHeader>?
    }

    private static let chunkSize = 64 << 10
    private static let largest = 8 << 10
    /// Four classes for every doubling from 64 on, below that every 16 bytes.
    private static let classCount = 4 + 7 * 4

    private let limit: Int
    private let lists: UnsafeMutablePointer<UnsafeMutableRawPointer?>
    private var chunks: UnsafeMutablePointer<Chunk>?
    private var large: UnsafeMutablePointer<LargeHeader>?
    private var bump: UnsafeMutableRawPointer?
    private var bumpLeft = 0

    /// Bytes that were asked for and not given back.
    package private(set) var bytesInUse = 0
    /// Objects that were asked for and not given back.
    package private(set) var objectsInUse = 0
    /// Highest `bytesInUse`.
    package private(set) var peakBytes = 0
    /// Requests refused.
    package private(set) var failed = 0

    package init(limitBytes: Int = 1 << 30) {
        limit = limitBytes
        lists = .allocate(capacity: Self.classCount)
        lists.initialize(repeating: nil, count: Self.classCount)
    }

    deinit {
        while let chunk = chunks {
            chunks = chunk.pointee.next
            Glibc.free(chunk)
        }
        while let header = large {
            large = header.pointee.next
            Glibc.free(header)
        }
        lists.deallocate()
    }

    /// `bytes` of zeroed memory, 16-byte aligned, or nil at the limit.
    package func alloc(_ bytes: Int) -> UnsafeMutableRawPointer? {
        guard bytes >= 0, bytesInUse + bytes <= limit, let memory = bytes <= Self.largest ? small(bytes) : big(bytes)
        else {
            failed += 1
            return nil
        }
        bytesInUse += bytes
        objectsInUse += 1
        if bytesInUse > peakBytes { peakBytes = bytesInUse }
        return memory
    }

    /// Gives memory from `alloc` back; `bytes` as asked for.
    package func free(_ memory: UnsafeMutableRawPointer, _ bytes: Int) {
        bytesInUse -= bytes
        objectsInUse -= 1
        if bytes <= Self.largest {
            let (index, _) = Self.sizeClass(bytes)
            memory.storeBytes(of: lists[index], as: UnsafeMutableRawPointer?.self)
            lists[index] = memory
            return
        }
        let header = (memory - MemoryLayout<LargeHeader>.size).assumingMemoryBound(to: LargeHeader.self)
        if let previous = header.pointee.prev {
            previous.pointee.next = header.pointee.next
        } else {
            large = header.pointee.next
        }
        header.pointee.next?.pointee.prev = header.pointee.prev
        Glibc.free(header)
    }

    /// The list for a size, and the size its objects have.
    private static func sizeClass(_ bytes: Int) -> (index: Int, size: Int) {
        if bytes <= 64 {
            let steps = max(1, (bytes + 15) / 16)
            return (steps - 1, steps * 16)
        }
        let power = Int.bitWidth - 1 - (bytes - 1).leadingZeroBitCount  // 2^power < bytes <= 2^(power + 1)
        let step = 1 << (power - 2)
        let quarter = (bytes - (1 << power) + step - 1) / step
        return (4 + (power - 6) * 4 + quarter - 1, (1 << power) + quarter * step)
    }

    private func small(_ bytes: Int) -> UnsafeMutableRawPointer? {
        let (index, size) = Self.sizeClass(bytes)
        let memory: UnsafeMutableRawPointer
        if let object = lists[index] {
            lists[index] = object.load(as: UnsafeMutableRawPointer?.self)
            memory = object
        } else {
            if bumpLeft < size {
                guard let block = malloc(Self.chunkSize) else { return nil }
                let chunk = block.bindMemory(to: Chunk.self, capacity: 1)
                chunk.initialize(to: Chunk(next: chunks, padding: 0))
                chunks = chunk
                bump = block + MemoryLayout<Chunk>.size
                bumpLeft = Self.chunkSize - MemoryLayout<Chunk>.size
            }
            guard let free = bump else { return nil }
            memory = free
            bump = free + size
            bumpLeft -= size
        }
        memset(memory, 0, size)
        return memory
    }

    private func big(_ bytes: Int) -> UnsafeMutableRawPointer? {
        guard let block = calloc(1, bytes + MemoryLayout<LargeHeader>.size) else { return nil }
        let header = block.bindMemory(to: LargeHeader.self, capacity: 1)
        header.pointee.next = large
        large?.pointee.prev = header
        large = header
        return block + MemoryLayout<LargeHeader>.size
    }
}

/// Publishes "alps.memory/1": every instance reaches its own zone.
package final class ZoneMemory {
    private var opsTable: UnsafeMutablePointer<alps_memory_ops>?

    package init() {}

    deinit { opsTable?.deallocate() }

    package func attach(_ kernel: Kernel) {
        let table = UnsafeMutablePointer<alps_memory_ops>.allocate(capacity: 1)
        table.initialize(
            to: alps_memory_ops(
                size: UInt32(MemoryLayout<alps_memory_ops>.size), reserved: 0, alloc: memoryAlloc, free: memoryFree))
        opsTable = table
        kernel.plugins.publish("alps.memory/1", ops: UnsafeRawPointer(table), scope: .perInstance)
    }
}

private func memoryAlloc(_ context: UnsafeMutableRawPointer, _ bytes: Int) -> UnsafeMutableRawPointer? {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.zone.alloc(bytes) }
}

private func memoryFree(_ context: UnsafeMutableRawPointer, _ memory: UnsafeMutableRawPointer, _ bytes: Int) {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.zone.free(memory, bytes) }
}

internal import Glibc
package import PluginAPI

/// One buffer of packet memory, see alps/mbuf.h.
package typealias Mbuf = UnsafeMutablePointer<alps_mbuf>

/// Packet memory: mbufs, clusters and big clusters out of slabs, below one limit.
///
/// Everything is handed out and given back on the kernel's thread. What is in use after everything has been shut down
/// is a leak; tests assert that it is zero. Chains are worked on in MbufChain.swift, offload is in MbufSegment.swift.
package final class MbufPool {
    /// One kind of memory.
    package struct Usage: Equatable {
        package var inUse: Int
        package var peak: Int
        package var failed: Int
        package var cached: Int
    }

    package struct Statistics: Equatable {
        package var mbufs: Usage
        package var clusters: Usage
        package var bigClusters: Usage
        /// Memory taken from the system, used or not.
        package var bytes: Int
        /// Times free memory was given back because the limit was near.
        package var drains: Int
    }

    /// Bytes in front of `data` that a copy keeps: link and network headers, which an error message quotes.
    static let keptFront = 128
    /// In front of the bytes of a cluster; keeps them aligned to a cache line.
    private static let clusterPrefix = 64
    /// Free big clusters that are kept.
    private static let cachedBigClusters = 64

    /// `reserved` of an mbuf: made by `refer`, never writable.
    static let referredMark: UInt32 = 1

    private let limit: Int
    private var mbufs = SlabPool(objectSize: MemoryLayout<alps_mbuf>.size)
    private var clusters = SlabPool(objectSize: Int(ALPS_CLUSTER_SIZE) + clusterPrefix)
    private var bigFree: UnsafeMutablePointer<alps_ext>?
    private var bigUsage = Usage(inUse: 0, peak: 0, failed: 0, cached: 0)
    private var drains = 0
    private var opsTable: UnsafeMutablePointer<alps_mbuf_ops>?

    package init(limitBytes: Int = 256 << 20) {
        limit = limitBytes
    }

    deinit {
        mbufs.release()
        clusters.release()
        releaseBigClusters()
        opsTable?.deallocate()
    }

    /// Publishes "alps.mbuf/1", one cell for all instances.
    package func attach(_ kernel: Kernel) {
        let table = UnsafeMutablePointer<alps_mbuf_ops>.allocate(capacity: 1)
        table.initialize(to: Self.table)
        opsTable = table
        kernel.plugins.publish(
            "alps.mbuf/1", ops: UnsafeRawPointer(table), scope: .kernel(Unmanaged.passUnretained(self).toOpaque()))
    }

    package var statistics: Statistics {
        Statistics(
            mbufs: Usage(inUse: mbufs.inUse, peak: mbufs.peak, failed: mbufs.failed, cached: mbufs.cached),
            clusters: Usage(
                inUse: clusters.inUse, peak: clusters.peak, failed: clusters.failed, cached: clusters.cached),
            bigClusters: bigUsage, bytes: bytes, drains: drains)
    }

    /// Whether every buffer has come back.
    package var isIdle: Bool { mbufs.inUse == 0 && clusters.inUse == 0 && bigUsage.inUse == 0 }

    /// Whether a good deal of packets may still be made: for those who can wait.
    package var hasRoom: Bool {
        let used = mbufs.inUse * Int(ALPS_MBUF_SIZE) + clusters.inUse * (Int(ALPS_CLUSTER_SIZE) + Self.clusterPrefix)
            + bigUsage.inUse * Int(ALPS_BIG_CLUSTER_SIZE)
        return used <= limit - limit / 16
    }

    /// Gives free memory back to the system.
    package func drain() {
        drains += 1
        mbufs.drain()
        clusters.drain()
        releaseBigClusters()
    }

    // MARK: Allocation

    /// An empty packet of one mbuf, `headroom` (<= 256) bytes free in front.
    package func packet(headroom: Int) -> Mbuf? {
        guard let mbuf = header() else { return nil }
        mbuf.pointee.data += min(headroom, 256)
        return mbuf
    }

    /// An empty packet with one contiguous cluster of at least `capacity` bytes behind `headroom`.
    package func cluster(headroom: Int, capacity: Int) -> Mbuf? {
        guard let ext = storage(headroom + capacity) else { return nil }
        guard let mbuf = header() else {
            Arena.release(ext)
            return nil
        }
        use(ext, for: mbuf)
        mbuf.pointee.data += headroom
        mbuf.pointee.pkt.truesize += ext.pointee.length
        return mbuf
    }

    /// A non-header mbuf over `length` bytes inside `ext`, which gets one more reference.
    package func refer(
        _ ext: UnsafeMutablePointer<alps_ext>, _ bytes: UnsafeMutablePointer<UInt8>, _ length: Int, flags: UInt32
    )
        -> Mbuf?
    {
        guard let mbuf = take() else { return nil }
        ext.pointee.references += 1
        mbuf.pointee.ext = ext
        mbuf.pointee.data = bytes
        mbuf.pointee.storage = bytes
        mbuf.pointee.storage_size = UInt32(length)
        mbuf.pointee.length = UInt32(length)
        mbuf.pointee.flags = ALPS_M_EXT | ALPS_M_RDONLY | (flags & ALPS_M_RING)
        mbuf.pointee.reserved = Self.referredMark
        return mbuf
    }

    /// Frees all packets of a list.
    package func free(_ list: Mbuf?) {
        var packet = list
        while let current = packet {
            packet = current.pointee.nextpkt
            freePacket(current)
        }
    }

    /// Frees one packet, not the ones behind it.
    package func freePacket(_ packet: Mbuf) {
        var mbuf: Mbuf? = packet
        while let current = mbuf {
            mbuf = current.pointee.next
            freeMbuf(current)
        }
    }

    /// Frees a single buffer of a chain that the caller has unlinked.
    @inline(__always)
    func freeMbuf(_ mbuf: Mbuf) {
        precondition(mbuf.pointee.owner != nil, "an mbuf was freed twice")
        if mbuf.pointee.flags & ALPS_M_EXT != 0, let ext = mbuf.pointee.ext { Arena.release(ext) }
        mbuf.pointee.owner = nil
        mbufs.give(UnsafeMutableRawPointer(mbuf))
    }

    /// An empty mbuf without packet header, `data` at the start of its inline storage; not yet counted anywhere.
    func take() -> Mbuf? {
        guard let memory = mbufs.take() ?? grownMbuf() else { return nil }
        memset(memory, 0, MemoryLayout<alps_mbuf>.size - Int(ALPS_MBUF_INLINE))
        let mbuf = memory.assumingMemoryBound(to: alps_mbuf.self)
        let bytes = (memory + (MemoryLayout<alps_mbuf>.size - Int(ALPS_MBUF_INLINE))).assumingMemoryBound(
            to: UInt8.self)
        mbuf.pointee.data = bytes
        mbuf.pointee.storage = bytes
        mbuf.pointee.storage_size = ALPS_MBUF_INLINE
        mbuf.pointee.owner = Unmanaged.passUnretained(self).toOpaque()
        return mbuf
    }

    /// The same with a zeroed packet header.
    func header() -> Mbuf? {
        guard let mbuf = take() else { return nil }
        mbuf.pointee.flags = ALPS_M_PKTHDR
        mbuf.pointee.pkt.truesize = ALPS_MBUF_SIZE
        mbuf.pointee.pkt.gso_segments = 1
        return mbuf
    }

    /// An mbuf without header whose storage has at least `capacity` bytes, the smallest kind that does.
    func buffer(capacity: Int) -> Mbuf? {
        if capacity <= Int(ALPS_MBUF_INLINE) { return take() }
        guard let ext = storage(capacity) else { return nil }
        guard let mbuf = take() else {
            Arena.release(ext)
            return nil
        }
        use(ext, for: mbuf)
        return mbuf
    }

    private func use(_ ext: UnsafeMutablePointer<alps_ext>, for mbuf: Mbuf) {
        mbuf.pointee.flags |= ALPS_M_EXT
        mbuf.pointee.ext = ext
        mbuf.pointee.data = ext.pointee.base
        mbuf.pointee.storage = ext.pointee.base
        mbuf.pointee.storage_size = ext.pointee.length
    }

    // MARK: Clusters

    private var bytes: Int {
        mbufs.bytes + clusters.bytes + (bigUsage.inUse + bigUsage.cached) * Int(ALPS_BIG_CLUSTER_SIZE)
    }

    /// Whether `more` bytes may be taken from the system; gives free memory back first if that helps.
    private func mayGrow(_ more: Int) -> Bool {
        if bytes + more <= limit { return true }
        drain()
        return bytes + more <= limit
    }

    private func grownMbuf() -> UnsafeMutableRawPointer? {
        guard mayGrow(SlabPool.slabSize), mbufs.grow() else {
            mbufs.noteFailure()
            return nil
        }
        return mbufs.take()
    }

    /// A cluster of at least `bytes`, with one reference.
    private func storage(_ bytes: Int) -> UnsafeMutablePointer<alps_ext>? {
        if bytes > Int(ALPS_CLUSTER_SIZE) { return bytes > Int(ALPS_BIG_CLUSTER_SIZE) ? nil : bigCluster() }
        guard let memory = clusters.take() ?? grownCluster() else { return nil }
        let ext = memory.assumingMemoryBound(to: alps_ext.self)
        ext.initialize(
            to: alps_ext(
                base: (memory + Self.clusterPrefix).assumingMemoryBound(to: UInt8.self), length: ALPS_CLUSTER_SIZE,
                references: 1, release: clusterReleased, context: Unmanaged.passUnretained(self).toOpaque()))
        return ext
    }

    private func grownCluster() -> UnsafeMutableRawPointer? {
        guard mayGrow(SlabPool.slabSize), clusters.grow() else {
            clusters.noteFailure()
            return nil
        }
        return clusters.take()
    }

    private func bigCluster() -> UnsafeMutablePointer<alps_ext>? {
        let ext: UnsafeMutablePointer<alps_ext>
        if let cached = bigFree {
            // While it is free, `context` is the next one.
            bigFree = cached.pointee.context?.assumingMemoryBound(to: alps_ext.self)
            bigUsage.cached -= 1
            ext = cached
        } else {
            var memory: UnsafeMutableRawPointer?
            guard mayGrow(Int(ALPS_BIG_CLUSTER_SIZE)),
                posix_memalign(&memory, 64, Int(ALPS_BIG_CLUSTER_SIZE) + Self.clusterPrefix) == 0, let memory
            else {
                bigUsage.failed += 1
                return nil
            }
            ext = memory.bindMemory(to: alps_ext.self, capacity: 1)
            ext.initialize(
                to: alps_ext(
                    base: (memory + Self.clusterPrefix).assumingMemoryBound(to: UInt8.self),
                    length: ALPS_BIG_CLUSTER_SIZE, references: 0, release: bigClusterReleased, context: nil))
        }
        bigUsage.inUse += 1
        bigUsage.peak = max(bigUsage.peak, bigUsage.inUse)
        ext.pointee.references = 1
        ext.pointee.context = Unmanaged.passUnretained(self).toOpaque()
        return ext
    }

    fileprivate func takeBack(cluster ext: UnsafeMutablePointer<alps_ext>) {
        clusters.give(UnsafeMutableRawPointer(ext))
    }

    fileprivate func takeBack(bigCluster ext: UnsafeMutablePointer<alps_ext>) {
        bigUsage.inUse -= 1
        guard bigUsage.cached < Self.cachedBigClusters else {
            Glibc.free(ext)
            return
        }
        ext.pointee.context = UnsafeMutableRawPointer(bigFree)
        bigFree = ext
        bigUsage.cached += 1
    }

    private func releaseBigClusters() {
        while let ext = bigFree {
            bigFree = ext.pointee.context?.assumingMemoryBound(to: alps_ext.self)
            Glibc.free(ext)
        }
        bigUsage.cached = 0
    }
}

private func clusterReleased(_ ext: UnsafeMutablePointer<alps_ext>) {
    guard let context = ext.pointee.context else { return }
    Unmanaged<MbufPool>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.takeBack(cluster: ext) }
}

private func bigClusterReleased(_ ext: UnsafeMutablePointer<alps_ext>) {
    guard let context = ext.pointee.context else { return }
    Unmanaged<MbufPool>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.takeBack(bigCluster: ext) }
}

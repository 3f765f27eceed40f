internal import CLinux
internal import Glibc
package import PluginAPI

/// Ring memory of sockets: slots of a power of two bytes in one memory file, which a client can map as a whole.
///
/// The address range is reserved once; the file grows underneath it. A seal keeps the other side from shrinking the
/// file, which would turn the host's next access into a SIGBUS. A slot is handed out as `alps_ext`: whoever refers to
/// its bytes (a segment in a link's queue, a capture) holds a reference, and only at zero the slot may serve another
/// socket.
package final class Arena {
    package static let smallestSlot = 4096
    /// Bytes of pages that free slots keep; beyond that a slot's pages go back to the system when it is freed.
    package static let cacheLimit = 2 << 20

    private struct Slot {
        var ext: alps_ext  // first: `release` gets its address
        var next: UnsafeMutablePointer<Slot>?
        /// From the beginning, bytes that may have pages: what its users have touched. No slot has more than 2^31.
        var touched: UInt32
        /// What the present user has touched; all of it, if it does not say.
        var used: UInt32
        /// Its pages may wait for the next user.
        var keepsPages: Bool
    }

    private static let classes = 48
    private static let growth = 4 << 20

    /// For people: shows in /proc/PID/maps.
    package let name: String
    /// The memory file.
    package let fd: Int32
    /// Where the file is mapped here.
    package let base: UnsafeMutablePointer<UInt8>
    /// Bytes reserved, and the most that slots may take together.
    package let limit: Int
    /// Length of the file so far.
    package private(set) var fileSize = 0

    /// Free slots by size: those that have pages, and behind `classes` of them those that have none.
    private let free: UnsafeMutablePointer<UnsafeMutablePointer<Slot>?>
    private var top = 0
    private var cachedBytes = 0

    /// Slots handed out.
    package private(set) var slotsInUse = 0
    package private(set) var bytesInUse = 0
    package private(set) var peakBytes = 0
    package private(set) var failed = 0

    /// Nil if the system has no memory file or address range to give.
    package init?(name: String, limitBytes: Int) {
        let page = 4096
        limit = max((limitBytes + page - 1) / page * page, Self.smallestSlot)
        self.name = name
        fd = memfd_create(name, UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING))
        guard fd >= 0 else { return nil }
        let memory = mmap(nil, limit, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0)
        guard let memory, memory != MAP_FAILED else {
            close(fd)
            return nil
        }
        _ = fcntl(fd, alps_F_ADD_SEALS, alps_F_SEAL_SHRINK | alps_F_SEAL_SEAL)
        base = memory.assumingMemoryBound(to: UInt8.self)
        free = .allocate(capacity: 2 * Self.classes)
        free.initialize(repeating: nil, count: 2 * Self.classes)
    }

    deinit {
        for index in 0..<2 * Self.classes {
            while let slot = take(index) { slot.deallocate() }
        }
        free.deallocate()
        munmap(base, limit)
        close(fd)
    }

    /// A slot of `capacity` bytes, rounded up to a power of two, with one reference. Contents are undefined. Nil at the
    /// limit.
    package func allocate(capacity: Int) -> UnsafeMutablePointer<alps_ext>? {
        guard capacity > 0, capacity <= 1 << 31 else { return refuse() }
        let index = Int.bitWidth - (max(capacity, Self.smallestSlot) - 1).leadingZeroBitCount
        let size = 1 << index
        let slot: UnsafeMutablePointer<Slot>
        if let reused = take(index) ?? take(Self.classes + index) {
            cachedBytes -= Int(reused.pointee.touched)
            slot = reused
        } else {
            guard let carved = carve(size) else { return refuse() }
            slot = carved
        }
        slot.pointee.next = nil
        slot.pointee.used = UInt32(size)
        slot.pointee.keepsPages = true
        slot.pointee.ext.references = 1
        // Bytes still referred to must not vanish with the session: each slot in use keeps the arena.
        slot.pointee.ext.context = Unmanaged.passRetained(self).toOpaque()
        slotsInUse += 1
        bytesInUse += size
        if bytesInUse > peakBytes { peakBytes = bytesInUse }
        return UnsafeMutableRawPointer(slot).assumingMemoryBound(to: alps_ext.self)
    }

    /// Gives up one reference.
    package static func release(_ ext: UnsafeMutablePointer<alps_ext>) {
        ext.pointee.references -= 1
        if ext.pointee.references == 0 { ext.pointee.release?(ext) }
    }

    /// The same of a ring of which no more than the first `used` bytes have been touched, so that their pages can stay for the
    /// next one, if `keepsPages`. Any storage may be passed.
    package static func release(_ ext: UnsafeMutablePointer<alps_ext>, used: Int, keepsPages: Bool) {
        if unsafeBitCast(ext.pointee.release, to: UInt.self) == slotRelease {
            let slot = UnsafeMutableRawPointer(ext).assumingMemoryBound(to: Slot.self)
            slot.pointee.used = min(UInt32(clamping: used), ext.pointee.length)
            slot.pointee.keepsPages = keepsPages
        }
        release(ext)
    }

    private static let slotRelease: UInt = {
        let function: @convention(c) (UnsafeMutablePointer<alps_ext>) -> Void = arenaSlotReleased
        return unsafeBitCast(function, to: UInt.self)
    }()

    /// Offset of a slot's first byte within the file.
    package func offset(of ext: UnsafeMutablePointer<alps_ext>) -> Int { ext.pointee.base - base }

    /// Gives the pages of all free slots back to the system.
    package func trim() {
        for index in 0..<Self.classes {
            while let slot = take(index) {
                punch(slot)
                put(slot, index)
            }
        }
        cachedBytes = 0
    }

    private func take(_ list: Int) -> UnsafeMutablePointer<Slot>? {
        guard let slot = free[list] else { return nil }
        free[list] = slot.pointee.next
        return slot
    }

    private func put(_ slot: UnsafeMutablePointer<Slot>, _ index: Int) {
        let list = slot.pointee.touched > 0 ? index : Self.classes + index
        slot.pointee.next = free[list]
        free[list] = slot
    }

    private func refuse() -> UnsafeMutablePointer<alps_ext>? {
        failed += 1
        return nil
    }

    private func carve(_ size: Int) -> UnsafeMutablePointer<Slot>? {
        let end = top + size
        guard end <= limit else { return nil }
        if end > fileSize {
            let wanted = min(limit, (end + Self.growth - 1) / Self.growth * Self.growth)
            guard ftruncate(fd, wanted) == 0 else { return nil }
            fileSize = wanted
        }
        let slot = UnsafeMutablePointer<Slot>.allocate(capacity: 1)
        slot.initialize(
            to: Slot(
                ext: alps_ext(
                    base: base + top, length: UInt32(size), references: 0, release: arenaSlotReleased, context: nil),
                next: nil, touched: 0, used: UInt32(size), keepsPages: true))
        top = end
        return slot
    }

    fileprivate func takeBack(_ ext: UnsafeMutablePointer<alps_ext>) {
        let slot = UnsafeMutableRawPointer(ext).assumingMemoryBound(to: Slot.self)
        let size = Int(ext.pointee.length)
        let index = size.trailingZeroBitCount
        slot.pointee.ext.context = nil
        let page: UInt32 = 4096
        slot.pointee.touched = max(slot.pointee.touched, (slot.pointee.used + page - 1) / page * page)
        slotsInUse -= 1
        bytesInUse -= size
        if !slot.pointee.keepsPages || cachedBytes + Int(slot.pointee.touched) > Self.cacheLimit { punch(slot) }
        cachedBytes += Int(slot.pointee.touched)
        put(slot, index)
    }

    private func punch(_ slot: UnsafeMutablePointer<Slot>) {
        guard slot.pointee.touched > 0 else { return }
        // Where the hole cannot be made the pages merely stay.
        _ = madvise(slot.pointee.ext.base, Int(slot.pointee.touched), MADV_REMOVE)
        slot.pointee.touched = 0
    }
}

private func arenaSlotReleased(_ ext: UnsafeMutablePointer<alps_ext>) {
    guard let context = ext.pointee.context else { return }
    let arena = Unmanaged<Arena>.fromOpaque(context).takeRetainedValue()
    arena.takeBack(ext)
}

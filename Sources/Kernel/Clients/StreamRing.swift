import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// The memory file of a stream socket's rings (stream-ring.h), mapped by the processes that hold the socket, too.
///
/// Nothing in it is believed: positions are read once and checked by the channel. A seal keeps clients from changing the
/// file's length, which could turn the host's next access into a SIGBUS.
final class StreamRing {
    /// The file, for processes that ask for it.
    let descriptor: Int32
    let bytes: Int
    private let page: UnsafeMutablePointer<alps_stream_ring>
    private let extents: UnsafeMutablePointer<alps_ext>
    /// ALPS_RING_*: directions that are in use.
    private(set) var active: UInt32 = 0

    private static let controlBytes = 4096

    /// Capacities are powers of two, bytes. Nil if the system has no memory file or address range to give.
    init?(receiveCapacity: Int, sendCapacity: Int) {
        bytes = Self.controlBytes + receiveCapacity + sendCapacity
        descriptor = memfd_create("alps-stream-ring", UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING))
        guard descriptor >= 0 else { return nil }
        guard ftruncate(descriptor, bytes) == 0,
            fcntl(descriptor, alps_F_ADD_SEALS, alps_F_SEAL_SHRINK | alps_F_SEAL_GROW | alps_F_SEAL_SEAL) == 0,
            let memory = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor, 0),
            memory != MAP_FAILED
        else {
            Glibc.close(descriptor)
            return nil
        }
        page = memory.assumingMemoryBound(to: alps_stream_ring.self)
        extents = .allocate(capacity: 2)
        let rings = memory.assumingMemoryBound(to: UInt8.self) + Self.controlBytes
        for (index, (start, capacity)) in [(0, receiveCapacity), (receiveCapacity, sendCapacity)].enumerated() {
            (extents + index).initialize(
                to: alps_ext(
                    base: rings + start, length: UInt32(capacity), references: 0, release: streamRingReleased, context: nil))
        }
        page.pointee.magic = ALPS_RING_MAGIC
        page.pointee.size = UInt32(MemoryLayout<alps_stream_ring>.size)
        page.pointee.receive_capacity = UInt32(receiveCapacity)
        page.pointee.send_capacity = UInt32(sendCapacity)
        page.pointee.receive_offset = UInt64(Self.controlBytes)
        page.pointee.send_offset = UInt64(Self.controlBytes + receiveCapacity)
        page.pointee.closed = ALPS_RING_RECEIVE | ALPS_RING_SEND
    }

    deinit {
        extents.deallocate()
        munmap(page, bytes)
        Glibc.close(descriptor)
    }

    /// Storage for a socket's buffer, with one reference; what refers to it keeps the mapping.
    func storage(_ direction: UInt32) -> UnsafeMutablePointer<alps_ext> {
        let ext = extents + (direction == ALPS_RING_RECEIVE ? 0 : 1)
        if ext.pointee.references == 0 { ext.pointee.context = Unmanaged.passRetained(self).toOpaque() }
        ext.pointee.references += 1
        return ext
    }

    func isActive(_ direction: UInt32) -> Bool { active & direction != 0 }

    func open(_ directions: UInt32) {
        active |= directions
        tellClosed()
    }

    func close(_ directions: UInt32) {
        active &= ~directions
        tellClosed()
    }

    private func tellClosed() {
        let closed = ~active & (ALPS_RING_RECEIVE | ALPS_RING_SEND)
        withUnsafeMutablePointer(to: &page.pointee.closed) { alps_store_release($0, closed) }
    }

    /// Gives the pages of both rings back to the system. Only while nothing in them matters.
    func releasePages() {
        _ = madvise(UnsafeMutableRawPointer(page) + Self.controlBytes, bytes - Self.controlBytes, MADV_REMOVE)
    }

    // MARK: Words

    var receiveTail: UInt64 {
        get { withUnsafeMutablePointer(to: &page.pointee.receive_tail) { alps_load_position($0) } }
        set { withUnsafeMutablePointer(to: &page.pointee.receive_tail) { alps_store_position($0, newValue) } }
    }
    var receiveInband: UInt64 {
        get { withUnsafeMutablePointer(to: &page.pointee.receive_inband) { alps_load_position($0) } }
        set { withUnsafeMutablePointer(to: &page.pointee.receive_inband) { alps_store_position($0, newValue) } }
    }
    var receiveHead: UInt64 {
        get { withUnsafeMutablePointer(to: &page.pointee.receive_head) { alps_load_position($0) } }
        set { withUnsafeMutablePointer(to: &page.pointee.receive_head) { alps_store_position($0, newValue) } }
    }
    var sendHead: UInt64 {
        get { withUnsafeMutablePointer(to: &page.pointee.send_head) { alps_load_position($0) } }
        set { withUnsafeMutablePointer(to: &page.pointee.send_head) { alps_store_position($0, newValue) } }
    }
    var sendTail: UInt64 {
        get { withUnsafeMutablePointer(to: &page.pointee.send_tail) { alps_load_position($0) } }
        set { withUnsafeMutablePointer(to: &page.pointee.send_tail) { alps_store_position($0, newValue) } }
    }
    var sendLimit: UInt32 {
        get { withUnsafeMutablePointer(to: &page.pointee.send_limit) { alps_load_acquire($0) } }
        set { withUnsafeMutablePointer(to: &page.pointee.send_limit) { alps_store_release($0, newValue) } }
    }
    var pairFinished: UInt32 { withUnsafeMutablePointer(to: &page.pointee.pair_finished) { alps_load_acquire($0) } }
    var pairDrained: UInt32 {
        get { withUnsafeMutablePointer(to: &page.pointee.pair_drained) { alps_load_acquire($0) } }
        set { withUnsafeMutablePointer(to: &page.pointee.pair_drained) { alps_store_release($0, newValue) } }
    }

    func setBells(read: UInt32, write: UInt32) {
        withUnsafeMutablePointer(to: &page.pointee.read_bell) { alps_store_release($0, read) }
        withUnsafeMutablePointer(to: &page.pointee.write_bell) { alps_store_release($0, write) }
    }

    /// The locks are never waited for: who holds one may never let go of it.
    func tryLockReading() -> Bool {
        withUnsafeMutablePointer(to: &page.pointee.read_lock) { alps_try_lock_word($0, ALPS_RING_HOST) != 0 }
    }

    func unlockReading() { withUnsafeMutablePointer(to: &page.pointee.read_lock) { alps_unlock_word($0, ALPS_RING_WAITED) } }

    func tryLockWriting() -> Bool {
        withUnsafeMutablePointer(to: &page.pointee.write_lock) { alps_try_lock_word($0, ALPS_RING_HOST) != 0 }
    }

    func unlockWriting() { withUnsafeMutablePointer(to: &page.pointee.write_lock) { alps_unlock_word($0, ALPS_RING_WAITED) } }

    /// Only the client that has asked for the ring first frees this lock.
    func lockReadingForOpening() {
        withUnsafeMutablePointer(to: &page.pointee.read_lock) { alps_store_release($0, ALPS_RING_OPENING) }
    }
}

private func streamRingReleased(_ ext: UnsafeMutablePointer<alps_ext>) {
    guard let context = ext.pointee.context else { return }
    ext.pointee.context = nil
    Unmanaged<StreamRing>.fromOpaque(context).release()
}

/// The channels whose rings the host looks at once a turn, because it is awake: clients that move on tell it nothing then.
final class StreamRingWatch {
    private var watched: [Borrowed<StreamChannel>] = []
    /// Sockets with rings.
    var count = 0

    func add(_ channel: StreamChannel) { watched.append(Borrowed(channel)) }

    func remove(_ channel: StreamChannel) { watched.removeAll { $0.names(channel) } }

    /// Takes over what clients have done.
    func look() {
        var index = 0
        // A channel may leave the list while it is looked at.
        while index < watched.count {
            let entry = watched[index]
            entry { $0.lookAtRing() }
            if index < watched.count, entry.isSame(watched[index]) { index += 1 }
        }
    }

    /// Before the host sleeps: from now on clients ring. False if one has moved on meanwhile.
    func maySleep() -> Bool {
        guard !watched.isEmpty else { return true }
        var isQuiet = true
        var index = 0
        while index < watched.count {
            let entry = watched[index]
            if !entry({ $0.setBells() }) { isQuiet = false }
            if index < watched.count, entry.isSame(watched[index]) { index += 1 }
        }
        return isQuiet
    }
}

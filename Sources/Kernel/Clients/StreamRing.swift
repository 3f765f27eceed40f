import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// The memory file of a stream socket's rings (stream-ring.h), mapped by the processes that hold the socket, too.
///
/// Nothing in it is believed: positions are read once and checked by the channel.
final class StreamRing {
    private let file: SealedFile
    let words: RingWords
    private var page: UnsafeMutablePointer<alps_stream_ring> { words.page }
    private let extents: UnsafeMutablePointer<alps_ext>

    /// Bytes that the send ring should have room for, and since when.
    var wantedSendSpace: UInt32 = 0
    var shortSince: UInt64 = 0
    /// Where the send ring began when shares were last looked at.
    var lastSendHead: UInt64 = 0
    /// Then it was fast.
    var isFast = false
    /// The send buffer does not grow beyond that by itself, bytes.
    var sendCeiling = UInt32.max

    private static let controlBytes = 4096

    /// Capacities are powers of two, bytes. Nil if the system has no memory file or address range to give.
    init?(receiveCapacity: Int, sendCapacity: Int) {
        let bytes = Self.controlBytes + receiveCapacity + sendCapacity
        guard let file = SealedFile(name: "alps-stream-ring", bytes: bytes) else { return nil }
        self.file = file
        let memory = file.base
        words = RingWords(page: memory.assumingMemoryBound(to: alps_stream_ring.self))
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
        page.pointee.room_turn = 1
    }

    deinit { extents.deallocate() }

    /// The file, for processes that ask for it.
    var descriptor: Int32 { file.descriptor }
    var bytes: Int { file.bytes }

    func capacity(_ direction: UInt32) -> UInt32 { extents[direction == ALPS_RING_RECEIVE ? 0 : 1].length }

    /// Storage for a socket's buffer, with one reference; what refers to it keeps the mapping.
    func storage(_ direction: UInt32) -> UnsafeMutablePointer<alps_ext> {
        let ext = extents + (direction == ALPS_RING_RECEIVE ? 0 : 1)
        if ext.pointee.references == 0 { ext.pointee.context = Unmanaged.passRetained(self).toOpaque() }
        ext.pointee.references += 1
        return ext
    }

    /// Gives the pages of both rings back to the system. Only while nothing in them matters.
    func releasePages() {
        _ = madvise(UnsafeMutableRawPointer(page) + Self.controlBytes, bytes - Self.controlBytes, MADV_REMOVE)
    }
}

/// The control page. A trivial value: what runs once a packet touches no reference count.
struct RingWords {
    fileprivate let page: UnsafeMutablePointer<alps_stream_ring>

    var receiveTail: UInt64 {
        get { withUnsafeMutablePointer(to: &page.pointee.receive_tail) { alps_load_position($0) } }
        nonmutating set { withUnsafeMutablePointer(to: &page.pointee.receive_tail) { alps_store_position($0, newValue) } }
    }
    var receiveInband: UInt64 {
        get { withUnsafeMutablePointer(to: &page.pointee.receive_inband) { alps_load_position($0) } }
        nonmutating set { withUnsafeMutablePointer(to: &page.pointee.receive_inband) { alps_store_position($0, newValue) } }
    }
    var receiveHead: UInt64 {
        get { withUnsafeMutablePointer(to: &page.pointee.receive_head) { alps_load_position($0) } }
        nonmutating set { withUnsafeMutablePointer(to: &page.pointee.receive_head) { alps_store_position($0, newValue) } }
    }
    var sendHead: UInt64 {
        get { withUnsafeMutablePointer(to: &page.pointee.send_head) { alps_load_position($0) } }
        nonmutating set { withUnsafeMutablePointer(to: &page.pointee.send_head) { alps_store_position($0, newValue) } }
    }
    var sendTail: UInt64 {
        get { withUnsafeMutablePointer(to: &page.pointee.send_tail) { alps_load_position($0) } }
        nonmutating set { withUnsafeMutablePointer(to: &page.pointee.send_tail) { alps_store_position($0, newValue) } }
    }
    var sendLimit: UInt32 {
        get { withUnsafeMutablePointer(to: &page.pointee.send_limit) { alps_load_acquire($0) } }
        nonmutating set { withUnsafeMutablePointer(to: &page.pointee.send_limit) { alps_store_release($0, newValue) } }
    }
    /// Under the writers' lock.
    var sendSize: UInt32 {
        get { withUnsafeMutablePointer(to: &page.pointee.send_size) { alps_load_acquire($0) } }
        nonmutating set { withUnsafeMutablePointer(to: &page.pointee.send_size) { alps_store_release($0, newValue) } }
    }
    var pairFinished: UInt32 { withUnsafeMutablePointer(to: &page.pointee.pair_finished) { alps_load_acquire($0) } }
    var pairDrained: UInt32 {
        get { withUnsafeMutablePointer(to: &page.pointee.pair_drained) { alps_load_acquire($0) } }
        nonmutating set { withUnsafeMutablePointer(to: &page.pointee.pair_drained) { alps_store_release($0, newValue) } }
    }

    /// Wakes the writers that wait for `pairDrained` to move.
    func wakeWriters() {
        alps_full_fence()
        guard withUnsafeMutablePointer(to: &page.pointee.pair_waited, { alps_load_acquire($0) }) != 0 else { return }
        withUnsafeMutablePointer(to: &page.pointee.pair_waited) { alps_store_release($0, 0) }
        withUnsafeMutablePointer(to: &page.pointee.pair_drained) { alps_wake_word($0) }
    }

    /// Whether writers wait for room.
    var isRoomWaitedFor: Bool { withUnsafeMutablePointer(to: &page.pointee.room_waited) { alps_load_acquire($0) } != 0 }

    func wakeForRoom() {
        withUnsafeMutablePointer(to: &page.pointee.room_waited) { alps_store_release($0, 0) }
        withUnsafeMutablePointer(to: &page.pointee.room_turn) {
            alps_store_release($0, max(alps_load_acquire($0) &+ 1, 1))
            alps_wake_word($0)
        }
    }

    /// Directions that are in-band.
    var closed: UInt32 {
        get { withUnsafeMutablePointer(to: &page.pointee.closed) { alps_load_acquire($0) } }
        nonmutating set { withUnsafeMutablePointer(to: &page.pointee.closed) { alps_store_release($0, newValue) } }
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

    var areLocksFree: Bool {
        withUnsafeMutablePointer(to: &page.pointee.read_lock) { alps_load_acquire($0) } == 0
            && withUnsafeMutablePointer(to: &page.pointee.write_lock) { alps_load_acquire($0) } == 0
    }

    /// Frees the locks that are held by threads which are no more.
    func freeLocksOfTheDead() {
        func free(_ word: UnsafeMutablePointer<UInt32>) {
            let value = alps_load_acquire(word)
            let holder = value & ~ALPS_RING_WAITED
            guard holder != 0, holder < ALPS_RING_OPENING, alps_thread_exists(holder) == 0 else { return }
            if alps_swap_lock_word(word, value, ALPS_RING_HOST | ALPS_RING_WAITED) != 0 { alps_unlock_word(word, ALPS_RING_WAITED) }
        }
        withUnsafeMutablePointer(to: &page.pointee.read_lock) { free($0) }
        withUnsafeMutablePointer(to: &page.pointee.write_lock) { free($0) }
    }

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
/// A list through the channels; one that leaves it in the middle of a turn lives until the turn's end.
final class StreamRingWatch {
    private var first: Borrowed<StreamChannel>?
    private var all: [ObjectIdentifier: Borrowed<StreamChannel>] = [:]
    /// See `share`. Times, ns.
    var nextShare: UInt64 = 0
    var lastShare: UInt64 = 0

    /// Sockets with rings.
    var count: Int { all.count }

    func ringMade(_ channel: StreamChannel) { all[ObjectIdentifier(channel)] = Borrowed(channel) }

    func ringEnded(_ channel: StreamChannel) { all[ObjectIdentifier(channel)] = nil }

    /// It may have been in the middle of something with a ring that others use, too.
    func processHasEnded() {
        forEach { $0.processHasEnded() }
    }

    func forEach(_ body: (StreamChannel) -> Void) {
        for channel in all.values { channel(body) }
    }

    func add(_ channel: StreamChannel) {
        channel.nextWatched = first
        first = Borrowed(channel)
    }

    func remove(_ channel: StreamChannel) {
        if let first, first.names(channel) {
            self.first = channel.nextWatched
            return
        }
        var each = first
        while let entry = each {
            each = entry { $0.nextWatched }
            if let each, each.names(channel) {
                entry { $0.nextWatched = channel.nextWatched }
                return
            }
        }
    }

    /// Takes over what clients have done.
    func look() {
        var each = first
        while let entry = each {
            each = entry { $0.nextWatched }
            entry { $0.lookAtRing() }
        }
    }

    /// Before the host sleeps: from now on clients ring. False if one has moved on meanwhile.
    func maySleep() -> Bool {
        var isQuiet = true
        var each = first
        while let entry = each {
            each = entry { $0.nextWatched }
            if !entry({ $0.setBells() }) { isQuiet = false }
        }
        return isQuiet
    }
}

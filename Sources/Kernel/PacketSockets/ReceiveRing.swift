import CLinux
import Glibc

/// A ring that frames are written into for a program that has mapped it (packet_mmap).
package class ReceiveRing {
    let request: RingRequest
    let memory: RingMemory
    /// Where this ring begins.
    let start: UnsafeMutableRawPointer

    init(_ request: RingRequest, _ memory: RingMemory, at offset: Int) {
        self.request = request
        self.memory = memory
        start = memory.base + offset
    }

    /// Copies `length` bytes of the frame from `origin` on. False: there is no room. `status` holds TP_STATUS_* bits beside
    /// TP_STATUS_USER.
    package func put(_ frame: LinkFrame, from origin: Int, length: Int, status: UInt32) -> Bool { false }

    /// Whether a slot has no room for all of that.
    func cuts(_ frame: LinkFrame, from origin: Int, length: Int) -> Bool { false }

    /// As poll(2) sees it: the program has not given back what was filled last.
    package var isReadable: Bool { false }

    /// The program has not given back what would be filled next.
    var isFull: Bool { false }

    /// Something has been filled that the program can take.
    package var onFilled: (() -> Void)?

    /// No more is written.
    package func close() {}

    // MARK: Parts of a slot

    static func store<Value: BitwiseCopyable>(_ value: Value, _ place: UnsafeMutableRawPointer, _ offset: Int) {
        place.storeBytes(of: value, toByteOffset: offset, as: Value.self)
    }

    /// The struct sockaddr_ll behind a header.
    final func storeName(_ frame: LinkFrame, _ place: UnsafeMutableRawPointer) {
        Self.store(UInt16(AF_PACKET), place, 0)
        Self.store(frame.protocolNumber.bigEndian, place, 2)
        Self.store(frame.ifindex, place, 4)
        Self.store(frame.hardwareType, place, 8)
        Self.store(frame.kind, place, 10)
        Self.store(UInt8(6), place, 11)
        // The sender's address.
        (place + 12).copyMemory(from: frame.bytes + 6, byteCount: 6)
        Self.store(UInt16(0), place, 18)
    }
}

/// TPACKET_V1 and TPACKET_V2: slots of one size, a frame in each.
package final class FrameRing: ReceiveRing {
    private var head = 0
    private var last: UnsafeMutableRawPointer?

    private func slot(_ index: Int) -> UnsafeMutableRawPointer {
        let (block, place) = index.quotientAndRemainder(dividingBy: request.framesPerBlock)
        return start + block * request.blockSize + place * request.frameSize
    }

    override func cuts(_ frame: LinkFrame, from origin: Int, length: Int) -> Bool {
        request.offsets(linkLength: origin == 0 ? frame.networkOffset : nil).frame + length > request.frameSize
    }

    package override func put(_ frame: LinkFrame, from origin: Int, length: Int, status: UInt32) -> Bool {
        let slot = slot(head)
        let offsets = request.offsets(linkLength: origin == 0 ? frame.networkOffset : nil)
        guard offsets.network <= 0xffff, alps_load_acquire(slot) == RingStatus.kernel else { return false }
        let kept = max(min(length, request.frameSize - offsets.frame), 0)
        if kept > 0 { (slot + offsets.frame).copyMemory(from: frame.bytes + origin, byteCount: kept) }
        let seconds = UInt32(truncatingIfNeeded: frame.timestamp / 1_000_000_000)
        let nanoseconds = UInt32(frame.timestamp % 1_000_000_000)
        let wireLength = UInt32(frame.length - origin)
        if request.version == 1 {
            Self.store(wireLength, slot, 8)
            Self.store(UInt32(kept), slot, 12)
            Self.store(UInt16(offsets.frame), slot, 16)
            Self.store(UInt16(offsets.network), slot, 18)
            Self.store(seconds, slot, 20)
            Self.store(nanoseconds / 1000, slot, 24)
            // The upper half of an unsigned long.
            Self.store(UInt32(0), slot, 4)
        } else {
            Self.store(wireLength, slot, 4)
            Self.store(UInt32(kept), slot, 8)
            Self.store(UInt16(offsets.frame), slot, 12)
            Self.store(UInt16(offsets.network), slot, 14)
            Self.store(seconds, slot, 16)
            Self.store(nanoseconds, slot, 20)
            Self.store(UInt64(0), slot, 24)  // no VLAN
        }
        storeName(frame, slot + RingRequest.headerSize(request.version))
        alps_store_release(slot, status | RingStatus.user)
        head = head + 1 == request.frameCount ? 0 : head + 1
        last = slot
        memory.noteFilled(slot)
        onFilled?()
        return true
    }

    package override var isReadable: Bool { last.map { alps_load_acquire($0) != RingStatus.kernel } ?? false }

    override var isFull: Bool { alps_load_acquire(slot(head)) != RingStatus.kernel }
}

/// TPACKET_V3: blocks that are filled with frames of any length and handed over whole, when they are full or old.
package final class BlockRing: ReceiveRing {
    private var current = 0
    /// Offset in the current block where the next frame goes.
    private var next = 0
    private var count: UInt32 = 0
    /// Of the frame before; 0: there is none in this block.
    private var previous = 0
    private var sequence: UInt64 = 0
    private var lastTime: UInt64 = 0
    /// The block after the last one is not given back yet: nothing is written until it is.
    private var isFrozen = false
    private var filled: UnsafeMutableRawPointer?
    private var timer: HostTimer?
    private let timeout: UInt64
    private let clock: KernelClock
    /// How often the ring froze (tp_freeze_q_cnt), since somebody set it to 0.
    package var freezes: UInt32 = 0
    /// Frames have been lost that the program has not heard of.
    package var isLosing: () -> Bool = { false }

    /// Offsets in a struct tpacket_block_desc.
    private enum Block {
        static let version = 0
        static let privateOffset = 4
        static let status = 8
        static let count = 12
        static let first = 16
        static let length = 20
        static let sequence = 24
        static let firstSeconds = 32
        static let firstFraction = 36
        static let lastSeconds = 40
        static let lastFraction = 44
    }

    /// A ring without a time-out has one of 8 ms.
    private static let defaultTimeout = 8

    init(_ request: RingRequest, _ memory: RingMemory, at offset: Int, kernel: Kernel) {
        timeout = UInt64(request.retireTimeout == 0 ? Self.defaultTimeout : request.retireTimeout) * 1_000_000
        clock = kernel.clock
        super.init(request, memory, at: offset)
        timer = HostTimer(kernel) { [unowned self] in expired() }
        open()
    }

    private func block(_ index: Int) -> UnsafeMutableRawPointer { start + index * request.blockSize }

    private func isOurs(_ block: UnsafeMutableRawPointer) -> Bool {
        alps_load_acquire(block + Block.status) == RingStatus.kernel
    }

    private func storeTime(_ time: UInt64, _ place: UnsafeMutableRawPointer, _ seconds: Int, _ fraction: Int) {
        Self.store(UInt32(truncatingIfNeeded: time / 1_000_000_000), place, seconds)
        Self.store(UInt32(time % 1_000_000_000), place, fraction)
    }

    /// Begins the current block, which is ours.
    private func open() {
        let block = block(current)
        sequence += 1
        isFrozen = false
        count = 0
        previous = 0
        next = request.blockHeader
        lastTime = clock.wall
        Self.store(UInt32(2), block, Block.version)  // TPACKET_V3
        Self.store(UInt32(RingRequest.blockDescriptor), block, Block.privateOffset)
        Self.store(UInt32(0), block, Block.count)
        Self.store(UInt32(next), block, Block.first)
        Self.store(UInt32(next), block, Block.length)
        Self.store(sequence, block, Block.sequence)
        storeTime(lastTime, block, Block.firstSeconds, Block.firstFraction)
    }

    /// Hands the current block over and goes on to the next, if that has been given back.
    private func retire(_ status: UInt32) {
        timer?.cancel()
        let block = block(current)
        storeTime(lastTime, block, Block.lastSeconds, Block.lastFraction)
        if previous > 0 { Self.store(UInt32(0), block, previous) }
        alps_store_release(block + Block.status, status | RingStatus.user | (isLosing() ? RingStatus.losing : 0))
        filled = block + Block.status
        memory.noteFilled(block + Block.status)
        current = current + 1 == request.blockCount ? 0 : current + 1
        if isOurs(self.block(current)) {
            open()
        } else {
            isFrozen = true
            freezes &+= 1
        }
        onFilled?()
    }

    private func expired() {
        if !isFrozen, count > 0 { retire(RingStatus.blockTimeout) }
    }

    package override func put(_ frame: LinkFrame, from origin: Int, length: Int, status: UInt32) -> Bool {
        if isFrozen {
            guard isOurs(block(current)) else { return false }
            open()
        }
        var offsets = request.offsets(linkLength: origin == 0 ? frame.networkOffset : nil)
        guard offsets.network <= 0xffff else { return false }
        let most = request.blockSize - request.blockHeader
        var kept = min(length, most - offsets.frame)
        if kept < 0 {
            kept = 0
            offsets.frame = most
        }
        let whole = (offsets.frame + kept + 7) & ~7
        if count > 0, next + whole >= request.blockSize {
            retire(0)
            guard !isFrozen else { return false }
        }
        let slot = block(current) + next
        if kept > 0 { (slot + offsets.frame).copyMemory(from: frame.bytes + origin, byteCount: kept) }
        Self.store(UInt32(whole), slot, 0)
        storeTime(frame.timestamp, slot, 4, 8)
        Self.store(UInt32(kept), slot, 12)
        Self.store(UInt32(frame.length - origin), slot, 16)
        Self.store(status | RingStatus.user, slot, 20)
        Self.store(UInt16(offsets.frame), slot, 24)
        Self.store(UInt16(offsets.network), slot, 26)
        // No hash, no VLAN.
        Self.store(UInt64(0), slot, 28)
        Self.store(UInt32(0), slot, 36)
        storeName(frame, slot + RingRequest.headerSize(3))
        previous = next
        next += whole
        count += 1
        lastTime = frame.timestamp
        let block = block(current)
        Self.store(count, block, Block.count)
        Self.store(UInt32(next), block, Block.length)
        if count == 1 { timer?.arm(after: timeout) }
        return true
    }

    package override var isReadable: Bool { filled.map { alps_load_acquire($0) != RingStatus.kernel } ?? false }

    override var isFull: Bool { isFrozen && !isOurs(block(current)) }

    package override func close() { timer?.cancel() }
}

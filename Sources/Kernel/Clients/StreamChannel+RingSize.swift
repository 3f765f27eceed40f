import ClientAPI

/// How much of its memory a send ring uses: what the path takes, as long as a near cache can hold what all use together.
extension StreamChannel {
    /// So much at first: a near cache can hold it.
    static let firstSendSpace: UInt32 = 1 << 20
    /// It has more room when it has been short of it for so long, ns.
    private static let shortTime: UInt64 = 1_000_000
    /// No share is smaller: with less, streams wait too often.
    private static let leastShare = 512 << 10

    /// Of `bytes` that so many share, a power of two.
    static func share(of bytes: Int, _ streams: Int) -> UInt32 {
        // The power of two above half of it is not larger than the whole.
        UInt32(max(leastShare, powerOfTwo(bytes / max(streams, 1) / 2 + 1)))
    }

    /// If the ring runs empty it is the writer that the path waits for. More room is no help then, and a ring that is larger
    /// than a near cache is slower.
    @inline(never)
    func considerExtending(_ socket: Socket, _ words: RingWords) {
        let send = socket.raw.pointee.snd
        let wanted = min(ring?.wantedSendSpace ?? 0, sendCeiling)
        guard let ring, socket.isSendMapped, send.head != send.tail, wanted > send.capacity else {
            isSendRingShort = false
            return
        }
        guard kernel.clock.now &- ring.shortSince >= Self.shortTime,
            resize(socket, words, to: UInt32(Self.powerOfTwo(Int(wanted))))
        else { return }
        socket.kernel.sockets.count(.ringsExtended)
        socket.setSendLimit(wanted)
        isSendRingShort = false
    }

    /// Whether it is fast: `least` bytes or more have been acknowledged since the last time.
    func noteSending(least: UInt64) -> Bool {
        guard let ring else { return false }
        let moved = borrowed { $0.raw.pointee.snd.head } &- ring.lastSendHead
        ring.lastSendHead &+= moved
        ring.isFast = isActive(ALPS_RING_SEND) && moved >= least
        return ring.isFast
    }

    /// A fast stream uses no more of its ring than `share`, bytes, a power of two.
    func fitSendRing(_ share: UInt32) {
        guard let ring, let words else { return }
        ring.sendCeiling = ring.isFast ? share : .max
        guard ring.isFast else { return }
        borrowed { socket in
            let send = socket.raw.pointee.snd
            guard socket.isSendMapped, !socket.isSendSizeChosen, send.capacity > share else { return }
            // Writers stop there, so that it fits the next time.
            socket.raw.pointee.snd.limit = min(send.limit, share)
            if resize(socket, words, to: share) { socket.kernel.sockets.count(.ringsShrunk) }
        }
    }

    /// False if a writer is at it, or a packet refers to what would move, or there is too much in it: then the next time.
    private func resize(_ socket: Socket, _ words: RingWords, to capacity: UInt32) -> Bool {
        guard words.tryLockWriting() else { return false }
        defer { words.unlockWriting() }
        takeFromRing(socket, words)
        let send = socket.raw.pointee.snd
        guard isOpen, send.ext?.pointee.references == 1, send.tail &- send.head <= UInt64(capacity) else { return false }
        socket.resizeSendRing(to: capacity)
        words.sendSize = capacity
        words.sendLimit = socket.raw.pointee.snd.limit
        return true
    }
}

extension StreamRingWatch {
    /// Streams that are fast share what a cache can hold: what they write comes back from there to be sent, and the rings go
    /// round so soon that none needs more for itself. Once a turn; mostly it is not time yet.
    @inline(__always)
    func share(_ kernel: Kernel) {
        if kernel.clock.now >= nextShare { shareNow(kernel) }
    }

    @inline(never)
    private func shareNow(_ kernel: Kernel) {
        let now = kernel.clock.now
        let time = now &- lastShare
        lastShare = now
        nextShare = now &+ Self.period &+ UInt64(count) &* Self.periodOfEach
        let all = kernel.sockets.ringShare.value
        let least = Double(kernel.sockets.fastRing.value) * Double(time) / 1e9
        var streams = 0
        forEach { if $0.noteSending(least: all > 0 ? max(UInt64(least), 1) : .max) { streams += 1 } }
        let share = StreamChannel.share(of: Int(all), streams)
        forEach { $0.fitSendRing(share) }
    }

    /// So often, ns, and less often for each stream with rings, so that looking at a thousand takes little of the time.
    private static let period: UInt64 = 10_000_000
    private static let periodOfEach: UInt64 = 20_000
}

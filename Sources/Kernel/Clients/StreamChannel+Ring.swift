import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// The rings of a stream socket (stream-ring.h), seen from the host.
extension StreamChannel {
    // MARK: Opening and closing

    /// ALPS_OP_STREAM_RING. 0, and what the asker gets to know; EAGAIN: not now; EOPNOTSUPP: never.
    func openRing(_ socket: Socket, _ directions: UInt32) -> (error: Int32, information: alps_stream_ring_info) {
        var information = alps_stream_ring_info()
        let both = ALPS_RING_RECEIVE | ALPS_RING_SEND
        guard directions & both != 0, directions & ~both == 0 else { return (EINVAL, information) }
        guard socket.kernel.sockets.ringSpace.value > 0, directions & staysInBand == 0 else { return (EOPNOTSUPP, information) }
        guard isOpen, socket.isConnected, !socket.isDisconnected else { return (EAGAIN, information) }
        stopLooking()
        closeOptionWord(socket)
        var opened: UInt32 = 0
        if directions & ALPS_RING_RECEIVE != 0, !isActive(ALPS_RING_RECEIVE), !needsPairToReceive(socket),
            hasRoom(ALPS_RING_RECEIVE, socket.raw.pointee.rcv)
        {
            opened |= ALPS_RING_RECEIVE
        }
        // All that was written is taken over by now, or there is no room for it.
        let maySend = !socket.cannotSendMore && !applicationWillWriteNoMore && socket.raw.pointee.snd.low_water == 0 && isPairTaken
        if directions & ALPS_RING_SEND != 0, !isActive(ALPS_RING_SEND), maySend,
            hasRoom(ALPS_RING_SEND, socket.raw.pointee.snd)
        { opened |= ALPS_RING_SEND }
        guard let ring = ring ?? (opened == 0 ? nil : makeRing(socket)), activeRings | opened != 0 else {
            return (EAGAIN, information)
        }
        if opened & ALPS_RING_RECEIVE != 0 { beginReceiving(socket, ring) }
        if opened & ALPS_RING_SEND != 0 { beginSending(socket, ring) }
        setActive(activeRings | opened, ring.words)
        for _ in 0..<opened.nonzeroBitCount { socket.kernel.sockets.count(.ringsOpened) }
        publish(socket, ring.words)
        watchRing()
        information.bytes = UInt64(ring.bytes)
        information.directions = activeRings
        information.is_first = opened
        return (0, information)
    }

    /// A buffer that has grown since the file was made, for the other direction, stays where it is.
    private func hasRoom(_ direction: UInt32, _ buffer: alps_sockbuf) -> Bool {
        guard let ring else { return true }
        return ring.capacity(direction) >= max(buffer.capacity, buffer.limit)
    }

    private func makeRing(_ socket: Socket) -> StreamRing? {
        let layer = socket.kernel.sockets
        guard socket.kernel.streamRings.count < layer.maxRings.value else { return nil }
        func capacity(_ buffer: alps_sockbuf) -> Int {
            Self.powerOfTwo(max(Int(layer.ringSpace.value), Int(buffer.limit), Int(buffer.capacity), 1 << 16))
        }
        let (receive, send) = (capacity(socket.raw.pointee.rcv), capacity(socket.raw.pointee.snd))
        guard receive <= 1 << 30, send <= 1 << 30 else { return nil }
        ring = StreamRing(receiveCapacity: receive, sendCapacity: send)
        words = ring?.words
        if ring != nil { kernel.streamRings.ringMade(self) }
        return ring
    }

    /// The least one that is not smaller.
    static func powerOfTwo(_ bytes: Int) -> Int { 1 << (Int.bitWidth - (bytes - 1).leadingZeroBitCount) }

    func isActive(_ direction: UInt32) -> Bool { activeRings & direction != 0 }

    private func setActive(_ directions: UInt32, _ ring: RingWords) {
        activeRings = directions
        ring.closed = ~directions & (ALPS_RING_RECEIVE | ALPS_RING_SEND)
    }

    private func beginReceiving(_ socket: Socket, _ ring: StreamRing) {
        if !socket.isReceiveMapped { socket.moveReceiveBuffer(to: ring.storage(ALPS_RING_RECEIVE)) }
        ring.words.lockReadingForOpening()
        ring.words.receiveHead = 0
        ring.words.receiveInband = socket.raw.pointee.rcv.head
    }

    private func beginSending(_ socket: Socket, _ ring: StreamRing) {
        if !socket.isSendMapped {
            let least = max(Self.firstSendSpace, socket.raw.pointee.snd.capacity, socket.raw.pointee.snd.limit)
            let capacity = min(Self.powerOfTwo(Int(least)), Int(ring.capacity(ALPS_RING_SEND)))
            socket.moveSendBuffer(to: ring.storage(ALPS_RING_SEND), capacity: UInt32(capacity))
        }
        ring.lastSendHead = socket.raw.pointee.snd.head
        ring.words.sendSize = socket.raw.pointee.snd.capacity
        ring.words.sendTail = socket.raw.pointee.snd.tail
        ring.words.pairDrained = ring.words.pairFinished
    }

    /// ALPS_OP_STREAM_PAIR: the asker holds the locks.
    func returnToPair(_ socket: Socket, _ directions: UInt32) {
        if directions & ALPS_RING_NEVER_AGAIN != 0 { staysInBand |= directions }
        closeRing(socket, directions)
        pump(socket)
    }

    private func closeRing(_ socket: Socket, _ directions: UInt32) {
        guard let ring = words else { return }
        let closing = directions & activeRings
        guard closing != 0 else { return }
        if closing & ALPS_RING_SEND != 0 { takeFromRing(socket, ring) }
        if closing & ALPS_RING_RECEIVE != 0 {
            noteRead(socket, ring)
            // The pair has the rest of what lies before this.
            let passed = ring.receiveInband
            if isPosition(passed, in: socket), passed > socket.raw.pointee.rcv.head {
                socket.receiveConsume(Int(passed &- socket.raw.pointee.rcv.head))
            }
        }
        setActive(activeRings & ~closing, ring)
        if closing & ALPS_RING_SEND != 0 { self.ring?.sendCeiling = .max }
        for _ in 0..<closing.nonzeroBitCount { socket.kernel.sockets.count(.ringsClosed) }
        // While readers are kept out: a read that does not wait must find what there is.
        if closing & ALPS_RING_RECEIVE != 0, isOpen { pushReceived(socket) }
        mayHaveUnread = true
        socket.markDirty()
    }

    /// Something that only the pair can show: urgent data, the end of the stream, a reset.
    private func needsPairToReceive(_ socket: Socket) -> Bool {
        socket.cannotReceiveMore || socket.isDisconnected || hasUrgent(socket)
    }

    private func hasUrgent(_ socket: Socket) -> Bool { socket.urgent.isAhead || socket.urgent.isPending }

    /// What the pair takes at once: with no more left a read brings as much as before when the ring is closed, and the end of
    /// the connection or a reset shows at once.
    private static let restForPair = 131_072

    /// The pair has been closed: whoever uses the ring finds out.
    func endRing() {
        guard let ring = words else { return }
        setActive(0, ring)
        unwatchRing()
        kernel.streamRings.ringEnded(self)
        words = nil
        self.ring = nil
    }

    // MARK: From clients

    /// What writers have put into the ring goes on its way. True if there was something.
    @discardableResult
    func takeFromRing(_ socket: Socket, _ ring: RingWords) -> Bool {
        guard isActive(ALPS_RING_SEND) else { return false }
        let tail = countWithCork(socket) { ring.sendTail }
        let known = socket.raw.pointee.snd.tail
        guard tail != known else { return false }
        guard tail &- known <= UInt64(socket.raw.pointee.snd.capacity),
            tail &- socket.raw.pointee.snd.head <= UInt64(socket.raw.pointee.snd.capacity)
        else { return violate(socket) }
        guard socket.isConnected, !socket.cannotSendMore, !socket.isDisconnected else { return false }
        socket.sendCommit(Int(tail &- known))
        return true
    }

    /// Takes over the ring and then, when a good part of the ring is free, what has been written into the pair because it
    /// was not. True if nothing is left there.
    func takeFromRingAndPair(_ socket: Socket, _ ring: RingWords) -> Bool {
        takeFromRing(socket, ring)
        guard isOpen else { return false }
        let finished = ring.pairFinished
        guard mayHaveUnread || finished != ring.pairDrained else { return true }
        if !applicationWillWriteNoMore, !isRoomy(socket) {
            socket.isWriterWaiting = true
            return false
        }
        needsWriteLock = !applicationIsGone && !ring.tryLockWriting()
        if needsWriteLock {
            watchRing()
            return false
        }
        if finished != ring.pairDrained { growIfDry(socket) }
        takeFromRing(socket, ring)
        mayHaveUnread = true
        if isOpen { takeFromPair(socket) }
        guard isOpen else { return false }
        ring.sendTail = socket.raw.pointee.snd.tail
        if !mayHaveUnread { ring.pairDrained = finished }
        if !applicationIsGone { ring.unlockWriting() }
        ring.wakeWriters()
        return !mayHaveUnread
    }

    /// The writer has found the ring full, and now all of it is acknowledged: with more room neither waits for the other.
    private func growIfDry(_ socket: Socket) {
        let send = socket.raw.pointee.snd
        guard send.head == send.tail, send.limit < send.capacity else { return }
        _ = socket.grow(isSend: true, min(2 &* send.limit, send.capacity))
    }

    /// A third of the ring is free: a writer that has found it full may go on.
    private func isRoomy(_ socket: Socket) -> Bool {
        let used = socket.raw.pointee.snd.tail &- socket.raw.pointee.snd.head
        let limit = UInt64(socket.raw.pointee.snd.limit)
        return used &+ limit / 3 <= limit
    }

    /// Something has been written into the pair that the writers do not know to be taken.
    private func isPairBehind(_ ring: RingWords) -> Bool {
        isActive(ALPS_RING_SEND) && ring.pairFinished != ring.pairDrained
    }

    /// How far readers have come. True if further than before.
    @discardableResult
    func noteRead(_ socket: Socket, _ ring: RingWords) -> Bool {
        guard isActive(ALPS_RING_RECEIVE) else { return false }
        let head = ring.receiveHead
        // Behind while what was put into the pair before is being read.
        guard head > socket.raw.pointee.rcv.head else { return false }
        guard isPosition(head, in: socket) else { return violate(socket) }
        socket.receiveConsume(Int(head &- socket.raw.pointee.rcv.head))
        return true
    }

    /// Whether a client can have read up to there.
    private func isPosition(_ position: UInt64, in socket: Socket) -> Bool {
        position &- socket.raw.pointee.rcv.head <= UInt64(socket.receiveAvailable)
    }

    @inline(never)
    private func violate(_ socket: Socket) -> Bool {
        socket.kernel.sockets.count(.ringViolations)
        socket.kernel.log.write(UInt32(ALPS_LOG_WARNING), nil) {
            "process \(socket.owner.pid) (\(socket.owner.program)) broke the rules of its ring, and its connection was reset"
        }
        socket.abort()
        return false
    }

    // MARK: To clients

    /// What has come, and what has been acknowledged.
    func publish(_ socket: Socket, _ ring: RingWords) {
        if isSendRingShort { considerExtending(socket, ring) }
        if isActive(ALPS_RING_SEND) {
            if socket.isDisconnected || socket.cannotSendMore {
                setActive(activeRings & ~ALPS_RING_SEND, ring)
                socket.kernel.sockets.count(.ringsClosed)
            } else {
                showRoom(socket, ring)
            }
        }
        if isActive(ALPS_RING_RECEIVE) {
            ring.receiveTail = socket.raw.pointee.rcv.head &+ UInt64(socket.receiveAvailable)
            showReadable(socket, ring)
        }
    }

    private func showRoom(_ socket: Socket, _ ring: RingWords) {
        ring.sendHead = socket.raw.pointee.snd.head
        ring.sendLimit = socket.raw.pointee.snd.limit
        alps_full_fence()
        guard ring.isRoomWaitedFor, isRoomy(socket) else { return }
        growIfDry(socket)
        ring.sendLimit = socket.raw.pointee.snd.limit
        ring.wakeForRoom()
    }

    /// Keeps the next byte of a ring that is not empty in the pair. False if a client holds the lock.
    private func showReadable(_ socket: Socket, _ ring: RingWords) {
        needsReadLock = false
        guard isUnusual(socket) || lacksByteInPair(socket, ring) else { return }
        guard ring.tryLockReading() else {
            needsReadLock = true
            watchRing()
            return
        }
        noteRead(socket, ring)
        if isUnusual(socket) {
            closeRing(socket, ALPS_RING_RECEIVE)
        } else if lacksByteInPair(socket, ring), isOpen {
            let (first, _) = socket.receivePieces()
            if send(descriptor, first.baseAddress, 1, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) == 1 {
                ring.receiveInband = socket.raw.pointee.rcv.head &+ 1
            } else if errno == ENOBUFS || errno == ENOMEM || errno == EAGAIN {
                retryLater()
            } else {
                // The application reads no more.
                closeRing(socket, ALPS_RING_RECEIVE)
            }
        }
        ring.unlockReading()
    }

    /// Only the pair can show what happens.
    private func isUnusual(_ socket: Socket) -> Bool {
        let isAtEnd = socket.cannotReceiveMore || socket.isDisconnected
        return hasUrgent(socket) || applicationReadsNoMore || isAtEnd && socket.receiveAvailable <= Self.restForPair
    }

    private func lacksByteInPair(_ socket: Socket, _ ring: RingWords) -> Bool {
        guard socket.receiveAvailable > 0 else { return false }
        let head = ring.receiveHead
        return head >= ring.receiveInband && head == socket.raw.pointee.rcv.head
    }

    // MARK: Processes that end in the middle

    /// Some process has ended: if something looks as if it had been the one that did it, this looks again until it is certain,
    /// as threads go later than descriptors.
    func processHasEnded() {
        guard let words, isOpen else { return }
        borrowed { socket in
            guard !words.areLocksFree || isReadWithoutRing(socket, words) else { return }
            examinations = 100
            retryLater()
        }
    }

    func examineLocks(_ socket: Socket, _ ring: RingWords) {
        examinations -= 1
        if socket.owner.sharesProcessNumbers { ring.freeLocksOfTheDead() }
        if isReadWithoutRing(socket, ring), ring.tryLockReading() {
            // It has taken the byte with it that stands for what is in the ring.
            if isReadWithoutRing(socket, ring) { ring.receiveHead = ring.receiveInband }
            ring.unlockReading()
        }
        if ring.areLocksFree { examinations = 0 }
        if examinations > 0 { retryLater() }
    }

    private func isReadWithoutRing(_ socket: Socket, _ ring: RingWords) -> Bool {
        isActive(ALPS_RING_RECEIVE) && socket.receiveAvailable > 0 && ring.receiveHead == socket.raw.pointee.rcv.head
            && ring.receiveInband > socket.raw.pointee.rcv.head && alps_bytes_not_taken(descriptor) == 0
    }

    /// The byte that stands for what is in the ring has been read from the pair, and the ring has not been touched since: by
    /// code that knows nothing of it, and would wait for ever.
    private func returnIfReadWithoutRing(_ socket: Socket, _ ring: RingWords) {
        guard isOpen, isReadWithoutRing(socket, ring), ring.tryLockReading() else { return }
        if isReadWithoutRing(socket, ring) {
            staysInBand = ALPS_RING_RECEIVE | ALPS_RING_SEND
            closeRing(socket, ALPS_RING_RECEIVE)
        }
        ring.unlockReading()
    }

    // MARK: Watching

    func watchRing() {
        guard !isWatched, let words else { return }
        isWatched = true
        words.setBells(read: 0, write: 0)
        kernel.streamRings.add(self)
    }

    private func unwatchRing() {
        guard isWatched else { return }
        isWatched = false
        kernel.streamRings.remove(self)
    }

    /// Once a turn while the host is awake.
    func lookAtRing() {
        guard let ring = words else { return }
        borrowed { socket in
            let hasWritten = takeFromRing(socket, ring)
            let hasRead = noteRead(socket, ring)
            guard hasWritten || hasRead || needsReadLock || needsWriteLock || isPairBehind(ring) else { return }
            pump(socket)
        }
    }

    /// The host is about to sleep. False if a client has moved on meanwhile.
    func setBells() -> Bool {
        guard let ring = words else { return true }
        return borrowed { socket in
            let used = socket.raw.pointee.rcv.tail &- socket.raw.pointee.rcv.head
            let isFull = used > UInt64(socket.raw.pointee.rcv.limit) / 2
            ring.setBells(read: isFull || needsReadLock || needsPairToReceive(socket) ? 2 : 1, write: 1)
            alps_full_fence()
            let hasMoved = isActive(ALPS_RING_SEND) && ring.sendTail != socket.raw.pointee.snd.tail
                || isActive(ALPS_RING_RECEIVE) && ring.receiveHead > socket.raw.pointee.rcv.head
            if hasMoved || isPairBehind(ring) && isRoomy(socket) {
                ring.setBells(read: 0, write: 0)
                return false
            }
            // Whoever holds a lock now rings after freeing it, unless it dies.
            if needsReadLock || needsWriteLock { retryLater() }
            unwatchRing()
            return true
        }
    }

    /// Nothing has moved for a while: an idle ring keeps no memory.
    func releasePages(_ socket: Socket) {
        if let words { returnIfReadWithoutRing(socket, words) }
        let (receive, send) = (socket.raw.pointee.rcv, socket.raw.pointee.snd)
        // A reader or writer that is in the middle of a copy holds its lock.
        guard let ring, receive.head == receive.tail, send.head == send.tail, socket.idle.placedEnd <= receive.tail,
            ring.words.tryLockWriting()
        else { return }
        if ring.words.tryLockReading() {
            if ring.words.sendTail == send.tail { ring.releasePages() }
            ring.words.unlockReading()
        }
        ring.words.unlockWriting()
    }
}

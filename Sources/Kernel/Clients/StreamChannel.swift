import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// A stream socket. Its payload travels in the pair, or, once a client has asked for that, in rings of shared memory beside it
/// (StreamChannel+Ring.swift).
///
/// The host always leaves one application byte unread in its end: the seed byte at first, later the last byte of what the
/// application wrote (or several: `takeSmall`), which has been peeked at and is in the send ring already. So closing the host's end, or the host's
/// death, is ECONNRESET for the application and never a clean end of file.
final class StreamChannel: Channel {
    /// TCP_CORK in shared memory (CorkWords.swift).
    var cork: CorkFollowing?
    /// Of an accepted stream that nothing has been taken from yet (OptionWords.swift).
    var optionWord: (OptionWords, UInt16)?
    /// Rings, once there are some.
    var ring: StreamRing?
    var words: RingWords?
    /// In the list of those whose rings the host looks at every turn.
    var nextWatched: Borrowed<StreamChannel>?
    var isWatched = false
    /// ALPS_RING_*: directions that use them.
    var activeRings: UInt32 = 0
    /// A client held the lock that the host needed.
    var needsReadLock = false
    var needsWriteLock = false
    /// Times that the locks are still to be looked at, after the death of a process.
    var examinations: UInt8 = 0
    /// The path may take more than the send ring has room for.
    var isSendRingShort = false
    /// ALPS_RING_*: directions that code that knows nothing of rings may use.
    var staysInBand: UInt32 = 0
    /// Filler bytes that make the pair unwritable until a non-blocking connect is done.
    private var plug: UInt32 = 0
    /// A failed connect is told by closing the pair; a blocking one leaves it alone, since it may be tried again.
    private var failsByClosing: Bool
    private(set) var applicationWillWriteNoMore = false
    private(set) var applicationIsGone = false
    /// It closed with data unread: then the peer must not believe that they were taken (RFC 9293, section 3.6.1).
    private var leftUnread = false
    private var endOfStreamTold = false
    private var refusesWrites = false
    /// There may be bytes in the pair that have not been looked at: saves a system call in turns that bring none. The seed byte
    /// makes an event of its own.
    var mayHaveUnread = false
    /// It has shut down reading.
    var applicationReadsNoMore = false
    /// Small messages are looked at only, each with one call, and read away some at a time (SO_PEEK_OFF).
    private var looksOnly = false
    /// Those since the last time; without looking: since the beginning.
    private var smallMessages: UInt8 = 0
    /// Bytes in the pair that have been taken: the carry byte, and what has been looked at before it.
    private var lookedAt: UInt16 = 1
    private static let smallMessage = 512
    /// Bytes one socket may move in one turn before others get theirs.
    private static let budget = 1 << 20

    /// `isAccepted`: a connection that is there already.
    init(_ socket: Socket, descriptor: Int32, cookie: UInt64, isAccepted: Bool) throws {
        failsByClosing = isAccepted
        try super.init(socket, descriptor: descriptor, cookie: cookie)
    }

    deinit { closePair() }

    /// A non-blocking connect has begun, with `bytes` of filler in the pair.
    func expectPlug(_ bytes: UInt32) {
        plug = bytes
        failsByClosing = true
    }

    override func ready(_ events: UInt32) {
        let hangUp = UInt32(EPOLLHUP.rawValue)
        if events & (UInt32(alps_EPOLLRDHUP) | hangUp) != 0 { applicationWillWriteNoMore = true }
        if events & hangUp != 0, !applicationIsGone {
            applicationIsGone = true
            if isReset { leftUnread = true }
        }
        if events & ~UInt32(EPOLLOUT.rawValue) != 0 { mayHaveUnread = true }
        borrowed { pump($0) }
    }

    /// Whether the kernel reports ECONNRESET on our end.
    private var isReset: Bool {
        var error: Int32 = 0
        var length = socklen_t(4)
        return getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == ECONNRESET
    }

    override func update(_ socket: Socket) { pump(socket) }

    override func drain() {
        borrowed { socket in
            // Nobody else will see that something was read: after a reset it may have been the last of it.
            if let words, noteRead(socket, words) { socket.markDirty() }
            takeWritten(socket)
            if optionWord != nil { lookAtOptionWord(socket) }
        }
    }

    override func sendRingIsShort(_ bytes: UInt32) {
        guard let ring, ring.capacity(ALPS_RING_SEND) > borrowed({ $0.raw.pointee.snd.capacity }) else { return }
        if !isSendRingShort { ring.shortSince = kernel.clock.now }
        ring.wantedSendSpace = min(bytes, ring.capacity(ALPS_RING_SEND))
        isSendRingShort = true
    }

    override var sendCeiling: UInt32 { ring?.sendCeiling ?? .max }

    override func bell() {
        kernel.sockets.count(.ringBells)
        watchRing()
        // Or what is held back is to go.
        if cork != nil { mayHaveUnread = true }
        borrowed { pump($0) }
    }

    override func buffersAreIdle(_ socket: Socket) {
        readAway()
        if words == nil { super.buffersAreIdle(socket) } else { releasePages(socket) }
    }

    override func pairCloses() {
        endRing()
        if let cork { cork.table.enter(cork.index, nil) }
        cork = nil
        if let (words, index) = optionWord { words.close(index) }
        optionWord = nil
    }

    func pump(_ socket: Socket) {
        guard isOpen else { return }
        if let words {
            watchRing()
            if examinations > 0 { examineLocks(socket, words) }
            takeFromRing(socket, words)
            noteRead(socket, words)
            guard isOpen else { return }
        }
        if socket.isConnected { failsByClosing = true }
        // SO_LINGER with no time: it is not to wait for anything either.
        let endsAtOnce = leftUnread || socket.receiveAvailable > 0 || socket.isConnected && socket.raw.pointee.linger == 0
        if applicationIsGone, endsAtOnce {
            // At once, even if something has to wait for the peer's window: the peer may be waiting for us to read. What
            // may go now was written before and goes before the reset.
            if mayHaveUnread { takeWritten(socket, finishes: false) }
            if isOpen { socket.abort() }
            return
        }
        let mayTake = mayHaveUnread || applicationWillWriteNoMore || words != nil
        if mayTake, !socket.isConnecting || applicationIsGone { takeWritten(socket) }
        guard isOpen, !socket.isClosed else { return }
        if mayHaveUnread, socket.isConnecting, Int(alps_bytes_waiting(descriptor)) - 1 > Int(plug), hasPassedDescriptors {
            // As in `takeWritten`, which waits for the connection.
            return socket.abort()
        }
        if let words { publish(socket, words) }
        if activeRings & ALPS_RING_RECEIVE == 0 { pushReceived(socket) }
        guard isOpen else { return }
        if socket.isDisconnected, socket.pendingError != 0, failsByClosing {
            if socket.receiveAvailable == 0 || applicationIsGone { endPair() } else { refuseWrites() }
        }
    }

    /// After an error: what has come before can still be read, but nothing written.
    private func refuseWrites() {
        guard !refusesWrites else { return }
        refusesWrites = true
        Glibc.shutdown(descriptor, Int32(SHUT_RD))
    }

    /// After an error: the application finds ECONNRESET in its pair and asks for the true one.
    private func endPair() {
        if applicationIsGone {
            socket.close()
        } else {
            closeFailed()
        }
    }

    // MARK: From the application

    /// `finishes`: the end of what was written is passed on, too.
    private func takeWritten(_ socket: Socket, finishes: Bool = true) {
        defer { if cork != nil { releaseCork(socket) } }
        if let words, activeRings & ALPS_RING_SEND != 0 {
            guard takeFromRingAndPair(socket, words) else { return }
        } else {
            guard takeFromPair(socket) else { return }
        }
        if finishes { finishWriting() }
    }

    /// All that is written has been taken from the pair.
    var isPairTaken: Bool { plug == 0 && alps_bytes_waiting(descriptor) <= lookedAt }

    /// True if nothing is left.
    @discardableResult
    func takeFromPair(_ socket: Socket) -> Bool {
        if looksOnly, takeSmall(socket) { return isOpen }
        var budget = Self.budget
        while isOpen {
            let unread = countWithCork(socket) { Int(alps_bytes_waiting(descriptor)) - 1 }
            if plug > 0 {
                guard socket.isConnected || applicationIsGone else {
                    if !socket.isConnecting, hasPassedDescriptors { socket.abort() }
                    return false
                }
                guard dropPlug(unread) else { return true }
                continue
            }
            if unread <= 0 {
                mayHaveUnread = false
                return true
            }
            let isConnection = socket.isConnected || socket.isConnecting
            guard !socket.isClosed, !socket.cannotSendMore, !socket.isDisconnected, isConnection || !applicationIsGone
            else {
                // Nobody will ever send it.
                guard discard(unread) else { return true }
                continue
            }
            guard isConnection else {
                if hasPassedDescriptors { socket.abort() }
                return false
            }
            let count = min(unread, socket.sendSpace)
            guard count > 0 else { return false }
            guard budget > 0 else {
                socket.markDirty()
                return false
            }
            if optionWord != nil { closeOptionWord(socket) }
            let taken = take(socket, count)
            guard isOpen else { return false }
            guard taken > 0 else {
                retryLater()
                return false
            }
            // What comes meanwhile is an event of its own.
            if taken == unread {
                mayHaveUnread = false
                if taken <= Self.smallMessage { noteSmall() }
                return true
            }
            budget -= taken
        }
        return false
    }

    /// With a small message in one call, where three are needed otherwise. True if nothing is left.
    private func takeSmall(_ socket: Socket) -> Bool {
        guard words == nil, socket.isConnected, !socket.isDisconnected, !socket.cannotSendMore, !socket.isClosed else {
            stopLooking()
            return false
        }
        let wanted = wantedCork
        let piece = socket.sendPieces()?.first
        let room = min(piece?.count ?? 0, Self.smallMessage)
        var passes: Int32 = 0
        let got = room > 0 ? alps_peek(descriptor, piece?.baseAddress, room, &passes) : 0
        let error = errno
        if cork != nil { lookAtCork(socket) }
        if got > 0 {
            lookedAt += UInt16(got)
            smallMessages += 1
            socket.sendCommit(got)
            // See `take`.
            if passes != 0 { socket.abort() }
            guard isOpen else { return true }
            // What lies there is charged to the writer by buffer, which must not find the pair full for that.
            if lookedAt > 2 * Self.smallMessage || smallMessages == 8 { readAway() }
        } else if got < 0, error == ECONNRESET {
            // Told once, and the event that asks for it is still to come.
            leftUnread = true
        }
        let isLong = got == room || got < 0 && error != EAGAIN && error != ECONNRESET
        if isLong {
            stopLooking()
        } else if releasesMore(since: wanted) {
            return takeSmall(socket)
        } else {
            mayHaveUnread = false
        }
        return !isLong
    }

    private func noteSmall() {
        guard !looksOnly, words == nil, smallMessages < 3 else { return }
        smallMessages += 1
        guard smallMessages == 3 else { return }
        looksOnly = lookFrom(1)
        if looksOnly { smallMessages = 0 }
    }

    private func lookFrom(_ position: Int32) -> Bool {
        var position = position
        return setsockopt(descriptor, SOL_SOCKET, SO_PEEK_OFF, &position, 4) == 0
    }

    func stopLooking() {
        guard looksOnly else { return }
        readAway()
        looksOnly = false
        _ = lookFrom(-1)
    }

    /// Reads away what has been looked at, but for the carry byte.
    private func readAway() {
        guard lookedAt > 1, discard(Int(lookedAt) - 1) else { return }
        lookedAt = 1
        smallMessages = 0
    }

    /// Reads the carry byte away, then `count` new bytes into the send ring, the last of which stays in the pair. Returns
    /// how many: fewer where the application has passed descriptors along, since a read ends at such a message.
    private func take(_ socket: Socket, _ count: Int) -> Int {
        guard let (first, second) = socket.sendPieces() else { return 0 }
        // All but the last byte of the new ones.
        let whole = count - 1
        let got = readBehindCarry(whole, first, second, isAtStart: socket.isSendRingAtStart)
        guard got > 0 else { return 0 }
        let before = got - 1
        let last = before < first.count ? first.baseAddress! + before : second.baseAddress! + (before - first.count)
        var passes: Int32 = 0
        let hasCarry = alps_peek(descriptor, last, 1, &passes) == 1
        let taken = hasCarry ? got : before
        if taken > 0 { socket.sendCommit(taken) }
        // The byte that stays must not keep anything alive, see `hasPassedDescriptors`. No call of TCP passes descriptors.
        if passes != 0 { socket.abort() }
        return taken
    }

    /// Reads the carry byte away and `count` new bytes into the pieces. Returns how many with the carry byte, as read(2).
    private func readBehindCarry(
        _ count: Int, _ first: UnsafeMutableRawBufferPointer, _ second: UnsafeMutableRawBufferPointer, isAtStart: Bool
    ) -> Int {
        guard let base = first.baseAddress, !isAtStart, count <= first.count else {
            var carry: UInt8 = 0
            let head = min(count, first.count)
            return withUnsafeMutablePointer(to: &carry) { carry in
                withUnsafeTemporaryAllocation(of: iovec.self, capacity: 3) { parts in
                    parts[0] = iovec(iov_base: carry, iov_len: 1)
                    parts[1] = iovec(iov_base: first.baseAddress, iov_len: head)
                    parts[2] = iovec(iov_base: second.baseAddress, iov_len: count - head)
                    return readv(descriptor, parts.baseAddress!, 3)
                }
            }
        }
        // In one piece, which costs the kernel less: the byte of the stream in front makes room for the moment.
        let place = base - 1
        let kept = place.load(as: UInt8.self)
        let got = recv(descriptor, place, count + 1, 0)
        place.storeBytes(of: kept, as: UInt8.self)
        return got
    }

    /// Takes filler away; its last byte becomes the carry byte. False if it has not all arrived yet.
    private func dropPlug(_ unread: Int) -> Bool {
        let count = min(Int(plug), unread)
        guard count > 0, discard(count) else { return false }
        plug -= UInt32(count)
        return true
    }

    /// Reads `count` bytes away, so that one byte is left as before. False if they could not be had.
    private func discard(_ count: Int) -> Bool {
        var left = count
        withUnsafeTemporaryAllocation(byteCount: 16384, alignment: 16) { scratch in
            while left > 0 {
                let got = recv(descriptor, scratch.baseAddress!, min(left, scratch.count), Int32(MSG_DONTWAIT))
                guard got > 0 else { break }
                left -= got
            }
        }
        return left == 0
    }

    /// Everything written has been taken: what the application has ended ends here too.
    private func finishWriting() {
        guard isOpen, applicationWillWriteNoMore else { return }
        if applicationIsGone {
            if socket.isConnecting {
                socket.abort()
            } else {
                if endOfStreamTold {
                    // Both directions have ended. The kernel does not tell whether the application has closed or only
                    // shut down writing; either way there is nothing left to say to it. Without the carry byte our
                    // closing is a clean end.
                    _ = discard(Int(lookedAt))
                    kernel.server?.remember(socket)
                    closePair()
                }
                socket.close()
            }
        } else if socket.isConnected, !socket.cannotSendMore {
            _ = socket.shutdown(Int32(ALPS_SHUT_WR))
        }
    }

    // MARK: To the application

    /// ALPS_OP_WATCH_URGENT: the pair is a stream with urgent bytes of its own, which poll() and SIGURG tell of.
    /// EOPNOTSUPP: no pair can be that here; ENOTCONN: this one has ended.
    func watchUrgent(_ socket: Socket) -> Int32 {
        guard Self.pairsHaveUrgentBytes else { return EOPNOTSUPP }
        guard isOpen else { return ENOTCONN }
        socket.mirrorUrgent()
        if var stray = socket.takeStrayUrgent() {
            _ = send(descriptor, &stray, 1, Int32(MSG_OOB) | Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
        }
        socket.markDirty()
        return 0
    }

    /// UNIX streams have had urgent bytes since Linux 5.15, if the kernel was configured so, and lost the bytes behind them at
    /// first.
    private static let pairsHaveUrgentBytes: Bool = {
        var pair: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &pair) == 0 else { return false }
        defer { pair.forEach { _ = close($0) } }
        func put(_ byte: UInt8, _ flags: Int32) -> Bool {
            var byte = byte
            return send(pair[0], &byte, 1, flags | Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) == 1
        }
        func take(_ flags: Int32) -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: 4)
            let got = recv(pair[1], &bytes, 4, flags | Int32(MSG_DONTWAIT))
            return Array(bytes.prefix(max(got, 0)))
        }
        return put(1, 0) && put(2, Int32(MSG_OOB)) && put(3, 0) && take(0) == [1] && take(Int32(MSG_OOB)) == [2] && take(0) == [3]
    }()

    func pushReceived(_ socket: Socket) {
        while socket.receiveAvailable > 0 {
            if var urgent = socket.mirroredByte {
                if send(descriptor, &urgent, 1, Int32(MSG_OOB) | Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) == 1 {
                    socket.passMirroredByte()
                } else if errno == EAGAIN {
                    return wantRoom(true)
                } else if errno == ENOBUFS || errno == ENOMEM {
                    return retryLater()
                } else {
                    socket.passMirroredByte()
                }
                continue
            }
            // The second piece has its turn.
            let piece = socket.receivePieces().first
            let sent = send(descriptor, piece.baseAddress, piece.count, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
            if sent > 0 {
                socket.receiveConsume(sent)
            } else if errno == EAGAIN {
                wantRoom(true)
                return
            } else if errno == ENOBUFS || errno == ENOMEM {
                retryLater()
                return
            } else {
                // The application reads no more: what comes is acknowledged and dropped, as Linux does.
                socket.receiveConsume(socket.receiveAvailable)
            }
        }
        wantRoom(false)
        if socket.atEndOfStream, !endOfStreamTold, socket.pendingError == 0 || !socket.isDisconnected {
            endOfStreamTold = true
            Glibc.shutdown(descriptor, Int32(SHUT_WR))
        }
    }
}

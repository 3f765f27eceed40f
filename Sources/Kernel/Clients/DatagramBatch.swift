import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// What many messages of a datagram pair are moved with in one call. One for all channels: it is used within a call only.
///
/// A call of its own for each message costs as much again as moving the message.
final class DatagramBatch {
    /// Messages a call.
    static let capacity = 32
    /// An UDP datagram or a raw packet of the greatest length, behind its header.
    static let largest = 65536 + MemoryLayout<alps_datagram_header>.size
    /// Distance of the messages' places; no multiple of a page, so that their beginnings do not share cache lines.
    private static let stride = (largest + 4096 + 64 + 63) & ~63
    /// Pieces of all messages, their headers among them, and of one.
    private static let pieces = 256
    private static let piecesOfOne = 65

    private let messages = UnsafeMutablePointer<alps_many_message>.allocate(capacity: capacity)
    private let vectors = UnsafeMutablePointer<iovec>.allocate(capacity: pieces)
    private let headers = UnsafeMutablePointer<alps_datagram_header>.allocate(capacity: capacity)
    /// Pages that no message has reached are never touched, so they cost address space only.
    private let space = UnsafeMutableRawPointer.allocate(byteCount: capacity * stride, alignment: 64)
    /// Messages put in for sending.
    private(set) var count = 0
    private var piecesUsed = 0
    /// Whoever has given the host another scheduling policy keeps it, and a limit of real-time threads is kept to.
    private var mayKeepWaiting = sched_getscheduler(0) == SCHED_OTHER && !hasRealTimeLimit
    /// Messages from which on it pays to keep the readers waiting.
    private static let worthwhile = 4

    init() {
        messages.initialize(repeating: alps_many_message(), count: Self.capacity)
        vectors.initialize(repeating: iovec(), count: Self.pieces)
        headers.initialize(repeating: alps_datagram_header(), count: Self.capacity)
    }

    deinit {
        messages.deallocate()
        vectors.deallocate()
        headers.deallocate()
        space.deallocate()
    }

    // MARK: Receiving

    /// Reads up to `limit` messages that are there. Returns how many, or -1 with errno.
    func receive(_ descriptor: Int32, limit: Int) -> Int {
        let limit = min(limit, Self.capacity)
        for index in 0..<limit {
            vectors[index] = iovec(iov_base: space + index * Self.stride, iov_len: Self.largest)
            messages[index].header = msghdr()
            messages[index].header.msg_iov = vectors + index
            messages[index].header.msg_iovlen = 1
        }
        // With MSG_TRUNC the length is the message's own, however much of it there was room for.
        return Int(alps_recvmmsg(descriptor, messages, UInt32(limit), Int32(MSG_DONTWAIT) | Int32(MSG_TRUNC), nil))
    }

    /// Length of a message received. More than `largest`: only that much is there.
    @inline(__always)
    func length(_ index: Int) -> Int { Int(messages[index].length) }

    /// A message received, which lasts until the next call.
    @inline(__always)
    func message(_ index: Int) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: space + index * Self.stride, count: length(index))
    }

    // MARK: Sending

    func clear() {
        count = 0
        piecesUsed = 0
    }

    /// Puts a datagram in, behind `header` unless it is nil. False: it has too many pieces, or the batch is full.
    func add(_ packet: Mbuf, header: alps_datagram_header?) -> Bool {
        guard count < Self.capacity else { return false }
        let first = vectors + piecesUsed
        let limit = min(Self.pieces - piecesUsed, Self.piecesOfOne)
        guard limit > 1 else { return false }
        var used = 0
        if let header {
            headers[count] = header
            first[0] = iovec(iov_base: headers + count, iov_len: MemoryLayout<alps_datagram_header>.size)
            used = 1
        }
        var buffer: Mbuf? = packet
        while let current = buffer {
            guard used < limit else { return false }
            first[used] = iovec(iov_base: current.pointee.data, iov_len: Int(current.pointee.length))
            used += 1
            buffer = current.pointee.next
        }
        messages[count].header = msghdr()
        messages[count].header.msg_iov = first
        messages[count].header.msg_iovlen = used
        count += 1
        piecesUsed += used
        return true
    }

    /// The first message wakes a reader that waits. On the CPU of this thread it would run at once, find that one message, and
    /// wait again, for every single message: so no ordinary thread may run here until all are there. False: not permitted.
    private func keepReadersWaiting(_ wanted: Bool) -> Bool {
        var parameter = sched_param()
        parameter.sched_priority = wanted ? 1 : 0
        let isDone = sched_setscheduler(0, wanted ? SCHED_FIFO : SCHED_OTHER, &parameter) == 0
        if !isDone { mayKeepWaiting = false }
        return isDone
    }

    /// RLIMIT_RTTIME: the process is killed for what a real-time thread of it runs without sleeping.
    private static var hasRealTimeLimit: Bool {
        var limit = rlimit()
        return getrlimit(__rlimit_resource_t(__RLIMIT_RTTIME.rawValue), &limit) == 0 && limit.rlim_cur != rlim_t.max
    }

    /// Sends what was put in. Returns how many messages went, or -1 with errno if the first did not.
    func send(_ descriptor: Int32) -> Int {
        let isAlone = mayKeepWaiting && count >= Self.worthwhile && keepReadersWaiting(true)
        let sent = Int(alps_sendmmsg(descriptor, messages, UInt32(count), Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)))
        if isAlone {
            let error = errno
            _ = keepReadersWaiting(false)
            errno = error
        }
        return sent
    }
}

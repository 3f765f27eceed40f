import PluginAPI

/// The urgent byte of a stream: one byte, as RFC 6093 has it, kept out of the stream unless SO_OOBINLINE is set.
struct UrgentByte {
    /// The byte, once it has arrived.
    var value: UInt8?
    /// The reader has not passed it.
    var isAhead = false
    /// Announced, and not taken with MSG_OOB.
    var isPending = false
    /// It is passed on with its place in the stream, so it is not taken out here.
    var isMirrored = false
}

extension Socket {
    private var isUrgentInline: Bool { raw.pointee.options & ALPS_SO_OOBINLINE != 0 }

    /// Its stream position, while the reader has not passed it.
    @inline(__always)
    private var urgentPosition: UInt64? { urgent.isAhead ? raw.pointee.oob_mark &- 1 : nil }

    /// The byte in front of `mark` is urgent; `byte` is its value, -1 if it has not arrived.
    func announceUrgent(mark: UInt64, byte: Int32) {
        raw.pointee.state |= ALPS_SS_OOB
        raw.pointee.oob_mark = mark
        urgent.isPending = true
        urgent.value = byte >= 0 ? UInt8(truncatingIfNeeded: byte) : nil
        // An earlier one that has not been passed becomes ordinary data, as RFC 6093, section 3.1, observes.
        urgent.isAhead = mark &- 1 >= raw.pointee.rcv.head
        skipUrgentByte()
        markDirty()
    }

    /// Steps over an urgent byte that stands next in the stream and is kept aside.
    @inline(__always)
    func skipUrgentByte() {
        if let position = urgentPosition { passUrgentByte(position) }
    }

    @inline(never)
    private func passUrgentByte(_ position: UInt64) {
        let head = raw.pointee.rcv.head
        if head > position {
            urgent.isAhead = false
        } else if head == position, raw.pointee.rcv.tail > position, !isUrgentInline, !urgent.isMirrored {
            readUrgentValue(position)
            urgent.isAhead = false
            raw.pointee.rcv.head &+= 1
        }
    }

    private func readUrgentValue(_ position: UInt64) {
        guard urgent.value == nil, let base = raw.pointee.rcv.base else { return }
        urgent.value = base[Int(position & UInt64(raw.pointee.rcv.capacity - 1))]
    }

    /// In-order bytes that one read may return: none crosses the mark, inline or not.
    @inline(__always)
    func bytesBeforeMark(_ available: Int) -> Int {
        guard let position = urgentPosition else { return available }
        let before = Int(position &- raw.pointee.rcv.head)
        return before > 0 ? min(available, before) : available
    }

    /// From now on urgent bytes are left in the stream for whoever reads it, who asks for each by `mirroredByte`.
    package func mirrorUrgent() { urgent.isMirrored = true }

    /// The urgent byte, if it is next in the stream and has to be passed on as such.
    package var mirroredByte: UInt8? {
        guard urgent.isMirrored, let base = raw.pointee.rcv.base, raw.pointee.rcv.tail > raw.pointee.rcv.head else { return nil }
        guard let position = urgentPosition, position == raw.pointee.rcv.head else { return nil }
        return base[Int(position & UInt64(raw.pointee.rcv.capacity - 1))]
    }

    /// The byte of `mirroredByte` has been passed on, and MSG_OOB is answered where it is now.
    package func passMirroredByte() {
        urgent.isPending = false
        urgent.value = nil
        urgent.isAhead = false
        receiveConsume(1)
    }

    /// An urgent byte that was taken out of the stream, with nothing after it taken yet, and not asked for: taken once.
    package func takeStrayUrgent() -> UInt8? {
        guard urgent.isPending, !urgent.isAhead, !isUrgentInline, let value = urgent.value,
            raw.pointee.rcv.head == raw.pointee.oob_mark
        else { return nil }
        urgent.isPending = false
        urgent.value = nil
        return value
    }

    /// SIOCATMARK. `unread`: bytes that have been consumed here but that the reader has not taken yet (they lie in its
    /// pair).
    package func isAtMark(unread: Int = 0) -> Bool {
        guard raw.pointee.state & ALPS_SS_OOB != 0 else { return false }
        let position = raw.pointee.oob_mark &- 1
        let reader = raw.pointee.rcv.head &- UInt64(unread)
        // Behind a byte that was left out the reader stands one position further.
        let isSkipped = !isUrgentInline && !urgent.isAhead && raw.pointee.rcv.head > position
        return reader == (isSkipped ? position &+ 1 : position)
    }

    package var isAtMark: Bool { isAtMark(unread: 0) }

    /// MSG_OOB: the urgent byte, or EINVAL (none, or inline), EAGAIN (announced, not here).
    package func takeUrgent(peek: Bool) -> (error: Int32, byte: UInt8) {
        guard !isUrgentInline, urgent.isPending else { return (ALPS_EINVAL, 0) }
        if let position = urgentPosition, raw.pointee.rcv.tail > position { readUrgentValue(position) }
        guard let value = urgent.value else { return (cannotReceiveMore ? ALPS_EINVAL : ALPS_EAGAIN, 0) }
        if !peek {
            urgent.isPending = false
            urgent.value = nil
        }
        return (0, value)
    }
}

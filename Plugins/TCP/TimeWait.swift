import PluginAPI
import PluginKit

/// What is left of a connection in TIME-WAIT (RFC 9293, 3.6.1): the tuple and the numbers to answer a lost FIN with.
/// The socket and the control block are gone.
struct TimeWait {
    var conn: alps_conn
    var next: UnsafeMutablePointer<TimeWait>?
    var previous: UnsafeMutablePointer<TimeWait>?
    var sndNxt: SequenceNumber
    var rcvNxt: SequenceNumber
    var tsRecent: UInt32
    var timestampOffset: UInt32
    var hasTimestamps: Bool
    var window: UInt16
    var since: UInt64
    var deadline: UInt64
    var challengeStart: UInt64
    var challenges: UInt32
    /// The ACE field of a connection with Accurate ECN, else 0.
    var ace: UInt8
}

typealias TimeWaitPointer = UnsafeMutablePointer<TimeWait>

/// All entries, in the order in which they end.
struct TimeWaitList {
    var first: TimeWaitPointer?
    var last: TimeWaitPointer?
    var count: Int
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// The last state. Acknowledges what is still to be acknowledged; afterwards `self` may be gone.
    func enterTimeWait() {
        let instance = instance
        if has(.ackNow) || has(.ackDelayed) { sendAck() }
        let entry = instance.makeTimeWait(self)
        // The entry takes the tuple over at once: a port that were free in between could be taken.
        remove()
        if let entry, instance.insert(&entry.pointee.conn) == 0 {
            instance.link(entry)
        } else if let entry {
            instance.services.free(entry)
        }
        close(0)
    }
}

extension UnsafeMutablePointer where Pointee == Instance {
    fileprivate func makeTimeWait(_ connection: ConnectionPointer) -> TimeWaitPointer? {
        guard Int64(pointee.timeWaits.count) < setting(.timeWaitLimit), let entry = services.allocate(TimeWait.self)
        else {
            count(.timeWaitOverflows)
            return nil
        }
        entry.pointee.conn.family = connection.pointee.conn.family
        entry.pointee.conn.protocol = Registration.protocol
        entry.pointee.conn.kind = UInt8(ALPS_CONN_TIMEWAIT)
        entry.pointee.conn.local = connection.pointee.conn.local
        entry.pointee.conn.remote = connection.pointee.conn.remote
        entry.pointee.conn.local_port = connection.pointee.conn.local_port
        entry.pointee.conn.remote_port = connection.pointee.conn.remote_port
        entry.pointee.conn.cookie = UnsafeMutableRawPointer(entry)
        entry.pointee.conn.state = State.timeWait.rawValue
        entry.pointee.sndNxt = connection.pointee.sndMax
        entry.pointee.rcvNxt = connection.pointee.rcvNxt
        entry.pointee.tsRecent = connection.pointee.tsRecent
        entry.pointee.timestampOffset = connection.pointee.timestampOffset
        entry.pointee.hasTimestamps = connection.has(.timestamps)
        entry.pointee.ace = connection.pointee.accurate.isOn ? connection.pointee.accurate.ace : ACE.none
        var window = max(0, connection.pointee.rcvAdv - connection.pointee.rcvNxt)
        if isOn(.wholeSegmentBuffers) { window = max(window, Int(connection.socket.pointee.rcv.limit)) }
        entry.pointee.window = UInt16(truncatingIfNeeded: min(window >> Int(connection.pointee.rcvScale), 65535))
        return entry
    }

    /// A segment for a tuple in TIME-WAIT.
    func arriveTimeWait(_ entry: TimeWaitPointer, _ segment: inout Segment, _ network: Network) {
        // RFC 1337: a reset must not end the state.
        if segment.has(Flag.rst) { return }
        let isOlder =
            entry.pointee.hasTimestamps && segment.options.hasTimestamp
            && Int32(bitPattern: segment.options.timestamp &- entry.pointee.tsRecent) < 0
        if segment.has(Flag.syn), !segment.has(Flag.ack) {
            // RFC 6191: a new connection, if its numbers or its timestamps prove that it is one.
            let isNewer =
                entry.pointee.hasTimestamps && segment.options.hasTimestamp
                ? Int32(bitPattern: segment.options.timestamp &- entry.pointee.tsRecent) > 0
                    || (!isOlder && segment.sequence > entry.pointee.rcvNxt)
                : segment.sequence > entry.pointee.rcvNxt
            if isNewer { return reopen(entry, segment, network) }
            return answer(entry, segment, network, isLimited: true)
        }
        if isOlder { return answer(entry, segment, network, isLimited: true) }
        if segment.has(Flag.fin), segment.end + 1 == entry.pointee.rcvNxt {
            // Our ACK of it was lost: once more, and 2 MSL from now (RFC 9293, 3.10.7.4, eighth).
            unlink(entry)
            link(entry)
            return answer(entry, segment, network, isLimited: false)
        }
        // Nothing else can be new. Acknowledgments that say what is known need no answer; two ends would go on for ever.
        let isKnown =
            segment.sequenceLength == 0 && segment.sequence == entry.pointee.rcvNxt
            && segment.acknowledgment == entry.pointee.sndNxt
        if !isKnown { answer(entry, segment, network, isLimited: true) }
    }

    private func reopen(_ entry: TimeWaitPointer, _ segment: Segment, _ network: Network) {
        let previous = entry.pointee.sndNxt
        remove(&entry.pointee.conn)
        let conn = lookup(segment.packet)
        guard let conn, UInt32(conn.pointee.kind) == ALPS_CONN_LISTENER, let cookie = conn.pointee.cookie else {
            // Nobody listens: everything stays as it was.
            guard insert(&entry.pointee.conn) == 0 else {
                unlink(entry)
                services.free(entry)
                return
            }
            return answer(entry, segment, network, isLimited: true)
        }
        unlink(entry)
        services.free(entry)
        count(.timeWaitReused)
        arriveSyn(cookie.assumingMemoryBound(to: Connection.self), segment, network, after: previous)
    }

    private func answer(_ entry: TimeWaitPointer, _ segment: Segment, _ network: Network, isLimited: Bool) {
        if isLimited {
            let time = now
            if time &- entry.pointee.challengeStart >= nanoseconds(.challengePeriod)
                || entry.pointee.challengeStart == 0
            {
                entry.pointee.challengeStart = time
                entry.pointee.challenges = 0
            }
            guard Int64(entry.pointee.challenges) < setting(.challengeLimit) else { return }
            entry.pointee.challenges += 1
        }
        count(.sentAcks)
        reply(
            segment.packet, network, sequence: entry.pointee.sndNxt, acknowledgment: entry.pointee.rcvNxt,
            flags: Flag.ack, ace: entry.pointee.ace, window: entry.pointee.window,
            timestamp: entry.pointee.hasTimestamps
                ? (timestampClock &+ entry.pointee.timestampOffset, entry.pointee.tsRecent) : nil)
    }

    // MARK: List and timer

    func link(_ entry: TimeWaitPointer) {
        let time = now
        if entry.pointee.since == 0 { entry.pointee.since = time }
        entry.pointee.deadline = time &+ 2 &* nanoseconds(.maximumSegmentLifetime)
        // A setting made shorter in the meantime must not put an entry in front of an earlier one.
        if let last = pointee.timeWaits.last, last.pointee.deadline > entry.pointee.deadline {
            entry.pointee.deadline = last.pointee.deadline
        }
        entry.pointee.next = nil
        entry.pointee.previous = pointee.timeWaits.last
        if let last = pointee.timeWaits.last {
            last.pointee.next = entry
        } else {
            pointee.timeWaits.first = entry
        }
        pointee.timeWaits.last = entry
        setTimeWaitCount(pointee.timeWaits.count + 1)
        if pointee.timeWaitCallout.flags & UInt16(ALPS_CALLOUT_ARMED) == 0 { armTimeWait() }
    }

    private func unlink(_ entry: TimeWaitPointer) {
        if let previous = entry.pointee.previous {
            previous.pointee.next = entry.pointee.next
        } else {
            pointee.timeWaits.first = entry.pointee.next
        }
        if let next = entry.pointee.next {
            next.pointee.previous = entry.pointee.previous
        } else {
            pointee.timeWaits.last = entry.pointee.previous
        }
        setTimeWaitCount(pointee.timeWaits.count - 1)
    }

    private func setTimeWaitCount(_ count: Int) {
        pointee.timeWaits.count = count
        pointee.counters[Counter.timeWaits.rawValue] = UInt64(count)
    }

    private func armTimeWait() {
        guard let first = pointee.timeWaits.first else { return }
        let time = now
        services.arm(
            &pointee.timeWaitCallout, delay: first.pointee.deadline > time ? first.pointee.deadline - time : 0,
            function: Timer.timeWait, argument: nil)
    }

    func timeWaitTimerFired() {
        let time = now
        while let first = pointee.timeWaits.first, first.pointee.deadline <= time { drop(first) }
        armTimeWait()
    }

    /// Ends an entry and frees it.
    func drop(_ entry: TimeWaitPointer) {
        remove(&entry.pointee.conn)
        unlink(entry)
        services.free(entry)
    }

    func dropAllTimeWaits() {
        while let first = pointee.timeWaits.first { drop(first) }
        services.disarm(&pointee.timeWaitCallout)
    }

    /// RFC 6191 for a connect of our own: an entry that is old enough and had timestamps makes way. Nil if none did.
    func reuseTimeWait(_ conn: UnsafeMutablePointer<alps_conn>) -> TimeWaitPredecessor? {
        let cell = services.pcbCell
        guard
            let found = cell.ops(alps_pcb_ops.self).pointee.lookup(
                cell.instance, conn.pointee.family, Registration.protocol, &conn.pointee.local,
                conn.pointee.local_port, &conn.pointee.remote, conn.pointee.remote_port, 0),
            UInt32(found.pointee.kind) == ALPS_CONN_TIMEWAIT, let cookie = found.pointee.cookie,
            found.pointee.owner == conn.pointee.owner
        else { return nil }
        let entry = cookie.assumingMemoryBound(to: TimeWait.self)
        guard entry.pointee.hasTimestamps, now &- entry.pointee.since >= UInt64(ALPS_NSEC_PER_SEC) else { return nil }
        let predecessor = TimeWaitPredecessor(sndNxt: entry.pointee.sndNxt)
        drop(entry)
        count(.timeWaitReused)
        return predecessor
    }
}

/// What a connection must know of the one before it with the same tuple.
struct TimeWaitPredecessor {
    var sndNxt: SequenceNumber
}

/// What one sender of a connection has put on the wire and has been told, and the bounds it must keep (RFC 5681, 6298,
/// 9293). Fed with the segments as they leave its host, and with the intact ones as they arrive there.
///
/// All bounds hold for any algorithm these RFCs allow: an arrival is counted when it reaches the host, which may look at
/// it a moment later, and a window is the largest that has been told.
package final class SenderFlow {
    package struct Settings {
        package var initialWindowSegments = 10
        /// ns.
        package var shortestTimeout: UInt64 = 200_000_000
        package var longestTimeout: UInt64 = 60_000_000_000
        /// Of the interface it sends by.
        package var mtu = 1500
        /// The smallest MSS that the sender believes, against peers that would have it burn its time.
        package var leastSegment = 216
        /// What the stream must be; nil: not checked.
        package var salt: Int?
        /// Its application may drop the connection without another word.
        package var mayVanish = false
        /// With TCP Fast Open: data may be on the SYN, and follow a SYN, ACK before that is acknowledged (RFC 7413).
        package var opensFast = false
        /// A pacing rate holds segments of the host back, so that the cause of what leaves cannot be told, nor when it was
        /// due.
        package var isPaced = false
        /// No segment is held back for longer, ns.
        package var longestPacing: UInt64 = 0
        /// Its listener answers SYNs with cookies: after its own reset, a late ACK with the cookie opens another connection
        /// with the same initial sequence number.
        package var usesCookies = false
        /// The retransmission timer runs from when the oldest segment was sent, not from the last acknowledgment
        /// (RFC 7765).
        package var restartsTimer = false

        package init() {}
    }

    private struct Sent {
        var start: UInt32
        var end: UInt32
        var time: UInt64
        var isOnTime: Bool
        /// Sent more than once: its acknowledgment measures nothing (Karn).
        var isRepeated = false
    }

    package let name: String
    private let settings: Settings
    private let report: (String) -> Void

    package private(set) var initialSequence: UInt32
    package private(set) var isEstablished = false
    private var ownScale: UInt8?
    private var peerScale: UInt8?
    private var peerMSS: UInt32 = 536
    private var ownMSS: UInt32?
    private var una: UInt32
    private var max: UInt32
    private var hasSentFin = false
    /// One behind the last byte that may be sent; nil before the peer has told.
    private var rightEdge: UInt32?
    private var peerInitial: UInt32?
    private var lastAckSent: UInt32?
    private var edgeSent: UInt32?
    /// New data, oldest first.
    private var unacknowledged: [Sent] = []
    private var firstUnacknowledged = 0
    private var lastEmission: UInt64 = 0
    private var isLastOnTime = true
    private var lastArrival: UInt64 = 0
    private var isReset = false
    private var hasSentReset = false

    // Congestion: bytes.
    private var isInCongestion = false
    private var windowBound = 0
    private var budget = 0
    private var spent = 0
    private var sacked: [(start: UInt32, end: UInt32)] = []
    /// When the path was last said to take smaller packets only, and behind what the repetition may begin anew.
    private var repetitionGrantedAt: UInt64 = 0
    private var repetitionGrantedTo: UInt32 = 0

    // Time-outs.
    private var timeoutAt: UInt64 = 0
    /// Nothing has been sent or has arrived since the last one.
    private var isInTimeouts = false
    private var timeoutSequence: UInt32 = 0
    private var timeoutInterval: UInt64 = 0
    private var sentSinceTimeout: Int?
    /// What the time-out after the last one must at least be until a round trip has been measured; 0: anything.
    private var backedOff: UInt64 = 0
    private var usesTimestamps = false

    /// Segments put on the wire, and those of them sent before.
    package private(set) var segments = 0
    package private(set) var repeated = 0

    package init(_ name: String, _ settings: Settings, initialSequence: UInt32, report: @escaping (String) -> Void) {
        self.name = name
        self.settings = settings
        self.report = report
        self.initialSequence = initialSequence
        una = initialSequence
        max = initialSequence
    }

    private func distance(_ a: UInt32, _ b: UInt32) -> Int { Int(Int32(bitPattern: a &- b)) }

    private func fail(_ text: String) { report("\(name): \(text)") }

    private func relative(_ number: UInt32) -> Int { distance(number, initialSequence) }

    /// When it last sent or was told something; 0: never.
    var lastHeard: UInt64 { lastEmission }

    /// The most payload that one segment may have.
    package var largestSegment: Int { mss }

    /// The largest segment the sender may make, without options.
    private var mss: Int { Swift.max(1, min(Int(peerMSS), settings.mtu - 40)) }

    private var outstanding: Int { distance(max, una) }

    // MARK: The sender sends

    /// `isTimeout`: the host says that its retransmission timer has just fired. `isOnTime`: nothing below TCP (ARP) has
    /// held the segment back.
    package func emitted(_ segment: WireSegment, at now: UInt64, isTimeout: Bool = false, isOnTime: Bool = true) {
        // What waited together is let go together.
        let isUnheld = isOnTime && (now != lastEmission || isLastOnTime)
        let isOnTime = isUnheld && !settings.isPaced
        defer {
            lastEmission = now
            isLastOnTime = isUnheld
        }
        if segment.flags.contains(.rst) {
            isReset = true
            hasSentReset = true
            return
        }
        if isUnheld { checkStall(now) }
        noteOwn(segment)
        segments += Swift.max(1, (segment.length + mss - 1) / mss)
        guard segment.space > 0 else { return }
        let isNew = distance(segment.end, max) > 0
        let wasSent = distance(max, segment.sequence) > 0
        checkWindow(segment)
        if segment.flags.contains(.syn), segment.length > 0, !settings.opensFast { fail("data on SYN") }
        if distance(segment.sequence, max) > 0 { fail("seq \(relative(segment.sequence)) leaves a gap behind \(relative(max))") }
        if isNew {
            unacknowledged.append(Sent(start: segment.sequence, end: segment.end, time: now, isOnTime: isOnTime))
            max = segment.end
        }
        if wasSent {
            repeated += 1
            noteRepeated(segment)
            // Whether a time-out or a probe is behind it shows in the host's counters only if it leaves with that.
            if settings.isPaced { budget += segment.length }
        }
        if segment.flags.contains(.fin) { hasSentFin = true }
        usesTimestamps = usesTimestamps || segment.timestamps != nil
        if isTimeout, wasSent, segment.sequence == una {
            checkTimeout(segment, now, isOnTime)
        } else if isTimeout, wasSent, lastArrival == now, distance(segment.sequence, una) < 0 {
            // The acknowledgment that has come at the very time of the time-out is looked at behind it.
            isInTimeouts = false
            budget += mss
        } else {
            // The timer may have been started anew.
            isInTimeouts = false
        }
        checkCongestion(segment, now)
    }

    private func noteOwn(_ segment: WireSegment) {
        if segment.flags.contains(.syn) {
            ownScale = segment.scale
            ownMSS = segment.mss
        }
        guard segment.flags.contains(.ack) else { return }
        if hasSentReset, settings.usesCookies {
            // Of another connection, which owes nothing to the one that the reset has ended.
            hasSentReset = false
            lastAckSent = nil
            edgeSent = nil
        }
        if let last = lastAckSent, distance(segment.acknowledgment, last) < 0 {
            fail("the acknowledgment goes back from \(last) to \(segment.acknowledgment)")
        }
        lastAckSent = segment.acknowledgment
        // RFC 9293, SHLD-14: the right edge does not move back, but by what rounding to units of the scale takes away
        // (RFC 7323, 2.4). A SYN that is repeated cannot say more than 65535.
        if edgeSent != nil, segment.flags.contains(.syn) { return }
        let scale = segment.flags.contains(.syn) || peerScale == nil ? 0 : UInt32(ownScale ?? 0)
        let edge = segment.acknowledgment &+ segment.window << scale
        guard let before = edgeSent, distance(edge, before) < 0 else {
            edgeSent = edge
            return
        }
        if distance(before, edge) >= 1 << scale { fail("the receive window shrinks by \(distance(before, edge)) bytes") }
    }

    private func checkWindow(_ segment: WireSegment) {
        guard segment.length > 0, !segment.flags.contains(.syn) else { return }
        guard let edge = rightEdge else { return fail("data before the peer has told its window") }
        // One octet beyond it is a probe (RFC 9293, 3.8.6.1).
        let last = segment.sequence &+ UInt32(truncatingIfNeeded: segment.length)
        if distance(last, edge) > 1 {
            fail("sends up to \(relative(last)), \(distance(last, edge)) beyond the peer's window")
        }
    }

    // MARK: Time-outs (RFC 6298)

    private func checkTimeout(_ segment: WireSegment, _ now: UInt64, _ isOnTime: Bool) {
        if let first = firstSent(segment.sequence), first.isOnTime, isOnTime {
            let waited = now - first.time
            if waited < settings.shortestTimeout {
                fail("time-out \(waited) ns after seq \(relative(segment.sequence)) was sent, minimum \(settings.shortestTimeout)")
            }
        }
        checkKarn(now, isOnTime)
        if isInTimeouts, timeoutSequence == segment.sequence, isOnTime {
            let interval = now - timeoutAt
            if timeoutInterval != 0 {
                // 5.5, up to the longest. A timer's grain is 1 ms.
                let least = min(2 &* timeoutInterval, settings.longestTimeout)
                if interval &+ 1_000_000 < least {
                    fail("time-outs \(timeoutInterval) and then \(interval) ns apart: no back-off")
                }
            }
            if interval > settings.longestTimeout &+ 1_000_000 {
                fail("\(interval) ns between time-outs, maximum \(settings.longestTimeout)")
            }
            timeoutInterval = interval
        } else {
            timeoutInterval = 0
        }
        timeoutAt = now
        isInTimeouts = isOnTime
        timeoutSequence = segment.sequence
        sentSinceTimeout = 0
        budget += mss
    }

    /// RFC 6298, section 5: only a new measurement brings the time-out down again, not the acknowledgment of what was
    /// sent twice. Whatever has started the timer, it was after the last time-out, except that RFC 7765, section 4, takes off
    /// the time that the oldest segment has been in flight already.
    private func checkKarn(_ now: UInt64, _ isOnTime: Bool) {
        if backedOff != 0, !usesTimestamps, isOnTime {
            var start = timeoutAt
            if settings.restartsTimer, let first = firstSent(una) { start = min(start, first.time) }
            let waited = now - start
            if waited &+ 1_000_000 < backedOff {
                fail("time-out after \(waited) ns, though it was backed off to \(backedOff) and nothing has been measured since")
            }
        }
        guard isOnTime, !usesTimestamps else { return backedOff = 0 }
        let least = backedOff == 0 ? settings.shortestTimeout : backedOff
        backedOff = min(2 &* least, settings.longestTimeout)
    }

    private func noteRepeated(_ segment: WireSegment) {
        for index in firstUnacknowledged..<unacknowledged.count {
            let end = unacknowledged[index].end
            if distance(end, segment.sequence) <= 0 { continue }
            unacknowledged[index].isRepeated = true
            if distance(end, segment.end) >= 0 { break }
        }
    }

    private func firstSent(_ sequence: UInt32) -> Sent? {
        var index = firstUnacknowledged
        while index < unacknowledged.count {
            if distance(unacknowledged[index].end, sequence) > 0 { return unacknowledged[index] }
            index += 1
        }
        return nil
    }

    /// As long as anything is unacknowledged a timer runs.
    private func checkStall(_ now: UInt64) {
        guard outstanding > 0, isLastOnTime, !isReset else { return }
        let since = Swift.max(lastEmission, lastArrival)
        let limit = Swift.max(settings.longestTimeout, 1_000_000_000) &+ settings.longestPacing
        if since != 0, now &- since > limit &+ 1_000_000 {
            fail("silent for \(now &- since) ns with \(outstanding) bytes unacknowledged")
        }
    }

    /// At the end of a run.
    package func finish(at now: UInt64) {
        if isEstablished, !settings.mayVanish { checkStall(now) }
    }

    // MARK: Congestion (RFC 5681)

    private func checkCongestion(_ segment: WireSegment, _ now: UInt64) {
        // A SYN is held to the size that a segment may have.
        guard segment.length > 0, !segment.flags.contains(.syn) else { return }
        if !isEstablished { beginCongestion() }
        // It left before the host has looked at the message that has come at this very time, and goes again.
        if now == repetitionGrantedAt, distance(segment.end, repetitionGrantedTo) > 0 {
            budget += segment.length
            repetitionGrantedTo = segment.end
        }
        // A probe of one octet is not held to the congestion window.
        if segment.length > 1 { spent += segment.length }
        // What arrives at the very time of a time-out may have been looked at behind it.
        if let sent = sentSinceTimeout, lastArrival < now, !settings.isPaced {
            sentSinceTimeout = sent + segment.length
            // 3.1, equation 5: the loss window is one segment; the receiver's silence does not open it.
            if sent + segment.length > mss {
                fail("\(sent + segment.length) bytes after a time-out and before any answer")
                sentSinceTimeout = nil
            }
        }
        let flight = outstanding - sackedBytes - (hasSentFin ? 1 : 0)
        // A tail loss probe, and the two segments of F-RTO (RFC 5682, 2.1 step 2b), may go beyond it.
        if flight > windowBound + (timeoutAt != 0 || settings.isPaced ? 3 : 1) * mss {
            fail("\(flight) bytes in flight, slow start allows \(windowBound)")
        }
        if spent > budget {
            fail("\(spent) bytes sent, the acknowledgments so far allow \(budget)")
            budget = spent
        }
    }

    private var sackedBytes: Int { sacked.reduce(0) { $0 + distance($1.end, $1.start) } }

    /// With the first data, or the acknowledgment of the SYN.
    private func beginCongestion() {
        guard !isInCongestion else { return }
        isInCongestion = true
        // RFC 6928, section 2, for the configured number of segments.
        let segments = settings.initialWindowSegments
        windowBound = min(segments * mss, Swift.max(2 * mss, segments * 1460))
        budget = windowBound
    }

    /// A tail loss probe goes whatever the congestion window says (RFC 8985, 7.3), and so does the first repetition of a
    /// recovery (RFC 9937, 6.2).
    package func grantProbe() { budget += mss }

    /// The path takes smaller packets only, somebody says: what is in flight goes again at once (RFC 1191, 6.4).
    package func grantRepetition(at now: UInt64) {
        budget += outstanding + mss
        sentSinceTimeout = nil
        repetitionGrantedAt = now
        repetitionGrantedTo = max
    }

    /// What is in flight, from the first number to the one behind the last.
    package var inFlight: (start: UInt32, end: UInt32) { (una, max) }

    // MARK: The sender is told

    /// An intact segment of the peer has reached the host.
    package func arrived(_ segment: WireSegment, at now: UInt64) {
        guard !segment.flags.contains(.rst) else {
            isReset = true
            return
        }
        // What overtakes the peer's SYN is thrown away.
        guard peerInitial != nil || segment.flags.contains(.syn) else { return }
        lastArrival = now
        isInTimeouts = false
        sentSinceTimeout = nil
        if segment.flags.contains(.syn) {
            peerScale = segment.scale
            if let mss = segment.mss { peerMSS = Swift.max(mss, UInt32(settings.leastSegment)) }
            peerInitial = segment.sequence
            if settings.opensFast, !segment.flags.contains(.ack) { rightEdge = initialSequence &+ 1 &+ segment.window }
        }
        guard segment.flags.contains(.ack) else { return }
        let ack = segment.acknowledgment
        guard distance(ack, una) >= 0, distance(ack, max) <= 0 else {
            // What an overtaken acknowledgment reports has arrived all the same.
            for block in segment.sack { noteSacked(block.start, block.end) }
            return
        }
        let scale = segment.flags.contains(.syn) || ownScale == nil ? 0 : UInt32(peerScale ?? 0)
        let edge = ack &+ segment.window << scale
        if let before = rightEdge, distance(before, una) <= 0, distance(edge, una) > 0 {
            // What was sent before were probes of a closed window, whose intervals end with it (RFC 9293, 3.8.6.1).
            backedOff = 0
        }
        if rightEdge.map({ distance(edge, $0) > 0 }) ?? true { rightEdge = edge }
        // Probes of a closed window have a back-off of their own, which ends with it.
        if segment.window == 0 { backedOff = 0 }
        let isOpening = !isEstablished
        if isOpening {
            isEstablished = true
            // RFC 6298, 5.7: data begin with a time-out of their own.
            backedOff = 0
            beginCongestion()
            // What has been sent before may go again, if the SYN, ACK had to.
            if settings.opensFast { budget += outstanding }
        }
        let advance = distance(ack, una)
        if advance > 0 {
            una = ack
            // The SYN opens nothing; what has gone with it or before its acknowledgment does.
            if !isOpening || settings.opensFast {
                windowBound += advance
                // In slow start each acknowledgment lets twice its bytes go; in recovery at least one segment.
                budget += 2 * Swift.max(advance, mss)
            }
            while firstUnacknowledged < unacknowledged.count,
                distance(unacknowledged[firstUnacknowledged].start, una) < 0
            {
                if !unacknowledged[firstUnacknowledged].isRepeated { backedOff = 0 }
                guard distance(unacknowledged[firstUnacknowledged].end, una) <= 0 else { break }
                firstUnacknowledged += 1
            }
            if firstUnacknowledged > 256 {
                unacknowledged.removeFirst(firstUnacknowledged)
                firstUnacknowledged = 0
            }
            sacked.removeAll { distance($0.end, una) <= 0 }
            for index in sacked.indices where distance(sacked[index].start, una) < 0 { sacked[index].start = una }
        } else if segment.length == 0 {
            // Limited transmit, inflation, or what selective acknowledgments say has left the network.
            windowBound += mss
            budget += 2 * mss
        }
        for block in segment.sack { noteSacked(block.start, block.end) }
    }

    private func noteSacked(_ start: UInt32, _ end: UInt32) {
        guard distance(start, una) >= 0, distance(end, max) <= 0, distance(end, start) > 0 else { return }
        let before = sackedBytes
        var merged = (start: start, end: end)
        sacked.removeAll { range in
            guard distance(range.start, merged.end) <= 0, distance(range.end, merged.start) >= 0 else { return false }
            if distance(range.start, merged.start) < 0 { merged.start = range.start }
            if distance(range.end, merged.end) > 0 { merged.end = range.end }
            return true
        }
        sacked.append(merged)
        budget += 2 * Swift.max(0, sackedBytes - before)
    }
}

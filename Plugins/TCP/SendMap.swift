import PluginAPI
import PluginKit

typealias RangePointer = UnsafeMutablePointer<SentRange>

struct RangeFlags: OptionSet {
    var rawValue: UInt8

    /// The receiver has said that it has it (RFC 2018); it may still change its mind.
    static var sacked: RangeFlags { .init(rawValue: 1 << 0) }
    /// Taken for lost, waits to be sent again.
    static var waiting: RangeFlags { .init(rawValue: 1 << 1) }
    /// Has been taken for lost, and not been delivered since.
    static var lost: RangeFlags { .init(rawValue: 1 << 2) }
    /// Has been sent more than once: an acknowledgment does not tell of which transmission.
    static var repeated: RangeFlags { .init(rawValue: 1 << 3) }
    /// The transmission under way is not the first.
    static var resent: RangeFlags { .init(rawValue: 1 << 4) }
    /// The last number is the FIN's.
    static var fin: RangeFlags { .init(rawValue: 1 << 5) }
    /// A probe of the path MTU: its loss says nothing about congestion (RFC 4821, 7.3).
    static var sizeProbe: RangeFlags { .init(rawValue: 1 << 6) }
}

/// Sequence numbers that went out in one packet and share a fate: a packet of many segments as long as nothing is known
/// of its parts, split where the receiver's reports or our repetitions cut it.
struct SentRange: FreeListed {
    var start: SequenceNumber
    var end: SequenceNumber
    /// When it was last sent.
    var sentAt: UInt64
    var flags: RangeFlags
    /// Segments in it, once it is reported as received.
    var segments: UInt16
    /// Of the tree: random, no child has a higher one.
    var priority: UInt32
    // In the order of numbers.
    var next: RangePointer?
    var previous: RangePointer?
    /// Among the ranges in flight, oldest transmission first; among those that wait, in order of numbers.
    var queueNext: RangePointer?
    var queuePrevious: RangePointer?
    var left: RangePointer?
    var right: RangePointer?
    var parent: RangePointer?

    @inline(__always)
    var length: UInt32 { end.value &- start.value }

    @inline(__always)
    func has(_ flag: RangeFlags) -> Bool { flags.rawValue & flag.rawValue != 0 }
}

struct RangeQueue {
    var first: RangePointer?
    var last: RangePointer?

    @inline(__always)
    mutating func append(_ range: RangePointer) { insert(range, after: last) }

    @inline(__always)
    mutating func insert(_ range: RangePointer, after previous: RangePointer?) {
        let next = previous == nil ? first : previous.unsafelyUnwrapped.pointee.queueNext
        range.pointee.queuePrevious = previous
        range.pointee.queueNext = next
        if let previous { previous.pointee.queueNext = range } else { first = range }
        if let next { next.pointee.queuePrevious = range } else { last = range }
    }

    @inline(__always)
    mutating func remove(_ range: RangePointer) {
        let previous = range.pointee.queuePrevious
        let next = range.pointee.queueNext
        if let previous { previous.pointee.queueNext = next } else { first = next }
        if let next { next.pointee.queuePrevious = previous } else { last = previous }
    }
}

/// All that has been sent and not been acknowledged, from `sndUna` to `sndNxt` without gaps.
///
/// A list in the order of numbers, a tree over it (a treap) to find a number, and two queues: what is in flight, by time
/// of transmission, and what waits to be sent again. What an acknowledgment costs depends on what it changes, not on how
/// much is in flight. Ranges come from and go to the instance's free list.
struct SendMap {
    var first: RangePointer?
    var last: RangePointer?
    var root: RangePointer?
    var flight: RangeQueue
    var waiting: RangeQueue
    /// Bytes the receiver has beyond `sndUna`; without SACK an estimate, a segment for each duplicate.
    var sackedBytes: UInt32
    var sackedSegments: UInt32
    /// Bytes in `waiting`.
    var waitingBytes: UInt32
    /// Bytes taken for lost and not delivered yet, sent again or not.
    var lostBytes: UInt32
    /// Bytes of which a repetition is in flight.
    var resentBytes: UInt32
    var random: UInt32

    /// `random` is not 0.
    static func empty(random: UInt32) -> SendMap {
        SendMap(
            first: nil, last: nil, root: nil, flight: RangeQueue(first: nil, last: nil),
            waiting: RangeQueue(first: nil, last: nil), sackedBytes: 0, sackedSegments: 0, waitingBytes: 0, lostBytes: 0,
            resentBytes: 0, random: random)
    }

    // MARK: List and tree

    /// Puts `range` behind `previous`, at the front if nil.
    mutating func link(_ range: RangePointer, after previous: RangePointer?) {
        random ^= random << 13
        random ^= random >> 17
        random ^= random << 5
        range.pointee.priority = random
        let next = previous == nil ? first : previous.unsafelyUnwrapped.pointee.next
        range.pointee.previous = previous
        range.pointee.next = next
        if let previous, previous.pointee.right == nil {
            previous.pointee.right = range
            range.pointee.parent = previous
        } else if let next {
            // The number that follows has no left child, or it would not follow.
            next.pointee.left = range
            range.pointee.parent = next
        } else {
            root = range
        }
        if let previous { previous.pointee.next = range } else { first = range }
        if let next { next.pointee.previous = range } else { last = range }
        while let parent = range.pointee.parent, parent.pointee.priority < range.pointee.priority { rotate(up: range) }
    }

    mutating func unlink(_ range: RangePointer) {
        while let left = range.pointee.left, let right = range.pointee.right {
            rotate(up: left.pointee.priority > right.pointee.priority ? left : right)
        }
        replace(range, by: range.pointee.left ?? range.pointee.right)
        let previous = range.pointee.previous
        let next = range.pointee.next
        if let previous { previous.pointee.next = next } else { first = next }
        if let next { next.pointee.previous = previous } else { last = previous }
    }

    private mutating func replace(_ range: RangePointer, by other: RangePointer?) {
        let parent = range.pointee.parent
        other?.pointee.parent = parent
        if let parent {
            if parent.pointee.left == range { parent.pointee.left = other } else { parent.pointee.right = other }
        } else {
            root = other
        }
    }

    private mutating func rotate(up range: RangePointer) {
        let parent = range.pointee.parent.unsafelyUnwrapped
        replace(parent, by: range)
        if parent.pointee.left == range {
            parent.pointee.left = range.pointee.right
            range.pointee.right?.pointee.parent = parent
            range.pointee.right = parent
        } else {
            parent.pointee.right = range.pointee.left
            range.pointee.left?.pointee.parent = parent
            range.pointee.left = parent
        }
        parent.pointee.parent = range
    }

    /// The range that holds `number`.
    func find(_ number: SequenceNumber) -> RangePointer? {
        var next = root
        while let range = next {
            if number < range.pointee.start {
                next = range.pointee.left
            } else if number >= range.pointee.end {
                next = range.pointee.right
            } else {
                return range
            }
        }
        return nil
    }

    // MARK: What becomes of a range

    /// Out of the queue it is in, and out of the sums that a range not delivered is in.
    @inline(__always)
    private mutating func dequeue(_ range: RangePointer) {
        if range.pointee.has(.waiting) {
            waiting.remove(range)
            waitingBytes &-= range.pointee.length
        } else {
            flight.remove(range)
        }
        if range.pointee.has(.resent) { resentBytes &-= range.pointee.length }
    }

    /// Sent, for the first time or again: the youngest in flight.
    @inline(__always)
    mutating func transmitted(_ range: RangePointer, at now: UInt64) {
        range.pointee.sentAt = now
        flight.append(range)
    }

    /// Sent again.
    mutating func resent(_ range: RangePointer, at now: UInt64) {
        dequeue(range)
        range.pointee.flags.remove(.waiting)
        range.pointee.flags.formUnion([.repeated, .resent])
        resentBytes &+= range.pointee.length
        transmitted(range, at: now)
    }

    /// In flight and taken for lost.
    mutating func lose(_ range: RangePointer) {
        dequeue(range)
        range.pointee.flags.remove(.resent)
        if !range.pointee.has(.lost) { lostBytes &+= range.pointee.length }
        range.pointee.flags.formUnion([.waiting, .lost])
        waitingBytes &+= range.pointee.length
        // Losses are found in the order in which things were sent, which is nearly always that of their numbers.
        var place = waiting.last
        while let other = place, other.pointee.start > range.pointee.start { place = other.pointee.queuePrevious }
        waiting.insert(range, after: place)
    }

    /// Not lost after all, only late.
    mutating func forgive(_ range: RangePointer) {
        dequeue(range)
        range.pointee.flags.remove([.waiting, .lost])
        lostBytes &-= range.pointee.length
        var place = flight.last
        while let other = place, other.pointee.sentAt > range.pointee.sentAt { place = other.pointee.queuePrevious }
        flight.insert(range, after: place)
    }

    /// Reported as received. It is in no queue any more.
    mutating func sack(_ range: RangePointer, mss: UInt32) {
        dequeue(range)
        if range.pointee.has(.lost) { lostBytes &-= range.pointee.length }
        range.pointee.flags.remove([.waiting, .lost, .resent])
        range.pointee.flags.insert(.sacked)
        sackedBytes &+= range.pointee.length
        let segments = (range.pointee.length &+ mss &- 1) / max(mss, 1)
        range.pointee.segments = UInt16(truncatingIfNeeded: min(segments, 65535))
        sackedSegments &+= UInt32(range.pointee.segments)
    }

    /// The receiver has dropped what it had reported (RFC 2018, section 8).
    mutating func renege(_ range: RangePointer) {
        range.pointee.flags.remove(.sacked)
        sackedBytes &-= range.pointee.length
        sackedSegments &-= UInt32(range.pointee.segments)
        flight.append(range)
    }

    /// Acknowledged: out of everything.
    @inline(__always)
    mutating func remove(_ range: RangePointer) {
        if range.pointee.has(.sacked) {
            sackedBytes &-= range.pointee.length
            sackedSegments &-= UInt32(range.pointee.segments)
        } else {
            dequeue(range)
            if range.pointee.has(.lost) { lostBytes &-= range.pointee.length }
        }
        unlink(range)
    }

    /// Cuts off what lies before `number`, which is inside.
    mutating func trim(_ range: RangePointer, to number: SequenceNumber) {
        let count = number.value &- range.pointee.start.value
        if range.pointee.has(.sacked) { sackedBytes &-= count }
        if range.pointee.has(.waiting) { waitingBytes &-= count }
        if range.pointee.has(.lost) { lostBytes &-= count }
        if range.pointee.has(.resent) { resentBytes &-= count }
        range.pointee.start = number
    }

    /// Makes two of one: `second` becomes what lies behind `number`, which is inside.
    mutating func split(_ range: RangePointer, at number: SequenceNumber, second: RangePointer) {
        second.pointee.start = number
        second.pointee.end = range.pointee.end
        second.pointee.sentAt = range.pointee.sentAt
        second.pointee.flags = range.pointee.flags
        range.pointee.end = number
        range.pointee.flags.remove(.fin)
        link(second, after: range)
        if range.pointee.has(.sacked) { return }
        if range.pointee.has(.waiting) {
            waiting.insert(second, after: range)
        } else {
            flight.insert(second, after: range)
        }
    }

    /// Takes the neighbour behind `range` into it; both are sacked, or both wait. The neighbour is the caller's to free.
    mutating func absorb(_ range: RangePointer, next: RangePointer) {
        if next.pointee.has(.waiting) { waiting.remove(next) }
        unlink(next)
        range.pointee.end = next.pointee.end
        let segments = UInt32(range.pointee.segments) + UInt32(next.pointee.segments)
        if segments > 65535 { sackedSegments &-= segments - 65535 }
        range.pointee.segments = UInt16(truncatingIfNeeded: min(segments, 65535))
        range.pointee.flags.formUnion(next.pointee.flags)
    }
}

// MARK: Memory

extension UnsafeMutablePointer where Pointee == Instance {
    /// A range, all zero but for what the caller sets. Nil: no memory.
    @inline(__always)
    func allocateRange() -> RangePointer? {
        guard let range = pointee.freeRanges.take(services) else { return nil }
        range.initialize(to: SentRange.empty)
        return range
    }

    @inline(__always)
    func free(_ range: RangePointer) { pointee.freeRanges.put(range, most: 1024, services) }

    /// Lists of memory that nobody needs, given back.
    func dropFreeLists() {
        pointee.freeRanges.removeAll(services)
        pointee.freeSenders.removeAll(services)
    }
}

extension SentRange {
    @inline(__always)
    static var empty: SentRange {
        SentRange(
            start: SequenceNumber(0), end: SequenceNumber(0), sentAt: 0, flags: [], segments: 0, priority: 0, next: nil,
            previous: nil, queueNext: nil, queuePrevious: nil, left: nil, right: nil, parent: nil)
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Bytes in flight: sent, and neither reported as received nor taken for lost.
    @inline(__always)
    var pipe: Int {
        // The SYN of a fast open is no data.
        let sent = pointee.sndNxt - pointee.sndUna - (has(.synAcked) ? 0 : 1)
        return max(0, sent - Int(pointee.sendMap.sackedBytes) - Int(pointee.sendMap.waitingBytes))
    }

    /// A range for what is about to be sent. Nil: no memory.
    @inline(__always)
    func newRange() -> RangePointer? { wakeSender() ? instance.allocateRange() : nil }

    /// Cuts a range in two. False: no memory, nothing has changed.
    func split(_ range: RangePointer, at number: SequenceNumber) -> Bool {
        guard let second = instance.allocateRange() else { return false }
        pointee.sendMap.split(range, at: number, second: second)
        return true
    }

    /// Takes everything in flight for lost.
    func loseAll() {
        while let range = pointee.sendMap.flight.first {
            if range.pointee.has(.sizeProbe) { sizeProbeLost(range) }
            pointee.sendMap.lose(range)
        }
    }

    /// The receiver no longer has what it had reported.
    func forgetSacks() {
        var next = pointee.sendMap.first
        while let range = next {
            next = range.pointee.next
            if range.pointee.has(.sacked) { pointee.sendMap.renege(range) }
        }
        pointee.sendMap.sackedBytes = 0
    }

    /// All of the send map, which is not to be used any more.
    func freeRanges() {
        var next = pointee.sendMap.first
        while let range = next {
            next = range.pointee.next
            instance.free(range)
        }
    }
}

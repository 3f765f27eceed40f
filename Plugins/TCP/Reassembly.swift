import PluginAPI
import PluginKit

/// What has arrived out of order: ranges of sequence numbers. The payload itself already lies in the receive ring at
/// its place, so that this list is all there is to reassemble.
///
/// Sorted, disjoint, not touching. All ends lie within a window of the receive sequence, so the order is sound.
struct Reassembly {
    var ranges: UnsafeMutablePointer<SequenceRange>?
    var count: Int
    var capacity: Int
    /// Where the segments began that arrived last, the newest first: what to tell the sender of.
    var recent: [4 of SequenceNumber]
    /// What has come a second time and not been reported (RFC 2883).
    var duplicate: SequenceRange
    var hasDuplicate: Bool
}

struct SequenceRange {
    var start: SequenceNumber
    var end: SequenceNumber
}

extension Reassembly {
    static var firstCapacity: Int { 16 }

    /// Index of the first range that ends at or behind `number`.
    @inline(__always)
    func search(_ number: SequenceNumber) -> Int {
        guard let ranges else { return 0 }
        var low = 0
        var high = count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].end < number { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// Whether adding start ..< end needs a new range.
    func needsRange(_ start: SequenceNumber, _ end: SequenceNumber) -> Bool {
        let index = search(start)
        guard let ranges, index < count else { return true }
        return ranges[index].start > end
    }

    /// Adds start ..< end; there is room for one more range.
    mutating func add(_ start: SequenceNumber, _ end: SequenceNumber) {
        guard let ranges else { return }
        let index = search(start)
        guard index < count, ranges[index].start <= end else {
            var at = count
            while at > index {
                ranges[at] = ranges[at - 1]
                at -= 1
            }
            ranges[index] = SequenceRange(start: start, end: end)
            count += 1
            return
        }
        if start < ranges[index].start { ranges[index].start = start }
        guard end > ranges[index].end else { return }
        ranges[index].end = end
        // Swallow those that it now reaches.
        var last = index + 1
        while last < count, ranges[last].start <= end {
            if ranges[last].end > end { ranges[index].end = ranges[last].end }
            last += 1
        }
        remove(index + 1, last)
    }

    /// A segment has arrived out of order.
    mutating func note(_ start: SequenceNumber) {
        guard recent[0] != start else { return }
        recent[3] = recent[2]
        recent[2] = recent[1]
        recent[1] = recent[0]
        recent[0] = start
    }

    /// The range that holds `number`.
    func range(holding number: SequenceNumber) -> SequenceRange? {
        let index = search(number + 1)
        guard let ranges, index < count, ranges[index].start <= number else { return nil }
        return ranges[index]
    }

    /// Removes what begins at or before `next` and returns how far in-order data now reach.
    mutating func take(_ next: SequenceNumber) -> SequenceNumber {
        guard let ranges else { return next }
        var reach = next
        var taken = 0
        while taken < count, ranges[taken].start <= reach {
            if ranges[taken].end > reach { reach = ranges[taken].end }
            taken += 1
        }
        remove(0, taken)
        return reach
    }

    private mutating func remove(_ from: Int, _ to: Int) {
        guard let ranges, to > from else { return }
        var at = to
        while at < count {
            ranges[at - (to - from)] = ranges[at]
            at += 1
        }
        count -= to - from
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Room for one range more. False at the limit (net.inet.tcp.reass.maxqueuelen) or without memory.
    func reserveRange() -> Bool {
        let count = pointee.reassembly.count
        guard count == pointee.reassembly.capacity else { return true }
        let limit = Int(instance.setting(.reassemblyLimit))
        guard count < limit else { return false }
        let capacity = min(limit, max(Reassembly.firstCapacity, 2 * count))
        guard let ranges = instance.services.allocateArray(SequenceRange.self, capacity) else { return false }
        if let old = pointee.reassembly.ranges {
            ranges.update(from: old, count: count)
            instance.services.freeArray(old, pointee.reassembly.capacity)
        }
        pointee.reassembly.ranges = ranges
        pointee.reassembly.capacity = capacity
        return true
    }

    /// Writes the SACK option (RFC 2018, section 4): the range that has just grown first, then those before it, as many
    /// as fit. Returns its length with padding.
    func writeSack(_ place: UnsafeMutablePointer<UInt8>, room: UInt32) -> UInt32 {
        let limit = min((Int(room) - 4) / 8, 4)
        guard limit > 0 else { return 0 }
        var count = 0
        var at = 4
        var next = 0
        if pointee.reassembly.hasDuplicate {
            let duplicate = pointee.reassembly.duplicate
            pointee.reassembly.hasDuplicate = false
            instance.count(.sentDuplicateReports)
            place.store32(at, duplicate.start.value)
            place.store32(at + 4, duplicate.end.value)
            at += 8
            count += 1
            // Section 4: if it is part of something larger that is not in order yet, that comes second.
            if count < limit, duplicate.start >= pointee.rcvNxt,
                let range = pointee.reassembly.range(holding: duplicate.start)
            {
                place.store32(at, range.start.value)
                place.store32(at + 4, range.end.value)
                at += 8
                count += 1
            }
        }
        let reported = count > 0 ? 12 : 4
        while next < 4, count < limit {
            let recent = pointee.reassembly.recent[next]
            next += 1
            guard let range = pointee.reassembly.range(holding: recent) else { continue }
            var isTold = false
            var told = reported
            while told < at {
                if place.load32(told) == range.start.value { isTold = true }
                told += 8
            }
            if isTold { continue }
            place.store32(at, range.start.value)
            place.store32(at + 4, range.end.value)
            at += 8
            count += 1
        }
        guard count > 0 else { return 0 }
        place[0] = 1
        place[1] = 1
        place[2] = Options.sackKind
        place[3] = UInt8(truncatingIfNeeded: 2 + 8 * count)
        return UInt32(at)
    }

    // MARK: Duplicates (RFC 2883)

    /// These data have come before. Reported in the next acknowledgment, which goes now if one waits already.
    func noteDuplicateData(_ start: SequenceNumber, _ end: SequenceNumber) {
        guard has(.sackPermitted), instance.isOn(.duplicateReports), start < end else { return }
        noteReportLost(start)
        if pointee.reassembly.hasDuplicate { sendAck() }
        pointee.reassembly.duplicate = SequenceRange(start: start, end: end)
        pointee.reassembly.hasDuplicate = true
        acknowledgeNow()
    }

    /// The part of a segment, not in order, that is there already.
    func noteOverlap(_ segment: Segment) {
        let index = pointee.reassembly.search(segment.sequence + 1)
        guard let ranges = pointee.reassembly.ranges, index < pointee.reassembly.count else { return }
        let start = ranges[index].start > segment.sequence ? ranges[index].start : segment.sequence
        let end = ranges[index].end < segment.end ? ranges[index].end : segment.end
        noteDuplicateData(start, end)
    }

    func freeReassembly() {
        if let ranges = pointee.reassembly.ranges {
            instance.services.freeArray(ranges, pointee.reassembly.capacity)
        }
        pointee.reassembly.ranges = nil
        pointee.reassembly.count = 0
        pointee.reassembly.capacity = 0
    }
}

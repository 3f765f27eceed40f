import PluginAPI
import PluginKit

// What the receiver reports to have (RFC 2018) and to have got twice (RFC 2883).

extension UnsafeMutablePointer where Pointee == Connection {
    /// Reads the SACK blocks of a segment that acknowledges `ack`.
    @inline(never)
    func takeSacks(_ segment: Segment, _ summary: inout AcknowledgmentSummary) {
        let ack = segment.acknowledgment
        let blocks = UnsafePointer(segment.packet.pointee.data) + Int(Header.length) + Int(segment.options.sackOffset)
        let count = Int(segment.options.sackCount)
        func block(_ index: Int) -> SequenceRange {
            SequenceRange(
                start: SequenceNumber(blocks.load32(8 * index)), end: SequenceNumber(blocks.load32(8 * index + 4)))
        }
        var index = 0
        let first = block(0)
        if isDuplicateReport(first, ack, count > 1 ? block(1) : nil) {
            index = 1
            if isReportOfOurs(first) {
                summary.reportsDuplicate = true
                let length = UInt32(truncatingIfNeeded: first.end - first.start)
                pointee.recovery.undoBytes -= min(pointee.recovery.undoBytes, length)
            }
        }
        while index < count {
            let range = block(index)
            index += 1
            // RFC 2018 says what a block is; what is not one is not worth a complaint.
            guard range.start < range.end, range.end <= pointee.sndNxt, range.start >= pointee.sndUna, range.end > ack
            else {
                if range.end > ack { instance.count(.badSacks) }
                continue
            }
            markSacked(range, &summary)
        }
    }

    /// RFC 2883, section 4: the first block is below the acknowledgment, or within the second.
    private func isDuplicateReport(_ first: SequenceRange, _ ack: SequenceNumber, _ second: SequenceRange?) -> Bool {
        guard first.start < first.end else { return false }
        if first.start < ack { return first.end <= ack || first.start < pointee.sndUna }
        guard let second else { return false }
        return first.start >= second.start && first.end <= second.end
    }

    /// Not older than a window, and of something that was sent.
    private func isReportOfOurs(_ range: SequenceRange) -> Bool {
        range.end <= pointee.sndMax && pointee.sndMax - range.start <= Int(max(pointee.maxSndWnd, 65535)) + 65535
    }

    private func markSacked(_ block: SequenceRange, _ summary: inout AcknowledgmentSummary) {
        var next = pointee.sendMap.find(block.start)
        while var range = next, range.pointee.start < block.end {
            next = range.pointee.next
            if range.pointee.has(.sacked) { continue }
            if range.pointee.start < block.start {
                guard split(range, at: block.start), let second = range.pointee.next else { return }
                range = second
            }
            if range.pointee.end > block.end {
                // A FIN is the last number: a block that ends before it leaves it out.
                guard split(range, at: block.end) else { return }
            }
            noteDelivered(range, end: range.pointee.end, &summary)
            summary.delivered &+= range.pointee.length
            summary.hasNewSack = true
            if range.pointee.has(.sizeProbe) { sizeProbeArrived(range) }
            pointee.sendMap.sack(range, mss: pointee.mss)
            next = join(range).pointee.next
        }
    }

    /// Joins a range that has been reported with neighbours that have, so that the next report passes them in one step.
    /// Returns what it is part of now.
    private func join(_ range: RangePointer) -> RangePointer {
        var range = range
        if let previous = range.pointee.previous, previous.pointee.has(.sacked) {
            pointee.sendMap.absorb(previous, next: range)
            instance.free(range)
            range = previous
        }
        if let following = range.pointee.next, following.pointee.has(.sacked) {
            pointee.sendMap.absorb(range, next: following)
            instance.free(following)
        }
        return range
    }
}

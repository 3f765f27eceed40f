import PluginAPI
import PluginKit

/// Ends of records in the send stream (MSG_EOR): no segment goes beyond one, and what comes behind it is not put into the
/// same segment. TCP itself knows no records (RFC 9293, 3.8); this is for programs that ask when a message has arrived.
struct RecordEnds {
    /// Those that are not acknowledged yet, in order; nil until there is one.
    var ends: UnsafeMutablePointer<[16 of SequenceNumber]>?
    var count: UInt8

    static var most: Int { 16 }

    subscript(index: Int) -> SequenceNumber {
        get { ends.unsafelyUnwrapped.pointee[index] }
        nonmutating set { ends.unsafelyUnwrapped.pointee[index] = newValue }
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// A record ends with what has been written. More than fit are not kept apart.
    func noteRecordEnd(_ end: SequenceNumber) {
        forgetRecords()
        let count = Int(pointee.records.count)
        guard count < RecordEnds.most, count == 0 || pointee.records[count - 1] != end else { return }
        if pointee.records.ends == nil { pointee.records.ends = instance.services.allocate([16 of SequenceNumber].self) }
        guard pointee.records.ends != nil else { return }
        pointee.records[count] = end
        pointee.records.count += 1
    }

    func freeRecords() {
        if let ends = pointee.records.ends { instance.services.free(ends) }
        pointee.records = RecordEnds(ends: nil, count: 0)
    }

    private func forgetRecords() {
        var passed = 0
        while passed < Int(pointee.records.count), pointee.records[passed] <= pointee.sndUna { passed += 1 }
        guard passed > 0 else { return }
        var at = passed
        while at < Int(pointee.records.count) {
            pointee.records[at - passed] = pointee.records[at]
            at += 1
        }
        pointee.records.count -= UInt8(truncatingIfNeeded: passed)
    }

    /// How much of the record at `number` comes behind it; nil: it has no end yet.
    @inline(__always)
    func restOfRecord(_ number: SequenceNumber) -> Int? { pointee.records.count == 0 ? nil : findRecordEnd(number) }

    @inline(never)
    private func findRecordEnd(_ number: SequenceNumber) -> Int? {
        forgetRecords()
        var at = 0
        while at < Int(pointee.records.count) {
            let rest = pointee.records[at] - number
            if rest > 0 { return rest }
            at += 1
        }
        return nil
    }

    @inline(__always)
    func isRecordEnd(_ number: SequenceNumber) -> Bool {
        pointee.records.count > 0 && findRecordEnd(number - 1) == 1
    }
}

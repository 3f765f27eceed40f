// What comes out of the stack.

extension Ladder {
    package func sequence(of segment: Sent) -> Int {
        Int(Int32(bitPattern: segment.rawSequence &- (stackISN ?? 0)))
    }

    package func acknowledgment(of segment: Sent) -> Int {
        Int(Int32(bitPattern: segment.rawAcknowledgment &- peerISN))
    }

    /// The next segment must be there now, with these properties; nil: any. Nil if nothing has been sent.
    @discardableResult
    package func expect(
        _ flags: Flags, seq: Int? = nil, ack: Int? = nil, length: Int? = 0, window: Int? = nil, ace: UInt8? = 0,
        fileID: String = #fileID, filePath: String = #filePath, line: Int = #line, column: Int = #column
    ) -> Sent? {
        settle()
        let place = LadderFailure.Place(fileID, filePath, line, column)
        guard !sent.isEmpty else {
            report("nothing was sent where \(flags) was expected", place)
            return nil
        }
        let segment = sent.removeFirst()
        if segment.flags != flags { report("\(segment.flags) was sent where \(flags) was expected", place) }
        func compare(_ name: String, _ actual: Int, _ expected: Int?) {
            if let expected, actual != expected {
                report("\(flags): \(name) is \(actual) where \(expected) was expected", place)
            }
        }
        compare("the sequence number", sequence(of: segment), seq)
        compare("the acknowledgment", acknowledgment(of: segment), ack)
        compare("the length", segment.payload.count, length)
        compare("the window", segment.window, window)
        compare("the ACE field", Int(segment.ace), ace.map { Int($0) })
        return segment
    }

    /// One segment must be there now and no more, whatever its numbers are.
    @discardableResult
    package func expectOne(
        _ flags: Flags, fileID: String = #fileID, filePath: String = #filePath, line: Int = #line,
        column: Int = #column
    ) -> Sent? {
        let segment = expect(
            flags, length: nil, ace: nil, fileID: fileID, filePath: filePath, line: line, column: column)
        expectNothing(fileID: fileID, filePath: filePath, line: line, column: column)
        return segment
    }

    package func expectNothing(
        fileID: String = #fileID, filePath: String = #filePath, line: Int = #line, column: Int = #column
    ) {
        settle()
        if !sent.isEmpty {
            let list = sent.map(\.description).joined(separator: "; ")
            report("sent where nothing was expected: \(list)", .init(fileID, filePath, line, column))
        }
        sent.removeAll()
    }

    /// All that has been sent and not been expected.
    package func takeAll() -> [Sent] {
        settle()
        defer { sent.removeAll() }
        return sent
    }
}

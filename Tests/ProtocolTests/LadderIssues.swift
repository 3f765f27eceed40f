import Lab
import Testing

extension Ladder {
    /// A ladder whose failures are issues of the test.
    convenience init(seed: UInt64 = 1, mtu: Int = 1500, _ tunables: [String: String] = [:]) throws {
        try self.init(seed: seed, mtu: mtu, tunables) { failure in
            let place = failure.place
            Issue.record(
                "\(failure.text)",
                sourceLocation: SourceLocation(
                    fileID: place.fileID, filePath: place.filePath, line: place.line, column: place.column))
        }
    }
}

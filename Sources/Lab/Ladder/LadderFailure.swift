/// What a ladder expected and did not see, and the line of the test that says so.
package struct LadderFailure: Error, CustomStringConvertible {
    package struct Place: Sendable {
        package let fileID: String
        package let filePath: String
        package let line: Int
        package let column: Int

        init(_ fileID: String, _ filePath: String, _ line: Int, _ column: Int) {
            self.fileID = fileID
            self.filePath = filePath
            self.line = line
            self.column = column
        }
    }

    package let text: String
    package let place: Place

    package var description: String { "\(place.filePath):\(place.line): \(text)" }
}

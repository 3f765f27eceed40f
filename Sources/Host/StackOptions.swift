import ArgumentParser
import ClientAPI
import Foundation
import Kernel

/// Which stack a tool talks to, and how it prints.
struct StackOptions: ParsableArguments {
    @Option(name: .shortAndLong, help: "Name of the stack; without it the one of `alps run` around, else alps0.")
    var name: String?

    @Option(help: "Path of the stack's control socket, instead of the one its name stands for.")
    var socket: String?

    @Flag(help: "Print JSON.")
    var json = false

    /// Asks the stack and decodes its answer. Ends the program with a clear line if there is no such stack.
    func ask<Request: Encodable, Reply: Decodable>(
        _ command: String, _ request: Request = Nothing(), as type: Reply.Type
    ) throws -> Reply {
        try JSONDecoder().decode(type, from: askRaw(command, request))
    }

    func askRaw<Request: Encodable>(_ command: String, _ request: Request) throws -> Data {
        do {
            let around = name == nil ? ProcessInfo.processInfo.environment[ALPS_ENV_SOCKET] : nil
            let client = try ControlClient(name: name ?? "alps0", socketPath: socket ?? around)
            return try client.query(command, arguments: JSONEncoder().encode(request))
        } catch let error as KernelError {
            throw failure(error.message)
        }
    }

    /// With --json prints the reply as it is, else as the closure says.
    func show<Reply: Codable>(_ reply: Reply, _ asText: (Reply) -> Void) throws {
        guard json else { return asText(reply) }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        print(String(decoding: try encoder.encode(reply), as: UTF8.self))
    }
}

/// One line on standard error; throw the result to end the program with that status.
func failure(_ message: String, status: Int32 = 1) -> ExitCode {
    FileHandle.standardError.write(Data("alps: \(message)\n".utf8))
    return ExitCode(status)
}

/// Columns as wide as their widest cell; the last column is not padded.
struct TextTable {
    var rows: [[String]]

    init(_ header: [String]) { rows = [header] }

    mutating func add(_ row: [String]) { rows.append(row) }

    func print() {
        guard let columns = rows.map(\.count).max() else { return }
        var widths = [Int](repeating: 0, count: columns)
        for row in rows {
            for (column, cell) in row.enumerated() { widths[column] = max(widths[column], cell.count) }
        }
        for row in rows {
            var line = ""
            for (column, cell) in row.enumerated() {
                line += column == row.count - 1 ? cell : cell.padding(toLength: widths[column] + 2, withPad: " ", startingAt: 0)
            }
            Swift.print(line)
        }
    }
}

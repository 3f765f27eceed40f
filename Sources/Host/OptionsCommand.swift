import ArgumentParser
import Foundation
import Kernel

/// `alps options`
struct OptionsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "options",
        abstract: "Say which socket options and requests the stack has, and which it refuses.",
        discussion: """
            Every option that Linux has for TCP, UDP and raw IPv4 sockets, every request of ioctl(2) for sockets and \
            interfaces, and what is done with it: acts (as on Linux), told (can be read), kept (taken and told back, no \
            effect), ignored (taken), refused (with the error).
            """)

    @Flag(help: "The lists of docs/limitations.md.")
    var markdown = false

    @Flag(help: "As JSON.")
    var json = false

    private struct Row: Encodable {
        var level: String
        var number: Int32
        var name: String
        var sockets: String
        var treatment: String
        var error: String
        var note: String
    }

    func run() throws {
        if markdown { return print(SocketOption.markdown + SocketRequest.markdown, terminator: "") }
        let rows = SocketOption.all.map { option in
            var error = ""
            if case .refused(let number) = option.treatment { error = SocketOption.errorName(number) }
            return Row(
                level: option.level.name, number: option.number, name: option.name, sockets: option.sockets.text,
                treatment: option.treatmentName, error: error, note: option.note)
        }
            + SocketRequest.all.map { request in
                var error = ""
                if case .refused(let number) = request.treatment { error = SocketOption.errorName(number) }
                return Row(
                    level: "ioctl", number: request.number, name: request.name, sockets: "",
                    treatment: error.isEmpty ? "acts" : "refused", error: error, note: request.note)
            }
        if json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
            return print(String(decoding: try encoder.encode(rows), as: UTF8.self))
        }
        for row in rows {
            let name = row.sockets.isEmpty ? row.name : "\(row.name) (\(row.sockets))"
            let what = [row.treatment, row.error].filter { !$0.isEmpty }.joined(separator: " ")
            let padding = String(repeating: " ", count: max(1, 42 - name.count))
            print("\(row.level.padding(toLength: 12, withPad: " ", startingAt: 0))\(name)\(padding)\(what)")
        }
    }
}

/// What is wrong with a script, or went wrong in it, and where.
package struct PacketScriptError: Error, CustomStringConvertible, Equatable {
    package enum Kind: Sendable {
        /// The text is not of the language.
        case syntax
        /// It is, but asks for something this runner cannot do.
        case unsupported
        /// The stack did something else than the script says.
        case mismatch
    }

    package var path: String
    package var line: Int
    package var kind: Kind
    package var message: String

    package init(_ path: String, _ line: Int, _ kind: Kind, _ message: String) {
        self.path = path
        self.line = line
        self.kind = kind
        self.message = message
    }

    package var description: String { line > 0 ? "\(path):\(line): \(message)" : "\(path): \(message)" }
}

/// An error whose place the caller knows.
struct ScriptFault: Error {
    var kind: PacketScriptError.Kind
    var message: String

    static func syntax(_ message: String) -> ScriptFault { ScriptFault(kind: .syntax, message: message) }
    static func unsupported(_ message: String) -> ScriptFault { ScriptFault(kind: .unsupported, message: message) }
    static func mismatch(_ message: String) -> ScriptFault { ScriptFault(kind: .mismatch, message: message) }
}

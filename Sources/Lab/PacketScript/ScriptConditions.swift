/// `#ifdef NAME`, `#ifndef NAME`, `#else` and `#endif` of scripts that are meant for several stacks, each in a line of its own.
///
/// Defined is what the options define, and STANDARD, for what the RFCs say as opposed to what one system does.
enum ScriptConditions {
    private static let alwaysDefined = "STANDARD"
    private static let newline = UInt8(ascii: "\n")

    /// `text` with the lines that do not count emptied, so that all others keep their numbers.
    static func apply(_ text: [UInt8], path: String, definitions: [String: String]) throws -> [UInt8] {
        guard text.contains(UInt8(ascii: "#")) else { return text }
        var result: [UInt8] = []
        result.reserveCapacity(text.count)
        // Of each condition around a line: whether it holds, and whether its else has been seen.
        var conditions: [(holds: Bool, isElse: Bool)] = []
        var number = 0
        for line in text.split(separator: newline, omittingEmptySubsequences: false) {
            number += 1
            if number > 1 { result.append(newline) }
            let words = line.first == UInt8(ascii: "#")
                ? String(decoding: line, as: UTF8.self).split { $0 == " " || $0 == "\t" || $0 == "\r" } : []
            switch words.first {
            case "#ifdef", "#ifndef":
                guard words.count >= 2 else {
                    throw PacketScriptError(path, number, .syntax, "\(words[0]) needs a name")
                }
                let name = String(words[1])
                let isDefined = name == alwaysDefined || definitions[name] != nil
                conditions.append((isDefined == (words[0] == "#ifdef"), false))
            case "#else":
                guard let last = conditions.last, !last.isElse else {
                    throw PacketScriptError(path, number, .syntax, "#else without #ifdef")
                }
                conditions[conditions.count - 1] = (!last.holds, true)
            case "#endif":
                guard conditions.popLast() != nil else {
                    throw PacketScriptError(path, number, .syntax, "#endif without #ifdef")
                }
            default:
                if conditions.allSatisfy(\.holds) { result += line }
            }
        }
        guard conditions.isEmpty else { throw PacketScriptError(path, number, .syntax, "#ifdef without #endif") }
        return result
    }
}

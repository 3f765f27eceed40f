/// Cuts the text of a script into tokens. Where several fit, the longest is taken.
struct ScriptLexer {
    private let bytes: [UInt8]
    private var at = 0
    private var line = 1
    private let path: String

    init(_ text: [UInt8], path: String) {
        bytes = text
        self.path = path
    }

    /// All tokens, `.end` last.
    static func tokens(_ text: [UInt8], path: String) throws -> [ScriptToken] {
        var lexer = ScriptLexer(text, path: path)
        var result: [ScriptToken] = []
        while true {
            let token = try lexer.next()
            result.append(token)
            if token.kind == .end { return result }
        }
    }

    /// What the text of a definition stands for: one token.
    static func token(definition text: String, line: Int) -> ScriptToken {
        var lexer = ScriptLexer(Array(text.utf8), path: "")
        if var token = try? lexer.next(), let rest = try? lexer.next(), rest.kind == .end, token.kind != .end {
            token.line = line
            return token
        }
        return ScriptToken(kind: .word, text: text, line: line)
    }

    // MARK: Characters

    private func peek(_ offset: Int = 0) -> UInt8 { at + offset < bytes.count ? bytes[at + offset] : 0 }

    private static func isDigit(_ byte: UInt8) -> Bool { (48...57).contains(byte) }
    private static func isHex(_ byte: UInt8) -> Bool {
        isDigit(byte) || (65...70).contains(byte) || (97...102).contains(byte)
    }
    private static func isWord(_ byte: UInt8) -> Bool {
        isDigit(byte) || (65...90).contains(byte) || (97...122).contains(byte) || byte == 95
    }

    private func text(_ range: Range<Int>) -> String { String(decoding: bytes[range], as: UTF8.self) }

    private func fault(_ line: Int, _ message: String) -> PacketScriptError {
        PacketScriptError(path, line, .syntax, message)
    }

    private mutating func skip(_ count: Int) {
        for _ in 0..<count where at < bytes.count {
            if bytes[at] == 10 { line += 1 }
            at += 1
        }
    }

    /// Where `ending` begins from `at` on.
    private func find(_ ending: String, from start: Int) -> Int? {
        let wanted = Array(ending.utf8)
        var place = start
        while place + wanted.count <= bytes.count {
            if bytes[place] == wanted[0], bytes[place..<(place + wanted.count)].elementsEqual(wanted) { return place }
            place += 1
        }
        return nil
    }

    // MARK: Tokens

    private mutating func skipBlanksAndComments() throws {
        while at < bytes.count {
            switch peek() {
            case 32, 9, 10, 13: skip(1)
            case 47 where peek(1) == 47, 35:
                while at < bytes.count, peek() != 10 { at += 1 }
            case 47 where peek(1) == 42:
                guard let end = find("*/", from: at + 2) else { throw fault(line, "a comment /* has no end") }
                skip(end + 2 - at)
            default: return
            }
        }
    }

    mutating func next() throws -> ScriptToken {
        try skipBlanksAndComments()
        let start = at
        let startLine = line
        func token(_ kind: ScriptToken.Kind) -> ScriptToken {
            ScriptToken(kind: kind, text: text(start..<at), line: startLine)
        }
        guard at < bytes.count else { return token(.end) }
        let byte = peek()
        if byte == 45, peek(1) == 45, Self.isWord(peek(2)) {
            let kind = try option()
            return token(kind)
        }
        if byte == 37, peek(1) == 123 {
            guard let end = find("}%", from: at + 2) else { throw fault(line, "%{ has no }%") }
            let code = text((at + 2)..<end)
            skip(end + 2 - at)
            return token(.code(code))
        }
        if byte == 34 || byte == 96 {
            let content = try quoted(byte)
            return token(byte == 34 ? .string(content) : .command(content))
        }
        if byte == 46, peek(1) == 46, peek(2) == 46 {
            at += 3
            return token(.ellipsis)
        }
        if let kind = number() { return token(kind) }
        if Self.isWord(byte) {
            while Self.isWord(peek()) { at += 1 }
            return token(.word)
        }
        // A character of several bytes stays whole.
        repeat { at += 1 } while at < bytes.count && bytes[at] & 0xc0 == 0x80
        return token(.symbol(text(start..<at).first ?? "?"))
    }

    private mutating func quoted(_ quote: UInt8) throws -> String {
        let startLine = line
        let start = at + 1
        skip(1)
        while at < bytes.count, peek() != quote { skip(peek() == 92 ? 2 : 1) }
        guard at < bytes.count else { throw fault(startLine, "\(quote == 34 ? "a string" : "a command") has no end") }
        let content = text(start..<at)
        skip(1)
        return content
    }

    /// `--name=value`: the value runs to the next blank outside quotes.
    private mutating func option() throws -> ScriptToken.Kind {
        at += 2
        let start = at
        while Self.isWord(peek()) { at += 1 }
        let name = text(start..<at)
        var place = at
        while place < bytes.count, bytes[place] == 32 || bytes[place] == 9 { place += 1 }
        guard place < bytes.count, bytes[place] == 61 else { return .option(name: name, value: nil) }
        place += 1
        while place < bytes.count, bytes[place] == 32 || bytes[place] == 9 { place += 1 }
        at = place
        var value = ""
        while at < bytes.count, ![32, 9, 10, 13].contains(peek()) {
            if peek() == 34 || peek() == 96 {
                let quote = peek()
                let mark = quote == 34 ? "\"" : "`"
                let content = try quoted(quote)
                // Quotes around all of it are the option's, those after a name belong to a definition.
                value += value.isEmpty ? content : mark + content + mark
            } else {
                let from = at
                while at < bytes.count, ![32, 9, 10, 13, 34, 96].contains(peek()) { at += 1 }
                value += text(from..<at)
            }
        }
        return .option(name: name, value: value)
    }

    /// A number, or four with points. Nil, and nothing taken, if it is a word that begins with digits.
    private mutating func number() -> ScriptToken.Kind? {
        let start = at
        if peek() == 48, peek(1) == 120, Self.isHex(peek(2)) {
            var end = at + 2
            while end < bytes.count, Self.isHex(bytes[end]) { end += 1 }
            guard end >= bytes.count || !Self.isWord(bytes[end]) else { return nil }
            at = end
            return .hexadecimal(Int64(bitPattern: UInt64(text((start + 2)..<end), radix: 16) ?? .max))
        }
        var end = peek() == 45 ? at + 1 : at
        let digits = end
        while end < bytes.count, Self.isDigit(bytes[end]) { end += 1 }
        let hasDigits = end > digits
        if end + 1 < bytes.count, bytes[end] == 46, Self.isDigit(bytes[end + 1]) {
            var points = 0
            var last = end
            while points < 3, last + 1 < bytes.count, bytes[last] == 46, Self.isDigit(bytes[last + 1]) {
                points += 1
                last += 1
                while last < bytes.count, Self.isDigit(bytes[last]) { last += 1 }
                if points == 1 { at = last }
            }
            if points == 3, hasDigits, digits == start {
                at = last
                return .address
            }
            return .decimal
        }
        guard hasDigits else { return nil }
        // "0abc" is a word: a Fast Open cookie, for one.
        if end < bytes.count, Self.isWord(bytes[end]), digits == start { return nil }
        at = end
        return .integer(Int64(text(start..<end)) ?? .max)
    }
}

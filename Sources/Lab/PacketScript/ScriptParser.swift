/// Recursive descent through the tokens of a script.
struct ScriptParser {
    private let path: String
    private let tokens: [ScriptToken]
    private var at = 0
    /// Values of names: `-D NAME=VALUE` and `--define` of the script itself.
    private var definitions: [String: String]
    /// Nested brackets of an expression.
    var depth = 0

    init(_ tokens: [ScriptToken], path: String, definitions: [String: String]) {
        self.tokens = tokens
        self.path = path
        self.definitions = definitions
    }

    // MARK: Tokens

    func token(ahead offset: Int = 0) -> ScriptToken {
        let token = tokens[min(at + offset, tokens.count - 1)]
        if token.isWord, let value = definitions[token.text] {
            return ScriptLexer.token(definition: value, line: token.line)
        }
        return token
    }

    var current: ScriptToken { token() }

    mutating func advance() { if at < tokens.count - 1 { at += 1 } }

    func fail(_ message: String, _ kind: PacketScriptError.Kind = .syntax) -> PacketScriptError {
        PacketScriptError(path, current.line, kind, message)
    }

    func unexpected(_ wanted: String) -> PacketScriptError {
        fail("parse error at \(current.shown): expected \(wanted)")
    }

    mutating func take(_ symbol: Character) -> Bool {
        guard current.isSymbol(symbol) else { return false }
        advance()
        return true
    }

    mutating func expect(_ symbol: Character) throws {
        guard take(symbol) else { throw unexpected("'\(symbol)'") }
    }

    mutating func takeWord(_ word: String) -> Bool {
        guard current.isWord(word) else { return false }
        advance()
        return true
    }

    mutating func word(_ what: String) throws -> String {
        guard current.isWord else { throw unexpected(what) }
        defer { advance() }
        return current.text
    }

    mutating func integer(_ what: String, _ range: ClosedRange<Int64>) throws -> Int64 {
        let number: Int64
        switch current.kind {
        case .integer(let value), .hexadecimal(let value): number = value
        default: throw unexpected(what)
        }
        guard range.contains(number) else { throw fail("\(what) \(current.text) is outside \(range)") }
        advance()
        return number
    }

    // MARK: The script

    mutating func script() throws -> PacketScript {
        var script = PacketScript(path: path)
        while case .option(let name, let value) = current.kind {
            script.options.append(PacketScript.Option(line: current.line, name: name, value: value))
            if name == "define", let value { define(value) }
            advance()
        }
        if case .command(let text) = current.kind {
            script.initialCommand = PacketScript.Command(line: current.line, text: text)
            advance()
        }
        while current.kind != .end {
            if case .command(let text) = current.kind {
                let line = current.line
                advance()
                guard current.kind == .end else {
                    throw PacketScriptError(path, line, .syntax, "a command between events needs a time")
                }
                script.finalCommand = PacketScript.Command(line: line, text: text)
                break
            }
            if case .option(let name, _) = current.kind {
                throw fail("option --\(name) must stand before the first event")
            }
            script.events.append(try event())
        }
        guard !script.events.isEmpty else { throw fail("the script has no events") }
        return script
    }

    private mutating func define(_ definition: String) {
        guard let equals = definition.firstIndex(of: "=") else { return }
        definitions[String(definition[..<equals])] = String(definition[definition.index(after: equals)...])
    }

    private mutating func event() throws -> PacketScript.Event {
        let line = current.line
        let time = try eventTime()
        let action = try action()
        switch time {
        case .any, .absoluteRange, .relativeRange:
            guard case .packet(let packet) = action, packet.direction == .outbound else {
                throw PacketScriptError(
                    path, line, .syntax, "a time range or '*' is for outbound packets only")
            }
        default: break
        }
        return PacketScript.Event(line: line, time: time, action: action)
    }

    private mutating func eventTime() throws -> PacketScript.Time {
        if take("*") { return .any }
        if take("+") {
            let start = try time()
            guard take("~") else { return .relative(start) }
            try expect("+")
            return try ordered(start, time()) { .relativeRange($0, $1) }
        }
        let start = try time()
        guard take("~") else { return .absolute(start) }
        if take("+") {
            let length = try time()
            return .absoluteRange(start, start + length)
        }
        return try ordered(start, time()) { .absoluteRange($0, $1) }
    }

    private func ordered(
        _ start: Int64, _ end: Int64, _ make: (Int64, Int64) -> PacketScript.Time
    ) throws -> PacketScript.Time {
        guard start <= end else { throw fail("the time range runs backwards") }
        return make(start, end)
    }

    /// Seconds, into ns.
    mutating func time() throws -> Int64 {
        switch current.kind {
        case .integer, .decimal:
            guard let nanoseconds = Self.nanoseconds(current.text) else {
                throw fail("\(current.text) is not a time")
            }
            advance()
            return nanoseconds
        default: throw unexpected("a time")
        }
    }

    /// Exactly, as decimal text: at most 10^9 s, digits below ns are dropped.
    static func nanoseconds(_ text: String) -> Int64? {
        guard !text.hasPrefix("-") else { return nil }
        let parts = text.split(separator: ".", maxSplits: 1, omittingEmptySubsequences: false)
        guard let seconds = parts[0].isEmpty ? 0 : Int64(parts[0]), seconds <= 1_000_000_000 else { return nil }
        guard parts.count == 2 else { return seconds * 1_000_000_000 }
        let digits = parts[1].prefix(9)
        guard let fraction = Int64(digits + String(repeating: "0", count: 9 - digits.count)) else { return nil }
        return seconds * 1_000_000_000 + fraction
    }

    private mutating func action() throws -> PacketScript.Action {
        switch current.kind {
        case .symbol("<"), .symbol(">"): return .packet(try packet())
        case .command(let text):
            advance()
            return .command(text)
        case .code(let text):
            advance()
            return .code(text)
        case .ellipsis, .word: return .call(try call())
        default: throw unexpected("a packet, a system call, a command or code")
        }
    }
}

extension PacketScript {
    /// Parses the text of a script. `definitions`: values of names in it.
    package init(text: [UInt8], path: String, definitions: [String: String] = [:]) throws {
        let text = try ScriptConditions.apply(text, path: path, definitions: definitions)
        var parser = ScriptParser(
            try ScriptLexer.tokens(text, path: path), path: path, definitions: definitions)
        self = try parser.script()
    }

    package init(text: String, path: String = "script.pkt", definitions: [String: String] = [:]) throws {
        try self.init(text: Array(text.utf8), path: path, definitions: definitions)
    }
}

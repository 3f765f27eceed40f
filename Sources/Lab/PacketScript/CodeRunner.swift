/// Runs the code of `%{ ... }%`: assertions, assignments, `print`, and `if` with indented bodies. Names that have been
/// assigned live until the script ends.
struct CodeRunner {
    private(set) var variables: [String: ScriptValue] = [:]
    private(set) var printed: [String] = []

    private struct Line {
        var indentation: Int
        var text: String
    }

    /// `facts`: the values of this moment (tcpi_state and so on).
    mutating func run(_ code: String, facts: [String: Int64]) throws {
        for (name, value) in facts { variables[name] = .integer(value) }
        let lines = Self.lines(code)
        var at = 0
        try block(lines, &at, indentation: lines.first?.indentation ?? 0, isActive: true)
        guard at == lines.count else { throw ScriptFault.syntax("assertion: unexpected indentation") }
    }

    /// Logical lines: open brackets and backslashes join, semicolons part.
    private static func lines(_ code: String) -> [Line] {
        var lines: [Line] = []
        var current = ""
        var open = 0
        var quote: Character?
        var isAfterSemicolon = false
        func finish() {
            let indentation = current.prefix { $0 == " " || $0 == "\t" }.count
            let text = String(current.trimmed)
            if !text.isEmpty, !text.hasPrefix("#") { lines.append(Line(indentation: indentation, text: text)) }
            current = ""
        }
        // The braces stand on the first line: its indentation means nothing.
        for character in code.trimmed {
            if let ending = quote {
                if character == ending { quote = nil }
                current.append(character)
                continue
            }
            switch character {
            case "\"", "'":
                quote = character
                current.append(character)
            case "(", "[":
                open += 1
                current.append(character)
            case ")", "]":
                open -= 1
                current.append(character)
            case "\n" where open <= 0 && current.last != "\\": finish()
            case ";" where open <= 0:
                let indentation = current.prefix { $0 == " " || $0 == "\t" }
                finish()
                current = String(indentation)
                isAfterSemicolon = true
                continue
            case " " where isAfterSemicolon: continue
            default: current.append(character)
            }
            isAfterSemicolon = false
        }
        finish()
        return lines
    }

    private mutating func block(_ lines: [Line], _ at: inout Int, indentation: Int, isActive: Bool) throws {
        var hasTaken = true
        while at < lines.count, lines[at].indentation >= indentation {
            guard lines[at].indentation == indentation else {
                throw ScriptFault.syntax("assertion: unexpected indentation")
            }
            let line = lines[at]
            let keyword = ["if", "elif", "else"].first {
                line.text.hasPrefix($0)
                    && !(line.text.dropFirst($0.count).first.map { $0.isLetter || $0.isNumber || $0 == "_" } ?? false)
            }
            guard let keyword else {
                if isActive { try statement(line.text) }
                at += 1
                continue
            }
            guard let colon = line.text.lastIndex(of: ":") else {
                throw ScriptFault.syntax("assertion: '\(keyword)' needs ':'")
            }
            let condition = line.text[line.text.index(line.text.startIndex, offsetBy: keyword.count)..<colon]
            let rest = String(line.text[line.text.index(after: colon)...].trimmed)
            if keyword == "if" { hasTaken = false }
            var runs = isActive && !hasTaken
            if runs, keyword != "else" { runs = try ExpressionEvaluator.value(String(condition), variables).isTrue }
            if runs { hasTaken = true }
            at += 1
            if !rest.isEmpty {
                if runs { try statement(rest) }
            } else if at < lines.count, lines[at].indentation > indentation {
                try block(lines, &at, indentation: lines[at].indentation, isActive: runs)
            } else {
                throw ScriptFault.syntax("assertion: '\(keyword)' has no body")
            }
        }
    }

    private mutating func statement(_ text: String) throws {
        let tokens = try CodeToken.tokens(text)
        guard let first = tokens.first else { return }
        if case .name(let name) = first {
            switch name {
            case "assert": return try assertion(text, Array(tokens.dropFirst()))
            case "print": return try output(Array(tokens.dropFirst()))
            case "pass", "import", "from": return
            case "for", "while", "def", "class", "try", "with", "return", "lambda", "raise", "global":
                throw ScriptFault.unsupported("assertion: '\(name)' is beyond what is evaluated here")
            default: break
            }
            if tokens.count > 2, case .symbol(let symbol) = tokens[1], symbol.hasSuffix("="), symbol != "==",
                symbol != "!=",
                symbol != "<=", symbol != ">="
            {
                return try assign(name, symbol, Array(tokens.dropFirst(2)))
            }
        }
        _ = try evaluate(tokens)
    }

    private func evaluate(_ tokens: [CodeToken]) throws -> ScriptValue {
        var evaluator = ExpressionEvaluator(tokens, variables)
        let value = try evaluator.tuple()
        guard evaluator.isAtEnd else { throw evaluator.unexpected }
        return value
    }

    private mutating func assign(_ name: String, _ symbol: String, _ tokens: [CodeToken]) throws {
        let value = try evaluate(tokens)
        guard symbol != "=" else {
            variables[name] = value
            return
        }
        guard let old = variables[name] else { throw ScriptFault.unsupported("assertion: '\(name)' is not known here") }
        variables[name] = try Arithmetic.apply(String(symbol.dropLast()), old, value)
    }

    private mutating func output(_ tokens: [CodeToken]) throws {
        guard !tokens.isEmpty else { return printed.append("") }
        let value = try evaluate(tokens)
        if case .list(let items) = value {
            printed.append(items.map(\.shown).joined(separator: " "))
        } else {
            printed.append(value.shown)
        }
    }

    private func assertion(_ text: String, _ tokens: [CodeToken]) throws {
        var evaluator = ExpressionEvaluator(tokens, variables)
        let holds = try evaluator.conditional()
        var message: ScriptValue?
        if evaluator.take(",") { message = try evaluator.conditional() }
        guard evaluator.isAtEnd else { throw evaluator.unexpected }
        guard !holds.isTrue else { return }
        // What the names in it stood for tells more than the line.
        var seen: [String] = []
        for token in tokens {
            if case .name(let name) = token, let value = variables[name], TCPInfoFields.constants[name] == nil {
                let fact = "\(name) = \(value.shown)"
                if !seen.contains(fact) { seen.append(fact) }
            }
        }
        throw ScriptFault.mismatch(
            "\(text) does not hold" + (message.map { ": \($0.shown)" } ?? "")
                + (seen.isEmpty ? "" : " [\(seen.joined(separator: ", "))]"))
    }

    mutating func takePrinted() -> [String] {
        defer { printed = [] }
        return printed
    }
}

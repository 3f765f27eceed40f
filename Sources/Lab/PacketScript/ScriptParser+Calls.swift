/// System calls and the expressions in them.
extension ScriptParser {
    mutating func call() throws -> ScriptCall {
        var end: Int64?
        if current.kind == .ellipsis {
            advance()
            end = try time()
        }
        let name = try word("the name of a system call")
        try expect("(")
        let arguments = try expressions(until: ")")
        try expect("=")
        let result = try expression()
        var error: String?
        if current.isWord, current.text.hasPrefix("E"), current.text.allSatisfy({ $0.isUppercase || $0.isNumber }) {
            error = current.text
            advance()
        }
        try note()
        return ScriptCall(name: name, arguments: arguments, end: end, result: result, error: error)
    }

    /// `(No such thing)` behind a result is for people.
    private mutating func note() throws {
        guard take("(") else { return }
        var open = 1
        while open > 0 {
            if current.kind == .end { throw unexpected("')'") }
            if current.isSymbol("(") { open += 1 }
            if current.isSymbol(")") { open -= 1 }
            advance()
        }
    }

    private mutating func expressions(until closing: Character) throws -> [ScriptExpression] {
        var list: [ScriptExpression] = []
        if take(closing) { return list }
        repeat { list.append(try expression()) } while take(",")
        try expect(closing)
        return list
    }

    private mutating func expression() throws -> ScriptExpression {
        depth += 1
        defer { depth -= 1 }
        guard depth < 64 else { throw fail("the expression is nested too deeply") }
        var left = try operand()
        while take("|") { left = .or(left, try operand()) }
        return left
    }

    private mutating func operand() throws -> ScriptExpression {
        switch current.kind {
        case .ellipsis:
            advance()
            return .ellipsis
        case .integer(let number), .hexadecimal(let number):
            advance()
            return .integer(number)
        case .string: return .string(try strings())
        case .symbol("["):
            advance()
            return .list(try expressions(until: "]"))
        case .symbol("{"):
            advance()
            return .structure(try fields())
        case .word:
            let name = current.text
            advance()
            guard take("(") else {
                // A bare `name=value` is a field of a list, such as an attribute of a control message.
                guard current.isSymbol("="), depth > 1 else { return .word(name) }
                advance()
                return .structure([ScriptExpression.Field(name: name, value: try expression())])
            }
            return .call(name, try expressions(until: ")"))
        default: throw unexpected("an expression")
        }
    }

    /// Strings side by side are one; an ellipsis behind them says that there is more.
    private mutating func strings() throws -> String {
        var text = ""
        while case .string(let part) = current.kind {
            text += try unescaped(part)
            advance()
        }
        if current.kind == .ellipsis { advance() }
        return text
    }

    private func unescaped(_ text: String) throws -> String {
        guard text.contains("\\") else { return text }
        var result = String.UnicodeScalarView()
        var rest = text.unicodeScalars.makeIterator()
        while let scalar = rest.next() {
            guard scalar == "\\" else {
                result.append(scalar)
                continue
            }
            switch rest.next() {
            case "n": result.append("\n")
            case "t": result.append("\t")
            case "r": result.append("\r")
            case "0": result.append("\0")
            case "x":
                guard let high = rest.next(), let low = rest.next(),
                    let byte = UInt8("\(high)\(low)", radix: 16)
                else { throw fail("\\x needs two hexadecimal digits") }
                result.append(Unicode.Scalar(byte))
            case let other?: result.append(other)
            case nil: break
            }
        }
        return String(result)
    }

    private mutating func fields() throws -> [ScriptExpression.Field] {
        var fields: [ScriptExpression.Field] = []
        if take("}") { return fields }
        repeat {
            depth += 1
            defer { depth -= 1 }
            guard depth < 64 else { throw fail("the structure is nested too deeply") }
            if current.isWord, token(ahead: 1).isSymbol("=") {
                let name = current.text
                advance()
                advance()
                fields.append(ScriptExpression.Field(name: name, value: try expression()))
            } else if current.isWord, token(ahead: 1).isSymbol("("), isFieldWithArgument {
                let name = current.text
                advance()
                advance()
                let argument = try expression()
                try expect(")")
                try expect("=")
                fields.append(ScriptExpression.Field(name: name, argument: argument, value: try expression()))
            } else {
                fields.append(ScriptExpression.Field(value: try expression()))
            }
        } while take(",")
        try expect("}")
        return fields
    }

    /// `msg_iov(1)=`: one token in the brackets and an equals sign behind.
    private var isFieldWithArgument: Bool { token(ahead: 3).isSymbol(")") && token(ahead: 4).isSymbol("=") }
}

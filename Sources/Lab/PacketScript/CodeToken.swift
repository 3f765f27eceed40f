/// A token of an assertion.
enum CodeToken: Equatable {
    case value(ScriptValue)
    case name(String)
    case symbol(String)

    var shown: String {
        switch self {
        case .value(let value): value.shown
        case .name(let name): name
        case .symbol(let symbol): symbol
        }
    }

    private static let symbols = [
        "**=", "//=", "<<=", ">>=", "**", "//", "==", "!=", "<=", ">=", "<<", ">>", "+=", "-=", "*=", "/=", "%=", "|=",
        "&=", "^=", "+", "-", "*", "/", "%", "(", ")", "[", "]", ",", ":", "=", "<", ">", "|", "&", "^", "~", ".",
    ]

    /// All tokens of one logical line.
    static func tokens(_ text: String) throws -> [CodeToken] {
        var tokens: [CodeToken] = []
        var rest = Substring(text)
        while let first = rest.first {
            if first.isWhitespace || first == "\\" {
                rest = rest.dropFirst()
            } else if first == "#" {
                rest = rest.drop { $0 != "\n" }
            } else if first.isNumber || first == ".", let (value, after) = number(rest) {
                tokens.append(.value(value))
                rest = after
            } else if first == "\"" || first == "'" {
                let (value, after) = try string(rest)
                tokens.append(.value(.text(value)))
                rest = after
            } else if first.isLetter || first == "_" {
                let name = rest.prefix { $0.isLetter || $0.isNumber || $0 == "_" }
                tokens.append(.name(String(name)))
                rest = rest.dropFirst(name.count)
            } else if let symbol = symbols.first(where: { rest.hasPrefix($0) }) {
                tokens.append(.symbol(symbol))
                rest = rest.dropFirst(symbol.count)
            } else {
                throw ScriptFault.syntax("assertion: '\(first)' is not understood")
            }
        }
        return tokens
    }

    private static func number(_ text: Substring) -> (ScriptValue, Substring)? {
        if text.hasPrefix("0x") || text.hasPrefix("0X") {
            let digits = text.dropFirst(2).prefix { $0.isHexDigit }
            guard let value = UInt64(digits, radix: 16) else { return nil }
            return (.integer(Int64(bitPattern: value)), text.dropFirst(2 + digits.count))
        }
        let digits = text.prefix { $0.isASCII && $0.isNumber || $0 == "_" }
        var length = digits.count
        var isReal = false
        var rest = text.dropFirst(length)
        if rest.first == "." {
            isReal = true
            let fraction = rest.dropFirst().prefix { $0.isASCII && $0.isNumber }
            length += 1 + fraction.count
            rest = text.dropFirst(length)
        }
        if rest.first == "e" || rest.first == "E" {
            let sign = rest.dropFirst().first
            let signs = sign == "-" || sign == "+" ? 1 : 0
            let exponent = rest.dropFirst(1 + signs).prefix { $0.isASCII && $0.isNumber }
            if !exponent.isEmpty {
                isReal = true
                length += 1 + signs + exponent.count
            }
        }
        let written = text.prefix(length).filter { $0 != "_" }
        if isReal { return Double(written).map { (.number($0), text.dropFirst(length)) } }
        return Int64(written).map { (.integer($0), text.dropFirst(length)) }
    }

    private static func string(_ text: Substring) throws -> (String, Substring) {
        guard let quote = text.first else { return ("", text) }
        var value = ""
        var rest = text.dropFirst()
        while let character = rest.first {
            rest = rest.dropFirst()
            if character == quote { return (value, rest) }
            guard character == "\\", let next = rest.first else {
                value.append(character)
                continue
            }
            rest = rest.dropFirst()
            value.append(next == "n" ? "\n" : next == "t" ? "\t" : next)
        }
        throw ScriptFault.syntax("assertion: a string has no end")
    }
}

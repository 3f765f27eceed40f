/// Evaluates the expressions of assertions: the part of Python that packet scripts use. Numbers, strings, tuples,
/// arithmetic, comparisons that chain, `and`, `or`, `not`, `in`, `a if c else b`, and a few functions.
struct ExpressionEvaluator {
    private let tokens: [CodeToken]
    private var at = 0
    private let variables: [String: ScriptValue]
    private var depth = 0

    init(_ tokens: [CodeToken], _ variables: [String: ScriptValue]) {
        self.tokens = tokens
        self.variables = variables
    }

    /// A whole expression.
    static func value(_ text: String, _ variables: [String: ScriptValue] = [:]) throws -> ScriptValue {
        var evaluator = ExpressionEvaluator(try CodeToken.tokens(text), variables)
        let value = try evaluator.tuple()
        guard evaluator.isAtEnd else { throw evaluator.unexpected }
        return value
    }

    static func integer(_ text: String) throws -> Int64 {
        guard let number = try value(text).whole else { throw ScriptFault.syntax("'\(text)' is not an integer") }
        return number
    }

    var isAtEnd: Bool { at >= tokens.count }
    private var current: CodeToken? { at < tokens.count ? tokens[at] : nil }

    var unexpected: ScriptFault {
        .syntax("assertion: unexpected \(current.map { "'\($0.shown)'" } ?? "end") ")
    }

    mutating func take(_ symbol: String) -> Bool {
        guard case .symbol(let found)? = current, found == symbol else { return false }
        at += 1
        return true
    }

    mutating func takeName(_ name: String) -> Bool {
        guard case .name(let found)? = current, found == name else { return false }
        at += 1
        return true
    }

    private mutating func expect(_ symbol: String) throws {
        guard take(symbol) else { throw unexpected }
    }

    // MARK: From the loosest binding to the tightest

    /// `a, b, c`
    mutating func tuple() throws -> ScriptValue {
        let first = try conditional()
        guard take(",") else { return first }
        var items = [first]
        while !isAtEnd, !isCloser {
            items.append(try conditional())
            guard take(",") else { break }
        }
        return .list(items)
    }

    private var isCloser: Bool {
        if case .symbol(let symbol)? = current { return [")", "]"].contains(symbol) }
        return false
    }

    mutating func conditional() throws -> ScriptValue {
        depth += 1
        defer { depth -= 1 }
        guard depth < 64 else { throw ScriptFault.syntax("assertion: nested too deeply") }
        let value = try disjunction()
        guard takeName("if") else { return value }
        let condition = try disjunction()
        guard takeName("else") else { throw unexpected }
        let other = try conditional()
        return condition.isTrue ? value : other
    }

    private mutating func disjunction() throws -> ScriptValue {
        var left = try conjunction()
        while takeName("or") {
            let right = try conjunction()
            if !left.isTrue { left = right }
        }
        return left
    }

    private mutating func conjunction() throws -> ScriptValue {
        var left = try negation()
        while takeName("and") {
            let right = try negation()
            if left.isTrue { left = right }
        }
        return left
    }

    private mutating func negation() throws -> ScriptValue {
        depth += 1
        defer { depth -= 1 }
        guard depth < 64 else { throw ScriptFault.syntax("assertion: nested too deeply") }
        if takeName("not") { return .truth(!(try negation()).isTrue) }
        return try comparison()
    }

    private mutating func comparison() throws -> ScriptValue {
        var left = try binary(0)
        var result: Bool?
        while let operation = takeComparison() {
            let right = try binary(0)
            let holds = try compare(left, operation, right)
            result = (result ?? true) && holds
            left = right
        }
        return result.map { .truth($0) } ?? left
    }

    private mutating func takeComparison() -> String? {
        for operation in ["==", "!=", "<=", ">=", "<", ">"] where take(operation) { return operation }
        if takeName("in") { return "in" }
        if takeName("is") { return takeName("not") ? "!=" : "==" }
        if case .name("not")? = current, at + 1 < tokens.count, case .name("in") = tokens[at + 1] {
            at += 2
            return "not in"
        }
        return nil
    }

    private func compare(_ left: ScriptValue, _ operation: String, _ right: ScriptValue) throws -> Bool {
        switch operation {
        case "==": return ScriptValue.isEqual(left, right)
        case "!=": return !ScriptValue.isEqual(left, right)
        case "in", "not in":
            let isIn: Bool
            switch right {
            case .list(let items): isIn = items.contains { ScriptValue.isEqual($0, left) }
            case .text(let text): isIn = text.range(of: left.shown) != nil
            default: throw ScriptFault.syntax("assertion: nothing can be in \(right.shown)")
            }
            return isIn == (operation == "in")
        default: break
        }
        guard let less = ScriptValue.isLess(left, right), let more = ScriptValue.isLess(right, left) else {
            throw ScriptFault.syntax("assertion: \(left.shown) and \(right.shown) cannot be compared")
        }
        switch operation {
        case "<": return less
        case ">": return more
        case "<=": return !more
        default: return !less
        }
    }

    private static let levels: [[String]] = [["|"], ["^"], ["&"], ["<<", ">>"], ["+", "-"], ["*", "//", "/", "%"]]

    private mutating func binary(_ level: Int) throws -> ScriptValue {
        guard level < Self.levels.count else { return try unary() }
        var left = try binary(level + 1)
        search: while true {
            for operation in Self.levels[level] where take(operation) {
                left = try Arithmetic.apply(operation, left, try binary(level + 1))
                continue search
            }
            return left
        }
    }

    private mutating func unary() throws -> ScriptValue {
        depth += 1
        defer { depth -= 1 }
        guard depth < 64 else { throw ScriptFault.syntax("assertion: nested too deeply") }
        if take("-") { return try Arithmetic.apply("-", .integer(0), try unary()) }
        if take("+") { return try unary() }
        if take("~") {
            guard let number = try unary().whole else { throw ScriptFault.syntax("assertion: ~ needs an integer") }
            return .integer(~number)
        }
        let base = try postfix()
        return take("**") ? try Arithmetic.apply("**", base, try unary()) : base
    }

    private mutating func postfix() throws -> ScriptValue {
        var value = try primary()
        while take("[") {
            guard let index = try conditional().whole, case .list(let items) = value,
                let place = Int(exactly: index < 0 ? index + Int64(items.count) : index), items.indices.contains(place)
            else { throw ScriptFault.syntax("assertion: the index is out of range") }
            try expect("]")
            value = items[place]
        }
        return value
    }

    private mutating func primary() throws -> ScriptValue {
        guard let token = current else { throw unexpected }
        at += 1
        switch token {
        case .value(let value):
            // Strings side by side are one.
            guard case .text(var text) = value else { return value }
            while case .value(.text(let more))? = current {
                text += more
                at += 1
            }
            return .text(text)
        case .symbol("("):
            if take(")") { return .list([]) }
            let value = try tuple()
            try expect(")")
            return value
        case .symbol("["):
            if take("]") { return .list([]) }
            let value = try tuple()
            try expect("]")
            if case .list = value { return value }
            return .list([value])
        case .name(let name):
            if case .symbol("(")? = current { return try call(name) }
            switch name {
            case "True": return .truth(true)
            case "False": return .truth(false)
            case "None": return .none
            default: break
            }
            guard let value = variables[name] else {
                throw ScriptFault.unsupported("assertion: '\(name)' is not known here")
            }
            return value
        default:
            at -= 1
            throw unexpected
        }
    }

    private mutating func call(_ name: String) throws -> ScriptValue {
        at += 1
        var arguments: [ScriptValue] = []
        if !take(")") {
            repeat { arguments.append(try conditional()) } while take(",")
            try expect(")")
        }
        return try BuiltinFunctions.call(name, arguments)
    }
}

/// A value of an assertion's language.
enum ScriptValue: Equatable {
    case integer(Int64)
    case number(Double)
    case text(String)
    case list([ScriptValue])
    case truth(Bool)
    case none

    var isTrue: Bool {
        switch self {
        case .integer(let value): value != 0
        case .number(let value): value != 0
        case .text(let value): !value.isEmpty
        case .list(let items): !items.isEmpty
        case .truth(let value): value
        case .none: false
        }
    }

    /// Integers and truths as integers.
    var whole: Int64? {
        switch self {
        case .integer(let value): value
        case .truth(let value): value ? 1 : 0
        default: nil
        }
    }

    var real: Double? {
        if case .number(let value) = self { return value }
        return whole.map(Double.init)
    }

    /// As `print` shows it.
    var shown: String {
        switch self {
        case .integer(let value): return String(value)
        case .number(let value): return value == value.rounded() && abs(value) < 1e15 ? "\(value)" : String(value)
        case .text(let value): return value
        case .truth(let value): return value ? "True" : "False"
        case .none: return "None"
        case .list(let items):
            return "("
                + items.map { if case .text(let text) = $0 { "'\(text)'" } else { $0.shown } }.joined(separator: ", ")
                + ")"
        }
    }

    static func isEqual(_ left: ScriptValue, _ right: ScriptValue) -> Bool {
        if let a = left.whole, let b = right.whole { return a == b }
        if let a = left.real, let b = right.real { return a == b }
        if case .list(let a) = left, case .list(let b) = right {
            return a.count == b.count && zip(a, b).allSatisfy { isEqual($0, $1) }
        }
        return left == right
    }

    /// Nil if the two cannot be ordered.
    static func isLess(_ left: ScriptValue, _ right: ScriptValue) -> Bool? {
        if let a = left.whole, let b = right.whole { return a < b }
        if let a = left.real, let b = right.real { return a < b }
        if case .text(let a) = left, case .text(let b) = right { return a < b }
        return nil
    }
}

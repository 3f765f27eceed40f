import Glibc

/// Operations on values, as Python has them.
enum Arithmetic {
    static func apply(_ operation: String, _ left: ScriptValue, _ right: ScriptValue) throws -> ScriptValue {
        if case .text(let format) = left {
            if operation == "%" { return .text(formatted(format, right)) }
            if operation == "+", case .text(let more) = right { return .text(format + more) }
        }
        if operation == "+", case .list(let a) = left, case .list(let b) = right { return .list(a + b) }
        if let a = left.whole, let b = right.whole, operation != "/" { return try integers(operation, a, b) }
        guard let a = left.real, let b = right.real else {
            throw ScriptFault.syntax("assertion: \(left.shown) \(operation) \(right.shown) makes no sense")
        }
        switch operation {
        case "+": return .number(a + b)
        case "-": return .number(a - b)
        case "*": return .number(a * b)
        case "**": return .number(pow(a, b))
        case "/", "//", "%":
            guard b != 0 else { throw ScriptFault.mismatch("assertion: division by zero") }
            if operation == "/" { return .number(a / b) }
            let quotient = (a / b).rounded(.down)
            return .number(operation == "//" ? quotient : a - quotient * b)
        default: throw ScriptFault.syntax("assertion: \(operation) needs integers")
        }
    }

    private static func integers(_ operation: String, _ a: Int64, _ b: Int64) throws -> ScriptValue {
        func checked(_ result: (partialValue: Int64, overflow: Bool)) throws -> ScriptValue {
            guard !result.overflow else { throw ScriptFault.mismatch("assertion: the number is too large") }
            return .integer(result.partialValue)
        }
        switch operation {
        case "+": return try checked(a.addingReportingOverflow(b))
        case "-": return try checked(a.subtractingReportingOverflow(b))
        case "*": return try checked(a.multipliedReportingOverflow(by: b))
        case "&": return .integer(a & b)
        case "|": return .integer(a | b)
        case "^": return .integer(a ^ b)
        case "<<": return .integer((0..<63).contains(b) ? a << b : 0)
        case ">>": return .integer((0..<64).contains(b) ? a >> b : 0)
        case "//", "%":
            guard b != 0 else { throw ScriptFault.mismatch("assertion: division by zero") }
            let (quotient, overflow) = a.dividedReportingOverflow(by: b)
            guard !overflow else { throw ScriptFault.mismatch("assertion: the number is too large") }
            // Towards minus infinity.
            let remainder = a - quotient * b
            let isOff = remainder != 0 && (remainder < 0) != (b < 0)
            return .integer(operation == "//" ? quotient - (isOff ? 1 : 0) : remainder + (isOff ? b : 0))
        case "**":
            guard (0...62).contains(b) else { return .number(pow(Double(a), Double(b))) }
            var result: ScriptValue = .integer(1)
            for _ in 0..<b { result = try integers("*", result.whole ?? 0, a) }
            return result
        default: throw ScriptFault.syntax("assertion: there is no operation \(operation)")
        }
    }

    /// `"%d of %s" % (1, x)`: widths and precisions are kept for numbers with a point, and dropped otherwise.
    private static func formatted(_ format: String, _ value: ScriptValue) -> String {
        var values: [ScriptValue]
        if case .list(let items) = value { values = items } else { values = [value] }
        var text = ""
        var rest = Substring(format)
        while let character = rest.first {
            rest = rest.dropFirst()
            guard character == "%" else {
                text.append(character)
                continue
            }
            let flags = rest.prefix { $0.isNumber || "-+ #.l".contains($0) }
            rest = rest.dropFirst(flags.count)
            guard let type = rest.first else { break }
            rest = rest.dropFirst()
            if type == "%" {
                text.append("%")
                continue
            }
            guard !values.isEmpty else { break }
            let next = values.removeFirst()
            switch type {
            case "x": text += String(next.whole ?? 0, radix: 16)
            case "f", "g", "e":
                let digits = flags.split(separator: ".", omittingEmptySubsequences: false).dropFirst().first
                let places = digits.flatMap { Int($0) } ?? 6
                let scale = pow(10.0, Double(min(places, 15)))
                text += String((((next.real ?? 0) * scale).rounded()) / scale)
            default: text += next.shown
            }
        }
        return text
    }
}

/// Functions that assertions call.
enum BuiltinFunctions {
    static func call(_ name: String, _ arguments: [ScriptValue]) throws -> ScriptValue {
        func real(_ index: Int) throws -> Double {
            guard arguments.indices.contains(index), let value = arguments[index].real else {
                throw ScriptFault.syntax("assertion: \(name)() needs a number")
            }
            return value
        }
        switch name {
        case "abs":
            if let whole = arguments.first?.whole, whole != .min { return .integer(abs(whole)) }
            return .number(abs(try real(0)))
        case "int", "long":
            if let whole = arguments.first?.whole { return .integer(whole) }
            if case .text(let text)? = arguments.first, let value = Int64(text) { return .integer(value) }
            guard let value = Int64(exactly: try real(0).rounded(.towardZero)) else {
                throw ScriptFault.mismatch("assertion: the number is too large")
            }
            return .integer(value)
        case "float": return .number(try real(0))
        case "round":
            guard let value = Int64(exactly: try real(0).rounded(.toNearestOrEven)) else {
                throw ScriptFault.mismatch("assertion: the number is too large")
            }
            return .integer(value)
        case "str", "repr", "hex":
            guard let value = arguments.first else { return .text("") }
            return .text(name == "hex" ? "0x" + String(value.whole ?? 0, radix: 16) : value.shown)
        case "bool": return .truth(arguments.first?.isTrue ?? false)
        case "len":
            switch arguments.first {
            case .list(let items)?: return .integer(Int64(items.count))
            case .text(let text)?: return .integer(Int64(text.count))
            default: throw ScriptFault.syntax("assertion: len() needs a list or a string")
            }
        case "min", "max":
            var items = arguments
            if items.count == 1, case .list(let inner) = items[0] { items = inner }
            guard var best = items.first else { throw ScriptFault.syntax("assertion: \(name)() of nothing") }
            for item in items.dropFirst() {
                guard let less = ScriptValue.isLess(item, best) else {
                    throw ScriptFault.syntax("assertion: \(name)() of things that cannot be compared")
                }
                if name == "min" ? less : !less { best = item }
            }
            return best
        default: throw ScriptFault.unsupported("assertion: there is no function \(name)() here")
        }
    }
}

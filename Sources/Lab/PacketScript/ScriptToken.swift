/// A word of the packet-script language.
struct ScriptToken {
    enum Kind: Equatable {
        /// `--name` or `--name=value`, the value as it stands, without its quotes.
        case option(name: String, value: String?)
        case integer(Int64)
        case hexadecimal(Int64)
        /// A number with a point; its text tells it exactly.
        case decimal
        case word
        case string(String)
        /// Between back quotes: lines for a shell.
        case command(String)
        /// Between `%{` and `}%`: assertions.
        case code(String)
        /// Four numbers with points.
        case address
        case ellipsis
        case symbol(Character)
        case end
    }

    var kind: Kind
    /// As written.
    var text: String
    var line: Int

    var isWord: Bool { kind == .word }
    func isWord(_ text: String) -> Bool { kind == .word && self.text == text }
    func isSymbol(_ symbol: Character) -> Bool { kind == .symbol(symbol) }

    /// For messages.
    var shown: String {
        switch kind {
        case .end: "the end of the script"
        case .code: "%{ ... }%"
        case .command: "`...`"
        default: "'\(text)'"
        }
    }
}

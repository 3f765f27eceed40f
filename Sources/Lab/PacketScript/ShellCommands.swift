import Kernel

/// Shell lines of scripts. None is given to a shell: those that set up a stack are understood, the rest is refused.
struct ShellCommands {
    let stack: ScriptStack
    let files: ScriptFiles
    /// Where the script is: relative paths begin here.
    let directory: String
    /// Waits in virtual time.
    let sleep: (Int64) throws -> Void
    /// Shell scripts that call each other, at most.
    private static let deepest = 4
    private var depth = 0

    init(stack: ScriptStack, files: ScriptFiles, directory: String, sleep: @escaping (Int64) throws -> Void) {
        self.stack = stack
        self.files = files
        self.directory = directory
        self.sleep = sleep
    }

    /// Programs without an effect on the stack under test.
    private static let harmless: Set<String> = [
        "tc", "ethtool", "true", ":", "sync", "kldload", "kldunload", "nstat", "exit", "set", "echo", "modprobe",
        "iptables-save", "date", "uname", "ulimit", "export", "cd", "mount",
    ]

    /// Runs all commands of a back-quoted text.
    func run(_ text: String) throws {
        for line in Self.commands(text) {
            // What stands behind || is for systems on which the command before it fails.
            var failure: ScriptFault?
            for alternative in line.split(separator: Self.or) {
                failure = nil
                let words = try Self.words(String(alternative))
                guard !words.isEmpty else { continue }
                do { try run(words, String(alternative.trimmed)) } catch let fault as ScriptFault { failure = fault }
                if failure == nil { break }
            }
            if let failure { throw failure }
        }
    }

    /// Stands between the commands that `||` joins.
    private static let or: Character = "\u{1}"

    /// One command a line, `;` or `&&`; a backslash joins lines.
    static func commands(_ text: String) -> [String] {
        var commands: [String] = []
        var current = ""
        var quote: Character?
        var characters = Array(text)[...]
        func isNext(_ wanted: String) -> Bool { characters.starts(with: wanted) }
        while let character = characters.first {
            characters = characters.dropFirst()
            if let open = quote {
                current.append(character)
                if character == open { quote = nil }
                continue
            }
            switch character {
            case "\"", "'":
                quote = character
                current.append(character)
            case "\\" where characters.first == "\n":
                characters = characters.dropFirst()
                current.append(" ")
            case "\n", ";":
                commands.append(current)
                current = ""
            case "&" where isNext("&"):
                characters = characters.dropFirst()
                commands.append(current)
                current = ""
            case "|" where isNext("|"):
                characters = characters.dropFirst()
                current.append(or)
            case "#" where current.last?.isWhitespace ?? true:
                characters = characters.drop { $0 != "\n" }
            default: current.append(character)
            }
        }
        commands.append(current)
        return commands.map { String($0.trimmed) }.filter { !$0.isEmpty }
    }

    /// Words with their quotes taken off and `$((...))` worked out; redirections are left out.
    static func words(_ line: String) throws -> [String] {
        var words: [String] = []
        var word = ""
        var hasWord = false
        var quote: Character?
        var rest = Substring(line)
        while let character = rest.first {
            if rest.hasPrefix("$((") {
                guard let end = rest.range(of: "))") else { throw ScriptFault.syntax("$(( has no end in `\(line)`") }
                let inside = rest[rest.index(rest.startIndex, offsetBy: 3)..<end.lowerBound]
                word += String(try ExpressionEvaluator.integer(String(inside)))
                hasWord = true
                rest = rest[end.upperBound...]
                continue
            }
            rest = rest.dropFirst()
            if let open = quote {
                if character == open { quote = nil } else { word.append(character) }
                continue
            }
            if character == "\"" || character == "'" {
                quote = character
                hasWord = true
            } else if character.isWhitespace {
                if hasWord { words.append(word) }
                word = ""
                hasWord = false
            } else {
                word.append(character)
                hasWord = true
            }
        }
        guard quote == nil else { throw ScriptFault.syntax("a quote has no end in `\(line)`") }
        if hasWord { words.append(word) }
        return words
    }

    private func run(_ words: [String], _ line: String) throws {
        let program = words[0]
        let name = program.split(separator: "/").last.map(String.init) ?? program
        let arguments = withoutRedirections(Array(words.dropFirst()))
        switch name {
        case "sysctl": try sysctl(arguments)
        case "set_sysctls.py", "sysctl_set", "sysctl_set.sh": try assignments(arguments)
        case _ where name.hasSuffix(".sh") && !name.hasPrefix("sysctl_"): try runScript(program, name, line)
        case "dd": try makeFile(arguments, line)
        case "rm": for path in arguments where !path.hasPrefix("-") { files.remove(path) }
        case "sleep", "usleep": try wait(arguments, microseconds: name == "usleep")
        case "echo" where words.contains(where: { $0.hasPrefix(">") }): try write(words)
        case "ip": try ip(arguments, line)
        case "ifconfig": try ifconfig(arguments, line)
        case "sockstat": try countSockets(words, line)
        default:
            if name.hasPrefix("sysctl_restore") || Self.harmless.contains(program) { return }
            throw ScriptFault.unsupported("command `\(line)` is not understood here, and no shell is run")
        }
    }

    /// A shell script beside the packet script: its commands, by the same rules. For Linux's defaults.sh there is a
    /// stand-in, so that a packet script of that suite can be run without the rest of it.
    private func runScript(_ program: String, _ name: String, _ line: String) throws {
        guard let file = find(program) else {
            if name == "defaults.sh" { return try SysctlMap.applyLinuxDefaults(to: stack.kernel.tunables) }
            throw ScriptFault.unsupported("command `\(line)`: there is no such file")
        }
        guard depth < Self.deepest else { throw ScriptFault.unsupported("\(program): scripts call each other too deep") }
        if name == "defaults.sh" { try SysctlMap.apply(.linux, to: stack.kernel.tunables) }
        var inner = self
        inner.depth += 1
        do {
            try inner.run(String(decoding: file.read(1 << 20, from: 0), as: UTF8.self))
        } catch let fault as ScriptFault {
            throw ScriptFault(kind: fault.kind, message: "\(program): \(fault.message)")
        }
    }

    /// A file by its path from where the script is. Suites are also laid out so that the path counts from another
    /// directory: then from the next one above that fits.
    private func find(_ path: String) -> ScriptFile? {
        var error: Int32 = 0
        if path.hasPrefix("/") { return ScriptFile(path: path, error: &error) }
        if let file = ScriptFile(path: directory + "/" + path, error: &error) { return file }
        var rest = path[...]
        while rest.hasPrefix("../") || rest.hasPrefix("./") { rest = rest.drop { $0 == "." }.dropFirst() }
        var above = directory
        for _ in 0..<Self.farthest {
            above += "/.."
            if let file = ScriptFile(path: above + "/" + rest, error: &error) { return file }
        }
        return nil
    }

    /// Directories above a script in which its shell scripts may be.
    private static let farthest = 4

    /// `dd if=/dev/zero of=PATH bs=N count=N`: a file of zeros that only this script sees.
    private func makeFile(_ arguments: [String], _ line: String) throws {
        var values: [Substring: String] = [:]
        for argument in arguments {
            let parts = argument.split(separator: "=", maxSplits: 1)
            if parts.count == 2 { values[parts[0]] = String(parts[1]) }
        }
        guard values["if"] == "/dev/zero", let path = values["of"], let count = Int(values["count"] ?? ""),
            let size = Self.bytes(values["bs"] ?? "512"), count >= 0, size > 0, count <= (64 << 20) / size
        else { throw ScriptFault.unsupported("command `\(line)` is not understood here, and no shell is run") }
        files.create(path, [UInt8](repeating: 0, count: count * size))
    }

    /// A number of bytes as dd(1) has it: 512, 4k, 1M.
    private static func bytes(_ text: String) -> Int? {
        let shift = text.last == "k" || text.last == "K" ? 10 : text.last == "M" ? 20 : 0
        guard let number = Int(shift == 0 ? text[...] : text.dropLast()), number <= 64 << 20 else { return nil }
        return number << shift
    }

    private func withoutRedirections(_ words: [String]) -> [String] {
        var result: [String] = []
        var skips = false
        for word in words {
            if skips {
                skips = false
            } else if [">", "2>", ">>", "&>"].contains(word) {
                skips = true
            } else if !word.hasPrefix(">"), !word.hasPrefix("2>"), !word.hasPrefix("&>") {
                result.append(word)
            }
        }
        return result
    }

    // MARK: sysctl

    private func sysctl(_ arguments: [String]) throws {
        try assignments(arguments.filter { !$0.hasPrefix("-") })
    }

    /// `name=value`, `/proc/sys/a/b=value`, and `name = value` in three words. A name alone only asks.
    private func assignments(_ arguments: [String]) throws {
        var rest = arguments[...]
        while let word = rest.popFirst() {
            var name = word
            var value: String?
            if let equals = word.firstIndex(of: "=") {
                name = String(word[..<equals])
                value = String(word[word.index(after: equals)...])
                if value == "" { value = rest.popFirst() }
            } else if rest.first == "=" {
                rest = rest.dropFirst()
                value = rest.popFirst()
            }
            if name.hasPrefix("/proc/sys/") { name = String(name.dropFirst("/proc/sys/".count)) }
            guard let value else { continue }
            try SysctlMap.set(name, String(value.trimmed), in: stack.kernel.tunables)
        }
    }

    /// `echo VALUE > /proc/sys/...`
    private func write(_ words: [String]) throws {
        guard let arrow = words.firstIndex(where: { $0.hasPrefix(">") }) else { return }
        let place = words[arrow] == ">" ? words.dropFirst(arrow + 1).first : String(words[arrow].dropFirst())
        guard let place, place.hasPrefix("/proc/sys/") else {
            throw ScriptFault.unsupported("`\(words.joined(separator: " "))` writes a file")
        }
        try assignments([place + "=" + words[1..<arrow].filter { !$0.hasPrefix("-") }.joined(separator: " ")])
    }

    // MARK: Time and interfaces

    private func wait(_ arguments: [String], microseconds: Bool) throws {
        guard let text = arguments.first, let time = ScriptParser.nanoseconds(text) else {
            throw ScriptFault.syntax("sleep needs a time")
        }
        try sleep(microseconds ? time / 1_000_000 : time)
    }

    /// `ip link set dev tun0 mtu N`; what clears or shows caches is harmless, routes are refused.
    private func ip(_ arguments: [String], _ line: String) throws {
        let words = arguments.filter { !$0.hasPrefix("-") }
        switch words.first {
        case "link": try setMTU(words, line)
        case "tcp_metrics":
            if words.contains("flush") { try SysctlMap.forgetCookies(stack.kernel.tunables) }
        case "neigh": return
        default: throw ScriptFault.unsupported("command `\(line)` is not understood here, and no shell is run")
        }
    }

    private func ifconfig(_ arguments: [String], _ line: String) throws { try setMTU(arguments, line) }

    private func setMTU(_ words: [String], _ line: String) throws {
        guard let place = words.firstIndex(of: "mtu"), place + 1 < words.count, let mtu = Int(words[place + 1]) else {
            throw ScriptFault.unsupported("command `\(line)` is not understood here, and no shell is run")
        }
        guard stack.kernel.interfaces.setMTU(stack.interface, mtu) == 0 else {
            throw ScriptFault.unsupported("an MTU of \(mtu) is not to be had")
        }
        stack.settle()
    }

    /// `sockstat ... | grep -c STATE | grep N`: how many TCP sockets are in a state.
    private func countSockets(_ words: [String], _ line: String) throws {
        guard let count = words.firstIndex(of: "-c"), count + 1 < words.count,
            let wanted = words.last.flatMap({ Int($0) })
        else { throw ScriptFault.unsupported("command `\(line)` is not understood here, and no shell is run") }
        let name = words[count + 1].uppercased().filter { $0.isLetter || $0.isNumber }
        guard let state = Self.states.firstIndex(of: name) else {
            throw ScriptFault.unsupported("`\(line)`: there is no TCP state \(words[count + 1])")
        }
        var found = 0
        stack.kernel.connections.forEach { connection in
            if connection.pointee.protocol == 6, connection.pointee.state == UInt32(state) { found += 1 }
        }
        guard found == wanted else {
            throw ScriptFault.mismatch("\(found) connections in state \(words[count + 1]), expected \(wanted)")
        }
    }

    private static let states = [
        "CLOSED", "LISTEN", "SYNSENT", "SYNRCVD", "ESTABLISHED", "FINWAIT1", "FINWAIT2", "CLOSEWAIT", "CLOSING",
        "LASTACK", "TIMEWAIT",
    ]
}

extension StringProtocol {
    /// Without blanks at both ends.
    var trimmed: SubSequence {
        var result = self[...]
        while let first = result.first, first.isWhitespace { result = result.dropFirst() }
        while let last = result.last, last.isWhitespace { result = result.dropLast() }
        return result
    }

    /// Where `wanted` stands first.
    func range(of wanted: String) -> Range<Index>? {
        var start = startIndex
        while start < endIndex {
            if self[start...].hasPrefix(wanted) { return start..<index(start, offsetBy: wanted.count) }
            start = index(after: start)
        }
        return nil
    }
}

/// What has come of a script.
package struct PacketScriptResult: Sendable {
    package enum Outcome: Sendable, Equatable {
        case passed
        /// The stack did something else than the script says.
        case failed(PacketScriptError)
        /// It could not be run: not of the language, or beyond this runner.
        case refused(PacketScriptError)
    }

    package var path: String
    package var outcome: Outcome
    /// Mismatches that the script called not fatal.
    package var warnings: [String] = []
    /// What assertions printed, and with `isVerbose` all packets and calls.
    package var output: [String] = []
    /// ns of virtual time.
    package var duration: UInt64 = 0

    package var error: PacketScriptError? {
        switch outcome {
        case .passed: nil
        case .failed(let error), .refused(let error): error
        }
    }
}

extension PacketScript {
    /// Reads, parses and runs a script.
    package static func run(path: String, _ options: PacketScriptOptions) -> PacketScriptResult {
        var error: Int32 = 0
        guard let file = ScriptFile(path: path, error: &error) else {
            let message = "cannot be read: \(SystemSymbols.errorName(error))"
            return PacketScriptResult(path: path, outcome: .refused(PacketScriptError(path, 0, .syntax, message)))
        }
        return run(text: file.read(.max / 2, from: 0), path: path, options)
    }

    /// Parses and runs the text of a script.
    package static func run(text: [UInt8], path: String, _ options: PacketScriptOptions) -> PacketScriptResult {
        do {
            let script = try PacketScript(text: text, path: path, definitions: options.definitions)
            let runner = ScriptRunner(script, try script.configured(options))
            return runner.run()
        } catch let error as PacketScriptError {
            return PacketScriptResult(path: path, outcome: .refused(error))
        } catch {
            return PacketScriptResult(path: path, outcome: .refused(PacketScriptError(path, 0, .syntax, "\(error)")))
        }
    }

    /// The family of stacks whose sysctls it sets.
    var family: PacketScriptOptions.Profile {
        var commands = [initialCommand?.text, finalCommand?.text].compactMap { $0 }
        for event in events { if case .command(let text) = event.action { commands.append(text) } }
        func mentions(_ words: [String]) -> Bool {
            commands.contains { text in words.contains { text.range(of: $0) != nil } }
        }
        if mentions(["net.ipv4.", "/proc/sys/net", "defaults.sh"]) { return .linux }
        return mentions(["net.inet.tcp.hostcache", "kern.ipc.", "kldload", "sockstat"]) ? .bsd : .alps
    }

    /// The options it names itself on top of those given.
    func configured(_ base: PacketScriptOptions) throws -> PacketScriptOptions {
        var result = base
        for option in options {
            do { try result.take(option.name, option.value) } catch let fault as ScriptFault {
                throw PacketScriptError(path, option.line, fault.kind, fault.message)
            }
        }
        return result
    }
}

import Kernel

/// Runs one script: events in their order, virtual time between them.
final class ScriptRunner {
    let script: PacketScript
    let options: PacketScriptOptions
    private(set) var stack: ScriptStack!
    private(set) var calls: SystemCalls!
    var result: PacketScriptResult
    private var code = CodeRunner()
    /// When the event before was due.
    var lastEventTime: Int64? { last?.time }
    /// Clock at script time 0.
    private var start: UInt64 = 0
    /// When the event before was due, and whether it was an inbound packet.
    private var last: (time: Int64, isInbound: Bool)?
    /// A call that blocks while events go on.
    private var pending: PendingCall?
    /// An error found while time went by.
    private var fault: PacketScriptError?
    /// Of the event that runs.
    private var line = 0
    /// Next remote port of a connection that the script opens.
    private var nextRemotePort: UInt16 = 49152

    private struct PendingCall {
        var event: PacketScript.Event
        var spec: ScriptCall
        var call: SystemCall
        var start: Int64
        var end: Int64
    }

    /// How long a call that is not meant to block may, and how long a packet that is late is waited for.
    private static let patience: Int64 = 300_000_000_000

    init(_ script: PacketScript, _ options: PacketScriptOptions) {
        self.script = script
        self.options = options
        result = PacketScriptResult(path: script.path, outcome: .passed)
    }

    func run() -> PacketScriptResult {
        guard !options.isDryRun else { return result }
        do {
            stack = try ScriptStack(options)
        } catch {
            result.outcome = .refused(PacketScriptError(script.path, 0, .unsupported, "\(error)"))
            return result
        }
        do {
            try play()
        } catch let error as PacketScriptError {
            result.outcome = error.kind == .mismatch ? .failed(error) : .refused(error)
        } catch {
            result.outcome = .refused(PacketScriptError(script.path, 0, .unsupported, "\(error)"))
        }
        result.duration = stack.now &- start
        calls?.closeAll()
        calls = nil
        if !stack.finish(), result.outcome == .passed {
            result.outcome = .failed(
                PacketScriptError(script.path, 0, .mismatch, "memory or sockets are left after the end"))
        }
        return result
    }

    // MARK: Time

    /// Script time, ns.
    var now: Int64 { Int64(stack.now) - Int64(start) }

    func error(_ line: Int, _ fault: ScriptFault) -> PacketScriptError {
        PacketScriptError(script.path, line, fault.kind, fault.message)
    }

    /// Lets time pass until `time`, or until `condition` holds: then true.
    @discardableResult
    func wait(until time: Int64, _ condition: () -> Bool = { false }) throws -> Bool {
        let end = start &+ UInt64(max(0, time))
        var turns = 0
        var instant = stack.now
        while true {
            // A time-out of the call that blocks is no timer of the stack's.
            let stop = min(end, pending?.call.deadline ?? .max)
            let held = stack.run(until: max(stop, stack.now)) {
                turns = stack.now == instant ? turns + 1 : 0
                instant = stack.now
                calls.observe()
                progress()
                return fault != nil || turns > Self.mostTurns || condition()
            }
            if let fault {
                self.fault = nil
                throw fault
            }
            guard turns <= Self.mostTurns else {
                throw PacketScriptError(
                    script.path, line, .mismatch, "the stack does not come to rest at \(PacketText.seconds(now)) sec")
            }
            if held || stack.now >= end { return held }
        }
    }

    /// Turns at one instant: more are a storm of events.
    private static let mostTurns = 100_000

    /// Everything that is to happen at this instant happens.
    func settle() throws { try wait(until: now) }

    /// The tolerance of something due at `time`.
    func tolerance(at time: Int64, since before: Int64?) -> Int64 {
        guard let before else { return options.tolerance }
        return max(options.tolerance, Int64(options.tolerancePercent / 100 * Double(time - before)))
    }

    private func verify(
        _ what: String, due time: Int64, happened actual: Int64, since before: Int64?
    ) throws {
        let tolerance = tolerance(at: time, since: before)
        guard abs(actual - time) > tolerance else { return }
        throw ScriptFault.mismatch(
            "timing error: expected \(what) at \(PacketText.seconds(time)) sec but happened at "
                + "\(PacketText.seconds(actual)) sec; tolerance \(PacketText.seconds(tolerance)) sec")
    }

    // MARK: Events

    private func play() throws {
        try SysctlMap.apply(options.profile == .auto ? script.family : options.profile, to: stack.kernel.tunables)
        calls = SystemCalls(stack, options)
        start = stack.now
        for path in options.initialScripts { try command(path, line: 0) }
        if let initial = script.initialCommand { try command(initial.text, line: initial.line) }
        stack.sent.removeAll()
        if options.isVerbose {
            stack.onSent = { [unowned self] packet in
                self.result.output.append(
                    "outbound packet: \(PacketText.seconds(self.now)) \(PacketText.endpoints(packet)) \(PacketText.text(packet))"
                )
            }
        }
        start = stack.now
        for event in script.events {
            try run(event)
            try settle()
        }
        try finishPending(patience: 1_000_000_000, line: script.events.last?.line ?? 0)
        if let final = script.finalCommand { try command(final.text, line: final.line) }
        if options.refusesExtraPackets, let extra = stack.sent.first {
            throw PacketScriptError(
                script.path, line, .mismatch,
                "a packet that the script does not name: \(PacketText.endpoints(extra)) \(PacketText.text(extra))")
        }
    }

    private func run(_ event: PacketScript.Event) throws {
        line = event.line
        var isInbound = false
        if case .packet(let packet) = event.action { isInbound = packet.direction == .inbound }
        // Inbound packets in a row count from each other's due times, everything else from now.
        let base = isInbound && last?.isInbound == true ? last?.time ?? now : now
        let (from, to) = Self.window(event.time, base)
        if case .packet(let packet) = event.action, packet.direction == .outbound {
            try outbound(packet, event, from: from, to: to)
            last = (from ?? now, false)
            return
        }
        let due = from ?? now
        try wait(until: due)
        if last != nil {
            do {
                try verify(Self.description(event.action), due: due, happened: now, since: last?.time)
            } catch let fault as ScriptFault { throw error(event.line, fault) }
        }
        let before = last?.time ?? due
        last = (due, isInbound)
        switch event.action {
        case .packet(let packet): try inbound(packet, event)
        case .call(let call): try make(call, event, due: due, base: base, before: before)
        case .command(let text): try command(text, line: event.line)
        case .code(let text): try runCode(text, line: event.line)
        }
    }

    /// First and last instant of an event in script time; nil: any.
    private static func window(_ time: PacketScript.Time, _ base: Int64) -> (Int64?, Int64?) {
        switch time {
        case .absolute(let at): return (at, at)
        case .relative(let after): return (base + after, base + after)
        case .absoluteRange(let from, let to): return (from, to)
        case .relativeRange(let from, let to): return (base + from, base + to)
        case .any: return (nil, nil)
        }
    }

    private static func description(_ action: PacketScript.Action) -> String {
        switch action {
        case .packet(let packet): packet.direction == .inbound ? "inbound packet" : "outbound packet"
        case .call: "system call start"
        case .command: "command"
        case .code: "data collection for code"
        }
    }

    // MARK: System calls

    private func make(
        _ spec: ScriptCall, _ event: PacketScript.Event, due: Int64, base: Int64, before: Int64
    ) throws {
        try finishPending(patience: 1_000_000_000, line: event.line)
        let call: SystemCall
        let outcome: SystemCall.Outcome
        do {
            call = try calls.prepare(spec)
            outcome = try call.attempt()
        } catch let fault as ScriptFault { throw runtimeError(spec, event, fault) }
        guard outcome == .blocks else {
            try conclude(spec, event, call, outcome)
            if let end = spec.end { try verifyEnd(spec, event, end: Self.end(end, event, base), start: due) }
            return
        }
        let waiting = PendingCall(
            event: event, spec: spec, call: call, start: due, end: spec.end.map { Self.end($0, event, base) } ?? .max)
        pending = waiting
        if spec.end == nil {
            // It is not said to block: nothing else happens until it returns.
            try wait(until: now + Self.patience) { pending == nil }
            guard pending == nil else {
                pending = nil
                throw runtimeError(spec, event, .mismatch("the call does not return"))
            }
        }
    }

    private static func end(_ end: Int64, _ event: PacketScript.Event, _ base: Int64) -> Int64 {
        if case .relative = event.time { return base + end }
        return end
    }

    /// Tries the pending call again. Errors are kept until whoever lets time pass sees them.
    private func progress() {
        guard let waiting = pending, fault == nil else { return }
        do {
            var outcome = try waiting.call.attempt()
            if outcome == .blocks {
                guard let deadline = waiting.call.deadline else { return }
                guard stack.now >= deadline else { return }
                outcome = waiting.call.late
            }
            pending = nil
            try conclude(waiting.spec, waiting.event, waiting.call, outcome)
            if waiting.spec.end != nil {
                try verifyEnd(waiting.spec, waiting.event, end: waiting.end, start: waiting.start)
            }
        } catch let error as PacketScriptError {
            fault = error
        } catch let scriptFault as ScriptFault {
            fault = runtimeError(waiting.spec, waiting.event, scriptFault)
        } catch {
            fault = runtimeError(waiting.spec, waiting.event, .unsupported("\(error)"))
        }
    }

    /// Waits for the call that blocks, as long as a program's next call would have to.
    private func finishPending(patience: Int64, line: Int) throws {
        guard let waiting = pending else { return }
        try wait(until: max(now, waiting.end == .max ? now : waiting.end) + patience) { pending == nil }
        guard pending == nil else {
            pending = nil
            throw runtimeError(waiting.spec, waiting.event, .mismatch("the call is still blocked"))
        }
    }

    private func verifyEnd(_ spec: ScriptCall, _ event: PacketScript.Event, end: Int64, start: Int64) throws {
        do {
            try verify("system call return", due: end, happened: now, since: start)
        } catch let fault as ScriptFault { throw error(event.line, fault) }
    }

    private func runtimeError(_ spec: ScriptCall, _ event: PacketScript.Event, _ fault: ScriptFault)
        -> PacketScriptError
    {
        error(
            event.line, ScriptFault(kind: fault.kind, message: "runtime error in \(spec.name) call: \(fault.message)"))
    }

    /// Compares a result with the script's.
    private func conclude(
        _ spec: ScriptCall, _ event: PacketScript.Event, _ call: SystemCall, _ outcome: SystemCall.Outcome
    ) throws {
        if options.isVerbose { result.output.append("\(spec.name) syscall: \(PacketText.seconds(now))") }
        do {
            try compare(spec, call, outcome)
            try call.finish(outcome)
        } catch let fault as ScriptFault {
            let described = runtimeError(spec, event, fault)
            guard options.warnsOfCalls, fault.kind == .mismatch else { throw described }
            result.warnings.append(described.description)
        }
    }

    private func compare(_ spec: ScriptCall, _ call: SystemCall, _ outcome: SystemCall.Outcome) throws {
        guard spec.result != .ellipsis else { return }
        guard let expected = try CallArguments.integer(spec.result) else {
            throw ScriptFault.syntax("\(spec.result.text) is not a result")
        }
        var actual: Int64 = -1
        var errno: Int32 = 0
        switch outcome {
        case .value(let value): actual = value
        case .error(let error): errno = error
        case .blocks: break
        }
        let reason = errno == 0 ? "" : " with errno \(errno) (\(SystemSymbols.errorName(errno)))"
        if call.returnsDescriptor, expected >= 0 {
            guard actual >= 0 else { throw ScriptFault.mismatch("Expected a descriptor but got -1\(reason)") }
        } else if actual != expected {
            throw ScriptFault.mismatch("Expected result \(expected) but got \(actual)\(reason)")
        }
        if let name = spec.error, actual < 0 {
            guard let wanted = SystemSymbols.errors[name] else {
                throw ScriptFault.unsupported("unknown symbol '\(name)'")
            }
            guard wanted == errno else {
                throw ScriptFault.mismatch(
                    "Expected errno \(wanted) (\(name)) but got \(errno) (\(SystemSymbols.errorName(errno)))")
            }
        }
    }

    // MARK: Commands and code

    private func command(_ text: String, line: Int) throws {
        let slash = script.path.lastIndex(of: "/")
        let commands = ShellCommands(
            stack: stack, files: calls.files, directory: slash.map { String(script.path[..<$0]) } ?? ".",
            sleep: { [unowned self] time in try self.wait(until: self.now + time) })
        do {
            try commands.run(text)
        } catch let fault as ScriptFault {
            throw error(line, ScriptFault(kind: fault.kind, message: "error executing command: \(fault.message)"))
        }
    }

    private func runCode(_ text: String, line: Int) throws {
        var facts = TCPInfoFields.constants
        let underTest = calls.flow
        let descriptor = calls.descriptors.values.first { $0.flow === underTest }
        if let socket = descriptor?.socket, socket.isStream {
            let (error, info) = socket.getOption(level: 6, name: 11, capacity: 512)
            if error == 0 { facts.merge(TCPInfoFields.values(info)) { $1 } }
        }
        do {
            try code.run(text, facts: facts)
        } catch let fault as ScriptFault {
            throw error(line, ScriptFault(kind: fault.kind, message: "error in code: \(fault.message)"))
        }
        result.output += code.takePrinted()
    }

    // MARK: Flows

    /// The remote port of a connection that the script opens.
    func takeRemotePort() -> UInt16 {
        defer { nextRemotePort &+= 1 }
        return nextRemotePort
    }
}

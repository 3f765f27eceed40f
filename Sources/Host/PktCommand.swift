import ArgumentParser
import Foundation
import Kernel
import Lab

/// `alps pkt`
struct PktCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pkt", abstract: "Run packet scripts against the protocol plugins.", subcommands: [Run.self])

    /// `alps pkt run`
    struct Run: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Run scripts of the packetdrill language in virtual time.",
            discussion: """
                  alps pkt run tests/*.pkt
                  alps pkt run --tap --jobs 4 tests
                  alps pkt run --plugin tcp=./libalps-tcp.so handshake.pkt

                No root, no tun device, no waiting: a script of minutes takes milliseconds. A directory stands for all \
                .pkt files in it. packetdrill's own options may be given as --name=value (--mtu=1500, \
                --tolerance_usecs=10000 and so on); docs/packet-scripts.md tells what is supported.

                Exit status: 0 all scripts passed, 1 one has failed, 2 none has failed but one could not be run.
                """)

        @Option(help: "How far from its time an event may be, e.g. 10ms; 4ms if not given.") var tolerance: String?
        @Option(help: "Processes that run scripts.") var jobs: Int?
        @Flag(help: "Print the Test Anything Protocol.") var tap = false
        @Option(help: ArgumentHelp("Write a JUnit report.", valueName: "file")) var junit: String?
        @Option(
            name: [.customShort("D"), .customLong("define")],
            help: ArgumentHelp("A name's value.", valueName: "name=value"))
        var definitions: [String] = []
        @Option(help: "Defaults of a family's scripts: auto, alps, linux or bsd.") var profile: String?
        @Option(help: "Directory of the plugins.") var plugins: String?
        @Option(
            name: .customLong("plugin"),
            help: ArgumentHelp("A plugin from elsewhere, e.g. tcp=./libalps-tcp.so.", valueName: "name=path"))
        var pluginFiles: [String] = []
        @Flag(name: .shortAndLong, help: "Show all packets and calls.") var verbose = false
        @Option(
            help: ArgumentHelp(
                "Run in real time over a tap interface that is made for it (needs root).", valueName: "interface"))
        var live: String?
        @Flag(name: .customLong("json-lines"), help: .hidden) var jsonLines = false
        @Argument(parsing: .allUnrecognized, help: "Scripts, directories, and options of packetdrill.")
        var scripts: [String] = []

        func run() throws {
            let options = try scriptOptions()
            let paths = try ScriptFiles.find(scripts.filter { !$0.hasPrefix("--") })
            guard !paths.isEmpty else { throw ValidationError("no scripts given") }
            let started = Date()
            let reports: [ScriptReport]
            if jsonLines {
                for path in paths { ScriptReport(PacketScript.run(path: path, options)).printLine() }
                return
            }
            let workers = min(max(jobs ?? ProcessInfo.processInfo.activeProcessorCount, 1), (paths.count + 15) / 16)
            // A tap interface has one user at a time.
            if live == nil, jobs.map({ $0 > 1 }) ?? (workers > 1) {
                reports = try ScriptWorkers.run(paths, workers: min(max(jobs ?? workers, 1), paths.count), passedOn)
            } else {
                reports = paths.map { ScriptReport(PacketScript.run(path: $0, options)) }
            }
            let elapsed = Date().timeIntervalSince(started)
            if let junit { try JUnitReport.write(reports, elapsed, to: junit) }
            if tap { TAPReport.print(reports) } else { printSummary(reports, elapsed) }
            if reports.contains(where: { $0.outcome == .failed }) { throw ExitCode(1) }
            if reports.contains(where: { $0.outcome == .refused }) { throw ExitCode(2) }
        }

        private func scriptOptions() throws -> PacketScriptOptions {
            var options = PacketScriptOptions()
            do {
                for argument in scripts where argument.hasPrefix("--") {
                    let parts = argument.dropFirst(2).split(
                        separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
                    try options.set(String(parts[0]), parts.count == 2 ? String(parts[1]) : nil)
                }
                for definition in definitions { try options.set("define", definition) }
                if let profile { try options.set("profile", profile) }
                if let tolerance {
                    guard let time = Tunable.parse(tolerance, .nanoseconds) else {
                        throw ValidationError("'\(tolerance)' is not a time: use e.g. 10ms")
                    }
                    try options.set("tolerance_usecs", String(time / 1000))
                }
            } catch let error as PacketScriptError { throw ValidationError(error.message) }
            options.pluginDirectory = plugins
            for file in pluginFiles {
                let parts = file.split(separator: "=", maxSplits: 1).map(String.init)
                guard parts.count == 2 else { throw ValidationError("--plugin needs NAME=PATH") }
                options.plugins[parts[0]] = URL(fileURLWithPath: parts[1]).path
            }
            if verbose { options.isVerbose = true }
            options.liveInterface = live
            return options
        }

        /// The options that a worker gets.
        private var passedOn: [String] {
            var arguments = scripts.filter { $0.hasPrefix("--") }
            for definition in definitions { arguments += ["-D", definition] }
            if let profile { arguments += ["--profile", profile] }
            if let tolerance { arguments += ["--tolerance", tolerance] }
            if let plugins { arguments += ["--plugins", plugins] }
            for file in pluginFiles { arguments += ["--plugin", file] }
            if verbose { arguments.append("--verbose") }
            return arguments
        }

        private func printSummary(_ reports: [ScriptReport], _ elapsed: TimeInterval) {
            for report in reports {
                if verbose { print("\(report.path): \(report.outcome.rawValue)") }
                for line in report.output { print(line) }
                for warning in report.warnings { print(warning) }
                if let message = report.message { print(message) }
            }
            let passed = reports.count { $0.outcome == .passed }
            let failed = reports.count { $0.outcome == .failed }
            let refused = reports.count - passed - failed
            let seconds = String(format: "%.2f", elapsed)
            print(
                "\(reports.count) scripts: \(passed) passed, \(failed) failed, \(refused) could not be run (\(seconds) s)"
            )
        }
    }
}

/// Which files are meant.
enum ScriptFiles {
    static func find(_ arguments: [String]) throws -> [String] {
        var paths: [String] = []
        for argument in arguments {
            var isDirectory: ObjCBool = false
            guard FileManager.default.fileExists(atPath: argument, isDirectory: &isDirectory) else {
                throw ValidationError("\(argument) does not exist")
            }
            guard isDirectory.boolValue else {
                paths.append(argument)
                continue
            }
            let found = FileManager.default.enumerator(atPath: argument)?.compactMap { $0 as? String } ?? []
            paths += found.filter { $0.hasSuffix(".pkt") }.sorted().map { "\(argument)/\($0)" }
        }
        return paths
    }
}

/// What has come of a script, as reports and workers tell it.
struct ScriptReport: Codable {
    enum Outcome: String, Codable { case passed, failed, refused }

    var path: String
    var outcome: Outcome
    var message: String?
    var warnings: [String]
    var output: [String]
    /// Virtual.
    var seconds: Double

    init(_ result: PacketScriptResult) {
        path = result.path
        warnings = result.warnings
        output = result.output
        seconds = Double(result.duration) / 1e9
        message = result.error?.description
        switch result.outcome {
        case .passed: outcome = .passed
        case .failed: outcome = .failed
        case .refused: outcome = .refused
        }
    }

    init(crashed path: String, _ status: Int32) {
        self.path = path
        outcome = .failed
        message = "\(path): the runner crashed with signal \(status)"
        warnings = []
        output = []
        seconds = 0
    }

    func printLine() {
        guard let data = try? JSONEncoder().encode(self) else { return }
        FileHandle.standardOutput.write(data + Data([10]))
    }
}

/// Several processes, since a stack belongs to one thread and a crash should cost one script.
enum ScriptWorkers {
    private final class Results: @unchecked Sendable {
        private let lock = NSLock()
        private var reports: [Int: ScriptReport] = [:]
        private var failure: (any Error)?

        func set(_ index: Int, _ report: ScriptReport) { lock.withLock { reports[index] = report } }
        func fail(_ error: any Error) { lock.withLock { failure = failure ?? error } }

        func all(_ count: Int) throws -> [ScriptReport] {
            if let failure { throw failure }
            return (0..<count).compactMap { reports[$0] }
        }
    }

    static func run(_ paths: [String], workers: Int, _ options: [String]) throws -> [ScriptReport] {
        let results = Results()
        DispatchQueue.concurrentPerform(iterations: workers) { worker in
            var left = stride(from: worker, to: paths.count, by: workers).map { ($0, paths[$0]) }
            while !left.isEmpty {
                do {
                    let (reports, status) = try runOnce(left.map(\.1), options)
                    for (place, report) in zip(left, reports) { results.set(place.0, report) }
                    left.removeFirst(min(reports.count, left.count))
                    if let (index, path) = left.first {
                        results.set(index, ScriptReport(crashed: path, status))
                        left.removeFirst()
                    }
                } catch {
                    results.fail(error)
                    return
                }
            }
        }
        return try results.all(paths.count)
    }

    private static func runOnce(_ paths: [String], _ options: [String]) throws -> ([ScriptReport], Int32) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
        process.arguments = ["pkt", "run", "--json-lines"] + options + paths
        let pipe = Pipe()
        process.standardOutput = pipe
        try process.run()
        let data = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        let reports = data.split(separator: 10).compactMap { try? JSONDecoder().decode(ScriptReport.self, from: $0) }
        return (reports, process.terminationStatus)
    }
}

/// The Test Anything Protocol, version 13.
enum TAPReport {
    static func print(_ reports: [ScriptReport]) {
        Swift.print("TAP version 13\n1..\(reports.count)")
        for (index, report) in reports.enumerated() {
            Swift.print("\(report.outcome == .passed ? "ok" : "not ok") \(index + 1) - \(report.path)")
            for line in report.output + report.warnings + (report.message.map { [$0] } ?? []) {
                for part in line.split(separator: "\n") { Swift.print("# \(part)") }
            }
        }
    }
}

/// The XML that continuous integration reads.
enum JUnitReport {
    static func write(_ reports: [ScriptReport], _ elapsed: TimeInterval, to path: String) throws {
        let failed = reports.count { $0.outcome == .failed }
        let refused = reports.count { $0.outcome == .refused }
        var text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
        text +=
            "<testsuite name=\"packet scripts\" tests=\"\(reports.count)\" failures=\"\(failed)\" errors=\"\(refused)\""
        text += " time=\"\(String(format: "%.3f", elapsed))\">\n"
        for report in reports {
            text += "  <testcase name=\"\(escaped(report.path))\" time=\"\(String(format: "%.3f", report.seconds))\""
            guard let message = report.message else {
                text += "/>\n"
                continue
            }
            let element = report.outcome == .failed ? "failure" : "error"
            let first = message.split(separator: "\n").first.map(String.init) ?? ""
            text += ">\n    <\(element) message=\"\(escaped(first))\">\(escaped(message))</\(element)>\n  </testcase>\n"
        }
        text += "</testsuite>\n"
        try text.write(toFile: path, atomically: true, encoding: .utf8)
    }

    private static func escaped(_ text: String) -> String {
        text.replacingOccurrences(of: "&", with: "&amp;").replacingOccurrences(of: "<", with: "&lt;")
            .replacingOccurrences(of: ">", with: "&gt;").replacingOccurrences(of: "\"", with: "&quot;")
    }
}

import ArgumentParser
import Foundation
import Kernel
import Lab

/// `alps torture`
struct TortureCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "torture",
        abstract: "Run TCP over random networks, faults and applications in virtual time, and check what must hold.",
        discussion: """
              alps torture --seeds 2000
              alps torture --seed 1234 --verbose
              alps torture --seeds 100000 --first 50000 --jobs 8 --json > report.jsonl

            A seed stands for a network of two to four kernels, what its links do \
            to packets, the settings of each kernel, and what the applications at \
            both ends of up to eight connections do. The same seed gives the same \
            run, packet for packet. After each run every byte must have arrived in \
            order, both sides must have ended without an error, and nothing may be \
            left of it in any kernel; on the wire every sender must keep to the \
            bounds of RFC 5681, 6298 and 9293. docs/torture.md tells all of them.

            A seed that fails is printed with what has failed; `--seed S --verbose` shows its plan and all its packets.

            Exit status: 0 all seeds passed, 1 one has failed.
            """)

    @Option(help: "How many seeds.") var seeds = 1000
    @Option(help: "The first one.") var first: UInt64 = 1
    @Option(help: "This seed alone, in this process.") var seed: UInt64?
    @Option(help: "Processes that run seeds; as many as there are processors if not given.") var jobs: Int?
    @Flag(help: "Print a line of JSON a seed, and nothing else.") var json = false
    @Flag(name: .shortAndLong, help: "Print only failures.") var quiet = false
    @Flag(name: .shortAndLong, help: "With --seed: print the plan and a line a packet, as tcpdump does.")
    var verbose = false
    @Option(help: ArgumentHelp("A fault made on purpose, to see it found: \(Self.faults).", valueName: "fault"))
    var sabotage: String?
    @Option(help: "Directory of the plugins.") var plugins: String?
    @Flag(name: .customLong("worker"), help: .hidden) var isWorker = false

    private static var faults: String { TortureRun.Sabotage.allCases.map(\.rawValue).joined(separator: ", ") }

    func validate() throws {
        guard seeds > 0 else { throw ValidationError("--seeds must be at least 1") }
        guard jobs ?? 1 > 0 else { throw ValidationError("--jobs must be at least 1") }
        if let sabotage, TortureRun.Sabotage(rawValue: sabotage) == nil {
            throw ValidationError("--sabotage is one of \(Self.faults)")
        }
        if verbose, seed == nil { throw ValidationError("--verbose goes with --seed") }
    }

    func run() throws {
        if isWorker { return try work() }
        if let seed {
            let report = try TortureRun.run(
                seed: seed, plugins: plugins, sabotage: sabotage.flatMap { TortureRun.Sabotage(rawValue: $0) },
                onLine: verbose ? { Swift.print($0) } : nil)
            return try finish([report], 0)
        }
        let started = Date()
        let workers = TortureWorkers(arguments: passedOn) { report in
            if json { TortureWorkers.print(report) } else if !report.hasPassed { describe(report) }
        }
        let totals = try workers.run(first: first, count: seeds, jobs: jobs ?? ProcessInfo.processInfo.activeProcessorCount)
        try summarize(totals, Date().timeIntervalSince(started))
    }

    /// A worker's part: a line of JSON a seed.
    private func work() throws {
        let images = PluginImages()
        for number in 0..<UInt64(seeds) {
            // A seed takes a fraction of a second: one that goes on for so long never ends.
            alarm(120)
            TortureWorkers.print(
                try TortureRun.run(
                    seed: first + number, plugins: plugins, images: images,
                    sabotage: sabotage.flatMap { TortureRun.Sabotage(rawValue: $0) }))
        }
    }

    private var passedOn: [String] {
        (plugins.map { ["--plugins", $0] } ?? []) + (sabotage.map { ["--sabotage", $0] } ?? [])
    }

    private func finish(_ reports: [TortureReport], _ elapsed: TimeInterval) throws {
        var totals = TortureTotals()
        for report in reports {
            totals.add(report)
            if json { TortureWorkers.print(report) } else if !report.hasPassed { describe(report) }
        }
        try summarize(totals, elapsed)
    }

    private func describe(_ report: TortureReport) {
        print("seed \(report.seed) fails:")
        for failure in report.failures { print("    \(failure)") }
        print("    replay: alps torture --seed \(report.seed) --verbose")
    }

    private func summarize(_ totals: TortureTotals, _ elapsed: TimeInterval) throws {
        if !json, !quiet || !totals.failed.isEmpty {
            var line = "\(totals.seeds) seeds: \(totals.seeds - totals.failed.count) passed, \(totals.failed.count) failed;"
            line += " \(totals.connections) connections, \(totals.packets) packets, \(totals.bytes) bytes,"
            line += " \(Int(totals.seconds)) s of virtual time"
            if elapsed > 0 {
                line += " in \(String(format: "%.1f", elapsed)) s (\(Int(Double(totals.seeds) / elapsed)) seeds/s)"
            }
            print(line)
            if totals.failed.count > 1 {
                print("failing seeds: " + totals.failed.sorted().map(String.init).joined(separator: " "))
            }
        }
        if !totals.failed.isEmpty { throw ExitCode(1) }
    }
}

/// What many seeds have come to.
struct TortureTotals {
    private(set) var seeds = 0
    private(set) var failed: [UInt64] = []
    private(set) var connections = 0
    private(set) var packets: UInt64 = 0
    private(set) var bytes: UInt64 = 0
    private(set) var seconds = 0.0

    mutating func add(_ report: TortureReport) {
        seeds += 1
        if !report.hasPassed { failed.append(report.seed) }
        connections += report.connections
        packets += report.packets
        bytes += report.bytes
        seconds += report.seconds
    }
}

/// Runs seeds in processes of their own, since a stack belongs to one thread and a crash should cost one seed.
final class TortureWorkers: @unchecked Sendable {
    private let arguments: [String]
    private let onReport: (TortureReport) -> Void
    private let lock = NSLock()
    private var next: UInt64 = 0
    private var end: UInt64 = 0
    private var totals = TortureTotals()
    private var failure: (any Error)?
    /// Seeds that one process runs.
    private static let batch: UInt64 = 100

    init(arguments: [String], onReport: @escaping (TortureReport) -> Void) {
        self.arguments = arguments
        self.onReport = onReport
    }

    func run(first: UInt64, count: Int, jobs: Int) throws -> TortureTotals {
        next = first
        end = first + UInt64(count)
        let batch = max(1, min(Self.batch, UInt64(count + jobs - 1) / UInt64(jobs)))
        DispatchQueue.concurrentPerform(iterations: jobs) { _ in
            while let (first, count) = take(batch) {
                do { try runBatch(first, count) } catch { lock.withLock { failure = failure ?? error } }
            }
        }
        if let failure { throw failure }
        return totals
    }

    private func take(_ batch: UInt64) -> (UInt64, UInt64)? {
        lock.withLock {
            guard next < end, failure == nil else { return nil }
            let count = min(batch, end - next)
            defer { next += count }
            return (next, count)
        }
    }

    private func add(_ report: TortureReport) {
        lock.withLock {
            totals.add(report)
            onReport(report)
        }
    }

    /// A process that dies has died of the seed after the last one it told of; the others go to the next process.
    private func runBatch(_ first: UInt64, _ count: UInt64) throws {
        var seed = first
        while seed < first + count {
            let (reports, status, signal) = try runProcess(seed, first + count - seed)
            for report in reports { add(report) }
            seed += UInt64(reports.count)
            guard seed < first + count else { return }
            let cause = !signal ? "exit status \(status)" : status == SIGALRM ? "no end after 120 s" : "signal \(status)"
            add(TortureReport(seed: seed, failure: "the process that ran it has died: \(cause)"))
            seed += 1
        }
    }

    private func runProcess(_ first: UInt64, _ count: UInt64) throws -> ([TortureReport], Int32, Bool) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
        process.arguments = ["torture", "--worker", "--first", String(first), "--seeds", String(count)] + arguments
        let pipe = Pipe()
        process.standardOutput = pipe
        try process.run()
        let data = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        let reports = data.split(separator: 10).compactMap { try? JSONDecoder().decode(TortureReport.self, from: $0) }
        return (reports, process.terminationStatus, process.terminationReason == .uncaughtSignal)
    }

    static func print(_ report: TortureReport) {
        guard let data = try? JSONEncoder().encode(report) else { return }
        FileHandle.standardOutput.write(data + Data([10]))
    }
}

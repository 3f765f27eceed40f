import ArgumentParser
import CLinux
import Foundation
import Glibc
import Kernel

/// What `alps up` leaves for `alps down`: /run/alps/NAME.up
private struct BackgroundHost: Codable {
    var pid: Int32
    /// The network namespace that `alps up` made, nil if it was there before or none was asked for.
    var madeNamespace: String?

    static func path(_ name: String) -> String { "\(ControlServer.defaultDirectory)/\(name).up" }

    static func read(_ name: String) -> BackgroundHost? {
        guard let data = FileManager.default.contents(atPath: path(name)) else { return nil }
        return try? JSONDecoder().decode(BackgroundHost.self, from: data)
    }
}

/// `alps up`
struct UpCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "up",
        abstract: "Start a stack in the background on tap0: 10.11.12.13/24, the kernel's side 10.11.12.1.",
        discussion: """
            Everything after `--` goes to `alps host` as it is:

              alps up
              alps up --netns lab
              alps up -- --link "loss 1% delay 10ms" --capture /tmp/tap0.pcapng

            The host's messages go to /run/alps/NAME.log.
            """)

    @Option(name: .shortAndLong, help: "Name of the stack.")
    var name = "alps0"

    @Option(help: "Interface: tap:NAME.")
    var interface = "tap:tap0"

    @Option(help: "Address of the stack.")
    var address = "10.11.12.13/24"

    @Option(help: "Address of the kernel's side of the tap, and default gateway of the stack.")
    var gateway = "10.11.12.1"

    @Option(help: "Network namespace to run in; made if it does not exist, removed by `alps down` if so made.")
    var netns: String?

    @Argument(parsing: .postTerminator, help: "More options for `alps host`.")
    var hostOptions: [String] = []

    func run() throws {
        if let running = BackgroundHost.read(name), kill(running.pid, 0) == 0 {
            throw failure("stack '\(name)' is up already (process \(running.pid)): stop it with `alps down --name \(name)`")
        }
        var made: String?
        if let netns {
            if !FileManager.default.fileExists(atPath: "/run/netns/\(netns)") {
                try runTool("ip", "netns", "add", netns)
                made = netns
                try? runTool("ip", "-n", netns, "link", "set", "lo", "up")
            }
            let descriptor = open("/run/netns/\(netns)", O_RDONLY | O_CLOEXEC)
            guard descriptor >= 0, setns(descriptor, 0) == 0 else {
                throw failure("cannot enter network namespace '\(netns)': \(String(cString: strerror(errno)))")
            }
        }
        try? FileManager.default.createDirectory(
            atPath: ControlServer.defaultDirectory, withIntermediateDirectories: true)
        let log = "\(ControlServer.defaultDirectory)/\(name).log"
        let pid = try startHost(log: log, madeNamespace: made)
        let record = BackgroundHost(pid: pid, madeNamespace: made)
        try JSONEncoder().encode(record).write(to: URL(fileURLWithPath: BackgroundHost.path(name)))
        print("stack '\(name)' is up: process \(pid), address \(address), messages in \(log)")
        let option = name == "alps0" ? "" : " --name \(name)"
        print("try: alps run\(option) -- curl http://\(gateway)/    stop it with: alps down\(option)")
    }

    /// Starts `alps host` in a session of its own and waits until it says that it is ready.
    private func startHost(log: String, madeNamespace: String?) throws -> pid_t {
        var ready: [Int32] = [0, 0]
        guard pipe2(&ready, O_CLOEXEC) == 0 else { throw failure("pipe: \(String(cString: strerror(errno)))") }
        let output = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard output >= 0 else { throw failure("cannot write \(log): \(String(cString: strerror(errno)))") }
        let arguments =
            ["alps", "host", "--name", name, "--interface", interface, "--address", address, "--gateway", gateway,
                "--ready-fd", "3"] + hostOptions

        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, output, 1)
        posix_spawn_file_actions_adddup2(&actions, output, 2)
        posix_spawn_file_actions_adddup2(&actions, ready[1], 3)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        posix_spawnattr_setflags(&attributes, Int16(alps_POSIX_SPAWN_SETSID))
        var pid: pid_t = 0
        var argv = arguments.map { strdup($0) } + [nil]
        defer { argv.forEach { free($0) } }
        let status = posix_spawn(&pid, "/proc/self/exe", &actions, &attributes, &argv, environ)
        close(ready[1])
        close(output)
        guard status == 0 else { throw failure("cannot start the host: \(String(cString: strerror(status)))") }

        var byte: UInt8 = 0
        let got = read(ready[0], &byte, 1)
        close(ready[0])
        guard got == 1 else {
            var exit: Int32 = 0
            waitpid(pid, &exit, 0)
            if let madeNamespace { try? runTool("ip", "netns", "delete", madeNamespace) }
            let text = FileManager.default.contents(atPath: log).map { String(decoding: $0, as: UTF8.self) } ?? ""
            throw failure("the host did not start:\n\(text)")
        }
        return pid
    }
}

/// `alps down`
struct DownCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "down",
        abstract: "Stop a stack that `alps up` started, and remove what it made.")

    @Option(name: .shortAndLong, help: "Name of the stack.")
    var name = "alps0"

    func run() throws {
        guard let host = BackgroundHost.read(name) else {
            throw failure("no stack named '\(name)' was started by `alps up`")
        }
        if kill(host.pid, SIGTERM) == 0 {
            for _ in 0..<100 where kill(host.pid, 0) == 0 { usleep(50_000) }
            if kill(host.pid, 0) == 0 { kill(host.pid, SIGKILL) }
        }
        unlink(BackgroundHost.path(name))
        if let namespace = host.madeNamespace { try? runTool("ip", "netns", "delete", namespace) }
        print("stack '\(name)' is down")
    }
}

/// Runs a program of the system and waits for it.
func runTool(_ arguments: String...) throws {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = arguments
    try process.run()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else {
        throw failure("`\(arguments.joined(separator: " "))` failed")
    }
}

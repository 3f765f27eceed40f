import ArgumentParser
import Glibc

/// `alps run`
struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run",
        abstract: "Run a program over a stack.",
        usage: "alps run [--name NAME] [--socket PATH] [--bypass CIDR ...] [--strict] -- COMMAND [ARGUMENT ...]",
        discussion: """
            The program's IPv4 sockets, and those of everything it starts, are the stack's. Other sockets are the \
            kernel's as before; IPv6 sockets are refused, so that programs fall back to IPv4.

              alps run -- curl http://10.11.12.1/
              alps run --bypass 127.0.0.0/8 -- bash
              alps run --strict -- busybox wget -O - http://10.11.12.1/

            The stack comes in front of libc, so static programs, and those that make system calls themselves, pass it \
            by. With --strict a seccomp filter stops their socket calls too, and a supervisor makes them on the stack; \
            io_uring is not there.

            The exit status is the program's own; 2 if there is no such stack, 126 or 127 if the program cannot be \
            started.
            """)

    @Option(name: .shortAndLong, help: "Name of the stack.")
    var name = "alps0"

    @Option(help: "Path of the stack's control socket, instead of the one its name stands for.")
    var socket: String?

    @Option(help: ArgumentHelp("Addresses that are reached over the kernel; may be repeated.", valueName: "cidr"))
    var bypass: [String] = []

    @Flag(help: "No Internet socket of the kernel's, whatever the program is.")
    var strict = false

    @Argument(parsing: .captureForPassthrough, help: "The program and its arguments.")
    var command: [String] = []

    func validate() throws {
        // Everything from the first word that is none of our options is the program's, a misspelt option included.
        if let first = command.first, first.hasPrefix("-"), first != "--" {
            if first == "--help" || first == "-h" { throw CleanExit.helpRequest(self) }
            throw ValidationError("unknown option \(first)")
        }
        guard !program.isEmpty else { throw ValidationError("no program to run: alps run -- COMMAND ...") }
        for range in bypass where !Launch.isRange(range) {
            throw ValidationError("--bypass \(range): not an IPv4 address range such as 10.0.0.0/8")
        }
        guard bypass.count <= Launch.mostBypassRanges else {
            throw ValidationError("at most \(Launch.mostBypassRanges) --bypass ranges")
        }
    }

    private var program: [String] { command.first == "--" ? Array(command.dropFirst()) : command }

    func run() throws {
        do {
            try Launch(stack: name, socket: socket, bypass: bypass, isStrict: strict).execute(program)
        } catch let error as LaunchError {
            throw failure(error.message, status: error.status)
        }
    }
}

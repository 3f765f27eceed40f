import ArgumentParser
import Kernel

/// `alps stat`
struct StatCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stat",
        abstract: "Show what a stack has in use: mbufs, clusters, callouts, sockets, entries, descriptors, sessions.",
        discussion: """
            IN USE is the present number, PEAK the highest so far, FAILED how often there was none to be had. A stack \
            whose clients have all gone has no sockets, no mbufs and no sessions in use.
            """)

    @OptionGroup var stack: StackOptions

    func run() throws {
        try stack.show(stack.ask("resources", as: ResourcesReply.self)) { reply in
            var table = TextTable(["RESOURCE", "IN USE", "PEAK", "FAILED"])
            for row in reply.resources { table.add([row.name, "\(row.inUse)", "\(row.peak)", "\(row.failed)"]) }
            table.print()
        }
    }
}

/// `alps ps`
struct ProcessesCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ps",
        abstract: "Show the processes that use a stack, and its fibers with what they sleep on.")

    @OptionGroup var stack: StackOptions

    func run() throws {
        try stack.show(stack.ask("processes", as: ProcessesReply.self)) { reply in
            var sessions = TextTable(["SESSION", "PID", "UID", "SOCKETS", "PROGRAM"])
            for row in reply.sessions where !row.tool {
                sessions.add(["\(row.session)", "\(row.pid)", "\(row.uid)", "\(row.sockets)", row.program])
            }
            sessions.print()
            guard !reply.fibers.isEmpty else { return }
            print("")
            var fibers = TextTable(["FIBER", "SESSION", "STATE", "WMESG", "CHANNEL", "NAME"])
            for row in reply.fibers {
                fibers.add([
                    "\(row.id)", row.session.map { "\($0)" } ?? "-", row.state, row.waitMessage ?? "-",
                    row.waitChannel ?? "-", row.name,
                ])
            }
            fibers.print()
        }
    }
}

import ArgumentParser
import Kernel

/// `alps sysctl`
struct SysctlCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sysctl",
        abstract: "Read or set tunables of a stack.",
        discussion: """
            alps sysctl -a                             all of them
            alps sysctl net.inet.tcp                   those below a name
            alps sysctl net.inet.tcp.delayed_ack=0     set one

            Times take ns, us, ms, s; sizes take K, M, G. A value out of range is refused with the range.
            """)

    @Flag(name: .short, help: "All tunables.")
    var all = false

    @Flag(name: .short, help: "Also print what each one means and its range.")
    var describe = false

    @Argument(help: "NAME or NAME=VALUE.")
    var names: [String] = []

    @OptionGroup var stack: StackOptions

    func validate() throws {
        if names.isEmpty && !all { throw ValidationError("Name a tunable, or use -a for all.") }
    }

    func run() throws {
        var reply = TunablesReply(tunables: [])
        if names.isEmpty {
            reply = try stack.ask("sysctl", TunableRequest(), as: TunablesReply.self)
        }
        for name in names {
            let parts = name.split(separator: "=", maxSplits: 1).map(String.init)
            let request = TunableRequest(name: parts[0], value: parts.count > 1 ? parts[1] : nil)
            reply.tunables += try stack.ask("sysctl", request, as: TunablesReply.self).tunables
        }
        try stack.show(reply) { reply in
            for row in reply.tunables {
                print("\(row.name)=\(row.value)")
                if describe {
                    print("    \(row.doc) (\(row.type), \(row.minimum)...\(row.maximum)\(row.readOnly ? ", read only" : ""))")
                }
            }
        }
    }
}

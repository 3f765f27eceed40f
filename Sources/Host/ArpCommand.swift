import ArgumentParser
import Kernel

/// `alps arp`
struct ArpCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "arp",
        abstract: "Look at and change the neighbour table of a stack.",
        subcommands: [Show.self, Add.self, Delete.self],
        defaultSubcommand: Show.self)

    struct Show: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List all neighbours.")
        @OptionGroup var stack: StackOptions

        func run() throws {
            try stack.show(stack.ask("neighbors", as: NeighborsReply.self)) { reply in
                var table = TextTable(["ADDRESS", "HARDWARE", "INTERFACE", "FLAGS", "EXPIRES"])
                for row in reply.neighbors {
                    table.add([
                        row.address, row.hardware ?? "(incomplete)", row.interface,
                        row.flags.isEmpty ? "-" : row.flags.joined(separator: ","),
                        row.expiresSeconds.map { "\(Int($0)) s" } ?? "permanent",
                    ])
                }
                table.print()
            }
        }
    }

    struct Add: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Add a static entry.")
        @Argument(help: "Network address.") var address: String
        @Argument(help: "Link address, e.g. 02:00:00:00:00:01.") var hardware: String
        @Option(help: "Interface; by default the one the address is reached by.") var interface: String?
        @Flag(help: "Answer requests for it (proxy ARP).") var published = false
        @OptionGroup var stack: StackOptions

        func run() throws {
            let request = NeighborRequest(
                address: address, hardware: hardware, interface: interface, published: published)
            _ = try stack.ask("neighbor.add", request, as: Nothing.self)
        }
    }

    struct Delete: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Delete an entry.")
        @Argument(help: "Network address.") var address: String
        @Option(help: "Interface; by default the one the address is reached by.") var interface: String?
        @OptionGroup var stack: StackOptions

        func run() throws {
            _ = try stack.ask(
                "neighbor.delete", NeighborRequest(address: address, interface: interface), as: Nothing.self)
        }
    }
}

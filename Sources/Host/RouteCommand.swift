import ArgumentParser
import Kernel

/// `alps route`
struct RouteCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "route",
        abstract: "Look at and change the routing table of a stack.",
        subcommands: [Show.self, Get.self, Add.self, Delete.self],
        defaultSubcommand: Show.self)

    static func printRoutes(_ reply: RoutesReply) {
        var table = TextTable(["DESTINATION", "GATEWAY", "FLAGS", "INTERFACE", "MTU", "METRIC", "EXPIRES"])
        for row in reply.routes {
            let destination = row.prefixLength == 0 ? "default" : "\(row.destination)/\(row.prefixLength)"
            table.add([
                destination, row.gateway ?? "-", row.flags, row.interface, "\(row.mtu)", "\(row.metric)",
                row.expiresSeconds.map { "\(Int($0)) s" } ?? "-",
            ])
        }
        table.print()
    }

    struct Show: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "List all routes.",
            discussion: """
                Flags as BSD's: U up, G gateway, H host, S static, C connected, L local, b broadcast, D made by a redirect, \
                W cloned to carry a path MTU, R reject.
                """)
        @OptionGroup var stack: StackOptions

        func run() throws { try stack.show(stack.ask("routes", as: RoutesReply.self), RouteCommand.printRoutes) }
    }

    struct Get: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show the route to an address.")
        @Argument(help: "Address, e.g. 10.11.12.1.") var address: String
        @OptionGroup var stack: StackOptions

        func run() throws {
            let request = RouteRequest(destination: address)
            try stack.show(stack.ask("route.get", request, as: RoutesReply.self)) { reply in
                for row in reply.routes {
                    print("   route to: \(address)")
                    print("destination: \(row.prefixLength == 0 ? "default" : row.destination)")
                    print("       mask: \(Self.mask(row.prefixLength))")
                    if let gateway = row.gateway { print("    gateway: \(gateway)") }
                    print("  interface: \(row.interface)")
                    print("      flags: <\(row.flags)>")
                    print("        mtu: \(row.mtu)")
                }
            }
        }

        /// As route(8) of BSD has it.
        private static func mask(_ length: Int) -> String {
            if length == 0 { return "default" }
            let bits = UInt32.max << UInt32(32 - min(length, 32))
            return "\(bits >> 24).\(bits >> 16 & 255).\(bits >> 8 & 255).\(bits & 255)"
        }
    }

    /// -net and -host, which BSD's route(8) wants and the destination says anyhow.
    struct BSDWords: ParsableArguments {
        @Flag(name: .customLong("net", withSingleDash: true), help: "The destination is a network.") var isNetwork = false
        @Flag(name: .customLong("host", withSingleDash: true), help: "The destination is a host.") var isHost = false
    }

    struct Add: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Add a route.",
            discussion: """
                alps route add default 10.11.12.1
                alps route add 192.0.2.0/24 10.11.12.9 --mtu 1400
                alps route add 192.0.2.0/24 --interface tap0

                BSD's words are understood too: alps route add -net 192.0.2.0/24 -interface tap0
                """)
        @OptionGroup var words: BSDWords
        @Argument(help: "Network as ADDRESS/LENGTH, an address, or `default`.") var destination: String
        @Argument(help: "Address of the next hop.") var gateway: String?
        @Option(
            name: [.long, .customLong("interface", withSingleDash: true)],
            help: "Interface, for a network that is directly connected.")
        var interface: String?
        @Option(help: "Path MTU in bytes.") var mtu: Int?
        @Option(help: "Lower wins among routes to the same network.") var metric: Int?
        @Flag(help: "Refuse packets to it with `host unreachable`.") var reject = false
        @OptionGroup var stack: StackOptions

        func validate() throws {
            if gateway == nil && interface == nil && !reject {
                throw ValidationError("Name a gateway, or an interface with --interface.")
            }
        }

        func run() throws {
            let request = RouteRequest(
                destination: destination, gateway: gateway, interface: interface, mtu: mtu, metric: metric,
                reject: reject)
            _ = try stack.ask("route.add", request, as: Nothing.self)
        }
    }

    struct Delete: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Delete a route.")
        @OptionGroup var words: BSDWords
        @Argument(help: "Network as ADDRESS/LENGTH, an address, or `default`.") var destination: String
        @Argument(help: "Only the route through this gateway.") var gateway: String?
        @OptionGroup var stack: StackOptions

        func run() throws {
            _ = try stack.ask(
                "route.delete", RouteRequest(destination: destination, gateway: gateway), as: Nothing.self)
        }
    }
}

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
                Flags as BSD's: U up, G gateway, H host, S static, C connected, L local, b broadcast, D made by a redirect,
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
                    print("destination: \(row.prefixLength == 0 ? "default" : "\(row.destination)/\(row.prefixLength)")")
                    if let gateway = row.gateway { print("    gateway: \(gateway)") }
                    print("  interface: \(row.interface)")
                    print("      flags: <\(row.flags)>")
                    print("        mtu: \(row.mtu)")
                }
            }
        }
    }

    struct Add: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Add a route.",
            discussion: """
                alps route add default 10.11.12.1
                alps route add 192.0.2.0/24 10.11.12.9 --mtu 1400
                alps route add 192.0.2.0/24 --interface tap0
                """)
        @Argument(help: "Network as ADDRESS/LENGTH, an address, or `default`.") var destination: String
        @Argument(help: "Address of the next hop.") var gateway: String?
        @Option(help: "Interface, for a network that is directly connected.") var interface: String?
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
        @Argument(help: "Network as ADDRESS/LENGTH, an address, or `default`.") var destination: String
        @Argument(help: "Only the route through this gateway.") var gateway: String?
        @OptionGroup var stack: StackOptions

        func run() throws {
            _ = try stack.ask(
                "route.delete", RouteRequest(destination: destination, gateway: gateway), as: Nothing.self)
        }
    }
}

import ArgumentParser
import Kernel

/// `alps netstat`
struct NetstatCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "netstat",
        abstract: "Show sockets, interfaces (-i), statistics (-s) or routes (-r) of a stack.",
        discussion: """
            The INSTANCE column tells which plugin instance a socket belongs to: after `alps plugin swap tcp PATH`, old \
            connections stay in the old one until they end.
            """)

    @Flag(name: .short, help: "Interfaces and their counters.")
    var interfaces = false

    @Flag(name: .short, help: "Counters of every protocol.")
    var statistics = false

    @Flag(name: .short, help: "The routing table.")
    var routes = false

    @Option(name: .short, help: "Only this protocol, e.g. tcp.")
    var proto: String?

    @OptionGroup var stack: StackOptions

    func run() throws {
        if interfaces {
            try stack.show(stack.ask("interfaces", as: InterfacesReply.self), Self.printInterfaces)
        } else if statistics {
            var reply = try stack.ask("statistics", as: StatisticsReply.self)
            if let proto { reply.instances.removeAll { $0.instance != proto && !$0.instance.hasPrefix(proto + "/") } }
            try stack.show(reply, Self.printStatistics)
        } else if routes {
            try stack.show(stack.ask("routes", as: RoutesReply.self), RouteCommand.printRoutes)
        } else {
            var reply = try stack.ask("sockets", as: SocketsReply.self)
            if let proto { reply.sockets.removeAll { $0.proto != proto } }
            try stack.show(reply, Self.printSockets)
        }
    }

    static func printSockets(_ reply: SocketsReply) {
        var table = TextTable(["PROTO", "RECV-Q", "SEND-Q", "LOCAL", "REMOTE", "STATE", "INSTANCE", "PROGRAM"])
        for row in reply.sockets {
            let program = row.program.map { "\($0)\(row.pid.map { "[\($0)]" } ?? "")" } ?? "-"
            table.add([
                row.proto, "\(row.receiveQueue)", "\(row.sendQueue)", row.local, row.remote,
                row.state.isEmpty ? "-" : row.state, "\(row.instance) \(row.version)", program,
            ])
        }
        table.print()
    }

    static func printInterfaces(_ reply: InterfacesReply) {
        for row in reply.interfaces {
            print("\(row.name): flags=<\(row.flags.joined(separator: ","))> mtu \(row.mtu)")
            if let hardware = row.hardware { print("\tether \(hardware)") }
            if !row.offloads.isEmpty { print("\toffloads \(row.offloads.joined(separator: ","))") }
            for address in row.addresses {
                let broadcast = address.broadcast.map { " broadcast \($0)" } ?? ""
                let flags = address.flags.isEmpty ? "" : " " + address.flags.joined(separator: ",")
                print("\tinet \(address.address)/\(address.prefixLength)\(broadcast)\(flags)")
            }
            print("\tin  \(row.packetsIn) packets, \(row.bytesIn) bytes, \(row.errorsIn) errors")
            print("\tout \(row.packetsOut) packets, \(row.bytesOut) bytes, \(row.errorsOut) errors, \(row.drops) dropped")
        }
    }

    static func printStatistics(_ reply: StatisticsReply) {
        for row in reply.instances {
            print("\(row.instance):")
            for counter in row.counters { print("\t\(counter.value) \(counter.doc)") }
        }
    }
}

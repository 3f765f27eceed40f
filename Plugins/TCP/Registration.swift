import PluginAPI
import PluginKit

/// What the host is told about this protocol. The only place that names an address family and a protocol number.
enum Registration {
    static var domain: UInt16 { UInt16(ALPS_AF_INET) }
    static var `protocol`: UInt8 { 6 }
    static var network: StaticString { "alps.network/1:2" }
    static var requestCount: Int { 15 }

    static func register(_ instance: InstancePointer) -> Int32 {
        instance.pointee.networkCell = instance.services.cell(network)
        var result = instance.addSettings()
        if result == 0 { result = instance.addCounters() }
        if result == 0 { result = addEntry(instance) }
        return result
    }

    private static func addEntry(_ instance: InstancePointer) -> Int32 {
        fillRequests(instance.pointee.requests)
        let entry = instance.pointee.entry
        entry.initialize(
            to: alps_protosw(
                size: UInt32(MemoryLayout<alps_protosw>.size), domain: domain, type: UInt16(ALPS_SOCK_STREAM),
                protocol: UInt16(Self.protocol), demux: UInt8(ALPS_DEMUX_PORTS), reserved: 0,
                flags: ALPS_PR_CONNREQUIRED, name: text("tcp"), network: text(network),
                requests: UnsafePointer(instance.pointee.requests), requests_count: UInt32(requestCount),
                connection_overhead: UInt32(MemoryLayout<Connection>.size), input: tcpInput, ctlinput: tcpControlInput,
                sent: tcpSent, received: tcpReceived, send_datagram: nil))
        let cell = instance.services.protoswCell
        return cell.ops(alps_protosw_ops.self).pointee.add(cell.instance, entry)
    }

    private static func fillRequests(_ requests: UnsafeMutablePointer<alps_user_request>) {
        typealias OnSocket = @convention(c) (UnsafeMutableRawPointer, Socket) -> Int32
        typealias WithAddress =
            @convention(c) (UnsafeMutableRawPointer, Socket, UnsafePointer<alps_sockaddr>) -> Int32
        typealias ToAddress =
            @convention(c) (UnsafeMutableRawPointer, Socket, UnsafeMutablePointer<alps_sockaddr>) -> Int32
        typealias WithNumber = @convention(c) (UnsafeMutableRawPointer, Socket, Int32) -> Int32
        typealias ToBuffer =
            @convention(c) (
                UnsafeMutableRawPointer, Socket, UnsafeMutableRawPointer, UnsafeMutablePointer<UInt32>
            ) -> Int32
        typealias WithOption =
            @convention(c) (
                UnsafeMutableRawPointer, Socket, Int32, Int32, Int32, UnsafeMutableRawPointer,
                UnsafeMutablePointer<UInt32>
            ) -> Int32

        var next = requests
        func add(
            _ id: UInt32, _ name: StaticString, _ signature: StaticString, _ function: alps_function,
            _ doc: StaticString? = nil
        ) {
            next.initialize(
                to: alps_user_request(
                    size: UInt32(MemoryLayout<alps_user_request>.size), id: id, name: text(name),
                    signature: text(signature), doc: doc.map(text), function: function))
            next += 1
        }
        func onSocket(_ function: OnSocket) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        func withAddress(_ function: WithAddress) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        func toAddress(_ function: ToAddress) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        func withNumber(_ function: WithNumber) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        func toBuffer(_ function: ToBuffer) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        func withOption(_ function: WithOption) -> alps_function { unsafeBitCast(function, to: alps_function.self) }

        add(ALPS_PRU_ATTACH, "attach", "S", onSocket(tcpAttach))
        add(ALPS_PRU_BIND, "bind", "Sa", withAddress(tcpBind))
        add(ALPS_PRU_LISTEN, "listen", "Si", withNumber(tcpListen))
        add(ALPS_PRU_CONNECT, "connect", "Sa", withAddress(tcpConnect))
        add(ALPS_PRU_SHUTDOWN, "shutdown", "Si", withNumber(tcpShutdown))
        add(ALPS_PRU_CLOSE, "close", "S", onSocket(tcpClose))
        add(ALPS_PRU_ABORT, "abort", "S", onSocket(tcpAbort))
        add(ALPS_PRU_CTLOUTPUT, "ctloutput", "SiiiB", withOption(tcpControlOutput))
        add(ALPS_PRU_SOCKADDR, "sockaddr", "SA", toAddress(tcpSockaddr))
        add(ALPS_PRU_PEERADDR, "peeraddr", "SA", toAddress(tcpPeeraddr))
        add(ALPS_PRU_REHOME, "rehome", "S", onSocket(tcpRehome))
        add(ALPS_PRU_ORPHAN, "orphan", "S", onSocket(tcpOrphan))
        add(ALPS_PRU_DESCRIBE, "describe", "SB", toBuffer(tcpDescribe))
        add(
            ALPS_PRU_FIRST_PRIVATE, "dump", "SB", toBuffer(tcpDump),
            "State of a connection with all sequence variables, as JSON")
        add(
            ALPS_PRU_FIRST_PRIVATE + 1, "drop", "S", onSocket(tcpDrop),
            "End a connection with a reset, as tcpdrop(8)")
        precondition(next == requests + requestCount)
    }
}

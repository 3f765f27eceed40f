import PluginAPI
import PluginKit

/// What ICMP tells the protocol switch: a taker of packets, and datagram sockets for echo requests.
enum Registration {
    static var `protocol`: UInt16 { 1 }
    static var entryCount: Int { 2 }
    static var requestCount: Int { 11 }

    static func register(_ instance: InstancePointer) -> Int32 {
        fillRequests(instance.pointee.requests)
        let packets = instance.pointee.entries
        let sockets = instance.pointee.entries + 1
        packets.initialize(
            to: alps_protosw(
                size: UInt32(MemoryLayout<alps_protosw>.size), domain: UInt16(ALPS_AF_INET), type: 0,
                protocol: Self.protocol, demux: UInt8(ALPS_DEMUX_NONE), reserved: 0, flags: ALPS_PR_NOSOCKET,
                name: text("icmp"), network: text("alps.network/1:2"),
                requests: UnsafePointer(instance.pointee.requests), requests_count: 0, connection_overhead: 0,
                input: icmpInput, ctlinput: nil, sent: nil, received: nil, send_datagram: nil))
        sockets.initialize(
            to: alps_protosw(
                size: UInt32(MemoryLayout<alps_protosw>.size), domain: UInt16(ALPS_AF_INET),
                type: UInt16(ALPS_SOCK_DGRAM), protocol: Self.protocol, demux: UInt8(ALPS_DEMUX_NONE), reserved: 0,
                flags: ALPS_PR_ATOMIC | ALPS_PR_ADDR, name: text("icmp"), network: text("alps.network/1:2"),
                requests: UnsafePointer(instance.pointee.requests), requests_count: UInt32(requestCount),
                connection_overhead: UInt32(MemoryLayout<EchoSocket>.size), input: nil, ctlinput: nil, sent: nil,
                received: nil, send_datagram: echoSend))
        let cell = instance.services.protoswCell
        let ops = cell.ops(alps_protosw_ops.self)
        let status = ops.pointee.add(cell.instance, packets)
        return status == 0 ? ops.pointee.add(cell.instance, sockets) : status
    }

    private typealias OnSocket = @convention(c) (UnsafeMutableRawPointer, Socket) -> Int32
    private typealias WithAddress =
        @convention(c) (UnsafeMutableRawPointer, Socket, UnsafePointer<alps_sockaddr>) -> Int32
    private typealias ToAddress =
        @convention(c) (UnsafeMutableRawPointer, Socket, UnsafeMutablePointer<alps_sockaddr>) -> Int32
    private typealias WithNumber = @convention(c) (UnsafeMutableRawPointer, Socket, Int32) -> Int32
    private typealias ControlOption =
        @convention(c) (
            UnsafeMutableRawPointer, Socket, Int32, Int32, Int32, UnsafeMutableRawPointer, UnsafeMutablePointer<UInt32>
        ) -> Int32

    private static func fillRequests(_ table: UnsafeMutablePointer<alps_user_request>) {
        var next = table
        func add(_ id: UInt32, _ name: StaticString, _ signature: StaticString, _ function: alps_function) {
            next.initialize(
                to: alps_user_request(
                    size: UInt32(MemoryLayout<alps_user_request>.size), id: id, name: text(name),
                    signature: text(signature), doc: nil, function: function))
            next += 1
        }
        func onSocket(_ function: OnSocket) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        func withAddress(_ function: WithAddress) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        func toAddress(_ function: ToAddress) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        let shutdown: WithNumber = echoShutdown
        let option: ControlOption = echoControlOutput
        add(ALPS_PRU_ATTACH, "attach", "S", onSocket(echoAttach))
        add(ALPS_PRU_BIND, "bind", "Sa", withAddress(echoBind))
        add(ALPS_PRU_CONNECT, "connect", "Sa", withAddress(echoConnect))
        add(ALPS_PRU_DISCONNECT, "disconnect", "S", onSocket(echoDisconnect))
        add(ALPS_PRU_SHUTDOWN, "shutdown", "Si", unsafeBitCast(shutdown, to: alps_function.self))
        add(ALPS_PRU_CLOSE, "close", "S", onSocket(echoClose))
        add(ALPS_PRU_ABORT, "abort", "S", onSocket(echoClose))
        add(ALPS_PRU_CTLOUTPUT, "ctloutput", "SiiiB", unsafeBitCast(option, to: alps_function.self))
        add(ALPS_PRU_SOCKADDR, "sockaddr", "SA", toAddress(echoSockaddr))
        add(ALPS_PRU_PEERADDR, "peeraddr", "SA", toAddress(echoPeeraddr))
        add(ALPS_PRU_REHOME, "rehome", "S", onSocket(echoRehome))
    }
}

import PluginAPI
import PluginKit

typealias Socket = UnsafeMutablePointer<alps_socket>

/// The transport attachment of a socket.
struct ControlBlock {
    /// In the host's connection table while `isInserted`: kind FULL if connected, else BOUND.
    var conn: alps_conn
    var socket: Socket
    var next: UnsafeMutablePointer<ControlBlock>?
    var prev: UnsafeMutablePointer<ControlBlock>?
    /// What bind asked for; a peer's choice of local address ends with the connection, this does not.
    var boundAddress: alps_addr
    /// The port was asked for, not picked.
    var isPortChosen: Bool
    var isInserted: Bool
    /// SO_NO_CHECK.
    var omitsChecksum: Bool
    /// We attached the network, not the host.
    var ownsNetworkAttachment: Bool
    /// The last destination of a send with an address, and what was found out about it.
    var lastRemote: alps_addr
    var lastLocal: alps_addr
    var lastRoute: alps_route
    /// The options in force then that have a say in the route.
    var lastChoice: RouteChoice

    @inline(__always)
    var isConnected: Bool { conn.kind == UInt8(ALPS_CONN_FULL) && isInserted }
}

/// Socket options that lead to another route or source address.
struct RouteChoice {
    var boundInterface: UInt32
    var multicastInterface: UInt32
    var flags: UInt8

    @inline(__always)
    init(_ netpcb: UnsafeMutablePointer<alps_netpcb>) {
        boundInterface = netpcb.pointee.bound_ifindex
        multicastInterface = netpcb.pointee.multicast_ifindex
        flags = netpcb.pointee.flags
    }

    @inline(__always)
    static func == (a: RouteChoice, b: RouteChoice) -> Bool {
        a.boundInterface == b.boundInterface && a.multicastInterface == b.multicastInterface && a.flags == b.flags
    }
}

typealias Block = UnsafeMutablePointer<ControlBlock>

extension UnsafeMutablePointer where Pointee == alps_socket {
    @inline(__always)
    var block: Block? { pointee.pcb?.assumingMemoryBound(to: ControlBlock.self) }
}

extension UnsafeMutablePointer where Pointee == Instance {
    @inline(__always)
    var sockets: UnsafePointer<alps_socket_ops> { services.socketCell.ops(alps_socket_ops.self) }

    @inline(__always)
    var table: UnsafePointer<alps_pcb_ops> { services.pcbCell.ops(alps_pcb_ops.self) }

    func makeBlock(_ socket: Socket) -> Int32 {
        guard let network else { return ALPS_EAFNOSUPPORT }
        guard let block = services.allocate(ControlBlock.self) else { return ALPS_ENOBUFS }
        let netpcb = socket.pointee.netpcb
        if netpcb.pointee.family == 0 {
            let result = network.ops.pointee.attach(network.instance, netpcb, socket)
            guard result == 0 else {
                services.free(block)
                return result
            }
            block.pointee.ownsNetworkAttachment = true
        }
        netpcb.pointee.protocol = Registration.protocol
        block.pointee.socket = socket
        block.pointee.conn.family = socket.pointee.domain
        block.pointee.conn.protocol = Registration.protocol
        block.pointee.conn.kind = UInt8(ALPS_CONN_BOUND)
        block.pointee.conn.socket = socket
        block.pointee.conn.cookie = UnsafeMutableRawPointer(block)
        block.pointee.next = pointee.controlBlocks
        pointee.controlBlocks?.pointee.prev = block
        pointee.controlBlocks = block
        socket.pointee.pcb = UnsafeMutableRawPointer(block)
        return 0
    }

    /// Takes a socket's block out of everything and frees it.
    func release(_ block: Block) {
        remove(block)
        if block.pointee.ownsNetworkAttachment, let network {
            network.ops.pointee.detach(network.instance, block.pointee.socket.pointee.netpcb)
        }
        if let previous = block.pointee.prev {
            previous.pointee.next = block.pointee.next
        } else {
            pointee.controlBlocks = block.pointee.next
        }
        block.pointee.next?.pointee.prev = block.pointee.prev
        block.pointee.socket.pointee.pcb = nil
        services.free(block)
    }

    func remove(_ block: Block) {
        guard block.pointee.isInserted else { return }
        table.pointee.remove(services.pcbCell.instance, &block.pointee.conn)
        block.pointee.isInserted = false
    }

    func insert(_ block: Block) -> Int32 {
        let result = table.pointee.insert(services.pcbCell.instance, &block.pointee.conn)
        if result == 0 { block.pointee.isInserted = true }
        return result
    }

    /// Reserves `conn`'s local port (0: any) and makes the socket reachable there.
    func reserve(_ block: Block) -> Int32 {
        block.pointee.conn.kind = UInt8(ALPS_CONN_BOUND)
        block.pointee.conn.bound_ifindex = block.pointee.socket.pointee.netpcb.pointee.bound_ifindex
        let result = table.pointee.bind(services.pcbCell.instance, &block.pointee.conn)
        if result == 0 { block.pointee.isInserted = true }
        return result
    }
}

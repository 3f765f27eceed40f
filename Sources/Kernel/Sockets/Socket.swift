package import PluginAPI

/// Who stands above a socket: a client's pair, or a test. Told once a turn that something has changed, and then looks.
open class SocketChannel {
    package init() {}

    /// The socket's state, data, room or queue have changed in this turn.
    package func update(_ socket: Socket) {}

    /// The transport has let go of the socket and it is about to be freed.
    package func detached(_ socket: Socket) {}
}

/// Where a socket was made, for tools and for port sharing rules.
package struct SocketOwner {
    package var session: UInt32
    package var uid: UInt32
    package var pid: Int32
    package var program: String

    package init(session: UInt32 = 0, uid: UInt32 = 0, pid: Int32 = 0, program: String = "") {
        self.session = session
        self.uid = uid
        self.pid = pid
        self.program = program
    }
}

/// A socket: the host's half around the `alps_socket` that its transport sees.
///
/// It has two holders, the application (through a channel) and the transport. It is freed when both have let go.
package final class Socket {
    package let raw: UnsafeMutablePointer<alps_socket>
    package let handle: SocketHandle
    package let kernel: Kernel
    package internal(set) var entry: ProtocolEntry
    package var channel: SocketChannel?
    package var owner: SocketOwner
    package let arena: Arena

    /// In the list of sockets that changed in this turn.
    var isDirty = false
    /// The transport still has it.
    package internal(set) var isAttached = false
    /// Connections made by this listener and not yet accepted, oldest first; and those still in their handshake.
    var acceptQueue: [Socket] = []
    var handshakes = 0
    /// The listener that made it, until accepted.
    unowned(unsafe) var head: Socket?
    /// The listener that made it, for good.
    package internal(set) var madeBy: SocketHandle?
    /// Datagrams waiting, oldest first.
    var datagrams = DatagramQueue()
    /// The urgent byte kept aside.
    var urgent = UrgentByte()
    /// Options that only the socket layer knows, by number: stored so that getsockopt tells what setsockopt said.
    var storedOptions: [Int32: [UInt8]] = [:]
    /// What it is bound to, for re-homing: set by a successful bind.
    var boundAddress: alps_sockaddr?
    /// Instances that had this listener before a swap: they may hold embryonic connections for it.
    var formerInstances: [PluginInstance] = []
    /// The address and flags the network attachment lies behind `raw`.
    private let block: UnsafeMutableRawPointer
    package private(set) var isFreed = false

    /// Bytes in front of the C structure that lead back to this object.
    private static let prefix = 16

    init(
        kernel: Kernel, handle: SocketHandle, entry: ProtocolEntry, protocol protocolNumber: Int32, owner: SocketOwner,
        arena: Arena, id: UInt64
    ) {
        self.kernel = kernel
        self.handle = handle
        self.entry = entry
        self.owner = owner
        self.arena = arena
        let socketSize = (MemoryLayout<alps_socket>.size + 15) & ~15
        let size = Self.prefix + socketSize + MemoryLayout<alps_netpcb>.size
        block = .allocate(byteCount: size, alignment: 16)
        block.initializeMemory(as: UInt8.self, repeating: 0, count: size)
        raw = (block + Self.prefix).assumingMemoryBound(to: alps_socket.self)
        let netpcb = (block + Self.prefix + socketSize).assumingMemoryBound(to: alps_netpcb.self)
        netpcb.pointee.size = UInt32(MemoryLayout<alps_netpcb>.size)
        netpcb.pointee.family = entry.sw.pointee.domain
        netpcb.pointee.protocol = UInt8(truncatingIfNeeded: protocolNumber)
        raw.pointee.size = UInt32(MemoryLayout<alps_socket>.size)
        raw.pointee.domain = entry.sw.pointee.domain
        raw.pointee.type = entry.sw.pointee.type
        raw.pointee.protocol = UInt16(truncatingIfNeeded: protocolNumber)
        raw.pointee.linger = -1
        raw.pointee.id = id
        raw.pointee.uid = owner.uid
        raw.pointee.netpcb = netpcb
        raw.pointee.snd.low_water = 2048
        raw.pointee.rcv.low_water = 1
        let layer = kernel.sockets
        raw.pointee.snd.limit = UInt32(layer.sendSpace.value)
        raw.pointee.rcv.limit = UInt32(layer.receiveSpace.value)
        block.storeBytes(of: Unmanaged.passUnretained(self).toOpaque(), as: UnsafeMutableRawPointer.self)
    }

    deinit { block.deallocate() }

    /// The object behind a C structure.
    @inline(__always)
    static func from(_ raw: UnsafeMutablePointer<alps_socket>) -> Unmanaged<Socket> {
        .fromOpaque((UnsafeMutableRawPointer(raw) - prefix).load(as: UnsafeMutableRawPointer.self))
    }

    // MARK: Facts

    package var state: UInt32 { raw.pointee.state }
    package var isStream: Bool { raw.pointee.type == UInt16(ALPS_SOCK_STREAM) }
    package var isListening: Bool { raw.pointee.options & UInt32(ALPS_SO_ACCEPTCONN) != 0 }
    package var isConnected: Bool { raw.pointee.state & UInt32(ALPS_SS_CONNECTED) != 0 }
    package var isConnecting: Bool { raw.pointee.state & UInt32(ALPS_SS_CONNECTING) != 0 }
    package var isClosed: Bool { raw.pointee.state & UInt32(ALPS_SS_CLOSED) != 0 }
    /// The connection has ended, in order or not.
    package var isDisconnected: Bool { raw.pointee.state & UInt32(ALPS_SS_DISCONNECTED) != 0 }
    package var cannotReceiveMore: Bool { raw.pointee.state & UInt32(ALPS_SS_CANTRCVMORE) != 0 }
    package var cannotSendMore: Bool { raw.pointee.state & UInt32(ALPS_SS_CANTSENDMORE) != 0 }
    /// SO_ERROR without clearing it.
    package var pendingError: Int32 { raw.pointee.error }

    /// SO_ERROR: reads and clears.
    package func takeError() -> Int32 {
        defer { raw.pointee.error = 0 }
        return raw.pointee.error
    }

    package var localAddress: alps_sockaddr { address(UInt32(ALPS_PRU_SOCKADDR)) }
    package var remoteAddress: alps_sockaddr { address(UInt32(ALPS_PRU_PEERADDR)) }

    private func address(_ id: UInt32) -> alps_sockaddr {
        var address = alps_sockaddr()
        address.family = raw.pointee.domain
        guard isAttached, let request = entry.request(id) else { return address }
        typealias Function = @convention(c) (
            UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, UnsafeMutablePointer<alps_sockaddr>
        ) -> Int32
        _ = unsafeBitCast(request.function, to: Function.self)(entry.instancePointer, raw, &address)
        return address
    }

    /// JSON text of the transport about this connection, "" if it has none.
    package func describe() -> String {
        guard isAttached, let request = entry.request(UInt32(ALPS_PRU_DESCRIBE)) else { return "" }
        let (error, results) = request.call(
            instance: entry.instancePointer, socket: raw, [.buffer([], capacity: 4096)])
        guard error == 0, case .bytes(let bytes)? = results.first else { return "" }
        return String(decoding: bytes, as: UTF8.self)
    }

    // MARK: Calls into the transport

    /// A request without further arguments.
    func request(_ id: UInt32) -> Int32 {
        guard let request = entry.request(id) else { return Int32(ALPS_EOPNOTSUPP) }
        typealias Function = @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>) -> Int32
        return unsafeBitCast(request.function, to: Function.self)(entry.instancePointer, raw)
    }

    func request(_ id: UInt32, _ address: alps_sockaddr) -> Int32 {
        guard let request = entry.request(id) else { return Int32(ALPS_EOPNOTSUPP) }
        typealias Function = @convention(c) (
            UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, UnsafePointer<alps_sockaddr>
        ) -> Int32
        var address = address
        return unsafeBitCast(request.function, to: Function.self)(entry.instancePointer, raw, &address)
    }

    func request(_ id: UInt32, _ number: Int32) -> Int32 {
        guard let request = entry.request(id) else { return Int32(ALPS_EOPNOTSUPP) }
        typealias Function = @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, Int32) -> Int32
        return unsafeBitCast(request.function, to: Function.self)(entry.instancePointer, raw, number)
    }

    func markDirty() { kernel.sockets.markDirty(self) }

    /// Frees what the socket holds once neither the application nor the transport has it.
    func releaseIfUnused() {
        guard isClosed, !isAttached, !isFreed else { return }
        isFreed = true
        channel?.detached(self)
        channel = nil
        datagrams.removeAll(kernel.mbufs)
        releaseBuffers()
        kernel.sockets.forget(self)
    }
}

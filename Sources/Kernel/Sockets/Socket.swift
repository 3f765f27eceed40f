package import PluginAPI

/// Who stands above a socket: a client's pair, or a test. Told once a turn that something has changed, and then looks. A pair
/// is watched for events, too.
open class SocketChannel: ReadyHandler {
    override package init() { super.init() }

    /// The socket's state, data, room or queue have changed in this turn.
    package func update(_ socket: Socket) {}

    /// The socket's rings have not been used for a while.
    package func buffersAreIdle(_ socket: Socket) { socket.releaseEmptyBuffers() }

    /// The program sends what it has held back (UDP_CORK).
    package func uncorked(_ socket: Socket) {}

    /// The ring that a client maps has not the room for so many bytes.
    package func sendRingIsShort(_ bytes: UInt32) {}

    /// A send buffer does not grow beyond that by itself, bytes.
    package var sendCeiling: UInt32 { .max }

    /// A client has done something in memory that it shares with the channel.
    package func bell() {}

    /// Application and transport have let go of the socket: it is about to be freed.
    package func detached(_ socket: Socket) {}
}

/// Where a socket was made, for tools and for port sharing rules. The sockets of one process share one, and so do the
/// connections of one listener.
package final class SocketOwner {
    package let session: UInt32
    package let uid: UInt32
    package let pid: Int32
    package let program: String
    /// The client counts processes as the host does (pid_namespaces(7)): numbers of threads mean the same to both.
    package let sharesProcessNumbers: Bool
    /// Of connections that a listener has made: that listener.
    let listener: SocketHandle?

    package init(
        session: UInt32 = 0, uid: UInt32 = 0, pid: Int32 = 0, program: String = "", sharesProcessNumbers: Bool = false
    ) {
        self.session = session
        self.uid = uid
        self.pid = pid
        self.program = program
        self.sharesProcessNumbers = sharesProcessNumbers
        listener = nil
    }

    /// Of what `listener` makes for `owner`, who has it.
    init(_ owner: SocketOwner, listener: SocketHandle) {
        session = owner.session
        uid = owner.uid
        pid = owner.pid
        program = owner.program
        sharesProcessNumbers = owner.sharesProcessNumbers
        self.listener = listener
    }
}

/// How far connect(2) has got, as Linux's `sock->state` tells it: what the connection does by itself in the meantime
/// changes it only when the program looks.
enum ConnectStage {
    case unconnected, connecting, connected
}

/// A socket: the host's half around the `alps_socket` that its transport sees.
///
/// It has two holders, the application (through a channel) and the transport. It is freed when both have let go.
///
/// There may be very many, most of them connections with nothing to do: what only some sockets need lies in objects of its
/// own, and properties stand in order of their sizes, in which they lie in memory.
package final class Socket {
    package let raw: UnsafeMutablePointer<alps_socket>
    package let handle: SocketHandle
    package let kernel: Kernel
    package let arena: Arena
    /// The kernel's, for the data path: through this a call costs no reference counting.
    let pool: Unmanaged<MbufPool>
    package let owner: SocketOwner
    // One count of each. The data path uses them without counting.
    private var heldEntry: Unmanaged<ProtocolEntry>
    private var heldChannel: Unmanaged<SocketChannel>?
    private var heldListening: Unmanaged<ListenState>?
    /// In the list of sockets that changed in this turn.
    var nextDirty: Borrowed<Socket>?
    /// Options of the transport that have been set, for attaching anew.
    var appliedOptions = AppliedOptions()
    /// Options that only the socket layer knows, by number: stored so that getsockopt tells what setsockopt said.
    var storedOptions: [Int32: [UInt8]] = [:]
    /// Datagrams waiting; streams have no such queue.
    let datagrams: DatagramQueue?
    /// See `UncommonState`.
    var uncommon: UncommonState?
    /// Number of the application's descriptor as /proc/PID/fd shows it, 0 if it has none.
    package internal(set) var inode: UInt64 = 0
    var idle = IdleMark()

    /// The transport has it.
    package internal(set) var isAttached = false
    /// The network has its `netpcb`: from the first attachment until the socket is freed.
    var hasNetwork = false
    package private(set) var isFreed = false
    /// Fibers that sleep until something changes.
    var waiters: Int32 = 0
    var connectStage = ConnectStage.unconnected
    /// It is in the list of sockets that changed in this turn.
    var isDirty = false
    /// A writer has found the send buffer full.
    var isWriterWaiting = false
    /// SO_SNDBUF, SO_RCVBUF have been set: the sizes are the application's business.
    var isSendSizeChosen = false
    var isReceiveSizeChosen: Bool { raw.pointee.options & ALPS_SO_RCVBUF_CHOSEN != 0 }
    /// UDP_CORK: what is sent is held back.
    var isCorked = false
    // Streams: a client maps the buffer's storage.
    var isSendMapped = false
    var isReceiveMapped = false
    /// Streams: the urgent byte.
    var urgent = UrgentByte()

    /// In front of the C structure: a pointer back to this object. Behind it: the network attachment.
    private var block: UnsafeMutableRawPointer { UnsafeMutableRawPointer(raw) - Self.prefix }
    private static let prefix = MemoryLayout<UnsafeMutableRawPointer>.size

    init(
        kernel: Kernel, handle: SocketHandle, entry: ProtocolEntry, protocol protocolNumber: Int32, owner: SocketOwner,
        arena: Arena, id: UInt64
    ) {
        self.kernel = kernel
        pool = .passUnretained(kernel.mbufs)
        self.handle = handle
        heldEntry = .passRetained(entry)
        self.owner = owner
        self.arena = arena
        datagrams = entry.sw.pointee.type == UInt16(ALPS_SOCK_STREAM) ? nil : DatagramQueue()
        let socketSize = MemoryLayout<alps_socket>.stride
        let size = Self.prefix + socketSize + MemoryLayout<alps_netpcb>.size
        let block = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 16)
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
        raw.pointee.rcv.low_water = 1
        raw.pointee.snd.limit = UInt32(truncatingIfNeeded: kernel.sockets.sendSpace.value)
        raw.pointee.rcv.limit = UInt32(truncatingIfNeeded: kernel.sockets.receiveSpace.value)
        block.storeBytes(of: Unmanaged.passUnretained(self).toOpaque(), as: UnsafeMutableRawPointer.self)
    }

    deinit {
        heldChannel?.release()
        heldListening?.release()
        heldEntry.release()
        block.deallocate()
    }

    /// The object behind a C structure.
    @inline(__always)
    static func from(_ raw: UnsafeMutablePointer<alps_socket>) -> Unmanaged<Socket> {
        .fromOpaque((UnsafeMutableRawPointer(raw) - prefix).load(as: UnsafeMutableRawPointer.self))
    }

    // MARK: Above and below

    package var channel: SocketChannel? {
        get { heldChannel?.takeUnretainedValue() }
        set {
            let old = heldChannel?.takeRetainedValue()
            heldChannel = newValue.map { .passRetained($0) }
            if let old { kernel.sockets.retire(old) }
        }
    }

    /// What it has as a listener, while it is one.
    @inline(__always)
    var listening: Borrowed<ListenState>? { heldListening?._withUnsafeGuaranteedRef { Borrowed($0) } }

    func setListening(_ state: ListenState?) {
        heldListening?.release()
        heldListening = state.map { .passRetained($0) }
    }

    @inline(__always)
    var borrowedChannel: Borrowed<SocketChannel>? { heldChannel?._withUnsafeGuaranteedRef { Borrowed($0) } }

    /// Its transport.
    package internal(set) var entry: ProtocolEntry {
        get { heldEntry.takeUnretainedValue() }
        set {
            let old = heldEntry
            heldEntry = .passRetained(newValue)
            old.release()
        }
    }

    func transportRequest(_ id: UInt32) -> RoutedRequest? { heldEntry._withUnsafeGuaranteedRef { $0.request(id) } }

    @inline(__always)
    var protosw: UnsafePointer<alps_protosw> { heldEntry._withUnsafeGuaranteedRef { $0.sw } }

    /// Below its transport.
    var network: UnsafePointer<alps_cell>? { heldEntry._withUnsafeGuaranteedRef { $0.network } }

    @inline(__always)
    var instance: UnsafeMutableRawPointer { heldEntry._withUnsafeGuaranteedRef { $0.instancePointer } }

    /// The listener that made it, until accepted.
    var head: Borrowed<Socket>? { raw.pointee.listener.map { Self.from($0)._withUnsafeGuaranteedRef { Borrowed($0) } } }

    /// The listener that made it, for good.
    package var madeBy: SocketHandle? { owner.listener }

    // MARK: Facts

    package var state: UInt32 { raw.pointee.state }
    package var isStream: Bool { raw.pointee.type == UInt16(ALPS_SOCK_STREAM) }
    package var isListening: Bool { raw.pointee.options & ALPS_SO_ACCEPTCONN != 0 }
    package var isConnected: Bool { raw.pointee.state & ALPS_SS_CONNECTED != 0 }
    package var isConnecting: Bool { raw.pointee.state & ALPS_SS_CONNECTING != 0 }
    package var isClosed: Bool { raw.pointee.state & ALPS_SS_CLOSED != 0 }
    /// The connection has ended, in order or not.
    package var isDisconnected: Bool { raw.pointee.state & ALPS_SS_DISCONNECTED != 0 }
    package var cannotReceiveMore: Bool { raw.pointee.state & ALPS_SS_CANTRCVMORE != 0 }
    package var cannotSendMore: Bool { raw.pointee.state & ALPS_SS_CANTSENDMORE != 0 }
    /// SO_ERROR without clearing it.
    package var pendingError: Int32 { raw.pointee.error }

    /// SO_ERROR: reads and clears.
    package func takeError() -> Int32 {
        defer { raw.pointee.error = 0 }
        return raw.pointee.error
    }

    package var localAddress: alps_sockaddr {
        if !isAttached, let boundAddress { return boundAddress }
        return address(ALPS_PRU_SOCKADDR)
    }

    package var remoteAddress: alps_sockaddr { address(ALPS_PRU_PEERADDR) }

    private func address(_ id: UInt32) -> alps_sockaddr {
        var address = alps_sockaddr()
        address.family = raw.pointee.domain
        guard isAttached, let request = transportRequest(id) else { return address }
        typealias Function = @convention(c) (
            UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, UnsafeMutablePointer<alps_sockaddr>
        ) -> Int32
        _ = unsafeBitCast(request.function, to: Function.self)(instance, raw, &address)
        return address
    }

    /// JSON text of the transport about this connection, "" if it has none.
    package func describe() -> String {
        guard isAttached, let request = transportRequest(ALPS_PRU_DESCRIBE) else { return "" }
        let (error, results) = request.call(instance: instance, socket: raw, [.buffer([], capacity: 4096)])
        guard error == 0, case .bytes(let bytes)? = results.first else { return "" }
        return String(decoding: bytes, as: UTF8.self)
    }

    // MARK: Calls into the transport

    /// A request without further arguments; EOPNOTSUPP if the transport does not have it.
    func request(_ id: UInt32) -> Int32 {
        guard let request = transportRequest(id) else { return ALPS_EOPNOTSUPP }
        typealias Function = @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>) -> Int32
        return unsafeBitCast(request.function, to: Function.self)(instance, raw)
    }

    func request(_ id: UInt32, _ address: alps_sockaddr) -> Int32 {
        guard let request = transportRequest(id) else { return ALPS_EOPNOTSUPP }
        typealias Function = @convention(c) (
            UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, UnsafePointer<alps_sockaddr>
        ) -> Int32
        var address = address
        return unsafeBitCast(request.function, to: Function.self)(instance, raw, &address)
    }

    func request(_ id: UInt32, _ number: Int32) -> Int32 {
        guard let request = transportRequest(id) else { return ALPS_EOPNOTSUPP }
        typealias Function = @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, Int32) -> Int32
        return unsafeBitCast(request.function, to: Function.self)(instance, raw, number)
    }

    // MARK: Life

    /// Its channel is to look at it at the end of this turn.
    @inline(__always)
    package func markDirty() {
        if !isDirty { kernel.sockets.markDirty(self) }
    }

    /// Frees what the socket holds once neither the application nor the transport has it.
    func releaseIfUnused() {
        guard isClosed, !isAttached, !isFreed else { return }
        isFreed = true
        channel?.detached(self)
        channel = nil
        datagrams?.removeAll(kernel.mbufs)
        releaseBuffers()
        kernel.sockets.detachNetwork(self)
        kernel.sockets.forget(self)
    }
}

import Glibc
import PluginAPI

/// All sockets of a kernel: making, finding and waking them. What transports ask of them is in SocketInterface.swift.
package final class SocketLayer {
    /// What `alps stat` shows of the socket layer.
    enum Counter: Int, CaseIterable {
        case made, refused, listenOverflows, datagramsDropped, ringsOpened, ringsExtended, ringsShrunk, ringsClosed
        case ringBells, ringViolations, payloadsReadToPlace, payloadsTakenBack

        var name: String {
            switch self {
            case .made: "made"
            case .refused: "refused"
            case .listenOverflows: "listen_overflows"
            case .datagramsDropped: "datagrams_dropped"
            case .ringsOpened: "rings_opened"
            case .ringsExtended: "rings_extended"
            case .ringsShrunk: "rings_shrunk"
            case .ringsClosed: "rings_closed"
            case .ringBells: "ring_bells"
            case .ringViolations: "ring_violations"
            case .payloadsReadToPlace: "payloads_read_to_place"
            case .payloadsTakenBack: "payloads_taken_back"
            }
        }

        var doc: String {
            switch self {
            case .made: "sockets made"
            case .refused: "sockets not made for lack of memory or permission"
            case .listenOverflows: "connections refused since a listen queue was full"
            case .datagramsDropped: "datagrams dropped since a receive queue was full"
            case .ringsOpened: "directions of streams that went over to shared memory"
            case .ringsExtended: "send rings of streams that have got more room"
            case .ringsShrunk: "send rings of streams that have given up room, since many streams are fast"
            case .ringsClosed: "directions of streams that came back from it"
            case .ringBells: "times a client has woken the host for a ring"
            case .ringViolations: "connections reset since a client has broken the rules of rings"
            case .payloadsReadToPlace: "payloads that an interface has read to their place in a ring"
            case .payloadsTakenBack: "payloads that were copied out of a ring again, since others had been expected"
            }
        }
    }

    private(set) var kernel: Kernel!
    private var opsTable: UnsafeMutablePointer<alps_socket_ops>?
    /// One count of each socket. What runs once a packet uses them without counting.
    private var slots: [Unmanaged<Socket>?] = []
    private var generations: [UInt32] = []
    private var firstGeneration: UInt32 = 0
    private var freeSlots: [Int] = []
    private var lastID: UInt64 = 0
    private var firstDirty: Borrowed<Socket>?
    private var lastDirty: Borrowed<Socket>?
    /// Sockets and channels that nobody has any more. Until the end of the turn they may still be in the list of those
    /// that changed, or in the middle of a call.
    private var retired: [AnyObject] = []
    private let counters = UnsafeMutablePointer<UInt64>.allocate(capacity: Counter.allCases.count)
    /// Rings of sockets that belong to no client session.
    private var ownArena: Arena?
    private(set) var idleBuffers: IdleBuffers?
    /// The last long payload that was placed.
    var placed: PlacedPayload?

    package private(set) var count = 0
    package private(set) var peak = 0
    package var failed: Int { Int(counters[Counter.refused.rawValue]) }
    package var datagramsDropped: UInt64 { counters[Counter.datagramsDropped.rawValue] }
    package var listenOverflows: UInt64 { counters[Counter.listenOverflows.rawValue] }

    var sendSpace: Tunable!
    var receiveSpace: Tunable!
    var maxSockbuf: Tunable!
    var somaxconn: Tunable!
    /// Bytes of a ring that a client maps, and how many sockets may have such.
    var ringSpace: Tunable!
    var ringShare: Tunable!
    var fastRing: Tunable!
    var maxRings: Tunable!
    private var ringDirect: Tunable!
    /// All client sessions are of one user.
    package var hasOneUser = true
    /// A frame may be read into a ring that a client maps before it is known to be that client's.
    var mayReadIntoRings: Bool { hasOneUser && ringDirect.value != 0 }
    private var maxSockets: Tunable!

    package init() { counters.initialize(repeating: 0, count: Counter.allCases.count) }

    deinit {
        forgetDirty()
        opsTable?.deallocate()
        counters.deallocate()
    }

    /// See `Kernel.shutdown`.
    func detach() {
        forgetDirty()
        for socket in slots { socket?.release() }
        slots.removeAll()
        idleBuffers = nil
        kernel = nil
    }

    func attach(_ kernel: Kernel) {
        self.kernel = kernel
        idleBuffers = IdleBuffers(self, kernel)
        let table = UnsafeMutablePointer<alps_socket_ops>.allocate(capacity: 1)
        table.initialize(to: SocketInterface.table)
        opsTable = table
        kernel.plugins.publish("alps.socket/1", ops: UnsafeRawPointer(table), scope: .perInstance)
        let tunables = kernel.tunables
        sendSpace = tunables.add(
            "kern.ipc.sendspace", "send buffer of a new socket, bytes", kind: .bytes, default: 256 << 10,
            range: 4096...(64 << 20))
        receiveSpace = tunables.add(
            "kern.ipc.recvspace", "receive buffer of a new socket, bytes", kind: .bytes, default: 256 << 10,
            range: 4096...(64 << 20))
        maxSockbuf = tunables.add(
            "kern.ipc.maxsockbuf", "largest buffer a program may ask for, bytes", kind: .bytes, default: 8 << 20,
            range: 4608...(1 << 30))
        ringSpace = tunables.add(
            "kern.ipc.ringspace",
            "least size of a stream's ring in shared memory, a power of two, bytes; 0: none are made", kind: .bytes,
            default: 4 << 20, range: 0...(1 << 30))
        ringShare = tunables.add(
            "kern.ipc.ringshare",
            "what the send rings of fast streams share, so that a near cache can hold it, bytes; 0: each has what it wants",
            kind: .bytes, default: 4 << 20, range: 0...(1 << 30))
        fastRing = tunables.add(
            "kern.ipc.ringfast", "streams that send so much are fast, bytes a second", kind: .bytes, default: 100 << 20,
            range: 1...(1 << 40))
        maxRings = tunables.add(
            "kern.ipc.maxrings", "most streams with rings in shared memory at a time", kind: .integer, default: 1024,
            range: 0...(1 << 20))
        ringDirect = tunables.add(
            "kern.ipc.ringdirect",
            "an interface reads a frame's payload straight into the ring where it probably belongs, while all clients are of one user",
            kind: .boolean, default: 1, range: 0...1)
        somaxconn = tunables.add(
            "kern.ipc.somaxconn", "longest queue of connections waiting for accept", kind: .integer, default: 4096,
            range: 1...65535)
        maxSockets = tunables.add(
            "kern.ipc.maxsockets", "most sockets at a time", kind: .integer, default: 1 << 20, range: 1...(1 << 23))
        for counter in Counter.allCases {
            kernel.counters.add(group: "socket", name: counter.name, doc: counter.doc, value: counters + counter.rawValue)
        }
    }

    @inline(__always)
    func count(_ counter: Counter) { counters[counter.rawValue] &+= 1 }

    /// The arena of sockets without a session; nil without memory.
    private var defaultArena: Arena? {
        if ownArena == nil {
            ownArena = Arena(name: "alps-\(kernel.name)", limitBytes: kernel.configuration.arenaLimit)
        }
        return ownArena
    }

    // MARK: Making and finding

    /// socket(2). `variant` is what follows the slash of an instance's variant, nil for the default.
    package func create(
        domain: Int32, type: Int32, protocol protocolNumber: Int32, variant: String? = nil,
        owner: SocketOwner = SocketOwner(), arena: Arena? = nil
    ) throws -> Socket {
        // Linux's limits: SOCK_MAX and IPPROTO_MAX. A raw socket needs a protocol.
        guard (0...10).contains(type), (0..<263).contains(protocolNumber) else {
            throw KernelError(EINVAL, "there is no socket type \(type) with protocol \(protocolNumber)")
        }
        guard type != ALPS_SOCK_RAW || protocolNumber != 0,
            let entry = kernel.protocols.find(domain: domain, type: type, protocol: protocolNumber, variant: variant)
        else { throw refusal(domain, type, protocolNumber, variant) }
        let number = protocolNumber != 0 ? protocolNumber : entry.protocolNumber
        let socket = try make(entry, number, owner, arena)
        // As Linux has it for sockets without ports.
        if type == ALPS_SOCK_RAW { socket.raw.pointee.options |= ALPS_SO_REUSEADDR }
        let status = attach(socket)
        guard status == 0 else {
            abandon(socket)
            throw KernelError(status, "the protocol refuses a new socket (errno \(status))")
        }
        return socket
    }

    private func refusal(_ domain: Int32, _ type: Int32, _ protocolNumber: Int32, _ variant: String?) -> KernelError {
        let known = kernel.protocols.triples
        if !known.contains(where: { $0.domain == domain }) {
            return KernelError(EAFNOSUPPORT, "address family \(domain) is not supported")
        }
        if !known.contains(where: { $0.domain == domain && $0.type == type }) {
            return KernelError(ESOCKTNOSUPPORT, "socket type \(type) is not supported")
        }
        if let variant, kernel.protocols.find(domain: domain, type: type, protocol: protocolNumber) != nil {
            return KernelError(ENOENT, "no variant '\(variant)' of that protocol is loaded")
        }
        return KernelError(EPROTONOSUPPORT, "protocol \(protocolNumber) is not supported")
    }

    /// Whether another one may be made beside `others` that are not the layer's (kern.ipc.maxsockets).
    func hasRoom(beside others: Int) -> Bool { count + others < maxSockets.value }

    /// A socket that neither network nor transport know yet.
    func make(_ entry: ProtocolEntry, _ protocolNumber: Int32, _ owner: SocketOwner, _ arena: Arena?) throws -> Socket {
        guard hasRoom(beside: 0), let arena = arena ?? defaultArena else {
            count(.refused)
            throw KernelError(ENFILE, "the limit of \(maxSockets.value) sockets is reached (kern.ipc.maxsockets)")
        }
        let index: Int
        if let free = freeSlots.popLast() {
            index = free
        } else {
            index = slots.count
            slots.append(nil)
            generations.append(firstGeneration)
        }
        generations[index] &+= 1
        lastID &+= 1
        let socket = Socket(
            kernel: kernel, handle: SocketHandle(index: index, generation: generations[index]), entry: entry,
            protocol: protocolNumber, owner: owner, arena: arena, id: lastID)
        slots[index] = .passRetained(socket)
        count += 1
        peak = max(peak, count)
        count(.made)
        return socket
    }

    /// Frees a socket that never came to life.
    func abandon(_ socket: Socket) {
        count(.refused)
        socket.raw.pointee.state |= ALPS_SS_CLOSED
        socket.releaseIfUnused()
    }

    /// Handles of this kernel begin somewhere: a client that outlives its host must not hit a socket of the next one.
    func startGenerations(at generation: UInt32) { firstGeneration = generation }

    /// The socket with this handle, if it still is.
    package func find(_ handle: SocketHandle) -> Socket? {
        guard handle.index < slots.count, let socket = slots[handle.index]?.takeUnretainedValue(), socket.handle == handle
        else { return nil }
        return socket
    }

    /// The same, without a count.
    func borrow(_ handle: SocketHandle) -> Borrowed<Socket>? {
        guard handle.index < slots.count, let socket = slots[handle.index] else { return nil }
        return socket._withUnsafeGuaranteedRef { $0.handle == handle && !$0.isClosed ? Borrowed($0) : nil }
    }

    /// All sockets, in order of their slots.
    package var all: [Socket] { slots.compactMap { $0?.takeUnretainedValue() } }

    func forget(_ socket: Socket) {
        let index = socket.handle.index
        guard let held = slots[index], held.toOpaque() == Unmanaged.passUnretained(socket).toOpaque() else { return }
        slots[index] = nil
        if placed?.socket.toOpaque() == held.toOpaque() { placed = nil }
        retire(socket)
        held.release()
        freeSlots.append(index)
        count -= 1
    }

    // MARK: Turns

    /// The socket's channel is to look at it at the end of this turn.
    package func markDirty(_ socket: Socket) {
        guard !socket.isDirty, !socket.isFreed else { return }
        socket.isDirty = true
        let entry = Borrowed(socket)
        if let last = lastDirty {
            last { $0.nextDirty = entry }
        } else {
            firstDirty = entry
        }
        lastDirty = entry
    }

    package var hasDirty: Bool { firstDirty != nil }

    /// Lets the channels of all sockets that changed look at them. What they change in turn waits for the next call.
    package func flush() {
        forEachDirty { socket in
            if !socket.isFreed { socket.borrowedChannel?({ $0.update(socket) }) }
            if socket.waiters > 0 { kernel.fibers.wakeup(UnsafeRawPointer(socket.raw)) }
        }
        // What has been marked and freed by this very call is in the list of the next.
        if !retired.isEmpty, !hasDirty { retired.removeAll(keepingCapacity: true) }
    }

    /// Lets go of a socket or a channel at the end of the turn.
    func retire(_ object: AnyObject) { retired.append(object) }

    private func forgetDirty() {
        forEachDirty { _ in }
        retired.removeAll()
    }

    private func forEachDirty(_ body: (Socket) -> Void) {
        var next = firstDirty
        firstDirty = nil
        lastDirty = nil
        while let entry = next {
            entry { socket in
                next = socket.nextDirty
                socket.nextDirty = nil
                socket.isDirty = false
                body(socket)
            }
        }
    }

    /// Ends every socket: aborts what is connected, and what goes on after its close.
    package func shutdown() {
        for socket in all where !socket.isClosed { socket.abort() }
        for socket in all where socket.isAttached { _ = socket.request(ALPS_PRU_ABORT) }
        forgetDirty()
    }
}

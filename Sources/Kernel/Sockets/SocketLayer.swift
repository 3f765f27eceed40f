import Glibc
import PluginAPI

/// All sockets of a kernel, and what their transports may ask ("alps.socket/1").
package final class SocketLayer {
    private(set) var kernel: Kernel!
    private var opsTable: UnsafeMutablePointer<alps_socket_ops>?
    private var slots: [Socket?] = []
    private var generations: [UInt32] = []
    private var freeSlots: [Int] = []
    private var dirty: [Socket] = []
    private var flushing: [Socket] = []
    private var lastID: UInt64 = 0
    /// Rings of sockets that belong to no client session.
    private var ownArena: Arena?

    package private(set) var count = 0
    package private(set) var peak = 0
    package private(set) var failed = 0
    /// Datagrams dropped since a queue was full.
    package internal(set) var datagramsDropped: UInt64 = 0

    var sendSpace: Tunable!
    var receiveSpace: Tunable!
    var maxSockbuf: Tunable!
    var somaxconn: Tunable!
    private var maxSockets: Tunable!

    package init() {}

    deinit { opsTable?.deallocate() }

    func attach(_ kernel: Kernel) {
        self.kernel = kernel
        let table = UnsafeMutablePointer<alps_socket_ops>.allocate(capacity: 1)
        table.initialize(to: makeSocketOps())
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
            range: 4096...(1 << 30))
        somaxconn = tunables.add(
            "kern.ipc.somaxconn", "longest queue of connections waiting for accept", kind: .integer, default: 4096,
            range: 1...65535)
        maxSockets = tunables.add(
            "kern.ipc.maxsockets", "most sockets at a time", kind: .integer, default: 1 << 20, range: 1...(1 << 23))
    }

    /// The arena of sockets without a session; nil without memory.
    private var defaultArena: Arena? {
        if ownArena == nil {
            ownArena = Arena(name: "alps-\(kernel.name)", limitBytes: kernel.configuration.arenaLimit)
        }
        return ownArena
    }

    // MARK: Making and finding

    /// A new socket. `variant` is what follows the slash of an instance's variant, nil for the default.
    package func create(
        domain: Int32, type: Int32, protocol protocolNumber: Int32, variant: String? = nil,
        owner: SocketOwner = SocketOwner(), arena: Arena? = nil
    ) throws -> Socket {
        guard let entry = kernel.protocols.find(domain: domain, type: type, protocol: protocolNumber, variant: variant)
        else {
            let known = kernel.protocols.triples
            if let variant { throw KernelError(ENOENT, "no variant '\(variant)' of that protocol is loaded") }
            if !known.contains(where: { $0.domain == domain }) {
                throw KernelError(EAFNOSUPPORT, "address family \(domain) is not supported")
            }
            if !known.contains(where: { $0.domain == domain && $0.type == type }) {
                throw KernelError(ESOCKTNOSUPPORT, "socket type \(type) is not supported")
            }
            throw KernelError(EPROTONOSUPPORT, "protocol \(protocolNumber) is not supported")
        }
        let number = protocolNumber != 0 || entry.isRaw ? protocolNumber : entry.protocolNumber
        let socket = try make(entry, number, owner, arena)
        let status = connectToPlugins(socket)
        guard status == 0 else {
            abandon(socket)
            throw KernelError(status, "the protocol refuses a new socket (errno \(status))")
        }
        return socket
    }

    private func make(_ entry: ProtocolEntry, _ protocolNumber: Int32, _ owner: SocketOwner, _ arena: Arena?) throws -> Socket {
        guard count < maxSockets.value, let arena = arena ?? defaultArena else {
            failed += 1
            throw KernelError(ENFILE, "the limit of \(maxSockets.value) sockets is reached (kern.ipc.maxsockets)")
        }
        let index: Int
        if let free = freeSlots.popLast() {
            index = free
        } else {
            index = slots.count
            slots.append(nil)
            generations.append(0)
        }
        generations[index] &+= 1
        lastID &+= 1
        let socket = Socket(
            kernel: kernel, handle: SocketHandle(index: index, generation: generations[index]), entry: entry,
            protocol: protocolNumber, owner: owner, arena: arena, id: lastID)
        slots[index] = socket
        count += 1
        peak = max(peak, count)
        return socket
    }

    /// Attaches network and transport.
    private func connectToPlugins(_ socket: Socket) -> Int32 {
        let status = attachNetwork(socket)
        guard status == 0 else { return status }
        let result = socket.request(UInt32(ALPS_PRU_ATTACH))
        guard result == 0 else {
            detachNetwork(socket)
            return result
        }
        markAttached(socket)
        return 0
    }

    private func network(_ socket: Socket) -> (ops: UnsafePointer<alps_network_ops>, instance: UnsafeMutableRawPointer)? {
        guard let cell = kernel.plugins.providedCell(String(cString: socket.entry.sw.pointee.network)),
            let ops = cell.pointee.ops, let instance = cell.pointee.`self`
        else { return nil }
        return (ops.assumingMemoryBound(to: alps_network_ops.self), instance)
    }

    /// The network below a socket, for options that are neither ours nor the transport's.
    func networkControl(
        _ socket: Socket, set: Bool, level: Int32, name: Int32, _ value: UnsafeMutableRawPointer,
        _ length: UnsafeMutablePointer<UInt32>
    ) -> Int32 {
        guard let (ops, instance) = network(socket) else { return ENOPROTOOPT }
        return ops.pointee.ctloutput(instance, socket.raw.pointee.netpcb, set ? 1 : 0, level, name, value, length)
    }

    private func attachNetwork(_ socket: Socket) -> Int32 {
        guard let (ops, instance) = network(socket) else { return ENETDOWN }
        return ops.pointee.attach(instance, socket.raw.pointee.netpcb, socket.raw)
    }

    private func detachNetwork(_ socket: Socket) {
        guard let (ops, instance) = network(socket) else { return }
        ops.pointee.detach(instance, socket.raw.pointee.netpcb)
    }

    /// A socket whose connection attempt has failed gets a new transport attachment.
    func reattach(_ socket: Socket) -> Int32 {
        guard !socket.isAttached, !socket.isClosed, socket.raw.pointee.snd.tail == socket.raw.pointee.snd.head else {
            return EINVAL
        }
        socket.raw.pointee.state &= UInt32(ALPS_SS_NONBLOCK)
        let netpcb = socket.raw.pointee.netpcb
        netpcb.pointee.local = alps_addr()
        netpcb.pointee.remote = alps_addr()
        netpcb.pointee.route = alps_route()
        if socket.entry.instance.state != .running,
            let entry = kernel.protocols.find(
                domain: Int32(socket.raw.pointee.domain), type: Int32(socket.raw.pointee.type),
                protocol: Int32(socket.raw.pointee.protocol))
        {
            socket.entry = entry
        }
        let status = connectToPlugins(socket)
        guard status == 0, let address = socket.boundAddress else { return status }
        return socket.request(UInt32(ALPS_PRU_BIND), address)
    }

    private func markAttached(_ socket: Socket) {
        socket.isAttached = true
        socket.entry.instance.liveSockets += 1
    }

    /// A socket that never came to life.
    private func abandon(_ socket: Socket) {
        failed += 1
        socket.raw.pointee.state |= UInt32(ALPS_SS_CLOSED)
        socket.releaseIfUnused()
    }

    /// The socket with this handle, if it still is.
    package func find(_ handle: SocketHandle) -> Socket? {
        guard handle.index < slots.count, let socket = slots[handle.index], socket.handle == handle else { return nil }
        return socket
    }

    /// All sockets, in order of their slots.
    package var all: [Socket] { slots.compactMap { $0 } }

    func forget(_ socket: Socket) {
        let index = socket.handle.index
        guard slots[index] === socket else { return }
        slots[index] = nil
        freeSlots.append(index)
        count -= 1
    }

    // MARK: Turns

    /// The socket's channel is to look at it at the end of this turn.
    @inline(__always)
    func markDirty(_ socket: Socket) {
        guard !socket.isDirty else { return }
        socket.isDirty = true
        dirty.append(socket)
    }

    package var hasDirty: Bool { !dirty.isEmpty }

    /// Lets the channels of all sockets that changed look at them. What they change in turn waits for the next call.
    package func flush() {
        guard !dirty.isEmpty else { return }
        swap(&dirty, &flushing)
        for socket in flushing {
            socket.isDirty = false
            if !socket.isFreed { socket.channel?.update(socket) }
            kernel.fibers.wakeup(UnsafeRawPointer(socket.raw))
        }
        flushing.removeAll(keepingCapacity: true)
    }

    // MARK: Swap

    /// Moves listeners and unconnected datagram sockets to the instance that has taken another's place. What cannot move
    /// stays where it is and ends there.
    package func rehome(from old: PluginInstance, to new: PluginInstance) {
        for socket in all where socket.entry.instance === old && socket.isAttached && !socket.isClosed {
            guard socket.isListening || !(socket.isConnected || socket.isConnecting || socket.isDisconnected),
                let entry = kernel.protocols.counterpart(of: socket.entry, in: new),
                socket.request(UInt32(ALPS_PRU_REHOME)) == 0
            else { continue }
            old.liveSockets -= 1
            if socket.isListening { socket.formerInstances.append(old) }
            socket.raw.pointee.pcb = nil
            socket.entry = entry
            socket.isAttached = false
            let wasListening = socket.isListening
            socket.raw.pointee.options &= ~UInt32(ALPS_SO_ACCEPTCONN)
            var status = socket.request(UInt32(ALPS_PRU_ATTACH))
            if status == 0 {
                markAttached(socket)
                if let address = socket.boundAddress { status = socket.request(UInt32(ALPS_PRU_BIND), address) }
                if status == 0, wasListening {
                    status = socket.request(UInt32(ALPS_PRU_LISTEN), Int32(socket.raw.pointee.backlog))
                }
            }
            if wasListening { socket.raw.pointee.options |= UInt32(ALPS_SO_ACCEPTCONN) }
            if status != 0 {
                socket.raw.pointee.error = status
                socket.markDirty()
            }
        }
        for socket in all { socket.formerInstances.removeAll { $0.state == .dead } }
    }

    /// Ends every socket: aborts what is connected.
    package func shutdown() {
        for socket in all where !socket.isClosed { socket.abort() }
        for socket in all where socket.isAttached { _ = socket.request(UInt32(ALPS_PRU_ABORT)) }
        dirty.removeAll()
    }

    // MARK: What transports ask

    fileprivate func detached(_ socket: Socket) {
        guard socket.isAttached else { return }
        socket.isAttached = false
        socket.raw.pointee.pcb = nil
        socket.entry.instance.liveSockets -= 1
        detachNetwork(socket)
        if let head = socket.head {
            // A child whose handshake failed, or that was reset before accept.
            head.remove(child: socket)
            socket.head = nil
            socket.raw.pointee.listener = nil
            socket.raw.pointee.state |= UInt32(ALPS_SS_CLOSED)
        }
        if !socket.isClosed { socket.raw.pointee.state |= UInt32(ALPS_SS_DISCONNECTED) }
        markDirty(socket)
        socket.releaseIfUnused()
    }

    fileprivate func newConnection(_ head: Socket) -> Socket? {
        // One more than the backlog, as BSD and Linux have it.
        guard head.isListening, !head.isClosed,
            head.acceptQueue.count + head.handshakes <= Int(head.raw.pointee.backlog)
        else { return nil }
        guard
            let child = try? make(head.entry, Int32(head.raw.pointee.protocol), head.owner, head.arena)
        else { return nil }
        child.raw.pointee.options = head.raw.pointee.options & ~UInt32(ALPS_SO_ACCEPTCONN)
        child.raw.pointee.linger = head.raw.pointee.linger
        child.raw.pointee.snd.limit = head.raw.pointee.snd.limit
        child.raw.pointee.rcv.limit = head.raw.pointee.rcv.limit
        child.raw.pointee.rcv.low_water = head.raw.pointee.rcv.low_water
        child.storedOptions = head.storedOptions
        let from = head.raw.pointee.netpcb
        let to = child.raw.pointee.netpcb
        guard attachNetwork(child) == 0 else {
            abandon(child)
            return nil
        }
        to.pointee.ttl = from.pointee.ttl
        to.pointee.tos = from.pointee.tos
        to.pointee.flags = from.pointee.flags
        to.pointee.bound_ifindex = from.pointee.bound_ifindex
        child.head = head
        child.madeBy = head.handle
        child.raw.pointee.listener = head.raw
        head.handshakes += 1
        markAttached(child)
        return child
    }

    fileprivate func connected(_ socket: Socket) {
        socket.raw.pointee.state &= ~UInt32(ALPS_SS_CONNECTING | ALPS_SS_DISCONNECTING | ALPS_SS_DISCONNECTED)
        socket.raw.pointee.state |= UInt32(ALPS_SS_CONNECTED)
        if let head = socket.head {
            if !head.acceptQueue.contains(where: { $0 === socket }) {
                head.handshakes -= 1
                head.acceptQueue.append(socket)
                head.raw.pointee.queue_length = UInt32(head.acceptQueue.count)
            }
            markDirty(head)
        }
        markDirty(socket)
    }
}

// MARK: "alps.socket/1"

private func makeSocketOps() -> alps_socket_ops {
    alps_socket_ops(
        size: UInt32(MemoryLayout<alps_socket_ops>.size), reserved: 0,
        is_connecting: { _, so in
            so.pointee.state &= ~UInt32(ALPS_SS_CONNECTED | ALPS_SS_DISCONNECTING | ALPS_SS_DISCONNECTED)
            so.pointee.state |= UInt32(ALPS_SS_CONNECTING)
        },
        is_connected: { _, so in Socket.from(so)._withUnsafeGuaranteedRef { $0.kernel.sockets.connected($0) } },
        is_disconnecting: { _, so in
            so.pointee.state &= ~UInt32(ALPS_SS_CONNECTING)
            so.pointee.state |= UInt32(ALPS_SS_DISCONNECTING | ALPS_SS_CANTRCVMORE | ALPS_SS_CANTSENDMORE)
            Socket.from(so)._withUnsafeGuaranteedRef { $0.markDirty() }
        },
        is_disconnected: { _, so in
            so.pointee.state &= ~UInt32(ALPS_SS_CONNECTING | ALPS_SS_CONNECTED | ALPS_SS_DISCONNECTING)
            so.pointee.state |= UInt32(ALPS_SS_DISCONNECTED | ALPS_SS_CANTRCVMORE | ALPS_SS_CANTSENDMORE)
            Socket.from(so)._withUnsafeGuaranteedRef { $0.markDirty() }
        },
        cant_receive_more: { _, so in
            so.pointee.state |= UInt32(ALPS_SS_CANTRCVMORE)
            Socket.from(so)._withUnsafeGuaranteedRef { $0.markDirty() }
        },
        set_error: { _, so, error in
            so.pointee.error = error
            Socket.from(so)._withUnsafeGuaranteedRef { $0.markDirty() }
        },
        has_oob: { _, so, mark, byte in
            so.pointee.state |= UInt32(ALPS_SS_OOB)
            so.pointee.oob_mark = mark
            Socket.from(so)._withUnsafeGuaranteedRef { $0.announceUrgent(mark: mark, byte: byte) }
        },
        detached: { _, so in Socket.from(so).takeUnretainedValue().transportDetached() },
        new_connection: { _, head in Socket.from(head).takeUnretainedValue().makeChild()?.raw },
        send_data: { _, so, position, length in
            Socket.from(so)._withUnsafeGuaranteedRef { $0.sendData(position, length) }
        },
        send_drop: { _, so, position in
            so.pointee.snd.head = position
            Socket.from(so)._withUnsafeGuaranteedRef { $0.markDirty() }
        },
        receive_place: { _, so, position, packet, offset, length in
            Socket.from(so)._withUnsafeGuaranteedRef { $0.place(position, packet, offset, length) }
        },
        receive_advance: { _, so, tail in
            so.pointee.rcv.tail = tail
            Socket.from(so)._withUnsafeGuaranteedRef {
                $0.skipUrgentByte()
                $0.markDirty()
            }
        },
        receive_datagram: { _, so, packet, info in
            Socket.from(so)._withUnsafeGuaranteedRef { $0.enqueue(packet, info) }
        },
        receive_space: { _, so in
            let held = so.pointee.rcv.tail &- so.pointee.rcv.head
            return held < UInt64(so.pointee.rcv.limit) ? so.pointee.rcv.limit - UInt32(held) : 0
        })
}

extension Socket {
    fileprivate func transportDetached() { kernel.sockets.detached(self) }

    fileprivate func makeChild() -> Socket? { kernel.sockets.newConnection(self) }

    fileprivate func announceUrgent(mark: UInt64, byte: Int32) {
        urgent.isPending = true
        urgent.position = mark &- 1
        urgent.value = byte >= 0 ? UInt8(truncatingIfNeeded: byte) : nil
        skipUrgentByte()
        markDirty()
    }

    /// One or two mbufs over the send ring.
    fileprivate func sendData(_ position: UInt64, _ length: UInt32) -> Mbuf? {
        guard let base = raw.pointee.snd.base, let ext = raw.pointee.snd.ext, length > 0,
            position >= raw.pointee.snd.head, position &+ UInt64(length) <= raw.pointee.snd.tail
        else { return nil }
        let capacity = Int(raw.pointee.snd.capacity)
        let start = Int(position & UInt64(capacity - 1))
        let first = min(Int(length), capacity - start)
        let pool = kernel.mbufs
        guard let head = pool.refer(ext, base + start, first, flags: UInt32(ALPS_M_RING)) else { return nil }
        if first < Int(length) {
            guard let tail = pool.refer(ext, base, Int(length) - first, flags: UInt32(ALPS_M_RING)) else {
                pool.freePacket(head)
                return nil
            }
            head.pointee.next = tail
        }
        return head
    }

    /// Copies payload to its place in the receive ring.
    fileprivate func place(_ position: UInt64, _ packet: UnsafePointer<alps_mbuf>, _ offset: UInt32, _ length: UInt32) -> UInt32 {
        guard prepare(&raw.pointee.rcv), let base = raw.pointee.rcv.base, position >= raw.pointee.rcv.head else { return 0 }
        let capacity = UInt64(raw.pointee.rcv.capacity)
        let edge = raw.pointee.rcv.head &+ min(UInt64(raw.pointee.rcv.limit), capacity)
        guard position < edge else { return 0 }
        let count = min(UInt64(length), edge &- position)
        let start = Int(position & (capacity - 1))
        let first = min(Int(count), Int(capacity) - start)
        kernel.mbufs.copyOut(packet, Int(offset), first, base + start)
        if first < Int(count) { kernel.mbufs.copyOut(packet, Int(offset) + first, Int(count) - first, base) }
        return UInt32(count)
    }

    /// Queues a datagram; drops it if the queue is full.
    fileprivate func enqueue(_ packet: Mbuf, _ info: UnsafePointer<alps_datagram_info>) -> Int32 {
        guard !isClosed, !cannotReceiveMore,
            datagrams.bytes + Int(packet.pointee.pkt.length) <= Int(raw.pointee.rcv.limit),
            let held = kernel.mbufs.hold(packet)
        else {
            kernel.sockets.datagramsDropped &+= 1
            if isClosed || cannotReceiveMore || datagrams.bytes + Int(packet.pointee.pkt.length) > Int(raw.pointee.rcv.limit) {
                kernel.mbufs.freePacket(packet)
            }
            return Int32(ALPS_ENOBUFS)
        }
        datagrams.append(held, info.pointee)
        markDirty()
        return 0
    }
}

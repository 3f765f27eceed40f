import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// A datagram or raw socket: one message of the pair a datagram, bare if the socket is connected, with an
/// alps_datagram_header in front if not. A message of no bytes stands for an event.
final class InBandDatagramChannel: Channel {
    /// What the messages of no bytes stand for, oldest first.
    private var events: [alps_datagram_event] = []
    private var errorTold = false
    /// What is held back by UDP_CORK, and whether anything is.
    private var held: [UInt8] = []
    private var heldAny = false
    private var heldDestination: alps_sockaddr?
    private static let largestPayload = 65507
    private let batchOwner: DatagramBatch
    /// The same, for what runs once a datagram.
    private let batch: Borrowed<DatagramBatch>
    private let pool: Borrowed<MbufPool>
    /// There may be messages that have not been looked at.
    private var mayHaveUnread = true
    /// Datagrams one socket may send in one turn.
    private static let budget = 128

    override init(_ socket: Socket, descriptor: Int32, cookie: UInt64) throws {
        batchOwner = socket.kernel.server?.datagramBatch ?? DatagramBatch()
        batch = Borrowed(batchOwner)
        pool = Borrowed(socket.kernel.mbufs)
        try super.init(socket, descriptor: descriptor, cookie: cookie)
    }

    override func ready(_ events: UInt32) {
        if events & ~UInt32(EPOLLOUT.rawValue) != 0 { mayHaveUnread = true }
        if mayHaveUnread { drain() }
        if events & UInt32(EPOLLHUP.rawValue) != 0, isOpen {
            socket.close()
            return
        }
        borrowed { push($0) }
    }

    override func update(_ socket: Socket) {
        if mayHaveUnread { drain(socket) }
        push(socket)
    }

    // MARK: From the application

    override func drain() { borrowed { drain($0) } }

    private func drain(_ socket: Socket) {
        var budget = Self.budget
        while isOpen, !socket.isClosed {
            guard budget > 0 else {
                socket.markDirty()
                return
            }
            // What is in the pair still waits there for memory; read, it could only be dropped.
            guard pool({ $0.hasRoom }) else { return retryLater() }
            let count = batch { $0.receive(descriptor, limit: budget) }
            guard count > 0 else {
                mayHaveUnread = false
                return
            }
            budget -= count
            for index in 0..<count {
                let message = batch { $0.message(index) }
                // Nothing is an empty datagram, or the end, which repeats itself: then there is nothing to send either way.
                if message.count == 0, isAtEnd, isAllEmpty(index..<count) {
                    mayHaveUnread = false
                    return
                }
                guard message.count <= DatagramBatch.largest else {
                    fail(EMSGSIZE)
                    continue
                }
                send(message, socket)
                // What goes to this host itself may end the socket.
                guard isOpen, !socket.isClosed else { return }
            }
            if count < min(budget + count, DatagramBatch.capacity) {
                mayHaveUnread = false
                return
            }
        }
    }

    private func isAllEmpty(_ range: Range<Int>) -> Bool {
        batch { batch in range.allSatisfy { batch.length($0) == 0 } }
    }

    private var isAtEnd: Bool {
        var poll = pollfd(fd: descriptor, events: Int16(alps_POLLRDHUP), revents: 0)
        return Glibc.poll(&poll, 1, 0) > 0 && Int32(poll.revents) & (Int32(POLLHUP) | alps_POLLRDHUP) != 0
    }

    private func send(_ message: UnsafeRawBufferPointer, _ socket: Socket) {
        var payload = message
        var destination: alps_sockaddr?
        var header: alps_datagram_header?
        let headerSize = MemoryLayout<alps_datagram_header>.size
        // A connected socket's messages are bare: what looks like a header there is the program's own data.
        if !socket.isConnected, message.count >= headerSize, message.load(as: UInt32.self) == ALPS_DATAGRAM_MAGIC {
            let found = message.load(as: alps_datagram_header.self)
            header = found
            payload = UnsafeRawBufferPointer(rebasing: message[headerSize...])
            if found.address.family != 0 {
                guard found.address.family == socket.raw.pointee.domain else { return fail(EAFNOSUPPORT) }
                destination = stackAddress(found.address)
            }
        }
        if heldAny || socket.isCorked { return hold(payload, destination) }
        let status: Int32
        if let header {
            status = send(payload, to: destination, as: header, socket)
        } else {
            status = send(payload, to: destination, socket)
        }
        if status == EMSGSIZE { socket.queueTooLong(payload, to: destination) }
        if status != 0, status != ENOBUFS { fail(status) }
    }

    /// ALPS_OP_SEND_DATAGRAM: a header and a payload.
    func sendOne(_ message: UnsafeRawBufferPointer) -> Int32 {
        let headerSize = MemoryLayout<alps_datagram_header>.size
        guard message.count >= headerSize else { return EINVAL }
        let header = message.loadUnaligned(as: alps_datagram_header.self)
        let family = header.address.family
        guard family == 0 || family == socket.raw.pointee.domain else { return EAFNOSUPPORT }
        return send(
            UnsafeRawBufferPointer(rebasing: message[headerSize...]), to: family == 0 ? nil : stackAddress(header.address),
            as: header, socket)
    }

    /// Sends with what the program said about this datagram alone: TTL, TOS, interface and source.
    private func send(
        _ payload: UnsafeRawBufferPointer, to destination: alps_sockaddr?, as header: alps_datagram_header, _ socket: Socket
    ) -> Int32 {
        let hasSource = header.destination.family != 0
        guard header.ttl != 0 || header.tos != 0 || header.ifindex != 0 || hasSource else {
            return send(payload, to: destination, socket)
        }
        let netpcb = socket.raw.pointee.netpcb
        let before = netpcb.pointee
        if header.ttl != 0 {
            netpcb.pointee.ttl = header.ttl
            netpcb.pointee.multicast_ttl = header.ttl
        }
        if header.tos != 0 { netpcb.pointee.tos = header.tos }
        if header.ifindex != 0 {
            guard kernel.interfaces.interface(header.ifindex) != nil else { return ENODEV }
            netpcb.pointee.bound_ifindex = header.ifindex
            netpcb.pointee.multicast_ifindex = header.ifindex
        }
        if hasSource {
            let source = stackAddress(header.destination)
            guard isOurs(NetworkAddress(address: source.addr)) else {
                netpcb.pointee = before
                return EINVAL
            }
            netpcb.pointee.local = source.addr
        }
        netpcb.pointee.route = alps_route()
        let status = send(payload, to: destination, socket)
        // The route was this datagram's; the transport must not take its source for the next one.
        netpcb.pointee = before
        netpcb.pointee.route = alps_route()
        return status
    }

    /// An address of an interface, or of 127/8.
    private func isOurs(_ address: NetworkAddress) -> Bool {
        withUnsafeBytes(of: address.address) { $0[0] == 127 }
            || kernel.interfaces.all.contains { $0.addresses.contains { NetworkAddress(address: $0.addr) == address } }
    }

    private func send(_ payload: UnsafeRawBufferPointer, to destination: alps_sockaddr?, _ socket: Socket) -> Int32 {
        let packet = pool { pool in
            payload.count <= 160 ? pool.packet(headroom: 128) : pool.cluster(headroom: 128, capacity: payload.count)
        }
        guard let packet else { return ENOBUFS }
        if payload.count > 0 {
            memcpy(packet.pointee.data, payload.baseAddress!, payload.count)
            packet.pointee.length = UInt32(payload.count)
            packet.pointee.pkt.length = UInt32(payload.count)
        }
        return socket.sendDatagram(packet, to: destination)
    }

    /// Adds to the datagram that is held back; it goes where its first part was sent to.
    private func hold(_ payload: UnsafeRawBufferPointer, _ destination: alps_sockaddr?) {
        if !heldAny { heldDestination = destination }
        guard held.count + payload.count <= Self.largestPayload else { return fail(EMSGSIZE) }
        held += payload
        heldAny = true
    }

    override func uncorked(_ socket: Socket) {
        guard heldAny else { return }
        let status = held.withUnsafeBytes { send($0, to: heldDestination, socket) }
        if status != 0, status != ENOBUFS { fail(status) }
        held = []
        heldAny = false
    }

    /// The program's call has long returned: what it would have been told is told by the next one.
    private func fail(_ error: Int32) {
        guard socket.pendingError == 0 else { return }
        socket.raw.pointee.error = error
        errorTold = false
        socket.markDirty()
    }

    // MARK: To the application

    private func push(_ socket: Socket) {
        guard isOpen, !socket.isClosed else { return }
        if socket.pendingError == 0 { errorTold = false }
        if socket.pendingError != 0, !errorTold, events.count < 64 {
            guard tell(alps_datagram_event(error: socket.pendingError, reserved: 0, address: alps_client_sockaddr())) else {
                return wantRoom(true)
            }
            errorTold = true
        }
        while socket.datagramCount > 0 {
            guard pushSome(socket) else { return wantRoom(true) }
        }
        wantRoom(false)
    }

    /// Hands over the oldest datagrams, as many as one call takes. False if the pair is full.
    private func pushSome(_ socket: Socket) -> Bool { batch { pushSome(socket, $0) } }

    private func pushSome(_ socket: Socket, _ batch: DatagramBatch) -> Bool {
        batch.clear()
        let isConnected = socket.isConnected
        let wall = kernel.clock.wall
        while let (packet, info) = socket.datagram(at: batch.count), !isConnected || packet.pointee.pkt.length > 0 {
            guard batch.add(packet, header: isConnected ? nil : header(info, wall)) else { break }
        }
        guard batch.count > 0 else {
            guard let (packet, info) = socket.firstDatagram else { return true }
            if isConnected, packet.pointee.pkt.length == 0 {
                let event = alps_datagram_event(error: 0, reserved: 0, address: clientAddress(info.source))
                guard events.count >= 64 || tell(event) else { return false }
            } else {
                // Of more pieces than fit: a sender that fragments into crumbs.
                kernel.sockets.count(.datagramsDropped)
            }
            socket.dropDatagrams(1)
            return true
        }
        let sent = batch.send(descriptor)
        if sent < 0, errno == EAGAIN { return false }
        // What fails for another reason is gone.
        socket.dropDatagrams(max(sent, 1))
        return true
    }

    private func header(_ info: alps_datagram_info, _ wall: UInt64) -> alps_datagram_header {
        var header = alps_datagram_header()
        header.magic = UInt32(ALPS_DATAGRAM_MAGIC)
        header.ifindex = info.ifindex
        header.address = clientAddress(info.source)
        header.destination = clientAddress(
            alps_sockaddr(family: info.source.family, port: 0, scope: 0, addr: info.destination))
        header.ttl = info.ttl
        header.tos = info.tos
        header.timestamp = wall
        return header
    }

    /// Announces an event by a message of no bytes. False if the pair is full.
    private func tell(_ event: alps_datagram_event) -> Bool {
        var nothing: UInt8 = 0
        guard Glibc.send(descriptor, &nothing, 0, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) == 0 else {
            return false
        }
        events.append(event)
        return true
    }

    /// ALPS_OP_ANNOUNCE_EVENT.
    func announceAgain() {
        guard isOpen, !events.isEmpty else { return }
        var nothing: UInt8 = 0
        _ = Glibc.send(descriptor, &nothing, 0, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
    }

    /// What the oldest message of no bytes stands for, nil if that has passed.
    var nextEvent: alps_datagram_event? {
        guard let event = events.first, event.error == 0 || socket.pendingError != 0 else { return nil }
        return event
    }

    /// ALPS_OP_REQUEUE: a header and a payload, which go into the pair in the form that messages have now.
    func requeue(_ message: UnsafeRawBufferPointer) -> Int32 {
        let headerSize = MemoryLayout<alps_datagram_header>.size
        guard isOpen, message.count >= headerSize, message.count <= DatagramBatch.largest else { return EINVAL }
        let header = message.loadUnaligned(as: alps_datagram_header.self)
        guard header.magic == UInt32(ALPS_DATAGRAM_MAGIC) else { return EINVAL }
        let bare = UnsafeRawBufferPointer(rebasing: message[headerSize...])
        let form = socket.isConnected ? bare : message
        if form.isEmpty {
            return events.count < 64 && tell(alps_datagram_event(error: 0, reserved: 0, address: header.address)) ? 0 : ENOBUFS
        }
        let sent = Glibc.send(descriptor, form.baseAddress!, form.count, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
        return sent >= 0 ? 0 : ENOBUFS
    }

    /// What the oldest message of no bytes stood for.
    func takeEvent() -> alps_datagram_event? {
        guard !events.isEmpty else { return nil }
        let event = events.removeFirst()
        if event.error != 0 {
            // SO_ERROR may have been read meanwhile: then there is nothing to tell.
            let error = socket.takeError()
            errorTold = false
            return error == 0 ? nil : alps_datagram_event(error: error, reserved: 0, address: event.address)
        }
        return event
    }
}

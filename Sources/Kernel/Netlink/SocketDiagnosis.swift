import Glibc
import PluginAPI

/// NETLINK_SOCK_DIAG: sockets and connections, as inet_diag (linux/inet_diag.h) gives them to `ss`.
enum SocketDiagnosis {
    /// SOCK_DIAG_BY_FAMILY, and the type of both its answers and those to TCPDIAG_GETSOCK.
    private static let byFamily: UInt16 = 20
    private static let oldTCP: UInt16 = 18
    private static let oldDCCP: UInt16 = 19
    private static let destroy: UInt16 = 21
    /// struct inet_diag_req_v2, inet_diag_req and inet_diag_sockid.
    private static let fixedSize = 56
    private static let oldFixedSize = 60
    private static let identitySize = 48
    /// INET_DIAG_REQ_BYTECODE, INET_DIAG_REQ_PROTOCOL.
    private static let byteCode: UInt16 = 1
    private static let protocolAttribute: UInt16 = 3

    private struct Query {
        var protocolNumber: UInt8 = 0
        var extensions: UInt8 = 0
        var states: UInt32 = 0
        var identity: ArraySlice<UInt8> = []
        var filter: DiagnosisFilter?
    }

    static func answer(_ request: NetlinkRequest, _ kernel: Kernel) throws -> NetlinkOutcome {
        var query = Query()
        switch request.header.type {
        case byFamily, destroy:
            // struct sock_diag_req.
            try request.require(2)
            let family: UInt8 = request.payload.number(at: 0)
            guard family == AF_INET || family == AF_INET6 else {
                throw NetlinkError(ENOENT, "sockets of that family are not the stack's")
            }
            try request.require(fixedSize)
            query.protocolNumber = request.payload.number(at: 1)
            query.extensions = request.payload.number(at: 2)
            query.states = request.payload.number(at: 4)
            query.identity = request.payload.dropFirst(8).prefix(identitySize)
            try read(request, after: fixedSize, &query)
            if request.header.type == destroy {
                guard request.mayChange else { throw NetlinkError(EPERM) }
                throw NetlinkError(EOPNOTSUPP, "connections are not ended from outside")
            }
            if family == AF_INET6 {
                guard request.isDump else { throw NetlinkError(ENOENT) }
                return .dump(NetlinkSource([]))
            }
        case oldTCP:
            try request.require(oldFixedSize)
            let family: UInt8 = request.payload.number(at: 0)
            query.protocolNumber = UInt8(IPPROTO_TCP)
            query.extensions = request.payload.number(at: 3)
            query.identity = request.payload.dropFirst(4).prefix(identitySize)
            query.states = request.payload.number(at: 52)
            try read(request, after: oldFixedSize, &query)
            if family == AF_INET6 { return .dump(NetlinkSource([])) }
        case oldDCCP: throw NetlinkError(ENOENT)
        default: throw NetlinkError(EINVAL)
        }
        return try request.isDump ? .dump(dump(request, query, kernel)) : one(request, query, kernel)
    }

    private static func read(_ request: NetlinkRequest, after size: Int, _ query: inout Query) throws {
        let attributes = try NetlinkAttributes(request.payload, after: size)
        if let number = try attributes.number(protocolAttribute, as: UInt32.self) {
            query.protocolNumber = UInt8(exactly: number) ?? 0
        }
        if let code = attributes[byteCode] { query.filter = try DiagnosisFilter(code) }
    }

    // MARK: Dumps

    private static func dump(_ request: NetlinkRequest, _ query: Query, _ kernel: Kernel) -> NetlinkSource {
        switch Int32(query.protocolNumber) {
        case Int32(IPPROTO_TCP), Int32(IPPROTO_UDP): return connections(request, query, kernel)
        case Int32(IPPROTO_RAW): return rawSockets(request, query, kernel)
        default: return NetlinkSource(failing: NetlinkError(ENOENT))
        }
    }

    /// The connection table, some slices a time: between two of them the table may change.
    private static func connections(_ request: NetlinkRequest, _ query: Query, _ kernel: Kernel) -> NetlinkSource {
        let slices = kernel.connections.slices
        var slice = 0
        return NetlinkSource { [unowned kernel] in
            guard slice < slices.count else { return nil }
            var messages: [[UInt8]] = []
            while slice < slices.count, messages.count < 16 {
                kernel.connections.forEach(in: slice, of: slices) { conn in
                    guard let entry = Entry(conn), entry.protocolNumber == query.protocolNumber, matches(entry, query) else {
                        return
                    }
                    messages.append(message(request, entry, query))
                }
                slice += 1
            }
            return messages
        }
    }

    private static func rawSockets(_ request: NetlinkRequest, _ query: Query, _ kernel: Kernel) -> NetlinkSource {
        let entries = kernel.sockets.all.compactMap(Entry.init(raw:))
        return NetlinkSource(
            entries.filter { matches($0, query) }.map { message(request, $0, query) })
    }

    private static func matches(_ entry: Entry, _ query: Query) -> Bool {
        guard query.states & (1 << UInt32(entry.state)) != 0 else { return false }
        // A request may name ports (inet_diag_dump_icsk).
        let local = UInt16(bigEndian: query.identity.number(at: 0))
        let remote = UInt16(bigEndian: query.identity.number(at: 2))
        guard local == 0 || local == entry.localPort, remote == 0 || remote == entry.remotePort else { return false }
        return query.filter?.accepts(entry) != false
    }

    // MARK: One

    private static func one(_ request: NetlinkRequest, _ query: Query, _ kernel: Kernel) throws -> NetlinkOutcome {
        guard query.protocolNumber == UInt8(IPPROTO_TCP) || query.protocolNumber == UInt8(IPPROTO_UDP) else {
            throw NetlinkError(ENOENT)
        }
        func address(_ offset: Int) -> alps_addr {
            var address = alps_addr()
            withUnsafeMutableBytes(of: &address) { $0.copyBytes(from: query.identity.dropFirst(offset).prefix(4)) }
            return address
        }
        var ends = (
            (address(4), UInt16(bigEndian: query.identity.number(at: 0))),
            (address(20), UInt16(bigEndian: query.identity.number(at: 2)))
        )
        // Of UDP's sockets the source is the other end, for historical reasons (udp_dump_one).
        if query.protocolNumber == UInt8(IPPROTO_UDP) { swap(&ends.0, &ends.1) }
        let found = kernel.connections.lookup(
            UInt16(ALPS_AF_INET), query.protocolNumber, ends.0.0, ends.0.1, ends.1.0, ends.1.1,
            query.identity.number(at: 36))
        guard let found, let entry = Entry(found) else { throw NetlinkError(ENOENT) }
        let cookie: UInt64 = query.identity.number(at: 40)
        guard cookie == UInt64.max || cookie == entry.cookie else { throw NetlinkError(ESTALE) }
        request.socket.deliver(message(request, entry, query))
        return .done
    }

    // MARK: Messages

    private static func message(_ request: NetlinkRequest, _ entry: Entry, _ query: Query) -> [UInt8] {
        var writer = request.reply(request.header.type == oldTCP ? oldTCP : byFamily)
        writer.append([UInt8(AF_INET), entry.state, 0, 0])
        writer.append(entry.localPort.bigEndian)
        writer.append(entry.remotePort.bigEndian)
        for address in [entry.local, entry.remote] {
            writer.append(address.ipv4)
            writer.append([UInt8](repeating: 0, count: 12))
        }
        writer.append(entry.ifindex)
        writer.append(entry.cookie)
        writer.append(UInt32(0))
        let socket = entry.socket
        writer.append(UInt32(clamping: receiveQueue(socket)))
        writer.append(UInt32(clamping: sendQueue(socket)))
        writer.append(socket?.owner.uid ?? 0)
        writer.append(UInt32(truncatingIfNeeded: socket?.inode ?? 0))
        if let socket { write(socket, query.extensions, to: &writer) }
        return writer.finished()
    }

    /// Listeners: connections that wait, and how many may.
    static func receiveQueue(_ socket: Socket?) -> Int {
        guard let socket else { return 0 }
        if socket.isListening { return Int(socket.raw.pointee.queue_length) }
        return socket.isStream ? socket.receiveAvailable : socket.datagrams.bytes
    }

    static func sendQueue(_ socket: Socket?) -> Int {
        guard let socket else { return 0 }
        return socket.isListening ? Int(socket.raw.pointee.backlog) : socket.sendQueued
    }

    /// INET_DIAG_*: what a request asks for by bit (number - 1).
    private static func write(_ socket: Socket, _ extensions: UInt8, to writer: inout NetlinkWriter) {
        func isWanted(_ attribute: UInt16) -> Bool { extensions & (1 << (attribute - 1)) != 0 }
        let shut = (socket.cannotReceiveMore ? UInt8(1) : 0) | (socket.cannotSendMore ? 2 : 0)
        writer.attribute(8 /* SHUTDOWN */, shut)
        let received = UInt32(clamping: receiveQueue(socket.isListening ? nil : socket))
        let sent = UInt32(clamping: sendQueue(socket.isListening ? nil : socket))
        if isWanted(1 /* MEMINFO */) {
            writer.attribute(1) { for number in [received, sent, 0, sent] { $0.append(number) } }
        }
        if isWanted(7 /* SKMEMINFO */) {
            let limits = (receive: socket.raw.pointee.rcv.limit, send: socket.raw.pointee.snd.limit)
            writer.attribute(7) {
                for number in [received, limits.receive, 0, limits.send, 0, sent, 0, 0, 0] { $0.append(number) }
            }
        }
        if isWanted(5 /* TOS */) { writer.attribute(5, socket.raw.pointee.netpcb.pointee.tos) }
        guard socket.isStream, socket.isAttached else { return }
        if isWanted(4 /* CONG */) {
            let (error, name) = socket.getOption(level: Int32(IPPROTO_TCP), name: 13 /* TCP_CONGESTION */, capacity: 16)
            if error == 0 { writer.attribute(4, name.prefix { $0 != 0 } + [0]) }
        }
        if isWanted(2 /* INFO */) {
            let (error, information) = socket.getOption(level: Int32(IPPROTO_TCP), name: 11 /* TCP_INFO */, capacity: 512)
            if error == 0 { writer.attribute(2, information) }
        }
    }

    /// What is shown of a connection or a socket.
    struct Entry {
        let protocolNumber: UInt8
        let local: alps_addr
        let remote: alps_addr
        let localPort: UInt16
        let remotePort: UInt16
        let ifindex: UInt32
        /// Linux's number of the state.
        let state: UInt8
        let socket: Socket?
        let cookie: UInt64

        /// Linux's numbers of the states, by ours (alps/pcb.h).
        private static let states: [UInt8] = [7, 10, 2, 3, 1, 4, 5, 8, 11, 9, 6]

        /// nil for what Linux does not show: a stream that has a port, and neither listens nor is connected.
        init?(_ conn: UnsafeMutablePointer<alps_conn>) {
            let conn = conn.pointee
            guard conn.protocol != UInt8(IPPROTO_TCP) || UInt32(conn.kind) != ALPS_CONN_BOUND else { return nil }
            protocolNumber = conn.protocol
            local = conn.local
            remote = conn.remote
            localPort = conn.local_port
            remotePort = conn.remote_port
            ifindex = conn.bound_ifindex
            state = conn.protocol == UInt8(IPPROTO_TCP)
                ? Self.states[min(Int(conn.state), Self.states.count - 1)] : conn.remote_port == 0 ? 7 : 1
            socket = conn.socket.map { Socket.from($0).takeUnretainedValue() }
            cookie = socket?.raw.pointee.id ?? UInt64(conn.hash)
        }

        /// A raw socket, whose port is its protocol.
        init?(raw socket: Socket) {
            guard socket.raw.pointee.type == UInt16(ALPS_SOCK_RAW), !socket.isClosed else { return nil }
            protocolNumber = UInt8(IPPROTO_RAW)
            local = socket.raw.pointee.netpcb.pointee.local
            remote = socket.raw.pointee.netpcb.pointee.remote
            localPort = socket.raw.pointee.protocol
            remotePort = 0
            ifindex = socket.raw.pointee.netpcb.pointee.bound_ifindex
            state = socket.isConnected ? 1 : 7
            self.socket = socket
            cookie = socket.raw.pointee.id
        }
    }
}

/// INET_DIAG_REQ_BYTECODE: conditions on a socket, each with two jumps forward. Reaching the end accepts, jumping past it
/// refuses.
struct DiagnosisFilter {
    private enum Operation: UInt8 {
        case nothing, jump, sourceAtLeast, sourceAtMost, destinationAtLeast, destinationAtMost, automatic, source,
            destination, device, mark, sourceIs, destinationIs, group
    }

    private let code: ArraySlice<UInt8>

    /// EINVAL for what could read beyond the code, or not come to an end (inet_diag_bc_audit).
    init(_ code: ArraySlice<UInt8>) throws {
        self.code = code
        var place = 0
        while place < code.count {
            let left = code.count - place
            guard left >= 4, let operation = Operation(rawValue: code.number(at: place)) else { throw NetlinkError(EINVAL) }
            let smallest: Int
            switch operation {
            case .nothing, .jump, .automatic: smallest = 4
            case .mark, .group: smallest = 12
            case .source, .destination:
                guard left >= 12 else { throw NetlinkError(EINVAL) }
                let bits: UInt8 = code.number(at: place + 5)
                let family: UInt8 = code.number(at: place + 4)
                let size = family == UInt8(AF_INET) ? 4 : family == UInt8(AF_INET6) ? 16 : 0
                guard family == 0 || size > 0, Int(bits) <= size * 8 else { throw NetlinkError(EINVAL) }
                smallest = 12 + (bits > 0 ? size : 0)
            default: smallest = 8
            }
            let yes = Int(code.number(at: place + 1, as: UInt8.self))
            let no = Int(code.number(at: place + 2, as: UInt16.self))
            guard yes >= smallest, yes <= left, yes & 3 == 0, operation == .nothing || no >= smallest && no & 3 == 0,
                no <= left + 4
            else { throw NetlinkError(EINVAL) }
            place += yes
        }
    }

    func accepts(_ entry: SocketDiagnosis.Entry) -> Bool {
        var place = 0
        while place < code.count {
            // The audit has seen what follows on `yes`; `no` may lead into the middle of an operation.
            guard let operation = Operation(rawValue: code.number(at: place)) else { return false }
            let port: UInt16 = code.number(at: place + 6)
            let holds: Bool
            switch operation {
            case .nothing: holds = true
            case .jump: holds = false
            case .sourceAtLeast: holds = entry.localPort >= port
            case .sourceAtMost: holds = entry.localPort <= port
            case .destinationAtLeast: holds = entry.remotePort >= port
            case .destinationAtMost: holds = entry.remotePort <= port
            case .sourceIs: holds = entry.localPort == port
            case .destinationIs: holds = entry.remotePort == port
            // The port was chosen by the stack: it does not keep who chose it.
            case .automatic: holds = false
            case .source: holds = isHost(entry.local, entry.localPort, at: place + 4)
            case .destination: holds = isHost(entry.remote, entry.remotePort, at: place + 4)
            case .device: holds = entry.ifindex == code.number(at: place + 4)
            case .mark: holds = code.number(at: place + 4, as: UInt32.self) == 0
            case .group: holds = false
            }
            let step = holds
                ? Int(code.number(at: place + 1, as: UInt8.self)) : Int(code.number(at: place + 2, as: UInt16.self))
            guard step >= 4 else { return false }
            place += step
        }
        return place == code.count
    }

    /// struct inet_diag_hostcond: family, bits, two bytes of nothing, port or -1, address.
    private func isHost(_ address: alps_addr, _ port: UInt16, at place: Int) -> Bool {
        let wantedPort: Int32 = code.number(at: place + 4)
        guard wantedPort == -1 || wantedPort == Int32(port) else { return false }
        let bits = UInt32(code.number(at: place + 1, as: UInt8.self))
        guard bits > 0 else { return true }
        guard code.number(at: place, as: UInt8.self) == UInt8(AF_INET), bits <= 32 else { return false }
        let wanted = UInt32(bigEndian: code.number(at: place + 8))
        return (address.word ^ wanted) >> (32 - bits) == 0
    }
}

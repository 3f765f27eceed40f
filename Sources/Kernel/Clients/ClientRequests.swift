import ClientAPI
import CLinux
import Foundation
import Glibc
import PluginAPI

/// The operations of client.h.
enum ClientRequests {
    /// `possession`: a descriptor that came beside the frame, or -1; the caller closes it.
    static func execute(_ session: Session, _ frame: alps_frame, _ payload: [UInt8], possession: Int32) {
        let kernel = session.kernel
        switch UInt32(frame.op) {
        case UInt32(ALPS_OP_SOCKET): return makeSocket(session, frame, payload)
        case UInt32(ALPS_OP_INTERFACES): return session.reply(frame, interfaceRecords(kernel))
        case UInt32(ALPS_OP_QUERY): return query(session, frame, payload)
        case UInt32(ALPS_OP_CALL): return call(session, frame, payload)
        case UInt32(ALPS_OP_PROC_NET):
            guard let text = ProcNet.text(String(decoding: payload, as: UTF8.self), kernel) else {
                return session.reply(frame, error: ENOENT)
            }
            return session.reply(frame, Array(text.utf8))
        case UInt32(ALPS_OP_IOCTL) where frame.socket == 0:
            return ioctl(session, frame, payload, nil)
        case UInt32(ALPS_OP_CORK_WORDS):
            guard let words = session.openCorkWords() else { return session.reply(frame, error: ENOMEM) }
            return session.reply(frame, bytes(CorkWords.count), passing: fcntl(words.descriptor, F_DUPFD_CLOEXEC, 0))
        default: break
        }
        if UInt32(frame.op) == UInt32(ALPS_OP_LINGER) {
            return linger(session, frame, until: HeldDescriptor(copyOf: possession))
        }
        if let channel = kernel.server?.messageChannels[SocketHandle(rawValue: frame.socket)] {
            return MessageRequests.execute(session, frame, payload, channel, possession: possession)
        }
        guard let socket = kernel.sockets.find(SocketHandle(rawValue: frame.socket)), !socket.isClosed else {
            return onEndedSocket(session, frame, payload)
        }
        if UInt32(frame.op) == UInt32(ALPS_OP_ATTACH), possession >= 0,
            let channel = socket.channel as? Channel, SocketPair.cookie(possession) == channel.cookie
        {
            session.files.insert(socket.handle)
        }
        guard mayUse(session, socket) else { return session.reply(frame, error: EBADF) }
        // What was written before the request counts before it.
        (socket.channel as? Channel)?.drain()
        guard !socket.isClosed else { return onEndedSocket(session, frame, payload) }
        if UInt32(frame.op) == UInt32(ALPS_OP_CONNECT) {
            return connect(session, frame, payload, socket, until: HeldDescriptor(copyOf: possession))
        }
        onSocket(session, frame, payload, socket)
    }

    /// Root, or the user that the host runs as. Others in the tree (a server that gave up its privileges) use sockets
    /// only: what changes the host would give them its rights.
    private static func isPrivileged(_ session: Session) -> Bool { session.uid == 0 || session.uid == geteuid() }

    /// Sockets are used by whoever holds their descriptor: made here, accepted from a listener held here, or proved by
    /// ATTACH. Among processes of one user the handle is proof enough.
    static func mayUse(_ session: Session, _ socket: Socket) -> Bool {
        session.uid == socket.owner.uid || session.uid == 0 || session.files.contains(socket.handle)
            || socket.madeBy.map(session.files.contains) == true
    }

    // MARK: Making

    private static func makeSocket(_ session: Session, _ frame: alps_frame, _ payload: [UInt8]) {
        guard let request = load(payload, alps_socket_request.self) else { return session.reply(frame, error: EINVAL) }
        guard request.domain != AF_PACKET || isPrivileged(session) else { return session.reply(frame, error: EPERM) }
        if request.domain == AF_NETLINK || request.domain == AF_PACKET {
            return MessageRequests.makeSocket(session, frame, request)
        }
        let kernel = session.kernel
        let type = request.type & 0xff
        guard type != Int32(ALPS_SOCK_RAW) || isPrivileged(session) else { return session.reply(frame, error: EPERM) }
        let variant = switch type {
        case Int32(ALPS_SOCK_STREAM): session.tcpVariant
        case Int32(ALPS_SOCK_DGRAM) where request.protocol == 0 || request.protocol == 17: session.udpVariant
        default: String?.none
        }
        do {
            let socket = try kernel.sockets.create(
                domain: request.domain, type: type, protocol: request.protocol, variant: variant, owner: session.owner,
                arena: session.arena)
            do {
                let passing = try openPair(socket)
                session.files.insert(socket.handle)
                session.reply(frame, bytes(socketInformation(socket)), passing: passing)
            } catch {
                socket.abort()
                throw error
            }
        } catch let error as KernelError {
            // The program has descriptors left; the system, as far as it sees, has not.
            session.reply(frame, error: error.code == EMFILE ? ENFILE : error.code)
        } catch { session.reply(frame, error: EIO) }
    }

    /// Gives a socket its pair; returns the application's end.
    private static func openPair(_ socket: Socket) throws -> Int32 {
        let pair = try SocketPair(
            type: Int32(socket.isStream ? SOCK_STREAM.rawValue : SOCK_SEQPACKET.rawValue), handle: socket.handle,
            seeded: socket.isStream)
        socket.inode = pair.inode
        do {
            socket.channel = socket.isStream
                ? try StreamChannel(socket, descriptor: pair.host, cookie: pair.cookie, isAccepted: false)
                : try InBandDatagramChannel(socket, descriptor: pair.host, cookie: pair.cookie)
        } catch {
            close(pair.host)
            close(pair.application)
            throw error
        }
        return pair.application
    }

    // MARK: About a socket

    /// A connection whose both directions have ended answers as Linux's do in TIME-WAIT.
    private static func onEndedSocket(_ session: Session, _ frame: alps_frame, _ payload: [UInt8]) {
        guard let name = session.kernel.server?.lastName(SocketHandle(rawValue: frame.socket)) else {
            return session.reply(frame, error: EBADF)
        }
        switch UInt32(frame.op) {
        case UInt32(ALPS_OP_GETSOCKNAME): session.reply(frame, bytes(name))
        case UInt32(ALPS_OP_GETSOCKOPT):
            let request = load(payload, alps_sockopt_request.self)
            let isError = request?.level == SOL_SOCKET && request?.name == SO_ERROR
            session.reply(frame, error: isError ? 0 : EINVAL, isError ? bytes(Int32(0)) : [])
        case UInt32(ALPS_OP_SETSOCKOPT), UInt32(ALPS_OP_FORGET): session.reply(frame)
        case UInt32(ALPS_OP_ATTACH):
            var info = alps_socket_info()
            info.handle = frame.socket
            info.domain = UInt16(AF_INET)
            info.type = UInt16(ALPS_SOCK_STREAM)
            info.protocol = 6
            info.local = name
            session.reply(frame, bytes(info))
        default: session.reply(frame, error: ENOTCONN)
        }
    }

    private static func onSocket(_ session: Session, _ frame: alps_frame, _ payload: [UInt8], _ socket: Socket) {
        switch UInt32(frame.op) {
        case UInt32(ALPS_OP_BIND):
            guard let name = load(payload, alps_client_sockaddr.self) else { return session.reply(frame, error: EINVAL) }
            var status = socket.bind(stackAddress(name))
            if status == EADDRINUSE, releaseAbandoned(session.kernel, port: stackAddress(name).port) {
                status = socket.bind(stackAddress(name))
            }
            session.reply(frame, error: status, status == 0 ? bytes(clientAddress(socket.localAddress)) : [])
        case UInt32(ALPS_OP_LISTEN):
            guard let backlog = load(payload, Int32.self) else { return session.reply(frame, error: EINVAL) }
            session.reply(frame, error: listen(socket, backlog))
        case UInt32(ALPS_OP_OPTION_WORDS):
            guard let listener = socket.channel as? InBandListenerChannel else { return session.reply(frame, error: EINVAL) }
            guard let words = listener.openOptionWords() else { return session.reply(frame, error: ENOMEM) }
            session.reply(frame, bytes(OptionWords.count), passing: fcntl(words.descriptor, F_DUPFD_CLOEXEC, 0))
        case UInt32(ALPS_OP_UNCONNECT): session.reply(frame, error: socket.disconnect())
        case UInt32(ALPS_OP_SHUTDOWN):
            guard let how = load(payload, Int32.self) else { return session.reply(frame, error: EINVAL) }
            let status = shutdown(socket, how)
            if how != ALPS_SHUT_WR, let channel = socket.channel as? StreamChannel {
                // What is in a ring has to be in the pair before that is shut down.
                channel.applicationReadsNoMore = true
                channel.update(socket)
            }
            session.reply(frame, error: status)
        case UInt32(ALPS_OP_GETSOCKOPT):
            guard let request = load(payload, alps_sockopt_request.self) else { return session.reply(frame, error: EINVAL) }
            if StreamChannel.isCork(level: request.level, name: request.name) {
                (socket.channel as? StreamChannel)?.settleCork(socket)
            }
            let (error, value) = socket.getOption(
                level: request.level, name: request.name, capacity: Int(min(request.length, 65536)))
            session.reply(frame, error: error, value)
        case UInt32(ALPS_OP_SETSOCKOPT):
            guard let request = load(payload, alps_sockopt_request.self) else { return session.reply(frame, error: EINVAL) }
            let value = Array(payload.dropFirst(MemoryLayout<alps_sockopt_request>.size).prefix(Int(request.length)))
            if StreamChannel.isCork(level: request.level, name: request.name) {
                (socket.channel as? StreamChannel)?.leaveCork(socket)
            }
            if StreamChannel.isNoDelay(level: request.level, name: request.name) {
                (socket.channel as? StreamChannel)?.closeOptionWord(socket)
            }
            session.reply(frame, error: socket.setOption(level: request.level, name: request.name, value))
        case UInt32(ALPS_OP_GETSOCKNAME): session.reply(frame, bytes(clientAddress(socket.localAddress)))
        case UInt32(ALPS_OP_GETPEERNAME):
            guard socket.isConnected else { return session.reply(frame, error: ENOTCONN) }
            session.reply(frame, bytes(clientAddress(socket.remoteAddress)))
        case UInt32(ALPS_OP_IOCTL): ioctl(session, frame, payload, socket)
        case UInt32(ALPS_OP_ATTACH):
            session.files.insert(socket.handle)
            session.reply(frame, bytes(socketInformation(socket)))
        case UInt32(ALPS_OP_FORGET):
            session.files.remove(socket.handle)
            if let channel = socket.channel as? Channel, !channel.isOpen { socket.close() }
            session.reply(frame)
        case UInt32(ALPS_OP_TAKE_EVENT):
            guard let event = (socket.channel as? InBandDatagramChannel)?.takeEvent() else {
                return session.reply(frame, error: EAGAIN)
            }
            session.reply(frame, bytes(event))
        case UInt32(ALPS_OP_PEEK_EVENT):
            guard let event = (socket.channel as? InBandDatagramChannel)?.nextEvent else {
                return session.reply(frame, error: EAGAIN)
            }
            session.reply(frame, bytes(event))
        case UInt32(ALPS_OP_ANNOUNCE_EVENT):
            (socket.channel as? InBandDatagramChannel)?.announceAgain()
            session.reply(frame)
        case UInt32(ALPS_OP_TAKE_ERROR):
            guard let (error, left) = socket.takeQueuedError() else { return session.reply(frame, error: EAGAIN) }
            let record = alps_socket_error(
                error: error.error, origin: error.origin.rawValue, type: error.type, code: error.code, reserved: 0,
                info: error.mtu, left: UInt32(left), offender: clientAddress(error.offender),
                destination: clientAddress(error.destination), timestamp: error.timestamp)
            session.reply(frame, bytes(record) + error.payload)
            socket.markDirty()
        case UInt32(ALPS_OP_SEND_DATAGRAM):
            guard let channel = socket.channel as? InBandDatagramChannel else { return session.reply(frame, error: EOPNOTSUPP) }
            session.reply(frame, error: payload.withUnsafeBytes { channel.sendOne($0) })
        case UInt32(ALPS_OP_REQUEUE):
            guard let channel = socket.channel as? InBandDatagramChannel else { return session.reply(frame, error: EOPNOTSUPP) }
            session.reply(frame, error: payload.withUnsafeBytes { channel.requeue($0) })
        case UInt32(ALPS_OP_WATCH_URGENT):
            guard let channel = socket.channel as? StreamChannel else { return session.reply(frame, error: ENOTCONN) }
            session.reply(frame, error: channel.watchUrgent(socket))
        case UInt32(ALPS_OP_STREAM_RING):
            guard let directions = load(payload, UInt32.self) else { return session.reply(frame, error: EINVAL) }
            guard let channel = socket.channel as? StreamChannel else { return session.reply(frame, error: EOPNOTSUPP) }
            let (error, information) = channel.openRing(socket, directions)
            guard error == 0, let ring = channel.ring else { return session.reply(frame, error: error == 0 ? EAGAIN : error) }
            session.reply(frame, bytes(information), passing: fcntl(ring.descriptor, F_DUPFD_CLOEXEC, 0))
        case UInt32(ALPS_OP_STREAM_PAIR):
            guard let directions = load(payload, UInt32.self) else { return session.reply(frame, error: EINVAL) }
            // What is left is in the pair when the asker goes on.
            (socket.channel as? StreamChannel)?.returnToPair(socket, directions)
            session.reply(frame)
        case UInt32(ALPS_OP_STREAM_BELL):
            socket.channel?.bell()
            session.reply(frame)
        case UInt32(ALPS_OP_CORK_WORD):
            guard let index = load(payload, UInt32.self), let words = session.corkWords,
                let channel = socket.channel as? StreamChannel
            else { return session.reply(frame, error: EINVAL) }
            session.reply(frame, error: channel.followCork(socket, words, index))
        case UInt32(ALPS_OP_SEND_OOB):
            guard let byte = payload.first, socket.isStream else { return session.reply(frame, error: EOPNOTSUPP) }
            // It comes behind what has been written: writers have to have come back to the pair.
            guard (socket.channel as? StreamChannel).map({ $0.activeRings & ALPS_RING_SEND == 0 }) ?? true else {
                return session.reply(frame, error: EAGAIN)
            }
            let written = socket.write([byte], flags: UInt32(ALPS_SENT_OOB))
            session.reply(frame, error: written == 1 ? 0 : (written < 0 ? Int32(-written) : EAGAIN))
        case UInt32(ALPS_OP_RECV_OOB):
            let flags = load(payload, UInt32.self) ?? 0
            let (error, byte) = socket.takeUrgent(peek: flags & UInt32(MSG_PEEK) != 0)
            session.reply(frame, error: error, error == 0 ? [byte] : [])
        default: session.reply(frame, error: EOPNOTSUPP)
        }
    }

    /// Sockets of a port that a client closed before it asked for the port: their ends may not have been looked at yet.
    private static func releaseAbandoned(_ kernel: Kernel, port: UInt16) -> Bool {
        var found = false
        for socket in kernel.sockets.all where socket.localAddress.port == port {
            guard let channel = socket.channel as? Channel, releaseIfAbandoned(channel) else { continue }
            found = true
        }
        return found
    }

    @discardableResult
    private static func releaseIfAbandoned(_ channel: Channel) -> Bool {
        guard channel.isAbandoned else { return false }
        channel.ready(UInt32(EPOLLIN.rawValue | EPOLLHUP.rawValue) | UInt32(alps_EPOLLRDHUP))
        return true
    }

    /// A listener's pair carries connections instead of bytes: the channel changes, the descriptor stays.
    private static func listen(_ socket: Socket, _ backlog: Int32) -> Int32 {
        let wasListening = socket.isListening
        let status = socket.listen(backlog)
        guard status == 0, !wasListening, let old = socket.channel as? Channel else { return status }
        let cookie = old.cookie
        let descriptor = old.release()
        // A queue of connections, each with a descriptor in flight, wants more room than bytes do.
        var size = Int32(1 << 20)
        setsockopt(descriptor, SOL_SOCKET, SO_SNDBUFFORCE, &size, socklen_t(4))
        do {
            socket.channel = try InBandListenerChannel(socket, descriptor: descriptor, cookie: cookie)
            socket.kernel.server?.listeners.insert(socket.handle)
        } catch {
            close(descriptor)
            socket.abort()
            return ENOMEM
        }
        return 0
    }

    /// The shim shuts the pair down itself; the channel sees the end behind everything written. Here only the refusals.
    private static func shutdown(_ socket: Socket, _ how: Int32) -> Int32 {
        guard socket.isStream, !socket.isListening else { return socket.shutdown(how) }
        guard (0...2).contains(how) else { return EINVAL }
        guard socket.isConnected || socket.isDisconnected else { return ENOTCONN }
        return how == Int32(ALPS_SHUT_WR) ? 0 : socket.shutdown(Int32(ALPS_SHUT_RD))
    }

    /// `held` is closed when the answer has been given.
    private static func connect(
        _ session: Session, _ frame: alps_frame, _ payload: [UInt8], _ socket: Socket, until held: HeldDescriptor
    ) {
        guard let request = load(payload, alps_connect_request.self) else { return session.reply(frame, error: EINVAL) }
        let address = stackAddress(request.address)
        for handle in session.kernel.server?.listeners ?? [] {
            // One that was closed before this request must not take the connection.
            guard let other = session.kernel.sockets.find(handle), other.localAddress.port == address.port else { continue }
            if let channel = other.channel as? Channel { releaseIfAbandoned(channel) }
        }
        func answer(_ status: Int32) {
            let named = status == 0 || status == EINPROGRESS
            session.reply(frame, error: status, named ? bytes(clientAddress(socket.localAddress)) : [])
            held.release()
        }
        guard socket.isStream, request.flags & UInt32(ALPS_CONNECT_NOWAIT) == 0 else {
            if socket.isStream, request.plug_bytes > 0, !socket.isConnecting, !socket.isConnected {
                (socket.channel as? StreamChannel)?.expectPlug(request.plug_bytes)
            }
            let status = socket.connect(address)
            socket.markDirty()
            return answer(status)
        }
        let started = socket.connect(address)
        guard started == EINPROGRESS || started == EALREADY else { return answer(started) }
        session.runWaiting(frame, name: "connect") {
            let status = socket.waitForConnection()
            // Somebody else's attempt, which goes on.
            answer(status == EINPROGRESS && started == EALREADY ? EALREADY : status)
        }
    }

    /// SO_LINGER: the descriptor has been closed; answers when its close may return. `held` is closed with the answer.
    private static func linger(_ session: Session, _ frame: alps_frame, until held: HeldDescriptor) {
        func answer(_ status: Int32) {
            session.reply(frame, error: status)
            held.release()
        }
        guard let socket = session.kernel.sockets.find(SocketHandle(rawValue: frame.socket)), mayUse(session, socket)
        else { return answer(0) }
        // Its end may not have been looked at yet.
        if let channel = socket.channel as? Channel { releaseIfAbandoned(channel) }
        let isHeldElsewhere = !socket.isClosed && (socket.channel as? Channel)?.isAbandoned != true
        guard !isHeldElsewhere, socket.isLingering else { return answer(0) }
        session.runWaiting(frame, name: "close") { answer(socket.waitForEnd()) }
    }

    static func ioctl(_ session: Session, _ frame: alps_frame, _ payload: [UInt8], _ socket: Socket?) {
        guard let request = load(payload, alps_ioctl_request.self) else { return session.reply(frame, error: EINVAL) }
        var data = Array(payload.dropFirst(MemoryLayout<alps_ioctl_request>.size).prefix(Int(request.length)))
        let error = ClientIoctl.execute(session.kernel, socket, UInt(request.command), &data, isRoot: session.uid == 0)
        session.reply(frame, error: error, error == 0 ? data : [])
    }

    // MARK: Others

    private static func query(_ session: Session, _ frame: alps_frame, _ payload: [UInt8]) {
        struct Envelope: Decodable { var command: String }
        do {
            // {"command": NAME} in front, a newline, the arguments behind.
            let data = Data(payload)
            guard let split = data.firstIndex(of: UInt8(ascii: "\n")) else { throw KernelError(EINVAL, "bad query") }
            let envelope = try JSONDecoder().decode(Envelope.self, from: data[..<split])
            let changes = envelope.command.contains(".") && envelope.command != "route.get"
            guard isPrivileged(session) || !changes && envelope.command != "sysctl" else {
                throw KernelError(EPERM, "no permission for '\(envelope.command)': use root")
            }
            let reply = try session.kernel.queries.answer(envelope.command, Data(data[(split + 1)...]))
            session.reply(frame, Array(reply))
        } catch let error as KernelError {
            session.reply(frame, error: error.code == 0 ? EINVAL : error.code, Array(error.message.utf8))
        } catch { session.reply(frame, error: EINVAL, Array("bad query: \(error)".utf8)) }
    }

    /// A plugin's user request by name, decoded by its signature.
    private static func call(_ session: Session, _ frame: alps_frame, _ payload: [UInt8]) {
        guard let request = load(payload, alps_call_request.self) else { return session.reply(frame, error: EINVAL) }
        let body = payload.dropFirst(MemoryLayout<alps_call_request>.size)
        guard body.count >= Int(request.name_length) + Int(request.arguments_length) else {
            return session.reply(frame, error: EINVAL)
        }
        let name = String(decoding: body.prefix(Int(request.name_length)), as: UTF8.self)
        let parts = name.split(separator: ".", maxSplits: 1).map(String.init)
        guard parts.count == 2,
            let entry = session.kernel.protocols.entries.last(where: {
                $0.instance.state == .running && ($0.name == parts[0] || $0.instance.variant == parts[0])
            }), let routed = entry.request(named: parts[1]), routed.id >= UInt32(ALPS_PRU_FIRST_PRIVATE)
        else { return session.reply(frame, error: ENOENT) }
        let socket = frame.socket == 0 ? nil : session.kernel.sockets.find(SocketHandle(rawValue: frame.socket))
        if routed.signature.utf8.contains(UInt8(ascii: "S")), socket == nil || socket?.entry !== entry || !(socket?.isAttached ?? false) {
            return session.reply(frame, error: EBADF)
        }
        guard socket.map({ mayUse(session, $0) }) ?? isPrivileged(session) else {
            return session.reply(frame, error: EPERM)
        }
        guard let arguments = CallArguments.decode(
            routed.signature, Array(body.dropFirst(Int(request.name_length)).prefix(Int(request.arguments_length))))
        else { return session.reply(frame, error: EINVAL) }
        func run() {
            entry.instance.callsInProgress += 1
            let (error, results) = routed.call(instance: entry.instancePointer, socket: socket?.raw, arguments)
            entry.instance.callsInProgress -= 1
            session.reply(frame, CallArguments.encode(error, results))
        }
        if routed.mayBlock { session.runWaiting(frame, name: name, run) } else { run() }
    }

    private static func interfaceRecords(_ kernel: Kernel) -> [UInt8] {
        var result: [UInt8] = []
        for interface in kernel.interfaces.all {
            var record = alps_interface_record()
            withUnsafeMutableBytes(of: &record.name) { target in
                for (index, byte) in interface.name.utf8.prefix(15).enumerated() { target[index] = byte }
            }
            record.index = interface.raw.pointee.index
            record.flags = Netlink.flags(interface)
            record.mtu = interface.raw.pointee.mtu
            record.hardware = interface.raw.pointee.hardware
            record.hardware_length = interface.raw.pointee.hardware_length
            if interface.addresses.isEmpty { result += bytes(record) }
            for address in interface.addresses {
                record.prefix_length = UInt32(address.prefix_length)
                record.address = alps_client_sockaddr(family: address.family, port: 0, scope: 0, addr: address.addr.bytes)
                record.broadcast = alps_client_sockaddr(
                    family: NetworkAddress(address: address.broadcast).isZero ? 0 : address.family, port: 0, scope: 0,
                    addr: address.broadcast.bytes)
                result += bytes(record)
            }
        }
        return result
    }

    static func load<T>(_ payload: [UInt8], _ type: T.Type) -> T? {
        guard payload.count >= MemoryLayout<T>.size else { return nil }
        return payload.withUnsafeBytes { $0.loadUnaligned(as: type) }
    }

    static func bytes<T>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }
}

/// A client's descriptor that is kept until something has happened: its closing tells the client.
final class HeldDescriptor {
    private var descriptor: Int32

    init(copyOf original: Int32) {
        descriptor = original < 0 ? -1 : fcntl(original, F_DUPFD_CLOEXEC, 0)
    }

    func release() {
        if descriptor >= 0 { close(descriptor) }
        descriptor = -1
    }

    deinit { release() }
}

/// Arguments of ALPS_OP_CALL by signature letter.
enum CallArguments {
    static func decode(_ signature: String, _ bytes: [UInt8]) -> [RouterValue]? {
        var offset = 0
        func take<T>(_ type: T.Type) -> T? {
            guard bytes.count - offset >= MemoryLayout<T>.size else { return nil }
            defer { offset += MemoryLayout<T>.size }
            return bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: type) }
        }
        func takeBytes(_ count: UInt32) -> [UInt8]? {
            guard bytes.count - offset >= Int(count) else { return nil }
            defer { offset += Int(count) }
            return Array(bytes[offset..<offset + Int(count)])
        }
        var values: [RouterValue] = []
        for letter in signature {
            switch letter {
            case "S": continue
            case "A": values.append(.addressOut)
            case "a":
                guard let address = take(alps_client_sockaddr.self) else { return nil }
                values.append(.address(stackAddress(address)))
            case "b":
                guard let count = take(UInt32.self), let content = takeBytes(count) else { return nil }
                values.append(.bytes(content))
            case "B":
                guard let capacity = take(UInt32.self), let count = take(UInt32.self), let content = takeBytes(count),
                    capacity <= 1 << 20
                else { return nil }
                values.append(.buffer(content, capacity: Int(capacity)))
            default:
                guard let number = take(Int64.self) else { return nil }
                values.append(.integer(number))
            }
        }
        return offset == bytes.count ? values : nil
    }

    static func encode(_ error: Int32, _ results: [RouterResult]) -> [UInt8] {
        var reply = ClientRequests.bytes(error)
        for result in results {
            switch result {
            case .address(let address): reply += ClientRequests.bytes(clientAddress(address))
            case .bytes(let content): reply += ClientRequests.bytes(UInt32(content.count)) + content
            }
        }
        return reply
    }
}

import ClientAPI
import CLinux
import Glibc

/// A program's netlink socket, with headers both ways.
final class NetlinkChannel: MessageChannel {
    private let socket: NetlinkSocket

    init(_ session: Session, _ request: alps_socket_request, _ pair: SocketPair, _ handle: SocketHandle) throws {
        socket = try session.kernel.netlink.create(
            family: request.protocol, type: request.type & 0xff, uid: session.uid, pid: session.pid)
        super.init(session.kernel, pair, handle)
        socket.onReadable = { [unowned self] in push() }
    }

    // Written out, since the compiler warns about the stub that it makes itself.
    @available(*, unavailable)
    override init(_ kernel: Kernel, _ pair: SocketPair, _ handle: SocketHandle) { fatalError("a channel needs its socket") }

    override var uid: UInt32 { socket.uid }
    override var pendingError: Int32 { socket.pendingError }
    override var localName: alps_client_sockaddr {
        netlinkAddress(port: socket.port, groups: UInt32(truncatingIfNeeded: socket.groups), family: UInt16(AF_NETLINK))
    }
    override var information: alps_socket_info {
        var info = alps_socket_info()
        info.handle = handle.rawValue
        info.domain = UInt16(AF_NETLINK)
        info.type = UInt16(socket.type)
        info.protocol = UInt16(socket.family)
        return info
    }

    override func closeSocket() {
        socket.onReadable = nil
        socket.close()
    }

    override func takeError() -> Int32 { socket.takeError() }

    override func setOption(_ request: alps_sockopt_request, _ value: [UInt8], isRoot: Bool) -> Int32 {
        socket.setOption(request.level, request.name, value, isRoot: isRoot)
    }

    override func getOption(
        _ request: alps_sockopt_request, _ value: [UInt8], capacity: Int
    ) -> (error: Int32, value: [UInt8]) {
        socket.getOption(request.level, request.name, capacity: capacity)
    }

    // MARK: From the application

    /// From a program that has confined itself, or one that is not intercepted. Nobody vouches for its user, so it may look
    /// only.
    override func take(_ message: UnsafeRawBufferPointer, hasHeader: Bool) {
        _ = socket.send(
            Array(message.dropFirst(hasHeader ? MemoryLayout<alps_datagram_header>.size : 0)), mayChange: false)
    }

    override func execute(_ session: Session, _ frame: alps_frame, _ payload: [UInt8]) {
        // As CAP_NET_ADMIN on Linux: of whoever made the socket and of whoever uses it.
        let isRoot = session.uid == 0
        switch UInt32(frame.op) {
        case UInt32(ALPS_OP_SEND_DATAGRAM):
            session.reply(frame, error: send(payload, mayChange: isRoot && socket.uid == 0))
        case UInt32(ALPS_OP_BIND):
            guard let address = ClientRequests.load(payload, alps_client_sockaddr.self) else {
                return session.reply(frame, error: EINVAL)
            }
            let name = netlinkName(address)
            let status = socket.bind(port: name.port, groups: name.groups)
            session.reply(frame, error: status, ClientRequests.bytes(localName))
        case UInt32(ALPS_OP_CONNECT):
            guard let request = ClientRequests.load(payload, alps_connect_request.self) else {
                return session.reply(frame, error: EINVAL)
            }
            let name = netlinkName(request.address)
            // Programs that are not root talk to the stack only, and to nobody's groups (NL_CFG_F_NONROOT_SEND).
            guard name.port == 0 && name.groups == 0 || isRoot else { return session.reply(frame, error: EPERM) }
            session.reply(frame, error: socket.connect(port: name.port), ClientRequests.bytes(localName))
        case UInt32(ALPS_OP_UNCONNECT):
            socket.disconnect()
            session.reply(frame)
        case UInt32(ALPS_OP_GETPEERNAME):
            let name = netlinkAddress(port: socket.peer, groups: 0, family: UInt16(AF_NETLINK))
            session.reply(frame, ClientRequests.bytes(name))
        case UInt32(ALPS_OP_IOCTL):
            // Requests about interfaces, which any socket takes; not those of IPv4 sockets (routes, ARP).
            let number = ClientRequests.load(payload, alps_ioctl_request.self)?.command ?? 0
            guard (0x8910...0x894f).contains(number) || (0x8970...0x897f).contains(number) else {
                return session.reply(frame, error: ENOTTY)
            }
            ClientRequests.ioctl(session, frame, payload, nil)
        default: super.execute(session, frame, payload)
        }
    }

    /// ALPS_OP_SEND_DATAGRAM: a header and the datagram.
    private func send(_ message: [UInt8], mayChange: Bool) -> Int32 {
        guard let header = ClientRequests.load(message, alps_datagram_header.self) else { return EINVAL }
        let isNamed = header.address.family == UInt16(AF_NETLINK)
        guard isNamed || header.address.family == 0 else { return EINVAL }
        return socket.send(
            Array(message.dropFirst(MemoryLayout<alps_datagram_header>.size)),
            to: isNamed ? netlinkName(header.address).port : nil, mayChange: mayChange)
    }

    // MARK: To the application

    override func push() {
        guard descriptor >= 0, tellError() else { return }
        while let datagram = socket.first {
            guard hand(datagram) != EAGAIN else { return wantRoom(true) }
            socket.removeFirst()
        }
        wantRoom(false)
    }

    private func hand(_ datagram: NetlinkSocket.Datagram) -> Int32 {
        var header = alps_datagram_header()
        // The stack is port 0; of a notification the groups' mask tells which (netlink(7)).
        let groups: UInt32 = (1...32).contains(datagram.group) ? 1 << (datagram.group - 1) : 0
        header.address = netlinkAddress(port: 0, groups: groups, family: UInt16(AF_NETLINK))
        header.ifindex = datagram.group
        header.timestamp = kernel.clock.wall
        return datagram.bytes.withUnsafeBytes { hand(&header, $0) }
    }
}

/// Port and groups of an alps_client_sockaddr of AF_NETLINK (client.h).
func netlinkName(_ address: alps_client_sockaddr) -> (port: UInt32, groups: UInt32) {
    withUnsafeBytes(of: address.addr) {
        ($0.loadUnaligned(as: UInt32.self), $0.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
    }
}

func netlinkAddress(port: UInt32, groups: UInt32, family: UInt16) -> alps_client_sockaddr {
    var address = alps_client_sockaddr()
    address.family = family
    withUnsafeMutableBytes(of: &address.addr) {
        $0.storeBytes(of: port, as: UInt32.self)
        $0.storeBytes(of: groups, toByteOffset: 4, as: UInt32.self)
    }
    return address
}

import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// The operations of client.h about netlink sockets.
enum NetlinkRequests {
    /// socket(2) with AF_NETLINK.
    static func makeSocket(_ session: Session, _ frame: alps_frame, _ request: alps_socket_request) {
        let kernel = session.kernel
        do {
            guard let server = kernel.server else { throw KernelError(ENETDOWN, "clients need a live host") }
            let socket = try kernel.netlink.create(
                family: request.protocol, type: request.type & 0xff, uid: session.uid, pid: session.pid)
            let handle = server.newNetlinkHandle()
            do {
                let pair = try SocketPair(
                    type: Int32(SOCK_SEQPACKET.rawValue), handle: handle, stack: kernel.name, seeded: false)
                do {
                    server.netlinkChannels[handle] = try NetlinkChannel(socket, kernel: kernel, pair: pair, handle: handle)
                } catch {
                    close(pair.host)
                    close(pair.application)
                    throw error
                }
                session.files.insert(handle)
                session.reply(frame, ClientRequests.bytes(information(socket, handle)), passing: pair.application)
            } catch {
                socket.close()
                throw error
            }
        } catch let error as KernelError {
            session.reply(frame, error: error.code)
        } catch { session.reply(frame, error: EIO) }
    }

    private static func information(_ socket: NetlinkSocket, _ handle: SocketHandle) -> alps_socket_info {
        var info = alps_socket_info()
        info.handle = handle.rawValue
        info.domain = UInt16(AF_NETLINK)
        info.type = UInt16(socket.type)
        info.protocol = UInt16(socket.family)
        return info
    }

    /// A request about a socket. `possession`: a descriptor that came beside the frame, or -1.
    static func execute(
        _ session: Session, _ frame: alps_frame, _ payload: [UInt8], _ channel: NetlinkChannel, possession: Int32
    ) {
        let socket = channel.socket
        if UInt32(frame.op) == UInt32(ALPS_OP_ATTACH), possession >= 0, SocketPair.cookie(possession) == channel.cookie {
            session.files.insert(channel.handle)
        }
        guard session.uid == socket.uid || session.uid == 0 || session.files.contains(channel.handle) else {
            return session.reply(frame, error: EBADF)
        }
        // What was written before the request counts before it.
        channel.drain()
        // As CAP_NET_ADMIN on Linux: of whoever made the socket and of whoever uses it.
        let isRoot = session.uid == 0
        switch UInt32(frame.op) {
        case UInt32(ALPS_OP_SEND_DATAGRAM):
            session.reply(frame, error: channel.send(payload, mayChange: isRoot && socket.uid == 0))
        case UInt32(ALPS_OP_BIND):
            guard let address = ClientRequests.load(payload, alps_client_sockaddr.self) else {
                return session.reply(frame, error: EINVAL)
            }
            let name = netlinkName(address)
            let status = socket.bind(port: name.port, groups: name.groups)
            session.reply(frame, error: status, ClientRequests.bytes(localName(socket)))
        case UInt32(ALPS_OP_CONNECT):
            guard let request = ClientRequests.load(payload, alps_connect_request.self) else {
                return session.reply(frame, error: EINVAL)
            }
            let name = netlinkName(request.address)
            // Programs that are not root talk to the stack only, and to nobody's groups (NL_CFG_F_NONROOT_SEND).
            guard name.port == 0 && name.groups == 0 || isRoot else { return session.reply(frame, error: EPERM) }
            session.reply(frame, error: socket.connect(port: name.port), ClientRequests.bytes(localName(socket)))
        case UInt32(ALPS_OP_UNCONNECT):
            socket.disconnect()
            session.reply(frame)
        case UInt32(ALPS_OP_GETSOCKNAME): session.reply(frame, ClientRequests.bytes(localName(socket)))
        case UInt32(ALPS_OP_GETPEERNAME):
            let name = netlinkAddress(port: socket.peer, groups: 0, family: UInt16(AF_NETLINK))
            session.reply(frame, ClientRequests.bytes(name))
        case UInt32(ALPS_OP_GETSOCKOPT):
            guard let request = ClientRequests.load(payload, alps_sockopt_request.self) else {
                return session.reply(frame, error: EINVAL)
            }
            let (error, value) = socket.getOption(
                request.level, request.name, capacity: Int(min(request.length, 65536)))
            session.reply(frame, error: error, value)
        case UInt32(ALPS_OP_SETSOCKOPT):
            guard let request = ClientRequests.load(payload, alps_sockopt_request.self) else {
                return session.reply(frame, error: EINVAL)
            }
            let value = Array(payload.dropFirst(MemoryLayout<alps_sockopt_request>.size).prefix(Int(request.length)))
            session.reply(frame, error: socket.setOption(request.level, request.name, value, isRoot: isRoot))
        case UInt32(ALPS_OP_IOCTL):
            // Requests about interfaces, which any socket takes; not those of IPv4 sockets (routes, ARP).
            let number = ClientRequests.load(payload, alps_ioctl_request.self)?.command ?? 0
            guard (0x8910...0x894f).contains(number) || (0x8970...0x897f).contains(number) else {
                return session.reply(frame, error: ENOTTY)
            }
            ClientRequests.ioctl(session, frame, payload, nil)
        case UInt32(ALPS_OP_ATTACH):
            session.files.insert(channel.handle)
            session.reply(frame, ClientRequests.bytes(information(socket, channel.handle)))
        case UInt32(ALPS_OP_FORGET):
            session.files.remove(channel.handle)
            session.reply(frame)
        case UInt32(ALPS_OP_TAKE_EVENT):
            guard let event = channel.takeEvent() else { return session.reply(frame, error: EAGAIN) }
            session.reply(frame, ClientRequests.bytes(event))
        default: session.reply(frame, error: EOPNOTSUPP)
        }
    }

    private static func localName(_ socket: NetlinkSocket) -> alps_client_sockaddr {
        netlinkAddress(
            port: socket.port, groups: UInt32(truncatingIfNeeded: socket.groups), family: UInt16(AF_NETLINK))
    }
}

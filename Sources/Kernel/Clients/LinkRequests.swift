import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// The operations of client.h about packet sockets.
enum LinkRequests {
    /// socket(2) with AF_PACKET, of somebody who may.
    static func makeSocket(_ session: Session, _ frame: alps_frame, _ request: alps_socket_request) {
        let kernel = session.kernel
        do {
            guard let server = kernel.server else { throw KernelError(ENETDOWN, "clients need a live host") }
            let socket = try kernel.linkSockets.create(
                type: request.type & 0xff,
                protocolNumber: UInt16(bigEndian: UInt16(truncatingIfNeeded: request.protocol)), uid: session.uid,
                pid: session.pid)
            let handle = server.newLinkHandle()
            do {
                let pair = try SocketPair(
                    type: Int32(SOCK_SEQPACKET.rawValue), handle: handle, stack: kernel.name, seeded: false)
                do {
                    socket.inode = pair.inode
                    server.linkChannels[handle] = try LinkChannel(socket, kernel: kernel, pair: pair, handle: handle)
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

    private static func information(_ socket: LinkSocket, _ handle: SocketHandle) -> alps_socket_info {
        var info = alps_socket_info()
        info.handle = handle.rawValue
        info.domain = UInt16(AF_PACKET)
        info.type = UInt16(socket.type)
        return info
    }

    /// A request about a socket. `possession`: a descriptor that came beside the frame, or -1.
    static func execute(
        _ session: Session, _ frame: alps_frame, _ payload: [UInt8], _ channel: LinkChannel, possession: Int32
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
        switch UInt32(frame.op) {
        case UInt32(ALPS_OP_SEND_DATAGRAM):
            let (error, bytes) = payload.withUnsafeBytes { channel.send($0) }
            session.reply(frame, error: error, error == 0 ? ClientRequests.bytes(UInt32(clamping: bytes)) : [])
        case UInt32(ALPS_OP_BIND):
            guard let address = ClientRequests.load(payload, alps_client_sockaddr.self),
                address.family == UInt16(AF_PACKET)
            else { return session.reply(frame, error: EINVAL) }
            let name = linkName(address)
            let status = socket.bind(protocolNumber: name.protocolNumber, ifindex: name.ifindex)
            session.reply(frame, error: status, ClientRequests.bytes(localName(socket)))
        case UInt32(ALPS_OP_GETSOCKNAME): session.reply(frame, ClientRequests.bytes(localName(socket)))
        case UInt32(ALPS_OP_GETSOCKOPT): getOption(session, frame, payload, socket)
        case UInt32(ALPS_OP_SETSOCKOPT):
            guard let request = ClientRequests.load(payload, alps_sockopt_request.self) else {
                return session.reply(frame, error: EINVAL)
            }
            let value = Array(payload.dropFirst(MemoryLayout<alps_sockopt_request>.size).prefix(Int(request.length)))
            let status = socket.setOption(request.level, request.name, value, isRoot: session.uid == 0)
            session.reply(frame, error: status)
        case UInt32(ALPS_OP_RING):
            guard let memory = socket.ringMemory else { return session.reply(frame, error: EINVAL) }
            let passing = fcntl(memory.descriptor, F_DUPFD_CLOEXEC, 0)
            guard passing >= 0 else { return session.reply(frame, error: EMFILE) }
            session.reply(frame, ClientRequests.bytes(memory.information), passing: passing)
        case UInt32(ALPS_OP_IOCTL): ioctl(session, frame, payload)
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

    /// PACKET_HDRLEN asks about the value that is there: it comes behind the request.
    private static func getOption(_ session: Session, _ frame: alps_frame, _ payload: [UInt8], _ socket: LinkSocket) {
        guard let request = ClientRequests.load(payload, alps_sockopt_request.self) else {
            return session.reply(frame, error: EINVAL)
        }
        let value = Array(payload.dropFirst(MemoryLayout<alps_sockopt_request>.size))
        let (error, answer) = socket.getOption(
            request.level, request.name, value: value, capacity: Int(min(request.length, 65536)))
        session.reply(frame, error: error, answer)
    }

    /// Requests about interfaces, which any socket takes. "lo" names lo0: libpcap asks for it, to show a packet of the
    /// loopback interface once although it leaves and arrives.
    private static func ioctl(_ session: Session, _ frame: alps_frame, _ payload: [UInt8]) {
        let number = ClientRequests.load(payload, alps_ioctl_request.self)?.command ?? 0
        guard (0x8906...0x8907).contains(number) || (0x890b...0x894f).contains(number) || (0x8970...0x89ff).contains(number)
        else { return session.reply(frame, error: ENOTTY) }
        var payload = payload
        let start = MemoryLayout<alps_ioctl_request>.size
        let short = Array("lo".utf8) + [0]
        if payload.count >= start + 16, Array(payload[start..<start + 3]) == short,
            session.kernel.interfaces.find("lo") == nil
        {
            payload.replaceSubrange(start..<start + 4, with: Array("lo0".utf8) + [0])
        }
        ClientRequests.ioctl(session, frame, payload, nil)
    }

    private static func localName(_ socket: LinkSocket) -> alps_client_sockaddr {
        guard let interface = socket.table.interface(socket.ifindex), socket.ifindex != 0 else {
            return linkAddress(
                protocolNumber: socket.protocolNumber, ifindex: socket.ifindex, hardwareType: 0, kind: 0,
                hardware: UnsafeRawBufferPointer(start: nil, count: 0))
        }
        return withUnsafeBytes(of: interface.raw.pointee.hardware) {
            linkAddress(
                protocolNumber: socket.protocolNumber, ifindex: socket.ifindex,
                hardwareType: UInt16(interface.isLoopback ? ARPHRD_LOOPBACK : ARPHRD_ETHER), kind: 0,
                hardware: UnsafeRawBufferPointer(rebasing: $0[..<6]))
        }
    }
}

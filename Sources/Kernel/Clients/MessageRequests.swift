import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// The operations of client.h about netlink and packet sockets.
enum MessageRequests {
    /// socket(2) with AF_NETLINK, or with AF_PACKET of somebody who may.
    static func makeSocket(_ session: Session, _ frame: alps_frame, _ request: alps_socket_request) {
        let kernel = session.kernel
        do {
            guard let server = kernel.server else { throw KernelError(ENETDOWN, "clients need a live host") }
            let handle = server.newMessageHandle()
            let pair = try SocketPair(
                type: Int32(SOCK_SEQPACKET.rawValue), handle: handle, seeded: false)
            var made: MessageChannel?
            do {
                let channel =
                    request.domain == AF_NETLINK
                    ? try NetlinkChannel(session, request, pair, handle) : try LinkChannel(session, request, pair, handle)
                made = channel
                try channel.open()
                server.messageChannels[handle] = channel
                session.files.insert(handle)
                session.reply(frame, ClientRequests.bytes(channel.information), passing: pair.application)
            } catch {
                if let made { made.close() } else { close(pair.host) }
                close(pair.application)
                throw error
            }
        } catch let error as KernelError {
            session.reply(frame, error: error.code)
        } catch { session.reply(frame, error: EIO) }
    }

    /// A request about a socket. `possession`: a descriptor that came beside the frame, or -1.
    static func execute(
        _ session: Session, _ frame: alps_frame, _ payload: [UInt8], _ channel: MessageChannel, possession: Int32
    ) {
        if UInt32(frame.op) == UInt32(ALPS_OP_ATTACH), possession >= 0, SocketPair.cookie(possession) == channel.cookie {
            session.files.insert(channel.handle)
        }
        guard session.uid == channel.uid || session.uid == 0 || session.files.contains(channel.handle) else {
            return session.reply(frame, error: EBADF)
        }
        // What was written before the request counts before it.
        channel.drain()
        switch UInt32(frame.op) {
        case UInt32(ALPS_OP_GETSOCKNAME): session.reply(frame, ClientRequests.bytes(channel.localName))
        case UInt32(ALPS_OP_GETSOCKOPT), UInt32(ALPS_OP_SETSOCKOPT): option(session, frame, payload, channel)
        case UInt32(ALPS_OP_ATTACH):
            session.files.insert(channel.handle)
            session.reply(frame, ClientRequests.bytes(channel.information))
        case UInt32(ALPS_OP_FORGET):
            session.files.remove(channel.handle)
            session.reply(frame)
        case UInt32(ALPS_OP_TAKE_EVENT):
            guard let event = channel.takeEvent() else { return session.reply(frame, error: EAGAIN) }
            session.reply(frame, ClientRequests.bytes(event))
        default: channel.execute(session, frame, payload)
        }
    }

    private static func option(_ session: Session, _ frame: alps_frame, _ payload: [UInt8], _ channel: MessageChannel) {
        guard let request = ClientRequests.load(payload, alps_sockopt_request.self) else {
            return session.reply(frame, error: EINVAL)
        }
        let value = Array(payload.dropFirst(MemoryLayout<alps_sockopt_request>.size))
        if UInt32(frame.op) == UInt32(ALPS_OP_SETSOCKOPT) {
            let new = Array(value.prefix(Int(request.length)))
            return session.reply(frame, error: channel.setOption(request, new, isRoot: session.uid == 0))
        }
        let (error, answer) = channel.getOption(request, value, capacity: Int(min(request.length, 65536)))
        session.reply(frame, error: error, answer)
    }
}

import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// A program's packet socket. With a ring in shared memory the pair carries tokens that say that there is something in it
/// (client.h).
final class LinkChannel: MessageChannel {
    private let socket: LinkSocket
    /// A token is in the pair, or has been taken and we have not heard of it yet.
    private var isTokenOut = false

    init(_ session: Session, _ request: alps_socket_request, _ pair: SocketPair, _ handle: SocketHandle) throws {
        socket = try session.kernel.linkSockets.create(
            type: request.type & 0xff, protocolNumber: UInt16(bigEndian: UInt16(truncatingIfNeeded: request.protocol)),
            uid: session.uid, pid: session.pid)
        socket.inode = pair.inode
        super.init(session.kernel, pair, handle)
        socket.onFrame = { [unowned self] in hand($0, $1, $2) }
        socket.onFilled = { [unowned self] in sendToken() }
        socket.onError = { [unowned self] in tellError() }
        socket.onReceiveBuffer = { [unowned self] in setRoom($0) }
    }

    // Written out, since the compiler warns about the stub that it makes itself.
    @available(*, unavailable)
    override init(_ kernel: Kernel, _ pair: SocketPair, _ handle: SocketHandle) { fatalError("a channel needs its socket") }

    override var uid: UInt32 { socket.uid }
    override var pendingError: Int32 { socket.pendingError }
    override var information: alps_socket_info {
        var info = alps_socket_info()
        info.handle = handle.rawValue
        info.domain = UInt16(AF_PACKET)
        info.type = UInt16(socket.type)
        return info
    }
    override var localName: alps_client_sockaddr {
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

    override func closeSocket() { socket.close() }

    override func takeError() -> Int32 { socket.takeError() }

    override func setOption(_ request: alps_sockopt_request, _ value: [UInt8], isRoot: Bool) -> Int32 {
        socket.setOption(request.level, request.name, value, isRoot: isRoot)
    }

    /// PACKET_HDRLEN asks about the value that is there.
    override func getOption(
        _ request: alps_sockopt_request, _ value: [UInt8], capacity: Int
    ) -> (error: Int32, value: [UInt8]) {
        socket.getOption(request.level, request.name, value: value, capacity: capacity)
    }

    // MARK: From the application

    /// That a token was taken, or a frame.
    override func take(_ message: UnsafeRawBufferPointer, hasHeader: Bool) {
        if message.count == 1, message[0] == UInt8(ALPS_TOKEN_TAKEN) {
            isTokenOut = false
            if socket.isRingReadable { sendToken() }
        } else if hasHeader {
            _ = send(message)
        } else {
            _ = socket.send(message, to: nil)
        }
    }

    override func execute(_ session: Session, _ frame: alps_frame, _ payload: [UInt8]) {
        switch UInt32(frame.op) {
        case UInt32(ALPS_OP_SEND_DATAGRAM):
            let (error, bytes) = payload.withUnsafeBytes { send($0) }
            session.reply(frame, error: error, error == 0 ? ClientRequests.bytes(UInt32(clamping: bytes)) : [])
        case UInt32(ALPS_OP_BIND):
            guard let address = ClientRequests.load(payload, alps_client_sockaddr.self),
                address.family == UInt16(AF_PACKET)
            else { return session.reply(frame, error: EINVAL) }
            let name = linkName(address)
            let status = socket.bind(protocolNumber: name.protocolNumber, ifindex: name.ifindex)
            session.reply(frame, error: status, ClientRequests.bytes(localName))
        case UInt32(ALPS_OP_RING):
            guard let memory = socket.ringMemory else { return session.reply(frame, error: EINVAL) }
            let passing = fcntl(memory.descriptor, F_DUPFD_CLOEXEC, 0)
            guard passing >= 0 else { return session.reply(frame, error: EMFILE) }
            session.reply(frame, ClientRequests.bytes(memory.information), passing: passing)
        case UInt32(ALPS_OP_IOCTL): ioctl(session, frame, payload)
        default: super.execute(session, frame, payload)
        }
    }

    /// Requests about interfaces, which any socket takes. "lo" names lo0: libpcap asks for it, to show a packet of the
    /// loopback interface once although it leaves and arrives.
    private func ioctl(_ session: Session, _ frame: alps_frame, _ payload: [UInt8]) {
        let number = ClientRequests.load(payload, alps_ioctl_request.self)?.command ?? 0
        guard (0x8906...0x8907).contains(number) || (0x890b...0x894f).contains(number) || (0x8970...0x89ff).contains(number)
        else { return session.reply(frame, error: ENOTTY) }
        var payload = payload
        let start = MemoryLayout<alps_ioctl_request>.size
        let short = Array("lo".utf8) + [0]
        if payload.count >= start + 16, Array(payload[start..<start + 3]) == short, kernel.interfaces.find("lo") == nil {
            payload.replaceSubrange(start..<start + 4, with: Array("lo0".utf8) + [0])
        }
        ClientRequests.ioctl(session, frame, payload, nil)
    }

    /// A header and what is to be sent. Bytes sent, or an error.
    private func send(_ message: UnsafeRawBufferPointer) -> (error: Int32, bytes: Int) {
        let size = MemoryLayout<alps_datagram_header>.size
        guard message.count >= size else { return (EINVAL, 0) }
        let address = message.loadUnaligned(as: alps_datagram_header.self).address
        guard address.family == UInt16(AF_PACKET) || address.family == 0 else { return (EINVAL, 0) }
        let name = address.family == 0 ? nil : linkName(address)
        if message.count == size, socket.hasTransmitRing { return socket.sendRing(to: name) }
        let body = UnsafeRawBufferPointer(rebasing: message[size...])
        let error = socket.send(body, to: name)
        return (error, error == 0 ? body.count : 0)
    }

    // MARK: To the application

    /// A frame into the pair. False if there is no room: it is lost, as in a full receive queue.
    private func hand(_ frame: LinkFrame, _ origin: Int, _ length: Int) -> Bool {
        var header = alps_datagram_header()
        header.ifindex = frame.ifindex
        header.timestamp = frame.timestamp
        header.address = linkAddress(
            protocolNumber: frame.protocolNumber, ifindex: frame.ifindex, hardwareType: frame.hardwareType,
            kind: frame.kind, hardware: UnsafeRawBufferPointer(start: frame.bytes + 6, count: 6))
        withUnsafeMutableBytes(of: &header.destination.addr) {
            $0.storeBytes(of: frame.status | RingStatus.user, as: UInt32.self)
            $0.storeBytes(of: UInt32(frame.length - origin), toByteOffset: 4, as: UInt32.self)
        }
        return hand(&header, UnsafeRawBufferPointer(start: frame.bytes + origin, count: length)) == 0
    }

    override func push() {
        if socket.isRingReadable { sendToken() }
        tellError()
    }

    private func sendToken() {
        guard !isTokenOut, descriptor >= 0 else { return }
        var header = alps_datagram_header()
        header.flags = UInt16(ALPS_DATAGRAM_TOKEN)
        isTokenOut = hand(&header, UnsafeRawBufferPointer(start: nil, count: 0)) == 0
        // Full of frames from before the ring: readable as it is, and there will be room.
        if !isTokenOut { wantRoom(true) }
    }

    /// SO_RCVBUF: what waits for the application is charged to our end.
    private func setRoom(_ bytes: Int) {
        var half = Int32(clamping: bytes / 2)
        if setsockopt(descriptor, SOL_SOCKET, SO_SNDBUFFORCE, &half, socklen_t(4)) != 0 {
            setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &half, socklen_t(4))
        }
    }
}

/// A struct sockaddr_ll in the contract's form (client.h).
func linkAddress(
    protocolNumber: UInt16, ifindex: UInt32, hardwareType: UInt16, kind: UInt8, hardware: UnsafeRawBufferPointer
) -> alps_client_sockaddr {
    var address = alps_client_sockaddr()
    address.family = UInt16(AF_PACKET)
    address.port = protocolNumber.bigEndian
    address.scope = ifindex
    withUnsafeMutableBytes(of: &address.addr) {
        $0.storeBytes(of: hardwareType, as: UInt16.self)
        $0[2] = kind
        $0[3] = UInt8(min(hardware.count, 8))
        for (place, byte) in hardware.prefix(8).enumerated() { $0[4 + place] = byte }
    }
    return address
}

func linkName(_ address: alps_client_sockaddr) -> LinkSocket.Name {
    withUnsafeBytes(of: address.addr) {
        LinkSocket.Name(
            protocolNumber: UInt16(bigEndian: address.port), ifindex: address.scope, hardware: Array($0[4..<12]))
    }
}

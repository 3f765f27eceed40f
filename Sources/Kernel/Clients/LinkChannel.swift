import ClientAPI
import CLinux
import Glibc

/// A program's packet socket: one message of the pair a frame, with an alps_datagram_header in front; or, with a ring in
/// shared memory, tokens that say that there is something in it (client.h).
final class LinkChannel: ReadyHandler {
    let socket: LinkSocket
    let handle: SocketHandle
    /// SO_COOKIE of the application's end, by which a holder proves possession.
    let cookie: UInt64
    private let kernel: Kernel
    private var descriptor: Int32
    /// A token is in the pair, or has been taken and we have not heard of it yet.
    private var isTokenOut = false
    private var isErrorTold = false
    /// The pair was full when a token or an error was to go in.
    private var wantsRoom = false
    /// Messages one socket may send in one turn, and what one may be long.
    private static let budget = 64
    private static let longest = 65536 + 256 + MemoryLayout<alps_datagram_header>.size

    /// Takes the host's end of the pair.
    init(_ socket: LinkSocket, kernel: Kernel, pair: SocketPair, handle: SocketHandle) throws {
        self.socket = socket
        self.kernel = kernel
        self.handle = handle
        descriptor = pair.host
        cookie = pair.cookie
        super.init()
        guard let reactor = kernel.reactor else { throw KernelError(ENETDOWN, "clients need a live host") }
        try reactor.add(descriptor, events: Self.events(room: false), handler: self)
        kernel.server?.pairOpened()
        socket.onFrame = { [unowned self] in hand($0, $1, $2) }
        socket.onFilled = { [unowned self] in sendToken() }
        socket.onError = { [unowned self] in sendError() }
        socket.onReceiveBuffer = { [unowned self] in setRoom($0) }
    }

    // Written out, since the compiler warns about the stub that it makes itself.
    @available(*, unavailable)
    override init() { fatalError("a channel needs its socket") }

    private static func events(room: Bool) -> UInt32 {
        UInt32(EPOLLIN.rawValue) | UInt32(alps_EPOLLRDHUP) | (room ? UInt32(EPOLLOUT.rawValue) : 0)
    }

    func close() {
        guard descriptor >= 0 else { return }
        kernel.reactor?.remove(descriptor, handler: self)
        Glibc.close(descriptor)
        descriptor = -1
        kernel.server?.pairClosed()
        socket.close()
    }

    override func ready(_ events: UInt32) {
        let ends = UInt32(EPOLLHUP.rawValue | EPOLLERR.rawValue) | UInt32(alps_EPOLLRDHUP)
        if events & UInt32(EPOLLIN.rawValue) != 0 { drain() }
        guard events & ends == 0 else {
            kernel.server?.linkChannelEnded(self)
            return
        }
        if events & UInt32(EPOLLOUT.rawValue) != 0 {
            wantRoom(false)
            if socket.isRingReadable { sendToken() }
            sendError()
        }
    }

    // MARK: From the application

    /// What is written into the pair: that a token was taken, and frames of processes that do not ask the host.
    func drain() {
        withUnsafeTemporaryAllocation(byteCount: Self.longest, alignment: 16) { scratch in
            for _ in 0..<Self.budget {
                guard descriptor >= 0 else { return }
                let got = recv(descriptor, scratch.baseAddress!, scratch.count, Int32(MSG_DONTWAIT) | Int32(MSG_TRUNC))
                guard got > 0 else { return }
                guard got <= scratch.count else { continue }
                let message = UnsafeRawBufferPointer(rebasing: scratch[0..<got])
                if got == 1, message[0] == UInt8(ALPS_TOKEN_TAKEN) {
                    isTokenOut = false
                    if socket.isRingReadable { sendToken() }
                } else if got >= MemoryLayout<alps_datagram_header>.size, message.load(as: UInt32.self) == ALPS_DATAGRAM_MAGIC {
                    _ = send(message)
                } else {
                    _ = socket.send(message, to: nil)
                }
            }
        }
    }

    /// A header and what is to be sent. Bytes sent, or an error.
    func send(_ message: UnsafeRawBufferPointer) -> (error: Int32, bytes: Int) {
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
        guard descriptor >= 0 else { return false }
        var header = alps_datagram_header()
        header.magic = UInt32(ALPS_DATAGRAM_MAGIC)
        header.ifindex = frame.ifindex
        header.timestamp = frame.timestamp
        header.address = linkAddress(
            protocolNumber: frame.protocolNumber, ifindex: frame.ifindex, hardwareType: frame.hardwareType,
            kind: frame.kind, hardware: UnsafeRawBufferPointer(start: frame.bytes + 6, count: 6))
        withUnsafeMutableBytes(of: &header.destination.addr) {
            $0.storeBytes(of: frame.status | RingStatus.user, as: UInt32.self)
            $0.storeBytes(of: UInt32(frame.length - origin), toByteOffset: 4, as: UInt32.self)
        }
        return withUnsafeMutablePointer(to: &header) { header in
            var parts = (
                iovec(iov_base: header, iov_len: MemoryLayout<alps_datagram_header>.size),
                iovec(iov_base: UnsafeMutableRawPointer(mutating: frame.bytes + origin), iov_len: length)
            )
            return withUnsafeMutablePointer(to: &parts) { parts in
                parts.withMemoryRebound(to: iovec.self, capacity: 2) { vector in
                    var message = msghdr()
                    message.msg_iov = vector
                    message.msg_iovlen = 2
                    return sendmsg(descriptor, &message, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) >= 0
                }
            }
        }
    }

    private func sendToken() {
        guard !isTokenOut, descriptor >= 0 else { return }
        var header = alps_datagram_header()
        header.magic = UInt32(ALPS_DATAGRAM_MAGIC)
        header.flags = UInt16(ALPS_DATAGRAM_TOKEN)
        let sent = Glibc.send(
            descriptor, &header, MemoryLayout<alps_datagram_header>.size, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
        // Full of frames from before the ring: readable as it is, and there will be room.
        if sent > 0 { isTokenOut = true } else { wantRoom(true) }
    }

    /// A message of no bytes: to be asked about.
    private func sendError() {
        guard socket.pendingError != 0, !isErrorTold, descriptor >= 0 else { return }
        var nothing: UInt8 = 0
        if Glibc.send(descriptor, &nothing, 0, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) == 0 {
            isErrorTold = true
        } else {
            wantRoom(true)
        }
    }

    private func wantRoom(_ wanted: Bool) {
        guard wanted != wantsRoom, descriptor >= 0 else { return }
        wantsRoom = wanted
        kernel.reactor?.modify(descriptor, events: Self.events(room: wanted), handler: self)
    }

    /// SO_RCVBUF: what waits for the application is charged to our end.
    private func setRoom(_ bytes: Int) {
        var half = Int32(clamping: bytes / 2)
        if setsockopt(descriptor, SOL_SOCKET, SO_SNDBUFFORCE, &half, socklen_t(4)) != 0 {
            setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &half, socklen_t(4))
        }
    }

    /// What a message of no bytes stood for: the socket's error, if nobody has asked for it meanwhile.
    func takeEvent() -> alps_datagram_event? {
        isErrorTold = false
        let error = socket.takeError()
        return error == 0 ? nil : alps_datagram_event(error: error, reserved: 0, address: alps_client_sockaddr())
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

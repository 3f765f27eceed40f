import ClientAPI
import CLinux
import Glibc

/// A program's netlink socket: one message of the pair a datagram, with an alps_datagram_header in front both ways. A message
/// of no bytes stands for an event, as with other datagram sockets.
final class NetlinkChannel: ReadyHandler {
    let socket: NetlinkSocket
    let handle: SocketHandle
    /// SO_COOKIE of the application's end, by which a holder proves possession.
    let cookie: UInt64
    private let kernel: Kernel
    private var descriptor: Int32
    private var wantsRoom = false
    private var isErrorTold = false
    /// Messages one socket may send in one turn, and what one may be long.
    private static let budget = 32
    private static let longest = 65536 + MemoryLayout<alps_datagram_header>.size

    /// Takes the host's end of the pair.
    init(_ socket: NetlinkSocket, kernel: Kernel, pair: SocketPair, handle: SocketHandle) throws {
        self.socket = socket
        self.kernel = kernel
        self.handle = handle
        descriptor = pair.host
        cookie = pair.cookie
        super.init()
        guard let reactor = kernel.reactor else { throw KernelError(ENETDOWN, "clients need a live host") }
        try reactor.add(descriptor, events: Self.events(room: false), handler: self)
        kernel.server?.pairOpened()
        socket.onReadable = { [unowned self] in push() }
    }

    // Written out, since the compiler warns about the stub that it makes itself.
    @available(*, unavailable)
    override init() { fatalError("a channel needs its socket") }

    private static func events(room: Bool) -> UInt32 {
        UInt32(EPOLLIN.rawValue) | UInt32(alps_EPOLLRDHUP) | (room ? UInt32(EPOLLOUT.rawValue) : 0)
    }

    func close() {
        guard descriptor >= 0 else { return }
        socket.onReadable = nil
        kernel.reactor?.remove(descriptor, handler: self)
        Glibc.close(descriptor)
        descriptor = -1
        kernel.server?.pairClosed()
        socket.close()
    }

    override func ready(_ events: UInt32) {
        let ends = UInt32(EPOLLHUP.rawValue | EPOLLERR.rawValue) | UInt32(alps_EPOLLRDHUP)
        if events & UInt32(EPOLLIN.rawValue) != 0 { drain() }
        if events & ends != 0 {
            kernel.server?.netlinkChannelEnded(self)
            return
        }
        push()
    }

    // MARK: From the application

    /// What is written into the pair itself, by processes that do not ask the host: a program that has confined itself, or one
    /// that is not intercepted. Nobody vouches for their user, so they may look only.
    func drain() {
        withUnsafeTemporaryAllocation(byteCount: Self.longest, alignment: 16) { scratch in
            for _ in 0..<Self.budget {
                guard descriptor >= 0 else { return }
                let got = recv(descriptor, scratch.baseAddress!, scratch.count, Int32(MSG_DONTWAIT) | Int32(MSG_TRUNC))
                guard got > 0 else { return }
                guard got <= scratch.count else { continue }
                let message = UnsafeRawBufferPointer(rebasing: scratch[0..<got])
                let size = MemoryLayout<alps_datagram_header>.size
                let hasHeader = got >= size && message.load(as: UInt32.self) == ALPS_DATAGRAM_MAGIC
                _ = socket.send(Array(hasHeader ? message[size...] : message[...]), mayChange: false)
            }
        }
    }

    /// ALPS_OP_SEND_DATAGRAM: a header and the datagram.
    func send(_ message: [UInt8], mayChange: Bool) -> Int32 {
        guard let header = ClientRequests.load(message, alps_datagram_header.self) else { return EINVAL }
        let isNamed = header.address.family == UInt16(AF_NETLINK)
        guard isNamed || header.address.family == 0 else { return EINVAL }
        return socket.send(
            Array(message.dropFirst(MemoryLayout<alps_datagram_header>.size)),
            to: isNamed ? netlinkName(header.address).port : nil, mayChange: mayChange)
    }

    // MARK: To the application

    private func push() {
        guard descriptor >= 0 else { return }
        if socket.pendingError == 0 { isErrorTold = false }
        if socket.pendingError != 0, !isErrorTold {
            var nothing: UInt8 = 0
            let flags = Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)
            guard Glibc.send(descriptor, &nothing, 0, flags) == 0 else { return wantRoom(true) }
            isErrorTold = true
        }
        while let datagram = socket.first {
            guard hand(datagram) else { return wantRoom(true) }
            socket.removeFirst()
        }
        wantRoom(false)
    }

    /// Sends one datagram into the pair. False if it is full.
    private func hand(_ datagram: NetlinkSocket.Datagram) -> Bool {
        var header = alps_datagram_header()
        header.magic = UInt32(ALPS_DATAGRAM_MAGIC)
        // The stack is port 0; of a notification the groups' mask tells which (netlink(7)).
        let groups: UInt32 = (1...32).contains(datagram.group) ? 1 << (datagram.group - 1) : 0
        header.address = netlinkAddress(port: 0, groups: groups, family: UInt16(AF_NETLINK))
        header.ifindex = datagram.group
        header.timestamp = kernel.clock.wall
        return datagram.bytes.withUnsafeBytes { bytes in
            withUnsafeMutablePointer(to: &header) { header in
                var parts = (
                    iovec(iov_base: header, iov_len: MemoryLayout<alps_datagram_header>.size),
                    iovec(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
                )
                return withUnsafeMutablePointer(to: &parts) { parts in
                    parts.withMemoryRebound(to: iovec.self, capacity: 2) { vector in
                        var message = msghdr()
                        message.msg_iov = vector
                        message.msg_iovlen = 2
                        let sent = sendmsg(descriptor, &message, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
                        return sent >= 0 || errno != EAGAIN
                    }
                }
            }
        }
    }

    private func wantRoom(_ wanted: Bool) {
        guard wanted != wantsRoom, descriptor >= 0 else { return }
        wantsRoom = wanted
        kernel.reactor?.modify(descriptor, events: Self.events(room: wanted), handler: self)
    }

    /// What a message of no bytes stood for: the socket's error, if nobody has asked for it meanwhile.
    func takeEvent() -> alps_datagram_event? {
        let error = socket.takeError()
        isErrorTold = false
        return error == 0 ? nil : alps_datagram_event(error: error, reserved: 0, address: alps_client_sockaddr())
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

import ClientAPI
import CLinux
import Glibc

/// A program's netlink or packet socket: one message of the pair a datagram, with an alps_datagram_header in front (client.h).
/// A message of no bytes stands for an event, as with other datagram sockets.
class MessageChannel: ReadyHandler {
    final let kernel: Kernel
    final let handle: SocketHandle
    /// SO_COOKIE of the application's end, by which a holder proves possession.
    final let cookie: UInt64
    /// The host's end of the pair, -1 once closed.
    private(set) final var descriptor: Int32
    private final var wantsRoom = false
    private final var isErrorTold = false
    /// Messages one socket may send in one turn, and what one may be long.
    private static let budget = 64
    private static let longest = 65536 + 256 + MemoryLayout<alps_datagram_header>.size

    /// Takes the host's end of the pair.
    init(_ kernel: Kernel, _ pair: SocketPair, _ handle: SocketHandle) {
        self.kernel = kernel
        self.handle = handle
        descriptor = pair.host
        cookie = pair.cookie
        super.init()
    }

    // Written out, since the compiler warns about the stub that it makes itself.
    @available(*, unavailable)
    override init() { fatalError("a channel needs its socket") }

    final func open() throws {
        kernel.server?.pairOpened()
        guard let reactor = kernel.reactor else { throw KernelError(ENETDOWN, "clients need a live host") }
        try reactor.add(descriptor, events: Self.events(room: false), handler: self)
    }

    final func close() {
        guard descriptor >= 0 else { return }
        kernel.reactor?.remove(descriptor, handler: self)
        Glibc.close(descriptor)
        descriptor = -1
        kernel.server?.pairClosed()
        closeSocket()
    }

    private static func events(room: Bool) -> UInt32 {
        UInt32(EPOLLIN.rawValue) | UInt32(alps_EPOLLRDHUP) | (room ? UInt32(EPOLLOUT.rawValue) : 0)
    }

    final override func ready(_ events: UInt32) {
        let ends = UInt32(EPOLLHUP.rawValue | EPOLLERR.rawValue) | UInt32(alps_EPOLLRDHUP)
        if events & UInt32(EPOLLIN.rawValue) != 0 { drain() }
        if events & ends != 0 {
            kernel.server?.messageChannelEnded(self)
        } else if events & UInt32(EPOLLOUT.rawValue) != 0 {
            wantRoom(false)
            push()
        }
    }

    // MARK: What the kinds of sockets differ in

    /// Who made the socket.
    var uid: UInt32 { 0 }
    var information: alps_socket_info { alps_socket_info() }
    var localName: alps_client_sockaddr { alps_client_sockaddr() }
    /// SO_ERROR without clearing it.
    var pendingError: Int32 { 0 }

    func closeSocket() {}

    func takeError() -> Int32 { 0 }

    /// What a process has written into the pair itself, one that does not ask the host.
    func take(_ message: UnsafeRawBufferPointer, hasHeader: Bool) {}

    /// There may be room for what waits.
    func push() {}

    /// `value` is what came along: the new value, or what the program's buffer holds.
    func setOption(_ request: alps_sockopt_request, _ value: [UInt8], isRoot: Bool) -> Int32 { ENOPROTOOPT }

    func getOption(_ request: alps_sockopt_request, _ value: [UInt8], capacity: Int) -> (error: Int32, value: [UInt8]) {
        (ENOPROTOOPT, [])
    }

    /// A request that not all sockets of messages have.
    func execute(_ session: Session, _ frame: alps_frame, _ payload: [UInt8]) {
        session.reply(frame, error: EOPNOTSUPP)
    }

    // MARK: The pair

    final func drain() {
        withUnsafeTemporaryAllocation(byteCount: Self.longest, alignment: 16) { scratch in
            for _ in 0..<Self.budget {
                guard descriptor >= 0 else { return }
                let got = recv(descriptor, scratch.baseAddress!, scratch.count, Int32(MSG_DONTWAIT) | Int32(MSG_TRUNC))
                guard got > 0 else { return }
                guard got <= scratch.count else { continue }
                let message = UnsafeRawBufferPointer(rebasing: scratch[0..<got])
                let isLong = got >= MemoryLayout<alps_datagram_header>.size
                take(message, hasHeader: isLong && message.load(as: UInt32.self) == ALPS_DATAGRAM_MAGIC)
            }
        }
    }

    /// Sends one datagram into the pair: 0, or the error.
    final func hand(_ header: inout alps_datagram_header, _ bytes: UnsafeRawBufferPointer) -> Int32 {
        guard descriptor >= 0 else { return EPIPE }
        header.magic = UInt32(ALPS_DATAGRAM_MAGIC)
        return withUnsafeMutablePointer(to: &header) { header in
            var parts = (
                iovec(iov_base: header, iov_len: MemoryLayout<alps_datagram_header>.size),
                iovec(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
            )
            return withUnsafeMutablePointer(to: &parts) { parts in
                parts.withMemoryRebound(to: iovec.self, capacity: 2) { vector in
                    var message = msghdr()
                    message.msg_iov = vector
                    message.msg_iovlen = 2
                    return sendmsg(descriptor, &message, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) < 0 ? errno : 0
                }
            }
        }
    }

    /// Tells of the socket's error, with a message of no bytes: to be asked about. False if the pair is full.
    @discardableResult
    final func tellError() -> Bool {
        if pendingError == 0 { isErrorTold = false }
        guard pendingError != 0, !isErrorTold, descriptor >= 0 else { return true }
        var nothing: UInt8 = 0
        isErrorTold = send(descriptor, &nothing, 0, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) == 0
        if !isErrorTold { wantRoom(true) }
        return isErrorTold
    }

    /// What a message of no bytes stood for: the socket's error, if nobody has asked for it meanwhile.
    final func takeEvent() -> alps_datagram_event? {
        let error = takeError()
        isErrorTold = false
        return error == 0 ? nil : alps_datagram_event(error: error, reserved: 0, address: alps_client_sockaddr())
    }

    final func wantRoom(_ wanted: Bool) {
        guard wanted != wantsRoom, descriptor >= 0 else { return }
        wantsRoom = wanted
        kernel.reactor?.modify(descriptor, events: Self.events(room: wanted), handler: self)
    }
}

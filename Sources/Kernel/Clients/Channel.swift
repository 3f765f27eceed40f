import CLinux
import Glibc
import PluginAPI

/// What stands between a socket and the application's descriptor. In-band channels carry payload in the pair itself; a
/// channel with shared rings can take their place without the socket or the session knowing.
class Channel: SocketChannel {
    final let kernel: Kernel
    /// For what runs once a packet: the socket owns its channel, which closes its pair before the socket goes.
    final let borrowed: Borrowed<Socket>
    /// SO_COOKIE of the application's end, by which a holder proves possession.
    final let cookie: UInt64
    private var retry: HostTimer?
    /// The host's end of the pair, -1 once closed. While it is open the reactor holds the channel.
    final private(set) var descriptor: Int32 = -1
    private var wantsRoom = false

    init(_ socket: Socket, descriptor: Int32, cookie: UInt64) throws {
        borrowed = Borrowed(socket)
        self.cookie = cookie
        kernel = socket.kernel
        super.init()
        guard let reactor = kernel.reactor else { throw KernelError(ENETDOWN, "clients need a live host") }
        try reactor.add(descriptor, events: Self.events(room: false), handler: self)
        // Until here it is the caller's to close.
        self.descriptor = descriptor
        kernel.server?.pairOpened()
    }

    // Written out, since the compiler warns about the stub that it makes itself.
    @available(*, unavailable)
    override init() { fatalError("a channel needs its socket") }

    deinit { closePair() }

    final var socket: Socket { borrowed { $0 } }

    /// The host is about to close its end.
    func pairCloses() {}

    /// Everything the application has written so far is taken over, as far as there is room.
    func drain() {}

    private static func events(room: Bool) -> UInt32 {
        UInt32(EPOLLIN.rawValue) | UInt32(alps_EPOLLRDHUP) | UInt32(EPOLLET.rawValue)
            | (room ? UInt32(EPOLLOUT.rawValue) : 0)
    }

    /// Asks to hear when the application has read something, or no longer. Watched for all the time, every read of the
    /// application would wake the host. Turned on, an event comes at once if there is room already: none is lost.
    final func wantRoom(_ wanted: Bool) {
        guard wanted != wantsRoom, descriptor >= 0 else { return }
        wantsRoom = wanted
        kernel.reactor?.modify(descriptor, events: Self.events(room: wanted), handler: self)
    }

    /// The system lacks something (memory, descriptors in flight) whose return no event tells: looks again soon.
    final func retryLater() {
        if retry == nil {
            retry = HostTimer(kernel) { [unowned self] in if isOpen { socket.markDirty() } }
        }
        retry?.arm(after: 10_000_000)
    }

    /// Closes the pair of a connection that has failed. The socket stays, with its error, as long as some session may ask.
    final func closeFailed() {
        closePair()
        if let server = kernel.server { server.failed(socket) } else { socket.close() }
    }

    /// Whether the application's end can still be reached.
    var isOpen: Bool { descriptor >= 0 }

    /// The last holder of the application's end has let go of it.
    var isAbandoned: Bool {
        var entry = pollfd(fd: descriptor, events: 0, revents: 0)
        return isOpen && Glibc.poll(&entry, 1, 0) > 0 && Int32(entry.revents) & Int32(POLLHUP) != 0
    }

    /// What a client has passed along with bytes that are never read would stay there for ever; if it is the client's own
    /// end of the pair, nothing would ever tell that the client is gone. True if there is such a thing in what waits.
    final var hasPassedDescriptors: Bool {
        let waiting = Int(alps_bytes_waiting(descriptor))
        guard waiting > 0 else { return false }
        return withUnsafeTemporaryAllocation(byteCount: waiting, alignment: 16) { scratch in
            var passes: Int32 = 0
            return alps_peek(descriptor, scratch.baseAddress!, scratch.count, &passes) > 0 && passes != 0
        }
    }

    /// Closes the host's end. With a byte left unread in it the application gets ECONNRESET.
    final func closePair() {
        guard descriptor >= 0 else { return }
        pairCloses()
        kernel.reactor?.remove(descriptor, handler: self, closes: true)
        retry = nil
        close(descriptor)
        descriptor = -1
        kernel.server?.pairClosed()
    }

    /// Gives the host's end to another channel of the same socket.
    final func release() -> Int32 {
        let kept = descriptor
        guard kept >= 0 else { return -1 }
        kernel.reactor?.remove(kept, handler: self)
        retry = nil
        descriptor = -1
        kernel.server?.pairClosed()
        return kept
    }

    override func detached(_ socket: Socket) { closePair() }
}

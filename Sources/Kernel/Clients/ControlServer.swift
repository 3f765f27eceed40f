import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// The stack's UNIX socket: clients and tools connect here. One name, one path.
package final class ControlServer {
    package let path: String
    private let kernel: Kernel
    private var listener: Int32 = -1
    private let acceptor = Acceptor()
    private var sessions: [UInt32: Session] = [:]
    /// How many of them each user has.
    private var sessionsOfUser: [UInt32: Int] = [:] {
        didSet { kernel.sockets.hasOneUser = sessionsOfUser.count <= 1 }
    }
    private var doorways: [ObjectIdentifier: Doorway] = [:]
    private var lastSession: UInt32 = 0
    /// How long a new session may take to say who it is, ns.
    package var helloTime: UInt64 = 10_000_000_000
    private var variantEpoch: UInt64 = 1
    /// Names this host process: a restarted host has another.
    let instance: UInt64
    package private(set) var peakSessions = 0
    /// Pairs with applications that are open.
    package private(set) var pairs = 0
    package private(set) var peakPairs = 0
    /// For the channels of datagram sockets.
    private(set) lazy var datagramBatch = DatagramBatch()
    /// Sockets whose pairs carry connections.
    var listeners: Set<SocketHandle> = []
    /// Netlink and packet sockets of clients.
    var messageChannels: [SocketHandle: MessageChannel] = [:]
    private var lastMessageIndex: UInt32 = 0
    /// The file that this host has made.
    private var socketFile: (device: dev_t, inode: ino_t)?
    /// Given up for a moment to turn a client away when descriptors have run out; a listener that is not accepted from
    /// would keep the loop busy.
    private var reserve: Int32 = Glibc.open("/dev/null", O_RDONLY | O_CLOEXEC)

    /// Where sessions receive.
    let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 17, alignment: 16)

    deinit { scratch.deallocate() }

    private final class Acceptor: ReadyHandler {
        unowned(unsafe) var server: ControlServer?
        override func ready(_ events: UInt32) { server?.accept() }
    }

    package static var defaultDirectory: String {
        if getuid() == 0 { return "/run/alps" }
        return "\(getenv("XDG_RUNTIME_DIR").map { String(cString: $0) } ?? "/tmp")/alps"
    }

    package static func path(name: String) -> String { "\(defaultDirectory)/\(name).sock" }

    /// Claims the path. A stale socket file is replaced; a live one is refused. Clients that come before `start` wait.
    package init(kernel: Kernel, path: String?) throws {
        self.kernel = kernel
        guard Self.isName(kernel.name) else {
            throw KernelError(
                EINVAL, "'\(kernel.name)' cannot be a stack's name: 1 to 31 letters, digits and punctuation without '/'")
        }
        self.path = path ?? Self.path(name: kernel.name)
        instance = kernel.random.next()
        acceptor.server = self
        if path == nil { mkdir(Self.defaultDirectory, 0o755) }
        listener = try claim()
        // A socket that an earlier host of this name made is not taken for one of ours.
        kernel.sockets.startGenerations(at: UInt32(truncatingIfNeeded: instance))
    }

    /// What can be a file's name, stand in a socket's name, and be read in a message.
    private static func isName(_ name: String) -> Bool {
        (1...31).contains(name.utf8.count) && name != "." && name != ".."
            && name.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7f && $0 != UInt8(ascii: "/") }
    }

    /// A socket that listens on the path, for owner and group.
    private func claim() throws -> Int32 {
        var address = try Self.address(self.path)
        let descriptor = try Self.makeSocket(Int32(SOCK_NONBLOCK.rawValue))
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        func attempt(_ call: (UnsafePointer<sockaddr>) -> Int32) -> Int32 {
            withUnsafePointer(to: &address) { $0.withMemoryRebound(to: sockaddr.self, capacity: 1, call) }
        }
        do {
            if attempt({ bind(descriptor, $0, size) }) != 0 {
                guard errno == EADDRINUSE else { throw refusal(errno) }
                var file = stat()
                guard lstat(path, &file) != 0 || file.st_mode & S_IFMT == S_IFSOCK else {
                    throw KernelError(EADDRINUSE, "cannot make control socket \(path): a file that is no socket is there")
                }
                let probe = try Self.makeSocket()
                let isAlive = attempt({ connect(probe, $0, size) }) == 0
                close(probe)
                guard !isAlive else {
                    throw KernelError(
                        EADDRINUSE,
                        "a stack named '\(kernel.name)' is running on \(path): stop it (`alps down`), or give this one another --name")
                }
                unlink(path)
                guard attempt({ bind(descriptor, $0, size) }) == 0 else { throw refusal(errno) }
            }
            var file = stat()
            if lstat(path, &file) == 0 { socketFile = (file.st_dev, file.st_ino) }
            // Nobody can connect before it listens, so the mode is never wider than this.
            chmod(path, 0o660)
            guard listen(descriptor, 512) == 0 else { throw refusal(errno) }
        } catch {
            close(descriptor)
            removeSocketFile()
            throw error
        }
        return descriptor
    }

    private static func makeSocket(_ flags: Int32 = 0) throws -> Int32 {
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | flags, 0)
        guard descriptor >= 0 else { throw KernelError(errno, "socket: \(String(cString: strerror(errno)))") }
        return descriptor
    }

    private func refusal(_ error: Int32) -> KernelError {
        KernelError(error, "cannot make control socket \(path): \(String(cString: strerror(error)))")
    }

    /// Somebody may have put another file in its place: that one is theirs.
    private func removeSocketFile() {
        var file = stat()
        if let socketFile, lstat(path, &file) == 0, file.st_dev == socketFile.device, file.st_ino == socketFile.inode {
            unlink(path)
        }
        socketFile = nil
    }

    static func address(_ path: String) throws -> sockaddr_un {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        guard path.utf8.count < MemoryLayout.size(ofValue: address.sun_path) else {
            throw KernelError(ENAMETOOLONG, "control socket path \(path) is too long: at most 107 bytes")
        }
        withUnsafeMutableBytes(of: &address.sun_path) { bytes in
            for (index, byte) in path.utf8.enumerated() { bytes[index] = byte }
        }
        return address
    }

    /// Lets clients in.
    package func start() throws {
        try kernel.reactor?.add(listener, events: UInt32(EPOLLIN.rawValue), handler: acceptor)
    }

    /// Ends all sessions and removes the socket file.
    package func stop() {
        for session in Array(sessions.values) { session.end() }
        for doorway in Array(doorways.values) { doorway.end() }
        for channel in Array(messageChannels.values) { messageChannelEnded(channel) }
        if listener >= 0 {
            kernel.reactor?.remove(listener, handler: acceptor)
            close(listener)
            listener = -1
        }
        if reserve >= 0 { close(reserve) }
        reserve = -1
        removeSocketFile()
    }

    // MARK: Sessions

    package var sessionCount: Int { sessions.count }
    package var allSessions: [Session] { sessions.values.sorted { $0.number < $1.number } }
    package var doorwayCount: Int { doorways.count }

    private func accept() {
        for _ in 0..<64 {
            let descriptor = accept4(
                listener, nil, nil, Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue))
            guard descriptor >= 0 else {
                if errno == EMFILE || errno == ENFILE { turnAway() }
                return
            }
            open(descriptor)
        }
    }

    /// No descriptor is left: whoever waits finds a closed connection.
    private func turnAway() {
        kernel.log.write(UInt32(ALPS_LOG_ERROR), nil) { "no descriptor is left for a client: raise the limit (ulimit -n)" }
        guard reserve >= 0 else { return }
        close(reserve)
        let descriptor = accept4(listener, nil, nil, Int32(SOCK_CLOEXEC.rawValue))
        if descriptor >= 0 { close(descriptor) }
        reserve = Glibc.open("/dev/null", O_RDONLY | O_CLOEXEC)
    }

    /// A new session over a connected stream socket.
    func open(_ descriptor: Int32) {
        guard alps_is_unix_socket(descriptor, Int32(SOCK_STREAM.rawValue)) != 0 else {
            close(descriptor)
            return
        }
        _ = alps_ioctl_nonblocking(descriptor)
        lastSession &+= 1
        do {
            let session = try Session(server: self, kernel: kernel, number: lastSession, descriptor: descriptor)
            sessions[lastSession] = session
            sessionsOfUser[session.uid, default: 0] += 1
            peakSessions = max(peakSessions, sessions.count)
        } catch {
            close(descriptor)
            kernel.log.write(UInt32(ALPS_LOG_WARNING), nil) { "a client was turned away: \(error)" }
        }
    }

    func closed(_ session: Session) {
        if sessions.removeValue(forKey: session.number) != nil {
            let left = (sessionsOfUser[session.uid] ?? 1) - 1
            sessionsOfUser[session.uid] = left == 0 ? nil : left
        }
        releaseFailed()
    }

    func openDoorway(_ descriptor: Int32) {
        let isDoorway = alps_is_unix_socket(descriptor, Int32(SOCK_SEQPACKET.rawValue)) != 0
        if isDoorway { _ = alps_ioctl_nonblocking(descriptor) }
        guard isDoorway, let doorway = try? Doorway(server: self, kernel: kernel, descriptor: descriptor) else {
            close(descriptor)
            return
        }
        doorways[ObjectIdentifier(doorway)] = doorway
    }

    func closed(_ doorway: Doorway) { doorways[ObjectIdentifier(doorway)] = nil }

    // MARK: Sockets that have ended

    /// Sockets whose pair the host has closed after an error, oldest first: kept so that programs can ask for the error.
    private var failedSockets: [SocketHandle] = []
    private static let maximumFailed = 1024

    /// The pair of `socket` has been closed. No end of file will tell when its last holder is gone, so it is kept until it
    /// is forgotten or no session is left that may ask about it.
    func failed(_ socket: Socket) {
        guard isKnown(socket) else { return socket.close() }
        if failedSockets.count >= Self.maximumFailed {
            failedSockets.removeAll { kernel.sockets.find($0) == nil }
            if failedSockets.count >= Self.maximumFailed {
                kernel.sockets.find(failedSockets.removeFirst())?.close()
            }
        }
        failedSockets.append(socket.handle)
    }

    private func isKnown(_ socket: Socket) -> Bool {
        sessions[socket.owner.session] != nil
            || sessions.values.contains { session in
                session.files.contains(socket.handle) || socket.madeBy.map(session.files.contains) == true
            }
    }

    private func releaseFailed() {
        guard !failedSockets.isEmpty else { return }
        failedSockets.removeAll { handle in
            guard let socket = kernel.sockets.find(handle) else { return true }
            if isKnown(socket) { return false }
            socket.close()
            return true
        }
    }

    /// The last ones, from `oldestTombstone` on when there are as many as may be.
    private var tombstones: [(handle: SocketHandle, name: alps_client_sockaddr)] = []
    private var oldestTombstone = 0
    private static let maximumTombstones = 4096

    /// Both directions have ended and the socket is given up; a process may still hold its end and ask about it.
    func remember(_ socket: Socket) {
        let tombstone = (handle: socket.handle, name: clientAddress(socket.localAddress))
        guard tombstones.count == Self.maximumTombstones else { return tombstones.append(tombstone) }
        tombstones[oldestTombstone] = tombstone
        oldestTombstone = (oldestTombstone + 1) % Self.maximumTombstones
    }

    /// The local name that a socket had whose both directions have ended.
    func lastName(_ handle: SocketHandle) -> alps_client_sockaddr? { tombstones.first { $0.handle == handle }?.name }

    /// Of a netlink or packet socket.
    func newMessageHandle() -> SocketHandle {
        while true {
            lastMessageIndex &+= 1
            let handle = SocketHandle(messageIndex: lastMessageIndex, generation: UInt32(truncatingIfNeeded: instance))
            if messageChannels[handle] == nil { return handle }
        }
    }

    /// The last holder of its descriptor has let go of it.
    func messageChannelEnded(_ channel: MessageChannel) {
        channel.close()
        messageChannels[channel.handle] = nil
    }

    func pairOpened() {
        pairs += 1
        peakPairs = max(peakPairs, pairs)
    }

    func pairClosed() { pairs -= 1 }

    var epoch: UInt64 { variantEpoch }
}

/// A way in for the processes of one tree: each message on it brings the stream socket of a new session.
final class Doorway: ReadyHandler {
    private unowned let server: ControlServer
    private let kernel: Kernel
    private let descriptor: Int32

    init(server: ControlServer, kernel: Kernel, descriptor: Int32) throws {
        self.server = server
        self.kernel = kernel
        self.descriptor = descriptor
        super.init()
        try kernel.reactor?.add(descriptor, events: UInt32(EPOLLIN.rawValue), handler: self)
    }

    // Written out, since the compiler warns about the stub that it makes itself.
    @available(*, unavailable)
    override init() { fatalError("a doorway needs its descriptor") }

    override func ready(_ events: UInt32) {
        for _ in 0..<16 {
            var byte: UInt8 = 0
            var passed: Int32 = -1
            let got = alps_receive_with_fd(descriptor, &byte, 1, &passed)
            if got < 0, errno == EAGAIN { return }
            guard got > 0 else {
                if passed >= 0 { close(passed) }
                end()
                return
            }
            if passed >= 0 { server.open(passed) }
        }
    }

    func end() {
        kernel.reactor?.remove(descriptor, handler: self)
        close(descriptor)
        server.closed(self)
    }
}

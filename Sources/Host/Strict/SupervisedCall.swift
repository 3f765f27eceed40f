import CLinux
import Glibc

/// One system call that waits.
struct SupervisedCall: @unchecked Sendable {
    let supervisor: Supervisor
    let request: seccomp_notif
    let process: SupervisedProcess

    enum Outcome {
        case value(Int64)
        case error(Int32)
        /// The kernel makes the call after all: it is about something else.
        case goesOn
        /// The caller has its answer.
        case answered
        /// It has to wait until the descriptor is ready for this.
        case waits(Int16)
    }

    init(_ supervisor: Supervisor, _ request: seccomp_notif) {
        self.supervisor = supervisor
        self.request = request
        process = SupervisedProcess(thread: Int32(bitPattern: request.pid))
    }

    func argument(_ index: Int) -> UInt64 {
        let all = request.data.args
        switch index {
        case 0: return all.0
        case 1: return all.1
        case 2: return all.2
        case 3: return all.3
        case 4: return all.4
        default: return all.5
        }
    }

    func int(_ index: Int) -> Int32 { Int32(truncatingIfNeeded: argument(index)) }

    /// Makes the call, in a thread of its own if it has to wait.
    func begin() {
        let number = request.data.nr
        if number == Int32(alps_SYS_socket) { return finish(openSocket()) }
        guard let copy = process.copy(of: int(0)) else { return finish(.goesOn) }
        let inode = alps_inode(copy)
        guard supervisor.isHanded(inode) else {
            close(copy)
            return finish(.goesOn)
        }
        if Self.isConnect(number), !isNonBlocking(copy) {
            return detach { complete(connect(copy), copy, inode) }
        }
        let outcome = make(copy)
        guard case .waits(let events) = outcome else { return complete(outcome, copy, inode) }
        guard !isNonBlocking(copy), !doesNotWait else { return complete(.error(EAGAIN), copy, inode) }
        detach { complete(wait(copy, events), copy, inode) }
    }

    private static func isConnect(_ number: Int32) -> Bool { number == Int32(alps_SYS_connect) }

    func isNonBlocking(_ copy: Int32) -> Bool { fcntl(copy, F_GETFL) & O_NONBLOCK != 0 }

    /// MSG_DONTWAIT among the flags.
    private var doesNotWait: Bool {
        switch UInt32(request.data.nr) {
        case UInt32(alps_SYS_recvfrom), UInt32(alps_SYS_sendto), UInt32(alps_SYS_recvmmsg),
            UInt32(alps_SYS_sendmmsg):
            return argument(3) & UInt64(MSG_DONTWAIT) != 0
        case UInt32(alps_SYS_recvmsg), UInt32(alps_SYS_sendmsg):
            return argument(2) & UInt64(MSG_DONTWAIT) != 0
        default: return false
        }
    }

    private func complete(_ outcome: Outcome, _ copy: Int32, _ inode: UInt64) {
        let now = alps_inode(copy)
        if now != inode, now != 0 { supervisor.replace(int(0), by: copy, in: request) }
        close(copy)
        finish(outcome)
    }

    private func finish(_ outcome: Outcome) {
        switch outcome {
        case .value(let value): supervisor.answer(request, value: value)
        case .error(let error): supervisor.answer(request, error: error)
        case .goesOn: supervisor.answer(request, goesOn: true)
        case .answered: break
        case .waits: supervisor.answer(request, error: EAGAIN)
        }
    }

    private func detach(_ body: @escaping () -> Void) {
        let box = Unmanaged.passRetained(Body(body))
        var thread = pthread_t()
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        pthread_attr_setstacksize(&attributes, 256 << 10)
        defer { pthread_attr_destroy(&attributes) }
        let failed = pthread_create(&thread, &attributes, { argument in
            Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue().body()
            return nil
        }, box.toOpaque())
        if failed != 0 {
            box.release()
            finish(.error(ENOMEM))
        }
    }

    private final class Body {
        let body: () -> Void
        init(_ body: @escaping () -> Void) { self.body = body }
    }

    /// Tries again whenever the descriptor is ready, as long as the caller is there, and no longer than its time-out.
    private func wait(_ copy: Int32, _ events: Int16) -> Outcome {
        var limit = timeval()
        var length = socklen_t(MemoryLayout<timeval>.size)
        let name = events & Int16(POLLOUT) != 0 ? SO_SNDTIMEO : SO_RCVTIMEO
        if getsockopt(copy, SOL_SOCKET, name, &limit, &length) != 0 { limit = timeval() }
        var left = limit.tv_sec == 0 && limit.tv_usec == 0 ? Int.max : limit.tv_sec * 1000 + Int(limit.tv_usec) / 1000
        while alps_seccomp_is_valid(supervisor.listener, request.id) != 0 {
            guard left > 0 else { return .error(EAGAIN) }
            let turn = min(left, 100)
            var poll = pollfd(fd: copy, events: events, revents: 0)
            let ready = Glibc.poll(&poll, 1, Int32(turn))
            if ready == 0, left != .max { left -= turn }
            guard ready > 0 else { continue }
            let outcome = make(copy)
            guard case .waits = outcome else { return outcome }
        }
        return .error(EINTR)
    }

    // MARK: Which call

    private func make(_ copy: Int32) -> Outcome {
        switch UInt32(request.data.nr) {
        case UInt32(alps_SYS_connect): return connect(copy)
        case UInt32(alps_SYS_bind): return bind(copy)
        case UInt32(alps_SYS_listen): return result(Int(Glibc.listen(copy, int(1))))
        case UInt32(alps_SYS_shutdown): return result(Int(Glibc.shutdown(copy, int(1))))
        case UInt32(alps_SYS_accept): return accept(copy, flags: 0)
        case UInt32(alps_SYS_accept4): return accept(copy, flags: int(3))
        case UInt32(alps_SYS_getsockname): return name(copy, Glibc.getsockname)
        case UInt32(alps_SYS_getpeername): return name(copy, Glibc.getpeername)
        case UInt32(alps_SYS_setsockopt): return setOption(copy)
        case UInt32(alps_SYS_getsockopt): return getOption(copy)
        case UInt32(alps_SYS_ioctl): return control(copy)
        default: return transfer(copy)
        }
    }

    /// What a call of libc's has returned.
    func result(_ value: Int) -> Outcome { value < 0 ? .error(errno) : .value(Int64(value)) }

    // MARK: Calls on sockets

    private func openSocket() -> Outcome {
        let type = int(1)
        let socket = Glibc.socket(int(0), type, int(2))
        guard socket >= 0 else { return .error(errno) }
        let kind = type & 0xf
        let error = supervisor.hand(
            socket, isStream: kind == Int32(SOCK_STREAM.rawValue),
            closesOnExec: type & Int32(SOCK_CLOEXEC.rawValue) != 0, to: request)
        return error.map { .error($0) } ?? .answered
    }

    /// An address argument, as much as any address has.
    private func address() -> [UInt8]? {
        let length = int(2)
        guard length >= 0, length <= 128 else { return nil }
        return process.read(argument(1), Int(length))
    }

    private func connect(_ copy: Int32) -> Outcome { withAddress { result(Int(Glibc.connect(copy, $0, $1))) } }
    private func bind(_ copy: Int32) -> Outcome { withAddress { result(Int(Glibc.bind(copy, $0, $1))) } }

    private func withAddress(_ body: (UnsafePointer<sockaddr>, socklen_t) -> Outcome) -> Outcome {
        guard int(2) >= 0, int(2) <= 128 else { return .error(EINVAL) }
        guard let bytes = address() else { return .error(EFAULT) }
        return bytes.withUnsafeBytes { raw in
            // An empty one has no base.
            guard let base = raw.baseAddress else { return .error(EINVAL) }
            return body(base.assumingMemoryBound(to: sockaddr.self), socklen_t(raw.count))
        }
    }

    private func name(
        _ copy: Int32, _ ask: (Int32, UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> Int32
    ) -> Outcome {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let status = withUnsafeMutablePointer(to: &storage) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { ask(copy, $0, &length) }
        }
        guard status == 0 else { return .error(errno) }
        return tell(storage, length, at: argument(1), lengthAt: argument(2)) ? .value(0) : .error(EFAULT)
    }

    /// Writes an address as the system does: no more than there is room for, and its true length.
    func tell(_ storage: sockaddr_storage, _ length: socklen_t, at place: UInt64, lengthAt: UInt64) -> Bool {
        guard let room = process.read(lengthAt, as: socklen_t.self) else { return false }
        let count = min(Int(room), Int(length), MemoryLayout<sockaddr_storage>.size)
        return withUnsafeBytes(of: storage) { process.write(place, UnsafeRawBufferPointer(rebasing: $0[..<count])) }
            && process.write(lengthAt, length)
    }

    private func accept(_ copy: Int32, flags: Int32) -> Outcome {
        var poll = pollfd(fd: copy, events: Int16(POLLIN), revents: 0)
        if Glibc.poll(&poll, 1, 0) == 0 { return .waits(Int16(POLLIN)) }
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let socket = withUnsafeMutablePointer(to: &storage) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { accept4(copy, $0, &length, flags) }
        }
        guard socket >= 0 else { return errno == EAGAIN ? .waits(Int16(POLLIN)) : .error(errno) }
        if argument(1) != 0, !tell(storage, length, at: argument(1), lengthAt: argument(2)) {
            close(socket)
            return .error(EFAULT)
        }
        let error = supervisor.hand(
            socket, isStream: true, closesOnExec: flags & Int32(SOCK_CLOEXEC.rawValue) != 0, to: request)
        return error.map { .error($0) } ?? .answered
    }

    private func setOption(_ copy: Int32) -> Outcome {
        guard (0...65536).contains(int(4)) else { return .error(EINVAL) }
        if int(1) == SOL_SOCKET, int(2) == SO_ATTACH_FILTER { return attachFilter(copy) }
        guard !isRingOption else { return .error(ENOPROTOOPT) }
        guard let value = process.read(argument(3), Int(int(4))) else { return .error(EFAULT) }
        return result(Int(Glibc.setsockopt(copy, int(1), int(2), value, socklen_t(value.count))))
    }

    /// struct sock_fprog: the instructions are somewhere else.
    private func attachFilter(_ copy: Int32) -> Outcome {
        guard int(4) >= 16 else { return .error(EINVAL) }
        guard let count = process.read(argument(3), as: UInt16.self),
            let place = process.read(argument(3) + 8, as: UInt64.self),
            var code = process.read(place, Int(count) * MemoryLayout<sock_filter>.size)
        else { return .error(EFAULT) }
        return code.withUnsafeMutableBytes { code in
            var program = sock_fprog()
            program.len = count
            program.filter = code.baseAddress?.assumingMemoryBound(to: sock_filter.self)
            return result(
                Int(Glibc.setsockopt(copy, SOL_SOCKET, SO_ATTACH_FILTER, &program, socklen_t(MemoryLayout<sock_fprog>.size))))
        }
    }

    /// Rings of packet sockets are mapped, which no supervisor can do for a program: it is told that there are none.
    private var isRingOption: Bool {
        int(1) == SOL_PACKET
            && [PACKET_HDRLEN, PACKET_VERSION, PACKET_RX_RING, PACKET_TX_RING, PACKET_FANOUT_DATA].contains(int(2))
    }

    private func getOption(_ copy: Int32) -> Outcome {
        guard !isRingOption else { return .error(ENOPROTOOPT) }
        guard let room = process.read(argument(4), as: socklen_t.self) else { return .error(EFAULT) }
        guard room <= 65536 else { return .error(EINVAL) }
        var value = [UInt8](repeating: 0, count: Int(room))
        var length = room
        guard Glibc.getsockopt(copy, int(1), int(2), &value, &length) == 0 else { return .error(errno) }
        let isWritten = value.withUnsafeBytes {
            process.write(argument(3), UnsafeRawBufferPointer(rebasing: $0[..<min(Int(length), $0.count)]))
        }
        return isWritten && process.write(argument(4), length) ? .value(0) : .error(EFAULT)
    }
}

import CLinux

/// Descriptor numbers of the sockets that a supervisor hands out. Their numbers are how the filter knows them: calls on
/// others never wait for anybody.
struct StrictNumbers {
    /// Streams: only calls that name or change the socket are the supervisor's.
    var streams: [Range<UInt32>]
    /// Datagram and raw sockets: data go through it too.
    var datagrams: [Range<UInt32>]

    /// For a process that may have so many descriptors: below 1024 first, for the sake of select(2).
    init(limit: UInt64) {
        let limit = UInt32(clamping: limit)
        if limit < 1024 {
            let half = limit / 2
            streams = [half..<(half + limit / 4)]
            datagrams = [(half + limit / 4)..<max(limit, half + limit / 4)]
            return
        }
        streams = [512..<704]
        datagrams = [704..<896]
        if limit >= 12_288 {
            streams.append(2048..<10_240)
            datagrams.append(10_240..<12_288)
        }
    }
}

/// The seccomp filter of `alps run --strict`: which system calls wait for the supervisor.
struct SocketFilter {
    /// What the shim puts into the sixth argument of socket(2) when it wants one of the kernel's.
    var token: UInt64
    var numbers: StrictNumbers

    // Offsets in struct seccomp_data.
    private static let number: UInt32 = 0
    private static let architecture: UInt32 = 4
    private static func argument(_ index: UInt32, high: Bool = false) -> UInt32 { 16 + 8 * index + (high ? 4 : 0) }

    private static let controlCalls = [
        alps_SYS_connect, alps_SYS_bind, alps_SYS_listen, alps_SYS_accept, alps_SYS_accept4, alps_SYS_getsockname,
        alps_SYS_getpeername, alps_SYS_setsockopt, alps_SYS_getsockopt, alps_SYS_shutdown, alps_SYS_ioctl,
    ].map { UInt32($0) }
    private static let dataCalls = [
        alps_SYS_read, alps_SYS_write, alps_SYS_readv, alps_SYS_writev, alps_SYS_recvfrom, alps_SYS_sendto,
        alps_SYS_recvmsg, alps_SYS_sendmsg, alps_SYS_recvmmsg, alps_SYS_sendmmsg,
    ].map { UInt32($0) }
    /// AF_INET, AF_INET6, AF_NETLINK, AF_PACKET.
    private static let families: [UInt32] = [2, 10, 16, 17]

    /// The program, in classic BPF.
    func assembled() -> [sock_filter] {
        var code = Assembler()
        let allow = code.label()
        let notify = code.label()
        let refuse = code.label()
        let socket = code.label()
        let control = code.label()
        let data = code.label()
        let native = code.label()

        code.load(Self.architecture)
        code.jump(ifEqual: alps_audit_arch, to: native)
        // Programs of 32 bits get no sockets at all: socketcall(2), and socket(2) by its number there.
        code.jump(ifNotEqual: alps_audit_arch_i386, to: allow)
        code.load(Self.number)
        code.jump(ifEqual: 102, to: refuse)
        code.jump(ifEqual: 359, to: refuse)
        code.jump(to: allow)

        code.place(native)
        code.load(Self.number)
        // x32 calls are not counted by the same numbers.
        code.jump(ifAtLeast: 0x4000_0000, to: refuse)
        code.jump(ifEqual: UInt32(alps_SYS_io_uring_setup), to: refuse)
        code.jump(ifEqual: UInt32(alps_SYS_socket), to: socket)
        for call in Self.dataCalls { code.jump(ifEqual: call, to: data) }
        for call in Self.controlCalls { code.jump(ifEqual: call, to: control) }
        code.jump(to: allow)

        code.place(data)
        code.load(Self.argument(0))
        for range in numbers.datagrams { code.jump(ifIn: range, to: notify) }
        code.jump(to: allow)

        code.place(control)
        code.load(Self.argument(0))
        for range in numbers.streams + numbers.datagrams { code.jump(ifIn: range, to: notify) }
        code.jump(to: allow)

        code.place(socket)
        code.load(Self.argument(0))
        let watched = code.label()
        for family in Self.families { code.jump(ifEqual: family, to: watched) }
        code.jump(to: allow)
        code.place(watched)
        code.load(Self.argument(5))
        code.jump(ifNotEqual: UInt32(truncatingIfNeeded: token), to: notify)
        code.load(Self.argument(5, high: true))
        code.jump(ifNotEqual: UInt32(truncatingIfNeeded: token >> 32), to: notify)

        code.place(allow)
        code.finish(alps_SECCOMP_RET_ALLOW)
        code.place(notify)
        code.finish(alps_SECCOMP_RET_USER_NOTIF)
        code.place(refuse)
        code.finish(alps_SECCOMP_RET_ERRNO | UInt32(ENOSYS))
        return code.finished()
    }
}

/// Classic BPF with labels. All jumps go forward, as the kernel demands.
private struct Assembler {
    struct Label { var index: Int }

    private enum Item {
        case plain(sock_filter)
        /// `code` and operand; where to, if it holds and if not. Nil: the next instruction.
        case jump(UInt16, UInt32, Label?, Label?)
    }

    private var items: [Item] = []
    private var places: [Int?] = []

    mutating func label() -> Label {
        places.append(nil)
        return Label(index: places.count - 1)
    }

    mutating func place(_ label: Label) { places[label.index] = items.count }

    /// A 32-bit word of the data, into the accumulator.
    mutating func load(_ offset: UInt32) { items.append(.plain(sock_filter(code: 0x20, jt: 0, jf: 0, k: offset))) }

    mutating func finish(_ value: UInt32) { items.append(.plain(sock_filter(code: 0x06, jt: 0, jf: 0, k: value))) }

    mutating func jump(to label: Label) { items.append(.jump(0x05, 0, label, nil)) }
    mutating func jump(ifEqual value: UInt32, to label: Label) { items.append(.jump(0x15, value, label, nil)) }
    mutating func jump(ifNotEqual value: UInt32, to label: Label) { items.append(.jump(0x15, value, nil, label)) }
    mutating func jump(ifAtLeast value: UInt32, to label: Label) { items.append(.jump(0x35, value, label, nil)) }

    mutating func jump(ifIn range: Range<UInt32>, to label: Label) {
        let below = self.label()
        items.append(.jump(0x35, range.lowerBound, nil, below))
        items.append(.jump(0x35, range.upperBound, nil, label))
        place(below)
    }

    func finished() -> [sock_filter] {
        items.enumerated().map { position, item in
            switch item {
            case .plain(let instruction): return instruction
            case .jump(let code, let value, let yes, let no):
                func distance(_ label: Label?) -> Int {
                    guard let label, let place = places[label.index] else { return 0 }
                    return place - position - 1
                }
                if code == 0x05 { return sock_filter(code: code, jt: 0, jf: 0, k: UInt32(distance(yes))) }
                return sock_filter(code: code, jt: UInt8(distance(yes)), jf: UInt8(distance(no)), k: value)
            }
        }
    }
}

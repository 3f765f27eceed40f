import CLinux
import Glibc
import PluginAPI

/// getsockopt and setsockopt. SOL_SOCKET is the socket layer's; other levels go to the transport, then to the network.
extension Socket {
    // Numbers that <sys/socket.h> hides behind expressions Swift cannot import.
    private static let timestampNanoseconds: Int32 = 35
    private static let receiveTimeoutNew: Int32 = 66
    private static let sendTimeoutNew: Int32 = 67
    private static let bindToIndex: Int32 = 62
    private static let cookie: Int32 = 57
    private static let peerName: Int32 = 28
    private static let memoryInformation: Int32 = 55
    private static let namespaceCookie: Int32 = 71
    private static let cork: Int32 = 1
    private static let fastOpenQueue: Int32 = 23
    private static let protocolNumber: Int32 = 52
    private static let congestionInformation: Int32 = 26
    private static let savedSYN: Int32 = 28
    private static let packetOptions: Int32 = 9

    /// A flag option of SOL_SOCKET that lives in `alps_socket.options`.
    private static func flag(_ name: Int32) -> UInt32? {
        switch name {
        case SO_REUSEADDR: ALPS_SO_REUSEADDR
        case SO_REUSEPORT: ALPS_SO_REUSEPORT
        case SO_KEEPALIVE: ALPS_SO_KEEPALIVE
        case SO_BROADCAST: ALPS_SO_BROADCAST
        case SO_OOBINLINE: ALPS_SO_OOBINLINE
        case SO_DONTROUTE: ALPS_SO_DONTROUTE
        case SO_TIMESTAMP, timestampNanoseconds: ALPS_SO_TIMESTAMP
        default: nil
        }
    }

    /// Which of SO_TIMESTAMP and SO_TIMESTAMPNS was switched on last: it replaces the other one.
    private var timestampName: Int32 {
        storedOptions[SO_TIMESTAMP]?.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) } ?? 0
    }

    /// Which options it has.
    private var optionSockets: SocketOption.Sockets {
        switch Int32(raw.pointee.type) {
        case Int32(ALPS_SOCK_STREAM): .stream
        case Int32(ALPS_SOCK_RAW): .raw
        default: .datagram
        }
    }

    /// Where in `storedOptions` one is kept. Those of SOL_SOCKET by their own numbers.
    private static func key(_ level: Int32, _ name: Int32) -> Int32 {
        level == SOL_SOCKET ? name : (level &+ 1) << 16 | name
    }

    /// The error for an option that the socket does not have.
    private func unknownOption(_ level: Int32, length: Int, setting: Bool) -> Int32 {
        let isLevel = switch SocketOption.Level(rawValue: level) {
        case .socket, .ip: true
        case .tcp: isStream
        case .udp: raw.pointee.protocol == 17 && raw.pointee.type == ALPS_SOCK_DGRAM
        case .raw: raw.pointee.type == ALPS_SOCK_RAW
        case .packet, nil: false
        }
        guard isLevel else { return setting ? ENOPROTOOPT : EOPNOTSUPP }
        return setting && length < 4 && level != 0 && level != 255 ? EINVAL : ENOPROTOOPT
    }

    private static func isTimeout(_ name: Int32) -> Bool {
        name == SO_RCVTIMEO || name == SO_SNDTIMEO || name == receiveTimeoutNew || name == sendTimeoutNew
    }

    /// Both numbers of a time-out option name one setting.
    private static func timeoutKey(_ name: Int32) -> Int32 {
        name == SO_SNDTIMEO || name == sendTimeoutNew ? SO_SNDTIMEO : SO_RCVTIMEO
    }

    /// SO_SNDTIMEO in ns, 0 = none. Time-outs of reading and writing are kept by the application's end of the pair.
    var sendTimeout: UInt64 {
        guard let value = storedOptions[SO_SNDTIMEO] else { return 0 }
        let time = value.withUnsafeBytes { $0.loadUnaligned(as: timeval.self) }
        return UInt64(max(time.tv_sec, 0)) &* UInt64(ALPS_NSEC_PER_SEC) &+ UInt64(max(time.tv_usec, 0)) &* 1000
    }

    // MARK: Setting

    package func setOption(level: Int32, name: Int32, _ value: [UInt8]) -> Int32 {
        guard let option = SocketOption.find(level, name, on: optionSockets) else {
            let status = passDown(level, name, value)
            return status == ENOPROTOOPT ? unknownOption(level, length: value.count, setting: true) : status
        }
        if case .told = option.treatment { return unknownOption(level, length: value.count, setting: true) }
        let (error, value) = option.normalised(value)
        guard error == 0 else { return error }
        switch option.treatment {
        case .acts: return level == SOL_SOCKET ? setSocketOption(name, value) : setLowerOption(level, name, value)
        case .kept:
            storedOptions[Self.key(level, name)] = value
            if level == SOL_SOCKET, name == SO_MAX_PACING_RATE, isStream {
                _ = transportControl(set: true, level, name, value, capacity: value.count)
            }
        case .ignored, .told: break
        case .refused(let error): return option.isInitial(value) ? 0 : error
        }
        return 0
    }

    private func setLowerOption(_ level: Int32, _ name: Int32, _ value: [UInt8]) -> Int32 {
        if level == SocketOption.Level.tcp.rawValue, name == Self.fastOpenQueue {
            // As for listen.
            let wanted = value.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) }
            let limit = Int32(truncatingIfNeeded: kernel.sockets.somaxconn.value)
            return passDown(level, name, SocketOption.bytes(min(wanted, limit)))
        }
        if level == SocketOption.Level.udp.rawValue, name == Self.cork {
            setCork(value[0] != 0)
            return 0
        }
        return passDown(level, name, value)
    }

    /// SOL_SOCKET. Integers are four bytes by now.
    private func setSocketOption(_ name: Int32, _ value: [UInt8]) -> Int32 {
        if name == SO_LINGER { return setLinger(value) }
        if name == SO_BINDTODEVICE { return bindToDevice(value) }
        if Self.isTimeout(name) { return setTimeout(name, value) }
        let number = value.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) }
        if let flag = Self.flag(name) {
            setFlag(name, flag, number != 0, value)
            return 0
        }
        switch name {
        // Linux takes what is negative for the largest.
        case SO_SNDBUF, SO_RCVBUF: setBuffer(isSend: name == SO_SNDBUF, UInt32(bitPattern: number))
        case SO_SNDBUFFORCE, SO_RCVBUFFORCE: setBuffer(isSend: name == SO_SNDBUFFORCE, UInt32(max(number, 0)))
        case SO_RCVLOWAT: raw.pointee.rcv.low_water = number < 0 ? UInt32(Int32.max) : max(UInt32(number), 1)
        case Self.bindToIndex: bindToInterface(UInt32(number))
        default: return transportControl(set: true, SOL_SOCKET, name, value, capacity: value.count).error
        }
        return 0
    }

    private func setFlag(_ name: Int32, _ flag: UInt32, _ isOn: Bool, _ value: [UInt8]) {
        if isOn { raw.pointee.options |= flag } else { raw.pointee.options &= ~flag }
        switch name {
        case SO_TIMESTAMP, Self.timestampNanoseconds: storedOptions[SO_TIMESTAMP] = SocketOption.bytes(isOn ? name : 0)
        case SO_BROADCAST, SO_DONTROUTE: mirrorNetworkFlags()
        // The transport may have to start or stop its timers.
        case SO_KEEPALIVE: _ = transportControl(set: true, SOL_SOCKET, name, value, capacity: 4)
        case SO_OOBINLINE:
            skipUrgentByte()
            markDirty()
        default: break
        }
    }

    private func setLinger(_ value: [UInt8]) -> Int32 {
        guard value.count >= MemoryLayout<Glibc.linger>.size else { return EINVAL }
        let wanted = value.withUnsafeBytes { $0.loadUnaligned(as: Glibc.linger.self) }
        // Linux takes a negative time for a very long one.
        raw.pointee.linger = wanted.l_onoff == 0 ? -1 : wanted.l_linger < 0 ? Int32.max : wanted.l_linger
        return 0
    }

    private func setTimeout(_ name: Int32, _ value: [UInt8]) -> Int32 {
        let size = MemoryLayout<timeval>.size
        guard value.count >= size else { return EINVAL }
        let time = value.withUnsafeBytes { $0.loadUnaligned(as: timeval.self) }
        guard (0..<1_000_000).contains(time.tv_usec) else { return EDOM }
        storedOptions[Self.timeoutKey(name)] = Array(value.prefix(size))
        return 0
    }

    /// Linux doubles what is asked for, for its own overhead, and tells the doubled value.
    private func setBuffer(isSend: Bool, _ bytes: UInt32) {
        let limit = UInt32(min(max(Int64(bytes) * 2, isSend ? 4608 : 2304), kernel.sockets.maxSockbuf.value))
        if isSend {
            isSendSizeChosen = true
            setSendLimit(limit)
            markDirty()
        } else {
            raw.pointee.options |= ALPS_SO_RCVBUF_CHOSEN
            setLimit(&raw.pointee.rcv, limit, isMapped: isReceiveMapped)
            if isConnected, isAttached, let received = protosw.pointee.received { received(instance, raw) }
        }
    }

    private func bindToDevice(_ value: [UInt8]) -> Int32 {
        let name = String(decoding: value.prefix(Int(IFNAMSIZ) - 1).prefix { $0 != 0 }, as: UTF8.self)
        guard !name.isEmpty else {
            bindToInterface(0)
            return 0
        }
        guard let interface = kernel.interfaces.find(name) else { return ENODEV }
        bindToInterface(interface.raw.pointee.index)
        return 0
    }

    private func bindToInterface(_ index: UInt32) {
        raw.pointee.netpcb.pointee.bound_ifindex = index
        raw.pointee.netpcb.pointee.route = alps_route()
    }

    /// What the network must know without asking.
    private func mirrorNetworkFlags() {
        let netpcb = raw.pointee.netpcb
        func mirror(_ option: UInt32, _ flag: UInt32) {
            let flag = UInt8(flag)
            if raw.pointee.options & option != 0 { netpcb.pointee.flags |= flag } else { netpcb.pointee.flags &= ~flag }
        }
        mirror(ALPS_SO_BROADCAST, ALPS_NETPCB_BROADCAST)
        mirror(ALPS_SO_DONTROUTE, ALPS_NETPCB_DONTROUTE)
        netpcb.pointee.route = alps_route()
    }

    // MARK: Getting

    /// At most `capacity` bytes of the option's value.
    package func getOption(level: Int32, name: Int32, capacity: Int) -> (error: Int32, value: [UInt8]) {
        guard capacity >= 0 else { return (EINVAL, []) }
        guard let option = SocketOption.find(level, name, on: optionSockets) else {
            let result = askDown(level, name, capacity)
            return result.error == ENOPROTOOPT ? (unknownOption(level, length: capacity, setting: false), []) : result
        }
        guard option.readError == 0 else { return (option.readError, []) }
        switch option.treatment {
        case .kept: return (0, option.cut(storedOptions[Self.key(level, name)] ?? option.initialValue, to: capacity))
        case .ignored, .refused: return (0, option.cut(option.initialValue, to: capacity))
        case .told where !option.tells.isEmpty: return (0, option.cut(option.tells, to: capacity))
        case .told, .acts: break
        }
        let (error, value) = level == SOL_SOCKET
            ? getSocketOption(name, capacity) : getLowerOption(option, max(capacity, 4))
        return (error, option.cut(value, to: capacity))
    }

    private func getLowerOption(_ option: SocketOption, _ capacity: Int) -> (error: Int32, value: [UInt8]) {
        switch (option.level, option.number) {
        case (.udp, Self.cork): return (0, SocketOption.bytes(isCorked ? 1 : 0))
        case (.ip, Self.protocolNumber):
            return (0, SocketOption.bytes(raw.pointee.type == ALPS_SOCK_RAW ? Int32(raw.pointee.protocol) : 0))
        case (.tcp, Self.congestionInformation), (.tcp, Self.savedSYN), (.ip, Self.packetOptions): return (0, [])
        default: return askDown(option.level.rawValue, option.number, capacity)
        }
    }

    /// SOL_SOCKET, whole values.
    private func getSocketOption(_ name: Int32, _ capacity: Int) -> (error: Int32, value: [UInt8]) {
        func answer<T>(_ value: T) -> (Int32, [UInt8]) { (0, withUnsafeBytes(of: value) { Array($0) }) }
        if name == SO_TIMESTAMP || name == Self.timestampNanoseconds {
            return answer(Int32(raw.pointee.options & ALPS_SO_TIMESTAMP != 0 && timestampName == name ? 1 : 0))
        }
        if let flag = Self.flag(name) { return answer(Int32(raw.pointee.options & flag != 0 ? 1 : 0)) }
        if Self.isTimeout(name) {
            let none = [UInt8](repeating: 0, count: MemoryLayout<timeval>.size)
            return (0, storedOptions[Self.timeoutKey(name)] ?? none)
        }
        switch name {
        case SO_TYPE: return answer(Int32(raw.pointee.type))
        case SO_DOMAIN: return answer(Int32(raw.pointee.domain))
        case SO_PROTOCOL: return answer(Int32(raw.pointee.protocol))
        case SO_ACCEPTCONN: return answer(Int32(isListening ? 1 : 0))
        case SO_ERROR: return answer(takeError())
        case SO_SNDBUF: return answer(Int32(truncatingIfNeeded: raw.pointee.snd.limit))
        case SO_RCVBUF: return answer(Int32(truncatingIfNeeded: raw.pointee.rcv.limit))
        case SO_RCVLOWAT: return answer(Int32(truncatingIfNeeded: raw.pointee.rcv.low_water))
        case SO_SNDLOWAT: return answer(Int32(1))
        case Self.cookie: return capacity < 8 ? (EINVAL, []) : answer(raw.pointee.id)
        case Self.namespaceCookie: return capacity == 8 ? answer(UInt64(1)) : (EINVAL, [])
        case Self.peerName: return peerNameOption(capacity)
        case Self.memoryInformation: return (0, memoryInformationOption)
        case SO_LINGER:
            return answer(Glibc.linger(l_onoff: raw.pointee.linger >= 0 ? 1 : 0, l_linger: max(raw.pointee.linger, 0)))
        case Self.bindToIndex: return answer(Int32(bitPattern: raw.pointee.netpcb.pointee.bound_ifindex))
        case SO_BINDTODEVICE:
            let index = raw.pointee.netpcb.pointee.bound_ifindex
            guard index != 0, let interface = kernel.interfaces.interface(index) else { return (0, []) }
            guard capacity >= Int(IFNAMSIZ) else { return (EINVAL, []) }
            return (0, Array(interface.name.utf8) + [0])
        default: return transportControl(set: false, SOL_SOCKET, name, [], capacity: max(capacity, 4))
        }
    }

    /// SO_PEERNAME: a sockaddr_in, in no more room than it takes.
    private func peerNameOption(_ capacity: Int) -> (error: Int32, value: [UInt8]) {
        guard isConnected else { return (ENOTCONN, []) }
        let remote = remoteAddress
        var name = sockaddr_in()
        name.sin_family = sa_family_t(AF_INET)
        name.sin_port = remote.port.bigEndian
        withUnsafeMutableBytes(of: &name.sin_addr) { target in
            withUnsafeBytes(of: remote.addr) { target.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[0..<4])) }
        }
        guard capacity <= MemoryLayout<sockaddr_in>.size else { return (EINVAL, []) }
        return (0, withUnsafeBytes(of: name) { Array($0) })
    }

    /// SO_MEMINFO: nine counts, of which the stack has what is queued and the limits.
    private var memoryInformationOption: [UInt8] {
        let received = isStream ? receiveAvailable : (firstDatagram.map { Int($0.packet.pointee.pkt.length) } ?? 0)
        let queued = UInt32(truncatingIfNeeded: sendQueued)
        let counts: [UInt32] = [
            UInt32(truncatingIfNeeded: received), UInt32(raw.pointee.rcv.limit), queued, UInt32(raw.pointee.snd.limit),
            0, queued, 0, 0, 0,
        ]
        return counts.withUnsafeBytes { Array($0) }
    }

    /// SIOCOUTQNSD: what has never been sent, out of struct tcp_info's tcpi_notsent_bytes.
    package var notSent: Int32 {
        let place = 144
        let (error, value) = transportControl(set: false, SocketOption.Level.tcp.rawValue, 11, [], capacity: 256)
        guard error == 0, value.count >= place + 4 else { return Int32(clamping: sendQueued) }
        return value.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: place, as: Int32.self) }
    }

    /// UDP_CORK: what is sent is held back, and goes as one datagram.
    private func setCork(_ on: Bool) {
        let wasCorked = isCorked
        isCorked = on
        if wasCorked, !on { channel?.uncorked(self) }
    }

    // MARK: Transport and network

    private func passDown(_ level: Int32, _ name: Int32, _ value: [UInt8]) -> Int32 {
        let status = transportControl(set: true, level, name, value, capacity: value.count).error
        if status == 0 { appliedOptions.note(level, name, value) }
        guard status == ENOPROTOOPT else { return status }
        return networkControl(set: true, level, name, value, capacity: value.count).error
    }

    private func askDown(_ level: Int32, _ name: Int32, _ capacity: Int) -> (error: Int32, value: [UInt8]) {
        let result = transportControl(set: false, level, name, [], capacity: capacity)
        return result.error == ENOPROTOOPT ? networkControl(set: false, level, name, [], capacity: capacity) : result
    }

    private func transportControl(
        set: Bool, _ level: Int32, _ name: Int32, _ value: [UInt8], capacity: Int
    ) -> (error: Int32, value: [UInt8]) {
        guard let request = transportRequest(ALPS_PRU_CTLOUTPUT) else { return (ENOPROTOOPT, []) }
        guard isAttached else { return (EINVAL, []) }
        typealias Function = @convention(c) (
            UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, Int32, Int32, Int32, UnsafeMutableRawPointer,
            UnsafeMutablePointer<UInt32>
        ) -> Int32
        let function = unsafeBitCast(request.function, to: Function.self)
        return withOptionBuffer(set, value, capacity) { function(instance, raw, set ? 1 : 0, level, name, $0, $1) }
    }

    private func networkControl(
        set: Bool, _ level: Int32, _ name: Int32, _ value: [UInt8], capacity: Int
    ) -> (error: Int32, value: [UInt8]) {
        guard hasNetwork, let (ops, network) = kernel.sockets.network(self) else { return (ENOPROTOOPT, []) }
        return withOptionBuffer(set, value, capacity) {
            ops.pointee.ctloutput(network, raw.pointee.netpcb, set ? 1 : 0, level, name, $0, $1)
        }
    }

    private func withOptionBuffer(
        _ set: Bool, _ value: [UInt8], _ capacity: Int,
        _ body: (UnsafeMutableRawPointer, UnsafeMutablePointer<UInt32>) -> Int32
    ) -> (error: Int32, value: [UInt8]) {
        let size = min(max(capacity, value.count), 65536)
        // Never without room for the scalar that a careless option reads or writes.
        return withUnsafeTemporaryAllocation(byteCount: max(size, 64), alignment: 16) { buffer in
            guard let base = buffer.baseAddress else { return (ENOMEM, []) }
            memset(base, 0, buffer.count)
            buffer.copyBytes(from: value.prefix(size))
            var length = UInt32(size)
            let status = body(base, &length)
            guard status == 0, !set else { return (status, []) }
            return (0, Array(buffer.prefix(min(Int(length), size))))
        }
    }

    /// Sets again what the program has set, after attaching to another transport instance.
    func reapplyOptions() {
        for option in appliedOptions.entries {
            _ = transportControl(set: true, option.level, option.name, option.value, capacity: option.value.count)
        }
    }
}

/// Options of the transport that a program has set, in the order of their last setting, so that another instance can be
/// brought to the same state without knowing what they mean: repeating all distinct settings in that order ends where
/// the program ended, whether they replace a value or add to a set.
struct AppliedOptions {
    struct Entry {
        let level: Int32
        let name: Int32
        let value: [UInt8]
    }

    private(set) var entries: [Entry] = []
    private static let limit = 64
    /// The values of most options, one array for all sockets.
    private static let common: [[UInt8]] = [[1, 0, 0, 0], [0, 0, 0, 0]]

    mutating func note(_ level: Int32, _ name: Int32, _ value: [UInt8]) {
        let value = Self.common.first { $0 == value } ?? value
        if let index = entries.firstIndex(where: { $0.level == level && $0.name == name && $0.value == value }) {
            entries.remove(at: index)
        } else if entries.count >= Self.limit {
            entries.remove(at: entries.firstIndex { $0.level == level && $0.name == name } ?? 0)
        }
        entries.append(Entry(level: level, name: name, value: value))
    }
}

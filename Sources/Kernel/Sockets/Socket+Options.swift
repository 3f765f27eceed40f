import CLinux
import Glibc
import PluginAPI

/// getsockopt and setsockopt. SOL_SOCKET is the socket layer's; other levels go to the transport, then to the network.
extension Socket {
    /// A flag option of SOL_SOCKET that lives in `alps_socket.options`.
    private static func flag(_ name: Int32) -> UInt32? {
        switch name {
        case SO_REUSEADDR: UInt32(ALPS_SO_REUSEADDR)
        case SO_REUSEPORT: UInt32(ALPS_SO_REUSEPORT)
        case SO_KEEPALIVE: UInt32(ALPS_SO_KEEPALIVE)
        case SO_BROADCAST: UInt32(ALPS_SO_BROADCAST)
        case SO_OOBINLINE: UInt32(ALPS_SO_OOBINLINE)
        case SO_DONTROUTE: UInt32(ALPS_SO_DONTROUTE)
        case SO_TIMESTAMP: UInt32(ALPS_SO_TIMESTAMP)
        default: nil
        }
    }

    /// Options that are stored and told, with their sizes in bytes. The pair in front of the socket or the shim acts on
    /// the time-outs; priority and mark have no meaning inside one stack.
    private static func storedSize(_ name: Int32) -> Int? {
        switch name {
        case SO_RCVTIMEO, SO_SNDTIMEO: 16
        case SO_PRIORITY, SO_MARK, SO_INCOMING_CPU, SO_BUSY_POLL: 4
        default: nil
        }
    }

    package func setOption(level: Int32, name: Int32, _ value: [UInt8]) -> Int32 {
        guard level == SOL_SOCKET else { return pass(set: true, level, name, value, capacity: value.count).error }
        func integer() -> Int32? {
            value.count >= 4 ? value.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) } : nil
        }
        if let flag = Self.flag(name) {
            guard let number = integer() else { return EINVAL }
            if number != 0 { raw.pointee.options |= flag } else { raw.pointee.options &= ~flag }
            if name == SO_BROADCAST || name == SO_DONTROUTE { mirrorNetworkFlags() }
            // The transport may have to start or stop its timers.
            if name == SO_KEEPALIVE { _ = pass(set: true, level, name, value, capacity: 4) }
            if name == SO_OOBINLINE { skipUrgentByte() }
            return 0
        }
        switch name {
        case SO_SNDBUF, SO_RCVBUF, SO_SNDBUFFORCE, SO_RCVBUFFORCE:
            guard let number = integer() else { return EINVAL }
            // Linux doubles what is asked for and tells the doubled value.
            let limit = min(max(Int64(max(number, 0)) * 2, 4608), kernel.sockets.maxSockbuf.value)
            if name == SO_SNDBUF || name == SO_SNDBUFFORCE {
                setLimit(&raw.pointee.snd, UInt32(limit))
            } else {
                setLimit(&raw.pointee.rcv, UInt32(limit))
            }
            return 0
        case SO_RCVLOWAT:
            guard let number = integer() else { return EINVAL }
            raw.pointee.rcv.low_water = UInt32(max(number, 1))
            return 0
        case SO_SNDLOWAT: return ENOPROTOOPT
        case SO_LINGER:
            guard value.count >= MemoryLayout<Glibc.linger>.size else { return EINVAL }
            let wanted = value.withUnsafeBytes { $0.loadUnaligned(as: Glibc.linger.self) }
            raw.pointee.linger = wanted.l_onoff != 0 ? max(wanted.l_linger, 0) : -1
            return 0
        case SO_BINDTODEVICE:
            let text = String(decoding: value.prefix { $0 != 0 }, as: UTF8.self)
            guard !text.isEmpty else {
                raw.pointee.netpcb.pointee.bound_ifindex = 0
                return 0
            }
            guard let interface = kernel.interfaces.find(text) else { return ENODEV }
            raw.pointee.netpcb.pointee.bound_ifindex = interface.raw.pointee.index
            raw.pointee.netpcb.pointee.route = alps_route()
            return 0
        case SO_TYPE, SO_ERROR, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN, SO_PEERCRED: return ENOPROTOOPT
        default: break
        }
        if let size = Self.storedSize(name) {
            guard value.count >= size else { return EINVAL }
            storedOptions[name] = Array(value.prefix(size))
            return 0
        }
        return ENOPROTOOPT
    }

    /// At most `capacity` bytes of the option's value.
    package func getOption(level: Int32, name: Int32, capacity: Int) -> (error: Int32, value: [UInt8]) {
        guard level == SOL_SOCKET else {
            return pass(set: false, level, name, [], capacity: capacity)
        }
        func answer<T>(_ value: T) -> (Int32, [UInt8]) {
            (0, withUnsafeBytes(of: value) { Array($0.prefix(capacity)) })
        }
        if let flag = Self.flag(name) { return answer(Int32(raw.pointee.options & flag != 0 ? 1 : 0)) }
        switch name {
        case SO_TYPE: return answer(Int32(raw.pointee.type))
        case SO_DOMAIN: return answer(Int32(raw.pointee.domain))
        case SO_PROTOCOL: return answer(Int32(raw.pointee.protocol))
        case SO_ACCEPTCONN: return answer(Int32(isListening ? 1 : 0))
        case SO_ERROR: return answer(takeError())
        case SO_SNDBUF, SO_SNDBUFFORCE: return answer(Int32(truncatingIfNeeded: raw.pointee.snd.limit))
        case SO_RCVBUF, SO_RCVBUFFORCE: return answer(Int32(truncatingIfNeeded: raw.pointee.rcv.limit))
        case SO_RCVLOWAT: return answer(Int32(raw.pointee.rcv.low_water))
        case SO_SNDLOWAT: return answer(Int32(1))
        case SO_LINGER:
            return answer(Glibc.linger(l_onoff: raw.pointee.linger >= 0 ? 1 : 0, l_linger: max(raw.pointee.linger, 0)))
        case SO_BINDTODEVICE:
            let index = raw.pointee.netpcb.pointee.bound_ifindex
            guard index != 0, let interface = kernel.interfaces.interface(index) else { return (0, []) }
            return (0, Array((Array(interface.name.utf8) + [0]).prefix(capacity)))
        default: break
        }
        if let size = Self.storedSize(name) {
            return (0, Array((storedOptions[name] ?? [UInt8](repeating: 0, count: size)).prefix(capacity)))
        }
        return (ENOPROTOOPT, [])
    }

    /// What the network must know without asking.
    private func mirrorNetworkFlags() {
        let netpcb = raw.pointee.netpcb
        func mirror(_ option: UInt32, _ flag: UInt8) {
            if raw.pointee.options & option != 0 { netpcb.pointee.flags |= flag } else { netpcb.pointee.flags &= ~flag }
        }
        mirror(UInt32(ALPS_SO_BROADCAST), UInt8(ALPS_NETPCB_BROADCAST))
        mirror(UInt32(ALPS_SO_DONTROUTE), UInt8(ALPS_NETPCB_DONTROUTE))
        netpcb.pointee.route = alps_route()
    }

    /// To the transport; if the option is not its own, to the network.
    private func pass(set: Bool, _ level: Int32, _ name: Int32, _ value: [UInt8], capacity: Int) -> (error: Int32, value: [UInt8]) {
        guard isAttached else { return (EINVAL, []) }
        let size = min(max(capacity, value.count), 65536)
        let buffer = UnsafeMutableRawPointer.allocate(byteCount: max(size, 16), alignment: 16)
        defer { buffer.deallocate() }
        memset(buffer, 0, max(size, 16))
        value.withUnsafeBytes { if $0.count > 0 { memcpy(buffer, $0.baseAddress!, min($0.count, size)) } }
        var length = UInt32(size)
        var status = ENOPROTOOPT
        if let request = entry.request(UInt32(ALPS_PRU_CTLOUTPUT)) {
            typealias Function = @convention(c) (
                UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, Int32, Int32, Int32, UnsafeMutableRawPointer,
                UnsafeMutablePointer<UInt32>
            ) -> Int32
            status = unsafeBitCast(request.function, to: Function.self)(
                entry.instancePointer, raw, set ? 1 : 0, level, name, buffer, &length)
        }
        if status == ENOPROTOOPT {
            length = UInt32(size)
            status = kernel.sockets.networkControl(self, set: set, level: level, name: name, buffer, &length)
        }
        guard status == 0, !set else { return (status, []) }
        return (0, Array(UnsafeRawBufferPointer(start: buffer, count: min(Int(length), size))))
    }
}

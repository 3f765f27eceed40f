import PluginAPI
import PluginKit

/// Settings, as indexes of `Instance.settings`.
enum Setting: Int {
    case checksum, blackhole, maximumDatagram

    static var allCases: Int { 3 }
}

/// Event counters, as indexes of `Instance.counters`; BSD's `udpstat`.
enum Counter: Int {
    case received, shortHeader, badLength, badChecksum, noChecksum, noPort, noPortBroadcast, fullSocket, delivered
    case sent, sendErrors, errorMessages

    static var allCases: Int { 12 }
}

/// What the host is told about this protocol. The only place that names an address family and a protocol number.
enum Registration {
    static var domain: UInt16 { UInt16(ALPS_AF_INET) }
    static var `protocol`: UInt8 { 17 }
    static var network: StaticString { "alps.network/1:2" }
    static var requestCount: Int { 11 }

    static func register(_ instance: InstancePointer) -> Int32 {
        instance.pointee.networkCell = instance.services.cell(network)
        var result = addSettings(instance)
        if result == 0 { result = addCounters(instance) }
        if result == 0 { result = addEntry(instance) }
        return result
    }

    private static func addEntry(_ instance: InstancePointer) -> Int32 {
        fillRequests(instance.pointee.requests)
        let entry = instance.pointee.entry
        entry.initialize(
            to: alps_protosw(
                size: UInt32(MemoryLayout<alps_protosw>.size), domain: domain, type: UInt16(ALPS_SOCK_DGRAM),
                protocol: UInt16(Self.protocol), demux: UInt8(ALPS_DEMUX_PORTS), reserved: 0,
                flags: ALPS_PR_ATOMIC | ALPS_PR_ADDR, name: text("udp"), network: text(network),
                requests: UnsafePointer(instance.pointee.requests), requests_count: UInt32(requestCount),
                connection_overhead: UInt32(MemoryLayout<ControlBlock>.size), input: udpInput,
                ctlinput: udpControlInput, sent: nil, received: nil, send_datagram: udpSendDatagram))
        let cell = instance.services.protoswCell
        return cell.ops(alps_protosw_ops.self).pointee.add(cell.instance, entry)
    }

    private static func fillRequests(_ requests: UnsafeMutablePointer<alps_user_request>) {
        typealias OnSocket =
            @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>) -> Int32
        typealias WithAddress =
            @convention(c) (
                UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, UnsafePointer<alps_sockaddr>
            ) -> Int32
        typealias ToAddress =
            @convention(c) (
                UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, UnsafeMutablePointer<alps_sockaddr>
            ) -> Int32
        typealias WithNumber =
            @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, Int32) -> Int32
        typealias Option =
            @convention(c) (
                UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>, Int32, Int32, Int32,
                UnsafeMutableRawPointer, UnsafeMutablePointer<UInt32>
            ) -> Int32

        var next = requests
        func add(_ id: UInt32, _ name: StaticString, _ signature: StaticString, _ function: alps_function) {
            next.initialize(
                to: alps_user_request(
                    size: UInt32(MemoryLayout<alps_user_request>.size), id: id, name: text(name),
                    signature: text(signature), doc: nil, function: function))
            next += 1
        }
        func onSocket(_ function: OnSocket) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        func withAddress(_ function: WithAddress) -> alps_function { unsafeBitCast(function, to: alps_function.self) }
        func toAddress(_ function: ToAddress) -> alps_function { unsafeBitCast(function, to: alps_function.self) }

        add(ALPS_PRU_ATTACH, "attach", "S", onSocket(udpAttach))
        add(ALPS_PRU_BIND, "bind", "Sa", withAddress(udpBind))
        add(ALPS_PRU_CONNECT, "connect", "Sa", withAddress(udpConnect))
        add(ALPS_PRU_DISCONNECT, "disconnect", "S", onSocket(udpDisconnect))
        let shutdown: WithNumber = udpShutdown
        add(ALPS_PRU_SHUTDOWN, "shutdown", "Si", unsafeBitCast(shutdown, to: alps_function.self))
        add(ALPS_PRU_CLOSE, "close", "S", onSocket(udpClose))
        add(ALPS_PRU_ABORT, "abort", "S", onSocket(udpClose))
        let option: Option = udpControlOutput
        add(ALPS_PRU_CTLOUTPUT, "ctloutput", "SiiiB", unsafeBitCast(option, to: alps_function.self))
        add(ALPS_PRU_SOCKADDR, "sockaddr", "SA", toAddress(udpSockaddr))
        add(ALPS_PRU_PEERADDR, "peeraddr", "SA", toAddress(udpPeeraddr))
        add(ALPS_PRU_REHOME, "rehome", "S", onSocket(udpRehome))
    }

    private static func addSettings(_ instance: InstancePointer) -> Int32 {
        let services = instance.services
        guard let list = services.allocateArray(alps_tunable.self, Setting.allCases) else { return ALPS_ENOMEM }
        defer { services.freeArray(list, Setting.allCases) }
        func set(
            _ setting: Setting, _ name: StaticString, _ doc: StaticString, type: UInt32, value: Int64, maximum: Int64
        ) {
            let place = instance.pointee.settings + setting.rawValue
            place.pointee = value
            (list + setting.rawValue).initialize(
                to: alps_tunable(
                    size: UInt32(MemoryLayout<alps_tunable>.size), type: type, flags: 0, reserved: 0,
                    name: text(name), doc: text(doc), value: place, minimum: 0, maximum: maximum))
        }
        set(
            .checksum, "net.inet.udp.checksum", "Send datagrams with a checksum", type: ALPS_TUNABLE_BOOL, value: 1,
            maximum: 1)
        set(
            .blackhole, "net.inet.udp.blackhole", "Do not report unreachable ports", type: ALPS_TUNABLE_BOOL, value: 0,
            maximum: 1)
        set(
            .maximumDatagram, "net.inet.udp.maxdgram", "Largest payload that may be sent, in bytes",
            type: ALPS_TUNABLE_BYTES, value: 65535, maximum: 65535)
        let cell = services.tunableCell
        return cell.ops(alps_tunable_ops.self).pointee.add(cell.instance, list, UInt32(Setting.allCases))
    }

    private static func addCounters(_ instance: InstancePointer) -> Int32 {
        let services = instance.services
        guard let list = services.allocateArray(alps_counter.self, Counter.allCases) else { return ALPS_ENOMEM }
        defer { services.freeArray(list, Counter.allCases) }
        func set(_ counter: Counter, _ name: StaticString, _ doc: StaticString) {
            (list + counter.rawValue).initialize(
                to: alps_counter(
                    size: UInt32(MemoryLayout<alps_counter>.size), flags: 0, name: text(name), doc: text(doc),
                    value: UnsafePointer(instance.pointee.counters + counter.rawValue)))
        }
        set(.received, "ipackets", "datagrams received")
        set(.shortHeader, "hdrops", "with incomplete header")
        set(.badLength, "badlen", "with bad data length field")
        set(.badChecksum, "badsum", "with bad checksum")
        set(.noChecksum, "nosum", "with no checksum")
        set(.noPort, "noport", "dropped due to no socket")
        set(.noPortBroadcast, "noportbcast", "broadcast/multicast datagrams undelivered")
        set(.fullSocket, "fullsock", "dropped due to full socket buffers")
        set(.delivered, "delivered", "delivered")
        set(.sent, "opackets", "datagrams output")
        set(.sendErrors, "oerrors", "datagrams that could not be sent")
        set(.errorMessages, "ctlerrors", "error messages received about datagrams sent")
        let cell = services.counterCell
        return cell.ops(alps_counter_ops.self).pointee.add(cell.instance, list, UInt32(Counter.allCases))
    }
}

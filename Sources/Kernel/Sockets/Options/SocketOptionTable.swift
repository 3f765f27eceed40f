import CLinux
import Glibc

// Every option that Linux has for TCP, UDP and raw IPv4 sockets. Tests/EndToEnd/test_shim_options.py compares each of them
// with the machine's own kernel; `alps options --markdown` makes the list in docs/limitations.md.

private let anything = Int32.min...Int32.max
private let natural = 0...Int32.max
private let bit: ClosedRange<Int32> = 0...1

private typealias Sockets = SocketOption.Sockets

private func acts(
    _ level: SocketOption.Level, _ number: Int32, _ name: String, _ form: SocketOption.Form, on sockets: Sockets = .all,
    needsValue: Bool = false, readError: Int32 = 0
) -> SocketOption {
    SocketOption(
        level: level, number: number, name: name, sockets: sockets, form: form, treatment: .acts, readError: readError,
        needsValue: needsValue)
}

private func told(
    _ level: SocketOption.Level, _ number: Int32, _ name: String, _ form: SocketOption.Form = .integer(anything),
    on sockets: Sockets = .all, always: [UInt8] = [], readError: Int32 = 0
) -> SocketOption {
    SocketOption(
        level: level, number: number, name: name, sockets: sockets, form: form, treatment: .told, tells: always,
        readError: readError)
}

private func kept(
    _ level: SocketOption.Level, _ number: Int32, _ name: String, _ form: SocketOption.Form, on sockets: Sockets = .all,
    initial: Int32 = 0, needsValue: Bool = false, _ note: String
) -> SocketOption {
    SocketOption(
        level: level, number: number, name: name, sockets: sockets, form: form, treatment: .kept, initial: initial,
        needsValue: needsValue, note: note)
}

private func ignored(
    _ level: SocketOption.Level, _ number: Int32, _ name: String, _ form: SocketOption.Form, on sockets: Sockets = .all,
    readError: Int32 = 0
) -> SocketOption {
    SocketOption(
        level: level, number: number, name: name, sockets: sockets, form: form, treatment: .ignored, readError: readError)
}

private func refused(
    _ level: SocketOption.Level, _ number: Int32, _ name: String, _ form: SocketOption.Form, on sockets: Sockets = .all,
    _ error: Int32, initial: Int32 = 0, tells: [UInt8] = [], readError: Int32 = 0, needsValue: Bool = false, _ note: String
) -> SocketOption {
    SocketOption(
        level: level, number: number, name: name, sockets: sockets, form: form, treatment: .refused(error),
        initial: initial, tells: tells, readError: readError, needsValue: needsValue, note: note)
}

/// Refused by Linux too, with the same error.
private func unavailable(
    _ level: SocketOption.Level, _ number: Int32, _ name: String, _ form: SocketOption.Form, on sockets: Sockets = .all,
    _ error: Int32, tells: [UInt8] = [], readError: Int32 = 0
) -> SocketOption {
    SocketOption(
        level: level, number: number, name: name, sockets: sockets, form: form, treatment: .refused(error),
        initial: Int32.min, tells: tells, readError: readError, isLinuxs: true)
}

private func zeros(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }

extension SocketOption {
    /// All of them, in the order of their levels and numbers.
    package static let all: [SocketOption] = socketLevel + ipLevel + tcpLevel + udpLevel + rawLevel + packetLevel

    // MARK: SOL_SOCKET

    private static let socketLevel: [SocketOption] = [
        kept(.socket, 1, "SO_DEBUG", .flag, "there is nothing to print"),
        acts(.socket, 2, "SO_REUSEADDR", .flag),
        told(.socket, 3, "SO_TYPE"),
        told(.socket, 4, "SO_ERROR"),
        acts(.socket, 5, "SO_DONTROUTE", .flag),
        acts(.socket, 6, "SO_BROADCAST", .flag),
        acts(.socket, 7, "SO_SNDBUF", .integer(anything)),
        acts(.socket, 8, "SO_RCVBUF", .integer(anything)),
        acts(.socket, 9, "SO_KEEPALIVE", .flag),
        acts(.socket, 10, "SO_OOBINLINE", .flag),
        acts(.socket, 11, "SO_NO_CHECK", .flag, on: .datagram),
        kept(.socket, 11, "SO_NO_CHECK", .flag, on: [.stream, .raw], "their checksums are never left out, as on Linux"),
        kept(.socket, 12, "SO_PRIORITY", .integer(anything), "there are no queues to choose from"),
        acts(.socket, 13, "SO_LINGER", .bytes(8)),
        ignored(.socket, 14, "SO_BSDCOMPAT", .flag),
        acts(.socket, 15, "SO_REUSEPORT", .flag),
        unavailable(.socket, 16, "SO_PASSCRED", .flag, EOPNOTSUPP, readError: EOPNOTSUPP),
        told(.socket, 17, "SO_PEERCRED", .bytes(0), always: zeros(4) + [UInt8](repeating: 255, count: 8)),
        acts(.socket, 18, "SO_RCVLOWAT", .integer(anything)),
        told(.socket, 19, "SO_SNDLOWAT"),
        acts(.socket, 20, "SO_RCVTIMEO", .bytes(16)),
        acts(.socket, 21, "SO_SNDTIMEO", .bytes(16)),
        acts(.socket, 25, "SO_BINDTODEVICE", .bytes(0)),
        refused(
            .socket, 26, "SO_ATTACH_FILTER", .bytes(16), ENOPROTOOPT, tells: [],
            "packets come with all there is for the socket"),
        unavailable(.socket, 27, "SO_DETACH_FILTER", .integer(anything), ENOENT, readError: ENOPROTOOPT),
        told(.socket, 28, "SO_PEERNAME", .bytes(0)),
        acts(.socket, 29, "SO_TIMESTAMP", .flag),
        told(.socket, 30, "SO_ACCEPTCONN"),
        acts(.socket, 32, "SO_SNDBUFFORCE", .integer(anything), readError: ENOPROTOOPT),
        acts(.socket, 33, "SO_RCVBUFFORCE", .integer(anything), readError: ENOPROTOOPT),
        unavailable(.socket, 34, "SO_PASSSEC", .flag, EOPNOTSUPP, readError: EOPNOTSUPP),
        acts(.socket, 35, "SO_TIMESTAMPNS", .flag),
        kept(.socket, 36, "SO_MARK", .integer(anything), "routes do not look at marks"),
        refused(
            .socket, 37, "SO_TIMESTAMPING", .integer(0...0x3ffff), ENOPROTOOPT, tells: zeros(8),
            "SO_TIMESTAMP and SO_TIMESTAMPNS tell the time of arrival"),
        told(.socket, 38, "SO_PROTOCOL"),
        told(.socket, 39, "SO_DOMAIN"),
        kept(.socket, 40, "SO_RXQ_OVFL", .flag, "the stack's own drops are in `alps netstat`"),
        kept(.socket, 41, "SO_WIFI_STATUS", .flag, "no interface is wireless"),
        acts(.socket, 42, "SO_PEEK_OFF", .integer(anything), on: .stream),
        refused(
            .socket, 42, "SO_PEEK_OFF", .integer(anything), on: [.datagram, .raw], EOPNOTSUPP, initial: -1,
            "a look at a datagram starts at its beginning"),
        kept(.socket, 43, "SO_NOFCS", .flag, "the interface's checksum is not the stack's"),
        kept(.socket, 44, "SO_LOCK_FILTER", .flag, "no filter can be attached"),
        kept(.socket, 45, "SO_SELECT_ERR_QUEUE", .flag, "poll tells of errors as it does without"),
        kept(.socket, 46, "SO_BUSY_POLL", .integer(natural), "there is no queue of a device to poll"),
        kept(.socket, 47, "SO_MAX_PACING_RATE", .long, initial: -1, "streams are paced, datagrams are not"),
        told(.socket, 48, "SO_BPF_EXTENSIONS", always: [64, 0, 0, 0]),
        kept(.socket, 49, "SO_INCOMING_CPU", .integer(anything), initial: -1, "the host has one thread"),
        refused(
            .socket, 50, "SO_ATTACH_BPF", .word(anything), EINVAL, initial: Int32.min, readError: ENOPROTOOPT,
            "the kernel's programs run in the kernel"),
        refused(
            .socket, 51, "SO_ATTACH_REUSEPORT_CBPF", .bytes(16), EINVAL, readError: ENOPROTOOPT,
            "connections are spread by their addresses"),
        refused(
            .socket, 52, "SO_ATTACH_REUSEPORT_EBPF", .word(anything), EINVAL, initial: Int32.min, readError: ENOPROTOOPT,
            "the kernel's programs run in the kernel"),
        ignored(.socket, 53, "SO_CNX_ADVICE", .integer(anything), readError: ENOPROTOOPT),
        told(.socket, 55, "SO_MEMINFO", .bytes(0)),
        told(.socket, 56, "SO_INCOMING_NAPI_ID", always: zeros(4)),
        told(.socket, 57, "SO_COOKIE", .bytes(0)),
        told(.socket, 59, "SO_PEERGROUPS", .bytes(0), readError: ENODATA),
        refused(.socket, 60, "SO_ZEROCOPY", .integer(bit), EOPNOTSUPP, "what is sent is copied"),
        refused(.socket, 61, "SO_TXTIME", .bytes(8), EINVAL, tells: zeros(8), "there is no queue that waits"),
        acts(.socket, 62, "SO_BINDTOIFINDEX", .integer(natural)),
        refused(.socket, 63, "SO_TIMESTAMP_NEW", .flag, ENOPROTOOPT, "SO_TIMESTAMP has 64 bits here"),
        refused(.socket, 64, "SO_TIMESTAMPNS_NEW", .flag, ENOPROTOOPT, "SO_TIMESTAMPNS has 64 bits here"),
        refused(
            .socket, 65, "SO_TIMESTAMPING_NEW", .integer(0...0x3ffff), ENOPROTOOPT, tells: zeros(8),
            "SO_TIMESTAMP and SO_TIMESTAMPNS tell the time of arrival"),
        acts(.socket, 66, "SO_RCVTIMEO_NEW", .bytes(16)),
        acts(.socket, 67, "SO_SNDTIMEO_NEW", .bytes(16)),
        unavailable(.socket, 68, "SO_DETACH_REUSEPORT_BPF", .integer(anything), EINVAL, readError: ENOPROTOOPT),
        kept(.socket, 69, "SO_PREFER_BUSY_POLL", .flag, "there is no queue of a device to poll"),
        ignored(.socket, 70, "SO_BUSY_POLL_BUDGET", .integer(0...65535), readError: ENOPROTOOPT),
        told(.socket, 71, "SO_NETNS_COOKIE", .bytes(0)),
        kept(.socket, 72, "SO_BUF_LOCK", .integer(0...3), "buffers keep the size that was set"),
        refused(.socket, 73, "SO_RESERVE_MEM", .integer(natural), EOPNOTSUPP, initial: Int32.min, tells: zeros(4), "as without cgroups"),
        kept(
            .socket, 74, "SO_TXREHASH", .integer(-1...1), on: .stream, initial: 1, "packets have no flow label"),
        unavailable(
            .socket, 74, "SO_TXREHASH", .integer(anything), on: [.datagram, .raw], EOPNOTSUPP, readError: EOPNOTSUPP),
        refused(.socket, 75, "SO_RCVMARK", .flag, ENOPROTOOPT, "packets that arrive have no mark"),
        unavailable(.socket, 76, "SO_PASSPIDFD", .flag, EOPNOTSUPP, readError: EOPNOTSUPP),
        told(.socket, 77, "SO_PEERPIDFD", .bytes(0), readError: ENODATA),
        refused(.socket, 82, "SO_RCVPRIORITY", .flag, ENOPROTOOPT, "packets that arrive have no priority"),
        unavailable(.socket, 83, "SO_PASSRIGHTS", .flag, EOPNOTSUPP, readError: EOPNOTSUPP),
    ]

    // MARK: IPPROTO_IP

    private static let ipLevel: [SocketOption] = [
        acts(.ip, 1, "IP_TOS", .integer(anything)),
        acts(.ip, 2, "IP_TTL", .integer(anything)),
        acts(.ip, 3, "IP_HDRINCL", .flag, on: .raw),
        unavailable(.ip, 3, "IP_HDRINCL", .flag, on: [.stream, .datagram], ENOPROTOOPT, tells: zeros(4)),
        acts(.ip, 4, "IP_OPTIONS", .bytes(0)),
        refused(
            .ip, 5, "IP_ROUTER_ALERT", .integer(anything), EINVAL, initial: Int32.min, tells: zeros(4),
            "nothing is forwarded"),
        kept(.ip, 6, "IP_RECVOPTS", .flag, "options that arrive are not passed to programs"),
        kept(.ip, 7, "IP_RETOPTS", .flag, "options that arrive are not passed to programs"),
        acts(.ip, 8, "IP_PKTINFO", .flag),
        told(.ip, 9, "IP_PKTOPTIONS", .bytes(0), on: .stream),
        acts(.ip, 10, "IP_MTU_DISCOVER", .integer(0...5)),
        acts(.ip, 11, "IP_RECVERR", .flag),
        acts(.ip, 12, "IP_RECVTTL", .flag),
        acts(.ip, 13, "IP_RECVTOS", .flag),
        told(.ip, 14, "IP_MTU"),
        acts(.ip, 15, "IP_FREEBIND", .flag, needsValue: true),
        refused(.ip, 16, "IP_IPSEC_POLICY", .bytes(0), EOPNOTSUPP, readError: ENOPROTOOPT, "there is no IPsec"),
        refused(.ip, 17, "IP_XFRM_POLICY", .bytes(0), EOPNOTSUPP, readError: ENOPROTOOPT, "there is no IPsec"),
        kept(.ip, 18, "IP_PASSSEC", .flag, "packets have no security label"),
        refused(.ip, 19, "IP_TRANSPARENT", .flag, EPERM, needsValue: true, "foreign addresses are not taken"),
        refused(.ip, 20, "IP_RECVORIGDSTADDR", .flag, ENOPROTOOPT, "IP_PKTINFO tells the address"),
        refused(.ip, 21, "IP_MINTTL", .integer(0...255), ENOPROTOOPT, needsValue: true, "packets are not refused for their TTL"),
        refused(
            .ip, 22, "IP_NODEFRAG", .flag, ENOPROTOOPT, "fragments are put together"),
        refused(.ip, 23, "IP_CHECKSUM", .flag, ENOPROTOOPT, "checksums are not told"),
        kept(.ip, 24, "IP_BIND_ADDRESS_NO_PORT", .flag, "a port is taken by bind"),
        kept(.ip, 25, "IP_RECVFRAGSIZE", .flag, on: [.datagram, .raw], "sizes of fragments are not told"),
        unavailable(.ip, 25, "IP_RECVFRAGSIZE", .flag, on: .stream, EINVAL, tells: zeros(4)),
        refused(.ip, 26, "IP_RECVERR_RFC4884", .integer(bit), ENOPROTOOPT, "errors come without extensions"),
        unavailable(.ip, 32, "IP_MULTICAST_IF", .bytes(0), on: .stream, EINVAL, tells: zeros(4)),
        acts(.ip, 32, "IP_MULTICAST_IF", .bytes(4), on: [.datagram, .raw]),
        unavailable(.ip, 33, "IP_MULTICAST_TTL", .integer(anything), on: .stream, EINVAL, tells: [1, 0, 0, 0]),
        acts(.ip, 33, "IP_MULTICAST_TTL", .integer(-1...255), on: [.datagram, .raw], needsValue: true),
        acts(.ip, 34, "IP_MULTICAST_LOOP", .flag, needsValue: true),
        acts(.ip, 35, "IP_ADD_MEMBERSHIP", .bytes(8), on: [.datagram, .raw], readError: ENOPROTOOPT),
        unavailable(.ip, 35, "IP_ADD_MEMBERSHIP", .bytes(0), on: .stream, EPROTO, readError: ENOPROTOOPT),
        acts(.ip, 36, "IP_DROP_MEMBERSHIP", .bytes(8), on: [.datagram, .raw], readError: ENOPROTOOPT),
        unavailable(.ip, 36, "IP_DROP_MEMBERSHIP", .bytes(0), on: .stream, EPROTO, readError: ENOPROTOOPT),
        refused(.ip, 37, "IP_UNBLOCK_SOURCE", .bytes(12), ENOPROTOOPT, readError: ENOPROTOOPT, "groups have no sources"),
        refused(.ip, 38, "IP_BLOCK_SOURCE", .bytes(12), ENOPROTOOPT, readError: ENOPROTOOPT, "groups have no sources"),
        refused(.ip, 39, "IP_ADD_SOURCE_MEMBERSHIP", .bytes(12), ENOPROTOOPT, readError: ENOPROTOOPT, "groups have no sources"),
        refused(.ip, 40, "IP_DROP_SOURCE_MEMBERSHIP", .bytes(12), ENOPROTOOPT, readError: ENOPROTOOPT, "groups have no sources"),
        refused(.ip, 41, "IP_MSFILTER", .bytes(16), ENOPROTOOPT, readError: EINVAL, "groups have no sources"),
        acts(.ip, 42, "MCAST_JOIN_GROUP", .bytes(136), readError: ENOPROTOOPT),
        refused(.ip, 43, "MCAST_BLOCK_SOURCE", .bytes(264), ENOPROTOOPT, readError: ENOPROTOOPT, "groups have no sources"),
        refused(.ip, 44, "MCAST_UNBLOCK_SOURCE", .bytes(264), ENOPROTOOPT, readError: ENOPROTOOPT, "groups have no sources"),
        acts(.ip, 45, "MCAST_LEAVE_GROUP", .bytes(136), readError: ENOPROTOOPT),
        refused(.ip, 46, "MCAST_JOIN_SOURCE_GROUP", .bytes(264), ENOPROTOOPT, readError: ENOPROTOOPT, "groups have no sources"),
        refused(.ip, 47, "MCAST_LEAVE_SOURCE_GROUP", .bytes(264), ENOPROTOOPT, readError: ENOPROTOOPT, "groups have no sources"),
        refused(.ip, 48, "MCAST_MSFILTER", .bytes(144), ENOPROTOOPT, readError: EINVAL, "groups have no sources"),
        acts(.ip, 49, "IP_MULTICAST_ALL", .integer(bit), needsValue: true),
        refused(.ip, 50, "IP_UNICAST_IF", .word(anything), EADDRNOTAVAIL, "SO_BINDTODEVICE does it"),
        refused(.ip, 51, "IP_LOCAL_PORT_RANGE", .word(anything), ENOPROTOOPT, "the stack's own range is a tunable"),
        told(.ip, 52, "IP_PROTOCOL"),
    ]

    // MARK: IPPROTO_TCP

    private static let tcpLevel: [SocketOption] = [
        acts(.tcp, 1, "TCP_NODELAY", .flag, on: .stream),
        acts(.tcp, 2, "TCP_MAXSEG", .integer(anything), on: .stream),
        acts(.tcp, 3, "TCP_CORK", .flag, on: .stream),
        acts(.tcp, 4, "TCP_KEEPIDLE", .integer(1...32767), on: .stream),
        acts(.tcp, 5, "TCP_KEEPINTVL", .integer(1...32767), on: .stream),
        acts(.tcp, 6, "TCP_KEEPCNT", .integer(1...127), on: .stream),
        acts(.tcp, 7, "TCP_SYNCNT", .integer(1...127), on: .stream),
        acts(.tcp, 8, "TCP_LINGER2", .integer(anything), on: .stream),
        acts(.tcp, 9, "TCP_DEFER_ACCEPT", .integer(anything), on: .stream),
        acts(.tcp, 10, "TCP_WINDOW_CLAMP", .integer(anything), on: .stream),
        told(.tcp, 11, "TCP_INFO", .bytes(0), on: .stream),
        acts(.tcp, 12, "TCP_QUICKACK", .integer(anything), on: .stream),
        acts(.tcp, 13, "TCP_CONGESTION", .bytes(1), on: .stream),
        refused(
            .tcp, 14, "TCP_MD5SIG", .bytes(216), on: .stream, ENOPROTOOPT, readError: ENOPROTOOPT, "RFC 2385 is not there"),
        kept(.tcp, 16, "TCP_THIN_LINEAR_TIMEOUTS", .integer(bit), on: .stream, "timeouts double whatever the stream"),
        ignored(.tcp, 17, "TCP_THIN_DUPACK", .integer(bit), on: .stream),
        acts(.tcp, 18, "TCP_USER_TIMEOUT", .integer(natural), on: .stream),
        refused(.tcp, 19, "TCP_REPAIR", .integer(-1...1), on: .stream, EPERM, "connections are not saved and restored"),
        refused(
            .tcp, 20, "TCP_REPAIR_QUEUE", .integer(anything), on: .stream, EPERM, initial: Int32.min, readError: EINVAL,
            "connections are not saved and restored"),
        refused(
            .tcp, 21, "TCP_QUEUE_SEQ", .integer(anything), on: .stream, EINVAL, initial: Int32.min, readError: EINVAL,
            "connections are not saved and restored"),
        refused(
            .tcp, 22, "TCP_REPAIR_OPTIONS", .bytes(0), on: .stream, EINVAL, readError: ENOPROTOOPT,
            "connections are not saved and restored"),
        acts(.tcp, 23, "TCP_FASTOPEN", .integer(natural), on: .stream),
        refused(
            .tcp, 24, "TCP_TIMESTAMP", .integer(anything), on: .stream, EPERM, initial: Int32.min, tells: zeros(4),
            "connections are not saved and restored"),
        acts(.tcp, 25, "TCP_NOTSENT_LOWAT", .integer(anything), on: .stream),
        told(.tcp, 26, "TCP_CC_INFO", .bytes(0), on: .stream, always: []),
        refused(.tcp, 27, "TCP_SAVE_SYN", .integer(0...2), on: .stream, ENOPROTOOPT, "SYNs are not kept"),
        told(.tcp, 28, "TCP_SAVED_SYN", .bytes(0), on: .stream, always: []),
        refused(
            .tcp, 29, "TCP_REPAIR_WINDOW", .integer(anything), on: .stream, EPERM, initial: Int32.min, readError: EINVAL,
            "connections are not saved and restored"),
        acts(.tcp, 30, "TCP_FASTOPEN_CONNECT", .integer(bit), on: .stream),
        refused(.tcp, 31, "TCP_ULP", .bytes(1), on: .stream, ENOENT, "there is no TLS in the stack"),
        refused(.tcp, 32, "TCP_MD5SIG_EXT", .bytes(216), on: .stream, ENOPROTOOPT, readError: ENOPROTOOPT, "RFC 2385 is not there"),
        acts(.tcp, 33, "TCP_FASTOPEN_KEY", .bytes(16), on: .stream),
        acts(.tcp, 34, "TCP_FASTOPEN_NO_COOKIE", .integer(bit), on: .stream),
        told(.tcp, 35, "TCP_ZEROCOPY_RECEIVE", .bytes(0), on: .stream, readError: EINVAL),
        refused(.tcp, 36, "TCP_INQ", .integer(bit), on: .stream, ENOPROTOOPT, "FIONREAD tells it"),
        refused(.tcp, 37, "TCP_TX_DELAY", .integer(natural), on: .stream, ENOPROTOOPT, "nothing is delayed"),
        told(.tcp, 43, "TCP_IS_MPTCP", on: .stream, always: zeros(4)),
    ]

    // MARK: IPPROTO_UDP and SOL_RAW

    private static let udpLevel: [SocketOption] = [
        acts(.udp, 1, "UDP_CORK", .flag, on: .datagram),
        told(.udp, 10, "UDPLITE_SEND_CSCOV", on: .datagram, always: zeros(4)),
        told(.udp, 11, "UDPLITE_RECV_CSCOV", on: .datagram, always: zeros(4)),
        refused(.udp, 100, "UDP_ENCAP", .integer(anything), on: .datagram, ENOPROTOOPT, "there is no IPsec"),
        kept(.udp, 101, "UDP_NO_CHECK6_TX", .flag, on: .datagram, "for IPv6"),
        kept(.udp, 102, "UDP_NO_CHECK6_RX", .flag, on: .datagram, "for IPv6"),
        refused(.udp, 103, "UDP_SEGMENT", .integer(0...65535), on: .datagram, ENOPROTOOPT, "a datagram is one packet"),
        kept(.udp, 104, "UDP_GRO", .flag, on: .datagram, "datagrams are never joined, as Linux may leave it"),
    ]

    private static let rawLevel: [SocketOption] = [
        acts(.raw, 1, "ICMP_FILTER", .bytes(0), on: .raw)
    ]

    // MARK: SOL_PACKET

    private static let packetLevel: [SocketOption] = [
        acts(.packet, 1, "PACKET_ADD_MEMBERSHIP", .bytes(16), on: .packet, readError: ENOPROTOOPT),
        acts(.packet, 2, "PACKET_DROP_MEMBERSHIP", .bytes(16), on: .packet, readError: ENOPROTOOPT),
        acts(.packet, 5, "PACKET_RX_RING", .bytes(16), on: .packet, readError: ENOPROTOOPT),
        told(.packet, 6, "PACKET_STATISTICS", .bytes(0), on: .packet),
        acts(.packet, 7, "PACKET_COPY_THRESH", .integer(anything), on: .packet),
        acts(.packet, 8, "PACKET_AUXDATA", .flag, on: .packet),
        acts(.packet, 9, "PACKET_ORIGDEV", .flag, on: .packet),
        acts(.packet, 10, "PACKET_VERSION", .integer(0...2), on: .packet),
        told(.packet, 11, "PACKET_HDRLEN", on: .packet),
        acts(.packet, 12, "PACKET_RESERVE", .integer(natural), on: .packet),
        acts(.packet, 13, "PACKET_TX_RING", .bytes(16), on: .packet, readError: ENOPROTOOPT),
        acts(.packet, 14, "PACKET_LOSS", .flag, on: .packet),
        refused(.packet, 15, "PACKET_VNET_HDR", .flag, on: .packet, EINVAL, "checksums are complete in what programs see"),
        unavailable(.packet, 16, "PACKET_TX_TIMESTAMP", .integer(anything), on: .packet, ENOPROTOOPT, readError: ENOPROTOOPT),
        kept(.packet, 17, "PACKET_TIMESTAMP", .integer(anything), on: .packet, "times are those of software"),
        acts(.packet, 18, "PACKET_FANOUT", .integer(anything), on: .packet),
        acts(.packet, 19, "PACKET_TX_HAS_OFF", .flag, on: .packet),
        kept(.packet, 20, "PACKET_QDISC_BYPASS", .flag, on: .packet, "there is no queue to pass by"),
        told(.packet, 21, "PACKET_ROLLOVER_STATS", .bytes(0), on: .packet),
        acts(.packet, 22, "PACKET_FANOUT_DATA", .bytes(16), on: .packet, readError: ENOPROTOOPT),
        acts(.packet, 23, "PACKET_IGNORE_OUTGOING", .integer(bit), on: .packet),
        refused(
            .packet, 24, "PACKET_VNET_HDR_SZ", .integer(anything), on: .packet, EINVAL,
            "checksums are complete in what programs see"),
    ]
}

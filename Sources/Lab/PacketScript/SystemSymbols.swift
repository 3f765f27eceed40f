/// The names scripts use for numbers, with Linux's values.
enum SystemSymbols {
    static func value(_ name: String) -> Int64? { table[name] ?? errors[name].map(Int64.init) }

    /// The name of an errno, for messages.
    static func errorName(_ number: Int32) -> String {
        errors.first { $0.value == number }?.key ?? "errno \(number)"
    }

    static let errors: [String: Int32] = [
        "EPERM": 1, "ENOENT": 2, "EINTR": 4, "EIO": 5, "EBADF": 9, "EAGAIN": 11, "EWOULDBLOCK": 11, "ENOMEM": 12,
        "EACCES": 13, "EFAULT": 14, "EBUSY": 16, "EEXIST": 17, "ENODEV": 19, "EINVAL": 22, "EMFILE": 24, "ENOTTY": 25,
        "ENOSPC": 28, "ESPIPE": 29, "EPIPE": 32, "EDOM": 33, "ERANGE": 34, "ENOMSG": 42, "EPROTO": 71, "EBADMSG": 74,
        "ENOTSOCK": 88, "EDESTADDRREQ": 89, "EMSGSIZE": 90, "EPROTOTYPE": 91, "ENOPROTOOPT": 92,
        "EPROTONOSUPPORT": 93, "ESOCKTNOSUPPORT": 94, "EOPNOTSUPP": 95, "ENOTSUP": 95, "EPFNOSUPPORT": 96,
        "EAFNOSUPPORT": 97, "EADDRINUSE": 98, "EADDRNOTAVAIL": 99, "ENETDOWN": 100, "ENETUNREACH": 101,
        "ENETRESET": 102, "ECONNABORTED": 103, "ECONNRESET": 104, "ENOBUFS": 105, "EISCONN": 106, "ENOTCONN": 107,
        "ESHUTDOWN": 108, "ETIMEDOUT": 110, "ECONNREFUSED": 111, "EHOSTDOWN": 112, "EHOSTUNREACH": 113,
        "EALREADY": 114, "EINPROGRESS": 115,
    ]

    private static let table: [String: Int64] = {
        var table: [String: Int64] = [:]
        for part in [sockets, socketOptions, protocolOptions, messages, files, polling, timestamping] {
            table.merge(part) { first, _ in first }
        }
        // Differentiated services as a type of service (RFC 2474, 2597, 3246), and the older names (RFC 1349).
        for level in 0...7 { table["IPTOS_DSCP_CS\(level)"] = Int64(level << 5) }
        for level in 1...4 {
            for drop in 1...3 { table["IPTOS_DSCP_AF\(level)\(drop)"] = Int64(level << 5 | drop << 3) }
        }
        for (name, value) in [("DSCP_EF", 0xb8), ("DSCP_VA", 0xb0), ("LOWDELAY", 0x10), ("THROUGHPUT", 8), ("RELIABILITY", 4)] {
            table["IPTOS_" + name] = Int64(value)
        }
        return table
    }()

    private static let sockets: [String: Int64] = [
        "NULL": 0, "AF_UNSPEC": 0, "AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "PF_INET": 2, "PF_INET6": 10,
        "SOCK_STREAM": 1, "SOCK_DGRAM": 2, "SOCK_RAW": 3, "SOCK_NONBLOCK": 0o4000, "SOCK_CLOEXEC": 0o2000000,
        "IPPROTO_IP": 0, "IPPROTO_ICMP": 1, "IPPROTO_TCP": 6, "IPPROTO_UDP": 17, "IPPROTO_IPV6": 41,
        "SOL_IP": 0, "SOL_SOCKET": 1, "SOL_TCP": 6, "SOL_UDP": 17, "SOL_IPV6": 41, "INADDR_ANY": 0,
        "SHUT_RD": 0, "SHUT_WR": 1, "SHUT_RDWR": 2, "SOMAXCONN": 4096,
    ]

    private static let socketOptions: [String: Int64] = [
        "SO_DEBUG": 1, "SO_REUSEADDR": 2, "SO_TYPE": 3, "SO_ERROR": 4, "SO_DONTROUTE": 5, "SO_BROADCAST": 6,
        "SO_SNDBUF": 7, "SO_RCVBUF": 8, "SO_KEEPALIVE": 9, "SO_OOBINLINE": 10, "SO_PRIORITY": 12, "SO_LINGER": 13,
        "SO_REUSEPORT": 15, "SO_PASSCRED": 16, "SO_RCVLOWAT": 18, "SO_SNDLOWAT": 19, "SO_RCVTIMEO": 20,
        "SO_SNDTIMEO": 21, "SO_BINDTODEVICE": 25, "SO_TIMESTAMP": 29, "SO_ACCEPTCONN": 30, "SO_SNDBUFFORCE": 32,
        "SO_RCVBUFFORCE": 33, "SO_TIMESTAMPNS": 35, "SO_MARK": 36, "SO_TIMESTAMPING": 37, "SO_PROTOCOL": 38,
        "SO_DOMAIN": 39, "SO_RXQ_OVFL": 40, "SO_PEEK_OFF": 42, "SO_SELECT_ERR_QUEUE": 45, "SO_BUSY_POLL": 46,
        "SO_MAX_PACING_RATE": 47, "SO_INCOMING_CPU": 49, "SO_MEMINFO": 55, "SO_COOKIE": 57, "SO_ZEROCOPY": 60,
        "SO_TXTIME": 61, "SO_BINDTOIFINDEX": 62, "SO_TXREHASH": 74,
    ]

    private static let protocolOptions: [String: Int64] = [
        "IP_TOS": 1, "IP_TTL": 2, "IP_HDRINCL": 3, "IP_OPTIONS": 4, "IP_RECVOPTS": 6, "IP_RETOPTS": 7, "IP_PKTINFO": 8,
        "IP_MTU_DISCOVER": 10, "IP_RECVERR": 11, "IP_RECVTTL": 12, "IP_RECVTOS": 13, "IP_MTU": 14, "IP_FREEBIND": 15,
        "IP_TRANSPARENT": 19, "IP_MINTTL": 21, "IP_BIND_ADDRESS_NO_PORT": 24, "IP_MULTICAST_IF": 32,
        "IP_MULTICAST_TTL": 33, "IP_MULTICAST_LOOP": 34, "IP_PMTUDISC_DONT": 0, "IP_PMTUDISC_WANT": 1,
        "IP_PMTUDISC_DO": 2, "IP_PMTUDISC_PROBE": 3, "IP_PMTUDISC_INTERFACE": 4, "IP_PMTUDISC_OMIT": 5,
        "TCP_NODELAY": 1, "TCP_MAXSEG": 2, "TCP_CORK": 3, "TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6,
        "TCP_SYNCNT": 7, "TCP_LINGER2": 8, "TCP_DEFER_ACCEPT": 9, "TCP_WINDOW_CLAMP": 10, "TCP_INFO": 11,
        "TCP_QUICKACK": 12, "TCP_CONGESTION": 13, "TCP_MD5SIG": 14, "TCP_THIN_LINEAR_TIMEOUTS": 16,
        "TCP_THIN_DUPACK": 17, "TCP_USER_TIMEOUT": 18, "TCP_REPAIR": 19, "TCP_REPAIR_QUEUE": 20, "TCP_QUEUE_SEQ": 21,
        "TCP_REPAIR_OPTIONS": 22, "TCP_FASTOPEN": 23, "TCP_TIMESTAMP": 24, "TCP_NOTSENT_LOWAT": 25, "TCP_CC_INFO": 26,
        "TCP_SAVE_SYN": 27, "TCP_SAVED_SYN": 28, "TCP_REPAIR_WINDOW": 29, "TCP_FASTOPEN_CONNECT": 30, "TCP_ULP": 31,
        "TCP_MD5SIG_EXT": 32, "TCP_FASTOPEN_KEY": 33, "TCP_FASTOPEN_NO_COOKIE": 34, "TCP_ZEROCOPY_RECEIVE": 35,
        "TCP_KEEPINIT": 128, "TCP_INQ": 36, "TCP_CM_INQ": 36, "TCP_TX_DELAY": 37, "UDP_CORK": 1, "UDP_SEGMENT": 103, "UDP_GRO": 104,
        "CMSG_LEVEL_IP": 0, "CMSG_TYPE_RECVERR": 11,
    ]

    private static let messages: [String: Int64] = [
        "MSG_OOB": 1, "MSG_PEEK": 2, "MSG_DONTROUTE": 4, "MSG_CTRUNC": 8, "MSG_TRUNC": 0x20, "MSG_DONTWAIT": 0x40,
        "MSG_EOR": 0x80, "MSG_WAITALL": 0x100, "MSG_CONFIRM": 0x800, "MSG_ERRQUEUE": 0x2000, "MSG_NOSIGNAL": 0x4000,
        "MSG_MORE": 0x8000, "MSG_WAITFORONE": 0x10000, "MSG_ZEROCOPY": 0x400_0000, "MSG_FASTOPEN": 0x2000_0000,
        "MSG_CMSG_CLOEXEC": 0x4000_0000,
    ]

    private static let files: [String: Int64] = [
        "O_RDONLY": 0, "O_WRONLY": 1, "O_RDWR": 2, "O_CREAT": 0o100, "O_TRUNC": 0o1000, "O_APPEND": 0o2000,
        "O_NONBLOCK": 0o4000, "O_CLOEXEC": 0o2000000, "F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3,
        "F_SETFL": 4, "FD_CLOEXEC": 1, "FIONREAD": 0x541b, "SIOCINQ": 0x541b, "SIOCOUTQ": 0x5411,
        "TIOCOUTQ": 0x5411, "SIOCOUTQNSD": 0x894b, "FIONBIO": 0x5421, "SIOCATMARK": 0x8905, "SPLICE_F_MOVE": 1,
        "SPLICE_F_NONBLOCK": 2, "SPLICE_F_MORE": 4, "CAP_NET_RAW": 13, "CAP_NET_ADMIN": 12, "SIGPIPE": 13,
    ]

    private static let polling: [String: Int64] = [
        "POLLIN": 1, "POLLPRI": 2, "POLLOUT": 4, "POLLERR": 8, "POLLHUP": 0x10, "POLLNVAL": 0x20, "POLLRDNORM": 0x40,
        "POLLRDBAND": 0x80, "POLLWRNORM": 0x100, "POLLWRBAND": 0x200, "POLLMSG": 0x400, "POLLRDHUP": 0x2000,
        "EPOLLIN": 1, "EPOLLPRI": 2, "EPOLLOUT": 4, "EPOLLERR": 8, "EPOLLHUP": 0x10, "EPOLLRDNORM": 0x40,
        "EPOLLRDBAND": 0x80, "EPOLLWRNORM": 0x100, "EPOLLWRBAND": 0x200, "EPOLLMSG": 0x400, "EPOLLRDHUP": 0x2000,
        "EPOLLEXCLUSIVE": 1 << 28, "EPOLLWAKEUP": 1 << 29, "EPOLLONESHOT": 1 << 30, "EPOLLET": 1 << 31,
        "EPOLL_CTL_ADD": 1, "EPOLL_CTL_DEL": 2, "EPOLL_CTL_MOD": 3,
    ]

    private static let timestamping: [String: Int64] = [
        "SCM_TIMESTAMPING": 37, "SCM_TIMESTAMPING_OPT_STATS": 54, "SOF_TIMESTAMPING_TX_SOFTWARE": 2,
        "SOF_TIMESTAMPING_RX_SOFTWARE": 8, "SOF_TIMESTAMPING_SOFTWARE": 16, "SOF_TIMESTAMPING_OPT_ID": 128,
        "SOF_TIMESTAMPING_TX_SCHED": 256, "SOF_TIMESTAMPING_TX_ACK": 512, "SOF_TIMESTAMPING_OPT_TSONLY": 2048,
        "SOF_TIMESTAMPING_OPT_STATS": 4096, "SCM_TSTAMP_SND": 0, "SCM_TSTAMP_SCHED": 1, "SCM_TSTAMP_ACK": 2,
        "SO_EE_ORIGIN_NONE": 0, "SO_EE_ORIGIN_LOCAL": 1, "SO_EE_ORIGIN_ICMP": 2, "SO_EE_ORIGIN_TIMESTAMPING": 4,
        "SO_EE_ORIGIN_ZEROCOPY": 5, "SO_EE_CODE_ZEROCOPY_COPIED": 1,
    ]
}

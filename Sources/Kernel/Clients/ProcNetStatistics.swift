import Glibc
import PluginAPI

/// The files of /proc/net that count: Linux's names for what the plugins count by BSD's. What the stack does not count is 0.
enum ProcNetStatistics {
    private struct Counts {
        private var values: [String: UInt64] = [:]

        init(_ kernel: Kernel) {
            for counter in kernel.counters.all() { values["\(counter.instance).\(counter.name)"] = counter.value }
        }

        /// The sum of some counters, "tcp.sndtotal".
        func callAsFunction(_ names: String...) -> UInt64 { names.reduce(0) { $0 &+ (values[$1] ?? 0) } }
    }

    /// A line of names and one of values.
    private static func section(_ name: String, _ rows: [(String, some BinaryInteger)]) -> String {
        "\(name): \(rows.map(\.0).joined(separator: " "))\n\(name): \(rows.map { String($0.1) }.joined(separator: " "))\n"
    }

    private static func established(_ kernel: Kernel) -> Int {
        var count = 0
        kernel.connections.forEach { conn in
            // ESTABLISHED and CLOSE-WAIT (RFC 4022, tcpCurrEstab).
            if conn.pointee.protocol == UInt8(IPPROTO_TCP), conn.pointee.state == 4 || conn.pointee.state == 7 { count += 1 }
        }
        return count
    }

    static func snmp(_ kernel: Kernel) -> String {
        let c = Counts(kernel)
        let ttl = UInt64(kernel.tunables.all.first { $0.name == "net.inet.ip.ttl" }?.text ?? "") ?? 64
        let headerErrors = c(
            "ipv4.bad_checksum", "ipv4.too_short", "ipv4.bad_version", "ipv4.bad_header_length", "ipv4.bad_length",
            "ipv4.bad_options")
        return section("Ip", [
            ("Forwarding", 2), ("DefaultTTL", ttl), ("InReceives", c("ipv4.received")), ("InHdrErrors", headerErrors),
            ("InAddrErrors", c("ipv4.bad_address", "ipv4.not_for_us")), ("ForwDatagrams", 0),
            ("InUnknownProtos", c("ipv4.no_protocol")), ("InDiscards", 0), ("InDelivers", c("ipv4.delivered")),
            ("OutRequests", c("ipv4.sent")), ("OutDiscards", 0), ("OutNoRoutes", c("ipv4.no_route")),
            ("ReasmTimeout", c("ipv4.reassembly_timeouts")), ("ReasmReqds", c("ipv4.fragments_received")),
            ("ReasmOKs", c("ipv4.reassembled")), ("ReasmFails", c("ipv4.fragments_dropped")),
            ("FragOKs", c("ipv4.fragmented")), ("FragFails", c("ipv4.too_big")),
            ("FragCreates", c("ipv4.fragments_sent")), ("OutTransmits", c("ipv4.sent")),
        ])
            + section("Icmp", [
                ("InMsgs", c("icmp.received")), ("InErrors", c("icmp.too_short", "icmp.bad_checksum")),
                ("InCsumErrors", c("icmp.bad_checksum")), ("InDestUnreachs", c("icmp.errors_received")),
                ("InTimeExcds", 0), ("InParmProbs", 0), ("InSrcQuenchs", 0), ("InRedirects", c("icmp.redirects")),
                ("InEchos", c("icmp.echo_replies")), ("InEchoReps", c("icmp.echo_delivered")),
                ("InTimestamps", c("icmp.timestamp_replies")), ("InTimestampReps", 0), ("InAddrMasks", 0),
                ("InAddrMaskReps", 0), ("OutMsgs", c("icmp.sent")), ("OutErrors", 0), ("OutRateLimitGlobal", c("icmp.limited")),
                ("OutRateLimitHost", 0), ("OutDestUnreachs", c("icmp.errors_sent")), ("OutTimeExcds", 0),
                ("OutParmProbs", 0), ("OutSrcQuenchs", 0), ("OutRedirects", 0), ("OutEchos", 0),
                ("OutEchoReps", c("icmp.echo_replies")), ("OutTimestamps", 0),
                ("OutTimestampReps", c("icmp.timestamp_replies")), ("OutAddrMasks", 0), ("OutAddrMaskReps", 0),
            ])
            // 200 ms and 120 s, van Jacobson's algorithm, no limit of connections.
            + section("Tcp", [
                ("RtoAlgorithm", 1), ("RtoMin", 200), ("RtoMax", 120_000), ("MaxConn", -1),
                ("ActiveOpens", Int64(c("tcp.connattempt"))), ("PassiveOpens", Int64(c("tcp.accepts"))),
                ("AttemptFails", Int64(c("tcp.conndrops"))), ("EstabResets", Int64(c("tcp.drops"))),
                ("CurrEstab", Int64(established(kernel))), ("InSegs", Int64(c("tcp.rcvtotal"))),
                ("OutSegs", Int64(c("tcp.sndtotal"))), ("RetransSegs", Int64(c("tcp.sndrexmitpack"))),
                ("InErrs", Int64(c("tcp.rcvbadsum", "tcp.rcvbadoff", "tcp.rcvshort"))),
                ("OutRsts", Int64(c("tcp.sndrst"))), ("InCsumErrors", Int64(c("tcp.rcvbadsum"))),
            ])
            + section("Udp", [
                ("InDatagrams", c("udp.delivered")), ("NoPorts", c("udp.noport")),
                ("InErrors", c("udp.hdrops", "udp.badlen", "udp.badsum", "udp.fullsock")),
                ("OutDatagrams", c("udp.opackets")), ("RcvbufErrors", c("udp.fullsock")),
                ("SndbufErrors", c("udp.oerrors")), ("InCsumErrors", c("udp.badsum")),
                ("IgnoredMulti", c("udp.noportbcast")), ("MemErrors", 0),
            ])
            + section("UdpLite", [
                ("InDatagrams", 0), ("NoPorts", 0), ("InErrors", 0), ("OutDatagrams", 0), ("RcvbufErrors", 0),
                ("SndbufErrors", 0), ("InCsumErrors", 0), ("IgnoredMulti", 0), ("MemErrors", 0),
            ])
    }

    static func netstat(_ kernel: Kernel) -> String {
        let c = Counts(kernel)
        let interfaces = kernel.interfaces.all
        return section("TcpExt", [
            ("SyncookiesSent", c("tcp.sc_sendcookie")), ("SyncookiesRecv", c("tcp.sc_recvcookie")),
            ("SyncookiesFailed", c("tcp.sc_badack")), ("EmbryonicRsts", c("tcp.sc_reset")), ("TW", c("tcp.timewait")),
            ("TWRecycled", c("tcp.tw_reused")), ("PAWSEstab", c("tcp.pawsdrop")), ("DelayedACKs", c("tcp.delack")),
            ("ListenOverflows", kernel.sockets.listenOverflows), ("ListenDrops", c("tcp.listendrop")),
            ("TCPPureAcks", c("tcp.rcvackpack")), ("TCPSACKReneging", c("tcp.sack_reneged")),
            ("TCPSACKDiscard", c("tcp.sack_bad")), ("TCPFastRetrans", c("tcp.sndfrexmit")),
            ("TCPTimeouts", c("tcp.rexmttimeo")), ("TCPLossProbes", c("tcp.tlpsnt")),
            ("TCPLossProbeRecovery", c("tcp.tlprecovered")), ("TCPDSACKOldSent", c("tcp.dsack_sent")),
            ("TCPDSACKRecv", c("tcp.dsack_rcvd")), ("TCPSpuriousRTOs", c("tcp.rexmtspurious")),
            ("TCPFullUndo", c("tcp.sndundo")), ("TCPAbortOnTimeout", c("tcp.timeoutdrop", "tcp.persistdrop", "tcp.keepdrops")),
            ("TCPAbortOnMemory", c("tcp.nomem")), ("TCPTimeWaitOverflow", c("tcp.tw_overflow")),
            ("TCPChallengeACK", c("tcp.sndchallenge")), ("TCPSYNChallenge", c("tcp.badsyn")),
            ("TCPOFOQueue", c("tcp.rcvoopack")), ("TCPOFODrop", c("tcp.rcvreassfull")),
            ("TCPKeepAlive", c("tcp.keepprobe")), ("TCPWinProbe", c("tcp.sndprobe")),
            ("TCPMTUPSuccess", c("tcp.pmtud_probe_ok")), ("TCPFastOpenActive", c("tcp.tfo_client")),
            ("TCPFastOpenPassive", c("tcp.tfo_server")), ("TCPFastOpenPassiveFail", c("tcp.tfo_badcookie")),
            ("TCPFastOpenListenOverflow", c("tcp.tfo_overflow")),
        ])
            + section("IpExt", [
                ("InNoRoutes", 0), ("InTruncatedPkts", c("ipv4.too_short")),
                ("InOctets", interfaces.reduce(0) { $0 &+ $1.bytesIn }),
                ("OutOctets", interfaces.reduce(0) { $0 &+ $1.bytesOut }), ("InCsumErrors", c("ipv4.bad_checksum")),
                ("InCEPkts", c("tcp.ecn_ce")),
            ])
    }

    /// Sockets, and memory in pages.
    static func socketUse(_ kernel: Kernel) -> String {
        let all = kernel.sockets.all
        var timeWait = 0
        var tcp = 0
        var udp = 0
        kernel.connections.forEach { conn in
            guard let entry = SocketDiagnosis.Entry(conn) else { return }
            if entry.protocolNumber == UInt8(IPPROTO_UDP) { udp += 1 }
            guard entry.protocolNumber == UInt8(IPPROTO_TCP) else { return }
            if UInt32(conn.pointee.kind) == ALPS_CONN_TIMEWAIT { timeWait += 1 } else { tcp += 1 }
        }
        let orphans = all.count { $0.isStream && $0.isClosed }
        let streams = all.filter(\.isStream)
        let held = streams.reduce(0) { $0 + $1.sendQueued + Int($1.raw.pointee.rcv.tail &- $1.raw.pointee.rcv.head) }
        let queued = all.reduce(0) { $0 + $1.datagrams.bytes }
        let raw = all.count { $0.raw.pointee.type == UInt16(ALPS_SOCK_RAW) }
        let fragments = kernel.counters.value("ipv4", "datagrams_held") ?? 0
        return """
            sockets: used \(all.count)
            TCP: inuse \(tcp) orphan \(orphans) tw \(timeWait) alloc \(streams.count) mem \((held + 4095) / 4096)
            UDP: inuse \(udp) mem \((queued + 4095) / 4096)
            UDPLITE: inuse 0
            RAW: inuse \(raw)
            FRAG: inuse \(fragments) memory 0

            """
    }
}

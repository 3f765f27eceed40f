import Kernel

/// What Linux's and FreeBSD's sysctls are called here. One table, read by whoever wants to know why a script is refused.
enum SysctlMap {
    /// How a value is to be understood.
    enum Unit {
        /// As it stands.
        case number
        case milliseconds, seconds
        /// Linux's "minimum default maximum" of a buffer: the second for the first tunable, the third for the second.
        case buffer
        /// A number of bytes; as much as the stack has.
        case clamped
        /// The name of a congestion control.
        case algorithm
        /// On if it is not 0, off if it is not 0, on from 3 up.
        case switched, inverted, fromThree
    }

    struct Rule {
        /// The script's names, Linux's with "net.ipv4." and so on.
        var names: [String]
        /// Ours of the same meaning; those that are loaded are set.
        var tunables: [String]
        var unit: Unit
        /// Values that name what the stack does anyhow, for when there is nothing to set.
        var fixed: [String]
    }

    private static func rule(
        _ names: String, _ tunables: String = "", _ unit: Unit = .number, fixed: [String] = []
    ) -> Rule {
        Rule(
            names: names.split(separator: " ").map(String.init),
            tunables: tunables.split(separator: " ").map(String.init), unit: unit, fixed: fixed)
    }

    static let rules: [Rule] = [
        rule("net.ipv4.tcp_sack net.inet.tcp.sack.enable", "net.inet.tcp.sack.enable"),
        rule("net.inet.tcp.rfc1323", "net.inet.tcp.rfc1323"),
        rule("net.ipv4.tcp_timestamps", "net.inet.tcp.timestamps", fixed: ["1", "2"]),
        rule("net.ipv4.tcp_window_scaling", "net.inet.tcp.window_scaling", fixed: ["1"]),
        rule("net.ipv4.tcp_dsack net.inet.tcp.sack.dsack", "net.inet.tcp.sack.dsack", fixed: ["1"]),
        rule("net.ipv4.tcp_ecn net.inet.tcp.ecn.enable", "net.inet.tcp.ecn.enable", fixed: ["0", "2"]),
        rule("net.ipv4.tcp_ecn_option", "net.inet.tcp.ecn.option", fixed: ["0"]),
        rule("net.ipv4.tcp_ecn_option_beacon", "net.inet.tcp.ecn.option_beacon", fixed: ["3"]),
        rule("net.ipv4.tcp_ecn_fallback", "net.inet.tcp.ecn.fallback", fixed: ["1"]),
        rule("net.ipv4.tcp_syn_linear_timeouts", "net.inet.tcp.syn_linear_timeouts", fixed: ["0"]),
        rule("net.ipv4.tcp_syncookies net.inet.tcp.syncookies", "net.inet.tcp.syncookies"),
        rule("net.ipv4.tcp_rmem", "kern.ipc.recvspace net.inet.tcp.recvbuf_max", .buffer),
        rule("net.ipv4.tcp_wmem", "kern.ipc.sendspace net.inet.tcp.sendbuf_max", .buffer),
        rule("net.core.rmem_default net.inet.tcp.recvspace kern.ipc.recvspace", "kern.ipc.recvspace"),
        rule("net.core.wmem_default net.inet.tcp.sendspace kern.ipc.sendspace", "kern.ipc.sendspace"),
        rule("net.core.rmem_max net.core.wmem_max", "kern.ipc.maxsockbuf"),
        // From it BSD chooses the window scale as well.
        rule("kern.ipc.maxsockbuf", "kern.ipc.maxsockbuf net.inet.tcp.recvbuf_max", .clamped),
        rule("net.inet.tcp.persmin", "net.inet.tcp.persmin", .milliseconds),
        rule("net.core.somaxconn kern.ipc.somaxconn kern.ipc.soacceptqueue", "kern.ipc.somaxconn"),
        rule("net.ipv4.tcp_keepalive_time", "net.inet.tcp.keepidle", .seconds),
        rule("net.ipv4.tcp_keepalive_intvl", "net.inet.tcp.keepintvl", .seconds),
        rule("net.ipv4.tcp_keepalive_probes net.inet.tcp.keepcnt", "net.inet.tcp.keepcnt"),
        rule("net.inet.tcp.keepidle", "net.inet.tcp.keepidle", .milliseconds),
        rule("net.inet.tcp.keepintvl", "net.inet.tcp.keepintvl", .milliseconds),
        rule("net.inet.tcp.keepinit", "net.inet.tcp.keepinit", .milliseconds),
        rule("net.inet.tcp.always_keepalive", "net.inet.tcp.always_keepalive"),
        rule("net.ipv4.tcp_fin_timeout", "net.inet.tcp.finwait2_timeout", .seconds),
        rule("net.inet.tcp.finwait2_timeout", "net.inet.tcp.finwait2_timeout", .milliseconds),
        rule("net.inet.tcp.msl", "net.inet.tcp.msl", .milliseconds),
        rule("net.inet.tcp.delacktime", "net.inet.tcp.delacktime", .milliseconds),
        rule("net.ipv4.tcp_delack_max_ms", "net.inet.tcp.delacktime", .milliseconds),
        rule("net.inet.tcp.rexmit_min", "net.inet.tcp.rexmit_min", .milliseconds),
        rule("net.ipv4.tcp_rto_min_us", "net.inet.tcp.rexmit_min net.inet.tcp.rexmit_var_min", .number),
        rule("net.ipv4.tcp_rto_max_ms", "net.inet.tcp.rexmit_max", .milliseconds),
        rule("net.inet.tcp.rexmit_initial", "net.inet.tcp.rexmit_initial", .milliseconds),
        rule("net.ipv4.tcp_retries2 net.inet.tcp.retries", "net.inet.tcp.retries"),
        rule("net.ipv4.tcp_orphan_retries", "net.inet.tcp.orphan_retries"),
        rule("net.ipv4.tcp_synack_retries net.inet.tcp.syncache.rexmtlimit", "net.inet.tcp.syncache.rexmtlimit"),
        rule("net.inet.tcp.mssdflt", "net.inet.tcp.mssdflt"),
        rule("net.inet.tcp.minmss net.ipv4.tcp_min_snd_mss", "net.inet.tcp.minmss"),
        rule("net.inet.tcp.initcwnd_segments", "net.inet.tcp.initcwnd_segments"),
        rule("net.inet.tcp.blackhole", "net.inet.tcp.blackhole"),
        rule("net.inet.tcp.drop_synfin", "net.inet.tcp.drop_synfin"),
        rule("net.inet.tcp.path_mtu_discovery", "net.inet.tcp.path_mtu_discovery"),
        rule("net.inet.tcp.tolerate_missing_ts", "net.inet.tcp.tolerate_missing_ts"),
        rule("net.inet.tcp.tso", "net.inet.tcp.tso"),
        rule("net.inet.tcp.reass.maxqueuelen", "net.inet.tcp.reass.maxqueuelen"),
        rule("net.ipv4.ip_default_ttl net.inet.ip.ttl", "net.inet.ip.ttl"),
        rule("net.inet.udp.blackhole", "net.inet.udp.blackhole"),
        rule("net.inet.icmp.icmplim net.ipv4.icmp_msgs_per_sec", "net.inet.icmp.icmplim"),
        rule("net.ipv4.tcp_frto", "net.inet.tcp.frto", .switched),
        rule("net.ipv4.tcp_early_retrans", "net.inet.tcp.tlp", .fromThree),
        rule("net.ipv4.tcp_slow_start_after_idle", "net.inet.tcp.newcwv", .inverted),
        rule("net.ipv4.tcp_moderate_rcvbuf net.inet.tcp.recvbuf_auto", "net.inet.tcp.recvbuf_auto", .switched),
        rule("net.inet.tcp.sendbuf_auto", "net.inet.tcp.sendbuf_auto", .switched),
        rule("net.ipv4.tcp_congestion_control net.inet.tcp.cc.algorithm", "net.inet.tcp.cc.default", .algorithm),
        rule("net.ipv4.tcp_recovery", fixed: ["1"]),
        rule("net.ipv4.tcp_mtu_probing", "net.inet.tcp.pmtud_blackhole_detection", .switched),
        rule("net.ipv4.tcp_stdurg", fixed: ["0"]),
        rule("net.inet.tcp.insecure_syn net.inet.tcp.insecure_rst net.inet.tcp.insecure_ack", fixed: ["0"]),
        rule("net.ipv4.tcp_abort_on_overflow", fixed: ["0"]),
    ]

    /// Without a meaning here, or about what no packet shows. A pattern that ends in "*" stands for all that begin so.
    static let ignored: [String] = [
        "net.inet.tcp.hostcache.*", "net.inet.tcp.rexmit_slop", "net.inet.tcp.fastopen.ccache*",
        "net.inet.tcp.fastopen.keylen", "net.inet.tcp.fastopen.max*", "net.inet.tcp.fastopen.path_disable_time",
        "net.inet.tcp.fastopen.psk_enable", "net.inet.tcp.functions_*", "net.inet.tcp.rack.*", "net.inet.tcp.cc.*", "net.inet.tcp.syncache.*",
        "net.inet.tcp.prr*", "net.inet.tcp.newcwd", "net.inet.tcp.lro*", "net.inet.tcp.persmax", "net.inet.tcp.pcap*",
        "net.inet.tcp.log.*", "net.inet.tcp.bb.*", "net.inet.tcp.abc_l_var",
        "net.inet.tcp.nolocaltimewait", "net.inet.tcp.log_debug", "net.inet.tcp.syncookies_only",
        "net.inet.tcp.udp_tunneling_port", "net.inet.tcp.recvbuf_*", "net.inet.tcp.sendbuf_*", "net.inet.tcp.do_*",
        "net.inet.tcp.v6*", "net.inet6.*", "net.inet.tcp.rfc6675_pipe", "net.inet.tcp.rfc3042", "net.inet.tcp.rfc3390",
        "net.inet.tcp.ts_offset_per_conn",
        "net.ipv4.tcp_no_metrics_save", "net.ipv4.tcp_no_ssthresh_metrics_save", "net.ipv4.tcp_pacing_*",
        "net.ipv4.tcp_fack", "net.ipv4.tcp_reordering", "net.ipv4.tcp_max_reordering", "net.ipv4.tcp_tso_win_divisor",
        "net.ipv4.tcp_min_tso_segs", "net.ipv4.tcp_tso_rtt_log", "net.ipv4.tcp_limit_output_bytes",
        "net.ipv4.tcp_autocorking", "net.ipv4.tcp_notsent_lowat",
        "net.ipv4.tcp_fastopen_blackhole_timeout_sec", "net.ipv4.tcp_syn_retries",
        "net.ipv4.tcp_max_syn_backlog", "net.ipv4.tcp_retries1",
        "net.ipv4.tcp_comp_sack_*", "net.ipv4.tcp_backlog_ack_defer", "net.ipv4.tcp_invalid_ratelimit",
        "net.ipv4.tcp_challenge_ack_limit", "net.ipv4.tcp_thin_linear_timeouts", "net.ipv4.tcp_probe_*",
        "net.ipv4.tcp_base_mss", "net.ipv4.tcp_mtu_probe_floor", "net.ipv4.tcp_tw_reuse", "net.ipv4.tcp_tw_recycle",
        "net.ipv4.tcp_adv_win_scale", "net.ipv4.tcp_app_win", "net.ipv4.tcp_rfc1337", "net.ipv4.tcp_workaround_*",
        "net.ipv4.tcp_shrink_window", "net.ipv4.tcp_plb_*", "net.ipv4.tcp_migrate_req", "net.ipv4.tcp_mem",
        "net.ipv4.tcp_reflect_tos",
        "net.ipv4.ip_local_port_range", "net.ipv4.ip_forward", "net.ipv4.conf.*", "net.ipv4.route.*",
        "net.ipv4.icmp_ratelimit", "net.ipv4.icmp_ratemask", "net.ipv4.icmp_msgs_burst", "net.ipv6.*", "net.mptcp.*",
        "net.core.default_qdisc", "net.core.optmem_max", "net.core.netdev_*", "net.core.busy_*", "kern.hz",
        "net.inet.ip.random_id", "net.inet.ip.rfc6864", "net.inet.icmp.*",
    ]

    static func isIgnored(_ name: String) -> Bool {
        ignored.contains { $0.hasSuffix("*") ? name.hasPrefix($0.dropLast()) : $0 == name }
    }

    /// Linux's one number for Fast Open: 1 for clients, 2 for listeners that ask for it, 4 for clients and 0x200 for
    /// listeners without cookies, 0x400 for all listeners. Further bits mean nothing to today's kernels either.
    private static func setFastOpen(_ value: String, _ tunables: TunableRegistry) throws {
        let bits = value.hasPrefix("0x") ? Int64(value.dropFirst(2), radix: 16) : Int64(value)
        guard let bits else {
            throw ScriptFault.syntax("sysctl net.ipv4.tcp_fastopen=\(value): expected a number")
        }
        try store("net.inet.tcp.fastopen.client_enable", bits & 1 != 0 ? "1" : "0", tunables)
        try store("net.inet.tcp.fastopen.server_enable", bits & 2 != 0 ? "1" : "0", tunables)
        try store("net.inet.tcp.fastopen.cookieless", String(bits >> 2 & 1 | bits >> 8 & 2), tunables)
        try store("net.inet.tcp.fastopen.all_listeners", bits & 0x400 != 0 ? "1" : "0", tunables)
    }

    /// Four groups of eight hexadecimal digits, each a little-endian word; a second key behind a comma is not needed.
    private static func setFastOpenKey(_ value: String, _ tunables: TunableRegistry) throws {
        let words = value.prefix { $0 != "," }.split(separator: "-").compactMap { UInt64($0, radix: 16) }
        guard words.count == 4, words.allSatisfy({ $0 <= UInt64(UInt32.max) }) else {
            throw ScriptFault.syntax("sysctl net.ipv4.tcp_fastopen_key=\(value): expected four groups of eight digits")
        }
        for (place, name) in ["net.inet.tcp.fastopen.key0", "net.inet.tcp.fastopen.key1"].enumerated() {
            let half = words[2 * place] | words[2 * place + 1] << 32
            try store(name, String(Int64(bitPattern: half)), tunables)
        }
    }

    /// What clients know of their servers goes.
    static func forgetCookies(_ tunables: TunableRegistry) throws {
        let name = "net.inet.tcp.fastopen.generation"
        if let tunable = tunables.get(name) { try store(name, String(tunable.value + 1), tunables) }
    }

    /// Sets what `name=value` asks for. Throws a clear line if it cannot be had.
    static func set(_ name: String, _ value: String, in tunables: TunableRegistry) throws {
        let name = name.replacingOccurrences(of: "/", with: ".")
        // FreeBSD forgets its cookies with it.
        if name == "net.inet.tcp.fastopen.client_enable", value == "0" { try forgetCookies(tunables) }
        if name == "net.ipv4.tcp_fastopen" { return try setFastOpen(value, tunables) }
        if name == "net.ipv4.tcp_fastopen_key" { return try setFastOpenKey(value, tunables) }
        guard let rule = rules.first(where: { $0.names.contains(name) }) else {
            // Our own names are as good as anybody's.
            if !isIgnored(name) {
                guard tunables.get(name) != nil else {
                    throw ScriptFault.unsupported("sysctl \(name) has no counterpart here")
                }
                try store(name, value, tunables)
            }
            return
        }
        let known = rule.tunables.filter { tunables.get($0) != nil }
        guard !known.isEmpty else {
            guard rule.fixed.contains(value) else {
                let can =
                    rule.fixed.isEmpty ? "is not to be had here" : "can only be \(rule.fixed.joined(separator: " or "))"
                throw ScriptFault.unsupported("sysctl \(name)=\(value): it \(can)")
            }
            return
        }
        for (place, tunable) in known.enumerated() {
            try store(tunable, converted(value, rule.unit, name, place), tunables)
        }
    }

    private static func converted(_ value: String, _ unit: Unit, _ name: String, _ place: Int) throws -> String {
        switch unit {
        case .clamped:
            guard let number = Int64(value) else {
                throw ScriptFault.syntax("sysctl \(name)=\(value): expected a number")
            }
            return String(min(number, 65535 << 14))
        case .number: return name.hasSuffix("_us") ? value + "us" : value
        case .switched, .inverted, .fromThree:
            guard let number = Int64(value) else {
                throw ScriptFault.syntax("sysctl \(name)=\(value): expected a number")
            }
            let isOn = unit == .fromThree ? number >= 3 : number != 0
            return isOn == (unit != .inverted) ? "1" : "0"
        case .algorithm:
            switch value {
            case "reno", "newreno": return "0"
            case "cubic": return "1"
            default: throw ScriptFault.unsupported("sysctl \(name)=\(value): it can only be reno or cubic")
            }
        case .milliseconds: return value + "ms"
        case .seconds: return value + "s"
        case .buffer:
            let parts = value.split { $0 == " " || $0 == "\t" }
            guard parts.count == 3 else {
                throw ScriptFault.syntax("sysctl \(name)=\(value): expected minimum, default and maximum")
            }
            return String(parts[1 + min(place, 1)])
        }
    }

    private static func store(_ name: String, _ value: String, _ tunables: TunableRegistry) throws {
        guard let tunable = tunables.get(name), let number = Tunable.parse(value, tunable.kind) else {
            throw ScriptFault.unsupported("sysctl \(name)=\(value): not a value of it")
        }
        guard (tunable.minimum...tunable.maximum).contains(number) else {
            throw ScriptFault.unsupported(
                "sysctl \(name)=\(value): outside \(tunable.minimum)...\(tunable.maximum) of this stack")
        }
        do { try tunable.set(number) } catch {
            throw ScriptFault.unsupported("sysctl \(name)=\(value): \(error)")
        }
    }

    // MARK: Profiles

    /// What the script that Linux's suites begin with sets beyond the profile.
    static func applyLinuxDefaults(to tunables: TunableRegistry) throws {
        try apply(.linux, to: tunables)
        try set("net.ipv4.tcp_rmem", "4096 540000 15728640", in: tunables)
        try set("net.ipv4.tcp_wmem", "4096 262144 4194304", in: tunables)
        for (name, value) in [
            ("tcp_timestamps", "1"), ("tcp_sack", "1"), ("tcp_dsack", "1"), ("tcp_frto", "2"), ("tcp_ecn", "0"),
            ("tcp_slow_start_after_idle", "0"), ("tcp_early_retrans", "4"), ("tcp_synack_retries", "5"),
            ("tcp_syncookies", "1"), ("tcp_congestion_control", "cubic"), ("tcp_fastopen", "0x3"),
            ("tcp_fastopen_key", "a1a1a1a1-b2b2b2b2-c3c3c3c3-d4d4d4d4"),
        ] { try set("net.ipv4." + name, value, in: tunables) }
    }

    /// The settings that scripts of a family take for granted.
    static func apply(_ profile: PacketScriptOptions.Profile, to tunables: TunableRegistry) throws {
        let settings: [(String, String)]
        switch profile {
        case .alps, .auto: settings = []
        case .linux:
            settings = [
                ("kern.ipc.recvspace", "540000"), ("kern.ipc.sendspace", "262144"),
                ("net.inet.tcp.recvbuf_max", "15728640"), ("net.inet.tcp.rexmit_min", "200ms"),
                ("net.inet.tcp.option_order", "0"), ("net.inet.tcp.newcwv", "0"),
                ("net.inet.tcp.syn_linear_timeouts", "4"), ("net.inet.tcp.delay_fin_ack", "1"),
                ("net.inet.tcp.reset_window", "1"),
            ]
        case .bsd:
            settings = [
                ("kern.ipc.maxsockbuf", "2097152"), ("kern.ipc.recvspace", "65536"), ("kern.ipc.sendspace", "32768"),
                ("net.inet.tcp.recvbuf_max", "2097152"), ("net.inet.tcp.option_order", "2"),
                ("net.inet.tcp.newcwv", "0"), ("net.inet.tcp.tlp", "0"), ("net.inet.tcp.frto", "0"),
                ("net.inet.tcp.rexmit_var_min", "0"), ("net.inet.tcp.persmin", "5s"),
                ("net.inet.tcp.ecn.maxretries", "1"), ("net.inet.tcp.whole_segment_buffers", "1"),
                ("net.inet.tcp.keepinit", "75s"), ("net.inet.tcp.ecn.option", "0"),
                ("net.inet.tcp.ecn.control_packets", "0"), ("net.inet.tcp.quickacks", "0"),
                ("net.inet.tcp.icmp_as_bsd", "1"), ("net.inet.tcp.ecn.ack_marks", "0"),
            ]
        }
        for (name, value) in settings where tunables.get(name) != nil { try store(name, value, tunables) }
    }
}

extension String {
    /// Without Foundation.
    fileprivate func replacingOccurrences(of old: Character, with new: Character) -> String {
        String(map { $0 == old ? new : $0 })
    }
}

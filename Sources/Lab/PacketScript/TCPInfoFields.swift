/// The fields of Linux's `struct tcp_info`, by the names assertions use.
enum TCPInfoFields {
    struct Field {
        var name: String
        var offset: Int
        var size: Int
        /// For fields of a few bits.
        var bits: Range<Int>?
    }

    static let all: [Field] = {
        var fields: [Field] = []
        var offset = 0
        func add(_ size: Int, _ names: String) {
            for name in names.split(separator: " ") {
                fields.append(Field(name: "tcpi_\(name)", offset: offset, size: size))
                offset += size
            }
        }
        add(1, "state ca_state retransmits probes backoff options")
        fields.append(Field(name: "tcpi_snd_wscale", offset: 6, size: 1, bits: 0..<4))
        fields.append(Field(name: "tcpi_rcv_wscale", offset: 6, size: 1, bits: 4..<8))
        fields.append(Field(name: "tcpi_delivery_rate_app_limited", offset: 7, size: 1, bits: 0..<1))
        fields.append(Field(name: "tcpi_fastopen_client_fail", offset: 7, size: 1, bits: 1..<3))
        offset = 8
        add(4, "rto ato snd_mss rcv_mss unacked sacked lost retrans fackets")
        add(4, "last_data_sent last_ack_sent last_data_recv last_ack_recv")
        add(4, "pmtu rcv_ssthresh rtt rttvar snd_ssthresh snd_cwnd advmss reordering rcv_rtt rcv_space total_retrans")
        add(8, "pacing_rate max_pacing_rate bytes_acked bytes_received")
        add(4, "segs_out segs_in notsent_bytes min_rtt data_segs_in data_segs_out")
        add(8, "delivery_rate busy_time rwnd_limited sndbuf_limited")
        add(4, "delivered delivered_ce")
        add(8, "bytes_sent bytes_retrans")
        add(4, "dsack_dups reord_seen rcv_ooopack snd_wnd rcv_wnd rehash")
        add(2, "total_rto total_rto_recoveries")
        add(4, "total_rto_time received_ce delivered_e1_bytes delivered_e0_bytes delivered_ce_bytes")
        add(4, "received_e1_bytes received_e0_bytes received_ce_bytes")
        fields.append(Field(name: "tcpi_ecn_mode", offset: offset, size: 4, bits: 0..<2))
        fields.append(Field(name: "tcpi_accecn_opt_seen", offset: offset, size: 4, bits: 2..<4))
        fields.append(Field(name: "tcpi_accecn_fail_mode", offset: offset, size: 4, bits: 4..<8))
        return fields
    }()

    /// Values of all fields that `bytes` reach to; the others are 0.
    static func values(_ bytes: [UInt8]) -> [String: Int64] {
        var values: [String: Int64] = [:]
        for field in all {
            var number: UInt64 = 0
            for index in 0..<field.size where field.offset + index < bytes.count {
                number |= UInt64(bytes[field.offset + index]) << UInt64(8 * index)
            }
            if let bits = field.bits { number = number >> UInt64(bits.lowerBound) & ((1 << UInt64(bits.count)) - 1) }
            values[field.name] = Int64(bitPattern: number)
        }
        return values
    }

    /// Names of states, congestion-avoidance states and option bits.
    static let constants: [String: Int64] = [
        "TCP_ESTABLISHED": 1, "TCP_SYN_SENT": 2, "TCP_SYN_RECV": 3, "TCP_FIN_WAIT1": 4, "TCP_FIN_WAIT2": 5,
        "TCP_TIME_WAIT": 6, "TCP_CLOSE": 7, "TCP_CLOSE_WAIT": 8, "TCP_LAST_ACK": 9, "TCP_LISTEN": 10,
        "TCP_CLOSING": 11, "TCP_CA_Open": 0, "TCP_CA_Disorder": 1, "TCP_CA_CWR": 2, "TCP_CA_Recovery": 3,
        "TCP_CA_Loss": 4, "TCPI_OPT_TIMESTAMPS": 1, "TCPI_OPT_SACK": 2, "TCPI_OPT_WSCALE": 4, "TCPI_OPT_ECN": 8,
        "TCPI_OPT_ECN_SEEN": 16, "TCPI_OPT_SYN_DATA": 32, "TCPI_ECN_MODE_DISABLED": 0, "TCPI_ECN_MODE_RFC3168": 1,
        "TCPI_ECN_MODE_ACCECN": 2, "TCPI_ECN_MODE_PENDING": 3, "TCP_ACCECN_OPT_NOT_SEEN": 0,
        "TCP_ACCECN_OPT_EMPTY_SEEN": 1, "TCP_ACCECN_OPT_COUNTER_SEEN": 2, "TCP_ACCECN_OPT_FAIL_SEEN": 3,
        "TCP_ACCECN_ACE_FAIL_SEND": 1, "TCP_ACCECN_ACE_FAIL_RECV": 2, "TCP_ACCECN_OPT_FAIL_SEND": 4,
        "TCP_ACCECN_OPT_FAIL_RECV": 8,
    ]
}

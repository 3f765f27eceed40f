import PluginAPI
import PluginKit

/// Settings, as indexes of `Instance.settings`. Names are FreeBSD's where it has them.
enum Setting: Int {
    case rfc1323
    case sack
    case defaultMSS
    case minimumMSS
    case initialRTO
    case minimumRTO
    case maximumRTO
    case retries
    case orphanRetries
    case connectTimeout
    case synAckRetries
    case cacheLimit
    case cookies
    case dropSynFin
    case blackhole
    case delayedAckTime
    case quickAcks
    case corkTime
    case initialWindow
    case keepIdle
    case keepInterval
    case keepCount
    case alwaysKeepAlive
    case maximumSegmentLifetime
    case timeWaitLimit
    case finWait2Timeout
    case challengePeriod
    case challengeLimit
    case tolerateMissingTimestamp
    case pathMTUDiscovery
    case segmentationOffload
    case reassemblyLimit
    case maximumReceiveBuffer
    case timestamps
    case windowScaling
    case optionOrder
    case tailLossProbe
    case frto
    case timeoutRestart
    case blackHoleDetection
    case baseMSS
    case ecn
    case generalizedECN
    case duplicateReports
    case tunesReceiveBuffer
    case tunesSendBuffer
    case maximumSendBuffer
    case fastOpenClient
    case fastOpenServer
    case windowValidation
    case variationFloor
    case fastOpenCookieless
    case fastOpenAllListeners
    case fastOpenKeyLow
    case fastOpenKeyHigh
    case congestionControl
    case ecnOption
    case ecnOptionBeacon
    case ecnFallback
    case synLinearTimeouts
    case ecnSynRetries
    case minimumPersist
    case wholeSegmentBuffers
    case dropsSynOptions
    case ecnControlPackets
    case delaysFinAck
    case resetWindow
    case errorsMayReset
    case errorsAsBSD
    case marksAtOnce
    case fastOpenGeneration

    static var count: Int { 71 }
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// Registers all settings with their defaults.
    func addSettings() -> Int32 {
        guard let list = services.allocateArray(alps_tunable.self, Setting.count) else { return ALPS_ENOMEM }
        defer { services.freeArray(list, Setting.count) }
        func add(
            _ setting: Setting, _ name: StaticString, _ type: UInt32, _ value: Int64, _ range: ClosedRange<Int64>,
            _ doc: StaticString
        ) {
            let place = pointee.settings + setting.rawValue
            place.pointee = value
            (list + setting.rawValue).initialize(
                to: alps_tunable(
                    size: UInt32(MemoryLayout<alps_tunable>.size), type: type, flags: 0, reserved: 0,
                    name: text(name), doc: text(doc), value: place, minimum: range.lowerBound,
                    maximum: range.upperBound))
        }
        let second: Int64 = 1_000_000_000
        let ms: Int64 = 1_000_000
        add(
            .rfc1323, "net.inet.tcp.rfc1323", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Offer window scaling and timestamps (RFC 7323)")
        add(
            .sack, "net.inet.tcp.sack.enable", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Selective acknowledgments (RFC 2018), and with them RACK (RFC 8985)")
        add(
            .defaultMSS, "net.inet.tcp.mssdflt", ALPS_TUNABLE_BYTES, 536, 48...65495,
            "Segment size if the peer does not say, in bytes")
        add(
            .minimumMSS, "net.inet.tcp.minmss", ALPS_TUNABLE_BYTES, 216, 48...65495,
            "Smallest segment size believed from a peer, in bytes")
        add(
            .initialRTO, "net.inet.tcp.rexmit_initial", ALPS_TUNABLE_NSEC, second, (50 * ms)...(60 * second),
            "Retransmission time-out before the first sample (RFC 6298)")
        add(
            .minimumRTO, "net.inet.tcp.rexmit_min", ALPS_TUNABLE_NSEC, 200 * ms, ms...(60 * second),
            "Shortest retransmission time-out; RFC 6298 says one second")
        add(
            .maximumRTO, "net.inet.tcp.rexmit_max", ALPS_TUNABLE_NSEC, 60 * second, second...(600 * second),
            "Longest retransmission time-out")
        add(
            .retries, "net.inet.tcp.retries", ALPS_TUNABLE_INT, 12, 1...64,
            "Time-outs in a row until a connection is given up (R2 of RFC 9293)")
        add(
            .orphanRetries, "net.inet.tcp.orphan_retries", ALPS_TUNABLE_INT, 8, 0...64,
            "The same for connections the application has closed")
        add(
            .connectTimeout, "net.inet.tcp.keepinit", ALPS_TUNABLE_NSEC, 180 * second, second...(3600 * second),
            "Time to establish a connection")
        add(
            .synAckRetries, "net.inet.tcp.syncache.rexmtlimit", ALPS_TUNABLE_INT, 3, 0...16,
            "Repetitions of SYN, ACK until an entry of the SYN cache is dropped")
        add(
            .cacheLimit, "net.inet.tcp.syncache.cachelimit", ALPS_TUNABLE_INT, 15375, 0...1_000_000,
            "Entries of the SYN cache")
        add(
            .cookies, "net.inet.tcp.syncookies", ALPS_TUNABLE_INT, 1, 0...2,
            "SYN cookies: 0 never, 1 when the SYN cache is full, 2 always")
        add(
            .dropSynFin, "net.inet.tcp.drop_synfin", ALPS_TUNABLE_BOOL, 0, 0...1,
            "Drop segments that have both SYN and FIN")
        add(
            .blackhole, "net.inet.tcp.blackhole", ALPS_TUNABLE_INT, 0, 0...2,
            "1: no reset for SYN to closed ports, 2: none for anything")
        add(
            .delayedAckTime, "net.inet.tcp.delacktime", ALPS_TUNABLE_NSEC, 40 * ms, 0...(499 * ms),
            "How long an acknowledgment may be delayed; 0: not at all")
        add(
            .quickAcks, "net.inet.tcp.quickacks", ALPS_TUNABLE_INT, 8, 0...1000,
            "Acknowledgments sent without delay at the start of a connection")
        add(
            .corkTime, "net.inet.tcp.corktime", ALPS_TUNABLE_NSEC, 200 * ms, ms...second,
            "How long TCP_CORK or MSG_MORE may hold a segment back")
        add(
            .initialWindow, "net.inet.tcp.initcwnd_segments", ALPS_TUNABLE_INT, 10, 1...1000,
            "Initial congestion window in segments (RFC 6928)")
        add(
            .keepIdle, "net.inet.tcp.keepidle", ALPS_TUNABLE_NSEC, 7200 * second, second...(32767 * second),
            "Idle time before keep-alive probes")
        add(
            .keepInterval, "net.inet.tcp.keepintvl", ALPS_TUNABLE_NSEC, 75 * second, second...(32767 * second),
            "Time between keep-alive probes")
        add(
            .keepCount, "net.inet.tcp.keepcnt", ALPS_TUNABLE_INT, 8, 1...127,
            "Keep-alive probes without an answer until the connection is dropped")
        add(
            .alwaysKeepAlive, "net.inet.tcp.always_keepalive", ALPS_TUNABLE_BOOL, 0, 0...1,
            "Keep-alive on all connections")
        add(
            .maximumSegmentLifetime, "net.inet.tcp.msl", ALPS_TUNABLE_NSEC, 30 * second, ms...(600 * second),
            "Maximum segment lifetime; TIME-WAIT lasts two of them")
        add(
            .timeWaitLimit, "net.inet.tcp.maxtcptw", ALPS_TUNABLE_INT, 32768, 0...1_000_000,
            "Entries in TIME-WAIT")
        add(
            .finWait2Timeout, "net.inet.tcp.finwait2_timeout", ALPS_TUNABLE_NSEC, 60 * second, ms...(3600 * second),
            "How long a closed socket waits in FIN-WAIT-2")
        add(
            .challengePeriod, "net.inet.tcp.ack_war_timewindow", ALPS_TUNABLE_NSEC, second, ms...(60 * second),
            "Period of ack_war_cnt")
        add(
            .challengeLimit, "net.inet.tcp.ack_war_cnt", ALPS_TUNABLE_INT, 5, 0...1_000_000,
            "Challenge acknowledgments of a connection in a period (RFC 5961)")
        add(
            .tolerateMissingTimestamp, "net.inet.tcp.tolerate_missing_ts", ALPS_TUNABLE_BOOL, 0, 0...1,
            "Accept segments without the timestamps agreed on")
        add(
            .pathMTUDiscovery, "net.inet.tcp.path_mtu_discovery", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Path MTU discovery (RFC 1191)")
        add(
            .segmentationOffload, "net.inet.tcp.tso", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Hand several segments at once to the device or the host")
        add(
            .reassemblyLimit, "net.inet.tcp.reass.maxqueuelen", ALPS_TUNABLE_INT, 512, 1...65536,
            "Ranges out of order that a connection keeps")
        add(
            .maximumReceiveBuffer, "net.inet.tcp.recvbuf_max", ALPS_TUNABLE_BYTES, 4 << 20, 65535...(65535 << 14),
            "Largest receive buffer that the window scale allows for, and that recvbuf_auto makes, in bytes")
        add(
            .timestamps, "net.inet.tcp.timestamps", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Offer timestamps, if rfc1323 is on")
        add(
            .windowScaling, "net.inet.tcp.window_scaling", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Offer window scaling, if rfc1323 is on")
        add(
            .optionOrder, "net.inet.tcp.option_order", ALPS_TUNABLE_INT, 1, 0...2,
            "Order of the options of SYN: 0 as Linux has it (scale last), 1 as BSD (scale behind MSS), 2 and its padding")
        add(
            .tailLossProbe, "net.inet.tcp.tlp", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Probe for the loss of a flight's tail (RFC 8985, section 7)")
        add(
            .frto, "net.inet.tcp.frto", ALPS_TUNABLE_BOOL, 1, 0...1,
            "After a time-out, find out first whether it was spurious (RFC 5682)")
        add(
            .timeoutRestart, "net.inet.tcp.rto_restart", ALPS_TUNABLE_BOOL, 0, 0...1,
            "With less than four segments in flight, time-outs count from the oldest (RFC 7765)")
        add(
            .blackHoleDetection, "net.inet.tcp.pmtud_blackhole_detection", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Smaller segments, and a search for the path MTU, if large ones disappear (RFC 4821)")
        add(
            .baseMSS, "net.inet.tcp.pmtud_blackhole_mss", ALPS_TUNABLE_BYTES, 1200, 216...65495,
            "Segment size that every path is believed to take, in bytes")
        add(
            .ecn, "net.inet.tcp.ecn.enable", ALPS_TUNABLE_INT, 2, 0...5,
            "ECN (RFC 3168) 1 asked for and granted, 2 granted; Accurate ECN (RFC 9768) 3 both, 4 and 5 likewise; 0 off")
        add(
            .generalizedECN, "net.inet.tcp.ecn.generalized", ALPS_TUNABLE_BOOL, 0, 0...1,
            "ECN-capable SYN, ACK (RFC 5562), repetitions and FINs too")
        add(
            .duplicateReports, "net.inet.tcp.sack.dsack", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Report what arrives twice (D-SACK, RFC 2883)")
        add(
            .tunesReceiveBuffer, "net.inet.tcp.recvbuf_auto", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Receive buffers grow with the path, up to recvbuf_max")
        add(
            .tunesSendBuffer, "net.inet.tcp.sendbuf_auto", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Send buffers grow with the congestion window, up to sendbuf_max")
        add(
            .maximumSendBuffer, "net.inet.tcp.sendbuf_max", ALPS_TUNABLE_BYTES, 4 << 20, 65535...(1 << 30),
            "Largest send buffer that sendbuf_auto makes, in bytes")
        add(
            .fastOpenClient, "net.inet.tcp.fastopen.client_enable", ALPS_TUNABLE_BOOL, 1, 0...1,
            "TCP Fast Open for programs that connect with it (RFC 7413)")
        add(
            .fastOpenServer, "net.inet.tcp.fastopen.server_enable", ALPS_TUNABLE_BOOL, 1, 0...1,
            "TCP Fast Open for listeners that have it switched on (RFC 7413)")
        add(
            .windowValidation, "net.inet.tcp.newcwv", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Keep a window that is not used for five minutes (RFC 7661); 0: restart after each idle time (RFC 5681)")
        add(
            .variationFloor, "net.inet.tcp.rexmit_var_min", ALPS_TUNABLE_NSEC, 200 * ms, 0...(10 * second),
            "Least that a retransmission time-out allows for variation, beside the smoothed round-trip time")
        add(
            .fastOpenCookieless, "net.inet.tcp.fastopen.cookieless", ALPS_TUNABLE_INT, 0, 0...3,
            "Fast Open without cookies, for closed networks: 1 as client, 2 as listener, 3 both")
        add(
            .fastOpenAllListeners, "net.inet.tcp.fastopen.all_listeners", ALPS_TUNABLE_BOOL, 0, 0...1,
            "Fast Open for listeners that do not ask for it, too")
        add(
            .fastOpenKeyLow, "net.inet.tcp.fastopen.key0", ALPS_TUNABLE_INT, FastOpenKey.random,
            Int64.min...Int64.max, "First half of the cookies' key, little-endian; the least number: a random key")
        add(
            .fastOpenKeyHigh, "net.inet.tcp.fastopen.key1", ALPS_TUNABLE_INT, 0, Int64.min...Int64.max,
            "Second half of the cookies' key")
        add(
            .congestionControl, "net.inet.tcp.cc.default", ALPS_TUNABLE_INT, 0, 0...1,
            "Congestion control of new connections: 0 newreno (RFC 5681), 1 cubic (RFC 9438)")
        add(
            .ecnOption, "net.inet.tcp.ecn.option", ALPS_TUNABLE_INT, 2, 0...3,
            "AccECN option: 0 never, 1 sparingly, 2 wherever it fits, 3 even if it seems to get lost")
        add(
            .ecnOptionBeacon, "net.inet.tcp.ecn.option_beacon", ALPS_TUNABLE_INT, 3, 0...1000,
            "AccECN options in a round trip, at least, if they are sent sparingly")
        add(
            .ecnFallback, "net.inet.tcp.ecn.fallback", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Do without ECN where the path seems to drop or change its bits")
        add(
            .synLinearTimeouts, "net.inet.tcp.syn_linear_timeouts", ALPS_TUNABLE_INT, 0, 0...64,
            "Repetitions of a SYN before the time between them begins to double; RFC 6298 says none")
        add(
            .ecnSynRetries, "net.inet.tcp.ecn.maxretries", ALPS_TUNABLE_INT, 0, 0...64,
            "Repetitions of a SYN that still ask for ECN (RFC 3168); the next ones do without")
        add(
            .minimumPersist, "net.inet.tcp.persmin", ALPS_TUNABLE_NSEC, 0, 0...(60 * second),
            "Least time before a closed window is probed")
        add(
            .wholeSegmentBuffers, "net.inet.tcp.whole_segment_buffers", ALPS_TUNABLE_BOOL, 0, 0...1,
            "Round buffers up to whole segments, and tell all of their space in each segment, as BSD does")
        add(
            .dropsSynOptions, "net.inet.tcp.rexmit_drop_options", ALPS_TUNABLE_BOOL, 0, 0...1,
            "From its third repetition on a SYN offers its segment size alone")
        add(
            .ecnControlPackets, "net.inet.tcp.ecn.control_packets", ALPS_TUNABLE_BOOL, 1, 0...1,
            "With Accurate ECN acknowledgments, repetitions and FINs are ECN-capable too (RFC 8311)")
        add(
            .delaysFinAck, "net.inet.tcp.delay_fin_ack", ALPS_TUNABLE_INT, 2, 0...2,
            "Acknowledge the peer's FIN late, so that ours can go along: 0 never, 1 as its data, 2 if answers did so before")
        add(
            .resetWindow, "net.inet.tcp.reset_window", ALPS_TUNABLE_BOOL, 0, 0...1,
            "The reset of an abort has the window of other segments, as with Linux, and not 0")
        add(
            .errorsMayReset, "net.inet.tcp.icmp_may_rst", ALPS_TUNABLE_BOOL, 1, 0...1,
            "An ICMP error may end an attempt to connect at once")
        add(
            .errorsAsBSD, "net.inet.tcp.icmp_as_bsd", ALPS_TUNABLE_BOOL, 0, 0...1,
            "Which ICMP errors do and what they read is BSD's choice: ECONNREFUSED for what is prohibited; 0: Linux's")
        add(
            .marksAtOnce, "net.inet.tcp.ecn.ack_marks", ALPS_TUNABLE_BOOL, 1, 0...1,
            "Acknowledge the first data with a congestion mark at once, and not as late as others (RFC 3168)")
        add(
            .fastOpenGeneration, "net.inet.tcp.fastopen.generation", ALPS_TUNABLE_INT, 0, 0...Int64(Int32.max),
            "A change of it makes a client forget the cookies it has been given")
        let cell = services.tunableCell
        return cell.ops(alps_tunable_ops.self).pointee.add(cell.instance, list, UInt32(Setting.count))
    }
}

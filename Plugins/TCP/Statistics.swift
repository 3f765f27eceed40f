import PluginAPI
import PluginKit

/// Event counters, as indexes of `Instance.counters`: BSD's `tcpstat`.
enum Counter: Int {
    case connectAttempts
    case accepted
    case connected
    case closed
    case drops
    case connectionsDropped
    case received
    case receivedSegments
    case receivedBytes
    case receivedAcks
    case receivedAckBytes
    case receivedDuplicateAck
    case receivedAckTooMuch
    case receivedOldAck
    case receivedDuplicate
    case receivedDuplicateBytes
    case receivedPartDuplicate
    case receivedPartDuplicateBytes
    case receivedOutOfOrder
    case receivedAfterWindow
    case receivedAfterWindowBytes
    case receivedWindowProbe
    case receivedWindowUpdate
    case receivedAfterClose
    case receivedClosed
    case receivedBadChecksum
    case receivedBadOffset
    case receivedShort
    case receivedBroadcast
    case receivedKeepAlive
    case receivedUrgent
    case missingTimestamp
    case pawsDropped
    case receivedBadReset
    case receivedBadSyn
    case receivedUnacceptable
    case sentChallenges
    case reassemblyFull
    case sent
    case sentSegments
    case sentBytes
    case sentRepeated
    case sentRepeatedBytes
    case sentAcks
    case sentDuplicateAcks
    case delayedAcks
    case sentUrgent
    case sentWindowProbes
    case sentWindowUpdates
    case sentControl
    case sentResets
    case fastRetransmits
    case partialAcks
    case mtuResends
    case roundTripSamples
    case retransmitTimeouts
    case timeoutDropped
    case persistTimeouts
    case persistDropped
    case keepAliveProbes
    case keepAliveDropped
    case finWait2Dropped
    case cacheAdded
    case cacheEntries
    case cacheRetransmits
    case cacheDuplicates
    case cacheCompleted
    case cacheOverflows
    case cacheResets
    case cacheStale
    case cacheBadAcks
    case cacheUnreachable
    case cookiesSent
    case cookiesReceived
    case listenDrops
    case timeWaits
    case timeWaitReused
    case timeWaitOverflows
    case errorMessages
    case noMemory
    case sackReneged
    case badSacks
    case receivedDuplicateReports
    case reorderedConnections
    case reorderTimeouts
    case tailLossProbes
    case tailLossRepairs
    case undoneRecoveries
    case spuriousTimeouts
    case blackHoles
    case sizeProbes
    case sizeProbesArrived
    case sentDuplicateReports
    case receivedMarks
    case congestionReports
    case receiveBuffersGrown
    case sendBuffersGrown
    case fastOpens
    case fastOpensAccepted
    case fastOpenBadCookies
    case fastOpenOverflows

    static var count: Int { 101 }
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// Registers all counters, with the texts of `netstat -s`.
    func addCounters() -> Int32 {
        guard let list = services.allocateArray(alps_counter.self, Counter.count) else { return ALPS_ENOMEM }
        defer { services.freeArray(list, Counter.count) }
        func add(_ counter: Counter, _ name: StaticString, _ doc: StaticString, isGauge: Bool = false) {
            (list + counter.rawValue).initialize(
                to: alps_counter(
                    size: UInt32(MemoryLayout<alps_counter>.size), flags: isGauge ? ALPS_COUNTER_GAUGE : 0,
                    name: text(name), doc: text(doc), value: UnsafePointer(pointee.counters + counter.rawValue)))
        }
        add(.connectAttempts, "connattempt", "connection requests")
        add(.accepted, "accepts", "connection accepts")
        add(.connected, "connects", "connections established (including accepts)")
        add(.closed, "closed", "connections closed (including drops)")
        add(.drops, "drops", "drops")
        add(.connectionsDropped, "conndrops", "embryonic connections dropped")
        add(.received, "rcvtotal", "packets received")
        add(.receivedSegments, "rcvpack", "packets received in-sequence")
        add(.receivedBytes, "rcvbyte", "bytes received")
        add(.receivedAcks, "rcvackpack", "acks received for new data")
        add(.receivedAckBytes, "rcvackbyte", "bytes acked")
        add(.receivedDuplicateAck, "rcvdupack", "duplicate acks")
        add(.receivedAckTooMuch, "rcvacktoomuch", "acks for unsent data")
        add(.receivedOldAck, "rcvackold", "acks too old to be believed")
        add(.receivedDuplicate, "rcvduppack", "completely duplicate packets")
        add(.receivedDuplicateBytes, "rcvdupbyte", "bytes in completely duplicate packets")
        add(.receivedPartDuplicate, "rcvpartduppack", "packets with some duplicated data")
        add(.receivedPartDuplicateBytes, "rcvpartdupbyte", "duplicate bytes in part-duplicate packets")
        add(.receivedOutOfOrder, "rcvoopack", "out-of-order packets")
        add(.receivedAfterWindow, "rcvpackafterwin", "packets of data after window")
        add(.receivedAfterWindowBytes, "rcvbyteafterwin", "bytes of data after window")
        add(.receivedWindowProbe, "rcvwinprobe", "window probes")
        add(.receivedWindowUpdate, "rcvwinupd", "window update packets")
        add(.receivedAfterClose, "rcvafterclose", "packets received after close")
        add(.receivedClosed, "rcvnoport", "packets for which there was no connection")
        add(.receivedBadChecksum, "rcvbadsum", "discarded for bad checksums")
        add(.receivedBadOffset, "rcvbadoff", "discarded for bad header offset fields")
        add(.receivedShort, "rcvshort", "discarded because packet too short")
        add(.receivedBroadcast, "rcvbcast", "discarded because sent to a broadcast or multicast address")
        add(.receivedKeepAlive, "rcvkeepprobe", "keepalive probes received")
        add(.receivedUrgent, "rcvurg", "urgent data announcements received")
        add(.missingTimestamp, "rcvmissingts", "discarded for a missing timestamp")
        add(.pawsDropped, "pawsdrop", "discarded because of an old timestamp")
        add(.receivedBadReset, "badrst", "RSTs ignored or answered with a challenge")
        add(.receivedBadSyn, "badsyn", "SYNs on established connections")
        add(.receivedUnacceptable, "rcvunacceptable", "empty segments outside the window")
        add(.sentChallenges, "sndchallenge", "challenge acks sent")
        add(.reassemblyFull, "rcvreassfull", "discarded due to full reassembly queue")
        add(.sent, "sndtotal", "packets sent")
        add(.sentSegments, "sndpack", "data packets")
        add(.sentBytes, "sndbyte", "data bytes sent")
        add(.sentRepeated, "sndrexmitpack", "data packets retransmitted")
        add(.sentRepeatedBytes, "sndrexmitbyte", "data bytes retransmitted")
        add(.sentAcks, "sndacks", "ack-only packets")
        add(.sentDuplicateAcks, "snddupack", "duplicate acks sent for out-of-order packets")
        add(.delayedAcks, "delack", "delayed acks sent")
        add(.sentUrgent, "sndurg", "packets sent with URG")
        add(.sentWindowProbes, "sndprobe", "window probe packets sent")
        add(.sentWindowUpdates, "sndwinup", "window update packets sent")
        add(.sentControl, "sndctrl", "control packets (SYN, FIN, RST) sent")
        add(.sentResets, "sndrst", "resets sent")
        add(.fastRetransmits, "sndfrexmit", "fast retransmits")
        add(.partialAcks, "rcvpartack", "partial acks in recovery")
        add(.mtuResends, "mturesent", "resends initiated by MTU discovery")
        add(.roundTripSamples, "rttupdated", "updates of the round-trip estimate")
        add(.retransmitTimeouts, "rexmttimeo", "retransmit timeouts")
        add(.timeoutDropped, "timeoutdrop", "connections dropped by rexmit timeout")
        add(.persistTimeouts, "persisttimeo", "persist timeouts")
        add(.persistDropped, "persistdrop", "connections dropped by persist timeout")
        add(.keepAliveProbes, "keepprobe", "keepalive probes sent")
        add(.keepAliveDropped, "keepdrops", "connections dropped by keepalive")
        add(.finWait2Dropped, "finwait2_drops", "connections (fin_wait_2) dropped because of timeout")
        add(.cacheAdded, "sc_added", "syncache entries added")
        add(.cacheEntries, "sc_entries", "syncache entries", isGauge: true)
        add(.cacheRetransmits, "sc_retransmitted", "syncache entries retransmitted")
        add(.cacheDuplicates, "sc_dupsyn", "duplicate SYNs for syncache entries")
        add(.cacheCompleted, "sc_completed", "syncache entries completed")
        add(.cacheOverflows, "sc_cacheoverflow", "SYNs that found the syncache full")
        add(.cacheResets, "sc_reset", "syncache entries reset")
        add(.cacheStale, "sc_stale", "syncache entries that timed out")
        add(.cacheBadAcks, "sc_badack", "bad acks for syncache entries")
        add(.cacheUnreachable, "sc_unreach", "syncache entries ended by an error message")
        add(.cookiesSent, "sc_sendcookie", "SYN cookies sent")
        add(.cookiesReceived, "sc_recvcookie", "SYN cookies received")
        add(.listenDrops, "listendrop", "listen queue overflows")
        add(.timeWaits, "timewait", "connections in TIME-WAIT", isGauge: true)
        add(.timeWaitReused, "tw_reused", "TIME-WAIT entries reused for new connections")
        add(.timeWaitOverflows, "tw_overflow", "connections closed for lack of a TIME-WAIT entry")
        add(.errorMessages, "ctlinput", "error messages received about packets sent")
        add(.noMemory, "nomem", "packets not sent for lack of memory")
        add(.sackReneged, "sack_reneged", "times a receiver dropped what it had reported with SACK")
        add(.badSacks, "sack_bad", "SACK blocks that could not be")
        add(.receivedDuplicateReports, "dsack_rcvd", "duplicate reports (D-SACK) received")
        add(.sentDuplicateReports, "dsack_sent", "duplicate reports (D-SACK) sent")
        add(.reorderedConnections, "reordered", "connections on which segments were seen out of order")
        add(.reorderTimeouts, "racktimeo", "ends of the reordering window (RACK)")
        add(.tailLossProbes, "tlpsnt", "tail loss probes sent")
        add(.tailLossRepairs, "tlprecovered", "losses that a tail loss probe repaired")
        add(.undoneRecoveries, "sndundo", "recoveries that turned out to be unnecessary")
        add(.spuriousTimeouts, "rexmtspurious", "time-outs that turned out to be spurious")
        add(.blackHoles, "pmtud_blackhole", "paths on which large segments disappeared")
        add(.sizeProbes, "pmtud_probe", "probes of the path MTU sent")
        add(.sizeProbesArrived, "pmtud_probe_ok", "probes of the path MTU that arrived")
        add(.receivedMarks, "ecn_ce", "segments received with a congestion mark (ECN)")
        add(.congestionReports, "ecn_ece", "acks that reported a congestion mark")
        add(.receiveBuffersGrown, "rcvbuf_grown", "receive buffers grown")
        add(.sendBuffersGrown, "sndbuf_grown", "send buffers grown")
        add(.fastOpens, "tfo_client", "connections whose SYN's data were acknowledged (Fast Open)")
        add(.fastOpensAccepted, "tfo_server", "connections accepted with the data of their SYN (Fast Open)")
        add(.fastOpenBadCookies, "tfo_badcookie", "SYNs with a cookie that is not ours (Fast Open)")
        add(.fastOpenOverflows, "tfo_overflow", "fast opens that found the listener's limit reached")
        let cell = services.counterCell
        return cell.ops(alps_counter_ops.self).pointee.add(cell.instance, list, UInt32(Counter.count))
    }
}

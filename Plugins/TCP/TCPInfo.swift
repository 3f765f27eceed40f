import PluginAPI
import PluginKit

/// TCP_INFO in Linux's layout (struct tcp_info of linux/tcp.h): programs read as much of it as they know.
private enum InfoLayout {
    static var length: Int { 280 }

    /// Linux's state numbers.
    static func state(_ state: State) -> UInt8 {
        switch state {
        case .established: return 1
        case .synSent: return 2
        case .synReceived: return 3
        case .finWait1: return 4
        case .finWait2: return 5
        case .timeWait: return 6
        case .closed: return 7
        case .closeWait: return 8
        case .lastAck: return 9
        case .listen: return 10
        case .closing: return 11
        }
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Bytes as segments, rounded up.
    private func segments(_ bytes: UInt32) -> UInt32 { (bytes &+ pointee.mss &- 1) / max(pointee.mss, 1) }

    var effectiveRTO: UInt64 {
        min(pointee.roundTrip.rto << UInt64(min(pointee.backoff, 16)), instance.nanoseconds(.maximumRTO))
    }

    /// Linux's TCP_CA_Open, Disorder, CWR, Recovery, Loss.
    private var recoveryNumber: UInt8 {
        switch pointee.recovery.state {
        case .open: return pointee.sendMap.sackedBytes > 0 || pointee.dupAcks > 0 ? 1 : 0
        case .reduction: return 2
        case .recovery: return 3
        case .loss: return 4
        }
    }

    func copyInfo(_ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>) -> Int32 {
        withUnsafeTemporaryAllocation(byteCount: InfoLayout.length, alignment: 8) { buffer in
            let info = buffer.baseAddress.unsafelyUnwrapped
            info.initializeMemory(as: UInt8.self, repeating: 0, count: InfoLayout.length)
            fill(info)
            let count = min(Int(length.pointee), InfoLayout.length)
            value.copyMemory(from: info, byteCount: count)
            length.pointee = UInt32(count)
        }
        return 0
    }

    private func fill(_ info: UnsafeMutableRawPointer) {
        func put8(_ offset: Int, _ value: UInt8) { info.storeBytes(of: value, toByteOffset: offset, as: UInt8.self) }
        func put32(_ offset: Int, _ value: UInt32) { info.storeBytes(of: value, toByteOffset: offset, as: UInt32.self) }
        func put64(_ offset: Int, _ value: UInt64) { info.storeBytes(of: value, toByteOffset: offset, as: UInt64.self) }
        func microseconds(_ time: UInt64) -> UInt32 { UInt32(clamping: time / 1000) }
        let now = instance.now
        func since(_ time: UInt64) -> UInt32 {
            time == 0 ? 0 : UInt32(clamping: (now &- time) / UInt64(ALPS_NSEC_PER_MSEC))
        }
        put8(0, InfoLayout.state(pointee.state))
        put8(1, recoveryNumber)
        put8(2, UInt8(clamping: pointee.attempts))
        put8(3, UInt8(clamping: pointee.keepProbes))
        put8(4, UInt8(clamping: pointee.backoff))
        // TCPI_OPT_TIMESTAMPS, TCPI_OPT_SACK, TCPI_OPT_WSCALE, TCPI_OPT_ECN, TCPI_OPT_ECN_SEEN,
        // TCPI_OPT_SYN_DATA.
        var options: UInt8 = (has(.timestamps) ? 1 : 0) | (has(.sackPermitted) ? 2 : 0) | (has(.windowScaling) ? 4 : 0)
        options |= pointee.isSynDataTaken ? 32 : 0
        options |= (has(.ecn) || pointee.accurate.isOn ? 8 : 0) | (pointee.totals.markedSegmentsIn > 0 ? 16 : 0)
        put8(5, options)
        put8(6, pointee.sndScale & 15 | pointee.rcvScale << 4)
        put32(8, microseconds(effectiveRTO))
        put32(12, microseconds(instance.nanoseconds(.delayedAckTime)))
        put32(16, pointee.mss)
        put32(20, pointee.rcvMSS)
        if pointee.state == .listen {
            put32(24, socket.pointee.queue_length)
            put32(28, socket.pointee.backlog)
        } else {
            put32(24, segments(UInt32(truncatingIfNeeded: max(0, pointee.sndMax - pointee.sndUna))))
            put32(28, has(.sackPermitted) ? pointee.sendMap.sackedSegments : segments(pointee.sendMap.sackedBytes))
            put32(32, segments(pointee.sendMap.lostBytes))
            put32(36, segments(pointee.sendMap.resentBytes))
        }
        put32(44, since(pointee.lastSent))
        put32(52, since(max(pointee.lastDataReceived, pointee.establishedAt)))
        put32(56, since(pointee.lastReceived))
        put32(60, pointee.mss &+ pointee.accurate.reserved &+ headerLength &+ netpcb.pointee.header_length)
        put32(64, socket.pointee.rcv.limit)
        put32(68, microseconds(pointee.roundTrip.srtt))
        put32(72, microseconds(pointee.roundTrip.rttvar))
        put32(76, min(pointee.congestion.ssthresh, 0x7fff_ffff) / max(pointee.mss, 1))
        // A connection that has not begun is going to begin with the initial window.
        let first = UInt32(truncatingIfNeeded: instance.setting(.initialWindow))
        put32(80, pointee.congestion.cwnd == 0 ? first : pointee.congestion.cwnd / max(pointee.mss, 1))
        put32(84, pointee.advertisedMSS)
        put32(88, pointee.recovery.reorderingDegree)
        put32(96, socket.pointee.rcv.limit)
        put32(100, pointee.totals.retransmits)
        put64(104, pacingRate == 0 ? .max : pacingRate)
        put64(112, pacingRate == 0 ? .max : pacingRate)
        put64(120, pointee.totals.bytesAcked)
        put64(128, pointee.totals.bytesReceived)
        put32(136, pointee.totals.segmentsOut)
        put32(140, pointee.totals.segmentsIn)
        put32(144, pointee.state.isSynchronized ? UInt32(clamping: unsent) : 0)
        put32(148, pointee.roundTrip.minimum == 0 ? .max : microseconds(pointee.roundTrip.minimum))
        put32(152, pointee.totals.dataSegmentsIn)
        put32(156, pointee.totals.dataSegmentsOut)
        let times = sendTimes
        put64(168, times.busy / 1000)
        put64(176, times.windowLimited / 1000)
        put64(184, times.bufferLimited / 1000)
        put32(192, pointee.totals.delivered)
        put32(196, pointee.accurate.isOn ? pointee.accurate.delivered.packets &- 5 : pointee.totals.deliveredMarked)
        put64(200, pointee.totals.bytesSent)
        put64(208, pointee.totals.bytesRetransmitted)
        put32(216, pointee.totals.duplicateReports)
        put32(220, pointee.totals.reorderings)
        put32(224, pointee.totals.outOfOrder)
        put32(228, pointee.sndWnd)
        info.storeBytes(of: UInt16(clamping: pointee.totals.timeouts), toByteOffset: 240, as: UInt16.self)
        put32(232, UInt32(clamping: pointee.rcvAdv - pointee.rcvNxt))
        let accurate = pointee.accurate
        let isPending = pointee.state == .synSent && pointee.ecnRequest == .accurate
        // TCPI_ECN_MODE_RFC3168, _ACCECN, _PENDING.
        let mode: UInt8 = accurate.isOn ? 2 : isPending ? 3 : has(.ecn) ? 1 : 0
        put8(276, mode | accurate.optionSeen.rawValue << 2 | accurate.failures.rawValue << 4)
        guard accurate.isOn else { return put32(248, pointee.totals.markedSegmentsIn) }
        let initial = ECNCounters.initial
        put32(248, accurate.received.packets &- initial.packets)
        put32(252, accurate.delivered.ect1 &- initial.ect1)
        put32(256, accurate.delivered.ect0 &- initial.ect0)
        put32(260, accurate.delivered.marked &- initial.marked)
        put32(264, accurate.received.ect1 &- initial.ect1)
        put32(268, accurate.received.ect0 &- initial.ect0)
        put32(272, accurate.received.marked &- initial.marked)
    }
}

import PluginAPI
import PluginKit

/// Text for tools, written into memory of a fixed size. What does not fit is left out and noticed.
struct TextWriter {
    private let place: UnsafeMutablePointer<UInt8>
    private let capacity: Int
    private(set) var count = 0
    private(set) var isTruncated = false

    init(_ place: UnsafeMutableRawPointer, capacity: Int) {
        self.place = place.assumingMemoryBound(to: UInt8.self)
        self.capacity = capacity
    }

    mutating func put(byte: UInt8) {
        guard count < capacity else {
            isTruncated = true
            return
        }
        place[count] = byte
        count += 1
    }

    mutating func put(_ text: StaticString) {
        var at = 0
        while at < text.utf8CodeUnitCount {
            put(byte: text.utf8Start[at])
            at += 1
        }
    }

    mutating func put(_ number: UInt64) {
        var divisor: UInt64 = 1
        while number / divisor >= 10 { divisor *= 10 }
        while divisor > 0 {
            put(byte: UInt8(48 + number / divisor % 10))
            divisor /= 10
        }
    }

    /// One member of a JSON object; `isFirst` for the first.
    mutating func member(_ name: StaticString, _ number: UInt64, isFirst: Bool = false) {
        key(name, isFirst)
        put(number)
    }

    mutating func member(_ name: StaticString, _ value: Bool) {
        key(name, false)
        put(value ? "true" : "false")
    }

    mutating func member(_ name: StaticString, _ text: StaticString, isFirst: Bool = false) {
        key(name, isFirst)
        put(byte: 34)
        put(text)
        put(byte: 34)
    }

    private mutating func key(_ name: StaticString, _ isFirst: Bool) {
        if !isFirst { put(byte: 44) }
        put(byte: 34)
        put(name)
        put(byte: 34)
        put(byte: 58)
    }
}

/// ALPS_PRU_DESCRIBE: what tools show of a connection. Times in nanoseconds, sizes in bytes.
func tcpDescribe(
    _ context: UnsafeMutableRawPointer, _ socket: Socket, _ value: UnsafeMutableRawPointer,
    _ length: UnsafeMutablePointer<UInt32>
) -> Int32 {
    describe(socket, value, length, all: false)
}

/// The private request "dump": the same and the sequence variables.
func tcpDump(
    _ context: UnsafeMutableRawPointer, _ socket: Socket, _ value: UnsafeMutableRawPointer,
    _ length: UnsafeMutablePointer<UInt32>
) -> Int32 {
    describe(socket, value, length, all: true)
}

private func describe(
    _ socket: Socket, _ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>, all: Bool
) -> Int32 {
    guard let connection = socket.connection else { return ALPS_ENOTCONN }
    var text = TextWriter(value, capacity: Int(length.pointee))
    text.put("{")
    connection.describe(&text)
    if all { connection.dump(&text) }
    text.put("}")
    guard !text.isTruncated else { return ALPS_ENOSPC }
    length.pointee = UInt32(text.count)
    return 0
}

extension UnsafeMutablePointer where Pointee == Connection {
    fileprivate func describe(_ text: inout TextWriter) {
        text.member("state", pointee.state.name, isFirst: true)
        if pointee.state == .listen {
            text.member("embryonic", UInt64(pointee.embryonicCount))
            text.member("queue", UInt64(socket.pointee.queue_length))
            text.member("backlog", UInt64(socket.pointee.backlog))
            return
        }
        text.member("congestion", pointee.congestion.algorithm.name)
        text.member("cwnd", UInt64(pointee.congestion.cwnd))
        text.member("ssthresh", UInt64(pointee.congestion.ssthresh))
        text.member("srtt", pointee.roundTrip.srtt)
        text.member("rttvar", pointee.roundTrip.rttvar)
        text.member("min_rtt", pointee.roundTrip.minimum)
        text.member("rto", effectiveRTO)
        text.member("backoff", UInt64(pointee.backoff))
        text.member("mss", UInt64(pointee.mss))
        text.member("rcv_mss", UInt64(pointee.rcvMSS))
        text.member("snd_wnd", UInt64(pointee.sndWnd))
        text.member("rcv_wnd", UInt64(max(0, pointee.rcvAdv - pointee.rcvNxt)))
        text.member("snd_wscale", UInt64(pointee.sndScale))
        text.member("rcv_wscale", UInt64(pointee.rcvScale))
        text.member("timestamps", has(.timestamps))
        text.member("in_flight", UInt64(max(0, pointee.sndMax - pointee.sndUna)))
        text.member("pipe", UInt64(pipe))
        text.member("sacked", UInt64(pointee.sendMap.sackedBytes))
        text.member("lost", UInt64(pointee.sendMap.lostBytes))
        text.member("in_recovery", isRecovering)
        text.member("reassembly_ranges", UInt64(pointee.reassembly.count))
        text.member("retransmits", UInt64(pointee.totals.retransmits))
        text.member("timeouts", UInt64(pointee.totals.timeouts))
        text.member("bytes_acked", pointee.totals.bytesAcked)
        text.member("bytes_received", pointee.totals.bytesReceived)
        text.member("segments_out", UInt64(pointee.totals.segmentsOut))
        text.member("segments_in", UInt64(pointee.totals.segmentsIn))
        text.member("orphan", has(.orphan))
    }

    fileprivate func dump(_ text: inout TextWriter) {
        text.member("iss", UInt64(pointee.iss.value))
        text.member("snd_una", UInt64(pointee.sndUna.value))
        text.member("snd_nxt", UInt64(pointee.sndNxt.value))
        text.member("snd_max", UInt64(pointee.sndMax.value))
        text.member("snd_up", UInt64(pointee.sndUp.value))
        text.member("max_snd_wnd", UInt64(pointee.maxSndWnd))
        text.member("irs", UInt64(pointee.irs.value))
        text.member("rcv_nxt", UInt64(pointee.rcvNxt.value))
        text.member("rcv_adv", UInt64(pointee.rcvAdv.value))
        text.member("last_ack_sent", UInt64(pointee.lastAckSent.value))
        text.member("dup_acks", UInt64(pointee.dupAcks))
        text.member("recover", UInt64(pointee.recovery.point.value))
        text.member("ts_recent", UInt64(pointee.tsRecent))
        text.member("flags", UInt64(pointee.flags.rawValue))
        text.member("soft_error", UInt64(pointee.softError))
        text.member("keep_probes", UInt64(pointee.keepProbes))
    }
}

import PluginAPI
import PluginKit

// RFC 8985, section 7: when nothing comes back, one probe well before the retransmission timer makes the receiver report
// what it has, so that the tail of a flight is repaired as fast as its middle.

extension UnsafeMutablePointer where Pointee == Connection {
    /// 7.2: whether a probe may be scheduled.
    @inline(__always)
    var mayProbe: Bool {
        has(.sackPermitted) && pointee.recovery.state == .open && !pointee.recovery.isProbing
            && pointee.sendMap.sackedBytes == 0 && pointee.sendMap.waiting.first == nil && pointee.roundTrip.srtt != 0
            && pointee.attempts == 0 && pointee.sndWnd > 0 && instance.isOn(.tailLossProbe)
    }

    /// 7.2: two round trips; a receiver that has one segment only may take its time. Not under 10 ms, the least that FreeBSD
    /// waits (Linux: two ticks): a receiver on a busy machine is not scheduled sooner.
    @inline(__always)
    var probeTimeout: UInt64 {
        let ms = UInt64(ALPS_NSEC_PER_MSEC)
        let isOne = pointee.sndNxt - pointee.sndUna <= Int(pointee.mss)
        return max(2 &* pointee.roundTrip.srtt, 10 &* ms) &+ (isOne ? 200 &* ms : 0)
    }

    /// 7.3.
    func probeTimedOut() {
        let instance = instance
        guard let network = instance.network, pointee.sndNxt > pointee.sndUna else { return }
        // The path MTU may have come down since the flight.
        prepareToSend()
        var list = PacketList()
        pointee.recovery.isProbeRepeat = false
        if !sendOneNew(network, &list) {
            pointee.recovery.isProbeRepeat = true
            guard repeatLast(network, &list) else {
                // Nothing to probe with: the timer alone is left, and must be; nothing was sent to start it anew for.
                pointee.recovery.isProbing = true
                pointee.recovery.probeEnd = pointee.sndNxt
                return chooseTimer()
            }
        }
        instance.count(.tailLossProbes)
        pointee.recovery.isProbing = true
        pointee.recovery.probeEnd = pointee.sndNxt
        if let first = list.first { transmit(network, first) }
        restartLossTimer()
    }

    /// The last segment once more.
    private func repeatLast(_ network: Network, _ list: inout PacketList) -> Bool {
        guard var range = pointee.sendMap.last, !range.pointee.has(.sacked),
            range.pointee.end <= repetitionEdge
        else { return false }
        let hasFin = range.pointee.has(.fin)
        var length = range.pointee.length - (hasFin ? 1 : 0)
        if length > pointee.mss {
            let tail = (length - 1) % pointee.mss + 1
            guard split(range, at: range.pointee.start + (length - tail)), let second = range.pointee.next else {
                return false
            }
            range = second
            length = tail
        }
        let isLast = sendPosition(range.pointee.start) &+ UInt64(length) == socket.pointee.snd.tail
        guard let packet = makeData(network, range.pointee.start, length, fin: hasFin, isLast: isLast) else {
            return false
        }
        list.append(packet)
        noteRepetition(range)
        pointee.lastSent = instance.now
        return true
    }

    /// 7.4: what the end of the probe says about loss.
    func considerProbe(_ summary: AcknowledgmentSummary) {
        guard pointee.sndUna >= pointee.recovery.probeEnd else { return }
        if !pointee.recovery.isProbeRepeat || summary.reportsDuplicate {
            pointee.recovery.isProbing = false
        } else if pointee.sndUna > pointee.recovery.probeEnd {
            // Nothing came twice: the probe has repaired a loss, which is one all the same.
            pointee.recovery.isProbing = false
            guard pointee.recovery.state == .open else { return }
            instance.count(.tailLossRepairs)
            lowerThreshold()
            pointee.congestion.exitRecovery(mss: pointee.mss)
        } else if summary.acked == 0, !summary.hasNewSack {
            // A second acknowledgment of the same: both copies have arrived.
            pointee.recovery.isProbing = false
        }
    }
}

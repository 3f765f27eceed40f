import PluginAPI
import PluginKit

/// Buffers that follow the path: the receiver's so that its window is never what holds a sender back, the sender's so
/// that the congestion window can be filled. Both up to a tunable, and only if the application has not chosen a size.
struct ReceiveTuning {
    /// Where the measurement under way began, and when.
    var since: UInt64
    var start: SequenceNumber
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Data have been taken in order. If the application takes half a buffer in one round trip, the buffer is what
    /// limits the sender, and it doubles (dynamic right-sizing; Fisk and Feng, 2001).
    @inline(__always)
    func tuneReceiveBuffer() {
        let received = pointee.rcvNxt - pointee.receiveTuning.start
        guard received >= Int(socket.pointee.rcv.limit / 2) else { return }
        considerReceiveBuffer()
    }

    @inline(never)
    private func considerReceiveBuffer() {
        let instance = instance
        let now = instance.now
        let elapsed = now &- pointee.receiveTuning.since
        pointee.receiveTuning = ReceiveTuning(since: now, start: pointee.rcvNxt)
        let limit = socket.pointee.rcv.limit
        let most = UInt32(truncatingIfNeeded: instance.setting(.maximumReceiveBuffer))
        guard pointee.roundTrip.srtt != 0, elapsed <= pointee.roundTrip.srtt &+ pointee.roundTrip.srtt / 2, limit < most,
            pointee.options.windowClamp == 0, instance.isOn(.tunesReceiveBuffer),
            // A slow reader is not helped by more to read.
            instance.sockets.pointee.receive_space(instance.socketLayer, socket) >= limit / 4
        else { return }
        if instance.sockets.pointee.grow(instance.socketLayer, socket, 0, min(2 &* limit, most)) > limit {
            instance.count(.receiveBuffersGrown)
        }
    }

    /// net.inet.tcp.whole_segment_buffers: of what the peers agreed on as segment size.
    @inline(never)
    func roundBuffers() {
        let instance = instance
        let segment = max(min(pointee.peerMSS, pointee.advertisedMSS), 1)
        func round(_ limit: UInt32, isSend: Int32) {
            guard limit % segment != 0, limit > segment else { return }
            _ = instance.sockets.pointee.grow(instance.socketLayer, socket, isSend, limit - limit % segment + segment)
        }
        round(socket.pointee.rcv.limit, isSend: 0)
        round(socket.pointee.snd.limit, isSend: 1)
    }

    /// A round trip without half a buffer of data begins a new measurement.
    @inline(__always)
    func restartReceiveTuning() {
        if instance.now &- pointee.receiveTuning.since > 2 &* pointee.roundTrip.srtt {
            pointee.receiveTuning = ReceiveTuning(since: instance.now, start: pointee.rcvNxt)
        }
    }

    /// The congestion window has grown: what is in flight stays in the buffer, and the application needs as much again
    /// to write into.
    @inline(__always)
    func tuneSendBuffer() {
        let limit = socket.pointee.snd.limit
        guard pointee.congestion.cwnd > limit / 2, pointee.congestion.isWindowLimited else { return }
        growSendBuffer(limit)
    }

    @inline(never)
    private func growSendBuffer(_ limit: UInt32) {
        let instance = instance
        let most = UInt32(truncatingIfNeeded: instance.setting(.maximumSendBuffer))
        let used = socket.pointee.snd.tail &- socket.pointee.snd.head
        guard limit < most, instance.isOn(.tunesSendBuffer), used >= UInt64(limit / 2), pointee.sndWnd > limit / 2 else {
            return
        }
        if instance.sockets.pointee.grow(instance.socketLayer, socket, 1, min(2 &* limit, most)) > limit {
            instance.count(.sendBuffersGrown)
        }
    }
}

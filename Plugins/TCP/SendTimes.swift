import PluginAPI
import PluginKit

/// What held a sender up, as TCP_INFO tells it: nanoseconds.
struct SendTimes {
    enum Limit: UInt8 {
        /// There is nothing to send.
        case idle = 0
        /// The network: data is in flight or waits for the congestion window.
        case network
        /// The peer's window.
        case window
        /// The send buffer, which is full with what is in flight.
        case buffer
    }

    var limit: Limit
    var since: UInt64
    /// All but idle; of that, the peer's window and the send buffer.
    var busy: UInt64
    var windowLimited: UInt64
    var bufferLimited: UInt64

    @inline(__always)
    mutating func enter(_ next: Limit, at now: UInt64) {
        guard next != limit else { return }
        settle(now)
        limit = next
    }

    mutating func settle(_ now: UInt64) {
        let time = now &- since
        since = now
        switch limit {
        case .idle: return
        case .network: break
        case .window: windowLimited &+= time
        case .buffer: bufferLimited &+= time
        }
        busy &+= time
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// After something has been sent, acknowledged or written.
    @inline(__always)
    func noteLimit() {
        let limit: SendTimes.Limit
        let waiting = unsent
        let flight = pointee.sndNxt - pointee.sndUna
        socket.pointee.snd.unsent = UInt32(truncatingIfNeeded: max(0, waiting))
        if waiting > 0, flight + min(waiting, Int(pointee.mss)) > Int(pointee.sndWnd) {
            limit = .window
        } else if waiting > 0 {
            limit = .network
        } else if flight > 0 {
            let used = socket.pointee.snd.tail &- socket.pointee.snd.head
            let isFull = used >= UInt64(socket.pointee.snd.limit) && !pointee.congestion.isWindowLimited
            limit = isFull ? .buffer : .network
        } else {
            limit = .idle
        }
        pointee.sendTimes.enter(limit, at: instance.now)
    }

    var sendTimes: SendTimes {
        var times = pointee.sendTimes
        times.settle(instance.now)
        return times
    }
}

import PluginAPI

/// Gives the rings of stream sockets back that have been empty and untouched for a while, so that a connection that only
/// stays costs no buffer memory. The next byte gets a ring anew, at the same stream positions.
///
/// No time is kept for each connection and nothing wakes up for those that stay idle: a socket is listed when a ring of its
/// becomes empty, and a timer looks through the list once. What has moved since is looked at again, all else leaves it.
final class IdleBuffers {
    /// Between two looks at a socket, ns.
    static let period: UInt64 = 1_000_000_000
    /// Sockets looked at in one turn; giving a ring back is a system call, and others are to get their turn.
    private static let batch = 512
    private static let pause: UInt64 = 1_000_000

    private unowned let layer: SocketLayer
    private var timer: HostTimer?
    private var listed: [SocketHandle] = []
    private var later: [SocketHandle] = []
    private var position = 0

    init(_ layer: SocketLayer, _ kernel: Kernel) {
        self.layer = layer
        timer = HostTimer(kernel) { [unowned self] in look() }
    }

    /// A ring of `socket` has become empty.
    func list(_ socket: Socket) {
        socket.idle.isListed = true
        note(socket)
        later.append(socket.handle)
        if timer?.isArmed == false { timer?.arm(after: Self.period) }
    }

    private func note(_ socket: Socket) { socket.idle.moved = moved(socket) }

    /// Another number after every byte. That it comes round just between two looks does no harm: what is empty goes back early.
    private func moved(_ socket: Socket) -> UInt32 {
        UInt32(truncatingIfNeeded: socket.raw.pointee.snd.tail &+ socket.raw.pointee.rcv.tail)
    }

    private func look() {
        if position == listed.count {
            swap(&listed, &later)
            later.removeAll(keepingCapacity: true)
            position = 0
        }
        let end = min(position + Self.batch, listed.count)
        while position < end {
            if let socket = layer.find(listed[position]) { look(socket) }
            position += 1
        }
        if position < listed.count {
            timer?.arm(after: Self.pause)
        } else if !later.isEmpty {
            timer?.arm(after: Self.period)
        }
    }

    private func look(_ socket: Socket) {
        guard socket.idle.moved == moved(socket) else {
            note(socket)
            later.append(socket.handle)
            return
        }
        socket.idle.isListed = false
        if let channel = socket.channel { channel.buffersAreIdle(socket) } else { socket.releaseEmptyBuffers() }
    }
}

/// What a socket remembers for `IdleBuffers`.
struct IdleMark {
    /// Behind the last byte that has been placed in the receive ring, in order or not.
    var placedEnd: UInt64 = 0
    /// How far the streams had come when it was last looked at.
    var moved: UInt32 = 0
    var isListed = false
}

extension Socket {
    /// A ring has become empty: if that lasts it goes back.
    @inline(__always)
    func becameEmpty() {
        if !idle.isListed { kernel.sockets.idleBuffers?.list(self) }
    }

    func releaseEmptyBuffers() {
        if raw.pointee.snd.head == raw.pointee.snd.tail { releaseSendBuffer(isIdle: true) }
        // Bytes that have arrived out of order lie behind `tail`.
        if raw.pointee.rcv.head == raw.pointee.rcv.tail, idle.placedEnd <= raw.pointee.rcv.tail {
            releaseReceiveBuffer(isIdle: true)
        }
    }
}

import Glibc
import PluginAPI

/// Connections a listener has made that nobody has accepted yet.
struct ListenQueue {
    private var waiting: [Socket?] = []
    private var first = 0
    /// Connections that are ready.
    private(set) var count = 0
    /// Connections whose handshake is not done.
    var handshakes = 0

    mutating func append(_ child: Socket) {
        if first > 32, 2 * first > waiting.count {
            waiting.removeFirst(first)
            first = 0
        }
        waiting.append(child)
        count += 1
    }

    mutating func removeFirst() -> Socket? {
        while first < waiting.count {
            let child = waiting[first]
            waiting[first] = nil
            first += 1
            if let child {
                count -= 1
                return child
            }
        }
        waiting.removeAll(keepingCapacity: true)
        first = 0
        return nil
    }

    /// False if it is not here.
    mutating func remove(_ child: Socket) -> Bool {
        guard let index = waiting.firstIndex(where: { $0 === child }) else { return false }
        waiting[index] = nil
        count -= 1
        return true
    }
}

/// What a socket has as a listener.
final class ListenState {
    /// Connections that are ready, and those whose handshake goes on.
    var queue = ListenQueue()
    /// Instances that had it before a swap. They may hold embryonic connections for it.
    var formerInstances: [PluginInstance] = []
    /// Of all the connections that it makes.
    let childOwner: SocketOwner

    init(_ listener: Socket) { childOwner = SocketOwner(listener.owner, listener: listener.handle) }
}

extension Socket {
    /// listen(2). Again on a listener: changes the backlog.
    package func listen(_ backlog: Int32) -> Int32 {
        guard isStream else { return EOPNOTSUPP }
        guard connectStage == .unconnected, !isConnected, !isConnecting, !isDisconnected else { return EINVAL }
        var status = kernel.sockets.ensureAttached(self)
        guard status == 0 else { return status }
        // Linux takes the number as unsigned: a negative one is as long as can be.
        let limit = backlog < 0 ? kernel.sockets.somaxconn.value : min(Int64(backlog), kernel.sockets.somaxconn.value)
        let before = raw.pointee.backlog
        raw.pointee.backlog = UInt32(truncatingIfNeeded: limit)
        status = request(ALPS_PRU_LISTEN, Int32(truncatingIfNeeded: limit))
        guard status == 0 else {
            raw.pointee.backlog = before
            return status
        }
        if listening == nil { setListening(ListenState(self)) }
        raw.pointee.options |= ALPS_SO_ACCEPTCONN
        raw.pointee.state &= ~ALPS_SS_CANTRCVMORE
        makeUncommon().boundAddress = localAddress
        return 0
    }

    /// The oldest connection that is ready, nil if there is none. The caller becomes its application.
    package func acceptNext() -> Socket? {
        guard let listening, let child = listening({ $0.queue.removeFirst() }) else { return nil }
        raw.pointee.queue_length = UInt32(listening { $0.queue.count })
        child.leaveHead()
        return child
    }

    /// A connection for this listener, made by `maker`: the instance that has the listener, or had it before a swap. Nil:
    /// queue or memory full.
    func makeChild(_ maker: PluginInstance) -> Socket? {
        let layer = kernel.sockets
        guard isListening, let listening, !isClosed,
            let entry = entry.instance === maker ? entry : kernel.protocols.counterpart(of: entry, in: maker)
        else { return nil }
        // One more than the backlog, as BSD and Linux have it.
        guard listening({ $0.queue.count + $0.queue.handshakes }) <= Int(raw.pointee.backlog) else {
            layer.count(.listenOverflows)
            return nil
        }
        guard let child = try? layer.make(entry, Int32(raw.pointee.protocol), listening({ $0.childOwner }), arena) else { return nil }
        guard layer.attachNetwork(child) == 0 else {
            layer.abandon(child)
            return nil
        }
        child.inherit(self)
        child.raw.pointee.listener = raw
        listening { $0.queue.handshakes += 1 }
        layer.markAttached(child)
        return child
    }

    private func inherit(_ listener: Socket) {
        raw.pointee.options = listener.raw.pointee.options & ~ALPS_SO_ACCEPTCONN
        raw.pointee.linger = listener.raw.pointee.linger
        raw.pointee.snd.limit = listener.raw.pointee.snd.limit
        raw.pointee.rcv.limit = listener.raw.pointee.rcv.limit
        isSendSizeChosen = listener.isSendSizeChosen
        raw.pointee.snd.low_water = listener.raw.pointee.snd.low_water
        raw.pointee.rcv.low_water = listener.raw.pointee.rcv.low_water
        storedOptions = listener.storedOptions
        let from = listener.raw.pointee.netpcb
        let to = raw.pointee.netpcb
        to.pointee.ttl = from.pointee.ttl
        to.pointee.tos = from.pointee.tos
        to.pointee.flags = from.pointee.flags
        to.pointee.bound_ifindex = from.pointee.bound_ifindex
    }

    /// A child's handshake is done: it is ready for accept.
    func joinListenQueue(of head: Socket) {
        connectStage = .connected
        guard raw.pointee.state & ALPS_SS_CONNECTED == 0, let listening = head.listening else { return }
        listening {
            $0.queue.handshakes -= 1
            $0.queue.append(self)
            head.raw.pointee.queue_length = UInt32($0.queue.count)
        }
        head.markDirty()
    }

    /// A child whose transport has let go before anybody accepted it: nobody else holds it.
    func leaveListenQueue(of head: Socket) {
        head.listening?({
            if $0.queue.remove(self) {
                head.raw.pointee.queue_length = UInt32($0.queue.count)
            } else {
                $0.queue.handshakes -= 1
            }
        })
        leaveHead()
        raw.pointee.state |= ALPS_SS_CLOSED
    }

    private func leaveHead() { raw.pointee.listener = nil }

    /// A listener ends: connections that nobody is going to accept are reset.
    func dropListenQueue() {
        guard isListening, let listening else { return }
        raw.pointee.options &= ~ALPS_SO_ACCEPTCONN
        for instance in listening({ $0.formerInstances }) where instance.state != .dead {
            guard let former = kernel.protocols.counterpart(of: entry, in: instance),
                let request = former.request(ALPS_PRU_ORPHAN)
            else { continue }
            typealias Function = @convention(c) (UnsafeMutableRawPointer, UnsafeMutablePointer<alps_socket>) -> Int32
            _ = unsafeBitCast(request.function, to: Function.self)(former.instancePointer, raw)
        }
        while let child = listening({ $0.queue.removeFirst() }) {
            child.leaveHead()
            child.abort()
        }
        raw.pointee.queue_length = 0
        if listening({ $0.queue.handshakes }) > 0 {
            for child in kernel.sockets.all where child.head?.names(self) == true {
                child.leaveHead()
                child.abort()
            }
        }
        setListening(nil)
    }
}

import PluginAPI
import PluginKit

typealias ConnectionPointer = UnsafeMutablePointer<Connection>

/// States of RFC 9293, 3.3.2, with the numbers that `alps_conn.state` shows.
enum State: UInt32 {
    case closed = 0
    case listen, synSent, synReceived, established, finWait1, finWait2, closeWait, closing, lastAck, timeWait

    var name: StaticString {
        switch self {
        case .closed: return "CLOSED"
        case .listen: return "LISTEN"
        case .synSent: return "SYN-SENT"
        case .synReceived: return "SYN-RECEIVED"
        case .established: return "ESTABLISHED"
        case .finWait1: return "FIN-WAIT-1"
        case .finWait2: return "FIN-WAIT-2"
        case .closeWait: return "CLOSE-WAIT"
        case .closing: return "CLOSING"
        case .lastAck: return "LAST-ACK"
        case .timeWait: return "TIME-WAIT"
        }
    }

    /// Both SYNs are acknowledged.
    @inline(__always)
    var isSynchronized: Bool { rawValue >= State.established.rawValue }

    /// The peer's FIN has been taken.
    @inline(__always)
    var hasReceivedFin: Bool {
        switch self {
        case .closeWait, .closing, .lastAck, .timeWait: return true
        default: return false
        }
    }
}

struct ConnectionFlags: OptionSet {
    var rawValue: UInt32

    /// bind was called with a port.
    static var portChosen: ConnectionFlags { .init(rawValue: 1 << 0) }
    /// The application has closed the socket.
    static var orphan: ConnectionFlags { .init(rawValue: 1 << 1) }
    /// Everything in the send buffer, then a FIN.
    static var finQueued: ConnectionFlags { .init(rawValue: 1 << 2) }
    static var finSent: ConnectionFlags { .init(rawValue: 1 << 3) }
    static var finAcked: ConnectionFlags { .init(rawValue: 1 << 4) }
    /// The peer's FIN has arrived; it counts when everything before it has (`finSequence`).
    static var finArrived: ConnectionFlags { .init(rawValue: 1 << 5) }
    /// RFC 7323 options in force.
    static var timestamps: ConnectionFlags { .init(rawValue: 1 << 6) }
    static var windowScaling: ConnectionFlags { .init(rawValue: 1 << 7) }
    /// Selective acknowledgments are agreed on (RFC 2018).
    static var sackPermitted: ConnectionFlags { .init(rawValue: 1 << 8) }
    /// An acknowledgment is due at the end of the batch, or may wait for the timer.
    static var ackNow: ConnectionFlags { .init(rawValue: 1 << 9) }
    static var ackDelayed: ConnectionFlags { .init(rawValue: 1 << 10) }
    static var timing: ConnectionFlags { .init(rawValue: 1 << 13) }
    static var noDelay: ConnectionFlags { .init(rawValue: 1 << 14) }
    static var cork: ConnectionFlags { .init(rawValue: 1 << 15) }
    /// The last write said that more will follow.
    static var moreToCome: ConnectionFlags { .init(rawValue: 1 << 16) }
    /// TCP_QUICKACK: no delayed acknowledgments for now.
    static var quickAck: ConnectionFlags { .init(rawValue: 1 << 17) }
    /// Requests and replies take turns: a reply is likely to carry the acknowledgment.
    static var interactive: ConnectionFlags { .init(rawValue: 1 << 18) }
    /// In `Instance.touched`.
    static var touched: ConnectionFlags { .init(rawValue: 1 << 19) }
    /// The urgent byte has been announced and has not arrived.
    static var urgentMissing: ConnectionFlags { .init(rawValue: 1 << 20) }
    /// The SYN was sent more than once.
    static var synLost: ConnectionFlags { .init(rawValue: 1 << 21) }
    /// In the host's connection table.
    static var inserted: ConnectionFlags { .init(rawValue: 1 << 22) }
    /// Our own SYN has been acknowledged: `sndUna` is a data number.
    static var synAcked: ConnectionFlags { .init(rawValue: 1 << 23) }
    /// A window update is due although nothing else is.
    static var windowUpdate: ConnectionFlags { .init(rawValue: 1 << 24) }
    /// What was in flight at the last loss, up to `recovery.point`, is not acknowledged and a byte more (RFC 6582).
    static var recoverSet: ConnectionFlags { .init(rawValue: 1 << 25) }
    /// Agreed on ECN (RFC 3168); a mark has come and the sender has not reacted; we have, and must say so.
    static var ecn: ConnectionFlags { .init(rawValue: 1 << 26) }
    static var congestionEcho: ConnectionFlags { .init(rawValue: 1 << 27) }
    static var windowReduced: ConnectionFlags { .init(rawValue: 1 << 28) }
    /// TCP_FASTOPEN_CONNECT; the SYN waits for the first write; data went with the SYN (RFC 7413).
    static var fastOpenConnect: ConnectionFlags { .init(rawValue: 1 << 29) }
    static var synDeferred: ConnectionFlags { .init(rawValue: 1 << 30) }
    static var fastOpened: ConnectionFlags { .init(rawValue: 1 << 31) }
}

/// What the retransmission timer is for at present.
enum RetransmitUse: UInt8 {
    case none = 0
    case retransmit, persist
    /// A tail loss probe, the end of the reordering window (RFC 8985).
    case probe, reorder
}

/// What the keep timer is for at present.
enum KeepUse: UInt8 {
    case none = 0
    case idle, finWait2
}

/// The transport control block: everything about one connection, or about a socket that listens or does nothing yet.
///
/// In zone memory, which is zero when it is handed out; every field must mean something sensible when zero or be set in
/// `InstancePointer.makeConnection`. An idle connection should cost little: what most do not need most of the time is
/// memory of its own, and small fields stand where there would be padding.
struct Connection {
    var conn: alps_conn
    var instance: InstancePointer
    var socket: Socket
    var state: State
    var flags: ConnectionFlags
    var next: ConnectionPointer?
    var previous: ConnectionPointer?
    var touchedNext: ConnectionPointer?
    var touchedPrevious: ConnectionPointer?

    // Send sequence space (RFC 9293, 3.3.1). Position `socket.snd.head` of the stream is at `sndUna`, or one further
    // while the SYN is not acknowledged.
    var iss: SequenceNumber
    var sndUna: SequenceNumber
    /// Next to be sent for the first time.
    var sndNxt: SequenceNumber
    /// Behind the highest ever sent: `sndNxt`, or what a probe of a closed window had beyond it.
    var sndMax: SequenceNumber
    /// Behind the urgent data.
    var sndUp: SequenceNumber
    /// Behind the last segment that was not full.
    var sndSmall: SequenceNumber
    var records: RecordEnds
    var sndWl1: SequenceNumber
    var sndWl2: SequenceNumber
    var sndWnd: UInt32
    var maxSndWnd: UInt32
    var congestion: Congestion
    /// Its own only while something is in flight: see `Sender`.
    var sender: SenderPointer
    var validation: WindowValidation
    /// The output under way stopped at `cwnd`.
    var isHeldByWindow: Bool
    /// MSG_MORE holds a segment back until the next acknowledgment, which has come.
    var isMoreReleased: Bool
    var sndScale: UInt8
    /// Behind the round trip whose use of `cwnd` is being watched.
    var windowUseEnd: SequenceNumber
    /// Duplicate acknowledgments in a row, of a peer without SACK.
    var dupAcks: UInt32
    /// The search for a size that the path takes, once there was reason for one.
    var pathProbe: UnsafeMutablePointer<PathMTUProbe>?
    var sendTimes: SendTimes
    /// Once a rate has been set.
    var pacing: UnsafeMutablePointer<Pacing>?
    /// Payload of a full segment, options subtracted.
    var mss: UInt32
    /// Without options: what the peer said, what the application wants (0: nothing), what we said.
    var peerMSS: UInt32
    var userMSS: UInt32
    var advertisedMSS: UInt32
    /// Route generation `mss` was made for.
    var routeGeneration: UInt64

    // Receive sequence space. Position `socket.rcv.tail` of the stream is at `rcvNxt`.
    var irs: SequenceNumber
    var rcvNxt: SequenceNumber
    /// Right edge of the window as advertised.
    var rcvAdv: SequenceNumber
    var rcvUp: SequenceNumber
    var finSequence: SequenceNumber
    var lastAckSent: SequenceNumber
    /// Largest segment the peer has sent lately, to tell which are full.
    var rcvMSS: UInt32
    /// Payload received since the last acknowledgment.
    var unackedBytes: UInt32
    /// Acknowledgments still sent at once, to help the peer out of slow start.
    var quickAcks: UInt32
    /// Added to our clock to make our timestamps.
    var timestampOffset: UInt32
    var reassembly: Reassembly
    var rcvScale: UInt8
    var receiveTuning: ReceiveTuning
    var tsRecent: UInt32
    var tsRecentTime: UInt64

    // Retransmission.
    var roundTrip: RoundTripEstimator
    var timedAt: UInt64
    /// When the data now at `sndUna` began to wait for an acknowledgment, 0: nothing waits.
    var waitingSince: UInt64
    var timedSequence: SequenceNumber
    /// Time-outs since something was last acknowledged.
    var attempts: UInt32
    /// How often the time-out has been doubled. That lasts until a round trip has been measured (RFC 6298, 5), which
    /// what was sent twice does not (Karn).
    var backoff: UInt32
    /// An error the network reported that need not be final, for the case that we have to give up.
    var softError: Int32
    var keepProbes: UInt32
    var retransmitUse: RetransmitUse
    var keepUse: KeepUse
    /// Of `retransmitUse`.
    var retransmitDeadline: UInt64
    /// Of the retransmission timer.
    var timeoutDeadline: UInt64
    var delayedAckDeadline: UInt64
    /// Of `keepUse`.
    var keepDeadline: UInt64
    /// For the first of them.
    var callout: alps_callout
    var lastReceived: UInt64
    var lastSent: UInt64
    var lastDataReceived: UInt64
    /// Challenge acknowledgments in the second that began at `challengeStart` (RFC 5961, section 7).
    var challengeStart: UInt64
    var challenges: UInt32

    var options: ChosenOptions

    // Of a listener.
    var embryonicCount: UInt32
    /// TCP_FASTOPEN: how many connections may be open that no ACK has confirmed, and how many are.
    var fastOpenBacklog: UInt32
    var fastOpenPending: UInt32
    /// TCP_FASTOPEN_NO_COOKIE.
    var fastOpenNoCookie: Bool
    /// Data of a SYN has been taken, by the peer or from it.
    var isSynDataTaken: Bool
    /// What our SYN has asked for.
    var ecnRequest: ECNRequest
    var establishedAt: UInt64
    /// TCP_FASTOPEN_KEY.
    var fastOpenKeys: UnsafeMutablePointer<FastOpenKeys>?
    /// Of a connection that has been opened fast: who made it.
    var fastOpenListener: ConnectionPointer?

    /// Never its own memory unless Accurate ECN is on.
    var accurateMemory: UnsafeMutablePointer<AccurateECN>

    // For TCP_INFO.
    var totals: ConnectionTotals
}

/// Options of the application's; 0: the instance's default.
struct ChosenOptions {
    /// Seconds.
    var keepIdle: UInt16
    var keepInterval: UInt16
    var connectTimeout: UInt16
    /// Seconds; below 0: FIN-WAIT-2 ends at once.
    var linger2: Int16
    var keepCount: UInt8
    var synCount: UInt8
    /// SYN, ACKs.
    var deferAccept: UInt8
    /// Milliseconds.
    var userTimeout: UInt32
    /// Bytes.
    var windowClamp: UInt32
}

struct ConnectionTotals {
    var segmentsOut: UInt32
    var segmentsIn: UInt32
    var dataSegmentsOut: UInt32
    var dataSegmentsIn: UInt32
    var retransmits: UInt32
    var outOfOrder: UInt32
    var markedSegmentsIn: UInt32
    var duplicateReports: UInt32
    /// Acknowledgments that told of reordering.
    var reorderings: UInt32
    /// Segments known to have arrived, and of those the ones whose acknowledgment told of a mark.
    var delivered: UInt32
    var deliveredMarked: UInt32
    var timeouts: UInt32
    var bytesAcked: UInt64
    var bytesReceived: UInt64
    var bytesSent: UInt64
    var bytesRetransmitted: UInt64
}

extension UnsafeMutablePointer where Pointee == alps_socket {
    @inline(__always)
    var connection: ConnectionPointer? { pointee.pcb?.assumingMemoryBound(to: Connection.self) }
}

// MARK: Making and freeing

extension UnsafeMutablePointer where Pointee == Instance {
    /// The control block of a socket, in CLOSED.
    func makeConnection(_ socket: Socket) -> ConnectionPointer? {
        guard let connection = services.allocate(Connection.self) else { return nil }
        let netpcb = socket.pointee.netpcb
        netpcb.pointee.protocol = Registration.protocol
        if isOn(.pathMTUDiscovery) { netpcb.pointee.flags |= UInt8(ALPS_NETPCB_DF) }
        connection.pointee.instance = self
        connection.pointee.sender = restingSender
        connection.pointee.accurateMemory = restingAccurateECN
        connection.pointee.socket = socket
        connection.pointee.conn.family = socket.pointee.domain
        connection.pointee.conn.protocol = Registration.protocol
        connection.pointee.conn.kind = UInt8(ALPS_CONN_BOUND)
        connection.pointee.conn.socket = socket
        connection.pointee.conn.cookie = UnsafeMutableRawPointer(connection)
        connection.pointee.next = pointee.connections
        pointee.connections?.pointee.previous = connection
        pointee.connections = connection
        connection.reset()
        socket.pointee.pcb = UnsafeMutableRawPointer(connection)
        return connection
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    @inline(__always)
    var instance: InstancePointer { pointee.instance }

    @inline(__always)
    var socket: Socket { pointee.socket }

    @inline(__always)
    var netpcb: UnsafeMutablePointer<alps_netpcb> { pointee.socket.pointee.netpcb }

    @inline(__always)
    func has(_ flag: ConnectionFlags) -> Bool { pointee.flags.rawValue & flag.rawValue != 0 }

    @inline(__always)
    func set(_ flag: ConnectionFlags) { pointee.flags.rawValue |= flag.rawValue }

    @inline(__always)
    func clear(_ flag: ConnectionFlags) { pointee.flags.rawValue &= ~flag.rawValue }

    @inline(__always)
    func set(_ flag: ConnectionFlags, _ value: Bool) {
        if value { set(flag) } else { clear(flag) }
    }

    /// The beginning of any connection, a second one on the same socket included.
    func reset() {
        pointee.roundTrip = RoundTripEstimator(initialRTO: instance.nanoseconds(.initialRTO))
        pointee.congestion.algorithm = instance.setting(.congestionControl) == 1 ? .cubic : .newReno
        pointee.mss = UInt32(truncatingIfNeeded: instance.setting(.defaultMSS))
        pointee.rcvMSS = min(pointee.mss, 536)
        pointee.quickAcks = UInt32(truncatingIfNeeded: instance.setting(.quickAcks))
        pointee.backoff = 0
        pointee.attempts = 0
        pointee.softError = 0
        pointee.dupAcks = 0
        freeRecords()
        restSender()
        pointee.unackedBytes = 0
        pointee.sndWnd = 0
        pointee.maxSndWnd = 0
        pointee.sndScale = 0
        pointee.rcvScale = 0
        pointee.waitingSince = 0
        pointee.keepProbes = 0
        restAccurateECN()
        pointee.flags.rawValue &=
            ConnectionFlags([.portChosen, .orphan, .noDelay, .cork, .touched, .inserted, .quickAck, .fastOpenConnect])
            .rawValue
    }

    func enter(_ state: State) {
        pointee.state = state
        pointee.conn.state = state.rawValue
    }

    // MARK: Connection table

    func insert() -> Int32 {
        let result = instance.insert(&pointee.conn)
        if result == 0 { set(.inserted) }
        return result
    }

    func remove() {
        guard has(.inserted) else { return }
        instance.remove(&pointee.conn)
        clear(.inserted)
    }

    // MARK: Batch

    /// `output` is to be called at the end of this batch.
    @inline(__always)
    func touch() {
        guard !has(.touched) else { return }
        set(.touched)
        pointee.touchedPrevious = nil
        pointee.touchedNext = instance.pointee.touched
        instance.pointee.touched?.pointee.touchedPrevious = self
        instance.pointee.touched = self
    }

    @inline(__always)
    func untouch() {
        guard has(.touched) else { return }
        clear(.touched)
        if let previous = pointee.touchedPrevious {
            previous.pointee.touchedNext = pointee.touchedNext
        } else {
            instance.pointee.touched = pointee.touchedNext
        }
        pointee.touchedNext?.pointee.touchedPrevious = pointee.touchedPrevious
    }

    // MARK: End

    /// The connection is over: CLOSED, with an error for the application or without. The control block stays for as
    /// long as the application has the socket; afterwards `self` may be gone.
    func close(_ error: Int32) {
        let wasConnected = pointee.state.isSynchronized
        remove()
        stopTimers()
        untouch()
        freeReassembly()
        restSender()
        leaveFastOpen()
        clear([.ackNow, .ackDelayed, .windowUpdate, .timing])
        enter(.closed)
        instance.count(wasConnected ? .closed : .connectionsDropped)
        let sockets = instance.sockets
        let layer = instance.socketLayer
        if error != 0 { sockets.pointee.set_error(layer, socket, error) }
        sockets.pointee.is_disconnected(layer, socket)
        if has(.orphan) { release() }
    }

    /// Lets go of the socket and frees the control block.
    func release() {
        let instance = instance
        let socket = socket
        discard()
        instance.sockets.pointee.detached(instance.socketLayer, socket)
    }

    /// Frees the control block and all it holds, without a word to the socket layer.
    func discard() {
        let instance = instance
        if pointee.state == .listen { instance.dropEmbryonics(of: self) }
        forgetFastOpens()
        leaveFastOpen()
        remove()
        stopTimers()
        untouch()
        freeReassembly()
        freeRecords()
        restSender()
        restAccurateECN()
        endPathProbe()
        instance.services.freeIfPresent(pointee.pacing)
        instance.services.freeIfPresent(pointee.fastOpenKeys)
        if let previous = pointee.previous {
            previous.pointee.next = pointee.next
        } else {
            instance.pointee.connections = pointee.next
        }
        pointee.next?.pointee.previous = pointee.previous
        pointee.socket.pointee.pcb = nil
        instance.services.free(self)
        if instance.pointee.connections == nil {
            instance.dropFreeLists()
        }
    }
}

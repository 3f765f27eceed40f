import Glibc
import PluginAPI

/// One AF_NETLINK socket: requests in, answers and notifications out (netlink(7)).
package final class NetlinkSocket {
    /// NETLINK_*: what is asked about.
    package let family: Int32
    /// SOCK_RAW or SOCK_DGRAM: the same here.
    package let type: Int32
    /// The user who made it.
    package let uid: UInt32
    private let pid: Int32
    private unowned let hub: Netlink
    /// Its address, 0 while it has none.
    package private(set) var port: UInt32 = 0
    /// Where connect(2) has sent it: 0 is the stack.
    package private(set) var peer: UInt32 = 0
    /// Multicast groups, bit 0 being group 1.
    package private(set) var groups: UInt64 = 0
    var options = NetlinkOptions()

    /// Whoever reads has something to do.
    package var onReadable: (() -> Void)?
    private var queue: [Datagram] = []
    private var queuedBytes = 0
    private var dump: NetlinkDump?
    private var error: Int32 = 0

    /// What one read brings.
    package struct Datagram {
        package let bytes: [UInt8]
        /// Multicast group it was sent to, 0 if to this socket alone.
        package let group: UInt32
    }

    /// Bytes of one datagram of a dump: what Linux puts into one before it has seen a reader with a larger buffer. libc and
    /// libmnl read with buffers of a page.
    static let dumpDatagram = 3776
    /// Groups there may be.
    static let mostGroups: UInt32 = 64

    init(hub: Netlink, family: Int32, type: Int32, uid: UInt32, pid: Int32) {
        self.hub = hub
        self.family = family
        self.type = type
        self.uid = uid
        self.pid = pid
    }

    // MARK: Names

    /// bind(2). Port 0: one is chosen.
    package func bind(port wanted: UInt32, groups wantedGroups: UInt32) -> Int32 {
        if port != 0, wanted != port { return EINVAL }
        if port == 0 {
            let status = takePort(wanted)
            guard status == 0 else { return status }
        }
        groups = groups & ~0xffff_ffff | UInt64(wantedGroups)
        hub.groupsChanged()
        return 0
    }

    private func takePort(_ wanted: UInt32) -> Int32 {
        guard let free = hub.claimPort(wanted, of: self, pid: pid) else { return EADDRINUSE }
        port = free
        return 0
    }

    /// connect(2).
    package func connect(port wanted: UInt32) -> Int32 {
        if port == 0 {
            let status = takePort(0)
            guard status == 0 else { return status }
        }
        peer = wanted
        return 0
    }

    package func disconnect() { peer = 0 }

    package func join(_ group: UInt32) -> Int32 {
        guard (1...Self.mostGroups).contains(group) else { return EINVAL }
        if port == 0 {
            let status = takePort(0)
            guard status == 0 else { return status }
        }
        groups |= 1 << UInt64(group - 1)
        hub.groupsChanged()
        return 0
    }

    package func leave(_ group: UInt32) -> Int32 {
        guard (1...Self.mostGroups).contains(group) else { return EINVAL }
        groups &= ~(1 << UInt64(group - 1))
        hub.groupsChanged()
        return 0
    }

    func isMember(of group: UInt32) -> Bool {
        group != 0 && group <= Self.mostGroups && groups & (1 << UInt64(group - 1)) != 0
    }

    package func close() { hub.closed(self) }

    // MARK: Requests

    /// sendmsg(2). `destination` is a port, nil for the one that is connected to. Answers are there when this returns.
    package func send(_ datagram: [UInt8], to destination: UInt32? = nil, mayChange: Bool) -> Int32 {
        guard !datagram.isEmpty else { return ENODATA }
        if port == 0 {
            let status = takePort(0)
            guard status == 0 else { return status }
        }
        guard destination ?? peer == 0 else { return mayChange ? ECONNREFUSED : EPERM }
        // As netlink_rcv_skb: what has no sense as a header ends the datagram, without an answer.
        var rest = datagram[...]
        while let header = NetlinkHeader(rest), header.length >= UInt32(NetlinkHeader.size), Int(header.length) <= rest.count {
            let message = rest.prefix(Int(header.length))
            execute(header, message, mayChange: mayChange)
            rest = rest.dropFirst((Int(header.length) + 3) & ~3)
        }
        return 0
    }

    private func execute(_ header: NetlinkHeader, _ message: ArraySlice<UInt8>, mayChange: Bool) {
        var failure: NetlinkError?
        // Only requests are the stack's business, and netlink's own types ask nothing.
        if header.flags & NetlinkHeader.request != 0, header.type >= NetlinkHeader.firstType {
            do {
                let request = NetlinkRequest(
                    header: header, payload: message.dropFirst(NetlinkHeader.size), socket: self, mayChange: mayChange)
                switch try hub.answer(request) {
                case .done: break
                case .dump(let source):
                    guard dump == nil else { throw NetlinkError(EBUSY, "another dump of this socket goes on") }
                    dump = NetlinkDump(header, port: port, source)
                    onReadable?()
                    // Its end is the acknowledgment.
                    return
                }
            } catch let refused as NetlinkError {
                failure = refused
            } catch {
                failure = NetlinkError(EINVAL)
            }
        }
        if failure != nil || header.flags & NetlinkHeader.acknowledge != 0 { acknowledge(header, message, failure) }
    }

    /// NLMSG_ERROR: an errno, 0 for none, and the request, or its header alone where the program wants no more.
    private func acknowledge(_ request: NetlinkHeader, _ message: ArraySlice<UInt8>, _ failure: NetlinkError?) {
        let isCapped = failure == nil || options.capsAcknowledgments
        let words = options.extendsAcknowledgments ? failure?.message ?? "" : ""
        var writer = NetlinkWriter(
            NetlinkHeader(
                type: NetlinkHeader.error,
                flags: (isCapped ? NetlinkHeader.capped : 0) | (words.isEmpty ? 0 : NetlinkHeader.acknowledgeAttributes),
                sequence: request.sequence, port: port))
        writer.append(-(failure?.code ?? 0))
        writer.append(isCapped ? message.prefix(NetlinkHeader.size) : message)
        if !words.isEmpty {
            writer.align()
            writer.attribute(1 /* NLMSGERR_ATTR_MSG */, text: words)
        }
        deliver(writer.finished())
    }

    // MARK: Answers

    /// Queues a datagram. A reader who is too slow loses it, and hears of that (ENOBUFS).
    func deliver(_ bytes: [UInt8], group: UInt32 = 0) {
        guard queuedBytes + bytes.count <= options.receiveBuffer else {
            if !options.toleratesLoss { error = ENOBUFS }
            onReadable?()
            return
        }
        queue.append(Datagram(bytes: bytes, group: group))
        queuedBytes += bytes.count
        onReadable?()
    }

    /// The next datagram, which stays until `removeFirst`.
    package var first: Datagram? {
        if queue.isEmpty, let piece = dump?.next(options.extendsAcknowledgments) {
            queue.append(Datagram(bytes: piece, group: 0))
            queuedBytes += piece.count
            if dump?.isOver == true { dump = nil }
        }
        return queue.first
    }

    package func removeFirst() {
        guard !queue.isEmpty else { return }
        queuedBytes -= queue.removeFirst().bytes.count
    }

    /// SO_ERROR without clearing it.
    package var pendingError: Int32 { error }

    package func takeError() -> Int32 {
        defer { error = 0 }
        return error
    }
}

/// A request with what is known of who asks.
struct NetlinkRequest {
    let header: NetlinkHeader
    /// Behind the header.
    let payload: ArraySlice<UInt8>
    let socket: NetlinkSocket
    /// The one who asks may change the stack (CAP_NET_ADMIN).
    let mayChange: Bool

    func has(_ flag: UInt16) -> Bool { header.flags & flag != 0 }

    /// Any of the two flags makes a dump of it, as on Linux.
    var isDump: Bool { header.flags & NetlinkHeader.dump != 0 }

    /// EINVAL if there are fewer bytes.
    func require(_ size: Int) throws {
        guard payload.count >= size else { throw NetlinkError(EINVAL, "the message is too short") }
    }

    /// The start of an answer to this request.
    func reply(_ type: UInt16, flags: UInt16 = 0) -> NetlinkWriter {
        NetlinkWriter(NetlinkHeader(type: type, flags: flags, sequence: header.sequence, port: socket.port))
    }
}

/// How a request ends that is not refused.
enum NetlinkOutcome {
    case done
    case dump(NetlinkSource)
}

/// What a dump consists of: batches of whole messages, nil at the end. An error ends it (NLMSG_DONE carries it).
struct NetlinkSource {
    /// Not everything there is: NLM_F_DUMP_FILTERED.
    var isFiltered = false
    let next: () throws -> [[UInt8]]?

    init(isFiltered: Bool = false, next: @escaping () throws -> [[UInt8]]?) {
        self.isFiltered = isFiltered
        self.next = next
    }

    /// All at once.
    init(_ messages: [[UInt8]], isFiltered: Bool = false) {
        var left: [[UInt8]]? = messages
        self.init(isFiltered: isFiltered) {
            defer { left = nil }
            return left
        }
    }

    init(failing error: NetlinkError) { self.init { throw error } }
}

/// A dump under way: its messages in datagrams of a page, NLMSG_DONE at the end.
private struct NetlinkDump {
    private let source: NetlinkSource
    private let request: NetlinkHeader
    private let port: UInt32
    private var waiting: ArraySlice<[UInt8]> = []
    private var hasMore = true
    private var failure: NetlinkError?
    private(set) var isOver = false

    init(_ request: NetlinkHeader, port: UInt32, _ source: NetlinkSource) {
        self.request = request
        self.port = port
        self.source = source
    }

    mutating func next(_ extended: Bool) -> [UInt8] {
        var result: [UInt8] = []
        while true {
            while waiting.isEmpty, hasMore { fetch() }
            guard let message = waiting.first else { break }
            guard result.isEmpty || result.count + message.count <= NetlinkSocket.dumpDatagram else { return result }
            result += message
            waiting = waiting.dropFirst()
        }
        result += end(extended)
        isOver = true
        return result
    }

    private mutating func fetch() {
        do {
            guard let batch = try source.next() else {
                hasMore = false
                return
            }
            waiting = batch.map(marked)[...]
        } catch {
            failure = error as? NetlinkError ?? NetlinkError(EINVAL)
            hasMore = false
        }
    }

    private var flags: UInt16 { NetlinkHeader.multi | (source.isFiltered ? NetlinkHeader.dumpFiltered : 0) }

    /// The message as part of a dump.
    private func marked(_ message: [UInt8]) -> [UInt8] {
        var message = message
        let old: UInt16 = message[...].number(at: 6)
        withUnsafeBytes(of: old | flags) { message.replaceSubrange(6..<8, with: $0) }
        return message
    }

    private func end(_ extended: Bool) -> [UInt8] {
        let words = extended ? failure?.message ?? "" : ""
        var writer = NetlinkWriter(
            NetlinkHeader(
                type: NetlinkHeader.done, flags: flags | (words.isEmpty ? 0 : NetlinkHeader.acknowledgeAttributes),
                sequence: request.sequence, port: port))
        writer.append(-(failure?.code ?? 0))
        if !words.isEmpty { writer.attribute(1 /* NLMSGERR_ATTR_MSG */, text: words) }
        return writer.finished()
    }
}

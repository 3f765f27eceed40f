import CLibc
import ClientAPI
import ShimEntry

/// What a descriptor number is, as far as this process knows.
enum Kind {
    /// Never looked at. Must be the zero value: the table is fresh memory.
    case unknown
    /// Not the stack's.
    case native
    /// A stream that is connected or on its way: data calls are the kernel's.
    case stream
    case freshStream
    case listener
    /// Messages have an address header.
    case datagram
    /// Messages are bare payload.
    case connectedDatagram
    /// The session and the doorway: not there for the program.
    case hidden
}

/// One descriptor. 64 bytes, no pointers: a fork's child has a valid copy.
struct Entry {
    var handle: UInt64
    /// SO_COOKIE of the pair: proof that the number still means the same socket although it may have been closed by a way
    /// that we do not see (fclose, a raw system call).
    var cookie: UInt64
    /// Peer of a connected datagram socket, network byte order.
    var peerAddress: UInt32
    var peerPort: UInt16
    var protocolNumber: UInt16
    var kind: Kind
    var type: UInt8
    var state: UInt8
    /// Ancillary data the program asked for.
    var ancillary: UInt8
    /// AF_INET, AF_NETLINK or AF_PACKET.
    var domain: UInt8
    /// 1 more than its place among the mapped rings; 0: it has none.
    var ring: UInt16 = 0
    /// The epoll instance that the descriptor was registered with last, and with what; events 0: none is known.
    var epoll: Int32
    var epollEvents: UInt32
    var epollData: UInt64
    /// Bytes that came and went in large calls, since the last time that this was made something of.
    var bulkRead: UInt32 = 0
    var bulkWritten: UInt32 = 0
    /// Value of `forks` when this process got the descriptor.
    var born: UInt32 = 0
    /// See StreamRings. Threads change it at the same time.
    var ringState: UInt32 = 0

    // state
    /// A connect without waiting is under way.
    static var connecting: UInt8 { 1 }
    /// Our filler may still be in the pair, or the pair is dead: a new connect needs a new pair.
    static var spoiled: UInt8 { 2 }
    /// The host has been told, or has told, that this socket's pair is dead.
    static var dead: UInt8 { 4 }
    /// `ancillary` is up to date.
    static var ancillaryKnown: UInt8 { 8 }
    /// What is sent is held back by the host until a call without MSG_MORE.
    static var heldBack: UInt8 { 32 }
    /// The host puts urgent bytes into the pair as the pair's own.
    static var watchesUrgent: UInt8 { 64 }
    /// The host has answered this process about the socket: it may be told things without waiting for an answer.
    static var answered: UInt8 { 128 }
    /// SO_RCVBUF or SO_SNDBUF were set.
    static var buffersSet: UInt8 { 16 }

    // ancillary
    static var packetInfo: UInt8 { 1 }
    static var timeToLive: UInt8 { 2 }
    static var typeOfService: UInt8 { 4 }
    static var timestamp: UInt8 { 8 }
    static var timestampNanoseconds: UInt8 { 16 }
    static var errorQueue: UInt8 { 32 }
    static var credentials: UInt8 { 64 }

    /// Of a stream, whose peer only the host knows: 1 more than the index of its word (CorkWords.swift); 0: it has none.
    var corkWord: UInt16 {
        get { peerPort }
        set { peerPort = newValue }
    }
    /// Of an accepted stream: 65536 times its table's number, and 1 more than the index of its word (OptionWords.swift). Of a
    /// listener: the first part, or what says that it has been asked for in vain. 0: none.
    var optionWord: UInt32 {
        get { peerAddress }
        set { peerAddress = newValue }
    }
    var isDatagram: Bool { kind == .datagram || kind == .connectedDatagram }
    var isNetlink: Bool { domain == UInt8(AF_NETLINK) }
    var isPacket: Bool { domain == UInt8(AF_PACKET) }
    var isStream: Bool { kind == .stream || kind == .freshStream || kind == .listener }
}

typealias EntryPointer = UnsafeMutablePointer<Entry>

/// The table: memory by descriptor number, untouched pages cost nothing.
struct FileTable {
    var entries: EntryPointer? = nil
    var count: UInt32 = 0
    /// The highest number that was ever written.
    var highest: UInt32 = 0
}

nonisolated(unsafe) var fileTable = FileTable()

private var textAreaBytes: Int { 16384 }

func mapFileTable() -> Bool {
    // Not by RLIMIT_NOFILE: root may raise it later. fs.nr_open is this.
    let count = 1 << 20
    guard let area = alps_map_anonymous(count * MemoryLayout<Entry>.stride + textAreaBytes) else { return false }
    fileTable.entries = area.bindMemory(to: Entry.self, capacity: count)
    fileTable.count = UInt32(count)
    return true
}

/// Memory behind the table, for the copies of environment variables.
func variableTextArea() -> UnsafeMutableBufferPointer<CChar> {
    guard let entries = fileTable.entries else { return UnsafeMutableBufferPointer(start: nil, count: 0) }
    let start = UnsafeMutableRawPointer(entries + Int(fileTable.count)).bindMemory(
        to: CChar.self, capacity: textAreaBytes)
    return UnsafeMutableBufferPointer(start: start, count: textAreaBytes)
}

@inline(__always)
func kind(of descriptor: Int32) -> Kind {
    guard UInt32(bitPattern: descriptor) < fileTable.count else { return .native }
    return fileTable.entries.unsafelyUnwrapped[Int(descriptor)].kind
}

@inline(__always)
func entry(of descriptor: Int32) -> EntryPointer? {
    guard UInt32(bitPattern: descriptor) < fileTable.count else { return nil }
    return fileTable.entries.unsafelyUnwrapped + Int(descriptor)
}

/// The entry as something to be written. nil in a child of vfork: the table is its parent's, its descriptors are not.
func writableEntry(of descriptor: Int32) -> EntryPointer? {
    guard let found = entry(of: descriptor), alps_shim_borrows_memory() == 0 else { return nil }
    if UInt32(descriptor) > fileTable.highest { fileTable.highest = UInt32(descriptor) }
    return found
}

func clearEntry(_ descriptor: Int32) {
    guard let found = entry(of: descriptor), found.pointee.kind != .unknown, alps_shim_borrows_memory() == 0 else {
        return
    }
    dropRing(found)
    freeCorkWord(found)
    memset(found, 0, MemoryLayout<Entry>.size)
}

func copyEntry(from: Int32, to: Int32) {
    guard let target = entry(of: to), alps_shim_borrows_memory() == 0 else { return }
    let source = entry(of: from)
    if let source, source.pointee.kind != .unknown, source.pointee.kind != .hidden {
        fileTable.highest = max(fileTable.highest, UInt32(to))
        dropRing(target)
        freeCorkWord(target)
        shareCork(source)
        // What is said of one number by a message, and later of the other, must not be passed by a word.
        if source.pointee.kind == .stream { source.pointee.optionWord = 0 }
        target.pointee = source.pointee
        target.pointee.ringState &= Entry.copied
        shareRing(target)
    } else {
        clearEntry(to)
    }
}

func hide(_ descriptor: Int32) {
    guard let found = writableEntry(of: descriptor) else { return }
    found.pointee.kind = .hidden
}

/// True if a number marked hidden still is what it was hidden for; else it is the program's.
@inline(never)
func isHidden(_ descriptor: Int32) -> Bool {
    let error = alps_errno()
    defer { alps_set_errno(error) }
    let now = cookie(of: descriptor)
    if now != 0 {
        if descriptor == activation.doorway, now == activation.doorwayCookie { return true }
        if descriptor == session.descriptor, now == session.cookie { return true }
    }
    clearEntry(descriptor)
    return false
}

func markNative(_ descriptor: Int32) {
    guard let found = writableEntry(of: descriptor) else { return }
    dropRing(found)
    freeCorkWord(found)
    memset(found, 0, MemoryLayout<Entry>.size)
    found.pointee.kind = .native
}

/// Enters what the host said about a descriptor.
@discardableResult
func register(_ descriptor: Int32, _ info: alps_socket_info, fresh: Bool) -> EntryPointer? {
    guard let found = writableEntry(of: descriptor) else { return nil }
    var new = Entry(
        handle: info.handle, cookie: cookie(of: descriptor), peerAddress: ipv4(info.remote), peerPort: info.remote.port,
        protocolNumber: info.protocol, kind: .freshStream, type: UInt8(truncatingIfNeeded: info.type), state: 0,
        ancillary: 0, domain: UInt8(truncatingIfNeeded: info.domain), epoll: -1, epollEvents: 0, epollData: 0)
    if info.type == UInt16(SOCK_STREAM.rawValue) {
        if UInt32(info.flags) & ALPS_INFO_LISTENING != 0 {
            new.kind = .listener
        } else if !fresh || info.remote.family != 0 {
            new.kind = .stream
        }
    } else {
        new.kind = UInt32(info.flags) & ALPS_INFO_CONNECTED != 0 ? .connectedDatagram : .datagram
        if new.kind == .connectedDatagram { readiness.mayDiffer = true }
    }
    new.born = forks
    if fresh { new.state = Entry.ancillaryKnown } else { new.ringState = Entry.inBandForGood }
    if new.isStream { (new.corkWord, new.optionWord) = (0, 0) }
    dropRing(found)
    freeCorkWord(found)
    found.pointee = new
    return found
}

func cookie(of descriptor: Int32) -> UInt64 {
    var value: UInt64 = 0
    var length = socklen_t(8)
    guard alps_sys_getsockopt(descriptor, SOL_SOCKET, SO_COOKIE, &value, &length) == 0 else { return 0 }
    return value
}

// MARK: - finding out

/// The entry if the descriptor is a socket of the stack, for calls where a wrong answer would do harm. A number never seen
/// is looked at once; one that was seen is verified.
func stackSocket(_ descriptor: Int32) -> EntryPointer? {
    guard activation.active, let found = entry(of: descriptor) else { return nil }
    switch found.pointee.kind {
    case .native, .hidden: return nil
    case .unknown: return probe(descriptor)
    default:
        let error = alps_errno()
        defer { alps_set_errno(error) }
        if activation.confined || cookie(of: descriptor) == found.pointee.cookie { return found }
        clearEntry(descriptor)
        return alps_shim_borrows_memory() != 0 ? nil : probe(descriptor)
    }
}

/// The same for data calls: no verification.
@inline(__always)
func stackSocketUnverified(_ descriptor: Int32) -> EntryPointer? {
    guard let found = entry(of: descriptor) else { return nil }
    switch found.pointee.kind {
    case .native, .hidden: return nil
    case .unknown: return probe(descriptor)
    default: return found
    }
}

/// Looks whether an inherited or received descriptor is a socket of the stack: such a one bears a mark.
/// In-band for good (client.h, 5): what had been read or written here without this look, as numbers 0 to 2 are.
@inline(never)
func probe(_ descriptor: Int32) -> EntryPointer? {
    guard activation.active, !activation.confined else { return nil }
    let error = alps_errno()
    defer { alps_set_errno(error) }
    let handle = markedHandle(descriptor)
    guard handle != 0 else {
        if alps_errno() != EBADF { markNative(descriptor) }
        return nil
    }
    var info = alps_socket_info()
    let reply = ask(
        ALPS_OP_ATTACH, handle, into: &info, MemoryLayout<alps_socket_info>.size, passing: descriptor)
    if reply.error != 0 || reply.length < MemoryLayout<alps_socket_info>.size {
        // The host is gone or knows it no more: calls on it will say so.
        var type: Int32 = 0
        var length = socklen_t(4)
        _ = alps_sys_getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &length)
        info = alps_socket_info()
        info.handle = handle
        info.domain = UInt16(AF_INET)
        info.type = UInt16(type == Int32(SOCK_STREAM.rawValue) ? SOCK_STREAM.rawValue : SOCK_DGRAM.rawValue)
    }
    return register(descriptor, info, fresh: false)
}

/// Asks the host anew what a socket is: another holder may have connected it, or made it listen.
func refresh(_ descriptor: Int32) -> EntryPointer? {
    clearEntry(descriptor)
    return probe(descriptor)
}

/// The handle in the mark of a socket of the stack (client.h, 3), 0 if there is none.
private func markedHandle(_ descriptor: Int32) -> UInt64 {
    let maximumPacingRate: Int32 = 47
    let domain: Int32 = 39
    var mark: UInt64 = 0
    var length = socklen_t(8)
    guard alps_sys_getsockopt(descriptor, SOL_SOCKET, maximumPacingRate, &mark, &length) == 0 else { return 0 }
    alps_set_errno(0)
    let handle = mark ^ ALPS_MARK
    guard length == 8, handle >> 56 == 1 else { return 0 }
    var family: Int32 = 0
    length = 4
    guard alps_sys_getsockopt(descriptor, SOL_SOCKET, domain, &family, &length) == 0, family == AF_UNIX else { return 0 }
    return handle
}

import Glibc
import Kernel
import PluginAPI

/// What a script's file descriptors stand for.
final class ScriptDescriptor {
    enum Kind {
        case socket(Socket, ScriptFlow)
        case epoll(ScriptEpoll)
        /// Both ends of a pipe share their bytes.
        case pipe(ScriptPipe, isReader: Bool)
        case file(ScriptFile)
    }

    let number: Int
    let kind: Kind
    var isNonBlocking = false

    init(_ number: Int, _ kind: Kind) {
        self.number = number
        self.kind = kind
    }

    var socket: Socket? {
        if case .socket(let socket, _) = kind { return socket }
        return nil
    }

    var flow: ScriptFlow? {
        if case .socket(_, let flow) = kind { return flow }
        return nil
    }

    // MARK: Readiness, as poll(2) tells it

    static let pollIn: Int32 = 1
    static let pollOut: Int32 = 4
    static let pollError: Int32 = 8
    static let pollHangUp: Int32 = 0x10

    var readiness: Int32 {
        switch kind {
        case .socket(let socket, _): return Self.readiness(socket)
        case .pipe(let pipe, let isReader):
            return isReader ? (pipe.bytes.isEmpty ? 0 : Self.pollIn) : Self.pollOut
        case .epoll(let epoll): return epoll.hasReady ? Self.pollIn : 0
        case .file: return Self.pollIn | Self.pollOut
        }
    }

    /// `revents` of poll(2).
    func readiness(for events: Int32) -> Int32 { readiness & (events | Self.pollError | Self.pollHangUp) }

    private static let pollPriority: Int32 = 2
    private static let readNormal: Int32 = 0x40
    private static let writeNormal: Int32 = 0x100
    private static let readHangUp: Int32 = 0x2000

    private static func readiness(_ socket: Socket) -> Int32 {
        var events: Int32 = socket.pendingError != 0 ? pollError : 0
        guard socket.isStream else {
            if socket.datagramCount > 0 || socket.cannotReceiveMore { events |= pollIn | readNormal }
            return events | pollOut | writeNormal
        }
        if socket.isListening { return events | (socket.raw.pointee.queue_length > 0 ? pollIn | readNormal : 0) }
        let isFresh = !socket.isConnected && !socket.isConnecting && !socket.isDisconnected
        if isFresh, !socket.cannotReceiveMore { return events | pollOut | writeNormal | pollHangUp }
        if socket.isConnecting || isOpening(socket) { return events }
        let atEnd = socket.cannotReceiveMore || socket.isDisconnected
        if atEnd { events |= pollIn | readNormal | readHangUp }
        if socket.receiveAvailable >= Int(max(socket.raw.pointee.rcv.low_water, 1)) { events |= pollIn | readNormal }
        if atEnd, socket.cannotSendMore || socket.isDisconnected { events |= pollHangUp }
        if socket.cannotSendMore || hasRoom(socket) { events |= pollOut | writeNormal }
        if socket.state & ALPS_SS_OOB != 0 { events |= pollPriority }
        return events
    }

    /// Connected as far as its program is concerned, while the SYN with the first data has not been answered.
    static func isOpening(_ socket: Socket) -> Bool {
        guard socket.isConnected, !socket.isDisconnected else { return false }
        let values = information(socket)
        return values["tcpi_state"] == 2 && values["tcpi_segs_out"] != 0
    }

    /// TCP_INFO
    static func information(_ socket: Socket) -> [String: Int64] {
        let (error, info) = socket.getOption(level: 6, name: 11, capacity: 512)
        return error == 0 ? TCPInfoFields.values(info) : [:]
    }

    /// Linux wants a third of the send buffer free.
    private static func hasRoom(_ socket: Socket) -> Bool {
        let used = socket.sendQueued
        return socket.sendSpace > 0 && Int(socket.raw.pointee.snd.limit) - used >= (used + 1) / 2
    }
}

/// A pipe: bytes between splice calls.
final class ScriptPipe {
    static let capacity = 65536
    var bytes: [UInt8] = []
}

/// Files that a script's commands have made: in memory, and seen by this script alone.
final class ScriptFiles {
    private var contents: [String: [UInt8]] = [:]

    func create(_ path: String, _ bytes: [UInt8]) { contents[path] = bytes }
    func remove(_ path: String) { contents[path] = nil }

    /// One of them, or else one that is there. Nil and an errno if it cannot be read.
    func open(_ path: String, error: inout Int32) -> ScriptFile? {
        contents[path].map { ScriptFile($0) } ?? ScriptFile(path: path, error: &error)
    }
}

/// A file that has been read into memory.
final class ScriptFile {
    private let bytes: [UInt8]
    var position = 0
    private static let limit = 64 << 20

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// Nil and an errno if it cannot be read.
    init?(path: String, error: inout Int32) {
        let descriptor = open(path, O_RDONLY | Int32(O_CLOEXEC))
        guard descriptor >= 0 else {
            error = errno
            return nil
        }
        defer { close(descriptor) }
        var content: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while content.count < Self.limit {
            let count = Glibc.read(descriptor, &buffer, buffer.count)
            if count <= 0 { break }
            content += buffer.prefix(count)
        }
        bytes = content
    }

    func read(_ count: Int, from offset: Int) -> [UInt8] {
        offset < bytes.count && offset >= 0 ? Array(bytes[offset..<min(bytes.count, offset + count)]) : []
    }
}

/// epoll(7) over a script's descriptors.
final class ScriptEpoll {
    struct Item {
        let descriptor: ScriptDescriptor
        var events: UInt32
        var data: Int64
        /// Something has happened that has not been told yet: what edge-triggered items wait for.
        var edges: UInt32 = ~0
        var last = Snapshot()
    }

    /// What tells news from what was there before.
    struct Snapshot: Equatable {
        var readable: UInt64 = 0
        var state: UInt32 = 0
        var error: Int32 = 0
        var canWrite = false
    }

    var items: [Item] = []

    private static let edgeTriggered: UInt32 = 1 << 31
    private static let oneShot: UInt32 = 1 << 30
    private static let inputs: UInt32 = 0x1 | 0x2 | 0x40 | 0x2000
    private static let outputs: UInt32 = 0x4 | 0x100
    private static let always: UInt32 = 0x8 | 0x10

    /// Notices what has changed. Called each turn.
    func observe() {
        for index in items.indices {
            let now = Self.snapshot(items[index].descriptor)
            let before = items[index].last
            if now.readable != before.readable { items[index].edges |= Self.inputs }
            if now.state != before.state || now.error != before.error { items[index].edges = ~0 }
            if now.canWrite, !before.canWrite { items[index].edges |= Self.outputs }
            items[index].last = now
        }
    }

    static func snapshot(_ descriptor: ScriptDescriptor) -> Snapshot {
        var snapshot = Snapshot()
        let ready = descriptor.readiness
        snapshot.canWrite = ready & ScriptDescriptor.pollOut != 0
        guard let socket = descriptor.socket else { return snapshot }
        snapshot.readable =
            socket.isStream
            ? (socket.isListening ? UInt64(socket.raw.pointee.queue_length) : socket.raw.pointee.rcv.tail)
            : UInt64(socket.datagramCount)
        snapshot.state = socket.state
        snapshot.error = socket.pendingError
        return snapshot
    }

    private func ready(_ item: Item) -> UInt32 {
        var events = UInt32(bitPattern: item.descriptor.readiness) & (item.events | Self.always)
        if item.events & Self.edgeTriggered != 0 { events &= item.edges }
        return item.events & ~(Self.edgeTriggered | Self.oneShot) == 0 ? 0 : events
    }

    /// epoll_ctl(2)
    func control(
        _ operation: Int32, _ descriptor: ScriptDescriptor, _ events: UInt32, _ data: Int64
    ) -> SystemCall.Outcome {
        let place = items.firstIndex { $0.descriptor === descriptor }
        switch operation {
        case 1:
            guard place == nil else { return .error(17) }
            var item = Item(descriptor: descriptor, events: events, data: data)
            item.last = Self.snapshot(descriptor)
            items.append(item)
        case 2:
            guard let place else { return .error(2) }
            items.remove(at: place)
        case 3:
            guard let place else { return .error(2) }
            items[place].events = events
            items[place].data = data
            items[place].edges = ~0
        default: return .error(22)
        }
        return .value(0)
    }

    var hasReady: Bool { items.contains { ready($0) != 0 } }

    /// Takes at most `limit` events.
    func take(_ limit: Int) -> [(events: UInt32, data: Int64)] {
        observe()
        var taken: [(events: UInt32, data: Int64)] = []
        for index in items.indices where taken.count < limit {
            let events = ready(items[index])
            guard events != 0 else { continue }
            taken.append((events, items[index].data))
            items[index].edges = 0
            if items[index].events & Self.oneShot != 0 { items[index].events &= Self.oneShot | Self.edgeTriggered }
        }
        return taken
    }
}

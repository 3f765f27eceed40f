import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// One process's connection to the stack: frames in, replies out. Every byte that comes in is taken for hostile; what is
/// not a frame ends this session and nothing else.
package final class Session: ReadyHandler {
    package let number: UInt32
    package private(set) var pid: Int32 = 0
    private var sharesProcessNumbers = false
    /// Nobody, unless the kernel tells.
    package private(set) var uid = UInt32.max
    package private(set) var program = ""
    package private(set) var isTool = false
    let kernel: Kernel
    private unowned let server: ControlServer
    private let sockets: Borrowed<SocketLayer>
    private let scratch: UnsafeMutableRawBufferPointer
    private var descriptor: Int32
    private var greeted = false
    private(set) var tcpVariant: String?
    private(set) var udpVariant: String?
    /// Of all the sockets made here. Not asked for before the client has said who it is.
    private(set) lazy var owner = SocketOwner(
        session: number, uid: uid, pid: pid, program: program, sharesProcessNumbers: sharesProcessNumbers)
    /// Rings of the sockets made here; nil without memory. Tools never need one.
    private(set) lazy var arena = Arena(
        name: "alps-\(kernel.name)-\(number)", limitBytes: kernel.configuration.arenaLimit)
    /// Once the client has asked for them (ALPS_OP_CORK_WORDS).
    private(set) var corkWords: CorkWords?
    /// Sockets made in this session; also those whose pair is closed, until they are forgotten.
    let files = FileTable()

    private var input: [UInt8] = []
    private var passed: [Int32] = []
    private struct Output {
        var bytes: [UInt8]
        var done = 0
        var descriptor: Int32 = -1
    }
    private var output: [Output] = []
    private var outputBytes = 0
    private var watched = UInt32(EPOLLIN.rawValue)
    private var retry: HostTimer?
    /// Ends what does not say hello: a descriptor that nobody holds the other end of might never end by itself.
    private var patience: HostTimer?
    /// Requests that run on fibers, by request id.
    private var pending: [UInt64: Fiber] = [:]

    /// Frames one session may have executed in one turn, and the receive calls it may cause.
    private static let budget = 64
    /// Bytes taken at a time while no long frame is under way: what the budget leaves stays in the kernel, which will
    /// report it again.
    private static let portion = 4096
    /// Reply bytes that wait, above which no more requests are read.
    private static let outputToPause = 256 << 10
    private static let maximumPending = 1024
    private static let maximumOutput = 32 << 20

    init(server: ControlServer, kernel: Kernel, number: UInt32, descriptor: Int32) throws {
        self.server = server
        self.kernel = kernel
        sockets = Borrowed(kernel.sockets)
        scratch = server.scratch
        self.number = number
        self.descriptor = descriptor
        var credentials = alps_ucred()
        var length = socklen_t(MemoryLayout<alps_ucred>.size)
        if getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0 {
            pid = credentials.pid
            uid = credentials.uid
        }
        super.init()
        try kernel.reactor?.add(descriptor, events: UInt32(EPOLLIN.rawValue), handler: self)
        patience = HostTimer(kernel) { [unowned self] in end() }
        patience?.arm(after: server.helloTime)
    }

    package var socketCount: Int { files.handles.count }
    package var pendingRequests: Int { pending.count }

    // MARK: Bytes in

    override package func ready(_ events: UInt32) {
        // The reactor holds it until the end of the turn, whatever happens here.
        if events & UInt32(EPOLLOUT.rawValue) != 0 { flushOutput() }
        guard descriptor >= 0, events & ~UInt32(EPOLLOUT.rawValue) != 0 else { return }
        // Nobody is there to read the replies that requests are being held back for.
        let isOver = events & (UInt32(EPOLLHUP.rawValue) | UInt32(EPOLLERR.rawValue)) != 0
        if isOver, watched & UInt32(EPOLLIN.rawValue) == 0 { end() } else { receive() }
    }

    private func receive() {
        var executed = 0
        var calls = 0
        while descriptor >= 0, executed < Self.budget, calls < 2 * Self.budget, watched & UInt32(EPOLLIN.rawValue) != 0 {
            calls += 1
            var came: Int32 = -1
            // The server's: a temporary allocation of this size would be made on the heap.
            let scratch = scratch
            let got = alps_receive_with_fd(descriptor, scratch.baseAddress!, min(wanted, scratch.count), &came)
            if got > 0 {
                let rung = came < 0 && greeted && input.isEmpty ? ringBells(scratch.baseAddress!, got) : 0
                if rung == got {
                    executed += rung / MemoryLayout<alps_frame>.size
                    continue
                }
                input.append(contentsOf: UnsafeRawBufferPointer(scratch)[rung..<got])
            }
            if came >= 0 { passed.append(came) }
            if got < 0, errno == EAGAIN || errno == EINTR { return }
            guard got > 0 else { return end() }
            if !greeted, input[0] == UInt8(ALPS_DOORWAY_BYTE), let doorway = passed.first {
                passed.removeFirst()
                server.openDoorway(doorway)
                return end()
            }
            executed += execute()
            // Only ATTACH looks at a descriptor, and it has done so.
            for descriptor in passed { close(descriptor) }
            passed.removeAll()
        }
    }

    /// Bells of rings, which are many, are heard where they lie. Returns the bytes of those at the beginning.
    private func ringBells(_ bytes: UnsafeMutableRawPointer, _ count: Int) -> Int {
        let size = MemoryLayout<alps_frame>.size
        var done = 0
        while count - done >= size {
            let frame = (bytes + done).loadUnaligned(as: alps_frame.self)
            guard frame.magic == ALPS_FRAME_MAGIC, frame.kind == UInt16(ALPS_FRAME_NOTE), frame.length == 0,
                frame.op == UInt16(ALPS_OP_STREAM_BELL)
            else { break }
            sockets({ $0.borrow(SocketHandle(rawValue: frame.socket)) })? { socket in
                if uid == socket.raw.pointee.uid || ClientRequests.mayUse(self, socket) { socket.borrowedChannel?({ $0.bell() }) }
            }
            done += size
        }
        return done
    }

    /// Bytes to ask for: the rest of the frame that has begun, or a portion.
    private var wanted: Int {
        guard input.count >= MemoryLayout<alps_frame>.size else { return Self.portion }
        let length = input.withUnsafeBytes { $0.loadUnaligned(as: alps_frame.self).length }
        return max(MemoryLayout<alps_frame>.size + Int(length) - input.count, Self.portion)
    }

    /// Executes the whole frames in the buffer; returns how many there were.
    private func execute() -> Int {
        let headerSize = MemoryLayout<alps_frame>.size
        var offset = 0
        var count = 0
        while descriptor >= 0, input.count - offset >= headerSize {
            let frame = input.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: alps_frame.self) }
            guard frame.magic == ALPS_FRAME_MAGIC, frame.length <= ALPS_FRAME_MAX_PAYLOAD,
                frame.kind == ALPS_FRAME_REQUEST || frame.kind == ALPS_FRAME_CANCEL || frame.kind == ALPS_FRAME_NOTE
            else {
                complain("sent what is not a frame")
                end()
                return count
            }
            let whole = headerSize + Int(frame.length)
            guard input.count - offset >= whole else { break }
            let payload = Array(input[offset + headerSize..<offset + whole])
            offset += whole
            count += 1
            if frame.kind == ALPS_FRAME_CANCEL {
                if let fiber = pending[frame.request_id] { kernel.fibers.cancel(fiber) }
            } else {
                request(frame, payload)
            }
        }
        if descriptor >= 0 { input.removeFirst(offset) }
        return count
    }

    private func complain(_ what: String) {
        kernel.log.write(UInt32(ALPS_LOG_WARNING), nil) {
            "session \(number) (pid \(pid) uid \(uid)) \(what) and was ended"
        }
    }

    private func request(_ frame: alps_frame, _ payload: [UInt8]) {
        if !greeted {
            guard frame.op == ALPS_OP_HELLO, hello(frame, payload) else {
                complain("did not say hello")
                end()
                return
            }
            return
        }
        ClientRequests.execute(self, frame, payload, possession: passed.first ?? -1)
    }

    private func hello(_ frame: alps_frame, _ payload: [UInt8]) -> Bool {
        guard payload.count >= MemoryLayout<alps_hello>.size else { return false }
        let hello = payload.withUnsafeBytes { $0.loadUnaligned(as: alps_hello.self) }
        guard hello.version == ALPS_CLIENT_VERSION else {
            reply(frame, error: EPROTO)
            return true
        }
        func text<T>(_ field: T) -> String {
            withUnsafeBytes(of: field) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        }
        program = String(text(hello.program).map { $0.isASCII && $0 >= " " ? $0 : "?" })
        let variants = (text(hello.tcp_variant), text(hello.udp_variant))
        tcpVariant = variants.0.isEmpty ? nil : variants.0
        udpVariant = variants.1.isEmpty ? nil : variants.1
        isTool = hello.flags & UInt32(ALPS_HELLO_TOOL) != 0
        // A process that came through a doorway made its own pair: its credentials are those of the pair's maker.
        sharesProcessNumbers = pid == Int32(bitPattern: hello.pid)
        if pid == 0 { pid = Int32(bitPattern: hello.pid) }
        greeted = true
        patience = nil
        if !isTool {
            kernel.log.write(UInt32(ALPS_LOG_NOTICE), nil) { "session \(number): \(program), process \(pid) of user \(uid)" }
        }
        let triples = kernel.protocols.triples
        var answer = alps_hello_reply()
        answer.size = UInt32(MemoryLayout<alps_hello_reply>.size)
        answer.version = UInt32(ALPS_CLIENT_VERSION)
        answer.instance = server.instance
        answer.epoch = server.epoch
        answer.resume_token = kernel.random.next()
        answer.session = number
        answer.triples = UInt32(triples.count)
        withUnsafeMutableBytes(of: &answer.stack) { bytes in
            for (index, byte) in kernel.name.utf8.prefix(31).enumerated() { bytes[index] = byte }
        }
        var bytes = withUnsafeBytes(of: answer) { Array($0) }
        for triple in triples {
            let record = alps_protocol_triple(
                domain: UInt16(triple.domain), type: UInt16(triple.type), protocol: UInt16(triple.protocol),
                flags: UInt16(truncatingIfNeeded: triple.flags))
            withUnsafeBytes(of: record) { bytes.append(contentsOf: $0) }
        }
        reply(frame, bytes)
        return true
    }

    // MARK: Bytes out

    /// Answers a request; `passing` is closed once it has been sent.
    func reply(_ frame: alps_frame, error: Int32 = 0, _ payload: [UInt8] = [], passing: Int32 = -1) {
        guard descriptor >= 0, frame.kind != ALPS_FRAME_NOTE else {
            if passing >= 0 { close(passing) }
            return
        }
        var header = frame
        header.kind = UInt16(ALPS_FRAME_REPLY)
        header.error = error
        header.length = UInt32(payload.count)
        let bytes = withUnsafeBytes(of: header) { Array($0) } + payload
        output.append(Output(bytes: bytes, descriptor: passing))
        outputBytes += bytes.count
        // While something waits already, the socket is full.
        if output.count == 1 { flushOutput() } else { watch() }
        if outputBytes > Self.maximumOutput {
            complain("does not read its replies")
            end()
        }
    }

    private func flushOutput() {
        while descriptor >= 0, !output.isEmpty {
            let done = output[0].done
            let sent = output[0].bytes.withUnsafeBytes {
                alps_send_with_fd(descriptor, $0.baseAddress! + done, $0.count - done, output[0].descriptor)
            }
            guard sent > 0 else {
                if sent < 0, errno == EAGAIN || errno == EINTR {
                    watch()
                } else if sent < 0, errno == ETOOMANYREFS || errno == ENOBUFS || errno == ENOMEM {
                    // No event tells when the system has them again.
                    if retry == nil { retry = HostTimer(kernel) { [unowned self] in flushOutput() } }
                    retry?.arm(after: 10_000_000)
                    watch()
                } else {
                    end()
                }
                return
            }
            if output[0].descriptor >= 0 {
                close(output[0].descriptor)
                output[0].descriptor = -1
            }
            output[0].done += sent
            if output[0].done == output[0].bytes.count { outputBytes -= output.removeFirst().bytes.count }
        }
        watch()
    }

    /// Watches for room while replies wait, and for requests unless too many do.
    private func watch() {
        let wanted =
            (outputBytes <= Self.outputToPause ? UInt32(EPOLLIN.rawValue) : 0)
            | (output.isEmpty || retry?.isArmed == true ? 0 : UInt32(EPOLLOUT.rawValue))
        guard wanted != watched, descriptor >= 0 else { return }
        watched = wanted
        kernel.reactor?.modify(descriptor, events: wanted, handler: self)
    }

    // MARK: Requests that wait

    /// Runs `body` on a fiber, so that it may sleep; a cancel frame, or the end of the session, wakes it with EINTR.
    func runWaiting(_ frame: alps_frame, name: String, _ body: @escaping () -> Void) {
        let id = frame.request_id
        // A number used twice would hide the first request from cancelling.
        guard pending[id] == nil else { return reply(frame, error: EINVAL) }
        guard pending.count < Self.maximumPending else { return reply(frame, error: EAGAIN) }
        let fiber = kernel.fibers.spawn(name: name, session: number) { [self] in
            body()
            pending[id] = nil
        }
        pending[id] = fiber
    }

    /// Nil without memory.
    func openCorkWords() -> CorkWords? {
        if corkWords == nil { corkWords = CorkWords() }
        return corkWords
    }

    // MARK: The end

    /// Ends the session. Sockets live as long as their pairs: another process may hold them.
    func end() {
        guard descriptor >= 0 else { return }
        kernel.reactor?.remove(descriptor, handler: self)
        close(descriptor)
        descriptor = -1
        retry = nil
        patience = nil
        for item in output where item.descriptor >= 0 { close(item.descriptor) }
        output.removeAll()
        for descriptor in passed { close(descriptor) }
        passed.removeAll()
        input.removeAll()
        for fiber in pending.values { kernel.fibers.cancel(fiber) }
        files.removeAll()
        for handle in (corkWords?.followers ?? [:]).values {
            if let socket = kernel.sockets.find(handle) { (socket.channel as? StreamChannel)?.leaveCork(socket) }
        }
        server.closed(self)
        if !isTool { kernel.streamRings.processHasEnded() }
    }
}

import Glibc
import Kernel
import PluginAPI

/// One application at one end of a connection: writes, reads and ends as its plan says, and checks every byte it gets.
final class TortureEndpoint {
    enum Outcome: Equatable {
        case running
        /// Everything sent, the peer's end of stream seen, closed.
        case complete
        /// It has ended the connection with a reset, as planned.
        case aborted
        /// The connection has failed, with this errno.
        case failed(Int32)
    }

    let name: String
    private let plan: TorturePlan.Application
    private let peer: TorturePlan.Application
    private let isClean: Bool
    private let limits: TimeoutLimits
    private let kernel: Kernel
    private let onChange: () -> Void
    private(set) var socket: Socket?
    private(set) var outcome = Outcome.running
    private(set) var sent = 0
    /// Stream position of the reader: bytes read, and urgent bytes kept aside.
    private(set) var received = 0
    /// What must not have happened.
    private(set) var faults: [String] = []
    /// Sabotage for tests of this bed: the application pretends that a last byte never came.
    var losesLastByte = false

    /// It has been connected.
    private(set) var isStarted = false
    private var isFinished = false
    private var mayReadAt: UInt64 = 0
    private var mayWriteAt: UInt64 = 0
    private var timer: HostTimer?
    private var nextMark = 0
    private var isCorked = false
    private var updates = 0

    init(
        _ name: String, kernel: Kernel, plan: TorturePlan.Application, peer: TorturePlan.Application, isClean: Bool,
        limits: TimeoutLimits, onChange: @escaping () -> Void
    ) {
        self.onChange = onChange
        self.name = name
        self.kernel = kernel
        self.plan = plan
        self.peer = peer
        self.isClean = isClean
        self.limits = limits
        timer = HostTimer(kernel) { [unowned self] in self.pump() }
    }

    var isOver: Bool { outcome != .running }

    // MARK: Beginning

    /// SO_MAX_PACING_RATE, which not every libc's headers show.
    private static let maximumPacingRate: Int32 = 47

    /// Options of a socket that is to be this application's, or whose children are.
    static func prepare(_ socket: Socket, _ plan: TorturePlan.Application) {
        func set(_ level: Int32, _ name: Int32, _ value: Int32) {
            _ = socket.setOption(level: level, name: name, withUnsafeBytes(of: value) { Array($0) })
        }
        if let size = plan.sendBuffer { set(SOL_SOCKET, SO_SNDBUF, size) }
        if let size = plan.receiveBuffer { set(SOL_SOCKET, SO_RCVBUF, size) }
        if plan.outOfBandInline { set(SOL_SOCKET, SO_OOBINLINE, 1) }
        if let size = plan.maximumSegment { set(6, TCP_MAXSEG, size) }
        if plan.noDelay { set(6, TCP_NODELAY, 1) }
        if let quickAck = plan.quickAck { set(6, TCP_QUICKACK, quickAck ? 1 : 0) }
        if let idle = plan.keepIdle {
            set(SOL_SOCKET, SO_KEEPALIVE, 1)
            set(6, TCP_KEEPIDLE, idle)
            set(6, TCP_KEEPINTVL, 1)
            // Nobody is to be given up for bad luck.
            set(6, TCP_KEEPCNT, 127)
        }
        if let time = plan.userTimeout { set(6, TCP_USER_TIMEOUT, time) }
        if let rate = plan.pacingRate { set(SOL_SOCKET, Self.maximumPacingRate, rate) }
    }

    /// Takes a socket over.
    func adopt(_ socket: Socket) {
        self.socket = socket
        socket.channel = CallbackChannel { [weak self] _ in self?.pump() }
        pump()
    }

    // MARK: Running

    private func pump() {
        guard let socket, outcome == .running, !socket.isConnecting else { return }
        if socket.isConnected, !isStarted {
            isStarted = true
            mayReadAt = kernel.clock.now &+ plan.readDelay
        }
        if isStarted {
            updates += 1
            if updates & 31 == 1 { checkInformation(socket) }
            read(socket)
            guard outcome == .running else { return }
            if socket.pendingError == 0 { write(socket) }
            guard outcome == .running else { return }
        }
        conclude(socket)
    }

    private func conclude(_ socket: Socket) {
        let isReadable = socket.receiveAvailable > 0
        if socket.pendingError != 0, !isReadable || !isClean {
            return end(.failed(socket.takeError()), socket)
        }
        if isFinished, socket.atEndOfStream {
            // The last bytes may have been urgent ones that were kept aside.
            guard notePosition(socket) else { return }
            let expected = peer.bytes - (losesLastByte ? 1 : 0)
            if isClean, received != expected {
                fault("end of stream after \(received) of \(expected) bytes")
            }
            return end(.complete, socket)
        }
        // Gone without an error to be seen.
        if isStarted, socket.isDisconnected, !isReadable, !isFinished { end(.failed(0), socket) }
    }

    private func end(_ outcome: Outcome, _ socket: Socket) {
        self.outcome = outcome
        onChange()
        timer?.cancel()
        self.socket = nil
        socket.channel = nil
        switch outcome {
        case .aborted where plan.ending == .abort(after: abortThreshold ?? -1): socket.abort()
        case .aborted:
            _ = socket.setOption(level: SOL_SOCKET, name: SO_LINGER, [1, 0, 0, 0, 0, 0, 0, 0])
            socket.close()
        default: socket.close()
        }
    }

    /// Ends what hangs: its peer has gone without a word.
    func giveUp() {
        guard let socket else {
            if outcome == .running { outcome = .failed(0) }
            return onChange()
        }
        onChange()
        outcome = .failed(ETIMEDOUT)
        timer?.cancel()
        self.socket = nil
        socket.channel = nil
        socket.abort()
    }

    private var abortThreshold: Int? {
        switch plan.ending {
        case .abort(let after), .lingerZero(let after): after
        case .orderly, .closeAtOnce: nil
        }
    }

    private func endIfPlanned(_ socket: Socket) -> Bool {
        guard let threshold = abortThreshold, sent + received >= threshold else { return false }
        end(.aborted, socket)
        return true
    }

    // MARK: Reading

    private func read(_ socket: Socket) {
        let now = kernel.clock.now
        guard now >= mayReadAt else { return wake(at: mayReadAt) }
        var room = plan.readPause > 0 ? plan.readChunk : Int.max
        while room > 0 {
            guard notePosition(socket) else { return }
            let (first, second) = socket.receivePieces()
            let pieces = [first, second]
            var taken = 0
            for piece in pieces where piece.count > 0 && room > 0 {
                let count = min(piece.count, room)
                check(UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(piece)[..<count]), received + taken)
                taken += count
                room -= count
            }
            guard taken > 0 else { break }
            received += taken
            socket.receiveConsume(taken)
            if endIfPlanned(socket) { return }
        }
        guard notePosition(socket) else { return }
        if plan.readPause > 0, room == 0 {
            mayReadAt = now &+ plan.readPause
            wake(at: mayReadAt)
        }
    }

    /// The ring's position must be ours, or further where urgent bytes have been stepped over.
    private func notePosition(_ socket: Socket) -> Bool {
        let head = Int(truncatingIfNeeded: socket.raw.pointee.rcv.head)
        guard head != received else { return true }
        guard head > received, !plan.outOfBandInline,
            ((received + 1)...head).allSatisfy({ peer.urgentMarks.contains($0) })
        else {
            fault("the receive buffer is at \(head), the reader at \(received)")
            return false
        }
        received = head
        let place = Int(truncatingIfNeeded: socket.raw.pointee.oob_mark) - 1
        let (error, byte) = socket.takeUrgent(peek: false)
        if error == 0, byte != TorturePattern.byte(peer.salt, place) { fault("the urgent byte at \(place) is wrong") }
        return true
    }

    private func check(_ bytes: UnsafeRawBufferPointer, _ position: Int) {
        if let at = TorturePattern.mismatch(bytes, peer.salt, position) {
            fault("byte \(position + at) of the stream is wrong")
        }
        if position + bytes.count > peer.bytes { fault("\(position + bytes.count) bytes of \(peer.bytes) have come") }
    }

    // MARK: Writing

    private func write(_ socket: Socket) {
        guard !isFinished else { return }
        guard received >= plan.speaksAfter || socket.atEndOfStream else { return }
        let now = kernel.clock.now
        while sent < plan.bytes {
            guard now >= mayWriteAt else { return wake(at: mayWriteAt) }
            let room = socket.sendSpace
            guard room > 0 else { return }
            var count = min(room, plan.bytes - sent, chunk())
            var flags: UInt32 = 0
            if nextMark < plan.urgentMarks.count {
                let toMark = plan.urgentMarks[nextMark] - sent
                if count >= toMark {
                    count = toMark
                    flags |= ALPS_SENT_OOB
                }
            }
            if plan.usesMore, sent + count < plan.bytes, flags == 0 { flags |= ALPS_SENT_MORE }
            if plan.usesCork { toggleCork(socket) }
            guard put(socket, count, flags) else { return }
            if flags & ALPS_SENT_OOB != 0 { nextMark += 1 }
            if endIfPlanned(socket) { return }
            if plan.writePause > 0 { mayWriteAt = now &+ plan.writePause }
        }
        finish(socket)
    }

    /// Repeatable, and different for each write.
    private func chunk() -> Int {
        let range = plan.chunk
        guard range.count > 1 else { return range.lowerBound }
        let mixed = (UInt64(sent) &+ UInt64(plan.salt)) &* 0x9e37_79b9_7f4a_7c15
        return range.lowerBound + Int((mixed >> 33) % UInt64(range.count))
    }

    /// False: the connection refuses it.
    private func put(_ socket: Socket, _ count: Int, _ flags: UInt32) -> Bool {
        var left = count
        while left > 0 {
            let piece = TorturePattern.piece(plan.salt, sent, max: left)
            let written = socket.write(piece, flags: piece.count == left ? flags : flags & ~ALPS_SENT_OOB)
            guard written == piece.count else {
                if written < 0 {
                    let error = Int32(-written)
                    if isClean { fault("write failed with errno \(error)") }
                    end(.failed(error), socket)
                } else {
                    fault("a write of \(piece.count) bytes into \(socket.sendSpace) wrote \(written)")
                }
                return false
            }
            sent += written
            left -= written
        }
        return true
    }

    private func toggleCork(_ socket: Socket) {
        isCorked.toggle()
        _ = socket.setOption(level: 6, name: TCP_CORK, [isCorked ? 1 : 0, 0, 0, 0])
    }

    private func finish(_ socket: Socket) {
        isFinished = true
        if plan.ending == .closeAtOnce { return end(.complete, socket) }
        let status = socket.shutdown(Int32(SHUT_WR))
        if status != 0, isClean, socket.pendingError == 0 { fault("shutdown failed with errno \(status)") }
    }

    private func wake(at time: UInt64) {
        guard let timer else { return }
        let now = kernel.clock.now
        if !timer.isArmed || timer.deadline > time { timer.arm(after: time > now ? time - now : 0) }
    }

    // MARK: What the connection says of itself

    /// Fields of Linux's tcp_info: RTO and snd_cwnd.
    private func checkInformation(_ socket: Socket) {
        let (error, info) = socket.getOption(level: 6, name: TCP_INFO, capacity: 128)
        guard error == 0, info.count >= 84, socket.isConnected else { return }
        let (rto, window) = info.withUnsafeBytes {
            (UInt64($0.loadUnaligned(fromByteOffset: 8, as: UInt32.self)) &* 1000,
                $0.loadUnaligned(fromByteOffset: 80, as: UInt32.self))
        }
        if window < 1 { fault("the congestion window is below one segment") }
        if rto < limits.shortest || rto > limits.longest {
            fault("the retransmission time-out is \(rto) ns, outside \(limits.shortest)...\(limits.longest)")
        }
    }

    private func fault(_ text: String) {
        if faults.count < 5 { faults.append("\(name): \(text)") }
        onChange()
    }
}

/// What a kernel's settings allow the retransmission time-out to be, ns.
package struct TimeoutLimits {
    package var shortest: UInt64
    package var longest: UInt64

    package init(shortest: UInt64, longest: UInt64) {
        self.shortest = shortest
        self.longest = longest
    }

    init(_ plan: TorturePlan, kernel: Int) {
        let initial = plan.tunable(kernel, "net.inet.tcp.rexmit_initial", default: 1_000_000_000)
        let least = plan.tunable(kernel, "net.inet.tcp.rexmit_min", default: 200_000_000)
        let most = plan.tunable(kernel, "net.inet.tcp.rexmit_max", default: 60_000_000_000)
        shortest = UInt64(min(initial, least))
        longest = UInt64(max(initial, most))
    }
}

import Kernel
import PluginAPI

/// Reading and writing.
extension SystemCalls {
    enum Message {
        static let outOfBand: Int32 = 1
        static let peek: Int32 = 2
        static let truncate: Int32 = 0x20
        static let endOfRecord: Int32 = 0x80
        static let dontWait: Int32 = 0x40
        static let waitAll: Int32 = 0x100
        static let errorQueue: Int32 = 0x2000
        static let more: Int32 = 0x8000
        static let fastOpen: Int32 = 0x2000_0000
    }

    /// What a call reads or writes, whatever its form.
    struct Transfer {
        var count = 0
        var flags: Int32 = 0
        var isNull = false
        var data: [UInt8] = []
        var address = CallAddress.none
        /// recvmsg: what must come back.
        var messageFlags: Int64?
        var control: [ScriptExpression] = []
        /// A string that the data read must be.
        var wanted: String?
    }

    /// What a call has read.
    struct Received {
        var bytes: [UInt8] = []
        /// msg_flags of recvmsg.
        var flags: Int32 = 0
        /// Who has sent a datagram.
        var source: alps_sockaddr?
    }

    // MARK: Reading

    func receive(_ arguments: CallArguments) throws -> SystemCall {
        let descriptor = try find(arguments.descriptor())
        var transfer = Transfer()
        switch arguments.name {
        case "readv":
            try arguments.expect(3...3)
            transfer.count = try CallArguments.vector(arguments[1]).reduce(0, +)
        case "recvmsg":
            try arguments.expect(3...3)
            try readMessage(arguments[1], &transfer)
            transfer.flags = try arguments.int32(2)
        default:
            try arguments.expect(arguments.name == "read" ? 3...3 : arguments.name == "recv" ? 4...4 : 6...6)
            transfer.count = Int(truncatingIfNeeded: try arguments.integer(2))
            if case .string(let text) = arguments[1] {
                transfer.wanted = text
            } else {
                transfer.isNull = try arguments.buffer(1, count: 0) == nil
            }
            if arguments.list.count > 3 { transfer.flags = try arguments.int32(3) }
        }
        guard transfer.count >= 0 else { throw ScriptFault.syntax("a negative count") }
        var received = Received()
        var call = SystemCall { [self] in
            try readOnce(descriptor, transfer, &received)
        }
        if let socket = descriptor.socket, let limit = timeout(socket, 20) {
            call.deadline = now + limit
            call.late = .error(11)
        }
        call.finish = { _ in
            if let wanted = transfer.wanted,
                !received.bytes.starts(with: Array(wanted.utf8).prefix(received.bytes.count))
            {
                throw ScriptFault.mismatch("read other bytes than \"\(wanted)\"")
            }
            if let flags = transfer.messageFlags, flags != Int64(received.flags) {
                throw ScriptFault.mismatch(
                    "Expected msg_flags 0x\(String(flags, radix: 16)) but got 0x\(String(received.flags, radix: 16))")
            }
            guard transfer.control.isEmpty else {
                throw ScriptFault.unsupported(
                    "control messages are not received here: expected \(transfer.control.count)")
            }
        }
        return call
    }

    /// SO_RCVTIMEO (20) or SO_SNDTIMEO (21) in ns.
    func timeout(_ socket: Socket, _ name: Int32) -> UInt64? {
        let (error, value) = socket.getOption(level: 1, name: name, capacity: 16)
        guard error == 0, value.count == 16 else { return nil }
        let (seconds, microseconds) = value.withUnsafeBytes {
            ($0.loadUnaligned(as: Int64.self), $0.loadUnaligned(fromByteOffset: 8, as: Int64.self))
        }
        let time = UInt64(max(0, seconds)) * 1_000_000_000 + UInt64(max(0, microseconds)) * 1000
        return time == 0 ? nil : time
    }

    func readOnce(
        _ descriptor: ScriptDescriptor, _ transfer: Transfer, _ received: inout Received
    ) throws -> SystemCall.Outcome {
        switch descriptor.kind {
        case .socket(let socket, _):
            let waits = !descriptor.isNonBlocking && transfer.flags & Message.dontWait == 0
            guard transfer.flags & Message.errorQueue == 0 else {
                throw ScriptFault.unsupported("there is no error queue here (MSG_ERRQUEUE)")
            }
            return socket.isStream
                ? readStream(socket, transfer, waits, &received) : readDatagram(socket, transfer, waits, &received)
        case .pipe(let pipe, true):
            guard !pipe.bytes.isEmpty else { return descriptor.isNonBlocking ? .error(11) : .blocks }
            let count = min(transfer.count, pipe.bytes.count)
            received.bytes = Array(pipe.bytes.prefix(count))
            pipe.bytes.removeFirst(count)
            return .value(Int64(count))
        case .file(let file):
            received.bytes = file.read(transfer.count, from: file.position)
            file.position += received.bytes.count
            return .value(Int64(received.bytes.count))
        default: return .error(22)
        }
    }

    private func readStream(
        _ socket: Socket, _ transfer: Transfer, _ waits: Bool, _ received: inout Received
    ) -> SystemCall.Outcome {
        if socket.isListening { return .error(107) }
        if transfer.flags & Message.outOfBand != 0 {
            let (error, byte) = socket.takeUrgent(peek: transfer.flags & Message.peek != 0)
            received.bytes = error == 0 ? [byte] : []
            return error == 0 ? .value(1) : .error(error)
        }
        let available = socket.receiveAvailable
        let needed = transfer.flags & Message.waitAll != 0 && waits ? transfer.count : 1
        if available >= min(needed, max(transfer.count, 1)) || (available > 0 && socket.cannotReceiveMore)
            || (available > 0 && socket.pendingError != 0)
        {
            guard !transfer.isNull else { return .error(14) }
            if transfer.flags & Message.peek != 0 {
                let (first, second) = socket.receivePieces()
                received.bytes = Array((Array(first) + Array(second)).prefix(transfer.count))
            } else {
                received.bytes = transfer.count > 0 ? socket.read(max: transfer.count) ?? [] : []
            }
            return .value(Int64(received.bytes.count))
        }
        if socket.pendingError != 0 { return .error(socket.takeError()) }
        if socket.atEndOfStream || socket.isDisconnected { return .value(0) }
        guard socket.isConnected || socket.isConnecting else { return .error(107) }
        return waits ? .blocks : .error(11)
    }

    private func readDatagram(
        _ socket: Socket, _ transfer: Transfer, _ waits: Bool, _ received: inout Received
    ) -> SystemCall.Outcome {
        if socket.pendingError != 0 { return .error(socket.takeError()) }
        guard let first = socket.firstDatagram else {
            if socket.cannotReceiveMore { return .value(0) }
            return waits ? .blocks : .error(11)
        }
        guard !transfer.isNull else { return .error(14) }
        let length = Int(first.packet.pointee.pkt.length)
        received.source = first.info.source
        received.bytes = [UInt8](unsafeUninitializedCapacity: min(length, transfer.count)) { buffer, initialized in
            initialized = min(length, transfer.count)
            if let to = buffer.baseAddress, initialized > 0 {
                stack.kernel.mbufs.copyOut(first.packet, 0, initialized, to)
            }
        }
        if transfer.flags & Message.peek == 0, let taken = socket.nextDatagram() {
            stack.kernel.mbufs.freePacket(taken.packet)
        }
        if length > transfer.count { received.flags |= Message.truncate }
        return .value(Int64(transfer.flags & Message.truncate != 0 ? length : min(length, transfer.count)))
    }

    /// `{msg_name(...)=..., msg_iov(N)=[...], msg_flags=F, msg_control=[...]}`
    private func readMessage(_ expression: ScriptExpression, _ transfer: inout Transfer) throws {
        guard let vector = CallArguments.field("msg_iov", of: expression) else {
            throw ScriptFault.syntax("a message needs msg_iov")
        }
        let lengths = try CallArguments.vector(vector)
        if case .structure(let fields) = expression,
            let count = fields.first(where: { $0.name == "msg_iov" })?.argument, count != .ellipsis,
            let number = try CallArguments.integer(count), number != Int64(lengths.count)
        {
            throw ScriptFault.syntax("msg_iov(\(number)) has \(lengths.count) elements")
        }
        transfer.count = lengths.reduce(0, +)
        if let flags = CallArguments.field("msg_flags", of: expression) {
            transfer.messageFlags = try CallArguments.integer(flags)
        }
        if case .list(let control)? = CallArguments.field("msg_control", of: expression) { transfer.control = control }
    }

    // MARK: Writing

    func send(_ arguments: CallArguments) throws -> SystemCall {
        let descriptor = try find(arguments.descriptor())
        var transfer = Transfer()
        switch arguments.name {
        case "writev":
            try arguments.expect(3...3)
            transfer.count = try CallArguments.vector(arguments[1]).reduce(0, +)
            transfer.data = [UInt8](repeating: 0, count: transfer.count)
        case "sendmsg":
            try arguments.expect(3...3)
            try readMessage(arguments[1], &transfer)
            guard transfer.control.isEmpty else { throw ScriptFault.unsupported("control messages are not sent here") }
            transfer.data = [UInt8](repeating: 0, count: transfer.count)
            transfer.flags = try arguments.int32(2)
            transfer.address = .default
        default:
            try arguments.expect(arguments.name == "write" ? 3...3 : arguments.name == "send" ? 4...4 : 6...6)
            transfer.count = Int(truncatingIfNeeded: try arguments.integer(2))
            if let data = try arguments.buffer(1, count: transfer.count) {
                transfer.data = data
            } else {
                transfer.isNull = true
            }
            if arguments.list.count > 3 { transfer.flags = try arguments.int32(3) }
            if arguments.list.count > 4 { transfer.address = try arguments.address(4) }
        }
        if transfer.data.contains(where: { $0 != 0 }) { descriptor.flow?.carriesText = true }
        var progress = WriteProgress()
        var call = SystemCall { [self] in try writeOnce(descriptor, transfer, &progress) }
        if let socket = descriptor.socket, let limit = timeout(socket, 21) {
            call.deadline = now + limit
            call.late = .error(11)
        }
        return call
    }

    /// How far a call that writes has come.
    struct WriteProgress {
        var written = 0
        /// It has begun to connect.
        var opens = false
        /// All has been written, and it waits for the connection.
        var isDone = false
    }

    func writeOnce(
        _ descriptor: ScriptDescriptor, _ transfer: Transfer, _ progress: inout WriteProgress
    ) throws -> SystemCall.Outcome {
        var transfer = transfer
        switch descriptor.kind {
        case .socket(let socket, let flow):
            guard !transfer.isNull || transfer.count == 0 else { return .error(14) }
            guard socket.isStream else { return sendDatagram(socket, flow, transfer) }
            let waits = !descriptor.isNonBlocking && transfer.flags & Message.dontWait == 0
            if progress.isDone {
                if socket.pendingError != 0 { return .error(socket.takeError()) }
                return isOpening(socket) ? .blocks : .value(Int64(progress.written))
            }
            if transfer.flags & Message.fastOpen != 0, !progress.opens, socket.isConnecting || isOpening(socket) {
                return .error(114)
            }
            if transfer.flags & Message.fastOpen != 0, !socket.isConnected {
                let status = socket.isConnecting ? 115 : openFast(socket, flow, transfer.address)
                progress.opens = true
                if status == 115, waits { return .blocks }
                if status != 0 { return .error(status) }
                // Nothing to write: a SYN with the cookie alone.
                if transfer.count == 0 {
                    socket.sendCommit(0)
                    return .error(115)
                }
            }
            let isOpening = isOpening(socket)
            if isOpening, progress.written == 0 { return waits ? .blocks : .error(11) }
            // A call that does not wait returns with what the SYN takes.
            if !waits, let room = synRoom(socket) { transfer.data = Array(transfer.data.prefix(room)) }
            let queues = try connectsByItself(socket, flow, transfer.address)
            let outcome = writeStream(socket, transfer, waits, queues, &progress.written)
            guard waits, !queues, case .value = outcome, self.isOpening(socket) else { return outcome }
            progress.isDone = true
            return .blocks
        case .pipe(let pipe, false):
            pipe.bytes += transfer.data
            return .value(Int64(transfer.count))
        default: return .error(9)
        }
    }

    /// MSG_FASTOPEN: connect that may wait for the data.
    private func openFast(_ socket: Socket, _ flow: ScriptFlow, _ address: CallAddress) -> Int32 {
        if stack.kernel.tunables.get("net.inet.tcp.fastopen.client_enable")?.value == 0 { return 95 }
        var wanted = LivePacket.Endpoint(address: options.remoteAddress, port: options.connectPort)
        switch address {
        case .default: break
        case .none: return 89
        case .given(let given): wanted = given.endpoint
        }
        _ = socket.setOption(level: 6, name: 30, [1, 0, 0, 0])
        let status = socket.connect(alps_sockaddr(wanted))
        if status == 115 || status == 0 { begin(flow, socket, to: wanted) }
        return status
    }

    /// What fits into a SYN that waits for the first data: the segment size until the connection is there.
    private func synRoom(_ socket: Socket) -> Int? {
        let values = ScriptDescriptor.information(socket)
        guard values["tcpi_state"] == 2, values["tcpi_segs_out"] == 0, let room = values["tcpi_snd_mss"] else { return nil }
        return Int(room)
    }

    /// The SYN is on its way with data, and the program that has written them need not know of it yet.
    private func isOpening(_ socket: Socket) -> Bool { ScriptDescriptor.isOpening(socket) }

    /// BSD's way to open with data: sendto an address with TCP_FASTOPEN set. True: what is written waits for the
    /// connection.
    private func connectsByItself(_ socket: Socket, _ flow: ScriptFlow, _ address: CallAddress) throws -> Bool {
        if case .none = address { return false }
        guard socket.isStream, !socket.isConnected, !socket.isConnecting, !socket.isListening else { return false }
        let (error, value) = socket.getOption(level: 6, name: 23, capacity: 4)
        guard error == 0, value.contains(where: { $0 != 0 }) else { return false }
        let status = openFast(socket, flow, address)
        guard status == 0 || status == 115 else { throw ScriptFault.mismatch("it does not connect: errno \(status)") }
        return true
    }

    private func writeStream(
        _ socket: Socket, _ transfer: Transfer, _ waits: Bool, _ queues: Bool, _ written: inout Int
    ) -> SystemCall.Outcome {
        var flags: UInt32 = 0
        if transfer.flags & Message.more != 0 { flags |= ALPS_SENT_MORE }
        if transfer.flags & Message.outOfBand != 0 { flags |= ALPS_SENT_OOB }
        while written < transfer.data.count || transfer.data.isEmpty {
            // The record ends with the last byte of the call.
            let isAll = transfer.data.count - written <= socket.sendSpace
            if transfer.flags & Message.endOfRecord != 0, isAll { flags |= ALPS_SENT_EOR }
            let result = transfer.data.withUnsafeBytes {
                socket.write(UnsafeRawBufferPointer(rebasing: $0[written...]), flags: flags, queues: queues)
            }
            if result >= 0 {
                written += result
                if transfer.data.isEmpty { return .value(0) }
                continue
            }
            let error = Int32(truncatingIfNeeded: -result)
            if error == 11 {
                if waits { return .blocks }
                return written > 0 ? .value(Int64(written)) : .error(11)
            }
            return written > 0 ? .value(Int64(written)) : .error(error)
        }
        return .value(Int64(written))
    }

    private func sendDatagram(_ socket: Socket, _ flow: ScriptFlow, _ transfer: Transfer) -> SystemCall.Outcome {
        var destination: LivePacket.Endpoint?
        switch transfer.address {
        case .default where !socket.isConnected:
            destination = LivePacket.Endpoint(address: options.remoteAddress, port: options.connectPort)
        case .given(let given): destination = given.endpoint
        default: break
        }
        let status = socket.send(transfer.data, to: destination.map { alps_sockaddr($0) })
        guard status == 0 else { return .error(status) }
        if let destination, !socket.isConnected { flow.remote = destination }
        flow.local = socket.localAddress.endpoint
        if flow.local.address == 0 { flow.local.address = options.localAddress }
        self.flow = flow
        return .value(Int64(transfer.data.count))
    }

    // MARK: Pipes and files

    func makePipe(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(1...1)
        guard case .list(let ends) = arguments[0], ends.count == 2 else {
            throw ScriptFault.syntax("pipe needs [READER, WRITER]")
        }
        var call = SystemCall.immediate(.value(0))
        call.finish = { [self] _ in
            let pipe = ScriptPipe()
            try add(.pipe(pipe, isReader: true), as: ends[0])
            try add(.pipe(pipe, isReader: false), as: ends[1])
        }
        return call
    }

    /// Between a socket and a pipe.
    func splice(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(6...6)
        let from = try find(arguments.descriptor(0))
        let to = try find(arguments.descriptor(2))
        let count = Int(truncatingIfNeeded: try arguments.integer(4))
        guard (0...(64 << 20)).contains(count) else { throw ScriptFault.syntax("\(count) bytes are too many") }
        return SystemCall { [self] in try spliceOnce(from, to, count) }
    }

    func spliceOnce(_ from: ScriptDescriptor, _ to: ScriptDescriptor, _ count: Int) throws -> SystemCall.Outcome {
        if case .pipe(let pipe, false) = to.kind, let socket = from.socket {
            let room = ScriptPipe.capacity - pipe.bytes.count
            guard room > 0 else { return to.isNonBlocking ? .error(11) : .blocks }
            var transfer = Transfer()
            transfer.count = min(count, room)
            var received = Received()
            let outcome = readStream(socket, transfer, !from.isNonBlocking, &received)
            pipe.bytes += received.bytes
            return outcome
        }
        if case .pipe(let pipe, true) = from.kind, to.socket != nil {
            guard !pipe.bytes.isEmpty else { return from.isNonBlocking ? .error(11) : .blocks }
            let sent = try move(Array(pipe.bytes.prefix(count)), to)
            if case .value(let count) = sent { pipe.bytes.removeFirst(Int(count)) }
            return sent
        }
        return .error(22)
    }

    private func move(_ bytes: [UInt8], _ to: ScriptDescriptor) throws -> SystemCall.Outcome {
        var transfer = Transfer()
        transfer.data = bytes
        transfer.count = bytes.count
        transfer.flags = Message.dontWait
        var progress = WriteProgress()
        let outcome = try writeOnce(to, transfer, &progress)
        return outcome == .error(11) && !to.isNonBlocking ? .blocks : outcome
    }

    func openFile(_ arguments: CallArguments, _ result: ScriptExpression) throws -> SystemCall {
        try arguments.expect(2...3)
        guard case .string(let path) = arguments[0] else { throw ScriptFault.syntax("open needs a path in quotes") }
        guard try arguments.integer(1) & 0o1103 == 0 else {
            throw ScriptFault.unsupported("files are opened for reading only")
        }
        var file: ScriptFile?
        var call = SystemCall { [self] in
            var error: Int32 = 0
            file = files.open(path, error: &error)
            return file == nil ? .error(error) : .value(lowestFree)
        }
        call.returnsDescriptor = true
        call.finish = { [self] _ in if let file { try add(.file(file), as: result) } }
        return call
    }

    func sendFile(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(4...4)
        let to = try find(arguments.descriptor(0))
        guard case .file(let file) = try find(arguments.descriptor(1)).kind else {
            throw ScriptFault.syntax("sendfile reads from a file")
        }
        let offset = try CallArguments.bracketed(arguments[2])
        let count = Int(truncatingIfNeeded: try arguments.integer(3))
        guard (0...(64 << 20)).contains(count) else { throw ScriptFault.syntax("\(count) bytes are too many") }
        return SystemCall { [self] in
            let bytes = file.read(count, from: offset.map { Int(truncatingIfNeeded: $0) } ?? file.position)
            guard !bytes.isEmpty else { return .value(0) }
            if bytes.contains(where: { $0 != 0 }) { to.flow?.carriesText = true }
            let outcome = try move(bytes, to)
            if case .value(let sent) = outcome, offset == nil { file.position += Int(sent) }
            return outcome
        }
    }
}

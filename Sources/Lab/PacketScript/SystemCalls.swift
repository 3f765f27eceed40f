import Kernel
import PluginAPI

/// The system calls of scripts, made on the stack under test without a client process.
final class SystemCalls {
    let stack: ScriptStack
    let options: PacketScriptOptions
    private(set) var descriptors: [Int: ScriptDescriptor] = [:]
    /// Which connection packets of the script belong to.
    var flow: ScriptFlow?
    /// Flows by what made them, to find the one that accept returns.
    var flows: [ScriptFlow] = []
    /// What its commands have made.
    let files = ScriptFiles()

    init(_ stack: ScriptStack, _ options: PacketScriptOptions) {
        self.stack = stack
        self.options = options
    }

    var now: UInt64 { stack.now }

    // MARK: Descriptors

    func find(_ number: Int) throws -> ScriptDescriptor {
        guard let descriptor = descriptors[number] else {
            throw ScriptFault.syntax("the script has no descriptor \(number)")
        }
        return descriptor
    }

    func socket(_ arguments: CallArguments) throws -> (descriptor: ScriptDescriptor, socket: Socket, flow: ScriptFlow) {
        let descriptor = try find(arguments.descriptor())
        guard case .socket(let socket, let flow) = descriptor.kind else {
            throw ScriptFault.syntax("descriptor \(descriptor.number) is not a socket")
        }
        return (descriptor, socket, flow)
    }

    /// The descriptor number that a script gives its result.
    func add(_ kind: ScriptDescriptor.Kind, as result: ScriptExpression, nonBlocking: Bool = false) throws {
        guard let number = try CallArguments.integer(result), number >= 0 else {
            throw ScriptFault.syntax("a descriptor must be a number")
        }
        try add(kind, number: Int(truncatingIfNeeded: number), nonBlocking: nonBlocking)
    }

    func add(_ kind: ScriptDescriptor.Kind, number: Int, nonBlocking: Bool = false) throws {
        if let open = descriptors[number] {
            // A connection of before may be left open under the number the next one is given.
            guard open.socket != nil, case .socket = kind else {
                throw ScriptFault.syntax("descriptor \(number) is open already")
            }
        }
        let descriptor = ScriptDescriptor(number, kind)
        descriptor.isNonBlocking = nonBlocking
        descriptors[number] = descriptor
    }

    /// What a program would get: the lowest that is free.
    var lowestFree: Int64 {
        var number = 3
        while descriptors[number] != nil { number += 1 }
        return Int64(number)
    }

    func observe() {
        for descriptor in descriptors.values {
            if case .epoll(let epoll) = descriptor.kind { epoll.observe() }
        }
    }

    func closeAll() {
        for descriptor in descriptors.values { descriptor.socket?.close() }
        descriptors = [:]
    }

    // MARK: Which call

    func prepare(_ call: ScriptCall) throws -> SystemCall {
        let arguments = CallArguments(call)
        switch call.name {
        case "socket": return try makeSocket(arguments, call.result)
        case "bind": return try bind(arguments)
        case "listen": return try listen(arguments)
        case "accept", "accept4": return try accept(arguments, call.result)
        case "connect": return try connect(arguments)
        case "shutdown": return try shutdown(arguments)
        case "close": return try close(arguments)
        case "read", "recv", "recvfrom", "readv", "recvmsg": return try receive(arguments)
        case "write", "send", "sendto", "writev", "sendmsg": return try send(arguments)
        case "getsockopt": return try getOption(arguments)
        case "setsockopt": return try setOption(arguments)
        case "fcntl": return try fileControl(arguments)
        case "ioctl": return try ioctl(arguments)
        case "poll": return try poll(arguments)
        case "epoll_create", "epoll_create1": return try makeEpoll(arguments, call.result)
        case "epoll_ctl": return try controlEpoll(arguments)
        case "epoll_wait": return try waitEpoll(arguments)
        case "pipe": return try makePipe(arguments)
        case "splice": return try splice(arguments)
        case "open": return try openFile(arguments, call.result)
        case "sendfile": return try sendFile(arguments)
        case "cap_set": return .immediate(.value(0))
        default: throw ScriptFault.unsupported("there is no system call \(call.name) here")
        }
    }

    // MARK: Sockets

    private func makeSocket(_ arguments: CallArguments, _ result: ScriptExpression) throws -> SystemCall {
        try arguments.expect(3...3)
        let domain = Int32(truncatingIfNeeded: try arguments.integer(0, orEllipsis: 2))
        let type = try arguments.int32(1)
        let protocolNumber = try arguments.int32(2)
        var made: Socket?
        var call = SystemCall { [self] in
            do {
                made = try create(domain, type, protocolNumber)
            } catch let error as KernelError { return .error(error.code) }
            return .value(lowestFree)
        }
        call.returnsDescriptor = true
        call.finish = { [self] _ in
            guard let made else { return }
            let flow = ScriptFlow(protocolNumber: UInt8(truncatingIfNeeded: made.raw.pointee.protocol))
            flows.append(flow)
            try add(.socket(made, flow), as: result, nonBlocking: type & Self.nonBlocking != 0)
            self.flow = flow
        }
        return call
    }

    /// O_NONBLOCK, SOCK_NONBLOCK.
    static let nonBlocking: Int32 = 0o4000
    private static let closeOnExec: Int32 = 0o2000000

    /// The socket of socket(2); SOCK_NONBLOCK is the descriptor's affair.
    func create(_ domain: Int32, _ type: Int32, _ protocolNumber: Int32) throws -> Socket {
        try stack.kernel.sockets.create(
            domain: domain, type: type & ~(Self.nonBlocking | Self.closeOnExec), protocol: protocolNumber)
    }

    private func bind(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(3...3)
        let (_, socket, flow) = try socket(arguments)
        let wanted: LivePacket.Endpoint
        var family = UInt16(ALPS_AF_INET)
        switch try arguments.address(1) {
        case .default: wanted = LivePacket.Endpoint(address: options.localAddress, port: options.bindPort)
        case .none: return .immediate(.error(14))
        case .given(let given):
            wanted = given.endpoint
            family = given.family
        }
        return SystemCall {
            var address = alps_sockaddr(wanted)
            address.family = family
            let status = socket.bind(address)
            if status == 0 {
                flow.local = socket.localAddress.endpoint
            }
            return SystemCall.status(status)
        }
    }

    private func listen(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(2...2)
        let (_, socket, flow) = try socket(arguments)
        let backlog = try arguments.int32(1)
        return SystemCall {
            let status = socket.listen(backlog)
            if status == 0 {
                flow.state = .listening
                flow.local = socket.localAddress.endpoint
            }
            return SystemCall.status(status)
        }
    }

    private func accept(_ arguments: CallArguments, _ result: ScriptExpression) throws -> SystemCall {
        try arguments.expect(3...4)
        let (descriptor, socket, listener) = try socket(arguments)
        let flags = arguments.list.count == 4 ? try arguments.int32(3) : 0
        var made: Socket?
        var call = SystemCall { [self] in
            let outcome = Self.acceptOnce(descriptor, socket, &made)
            return made == nil ? outcome : .value(lowestFree)
        }
        call.returnsDescriptor = true
        call.finish = { [self] _ in
            guard let made else { return }
            let remote = made.remoteAddress.endpoint
            let local = made.localAddress.endpoint
            // One that has been reset already does not know its peer any more: the first that waits to be accepted.
            let known =
                remote.port != 0
                ? flows.last { $0.protocolNumber == 6 && $0.remote == remote && $0.local.port == local.port }
                : flows.first { $0.protocolNumber == 6 && $0.awaitsAccept && $0.local.port == listener.local.port }
            let flow = known ?? ScriptFlow(protocolNumber: 6)
            if known == nil { flows.append(flow) }
            if remote.port != 0 {
                flow.remote = remote
                flow.local = local
            }
            flow.state = .accepted
            self.flow = flow
            try add(.socket(made, flow), as: result, nonBlocking: flags & Self.nonBlocking != 0)
        }
        return call
    }

    static func acceptOnce(_ descriptor: ScriptDescriptor, _ socket: Socket, _ made: inout Socket?) -> SystemCall.Outcome {
        guard socket.isListening else { return .error(22) }
        made = socket.acceptNext()
        guard made == nil else { return .value(0) }
        return descriptor.isNonBlocking ? .error(11) : .blocks
    }

    private func connect(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(3...3)
        let (descriptor, socket, flow) = try socket(arguments)
        let wanted: LivePacket.Endpoint
        var family = UInt16(ALPS_AF_INET)
        switch try arguments.address(1) {
        case .default: wanted = LivePacket.Endpoint(address: options.remoteAddress, port: options.connectPort)
        case .none: return .immediate(.error(14))
        case .given(let given):
            wanted = given.endpoint
            family = given.family
        }
        var address = alps_sockaddr(wanted)
        address.family = family
        var hasBegun = false
        return SystemCall { [self] in connectOnce(descriptor, socket, flow, address, &hasBegun) }
    }

    func connectOnce(
        _ descriptor: ScriptDescriptor, _ socket: Socket, _ flow: ScriptFlow, _ address: alps_sockaddr,
        _ hasBegun: inout Bool
    ) -> SystemCall.Outcome {
        // Called anew once the attempt is over, connect tells what has come of it.
        if hasBegun, socket.isConnecting { return .blocks }
        let status = socket.connect(address)
        // AF_UNSPEC ends the association; the flow stays what the last packets belong to.
        if address.family != 0, !hasBegun, status == 115 || status == 0 {
            begin(flow, socket, to: address.endpoint)
        }
        hasBegun = true
        if status == 115, !descriptor.isNonBlocking { return .blocks }
        return SystemCall.status(status)
    }

    /// A flow whose first packet is ours.
    func begin(_ flow: ScriptFlow, _ socket: Socket, to remote: LivePacket.Endpoint) {
        flow.state = .connecting
        flow.forgetNumbers()
        flow.remote = remote
        flow.local = socket.localAddress.endpoint
        if flow.local.address == 0 { flow.local.address = options.localAddress }
        self.flow = flow
    }

    private func shutdown(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(2...2)
        let (_, socket, _) = try socket(arguments)
        let how = try arguments.int32(1)
        return SystemCall { SystemCall.status(socket.shutdown(how)) }
    }

    private func close(_ arguments: CallArguments) throws -> SystemCall {
        try arguments.expect(1...1)
        let descriptor = try find(arguments.descriptor())
        return SystemCall { [self] in
            close(descriptor)
            return .value(0)
        }
    }

    func close(_ descriptor: ScriptDescriptor) {
        descriptors[descriptor.number] = nil
        for other in descriptors.values {
            if case .epoll(let epoll) = other.kind { epoll.items.removeAll { $0.descriptor === descriptor } }
        }
        descriptor.socket?.close()
    }
}

import Glibc
import Kernel
package import PluginAPI

/// The stack behind packetdrill's --so_filename: a kernel in virtual time in the caller's process, and the calls of a
/// script on it. Results are those of the system calls, errors as negative numbers.
package final class PacketdrillStack {
    private let stack: ScriptStack
    private let calls: SystemCalls
    private let time: PacketdrillTime

    /// `flags`: settings divided by commas. Options of `alps pkt run` (profile=linux, mtu=1280, local_ip=10.0.0.1, seed=7,
    /// plugins=DIRECTORY), plugins from elsewhere by their protocol (tcp=./libalps-tcp.so), and sysctls by Linux's,
    /// FreeBSD's or our names. `directory`: where plugins are if nothing else is said.
    package init(flags: String, directory: String) throws {
        var options = PacketScriptOptions()
        options.pluginDirectory = directory
        var sysctls: [(String, String)] = []
        for item in flags.split(separator: ",") {
            let parts = item.trimmed.split(separator: "=", maxSplits: 1).map { String($0.trimmed) }
            guard parts.count == 2 else { throw KernelError(EINVAL, "'\(item)': expected NAME=VALUE") }
            switch parts[0] {
            case "plugins": options.pluginDirectory = parts[1]
            case "ipv4", "icmp", "udp", "tcp":
                options.plugins[parts[0]] = parts[1].contains("/") ? parts[1] : "./\(parts[1])"
            case "profile", "mtu", "seed", "local_ip", "gateway_ip", "netmask_ip": try options.set(parts[0], parts[1])
            default: sysctls.append((parts[0], parts[1]))
            }
        }
        stack = try ScriptStack(options)
        calls = SystemCalls(stack, options)
        time = PacketdrillTime(stack)
        do {
            try SysctlMap.apply(options.profile, to: stack.kernel.tunables)
            for (name, value) in sysctls { try SysctlMap.set(name, value, in: stack.kernel.tunables) }
        } catch let fault as ScriptFault {
            throw KernelError(EINVAL, fault.message)
        }
    }

    /// Closes what is open and ends the kernel.
    package func finish() {
        for descriptor in calls.descriptors.values { _ = Glibc.close(Int32(descriptor.number)) }
        calls.closeAll()
        _ = stack.finish()
    }

    private func call(
        limit: UInt64? = nil, late: SystemCall.Outcome = .value(0), _ attempt: @escaping () throws -> SystemCall.Outcome
    ) -> Int {
        let outcome = time.call(limit: limit, late: late) {
            // A fault is something that a script cannot have here, not an error of the call's own.
            do { return try attempt() } catch { return .error((error as? KernelError)?.code ?? EOPNOTSUPP) }
        }
        switch outcome {
        case .value(let value): return Int(value)
        case .error(let code): return -Int(code)
        case .blocks: return -Int(EINTR)
        }
    }

    // MARK: Time and packets

    package var now: Int64 { time.now }

    package func usleep(_ microseconds: UInt32) { time.usleep(microseconds) }

    /// A packet for the stack. False if it is not IPv4.
    package func inject(_ packet: UnsafeRawBufferPointer) -> Bool {
        guard packet.count >= 20, packet[0] >> 4 == 4 else { return false }
        time.perform { stack.inject(Array(packet)) }
        return true
    }

    /// The stack's next packet and when it left; nil: none has come within ten minutes of virtual time.
    package func take(into buffer: UnsafeMutableRawBufferPointer) -> (count: Int, time: Int64)? {
        time.perform {
            guard !stack.sent.isEmpty || time.wait({ !self.stack.sent.isEmpty }) else { return nil }
            let packet = stack.sent.removeFirst()
            let count = min(packet.totalLength, buffer.count)
            buffer.copyBytes(from: packet.bytes.prefix(count))
            return (count, PacketdrillTime.microseconds(packet.time))
        }
    }

    // MARK: Descriptors

    /// A number that is taken in the process too: some versions of packetdrill close descriptors themselves at the end.
    private func add(_ kind: ScriptDescriptor.Kind, nonBlocking: Bool = false) -> SystemCall.Outcome {
        let number = open("/dev/null", O_RDWR | O_CLOEXEC)
        guard number >= 0 else { return .error(errno) }
        do { try calls.add(kind, number: Int(number), nonBlocking: nonBlocking) } catch { return .error(EMFILE) }
        return .value(Int64(number))
    }

    private func find(_ number: Int32) throws -> ScriptDescriptor {
        guard let descriptor = calls.descriptors[Int(number)] else { throw KernelError(EBADF, "no descriptor \(number)") }
        return descriptor
    }

    private func socket(_ number: Int32) throws -> (descriptor: ScriptDescriptor, socket: Socket, flow: ScriptFlow) {
        let descriptor = try find(number)
        guard case .socket(let socket, let flow) = descriptor.kind else {
            throw KernelError(ENOTSOCK, "descriptor \(number) is not a socket")
        }
        return (descriptor, socket, flow)
    }

    package func fileControl(_ number: Int32, _ command: Int32, _ argument: Int) -> Int {
        call { [self] in SystemCalls.fileControl(try find(number), command, Int64(argument)) }
    }

    package func close(_ number: Int32) -> Int {
        call { [self] in
            calls.close(try find(number))
            _ = Glibc.close(number)
            return .value(0)
        }
    }

    // MARK: Sockets

    package func socket(_ domain: Int32, _ type: Int32, _ protocolNumber: Int32) -> Int {
        call { [self] in
            let made = try calls.create(domain, type, protocolNumber)
            let outcome = add(made, nonBlocking: type & SystemCalls.nonBlocking != 0)
            if case .error = outcome { made.close() }
            return outcome
        }
    }

    private func add(_ socket: Socket, nonBlocking: Bool) -> SystemCall.Outcome {
        let number = UInt8(truncatingIfNeeded: socket.raw.pointee.protocol)
        return add(.socket(socket, ScriptFlow(protocolNumber: number)), nonBlocking: nonBlocking)
    }

    package func bind(_ number: Int32, _ address: alps_sockaddr) -> Int {
        call { [self] in SystemCall.status(try socket(number).socket.bind(address)) }
    }

    package func listen(_ number: Int32, _ backlog: Int32) -> Int {
        call { [self] in SystemCall.status(try socket(number).socket.listen(backlog)) }
    }

    package func accept(_ number: Int32) -> (result: Int, peer: alps_sockaddr) {
        var peer = alps_sockaddr()
        let result = call { [self] in
            let (descriptor, socket, _) = try socket(number)
            var made: Socket?
            let outcome = SystemCalls.acceptOnce(descriptor, socket, &made)
            guard let made else { return outcome }
            peer = made.remoteAddress
            return add(made, nonBlocking: false)
        }
        return (result, peer)
    }

    package func connect(_ number: Int32, _ address: alps_sockaddr) -> Int {
        var hasBegun = false
        return call { [self] in
            let (descriptor, socket, flow) = try socket(number)
            return calls.connectOnce(descriptor, socket, flow, address, &hasBegun)
        }
    }

    package func shutdown(_ number: Int32, _ how: Int32) -> Int {
        call { [self] in SystemCall.status(try socket(number).socket.shutdown(how)) }
    }

    package func setOption(_ number: Int32, _ level: Int32, _ name: Int32, _ value: [UInt8]) -> Int {
        call { [self] in SystemCall.status(try socket(number).socket.setOption(level: level, name: name, value)) }
    }

    /// packetdrill asks for its own tcp_info and takes nothing shorter.
    private static let infoLength = 280

    package func getOption(
        _ number: Int32, _ level: Int32, _ name: Int32, capacity: Int
    ) -> (result: Int, value: [UInt8]) {
        var value: [UInt8] = []
        let result = call { [self] in
            let found = try socket(number).socket.getOption(level: level, name: name, capacity: capacity)
            value = found.value
            if found.error == 0, level == IPPROTO_TCP, name == 11 {
                let length = min(capacity, Self.infoLength)
                value += [UInt8](repeating: 0, count: max(0, length - value.count))
            }
            return SystemCall.status(found.error)
        }
        return (result, value)
    }

    /// The number that ioctl gives, for those that do.
    package func ioctl(_ number: Int32, _ request: UInt, given: Int32) -> (result: Int, value: Int32?) {
        var found: Int64?
        let result = call { [self] in
            let (descriptor, socket, _) = try socket(number)
            return SystemCalls.ioctl(
                descriptor, socket, Int64(truncatingIfNeeded: request), Int64(given), &found)
        }
        return (result, found.map { Int32(truncatingIfNeeded: $0) })
    }

    // MARK: Data

    /// read(2) and its kin. `count`: the buffer's length; nil: there is none.
    package func receive(
        _ number: Int32, _ count: Int?, _ flags: Int32 = 0
    ) -> (result: Int, bytes: [UInt8], source: alps_sockaddr?, flags: Int32) {
        var transfer = SystemCalls.Transfer()
        transfer.count = count ?? 1
        transfer.isNull = count == nil
        transfer.flags = flags
        let asked = transfer
        var received = SystemCalls.Received()
        let result = call(limit: limit(number, 20), late: .error(EAGAIN)) { [self] in
            // There is no error queue: it is empty.
            guard flags & SystemCalls.Message.errorQueue == 0 else { return .error(EAGAIN) }
            return try calls.readOnce(try find(number), asked, &received)
        }
        return (result, received.bytes, received.source, received.flags)
    }

    /// write(2) and its kin. `bytes` nil: a null pointer.
    package func send(_ number: Int32, _ bytes: [UInt8]?, _ flags: Int32 = 0, to address: alps_sockaddr? = nil) -> Int {
        var transfer = SystemCalls.Transfer()
        transfer.data = bytes ?? []
        transfer.count = bytes?.count ?? 1
        transfer.isNull = bytes == nil
        transfer.flags = flags
        if let address { transfer.address = .given((address.family, address.endpoint)) }
        let asked = transfer
        var progress = SystemCalls.WriteProgress()
        return call(limit: limit(number, 21), late: .error(EAGAIN)) { [self] in
            try calls.writeOnce(try find(number), asked, &progress)
        }
    }

    /// SO_RCVTIMEO (20) or SO_SNDTIMEO (21).
    private func limit(_ number: Int32, _ name: Int32) -> UInt64? {
        time.perform { calls.descriptors[Int(number)]?.socket.flatMap { calls.timeout($0, name) } }
    }

    // MARK: Waiting for several

    /// Readiness of descriptors; negative numbers are left out. `milliseconds` < 0: no limit.
    package func poll(_ wanted: [(fd: Int32, events: Int16)], milliseconds: Int32) -> (result: Int, events: [Int16]) {
        var events = [Int16](repeating: 0, count: wanted.count)
        let result = call(limit: Self.nanoseconds(milliseconds)) { [self] in
            var count = 0
            for (index, item) in wanted.enumerated() where item.fd >= 0 {
                let ready = calls.descriptors[Int(item.fd)]?.readiness(for: Int32(item.events)) ?? Int32(POLLNVAL)
                events[index] = Int16(truncatingIfNeeded: ready)
                if ready != 0 { count += 1 }
            }
            return count > 0 || milliseconds == 0 ? .value(Int64(count)) : .blocks
        }
        return (result, events)
    }

    private static func nanoseconds(_ milliseconds: Int32) -> UInt64? {
        milliseconds < 0 ? nil : UInt64(milliseconds) * 1_000_000
    }

    package func makeEpoll(_ size: Int32) -> Int {
        call { [self] in size > 0 ? add(.epoll(ScriptEpoll())) : .error(EINVAL) }
    }

    private func epoll(_ number: Int32) throws -> ScriptEpoll {
        guard case .epoll(let epoll) = try find(number).kind else {
            throw KernelError(EINVAL, "descriptor \(number) is not an epoll instance")
        }
        return epoll
    }

    package func controlEpoll(_ number: Int32, _ operation: Int32, _ fd: Int32, events: UInt32, data: UInt64) -> Int {
        call { [self] in
            try epoll(number).control(operation, try find(fd), events, Int64(bitPattern: data))
        }
    }

    package func waitEpoll(
        _ number: Int32, _ count: Int, milliseconds: Int32
    ) -> (result: Int, events: [(events: UInt32, data: UInt64)]) {
        var taken: [(events: UInt32, data: Int64)] = []
        let result = call(limit: Self.nanoseconds(milliseconds)) { [self] in
            guard count > 0 else { return .error(EINVAL) }
            calls.observe()
            taken = try epoll(number).take(count)
            return taken.isEmpty && milliseconds != 0 ? .blocks : .value(Int64(taken.count))
        }
        return (result, taken.map { ($0.events, UInt64(bitPattern: $0.data)) })
    }

    // MARK: Pipes

    package func makePipe() -> (result: Int, reader: Int32, writer: Int32) {
        var ends: [Int32] = []
        let result = call { [self] in
            let pipe = ScriptPipe()
            for isReader in [true, false] {
                let outcome = add(.pipe(pipe, isReader: isReader))
                guard case .value(let number) = outcome else { return outcome }
                ends.append(Int32(number))
            }
            return .value(0)
        }
        return result == 0 ? (0, ends[0], ends[1]) : (result, -1, -1)
    }

    /// Between a socket and a pipe.
    package func splice(_ from: Int32, _ to: Int32, _ count: Int) -> Int {
        call { [self] in try calls.spliceOnce(try find(from), try find(to), count) }
    }
}

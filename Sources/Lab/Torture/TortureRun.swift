import Glibc
package import Kernel
import PluginAPI

/// Runs a plan to its end, and looks whether all invariants have held.
package final class TortureRun {
    /// Faults made on purpose, so that tests can see that the invariants find them.
    package enum Sabotage: String, CaseIterable, Sendable {
        /// The wire changes a payload byte and makes the checksum right again.
        case flippedByte
        /// An application loses the last byte that it was given.
        case lostLastByte
        /// A socket is never closed.
        case forgottenSocket
        /// A buffer is taken and not given back.
        case lostBuffer
    }

    let plan: TorturePlan
    let network: VirtualNetwork
    private let sabotage: Sabotage?
    var observer: WireObserver!
    var ends: [LinkEnd] = []
    private var endpoints: [TortureEndpoint] = []
    /// By connection: client, server.
    private var pairs: [(client: TortureEndpoint, server: TortureEndpoint)] = []
    private var listeners: [TortureListener] = []
    private var starters: [HostTimer] = []
    private var started = 0
    /// Something has begun, ended or gone wrong since the last look.
    private var hasNews = true
    private var zoneBaseline: [Int] = []
    private var report: TortureReport
    private var isSabotageDone = false

    /// Virtual time for the applications to end in, and for everything to be forgotten afterwards.
    private static let hour: UInt64 = 3_600_000_000_000
    private static let second: UInt64 = 1_000_000_000
    private static let firstPort: UInt16 = 2000
    /// TCP_FASTOPEN_CONNECT, which not every libc's headers show.
    private static let fastOpenConnect: Int32 = 30

    /// Runs one seed. `onLine` gets the plan and a line a packet.
    package static func run(
        seed: UInt64, plugins: String? = nil, images: PluginImages = PluginImages(), sabotage: Sabotage? = nil,
        onLine: ((String) -> Void)? = nil
    ) throws -> TortureReport {
        let plan = TortureGenerator.plan(seed: seed)
        for line in plan.description { onLine?(line) }
        let network = VirtualNetwork(seed: seed, plugins: plugins, images: images)
        return try TortureRun(plan, network, sabotage, onLine).run()
    }

    private init(
        _ plan: TorturePlan, _ network: VirtualNetwork, _ sabotage: Sabotage?, _ onLine: ((String) -> Void)?
    ) throws {
        self.plan = plan
        self.sabotage = sabotage
        self.network = network
        report = TortureReport(seed: plan.seed)
        report.connections = plan.connections.count
        for index in 0..<plan.kernels {
            let kernel = try network.addKernel(TorturePlan.kernelName(index))
            for (name, value) in plan.tunables[index] { try kernel.tunables.set(name, value) }
        }
        observer = WireObserver(network) { [plan] in Self.settings(plan, $0, $1) }
        observer.onLine = onLine
        observer.onFault = { [unowned self] in self.hasNews = true }
        for (index, link) in plan.links.enumerated() {
            let (a, b) = try network.link(
                network.kernels[link.a], "10.0.\(index + 1).1/24", network.kernels[link.b], "10.0.\(index + 1).2/24",
                link.forward, back: link.back)
            let tamper: ((UnsafeMutableRawBufferPointer) -> Void)? =
                sabotage == .flippedByte ? { [unowned self] in self.tamper($0) } : nil
            observer.watch(a, link: index, kernel: link.a, tamper: tamper)
            observer.watch(b, link: index, kernel: link.b, tamper: tamper)
            ends += [a, b]
        }
    }

    private static func settings(_ plan: TorturePlan, _ kernel: Int, _ key: WireSegment.Key) -> SenderFlow.Settings {
        var settings = SenderFlow.Settings()
        settings.initialWindowSegments = Int(plan.tunable(kernel, "net.inet.tcp.initcwnd_segments", default: 10))
        let limits = TimeoutLimits(plan, kernel: kernel)
        settings.shortestTimeout = limits.shortest
        settings.longestTimeout = limits.longest
        let link = Int(key.source >> 8 & 255) - 1
        if plan.links.indices.contains(link) {
            let place = plan.links[link]
            settings.mtu = key.source & 255 == 1 ? place.forward.mtu : place.back.mtu
        }
        let rates = plan.connections.flatMap {
            [$0.client == kernel ? $0.clientSide.pacingRate : nil, $0.server == kernel ? $0.serverSide.pacingRate : nil]
        }.compactMap { $0 }
        if let slowest = rates.min() {
            settings.isPaced = true
            // Two segments may go at once, and a tail loss probe goes beside them.
            settings.longestPacing = UInt64(4 * settings.mtu) * second / UInt64(max(slowest, 1))
        }
        settings.restartsTimer = plan.tunable(kernel, "net.inet.tcp.rto_restart", default: 0) != 0
        let ports = (Int(key.destinationPort) - Int(firstPort), Int(key.sourcePort) - Int(firstPort))
        if plan.connections.indices.contains(ports.0) {
            settings.salt = plan.connections[ports.0].clientSide.salt
            settings.mayVanish = !plan.connections[ports.0].isClean
            settings.opensFast = plan.connections[ports.0].opensFast
        } else if plan.connections.indices.contains(ports.1) {
            settings.salt = plan.connections[ports.1].serverSide.salt
            settings.mayVanish = !plan.connections[ports.1].isClean
            settings.opensFast = plan.connections[ports.1].opensFast
            settings.usesCookies = plan.connections[ports.1].flood > 0
        }
        return settings
    }

    // MARK: Running

    private func run() throws -> TortureReport {
        // Addresses are probed before they are used (RFC 5227).
        network.run(for: 10 * Self.second)
        zoneBaseline = network.kernels.map { tcp($0)?.zone.objectsInUse ?? 0 }
        for index in plan.connections.indices { prepare(index) }
        for error in plan.disturbances { prepare(error) }
        let begin = network.clock.now
        runApplications()
        note("the applications have ended")
        closeAll()
        runUntilForgotten()
        note("everything is forgotten")
        observer.finish()
        conclude()
        report.seconds = Double(network.clock.now - begin) / 1e9
        checkStorm()
        network.shutdown()
        for kernel in network.kernels where !kernel.mbufs.isIdle { fail("\(kernel.name): mbufs are left after shutdown") }
        report.trace = observer.hash
        report.packets = observer.packets
        report.turns = network.turns
        report.bytes = UInt64(endpoints.reduce(0) { $0 + $1.received })
        return report
    }

    private func note(_ text: String) {
        observer.onLine?("\(WireObserver.seconds(network.clock.now)) --- \(text)")
    }

    private func fail(_ text: String) {
        hasNews = true
        if report.failures.count < 20 { report.failures.append(text) }
    }

    private func tcp(_ kernel: Kernel) -> PluginInstance? { kernel.plugins.instance("tcp") }

    private func prepare(_ index: Int) {
        let connection = plan.connections[index]
        let client = endpoint(index, isClient: true)
        let server = endpoint(index, isClient: false)
        pairs.append((client, server))
        endpoints += [client, server]
        let at = connection.start
        switch connection.kind {
        case .closedPort:
            server.giveUp()
            start(connection.client, at) { [unowned self] in try self.connect(index) }
        case .simultaneous:
            start(connection.client, at) { [unowned self] in
                try self.connect(index, isClient: false)
                try self.connect(index)
            }
        case .ordinary, .listenerCloses:
            start(connection.client, at) { [unowned self] in
                try self.listen(index)
                self.flood(index)
                try self.connect(index)
            }
        }
    }

    private func prepare(_ error: TorturePlan.Disturbance) {
        let timer = HostTimer(network.kernels[0]) { [unowned self] in self.disturb(error) }
        timer.arm(after: error.at)
        starters.append(timer)
    }

    private func endpoint(_ index: Int, isClient: Bool) -> TortureEndpoint {
        let connection = plan.connections[index]
        let number = isClient ? connection.client : connection.server
        let endpoint = TortureEndpoint(
            "connection \(index) \(isClient ? "client" : "server")", kernel: network.kernels[number],
            plan: isClient ? connection.clientSide : connection.serverSide,
            peer: isClient ? connection.serverSide : connection.clientSide, isClean: connection.isClean,
            limits: TimeoutLimits(plan, kernel: number), onChange: { [unowned self] in self.hasNews = true })
        if sabotage == .lostLastByte, isClient { endpoint.losesLastByte = true }
        return endpoint
    }

    private func start(_ kernel: Int, _ delay: UInt64, _ action: @escaping () throws -> Void) {
        let timer = HostTimer(network.kernels[kernel]) { [unowned self] in
            self.started += 1
            self.hasNews = true
            do { try action() } catch { self.fail("\(error)") }
        }
        timer.arm(after: delay)
        starters.append(timer)
    }

    private func address(_ text: String, _ port: UInt16) -> alps_sockaddr {
        var address = alps_sockaddr()
        address.family = UInt16(ALPS_AF_INET)
        address.port = port
        if let parsed = NetworkAddress(text) { address.addr = parsed.address }
        return address
    }

    func port(_ index: Int) -> UInt16 { Self.firstPort + UInt16(index) }

    /// The client of a simultaneous open.
    private func clientPort(_ index: Int) -> UInt16 { port(index) + 1000 }

    private func listen(_ index: Int) throws {
        let connection = plan.connections[index]
        let kernel = network.kernels[connection.server]
        let socket = try kernel.sockets.create(domain: 2, type: 1, protocol: 6)
        TortureEndpoint.prepare(socket, connection.serverSide)
        guard socket.bind(address("0.0.0.0", port(index))) == 0, socket.listen(connection.backlog) == 0 else {
            return fail("connection \(index): listen fails")
        }
        if connection.opensFast { _ = socket.setOption(level: 6, name: TCP_FASTOPEN, [5, 0, 0, 0]) }
        let listener = TortureListener(socket, pairs[index].server, mayRepeat: connection.opensFast || connection.flood > 0) { [unowned self] in self.fail("connection \(index): \($0)") }
        listeners.append(listener)
        if case .listenerCloses(let delay) = connection.kind {
            let timer = HostTimer(kernel) { listener.close() }
            timer.arm(after: delay)
            starters.append(timer)
        }
    }

    private func connect(_ index: Int, isClient: Bool = true) throws {
        let connection = plan.connections[index]
        let kernel = network.kernels[isClient ? connection.client : connection.server]
        let socket = try kernel.sockets.create(domain: 2, type: 1, protocol: 6)
        TortureEndpoint.prepare(socket, isClient ? connection.clientSide : connection.serverSide)
        var remote = port(index)
        if connection.kind == .simultaneous {
            let own = isClient ? clientPort(index) : port(index)
            if !isClient { remote = clientPort(index) }
            if socket.bind(address("0.0.0.0", own)) != 0 { fail("connection \(index): bind fails") }
        }
        if connection.opensFast, isClient {
            _ = socket.setOption(level: 6, name: Self.fastOpenConnect, [1, 0, 0, 0])
        }
        let status = socket.connect(address(plan.address(connection, ofClient: !isClient), remote))
        if status != EINPROGRESS, status != 0 || !connection.opensFast { fail("connection \(index): connect gives errno \(status)") }
        (isClient ? pairs[index].client : pairs[index].server).adopt(socket)
    }

    private var hasFault: Bool {
        !report.failures.isEmpty || !observer.faults.isEmpty || endpoints.contains { !$0.faults.isEmpty }
    }

    /// Until every application has ended. Ends of connections that were broken on purpose may wait for a peer that is
    /// gone; they give up when the others are done.
    private func runApplications() {
        let all = plan.connections.count
        let isDone = { [unowned self] in
            guard self.hasNews else { return self.network.turns >= Self.turnLimit }
            self.hasNews = false
            return self.hasFault
                || self.started == all
                    && self.pairs.indices.allSatisfy {
                        !self.mustEnd($0) || self.pairs[$0].client.isOver && self.pairs[$0].server.isOver
                    }
        }
        network.run(limit: 12 * Self.hour, until: isDone)
        if network.turns >= Self.turnLimit { fail("event storm: \(network.turns) turns") }
        hasNews = true
        network.run(limit: 120 * Self.second) { [unowned self] in
            guard self.hasNews else { return false }
            self.hasNews = false
            return self.endpoints.allSatisfy(\.isOver) || self.hasFault
        }
    }

    /// Whether everything must arrive. On a lossy link all ARP requests may be lost, or everything until the server has
    /// forgotten a SYN that it has answered, and a queue may hold packets for longer than that: then there is no
    /// connection.
    private func isClean(_ index: Int) -> Bool {
        let connection = plan.connections[index]
        guard connection.isClean else { return false }
        guard let number = connection.link else { return true }
        let isBad = [plan.links[number].forward, plan.links[number].back].contains {
            $0.loss > 0 || $0.corrupt > 0 || $0.longestQueue > 10 * Self.second
        }
        // A SYN cookie knows a client by the number of its first ACK only: whatever else comes before that is answered by a
        // reset, and a late copy of it by another connection.
        // A client that closes at once does not wait to see it.
        if connection.flood > 0, connection.clientSide.ending == .closeAtOnce, pairs[index].client.outcome == .complete,
            !pairs[index].server.isStarted
        {
            return false
        }
        if connection.flood > 0, [pairs[index].client, pairs[index].server].contains(where: { $0.outcome == .failed(ECONNRESET) }) {
            return false
        }
        guard isBad || connection.flood > 0 else { return true }
        let (client, server) = pairs[index]
        if client.outcome == .failed(ECONNRESET), !server.isStarted { return false }
        // With Fast Open the client counts as connected before anything has been sent.
        if connection.opensFast, client.outcome == .failed(EHOSTUNREACH), !server.isStarted { return false }
        return ![client, server].contains { $0.outcome == .failed(EHOSTUNREACH) && !$0.isStarted }
    }

    /// Whether both its applications end by themselves.
    private func mustEnd(_ index: Int) -> Bool { plan.connections[index].kind == .closedPort || isClean(index) }

    private static let turnLimit: UInt64 = 4_000_000

    private func closeAll() {
        for (index, pair) in pairs.enumerated() {
            for endpoint in [pair.client, pair.server] {
                if mustEnd(index), !endpoint.isOver, !hasFault {
                    fail("\(endpoint.name) hangs: sent \(endpoint.sent), received \(endpoint.received), "
                        + (endpoint.socket?.describe() ?? "no socket"))
                }
                if !endpoint.isOver, sabotage != .forgottenSocket { endpoint.giveUp() }
            }
        }
        for timer in starters { timer.cancel() }
        if sabotage != .forgottenSocket { for listener in listeners { listener.close() } }
    }

    private var isForgotten: Bool {
        network.kernels.allSatisfy { $0.sockets.count == 0 && $0.connections.count == 0 }
            && ends.allSatisfy { $0.travelling == 0 }
    }

    private func runUntilForgotten() {
        let limit = hasFault ? 1 : 4 * Self.hour
        let last = network.turns + Self.turnLimit
        network.run(limit: limit) { [unowned self] in self.isForgotten || self.network.turns >= last }
        // What arrived last has been taken, ARP has ended what it was about.
        network.run(for: Self.second)
        network.run(limit: 100 * Self.second) { [unowned self] in self.network.kernels.allSatisfy(\.mbufs.isIdle) }
        guard !hasFault else { return }
        if sabotage == .lostBuffer { _ = network.kernels[0].mbufs.packet(headroom: 0) }
        for (index, kernel) in network.kernels.enumerated() { checkNothingLeft(kernel, index) }
    }

    // MARK: Invariants of the end

    private func checkNothingLeft(_ kernel: Kernel, _ index: Int) {
        if kernel.sockets.count != 0 {
            let left = kernel.sockets.all.map { $0.describe() }.joined(separator: " ")
            fail("\(kernel.name): \(kernel.sockets.count) sockets are left: \(left)")
        }
        if kernel.connections.count != 0 { fail("\(kernel.name): \(kernel.connections.count) connection entries are left") }
        if !kernel.mbufs.isIdle { fail("\(kernel.name): mbufs are left: \(kernel.mbufs.statistics)") }
        guard let tcp = tcp(kernel) else { return }
        if tcp.calloutTarget.pointee.armed != 0 { fail("\(kernel.name): \(tcp.calloutTarget.pointee.armed) callouts of tcp are left") }
        if tcp.liveEntries != 0 || tcp.liveSockets != 0 {
            fail("\(kernel.name): tcp counts \(tcp.liveEntries) entries and \(tcp.liveSockets) sockets")
        }
        let objects = tcp.zone.objectsInUse
        if objects != zoneBaseline[index] { fail("\(kernel.name): tcp has \(objects) objects, \(zoneBaseline[index]) at first") }
    }

    private func conclude() {
        for fault in observer.faults { fail(fault) }
        for endpoint in endpoints { for fault in endpoint.faults { fail(fault) } }
        for (index, pair) in pairs.enumerated() {
            let connection = plan.connections[index]
            if connection.kind == .closedPort {
                if pair.client.outcome != .failed(ECONNREFUSED), pair.client.outcome != .failed(EHOSTUNREACH),
                    pair.client.outcome != .failed(ETIMEDOUT) || connection.clientSide.userTimeout == nil, !hasFault
                {
                    fail("connection \(index): a closed port gives \(pair.client.outcome)")
                }
                continue
            }
            guard isClean(index), !hasFault else { continue }
            for endpoint in [pair.client, pair.server] where endpoint.outcome != .complete {
                fail("\(endpoint.name): \(endpoint.outcome), sent \(endpoint.sent), received \(endpoint.received)")
            }
            let wanted = (connection.clientSide.bytes, connection.serverSide.bytes)
            if (pair.server.received, pair.client.received) != wanted {
                fail("connection \(index): \(pair.server.received) and \(pair.client.received) of \(wanted) bytes arrived")
            }
        }
    }

    /// Work is bounded by data, time and connections.
    private func checkStorm() {
        guard !hasFault else { return }
        let bytes = plan.connections.reduce(0) { $0 + $1.clientSide.bytes + $1.serverSide.bytes }
        let writes = endpoints.reduce(0) { $0 + $1.sent / 200 }
        // A packet a write, or each eight bytes where the path or the peer takes no more, and an acknowledgment each.
        let pieces = plan.connections.flatMap { [$0.clientSide, $0.serverSide] }
            .reduce(0) { $0 + $1.bytes / min(max($1.chunk.lowerBound, 1), 8) }
        let packetLimit = UInt64(2000 * plan.connections.count + 2 * pieces + 20 * writes) + 4 * UInt64(report.seconds)
        if observer.packets > packetLimit { fail("event storm: \(observer.packets) packets for \(bytes) bytes") }
        let turnLimit = 20_000 + 20 * packetLimit
        if network.turns > turnLimit { fail("event storm: \(network.turns) turns for \(observer.packets) packets") }
    }

    // MARK: Sabotage

    private func tamper(_ frame: UnsafeMutableRawBufferPointer) {
        guard !isSabotageDone, frame.count > 14 + 40 + 20, frame[12] == 8, frame[13] == 0,
            let segment = WireSegment(
                ip: UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(frame)[14...]), total: frame.count - 14),
            segment.length >= 4
        else { return }
        isSabotageDone = true
        // Two words are exchanged, which the sum does not see.
        let at = (14 + segment.payloadOffset + 1) & ~1
        guard frame[at] != frame[at + 2] || frame[at + 1] != frame[at + 3] else { return isSabotageDone = false }
        frame.swapAt(at, at + 2)
        frame.swapAt(at + 1, at + 3)
    }
}

/// Takes the one connection that is to come.
private final class TortureListener {
    private var socket: Socket?
    private let endpoint: TortureEndpoint
    private let report: (String) -> Void
    private let mayRepeat: Bool
    private var accepted = 0

    /// `mayRepeat`: a SYN with data that comes late once more makes another connection (RFC 7413, 2.1), and so does an ACK
    /// with a cookie.
    init(_ socket: Socket, _ endpoint: TortureEndpoint, mayRepeat: Bool, report: @escaping (String) -> Void) {
        self.socket = socket
        self.mayRepeat = mayRepeat
        self.endpoint = endpoint
        self.report = report
        socket.channel = CallbackChannel { [weak self] in self?.accept(from: $0) }
    }

    private func accept(from socket: Socket) {
        while let child = socket.acceptNext() {
            accepted += 1
            guard accepted == 1 else {
                if !mayRepeat { report("the listener has accepted \(accepted) connections") }
                child.abort()
                continue
            }
            endpoint.adopt(child)
        }
    }

    func close() {
        guard let socket else { return }
        self.socket = nil
        socket.channel = nil
        socket.close()
        if accepted == 0 { endpoint.giveUp() }
    }
}

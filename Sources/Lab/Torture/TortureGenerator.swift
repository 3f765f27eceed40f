import Kernel

/// Makes a plan out of a seed.
struct TortureGenerator {
    private var random: SeededGenerator

    private static let ms: UInt64 = 1_000_000
    private static let second: UInt64 = 1_000_000_000

    static func plan(seed: UInt64) -> TorturePlan {
        // Neighbouring seeds must not begin alike.
        var generator = TortureGenerator(random: SeededGenerator(seed: seed &* 0x9e37_79b9_7f4a_7c15 ^ 0x70c2_7012))
        return generator.plan(seed)
    }

    // MARK: Draws

    private mutating func chance(_ probability: Double) -> Bool {
        Double(random.next() >> 11) * 0x1p-53 < probability
    }

    private mutating func number(_ range: ClosedRange<Int>) -> Int { Int.random(in: range, using: &random) }

    private mutating func time(_ range: ClosedRange<UInt64>) -> UInt64 { UInt64.random(in: range, using: &random) }

    private mutating func one<Element>(of list: [Element]) -> Element { list[number(0...(list.count - 1))] }

    /// Evenly over the orders of magnitude.
    private mutating func size(_ range: ClosedRange<Int>) -> Int {
        var bits = 0
        while range.lowerBound << bits < range.upperBound { bits += 1 }
        let top = min(range.lowerBound << number(0...bits), range.upperBound)
        return number(range.lowerBound...top)
    }

    // MARK: The plan

    private mutating func plan(_ seed: UInt64) -> TorturePlan {
        var plan = TorturePlan(seed: seed)
        plan.kernels = one(of: [2, 2, 2, 2, 3, 3, 4])
        plan.links = links(plan.kernels)
        for _ in 0..<one(of: [1, 1, 1, 2, 2, 3, 4, 6, 8]) { plan.connections.append(connection(plan)) }
        let closesAtOnce = plan.connections.contains {
            $0.clientSide.ending == .closeAtOnce || $0.serverSide.ending == .closeAtOnce
        }
        plan.tunables = (0..<plan.kernels).map { _ in tunables(waitsLongForFin: closesAtOnce) }
        plan.disturbances = disturbances(plan)
        return plan
    }

    private mutating func links(_ kernels: Int) -> [TorturePlan.Link] {
        var pairs: [(Int, Int)] = []
        switch number(0...2) {
        case 0: for index in 1..<kernels { pairs.append((index - 1, index)) }
        case 1: for index in 1..<kernels { pairs.append((0, index)) }
        default: for a in 0..<kernels { for b in (a + 1)..<kernels { pairs.append((a, b)) } }
        }
        return pairs.map { a, b in
            let forward = path()
            let back = chance(0.6) ? forward : path()
            return TorturePlan.Link(a: a, b: b, forward: forward, back: back)
        }
    }

    private mutating func path() -> LinkSpec {
        var spec = LinkSpec()
        spec.rate = one(of: [0, 64_000, 1_000_000, 10_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000])
        spec.delay = one(of: [0, 50_000, Self.ms, 5 * Self.ms, 20 * Self.ms, 100 * Self.ms, 400 * Self.ms])
        spec.mtu = one(of: [1500, 1500, 1500, 1500, 9000, 1280, 1006, 576, 296])
        spec.limit = one(of: [1000, 1000, 100, 20, 5])
        if chance(0.3) { spec.jitter = time(0...max(spec.delay, 2 * Self.ms)) }
        if chance(0.55) { spec.loss = one(of: [0.001, 0.01, 0.01, 0.02, 0.05, 0.1, 0.2]) }
        if spec.loss > 0, chance(0.3) { spec.burst = Double(number(2...8)) }
        if chance(0.3) { spec.reorder = one(of: [0.001, 0.01, 0.05, 0.2]) }
        if chance(0.25) { spec.duplicate = one(of: [0.001, 0.01, 0.1]) }
        if chance(0.2) { spec.corrupt = one(of: [0.001, 0.01, 0.05]) }
        if chance(0.2) { spec.mark = one(of: [0.001, 0.05, 0.5]) }
        if spec.mtu >= 1500, chance(0.15) {
            // A black hole is to be got over from the size on that TCP takes for safe (RFC 4821, 7.2).
            if chance(0.4) { spec.hole = number(1280...1499) } else { spec.narrow = number(576...1499) }
        }
        return spec
    }

    private mutating func tunables(waitsLongForFin: Bool) -> [(name: String, value: String)] {
        var list: [(name: String, value: String)] = [
            // Nobody is to be given up for bad luck.
            ("net.inet.tcp.retries", "64"), ("net.inet.tcp.orphan_retries", "64"),
            ("net.inet.tcp.syncache.rexmtlimit", "16"), ("net.inet.tcp.keepinit", "3600000000000"),
            ("net.inet.tcp.finwait2_timeout", waitsLongForFin ? "3600000000000" : "60000000000"),
            ("net.link.ether.inet.maxtries", "20"),
        ]
        func set(_ name: String, _ value: Int) { list.append(("net.inet.tcp." + name, String(value))) }
        let ms = 1_000_000
        if chance(0.3) { set("sack.enable", 0) }
        if chance(0.1) { set("rfc1323", 0) }
        if chance(0.2) { set("timestamps", 0) }
        if chance(0.2) { set("window_scaling", 0) }
        if chance(0.4) { set("tso", 0) }
        if chance(0.5) { set("delacktime", one(of: [0, 1, 10, 40, 200, 499]) * ms) }
        if chance(0.4) { set("quickacks", one(of: [0, 1, 100])) }
        if chance(0.3) { set("initcwnd_segments", one(of: [1, 2, 4, 10, 30])) }
        set("rexmit_min", one(of: [5, 30, 200, 200, 200, 1000]) * ms)
        let longest = one(of: [1000, 4000, 16_000, 60_000])
        set("rexmit_max", longest * ms)
        if chance(0.3) { set("rexmit_initial", min(longest, one(of: [200, 1000, 3000])) * ms) }
        set("msl", one(of: [100, 1000, 15_000, 30_000]) * ms)
        if chance(0.2) { set("reass.maxqueuelen", one(of: [1, 2, 8, 64])) }
        if chance(0.2) { set("option_order", 0) }
        if chance(0.2) { set("corktime", one(of: [10, 200, 1000]) * ms) }
        if chance(0.4) { set("ecn.enable", one(of: [0, 1, 3, 3, 3, 4, 5])) }
        if chance(0.1) { set("ecn.option", one(of: [0, 1, 3])) }
        if chance(0.1) { set("ecn.generalized", 1) }
        if chance(0.2) { set("newcwv", 0) }
        if chance(0.2) { set("cc.default", 1) }
        if chance(0.1) { set("frto", 0) }
        if chance(0.1) { set("tlp", 0) }
        if chance(0.1) { set("rto_restart", 1) }
        if chance(0.1) { set("sack.dsack", 0) }
        if chance(0.1) { set("fastopen.cookieless", 3) }
        if chance(0.4) { list.append(("kern.ipc.sendspace", String(size(4096...1_048_576)))) }
        if chance(0.4) { list.append(("kern.ipc.recvspace", String(size(4096...1_048_576)))) }
        return list
    }

    // MARK: Connections

    private mutating func connection(_ plan: TorturePlan) -> TorturePlan.Connection {
        let link = chance(0.08) ? nil : number(0...(plan.links.count - 1))
        var ends = link.map { (plan.links[$0].a, plan.links[$0].b) } ?? (0, 0)
        if link == nil {
            let kernel = number(0...(plan.kernels - 1))
            ends = (kernel, kernel)
        } else if chance(0.5) {
            ends = (ends.1, ends.0)
        }
        var connection = TorturePlan.Connection(
            link: link, client: ends.0, server: ends.1,
            start: chance(0.5) ? 0 : time(0...(chance(0.8) ? Self.second : 60 * Self.second)),
            backlog: Int32(one(of: [0, 1, 5, 128])))
        let limit = volume(link.map { plan.links[$0] })
        let dice = number(0...99)
        switch dice {
        case 0..<4: connection.kind = .closedPort
        case 4..<8 where link != nil: connection.kind = .simultaneous
        case 8..<13: connection.kind = .listenerCloses(after: time(0...(5 * Self.second)))
        default: break
        }
        applications(&connection, limit)
        let speaksFirst = connection.clientSide.bytes > 0 && connection.clientSide.speaksAfter == 0
        if connection.kind == .ordinary, speaksFirst {
            // A client that says nothing would not send its SYN, and one whose last ACK gets lost would wait for a server
            // that has answered with a cookie and forgotten it.
            connection.opensFast = chance(0.2)
            if !connection.opensFast, chance(0.1) { connection.flood = number(1...60) }
        }
        return connection
    }

    /// ICMP errors, forged or true, while the connections are young.
    private mutating func disturbances(_ plan: TorturePlan) -> [TorturePlan.Disturbance] {
        var list: [TorturePlan.Disturbance] = []
        for (index, connection) in plan.connections.enumerated() where connection.link != nil && chance(0.12) {
            for _ in 0..<number(1...6) {
                let codes: [(UInt8, UInt8)] = [
                    (3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 4), (3, 4), (3, 5), (3, 9), (3, 10), (3, 13), (4, 0), (11, 0),
                    (12, 0),
                ]
                let (type, code) = one(of: codes)
                list.append(
                    TorturePlan.Disturbance(
                        connection: index, toClient: chance(0.5),
                        at: connection.start &+ time(0...(one(of: [Self.second / 10, Self.second, 10 * Self.second]))),
                        truth: chance(0.5) ? .forged : .genuine, type: type, code: code,
                        mtu: UInt16(one(of: [0, 68, 296, 576, 1006, 1280, 1400, 1492]))))
            }
        }
        return list
    }

    /// What a link may carry without taking for ever.
    private func volume(_ link: TorturePlan.Link?) -> Int {
        guard let link else { return 1_000_000 }
        var limit = 2_000_000
        for spec in [link.forward, link.back] {
            if spec.rate > 0, spec.rate < 1_000_000 { limit = min(limit, 60_000) }
            if spec.rate > 0, spec.rate < 10_000_000 { limit = min(limit, 400_000) }
            if spec.loss + spec.corrupt > 0.005 { limit = min(limit, 300_000) }
            if spec.loss + spec.corrupt > 0.02 { limit = min(limit, 60_000) }
            if spec.loss + spec.corrupt > 0.09 { limit = min(limit, 20_000) }
            if spec.mtu < 500 { limit = min(limit, 100_000) }
            if spec.limit < 10 { limit = min(limit, 100_000) }
        }
        return limit
    }

    private mutating func applications(_ connection: inout TorturePlan.Connection, _ limit: Int) {
        var client = application(limit)
        var server = application(limit)
        if chance(0.4) {
            // One way only.
            if chance(0.5) { client.bytes = 0 } else { server.bytes = 0 }
        }
        if client.bytes > 0, chance(0.15) {
            // A request and its answer.
            server.speaksAfter = number(1...client.bytes)
        }
        if chance(0.1), server.bytes == 0 { client.ending = .closeAtOnce }
        if chance(0.1), client.bytes == 0 { server.ending = .closeAtOnce }
        if chance(0.08) {
            let after = number(0...(client.bytes + server.bytes))
            let ending: TorturePlan.Application.Ending = chance(0.5) ? .abort(after: after) : .lingerZero(after: after)
            if chance(0.5) { client.ending = ending } else { server.ending = ending }
        }
        urgent(&client, &server)
        urgent(&server, &client)
        client.salt = number(0...(TorturePattern.period - 1))
        server.salt = number(0...(TorturePattern.period - 1))
        connection.clientSide = client
        connection.serverSide = server
    }

    private mutating func application(_ limit: Int) -> TorturePlan.Application {
        var application = TorturePlan.Application()
        application.bytes = chance(0.05) ? 0 : size(1...limit)
        switch number(0...4) {
        case 0: application.chunk = 1...1
        case 1: application.chunk = 1...600
        case 2: application.chunk = 1400...1500
        case 3: application.chunk = 65_536...65_536
        default: application.chunk = 1...max(1, application.bytes)
        }
        // At most some thousand writes.
        if application.bytes / application.chunk.upperBound > 4000 {
            application.chunk = 1...(application.bytes / 2000)
        }
        if chance(0.2) {
            application.writePause = time(0...(one(of: [Self.ms / 10, 10 * Self.ms, 700 * Self.ms])))
            let least = application.bytes / 200 + 1
            if application.chunk.upperBound < least { application.chunk = least...least }
        }
        if chance(0.25) {
            application.readPause = time(0...(one(of: [Self.ms, 50 * Self.ms, 2 * Self.second])))
            application.readChunk = max(size(1...65_536), limit / 200 + 1)
        }
        if chance(0.1) { application.readDelay = time(0...(20 * Self.second)) }
        application.noDelay = chance(0.25)
        application.usesCork = chance(0.08)
        application.usesMore = chance(0.08)
        if chance(0.2) { application.quickAck = chance(0.5) }
        if chance(0.15) { application.sendBuffer = Int32(size(2048...500_000)) }
        if chance(0.15) { application.receiveBuffer = Int32(size(1024...500_000)) }
        if chance(0.05) { application.maximumSegment = Int32(number(88...1500)) }
        if chance(0.1) { application.keepIdle = Int32(number(1...10)) }
        if chance(0.03) { application.userTimeout = Int32(number(200...20_000)) }
        if chance(0.1) {
            // Ten minutes at most.
            application.pacingRate = Int32(max(size(2000...10_000_000), application.bytes / 600))
        }
        return application
    }

    /// Urgent bytes of one side; whether they come inline is the other side's choice.
    private mutating func urgent(_ sender: inout TorturePlan.Application, _ receiver: inout TorturePlan.Application) {
        guard sender.bytes > 1, chance(0.1) else { return }
        sender.urgentMarks = Set((0..<number(1...4)).map { _ in number(1...sender.bytes) }).sorted()
        receiver.outOfBandInline = chance(0.5)
    }
}

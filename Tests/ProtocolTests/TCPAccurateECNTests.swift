import Kernel
import Lab
import PluginAPI
import Testing

/// Accurate ECN (RFC 9768): the tables of its handshake, its counters, and what no honest peer would send. What one
/// connection does step by step is in `Tests/Packets/ecn/accecn-*.pkt`.
@Suite struct TCPAccurateECNTests {
    private static let notCapable: UInt8 = 0
    private static let ect1: UInt8 = 1
    private static let ect0: UInt8 = 2
    private static let marked: UInt8 = 3
    private static let sackPermitted: [UInt8] = [2, 4, 5, 180, 4, 2]

    /// What of TCP_INFO is about ECN.
    private struct Info {
        var mode: UInt8
        var optionSeen: UInt8
        var failures: UInt8
        var deliveredMarks: UInt32
        var receivedMarks: UInt32
        var deliveredECT1: UInt32
        var deliveredECT0: UInt32
        var deliveredMarked: UInt32
        var receivedMarked: UInt32

        init(_ socket: Socket) {
            let bytes = socket.getOption(level: 6, name: 11, capacity: 280).value
            func number(_ at: Int) -> UInt32 { (0..<4).reduce(0) { $0 | UInt32(bytes[at + $1]) << UInt32(8 * $1) } }
            mode = bytes[276] & 3
            optionSeen = bytes[276] >> 2 & 3
            failures = bytes[276] >> 4
            deliveredMarks = number(196)
            receivedMarks = number(248)
            deliveredECT1 = number(252)
            deliveredECT0 = number(256)
            deliveredMarked = number(260)
            receivedMarked = number(272)
        }
    }

    private enum Mode { static let off: UInt8 = 0, classic: UInt8 = 1, accurate: UInt8 = 2 }

    private func ladder(_ enable: Int = 3, _ more: [String: String] = [:]) throws -> Ladder {
        try Ladder(more.merging(["ecn.enable": String(enable)]) { $1 })
    }

    /// An accepted connection in Accurate ECN mode, without options.
    private func accepted(_ ladder: Ladder) throws -> Socket {
        let listener = try ladder.listener()
        ladder.inject(.syn, seq: 0, options: Self.sackPermitted, ace: 7)
        #expect(ladder.expectOne([.syn, .ack])?.ace == 0b010)
        ladder.inject(.ack, seq: 1, ack: 1, ace: 0b010)
        return try #require(listener.acceptNext())
    }

    private func option(_ kind: UInt8, _ fields: [UInt32], padding: Int = 0) -> [UInt8] {
        [kind, UInt8(2 + 3 * fields.count + padding)] + fields.flatMap { big($0).dropFirst() }
            + [UInt8](repeating: 0xff, count: padding)
    }

    // MARK: Handshake

    /// Table 2 from the server's side: what is answered to each combination, at each setting.
    @Test(arguments: 0...5, 0...7 as ClosedRange<UInt8>)
    func aServerAnswersAsTheTableSays(enable: Int, request: UInt8) throws {
        for field in 0...3 as ClosedRange<UInt8> {
            let ladder = try ladder(enable)
            let listener = try ladder.listener()
            ladder.inject(.syn, seq: 0, options: Self.sackPermitted, ace: request, tos: field)
            let answer = try #require(ladder.expectOne([.syn, .ack]))
            let isAccurate = enable >= 3 && request != 0 && request != 3
            let isClassic = !isAccurate && enable != 0 && request & 3 == 3
            let expected: UInt8 = isAccurate ? [0b010, 0b011, 0b100, 0b110][Int(field)] : isClassic ? 0b001 : 0
            #expect(answer.ace == expected, "\(enable) \(request) \(field)")
            #expect((answer.option(174) != nil) == isAccurate)
            ladder.inject(.ack, seq: 1, ack: 1, ace: isAccurate ? 0b010 : 0)
            let socket = try #require(listener.acceptNext())
            #expect(Info(socket).mode == (isAccurate ? Mode.accurate : isClassic ? Mode.classic : Mode.off))
            socket.abort()
            ladder.finish()
        }
    }

    /// The same from the client's side: what each answer leads to, and what its ACK tells.
    @Test(arguments: 0...7 as ClosedRange<UInt8>)
    func aClientGoesByTheAnswer(answer: UInt8) throws {
        for field in 0...3 as ClosedRange<UInt8> {
            let ladder = try ladder()
            let socket = try ladder.socket()
            #expect(socket.connect(endpoint("10.0.0.2", Ladder.peerPort)) == 115)
            let syn = try #require(ladder.expectOne(.syn))
            #expect(syn.ace == 7)
            #expect(syn.option(172) == nil && syn.option(174) == nil)
            #expect(syn.tos & 3 == 0)
            ladder.stackPort = syn.sourcePort
            ladder.inject([.syn, .ack], seq: 0, ack: 1, options: Self.sackPermitted, ace: answer, tos: field)
            let ack = try #require(ladder.expectOne(.ack))
            let info = Info(socket)
            switch answer {
            case 0, 7:
                #expect(info.mode == Mode.off)
                #expect(ack.ace == 0 && ack.tos & 3 == 0)
            case 1:
                #expect(info.mode == Mode.classic)
                #expect(ack.ace == 0 && ack.tos & 3 == 0)
            default:
                #expect(info.mode == Mode.accurate)
                #expect(ack.ace == [0b010, 0b011, 0b100, 0b110][Int(field)])
                #expect(info.receivedMarks == (field == Self.marked ? 1 : 0))
                // Our SYN was Not-ECT; anything else has been made of it on the way.
                let isMangled = answer != 0b010 && answer != 0b101
                #expect(info.failures == (isMangled ? 2 : 0))
                #expect(ack.tos & 3 == (isMangled ? Self.notCapable : Self.ect0))
            }
            socket.abort()
            ladder.finish()
        }
    }

    /// Table 4: what a server takes from the ACK of its SYN, ACK.
    @Test(arguments: 0...7 as ClosedRange<UInt8>)
    func aServerReadsTheLastOfTheHandshake(ace: UInt8) throws {
        let ladder = try ladder()
        let listener = try ladder.listener()
        ladder.inject(.syn, seq: 0, options: Self.sackPermitted, ace: 7)
        ladder.expectOne([.syn, .ack])
        ladder.inject(.ack, seq: 1, ack: 1, ace: ace)
        let socket = try #require(listener.acceptNext())
        let info = Info(socket)
        #expect(info.deliveredMarks == (ace == 0b110 ? 1 : 0))
        #expect(info.failures == ([0, 0b011, 0b100, 0b110].contains(ace) ? 2 : 0))
        #expect(socket.write([1]) == 1)
        let sent = try #require(ladder.expectOne([.ack, .psh]))
        #expect(sent.ace == 5)
        #expect(sent.tos & 3 == (info.failures == 0 ? Self.ect0 : Self.notCapable))
        socket.abort()
        ladder.finish()
    }

    @Test func aSynCookieRecallsTheMode() throws {
        for (ace, mode) in [(0b010, Mode.accurate), (0b110, Mode.accurate), (0b001, Mode.off), (0b000, Mode.off)] {
            let ladder = try ladder(3, ["syncache.cachelimit": "0"])
            let listener = try ladder.listener()
            ladder.inject(.syn, seq: 0, options: Self.sackPermitted, ace: 7)
            #expect(ladder.expectOne([.syn, .ack])?.ace == 0b010)
            ladder.inject(.ack, seq: 1, ack: 1, ace: UInt8(ace))
            let socket = try #require(listener.acceptNext())
            #expect(Info(socket).mode == mode, "\(ace)")
            socket.abort()
            ladder.finish()
        }
    }

    @Test func aFastOpenWithoutAnAnswerGivesUpOptionAndBits() throws {
        let ladder = try ladder()
        let listener = try ladder.listener()
        #expect(listener.setOption(level: 6, name: 23, [5, 0, 0, 0]) == 0)
        ladder.inject(.syn, seq: 0, options: Self.sackPermitted + [34, 2], ace: 7)
        let cookie = try #require(ladder.expectOne([.syn, .ack])?.option(34))
        ladder.inject(.rst, seq: 1)
        ladder.stackISN = nil
        ladder.peerPort = 4001
        let options = Self.sackPermitted + [34, UInt8(cookie.count + 2)] + cookie
        ladder.inject(.syn, seq: 0, length: 10, options: options, ace: 7, tos: Self.ect0)
        let first = try #require(ladder.expectOne([.syn, .ack]))
        #expect(first.ace == 0b100 && first.option(174)?.count == 9)
        ladder.run(1100)
        let second = try #require(ladder.expectOne([.syn, .ack]))
        #expect(second.ace == 0b100 && second.option(174) == nil)
        ladder.run(2100)
        #expect(ladder.expectOne([.syn, .ack])?.ace == 0)
        let socket = try #require(listener.acceptNext())
        ladder.inject(.ack, seq: 11, ack: 1, ace: 0b010)
        #expect(socket.write([1]) == 1)
        #expect(ladder.takeAll().allSatisfy { $0.tos & 3 == 0 })
        socket.abort()
        ladder.finish()
    }

    // MARK: Counters

    /// RFC 9768, 3.2.3: whole fields of an option of any length are read, in both orders.
    @Test(arguments: [172, 174] as [UInt8], 0...12)
    func optionsOfAnyLengthAreRead(kind: UInt8, length: Int) throws {
        let ladder = try ladder()
        let socket = try accepted(ladder)
        #expect(socket.write([UInt8](repeating: 7, count: 1000)) == 1000)
        _ = ladder.takeAll()
        let fields = [UInt32(701), 200, 101].prefix(length / 3)
        ladder.inject(
            .ack, seq: 1, ack: 1001, options: option(kind, Array(fields), padding: length - 3 * fields.count), ace: 6)
        let info = Info(socket)
        let outer: (UInt32, UInt32) = (fields.count > 0 ? 700 : 0, fields.count > 2 ? 100 : 0)
        #expect((info.deliveredECT0, info.deliveredECT1) == (kind == 172 ? outer : (outer.1, outer.0)))
        #expect(info.deliveredMarked == (fields.count > 1 ? 200 : 0))
        #expect(info.optionSeen == (fields.isEmpty ? 1 : 2))
        #expect(info.deliveredMarks == 1)
        socket.abort()
        ladder.finish()
    }

    @Test func byteCountersAreFollowedAcrossTheirWrap() throws {
        let ladder = try ladder()
        let socket = try accepted(ladder)
        var acknowledged = 1
        for (value, total) in [(0x7f_ffff, 0x7f_fffe), (0xff_fff0, 0xff_ffef), (0x10, 0x100_000f)] as [(UInt32, UInt32)] {
            #expect(socket.write([1]) == 1)
            acknowledged += 1
            _ = ladder.takeAll()
            ladder.inject(.ack, seq: 1, ack: acknowledged, options: option(172, [value, 0, 1]), ace: 5)
            #expect(Info(socket).deliveredECT0 == total)
        }
        // A step back is none.
        #expect(socket.write([1]) == 1)
        ladder.inject(.ack, seq: 1, ack: acknowledged + 1, options: option(172, [0x0f, 0, 1]), ace: 5)
        #expect(Info(socket).deliveredECT0 == 0x100_000f)
        socket.abort()
        ladder.finish()
    }

    @Test func theFirstCounterThatIsZeroIsNotBelieved() throws {
        let ladder = try ladder()
        let socket = try accepted(ladder)
        #expect(socket.write([1]) == 1)
        ladder.inject(.ack, seq: 1, ack: 2, ace: 0)
        #expect(Info(socket).failures == 2 && Info(socket).deliveredMarks == 0)
        _ = ladder.takeAll()
        #expect(socket.write([1]) == 1)
        #expect(ladder.takeAll().last?.tos == 0)
        socket.abort()
        ladder.finish()
    }

    @Test func aLateSecondCopyOfTheHandshakesLastIsNoCounter() throws {
        let ladder = try ladder()
        ladder.peerTimestamp = 100
        let socket = try accepted(ladder)
        ladder.peerTimestamp = 200
        ladder.inject(.ack, seq: 1, ack: 1, ace: 0b010)
        #expect(Info(socket).deliveredMarks == 0)
        ladder.peerTimestamp = 300
        ladder.inject(.ack, seq: 1, ack: 1, ace: 0b111)
        #expect(Info(socket).deliveredMarks == 2)
        socket.abort()
        ladder.finish()
    }

    // MARK: Whole stacks

    /// `count` bytes from one stack to another over `link`; what both say of it when they are through.
    private func transfer(_ link: String, option: Int, count: Int = 2_000_000) throws -> (client: Info, server: Info) {
        let network = VirtualNetwork(seed: 5)
        let a = try network.addKernel("a")
        let b = try network.addKernel("b")
        for kernel in [a, b] {
            try kernel.tunables.set("net.inet.tcp.ecn.enable", "3")
            try kernel.tunables.set("net.inet.tcp.ecn.option", String(option))
        }
        try network.link(a, "10.0.0.1/24", b, "10.0.0.2/24", LinkSpec(parsing: link))
        let listener = try b.sockets.create(domain: 2, type: 1, protocol: 6)
        #expect(listener.bind(endpoint("0.0.0.0", 80)) == 0)
        #expect(listener.listen(5) == 0)
        let client = try a.sockets.create(domain: 2, type: 1, protocol: 6)
        #expect(client.connect(endpoint("10.0.0.2", 80)) == 115)
        var accepted: Socket?
        network.run(limit: 60_000_000_000) {
            if accepted == nil { accepted = listener.acceptNext() }
            return accepted != nil
        }
        let server = try #require(accepted)
        var (sent, received, isRight) = (0, 0, true)
        let start = network.clock.now
        while received < count, network.clock.now - start < 600_000_000_000 {
            while sent < count, client.sendSpace > 0 {
                let written = client.write(pattern(sent..<min(count, sent + client.sendSpace)))
                guard written > 0 else { break }
                sent += written
            }
            while let bytes = server.read(max: 65536), !bytes.isEmpty {
                if bytes != pattern(received..<(received + bytes.count)) { isRight = false }
                received += bytes.count
            }
            network.run(for: 2_000_000)
        }
        #expect(isRight && received == count)
        network.run(for: 2_000_000_000)
        let result = (Info(client), Info(server))
        client.abort()
        server.abort()
        listener.close()
        network.shutdown()
        #expect(a.mbufs.isIdle && b.mbufs.isIdle)
        return result
    }

    @Test(arguments: ["rate 100mbit delay 5ms", "rate 20mbit delay 20ms loss 2% reorder 5%"], [0, 1, 2, 3])
    func whereNothingIsMarkedNothingIsTold(link: String, option: Int) throws {
        let (client, server) = try transfer(link, option: option)
        for info in [client, server] {
            #expect(info.mode == Mode.accurate)
            #expect(info.failures == 0 || link.contains("loss"))
            #expect(info.receivedMarks == 0)
            // With acknowledgments lost and no option to tell, the count may have wrapped.
            #expect(info.deliveredMarks == 0 || (option < 2 && link.contains("loss")))
            #expect(info.deliveredMarked == 0 && info.deliveredECT1 == 0)
            #expect((info.optionSeen == 0) == (option == 0))
        }
        if option >= 2 { #expect(client.deliveredECT0 >= 2_000_000) }
    }

    @Test(
        arguments: ["rate 50mbit delay 5ms mark 2%", "rate 50mbit delay 5ms mark 20%", "delay 2ms mark 5% loss 1%"],
        [0, 1, 2])
    func everyMarkIsToldAndUnderstood(link: String, option: Int) throws {
        let (client, server) = try transfer(link, option: option)
        #expect(client.mode == Mode.accurate && server.mode == Mode.accurate)
        #expect(server.receivedMarks > 20)
        #expect(client.receivedMarks > 0)
        if option == 0, link.contains("loss") {
            // Rather too many, by whole turns of the counter, than too few.
            #expect(client.deliveredMarks >= server.receivedMarks)
            #expect((client.deliveredMarks - server.receivedMarks) % 8 == 0)
        } else {
            #expect(client.deliveredMarks == server.receivedMarks)
        }
        #expect(client.deliveredMarked == (option == 0 ? 0 : server.receivedMarked))
    }

    // MARK: Nonsense

    @Test(arguments: 1...6 as ClosedRange<UInt64>)
    func randomBitsAndOptionsDoNoHarm(seed: UInt64) throws {
        var random = TCPHostileTests.Generator(state: seed)
        let ladder = try ladder(3, ["ecn.option": String(seed % 4), "ecn.fallback": String(seed % 2)])
        let listener = try ladder.listener()
        for round in 0..<60 {
            ladder.stackISN = nil
            ladder.peerPort = UInt16(5000 + round)
            ladder.inject(
                .syn, seq: 0, options: Self.sackPermitted, ace: UInt8.random(in: 0...7, using: &random),
                tos: UInt8.random(in: 0...3, using: &random))
            ladder.inject(.ack, seq: 1, ack: 1, ace: UInt8.random(in: 0...7, using: &random))
            guard let socket = listener.acceptNext() else { continue }
            var next = 1
            for _ in 0..<40 {
                _ = socket.write([UInt8](repeating: 1, count: Int.random(in: 1...20_000, using: &random)))
                var options: [UInt8] = []
                while options.count < 12, Bool.random(using: &random) {
                    let length = Int.random(in: 0...16, using: &random)
                    options += [[172, 174, 5].randomElement(using: &random)!, UInt8(truncatingIfNeeded: length)]
                    options += (0..<max(0, length - 2)).map { _ in UInt8.random(in: 0...255, using: &random) }
                }
                let length = Int.random(in: 0...400, using: &random)
                let sent = ladder.takeAll().map { ladder.sequence(of: $0) + $0.payload.count }.max() ?? 1
                ladder.inject(
                    .ack, seq: next + [0, 0, 500, -200].randomElement(using: &random)!,
                    ack: Int.random(in: max(1, sent - 5000)...max(1, sent), using: &random), length: length,
                    options: Array(options.prefix(36)), ace: UInt8.random(in: 0...7, using: &random),
                    tos: UInt8.random(in: 0...3, using: &random))
                while let bytes = socket.read(max: 65536), !bytes.isEmpty { next += bytes.count }
                _ = Info(socket)
                if Int.random(in: 0..<10, using: &random) == 0 { ladder.run(300) }
            }
            for segment in ladder.takeAll() {
                // What is sent fits the path and can be read.
                #expect(40 + segment.options.count + segment.payload.count <= 1500)
                if let counters = segment.option(174) { #expect(counters.count % 3 == 0 && counters.count <= 9) }
            }
            socket.abort()
            _ = ladder.takeAll()
        }
        listener.close()
        ladder.finish()
    }

    // MARK: From one connection to the next

    /// RFC 9768, 3.1.4.1. The third connection in a row that is answered only without the request is the last to ask.
    @Test func aDestinationThatDropsRequestsIsNotAskedForAnHour() throws {
        let ladder = try ladder()
        func open(asks: Bool, isAnswered: Bool) throws {
            let socket = try ladder.socket()
            ladder.stackISN = nil
            #expect(socket.connect(endpoint("10.0.0.2", Ladder.peerPort)) == 115)
            let syn = try #require(ladder.expectOne(.syn))
            #expect(syn.ace == (asks ? 7 : 0))
            ladder.stackPort = syn.sourcePort
            if asks, !isAnswered {
                ladder.run(1000)
                #expect(ladder.expectOne(.syn)?.ace == 7)
                ladder.run(2000)
                #expect(ladder.expectOne(.syn)?.ace == 0)
            }
            ladder.inject([.syn, .ack], seq: 0, ack: 1, options: Self.sackPermitted, ace: asks && isAnswered ? 2 : 0)
            #expect(ladder.expectOne(.ack) != nil)
            socket.abort()
            _ = ladder.takeAll()
        }
        try open(asks: true, isAnswered: false)
        try open(asks: true, isAnswered: false)
        // One answer, and it all begins again.
        try open(asks: true, isAnswered: true)
        for _ in 0..<3 { try open(asks: true, isAnswered: false) }
        try open(asks: false, isAnswered: false)
        ladder.run(3_590_000)
        try open(asks: false, isAnswered: false)
        ladder.run(10_000)
        try open(asks: true, isAnswered: true)
        ladder.finish()
    }

    // MARK: What the handshake says by the way

    /// Every segment carries the counter, that of a connection that is not established yet as well.
    @Test func aChallengeDuringTheHandshakeCarriesTheCounter() throws {
        let ladder = try ladder()
        _ = try ladder.listener()
        ladder.inject(.syn, seq: 0, options: Self.sackPermitted, ace: 7)
        ladder.expectOne([.syn, .ack])
        ladder.inject(.rst, seq: 100)
        #expect(ladder.expectOne(.ack)?.ace == 5)
        ladder.finish()
    }

    // MARK: Segmentation

    /// The peer's marks put CWR into our number: each segment of a large packet carries it, whoever cuts that.
    @Test func eachSegmentOfALargePacketCarriesTheWholeNumber() throws {
        let ladder = try ladder()
        let socket = try accepted(ladder)
        ladder.inject(.ack, seq: 1, ack: 1, length: 10, ace: 5, tos: 3)
        #expect(ladder.expectOne(.ack)?.ace == 6)
        #expect(socket.write(pattern(1..<6001)) == 6000)
        let sent = ladder.takeAll()
        #expect(sent.count == 5)
        #expect(sent.allSatisfy { $0.ace == 6 })
        socket.abort()
        _ = ladder.takeAll()
        ladder.finish()
    }

    /// RFC 3168, 6.1.2: CWR is on the first segment of new data alone.
    @Test func onlyTheFirstSegmentOfALargePacketSaysThatTheWindowIsReduced() throws {
        let ladder = try ladder(1)
        let listener = try ladder.listener()
        ladder.inject(.syn, seq: 0, options: Self.sackPermitted, ace: 3)
        ladder.expectOne([.syn, .ack])
        ladder.inject(.ack, seq: 1, ack: 1)
        let socket = try #require(listener.acceptNext())
        #expect(socket.write(pattern(1..<14_601)) == 14_600)
        #expect(ladder.takeAll().count == 10)
        ladder.inject(.ack, seq: 1, ack: 14_601, ace: 1)
        #expect(socket.write(pattern(14_601..<20_441)) == 5840)
        let sent = ladder.takeAll()
        #expect(sent.count > 1)
        #expect(sent.map { $0.ace & 2 } == [2] + [UInt8](repeating: 0, count: sent.count - 1))
        socket.abort()
        _ = ladder.takeAll()
        ladder.finish()
    }
}

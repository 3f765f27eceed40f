import Kernel
import Lab
import PluginAPI
import Testing

@Suite struct TCPHandshakeTests {
    @Test func aConnectionIsOpenedActivelyInThreeSteps() throws {
        let ladder = try Ladder()
        let socket = try ladder.socket()
        #expect(socket.connect(endpoint("10.0.0.2", 4000)) == 115)
        let syn = try #require(ladder.expect(.syn, seq: 0))
        #expect(syn.destinationPort == 4000)
        #expect(syn.option(2) == [5, 180], "MSS 1460")
        #expect(syn.option(3) != nil, "window scale")
        #expect(syn.timestamp?.echo == 0)
        ladder.stackPort = syn.sourcePort
        ladder.inject([.syn, .ack], seq: 0, ack: 1, options: Ladder.synOptions())
        let ack = try #require(ladder.expect(.ack, seq: 1, ack: 1))
        // The peer did not offer them, so they are not used.
        #expect(ack.options.isEmpty)
        #expect(socket.isConnected)
        #expect(socket.remoteAddress.port == 4000)
        ladder.finish()
    }

    @Test func aListenerAnswersASynAndHandsOverTheConnection() throws {
        let ladder = try Ladder()
        let listener = try ladder.listener()
        ladder.inject(.syn, seq: 0, options: Ladder.synOptions(scale: 7))
        let answer = try #require(ladder.expect([.syn, .ack], seq: 0, ack: 1))
        #expect(answer.option(3) != nil)
        #expect(listener.acceptNext() == nil)
        ladder.inject(.ack, seq: 1, ack: 1)
        let socket = try #require(listener.acceptNext())
        #expect(socket.isConnected)
        #expect(socket.localAddress.port == 80)
        #expect(socket.remoteAddress.port == 4000)
        ladder.finish()
    }

    @Test func dataWithTheLastStepOfTheHandshakeAreTaken() throws {
        let ladder = try Ladder()
        let listener = try ladder.listener()
        ladder.inject(.syn, seq: 0, options: Ladder.synOptions())
        ladder.expect([.syn, .ack], seq: 0, ack: 1)
        ladder.inject([.ack, .psh], seq: 1, ack: 1, length: 10)
        ladder.expect(.ack, seq: 1, ack: 11)
        let socket = try #require(listener.acceptNext())
        #expect(socket.read() == pattern(1..<11))
        ladder.finish()
    }

    @Test func aSynIsRepeatedWithDoublingIntervalsUntilTheTimeIsUp() throws {
        let ladder = try Ladder()
        let socket = try ladder.socket()
        #expect(socket.connect(endpoint("10.0.0.2", 4000)) == 115)
        let start = ladder.clock
        var times: [UInt64] = []
        ladder.expect(.syn, seq: 0)
        for _ in 0..<8 {
            ladder.run(60_001)
            for syn in ladder.takeAll() {
                #expect(syn.flags == .syn)
                times.append((syn.time - start) / 1_000_000_000)
            }
        }
        #expect(times == [1, 3, 7, 15, 31, 63, 123])
        #expect(socket.isDisconnected)
        #expect(socket.takeError() == 110)
        ladder.finish()
    }

    @Test func aRefusedConnectReportsIt() throws {
        let ladder = try Ladder()
        let socket = try ladder.socket()
        #expect(socket.connect(endpoint("10.0.0.2", 4000)) == 115)
        let syn = try #require(ladder.expect(.syn, seq: 0))
        ladder.stackPort = syn.sourcePort
        ladder.inject([.rst, .ack], seq: 0, ack: 5)
        #expect(socket.isConnecting, "a reset for something never sent is none")
        ladder.inject([.rst, .ack], seq: 0, ack: 1)
        #expect(socket.takeError() == 111)
        ladder.expectNothing()
        ladder.finish()
    }

    @Test func aSynForAClosedPortIsReset() throws {
        let ladder = try Ladder()
        ladder.stackISN = 0
        ladder.inject(.syn, seq: 7)
        ladder.expect([.rst, .ack], seq: 0, ack: 8)
        ladder.inject(.ack, seq: 7, ack: 1234, length: 3)
        ladder.expect(.rst, seq: 1234)
        ladder.inject(.rst, seq: 7)
        ladder.expectNothing()
        ladder.finish()
    }

    @Test func bothSidesMayOpenAtOnce() throws {
        let ladder = try Ladder()
        let socket = try ladder.socket()
        #expect(socket.connect(endpoint("10.0.0.2", 4000)) == 115)
        let syn = try #require(ladder.expect(.syn, seq: 0))
        ladder.stackPort = syn.sourcePort
        ladder.inject(.syn, seq: 0, options: Ladder.synOptions())
        ladder.expect([.syn, .ack], seq: 0, ack: 1)
        ladder.inject([.syn, .ack], seq: 0, ack: 1, options: Ladder.synOptions())
        #expect(socket.isConnected)
        _ = ladder.takeAll()
        ladder.inject(.ack, seq: 1, ack: 1, length: 5)
        ladder.expect(.ack, seq: 1, ack: 6)
        ladder.finish()
    }

    @Test func aSocketMayConnectToItself() throws {
        let ladder = try Ladder()
        let socket = try ladder.socket()
        #expect(socket.bind(endpoint("127.0.0.1", 5000)) == 0)
        #expect(socket.connect(endpoint("127.0.0.1", 5000)) == 115)
        ladder.run(100)
        #expect(socket.isConnected)
        #expect(socket.write([1, 2, 3]) == 3)
        ladder.run(100)
        #expect(socket.read() == [1, 2, 3])
        ladder.finish()
    }

    @Test func aHalfOpenConnectionIsForgottenAfterARst() throws {
        let ladder = try Ladder()
        let listener = try ladder.listener()
        ladder.inject(.syn, seq: 0, options: Ladder.synOptions())
        ladder.expect([.syn, .ack], seq: 0, ack: 1)
        ladder.inject(.rst, seq: 1)
        ladder.inject(.ack, seq: 1, ack: 1)
        ladder.expect(.rst, seq: 1)
        #expect(listener.acceptNext() == nil)
        ladder.finish()
    }

    @Test func theAnswerToASynIsRepeatedAndGivenUp() throws {
        let ladder = try Ladder()
        _ = try ladder.listener()
        ladder.inject(.syn, seq: 0, options: Ladder.synOptions())
        ladder.expect([.syn, .ack], seq: 0, ack: 1)
        ladder.run(60_000)
        let answers = ladder.takeAll().map(\.flags)
        #expect(answers == [[.syn, .ack], [.syn, .ack], [.syn, .ack]])
        #expect(ladder.counter("sc_entries") == 0)
        ladder.finish()
    }

    @Test func anAckThatAnswersNothingIsReset() throws {
        let ladder = try Ladder()
        _ = try ladder.listener()
        ladder.stackISN = 0
        ladder.inject(.ack, seq: 1, ack: 77)
        ladder.expect(.rst, seq: 77)
        ladder.finish()
    }

    @Test func aFullAcceptQueueMakesSynsWait() throws {
        let ladder = try Ladder()
        let listener = try ladder.listener(backlog: 0)
        for port in UInt16(4000)..<4003 {
            ladder.stackISN = nil
            ladder.inject(.syn, seq: 0, options: Ladder.synOptions(), port: port)
            if port == 4000 {
                ladder.expect([.syn, .ack], seq: 0, ack: 1)
                ladder.inject(.ack, seq: 1, ack: 1, port: port)
            }
        }
        ladder.expectNothing()
        #expect(listener.acceptNext() != nil)
        ladder.stackISN = nil
        ladder.inject(.syn, seq: 0, options: Ladder.synOptions(), port: 4001)
        ladder.expect([.syn, .ack], seq: 0, ack: 1)
        ladder.finish()
    }

    /// RFC 9293, MUST-46 and MUST-57.
    @Test func nobodyOpensAConnectionToEverybody() throws {
        let ladder = try Ladder()
        for address in ["255.255.255.255", "224.0.0.1", "10.0.0.255"] {
            let socket = try ladder.socket()
            let status = socket.connect(endpoint(address, 4000))
            #expect(status != 0 && status != 115, "\(address)")
        }
        ladder.expectNothing()
        ladder.finish()
    }

    /// RFC 9293, MUST-41 and MUST-42: a listener does not disturb a connection of its port, nor a connection a listener.
    @Test func aListenerAndAConnectionShareAPort() throws {
        let ladder = try Ladder()
        let listener = try ladder.listener()
        let first = try ladder.accept(listener)
        listener.close()
        let again = try ladder.socket()
        #expect(again.setOption(level: 1, name: 2, [1, 0, 0, 0]) == 0)
        #expect(again.bind(endpoint("0.0.0.0", 80)) == 0)
        #expect(again.listen(5) == 0)
        ladder.inject([.ack, .psh], seq: 1, ack: 1, length: 5)
        ladder.expect(.ack, seq: 1, ack: 6)
        #expect(first.read() == pattern(1..<6))
        ladder.peerPort = 4001
        let second = try ladder.accept(again)
        #expect(second.isConnected && first.isConnected)
        ladder.finish()
    }

    @Test func aSynFloodKeepsMemoryBoundedAndHonestClientsGetIn() throws {
        let ladder = try Ladder()
        let listener = try ladder.listener(backlog: 8)
        for index in 0..<2000 {
            ladder.inject(
                .syn, seq: 0, options: Ladder.synOptions(), from: [10, 0, 0, UInt8(3 + index % 200)],
                port: UInt16(1000 + index))
        }
        #expect(ladder.counter("sc_entries") <= 8)
        _ = ladder.takeAll()
        ladder.stackISN = nil
        ladder.inject(.syn, seq: 0, options: Ladder.synOptions(mss: 1460, scale: 7), port: 9999)
        let answer = try #require(ladder.expect([.syn, .ack], seq: 0, ack: 1))
        #expect(answer.option(3) == nil, "a cookie has no room for it")
        ladder.inject(.ack, seq: 1, ack: 2, port: 9999)
        #expect(listener.acceptNext() == nil, "a guessed cookie")
        _ = ladder.takeAll()
        ladder.inject(.ack, seq: 1, ack: 1, length: 4, port: 9999)
        let socket = try #require(listener.acceptNext())
        #expect(socket.read() == pattern(1..<5))
        ladder.run(60_000)
        #expect(ladder.counter("sc_entries") == 0)
        ladder.finish()
    }

    @Test func segmentsWithBadHeadersAreCountedAndDropped() throws {
        let ladder = try Ladder()
        _ = try ladder.listener()
        ladder.send(ip: 6, payload: [1, 2, 3])
        ladder.send(tcp: [UInt8](repeating: 0, count: 20))
        var tooLong = [UInt8](repeating: 0, count: 20)
        tooLong[12] = 0xf0
        ladder.send(tcp: tooLong)
        ladder.send(ip: 6, payload: [15, 160, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 1, 9, 9, 0, 0])
        ladder.settle()
        ladder.expectNothing()
        #expect(ladder.counter("rcvshort") == 1)
        #expect(ladder.counter("rcvbadoff") == 2)
        #expect(ladder.counter("rcvbadsum") == 1)
        ladder.finish()
    }

    @Test func brokenOptionsAreSurvived() throws {
        let ladder = try Ladder()
        _ = try ladder.listener()
        let lists: [[UInt8]] = [
            [2], [2, 0, 0, 0], [2, 1, 1, 1], [2, 40, 1, 1], [254, 4, 1, 1], [8, 10, 0, 0], [3, 3, 200, 0],
            [0, 2, 4, 5],
            [1, 1, 1, 2, 4, 5, 180, 0],
        ]
        for (index, options) in lists.enumerated() {
            ladder.stackISN = nil
            ladder.inject(.syn, seq: 0, options: options, port: UInt16(6000 + index))
            ladder.expect([.syn, .ack], seq: 0, ack: 1)
        }
        ladder.finish()
    }
}

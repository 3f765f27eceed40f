import Kernel
import Lab
import PluginAPI
import Testing

@Suite struct TCPCloseTests {
    private func state(_ socket: Socket) -> String {
        let text = socket.describe()
        guard let start = text.range(of: "\"state\":\"") else { return text }
        return String(text[start.upperBound...].prefix { $0 != "\"" })
    }

    @Test func aHalfClosedConnectionGoesOnReceiving() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(socket.write([1, 2]) == 2)
        #expect(socket.shutdown(1) == 0)
        ladder.expect([.ack, .psh], seq: 1, length: 2)
        ladder.expect([.fin, .ack], seq: 3, ack: 1)
        #expect(state(socket) == "FIN-WAIT-1")
        ladder.inject(.ack, seq: 1, ack: 4)
        #expect(state(socket) == "FIN-WAIT-2")
        ladder.inject(.ack, seq: 1, ack: 4, length: 100)
        ladder.expect(.ack, seq: 4, ack: 101)
        #expect(socket.read() == pattern(1..<101))
        ladder.inject([.fin, .ack], seq: 101, ack: 4)
        ladder.expect(.ack, seq: 4, ack: 102)
        #expect(socket.atEndOfStream)
        #expect(ladder.counter("timewait") == 1)
        ladder.finish()
    }

    @Test func thePeerMayCloseFirst() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        ladder.inject([.fin, .ack], seq: 1, ack: 1)
        ladder.expect(.ack, seq: 1, ack: 2)
        #expect(socket.atEndOfStream)
        #expect(state(socket) == "CLOSE-WAIT")
        #expect(socket.write([9]) == 1)
        ladder.expect([.ack, .psh], seq: 1, ack: 2, length: 1)
        socket.close()
        ladder.expect([.fin, .ack], seq: 2, ack: 2)
        ladder.inject(.ack, seq: 2, ack: 3)
        ladder.expectNothing()
        #expect(ladder.counter("timewait") == 0)
        #expect(ladder.connectionSockets == 0)
        ladder.finish()
    }

    @Test func bothSidesMayCloseAtOnce() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(socket.shutdown(1) == 0)
        ladder.expect([.fin, .ack], seq: 1, ack: 1)
        ladder.inject([.fin, .ack], seq: 1, ack: 1)
        ladder.expect(.ack, seq: 2, ack: 2)
        #expect(state(socket) == "CLOSING")
        ladder.inject(.ack, seq: 2, ack: 2)
        ladder.expectNothing()
        #expect(ladder.counter("timewait") == 1)
        ladder.finish()
    }

    @Test func timeWaitAnswersALostLastAckAndEnds() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        socket.close()
        ladder.expect([.fin, .ack], seq: 1, ack: 1)
        ladder.inject([.fin, .ack], seq: 1, ack: 2)
        ladder.expect(.ack, seq: 2, ack: 2)
        ladder.run(50_000)
        ladder.inject([.fin, .ack], seq: 1, ack: 2)
        ladder.expect(.ack, seq: 2, ack: 2)
        ladder.inject(.rst, seq: 2)
        #expect(ladder.counter("timewait") == 1, "RFC 1337")
        ladder.run(59_999)
        #expect(ladder.counter("timewait") == 1)
        ladder.run(2)
        #expect(ladder.counter("timewait") == 0)
        ladder.inject(.ack, seq: 2, ack: 2)
        ladder.expect(.rst, seq: 2)
        ladder.finish()
    }

    @Test func aNewerSynReopensATupleInTimeWait() throws {
        let ladder = try Ladder()
        let listener = try ladder.listener()
        let socket = try ladder.accept(listener)
        let first = ladder.stackISN!
        socket.close()
        ladder.expect([.fin, .ack], seq: 1, ack: 1)
        ladder.inject([.fin, .ack], seq: 1, ack: 2)
        ladder.expect(.ack, seq: 2, ack: 2)
        ladder.stackISN = nil
        ladder.peerISN &+= 1_000_000
        ladder.inject(.syn, seq: 0, options: Ladder.synOptions())
        ladder.expect([.syn, .ack], seq: 0, ack: 1)
        #expect(Int32(bitPattern: ladder.stackISN! &- first) > 0)
        ladder.inject(.ack, seq: 1, ack: 1)
        #expect(listener.acceptNext() != nil)
        ladder.finish()
    }

    @Test func anOlderSynInTimeWaitIsAcknowledgedOnly() throws {
        let ladder = try Ladder()
        let listener = try ladder.listener()
        let socket = try ladder.accept(listener)
        socket.close()
        ladder.expect([.fin, .ack], seq: 1, ack: 1)
        ladder.inject([.fin, .ack], seq: 1, ack: 2)
        ladder.expect(.ack, seq: 2, ack: 2)
        ladder.inject(.syn, seq: -100)
        ladder.expect(.ack, seq: 2, ack: 2)
        ladder.finish()
    }

    // MARK: Resets

    @Test func aResetAtTheRightNumberEndsTheConnection() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        ladder.inject(.rst, seq: 100)
        ladder.expect(.ack, seq: 1, ack: 1)
        #expect(socket.isConnected, "a challenge, RFC 5961")
        ladder.inject(.rst, seq: 1_000_000)
        ladder.expectNothing()
        ladder.inject(.rst, seq: 1)
        #expect(socket.isDisconnected)
        #expect(socket.takeError() == 104)
        ladder.expectNothing()
        ladder.finish()
    }

    @Test func aSynInAConnectionIsChallengedAtALimitedRate() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        for _ in 0..<50 { ladder.inject(.syn, seq: 500) }
        let answers = ladder.takeAll()
        #expect(answers.count == 5)
        #expect(answers.map(\.flags) == Array(repeating: .ack, count: 5))
        #expect(socket.isConnected)
        ladder.run(1000)
        ladder.inject(.syn, seq: 500)
        ladder.expect(.ack, seq: 1, ack: 1)
        ladder.finish()
    }

    @Test func acknowledgmentsOutsideTheWindowAreChallenged() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        ladder.inject(.ack, seq: 1, ack: 500, length: 10)
        ladder.expect(.ack, seq: 1, ack: 1)
        ladder.inject(.ack, seq: 1, ack: -1_000_000, length: 10)
        ladder.expect(.ack, seq: 1, ack: 1)
        #expect(socket.read() == nil)
        ladder.finish()
    }

    @Test func abortSendsAReset() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        socket.abort()
        ladder.expect([.rst, .ack], seq: 1, ack: 1)
        ladder.inject(.ack, seq: 1, ack: 1)
        ladder.expect(.rst, seq: 1)
        ladder.finish()
    }

    @Test func dataForAClosedSocketAreAnsweredWithAReset() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        socket.close()
        ladder.expect([.fin, .ack], seq: 1, ack: 1)
        ladder.inject(.ack, seq: 1, ack: 2, length: 10)
        ladder.expect(.rst, seq: 2)
        #expect(ladder.connectionSockets == 0)
        ladder.finish()
    }

    // MARK: Connections that nobody waits for

    @Test func anOrphanDoesNotWaitForAFinForEver() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        socket.close()
        ladder.expect([.fin, .ack], seq: 1, ack: 1)
        ladder.inject(.ack, seq: 1, ack: 2)
        ladder.run(59_999)
        #expect(ladder.connectionSockets == 1)
        ladder.run(2)
        #expect(ladder.connectionSockets == 0)
        ladder.finish()
    }

    @Test func anOrphanWithoutAnAnswerIsGivenUp() throws {
        let ladder = try Ladder(["orphan_retries": "2"])
        let socket = try ladder.accept()
        #expect(socket.write([1]) == 1)
        socket.close()
        ladder.run(10_000)
        #expect(ladder.connectionSockets == 0)
        ladder.finish()
    }

    @Test func whatWasWrittenBeforeCloseStillGoesOut() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(window: 1000)
        #expect(socket.write(pattern(1..<3001)) == 3000)
        socket.close()
        ladder.expect(.ack, seq: 1, length: 1000)
        ladder.inject(.ack, seq: 1, ack: 1001, window: 4000)
        ladder.expect(.ack, seq: 1001, length: 1460)
        let last = try #require(ladder.expect([.ack, .psh, .fin], seq: 2461, length: 540))
        #expect(last.payload == pattern(2461..<3001))
        ladder.finish()
    }

    // MARK: Keep-alive

    @Test func keepAliveProbesAnIdlePeerAndEndsADeadConnection() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(socket.setOption(level: 6, name: 4, [10, 0, 0, 0]) == 0)
        #expect(socket.setOption(level: 6, name: 5, [2, 0, 0, 0]) == 0)
        #expect(socket.setOption(level: 6, name: 6, [3, 0, 0, 0]) == 0)
        ladder.run(60_000)
        ladder.expectNothing()
        #expect(socket.setOption(level: 1, name: 9, [1, 0, 0, 0]) == 0)
        ladder.expect(.ack, seq: 0, ack: 1)
        ladder.inject(.ack, seq: 1, ack: 1)
        ladder.run(9_999)
        ladder.expectNothing()
        ladder.run(1)
        ladder.expect(.ack, seq: 0, ack: 1)
        ladder.run(2000)
        ladder.expect(.ack, seq: 0, ack: 1)
        ladder.run(2000)
        ladder.expect(.ack, seq: 0, ack: 1)
        ladder.run(2000)
        ladder.expect([.rst, .ack], seq: 1, ack: 1)
        #expect(socket.takeError() == 110)
        ladder.finish()
    }

    @Test func aKeepAliveProbeIsAnswered() throws {
        let ladder = try Ladder()
        _ = try ladder.accept()
        ladder.inject(.ack, seq: 0, ack: 1)
        ladder.expect(.ack, seq: 1, ack: 1)
        ladder.finish()
    }
}

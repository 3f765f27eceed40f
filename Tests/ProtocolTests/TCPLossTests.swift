import Kernel
import Lab
import PluginAPI
import Testing

@Suite struct TCPLossTests {
    @Test func theRetransmissionTimerBacksOff() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(socket.write([1, 2, 3]) == 3)
        ladder.expect([.ack, .psh], seq: 1, length: 3)
        let start = ladder.clock
        ladder.run(7000)
        let times = ladder.takeAll().map { ($0.time - start) / 1_000_000 }
        // The round trip of the handshake took no time, so the minimum of 200 ms holds.
        #expect(times == [200, 600, 1400, 3000, 6200])
        ladder.inject(.ack, seq: 1, ack: 4)
        ladder.run(60_000)
        ladder.expectNothing()
        ladder.finish()
    }

    @Test func aPeerThatNeverAnswersIsGivenUpAfterTheLastRetry() throws {
        let ladder = try Ladder(["retries": "3"])
        let socket = try ladder.accept()
        #expect(socket.write([1]) == 1)
        ladder.run(10_000)
        #expect(socket.takeError() == 110)
        #expect(ladder.takeAll().last?.flags == [.rst, .ack])
        ladder.finish()
    }

    @Test func theUserTimeoutEndsAConnection() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(socket.setOption(level: 6, name: 18, [0xe8, 3, 0, 0]) == 0)
        #expect(socket.write([1]) == 1)
        ladder.run(999)
        #expect(!socket.isDisconnected)
        ladder.run(2)
        #expect(socket.takeError() == 110)
        ladder.finish()
    }

    @Test func threeDuplicatesMakeAFastRetransmit() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(scale: 7)
        #expect(socket.write(pattern(1..<100_001)) == 100_000)
        #expect(ladder.takeAll().count == 10)
        ladder.inject(.ack, seq: 1, ack: 1)
        // Limited transmit (RFC 3042).
        ladder.expect(.ack, seq: 14_601, length: 1460)
        ladder.inject(.ack, seq: 1, ack: 1)
        ladder.expect(.ack, seq: 16_061, length: 1460)
        ladder.inject(.ack, seq: 1, ack: 1)
        let repeated = try #require(ladder.expect(.ack, seq: 1, length: 1460))
        #expect(repeated.payload == pattern(1..<1461))
        ladder.expectNothing()
        #expect(ladder.counter("sndfrexmit") == 1)
        ladder.finish()
    }

    @Test func partialAcknowledgmentsRepairOneHoleEach() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(scale: 7)
        #expect(socket.write(pattern(1..<14_601)) == 14_600)
        #expect(ladder.takeAll().count == 10)
        for _ in 0..<3 { ladder.inject(.ack, seq: 1, ack: 1) }
        ladder.expect(.ack, seq: 1, length: 1460)
        ladder.inject(.ack, seq: 1, ack: 4381)
        #expect(ladder.expect(.ack, seq: 4381, length: 1460)?.payload == pattern(4381..<5841))
        ladder.inject(.ack, seq: 1, ack: 8761)
        ladder.expect(.ack, seq: 8761, length: 1460)
        ladder.inject(.ack, seq: 1, ack: 14_601)
        ladder.expectNothing()
        #expect(ladder.counter("rexmttimeo") == 0)
        // More duplicates of what has just been repaired start nothing.
        ladder.run(1000)
        ladder.expectNothing()
        ladder.finish()
    }

    @Test func duplicatesAfterATimeoutStartNoFastRetransmit() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(scale: 7)
        #expect(socket.write(pattern(1..<14_601)) == 14_600)
        #expect(ladder.takeAll().count == 10)
        ladder.run(210)
        ladder.expect(.ack, seq: 1, length: 1460)
        for _ in 0..<5 { ladder.inject(.ack, seq: 1, ack: 1) }
        #expect(ladder.counter("sndfrexmit") == 0)
        ladder.finish()
    }

    @Test func afterATimeoutTheWindowIsOneSegment() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(scale: 7)
        #expect(socket.write(pattern(1..<14_601)) == 14_600)
        #expect(ladder.takeAll().count == 10)
        ladder.run(210)
        ladder.expect(.ack, seq: 1, length: 1460)
        ladder.expectNothing()
        ladder.inject(.ack, seq: 1, ack: 1461)
        ladder.expect(.ack, seq: 1461, length: 1460)
        ladder.expect(.ack, seq: 2921, length: 1460)
        ladder.expectNothing()
        ladder.finish()
    }

    @Test func aLostFinIsRepeated() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(socket.shutdown(1) == 0)
        ladder.expect([.fin, .ack], seq: 1, ack: 1)
        ladder.run(210)
        ladder.expect([.fin, .ack], seq: 1, ack: 1)
        ladder.inject(.ack, seq: 1, ack: 2)
        ladder.run(10_000)
        ladder.expectNothing()
        ladder.finish()
    }

    // MARK: Path MTU

    private func tooBig(_ ladder: Ladder, mtu: UInt32, seq: Int) {
        ladder.inject(icmp: 3, code: 4, rest: mtu, seq: seq, length: 1460)
    }

    @Test func aTooBigMessageMakesSmallerSegmentsAtOnce() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(scale: 7)
        #expect(socket.write(pattern(1..<2921)) == 2920)
        ladder.expect(.ack, seq: 1, length: 1460)
        ladder.expect([.ack, .psh], seq: 1461, length: 1460)
        // Not for a number that is not in flight: anybody could send that.
        tooBig(ladder, mtu: 600, seq: 50_000)
        ladder.expectNothing()
        tooBig(ladder, mtu: 1000, seq: 1)
        ladder.expect(.ack, seq: 1, length: 960)
        ladder.expect(.ack, seq: 961, length: 960)
        ladder.expect(.ack, seq: 1921, length: 960)
        ladder.expect([.ack, .psh], seq: 2881, length: 40)
        tooBig(ladder, mtu: 1000, seq: 1461)
        ladder.expectNothing()
        #expect(ladder.counter("rexmttimeo") == 0)
        ladder.finish()
    }

    /// IP options that are set on a connection make each packet longer than its segments allow for, and IP refuses what is
    /// too big by them: it has never been on its way, so no timer need tell.
    @Test func whatTheHostRefusesGoesAtOnceInPiecesThatFit() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(scale: 7)
        #expect(socket.setOption(level: 0, name: 4, [1, 1, 1, 1, 1, 1, 1, 0]) == 0)
        #expect(socket.write(pattern(1..<3001)) == 3000)
        ladder.expect(.ack, seq: 1, length: 1452)
        ladder.expect(.ack, seq: 1453, length: 1452)
        ladder.expect([.ack, .psh], seq: 2905, length: 96)
        ladder.expectNothing()
        #expect(ladder.counter("rexmttimeo") == 0)
        ladder.finish()
    }

    @Test func anUnreachableMessageDoesNotEndAConnection() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(socket.write([1]) == 1)
        ladder.expect([.ack, .psh], seq: 1, length: 1)
        for code in UInt8(0)...5 where code != 4 {
            ladder.inject(icmp: 3, code: code, seq: 1, length: 1)
        }
        #expect(socket.isConnected)
        #expect(socket.pendingError == 0)
        ladder.finish()
    }
}

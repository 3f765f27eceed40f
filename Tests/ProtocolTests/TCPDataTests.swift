import Kernel
import Lab
import PluginAPI
import Testing

@Suite struct TCPDataTests {
    static let quiet = ["quickacks": "0"]

    // MARK: Acknowledging

    @Test func aSingleSegmentIsAcknowledgedAfterTheDelay() throws {
        let ladder = try Ladder(Self.quiet)
        let socket = try ladder.accept()
        ladder.inject([.ack, .psh], seq: 1, ack: 1, length: 100)
        ladder.expectNothing()
        #expect(socket.read() == pattern(1..<101))
        ladder.run(39)
        ladder.expectNothing()
        ladder.run(1)
        ladder.expect(.ack, seq: 1, ack: 101)
        ladder.finish()
    }

    @Test func everySecondFullSegmentIsAcknowledgedAtOnce() throws {
        let ladder = try Ladder(Self.quiet)
        let socket = try ladder.accept()
        ladder.inject(.ack, seq: 1, ack: 1, length: 1460)
        ladder.inject(.ack, seq: 1461, ack: 1, length: 1460)
        ladder.expect(.ack, seq: 1, ack: 2921)
        ladder.inject(.ack, seq: 2921, ack: 1, length: 1460)
        ladder.expectNothing()
        ladder.inject(.ack, seq: 4381, ack: 1, length: 1460)
        ladder.expect(.ack, seq: 1, ack: 5841)
        #expect(socket.read() == pattern(1..<5841))
        ladder.finish()
    }

    @Test func aBatchIsAcknowledgedOnce() throws {
        let ladder = try Ladder()
        _ = try ladder.accept()
        for index in 0..<10 {
            ladder.inject(.ack, seq: 1 + index * 1000, ack: 1, length: 1000, settles: false)
        }
        ladder.expect(.ack, seq: 1, ack: 10_001)
        ladder.expectNothing()
        ladder.finish()
    }

    @Test func theReplyCarriesTheAcknowledgment() throws {
        let ladder = try Ladder(Self.quiet)
        let socket = try ladder.accept()
        ladder.inject([.ack, .psh], seq: 1, ack: 1, length: 10)
        ladder.expectNothing()
        #expect(socket.write([1, 2, 3]) == 3)
        ladder.expect([.ack, .psh], seq: 1, ack: 11, length: 3)
        ladder.run(1)
        ladder.inject(.ack, seq: 11, ack: 4)
        ladder.run(100)
        ladder.expectNothing()
        ladder.finish()
    }

    // MARK: Out of order

    @Test func outOfOrderSegmentsAreKeptAndDuplicatesAcknowledgedAtOnce() throws {
        let ladder = try Ladder(Self.quiet)
        let socket = try ladder.accept()
        ladder.inject(.ack, seq: 1001, ack: 1, length: 1000)
        ladder.inject(.ack, seq: 3001, ack: 1, length: 1000)
        ladder.inject(.ack, seq: 2001, ack: 1, length: 1000)
        let first = ladder.expect(.ack, seq: 1, ack: 1)
        for _ in 0..<2 {
            let next = ladder.expect(.ack, seq: 1, ack: 1)
            #expect(next?.window == first?.window)
        }
        #expect(socket.read() == nil)
        ladder.inject(.ack, seq: 1, ack: 1, length: 1000)
        ladder.expect(.ack, seq: 1, ack: 4001)
        #expect(socket.read() == pattern(1..<4001))
        ladder.finish()
    }

    @Test func overlappingSegmentsGiveEachByteOnce() throws {
        let ladder = try Ladder(Self.quiet)
        let socket = try ladder.accept()
        ladder.inject(.ack, seq: 101, ack: 1, length: 100)
        ladder.inject(.ack, seq: 151, ack: 1, length: 200)
        ladder.inject(.ack, seq: 51, ack: 1, length: 80)
        ladder.inject(.ack, seq: 1, ack: 1, length: 400)
        ladder.inject(.ack, seq: 301, ack: 1, length: 150)
        ladder.run(50)
        let last = try #require(ladder.takeAll().last)
        #expect(ladder.acknowledgment(of: last) == 451)
        #expect(socket.read() == pattern(1..<451))
        ladder.finish()
    }

    @Test func aFinThatComesEarlyWaitsForTheData() throws {
        let ladder = try Ladder(Self.quiet)
        let socket = try ladder.accept()
        ladder.inject([.ack, .fin], seq: 101, ack: 1, length: 100)
        ladder.expect(.ack, seq: 1, ack: 1)
        #expect(!socket.cannotReceiveMore)
        ladder.inject(.ack, seq: 1, ack: 1, length: 100)
        ladder.expect(.ack, seq: 1, ack: 202)
        #expect(socket.read() == pattern(1..<201))
        #expect(socket.atEndOfStream)
        ladder.finish()
    }

    @Test func rangesOutOfOrderAreBounded() throws {
        let ladder = try Ladder(["quickacks": "0", "reass.maxqueuelen": "20"])
        let socket = try ladder.accept()
        for index in 1...100 { ladder.inject(.ack, seq: 1 + index * 20, ack: 1, length: 10) }
        _ = ladder.takeAll()
        #expect(ladder.counter("rcvreassfull") == 80)
        ladder.inject(.ack, seq: 1, ack: 1, length: 60)
        ladder.expect(.ack, seq: 1, ack: 71)
        #expect(socket.read() == pattern(1..<71))
        ladder.finish()
    }

    // MARK: Sending

    @Test func aLargeWriteIsCutIntoFullSegments() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(socket.write(pattern(1..<4001)) == 4000)
        ladder.expect(.ack, seq: 1, ack: 1, length: 1460)
        ladder.expect(.ack, seq: 1461, ack: 1, length: 1460)
        let last = ladder.expect([.ack, .psh], seq: 2921, ack: 1, length: 1080)
        #expect(last?.payload == pattern(2921..<4001))
        ladder.inject(.ack, seq: 1, ack: 4001)
        #expect(socket.sendQueued == 0)
        ladder.finish()
    }

    @Test func theInitialWindowIsTenSegments() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(scale: 7)
        #expect(socket.write(pattern(1..<100_001)) == 100_000)
        #expect(ladder.takeAll().count == 10)
        ladder.finish()
    }

    @Test func slowStartDoublesTheWindow() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(scale: 7)
        #expect(socket.write(pattern(1..<200_001)) == 200_000)
        #expect(ladder.takeAll().count == 10)
        ladder.inject(.ack, seq: 1, ack: 14_601)
        #expect(ladder.takeAll().count == 20)
        ladder.inject(.ack, seq: 1, ack: 43_801)
        #expect(ladder.takeAll().count == 40)
        ladder.finish()
    }

    @Test func theMSSOfThePeerIsHonouredAndItsAbsenceMeans536() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(mss: nil)
        #expect(socket.write(pattern(1..<1001)) == 1000)
        ladder.expect(.ack, seq: 1, length: 536)
        ladder.expect([.ack, .psh], seq: 537, length: 464)
        ladder.finish()
    }

    @Test func smallWritesWaitForTheAcknowledgmentUnlessNoDelayIsSet() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(socket.write([1]) == 1)
        ladder.expect([.ack, .psh], seq: 1, length: 1)
        #expect(socket.write([2]) == 1)
        #expect(socket.write([3]) == 1)
        ladder.expectNothing()
        ladder.inject(.ack, seq: 1, ack: 2)
        ladder.expect([.ack, .psh], seq: 2, length: 2)
        #expect(socket.setOption(level: 6, name: 1, [1, 0, 0, 0]) == 0)
        #expect(socket.write([4]) == 1)
        ladder.expect([.ack, .psh], seq: 4, length: 1)
        ladder.finish()
    }

    @Test func aCorkHoldsPartialSegmentsForTwoHundredMilliseconds() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(socket.setOption(level: 6, name: 3, [1, 0, 0, 0]) == 0)
        #expect(socket.write([1, 2, 3]) == 3)
        ladder.run(199)
        ladder.expectNothing()
        ladder.run(1)
        ladder.expect([.ack, .psh], seq: 1, length: 3)
        ladder.inject(.ack, seq: 1, ack: 4)
        #expect(socket.write([4]) == 1)
        ladder.expectNothing()
        #expect(socket.setOption(level: 6, name: 3, [0, 0, 0, 0]) == 0)
        ladder.expect([.ack, .psh], seq: 4, length: 1)
        ladder.finish()
    }

    // MARK: Windows

    @Test func thePeersWindowIsNeverExceeded() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(window: 2000)
        #expect(socket.write(pattern(1..<10_001)) == 10_000)
        ladder.expect(.ack, seq: 1, length: 1460)
        ladder.expectNothing()
        ladder.inject(.ack, seq: 1, ack: 1461, window: 3000)
        ladder.expect(.ack, seq: 1461, length: 1460)
        ladder.expect(.ack, seq: 2921, length: 1460)
        ladder.expectNothing()
        ladder.finish()
    }

    @Test func aClosedWindowIsProbedWithBackoffForAsLongAsThePeerAnswers() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(window: 1000)
        #expect(socket.write(pattern(1..<3001)) == 3000)
        ladder.expect(.ack, seq: 1, length: 1000)
        ladder.inject(.ack, seq: 1, ack: 1001, window: 0)
        ladder.expectNothing()
        var gaps: [UInt64] = []
        var last = ladder.clock
        for _ in 0..<20 {
            let hasSent = ladder.network.run(limit: 70_000_000_000, until: { !ladder.sent.isEmpty })
            #expect(hasSent)
            let probe = try #require(ladder.expect(.ack, seq: 1001, length: nil))
            #expect(probe.payload.count == 1)
            gaps.append(ladder.clock - last)
            last = ladder.clock
            ladder.inject(.ack, seq: 1, ack: 1001, window: 0)
        }
        #expect(gaps == gaps.sorted())
        #expect(gaps.last == 60_000_000_000)
        #expect(socket.isConnected)
        ladder.inject(.ack, seq: 1, ack: 1001, window: 5000)
        ladder.expect(.ack, seq: 1001, length: 1460)
        ladder.expect([.ack, .psh], seq: 2461, length: 540)
        ladder.finish()
    }

    @Test func aPeerThatDoesNotAnswerProbesIsGivenUp() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(window: 1000)
        #expect(socket.write(pattern(1..<3001)) == 3000)
        ladder.expect(.ack, seq: 1, length: 1000)
        ladder.inject(.ack, seq: 1, ack: 1001, window: 0)
        ladder.run(1_200_000)
        #expect(socket.isDisconnected)
        #expect(socket.takeError() == 110)
        ladder.finish()
    }

    @Test func aTinyWindowIsNotFilledWithTinySegments() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(window: 60_000)
        #expect(socket.write(pattern(1..<10_001)) == 10_000)
        #expect(ladder.takeAll().count == 7)
        ladder.inject(.ack, seq: 1, ack: 10_001, window: 50)
        #expect(socket.write(pattern(1..<1001)) == 1000)
        ladder.expectNothing()
        // The override: what the window takes, after a while.
        ladder.run(1100)
        ladder.expect(.ack, seq: 10_001, length: 50)
        ladder.finish()
    }

    @Test func theAdvertisedWindowClosesAndOpensInSteps() throws {
        let ladder = try Ladder()
        let listener = try ladder.listener()
        #expect(listener.setOption(level: 1, name: 8, [0, 16, 0, 0]) == 0)
        let socket = try ladder.accept(listener)
        let limit = Int(socket.raw.pointee.rcv.limit)
        #expect(limit == 8192)
        var next = 1
        while next < 1 + limit {
            let length = min(1024, 1 + limit - next)
            ladder.inject(.ack, seq: next, ack: 1, length: length)
            next += length
        }
        ladder.run(50)
        #expect(ladder.takeAll().last?.window == 0)
        // More does not fit: acknowledged, not taken.
        ladder.inject(.ack, seq: next, ack: 1, length: 1)
        ladder.expect(.ack, ack: next, window: 0)
        // A little room is not worth a segment.
        _ = socket.read(max: 100)
        ladder.expectNothing()
        _ = socket.read(max: 4000)
        let update = try #require(ladder.expect(.ack, ack: next))
        #expect(update.window == 4100)
        ladder.finish()
    }

    @Test func aShrunkWindowIsSurvived() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(window: 8000)
        #expect(socket.write(pattern(1..<20_001)) == 20_000)
        let flight = ladder.takeAll().reduce(0) { $0 + $1.payload.count }
        #expect(flight <= 8000)
        ladder.inject(.ack, seq: 1, ack: 1461, window: 100)
        ladder.expectNothing()
        ladder.inject(.ack, seq: 1, ack: 1 + flight, window: 20_000)
        _ = ladder.takeAll()
        ladder.inject(.ack, seq: 1, ack: 20_001, window: 20_000)
        #expect(socket.sendQueued == 0)
        ladder.finish()
    }

    // MARK: Urgent data

    @Test func urgentDataAreMarkedOnTheWayOut() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        #expect(socket.write([1, 2, 3], flags: 2) == 3)
        let segment = try #require(ladder.expect([.ack, .psh, .urg], seq: 1, length: 3))
        #expect(segment.urgentPointer == 3)
        ladder.inject(.ack, seq: 1, ack: 4)
        #expect(socket.write([4]) == 1)
        ladder.expect([.ack, .psh], seq: 4, length: 1)
        ladder.finish()
    }

    @Test func anUrgentByteIsKeptAside() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        ladder.inject([.ack, .psh, .urg], seq: 1, ack: 1, payload: [10, 11, 12, 13], urgent: 3)
        #expect(socket.state & 0x80 != 0)
        #expect(socket.takeUrgent(peek: false) == (0, 12))
        #expect(socket.read() == [10, 11])
        #expect(socket.read() == [13])
        ladder.finish()
    }

    @Test func anUrgentNoticeMayComeBeforeTheByte() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        ladder.inject([.ack, .psh, .urg], seq: 1, ack: 1, payload: [10], urgent: 3)
        #expect(socket.takeUrgent(peek: false).error == 11)
        ladder.inject([.ack, .psh], seq: 2, ack: 1, payload: [11, 12, 13])
        #expect(socket.takeUrgent(peek: false) == (0, 12))
        ladder.finish()
    }
}

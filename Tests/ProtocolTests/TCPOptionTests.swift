import Kernel
import Lab
import PluginAPI
import Testing

@Suite struct TCPOptionTests {
    /// A passive connection with timestamps; the peer's clock stands at 5000.
    private func acceptWithTimestamps(_ ladder: Ladder) throws -> Socket {
        ladder.peerTimestamp = 5000
        return try ladder.accept(scale: 7)
    }

    @Test func timestampsAreEchoedOnceAgreedOn() throws {
        let ladder = try Ladder(["quickacks": "0"])
        let socket = try acceptWithTimestamps(ladder)
        #expect(socket.write([1]) == 1)
        #expect(ladder.expect([.ack, .psh], seq: 1, length: 1)?.timestamp?.echo == 5000)
        ladder.peerTimestamp = 5100
        ladder.inject(.ack, seq: 1, ack: 2, length: 1448)
        ladder.peerTimestamp = 5200
        ladder.inject(.ack, seq: 1449, ack: 2, length: 1448)
        // The delayed acknowledgment echoes the first of the two (RFC 7323, 4.3).
        #expect(ladder.expect(.ack, seq: 2, ack: 2897)?.timestamp?.echo == 5100)
        ladder.finish()
    }

    @Test func segmentsWithTimestampsAreTwelveBytesShorter() throws {
        let ladder = try Ladder()
        let socket = try acceptWithTimestamps(ladder)
        #expect(socket.write(pattern(1..<2001)) == 2000)
        ladder.expect(.ack, seq: 1, length: 1448)
        ladder.expect([.ack, .psh], seq: 1449, length: 552)
        ladder.finish()
    }

    /// RFC 6191: the numbers say nothing, the clock does.
    @Test func timestampsTellANewSynInTimeWait() throws {
        let ladder = try Ladder()
        let listener = try ladder.listener()
        ladder.peerTimestamp = 1000
        let socket = try ladder.accept(listener)
        socket.close()
        ladder.expect([.fin, .ack], seq: 1, ack: 1)
        ladder.inject([.fin, .ack], seq: 1, ack: 2)
        let last = try #require(ladder.expect(.ack, seq: 2, ack: 2))
        ladder.peerISN &-= 100_000
        ladder.peerTimestamp = 999
        ladder.inject(.syn, seq: 0, options: Ladder.synOptions())
        #expect(ladder.expect(.ack)?.rawAcknowledgment == last.rawAcknowledgment)
        ladder.peerTimestamp = 5000
        ladder.stackISN = nil
        ladder.inject(.syn, seq: 0, options: Ladder.synOptions())
        ladder.expect([.syn, .ack], seq: 0, ack: 1)
        ladder.finish()
    }

    @Test func anOldTimestampProtectsAgainstWrappedNumbers() throws {
        let ladder = try Ladder()
        let socket = try acceptWithTimestamps(ladder)
        ladder.peerTimestamp = 4999
        ladder.inject(.ack, seq: 1, ack: 1, length: 10)
        ladder.expect(.ack, seq: 1, ack: 1)
        #expect(socket.read() == nil)
        #expect(ladder.counter("pawsdrop") == 1)
        // But a reset counts without one.
        ladder.inject(.rst, seq: 1)
        #expect(socket.isDisconnected)
        ladder.finish()
    }

    @Test func aSegmentWithoutTheTimestampIsDropped() throws {
        let ladder = try Ladder()
        let socket = try acceptWithTimestamps(ladder)
        ladder.peerTimestamp = nil
        ladder.inject(.ack, seq: 1, ack: 1, length: 10)
        ladder.expectNothing()
        #expect(socket.read() == nil)
        ladder.finish()
    }

    @Test func thePeersWindowScaleCounts() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept(window: 1000, scale: 4)
        // The handshake's last step said 1000 << 4.
        #expect(socket.write(pattern(1..<30_001)) == 30_000)
        let flight = ladder.takeAll().reduce(0) { $0 + $1.payload.count }
        #expect(flight == 14_600)
        ladder.finish()
    }

    @Test func optionsAreReadBack() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        func get(_ name: Int32) -> Int32 {
            let (error, value) = socket.getOption(level: 6, name: name, capacity: 4)
            #expect(error == 0)
            return value.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) }
        }
        #expect(get(1) == 0)
        #expect(socket.setOption(level: 6, name: 1, [1, 0, 0, 0]) == 0)
        #expect(get(1) == 1)
        #expect(get(2) == 1460)
        #expect(get(4) == 7200)
        let (error, name) = socket.getOption(level: 6, name: 13, capacity: 16)
        #expect(error == 0)
        let text = String(decoding: name.prefix { $0 != 0 }, as: UTF8.self)
        #expect(text == "newreno")
        #expect(socket.setOption(level: 6, name: 13, Array("bbr".utf8)) == 2)
        #expect(socket.setOption(level: 6, name: 13, Array("cubic".utf8)) == 0)
        #expect(socket.setOption(level: 6, name: 13, Array("reno".utf8)) == 0)
        #expect(socket.setOption(level: 6, name: 999, [0, 0, 0, 0]) == 92)
        ladder.finish()
    }

    @Test func tcpInfoHasLinuxsLayout() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        ladder.inject([.ack, .psh], seq: 1, ack: 1, length: 100)
        let (error, info) = socket.getOption(level: 6, name: 11, capacity: 104)
        #expect(error == 0)
        #expect(info.count == 104)
        #expect(info[0] == 1, "TCP_ESTABLISHED")
        let mss = info.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 16, as: UInt32.self) }
        let cwnd = info.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 80, as: UInt32.self) }
        #expect(mss == 1460)
        #expect(cwnd == 10)
        ladder.finish()
    }

    @Test func theDescriptionIsJSON() throws {
        let ladder = try Ladder()
        let socket = try ladder.accept()
        let text = socket.describe()
        #expect(text.hasPrefix("{\"state\":\"ESTABLISHED\""))
        #expect(text.hasSuffix("}"))
        #expect(text.contains("\"cwnd\":14600"))
        ladder.finish()
    }

    @Test func initialNumbersDifferByTupleAndAreReproducible() throws {
        func numbers() throws -> [UInt32] {
            let ladder = try Ladder(seed: 7)
            _ = try ladder.listener()
            var numbers: [UInt32] = []
            for port in UInt16(4000)..<4004 {
                ladder.stackISN = nil
                ladder.inject(.syn, seq: 0, port: port)
                ladder.expect([.syn, .ack], ack: 1)
                numbers.append(ladder.stackISN!)
            }
            ladder.finish()
            return numbers
        }
        let first = try numbers()
        #expect(Set(first).count == 4)
        let second = try numbers()
        #expect(second == first)
    }
}

@Suite struct TCPSelectiveAcknowledgmentTests {
    private func blocks(_ ladder: Ladder, _ segment: Ladder.Sent?) -> [[Int]] {
        guard let bytes = segment?.option(5) else { return [] }
        func number(_ at: Int) -> Int {
            Int(Int32(bitPattern: bytes[at..<(at + 4)].reduce(0) { $0 << 8 | UInt32($1) } &- ladder.peerISN))
        }
        return stride(from: 0, to: bytes.count, by: 8).map { [number($0), number($0 + 4)] }
    }

    private func accept(_ ladder: Ladder) throws -> Socket {
        let listener = try ladder.listener()
        ladder.inject(.syn, seq: 0, options: Ladder.synOptions() + [4, 2])
        let answer = ladder.expect([.syn, .ack], seq: 0, ack: 1)
        #expect(answer?.option(4) != nil)
        ladder.inject(.ack, seq: 1, ack: 1)
        return try #require(listener.acceptNext())
    }

    @Test func theNewestBlockComesFirst() throws {
        let ladder = try Ladder()
        _ = try accept(ladder)
        ladder.inject(.ack, seq: 101, ack: 1, length: 100)
        #expect(blocks(ladder, ladder.expect(.ack, ack: 1)) == [[101, 201]])
        ladder.inject(.ack, seq: 401, ack: 1, length: 100)
        #expect(blocks(ladder, ladder.expect(.ack, ack: 1)) == [[401, 501], [101, 201]])
        ladder.inject(.ack, seq: 201, ack: 1, length: 100)
        #expect(blocks(ladder, ladder.expect(.ack, ack: 1)) == [[101, 301], [401, 501]])
        ladder.inject(.ack, seq: 1, ack: 1, length: 100)
        #expect(blocks(ladder, ladder.expect(.ack, ack: 301)) == [[401, 501]])
        ladder.inject(.ack, seq: 301, ack: 1, length: 100)
        #expect(blocks(ladder, ladder.expect(.ack, ack: 501)) == [])
        ladder.finish()
    }

    @Test func asManyBlocksAsFitAreTold() throws {
        let ladder = try Ladder()
        _ = try accept(ladder)
        for index in 1...6 { ladder.inject(.ack, seq: 1 + index * 200, ack: 1, length: 100) }
        let last = ladder.takeAll().last
        #expect(blocks(ladder, last) == [[1201, 1301], [1001, 1101], [801, 901], [601, 701]])
        ladder.finish()
    }

    @Test func aPeerThatDidNotAskGetsNone() throws {
        let ladder = try Ladder()
        _ = try ladder.accept()
        ladder.inject(.ack, seq: 101, ack: 1, length: 100)
        #expect(ladder.expect(.ack, ack: 1)?.option(5) == nil)
        ladder.finish()
    }
}

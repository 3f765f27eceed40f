import Testing

import Kernel

/// When frames of a tap are steered to other CPUs; that they are, on a tap, is tested by Tests/EndToEnd/test_steering.py.
struct ReceiveSteeringTests {
    /// A loop that has run for a while.
    private final class Loop {
        var load = SteeringLoad(turns: 1000, now: 5_000_000_000)
        var turns: UInt64 = 1000
        var counts = FrameCounts()
        var now: UInt64 = 5_000_000_000

        /// Whether frames are steered after `windows` looks at so many frames and ns a turn, half of them sent with
        /// `length` bytes.
        func run(_ windows: Int, framesPerTurn: Double, time: UInt64, length: UInt32 = 66) -> Bool {
            var isBusy = false
            for _ in 0..<windows {
                turns += SteeringLoad.window
                let frames = UInt64(framesPerTurn * Double(SteeringLoad.window))
                counts.received += frames - frames / 2
                for _ in 0..<frames / 2 { counts.sent(length: length) }
                now += SteeringLoad.window * time
                isBusy = load.look(turns: turns, counts, now: now)
            }
            return isBusy
        }
    }

    @Test(arguments: [(1.0, false), (2.0, false), (3.9, false), (4.0, true), (180.0, true)])
    func severalFramesATurnAreSteered(_ framesPerTurn: Double, _ isSteered: Bool) {
        let loop = Loop()
        #expect(loop.run(20, framesPerTurn: framesPerTurn, time: 20_000) == isSteered)
    }

    @Test func longSegmentsAreNotSteered() {
        let loop = Loop()
        #expect(!loop.run(20, framesPerTurn: 8, time: 20_000, length: 65_000))
        #expect(loop.run(1, framesPerTurn: 8, time: 20_000, length: 1514))
        #expect(loop.run(15, framesPerTurn: 8, time: 20_000, length: 65_000))
        #expect(!loop.run(1, framesPerTurn: 8, time: 20_000, length: 65_000))
    }

    /// A burst every now and then keeps nobody busy.
    @Test func aLoopAtRestIsNotBusy() {
        let loop = Loop()
        #expect(!loop.run(20, framesPerTurn: 10, time: 10_000_000))
    }

    @Test func itEndsWhenItHasBeenCalmForAWhile() {
        let loop = Loop()
        #expect(loop.run(1, framesPerTurn: 8, time: 20_000))
        // Fewer than it takes to begin, but not few.
        #expect(loop.run(100, framesPerTurn: 3, time: 20_000))
        #expect(loop.run(15, framesPerTurn: 1, time: 20_000))
        #expect(loop.run(1, framesPerTurn: 8, time: 20_000))
        #expect(loop.run(15, framesPerTurn: 1, time: 20_000))
        #expect(!loop.run(1, framesPerTurn: 1, time: 20_000))
        #expect(!loop.run(1, framesPerTurn: 3, time: 20_000))
    }

    @Test func aPauseEndsIt() {
        let loop = Loop()
        #expect(loop.run(1, framesPerTurn: 8, time: 20_000))
        #expect(!loop.run(16, framesPerTurn: 8, time: 10_000_000))
    }

    @Test(arguments: [
        ([], "0"), ([0], "1"), ([1, 4], "12"), ([31], "80000000"), ([32], "1,00000000"), ([0, 63, 64], "1,80000000,00000001"),
        ([1000], "100,00000000" + String(repeating: ",00000000", count: 30)),
    ])
    func masksAreWrittenAsSysfsReadsThem(_ cpus: [Int], _ mask: String) {
        #expect(CPUSet(cpus).mask == mask)
        #expect(CPUSet(cpus).list == cpus)
    }

    @Test func whatIsAvailableIsMoreThanWhatAThreadKeepsTo() {
        let before = CPUSet.ofThisThread
        defer { before.restrictThisThread() }
        let available = CPUSet.available
        #expect(CPUSet.ofThisThread == before)
        #expect(before.subtracting(available).list.isEmpty)
        let one = CPUSet([before.list[0]])
        #expect(one.restrictThisThread() == 0)
        #expect(CPUSet.ofThisThread == one)
        #expect(CPUSet.available == available)
        #expect(CPUSet.ofThisThread == one)
    }
}

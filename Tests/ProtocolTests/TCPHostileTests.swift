import Kernel
import Lab
import PluginAPI
import Testing

/// Segments that no honest peer would send, in every state: nothing may crash, leak or run away.
@Suite struct TCPHostileTests {
    struct Generator: RandomNumberGenerator {
        var state: UInt64
        mutating func next() -> UInt64 {
            state &+= 0x9e37_79b9_7f4a_7c15
            var z = state
            z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
            z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
            return z ^ (z >> 31)
        }
    }

    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func randomSegmentsInAllStates(seed: UInt64) throws {
        var random = Generator(state: seed)
        let ladder = try Ladder(seed: seed)
        let listener = try ladder.listener(backlog: 3)
        var sockets: [Socket] = []
        for round in 0..<1500 {
            if ladder.stackISN == nil || round % 100 == 0 {
                ladder.stackISN = nil
                ladder.peerISN = UInt32.random(in: 0 ... .max, using: &random)
                ladder.peerPort = UInt16(4000 + round / 100)
                ladder.inject(.syn, seq: 0, options: Ladder.synOptions(scale: UInt8.random(in: 0...20, using: &random)))
                if ladder.stackISN == nil { continue }
                if Bool.random(using: &random) { ladder.inject(.ack, seq: 1, ack: 1) }
            }
            let flags = Ladder.Flags(rawValue: UInt8.random(in: 0...255, using: &random) & (round % 7 == 0 ? 63 : 0x39))
            let offset = [0, 1, -1, 100, 1460, 65535, -65535, 1 << 30][Int.random(in: 0..<8, using: &random)]
            let options = (0..<Int.random(in: 0...20, using: &random)).map { _ in
                UInt8.random(in: 0...12, using: &random)
            }
            ladder.inject(
                flags, seq: 1 + offset, ack: 1 + Int.random(in: -3...3000, using: &random),
                window: Int.random(in: 0...65535, using: &random), length: Int.random(in: 0...1000, using: &random),
                options: options, urgent: Int.random(in: 0...2000, using: &random), settles: round % 3 != 0)
            if let socket = listener.acceptNext() { sockets.append(socket) }
            if let socket = sockets.randomElement(using: &random) {
                switch Int.random(in: 0..<12, using: &random) {
                case 0: _ = socket.read(max: Int.random(in: 1...5000, using: &random))
                case 1: _ = socket.write([UInt8](repeating: 7, count: Int.random(in: 1...5000, using: &random)))
                case 2: _ = socket.write([1], flags: 2)
                case 3: _ = socket.shutdown(1)
                case 4: _ = socket.describe()
                case 5:
                    socket.close()
                    sockets.removeAll { $0 === socket }
                case 6:
                    if Int.random(in: 0..<4, using: &random) == 0 {
                        socket.abort()
                        sockets.removeAll { $0 === socket }
                    }
                default: break
                }
            }
            if round % 50 == 0 { ladder.run(UInt64.random(in: 0...3000, using: &random)) }
            // A single segment provokes a bounded answer.
            #expect(ladder.takeAll().count < 2000)
        }
        for socket in sockets { socket.close() }
        ladder.run(1_000_000)
        #expect(ladder.connectionSockets == 0)
        #expect(ladder.counter("timewait") == 0)
        #expect(ladder.counter("sc_entries") == 0)
        ladder.finish()
    }
}

import CLinux
import Glibc
import Kernel
import PluginAPI
import Testing

/// Frames that a device holds back until the end of the turn, so that they are written together.
@Suite struct HeldFramesTests {
    /// A device on a socket, which holds short frames; the first byte behind the header tells frames apart.
    private final class Rig {
        let kernel = Kernel(KernelConfiguration(name: "held"))
        let device: FrameDevice
        private let wire: Int32
        private static let headerSize = 12

        init() throws {
            var ends: [Int32] = [-1, -1]
            try #require(socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0, &ends) == 0)
            wire = ends[0]
            device = try FrameDevice(descriptor: ends[1], headerSize: Self.headerSize, kernel: kernel)
            device.holdsShortFrames = true
            _ = try kernel.interfaces.add(name: "w0", device: device, hardware: HardwareAddress((2, 0, 0, 0, 0, 2)))
        }

        deinit { close(wire) }

        func send(_ ids: some Sequence<Int>, length: Int = 60) throws {
            for id in ids {
                let packet = try #require(kernel.mbufs.packet(headroom: 64))
                let bytes = [UInt8](repeating: UInt8(id), count: length)
                #expect(kernel.mbufs.append(packet, bytes, length) == 0)
                device.transmit(packet)
            }
        }

        /// Of the frames that have come since the last time.
        var arrived: [Int] {
            var ids: [Int] = []
            var frame = [UInt8](repeating: 0, count: 65536)
            while true {
                let count = read(wire, &frame, frame.count)
                if count <= Self.headerSize { return ids }
                // Whole, and without a trace of the one that had its place before.
                #expect(Set(frame[Self.headerSize..<count]).count == 1)
                ids.append(Int(frame[Self.headerSize]))
            }
        }

        func finish() {
            kernel.shutdown()
            #expect(kernel.mbufs.isIdle)
        }
    }

    @Test func theyComeAtTheEndOfTheTurnInTheirOrder() throws {
        let rig = try Rig()
        try rig.send(0..<3)
        #expect(rig.arrived.isEmpty)
        rig.kernel.interfaces.flush()
        #expect(rig.arrived == [0, 1, 2])
        rig.kernel.interfaces.flush()
        #expect(rig.arrived.isEmpty)
        rig.finish()
    }

    @Test func noMoreAreHeldThanThereIsRoomFor() throws {
        let rig = try Rig()
        try rig.send(0..<8, length: 2048)
        #expect(rig.arrived == Array(0..<8))
        try rig.send(8..<19)
        #expect(rig.arrived == Array(8..<16))
        rig.kernel.interfaces.flush()
        #expect(rig.arrived == [16, 17, 18])
        rig.finish()
    }

    @Test func aLongFrameComesBehindThoseThatWait() throws {
        let rig = try Rig()
        try rig.send(0..<2)
        try rig.send(2..<3, length: 9000)
        #expect(rig.arrived == [0, 1, 2])
        rig.finish()
    }

    @Test func whatIsHeldWhenTheDeviceGoesIsWritten() throws {
        let rig = try Rig()
        try rig.send(0..<2)
        rig.device.close()
        #expect(rig.arrived == [0, 1])
        rig.finish()
    }

    @Test func whatTheSystemDoesNotTakeIsCounted() throws {
        let rig = try Rig()
        // Nobody reads: the socket is full at some time.
        for _ in 0..<1000 {
            try rig.send(0..<8, length: 2048)
        }
        let errors = try #require(rig.device.interface).errorsOut
        #expect(errors > 0)
        #expect(UInt64(rig.arrived.count) + errors == 8000)
        rig.finish()
    }

    @Test func withoutSteeringNoneIsHeld() throws {
        let rig = try Rig()
        try rig.send(0..<2)
        rig.device.holdsShortFrames = false
        try rig.send(2..<3)
        #expect(rig.arrived == [0, 1, 2])
        rig.finish()
    }
}

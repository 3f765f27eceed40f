import Kernel
import Lab
import PluginAPI
import Testing

/// RFC 768 and RFC 1122, section 4.1, as a peer on the link sees them.
@Suite struct UDPTests {
    /// With the checksum as it should be, or as given.
    private func datagram(
        _ payload: [UInt8], length: Int? = nil, sum: UInt16? = nil, from source: [UInt8] = PacketBench.peerAddress
    ) -> [UInt8] {
        var udp = big(UInt16(4000)) + big(UInt16(53)) + big(UInt16(length ?? 8 + payload.count)) + [0, 0] + payload
        let pseudo = source + PacketBench.stackAddress + [0, 17] + big(UInt16(udp.count))
        udp.replaceSubrange(6..<8, with: big(sum ?? checksum(pseudo + udp)))
        return PacketBench.packet(17, udp, from: source)
    }

    private func received(_ socket: Socket) -> [[UInt8]] {
        var all: [[UInt8]] = []
        while let (bytes, _) = socket.receive() { all.append(bytes) }
        return all
    }

    @Test func aDatagramWithoutAChecksumIsTakenAndOneWithAWrongOneIsNot() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket(port: 53)
        bench.send(datagram([1, 2, 3]))
        bench.send(datagram([4, 5], sum: 0))
        bench.send(datagram([6, 7], sum: 0x1234))
        #expect(received(socket) == [[1, 2, 3], [4, 5]])
        #expect(bench.counter("udp", "nosum") == 1)
        #expect(bench.counter("udp", "badsum") == 1)
        bench.finish()
    }

    @Test func theLengthFieldMustFitAndCutsOffWhatIsBehind() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket(port: 53)
        for length in [0, 7, 12] { bench.send(datagram([1, 2, 3], length: length, sum: 0)) }
        #expect(received(socket) == [])
        #expect(bench.counter("udp", "badlen") == 3)
        bench.send(datagram([1, 2, 3], length: 10, sum: 0))
        #expect(received(socket) == [[1, 2]])
        bench.finish()
    }

    @Test func aSourceThatCannotBeIsDropped() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket(port: 53)
        for source in [[255, 255, 255, 255], [224, 0, 0, 1], [10, 0, 0, 255], [127, 0, 0, 1]] as [[UInt8]] {
            bench.send(datagram([1], from: source))
        }
        #expect(received(socket) == [])
        bench.finish()
    }

    /// An odd number of bytes, and a sum of zero, which goes as its complement.
    @Test func whatIsSentHasARightChecksum() throws {
        let bench = try PacketBench()
        let socket = try bench.udpSocket(port: 53)
        #expect(socket.connect(endpoint("10.0.0.2", 4000)) == 0)
        // One word of all values makes every sum, zero too.
        for word in stride(from: 0, through: 0xffff, by: 0x101) + [0x1234] {
            #expect(socket.send([UInt8(word >> 8), UInt8(word & 255), 9]) == 0)
            let sent = try bench.expectOne()
            #expect(sent.payload[6...7] != [0, 0])
            let pseudo = sent.source + sent.destination + [0, 17] + big(UInt16(sent.payload.count))
            #expect(checksum(pseudo + sent.payload) == 0)
        }
        bench.finish()
    }
}

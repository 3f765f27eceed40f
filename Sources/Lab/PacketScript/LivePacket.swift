import Kernel

/// A packet as it is on the wire of the stack under test.
struct LivePacket {
    /// An IPv4 address and a port.
    struct Endpoint: Equatable {
        var address: UInt32
        var port: UInt16
    }

    enum Transport {
        case tcp(ScriptSegment)
        case udp(length: Int)
        case icmp(ScriptICMP)
        case other
    }

    var time: UInt64
    var bytes: [UInt8]
    var protocolNumber: UInt8
    var headerLength: Int
    var totalLength: Int
    var tos: UInt8
    var ttl: UInt8
    var source: Endpoint
    var destination: Endpoint
    var transport: Transport
    /// Options of TCP that could not be read.
    var hasBadOptions = false
    var payload: ArraySlice<UInt8>

    /// Nil if the bytes are no whole IPv4 packet.
    init?(_ bytes: [UInt8], time: UInt64) {
        guard bytes.count >= 20, bytes[0] >> 4 == 4 else { return nil }
        headerLength = Int(bytes[0] & 15) * 4
        totalLength = Int(big16(bytes, 2))
        guard headerLength >= 20, totalLength >= headerLength, totalLength <= bytes.count else { return nil }
        self.time = time
        self.bytes = bytes
        tos = bytes[1]
        ttl = bytes[8]
        protocolNumber = bytes[9]
        source = Endpoint(address: big32(bytes, 12), port: 0)
        destination = Endpoint(address: big32(bytes, 16), port: 0)
        transport = .other
        payload = bytes[headerLength..<totalLength]
        guard big16(bytes, 6) & 0x1fff == 0 else { return }
        switch protocolNumber {
        case 6: readTCP()
        case 17: readUDP()
        case 1: readICMP()
        default: break
        }
    }

    private mutating func readPorts() {
        source.port = big16(bytes, headerLength)
        destination.port = big16(bytes, headerLength + 2)
    }

    private mutating func readTCP() {
        guard payload.count >= 20 else { return }
        let at = headerLength
        let offset = Int(bytes[at + 12] >> 4) * 4
        guard offset >= 20, offset <= payload.count else { return }
        readPorts()
        var segment = ScriptSegment()
        segment.flags = ScriptSegment.Flags(rawValue: UInt16(bytes[at + 13]) | UInt16(bytes[at + 12] & 1) << 8)
        segment.sequence = big32(bytes, at + 4)
        segment.acknowledgment = big32(bytes, at + 8)
        segment.window = big16(bytes, at + 14)
        segment.urgent = big16(bytes, at + 18)
        let options = TCPOptionBytes.decode(bytes[(at + 20)..<(at + offset)])
        hasBadOptions = options == nil
        segment.options = options ?? []
        payload = bytes[(at + offset)..<totalLength]
        segment.length = payload.count
        transport = .tcp(segment)
    }

    private mutating func readUDP() {
        guard payload.count >= 8 else { return }
        readPorts()
        payload = bytes[(headerLength + 8)..<totalLength]
        transport = .udp(length: payload.count)
    }

    private mutating func readICMP() {
        guard payload.count >= 8 else { return }
        let at = headerLength
        var message = ScriptICMP(type: bytes[at], code: bytes[at + 1])
        if message.type == 3, message.code == 4 { message.mtu = big16(bytes, at + 6) }
        if [0, 8, 13, 14].contains(message.type) { message.identifier = big16(bytes, at + 4) }
        transport = .icmp(message)
    }

    /// The IPv4 header's checksum is right. Those above are the stack's device's to finish.
    var isHeaderSumRight: Bool { InternetSum.of(bytes[..<headerLength]) == 0 }

    /// The transport's checksum is right, or not used (UDP).
    var isTransportSumRight: Bool {
        let content = bytes[headerLength..<totalLength]
        switch transport {
        case .tcp: return InternetSum.of(content, pseudo: pseudoHeader(content.count)) == 0
        case .udp:
            return big16(bytes, headerLength + 6) == 0
                || InternetSum.of(content, pseudo: pseudoHeader(content.count)) == 0
        case .icmp: return InternetSum.of(content) == 0
        case .other: return true
        }
    }

    private func pseudoHeader(_ length: Int) -> [UInt8] {
        Array(bytes[12..<20]) + [0, protocolNumber] + big(UInt16(length))
    }
}

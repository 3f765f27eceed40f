import PluginAPI
import PluginKit

/// Message types (RFC 792).
enum Message {
    static var echoReply: UInt8 { 0 }
    static var unreachable: UInt8 { 3 }
    static var sourceQuench: UInt8 { 4 }
    static var redirect: UInt8 { 5 }
    static var echo: UInt8 { 8 }
    static var timeExceeded: UInt8 { 11 }
    static var parameterProblem: UInt8 { 12 }
    static var timestamp: UInt8 { 13 }
    static var timestampReply: UInt8 { 14 }

    /// Messages about other packets: never answered by another one (RFC 1122, section 3.2.2).
    @inline(__always)
    static func isError(_ type: UInt8) -> Bool {
        type == unreachable || type == sourceQuench || type == redirect || type == timeExceeded
            || type == parameterProblem
    }
}

/// The IPv4 options that go back with an answer, and the socket option that sends them.
private enum IPOption {
    static var end: UInt8 { 0 }
    static var noOperation: UInt8 { 1 }
    static var recordRoute: UInt8 { 7 }
    static var timestamp: UInt8 { 68 }
    /// IP_OPTIONS
    static var socketOption: Int32 { 4 }
}

/// Messages for this host, `data` at the ICMP header. [consumes]
func icmpInput(_ context: UnsafeMutableRawPointer, _ list: Mbuf) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    var next: Mbuf? = list
    while let packet = next {
        next = packet.pointee.nextpkt
        packet.pointee.nextpkt = nil
        instance.input(packet)
    }
}

extension UnsafeMutablePointer where Pointee == Instance {
    fileprivate func input(_ arrived: Mbuf) {
        count(.received)
        let length = arrived.pointee.pkt.length
        guard length >= 8 else {
            count(.tooShort)
            free(arrived)
            return
        }
        if arrived.pointee.pkt.csum == UInt8(ALPS_CSUM_NONE),
            services.mbuf.pointee.sum(pool, arrived, 0, length) != 0xffff
        {
            count(.badChecksum)
            free(arrived)
            return
        }
        // Contiguous, and ours to write to: the bytes may be shared.
        guard let packet = services.mbuf.pointee.pullup(pool, arrived, 8) else { return }
        switch packet.pointee.data[0] {
        case Message.echo: answerEcho(packet)
        case Message.echoReply: deliverReply(packet)
        case Message.timestamp: answerTimestamp(packet)
        case Message.unreachable, Message.timeExceeded, Message.parameterProblem: inputError(packet)
        case Message.redirect: inputRedirect(packet)
        default:
            // Raw sockets have had their copies. Source quench is ignored (RFC 6633).
            count(.ignored)
            free(packet)
        }
    }

    // MARK: Queries

    /// RFC 1122, section 3.2.2.6: the same data back, from the address that was asked.
    private func answerEcho(_ packet: Mbuf) {
        if packet.pointee.pkt.flags & UInt16(ALPS_PKT_NETBROADCAST) != 0, setting(.answerBroadcast) == 0 {
            count(.ignored)
            free(packet)
            return
        }
        guard mayAnswer(packet) else { return }
        packet.pointee.data[0] = Message.echoReply
        // The sum changes by the change of the type (RFC 1624).
        let old = packet.pointee.data.load16(2)
        packet.pointee.data.store16(2, Checksum.finish(Checksum.fold(UInt64(~old) + 0xf7ff)))
        count(.echoReplies)
        reply(packet)
    }

    private func mayAnswer(_ packet: Mbuf) -> Bool {
        if take(withUnsafeMutablePointer(to: &pointee.answers) { $0 }, rate: setting(.answerRate)) { return true }
        count(.limited)
        free(packet)
        return false
    }

    private func answerTimestamp(_ packet: Mbuf) {
        guard packet.pointee.pkt.length >= 20, packet.pointee.pkt.flags & UInt16(ALPS_PKT_NETBROADCAST) == 0,
            setting(.timestamp) != 0
        else {
            count(.ignored)
            free(packet)
            return
        }
        guard mayAnswer(packet), let whole = services.mbuf.pointee.pullup(pool, packet, 20) else { return }
        let cell = services.timeCell
        let wall = cell.ops(alps_time_ops.self).pointee.wall(cell.instance)
        let milliseconds = UInt32(truncatingIfNeeded: wall / 1_000_000 % 86_400_000)
        whole.pointee.data[0] = Message.timestampReply
        whole.pointee.data.store32(12, milliseconds)
        whole.pointee.data.store32(16, milliseconds)
        whole.pointee.data.store16(2, 0)
        whole.pointee.data.store16(
            2, Checksum.finish(services.mbuf.pointee.sum(pool, whole, 0, whole.pointee.pkt.length)))
        count(.timestampReplies)
        reply(whole)
    }

    /// Back to where it came from.
    private func reply(_ packet: Mbuf) {
        guard let cell = pointee.networkCell, cell.isProvided else {
            free(packet)
            return
        }
        let network = cell.ops(alps_network_ops.self)
        var netpcb = alps_netpcb()
        _ = network.pointee.attach(cell.instance, &netpcb, nil)
        netpcb.protocol = 1
        netpcb.remote = packet.pointee.pkt.source
        netpcb.tos = packet.pointee.pkt.tos & 0xfc
        if packet.pointee.pkt.flags & UInt16(ALPS_PKT_NETBROADCAST) == 0 {
            netpcb.local = packet.pointee.pkt.destination
        }
        if packet.pointee.pkt.l3_length > 20 { echoOptions(packet, network, cell.instance, &netpcb) }
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_NONE)
        packet.pointee.pkt.gso_type = UInt8(ALPS_GSO_NONE)
        packet.pointee.pkt.flags = 0
        packet.pointee.pkt.ifindex = 0
        count(.sent)
        _ = network.pointee.output(cell.instance, &netpcb, packet, 0)
        network.pointee.detach(cell.instance, &netpcb)
    }

    /// RFC 1122, section 3.2.2.6: what record-route and timestamp options have gathered goes back with the answer.
    @inline(never)
    private func echoOptions(
        _ packet: Mbuf, _ network: UnsafePointer<alps_network_ops>, _ instance: UnsafeMutableRawPointer,
        _ netpcb: inout alps_netpcb
    ) {
        let length = min(Int(packet.pointee.pkt.l3_length) - 20, 40)
        let options = packet.pointee.data - length
        var answer: (UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0)
        var used: UInt32 = 0
        withUnsafeMutableBytes(of: &answer) { bytes in
            var at = 0
            while at < length, options[at] != IPOption.end {
                if options[at] == IPOption.noOperation {
                    at += 1
                    continue
                }
                guard at + 1 < length, options[at + 1] >= 2, at + Int(options[at + 1]) <= length else { return }
                let size = Int(options[at + 1])
                if options[at] == IPOption.recordRoute || options[at] == IPOption.timestamp {
                    for index in 0..<size { bytes[Int(used) + index] = options[at + index] }
                    used += UInt32(size)
                }
                at += size
            }
        }
        if used > 0 { _ = network.pointee.ctloutput(instance, &netpcb, 1, 0, IPOption.socketOption, &answer, &used) }
    }
}

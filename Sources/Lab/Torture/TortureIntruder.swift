import Kernel
import PluginAPI

// What comes from neither side of a connection: SYNs that nobody means, ICMP errors that are lies or news.

extension TortureRun {
    /// Puts an IPv4 packet to a kernel's end of a link, as if the link had brought it.
    private func inject(_ packet: [UInt8], link: Int, toA: Bool) {
        let place = plan.links[link]
        guard let interface = network.kernels[toA ? place.a : place.b].interfaces.find("link\(link + 1)") else { return }
        let hardware = withUnsafeBytes(of: interface.raw.pointee.hardware) { Array($0.prefix(6)) }
        let frame = hardware + [2, 0, 0, UInt8(link + 1), 0, 0xfe] + [8, 0] + packet
        frame.withUnsafeBytes { ends[2 * link + (toA ? 0 : 1)].inject($0) }
    }

    private func packet(_ protocolNumber: UInt8, from source: UInt32, to destination: UInt32, _ payload: [UInt8]) -> [UInt8] {
        var header: [UInt8] = [0x45, 0] + big(UInt16(20 + payload.count)) + [0, 0, 0, 0, 64, protocolNumber, 0, 0]
        header += big(source) + big(destination)
        header.replaceSubrange(10..<12, with: big(checksum(header)))
        return header + payload
    }

    /// SYNs to the listener: from hosts that do not exist, and in the name of the client, which answers with resets.
    func flood(_ index: Int) {
        let connection = plan.connections[index]
        guard connection.flood > 0, let link = connection.link else { return }
        let isServerA = plan.links[link].a == connection.server
        let network = UInt32(10) << 24 | UInt32(link + 1) << 8
        let server = network | (isServerA ? 1 : 2)
        for number in 0..<connection.flood {
            let source = number % 4 == 3 ? network | (isServerA ? 2 : 1) : network | UInt32(100 + number % 100)
            let isPlain = number % 3 == 0
            var tcp = big(UInt16(20_000 + number)) + big(port(index)) + big(UInt32(number) &* 0x9e37_79b9) + big(UInt32(0))
            let options: [UInt8] = isPlain ? [] : [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, UInt8(number), 0, 0, 0, 0, 1, 3, 3, 7]
            tcp += [UInt8(20 + options.count) << 2, 2, 0xff, 0xff, 0, 0, 0, 0] + options
            let sum = InternetSum.of(tcp[...], pseudo: big(source) + big(server) + [0, 6] + big(UInt16(tcp.count)))
            tcp.replaceSubrange(16..<18, with: big(sum))
            inject(packet(6, from: source, to: server, tcp), link: link, toA: isServerA)
        }
    }

    /// An ICMP error about what the client or the server has sent, if there is such a connection by now.
    func disturb(_ error: TorturePlan.Disturbance) {
        let connection = plan.connections[error.connection]
        guard let link = connection.link,
            let (key, flow) = observer.sender(port: port(error.connection), ofClient: error.toClient)
        else { return }
        let (start, end) = flow.inFlight
        var sequence = start
        var length: UInt16 = 1500
        switch error.truth {
        case .forged:
            // Well outside: what has arrived a moment ago may not have been looked at.
            sequence = error.at % 2 == 0 ? end &+ 1 &+ UInt32(error.at % 100_000) : start &- 100_000 &- UInt32(error.at % 100_000)
        case .genuine:
            guard flow.isEstablished, start != end else { return }
            length = UInt16(clamping: max(Int(error.mtu) + 1, 576))
        }
        var quoted: [UInt8] = [0x45, 0] + big(length) + [0, 0, 0x40, 0, 63, 6, 0, 0] + big(key.source) + big(key.destination)
        quoted.replaceSubrange(10..<12, with: big(checksum(quoted)))
        quoted += big(key.sourcePort) + big(key.destinationPort) + big(sequence)
        var icmp: [UInt8] = [error.type, error.code, 0, 0, 0, 0] + big(error.code == 4 ? error.mtu : 0) + quoted
        icmp.replaceSubrange(2..<4, with: big(checksum(icmp)))
        let target = error.toClient ? connection.client : connection.server
        inject(packet(1, from: key.destination, to: key.source, icmp), link: link, toA: plan.links[link].a == target)
    }
}

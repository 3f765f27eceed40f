package import Kernel

/// A test of TCP that reads like a ladder diagram: a stack at 10.0.0.1 and, at 10.0.0.2, a peer made of nothing but the
/// segments that the test injects. What the stack sends has to be expected, one by one, in virtual time.
///
/// Sequence numbers are relative to the initial one of their sender, so a SYN is 0 and the first byte 1. What is not as
/// expected goes to `report` with its place in the test; the ladder goes on.
package final class Ladder {
    package static let stackPort: UInt16 = 80
    package static let peerPort: UInt16 = 4000
    static let stackAddress: [UInt8] = [10, 0, 0, 1]
    static let peerAddress: [UInt8] = [10, 0, 0, 2]

    package let network: VirtualNetwork
    package let stack: Kernel
    /// The peer's end of the link; it answers ARP.
    package let wire: Kernel
    /// Where the stack's numbers start; known from its first SYN on. Nil: the next SYN tells.
    package var stackISN: UInt32?
    package var peerISN: UInt32 = 1_000_000
    package var stackPort = Ladder.stackPort
    package var peerPort = Ladder.peerPort
    /// What every injected segment carries as timestamp option, if anything.
    package var peerTimestamp: UInt32?
    var lastStackTimestamp: UInt32 = 0
    /// Sent by the stack, and not yet expected.
    package internal(set) var sent: [Sent] = []
    private let reporter: (LadderFailure) -> Void

    /// `plugins` are names, or paths of plugin libraries; `tunables` are named below `net.inet.tcp`.
    package init(
        seed: UInt64 = 1, mtu: Int = 1500, plugins: [String] = ["arp", "ipv4", "icmp", "tcp"],
        _ tunables: [String: String] = [:], report: @escaping (LadderFailure) -> Void
    ) throws {
        reporter = report
        network = VirtualNetwork(seed: seed)
        stack = try network.addKernel("stack", plugins: plugins)
        wire = try network.addKernel("wire", plugins: ["arp"])
        var spec = LinkSpec()
        spec.mtu = mtu
        try network.link(stack, "10.0.0.1/24", wire, "10.0.0.2/24", spec)
        for (name, value) in tunables { try stack.tunables.set("net.inet.tcp." + name, value) }
        wire.interfaces.ethernet.listen(0x0800, context: Unmanaged.passUnretained(self).toOpaque()) { context, list in
            Unmanaged<Ladder>.fromOpaque(context).takeUnretainedValue().take(list)
        }
        // Address resolution and announcements are not what these tests are about.
        run(3000)
        sent.removeAll()
    }

    /// Ends both kernels; nothing may be left.
    package func finish(
        fileID: String = #fileID, filePath: String = #filePath, line: Int = #line, column: Int = #column
    ) {
        network.shutdown()
        for kernel in [stack, wire] where !kernel.mbufs.isIdle {
            report("\(kernel.name): mbufs are left after shutdown", .init(fileID, filePath, line, column))
        }
    }

    func report(_ text: String, _ place: LadderFailure.Place) { reporter(LadderFailure(text: text, place: place)) }

    // MARK: Time

    /// Virtual time, ns.
    package var clock: UInt64 { network.clock.now }

    /// Lets everything happen that is due now.
    package func settle() { network.run(for: 0) }

    package func run(_ milliseconds: UInt64) { network.run(for: milliseconds * 1_000_000) }

    package func counter(_ name: String) -> UInt64 { stack.counters.value("tcp", name) ?? 0 }

    private func take(_ list: Mbuf) {
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            let bytes = contents(of: packet)
            wire.mbufs.freePacket(packet)
            guard let segment = Sent(bytes, at: clock) else { continue }
            let tcp = bytes[(Int(bytes[0] & 15) * 4)..<Int(big16(bytes, 2))]
            if InternetSum.of(tcp, pseudo: Array(bytes[12..<20]) + [0, 6] + big(UInt16(tcp.count))) != 0 {
                report("the stack has sent a wrong checksum: \(segment)", .init(#fileID, #filePath, #line, #column))
            }
            if segment.flags.contains(.syn), stackISN == nil { stackISN = segment.rawSequence }
            if let timestamp = segment.timestamp { lastStackTimestamp = timestamp.value }
            sent.append(segment)
        }
    }
}

import PluginAPI

/// `lo0`: what is sent comes in again in the next turn, never in the same call.
package final class Loopback: Device {
    private let kernel: Kernel
    private var first: Mbuf?
    private var last: Mbuf?
    private var queued = 0
    private var isClosed = false
    /// Packets of one turn; more are dropped as a full queue drops them.
    private static let limit = 4096

    package init(kernel: Kernel) {
        self.kernel = kernel
        super.init(capabilities: UInt32(ALPS_IFCAP_TXCSUM | ALPS_IFCAP_TSO4))
    }

    package override func transmit(_ list: Mbuf) {
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            guard queued < Self.limit, !isClosed else {
                interface?.drops &+= 1
                kernel.mbufs.freePacket(packet)
                continue
            }
            // It outlives the turn: ring memory under it has to be copied.
            guard let held = kernel.mbufs.hold(packet) else {
                interface?.drops &+= 1
                continue
            }
            // An unfinished sum stays marked as such: receivers trust it, and whoever shows the bytes can finish it.
            if held.pointee.pkt.csum == UInt8(ALPS_CSUM_NONE) { held.pointee.pkt.csum = UInt8(ALPS_CSUM_VALID) }
            held.pointee.pkt.flags = UInt16(ALPS_PKT_LOOPBACK)
            held.pointee.pkt.l2_length = 0
            held.pointee.pkt.conn = nil
            if let last { last.pointee.nextpkt = held } else { first = held }
            last = held
            queued += 1
        }
    }

    package override var hasQueuedPackets: Bool { first != nil }

    package override func drainQueue() {
        guard let list = first else { return }
        first = nil
        last = nil
        queued = 0
        if let interface = borrowedInterface { interface { $0.inputNetworkPackets(list) } } else { kernel.mbufs.free(list) }
    }

    package override func close() {
        isClosed = true
        kernel.mbufs.free(first)
        first = nil
        last = nil
        queued = 0
    }
}

import PluginAPI

/// A device whose other end is the caller: frames that leave are handed to a closure, frames that arrive are put in.
/// It does nothing of its own, so that packets leave as they would be on the wire: segmented and with their checksums.
package final class MemoryDevice: Device {
    private let kernel: Kernel
    private var first: Mbuf?
    private var last: Mbuf?
    private var isClosed = false
    /// Takes every frame that leaves, link header in front.
    package var onTransmit: ((UnsafeRawBufferPointer) -> Void)?

    package init(kernel: Kernel) {
        self.kernel = kernel
        super.init(capabilities: 0)
    }

    package override func transmit(_ list: Mbuf) {
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            let length = Int(packet.pointee.pkt.length)
            if let onTransmit, length > 0 {
                withUnsafeTemporaryAllocation(byteCount: length, alignment: 16) { buffer in
                    guard let base = buffer.baseAddress else { return }
                    kernel.mbufs.copyOut(packet, 0, length, base)
                    onTransmit(UnsafeRawBufferPointer(buffer))
                }
            }
            kernel.mbufs.freePacket(packet)
        }
    }

    /// A frame arrives in the next turn. False without memory.
    @discardableResult
    package func receive(_ frame: [UInt8]) -> Bool {
        guard !isClosed, let packet = kernel.mbufs.cluster(headroom: Device.headroom, capacity: frame.count) else {
            return false
        }
        packet.pointee.data.update(from: frame, count: frame.count)
        packet.pointee.length = UInt32(frame.count)
        packet.pointee.pkt.length = UInt32(frame.count)
        if let last { last.pointee.nextpkt = packet } else { first = packet }
        last = packet
        return true
    }

    package override var hasQueuedPackets: Bool { first != nil }

    package override func drainQueue() {
        guard let list = first else { return }
        first = nil
        last = nil
        if let interface { interface.receiveFrames(list) } else { kernel.mbufs.free(list) }
    }

    package override func close() {
        isClosed = true
        kernel.mbufs.free(first)
        first = nil
        last = nil
        onTransmit = nil
    }
}

/// Stands in for a link resolver where there is only one station to talk to: every next hop has its address.
package final class SingleNeighbor {
    private let hardware: HardwareAddress
    private let ops: UnsafeMutablePointer<alps_neighbor_ops>

    /// Answers for all interfaces of `kernel`, which must have no resolver plugin.
    package init(kernel: Kernel, hardware: HardwareAddress) {
        self.hardware = hardware
        ops = .allocate(capacity: 1)
        ops.initialize(
            to: alps_neighbor_ops(
                size: UInt32(MemoryLayout<alps_neighbor_ops>.size), reserved: 0, resolve: singleNeighborResolve,
                add: { _, _ in ALPS_EOPNOTSUPP }, remove: { _, _, _ in ALPS_ENOENT }, list: { _, _, _, _ in 0 }))
        guard let cell = kernel.plugins.providedCell("alps.neighbor/1:\(ALPS_AF_INET)") else { return }
        let place = UnsafeMutablePointer(mutating: cell)
        place.pointee.ops = UnsafeRawPointer(ops)
        place.pointee.`self` = Unmanaged.passUnretained(self).toOpaque()
        place.pointee.generation &+= 1
    }

    deinit { ops.deallocate() }

    fileprivate func copy(to place: UnsafeMutablePointer<UInt8>) {
        withUnsafeBytes(of: hardware.bytes) { bytes in
            for index in 0..<6 { place[index] = bytes[index] }
        }
    }
}

private func singleNeighborResolve(
    _ context: UnsafeMutableRawPointer, _ ifindex: UInt32, _ nextHop: UnsafePointer<alps_addr>, _ list: Mbuf,
    _ hardware: UnsafeMutablePointer<UInt8>
) -> Int32 {
    Unmanaged<SingleNeighbor>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.copy(to: hardware) }
    return 0
}

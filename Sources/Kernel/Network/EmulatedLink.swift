import Glibc
import PluginAPI

/// Emulated links: in front of a device of a live host, or between two kernels of a lab.
package enum EmulatedLink {
    /// `device` behind an emulated link, both ways (`alps host --link`).
    package static func wrapping(_ device: Device, spec: LinkSpec, kernel: Kernel) -> Device {
        LinkedDevice(device, spec: spec, kernel: kernel)
    }
}

/// A device with an emulated link in front of it, both ways.
package final class LinkedDevice: Device {
    private let inner: Device
    private var outgoing: EmulatedPath?

    package init(_ inner: Device, spec: LinkSpec, kernel: Kernel) {
        self.inner = inner
        super.init(capabilities: inner.capabilities)
        outgoing = EmulatedPath(kernel: kernel, spec: spec, salt: 1) { [unowned self] in self.inner.transmit($0) }
        receiving = EmulatedPath(kernel: kernel, spec: spec, salt: 2) { [unowned self] list in
            if let interface = self.interface { interface.inputFrames(list) } else { kernel.mbufs.free(list) }
        }
        outgoing?.answer = { [unowned self] bytes in
            guard let packet = kernel.mbufs.cluster(headroom: Device.headroom, capacity: bytes.count) else { return }
            packet.pointee.data.update(from: bytes, count: bytes.count)
            packet.pointee.length = UInt32(bytes.count)
            packet.pointee.pkt.length = UInt32(bytes.count)
            self.receiving?.receive(packet)
        }
    }

    package override var interface: Interface? {
        didSet { inner.interface = interface }
    }

    package override func transmit(_ list: Mbuf) { outgoing?.receive(list) }

    package override var hasQueuedPackets: Bool { inner.hasQueuedPackets }

    package override func drainQueue() { inner.drainQueue() }

    package override func flush() { inner.flush() }

    package override var spareBuffers: Int { inner.spareBuffers }

    package override func setPromiscuous(_ on: Bool) { inner.setPromiscuous(on) }

    package override func close() {
        outgoing?.close()
        receiving?.close()
        inner.close()
    }
}

/// One end of an emulated link between two kernels. Packets change their owner on the way: each kernel has its own pool.
package final class LinkEnd: Device {
    private let kernel: Kernel
    private var path: EmulatedPath?
    package weak var peer: LinkEnd?
    private var arrivedFirst: Mbuf?
    private var arrivedLast: Mbuf?
    private var isClosed = false
    /// Sees every frame on its way out, before the link has treated it. [borrows]
    package var tap: ((Mbuf) -> Void)?
    /// Sees every frame that has come over the link, before its kernel does, and may change it.
    package var arrivalTap: ((UnsafeMutableRawBufferPointer) -> Void)?

    /// Both ends of a link: `a` belongs to the first kernel. `spec` is the way from `a` to `b`, `back` the other one, by
    /// default the same. `salt` tells links of one seed apart.
    package static func pair(
        _ a: Kernel, _ b: Kernel, spec: LinkSpec, back: LinkSpec? = nil, salt: UInt64
    ) -> (a: LinkEnd, b: LinkEnd) {
        let ends = (
            a: LinkEnd(kernel: a, spec: spec, salt: salt &* 2),
            b: LinkEnd(kernel: b, spec: back ?? spec, salt: salt &* 2 &+ 1)
        )
        ends.a.peer = ends.b
        ends.b.peer = ends.a
        return ends
    }

    package init(kernel: Kernel, spec: LinkSpec, salt: UInt64) {
        self.kernel = kernel
        // The path cuts and finishes what it gets.
        super.init(capabilities: UInt32(ALPS_IFCAP_TXCSUM | ALPS_IFCAP_TSO4))
        path = EmulatedPath(kernel: kernel, spec: spec, salt: salt) { [unowned self] in self.handOver($0) }
        path?.answer = { [unowned self] bytes in bytes.withUnsafeBytes { self.inject($0) } }
    }

    /// Packets seen and lost on the way out of this end.
    package var seen: UInt64 { path?.seen ?? 0 }
    package var lost: UInt64 { path?.lost ?? 0 }
    /// Packets on their way to the other end.
    package var travelling: Int { path?.count ?? 0 }

    package override func transmit(_ list: Mbuf) {
        if let tap {
            var next: Mbuf? = list
            while let frame = next {
                next = frame.pointee.nextpkt
                tap(frame)
            }
        }
        path?.receive(list)
    }

    /// Copies frames into the other kernel's memory; they wait there for its next turn.
    private func handOver(_ list: Mbuf) {
        var next: Mbuf? = list
        while let frame = next {
            next = frame.pointee.nextpkt
            frame.pointee.nextpkt = nil
            let length = Int(frame.pointee.pkt.length)
            peer?.arrive(length) { kernel.mbufs.copyOut(frame, 0, length, $0) }
            kernel.mbufs.freePacket(frame)
        }
    }

    /// Puts a frame into this end as if it had come over the link (tests, fuzzers). [borrows]
    package func inject(_ bytes: UnsafeRawBufferPointer) {
        arrive(bytes.count) { if let base = bytes.baseAddress { memcpy($0, base, bytes.count) } }
    }

    private func arrive(_ length: Int, fill: (UnsafeMutableRawPointer) -> Void) {
        guard !isClosed else { return }
        guard let packet = kernel.mbufs.cluster(headroom: Device.headroom, capacity: length) else {
            interface?.errorsIn &+= 1
            return
        }
        fill(packet.pointee.data)
        if let arrivalTap { arrivalTap(UnsafeMutableRawBufferPointer(start: packet.pointee.data, count: length)) }
        packet.pointee.length = UInt32(length)
        packet.pointee.pkt.length = UInt32(length)
        if let last = arrivedLast { last.pointee.nextpkt = packet } else { arrivedFirst = packet }
        arrivedLast = packet
    }

    package override var hasQueuedPackets: Bool { arrivedFirst != nil }

    package override func drainQueue() {
        guard let list = arrivedFirst else { return }
        arrivedFirst = nil
        arrivedLast = nil
        if let interface { interface.receiveFrames(list) } else { kernel.mbufs.free(list) }
    }

    package override func close() {
        isClosed = true
        path?.close()
        kernel.mbufs.free(arrivedFirst)
        arrivedFirst = nil
        arrivedLast = nil
    }
}

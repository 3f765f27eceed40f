import Glibc
package import PluginAPI

/// The link layer: frames to ethertypes on the way in, link headers and what the device cannot do on the way out.
package final class Ethernet {
    /// The kernel owns them.
    private var pool: Borrowed<MbufPool>!
    private var clock: Borrowed<KernelClock>!
    private var interfaces: Borrowed<InterfaceTable>!
    package static let headerLength = 14

    /// Pointers only, so that a packet costs no reference counting.
    private struct Taker {
        var ethertype: UInt16
        var input: Input
        var context: UnsafeMutableRawPointer
        var instance: Unmanaged<PluginInstance>?
    }

    package typealias Input = @convention(c) (UnsafeMutableRawPointer, Mbuf) -> Void
    /// The host's own listener to an ethertype that no plugin has: a tool, a test.
    private var listener: Taker?

    static let maximumTakers = 16
    private let takers = UnsafeMutablePointer<Taker>.allocate(capacity: maximumTakers)
    private var takerCount = 0
    /// Packet sockets that want to see frames; what is looked at for each packet.
    package internal(set) var frameListeners = 0
    private var linkSockets: Borrowed<LinkSockets>!
    /// Cell of "alps.neighbor/1:2", ARP's.
    private var neighborCell: UnsafePointer<alps_cell>!

    deinit { takers.deallocate() }

    func attach(_ kernel: Kernel) {
        pool = Borrowed(kernel.mbufs)
        clock = Borrowed(kernel.clock)
        interfaces = Borrowed(kernel.interfaces)
        linkSockets = Borrowed(kernel.linkSockets)
        neighborCell = kernel.plugins.providedCell("alps.neighbor/1:\(ALPS_AF_INET)")
    }

    func setTakers(_ list: [(UInt16, Input, PluginInstance)]) {
        takerCount = 0
        for (ethertype, input, instance) in list.prefix(Self.maximumTakers) {
            (takers + takerCount).initialize(
                to: Taker(
                    ethertype: ethertype, input: input, context: instance.raw, instance: .passUnretained(instance)))
            takerCount += 1
        }
    }

    /// Lists of packets of `ethertype` go to `input` unless a plugin takes them. `input` [consumes].
    package func listen(_ ethertype: UInt16, context: UnsafeMutableRawPointer, input: @escaping Input) {
        listener = Taker(ethertype: ethertype, input: input, context: context, instance: nil)
    }

    // MARK: Input

    /// A list of frames, `data` at the Ethernet header. [consumes]
    func input(_ interface: Interface, _ list: Mbuf) { pool { input(interface, list, $0) } }

    private func input(_ interface: Interface, _ list: Mbuf, _ pool: MbufPool) {
        let now = clock { $0.now }
        var runType: UInt16 = 0
        var run: Mbuf?
        var tail: Mbuf?
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            interface.packetsIn &+= 1
            interface.bytesIn &+= UInt64(packet.pointee.pkt.length)
            if let capture = interface.capture { capture.record(packet, isOutput: false) }
            guard interface.isUp, packet.pointee.length >= UInt32(Self.headerLength) else {
                interface.errorsIn &+= 1
                pool.freePacket(packet)
                continue
            }
            if frameListeners != 0 { show(packet, interface, isOutgoing: false) }
            let data = packet.pointee.data
            let ethertype = UInt16(data[12]) << 8 | UInt16(data[13])
            // Below 0x600 it is an IEEE 802.3 length: nobody here speaks LLC.
            guard ethertype >= 0x600, isForUs(interface, data) || data[0] & 1 != 0 else {
                interface.drops &+= 1
                pool.freePacket(packet)
                continue
            }
            var flags: UInt16 = 0
            if data[0] & 1 != 0 {
                let isBroadcast = (0..<6).allSatisfy { data[$0] == 0xff }
                flags = UInt16(isBroadcast ? ALPS_PKT_BROADCAST : ALPS_PKT_MULTICAST)
            }
            packet.pointee.data += Self.headerLength
            packet.pointee.length -= UInt32(Self.headerLength)
            packet.pointee.pkt.length -= UInt32(Self.headerLength)
            packet.pointee.pkt.flags = flags
            packet.pointee.pkt.l2_length = UInt16(Self.headerLength)
            packet.pointee.pkt.ethertype = ethertype
            packet.pointee.pkt.ifindex = interface.raw.pointee.index
            packet.pointee.pkt.timestamp = now
            if packet.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) {
                let start = packet.pointee.pkt.csum_start
                packet.pointee.pkt.csum_start = start - min(start, UInt16(Self.headerLength))
            }
            if let first = run, runType != ethertype {
                hand(runType, first, interface)
                run = nil
            }
            if run == nil {
                run = packet
                runType = ethertype
            } else {
                tail?.pointee.nextpkt = packet
            }
            tail = packet
        }
        if let first = run { hand(runType, first, interface) }
    }

    /// A list of network packets of one family from lo0. [consumes]
    func inputNetwork(_ interface: Interface, _ list: Mbuf) {
        let now = clock { $0.now }
        var next: Mbuf? = list
        var run: Mbuf?
        var tail: Mbuf?
        var runType: UInt16 = 0
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            interface.packetsIn &+= 1
            interface.bytesIn &+= UInt64(packet.pointee.pkt.length)
            if let capture = interface.capture { capture.record(packet, isOutput: false) }
            if frameListeners != 0 { show(packet, interface, isOutgoing: false) }
            packet.pointee.pkt.ifindex = interface.raw.pointee.index
            packet.pointee.pkt.timestamp = now
            let ethertype = packet.pointee.pkt.ethertype
            if let first = run, runType != ethertype {
                hand(runType, first, interface)
                run = nil
            }
            if run == nil {
                run = packet
                runType = ethertype
            } else {
                tail?.pointee.nextpkt = packet
            }
            tail = packet
        }
        if let first = run { hand(runType, first, interface) }
    }

    @inline(never)
    private func show(_ packet: Mbuf, _ interface: Interface, isOutgoing: Bool) {
        linkSockets { $0.show(packet, interface, isOutgoing: isOutgoing) }
    }

    @inline(__always)
    private func isForUs(_ interface: Interface, _ data: UnsafePointer<UInt8>) -> Bool {
        memcmp(data, &interface.raw.pointee.hardware, 6) == 0
    }

    private func hand(_ ethertype: UInt16, _ list: Mbuf, _ interface: Interface) {
        for index in 0..<takerCount where takers[index].ethertype == ethertype {
            takers[index].instance?._withUnsafeGuaranteedRef { $0.markBatch() }
            takers[index].input(takers[index].context, list)
            return
        }
        if let listener, listener.ethertype == ethertype { return listener.input(listener.context, list) }
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            interface.drops &+= 1
            pool { $0.freePacket(packet) }
        }
    }

    // MARK: Output

    /// A list of network packets to one next hop. [consumes]
    package func output(
        _ ifindex: UInt32, _ list: Mbuf, _ family: UInt16, _ nextHop: UnsafePointer<alps_addr>
    ) -> Int32 {
        guard let interface = interfaces({ $0.borrow(ifindex) }), interface({ $0.isUp }) else { return drop(list, ENETDOWN) }
        return interface { output($0, list, family, nextHop) }
    }

    private func drop(_ list: Mbuf, _ error: Int32) -> Int32 {
        pool { $0.free(list) }
        return error
    }

    private func output(
        _ interface: Interface, _ list: Mbuf, _ family: UInt16, _ nextHop: UnsafePointer<alps_addr>
    ) -> Int32 {
        guard family == UInt16(ALPS_AF_INET) else { return drop(list, EAFNOSUPPORT) }
        let ethertype: UInt16 = 0x0800
        if interface.isLoopback {
            return transmitLoopback(interface, list, ethertype)
        }
        var hardware: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8, UInt8, UInt8) = (0, 0, 0, 0, 0, 0, 0, 0)
        let address = nextHop.pointee.bytes
        if isBroadcast(interface, nextHop) {
            hardware = (0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0)
        } else if address.0 & 0xf0 == 0xe0 {
            // RFC 1112, section 6.4: the low 23 bits of the group.
            hardware = (0x01, 0x00, 0x5e, address.1 & 0x7f, address.2, address.3, 0, 0)
        } else {
            guard let ops = neighborCell.pointee.ops, let instance = neighborCell.pointee.`self` else {
                return drop(list, EHOSTUNREACH)
            }
            let status = withUnsafeMutablePointer(to: &hardware) { pointer in
                pointer.withMemoryRebound(to: UInt8.self, capacity: 8) {
                    ops.assumingMemoryBound(to: alps_neighbor_ops.self).pointee.resolve(
                        instance, interface.raw.pointee.index, nextHop, list, $0)
                }
            }
            // Held while a request is out is no error to the sender.
            guard status == 0 else { return status == EAGAIN ? 0 : status }
        }
        return withUnsafePointer(to: &hardware) { pointer in
            pointer.withMemoryRebound(to: UInt8.self, capacity: 8) { transmit(interface, list, ethertype, $0) }
        }
    }

    /// One packet to a given link address. [consumes]
    package func outputLink(
        _ ifindex: UInt32, _ packet: Mbuf, _ ethertype: UInt16, _ destination: UnsafePointer<UInt8>
    ) -> Int32 {
        guard let interface = interfaces({ $0.borrow(ifindex) }), interface({ $0.isUp && !$0.isLoopback }) else {
            return drop(packet, ENETDOWN)
        }
        return interface { transmit($0, packet, ethertype, destination) }
    }

    /// A frame as a program made it, link header in front, within the interface's MTU. [consumes]
    func outputFrame(_ interface: Interface, _ frame: Mbuf) -> Int32 {
        guard !interface.isLoopback else {
            let data = frame.pointee.data
            let ethertype = UInt16(data[12]) << 8 | UInt16(data[13])
            // As from a wire: what is for another station is nobody's here.
            guard data[0] & 1 != 0 || (0..<6).allSatisfy({ data[$0] == 0 }) else {
                interface.drops &+= 1
                return drop(frame, 0)
            }
            pool { $0.adjust(frame, front: Self.headerLength, back: 0) }
            return transmitLoopback(interface, frame, ethertype)
        }
        frame.pointee.pkt.l2_length = UInt16(Self.headerLength)
        interface.packetsOut &+= 1
        interface.bytesOut &+= UInt64(frame.pointee.pkt.length)
        if let capture = interface.capture { capture.record(frame, isOutput: true) }
        if frameListeners != 0 { show(frame, interface, isOutgoing: true) }
        interface.device.transmit(frame)
        return 0
    }

    private func isBroadcast(_ interface: Interface, _ address: UnsafePointer<alps_addr>) -> Bool {
        let bytes = address.pointee.bytes
        if bytes.0 & bytes.1 & bytes.2 & bytes.3 == 0xff { return true }
        for index in 0..<Int(interface.raw.pointee.address_count) {
            guard let own = interface.raw.pointee.addresses?[index] else { continue }
            let broadcast = own.broadcast.bytes
            if broadcast.0 | broadcast.1 | broadcast.2 | broadcast.3 != 0, broadcast.0 == bytes.0,
                broadcast.1 == bytes.1, broadcast.2 == bytes.2, broadcast.3 == bytes.3
            {
                return true
            }
        }
        return false
    }

    private func transmitLoopback(_ interface: Interface, _ list: Mbuf, _ ethertype: UInt16) -> Int32 {
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.pkt.ethertype = ethertype
            interface.packetsOut &+= 1
            interface.bytesOut &+= UInt64(packet.pointee.pkt.length)
            if frameListeners != 0 { show(packet, interface, isOutgoing: true) }
        }
        interface.device.transmit(list)
        return 0
    }

    /// Adds the link header, does in software what the device cannot, and hands over.
    private func transmit(
        _ interface: Interface, _ list: Mbuf, _ ethertype: UInt16, _ destination: UnsafePointer<UInt8>
    ) -> Int32 {
        pool { transmit(interface, list, ethertype, destination, $0) }
    }

    private func transmit(
        _ interface: Interface, _ list: Mbuf, _ ethertype: UInt16, _ destination: UnsafePointer<UInt8>, _ pool: MbufPool
    ) -> Int32 {
        let mtu = interface.raw.pointee.mtu
        var first: Mbuf?
        var last: Mbuf?
        var failed: Int32 = 0
        func frame(_ piece: Mbuf) -> Mbuf? {
            guard let frame = pool.prepend(piece, Self.headerLength) else {
                interface.errorsOut &+= 1
                failed = ENOBUFS
                return nil
            }
            let data = frame.pointee.data
            memcpy(data, destination, 6)
            memcpy(data + 6, &interface.raw.pointee.hardware, 6)
            data[12] = UInt8(ethertype >> 8)
            data[13] = UInt8(truncatingIfNeeded: ethertype)
            frame.pointee.pkt.l2_length = UInt16(Self.headerLength)
            frame.pointee.pkt.ethertype = ethertype
            interface.packetsOut &+= 1
            interface.bytesOut &+= UInt64(frame.pointee.pkt.length)
            if let capture = interface.capture { capture.record(frame, isOutput: true) }
            if frameListeners != 0 { show(frame, interface, isOutgoing: true) }
            return frame
        }
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            guard packet.pointee.pkt.length <= mtu || packet.pointee.pkt.gso_type != UInt8(ALPS_GSO_NONE) else {
                interface.errorsOut &+= 1
                failed = EMSGSIZE
                pool.freePacket(packet)
                continue
            }
            if needsCutting(interface, packet) {
                if let earlier = first { interface.device.transmit(earlier) }
                (first, last) = (nil, nil)
                let isWhole = pool.segment(packet) { piece in
                    if let frame = frame(piece) { interface.device.transmit(frame) }
                }
                if !isWhole {
                    interface.errorsOut &+= 1
                    failed = ENOBUFS
                }
                continue
            }
            guard let ready = finished(interface, packet, pool) else {
                interface.errorsOut &+= 1
                failed = ENOBUFS
                continue
            }
            if let frame = frame(ready) {
                if let last { last.pointee.nextpkt = frame } else { first = frame }
                last = frame
            }
        }
        if let first { interface.device.transmit(first) }
        return failed
    }

    /// The device takes no such packet as a whole.
    @inline(__always)
    private func needsCutting(_ interface: Interface, _ packet: Mbuf) -> Bool {
        // Devices, and systems behind a tap, clear CWR in all segments but the first: no good for ALPS_GSO_ACE.
        let type = packet.pointee.pkt.gso_type & ~UInt8(ALPS_GSO_ECN)
        return type != UInt8(ALPS_GSO_NONE)
            && (type != UInt8(ALPS_GSO_TCP4) || interface.raw.pointee.capabilities & UInt32(ALPS_IFCAP_TSO4) == 0)
    }

    /// With its checksum, if the device does not make it. [consumes]
    @inline(__always)
    private func finished(_ interface: Interface, _ packet: Mbuf, _ pool: MbufPool) -> Mbuf? {
        guard packet.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL),
            interface.raw.pointee.capabilities & UInt32(ALPS_IFCAP_TXCSUM) == 0
        else { return packet }
        return pool.finishChecksum(packet)
    }
}

extension Interface {
    /// Frames from the device, `data` at the link header. [consumes]
    package func receiveFrames(_ list: Mbuf) {
        if let receiving = device.receiving { receiving.receive(list) } else { inputFrames(list) }
    }

    /// The same, past any emulated link.
    func inputFrames(_ list: Mbuf) { ethernet { $0.input(self, list) } }

    /// Network packets from lo0. [consumes]
    func inputNetworkPackets(_ list: Mbuf) { ethernet { $0.inputNetwork(self, list) } }
}

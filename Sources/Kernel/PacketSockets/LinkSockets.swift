import CLinux
import Glibc
import PluginAPI

/// The packet sockets of all programs, and what shows them the frames.
package final class LinkSockets {
    private(set) var kernel: Kernel!
    package private(set) var all: [LinkSocket] = []
    /// The frame being shown, in one piece.
    private var scratch: UnsafeMutablePointer<UInt8>?
    /// A frame this socket sends is not shown to it.
    private var sender: LinkSocket?
    /// PACKET_MR_PROMISC memberships by interface.
    private var promiscuity: [UInt32: Int] = [:]
    var fanouts: [UInt16: PacketFanout] = [:]

    /// What a packet can be long, with a link header: 64 KiB, headers counted twice.
    private static let largest = 65536 + 256

    package init() {}

    func attach(_ kernel: Kernel) { self.kernel = kernel }

    deinit { scratch?.deallocate() }

    /// See `Kernel.shutdown`.
    func detach() {
        for socket in all { socket.close() }
        kernel = nil
    }

    /// socket(2) with AF_PACKET. `protocolNumber` in the machine's order.
    package func create(type: Int32, protocolNumber: UInt16, uid: UInt32 = 0, pid: Int32 = 0) throws -> LinkSocket {
        guard type == Int32(ALPS_SOCK_RAW) || type == Int32(ALPS_SOCK_DGRAM) else {
            throw KernelError(ESOCKTNOSUPPORT, "packet sockets are SOCK_RAW or SOCK_DGRAM")
        }
        let socket = LinkSocket(table: self, type: type, protocolNumber: protocolNumber, uid: uid, pid: pid)
        all.append(socket)
        changed()
        return socket
    }

    func remove(_ socket: LinkSocket) {
        all.removeAll { $0 === socket }
        changed()
    }

    /// Who listens has changed: the link layer looks at one number only.
    func changed() {
        kernel.interfaces.ethernet.frameListeners = all.reduce(0) { $0 + ($1.isListening ? 1 : 0) }
    }

    func interface(_ index: UInt32) -> Interface? { kernel.interfaces.interface(index) }

    func randomWord() -> UInt32 { UInt32(truncatingIfNeeded: kernel.random.next()) }

    func interfaceChanged(_ kind: UInt32, _ interface: Interface) {
        guard !all.isEmpty else { return }
        let isGone = kind == UInt32(ALPS_IFEVENT_DETACH)
        guard isGone || kind == UInt32(ALPS_IFEVENT_UP) || kind == UInt32(ALPS_IFEVENT_DOWN) else { return }
        for socket in all {
            socket.interfaceChanged(interface.raw.pointee.index, isUp: !isGone && interface.isUp, isGone: isGone)
        }
    }

    func changePromiscuity(_ membership: LinkMembership, _ step: Int) {
        guard membership.type == LinkMembership.promiscuous else { return }
        let before = promiscuity[membership.ifindex, default: 0]
        let now = max(before + step, 0)
        promiscuity[membership.ifindex] = now == 0 ? nil : now
        if (before == 0) != (now == 0) { interface(membership.ifindex)?.device.setPromiscuous(now > 0) }
    }

    // MARK: Showing

    /// A packet to those who listen; [borrows] it. `data` is at the link header, except on lo0, where there is none.
    func show(_ packet: Mbuf, _ interface: Interface, isOutgoing: Bool) {
        if scratch == nil { scratch = .allocate(capacity: Self.largest) }
        guard let scratch else { return }
        let gap = interface.isLoopback ? Ethernet.headerLength : 0
        let length = Int(packet.pointee.pkt.length)
        guard length + gap <= Self.largest, length + gap >= Ethernet.headerLength else { return }
        var frame = LinkFrame(
            bytes: UnsafePointer(scratch), length: length + gap, protocolNumber: packet.pointee.pkt.ethertype, kind: 0,
            ifindex: interface.raw.pointee.index,
            hardwareType: UInt16(interface.isLoopback ? ARPHRD_LOOPBACK : ARPHRD_ETHER), timestamp: 0)
        if gap > 0 {
            memset(scratch, 0, 12)
            scratch[12] = UInt8(frame.protocolNumber >> 8)
            scratch[13] = UInt8(frame.protocolNumber & 0xff)
        } else {
            kernel.mbufs.copyOut(packet, 0, Ethernet.headerLength, scratch)
            frame.protocolNumber = protocolNumber(packet, scratch)
        }
        frame.kind = kind(scratch, interface, isOutgoing: isOutgoing)
        guard all.contains(where: { $0 !== sender && $0.wants(frame, isOutgoing: isOutgoing) }) else { return }
        kernel.mbufs.copyOut(packet, 0, length, scratch + gap)
        frame.timestamp = kernel.clock.wall
        var isFinished = packet.pointee.pkt.csum != UInt8(ALPS_CSUM_PARTIAL)
        if !isOutgoing, packet.pointee.pkt.csum != UInt8(ALPS_CSUM_NONE) { frame.status = RingStatus.checksumValid }
        for socket in all where socket !== sender && socket.wants(frame, isOutgoing: isOutgoing) {
            let receiver: LinkSocket
            if let fanout = socket.fanout {
                // One of a group takes it; the group is asked where its first member stands.
                guard fanout.isFirst(socket), let chosen = fanout.choose(frame) else { continue }
                receiver = chosen
            } else {
                receiver = socket
            }
            let wanted = receiver.filtered(frame)
            guard wanted > 0 else { continue }
            if !isFinished {
                finishChecksum(scratch + gap, length, packet)
                isFinished = true
            }
            receiver.deliver(frame, length: wanted)
        }
    }

    /// As eth_type_trans tells it: below 0x600 the field is a length.
    private func protocolNumber(_ packet: Mbuf, _ header: UnsafePointer<UInt8>) -> UInt16 {
        let field = UInt16(header[12]) << 8 | UInt16(header[13])
        guard field < 0x600 else { return field }
        guard Int(packet.pointee.pkt.length) >= Ethernet.headerLength + 2 else { return 4 }
        var first: UInt16 = 0
        kernel.mbufs.copyOut(packet, Ethernet.headerLength, 2, &first)
        return first == 0xffff ? 1 : 4
    }

    private func kind(_ header: UnsafePointer<UInt8>, _ interface: Interface, isOutgoing: Bool) -> UInt8 {
        if isOutgoing { return 4 }  // PACKET_OUTGOING
        // The loopback interface's broadcast address is all zeros.
        let isBroadcast = !interface.isLoopback && (0..<6).allSatisfy { header[$0] == 0xff }
        if header[0] & 1 != 0 { return isBroadcast ? 1 : 2 }  // BROADCAST, MULTICAST
        if interface.isLoopback { return (0..<6).allSatisfy { header[$0] == 0 } ? 0 : 3 }
        return memcmp(header, &interface.raw.pointee.hardware, 6) == 0 ? 0 : 3  // HOST, OTHERHOST
    }

    private func finishChecksum(_ bytes: UnsafeMutablePointer<UInt8>, _ length: Int, _ packet: Mbuf) {
        let start = Int(packet.pointee.pkt.csum_start)
        let place = start + Int(packet.pointee.pkt.csum_offset)
        guard start < length, place + 2 <= length else { return }
        let value = InternetChecksum.finish(InternetChecksum.sum(bytes + start, length - start))
        bytes[place] = UInt8(value >> 8)
        bytes[place + 1] = UInt8(value & 0xff)
    }

    // MARK: Sending

    /// Sends a frame: what is in `bytes`, behind a link header if there is one here.
    func transmit(
        _ interface: Interface, _ header: UnsafeRawBufferPointer?, _ bytes: UnsafeRawBufferPointer, from socket: LinkSocket
    ) -> Int32 {
        let pool = kernel.mbufs
        guard let packet = pool.cluster(headroom: Device.headroom, capacity: 1792) else { return ENOBUFS }
        var status: Int32 = 0
        if let header, let base = header.baseAddress { status = pool.append(packet, base, header.count) }
        if status == 0, bytes.count > 0, let base = bytes.baseAddress { status = pool.append(packet, base, bytes.count) }
        guard status == 0 else {
            pool.freePacket(packet)
            return status
        }
        sender = socket
        defer { sender = nil }
        return kernel.interfaces.ethernet.outputFrame(interface, packet)
    }
}

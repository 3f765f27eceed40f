import PluginAPI
import PluginKit

/// An ARP packet for IPv4 over Ethernet (RFC 826): 28 bytes.
enum Packet {
    static var length: Int { 28 }
    static var request: UInt16 { 1 }
    static var reply: UInt16 { 2 }
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// An address of this stack on an interface; `nil` for others. Duplicates are not ours.
    func ownAddress(_ ifnet: UnsafePointer<alps_ifnet>, _ address: UInt32) -> UnsafePointer<alps_ifaddr>? {
        guard let list = ifnet.pointee.addresses else { return nil }
        for index in 0..<Int(ifnet.pointee.address_count) {
            let entry = list + index
            guard entry.pointee.family == UInt16(ALPS_AF_INET), entry.pointee.flags & ALPS_IFA_DUPLICATE == 0 else {
                continue
            }
            if ifaddr(entry) == address { return entry }
        }
        return nil
    }

    /// Source address for a question about `target`: the one whose network it is on, else the first.
    func sourceAddress(_ ifnet: UnsafePointer<alps_ifnet>, for target: UInt32) -> UInt32 {
        guard let list = ifnet.pointee.addresses else { return 0 }
        var first: UInt32 = 0
        for index in 0..<Int(ifnet.pointee.address_count) {
            let entry = list + index
            guard entry.pointee.family == UInt16(ALPS_AF_INET), entry.pointee.flags & ALPS_IFA_DUPLICATE == 0 else {
                continue
            }
            let address = ifaddr(entry)
            let mask = networkMask(entry)
            if address & mask == target & mask { return address }
            if first == 0 { first = address }
        }
        return first
    }

    @inline(__always)
    func ifaddr(_ entry: UnsafePointer<alps_ifaddr>) -> UInt32 {
        withUnsafeBytes(of: entry.pointee.addr) { $0.loadUnaligned(as: UInt32.self) }
    }

    /// The network mask of an address, as it lies in a packet.
    private func networkMask(_ entry: UnsafePointer<alps_ifaddr>) -> UInt32 {
        let length = UInt32(entry.pointee.prefix_length)
        return length == 0 ? 0 : (UInt32.max << (32 - min(length, 32))).bigEndian
    }

    /// Asks who has `target`; by unicast if an address is given, else by broadcast.
    func sendRequest(_ ifindex: UInt32, _ target: UInt32, to unicast: UnsafePointer<UInt8>?) {
        guard let ifnet = ifnet(ifindex) else { return }
        send(
            ifnet, Packet.request, sender: sourceAddress(ifnet, for: target), target: target, targetHardware: nil,
            to: unicast)
        count(.requestsSent)
    }

    /// Builds and sends one packet; `unicast` nil broadcasts.
    func send(
        _ ifnet: UnsafePointer<alps_ifnet>, _ operation: UInt16, sender: UInt32, target: UInt32,
        targetHardware: UnsafePointer<UInt8>?, to unicast: UnsafePointer<UInt8>?
    ) {
        guard ifnet.pointee.type == ALPS_IFT_ETHER, ifnet.pointee.flags & ALPS_IFF_NOARP == 0,
            let packet = services.mbuf.pointee.packet(services.mbufCell.instance, ALPS_MBUF_HEADROOM)
        else { return }
        packet.pointee.length = UInt32(Packet.length)
        packet.pointee.pkt.length = UInt32(Packet.length)
        let data = packet.pointee.data
        data.store16(0, 1)
        data.store16(2, 0x0800)
        data[4] = 6
        data[5] = 4
        data.store16(6, operation)
        withUnsafeBytes(of: ifnet.pointee.hardware) { bytes in
            for index in 0..<6 { data[8 + index] = bytes[index] }
        }
        UnsafeMutableRawPointer(data).storeBytes(of: sender, toByteOffset: 14, as: UInt32.self)
        for index in 0..<6 { data[18 + index] = targetHardware?[index] ?? 0 }
        UnsafeMutableRawPointer(data).storeBytes(of: target, toByteOffset: 24, as: UInt32.self)
        var destination: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8) = (255, 255, 255, 255, 255, 255)
        if let unicast {
            destination = (unicast[0], unicast[1], unicast[2], unicast[3], unicast[4], unicast[5])
        }
        let cell = services.ifnetCell
        withUnsafePointer(to: &destination) { pointer in
            pointer.withMemoryRebound(to: UInt8.self, capacity: 6) { destination in
                _ = cell.ops(alps_ifnet_ops.self).pointee.output_link(
                    cell.instance, ifnet.pointee.index, packet, 0x0806, destination)
            }
        }
    }
}

// MARK: Input

func arpInput(_ context: UnsafeMutableRawPointer, _ list: Mbuf) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    let ops = instance.services.mbuf
    let pool = instance.services.mbufCell.instance
    var next: Mbuf? = list
    while let packet = next {
        next = packet.pointee.nextpkt
        packet.pointee.nextpkt = nil
        instance.count(.received)
        guard packet.pointee.pkt.length >= UInt32(Packet.length) else {
            instance.count(.malformed)
            ops.pointee.free_packet(pool, packet)
            continue
        }
        guard let whole = ops.pointee.pullup(pool, packet, UInt32(Packet.length)) else { continue }
        instance.input(whole)
        ops.pointee.free_packet(pool, whole)
    }
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// RFC 826, "Packet Reception".
    fileprivate func input(_ packet: Mbuf) {
        let data = UnsafePointer(packet.pointee.data)
        guard data.load16(0) == 1, data.load16(2) == 0x0800, data[4] == 6, data[5] == 4 else {
            count(.malformed)
            return
        }
        let operation = data.load16(6)
        guard operation == Packet.request || operation == Packet.reply,
            let ifnet = ifnet(packet.pointee.pkt.ifindex), ifnet.pointee.type == ALPS_IFT_ETHER
        else {
            count(.malformed)
            return
        }
        let hardware = data + 8
        let sender = UnsafeRawPointer(data).loadUnaligned(fromByteOffset: 14, as: UInt32.self)
        let target = UnsafeRawPointer(data).loadUnaligned(fromByteOffset: 24, as: UInt32.self)
        count(operation == Packet.request ? .requestsReceived : .repliesReceived)
        // A group address as somebody's own makes no sense; our own packets may come back from a bridge.
        guard hardware[0] & 1 == 0, !isZero(hardware), !hasHardware(ifnet, hardware) else { return }
        if sender != 0, conflicts(ifnet, sender, hardware) { return }
        if sender == 0, operation == Packet.request, probeConflicts(ifnet, target, hardware) { return }

        var merged = false
        if sender != 0, sender != .max, let entry = neighbor(ifnet.pointee.index, sender) {
            resolved(entry, hardware)
            merged = true
        }
        guard let own = ownAddress(ifnet, target) else {
            if operation == Packet.request { answerForPublished(ifnet, sender, target, hardware) }
            return
        }
        if !merged, sender != 0, sender != .max, isOnLink(own, sender),
            let entry = makeNeighbor(ifnet.pointee.index, sender)
        {
            resolved(entry, hardware)
        }
        guard operation == Packet.request else { return }
        send(ifnet, Packet.reply, sender: target, target: sender, targetHardware: hardware, to: hardware)
        count(.repliesSent)
    }

    private func isZero(_ hardware: UnsafePointer<UInt8>) -> Bool {
        hardware[0] | hardware[1] | hardware[2] | hardware[3] | hardware[4] | hardware[5] == 0
    }

    func hasHardware(_ ifnet: UnsafePointer<alps_ifnet>, _ hardware: UnsafePointer<UInt8>) -> Bool {
        withUnsafeBytes(of: ifnet.pointee.hardware) { bytes in
            for index in 0..<6 where bytes[index] != hardware[index] { return false }
            return true
        }
    }

    private func isOnLink(_ own: UnsafePointer<alps_ifaddr>, _ address: UInt32) -> Bool {
        let mask = networkMask(own)
        return ifaddr(own) & mask == address & mask
    }

    /// Proxy ARP for published entries.
    private func answerForPublished(
        _ ifnet: UnsafePointer<alps_ifnet>, _ sender: UInt32, _ target: UInt32, _ hardware: UnsafePointer<UInt8>
    ) {
        guard let entry = neighbor(ifnet.pointee.index, target), entry.pointee.flags & ALPS_NEIGHBOR_PUBLISHED != 0
        else {
            return
        }
        send(ifnet, Packet.reply, sender: target, target: sender, targetHardware: hardware, to: hardware)
        count(.repliesSent)
    }
}

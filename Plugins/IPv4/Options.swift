import PluginAPI
import PluginKit

/// IPv4 options (RFC 791, section 3.1): what a socket sends, and what comes in.
struct SocketOptions {
    /// Options to send, padded to a multiple of 4.
    var length: UInt8
    var bytes: (UInt64, UInt64, UInt64, UInt64, UInt64)
    /// Linux's IP_MTU_DISCOVER value.
    var mtuDiscover: UInt8
    var receiveTTL: Bool
    var receiveTOS: Bool
    var receiveError: Bool
    var packetInfo: Bool
    var bindWithoutPort: Bool
    var multicastAll: Bool
    /// ICMP_FILTER of raw sockets: bit set = type is dropped.
    var icmpFilter: UInt32
    var memberships: UnsafeMutablePointer<Membership>?
}

private enum OptionType {
    static var end: UInt8 { 0 }
    static var noOperation: UInt8 { 1 }
    static var recordRoute: UInt8 { 7 }
    static var timestamp: UInt8 { 68 }
    static var looseRoute: UInt8 { 131 }
    static var strictRoute: UInt8 { 137 }
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// The socket's own options, made at first use.
    func options(_ netpcb: NetworkPCB) -> UnsafeMutablePointer<SocketOptions>? {
        if let made = netpcb.pointee.options { return made.assumingMemoryBound(to: SocketOptions.self) }
        guard let made = services.allocate(SocketOptions.self) else { return nil }
        made.pointee.multicastAll = true
        made.pointee.mtuDiscover = 1
        netpcb.pointee.options = UnsafeMutableRawPointer(made)
        return made
    }

    func existingOptions(_ netpcb: UnsafePointer<alps_netpcb>) -> UnsafeMutablePointer<SocketOptions>? {
        netpcb.pointee.options?.assumingMemoryBound(to: SocketOptions.self)
    }

    func releaseOptions(_ netpcb: NetworkPCB) {
        guard let options = existingOptions(netpcb) else { return }
        while let membership = options.pointee.memberships {
            options.pointee.memberships = membership.pointee.next
            leaveGroup(membership.pointee.group, membership.pointee.ifindex)
            services.free(membership)
        }
        services.free(options)
        netpcb.pointee.options = nil
        netpcb.pointee.header_length = UInt32(Header.minimumLength)
    }

    /// Puts a socket's options behind the fixed header.
    func insertOptions(_ netpcb: NetworkPCB, _ data: UnsafeMutablePointer<UInt8>) {
        let length = Int(netpcb.pointee.header_length) - Header.minimumLength
        guard let options = existingOptions(netpcb), length <= 40 else {
            for index in 0..<length { data[Header.minimumLength + index] = OptionType.end }
            return
        }
        withUnsafeBytes(of: options.pointee.bytes) { bytes in
            for index in 0..<length { data[Header.minimumLength + index] = bytes[index] }
        }
    }

    /// IP_OPTIONS. Source routes are refused: nobody forwards them.
    func setOptions(_ netpcb: NetworkPCB, _ value: UnsafePointer<UInt8>, _ count: Int) -> Int32 {
        guard count <= 40, let options = options(netpcb) else { return ALPS_EINVAL }
        var at = 0
        while at < count, value[at] != OptionType.end {
            if value[at] == OptionType.noOperation {
                at += 1
                continue
            }
            guard at + 1 < count, value[at + 1] >= 2, at + Int(value[at + 1]) <= count else { return ALPS_EINVAL }
            if value[at] == OptionType.looseRoute || value[at] == OptionType.strictRoute { return ALPS_EPERM }
            at += Int(value[at + 1])
        }
        let padded = (count + 3) & ~3
        withUnsafeMutableBytes(of: &options.pointee.bytes) { bytes in
            for index in 0..<40 { bytes[index] = index < count ? value[index] : 0 }
        }
        options.pointee.length = UInt8(count)
        netpcb.pointee.header_length = UInt32(Header.minimumLength + padded)
        return 0
    }

    /// Walks the options of a packet that has come in (RFC 1122, section 3.2.1.8). Ours to record into, others to skip.
    /// Nil if the packet is used up.
    func inputOptions(_ packet: Mbuf) -> Mbuf? {
        let data = packet.pointee.data
        let length = Header(bytes: data).length
        var at = Header.minimumLength
        while at < length, data[at] != OptionType.end {
            if data[at] == OptionType.noOperation {
                at += 1
                continue
            }
            guard at + 1 < length, data[at + 1] >= 2, at + Int(data[at + 1]) <= length else {
                count(.badOptions)
                sendError(packet, 12, 0, UInt32(at) << 24)
                return nil
            }
            let size = Int(data[at + 1])
            switch data[at] {
            case OptionType.looseRoute, OptionType.strictRoute:
                // An exhausted route means that we are the destination; one with hops left asks us to forward.
                guard size >= 3, setting(.acceptSourceRoute) != 0, Int(data[at + 2]) > size else {
                    count(.sourceRouted)
                    if setting(.acceptSourceRoute) != 0 { sendError(packet, 3, 5, 0) } else { free(packet) }
                    return nil
                }
            case OptionType.recordRoute: record(data, at, size, packet.pointee.pkt.ifindex)
            case OptionType.timestamp: stamp(data, at, size, packet.pointee.pkt.ifindex)
            default: break
            }
            at += size
        }
        return packet
    }

    /// Adds our address to a record-route option with room.
    private func record(_ data: UnsafeMutablePointer<UInt8>, _ at: Int, _ size: Int, _ ifindex: UInt32) {
        guard size >= 3 else { return }
        let pointer = Int(data[at + 2])
        guard pointer >= 4, pointer + 3 <= size else { return }
        let own = sourceAddress(ifindex, toward: Header(bytes: data).source)
        UnsafeMutableRawPointer(data + at + pointer - 1).storeBytes(of: own, as: UInt32.self)
        data[at + 2] = UInt8(pointer + 4)
    }

    /// Adds a timestamp (milliseconds since midnight UT), or counts the overflow.
    private func stamp(_ data: UnsafeMutablePointer<UInt8>, _ at: Int, _ size: Int, _ ifindex: UInt32) {
        guard size >= 4 else { return }
        let pointer = Int(data[at + 2])
        let flag = data[at + 3] & 15
        let entry = flag == 0 ? 4 : 8
        guard pointer >= 5, pointer + entry - 1 <= size else {
            if data[at + 3] >> 4 < 15 { data[at + 3] &+= 0x10 }
            return
        }
        let own = sourceAddress(ifindex, toward: Header(bytes: data).source)
        let place = data + at + pointer - 1
        if flag == 3, UnsafeRawPointer(place).loadUnaligned(as: UInt32.self) != own { return }
        if flag == 1 { UnsafeMutableRawPointer(place).storeBytes(of: own, as: UInt32.self) }
        let cell = services.timeCell
        let wall = cell.ops(alps_time_ops.self).pointee.wall(cell.instance)
        let milliseconds = UInt32(truncatingIfNeeded: wall / 1_000_000 % 86_400_000)
        place.store32(entry - 4, milliseconds)
        data[at + 2] = UInt8(pointer + entry)
    }

    /// Behind the first fragment only options with the copied flag remain.
    func clearUncopiedOptions(_ data: UnsafeMutablePointer<UInt8>, _ length: Int) {
        var at = Header.minimumLength
        while at < length, data[at] != OptionType.end {
            if data[at] == OptionType.noOperation {
                at += 1
                continue
            }
            guard at + 1 < length, data[at + 1] >= 2, at + Int(data[at + 1]) <= length else { return }
            let size = Int(data[at + 1])
            if data[at] & 0x80 == 0 {
                for index in at..<at + size { data[index] = OptionType.noOperation }
            }
            at += size
        }
    }
}

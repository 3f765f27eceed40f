import PluginAPI
import PluginKit

/// IPv4 options in packets (RFC 791, section 3.1).
enum OptionType {
    static var end: UInt8 { 0 }
    static var noOperation: UInt8 { 1 }
    static var recordRoute: UInt8 { 7 }
    static var timestamp: UInt8 { 68 }
    static var looseRoute: UInt8 { 131 }
    static var routerAlert: UInt8 { 148 }
    static var strictRoute: UInt8 { 137 }
    /// Or-ed into the type: goes into every fragment.
    static var copied: UInt8 { 0x80 }
    /// Most bytes of options in a header.
    static var maximumLength: Int { 40 }
}

/// What a walk over options has to do next.
private enum Verdict {
    case fine
    /// The byte that is wrong, for a parameter problem.
    case wrong(Int)
    /// A source route that is refused.
    case refused
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// Looks at the options of a packet that has come in (RFC 1122, section 3.2.1.8): those to record into are recorded
    /// into, unknown ones skipped. Nil if the packet is used up. [consumes]
    @inline(never)
    func inputOptions(_ arrived: Mbuf) -> Mbuf? {
        // They are written to, and the bytes may be shared.
        let length = UInt32(Header(bytes: arrived.pointee.data).length)
        guard let packet = services.mbuf.pointee.pullup(pool, arrived, length) else { return nil }
        let header = Header(bytes: packet.pointee.data)
        switch walkOptions(header, packet.pointee.pkt.ifindex) {
        case .fine:
            header.finish()
            return packet
        case .wrong(let place):
            count(.badOptions)
            // RFC 792: the pointer is the first byte of the parameter.
            sendError(packet, 12, 0, UInt32(place) << 24)
        case .refused:
            count(.sourceRouted)
            free(packet)
        }
        return nil
    }

    private func walkOptions(_ header: Header, _ ifindex: UInt32) -> Verdict {
        let data = header.bytes
        let length = header.length
        var at = Header.minimumLength
        while at < length, data[at] != OptionType.end {
            if data[at] == OptionType.noOperation {
                at += 1
                continue
            }
            guard at + 1 < length, data[at + 1] >= 2, at + Int(data[at + 1]) <= length else {
                return .wrong(at + 1 < length ? at + 1 : at)
            }
            let size = Int(data[at + 1])
            switch data[at] {
            case OptionType.looseRoute, OptionType.strictRoute:
                guard size >= 3, data[at + 2] >= 4 else { return .wrong(at + 2 < length ? at + 2 : at) }
                // An exhausted route means that we are the destination; one with hops left asks us to forward.
                guard setting(.acceptSourceRoute) != 0, Int(data[at + 2]) > size else { return .refused }
            case OptionType.recordRoute:
                guard size >= 3, data[at + 2] >= 4 else { return .wrong(at + 2 < length ? at + 2 : at) }
                record(header, at, size, ifindex)
            case OptionType.timestamp:
                guard size >= 4, data[at + 2] >= 5 else { return .wrong(at + 2 < length ? at + 2 : at) }
                guard stamp(header, at, size, ifindex) else { return .wrong(at + 2) }
            default: break
            }
            at += size
        }
        return .fine
    }

    /// The address that a packet came for, or ours on its interface if it came for a group.
    private func recordedAddress(_ header: Header, _ ifindex: UInt32) -> UInt32 {
        isLocal(header.destination) ? header.destination : sourceAddress(ifindex, toward: header.source)
    }

    /// Adds our address to a record-route option with room.
    private func record(_ header: Header, _ at: Int, _ size: Int, _ ifindex: UInt32) {
        let pointer = Int(header.bytes[at + 2])
        guard pointer + 3 <= size else { return }
        UnsafeMutableRawPointer(header.bytes + at + pointer - 1).storeBytes(
            of: recordedAddress(header, ifindex), as: UInt32.self)
        header.bytes[at + 2] = UInt8(pointer + 4)
    }

    /// Adds a timestamp (milliseconds since midnight UT), or counts the overflow. False if the counter itself has
    /// overflowed.
    private func stamp(_ header: Header, _ at: Int, _ size: Int, _ ifindex: UInt32) -> Bool {
        let data = header.bytes
        let pointer = Int(data[at + 2])
        let flag = data[at + 3] & 15
        let entry = flag == 0 ? 4 : 8
        guard flag == 0 || flag == 1 || flag == 3 else { return false }
        guard pointer + entry - 1 <= size else {
            guard data[at + 3] >> 4 < 15 else { return false }
            data[at + 3] &+= 0x10
            return true
        }
        let place = data + at + pointer - 1
        if flag == 3 {
            // Prespecified: only the host that is named stamps.
            guard isLocal(UnsafeRawPointer(place).loadUnaligned(as: UInt32.self)) else { return true }
        } else if flag == 1 {
            UnsafeMutableRawPointer(place).storeBytes(of: recordedAddress(header, ifindex), as: UInt32.self)
        }
        let cell = services.timeCell
        let wall = cell.ops(alps_time_ops.self).pointee.wall(cell.instance)
        place.store32(entry - 4, UInt32(truncatingIfNeeded: wall / ALPS_NSEC_PER_MSEC % 86_400_000))
        data[at + 2] = UInt8(pointer + entry)
        return true
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
            if data[at] & OptionType.copied == 0 {
                for index in at..<at + size { data[index] = OptionType.noOperation }
            }
            at += size
        }
    }

    /// Whether bytes are options that a socket may send. Source routes are refused: nobody forwards them any more.
    func checkOptions(_ value: UnsafePointer<UInt8>, _ count: Int) -> Int32 {
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
        return 0
    }
}

import CLibc
import ClientAPI

// Control messages of datagrams: IP_PKTINFO, IP_TTL, IP_TOS, SO_TIMESTAMP, when asked for.

/// Writes the control messages that the program asked for behind one another.
@inline(__always)
func giveAncillary(
    _ found: EntryPointer, _ message: UnsafeMutablePointer<msghdr>, _ header: inout alps_datagram_header, _ length: Int
) {
    guard message.pointee.msg_control != nil, message.pointee.msg_controllen > 0 else {
        if found.pointee.ancillary & ~Entry.errorQueue != 0 { message.pointee.msg_flags |= Int32(MSG_CTRUNC) }
        message.pointee.msg_controllen = 0
        return
    }
    giveAncillaryData(found, message, &header, length)
}

@inline(never)
private func giveAncillaryData(
    _ found: EntryPointer, _ message: UnsafeMutablePointer<msghdr>, _ header: inout alps_datagram_header, _ length: Int
) {
    if found.pointee.state & Entry.ancillaryKnown == 0 { learnAncillary(found) }
    let asked = found.pointee.ancillary
    var used = 0
    if found.pointee.isNetlink {
        giveNetlinkAncillary(asked, message, header, &used)
        message.pointee.msg_controllen = used
        return
    }
    giveTimestamp(found, message, &used, header.timestamp)
    if found.pointee.isPacket {
        givePacketAncillary(found, message, header, length, &used)
        message.pointee.msg_controllen = used
        return
    }
    if asked & Entry.packetInfo != 0 {
        var info = in_pktinfo()
        info.ipi_ifindex = Int32(bitPattern: header.ifindex)
        info.ipi_spec_dst.s_addr = ipv4(header.destination)
        info.ipi_addr.s_addr = ipv4(header.destination)
        appendControl(message, &used, Int32(IPPROTO_IP), IP_PKTINFO, &info, MemoryLayout<in_pktinfo>.size)
    }
    if asked & Entry.timeToLive != 0 {
        var value = Int32(header.ttl)
        appendControl(message, &used, Int32(IPPROTO_IP), IP_TTL, &value, 4)
    }
    if asked & Entry.typeOfService != 0 {
        var value = header.tos
        appendControl(message, &used, Int32(IPPROTO_IP), IP_TOS, &value, 1)
    }
    message.pointee.msg_controllen = used
}

/// The time in nanoseconds, as the program asked for it.
func giveTimestamp(
    _ found: EntryPointer, _ message: UnsafeMutablePointer<msghdr>, _ used: inout Int, _ timestamp: UInt64
) {
    if found.pointee.ancillary & Entry.timestampNanoseconds != 0 {
        var time = timespec(tv_sec: Int(timestamp / 1_000_000_000), tv_nsec: Int(timestamp % 1_000_000_000))
        appendControl(message, &used, SOL_SOCKET, SO_TIMESTAMPNS, &time, MemoryLayout<timespec>.size)
    } else if found.pointee.ancillary & Entry.timestamp != 0 {
        var time = timeval(tv_sec: Int(timestamp / 1_000_000_000), tv_usec: Int(timestamp % 1_000_000_000 / 1000))
        appendControl(message, &used, SOL_SOCKET, SO_TIMESTAMP, &time, MemoryLayout<timeval>.size)
    }
}

/// A socket that was inherited: what its maker asked for is the host's knowledge.
private func learnAncillary(_ found: EntryPointer) {
    var asked: UInt8 = 0
    func isSet(_ level: Int32, _ name: Int32) -> Bool {
        var request = alps_sockopt_request(level: level, name: name, length: 4, reserved: 0)
        var value: Int32 = 0
        let reply = ask(
            ALPS_OP_GETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, into: &value, 4)
        return reply.error == 0 && value != 0
    }
    if found.pointee.isNetlink {
        found.pointee.ancillary = learnNetlinkAncillary(isSet)
        found.pointee.state |= Entry.ancillaryKnown
        return
    }
    if found.pointee.isPacket {
        asked = learnPacketAncillary(isSet)
    } else {
        if isSet(Int32(IPPROTO_IP), IP_PKTINFO) { asked |= Entry.packetInfo }
        if isSet(Int32(IPPROTO_IP), IP_RECVTTL) { asked |= Entry.timeToLive }
        if isSet(Int32(IPPROTO_IP), IP_RECVTOS) { asked |= Entry.typeOfService }
        if isSet(Int32(IPPROTO_IP), IP_RECVERR) {
            asked |= Entry.errorQueue
            readiness.mayDiffer = true
        }
    }
    if isSet(SOL_SOCKET, SO_TIMESTAMP) { asked |= Entry.timestamp }
    if isSet(SOL_SOCKET, SO_TIMESTAMPNS) { asked |= Entry.timestampNanoseconds }
    found.pointee.ancillary = asked
    found.pointee.state |= Entry.ancillaryKnown
}

/// Remembers an option that asks for ancillary data.
func noteAncillary(_ found: EntryPointer, _ level: Int32, _ name: Int32, on: Bool) {
    if found.pointee.isNetlink { return noteNetlinkAncillary(found, level, name, on: on) }
    if found.pointee.isPacket, isPacketLevel(level) { return notePacketAncillary(found, name, on: on) }
    let bit: UInt8
    if level == SOL_SOCKET {
        bit = name == SO_TIMESTAMP ? Entry.timestamp : name == SO_TIMESTAMPNS ? Entry.timestampNanoseconds : 0
    } else if level == Int32(IPPROTO_IP) {
        bit =
            name == IP_PKTINFO
            ? Entry.packetInfo
            : name == IP_RECVTTL
                ? Entry.timeToLive
                : name == IP_RECVTOS ? Entry.typeOfService : name == IP_RECVERR ? Entry.errorQueue : 0
        if bit == Entry.errorQueue, on { readiness.mayDiffer = true }
    } else {
        bit = 0
    }
    // One kind of time-stamp replaces the other.
    if level == SOL_SOCKET, bit != 0 { found.pointee.ancillary &= ~(Entry.timestamp | Entry.timestampNanoseconds) }
    if on { found.pointee.ancillary |= bit } else { found.pointee.ancillary &= ~bit }
}

func appendControl(
    _ message: UnsafeMutablePointer<msghdr>, _ used: inout Int, _ level: Int32, _ type: Int32,
    _ data: UnsafeRawPointer, _ length: Int
) {
    guard let control = message.pointee.msg_control else { return }
    let size = MemoryLayout<cmsghdr>.size
    guard used + size + length <= Int(message.pointee.msg_controllen) else {
        message.pointee.msg_flags |= Int32(MSG_CTRUNC)
        return
    }
    let start = control + used
    storeControlHeader(start, length, level, type)
    memcpy(start + size, data, length)
    used = min(used + ((size + length + 7) & ~7), Int(message.pointee.msg_controllen))
}

/// What a program says about a datagram it sends: interface and source (IP_PKTINFO), IP_TTL, IP_TOS.
@inline(never)
func readAncillary(_ message: UnsafePointer<msghdr>, _ header: inout alps_datagram_header) {
    guard let control = message.pointee.msg_control else { return }
    let end = Int(message.pointee.msg_controllen)
    let size = MemoryLayout<cmsghdr>.size
    var position = 0
    while position + size <= end {
        let each = (control + position).loadUnaligned(as: cmsghdr.self)
        let length = Int(each.cmsg_len)
        guard length >= size, position + length <= end else { return }
        let data = control + position + size
        if each.cmsg_level == Int32(IPPROTO_IP) {
            switch each.cmsg_type {
            case IP_PKTINFO where length - size >= MemoryLayout<in_pktinfo>.size:
                let info = data.loadUnaligned(as: in_pktinfo.self)
                header.ifindex = UInt32(bitPattern: info.ipi_ifindex)
                if info.ipi_spec_dst.s_addr != 0 {
                    header.destination = clientAddress(Endpoint(address: info.ipi_spec_dst.s_addr, port: 0))
                }
            case IP_TTL where length - size >= 4:
                header.ttl = UInt8(truncatingIfNeeded: data.loadUnaligned(as: Int32.self))
            case IP_TOS where length - size >= 1:
                header.tos = data.loadUnaligned(as: UInt8.self)
            default: break
            }
        }
        position += (length + 7) & ~7
    }
}

/// The header of a control message with `length` bytes of data.
func storeControlHeader(_ target: UnsafeMutableRawPointer, _ length: Int, _ level: Int32, _ type: Int32) {
    target.storeBytes(of: MemoryLayout<cmsghdr>.size + length, as: Int.self)
    target.storeBytes(of: level, toByteOffset: 8, as: Int32.self)
    target.storeBytes(of: type, toByteOffset: 12, as: Int32.self)
}

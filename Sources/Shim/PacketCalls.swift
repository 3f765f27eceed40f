import CLibc
import ClientAPI

// AF_PACKET: to the data calls they are datagram sockets whose messages always have the header. Names, sending, control
// messages and a few options are different; rings are in PacketRings.

// MARK: - names

/// struct sockaddr_ll: family, protocol, interface, hardware type, packet type, length and bytes of the address.
private var nameSize: Int { 20 }
/// Bytes in front of the address.
private var nameHead: Int { 12 }

/// A program's struct sockaddr_ll in the contract's form, nil if it is too short.
private func readPacketName(_ pointer: UnsafeRawPointer?, _ length: socklen_t) -> alps_client_sockaddr? {
    guard let pointer, length >= nameSize else { return nil }
    var address = alps_client_sockaddr()
    address.family = UInt16(AF_PACKET)
    address.port = pointer.loadUnaligned(fromByteOffset: 2, as: UInt16.self)
    address.scope = pointer.loadUnaligned(fromByteOffset: 4, as: UInt32.self)
    withUnsafeMutableBytes(of: &address.addr) {
        _ = memcpy($0.baseAddress.unsafelyUnwrapped, pointer + 8, nameHead)
    }
    // An address of more than eight bytes lies behind the structure.
    guard Int(length) >= nameHead + Int(withUnsafeBytes(of: address.addr) { $0[3] }) else { return nil }
    return address
}

/// Writes a struct sockaddr_ll into at most `capacity` bytes; the size it has. getsockname(2) leaves out what is behind the
/// address, a received frame's name does not.
@discardableResult
func writePacketName(
    _ name: alps_client_sockaddr, to pointer: UnsafeMutableRawPointer?, capacity: Int, isWhole: Bool
) -> socklen_t {
    var bytes = [20 of UInt8](repeating: 0)
    let length = Int(withUnsafeBytes(of: name.addr) { $0[3] })
    let size = isWhole ? nameSize : nameHead + min(length, 8)
    withUnsafeMutableBytes(of: &bytes) { bytes in
        bytes.storeBytes(of: sa_family_t(AF_PACKET), as: sa_family_t.self)
        bytes.storeBytes(of: name.port, toByteOffset: 2, as: UInt16.self)
        bytes.storeBytes(of: name.scope, toByteOffset: 4, as: UInt32.self)
        withUnsafeBytes(of: name.addr) {
            _ = memcpy(bytes.baseAddress.unsafelyUnwrapped + 8, $0.baseAddress.unsafelyUnwrapped, nameHead)
        }
        if let pointer { memcpy(pointer, bytes.baseAddress.unsafelyUnwrapped, min(max(capacity, 0), size)) }
    }
    return socklen_t(size)
}

func bindPacket(_ found: EntryPointer, _ address: UnsafeRawPointer?, _ length: socklen_t) -> Int32 {
    guard var name = readPacketName(address, length),
        Int32(address.unsafelyUnwrapped.loadUnaligned(as: sa_family_t.self)) == AF_PACKET
    else { return fail(EINVAL) }
    return result(ask(ALPS_OP_BIND, about: found, &name, MemoryLayout<alps_client_sockaddr>.size))
}

// MARK: - sending

/// Through the session, for the sake of its errors.
func sendPacket(
    _ descriptor: Int32, _ found: EntryPointer, _ message: UnsafePointer<msghdr>, _ flags: Int32
) -> Int {
    var count = 0
    for index in 0..<Int(message.pointee.msg_iovlen) { count &+= message.pointee.msg_iov[index].iov_len }
    let headerSize = MemoryLayout<alps_datagram_header>.size
    guard count >= 0, count + headerSize <= Int(ALPS_FRAME_MAX_PAYLOAD) else { return fail(EMSGSIZE) }
    var header = alps_datagram_header()
    header.magic = ALPS_DATAGRAM_MAGIC
    if let name = message.pointee.msg_name, message.pointee.msg_namelen > 0 {
        guard let address = readPacketName(name, message.pointee.msg_namelen) else { return fail(EINVAL) }
        header.address = address
    }
    return sendOverSession(descriptor, found, &header, message, count, flags)
}

// MARK: - options

private var SOL_PACKET: Int32 { 263 }
private var PACKET_AUXDATA: Int32 { 8 }
private var PACKET_ORIGDEV: Int32 { 9 }
private var PACKET_HDRLEN: Int32 { 11 }
private var PACKET_RX_RING: Int32 { 5 }
private var PACKET_TX_RING: Int32 { 13 }
private var PACKET_FANOUT_DATA: Int32 { 22 }
private var SO_ATTACH_FILTER: Int32 { 26 }
private var longestFilter: Int { 4096 }

/// setsockopt of what needs more than its bytes: filters are somewhere else, rings are mapped. nil: the ordinary way.
func setPacketOption(
    _ found: EntryPointer, _ level: Int32, _ name: Int32, _ value: UnsafeRawPointer?, _ length: socklen_t
) -> Int32? {
    if level == SOL_SOCKET && name == SO_ATTACH_FILTER || level == SOL_PACKET && name == PACKET_FANOUT_DATA {
        // struct sock_fprog: how many instructions, and where they are.
        guard let value, length >= 16 else { return fail(EINVAL) }
        let count = Int(value.loadUnaligned(as: UInt16.self))
        let code = value.loadUnaligned(fromByteOffset: 8, as: UnsafeRawPointer?.self)
        guard count > 0, count <= longestFilter else { return fail(EINVAL) }
        guard let code else { return fail(EFAULT) }
        var request = alps_sockopt_request(level: level, name: name, length: UInt32(count * 8), reserved: 0)
        return result(
            ask(
                ALPS_OP_SETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, tail: code,
                count * 8))
    }
    if level == SOL_PACKET, name == PACKET_RX_RING || name == PACKET_TX_RING {
        if isRingMapped(found) { return fail(EBUSY) }
        forgetRing(found)
    }
    return nil
}

/// getsockopt of what says something in the value before. nil: the ordinary way.
func getPacketOption(
    _ found: EntryPointer, _ level: Int32, _ name: Int32, _ value: UnsafeMutableRawPointer, _ length: SocketLength
) -> Int32? {
    if level == SOL_PACKET, name == PACKET_HDRLEN {
        guard length.pointee >= 4 else { return fail(EINVAL) }
        var request = alps_sockopt_request(level: level, name: name, length: 4, reserved: 0)
        var asked = value.loadUnaligned(as: Int32.self)
        let reply = ask(
            ALPS_OP_GETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, tail: &asked, 4,
            into: value, 4)
        guard reply.error == 0 else { return fail(controlError(reply.error)) }
        length.pointee = 4
        return 0
    }
    if level == SOL_SOCKET, name == SO_ATTACH_FILTER {
        // SO_GET_FILTER: lengths are in instructions.
        let capacity = Int(min(length.pointee, socklen_t(longestFilter))) * 8
        var request = alps_sockopt_request(level: level, name: name, length: UInt32(capacity), reserved: 0)
        let reply = ask(
            ALPS_OP_GETSOCKOPT, about: found, &request, MemoryLayout<alps_sockopt_request>.size, into: value, capacity)
        guard reply.error == 0 else { return fail(controlError(reply.error)) }
        length.pointee = socklen_t(reply.length / 8)
        return 0
    }
    return nil
}

// MARK: - control messages

/// Remembers PACKET_AUXDATA and PACKET_ORIGDEV in the bits of what is told of other datagrams.
func notePacketAncillary(_ found: EntryPointer, _ name: Int32, on: Bool) {
    let bit = name == PACKET_AUXDATA ? Entry.packetInfo : name == PACKET_ORIGDEV ? Entry.typeOfService : 0
    if on { found.pointee.ancillary |= bit } else { found.pointee.ancillary &= ~bit }
}

func isPacketLevel(_ level: Int32) -> Bool { level == SOL_PACKET }

func learnPacketAncillary(_ isSet: (Int32, Int32) -> Bool) -> UInt8 {
    isSet(SOL_PACKET, PACKET_AUXDATA) ? Entry.packetInfo : 0
}

/// struct tpacket_auxdata: status, length, length of what is here, where link and network header are, no VLAN.
func givePacketAncillary(
    _ found: EntryPointer, _ message: UnsafeMutablePointer<msghdr>, _ header: alps_datagram_header, _ length: Int,
    _ used: inout Int
) {
    guard found.pointee.ancillary & Entry.packetInfo != 0 else { return }
    var data = [20 of UInt8](repeating: 0)
    withUnsafeMutableBytes(of: &data) { data in
        withUnsafeBytes(of: header.destination.addr) {
            data.storeBytes(of: $0.loadUnaligned(as: UInt32.self), as: UInt32.self)
            data.storeBytes(
                of: $0.loadUnaligned(fromByteOffset: 4, as: UInt32.self), toByteOffset: 4, as: UInt32.self)
        }
        data.storeBytes(of: UInt32(truncatingIfNeeded: length), toByteOffset: 8, as: UInt32.self)
        let isRaw = found.pointee.type == UInt8(SOCK_RAW.rawValue)
        data.storeBytes(of: isRaw ? 14 : 0, toByteOffset: 14, as: UInt16.self)
        appendControl(message, &used, SOL_PACKET, PACKET_AUXDATA, data.baseAddress.unsafelyUnwrapped, 20)
    }
}

import CLibc
import ClientAPI

// AF_NETLINK: sockets of the families that are about what the stack has. To the data calls they are datagram sockets; names,
// sending and control messages are different.

/// The families (linux/netlink.h).
private enum NetlinkFamily {
    static var route: Int32 { 0 }
    static var firewall: Int32 { 3 }
    static var socketDiagnosis: Int32 { 4 }
    static var packetLog: Int32 { 5 }
    static var ipsec: Int32 { 6 }
    static var routeLookup: Int32 { 10 }
    static var packetFilter: Int32 { 12 }
    static var ipv6Firewall: Int32 { 13 }
}

/// Who has a netlink family.
enum NetlinkOwner {
    case stack
    /// Not about a network, or about devices: audit, device events, generic netlink.
    case kernel
    /// About the kernel's network, which is not the program's.
    case nobody
}

func owner(ofNetlinkFamily family: Int32) -> NetlinkOwner {
    switch family {
    case NetlinkFamily.route, NetlinkFamily.socketDiagnosis: .stack
    case NetlinkFamily.firewall, NetlinkFamily.packetLog, NetlinkFamily.ipsec, NetlinkFamily.routeLookup,
        NetlinkFamily.packetFilter, NetlinkFamily.ipv6Firewall:
        .nobody
    default: .kernel
    }
}

// MARK: - names

/// struct sockaddr_nl: family, padding, port, groups.
private var nameSize: Int { 12 }

/// A program's struct sockaddr_nl in the contract's form; family 0 for AF_UNSPEC, nil if it is none.
func readNetlinkName(_ pointer: UnsafeRawPointer?, _ length: socklen_t) -> alps_client_sockaddr? {
    guard let pointer, length >= 2 else { return nil }
    let family = Int32(pointer.loadUnaligned(as: sa_family_t.self))
    var address = alps_client_sockaddr()
    if family == AF_UNSPEC { return address }
    guard family == AF_NETLINK, length >= nameSize else { return nil }
    address.family = UInt16(AF_NETLINK)
    withUnsafeMutableBytes(of: &address.addr) {
        $0.storeBytes(of: pointer.loadUnaligned(fromByteOffset: 4, as: UInt64.self), as: UInt64.self)
    }
    return address
}

/// Writes a struct sockaddr_nl into at most `capacity` bytes; the size it has.
@discardableResult
func writeNetlinkName(_ name: alps_client_sockaddr, to pointer: UnsafeMutableRawPointer?, capacity: Int) -> socklen_t {
    var bytes = [12 of UInt8](repeating: 0)
    withUnsafeMutableBytes(of: &bytes) { bytes in
        bytes.storeBytes(of: sa_family_t(AF_NETLINK), as: sa_family_t.self)
        withUnsafeBytes(of: name.addr) {
            bytes.storeBytes(of: $0.loadUnaligned(as: UInt64.self), toByteOffset: 4, as: UInt64.self)
        }
        if let pointer { memcpy(pointer, bytes.baseAddress.unsafelyUnwrapped, min(max(capacity, 0), nameSize)) }
    }
    return socklen_t(nameSize)
}

// MARK: - calls

func bindNetlink(_ found: EntryPointer, _ address: UnsafeRawPointer?, _ length: socklen_t) -> Int32 {
    guard var name = readNetlinkName(address, length), name.family != 0 else { return fail(EINVAL) }
    return result(ask(ALPS_OP_BIND, about: found, &name, MemoryLayout<alps_client_sockaddr>.size))
}

func connectNetlink(_ found: EntryPointer, _ address: UnsafeRawPointer?, _ length: socklen_t) -> Int32 {
    guard let name = readNetlinkName(address, length) else { return fail(EINVAL) }
    guard name.family != 0 else { return result(ask(ALPS_OP_UNCONNECT, about: found)) }
    var request = alps_connect_request(address: name, flags: 0, plug_bytes: 0)
    return result(ask(ALPS_OP_CONNECT, about: found, &request, MemoryLayout<alps_connect_request>.size))
}

/// Through the session: so the answers are there when the call returns, as on Linux, and the host knows who asks.
func sendNetlink(
    _ descriptor: Int32, _ found: EntryPointer, _ message: UnsafePointer<msghdr>, _ flags: Int32
) -> Int {
    if flags & Int32(MSG_OOB) != 0 { return fail(EOPNOTSUPP) }
    var count = 0
    for index in 0..<Int(message.pointee.msg_iovlen) { count &+= message.pointee.msg_iov[index].iov_len }
    guard count > 0 else { return fail(ENODATA) }
    let headerSize = MemoryLayout<alps_datagram_header>.size
    guard count + headerSize <= Int(ALPS_FRAME_MAX_PAYLOAD) else { return fail(EMSGSIZE) }
    var header = alps_datagram_header()
    header.magic = ALPS_DATAGRAM_MAGIC
    if let name = message.pointee.msg_name, message.pointee.msg_namelen > 0 {
        guard let address = readNetlinkName(name, message.pointee.msg_namelen), address.family != 0 else {
            return fail(EINVAL)
        }
        header.address = address
    }
    return sendOverSession(descriptor, found, &header, message, count, flags)
}

/// A netlink or packet socket's message of `count` bytes with its header. Bytes sent, or -1.
func sendOverSession(
    _ descriptor: Int32, _ found: EntryPointer, _ header: inout alps_datagram_header, _ message: UnsafePointer<msghdr>,
    _ count: Int, _ flags: Int32
) -> Int {
    if activation.confined {
        // No call but the program's own: what is in the pair is a question to the stack, or a frame for the interface that
        // the socket is bound to.
        var inner = message.pointee
        inner.msg_name = nil
        inner.msg_namelen = 0
        inner.msg_control = nil
        inner.msg_controllen = 0
        return real.sendmsg.unsafelyUnwrapped(descriptor, &inner, flags | Int32(MSG_NOSIGNAL))
    }
    guard let memory = alps_map_anonymous(max(count, 1)) else { return fail(ENOBUFS) }
    var done = 0
    for index in 0..<Int(message.pointee.msg_iovlen) {
        let part = message.pointee.msg_iov[index]
        if part.iov_len > 0, let bytes = part.iov_base { memcpy(memory + done, bytes, part.iov_len) }
        done += part.iov_len
    }
    // A ring of frames tells how much it sent.
    var sent = UInt32(truncatingIfNeeded: count)
    let reply = ask(
        ALPS_OP_SEND_DATAGRAM, about: found, &header, MemoryLayout<alps_datagram_header>.size, tail: memory, count,
        into: &sent, 4)
    munmap(memory, max(count, 1))
    return reply.error == 0 ? Int(sent) : fail(controlError(reply.error))
}

// MARK: - control messages

private var SOL_NETLINK: Int32 { 270 }
private var NETLINK_PKTINFO: Int32 { 3 }
private var SCM_CREDENTIALS: Int32 { 2 }

/// Remembers SO_PASSCRED and NETLINK_PKTINFO, in the bits of what is told of other datagrams.
func noteNetlinkAncillary(_ found: EntryPointer, _ level: Int32, _ name: Int32, on: Bool) {
    let bit =
        level == SOL_NETLINK && name == NETLINK_PKTINFO
        ? Entry.packetInfo : level == SOL_SOCKET && name == SO_PASSCRED ? Entry.credentials : 0
    if on { found.pointee.ancillary |= bit } else { found.pointee.ancillary &= ~bit }
}

/// Whether the program asked for these, as the host keeps it.
func learnNetlinkAncillary(_ isSet: (Int32, Int32) -> Bool) -> UInt8 {
    (isSet(SOL_NETLINK, NETLINK_PKTINFO) ? Entry.packetInfo : 0)
        | (isSet(SOL_SOCKET, SO_PASSCRED) ? Entry.credentials : 0)
}

/// The group a message was sent to, and who sent it: process 0, as of everything that comes from a kernel.
func giveNetlinkAncillary(
    _ asked: UInt8, _ message: UnsafeMutablePointer<msghdr>, _ header: alps_datagram_header, _ used: inout Int
) {
    if asked & Entry.packetInfo != 0 {
        var group = header.ifindex
        appendControl(message, &used, SOL_NETLINK, NETLINK_PKTINFO, &group, 4)
    }
    if asked & Entry.credentials != 0 {
        var nobody = [3 of UInt32](repeating: 0)
        appendControl(message, &used, SOL_SOCKET, SCM_CREDENTIALS, &nobody, 12)
    }
}

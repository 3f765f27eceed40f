import CPacketdrill
import Glibc
import Lab
import PluginAPI

/// The calls that move bytes.
func fillDataCalls(_ table: inout packetdrill_interface) {
    table.read = { userdata, fd, buffer, count in receive(userdata, fd, buffer, count, 0) }
    table.recv = { userdata, fd, buffer, count, flags in receive(userdata, fd, buffer, count, flags) }
    table.recvfrom = { userdata, fd, buffer, count, flags, name, length in
        receive(userdata, fd, buffer, count, flags, name, length)
    }
    table.readv = { userdata, fd, pieces, count in
        var message = msghdr()
        message.msg_iov = UnsafeMutablePointer(mutating: pieces)
        message.msg_iovlen = numericCast(max(count, 0))
        return receiveMessage(userdata, fd, &message, 0)
    }
    table.recvmsg = { userdata, fd, message, flags in
        guard let message else { return settled(-Int(EFAULT)) }
        return receiveMessage(userdata, fd, &message.pointee, flags)
    }
    table.write = { userdata, fd, buffer, count in send(userdata, fd, buffer, count, 0, nil, 0) }
    table.send = { userdata, fd, buffer, count, flags in send(userdata, fd, buffer, count, flags, nil, 0) }
    table.sendto = { userdata, fd, buffer, count, flags, name, length in
        send(userdata, fd, buffer, count, flags, name, length)
    }
    table.writev = { userdata, fd, pieces, count in
        var message = msghdr()
        message.msg_iov = UnsafeMutablePointer(mutating: pieces)
        message.msg_iovlen = numericCast(max(count, 0))
        return sendMessage(userdata, fd, message, 0)
    }
    table.sendmsg = { userdata, fd, message, flags in
        guard let message else { return settled(-Int(EFAULT)) }
        return sendMessage(userdata, fd, message.pointee, flags)
    }
    table.pipe = { userdata, ends in
        guard let ends else { return status(-Int(EFAULT)) }
        let (result, reader, writer) = stack(userdata).makePipe()
        if result == 0 {
            ends[0] = reader
            ends[1] = writer
        }
        return status(result)
    }
    table.splice = { userdata, from, fromOffset, to, toOffset, count, _ in
        // Neither sockets nor pipes have a position.
        guard fromOffset == nil, toOffset == nil else { return status(-Int(ESPIPE)) }
        return status(stack(userdata).splice(from, to, count))
    }
}

// MARK: Reading

private func receive(
    _ userdata: UnsafeMutableRawPointer?, _ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32,
    _ name: UnsafeMutablePointer<sockaddr>? = nil, _ length: UnsafeMutablePointer<socklen_t>? = nil
) -> Int {
    let isMissing = buffer == nil && count > 0
    let (result, bytes, source, _) = stack(userdata).receive(fd, isMissing ? nil : count, flags)
    if result >= 0 {
        if !bytes.isEmpty { buffer?.copyMemory(from: bytes, byteCount: bytes.count) }
        if let source { store(source, name, length) } else { length?.pointee = 0 }
    }
    return settled(result)
}

private func receiveMessage(
    _ userdata: UnsafeMutableRawPointer?, _ fd: Int32, _ message: inout msghdr, _ flags: Int32
) -> Int {
    let pieces = UnsafeMutableBufferPointer(start: message.msg_iov, count: Int(message.msg_iovlen))
    let (result, bytes, source, outFlags) = stack(userdata).receive(fd, pieces.reduce(0) { $0 + $1.iov_len }, flags)
    guard result >= 0 else { return settled(result) }
    var done = 0
    for piece in pieces where done < bytes.count {
        let count = min(piece.iov_len, bytes.count - done)
        bytes.withUnsafeBytes { from in
            if let start = from.baseAddress { piece.iov_base?.copyMemory(from: start + done, byteCount: count) }
        }
        done += count
    }
    message.msg_flags = outFlags
    message.msg_controllen = 0
    var length = source == nil ? 0 : message.msg_namelen
    if let source { store(source, message.msg_name?.assumingMemoryBound(to: sockaddr.self), &length) }
    message.msg_namelen = length
    return result
}

// MARK: Writing

/// A copy of memory.
func bytes(_ start: UnsafeRawPointer?, _ count: Int) -> [UInt8] {
    start.map { Array(UnsafeRawBufferPointer(start: $0, count: count)) } ?? []
}

private func send(
    _ userdata: UnsafeMutableRawPointer?, _ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32,
    _ name: UnsafePointer<sockaddr>?, _ length: socklen_t
) -> Int {
    let data = buffer == nil && count > 0 ? nil : bytes(buffer, count)
    guard name != nil else { return settled(stack(userdata).send(fd, data, flags)) }
    guard let address = address(name, length) else { return settled(-Int(EINVAL)) }
    return settled(stack(userdata).send(fd, data, flags, to: address))
}

private func sendMessage(
    _ userdata: UnsafeMutableRawPointer?, _ fd: Int32, _ message: msghdr, _ flags: Int32
) -> Int {
    guard message.msg_controllen == 0 else { return settled(-Int(EOPNOTSUPP)) }
    var data: [UInt8] = []
    for piece in UnsafeMutableBufferPointer(start: message.msg_iov, count: Int(message.msg_iovlen)) {
        data += bytes(piece.iov_base, piece.iov_len)
    }
    guard let name = message.msg_name, message.msg_namelen > 0 else {
        return settled(stack(userdata).send(fd, data, flags))
    }
    guard let address = address(name.assumingMemoryBound(to: sockaddr.self), message.msg_namelen) else {
        return settled(-Int(EINVAL))
    }
    return settled(stack(userdata).send(fd, data, flags, to: address))
}

// MARK: Addresses

/// A socket address of libc's in the stack's form; nil if it is too short. The stack refuses families it has not.
private func address(_ name: UnsafePointer<sockaddr>?, _ length: socklen_t) -> alps_sockaddr? {
    guard let name, length >= 2 else { return nil }
    var found = alps_sockaddr()
    found.family = name.pointee.sa_family
    guard found.family == sa_family_t(AF_INET) else { return found }
    guard Int(length) >= MemoryLayout<sockaddr_in>.size else { return nil }
    let inet = UnsafeRawPointer(name).loadUnaligned(as: sockaddr_in.self)
    found.port = UInt16(bigEndian: inet.sin_port)
    withUnsafeBytes(of: inet.sin_addr) { from in
        withUnsafeMutableBytes(of: &found.addr) { $0.copyBytes(from: from) }
    }
    return found
}

func withAddress(_ name: UnsafePointer<sockaddr>?, _ length: socklen_t, _ body: (alps_sockaddr) -> Int) -> Int32 {
    guard name != nil else { return status(-Int(EFAULT)) }
    guard let address = address(name, length) else { return status(-Int(EINVAL)) }
    return status(body(address))
}

/// As accept(2) stores an address: as much as there is room for, and how long it is.
func store(
    _ address: alps_sockaddr, _ name: UnsafeMutablePointer<sockaddr>?, _ length: UnsafeMutablePointer<socklen_t>?
) {
    guard let name, let length else { return }
    var inet = sockaddr_in()
    inet.sin_family = sa_family_t(AF_INET)
    inet.sin_port = address.port.bigEndian
    withUnsafeBytes(of: address.addr) { from in
        withUnsafeMutableBytes(of: &inet.sin_addr) { $0.copyBytes(from: from.prefix($0.count)) }
    }
    withUnsafeBytes(of: inet) { from in
        let room = UnsafeMutableRawBufferPointer(start: name, count: min(from.count, Int(length.pointee)))
        room.copyBytes(from: from.prefix(room.count))
    }
    length.pointee = socklen_t(MemoryLayout<sockaddr_in>.size)
}

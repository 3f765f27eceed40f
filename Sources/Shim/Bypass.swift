import CLibc
import ClientAPI
import ShimEntry

/// A range of addresses that belongs to the kernel, host byte order.
struct BypassRange {
    var network: UInt32
    var mask: UInt32
}

/// The ranges; in mapped memory, for a global array would not be constant-initialised.
nonisolated(unsafe) var bypassRanges: UnsafeMutablePointer<BypassRange>? = nil
nonisolated(unsafe) var bypassCount = 0
private var mostBypassRanges: Int { 32 }

/// Reads "10.0.0.0/8,127.0.0.1": `alps run` has checked it; what is not an address is left out.
func parseBypassRanges(_ text: UnsafePointer<CChar>) {
    guard let memory = alps_map_anonymous(4096) else { return }
    let ranges = memory.bindMemory(to: BypassRange.self, capacity: mostBypassRanges)
    bypassRanges = ranges
    var position = 0
    while text[position] != 0, bypassCount < mostBypassRanges {
        var buffer = [20 of CChar](repeating: 0)
        var length = 0
        while text[position] != 0, text[position] != 0x2c /* , */, text[position] != 0x2f /* / */ {
            if length < 19 { buffer[length] = text[position] }
            length += 1
            position += 1
        }
        var bits = 32
        if text[position] == 0x2f {
            position += 1
            bits = 0
            while text[position] >= 0x30, text[position] <= 0x39 {
                bits = min(bits * 10 + Int(text[position] - 0x30), 33)
                position += 1
            }
        }
        while text[position] != 0, text[position] != 0x2c { position += 1 }
        if text[position] == 0x2c { position += 1 }
        var address = in_addr()
        let valid = withUnsafeBytes(of: &buffer) {
            inet_pton(AF_INET, $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: CChar.self), &address) == 1
        }
        guard valid, length < 20, bits <= 32 else { continue }
        let mask: UInt32 = bits == 0 ? 0 : UInt32.max << UInt32(32 - bits)
        ranges[bypassCount] = BypassRange(network: UInt32(bigEndian: address.s_addr) & mask, mask: mask)
        bypassCount += 1
    }
}

/// True if the address is reached by the kernel. While a name is looked up that holds for a name server on the loopback
/// too: it is the machine's own.
func bypasses(_ target: Endpoint) -> Bool {
    let address = UInt32(bigEndian: target.address)
    if address >> 24 == 127, target.port == UInt16(53).bigEndian, alps_shim_resolving() != 0 { return true }
    guard let ranges = bypassRanges else { return false }
    for index in 0..<bypassCount where address & ranges[index].mask == ranges[index].network { return true }
    return false
}

/// Puts a socket of the kernel in the place of one of the stack, with the options set so far. False: errno says why.
func replaceWithKernelSocket(_ descriptor: Int32, _ found: EntryPointer) -> Bool {
    let new = alps_sys_socket_of_kernel(
        AF_INET, Int32(found.pointee.type) | Int32(SOCK_CLOEXEC.rawValue), Int32(found.pointee.protocolNumber),
        activation.strictToken)
    guard new >= 0 else { return false }
    for index in 0..<inheritedOptionCount {
        let (level, name) = inheritedOption(index)
        copyOption(from: found.pointee.handle, level, name, to: .kernel(new))
    }
    if found.pointee.state & Entry.buffersSet != 0 {
        copyOption(from: found.pointee.handle, SOL_SOCKET, SO_RCVBUF, to: .kernel(new))
        copyOption(from: found.pointee.handle, SOL_SOCKET, SO_SNDBUF, to: .kernel(new))
    }
    bindLike(found.pointee.handle, new)
    guard put(new, at: descriptor) else { return false }
    markNative(descriptor)
    return true
}

/// Puts a fresh socket of the stack in the place of one whose pair is spent. False: errno says why.
func replaceWithNewStackSocket(_ descriptor: Int32, _ found: EntryPointer) -> Bool {
    let old = found.pointee
    let new = openStackSocket(AF_INET, Int32(old.type), Int32(old.protocolNumber))
    guard new >= 0, let newEntry = entry(of: new) else { return false }
    for index in 0..<inheritedOptionCount {
        let (level, name) = inheritedOption(index)
        copyOption(from: old.handle, level, name, to: .stack(newEntry.pointee.handle))
    }
    let registered = newEntry.pointee
    clearEntry(new)
    _ = ask(ALPS_OP_FORGET, old.handle)
    guard put(new, at: descriptor) else { return false }
    found.pointee = registered
    registerAgain(descriptor, old)
    return true
}

/// Where an option goes.
enum OptionTarget {
    case kernel(Int32)
    case stack(UInt64)
}

var inheritedOptionCount: Int { 19 }

/// The options that a program may have set before it connects or binds.
func inheritedOption(_ index: Int) -> (Int32, Int32) {
    let tcp = Int32(IPPROTO_TCP)
    let ip = Int32(IPPROTO_IP)
    switch index {
    case 0: return (SOL_SOCKET, SO_REUSEADDR)
    case 1: return (SOL_SOCKET, SO_REUSEPORT)
    case 2: return (SOL_SOCKET, SO_BROADCAST)
    case 3: return (SOL_SOCKET, SO_KEEPALIVE)
    case 4: return (SOL_SOCKET, SO_OOBINLINE)
    case 5: return (SOL_SOCKET, SO_LINGER)
    case 6: return (SOL_SOCKET, SO_DONTROUTE)
    case 7: return (SOL_SOCKET, SO_TIMESTAMP)
    case 8: return (ip, IP_TOS)
    case 9: return (ip, IP_TTL)
    case 10: return (ip, IP_PKTINFO)
    case 11: return (ip, IP_RECVTTL)
    case 12: return (ip, IP_RECVTOS)
    case 13: return (ip, IP_MULTICAST_TTL)
    case 14: return (ip, IP_MULTICAST_LOOP)
    case 15: return (tcp, TCP_NODELAY)
    case 16: return (tcp, TCP_KEEPIDLE)
    case 17: return (tcp, TCP_KEEPINTVL)
    default: return (tcp, TCP_KEEPCNT)
    }
}

/// Sets an option that differs between the old socket and the new one. What either does not know is left out.
private func copyOption(from handle: UInt64, _ level: Int32, _ name: Int32, to target: OptionTarget) {
    var wanted = (Int32(0), Int32(0))
    var present = (Int32(0), Int32(0))
    let length = hostOption(handle, level, name, &wanted, 8)
    guard length > 0 else { return }
    switch target {
    case .kernel(let descriptor):
        var size = socklen_t(8)
        guard alps_sys_getsockopt(descriptor, level, name, &present, &size) == 0, present != wanted else { return }
        // The kernel answers twice the buffer size that was set.
        if level == SOL_SOCKET, name == SO_RCVBUF || name == SO_SNDBUF { wanted.0 /= 2 }
        _ = alps_sys_setsockopt(descriptor, level, name, &wanted, UInt32(length))
    case .stack(let other):
        guard hostOption(other, level, name, &present, 8) > 0, present != wanted else { return }
        var request = alps_sockopt_request(level: level, name: name, length: UInt32(length), reserved: 0)
        _ = ask(
            ALPS_OP_SETSOCKOPT, other, &request, MemoryLayout<alps_sockopt_request>.size, tail: &wanted, length)
    }
}

/// A value from the host; its length, or 0.
private func hostOption(
    _ handle: UInt64, _ level: Int32, _ name: Int32, _ value: UnsafeMutableRawPointer, _ capacity: Int
) -> Int {
    var request = alps_sockopt_request(level: level, name: name, length: UInt32(capacity), reserved: 0)
    let reply = ask(
        ALPS_OP_GETSOCKOPT, handle, &request, MemoryLayout<alps_sockopt_request>.size, into: value, capacity)
    return reply.error == 0 ? reply.length : 0
}

/// A port that was bound on the stack is asked of the kernel too, if the address is the wildcard.
private func bindLike(_ handle: UInt64, _ descriptor: Int32) {
    var name = alps_client_sockaddr()
    let reply = ask(ALPS_OP_GETSOCKNAME, handle, into: &name, MemoryLayout<alps_client_sockaddr>.size)
    guard reply.error == 0, name.port != 0, ipv4(name) == 0 else { return }
    var address = sockaddr_in()
    writeAddress(endpoint(name), to: &address, capacity: MemoryLayout<sockaddr_in>.size)
    _ = real.bind.unsafelyUnwrapped(descriptor, &address, socklen_t(MemoryLayout<sockaddr_in>.size))
}

/// Moves `new` to the number `descriptor`, with that one's O_NONBLOCK, close-on-exec and time-outs.
private func put(_ new: Int32, at descriptor: Int32) -> Bool {
    let status = alps_sys_fcntl(descriptor, F_GETFL, 0)
    if status >= 0, status & alps_O_NONBLOCK != 0 { _ = alps_sys_fcntl(new, F_SETFL, Int(status)) }
    copyPairOption(SO_RCVTIMEO, from: descriptor, to: new)
    copyPairOption(SO_SNDTIMEO, from: descriptor, to: new)
    copyPairOption(SO_LINGER, from: descriptor, to: new)
    let closeOnExec = alps_sys_fcntl(descriptor, F_GETFD, 0) & FD_CLOEXEC != 0
    let moved = alps_sys_dup3(new, descriptor, closeOnExec ? O_CLOEXEC : 0)
    let error = alps_errno()
    _ = alps_sys_close(new)
    alps_set_errno(error)
    return moved >= 0
}

/// An option of at most 16 bytes, if it is not 0.
private func copyPairOption(_ name: Int32, from old: Int32, to new: Int32) {
    var value = (UInt64(0), UInt64(0))
    var length = socklen_t(16)
    guard alps_sys_getsockopt(old, SOL_SOCKET, name, &value, &length) == 0, value != (0, 0) else { return }
    _ = alps_sys_setsockopt(new, SOL_SOCKET, name, &value, length)
}

import CLibc
import ClientAPI

// The files of /proc/net that describe sockets, routes and interfaces are the stack's, for programs that read them
// (ifconfig, route, netstat). Opening anything else passes through.

@c(alps_shim_open)
public func shimOpenat(
    _ directory: Int32, _ path: UnsafePointer<CChar>?, _ flags: Int32, _ mode: UInt32
) -> Int32 {
    ensureReady()
    let provided = openProcFile(path, flags)
    if provided >= 0 { return provided }
    let descriptor = real.openat.unsafelyUnwrapped(directory, path, flags, mode)
    // The number may have been a socket's that was closed behind our back (fclose).
    if descriptor >= 0 { clearEntry(descriptor) }
    return descriptor
}

@c(alps_entry_fopen)
public func shimFopen(_ path: UnsafePointer<CChar>?, _ mode: UnsafePointer<CChar>?) -> UnsafeMutableRawPointer? {
    ensureReady()
    if let mode, mode[0] == 0x72 /* r */ {
        let provided = openProcFile(path, strchr(mode, 0x65 /* e */) != nil ? O_CLOEXEC : 0)
        if provided >= 0 { return alps_stream_of(provided, mode) }
    }
    return real.fopen.unsafelyUnwrapped(path, mode)
}

@c(alps_entry_fopen64)
public func shimFopen64(_ path: UnsafePointer<CChar>?, _ mode: UnsafePointer<CChar>?) -> UnsafeMutableRawPointer? {
    shimFopen(path, mode)
}

/// A file in memory with the host's text, -1 if the path is none of the stack's.
@inline(__always)
private func openProcFile(_ path: UnsafePointer<CChar>?, _ flags: Int32) -> Int32 {
    guard activation.active, let path, path[0] == 0x2f, path[1] == 0x70, flags & (O_WRONLY | O_RDWR) == 0 else {
        return -1
    }
    return openProcNet(path, flags)
}

private var longestText: Int { 1 << 20 }

@inline(never)
private func openProcNet(_ path: UnsafePointer<CChar>, _ flags: Int32) -> Int32 {
    guard let name = procNetName(path), !activation.confined else { return -1 }
    let error = alps_errno()
    defer { alps_set_errno(error) }
    guard let text = alps_map_anonymous(longestText) else { return -1 }
    defer { munmap(text, longestText) }
    let reply = ask(ALPS_OP_PROC_NET, 0, name, strlen(name), into: text, longestText)
    guard reply.error == 0 else { return -1 }
    let descriptor = alps_sys_memfd(name, flags & O_CLOEXEC != 0 ? 1 : 0)
    guard descriptor >= 0 else { return -1 }
    var done = 0
    while done < reply.length {
        let written = alps_sys_write(descriptor, text + done, reply.length - done)
        guard written > 0 else { break }
        done += written
    }
    _ = alps_sys_rewind(descriptor)
    clearEntry(descriptor)
    return descriptor
}

/// The file's name if it is one of /proc/net that the stack has.
private func procNetName(_ path: UnsafePointer<CChar>) -> UnsafePointer<CChar>? {
    guard strncmp(path, "/proc/", 6) == 0 else { return nil }
    var name = path + 6
    // This process by its other names.
    if strncmp(name, "self/", 5) == 0 {
        name += 5
    } else if strncmp(name, "thread-self/", 12) == 0 {
        name += 12
    } else if let digits = numberLength(name), name[digits] == 0x2f, strtol(name, nil, 10) == Int(getpid()) {
        name += digits + 1
    }
    guard strncmp(name, "net/", 4) == 0 else { return nil }
    name += 4
    return isStackFile(name) ? name : nil
}

/// How many digits a path begins with, nil if it does not.
private func numberLength(_ text: UnsafePointer<CChar>) -> Int? {
    var length = 0
    while text[length] >= 0x30, text[length] <= 0x39, length < 10 { length += 1 }
    return length > 0 ? length : nil
}

private func isStackFile(_ name: UnsafePointer<CChar>) -> Bool {
    func isName(_ known: StaticString) -> Bool {
        strcmp(name, UnsafeRawPointer(known.utf8Start).assumingMemoryBound(to: CChar.self)) == 0
    }
    return isName("dev") || isName("route") || isName("arp") || isName("tcp") || isName("udp") || isName("raw")
        || isName("snmp") || isName("netstat") || isName("sockstat") || isName("igmp") || isName("icmp")
        || isName("udplite") || isName("dev_mcast") || isName("packet") || isName("tcp6") || isName("udp6") || isName("raw6")
        || isName("udplite6") || isName("icmp6") || isName("if_inet6") || isName("igmp6") || isName("ipv6_route")
        || isName("sockstat6") || isName("snmp6")
}

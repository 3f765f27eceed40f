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

@c(fopen)
public func shimFopen(_ path: UnsafePointer<CChar>?, _ mode: UnsafePointer<CChar>?) -> UnsafeMutableRawPointer? {
    ensureReady()
    if let mode, mode[0] == 0x72 /* r */ {
        let provided = openProcFile(path, strchr(mode, 0x65 /* e */) != nil ? O_CLOEXEC : 0)
        if provided >= 0 { return alps_stream_of(provided, mode) }
    }
    return real.fopen.unsafelyUnwrapped(path, mode)
}

@c(fopen64)
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
    let name: UnsafePointer<CChar>
    if strncmp(path, "/proc/net/", 10) == 0 {
        name = path + 10
    } else if strncmp(path, "/proc/self/net/", 15) == 0 {
        name = path + 15
    } else {
        return nil
    }
    let known =
        strcmp(name, "dev") == 0 || strcmp(name, "route") == 0 || strcmp(name, "arp") == 0 || strcmp(name, "tcp") == 0
        || strcmp(name, "udp") == 0 || strcmp(name, "raw") == 0 || strcmp(name, "snmp") == 0
        || strcmp(name, "netstat") == 0
    return known ? name : nil
}

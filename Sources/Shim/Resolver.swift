import CLibc
import ClientAPI
import ShimEntry

// Look-ups through c-ares, loaded when it is first needed: its socket calls come back through the shim, so names are asked
// for over the stack. libc's own resolver makes its calls inside libc, out of reach.

/// The functions of c-ares that are used.
private struct AddressResolver {
    var library: UnsafeMutableRawPointer? = nil
    var tried = false
    var initialise:
        (
            @convention(c) (UnsafeMutablePointer<OpaquePointer?>, UnsafePointer<alps_ares_options>, Int32) -> Int32
        )? = nil
    var destroy: (@convention(c) (OpaquePointer) -> Void)? = nil
    var addresses:
        (
            @convention(c) (
                OpaquePointer, UnsafePointer<CChar>, UnsafePointer<CChar>?, UnsafePointer<alps_ares_hints>,
                @convention(c) (UnsafeMutableRawPointer?, Int32, Int32, UnsafeMutablePointer<alps_ares_result>?) -> Void,
                UnsafeMutableRawPointer?
            ) -> Void
        )? = nil
    var freeAddresses: (@convention(c) (UnsafeMutablePointer<alps_ares_result>) -> Void)? = nil
    var name:
        (
            @convention(c) (
                OpaquePointer, UnsafeRawPointer, Int32, Int32,
                @convention(c) (UnsafeMutableRawPointer?, Int32, Int32, UnsafeMutablePointer<hostent>?) -> Void,
                UnsafeMutableRawPointer?
            ) -> Void
        )? = nil
    var sockets: (@convention(c) (OpaquePointer, UnsafeMutablePointer<Int32>, Int32) -> Int32)? = nil
    var timeout:
        (
            @convention(c) (OpaquePointer, UnsafeMutablePointer<timeval>?, UnsafeMutablePointer<timeval>) ->
                UnsafeMutablePointer<timeval>?
        )? = nil
    var process: (@convention(c) (OpaquePointer, Int32, Int32) -> Void)? = nil
}

nonisolated(unsafe) private var resolver = AddressResolver()

/// Loads c-ares. False: it is not installed; libc's resolver, over the kernel's network, is what is left.
func hasResolver() -> Bool {
    if resolver.library != nil { return true }
    if resolver.tried { return false }
    var found = AddressResolver()
    found.tried = true
    if let library = dlopen("libcares.so.2", RTLD_NOW | RTLD_LOCAL) {
        func function<Function>(_ name: StaticString, _ type: Function.Type) -> Function {
            unsafeBitCast(
                dlsym(library, UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self)), to: Function.self)
        }
        found.initialise = function("ares_init_options", type(of: found.initialise))
        found.destroy = function("ares_destroy", type(of: found.destroy))
        found.addresses = function("ares_getaddrinfo", type(of: found.addresses))
        found.freeAddresses = function("ares_freeaddrinfo", type(of: found.freeAddresses))
        found.name = function("ares_gethostbyaddr", type(of: found.name))
        found.sockets = function("ares_getsock", type(of: found.sockets))
        found.timeout = function("ares_timeout", type(of: found.timeout))
        found.process = function("ares_process_fd", type(of: found.process))
        let start = unsafeBitCast(
            dlsym(library, "ares_library_init"), to: (@convention(c) (Int32) -> Int32)?.self)
        if let start, start(1) == 0, found.initialise != nil, found.destroy != nil, found.addresses != nil,
            found.freeAddresses != nil, found.name != nil, found.sockets != nil, found.timeout != nil,
            found.process != nil
        {
            found.library = library
        }
    }
    resolver = found
    return found.library != nil
}

/// What a look-up brought: up to 32 addresses (16 bytes each) and names.
struct FoundHost {
    var finished = false
    /// Status of c-ares.
    var status: Int32 = 0
    var family: Int32 = 0
    var count = 0
    var families = [32 of Int32](repeating: 0)
    var addresses = [64 of UInt64](repeating: 0)
    var canonicalName = [256 of CChar](repeating: 0)
    var alias = [256 of CChar](repeating: 0)
}

/// Looks a name up: /etc/hosts, then the name servers. An EAI_* code.
func lookUp(_ name: UnsafePointer<CChar>, _ family: Int32, _ host: inout FoundHost) -> Int32 {
    host.family = family
    return run(&host) { channel, argument in
        // No sorting (1 << 7): that would probe each address with a socket.
        var hints = alps_ares_hints(
            flags: 1 << 7 | 1, family: family, socktype: Int32(SOCK_STREAM.rawValue), protocol: 0)
        resolver.addresses.unsafelyUnwrapped(channel, name, nil, &hints, alpsShimAddressesFound, argument)
    }
}

/// Looks an address up. An EAI_* code.
func lookUp(address: UnsafeRawPointer, _ length: Int32, _ family: Int32, _ host: inout FoundHost) -> Int32 {
    host.family = family
    return run(&host) { channel, argument in
        resolver.name.unsafelyUnwrapped(channel, address, length, family, alpsShimNameFound, argument)
    }
}

/// Makes a channel, starts the look-up and waits for its end. One channel a look-up: resolv.conf is read anew, and
/// threads share nothing.
@inline(__always)
private func run(_ host: inout FoundHost, _ start: (OpaquePointer, UnsafeMutableRawPointer?) -> Void) -> Int32 {
    alps_shim_resolving_begin()
    defer { alps_shim_resolving_end() }
    var made: OpaquePointer?
    var options = alps_ares_options()
    setPatience(&options)
    let timeMilliseconds: Int32 = 1 << 13
    let tries: Int32 = 1 << 2
    guard resolver.initialise.unsafelyUnwrapped(&made, &options, timeMilliseconds | tries) == 0, let channel = made
    else { return EAI_MEMORY }
    withUnsafeMutablePointer(to: &host) {
        start(channel, $0)
        wait(channel, $0)
    }
    resolver.destroy.unsafelyUnwrapped(channel)
    return lookUpError(host.status)
}

/// How long and how often to ask, as libc has it from resolv.conf and RES_OPTIONS. c-ares' own default is 75 seconds.
private func setPatience(_ options: inout alps_ares_options) {
    var time: Int32 = 5
    var tries: Int32 = 2
    alps_resolver_patience(&time, &tries)
    options.timeout = time * 1000
    options.tries = tries
}

private func wait(_ channel: OpaquePointer, _ host: UnsafeMutablePointer<FoundHost>) {
    let most = 16
    while !host.pointee.finished {
        var sockets = [16 of Int32](repeating: -1)
        var entries = [16 of pollfd](repeating: pollfd(fd: -1, events: 0, revents: 0))
        withUnsafeMutableBytes(of: &sockets) { sockets in
            withUnsafeMutableBytes(of: &entries) { entries in
                let sockets = sockets.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: Int32.self)
                let entries = entries.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: pollfd.self)
                let interest = UInt32(bitPattern: resolver.sockets.unsafelyUnwrapped(channel, sockets, Int32(most)))
                var count = 0
                for index in 0..<most {
                    let reads = interest & 1 << UInt32(index) != 0
                    let writes = interest & 1 << UInt32(index + most) != 0
                    guard reads || writes else { continue }
                    entries[count] = pollfd(
                        fd: sockets[index], events: Int16((reads ? POLLIN : 0) | (writes ? POLLOUT : 0)), revents: 0)
                    count += 1
                }
                var longest = timeval(tv_sec: 5, tv_usec: 0)
                var limit = timeval()
                // The answer is where the shorter of the two is; the other one may not have been written.
                let chosen = withUnsafeMutablePointer(to: &longest) { longest in
                    withUnsafeMutablePointer(to: &limit) {
                        resolver.timeout.unsafelyUnwrapped(channel, longest, $0)?.pointee ?? longest.pointee
                    }
                }
                var time = timespec(tv_sec: chosen.tv_sec, tv_nsec: chosen.tv_usec * 1000)
                if count == 0 {
                    // Nothing to wait for: let it notice its time-outs.
                    if chosen.tv_sec == 0, chosen.tv_usec == 0 { time.tv_nsec = 1_000_000 }
                }
                let ready = alps_sys_poll_many(entries, UInt32(count), &time)
                if ready <= 0 {
                    resolver.process.unsafelyUnwrapped(channel, -1, -1)
                    return
                }
                for index in 0..<count where entries[index].revents != 0 {
                    let events = Int32(entries[index].revents)
                    let failed = events & (POLLERR | POLLHUP) != 0
                    resolver.process.unsafelyUnwrapped(
                        channel, failed || events & POLLIN != 0 ? entries[index].fd : -1,
                        events & POLLOUT != 0 ? entries[index].fd : -1)
                }
            }
        }
    }
}

// MARK: - answers

@c
func alpsShimAddressesFound(
    _ argument: UnsafeMutableRawPointer?, _ status: Int32, _ timeouts: Int32,
    _ result: UnsafeMutablePointer<alps_ares_result>?
) {
    guard let host = argument?.assumingMemoryBound(to: FoundHost.self) else { return }
    host.pointee.finished = true
    host.pointee.status = status
    guard let result else { return }
    var node = result.pointee.nodes
    while let each = node, host.pointee.count < 32 {
        if let address = each.pointee.address {
            addAddress(UnsafeRawPointer(address), each.pointee.family, host)
        }
        node = each.pointee.next
    }
    // The chain of CNAMEs: the first alias is what was asked for, the last name is the canonical one.
    var cname = result.pointee.cnames
    if let first = cname, let alias = first.pointee.alias { copyText(alias, &host.pointee.alias) }
    while let each = cname {
        if let name = each.pointee.name { copyText(name, &host.pointee.canonicalName) }
        cname = each.pointee.next
    }
    resolver.freeAddresses.unsafelyUnwrapped(result)
}

private func addAddress(_ address: UnsafeRawPointer, _ family: Int32, _ host: UnsafeMutablePointer<FoundHost>) {
    let index = host.pointee.count
    switch family {
    case AF_INET:
        host.pointee.addresses[index * 2] = UInt64(address.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
    case AF_INET6:
        host.pointee.addresses[index * 2] = address.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
        host.pointee.addresses[index * 2 + 1] = address.loadUnaligned(fromByteOffset: 16, as: UInt64.self)
    default: return
    }
    host.pointee.families[index] = family
    host.pointee.count += 1
}

@c
func alpsShimNameFound(
    _ argument: UnsafeMutableRawPointer?, _ status: Int32, _ timeouts: Int32, _ answer: UnsafeMutablePointer<hostent>?
) {
    guard let host = argument?.assumingMemoryBound(to: FoundHost.self) else { return }
    host.pointee.finished = true
    host.pointee.status = status
    guard let name = answer?.pointee.h_name else { return }
    copyText(name, &host.pointee.canonicalName)
}

private func copyText(_ text: UnsafePointer<CChar>, _ field: inout [256 of CChar]) {
    withUnsafeMutableBytes(of: &field) {
        let length = min(strlen(text), 255)
        let target = $0.baseAddress.unsafelyUnwrapped
        memcpy(target, text, length)
        target.storeBytes(of: 0, toByteOffset: length, as: UInt8.self)
    }
}

/// The EAI_* code of a c-ares status.
private func lookUpError(_ status: Int32) -> Int32 {
    switch status {
    case 0: 0
    case 1: EAI_NODATA_  // ARES_ENODATA
    case 4, 8: EAI_NONAME  // ENOTFOUND, EBADNAME
    case 15: EAI_MEMORY
    case 2, 6, 10: EAI_FAIL  // EFORMERR, EREFUSED, EBADRESP
    default: EAI_AGAIN  // ESERVFAIL, ECONNREFUSED, ETIMEOUT, ...
    }
}

/// glibc's EAI_NODATA.
private var EAI_NODATA_: Int32 { -5 }

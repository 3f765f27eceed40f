import CLibc
import ClientAPI

// getaddrinfo, getnameinfo and the gethostby... family. Numeric names never cause a query. libc makes the lists and the
// numeric forms; only look-ups are ours.

private typealias AddressList = UnsafeMutablePointer<addrinfo>

/// Hints of a getaddrinfo() call, as they are given to libc.
private func hints(_ given: UnsafePointer<addrinfo>?, numeric: Bool) -> addrinfo {
    var hints = addrinfo()
    if let given {
        hints.ai_flags = given.pointee.ai_flags
        hints.ai_family = given.pointee.ai_family
        hints.ai_socktype = given.pointee.ai_socktype
        hints.ai_protocol = given.pointee.ai_protocol
    }
    // The addresses that libc would look at are the kernel's, not the stack's.
    hints.ai_flags &= ~Int32(AI_ADDRCONFIG)
    if numeric { hints.ai_flags |= Int32(AI_NUMERICHOST) }
    return hints
}

@c(alps_entry_getaddrinfo)
public func shimGetaddrinfo(
    _ node: UnsafePointer<CChar>?, _ service: UnsafePointer<CChar>?, _ given: UnsafePointer<addrinfo>?,
    _ answer: UnsafeMutablePointer<UnsafeMutablePointer<addrinfo>?>?
) -> Int32 {
    ensureReady()
    guard activation.active, let answer, given == nil || isInternet(given.unsafelyUnwrapped.pointee.ai_family) else {
        return real.getaddrinfo.unsafelyUnwrapped(node, service, given, answer)
    }
    var direct = hints(given, numeric: node != nil)
    if node == nil, direct.ai_family == AF_UNSPEC {
        // The stack has IPv4 only: a server that binds every address it is given must not be given "::".
        direct.ai_family = AF_INET
    }
    let numeric = real.getaddrinfo.unsafelyUnwrapped(node, service, &direct, answer)
    let wantsNumeric = given.map { $0.pointee.ai_flags & Int32(AI_NUMERICHOST) != 0 } ?? false
    guard numeric == EAI_NONAME, let node, !wantsNumeric else { return numeric }
    guard hasResolver() else { return real.getaddrinfo.unsafelyUnwrapped(node, service, given, answer) }

    let family = direct.ai_family == AF_UNSPEC ? AF_INET : direct.ai_family
    var host = FoundHost()
    let error = lookUp(node, family, &host)
    guard error == 0 else { return error }
    guard host.count > 0 else { return EAI_NONAME }
    return makeList(node, service, direct, &host, answer)
}

private func isInternet(_ family: Int32) -> Bool {
    family == AF_UNSPEC || family == AF_INET || family == AF_INET6
}

/// libc makes the entries of each address, with the service's port; the lists are joined. libc's entries are allocated
/// one by one, so its freeaddrinfo() frees the joined list.
private func makeList(
    _ node: UnsafePointer<CChar>, _ service: UnsafePointer<CChar>?, _ given: addrinfo, _ host: inout FoundHost,
    _ answer: UnsafeMutablePointer<UnsafeMutablePointer<addrinfo>?>
) -> Int32 {
    var hints = given
    hints.ai_flags |= Int32(AI_NUMERICHOST)
    hints.ai_flags &= ~Int32(AI_CANONNAME)
    var first: AddressList?
    var last: AddressList?
    for index in 0..<host.count {
        var text = [64 of CChar](repeating: 0)
        hints.ai_family = host.families[index]
        var address = (host.addresses[index * 2], host.addresses[index * 2 + 1])
        var part: UnsafeMutablePointer<addrinfo>?
        let error = withUnsafeMutableBytes(of: &text) {
            let text = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: CChar.self)
            inet_ntop(hints.ai_family, &address, text, 64)
            return real.getaddrinfo.unsafelyUnwrapped(text, service, &hints, &part)
        }
        guard error == 0, let part else {
            real.freeaddrinfo.unsafelyUnwrapped(first)
            return error
        }
        if let last { last.pointee.ai_next = part } else { first = part }
        var end = part
        while let next = end.pointee.ai_next { end = next }
        last = end
    }
    guard let first else { return EAI_NONAME }
    if given.ai_flags & Int32(AI_CANONNAME) != 0 {
        first.pointee.ai_canonname = withUnsafeBytes(of: &host.canonicalName) {
            let name = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: CChar.self)
            return strdup(name[0] != 0 ? name : node)
        }
    }
    answer.pointee = first
    return 0
}

// MARK: - getnameinfo

@c(alps_entry_getnameinfo)
public func shimGetnameinfo(
    _ address: UnsafeRawPointer?, _ length: socklen_t, _ name: UnsafeMutablePointer<CChar>?, _ nameCapacity: socklen_t,
    _ service: UnsafeMutablePointer<CChar>?, _ serviceCapacity: socklen_t, _ flags: Int32
) -> Int32 {
    ensureReady()
    guard activation.active, let address, length >= 16, let name, nameCapacity > 0,
        flags & Int32(NI_NUMERICHOST) == 0, Int32(address.loadUnaligned(as: sa_family_t.self)) == AF_INET, hasResolver()
    else {
        return real.getnameinfo.unsafelyUnwrapped(
            address, length, name, nameCapacity, service, serviceCapacity, flags)
    }
    var host = FoundHost()
    let error = lookUp(address: address + 4, 4, AF_INET, &host)
    if error == 0, host.canonicalName[0] != 0 {
        let fits = withUnsafeBytes(of: &host.canonicalName) {
            let text = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: CChar.self)
            let size = strlen(text) + 1
            guard size <= Int(nameCapacity) else { return false }
            memcpy(name, text, size)
            return true
        }
        guard fits else { return EAI_OVERFLOW_ }
        guard let service, serviceCapacity > 0 else { return 0 }
        return real.getnameinfo.unsafelyUnwrapped(address, length, nil, 0, service, serviceCapacity, flags)
    }
    if flags & Int32(NI_NAMEREQD) != 0 { return error == EAI_AGAIN ? EAI_AGAIN : EAI_NONAME }
    return real.getnameinfo.unsafelyUnwrapped(
        address, length, name, nameCapacity, service, serviceCapacity, flags | Int32(NI_NUMERICHOST))
}

private var EAI_OVERFLOW_: Int32 { -12 }

// MARK: - gethostbyname

/// The answer of the functions without a buffer of the caller's: one a process, as in libc.
private struct StaticHost {
    var entry = hostent()
    var buffer = [1024 of UInt64](repeating: 0)
}

nonisolated(unsafe) private var staticHostMemory: UnsafeMutableRawPointer? = nil

private func staticHost() -> UnsafeMutablePointer<StaticHost>? {
    if staticHostMemory == nil { staticHostMemory = calloc(1, MemoryLayout<StaticHost>.size) }
    return staticHostMemory?.assumingMemoryBound(to: StaticHost.self)
}

@c(alps_entry_gethostbyname)
public func shimGethostbyname(_ name: UnsafePointer<CChar>?) -> UnsafeMutablePointer<hostent>? {
    shimGethostbyname2(name, AF_INET)
}

@c(alps_entry_gethostbyname2)
public func shimGethostbyname2(_ name: UnsafePointer<CChar>?, _ family: Int32) -> UnsafeMutablePointer<hostent>? {
    guard let memory = staticHost() else { return nil }
    var answer: UnsafeMutablePointer<hostent>?
    var error: Int32 = 0
    let buffer = UnsafeMutableRawPointer(memory) + MemoryLayout<hostent>.stride
    _ = shimGethostbyname2R(
        name, family, UnsafeMutableRawPointer(memory).assumingMemoryBound(to: hostent.self),
        buffer.assumingMemoryBound(to: CChar.self), 8192, &answer, &error)
    if answer == nil { alps_set_h_errno(error) }
    return answer
}

@c(alps_entry_gethostbyname_r)
public func shimGethostbynameR(
    _ name: UnsafePointer<CChar>?, _ entry: UnsafeMutablePointer<hostent>?, _ buffer: UnsafeMutablePointer<CChar>?,
    _ capacity: Int, _ answer: UnsafeMutablePointer<UnsafeMutablePointer<hostent>?>?,
    _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    shimGethostbyname2R(name, AF_INET, entry, buffer, capacity, answer, error)
}

@c(alps_entry_gethostbyname2_r)
public func shimGethostbyname2R(
    _ name: UnsafePointer<CChar>?, _ family: Int32, _ entry: UnsafeMutablePointer<hostent>?,
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int,
    _ answer: UnsafeMutablePointer<UnsafeMutablePointer<hostent>?>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    ensureReady()
    guard activation.active, let name, let entry, let buffer, let answer, family == AF_INET || family == AF_INET6,
        !isNumeric(name), hasResolver()
    else {
        return real.gethostbyname2_r.unsafelyUnwrapped(name, family, entry, buffer, capacity, answer, error)
    }
    answer.pointee = nil
    var host = FoundHost()
    let code = lookUp(name, family, &host)
    guard code == 0, host.count > 0 else {
        error?.pointee = hostError(code)
        return 0
    }
    return fill(name, family, &host, entry, buffer, capacity, answer, error)
}

private func isNumeric(_ name: UnsafePointer<CChar>) -> Bool {
    var address = (UInt64(0), UInt64(0))
    return withUnsafeMutableBytes(of: &address) {
        let pointer = $0.baseAddress.unsafelyUnwrapped
        return inet_aton(name, pointer.assumingMemoryBound(to: in_addr.self)) != 0
            || inet_pton(AF_INET6, name, pointer) == 1
    }
}

/// Lays an answer out in the caller's buffer: pointers, addresses, then names.
private func fill(
    _ name: UnsafePointer<CChar>, _ family: Int32, _ host: inout FoundHost, _ entry: UnsafeMutablePointer<hostent>,
    _ buffer: UnsafeMutablePointer<CChar>, _ capacity: Int,
    _ answer: UnsafeMutablePointer<UnsafeMutablePointer<hostent>?>, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    let size = family == AF_INET ? 4 : 16
    let count = host.count
    return withUnsafeBytes(of: &host.canonicalName) { canonical in
        let canonical = canonical.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: CChar.self)
        let official = canonical[0] != 0 ? canonical : name
        let hasAlias = strcmp(official, name) != 0
        let start = (UnsafeMutableRawPointer(buffer) + 7).alignedDown(to: 8)
        let pointers = count + 1 + 2
        let needed =
            (start - UnsafeMutableRawPointer(buffer)) + pointers * 8 + count * 16 + strlen(official) + 1 + strlen(name)
            + 1
        guard needed <= capacity else {
            error?.pointee = -1  // NETDB_INTERNAL
            return ERANGE
        }
        let list = start.assumingMemoryBound(to: UnsafeMutablePointer<CChar>?.self)
        let aliases = list + count + 1
        var next = (start + pointers * 8).assumingMemoryBound(to: CChar.self)
        for index in 0..<count {
            withUnsafeBytes(of: &host.addresses) {
                _ = memcpy(next, $0.baseAddress.unsafelyUnwrapped + index * 16, size)
            }
            list[index] = next
            next += 16
        }
        list[count] = nil
        entry.pointee.h_name = next
        memcpy(next, official, strlen(official) + 1)
        next += strlen(official) + 1
        aliases[0] = nil
        aliases[1] = nil
        if hasAlias {
            memcpy(next, name, strlen(name) + 1)
            aliases[0] = next
        }
        entry.pointee.h_aliases = aliases
        entry.pointee.h_addrtype = family
        entry.pointee.h_length = Int32(size)
        entry.pointee.h_addr_list = list
        answer.pointee = entry
        return 0
    }
}

extension UnsafeMutableRawPointer {
    fileprivate func alignedDown(to alignment: Int) -> UnsafeMutableRawPointer {
        self - Int(bitPattern: self) % alignment
    }
}

/// The h_errno of an EAI_* code.
private func hostError(_ code: Int32) -> Int32 {
    switch code {
    case 0, -5: 4  // NO_DATA
    case EAI_NONAME: 1  // HOST_NOT_FOUND
    case EAI_AGAIN: 2  // TRY_AGAIN
    default: 3  // NO_RECOVERY
    }
}

// MARK: - gethostbyaddr

@c(alps_entry_gethostbyaddr)
public func shimGethostbyaddr(
    _ address: UnsafeRawPointer?, _ length: socklen_t, _ family: Int32
) -> UnsafeMutablePointer<hostent>? {
    guard let memory = staticHost() else { return nil }
    var answer: UnsafeMutablePointer<hostent>?
    var error: Int32 = 0
    let buffer = UnsafeMutableRawPointer(memory) + MemoryLayout<hostent>.stride
    _ = shimGethostbyaddrR(
        address, length, family, UnsafeMutableRawPointer(memory).assumingMemoryBound(to: hostent.self),
        buffer.assumingMemoryBound(to: CChar.self), 8192, &answer, &error)
    if answer == nil { alps_set_h_errno(error) }
    return answer
}

@c(alps_entry_gethostbyaddr_r)
public func shimGethostbyaddrR(
    _ address: UnsafeRawPointer?, _ length: socklen_t, _ family: Int32, _ entry: UnsafeMutablePointer<hostent>?,
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int,
    _ answer: UnsafeMutablePointer<UnsafeMutablePointer<hostent>?>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    ensureReady()
    guard activation.active, let address, let entry, let buffer, let answer, family == AF_INET, length == 4,
        hasResolver()
    else {
        return real.gethostbyaddr_r.unsafelyUnwrapped(
            address, length, family, entry, buffer, capacity, answer, error)
    }
    answer.pointee = nil
    var host = FoundHost()
    let code = lookUp(address: address, 4, AF_INET, &host)
    guard code == 0, host.canonicalName[0] != 0 else {
        error?.pointee = hostError(code)
        return 0
    }
    host.count = 1
    host.addresses[0] = UInt64(address.loadUnaligned(as: UInt32.self))
    var name = host.canonicalName
    return withUnsafeBytes(of: &name) {
        fill(
            $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: CChar.self), AF_INET, &host, entry, buffer,
            capacity, answer, error)
    }
}

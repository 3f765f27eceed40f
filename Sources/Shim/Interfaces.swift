import CLibc
import ClientAPI

// The stack's interfaces in the forms that libc and ioctl give them.

/// The host's list: as many records as fit, one an address.
private func interfaces(
    _ records: UnsafeMutablePointer<alps_interface_record>, _ capacity: Int, _ count: inout Int
) -> Int32 {
    let stride = MemoryLayout<alps_interface_record>.stride
    let reply = ask(ALPS_OP_INTERFACES, 0, into: records, capacity * stride)
    count = reply.error == 0 ? reply.length / stride : 0
    return reply.error
}

private var mostInterfaces: Int { 512 }

/// Runs `body` with the list, which is freed after it. False: errno is set.
@inline(__always)
private func withInterfaces(_ body: (UnsafeMutablePointer<alps_interface_record>, Int) -> Void) -> Bool {
    guard let memory = malloc(mostInterfaces * MemoryLayout<alps_interface_record>.stride) else {
        alps_set_errno(ENOMEM)
        return false
    }
    let records = memory.bindMemory(to: alps_interface_record.self, capacity: mostInterfaces)
    var count = 0
    let error = interfaces(records, mostInterfaces, &count)
    if error == 0 { body(records, count) }
    free(memory)
    if error != 0 { alps_set_errno(controlError(error)) }
    return error == 0
}

/// True if an earlier record is of the same interface.
private func isRepeated(_ records: UnsafeMutablePointer<alps_interface_record>, _ index: Int) -> Bool {
    for earlier in 0..<index where records[earlier].index == records[index].index { return true }
    return false
}

/// The record's name, as a C string of at most 15 characters.
private func copyName(_ record: inout alps_interface_record, to target: UnsafeMutablePointer<CChar>) {
    withUnsafeBytes(of: &record.name) {
        _ = memcpy(target, $0.baseAddress.unsafelyUnwrapped, 15)
        target[15] = 0
    }
}

// MARK: - names and numbers

@c(alps_entry_if_nametoindex)
public func shimIfNametoindex(_ name: UnsafePointer<CChar>?) -> UInt32 {
    ensureReady()
    guard activation.active, let name else { return real.if_nametoindex.unsafelyUnwrapped(name) }
    var index: UInt32 = 0
    let asked = withInterfaces { records, count in
        for each in 0..<count {
            var text = [16 of CChar](repeating: 0)
            withUnsafeMutableBytes(of: &text) {
                let pointer = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: CChar.self)
                copyName(&records[each], to: pointer)
                if strcmp(pointer, name) == 0 { index = records[each].index }
            }
        }
    }
    if asked, index == 0 { alps_set_errno(ENODEV) }
    return index
}

@c(alps_entry_if_indextoname)
public func shimIfIndextoname(_ index: UInt32, _ name: UnsafeMutablePointer<CChar>?) -> UnsafeMutablePointer<CChar>? {
    ensureReady()
    guard activation.active, let name else { return real.if_indextoname.unsafelyUnwrapped(index, name) }
    var found = false
    let asked = withInterfaces { records, count in
        for each in 0..<count where records[each].index == index && !found {
            copyName(&records[each], to: name)
            found = true
        }
    }
    if asked, !found { alps_set_errno(ENXIO) }
    return found ? name : nil
}

/// The answer is freed by libc's if_freenameindex: an array, and each name, from malloc.
@c(alps_entry_if_nameindex)
public func shimIfNameindex() -> UnsafeMutableRawPointer? {
    ensureReady()
    guard activation.active else { return real.if_nameindex.unsafelyUnwrapped() }
    struct NameIndex {
        var index: UInt32
        var name: UnsafeMutablePointer<CChar>?
    }
    var answer: UnsafeMutableRawPointer?
    let asked = withInterfaces { records, count in
        answer = calloc(count + 1, MemoryLayout<NameIndex>.stride)
        guard let list = answer?.bindMemory(to: NameIndex.self, capacity: count + 1) else { return }
        var used = 0
        for each in 0..<count where !isRepeated(records, each) {
            guard let name = malloc(16) else { return }
            let text = name.bindMemory(to: CChar.self, capacity: 16)
            copyName(&records[each], to: text)
            list[used] = NameIndex(index: records[each].index, name: text)
            used += 1
        }
    }
    if asked, answer == nil { alps_set_errno(ENOBUFS) }
    return answer
}

// MARK: - getifaddrs

/// What one entry of the list points to.
private struct InterfaceAddresses {
    var list: ifaddrs
    var name: [16 of CChar]
    var address: sockaddr_in
    var mask: sockaddr_in
    var broadcast: sockaddr_in
    var link: sockaddr_ll
    var linkBroadcast: sockaddr_ll
}

/// One block of memory, as libc's: freeifaddrs() of either frees it.
@c(alps_entry_getifaddrs)
public func shimGetifaddrs(_ answer: UnsafeMutablePointer<UnsafeMutablePointer<ifaddrs>?>?) -> Int32 {
    ensureReady()
    guard activation.active, let answer else { return real.getifaddrs.unsafelyUnwrapped(answer) }
    var memory: UnsafeMutableRawPointer?
    let asked = withInterfaces { records, count in
        // One entry an interface (AF_PACKET, as Linux has it) and one an address.
        memory = calloc(max(count * 2, 1), MemoryLayout<InterfaceAddresses>.stride)
        guard let start = memory?.bindMemory(to: InterfaceAddresses.self, capacity: max(count * 2, 1)) else { return }
        var used = 0
        for each in 0..<count where !isRepeated(records, each) {
            fillLink(start + used, &records[each])
            used += 1
        }
        for each in 0..<count where records[each].address.family == UInt16(AF_INET) {
            fillAddress(start + used, &records[each])
            used += 1
        }
        for each in 0..<max(used - 1, 0) {
            start[each].list.ifa_next = UnsafeMutableRawPointer(start + each + 1).assumingMemoryBound(to: ifaddrs.self)
        }
        if used == 0 {
            free(memory)
            memory = nil
        }
        answer.pointee = memory?.assumingMemoryBound(to: ifaddrs.self)
    }
    return asked ? 0 : -1
}

@c(alps_entry_freeifaddrs)
public func shimFreeifaddrs(_ list: UnsafeMutablePointer<ifaddrs>?) {
    free(list)
}

/// Where the parts of an `InterfaceAddresses` lie: Embedded Swift has no key paths to ask.
private struct Offset {
    static var name: Int { MemoryLayout<ifaddrs>.size }
    static var address: Int { name + 16 }
    static var mask: Int { address + 16 }
    static var broadcast: Int { mask + 16 }
    static var link: Int { broadcast + 16 }
    static var linkBroadcast: Int { link + MemoryLayout<sockaddr_ll>.size }
}

private func fillCommon(_ target: UnsafeMutablePointer<InterfaceAddresses>, _ record: inout alps_interface_record) {
    let base = UnsafeMutableRawPointer(target)
    let name = (base + Offset.name).assumingMemoryBound(to: CChar.self)
    copyName(&record, to: name)
    target.pointee.list.ifa_name = name
    target.pointee.list.ifa_flags = record.flags
}

private func fillLink(_ target: UnsafeMutablePointer<InterfaceAddresses>, _ record: inout alps_interface_record) {
    fillCommon(target, &record)
    let base = UnsafeMutableRawPointer(target)
    target.pointee.link.sll_family = UInt16(AF_PACKET)
    target.pointee.link.sll_ifindex = Int32(bitPattern: record.index)
    target.pointee.link.sll_hatype = UInt16(
        record.flags & UInt32(IFF_LOOPBACK) != 0 ? ARPHRD_LOOPBACK : ARPHRD_ETHER)
    target.pointee.link.sll_halen = UInt8(truncatingIfNeeded: min(record.hardware_length, 8))
    target.pointee.link.sll_addr = record.hardware
    target.pointee.list.ifa_addr = (base + Offset.link).assumingMemoryBound(to: sockaddr.self)
    target.pointee.linkBroadcast = target.pointee.link
    let isLoopback = record.flags & UInt32(IFF_LOOPBACK) != 0
    withUnsafeMutableBytes(of: &target.pointee.linkBroadcast.sll_addr) {
        _ = memset($0.baseAddress.unsafelyUnwrapped, isLoopback ? 0 : 0xff, Int(target.pointee.link.sll_halen))
    }
    target.pointee.list.ifa_ifu.ifu_broadaddr =
        (base + Offset.linkBroadcast).assumingMemoryBound(to: sockaddr.self)
}

private func fillAddress(_ target: UnsafeMutablePointer<InterfaceAddresses>, _ record: inout alps_interface_record) {
    fillCommon(target, &record)
    let base = UnsafeMutableRawPointer(target)
    writeAddress(
        Endpoint(address: ipv4(record.address), port: 0), to: base + Offset.address,
        capacity: MemoryLayout<sockaddr_in>.size)
    target.pointee.list.ifa_addr = (base + Offset.address).assumingMemoryBound(to: sockaddr.self)
    let bits = min(record.prefix_length, 32)
    let mask: UInt32 = bits == 0 ? 0 : UInt32.max << (32 - bits)
    writeAddress(
        Endpoint(address: mask.bigEndian, port: 0), to: base + Offset.mask, capacity: MemoryLayout<sockaddr_in>.size)
    target.pointee.list.ifa_netmask = (base + Offset.mask).assumingMemoryBound(to: sockaddr.self)
    if record.broadcast.family == UInt16(AF_INET) {
        writeAddress(
            Endpoint(address: ipv4(record.broadcast), port: 0), to: base + Offset.broadcast,
            capacity: MemoryLayout<sockaddr_in>.size)
        target.pointee.list.ifa_ifu.ifu_broadaddr =
            (base + Offset.broadcast).assumingMemoryBound(to: sockaddr.self)
    }
}

// MARK: - SIOCGIFCONF

/// struct ifconf: a length and a pointer to an array of struct ifreq, one an IPv4 address. Without a pointer the length
/// that would be needed.
func interfaceConfiguration(_ argument: UnsafeMutableRawPointer?) -> Int32 {
    guard let argument, isWritable(argument, 16) else { return fail(EFAULT) }
    let size = MemoryLayout<ifreq>.size
    let capacity = Int(argument.loadUnaligned(as: Int32.self)) / size
    let buffer = argument.loadUnaligned(fromByteOffset: 8, as: UnsafeMutableRawPointer?.self)
    var used = 0
    var isThere = true
    let asked = withInterfaces { records, count in
        for each in 0..<count where records[each].address.family == UInt16(AF_INET) {
            if let buffer {
                guard used < capacity else { return }
                let target = buffer + used * size
                isThere = isWritable(target, size)
                guard isThere else { return }
                memset(target, 0, size)
                copyName(&records[each], to: target.assumingMemoryBound(to: CChar.self))
                writeAddress(
                    Endpoint(address: ipv4(records[each].address), port: 0), to: target + 16,
                    capacity: MemoryLayout<sockaddr_in>.size)
            }
            used += 1
        }
    }
    guard asked else { return -1 }
    guard isThere else { return fail(EFAULT) }
    argument.storeBytes(of: Int32(used * size), as: Int32.self)
    return 0
}

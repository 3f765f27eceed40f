import CLinux
import Glibc
import PluginAPI

/// ioctl(2) on sockets and interfaces, with Linux's numbers and structures.
enum ClientIoctl {
    private static let interfaceNameSize = 16
    private static let requestSize = 40

    static func execute(_ kernel: Kernel, _ socket: Socket?, _ command: UInt, _ data: inout [UInt8], isRoot: Bool) -> Int32 {
        switch Int32(truncatingIfNeeded: command) {
        case Int32(FIONREAD):
            guard let socket else { return EBADF }
            let waiting = socket.isStream
                ? socket.receiveAvailable : (socket.firstDatagram.map { Int($0.packet.pointee.pkt.length) } ?? 0)
            return store(&data, Int32(waiting))
        case Int32(TIOCOUTQ):
            guard let socket else { return EBADF }
            guard !socket.isListening else { return EINVAL }
            return store(&data, Int32(socket.sendQueued))
        case Int32(SIOCATMARK):
            guard let socket, socket.isStream else { return ENOTTY }
            // What the client has not read yet comes with the request.
            let unread = data.count >= 4 ? data.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) } : 0
            return store(&data, Int32(socket.isAtMark(unread: Int(max(unread, 0))) ? 1 : 0))
        case Int32(SIOCGIFCONF): return interfaceList(kernel, &data)
        case Int32(SIOCGIFNAME): return interfaceName(kernel, &data)
        case Int32(SIOCADDRT), Int32(SIOCDELRT):
            guard isRoot else { return EPERM }
            return changeRoute(kernel, &data, add: Int32(truncatingIfNeeded: command) == Int32(SIOCADDRT))
        case 0x894b /* SIOCOUTQNSD */:
            guard let socket, socket.isStream else { return ENOTTY }
            guard !socket.isListening else { return EINVAL }
            return store(&data, socket.notSent)
        default: break
        }
        guard let request = SocketRequest.find(command) else {
            // A transport may have some of its own.
            return socket?.control(UInt32(truncatingIfNeeded: command), &data) ?? ENOTTY
        }
        if case .refused(let error) = request.treatment { return refuse(kernel, request, error, data) }
        return interfaceRequest(kernel, command, &data, isRoot: isRoot)
    }

    private static func refuse(_ kernel: Kernel, _ request: SocketRequest, _ error: Int32, _ data: [UInt8]) -> Int32 {
        if request.namesInterface {
            let name = String(decoding: data.prefix(interfaceNameSize).prefix { $0 != 0 }, as: UTF8.self)
            guard kernel.interfaces.find(name) != nil else { return ENODEV }
        }
        // struct arpreq begins with an address.
        let isARP = (0x8953...0x8955).contains(request.number)
        return isARP && family(data, 0) != sa_family_t(AF_INET) ? EPFNOSUPPORT : error
    }

    private static func family(_ data: [UInt8], _ offset: Int) -> sa_family_t {
        guard data.count >= offset + 2 else { return 0 }
        return data.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: sa_family_t.self) }
    }

    private static func store(_ data: inout [UInt8], _ value: Int32) -> Int32 {
        data = withUnsafeBytes(of: value) { Array($0) }
        return 0
    }

    // MARK: Interfaces

    private static func socketAddress(_ address: alps_addr) -> [UInt8] {
        var name = sockaddr_in()
        name.sin_family = sa_family_t(AF_INET)
        withUnsafeMutableBytes(of: &name.sin_addr) { bytes in
            withUnsafeBytes(of: address) { bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[0..<4])) }
        }
        return withUnsafeBytes(of: name) { Array($0) }
    }

    /// An address out of a sockaddr_in at `offset`.
    private static func address(_ data: [UInt8], _ offset: Int) -> alps_addr? {
        guard data.count >= offset + 16 else { return nil }
        var result = alps_addr()
        withUnsafeMutableBytes(of: &result) { bytes in
            for index in 0..<4 { bytes[index] = data[offset + 4 + index] }
        }
        return result
    }

    private static func mask(_ length: Int) -> alps_addr {
        var result = alps_addr()
        withUnsafeMutableBytes(of: &result) { bytes in
            for bit in 0..<length { bytes[bit / 8] |= 0x80 >> UInt8(bit % 8) }
        }
        return result
    }

    private static func prefixLength(_ mask: alps_addr) -> Int? {
        withUnsafeBytes(of: mask) { bytes in
            let word = UInt32(bytes[0]) << 24 | UInt32(bytes[1]) << 16 | UInt32(bytes[2]) << 8 | UInt32(bytes[3])
            let length = (~word).leadingZeroBitCount
            return length == 32 || word << UInt32(length) == 0 ? length : nil
        }
    }

    /// The shim passes the buffer behind ifconf, filled with as many ifreqs as fit.
    private static func interfaceList(_ kernel: Kernel, _ data: inout [UInt8]) -> Int32 {
        var result: [UInt8] = []
        let capacity = data.count
        for interface in kernel.interfaces.all {
            for address in interface.addresses where result.count + requestSize <= capacity || capacity == 0 {
                var entry = [UInt8](repeating: 0, count: requestSize)
                for (index, byte) in interface.name.utf8.prefix(15).enumerated() { entry[index] = byte }
                entry.replaceSubrange(interfaceNameSize..<interfaceNameSize + 16, with: socketAddress(address.addr))
                result += entry
            }
        }
        data = result
        return 0
    }

    private static func interfaceName(_ kernel: Kernel, _ data: inout [UInt8]) -> Int32 {
        guard data.count >= requestSize else { return EFAULT }
        let index = data.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: interfaceNameSize, as: Int32.self) }
        guard let interface = kernel.interfaces.interface(UInt32(max(index, 0))) else { return ENODEV }
        for offset in 0..<interfaceNameSize { data[offset] = 0 }
        for (offset, byte) in interface.name.utf8.prefix(15).enumerated() { data[offset] = byte }
        return 0
    }

    private static func interfaceRequest(_ kernel: Kernel, _ command: UInt, _ data: inout [UInt8], isRoot: Bool) -> Int32 {
        guard data.count >= requestSize else { return EFAULT }
        // As Linux: the address is looked at before the name.
        let setsAddress = command == UInt(SIOCSIFADDR) || command == UInt(SIOCSIFNETMASK)
        guard !setsAddress || family(data, interfaceNameSize) == sa_family_t(AF_INET) else { return EINVAL }
        let name = String(decoding: data.prefix(interfaceNameSize).prefix { $0 != 0 }, as: UTF8.self)
        guard let interface = kernel.interfaces.find(name) else { return ENODEV }
        let at = interfaceNameSize
        func put(_ bytes: [UInt8]) { data.replaceSubrange(at..<at + bytes.count, with: bytes) }
        func put<T>(_ value: T) { put(withUnsafeBytes(of: value) { Array($0) }) }
        let first = interface.addresses.first
        switch Int32(truncatingIfNeeded: command) {
        case Int32(SIOCGIFFLAGS): put(UInt16(truncatingIfNeeded: Netlink.flags(interface)))
        case Int32(SIOCGIFINDEX): put(Int32(interface.raw.pointee.index))
        case Int32(SIOCGIFMTU): put(Int32(interface.raw.pointee.mtu))
        case Int32(SIOCGIFMETRIC): put(Int32(0))
        case Int32(SIOCGIFTXQLEN): put(Int32(1000))
        case Int32(SIOCGIFMAP): put([UInt8](repeating: 0, count: requestSize - interfaceNameSize))
        case Int32(SIOCGIFHWADDR):
            put(UInt16(interface.isLoopback ? ARPHRD_LOOPBACK : ARPHRD_ETHER))
            withUnsafeBytes(of: interface.raw.pointee.hardware) { bytes in
                for index in 0..<6 { data[at + 2 + index] = bytes[index] }
            }
        case Int32(SIOCGIFADDR), Int32(SIOCGIFDSTADDR):
            guard let first else { return EADDRNOTAVAIL }
            put(socketAddress(first.addr))
        case Int32(SIOCGIFBRDADDR):
            guard let first else { return EADDRNOTAVAIL }
            put(socketAddress(first.broadcast))
        case Int32(SIOCGIFNETMASK):
            guard let first else { return EADDRNOTAVAIL }
            put(socketAddress(mask(Int(first.prefix_length))))
        case Int32(SIOCSIFFLAGS):
            guard isRoot else { return EPERM }
            let flags = data.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: at, as: UInt16.self) }
            kernel.interfaces.setUp(interface, flags & UInt16(ALPS_IFF_UP) != 0)
        case Int32(SIOCSIFMTU):
            guard isRoot else { return EPERM }
            return kernel.interfaces.setMTU(
                interface, Int(data.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: at, as: Int32.self) }))
        case Int32(SIOCSIFADDR):
            guard isRoot else { return EPERM }
            guard let wanted = address(data, at) else { return EINVAL }
            return replaceAddress(kernel, interface, wanted, Int(first?.prefix_length ?? 24))
        case Int32(SIOCSIFNETMASK):
            guard isRoot else { return EPERM }
            guard let first, let wanted = address(data, at), let length = prefixLength(wanted) else { return EINVAL }
            return replaceAddress(kernel, interface, first.addr, length)
        default: return EOPNOTSUPP
        }
        return 0
    }

    private static func replaceAddress(_ kernel: Kernel, _ interface: Interface, _ address: alps_addr, _ length: Int) -> Int32 {
        if let first = interface.addresses.first { _ = kernel.interfaces.deleteAddress(interface, first.addr) }
        do {
            if !NetworkAddress(address: address).isZero {
                try kernel.interfaces.addAddress(interface, address, prefixLength: length)
            }
            return 0
        } catch { return (error as? KernelError)?.code ?? EINVAL }
    }

    // MARK: Routes

    /// struct rtentry of a 64-bit Linux: destination at 8, gateway at 24, netmask at 40, flags at 56, metric at 72, device
    /// pointer (not usable here) at 80; the shim puts the device's name behind the structure.
    private static func changeRoute(_ kernel: Kernel, _ data: inout [UInt8], add: Bool) -> Int32 {
        guard data.count >= 120, let destination = address(data, 8), let gateway = address(data, 24),
            let netmask = address(data, 40)
        else { return EFAULT }
        guard family(data, 8) == sa_family_t(AF_INET) else { return EAFNOSUPPORT }
        let flags = data.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 56, as: UInt16.self) }
        let metric = data.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 72, as: Int16.self) }
        var route = alps_route()
        route.family = UInt16(ALPS_AF_INET)
        route.destination = destination
        guard let length = flags & UInt16(RTF_HOST) != 0 ? 32 : prefixLength(netmask) else { return EINVAL }
        route.prefix_length = UInt8(length)
        route.flags = UInt32(ALPS_RTF_STATIC)
        route.metric = UInt32(max(Int32(metric) - 1, 0))
        if flags & UInt16(RTF_GATEWAY) != 0 {
            route.flags |= UInt32(ALPS_RTF_GATEWAY)
            route.gateway = gateway
        }
        if flags & UInt16(RTF_REJECT) != 0 { route.flags |= UInt32(ALPS_RTF_REJECT) }
        if data.count > 120 {
            let name = String(decoding: data[120...].prefix { $0 != 0 }, as: UTF8.self)
            guard name.isEmpty || kernel.interfaces.find(name) != nil else { return ENODEV }
            route.ifindex = kernel.interfaces.find(name)?.raw.pointee.index ?? 0
        }
        if add, route.flags & UInt32(ALPS_RTF_GATEWAY | ALPS_RTF_REJECT) == 0, route.ifindex == 0 {
            guard let way = kernel.interfaces.all.first(where: { !$0.isLoopback }) else { return ENODEV }
            route.ifindex = way.raw.pointee.index
        }
        if add { return kernel.routes.add(route) }
        // Linux tells ESRCH where the table says ENOENT.
        let status = kernel.routes.remove(route)
        return status == ENOENT ? ESRCH : status
    }
}

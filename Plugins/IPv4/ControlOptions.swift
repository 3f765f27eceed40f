import PluginAPI
import PluginKit

/// Socket options of level IPPROTO_IP, with Linux's numbers and layouts.
private enum Option {
    static var tos: Int32 { 1 }
    static var ttl: Int32 { 2 }
    static var headerIncluded: Int32 { 3 }
    static var options: Int32 { 4 }
    static var receiveOptions: Int32 { 6 }
    static var packetInfo: Int32 { 8 }
    static var mtuDiscover: Int32 { 10 }
    static var receiveError: Int32 { 11 }
    static var receiveTTL: Int32 { 12 }
    static var receiveTOS: Int32 { 13 }
    static var mtu: Int32 { 14 }
    static var freebind: Int32 { 15 }
    static var transparent: Int32 { 19 }
    static var bindWithoutPort: Int32 { 24 }
    static var multicastInterface: Int32 { 32 }
    static var multicastTTL: Int32 { 33 }
    static var multicastLoop: Int32 { 34 }
    static var join: Int32 { 35 }
    static var leave: Int32 { 36 }
    static var multicastAll: Int32 { 49 }
}

func networkControlOutput(
    _ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB, _ set: Int32, _ level: Int32, _ name: Int32,
    _ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>
) -> Int32 {
    guard level == 0 else { return ALPS_ENOPROTOOPT }
    let instance = context.assumingMemoryBound(to: Instance.self)
    return set != 0
        ? instance.setOption(netpcb, name, value, Int(length.pointee)) : instance.getOption(netpcb, name, value, length)
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// An int, or the single byte that BSD programs pass.
    private func integer(_ value: UnsafeMutableRawPointer, _ length: Int) -> Int32? {
        if length >= 4 { return value.loadUnaligned(as: Int32.self) }
        return length >= 1 ? Int32(value.load(as: UInt8.self)) : nil
    }

    fileprivate func setOption(
        _ netpcb: NetworkPCB, _ name: Int32, _ value: UnsafeMutableRawPointer, _ length: Int
    ) -> Int32 {
        switch name {
        case Option.options: return setOptions(netpcb, value.assumingMemoryBound(to: UInt8.self), length)
        case Option.join, Option.leave: return membership(netpcb, name, value, length)
        case Option.multicastInterface: return setMulticastInterface(netpcb, value, length)
        default: break
        }
        guard let number = integer(value, length) else { return ALPS_EINVAL }
        func flag(_ bit: UInt32) -> Int32 {
            if number != 0 { netpcb.pointee.flags |= UInt8(bit) } else { netpcb.pointee.flags &= ~UInt8(bit) }
            return 0
        }
        switch name {
        case Option.tos: netpcb.pointee.tos = UInt8(truncatingIfNeeded: number)
        case Option.ttl:
            guard number == -1 || (1...255).contains(number) else { return ALPS_EINVAL }
            netpcb.pointee.ttl = number == -1 ? 0 : UInt8(number)
        case Option.headerIncluded: return flag(ALPS_NETPCB_HDRINCL)
        case Option.freebind: return flag(ALPS_NETPCB_FREEBIND)
        case Option.transparent: return ALPS_EPERM
        case Option.multicastTTL:
            guard (-1...255).contains(number) else { return ALPS_EINVAL }
            netpcb.pointee.multicast_ttl = number == -1 ? 1 : UInt8(number)
        case Option.multicastLoop: netpcb.pointee.multicast_loop = number != 0 ? 1 : 0
        default:
            guard let options = options(netpcb) else { return ALPS_ENOBUFS }
            switch name {
            case Option.mtuDiscover:
                guard (0...5).contains(number) else { return ALPS_EINVAL }
                options.pointee.mtuDiscover = UInt8(number)
                netpcb.pointee.flags &= ~UInt8(ALPS_NETPCB_DF | ALPS_NETPCB_PMTU_PROBE)
                if number == 2 || number == 3 { netpcb.pointee.flags |= UInt8(ALPS_NETPCB_DF) }
                if number == 3 || number == 4 { netpcb.pointee.flags |= UInt8(ALPS_NETPCB_PMTU_PROBE) }
                netpcb.pointee.route.size = 0
            case Option.receiveError: options.pointee.receiveError = number != 0
            case Option.receiveTTL: options.pointee.receiveTTL = number != 0
            case Option.receiveTOS: options.pointee.receiveTOS = number != 0
            case Option.packetInfo: options.pointee.packetInfo = number != 0
            case Option.bindWithoutPort: options.pointee.bindWithoutPort = number != 0
            case Option.multicastAll: options.pointee.multicastAll = number != 0
            case Option.receiveOptions: return 0
            default: return ALPS_ENOPROTOOPT
            }
        }
        return 0
    }

    fileprivate func getOption(
        _ netpcb: NetworkPCB, _ name: Int32, _ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>
    ) -> Int32 {
        let options = existingOptions(netpcb)
        func has(_ bit: UInt32) -> Int32 { netpcb.pointee.flags & UInt8(bit) != 0 ? 1 : 0 }
        func truth(_ value: Bool?) -> Int32 { value == true ? 1 : 0 }
        var number: Int32 = 0
        switch name {
        case Option.options:
            let count = min(UInt32(options?.pointee.length ?? 0), length.pointee)
            if let options {
                withUnsafeBytes(of: options.pointee.bytes) { bytes in
                    for index in 0..<Int(count) { value.storeBytes(of: bytes[index], toByteOffset: index, as: UInt8.self) }
                }
            }
            length.pointee = count
            return 0
        case Option.multicastInterface:
            guard length.pointee >= 4 else { return ALPS_EINVAL }
            let index = netpcb.pointee.multicast_ifindex
            value.storeBytes(of: index == 0 ? 0 : sourceAddress(index, toward: 0), as: UInt32.self)
            length.pointee = 4
            return 0
        case Option.tos: number = Int32(netpcb.pointee.tos)
        case Option.ttl:
            number = netpcb.pointee.ttl == 0 ? Int32(truncatingIfNeeded: setting(.ttl)) : Int32(netpcb.pointee.ttl)
        case Option.headerIncluded: number = has(ALPS_NETPCB_HDRINCL)
        case Option.freebind: number = has(ALPS_NETPCB_FREEBIND)
        case Option.transparent: number = 0
        case Option.multicastTTL: number = Int32(netpcb.pointee.multicast_ttl)
        case Option.multicastLoop: number = Int32(netpcb.pointee.multicast_loop)
        case Option.mtuDiscover: number = Int32(options?.pointee.mtuDiscover ?? 1)
        case Option.receiveError: number = truth(options?.pointee.receiveError)
        case Option.receiveTTL: number = truth(options?.pointee.receiveTTL)
        case Option.receiveTOS: number = truth(options?.pointee.receiveTOS)
        case Option.packetInfo: number = truth(options?.pointee.packetInfo)
        case Option.bindWithoutPort: number = truth(options?.pointee.bindWithoutPort)
        case Option.multicastAll: number = options?.pointee.multicastAll == false ? 0 : 1
        case Option.mtu:
            guard ipv4(netpcb.pointee.remote) != 0 else { return ALPS_ENOTCONN }
            number = Int32(networkPathMTU(UnsafeMutableRawPointer(self), netpcb))
        default: return ALPS_ENOPROTOOPT
        }
        guard length.pointee >= 1 else { return ALPS_EINVAL }
        if length.pointee < 4 {
            value.storeBytes(of: UInt8(truncatingIfNeeded: number), as: UInt8.self)
            length.pointee = 1
        } else {
            value.storeBytes(of: number, as: Int32.self)
            length.pointee = 4
        }
        return 0
    }

    /// struct ip_mreq {group, interface address} or ip_mreqn {group, address, index}.
    private func membership(_ netpcb: NetworkPCB, _ name: Int32, _ value: UnsafeMutableRawPointer, _ length: Int) -> Int32 {
        guard length >= 8 else { return ALPS_EINVAL }
        let group = value.loadUnaligned(as: UInt32.self)
        let address = value.loadUnaligned(fromByteOffset: 4, as: UInt32.self)
        var index: UInt32 = 0
        if length >= 12 { index = UInt32(bitPattern: value.loadUnaligned(fromByteOffset: 8, as: Int32.self)) }
        if index == 0, address != 0 {
            index = interface(of: address)
            guard index != 0 else { return ALPS_ENODEV }
        }
        return name == Option.join ? join(netpcb, group, index) : leave(netpcb, group, index)
    }

    private func setMulticastInterface(_ netpcb: NetworkPCB, _ value: UnsafeMutableRawPointer, _ length: Int) -> Int32 {
        guard length >= 4 else { return ALPS_EINVAL }
        var index: UInt32 = 0
        var address = value.loadUnaligned(as: UInt32.self)
        if length >= 12 {
            index = UInt32(bitPattern: value.loadUnaligned(fromByteOffset: 8, as: Int32.self))
            address = value.loadUnaligned(fromByteOffset: 4, as: UInt32.self)
        }
        if index == 0, address != 0 {
            index = interface(of: address)
            guard index != 0 else { return ALPS_EADDRNOTAVAIL }
        }
        guard index == 0 || ifnet(index) != nil else { return ALPS_EADDRNOTAVAIL }
        netpcb.pointee.multicast_ifindex = index
        netpcb.pointee.route.size = 0
        return 0
    }
}

import PluginAPI
import PluginKit

/// Path MTU discovery (RFC 1191). What is learned lives in the host's routing table, and lapses there.

func networkPathMTU(_ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB) -> UInt32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard instance.route(netpcb) == 0 else { return 576 }
    return instance.mtu(netpcb)
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// Bytes of packet that a routed attachment may send in one piece.
    @inline(__always)
    func mtu(_ netpcb: NetworkPCB) -> UInt32 {
        if netpcb.pointee.flags & UInt8(ALPS_NETPCB_PMTU_PROBE) != 0,
            let ifnet = ifnet(netpcb.pointee.route.ifindex)
        {
            return ifnet.pointee.mtu
        }
        return netpcb.pointee.route.mtu
    }

    /// The next lower of the MTUs that links have (RFC 1191, section 7.1), below `length`.
    fileprivate func plateau(below length: UInt32) -> UInt32 {
        let plateaus: (UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32) =
            (32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68)
        return withUnsafeBytes(of: plateaus) { bytes in
            var at = 0
            while at < bytes.count {
                let value = bytes.load(fromByteOffset: at, as: UInt32.self)
                if value < length { return value }
                at += MemoryLayout<UInt32>.size
            }
            return 68
        }
    }
}

/// Believes a router's MTU, or takes the next plateau if it told none. Never below 68 (RFC 1191, section 3).
func networkLowerMTU(
    _ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB, _ mtu: UInt32, _ packetLength: UInt32
) -> UInt32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    let floor = UInt32(truncatingIfNeeded: instance.setting(.minimumMTU))
    let value = max(mtu == 0 ? instance.plateau(below: packetLength) : mtu, floor)
    let cell = instance.services.routeCell
    var remote = netpcb.pointee.remote
    _ = cell.ops(alps_route_ops.self).pointee.update_mtu(
        cell.instance, UInt16(ALPS_AF_INET), &remote, value,
        UInt64(truncatingIfNeeded: instance.setting(.mtuLifetime)))
    netpcb.pointee.route.size = 0
    instance.count(.mtuLowered)
    return networkPathMTU(context, netpcb)
}

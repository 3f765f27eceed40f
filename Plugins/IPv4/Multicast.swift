import PluginAPI
import PluginKit

/// One socket's membership in a group (RFC 1112). What the host tells routers is IGMP.swift's.
struct Membership {
    var next: UnsafeMutablePointer<Membership>?
    var group: UInt32
    var ifindex: UInt32
}

extension UnsafeMutablePointer where Pointee == Instance {
    func join(_ netpcb: NetworkPCB, _ group: UInt32, _ ifindex: UInt32) -> Int32 {
        guard AddressClass.isMulticast(group) else { return ALPS_EINVAL }
        var index = ifindex
        if index == 0 { index = netpcb.pointee.multicast_ifindex }
        if index == 0 { index = groupInterface(group) }
        guard index != 0, ifnet(index) != nil else { return ALPS_ENODEV }
        guard let options = options(netpcb) else { return ALPS_ENOBUFS }
        var membership = options.pointee.memberships
        var total: Int64 = 0
        while let current = membership {
            if current.pointee.group == group, current.pointee.ifindex == index { return ALPS_EADDRINUSE }
            total += 1
            membership = current.pointee.next
        }
        guard total < setting(.maximumMemberships), let made = services.allocate(Membership.self) else {
            return ALPS_ENOBUFS
        }
        let status = joinGroup(group, index)
        guard status == 0 else {
            services.free(made)
            return status
        }
        made.pointee.group = group
        made.pointee.ifindex = index
        made.pointee.next = options.pointee.memberships
        options.pointee.memberships = made
        return 0
    }

    func leave(_ netpcb: NetworkPCB, _ group: UInt32, _ ifindex: UInt32) -> Int32 {
        guard AddressClass.isMulticast(group) else { return ALPS_EINVAL }
        guard let options = existingOptions(netpcb) else { return ALPS_EADDRNOTAVAIL }
        var link = withUnsafeMutablePointer(to: &options.pointee.memberships) { $0 }
        while let current = link.pointee {
            if current.pointee.group == group, ifindex == 0 || current.pointee.ifindex == ifindex {
                link.pointee = current.pointee.next
                leaveGroup(group, current.pointee.ifindex)
                services.free(current)
                return 0
            }
            link = withUnsafeMutablePointer(to: &current.pointee.next) { $0 }
        }
        return ALPS_EADDRNOTAVAIL
    }

    /// Whether the socket behind `netpcb` is to get a datagram for a group.
    func isMember(_ netpcb: UnsafePointer<alps_netpcb>, _ group: UInt32, _ ifindex: UInt32) -> Bool {
        // Linux: unless IP_MULTICAST_ALL is off, a socket hears every group that the host has joined.
        guard let options = existingOptions(netpcb), !options.pointee.multicastAll else { return true }
        let isLoop = ifnet(ifindex)?.pointee.type == ALPS_IFT_LOOP
        var membership = options.pointee.memberships
        while let current = membership {
            if current.pointee.group == group, isLoop || current.pointee.ifindex == ifindex { return true }
            membership = current.pointee.next
        }
        return false
    }
}

// MARK: "alps.network/1:2"

func networkJoin(
    _ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB, _ group: UnsafePointer<alps_addr>, _ ifindex: UInt32
) -> Int32 {
    context.assumingMemoryBound(to: Instance.self).join(netpcb, ipv4(group.pointee), ifindex)
}

func networkLeave(
    _ context: UnsafeMutableRawPointer, _ netpcb: NetworkPCB, _ group: UnsafePointer<alps_addr>, _ ifindex: UInt32
) -> Int32 {
    context.assumingMemoryBound(to: Instance.self).leave(netpcb, ipv4(group.pointee), ifindex)
}

func networkMember(
    _ context: UnsafeMutableRawPointer, _ netpcb: UnsafePointer<alps_netpcb>, _ group: UnsafePointer<alps_addr>,
    _ ifindex: UInt32
) -> Int32 {
    context.assumingMemoryBound(to: Instance.self).isMember(netpcb, ipv4(group.pointee), ifindex) ? 1 : 0
}

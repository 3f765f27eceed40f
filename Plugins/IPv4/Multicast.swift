import PluginAPI
import PluginKit

/// A group that some socket of this stack has joined on an interface, with IGMPv2 state (RFC 2236).
struct Group {
    var next: UnsafeMutablePointer<Group>?
    var timer: alps_callout
    var address: UInt32
    var ifindex: UInt32
    var references: Int32
    /// Unsolicited reports still to be sent.
    var reportsLeft: UInt8
    /// We answered last: on leaving we have to say so.
    var lastReporter: Bool
}

/// One socket's membership.
struct Membership {
    var next: UnsafeMutablePointer<Membership>?
    var group: UInt32
    var ifindex: UInt32
}

typealias GroupPointer = UnsafeMutablePointer<Group>

private enum IGMP {
    static var query: UInt8 { 0x11 }
    static var reportV1: UInt8 { 0x12 }
    static var reportV2: UInt8 { 0x16 }
    static var leave: UInt8 { 0x17 }
    static var allHosts: UInt32 { UInt32(0xe000_0001).bigEndian }
    static var allRouters: UInt32 { UInt32(0xe000_0002).bigEndian }
    /// RFC 2236, section 8.10.
    static var unsolicitedInterval: UInt64 { 10 * ALPS_NSEC_PER_SEC }
}

extension UnsafeMutablePointer where Pointee == Instance {
    private func find(_ address: UInt32, _ ifindex: UInt32) -> GroupPointer? {
        var group = pointee.groups
        while let current = group {
            if current.pointee.address == address, current.pointee.ifindex == ifindex { return current }
            group = current.pointee.next
        }
        return nil
    }

    /// Whether a group's packets from this interface are taken. Everybody is in the all-hosts group; lo0 takes any
    /// group that has been joined somewhere.
    func isGroupWanted(_ address: UInt32, _ ifindex: UInt32) -> Bool {
        if address == IGMP.allHosts { return true }
        let isLoop = ifnet(ifindex)?.pointee.type == ALPS_IFT_LOOP
        var group = pointee.groups
        while let current = group {
            if current.pointee.address == address, isLoop || current.pointee.ifindex == ifindex { return true }
            group = current.pointee.next
        }
        return false
    }

    private func timer(_ group: GroupPointer) -> UnsafeMutablePointer<alps_callout> {
        withUnsafeMutablePointer(to: &group.pointee.timer) { $0 }
    }

    private func joinGroup(_ address: UInt32, _ ifindex: UInt32) -> Int32 {
        if let group = find(address, ifindex) {
            group.pointee.references += 1
            return 0
        }
        guard let group = services.allocate(Group.self) else { return ALPS_ENOBUFS }
        group.pointee.address = address
        group.pointee.ifindex = ifindex
        group.pointee.references = 1
        group.pointee.next = pointee.groups
        pointee.groups = group
        if address != IGMP.allHosts, ifnet(ifindex)?.pointee.type == ALPS_IFT_ETHER {
            // Section 3: report at once, and again in case that was lost.
            group.pointee.reportsLeft = 1
            sendIGMP(IGMP.reportV2, address, to: address, ifindex)
            group.pointee.lastReporter = true
            arm(group, services.random % IGMP.unsolicitedInterval)
        }
        return 0
    }

    private func arm(_ group: GroupPointer, _ delay: UInt64) {
        services.arm(timer(group), delay: delay, function: TimerFunction.report, argument: UnsafeMutableRawPointer(group))
    }

    func leaveGroup(_ address: UInt32, _ ifindex: UInt32) {
        guard let group = find(address, ifindex) else { return }
        group.pointee.references -= 1
        guard group.pointee.references == 0 else { return }
        if group.pointee.lastReporter { sendIGMP(IGMP.leave, address, to: IGMP.allRouters, ifindex) }
        remove(group)
    }

    private func remove(_ group: GroupPointer) {
        services.disarm(timer(group))
        if pointee.groups == group {
            pointee.groups = group.pointee.next
        } else {
            var previous = pointee.groups
            while let current = previous {
                if current.pointee.next == group {
                    current.pointee.next = group.pointee.next
                    break
                }
                previous = current.pointee.next
            }
        }
        services.free(group)
    }

    func dropAllGroups() {
        while let group = pointee.groups { remove(group) }
    }

    func dropGroups(of ifindex: UInt32) {
        var group = pointee.groups
        while let current = group {
            group = current.pointee.next
            if current.pointee.ifindex == ifindex { remove(current) }
        }
    }

    func reportTimer(_ group: GroupPointer) {
        sendIGMP(IGMP.reportV2, group.pointee.address, to: group.pointee.address, group.pointee.ifindex)
        group.pointee.lastReporter = true
        guard group.pointee.reportsLeft > 0 else { return }
        group.pointee.reportsLeft -= 1
        if group.pointee.reportsLeft > 0 { arm(group, services.random % IGMP.unsolicitedInterval) }
    }

    /// 8 bytes behind a header with the router alert option (RFC 2113), TTL 1.
    private func sendIGMP(_ type: UInt8, _ group: UInt32, to destination: UInt32, _ ifindex: UInt32) {
        guard let packet = services.mbuf.pointee.packet(pool, ALPS_MBUF_HEADROOM) else { return }
        packet.pointee.length = 32
        packet.pointee.pkt.length = 32
        let data = packet.pointee.data
        data[0] = 0x46
        data[1] = 0xc0
        data.store16(2, 32)
        data.store16(4, 0)
        data.store16(6, Header.dontFragment)
        data[8] = 1
        data[9] = 2
        UnsafeMutableRawPointer(data).storeBytes(of: sourceAddress(ifindex, toward: 0), toByteOffset: 12, as: UInt32.self)
        UnsafeMutableRawPointer(data).storeBytes(of: destination, toByteOffset: 16, as: UInt32.self)
        data.store32(20, 0x9404_0000)
        data[24] = type
        data[25] = 0
        data.store16(26, 0)
        UnsafeMutableRawPointer(data).storeBytes(of: group, toByteOffset: 28, as: UInt32.self)
        data.store16(26, Checksum.finish(Checksum.sum(data + 24, 8)))
        Header(bytes: data).finish()
        packet.pointee.pkt.ethertype = 0x0800
        count(.igmpSent)
        let cell = services.ifnetCell
        var hop = neutral(destination)
        _ = cell.ops(alps_ifnet_ops.self).pointee.output(cell.instance, ifindex, packet, UInt16(ALPS_AF_INET), &hop)
    }

    /// A list of IGMP messages, `data` behind the IPv4 header. [consumes]
    func inputIGMP(_ list: Mbuf) {
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            count(.igmpReceived)
            guard packet.pointee.pkt.length >= 8,
                services.mbuf.pointee.sum(pool, packet, 0, packet.pointee.pkt.length) == 0xffff,
                let whole = services.mbuf.pointee.pullup(pool, packet, 8)
            else {
                if packet.pointee.pkt.length < 8 { free(packet) }
                continue
            }
            let data = whole.pointee.data
            let group = UnsafeRawPointer(data).loadUnaligned(fromByteOffset: 4, as: UInt32.self)
            switch data[0] {
            case IGMP.query: answer(group, data[1] == 0 ? 100 : data[1], whole.pointee.pkt.ifindex)
            case IGMP.reportV1, IGMP.reportV2:
                // Somebody else has reported: we need not.
                if let own = find(group, whole.pointee.pkt.ifindex), own.pointee.references > 0 {
                    services.disarm(timer(own))
                    own.pointee.lastReporter = false
                }
            default: break
            }
            free(whole)
        }
    }

    /// A query: every group of the interface (or the one asked for) reports at a random time within the limit.
    private func answer(_ asked: UInt32, _ tenths: UInt8, _ ifindex: UInt32) {
        var group = pointee.groups
        let limit = UInt64(tenths) * 100 * ALPS_NSEC_PER_MSEC
        while let current = group {
            group = current.pointee.next
            guard current.pointee.ifindex == ifindex, current.pointee.address != IGMP.allHosts,
                asked == 0 || asked == current.pointee.address
            else { continue }
            let armed = current.pointee.timer.flags & UInt16(ALPS_CALLOUT_ARMED) != 0
            if !armed || current.pointee.timer.deadline > services.now &+ limit { arm(current, services.random % limit) }
        }
    }

    // MARK: Membership of sockets

    private func groupInterface(_ netpcb: NetworkPCB, _ group: UInt32, _ ifindex: UInt32) -> UInt32 {
        if ifindex != 0 { return ifindex }
        if netpcb.pointee.multicast_ifindex != 0 { return netpcb.pointee.multicast_ifindex }
        var route = alps_route()
        let cell = services.routeCell
        var destination = neutral(group)
        if cell.ops(alps_route_ops.self).pointee.lookup(
            cell.instance, UInt16(ALPS_AF_INET), &destination, 0, &route) == 0
        {
            return route.ifindex
        }
        return firstBroadcastInterface()
    }

    func join(_ netpcb: NetworkPCB, _ group: UInt32, _ ifindex: UInt32) -> Int32 {
        guard AddressClass.isMulticast(group) else { return ALPS_EINVAL }
        let index = groupInterface(netpcb, group, ifindex)
        guard index != 0, ifnet(index) != nil else { return ALPS_ENODEV }
        guard let options = options(netpcb) else { return ALPS_ENOBUFS }
        var membership = options.pointee.memberships
        var total: Int64 = 0
        while let current = membership {
            if current.pointee.group == group, current.pointee.ifindex == index { return ALPS_EADDRINUSE }
            total += 1
            membership = current.pointee.next
        }
        guard total < setting(.maximumMemberships), let made = services.allocate(Membership.self) else { return ALPS_ENOBUFS }
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
    let instance = context.assumingMemoryBound(to: Instance.self)
    let address = ipv4(group.pointee)
    // Linux: without IP_MULTICAST_ALL = 0, a socket hears every group that the host has joined.
    guard let options = instance.existingOptions(netpcb) else { return 1 }
    if options.pointee.multicastAll { return 1 }
    let isLoop = instance.ifnet(ifindex)?.pointee.type == ALPS_IFT_LOOP
    var membership = options.pointee.memberships
    while let current = membership {
        if current.pointee.group == address, isLoop || current.pointee.ifindex == ifindex { return 1 }
        membership = current.pointee.next
    }
    return 0
}

import PluginAPI
import PluginKit

/// IGMP version 2 (RFC 2236): telling routers which groups this host wants.
enum IGMP {
    static var protocolNumber: UInt8 { 2 }
    static var query: UInt8 { 0x11 }
    static var reportV1: UInt8 { 0x12 }
    static var reportV2: UInt8 { 0x16 }
    static var leave: UInt8 { 0x17 }
    static var messageLength: Int { 8 }
    static var allHosts: UInt32 { UInt32(0xe000_0001).bigEndian }
    static var allRouters: UInt32 { UInt32(0xe000_0002).bigEndian }
    /// Section 8.10.
    static var unsolicitedInterval: UInt64 { 10 * ALPS_NSEC_PER_SEC }
    /// Section 4: how long a version 1 router is taken to be there after its last query.
    static var version1Timeout: UInt64 { 400 * ALPS_NSEC_PER_SEC }
    /// A version 1 query names no time: 10 s, in tenths.
    static var version1Response: UInt8 { 100 }
}

/// A group that some socket of this stack has joined on an interface.
struct Group {
    var next: UnsafeMutablePointer<Group>?
    var timer: alps_callout
    var address: UInt32
    var ifindex: UInt32
    var references: Int32
    /// Unsolicited reports still to be sent.
    var reportsLeft: UInt8
    /// We answered last: on leaving we have to say so.
    var isLastReporter: Bool
    /// Until when a version 1 router is about, ns.
    var version1Until: UInt64
}

typealias GroupPointer = UnsafeMutablePointer<Group>

extension UnsafeMutablePointer where Pointee == Instance {
    func findGroup(_ address: UInt32, _ ifindex: UInt32) -> GroupPointer? {
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
        guard pointee.groups != nil else { return false }
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

    private func arm(_ group: GroupPointer, within limit: UInt64) {
        services.arm(
            timer(group), delay: services.random % max(limit, 1), function: TimerFunction.report,
            argument: UnsafeMutableRawPointer(group))
    }

    // MARK: Joining and leaving

    func joinGroup(_ address: UInt32, _ ifindex: UInt32) -> Int32 {
        if let group = findGroup(address, ifindex) {
            group.pointee.references += 1
            return 0
        }
        guard let group = services.allocate(Group.self) else { return ALPS_ENOBUFS }
        group.pointee.address = address
        group.pointee.ifindex = ifindex
        group.pointee.references = 1
        group.pointee.version1Until = version1Until(ifindex)
        group.pointee.next = pointee.groups
        pointee.groups = group
        reportFirst(group)
        return 0
    }

    /// Section 3: a report at once, and another in case that was lost.
    private func reportFirst(_ group: GroupPointer) {
        guard isReported(group) else { return }
        group.pointee.reportsLeft = 1
        report(group)
        arm(group, within: IGMP.unsolicitedInterval)
    }

    private func isReported(_ group: GroupPointer) -> Bool {
        group.pointee.address != IGMP.allHosts && ifnet(group.pointee.ifindex)?.pointee.type == ALPS_IFT_ETHER
    }

    func leaveGroup(_ address: UInt32, _ ifindex: UInt32) {
        guard let group = findGroup(address, ifindex) else { return }
        group.pointee.references -= 1
        guard group.pointee.references == 0 else { return }
        // Version 1 routers find out by themselves, and whoever has taken over goes on with the membership.
        if group.pointee.isLastReporter, !isReplaced, services.now >= group.pointee.version1Until {
            sendIGMP(IGMP.leave, address, to: IGMP.allRouters, ifindex)
        }
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

    func reportGroups(of ifindex: UInt32) {
        var group = pointee.groups
        while let current = group {
            group = current.pointee.next
            if current.pointee.ifindex == ifindex { reportFirst(current) }
        }
    }

    // MARK: Messages

    func reportTimer(_ group: GroupPointer) {
        report(group)
        guard group.pointee.reportsLeft > 0 else { return }
        group.pointee.reportsLeft -= 1
        if group.pointee.reportsLeft > 0 { arm(group, within: IGMP.unsolicitedInterval) }
    }

    private func report(_ group: GroupPointer) {
        let isVersion1 = services.now < group.pointee.version1Until
        sendIGMP(
            isVersion1 ? IGMP.reportV1 : IGMP.reportV2, group.pointee.address, to: group.pointee.address,
            group.pointee.ifindex)
        group.pointee.isLastReporter = true
    }

    private func version1Until(_ ifindex: UInt32) -> UInt64 {
        var group = pointee.groups
        while let current = group {
            if current.pointee.ifindex == ifindex { return current.pointee.version1Until }
            group = current.pointee.next
        }
        return 0
    }

    /// 8 bytes behind a header with the router alert option (RFC 2113), TTL 1.
    private func sendIGMP(_ type: UInt8, _ group: UInt32, to destination: UInt32, _ ifindex: UInt32) {
        guard let packet = services.mbuf.pointee.packet(pool, ALPS_MBUF_HEADROOM) else { return }
        let headerLength = Header.minimumLength + 4
        packet.pointee.length = UInt32(headerLength + IGMP.messageLength)
        packet.pointee.pkt.length = packet.pointee.length
        let data = packet.pointee.data
        data[0] = 0x46
        data[1] = 0xc0
        data.store16(2, UInt16(headerLength + IGMP.messageLength))
        data.store16(4, 0)
        data.store16(6, Header.dontFragment)
        data[8] = 1
        data[9] = IGMP.protocolNumber
        let header = Header(bytes: data)
        header.setSource(sourceAddress(ifindex, toward: 0))
        header.setDestination(destination)
        data[20] = OptionType.routerAlert
        data[21] = 4
        data.store16(22, 0)
        let message = data + headerLength
        message[0] = type
        message[1] = 0
        message.store16(2, 0)
        UnsafeMutableRawPointer(message).storeBytes(of: group, toByteOffset: 4, as: UInt32.self)
        message.store16(2, Checksum.finish(Checksum.sum(message, IGMP.messageLength)))
        header.finish()
        packet.pointee.pkt.ethertype = 0x0800
        packet.pointee.pkt.l3_length = UInt16(headerLength)
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
            let length = packet.pointee.pkt.length
            guard length >= UInt32(IGMP.messageLength), services.mbuf.pointee.sum(pool, packet, 0, length) == 0xffff
            else {
                count(.igmpMalformed)
                free(packet)
                continue
            }
            guard let whole = services.mbuf.pointee.pullup(pool, packet, UInt32(IGMP.messageLength)) else { continue }
            takeIGMP(whole.pointee.data, whole.pointee.pkt.ifindex)
            free(whole)
        }
    }

    private func takeIGMP(_ message: UnsafePointer<UInt8>, _ ifindex: UInt32) {
        let group = UnsafeRawPointer(message).loadUnaligned(fromByteOffset: 4, as: UInt32.self)
        switch message[0] {
        case IGMP.query: answer(group, message[1], ifindex)
        case IGMP.reportV1, IGMP.reportV2:
            // Somebody else has reported: we need not.
            if let own = findGroup(group, ifindex) {
                services.disarm(timer(own))
                own.pointee.reportsLeft = 0
                own.pointee.isLastReporter = false
            }
        default: break
        }
    }

    /// A query: every group of the interface (or the one asked for) reports at a random time within the limit.
    private func answer(_ asked: UInt32, _ tenths: UInt8, _ ifindex: UInt32) {
        let now = services.now
        let limit = UInt64(tenths == 0 ? IGMP.version1Response : tenths) * 100 * ALPS_NSEC_PER_MSEC
        var group = pointee.groups
        while let current = group {
            group = current.pointee.next
            guard current.pointee.ifindex == ifindex, current.pointee.address != IGMP.allHosts else { continue }
            if tenths == 0 { current.pointee.version1Until = now &+ IGMP.version1Timeout }
            guard asked == 0 || asked == current.pointee.address else { continue }
            let isArmed = current.pointee.timer.flags & UInt16(ALPS_CALLOUT_ARMED) != 0
            if !isArmed || current.pointee.timer.deadline > now &+ limit { arm(current, within: limit) }
        }
    }
}

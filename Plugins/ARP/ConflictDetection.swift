import PluginAPI
import PluginKit

/// One of our addresses under watch (RFC 5227).
struct Claim {
    var next: UnsafeMutablePointer<Claim>?
    var timer: alps_callout
    var ifindex: UInt32
    var address: UInt32
    var phase: Phase
    /// Probes or announcements sent in this phase.
    var sent: UInt32
    /// When the address was defended last, ns; 0 never.
    var lastDefense: UInt64
    /// Times the address has been given up.
    var losses: UInt32

    enum Phase: UInt8 {
        case probing, announcing, held, lost
    }
}

typealias ClaimPointer = UnsafeMutablePointer<Claim>

/// RFC 5227, section 1.1.
private enum Timing {
    static var probeWait: UInt64 { ALPS_NSEC_PER_SEC }
    static var probeCount: UInt32 { 3 }
    static var probeMinimum: UInt64 { ALPS_NSEC_PER_SEC }
    static var probeRange: UInt64 { ALPS_NSEC_PER_SEC }
    static var announceWait: UInt64 { 2 * ALPS_NSEC_PER_SEC }
    static var announceCount: UInt32 { 2 }
    static var announceInterval: UInt64 { 2 * ALPS_NSEC_PER_SEC }
    static var maximumConflicts: UInt32 { 10 }
    static var rateLimitInterval: UInt64 { 60 * ALPS_NSEC_PER_SEC }
    static var defendInterval: UInt64 { 10 * ALPS_NSEC_PER_SEC }
}

extension UnsafeMutablePointer where Pointee == Instance {
    private func timer(_ claim: ClaimPointer) -> UnsafeMutablePointer<alps_callout> {
        withUnsafeMutablePointer(to: &claim.pointee.timer) { $0 }
    }

    private func arm(_ claim: ClaimPointer, _ delay: UInt64) {
        services.arm(
            timer(claim), delay: delay, function: TimerFunction.claim, argument: UnsafeMutableRawPointer(claim))
    }

    private func find(_ ifindex: UInt32, _ address: UInt32) -> ClaimPointer? {
        var claim = pointee.claims
        while let current = claim {
            if current.pointee.ifindex == ifindex, current.pointee.address == address { return current }
            claim = current.pointee.next
        }
        return nil
    }

    /// A new address of an Ethernet interface: probe it, then announce it.
    func claim(_ ifnet: UnsafePointer<alps_ifnet>, _ address: UnsafePointer<alps_ifaddr>) {
        guard ifnet.pointee.type == ALPS_IFT_ETHER, address.pointee.family == UInt16(ALPS_AF_INET),
            find(ifnet.pointee.index, ifaddr(address)) == nil, let claim = services.allocate(Claim.self)
        else { return }
        claim.pointee.ifindex = ifnet.pointee.index
        claim.pointee.address = ifaddr(address)
        claim.pointee.next = pointee.claims
        pointee.claims = claim
        if setting(.detection) != 0 {
            claim.pointee.phase = .probing
            // Unless it may be used at once, nobody is to send from it or to answer for it yet.
            setFlags(claim, setting(.optimistic) != 0 ? ALPS_IFA_TENTATIVE : ALPS_IFA_TENTATIVE | ALPS_IFA_DUPLICATE)
            arm(claim, services.random % Timing.probeWait)
        } else {
            claim.pointee.phase = .announcing
            arm(claim, 0)
        }
    }

    /// All addresses of an interface that is there, or up again.
    func claimAll(_ ifnet: UnsafePointer<alps_ifnet>) {
        guard ifnet.pointee.flags & ALPS_IFF_UP != 0, let addresses = ifnet.pointee.addresses else { return }
        for place in 0..<Int(ifnet.pointee.address_count) { claim(ifnet, addresses + place) }
    }

    func release(_ ifnet: UnsafePointer<alps_ifnet>, _ address: UnsafePointer<alps_ifaddr>) {
        if let claim = find(ifnet.pointee.index, ifaddr(address)) { removeClaim(claim) }
    }

    func releaseAll(_ ifnet: UnsafePointer<alps_ifnet>) {
        var claim = pointee.claims
        while let current = claim {
            claim = current.pointee.next
            if current.pointee.ifindex == ifnet.pointee.index { removeClaim(current) }
        }
    }

    /// Our link address has changed: others should know.
    func announceAll(_ ifnet: UnsafePointer<alps_ifnet>) {
        var claim = pointee.claims
        while let current = claim {
            claim = current.pointee.next
            if current.pointee.ifindex == ifnet.pointee.index, current.pointee.phase == .held {
                announce(ifnet, current)
            }
        }
    }

    func removeClaim(_ claim: ClaimPointer) {
        services.disarm(timer(claim))
        if pointee.claims == claim {
            pointee.claims = claim.pointee.next
        } else {
            var previous = pointee.claims
            while let current = previous {
                if current.pointee.next == claim {
                    current.pointee.next = claim.pointee.next
                    break
                }
                previous = current.pointee.next
            }
        }
        services.free(claim)
    }

    private func setFlags(_ claim: ClaimPointer, _ flags: UInt32) {
        var address = alps_addr()
        withUnsafeMutableBytes(of: &address) { $0.storeBytes(of: claim.pointee.address, as: UInt32.self) }
        let cell = services.ifnetCell
        _ = cell.ops(alps_ifnet_ops.self).pointee.address_flags(cell.instance, claim.pointee.ifindex, &address, flags)
    }

    func claimTimer(_ claim: ClaimPointer) {
        guard let ifnet = ifnet(claim.pointee.ifindex) else { return }
        switch claim.pointee.phase {
        case .probing:
            guard claim.pointee.sent < Timing.probeCount else {
                claim.pointee.phase = .announcing
                claim.pointee.sent = 0
                setFlags(claim, 0)
                claimTimer(claim)
                return
            }
            send(ifnet, Packet.request, sender: 0, target: claim.pointee.address, targetHardware: nil, to: nil)
            count(.probesSent)
            claim.pointee.sent += 1
            arm(
                claim,
                claim.pointee.sent < Timing.probeCount
                    ? Timing.probeMinimum + services.random % Timing.probeRange : Timing.announceWait)
        case .announcing:
            announce(ifnet, claim)
            claim.pointee.sent += 1
            if claim.pointee.sent < Timing.announceCount {
                arm(claim, Timing.announceInterval)
            } else {
                claim.pointee.phase = .held
            }
        case .held: break
        case .lost:
            // The address has been configured, so it is tried again, not too often (section 2.1.1).
            claim.pointee.phase = .probing
            claim.pointee.sent = 0
            claimTimer(claim)
        }
    }

    private func announce(_ ifnet: UnsafePointer<alps_ifnet>, _ claim: ClaimPointer) {
        send(
            ifnet, Packet.request, sender: claim.pointee.address, target: claim.pointee.address, targetHardware: nil,
            to: nil)
        count(.announcementsSent)
    }

    /// Somebody else sends from one of our addresses. True if the packet has been dealt with.
    func conflicts(_ ifnet: UnsafePointer<alps_ifnet>, _ sender: UInt32, _ hardware: UnsafePointer<UInt8>) -> Bool {
        guard let claim = find(ifnet.pointee.index, sender), !isOurs(hardware) else { return false }
        count(.conflicts)
        switch claim.pointee.phase {
        case .probing: lose(claim)
        case .lost:
            // It is the other's by now, and we may want to talk to him.
            return false
        case .announcing, .held:
            // Section 2.4 (b): defend once, and give up if it happens again soon after; (c): or never give up, but
            // never defend more often either.
            let now = services.now
            if claim.pointee.lastDefense == 0 || now &- claim.pointee.lastDefense >= Timing.defendInterval {
                services.log(ALPS_LOG_WARNING, "another host uses an address of ours: defending it")
                announce(ifnet, claim)
                claim.pointee.lastDefense = now
            } else if setting(.alwaysDefend) == 0 {
                lose(claim)
            }
        }
        return true
    }

    /// One of this stack's own link addresses: two interfaces may be on one link.
    private func isOurs(_ hardware: UnsafePointer<UInt8>) -> Bool {
        var index: UInt32 = 1
        let last = lastInterface
        while index <= last {
            if let ifnet = ifnet(index), ifnet.pointee.type == ALPS_IFT_ETHER, hasHardware(ifnet, hardware) {
                return true
            }
            index += 1
        }
        return false
    }

    /// Somebody else probes for an address that we are probing for (section 2.1.1).
    func probeConflicts(
        _ ifnet: UnsafePointer<alps_ifnet>, _ target: UInt32, _ hardware: UnsafePointer<UInt8>
    ) -> Bool {
        guard let claim = find(ifnet.pointee.index, target), claim.pointee.phase == .probing else { return false }
        guard !isOurs(hardware) else { return false }
        count(.conflicts)
        lose(claim)
        return true
    }

    private func lose(_ claim: ClaimPointer) {
        claim.pointee.phase = .lost
        claim.pointee.losses += 1
        claim.pointee.lastDefense = 0
        claim.pointee.sent = 0
        setFlags(claim, ALPS_IFA_DUPLICATE)
        services.log(ALPS_LOG_ERROR, "an address of ours is used by another host: not using it")
        arm(
            claim,
            claim.pointee.losses > Timing.maximumConflicts ? Timing.rateLimitInterval : Timing.defendInterval)
    }
}

import PluginAPI
import PluginKit

/// One of this stack's addresses, or the broadcast address of one of its networks.
struct LocalAddress {
    var address: UInt32
    var ifindex: UInt32
    /// ALPS_ADDR_LOCAL or ALPS_ADDR_BROADCAST; 0: the slot is empty.
    var kind: UInt32
}

/// All of them, in an open hash table: two look-ups for every packet that comes in. Made anew when the routing table's
/// generation, which covers addresses and their flags, has changed.
struct LocalTable {
    var slots: UnsafeMutablePointer<LocalAddress>?
    /// A power of two, at most a quarter full.
    var capacity = 0
    var generation: UInt64 = 0
}

extension UnsafeMutablePointer where Pointee == Instance {
    @inline(__always)
    private func refresh() {
        if pointee.local.generation != pointee.generation.pointee { rebuild() }
    }

    @inline(__always)
    private static func slot(_ address: UInt32, _ capacity: Int) -> Int {
        Int(truncatingIfNeeded: (address &* 0x9e37_79b9) >> 16) & (capacity &- 1)
    }

    /// One of this stack's addresses.
    @inline(__always)
    func isLocal(_ address: UInt32) -> Bool {
        refresh()
        guard let slots = pointee.local.slots else { return AddressClass.isLoopback(address) }
        let capacity = pointee.local.capacity
        var at = Self.slot(address, capacity)
        while slots[at].kind != 0 {
            if slots[at].address == address, slots[at].kind == ALPS_ADDR_LOCAL { return true }
            at = (at &+ 1) & (capacity &- 1)
        }
        return AddressClass.isLoopback(address)
    }

    /// The broadcast address of a network of interface `ifindex` (0: of any).
    @inline(__always)
    func isDirectedBroadcast(_ address: UInt32, _ ifindex: UInt32) -> Bool {
        refresh()
        guard let slots = pointee.local.slots else { return false }
        let capacity = pointee.local.capacity
        var at = Self.slot(address, capacity)
        while slots[at].kind != 0 {
            if slots[at].address == address, slots[at].kind == ALPS_ADDR_BROADCAST,
                ifindex == 0 || slots[at].ifindex == ifindex
            {
                return true
            }
            at = (at &+ 1) & (capacity &- 1)
        }
        return false
    }

    /// The interface that has an address; 0 if none.
    func interface(of address: UInt32) -> UInt32 {
        guard address != 0 else { return 0 }
        refresh()
        guard let slots = pointee.local.slots else { return 0 }
        let capacity = pointee.local.capacity
        var at = Self.slot(address, capacity)
        while slots[at].kind != 0 {
            if slots[at].address == address, slots[at].kind == ALPS_ADDR_LOCAL { return slots[at].ifindex }
            at = (at &+ 1) & (capacity &- 1)
        }
        return AddressClass.isLoopback(address) ? loopbackInterface : 0
    }

    @inline(never)
    private func rebuild() {
        var total = 0
        var index: UInt32 = 1
        let last = lastInterface
        while index <= last {
            if let ifnet = ifnet(index) { total += Int(ifnet.pointee.address_count) }
            index += 1
        }
        var capacity = 16
        while capacity < 8 * total { capacity *= 2 }
        // Without memory the old table stays, and the next packet tries again.
        guard let slots = services.allocateArray(LocalAddress.self, capacity) else { return }
        freeLocalTable()
        pointee.local.slots = slots
        pointee.local.capacity = capacity
        index = 1
        while index <= last {
            if let ifnet = ifnet(index), let list = ifnet.pointee.addresses {
                for place in 0..<Int(ifnet.pointee.address_count) where list[place].family == UInt16(ALPS_AF_INET) {
                    if list[place].flags & ALPS_IFA_DUPLICATE == 0 {
                        insert(ipv4(list[place].addr), index, ALPS_ADDR_LOCAL)
                    }
                    let broadcast = ipv4(list[place].broadcast)
                    if broadcast != 0 { insert(broadcast, index, ALPS_ADDR_BROADCAST) }
                }
            }
            index += 1
        }
        pointee.local.generation = pointee.generation.pointee
    }

    private func insert(_ address: UInt32, _ ifindex: UInt32, _ kind: UInt32) {
        guard let slots = pointee.local.slots else { return }
        let capacity = pointee.local.capacity
        var at = Self.slot(address, capacity)
        while slots[at].kind != 0 { at = (at &+ 1) & (capacity &- 1) }
        slots[at] = LocalAddress(address: address, ifindex: ifindex, kind: kind)
    }

    func freeLocalTable() {
        if let slots = pointee.local.slots { services.freeArray(slots, pointee.local.capacity) }
        pointee.local.slots = nil
    }
}

import PluginAPI
import PluginKit

/// ARP (RFC 826) with address conflict detection (RFC 5227), for IPv4 over Ethernet.
///
/// One instance, in zone memory: plain pointers and numbers, nothing counted by references.
struct Instance {
    let services: HostServices
    /// "alps.neterror/1:2": ICMP, if somebody provides it.
    let errorCell: UnsafePointer<alps_cell>?
    /// Neighbours, hashed by address and interface; see NeighborTable.swift.
    var buckets: UnsafeMutablePointer<UnsafeMutablePointer<Neighbor>?>
    var neighborCount = 0
    /// Our own addresses under watch, see ConflictDetection.swift.
    var claims: UnsafeMutablePointer<Claim>?
    var settings: UnsafeMutablePointer<Int64>
    var counters: UnsafeMutablePointer<UInt64>

    static var bucketCount: Int { 256 }
}

typealias InstancePointer = UnsafeMutablePointer<Instance>
typealias Mbuf = UnsafeMutablePointer<alps_mbuf>

extension UnsafeMutablePointer where Pointee == Instance {
    @inline(__always)
    var services: HostServices { pointee.services }

    @inline(__always)
    func count(_ counter: Counter) { pointee.counters[counter.rawValue] &+= 1 }

    @inline(__always)
    func setting(_ setting: Setting) -> Int64 { pointee.settings[setting.rawValue] }

    func ifnet(_ index: UInt32) -> UnsafePointer<alps_ifnet>? {
        let cell = services.ifnetCell
        return cell.ops(alps_ifnet_ops.self).pointee.get(cell.instance, index)
    }

    var lastInterface: UInt32 {
        let cell = services.ifnetCell
        return cell.ops(alps_ifnet_ops.self).pointee.last_index(cell.instance)
    }
}

@c(alps_plugin_entry)
public func pluginEntry(_ out: UnsafeMutablePointer<alps_descriptor>) -> Int32 {
    guard out.pointee.size >= UInt32(MemoryLayout<alps_descriptor>.size) else { return ALPS_EINVAL }
    out.initialize(
        to: alps_descriptor(
            size: UInt32(MemoryLayout<alps_descriptor>.size), magic: ALPS_MAGIC, abi_major: UInt16(ALPS_ABI_MAJOR),
            abi_minor_needed: 0, flags: ALPS_PLUGIN_UNLOADABLE, name: text("arp"), version: text("1.0.0"),
            summary: text("Address Resolution Protocol (RFC 826, RFC 5227)"), provides: providesTable(),
            provides_count: 1, requires_count: 0, requires_: nil, create: create, destroy: destroy, start: start,
            quiesce: nil, callout: arpCallout, batch_end: nil, ifnet_event: arpInterfaceEvent, export_state: nil,
            import_state: nil))
    return 0
}

/// A literal as C wants it: NUL-terminated, in read-only memory.
func text(_ literal: StaticString) -> UnsafePointer<CChar> {
    UnsafeRawPointer(literal.utf8Start).assumingMemoryBound(to: CChar.self)
}

// The provided interface's table and its entry in the descriptor: zeroed at compile time (a lazily initialised global
// would need a lock), filled with the same values by every call of the entry function.
nonisolated(unsafe) private var tableStorage: (UInt, UInt, UInt, UInt, UInt) = (0, 0, 0, 0, 0)
nonisolated(unsafe) private var provideStorage: (UInt, UInt, UInt) = (0, 0, 0)

private func providesTable() -> UnsafePointer<alps_provide> {
    let table = withUnsafeMutablePointer(to: &tableStorage) {
        UnsafeMutableRawPointer($0).assumingMemoryBound(to: alps_neighbor_ops.self)
    }
    table.initialize(
        to: alps_neighbor_ops(
            size: UInt32(MemoryLayout<alps_neighbor_ops>.size), reserved: 0, resolve: neighborResolve, add: neighborAdd,
            remove: neighborRemove, list: neighborList))
    let provide = withUnsafeMutablePointer(to: &provideStorage) {
        UnsafeMutableRawPointer($0).assumingMemoryBound(to: alps_provide.self)
    }
    provide.initialize(
        to: alps_provide(
            size: UInt32(MemoryLayout<alps_provide>.size), flags: 0, id: text("alps.neighbor/1:2"), ops: table))
    return UnsafePointer(provide)
}

private func create(
    _ host: UnsafePointer<alps_host>, _ variant: UnsafePointer<CChar>,
    _ result: UnsafeMutablePointer<UnsafeMutableRawPointer?>
) -> Int32 {
    guard let services = HostServices(host) else { return ALPS_ENOSYS }
    let instance = services.allocate(Instance.self)
    let buckets = services.allocateArray(UnsafeMutablePointer<Neighbor>?.self, Instance.bucketCount)
    let settings = services.allocateArray(Int64.self, Setting.allCases)
    let counters = services.allocateArray(UInt64.self, Counter.allCases)
    guard let instance, let buckets, let settings, let counters else {
        services.freeIfPresent(instance)
        services.freeArrayIfPresent(buckets, Instance.bucketCount)
        services.freeArrayIfPresent(settings, Setting.allCases)
        services.freeArrayIfPresent(counters, Counter.allCases)
        return ALPS_ENOMEM
    }
    instance.initialize(
        to: Instance(
            services: services, errorCell: services.cell("alps.neterror/1:2"), buckets: buckets, settings: settings,
            counters: counters))
    result.pointee = UnsafeMutableRawPointer(instance)
    return 0
}

private func destroy(_ context: UnsafeMutableRawPointer) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    let services = instance.services
    instance.removeAllNeighbors()
    while let claim = instance.pointee.claims { instance.removeClaim(claim) }
    services.freeArray(instance.pointee.buckets, Instance.bucketCount)
    services.freeArray(instance.pointee.settings, Setting.allCases)
    services.freeArray(instance.pointee.counters, Counter.allCases)
    services.free(instance)
}

private func start(_ context: UnsafeMutableRawPointer) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    var status = registerSettings(instance)
    if status == 0 { status = registerCounters(instance) }
    guard status == 0 else { return status }
    let cell = instance.services.ifnetCell
    let ops = cell.ops(alps_ifnet_ops.self)
    var registration = alps_ethertype(
        size: UInt32(MemoryLayout<alps_ethertype>.size), ethertype: 0x0806, reserved: 0, input: arpInput)
    status = ops.pointee.register_ethertype(cell.instance, &registration)
    guard status == 0 else { return status }
    // Interfaces that are there already.
    var index: UInt32 = 1
    while index <= instance.lastInterface {
        if let ifnet = instance.ifnet(index) { instance.claimAll(ifnet) }
        index += 1
    }
    return 0
}

private func arpCallout(_ context: UnsafeMutableRawPointer, _ function: UInt32, _ argument: UnsafeMutableRawPointer?) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let argument else { return }
    switch function {
    case TimerFunction.neighbor: instance.neighborTimer(argument.assumingMemoryBound(to: Neighbor.self))
    default: instance.claimTimer(argument.assumingMemoryBound(to: Claim.self))
    }
}

enum TimerFunction {
    static var neighbor: UInt32 { 1 }
    static var claim: UInt32 { 2 }
}

private func arpInterfaceEvent(_ context: UnsafeMutableRawPointer, _ event: UnsafeRawPointer) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    let event = event.assumingMemoryBound(to: alps_ifnet_event.self)
    switch event.pointee.kind {
    case ALPS_IFEVENT_ADDRESS_ADD:
        if let address = event.pointee.address { instance.claim(event.pointee.ifnet, address) }
    case ALPS_IFEVENT_ADDRESS_DELETE:
        if let address = event.pointee.address { instance.release(event.pointee.ifnet, address) }
    case ALPS_IFEVENT_UP: instance.claimAll(event.pointee.ifnet)
    case ALPS_IFEVENT_DETACH, ALPS_IFEVENT_DOWN:
        instance.removeNeighbors(of: event.pointee.ifnet.pointee.index)
        instance.releaseAll(event.pointee.ifnet)
    case ALPS_IFEVENT_HARDWARE: instance.announceAll(event.pointee.ifnet)
    default: break
    }
}

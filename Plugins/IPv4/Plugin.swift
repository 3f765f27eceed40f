import PluginAPI
import PluginKit

/// IPv4 (RFC 791, RFC 1122 section 3): the network under the transports ("alps.network/1:2"), raw sockets, IGMPv2.
///
/// One instance, in zone memory: plain pointers and numbers, nothing counted by references.
struct Instance {
    let services: HostServices
    /// "alps.neterror/1:2": ICMP, if somebody provides it.
    let errorCell: UnsafePointer<alps_cell>?
    /// "alps.network/1:2": this instance, or the one that has taken over from it.
    let networkCell: UnsafePointer<alps_cell>?
    /// The routing table's generation, which changes with addresses and routes.
    let generation: UnsafePointer<UInt64>
    var settings: UnsafeMutablePointer<Int64>
    var counters: UnsafeMutablePointer<UInt64>
    var requests: UnsafeMutablePointer<alps_user_request>
    var entry: UnsafeMutablePointer<alps_protosw>
    var reassembly: UnsafeMutablePointer<ReassemblyTable>
    /// Our own addresses, see LocalAddresses.swift.
    var local = LocalTable()
    var groups: UnsafeMutablePointer<Group>?
    var rawSockets: UnsafeMutablePointer<RawSocket>?
    /// Options of all sockets that have some, see SocketOptions.swift.
    var socketOptions: UnsafeMutablePointer<SocketOptions>?
    /// Secret of the identification counters, see Identification.swift.
    let identificationKey: UInt64
    var identification: UnsafeMutablePointer<UInt32>
}

typealias InstancePointer = UnsafeMutablePointer<Instance>
typealias Mbuf = UnsafeMutablePointer<alps_mbuf>
typealias NetworkPCB = UnsafeMutablePointer<alps_netpcb>

extension UnsafeMutablePointer where Pointee == Instance {
    @inline(__always)
    var services: HostServices { pointee.services }

    @inline(__always)
    func count(_ counter: Counter) { pointee.counters[counter.rawValue] &+= 1 }

    @inline(__always)
    func setting(_ setting: Setting) -> Int64 { pointee.settings[setting.rawValue] }

    @inline(__always)
    var pool: UnsafeMutableRawPointer { services.mbufCell.instance }

    @inline(__always)
    func free(_ packet: Mbuf) { services.mbuf.pointee.free_packet(pool, packet) }

    @inline(__always)
    func ifnet(_ index: UInt32) -> UnsafePointer<alps_ifnet>? {
        let cell = services.ifnetCell
        return cell.ops(alps_ifnet_ops.self).pointee.get(cell.instance, index)
    }

    var lastInterface: UInt32 {
        let cell = services.ifnetCell
        return cell.ops(alps_ifnet_ops.self).pointee.last_index(cell.instance)
    }

    /// lo0's index, 0 if there is none.
    var loopbackInterface: UInt32 {
        var index: UInt32 = 1
        let last = lastInterface
        while index <= last {
            if let ifnet = ifnet(index), ifnet.pointee.type == ALPS_IFT_LOOP { return index }
            index += 1
        }
        return 0
    }

    /// Tells the sender of `packet` (at its network header) about it, if ICMP is there. [consumes]
    func sendError(_ packet: Mbuf, _ type: UInt8, _ code: UInt8, _ parameter: UInt32) {
        guard let cell = pointee.errorCell, cell.isProvided else {
            free(packet)
            return
        }
        cell.ops(alps_neterror_ops.self).pointee.send(cell.instance, packet, type, code, parameter)
    }
}

/// An address as it lies in a packet.
@inline(__always)
func ipv4(_ address: alps_addr) -> UInt32 { withUnsafeBytes(of: address) { $0.loadUnaligned(as: UInt32.self) } }

@inline(__always)
func neutral(_ address: UInt32) -> alps_addr {
    var result = alps_addr()
    withUnsafeMutableBytes(of: &result) { $0.storeBytes(of: address, as: UInt32.self) }
    return result
}

/// The network mask of a prefix, as it lies in a packet.
@inline(__always)
func networkMask(_ prefixLength: UInt8) -> UInt32 {
    prefixLength == 0 ? 0 : (UInt32.max << (32 - UInt32(min(prefixLength, 32)))).bigEndian
}

/// A literal as C wants it: NUL-terminated, in read-only memory.
func text(_ literal: StaticString) -> UnsafePointer<CChar> {
    UnsafeRawPointer(literal.utf8Start).assumingMemoryBound(to: CChar.self)
}

// MARK: Life

@c(alps_plugin_entry)
public func pluginEntry(_ out: UnsafeMutablePointer<alps_descriptor>) -> Int32 {
    guard out.pointee.size >= UInt32(MemoryLayout<alps_descriptor>.size) else { return ALPS_EINVAL }
    out.initialize(
        to: alps_descriptor(
            size: UInt32(MemoryLayout<alps_descriptor>.size), magic: ALPS_MAGIC, abi_major: UInt16(ALPS_ABI_MAJOR),
            abi_minor_needed: 0, flags: ALPS_PLUGIN_UNLOADABLE, name: text("ipv4"), version: text("1.0.0"),
            summary: text("Internet Protocol version 4 (RFC 791, RFC 1122)"), provides: providesTable(),
            provides_count: 1, requires_count: 0, requires_: nil, create: create, destroy: destroy, start: start,
            quiesce: quiesce, callout: ipCallout, batch_end: nil, ifnet_event: ipInterfaceEvent, export_state: nil,
            import_state: nil))
    return 0
}

// The provided interface's table and its entry in the descriptor: zeroed at compile time (a lazily initialised global
// would need a lock), filled with the same values by every call of the entry function.
nonisolated(unsafe) private var tableStorage:
    (UInt, UInt, UInt, UInt, UInt, UInt, UInt, UInt, UInt, UInt, UInt, UInt, UInt, UInt, UInt, UInt) =
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
nonisolated(unsafe) private var provideStorage: (UInt, UInt, UInt) = (0, 0, 0)

private func providesTable() -> UnsafePointer<alps_provide> {
    let table = withUnsafeMutablePointer(to: &tableStorage) {
        UnsafeMutableRawPointer($0).assumingMemoryBound(to: alps_network_ops.self)
    }
    table.initialize(
        to: alps_network_ops(
            size: UInt32(MemoryLayout<alps_network_ops>.size), family: UInt16(ALPS_AF_INET), minimum_mtu: 68,
            attach: networkAttach, detach: networkDetach, route: networkRoute, output: networkOutput,
            pseudo_sum: networkPseudoSum, path_mtu: networkPathMTU, lower_mtu: networkLowerMTU,
            classify: networkClassify, join: networkJoin, leave: networkLeave, member: networkMember,
            error: networkError, ctloutput: networkControlOutput, format: networkFormat, parse: networkParse))
    let provide = withUnsafeMutablePointer(to: &provideStorage) {
        UnsafeMutableRawPointer($0).assumingMemoryBound(to: alps_provide.self)
    }
    provide.initialize(
        to: alps_provide(
            size: UInt32(MemoryLayout<alps_provide>.size), flags: 0, id: text("alps.network/1:2"), ops: table))
    return UnsafePointer(provide)
}

private func create(
    _ host: UnsafePointer<alps_host>, _ variant: UnsafePointer<CChar>,
    _ result: UnsafeMutablePointer<UnsafeMutableRawPointer?>
) -> Int32 {
    guard let services = HostServices(host) else { return ALPS_ENOSYS }
    let instance = services.allocate(Instance.self)
    let settings = services.allocateArray(Int64.self, Setting.allCases)
    let counters = services.allocateArray(UInt64.self, Counter.allCases)
    let requests = services.allocateArray(alps_user_request.self, Raw.requestCount)
    let entry = services.allocate(alps_protosw.self)
    let reassembly = services.allocate(ReassemblyTable.self)
    let identification = services.allocateArray(UInt32.self, Identification.slots)
    guard let instance, let settings, let counters, let requests, let entry, let reassembly, let identification else {
        services.freeIfPresent(instance)
        services.freeArrayIfPresent(settings, Setting.allCases)
        services.freeArrayIfPresent(counters, Counter.allCases)
        services.freeArrayIfPresent(requests, Raw.requestCount)
        services.freeIfPresent(entry)
        services.freeIfPresent(reassembly)
        services.freeArrayIfPresent(identification, Identification.slots)
        return ALPS_ENOMEM
    }
    let routes = services.routeCell
    instance.initialize(
        to: Instance(
            services: services, errorCell: services.cell("alps.neterror/1:2"),
            networkCell: services.cell("alps.network/1:2"),
            generation: routes.ops(alps_route_ops.self).pointee.generation(routes.instance), settings: settings,
            counters: counters, requests: requests, entry: entry, reassembly: reassembly,
            identificationKey: services.random | 1, identification: identification))
    result.pointee = UnsafeMutableRawPointer(instance)
    return 0
}

private func destroy(_ context: UnsafeMutableRawPointer) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    let services = instance.services
    instance.dropAllDatagrams()
    instance.forgetSocketOptions()
    instance.dropAllGroups()
    instance.freeLocalTable()
    services.freeArray(instance.pointee.settings, Setting.allCases)
    services.freeArray(instance.pointee.counters, Counter.allCases)
    services.freeArray(instance.pointee.requests, Raw.requestCount)
    services.free(instance.pointee.entry)
    services.free(instance.pointee.reassembly)
    services.freeArray(instance.pointee.identification, Identification.slots)
    services.free(instance)
}

private func start(_ context: UnsafeMutableRawPointer) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    var status = registerSettings(instance)
    if status == 0 { status = registerCounters(instance) }
    if status == 0 { status = Raw.register(instance) }
    guard status == 0 else { return status }
    let cell = instance.services.ifnetCell
    var registration = alps_ethertype(
        size: UInt32(MemoryLayout<alps_ethertype>.size), ethertype: 0x0800, reserved: 0, input: ipInput)
    return cell.ops(alps_ifnet_ops.self).pointee.register_ethertype(cell.instance, &registration)
}

/// Whoever has taken over gets what sockets have asked for.
private func quiesce(_ context: UnsafeMutableRawPointer) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    instance.handOverSocketOptions()
    instance.dropAllDatagrams()
}

enum TimerFunction {
    static var reassembly: UInt32 { 1 }
    static var report: UInt32 { 2 }
}

private func ipCallout(_ context: UnsafeMutableRawPointer, _ function: UInt32, _ argument: UnsafeMutableRawPointer?) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    guard let argument else { return }
    switch function {
    case TimerFunction.reassembly: instance.datagramTimer(argument.assumingMemoryBound(to: Datagram.self))
    default: instance.reportTimer(argument.assumingMemoryBound(to: Group.self))
    }
}

private func ipInterfaceEvent(_ context: UnsafeMutableRawPointer, _ event: UnsafeRawPointer) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    let event = event.assumingMemoryBound(to: alps_ifnet_event.self)
    switch event.pointee.kind {
    case ALPS_IFEVENT_DETACH: instance.dropGroups(of: event.pointee.ifnet.pointee.index)
    // Switches and routers may have forgotten us while the link was down.
    case ALPS_IFEVENT_UP: instance.reportGroups(of: event.pointee.ifnet.pointee.index)
    case ALPS_IFEVENT_ADDRESS_ADD, ALPS_IFEVENT_ADDRESS_DELETE: instance.pointee.local.generation = 0
    default: break
    }
}

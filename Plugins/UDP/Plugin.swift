import PluginAPI
import PluginKit

/// UDP (RFC 768, RFC 1122 section 4.1): datagrams with ports and a checksum, over whatever network its registration
/// names.
///
/// One instance, in zone memory. A value of plain pointers and numbers: nothing here is counted by references.
struct Instance {
    let services: HostServices
    /// The network below. It may be loaded after us, be swapped and come and go: asked for when it is used.
    var networkCell: UnsafePointer<alps_cell>?
    /// All sockets.
    var controlBlocks: UnsafeMutablePointer<ControlBlock>?
    /// Indexed by `Setting`.
    let settings: UnsafeMutablePointer<Int64>
    /// Indexed by `Counter`.
    let counters: UnsafeMutablePointer<UInt64>
    let requests: UnsafeMutablePointer<alps_user_request>
    let entry: UnsafeMutablePointer<alps_protosw>
}

typealias InstancePointer = UnsafeMutablePointer<Instance>
typealias Mbuf = UnsafeMutablePointer<alps_mbuf>

/// The network below, for the length of one call.
struct Network {
    let ops: UnsafePointer<alps_network_ops>
    let instance: UnsafeMutableRawPointer
}

extension UnsafeMutablePointer where Pointee == Instance {
    @inline(__always)
    var services: HostServices { pointee.services }

    /// Nil while nobody provides it.
    @inline(__always)
    var network: Network? {
        guard let cell = pointee.networkCell, let ops = cell.pointee.ops, let instance = cell.pointee.`self` else {
            return findNetwork()
        }
        return Network(ops: ops.assumingMemoryBound(to: alps_network_ops.self), instance: instance)
    }

    @inline(never)
    private func findNetwork() -> Network? {
        pointee.networkCell = services.cell(Registration.network)
        guard let cell = pointee.networkCell, let ops = cell.pointee.ops, let instance = cell.pointee.`self` else {
            return nil
        }
        return Network(ops: ops.assumingMemoryBound(to: alps_network_ops.self), instance: instance)
    }

    @inline(__always)
    func count(_ counter: Counter) { pointee.counters[counter.rawValue] &+= 1 }

    @inline(__always)
    func setting(_ setting: Setting) -> Int64 { pointee.settings[setting.rawValue] }

    @inline(__always)
    func free(_ packet: Mbuf) { services.mbuf.pointee.free_packet(services.mbufCell.instance, packet) }
}

// MARK: Life

@c(alps_plugin_entry)
public func pluginEntry(_ out: UnsafeMutablePointer<alps_descriptor>) -> Int32 {
    guard out.pointee.size >= UInt32(MemoryLayout<alps_descriptor>.size) else { return ALPS_EINVAL }
    out.initialize(
        to: alps_descriptor(
            size: UInt32(MemoryLayout<alps_descriptor>.size), magic: ALPS_MAGIC, abi_major: UInt16(ALPS_ABI_MAJOR),
            abi_minor_needed: 0, flags: ALPS_PLUGIN_UNLOADABLE, name: text("udp"), version: text("1.0.0"),
            summary: text("User Datagram Protocol (RFC 768)"), provides: nil, provides_count: 0, requires_count: 0,
            requires_: nil, create: create, destroy: destroy, start: start, quiesce: nil, callout: nil, batch_end: nil,
            ifnet_event: nil, export_state: nil, import_state: nil))
    return 0
}

/// A literal as C wants it: NUL-terminated, in read-only memory.
func text(_ literal: StaticString) -> UnsafePointer<CChar> {
    UnsafeRawPointer(literal.utf8Start).assumingMemoryBound(to: CChar.self)
}

private func create(
    _ host: UnsafePointer<alps_host>, _ variant: UnsafePointer<CChar>,
    _ result: UnsafeMutablePointer<UnsafeMutableRawPointer?>
) -> Int32 {
    guard let services = HostServices(host) else { return ALPS_ENOSYS }
    guard let instance = services.allocate(Instance.self),
        let settings = services.allocateArray(Int64.self, Setting.allCases),
        let counters = services.allocateArray(UInt64.self, Counter.allCases),
        let requests = services.allocateArray(alps_user_request.self, Registration.requestCount),
        let entry = services.allocate(alps_protosw.self)
    else { return ALPS_ENOMEM }  // the zone goes with the instance that was not made
    instance.initialize(
        to: Instance(
            services: services, networkCell: nil, controlBlocks: nil, settings: settings, counters: counters,
            requests: requests, entry: entry))
    result.pointee = UnsafeMutableRawPointer(instance)
    return 0
}

private func destroy(_ context: UnsafeMutableRawPointer) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    while let block = instance.pointee.controlBlocks { instance.release(block) }
    let services = instance.services
    services.freeArray(instance.pointee.settings, Setting.allCases)
    services.freeArray(instance.pointee.counters, Counter.allCases)
    services.freeArray(instance.pointee.requests, Registration.requestCount)
    services.free(instance.pointee.entry)
    services.free(instance)
}

private func start(_ context: UnsafeMutableRawPointer) -> Int32 {
    Registration.register(context.assumingMemoryBound(to: Instance.self))
}

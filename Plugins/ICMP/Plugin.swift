import PluginAPI
import PluginKit

/// ICMP (RFC 792, RFC 1122 section 3.2.2): echo, errors in and out, redirects, timestamps.
///
/// One instance, in zone memory: plain pointers and numbers, nothing counted by references.
struct Instance {
    let services: HostServices
    let networkCell: UnsafePointer<alps_cell>?
    let settings: UnsafeMutablePointer<Int64>
    let counters: UnsafeMutablePointer<UInt64>
    let entry: UnsafeMutablePointer<alps_protosw>
    let requests: UnsafeMutablePointer<alps_user_request>
    /// Token buckets: errors, and answers to echo and timestamp requests.
    var errors: Bucket
    var answers: Bucket
}

/// Messages that may still be sent now; filled with time.
struct Bucket {
    var tokens: Int64
    var refilled: UInt64
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

    @inline(__always)
    var pool: UnsafeMutableRawPointer { services.mbufCell.instance }

    @inline(__always)
    func free(_ packet: Mbuf) { services.mbuf.pointee.free_packet(pool, packet) }

    /// Takes a token. `rate` messages a second on average, as many at once.
    func take(_ bucket: UnsafeMutablePointer<Bucket>, rate: Int64) -> Bool {
        if rate == 0 { return true }
        let now = services.now
        let grown = Int64(clamping: (now &- bucket.pointee.refilled) / (ALPS_NSEC_PER_SEC / UInt64(rate)))
        if grown > 0 {
            bucket.pointee.tokens = min(bucket.pointee.tokens + grown, rate)
            bucket.pointee.refilled = now
        }
        guard bucket.pointee.tokens > 0 else { return false }
        bucket.pointee.tokens -= 1
        return true
    }
}

@inline(__always)
func ipv4(_ address: alps_addr) -> UInt32 { withUnsafeBytes(of: address) { $0.loadUnaligned(as: UInt32.self) } }

@inline(__always)
func neutral(_ address: UInt32) -> alps_addr {
    var result = alps_addr()
    withUnsafeMutableBytes(of: &result) { $0.storeBytes(of: address, as: UInt32.self) }
    return result
}

/// A literal as C wants it: NUL-terminated, in read-only memory.
func text(_ literal: StaticString) -> UnsafePointer<CChar> {
    UnsafeRawPointer(literal.utf8Start).assumingMemoryBound(to: CChar.self)
}

@c(alps_plugin_entry)
public func pluginEntry(_ out: UnsafeMutablePointer<alps_descriptor>) -> Int32 {
    guard out.pointee.size >= UInt32(MemoryLayout<alps_descriptor>.size) else { return ALPS_EINVAL }
    out.initialize(
        to: alps_descriptor(
            size: UInt32(MemoryLayout<alps_descriptor>.size), magic: ALPS_MAGIC, abi_major: UInt16(ALPS_ABI_MAJOR),
            abi_minor_needed: 0, flags: ALPS_PLUGIN_UNLOADABLE, name: text("icmp"), version: text("1.0.0"),
            summary: text("Internet Control Message Protocol (RFC 792)"), provides: providesTable(), provides_count: 1,
            requires_count: 0, requires_: nil, create: create, destroy: destroy, start: start, quiesce: nil, callout: nil,
            batch_end: nil, ifnet_event: nil, export_state: nil, import_state: nil))
    return 0
}

// The provided interface's table and its entry in the descriptor: zeroed at compile time (a lazily initialised global
// would need a lock), filled with the same values by every call of the entry function.
nonisolated(unsafe) private var tableStorage: (UInt, UInt) = (0, 0)
nonisolated(unsafe) private var provideStorage: (UInt, UInt, UInt) = (0, 0, 0)

private func providesTable() -> UnsafePointer<alps_provide> {
    let table = withUnsafeMutablePointer(to: &tableStorage) {
        UnsafeMutableRawPointer($0).assumingMemoryBound(to: alps_neterror_ops.self)
    }
    table.initialize(
        to: alps_neterror_ops(size: UInt32(MemoryLayout<alps_neterror_ops>.size), reserved: 0, send: icmpSendError))
    let provide = withUnsafeMutablePointer(to: &provideStorage) {
        UnsafeMutableRawPointer($0).assumingMemoryBound(to: alps_provide.self)
    }
    provide.initialize(
        to: alps_provide(
            size: UInt32(MemoryLayout<alps_provide>.size), flags: 0, id: text("alps.neterror/1:2"), ops: table))
    return UnsafePointer(provide)
}

private func create(
    _ host: UnsafePointer<alps_host>, _ variant: UnsafePointer<CChar>,
    _ result: UnsafeMutablePointer<UnsafeMutableRawPointer?>
) -> Int32 {
    guard let services = HostServices(host) else { return ALPS_ENOSYS }
    guard let instance = services.allocate(Instance.self),
        let settings = services.allocateArray(Int64.self, Setting.allCases),
        let counters = services.allocateArray(UInt64.self, Counter.allCases),
        let entry = services.allocate(alps_protosw.self), let requests = services.allocate(alps_user_request.self)
    else { return ALPS_ENOMEM }
    let now = services.now
    instance.initialize(
        to: Instance(
            services: services, networkCell: services.cell("alps.network/1:2"), settings: settings, counters: counters,
            entry: entry, requests: requests, errors: Bucket(tokens: 100, refilled: now),
            answers: Bucket(tokens: 1000, refilled: now)))
    result.pointee = UnsafeMutableRawPointer(instance)
    return 0
}

private func destroy(_ context: UnsafeMutableRawPointer) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    let services = instance.services
    services.freeArray(instance.pointee.settings, Setting.allCases)
    services.freeArray(instance.pointee.counters, Counter.allCases)
    services.free(instance.pointee.entry)
    services.free(instance.pointee.requests)
    services.free(instance)
}

private func start(_ context: UnsafeMutableRawPointer) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    var status = registerSettings(instance)
    if status == 0 { status = registerCounters(instance) }
    guard status == 0 else { return status }
    instance.pointee.entry.initialize(
        to: alps_protosw(
            size: UInt32(MemoryLayout<alps_protosw>.size), domain: UInt16(ALPS_AF_INET), type: 0, protocol: 1,
            demux: UInt8(ALPS_DEMUX_NONE), reserved: 0, flags: ALPS_PR_NOSOCKET, name: text("icmp"),
            network: text("alps.network/1:2"), requests: UnsafePointer(instance.pointee.requests), requests_count: 0,
            connection_overhead: 0, input: icmpInput, ctlinput: nil, sent: nil, received: nil, send_datagram: nil))
    let cell = instance.services.protoswCell
    return cell.ops(alps_protosw_ops.self).pointee.add(cell.instance, instance.pointee.entry)
}

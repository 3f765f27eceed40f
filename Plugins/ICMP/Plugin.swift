import PluginAPI
import PluginKit

/// ICMP (RFC 792, RFC 1122 section 3.2.2): echo, errors in and out, redirects, timestamps.
///
/// One instance, in zone memory: plain pointers and numbers, nothing counted by references.
struct Instance {
    let services: HostServices
    /// "alps.network/1:2": IPv4, if somebody provides it.
    let networkCell: UnsafePointer<alps_cell>?
    var settings: UnsafeMutablePointer<Int64>
    var counters: UnsafeMutablePointer<UInt64>
    /// Entries of the protocol switch: packets, and echo sockets.
    var entries: UnsafeMutablePointer<alps_protosw>
    var requests: UnsafeMutablePointer<alps_user_request>
    /// Sockets that send echo requests, see EchoSockets.swift.
    var echoSockets: UnsafeMutablePointer<EchoSocket>?
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

    /// Takes a token. `rate` messages a second on average, as many at once; 0 is no limit.
    func take(_ bucket: UnsafeMutablePointer<Bucket>, rate: Int64) -> Bool {
        guard rate > 0 else { return true }
        let now = services.now
        let interval = max(ALPS_NSEC_PER_SEC / UInt64(rate), 1)
        let grown = (now &- bucket.pointee.refilled) / interval
        if grown >= UInt64(rate) {
            bucket.pointee.tokens = rate
            bucket.pointee.refilled = now
        } else {
            bucket.pointee.tokens = min(bucket.pointee.tokens + Int64(grown), rate)
            // What is left of the interval counts for the next token.
            bucket.pointee.refilled &+= grown &* interval
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
            requires_count: 0, requires_: nil, create: create, destroy: destroy, start: start, quiesce: nil,
            callout: nil,
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
    let instance = services.allocate(Instance.self)
    let settings = services.allocateArray(Int64.self, Setting.allCases)
    let counters = services.allocateArray(UInt64.self, Counter.allCases)
    let entries = services.allocateArray(alps_protosw.self, Registration.entryCount)
    let requests = services.allocateArray(alps_user_request.self, Registration.requestCount)
    guard let instance, let settings, let counters, let entries, let requests else {
        services.freeIfPresent(instance)
        services.freeArrayIfPresent(settings, Setting.allCases)
        services.freeArrayIfPresent(counters, Counter.allCases)
        services.freeArrayIfPresent(entries, Registration.entryCount)
        services.freeArrayIfPresent(requests, Registration.requestCount)
        return ALPS_ENOMEM
    }
    // Long ago: the buckets are full when first asked.
    instance.initialize(
        to: Instance(
            services: services, networkCell: services.cell("alps.network/1:2"), settings: settings, counters: counters,
            entries: entries, requests: requests, errors: Bucket(tokens: 0, refilled: 0),
            answers: Bucket(tokens: 0, refilled: 0)))
    result.pointee = UnsafeMutableRawPointer(instance)
    return 0
}

private func destroy(_ context: UnsafeMutableRawPointer) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    let services = instance.services
    services.freeArray(instance.pointee.settings, Setting.allCases)
    services.freeArray(instance.pointee.counters, Counter.allCases)
    services.freeArray(instance.pointee.entries, Registration.entryCount)
    services.freeArray(instance.pointee.requests, Registration.requestCount)
    services.free(instance)
}

private func start(_ context: UnsafeMutableRawPointer) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    var status = registerSettings(instance)
    if status == 0 { status = registerCounters(instance) }
    return status == 0 ? Registration.register(instance) : status
}

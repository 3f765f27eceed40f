import PluginAPI
import PluginKit

// What the host calls to identify, make, start and end an instance, and the two calls that keep it going.

@c(alps_plugin_entry)
public func pluginEntry(_ out: UnsafeMutablePointer<alps_descriptor>) -> Int32 {
    guard out.pointee.size >= UInt32(MemoryLayout<alps_descriptor>.size) else { return ALPS_EINVAL }
    out.initialize(
        to: alps_descriptor(
            size: UInt32(MemoryLayout<alps_descriptor>.size), magic: ALPS_MAGIC, abi_major: UInt16(ALPS_ABI_MAJOR),
            abi_minor_needed: 0, flags: ALPS_PLUGIN_UNLOADABLE, name: text("tcp"), version: text("1.0.0"),
            summary: text("Transmission Control Protocol (RFC 9293)"), provides: nil, provides_count: 0,
            requires_count: 0, requires_: nil, create: create, destroy: destroy, start: start, quiesce: nil,
            callout: callout, batch_end: batchEnd, ifnet_event: nil, export_state: nil, import_state: nil))
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
    guard let instance = services.allocate(Instance.self) else { return ALPS_ENOMEM }
    guard let settings = services.allocateArray(Int64.self, Setting.count) else {
        services.free(instance)
        return ALPS_ENOMEM
    }
    guard let counters = services.allocateArray(UInt64.self, Counter.count) else {
        services.freeArray(settings, Setting.count)
        services.free(instance)
        return ALPS_ENOMEM
    }
    guard let requests = services.allocateArray(alps_user_request.self, Registration.requestCount) else {
        services.freeArray(counters, Counter.count)
        services.freeArray(settings, Setting.count)
        services.free(instance)
        return ALPS_ENOMEM
    }
    guard let entry = services.allocate(alps_protosw.self) else {
        services.freeArray(requests, Registration.requestCount)
        services.freeArray(counters, Counter.count)
        services.freeArray(settings, Setting.count)
        services.free(instance)
        return ALPS_ENOMEM
    }
    // The rest of the zone memory is zero, which is what empty lists and no state are.
    instance.pointee.services = services
    instance.pointee.settings = settings
    instance.pointee.counters = counters
    instance.pointee.requests = requests
    instance.pointee.entry = entry
    instance.pointee.restingMemory = Sender.resting
    instance.pointee.ignoredMemory = Sender.resting
    instance.pointee.restingECN = AccurateECN()
    instance.pointee.ignoredECN = AccurateECN()
    // Without it there is no Fast Open for clients.
    instance.pointee.fastOpenCache = services.allocateArray(FastOpenEntry.self, FastOpenCache.places)
    result.pointee = UnsafeMutableRawPointer(instance)
    return 0
}

private func destroy(_ context: UnsafeMutableRawPointer) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    while let connection = instance.pointee.connections { connection.discard() }
    instance.dropAllEmbryonics()
    instance.dropAllTimeWaits()
    instance.dropFreeLists()
    instance.freeFastOpenCache()
    let services = instance.services
    services.freeArray(instance.pointee.settings, Setting.count)
    services.freeArray(instance.pointee.counters, Counter.count)
    services.freeArray(instance.pointee.requests, Registration.requestCount)
    services.free(instance.pointee.entry)
    services.free(instance)
}

private func start(_ context: UnsafeMutableRawPointer) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    instance.pointee.sequenceKey = SecretKey(k0: instance.services.random, k1: instance.services.random)
    instance.pointee.timestampKey = SecretKey(k0: instance.services.random, k1: instance.services.random)
    instance.pointee.cookieKey = SecretKey(k0: instance.services.random, k1: instance.services.random)
    instance.pointee.fastOpenKey = SecretKey(k0: instance.services.random, k1: instance.services.random)
    return Registration.register(instance)
}

private func callout(
    _ context: UnsafeMutableRawPointer, _ function: UInt32, _ argument: UnsafeMutableRawPointer?
) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    switch function {
    case Timer.connection: argument?.assumingMemoryBound(to: Connection.self).timerFired()
    case Timer.embryonic:
        if let argument { instance.embryonicTimerFired(argument.assumingMemoryBound(to: Embryonic.self)) }
    case Timer.pacing: argument?.assumingMemoryBound(to: Connection.self).pacingTimerFired()
    case Timer.timeWait: instance.timeWaitTimerFired()
    default: break
    }
}

/// All packets of a batch have been through `input`: now every connection they touched says, once, what it has to say.
private func batchEnd(_ context: UnsafeMutableRawPointer) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    while let connection = instance.pointee.touched {
        connection.untouch()
        connection.output()
    }
}

package import PluginAPI

/// One entry of the protocol switch with the instance it belongs to.
package final class ProtocolEntry {
    package let instance: PluginInstance
    package let sw: UnsafePointer<alps_protosw>
    package let name: String
    package let requests: [RoutedRequest]
    private let byID: [UInt32: RoutedRequest]
    // Data-path members, read once: an optional C function pointer costs a branch, a table walk would cost more.
    package let instancePointer: UnsafeMutableRawPointer
    /// The network below; empty while nobody provides it.
    let network: UnsafePointer<alps_cell>?

    init(instance: PluginInstance, sw: UnsafePointer<alps_protosw>) throws {
        self.instance = instance
        self.sw = sw
        instancePointer = instance.raw
        // One without sockets may have left it out.
        let hasNetwork = Int(bitPattern: sw.pointee.network) != 0
        network = hasNetwork ? instance.kernel.plugins.providedCell(String(cString: sw.pointee.network)) : nil
        name = String(cString: sw.pointee.name)
        requests = try (0..<Int(sw.pointee.requests_count)).map { try RoutedRequest(sw.pointee.requests[$0]) }
        byID = Dictionary(requests.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })
    }

    package func request(_ id: UInt32) -> RoutedRequest? { byID[id] }
    package func request(named name: String) -> RoutedRequest? { requests.first { $0.name == name } }

    package var domain: Int32 { Int32(sw.pointee.domain) }
    package var type: Int32 { Int32(sw.pointee.type) }
    package var protocolNumber: Int32 { Int32(sw.pointee.protocol) }
    package var isStream: Bool { sw.pointee.flags & UInt32(ALPS_PR_CONNREQUIRED) != 0 }
    package var isRaw: Bool { sw.pointee.flags & UInt32(ALPS_PR_RAW) != 0 }
}

/// The protocol switch: what sockets can be made of, and who takes which packets.
package final class ProtocolSwitch {
    private var kernel: Kernel!
    /// The kernel owns both.
    private var connections: Borrowed<ConnectionTable>!
    private var opsTable: UnsafeMutablePointer<alps_protosw_ops>?
    /// In order of registration, entries of draining instances included.
    package private(set) var entries: [ProtocolEntry] = []
    /// The default taker of packets, by family slot and protocol number.
    private let takers = UnsafeMutablePointer<Taker>.allocate(capacity: 2 * 256)

    /// Pointers only, so that a packet costs no reference counting.
    private struct Taker {
        var sw: UnsafePointer<alps_protosw>?
        var instance: UnsafeMutableRawPointer?
        var owner: Unmanaged<PluginInstance>?
        var demux: UInt8 = 0
    }

    package init() { takers.initialize(repeating: Taker(), count: 2 * 256) }

    deinit {
        takers.deallocate()
        opsTable?.deallocate()
    }

    /// See `Kernel.shutdown`.
    func detach() { kernel = nil }

    func attach(_ kernel: Kernel) {
        self.kernel = kernel
        connections = Borrowed(kernel.connections)
        let table = UnsafeMutablePointer<alps_protosw_ops>.allocate(capacity: 1)
        table.initialize(
            to: alps_protosw_ops(
                size: UInt32(MemoryLayout<alps_protosw_ops>.size), reserved: 0, add: protoswAdd, deliver: protoswDeliver,
                control: protoswControl))
        opsTable = table
        kernel.plugins.publish("alps.protosw/1", ops: UnsafeRawPointer(table), scope: .perInstance)
    }

    // MARK: Registration

    fileprivate func add(_ instance: PluginInstance, _ sw: UnsafePointer<alps_protosw>) -> Int32 {
        let entry: ProtocolEntry
        do { entry = try ProtocolEntry(instance: instance, sw: sw) } catch let error as KernelError {
            kernel.log.write(UInt32(ALPS_LOG_ERROR), instance.variant) { error.message }
            return error.code
        } catch { return Int32(ALPS_EINVAL) }
        let taken = entries.contains {
            $0.domain == entry.domain && $0.type == entry.type && $0.protocolNumber == entry.protocolNumber
                && $0.instance.variant == instance.variant && $0.instance !== instance.replaces
                && $0.instance.state != .draining
        }
        guard !taken else { return Int32(ALPS_EEXIST) }
        entries.append(entry)
        refreshTakers()
        return 0
    }

    /// The instance takes no new sockets and packets; what it has stays.
    func retire(_ instance: PluginInstance) { refreshTakers() }

    func removeAll(of instance: PluginInstance) {
        entries.removeAll { $0.instance === instance }
        refreshTakers()
    }

    /// A default taker is the newest running instance whose variant is its plain name, else any running one.
    private func refreshTakers() {
        takers.update(repeating: Taker(), count: 2 * 256)
        for pass in 0..<2 {
            for entry in entries where entry.instance.state != .draining && entry.instance.state != .dead {
                let isPlain = entry.instance.variant == entry.instance.name
                guard isPlain == (pass == 1), entry.sw.pointee.input != nil, entry.protocolNumber < 256, !entry.isRaw else {
                    continue
                }
                takers[Self.slot(entry.sw.pointee.domain, UInt8(entry.protocolNumber))] = Taker(
                    sw: entry.sw, instance: entry.instancePointer, owner: .passUnretained(entry.instance),
                    demux: entry.sw.pointee.demux)
            }
        }
    }

    @inline(__always)
    private static func slot(_ family: UInt16, _ protocolNumber: UInt8) -> Int {
        (family == UInt16(ALPS_AF_INET) ? 0 : 256) + Int(protocolNumber)
    }

    // MARK: Finding

    /// The entry that a new socket is made of. `protocolNumber` 0 is the default of the type. `variant` is what follows
    /// the slash ("other" of "tcp/other"), nil for the default.
    package func find(domain: Int32, type: Int32, protocol protocolNumber: Int32, variant: String? = nil) -> ProtocolEntry? {
        func matches(_ entry: ProtocolEntry) -> Bool {
            guard entry.domain == domain, entry.type == type, entry.instance.state == .running else { return false }
            if entry.isRaw { return entry.protocolNumber == protocolNumber || entry.protocolNumber == 0 }
            return protocolNumber == 0 || entry.protocolNumber == protocolNumber
        }
        let candidates = entries.filter(matches)
        if let variant { return candidates.last { $0.instance.variant == "\($0.instance.name)/\(variant)" } }
        return candidates.last { $0.instance.variant == $0.instance.name && (protocolNumber != 0 || $0.name != "icmp") }
            ?? candidates.last
    }

    /// The entry of a given instance that serves the same sockets as `entry` (for re-homing).
    package func counterpart(of entry: ProtocolEntry, in instance: PluginInstance) -> ProtocolEntry? {
        entries.last {
            $0.instance === instance && $0.domain == entry.domain && $0.type == entry.type
                && $0.protocolNumber == entry.protocolNumber
        }
    }

    /// Every (domain, type, protocol) that sockets can be made of.
    package var triples: [(domain: Int32, type: Int32, protocol: Int32, flags: UInt32)] {
        entries.filter { $0.instance.state == .running && $0.type != 0 && $0.instance.variant == $0.instance.name }
            .map { ($0.domain, $0.type, $0.isRaw && $0.protocolNumber == 0 ? 65535 : $0.protocolNumber, $0.sw.pointee.flags) }
    }

    // MARK: Packets

    /// Finds the owner of each packet's connection and gives each owner its run of packets.
    fileprivate func deliver(_ family: UInt16, _ protocolNumber: UInt8, _ list: Mbuf) -> Int32 {
        let taker = takers[Self.slot(family, protocolNumber)]
        guard let sw = taker.sw, let instance = taker.instance else { return Int32(ALPS_EPROTONOSUPPORT) }
        if taker.demux == UInt8(ALPS_DEMUX_NONE) {
            taker.owner?._withUnsafeGuaranteedRef { $0.markBatch() }
            sw.pointee.input?(instance, list)
        } else {
            connections { demultiplex(family, protocolNumber, list, taker, sw, instance, $0) }
        }
        return 0
    }

    private func demultiplex(
        _ family: UInt16, _ protocolNumber: UInt8, _ list: Mbuf, _ taker: Taker, _ sw: UnsafePointer<alps_protosw>,
        _ instance: UnsafeMutableRawPointer, _ table: ConnectionTable
    ) {
        var run: Mbuf? = nil
        var tail: Mbuf? = nil
        var runOwner: UnsafeMutableRawPointer? = nil
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            packet.pointee.pkt.conn = nil
            if packet.pointee.length >= 4 {
                let source = UnsafeRawPointer(packet.pointee.data).loadUnaligned(as: UInt16.self).bigEndian
                let destination = UnsafeRawPointer(packet.pointee.data).loadUnaligned(fromByteOffset: 2, as: UInt16.self)
                    .bigEndian
                packet.pointee.pkt.conn = table.lookup(
                    family, protocolNumber, packet.pointee.pkt.destination, destination, packet.pointee.pkt.source, source,
                    packet.pointee.pkt.ifindex)
            }
            let owner = packet.pointee.pkt.conn?.pointee.owner ?? taker.owner?.toOpaque()
            if owner != runOwner, let first = run {
                hand(runOwner, family, protocolNumber, first, sw, instance)
                // What that input did may have changed the table: the entry found above may be gone.
                packet.pointee.pkt.conn = nil
                if packet.pointee.length >= 4 {
                    let source = UnsafeRawPointer(packet.pointee.data).loadUnaligned(as: UInt16.self).bigEndian
                    let destination = UnsafeRawPointer(packet.pointee.data).loadUnaligned(
                        fromByteOffset: 2, as: UInt16.self
                    ).bigEndian
                    packet.pointee.pkt.conn = table.lookup(
                        family, protocolNumber, packet.pointee.pkt.destination, destination, packet.pointee.pkt.source,
                        source, packet.pointee.pkt.ifindex)
                }
                run = nil
            }
            if run == nil {
                run = packet
                runOwner = packet.pointee.pkt.conn?.pointee.owner ?? taker.owner?.toOpaque()
            } else {
                tail?.pointee.nextpkt = packet
            }
            tail = packet
        }
        if let first = run { hand(runOwner, family, protocolNumber, first, sw, instance) }
    }

    @inline(__always)
    private func hand(
        _ owner: UnsafeMutableRawPointer?, _ family: UInt16, _ protocolNumber: UInt8, _ list: Mbuf,
        _ defaultSwitch: UnsafePointer<alps_protosw>, _ defaultInstance: UnsafeMutableRawPointer
    ) {
        guard let owner else {
            defaultSwitch.pointee.input?(defaultInstance, list)
            return
        }
        Unmanaged<PluginInstance>.fromOpaque(owner)._withUnsafeGuaranteedRef { instance in
            instance.markBatch()
            if instance.raw == defaultInstance {
                defaultSwitch.pointee.input?(defaultInstance, list)
            } else if let entry = instance.kernel.protocols.entries.last(where: {
                $0.instance === instance && $0.protocolNumber == Int32(protocolNumber) && $0.domain == Int32(family)
            }), let input = entry.sw.pointee.input {
                input(entry.instancePointer, list)
            } else {
                instance.kernel.mbufs.free(list)
            }
        }
    }

    fileprivate func control(_ protocolNumber: UInt8, _ event: UnsafeMutablePointer<alps_ctl_event>) -> Int32 {
        for entry in entries where entry.isRaw && entry.domain == Int32(event.pointee.family) {
            entry.sw.pointee.ctlinput?(entry.instancePointer, event)
        }
        let taker = takers[Self.slot(event.pointee.family, protocolNumber)]
        guard let sw = taker.sw, let instance = taker.instance, let quoted = event.pointee.quoted else {
            return Int32(ALPS_ENOENT)
        }
        guard taker.demux == UInt8(ALPS_DEMUX_PORTS) else {
            sw.pointee.ctlinput?(instance, event)
            return 0
        }
        let offset = Int(event.pointee.transport_offset)
        guard Int(quoted.pointee.pkt.length) >= offset + 4 else { return Int32(ALPS_ENOENT) }
        var ports: (UInt16, UInt16) = (0, 0)
        withUnsafeMutableBytes(of: &ports) { kernel.mbufs.copyOut(quoted, offset, 4, $0.baseAddress!) }
        guard
            let conn = kernel.connections.lookup(
                event.pointee.family, protocolNumber, event.pointee.source, UInt16(bigEndian: ports.0),
                event.pointee.destination, UInt16(bigEndian: ports.1), 0)
        else { return Int32(ALPS_ENOENT) }
        event.pointee.conn = conn
        guard let owner = conn.pointee.owner else { return Int32(ALPS_ENOENT) }
        let found = Unmanaged<PluginInstance>.fromOpaque(owner).takeUnretainedValue()
        guard
            let entry = entries.last(where: {
                $0.instance === found && $0.protocolNumber == Int32(protocolNumber)
                    && $0.domain == Int32(event.pointee.family)
            })
        else { return Int32(ALPS_ENOENT) }
        entry.sw.pointee.ctlinput?(entry.instancePointer, event)
        return 0
    }
}

// MARK: "alps.protosw/1", `self` being the plugin instance

private func protoswAdd(_ context: UnsafeMutableRawPointer, _ entry: UnsafePointer<alps_protosw>) -> Int32 {
    let instance = Unmanaged<PluginInstance>.fromOpaque(context).takeUnretainedValue()
    return instance.kernel.protocols.add(instance, entry)
}

private func protoswDeliver(
    _ context: UnsafeMutableRawPointer, _ family: UInt16, _ protocolNumber: UInt8, _ list: Mbuf
) -> Int32 {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
        $0.protocols { $0.deliver(family, protocolNumber, list) }
    }
}

private func protoswControl(
    _ context: UnsafeMutableRawPointer, _ protocolNumber: UInt8, _ event: UnsafeMutablePointer<alps_ctl_event>
) -> Int32 {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
        $0.kernel.protocols.control(protocolNumber, event)
    }
}

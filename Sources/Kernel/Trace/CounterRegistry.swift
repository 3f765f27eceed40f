package import PluginAPI

/// Event counters of plugins and of the host, for `alps netstat -s`. The owners count; this only reads.
package final class CounterRegistry {
    /// One counter as it stands now.
    package struct Value: Equatable {
        /// Variant of the plugin instance, or the host's group.
        package var instance: String
        package var name: String
        package var doc: String
        package var value: UInt64
        package var isGauge: Bool
    }

    private struct Entry {
        let owner: PluginInstance?
        let group: String
        let name: String
        let doc: String
        let isGauge: Bool
        let value: UnsafePointer<UInt64>
    }

    private struct Key: Hashable {
        let group: String
        let name: String
    }

    private var entries: [Entry] = []
    /// What instances counted that have been replaced: totals do not go back at a swap.
    private var retired: [Key: UInt64] = [:]
    private var opsTable: UnsafeMutablePointer<alps_counter_ops>?

    package init() {}

    deinit { opsTable?.deallocate() }

    /// Publishes "alps.counter/1".
    package func attach(_ kernel: Kernel) {
        let table = UnsafeMutablePointer<alps_counter_ops>.allocate(capacity: 1)
        table.initialize(
            to: alps_counter_ops(
                size: UInt32(MemoryLayout<alps_counter_ops>.size), reserved: 0, add: counterAdd))
        opsTable = table
        kernel.plugins.publish("alps.counter/1", ops: UnsafeRawPointer(table), scope: .perInstance)
    }

    /// Adds a counter of the host. `value` must live as long as the kernel.
    package func add(
        group: String, name: String, doc: String, value: UnsafePointer<UInt64>, isGauge: Bool = false
    ) {
        entries.append(Entry(owner: nil, group: group, name: name, doc: doc, isGauge: isGauge, value: value))
    }

    /// Adds an instance's counters.
    package func add(owner: PluginInstance, _ counters: UnsafePointer<alps_counter>, _ count: Int) -> Int32 {
        var next = UnsafeRawPointer(counters)
        for _ in 0..<count {
            let counter = next.assumingMemoryBound(to: alps_counter.self)
            guard counter.pointee.size >= UInt32(MemoryLayout<alps_counter>.size) else { return ALPS_EINVAL }
            entries.append(
                Entry(
                    owner: owner, group: owner.variant, name: String(cString: counter.pointee.name),
                    doc: String(cString: counter.pointee.doc),
                    isGauge: counter.pointee.flags & ALPS_COUNTER_GAUGE != 0, value: counter.pointee.value))
            next += Int(counter.pointee.size)
        }
        return 0
    }

    /// Forgets an instance's counters. If another instance runs under its name, totals go on there.
    package func removeAll(of instance: PluginInstance) {
        let group = instance.variant
        if entries.contains(where: { $0.owner !== instance && $0.owner != nil && $0.group == group }) {
            for entry in entries where entry.owner === instance && !entry.isGauge {
                retired[Key(group: group, name: entry.name), default: 0] &+= entry.value.pointee
            }
        } else {
            retired = retired.filter { $0.key.group != group }
        }
        entries.removeAll { $0.owner === instance }
    }

    /// All counters, in the order they were added. Instances of one name are added up.
    package func all() -> [Value] {
        var values: [Value] = []
        var places: [Key: Int] = [:]
        for entry in entries {
            let key = Key(group: entry.group, name: entry.name)
            if let place = places[key] {
                values[place].value &+= entry.value.pointee
            } else {
                places[key] = values.count
                values.append(
                    Value(
                        instance: entry.group, name: entry.name, doc: entry.doc,
                        value: entry.value.pointee &+ (entry.isGauge ? 0 : retired[key] ?? 0), isGauge: entry.isGauge))
            }
        }
        return values
    }

    /// Where a counter of the instance loaded last lies, for who reads it often. Valid while the instance lives.
    package func place(_ instance: String, _ name: String) -> UnsafePointer<UInt64>? {
        entries.last { $0.group == instance && $0.name == name }.map { UnsafePointer($0.value) }
    }

    /// One counter by instance and name.
    package func value(_ instance: String, _ name: String) -> UInt64? {
        all().first { $0.instance == instance && $0.name == name }?.value
    }
}

private func counterAdd(
    _ context: UnsafeMutableRawPointer, _ counters: UnsafePointer<alps_counter>, _ count: UInt32
) -> Int32 {
    let instance = Unmanaged<PluginInstance>.fromOpaque(context).takeUnretainedValue()
    return instance.kernel.counters.add(owner: instance, counters, Int(count))
}

package import PluginAPI

/// All settings by name.
package final class TunableRegistry {
    /// For each name the settings registered for it, the one in force last: during a swap the new instance's stands in
    /// front of the old one's, and if the new one is taken back, the old one's is in force again.
    private var tunables: [String: [Tunable]] = [:]
    private var opsTable: UnsafeMutablePointer<alps_tunable_ops>?

    package init() {}

    deinit { opsTable?.deallocate() }

    /// Publishes "alps.tunable/1".
    package func attach(_ kernel: Kernel) {
        let table = UnsafeMutablePointer<alps_tunable_ops>.allocate(capacity: 1)
        table.initialize(
            to: alps_tunable_ops(
                size: UInt32(MemoryLayout<alps_tunable_ops>.size), reserved: 0, add: tunableAdd))
        opsTable = table
        kernel.plugins.publish("alps.tunable/1", ops: UnsafeRawPointer(table), scope: .perInstance)
    }

    /// All settings in force, by name.
    package var all: [Tunable] { tunables.values.compactMap(\.last).sorted { $0.name < $1.name } }

    package func get(_ name: String) -> Tunable? { tunables[name]?.last }

    /// Value of a setting that is known to exist.
    package func value(_ name: String, default fallback: Int64 = 0) -> Int64 { get(name)?.value ?? fallback }

    /// Sets by text, with units ("200ms", "64K", "on").
    package func set(_ name: String, _ text: String) throws {
        guard let tunable = get(name) else { throw KernelError(ALPS_ENOENT, "no setting \(name)") }
        guard let value = Tunable.parse(text, tunable.kind) else {
            throw KernelError(ALPS_EINVAL, "\(name): \"\(text)\" is not a value of type \(tunable.kind.name)")
        }
        try tunable.set(value)
    }

    /// Adds a setting of the host; it has memory of its own. An existing one of that name stays and is returned.
    @discardableResult
    package func add(
        _ name: String, _ doc: String, kind: Tunable.Kind, default value: Int64,
        range: ClosedRange<Int64> = 0...Int64.max, isReadOnly: Bool = false, onChange: ((Int64) -> Void)? = nil
    ) -> Tunable {
        if let existing = get(name) { return existing }
        let storage = UnsafeMutablePointer<Int64>.allocate(capacity: 1)
        storage.initialize(to: value)
        let tunable = Tunable(
            owner: nil, name: name, doc: doc, kind: kind, isReadOnly: isReadOnly, minimum: range.lowerBound,
            maximum: range.upperBound, storage: storage, ownsStorage: true)
        tunable.onChange = onChange
        tunables[name] = [tunable]
        return tunable
    }

    /// Adds an instance's settings, all or none.
    package func add(owner: PluginInstance, _ list: UnsafePointer<alps_tunable>, _ count: Int) -> Int32 {
        var made: [Tunable] = []
        var next = UnsafeRawPointer(list)
        for _ in 0..<count {
            let raw = next.assumingMemoryBound(to: alps_tunable.self).pointee
            guard raw.size >= UInt32(MemoryLayout<alps_tunable>.size), let kind = Tunable.Kind(rawValue: raw.type),
                raw.minimum <= raw.maximum, (raw.minimum...raw.maximum).contains(raw.value.pointee)
            else { return ALPS_EINVAL }
            let name = Self.name(String(cString: raw.name), instance: owner.name, variant: owner.variant)
            if let existing = get(name), existing.owner?.variant != owner.variant || existing.owner === owner {
                return ALPS_EEXIST
            }
            made.append(
                Tunable(
                    owner: owner, name: name, doc: String(cString: raw.doc), kind: kind,
                    isReadOnly: raw.flags & ALPS_TUNABLE_READONLY != 0, minimum: raw.minimum, maximum: raw.maximum,
                    storage: raw.value, ownsStorage: false))
            next += Int(raw.size)
        }
        for tunable in made {
            // What somebody has set outlives a swap, as far as the successor allows.
            if let predecessor = get(tunable.name), predecessor.isSet, !tunable.isReadOnly {
                tunable.store(min(max(predecessor.value, tunable.minimum), tunable.maximum))
            }
            tunables[tunable.name, default: []].append(tunable)
        }
        return 0
    }

    /// Forgets an instance's settings.
    package func removeAll(of instance: PluginInstance) {
        for (name, list) in tunables {
            let kept = list.filter { $0.owner !== instance }
            if kept.count < list.count { tunables[name] = kept.isEmpty ? nil : kept }
        }
    }

    /// The name under which a variant's setting is known: "net.inet.tcp.x" of "tcp/other" is "net.inet.tcp.other.x".
    static func name(_ name: String, instance: String, variant: String) -> String {
        guard let slash = variant.firstIndex(of: "/") else { return name }
        let suffix = variant[variant.index(after: slash)...]
        var parts = name.split(separator: ".", omittingEmptySubsequences: false)
        let place = parts.lastIndex { $0 == instance } ?? parts.count - 2
        parts.insert(suffix, at: max(0, place + 1))
        return parts.joined(separator: ".")
    }
}

private func tunableAdd(
    _ context: UnsafeMutableRawPointer, _ tunables: UnsafePointer<alps_tunable>, _ count: UInt32
) -> Int32 {
    let instance = Unmanaged<PluginInstance>.fromOpaque(context).takeUnretainedValue()
    return instance.kernel.tunables.add(owner: instance, tunables, Int(count))
}

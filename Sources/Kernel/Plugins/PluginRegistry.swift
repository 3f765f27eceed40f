import Glibc
package import PluginAPI

/// The plugins of a kernel: loading, unloading, swapping, and the cells by which they reach the host and each other.
package final class PluginRegistry {
    /// Whose `self` a host interface's cells carry.
    package enum Scope {
        case kernel(UnsafeMutableRawPointer)
        case perInstance
    }

    struct HostInterface {
        let ops: UnsafeRawPointer
        let scope: Scope
    }

    private(set) var kernel: Kernel!
    private var hostInterfaces: [String: HostInterface] = [:]
    /// Cells of interfaces that plugins provide. They live as long as the kernel: whoever has asked keeps the pointer.
    private var provided: [String: UnsafeMutablePointer<alps_cell>] = [:]
    private struct WeakImage { weak var image: PluginImage? }
    private var images: [UInt64: WeakImage] = [:]
    /// In order of loading, draining ones included.
    package private(set) var instances: [PluginInstance] = []
    private var generations = 0
    private var draining = 0
    /// Who gets `batch_end`; they leave before they are let go of.
    private var batch: [Borrowed<PluginInstance>] = []

    package init() {}

    deinit { for cell in provided.values { cell.deallocate() } }

    func attach(_ kernel: Kernel) { self.kernel = kernel }

    /// See `Kernel.shutdown`.
    func detach() { kernel = nil }

    // MARK: Interfaces

    /// Makes a host interface known under `id`. The table must live as long as the kernel.
    package func publish(_ id: String, ops: UnsafeRawPointer, scope: Scope) {
        hostInterfaces[id] = HostInterface(ops: ops, scope: scope)
    }

    func hostInterface(_ id: String) -> HostInterface? { hostInterfaces[id] }

    /// The cell of an interface that plugins provide; empty while nobody does. Ids of this kind carry a colon.
    package func providedCell(_ id: String) -> UnsafePointer<alps_cell>? {
        if let cell = provided[id] { return UnsafePointer(cell) }
        guard id.contains(":") else { return nil }
        let cell = UnsafeMutablePointer<alps_cell>.allocate(capacity: 1)
        cell.initialize(to: alps_cell())
        provided[id] = cell
        return UnsafePointer(cell)
    }

    private func exists(_ id: String) -> Bool {
        hostInterfaces[id] != nil || provided[id]?.pointee.ops != nil
    }

    /// Points the cells of what `instance` provides to it.
    private func provide(_ instance: PluginInstance) {
        for index in 0..<Int(instance.descriptor.pointee.provides_count) {
            guard let provide = instance.descriptor.pointee.provides?[index] else { continue }
            guard let cell = providedCell(String(cString: provide.id)) else { continue }
            let writable = UnsafeMutablePointer(mutating: cell)
            writable.pointee.ops = provide.ops
            writable.pointee.`self` = instance.raw
            writable.pointee.generation &+= 1
        }
    }

    private func withdraw(_ instance: PluginInstance) {
        for cell in provided.values where cell.pointee.`self` == instance.raw && cell.pointee.ops != nil {
            cell.pointee.ops = nil
            cell.pointee.`self` = nil
            cell.pointee.generation &+= 1
        }
    }

    // MARK: Loading

    /// The running instance of a variant.
    package func instance(_ variant: String) -> PluginInstance? {
        instances.last { $0.variant == variant && $0.state == .running }
    }

    /// Loads the file at `path` as `variant` (by default its own name). On failure everything is as it was.
    @discardableResult
    package func load(path: String, as variant: String? = nil) throws -> PluginInstance {
        let kept = kernel.configuration.images?.find(path)
        let (bytes, note) = try kept.map { ([], $0.note) } ?? inspect(path)
        let variant = variant ?? note.name
        guard variant == note.name || variant.hasPrefix(note.name + "/") && variant.count > note.name.count + 1 else {
            throw KernelError(
                EINVAL, "\(path) is plugin '\(note.name)': it can run as '\(note.name)/NAME', not as '\(variant)'")
        }
        guard instance(variant) == nil else {
            throw KernelError(
                EEXIST,
                "'\(variant)' is loaded already: replace it with `alps plugin swap`, or load beside it with --as \(note.name)/NAME")
        }
        if let kept {
            try checkRequirements(note, path)
            return try start(kept, variant: variant, replacing: nil)
        }
        let image = try image(path, bytes, note)
        kernel.configuration.images?.keep(image, path)
        return try start(image, variant: variant, replacing: nil)
    }

    /// Replaces the running instance of `variant`: new connections and all listeners go to the new one, the old one
    /// ends when its last connection has ended.
    @discardableResult
    package func swap(_ variant: String, path: String) throws -> PluginInstance {
        guard let old = instance(variant) else { throw KernelError(ENOENT, "no plugin '\(variant)' is running") }
        let (bytes, note) = try inspect(path)
        guard note.name == old.name else {
            throw KernelError(EINVAL, "\(path) is plugin '\(note.name)', it cannot replace '\(variant)'")
        }
        let new = try start(image(path, bytes, note), variant: variant, replacing: old)
        retire(old, successor: new)
        return new
    }

    /// Ends an instance: at once if nothing uses it, else when its last connection has ended.
    package func unload(_ variant: String) throws {
        guard let instance = instance(variant) else { throw KernelError(ENOENT, "no plugin '\(variant)' is running") }
        let heir = variant == instance.name ? nil : self.instance(instance.name)
        for id in instance.provides {
            let users = instances.filter { $0 !== instance && $0.state == .running && $0.image?.note.requires.contains(id) == true }
            if heir == nil, let user = users.first {
                throw KernelError(EBUSY, "'\(variant)' is needed by '\(user.variant)' (\(id)): unload that first")
            }
        }
        retire(instance, successor: heir)
    }

    private func inspect(_ path: String) throws -> ([UInt8], ELFNote) {
        let bytes = try ELFNote.read(path)
        let note = try ELFNote(bytes: bytes, path: path)
        try note.checkABI(path)
        try checkRequirements(note, path)
        return (bytes, note)
    }

    private func checkRequirements(_ note: ELFNote, _ path: String) throws {
        for id in note.requires where !exists(id) {
            throw KernelError(ENOENT, "\(path) requires \(id), which nothing here provides")
        }
    }

    private func image(_ path: String, _ bytes: [UInt8], _ note: ELFNote) throws -> PluginImage {
        let hash = PluginImage.contentHash(bytes)
        if let image = images[hash]?.image { return image }
        let image = try PluginImage(path: path, bytes: bytes, note: note, hash: hash)
        images[hash] = WeakImage(image: image)
        return image
    }

    private func start(_ image: PluginImage, variant: String, replacing old: PluginInstance?) throws -> PluginInstance {
        generations += 1
        let instance = try PluginInstance(kernel: kernel, image: image, variant: variant, generation: generations)
        instance.replaces = old
        do {
            try instance.create()
            let status = instance.descriptor.pointee.start(instance.raw)
            guard status == 0 else { throw KernelError(status, "\(image.path): start failed with errno \(status)") }
        } catch {
            removeRegistrations(instance)
            if let old { kernel.interfaces.restoreEthertypes(of: old) }
            instance.destroy()
            throw error
        }
        instance.replaces = nil
        instance.state = .running
        instances.append(instance)
        if variant == instance.name { provide(instance) }
        return instance
    }

    private func removeRegistrations(_ instance: PluginInstance) {
        batch.removeAll { $0.names(instance) }
        kernel.protocols.removeAll(of: instance)
        kernel.interfaces.removeEthertypes(of: instance)
        kernel.tunables.removeAll(of: instance)
        kernel.counters.removeAll(of: instance)
    }

    private func retire(_ instance: PluginInstance, successor: PluginInstance?) {
        instance.state = .draining
        draining += 1
        kernel.interfaces.removeEthertypes(of: instance)
        kernel.protocols.retire(instance)
        if successor == nil || successor?.variant != instance.variant { withdraw(instance) }
        if let successor { kernel.sockets.rehome(from: instance, to: successor) }
        kernel.tunables.removeAll(of: instance)
        kernel.counters.removeAll(of: instance)
        instance.descriptor.pointee.quiesce?(instance.raw)
        reap()
    }

    // MARK: Turns

    /// Tells every instance about an interface, in order of loading.
    package func broadcast(_ event: UnsafePointer<alps_ifnet_event>) {
        for instance in instances { instance.interfaceEvent(event) }
    }

    func markBatch(_ instance: PluginInstance) { batch.append(Borrowed(instance)) }

    var hasPendingBatchEnds: Bool { !batch.isEmpty }

    func runBatchEnds() {
        // An instance may be marked again by what another's batch end causes: that belongs to the next turn.
        var index = 0
        let count = batch.count
        while index < count {
            batch[index]({ $0.runBatchEnd() })
            index += 1
        }
        if count > 0 { batch.removeFirst(count) }
    }

    /// Ends draining instances that nothing uses any more.
    package func reap() {
        guard draining > 0 else { return }
        for instance in instances where instance.state == .draining {
            guard instance.liveSockets == 0, instance.liveEntries == 0, instance.callsInProgress == 0 else { continue }
            removeRegistrations(instance)
            kernel.log.write(UInt32(ALPS_LOG_NOTICE), instance.variant) { "version \(instance.version) has ended" }
            instance.destroy()
            draining -= 1
            instances.removeAll { $0 === instance }
        }
    }

    /// Ends all instances, last loaded first.
    package func shutdown() {
        batch.removeAll()
        for instance in instances.reversed() {
            instance.descriptor.pointee.quiesce?(instance.raw)
            withdraw(instance)
            removeRegistrations(instance)
            instance.destroy()
        }
        instances.removeAll()
        draining = 0
    }
}

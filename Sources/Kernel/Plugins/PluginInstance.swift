package import PluginAPI

/// One plugin at work in one kernel. Several may come from one image.
package final class PluginInstance {
    package enum State: String {
        case starting, running, draining, dead
    }

    package let kernel: Kernel
    /// The kernel's, for its packets.
    let ethernet: Borrowed<Ethernet>
    let protocols: Borrowed<ProtocolSwitch>
    let connections: Borrowed<ConnectionTable>
    private let registry: Borrowed<PluginRegistry>
    package private(set) var image: PluginImage?
    /// The plugin's own name, e.g. "tcp".
    package let name: String
    /// What it runs as: "tcp", or "tcp/other".
    package let variant: String
    /// Counts the loads of this kernel.
    package let generation: Int
    package let version: String
    package let summary: String
    package let path: String
    package let provides: [String]
    package internal(set) var state = State.starting
    /// The instance that this one takes the place of, while it starts.
    package internal(set) var replaces: PluginInstance?
    package let zone: Zone
    /// Callouts of this instance point here.
    package let calloutTarget: UnsafeMutablePointer<CalloutTarget>
    /// The plugin's own pointer: first argument of all its functions.
    package private(set) var raw: UnsafeMutableRawPointer
    /// Sockets attached to this instance.
    package var liveSockets = 0
    /// Connection-table entries inserted by it.
    package var liveEntries = 0
    /// Calls into it that are on some fiber's stack.
    package var callsInProgress = 0
    package var descriptor: UnsafePointer<alps_descriptor>
    private let host: UnsafeMutablePointer<alps_host>
    private var cells: [String: UnsafeMutablePointer<alps_cell>] = [:]
    private let batchEnd: (@convention(c) (UnsafeMutableRawPointer) -> Void)?
    private var isBatchMarked = false

    init(kernel: Kernel, image: PluginImage, variant: String, generation: Int) throws {
        self.kernel = kernel
        ethernet = Borrowed(kernel.interfaces.ethernet)
        protocols = Borrowed(kernel.protocols)
        connections = Borrowed(kernel.connections)
        registry = Borrowed(kernel.plugins)
        self.image = image
        self.variant = variant
        self.generation = generation
        name = image.note.name
        version = image.note.version
        path = image.path
        provides = image.note.provides
        summary = String(cString: image.descriptor.pointee.summary)
        descriptor = UnsafePointer(image.descriptor)
        batchEnd = image.descriptor.pointee.batch_end
        zone = Zone()
        calloutTarget = .allocate(capacity: 1)
        calloutTarget.initialize(to: CalloutTarget(function: image.descriptor.pointee.callout))
        host = .allocate(capacity: 1)
        raw = UnsafeMutableRawPointer(host)
        host.initialize(
            to: alps_host(
                size: UInt32(MemoryLayout<alps_host>.size), abi_major: UInt16(ALPS_ABI_MAJOR),
                abi_minor: UInt16(ALPS_ABI_MINOR), self: Unmanaged.passUnretained(self).toOpaque(),
                query: queryCell))
    }

    deinit {
        for cell in cells.values { cell.deallocate() }
        host.deallocate()
        calloutTarget.deallocate()
    }

    /// Runs the plugin's `create`.
    func create() throws {
        var made: UnsafeMutableRawPointer?
        let status = descriptor.pointee.create(host, variant, &made)
        guard status == 0, let made else {
            throw KernelError(status, "\(path): create failed with errno \(status)")
        }
        raw = made
        calloutTarget.pointee.instance = made
    }

    /// Runs the plugin's `destroy` and lets go of the library.
    func destroy() {
        guard state != .dead else { return }
        let wasCreated = calloutTarget.pointee.instance != nil
        if wasCreated { descriptor.pointee.destroy(raw) }
        state = .dead
        // A callout left armed lies in memory that is gone or leaked; it must at least not call into unmapped code.
        calloutTarget.pointee.function = nil
        calloutTarget.pointee.instance = nil
        if zone.objectsInUse != 0 || calloutTarget.pointee.armed != 0 {
            kernel.log.write(UInt32(ALPS_LOG_ERROR), variant) {
                "left behind \(zone.objectsInUse) objects (\(zone.bytesInUse) bytes) and \(calloutTarget.pointee.armed) armed callouts"
            }
        }
        // What is still armed lies in the zone, which goes with this object.
        kernel.callouts.removeAll(of: calloutTarget)
        image = nil
    }

    /// The cell through which this instance reaches interface `id`.
    func cell(_ id: String) -> UnsafePointer<alps_cell>? {
        if let cell = cells[id] { return UnsafePointer(cell) }
        guard let interface = kernel.plugins.hostInterface(id) else { return kernel.plugins.providedCell(id) }
        let cell = UnsafeMutablePointer<alps_cell>.allocate(capacity: 1)
        let own: UnsafeMutableRawPointer
        switch interface.scope {
        case .kernel(let pointer): own = pointer
        case .perInstance: own = Unmanaged.passUnretained(self).toOpaque()
        }
        cell.initialize(to: alps_cell(ops: interface.ops, self: own, generation: 1))
        cells[id] = cell
        return UnsafePointer(cell)
    }

    /// Packets have been given to this instance in this turn: it gets `batch_end`.
    package func markBatch() {
        guard !isBatchMarked, batchEnd != nil else { return }
        isBatchMarked = true
        registry { $0.markBatch(self) }
    }

    func runBatchEnd() {
        isBatchMarked = false
        if state != .dead { batchEnd?(raw) }
    }

    /// Tells the instance about an interface.
    package func interfaceEvent(_ event: UnsafePointer<alps_ifnet_event>) {
        guard state == .running || state == .starting else { return }
        descriptor.pointee.ifnet_event?(raw, event)
    }
}

private func queryCell(_ context: UnsafeMutableRawPointer, _ id: UnsafePointer<CChar>) -> UnsafePointer<alps_cell>? {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.cell(String(cString: id)) }
}

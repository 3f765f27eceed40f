import PluginAPI

/// What a kernel is made with.
package struct KernelConfiguration {
    /// The stack's name: names its control socket, its pairs and its log lines.
    package var name: String
    /// Nil: the machine's clock. Otherwise the virtual clock of a lab, shared by its kernels.
    package var virtualClock: KernelClock?
    /// Seed of all randomness, nil: the system's generator. A virtual clock wants a seed.
    package var seed: UInt64?
    /// Bytes that mbufs and clusters may take together.
    package var mbufLimit: Int
    /// Bytes that the rings of one arena may take together.
    package var arenaLimit: Int

    /// Where plugins are kept mapped for further kernels of a lab.
    package var images: PluginImages?

    package init(
        name: String = "alps0", virtualClock: KernelClock? = nil, seed: UInt64? = nil, mbufLimit: Int = 256 << 20,
        arenaLimit: Int = 16 << 30, images: PluginImages? = nil
    ) {
        self.images = images
        self.name = name
        self.virtualClock = virtualClock
        self.seed = seed
        self.mbufLimit = mbufLimit
        self.arenaLimit = arenaLimit
    }
}

/// One BSD-shaped kernel in user space: owner of every subsystem that a protocol plugin stands on.
///
/// Everything runs on one thread, the kernel's loop. Work is done in turns: the reactor (or the lab) hands over what
/// devices and clients brought, then calls `endTurn`. Nothing below ever blocks.
package final class Kernel {
    package let configuration: KernelConfiguration
    package let clock: KernelClock
    package let random: RandomSource
    package let log: KernelLog
    package let mbufs: MbufPool
    package let callouts: CalloutWheel
    package let fibers: FiberScheduler
    package let tunables: TunableRegistry
    package let counters: CounterRegistry
    package let trace: TraceRing
    package let plugins: PluginRegistry
    package let protocols: ProtocolSwitch
    package let connections: ConnectionTable
    package let interfaces: InterfaceTable
    package let routes: RouteTable
    package let sockets: SocketLayer
    package let zones: ZoneMemory
    package let netlink: Netlink
    /// Streams of clients with rings in shared memory.
    let streamRings = StreamRingWatch()
    package let linkSockets: LinkSockets
    /// The live host's event loop; nil in virtual time.
    package var reactor: Reactor?
    /// The live host's control server; nil in virtual time.
    package var server: ControlServer?
    /// What tools may ask (`alps netstat` and so on).
    package let queries = QueryRegistry()
    /// Turns ended since the start.
    package private(set) var turns: UInt64 = 0

    private var isDown = false

    /// The stack's name.
    package var name: String { configuration.name }

    package init(_ configuration: KernelConfiguration) {
        self.configuration = configuration
        clock = configuration.virtualClock ?? KernelClock(isVirtual: false)
        random = RandomSource(seed: configuration.seed)
        log = KernelLog(name: configuration.name)
        mbufs = MbufPool(limitBytes: configuration.mbufLimit)
        callouts = CalloutWheel(clock: clock)
        fibers = FiberScheduler()
        tunables = TunableRegistry()
        counters = CounterRegistry()
        trace = TraceRing()
        plugins = PluginRegistry()
        protocols = ProtocolSwitch()
        connections = ConnectionTable()
        interfaces = InterfaceTable()
        routes = RouteTable()
        sockets = SocketLayer()
        zones = ZoneMemory()
        netlink = Netlink()
        linkSockets = LinkSockets()

        plugins.attach(self)
        zones.attach(self)
        mbufs.attach(self)
        random.attach(self)
        log.attach(self)
        tunables.attach(self)
        counters.attach(self)
        trace.attach(self)
        callouts.attach(self)
        linkSockets.attach(self)
        fibers.attach(self)
        routes.attach(self)
        interfaces.attach(self)
        connections.attach(self)
        protocols.attach(self)
        sockets.attach(self)
        netlink.attach(self)
    }

    /// What remains after the events of a turn have been handed over: timers, packets queued on lo0 and links, the
    /// plugins' end of batch, runnable fibers, wake-ups of readers. What these cause in turn is queued for the next.
    package func endTurn() {
        turns &+= 1
        callouts.runExpired()
        interfaces.drainQueues()
        plugins.runBatchEnds()
        fibers.runReady()
        sockets.flush()
        plugins.reap()
    }

    /// Whether the next turn has something to do at once.
    package var hasPendingWork: Bool {
        interfaces.hasQueuedPackets || fibers.hasReady || sockets.hasDirty || plugins.hasPendingBatchEnds
    }

    /// When the next timer is due, ns on the kernel's clock; .max if none is armed.
    package var nextDeadline: UInt64 { callouts.nextDeadline }

    /// Ends everything in order: clients, sockets, plugins, interfaces. Afterwards no memory is in use, and the kernel
    /// can do nothing any more: its parts let go of it, so that it is freed when its user does.
    ///
    /// The parts hold their kernel strongly while it works, since a weak or unowned reference costs more at each use.
    package func shutdown() {
        guard !isDown else { return }
        isDown = true
        server?.stop()
        sockets.shutdown()
        endTurn()
        plugins.shutdown()
        interfaces.shutdown()
        queries.removeAll()
        netlink.detach()
        linkSockets.detach()
        sockets.detach()
        interfaces.detach()
        routes.detach()
        connections.detach()
        protocols.detach()
        plugins.detach()
    }
}

package import Kernel
import PluginAPI

/// Several kernels under one virtual clock and one seed, joined by emulated links. Nothing sleeps: time jumps to the next
/// event. The same seed gives the same run.
package final class VirtualNetwork {
    package let clock = KernelClock(isVirtual: true)
    package let seed: UInt64
    package private(set) var kernels: [Kernel] = []
    /// Turns run so far: a bound against event storms.
    package private(set) var turns: UInt64 = 0
    private var links: UInt64 = 0
    private let search: PluginSearchPath

    private let images: PluginImages?

    /// `plugins`: directory of the plugin libraries; by default they are looked for beside the program. `images`: where
    /// they are kept mapped for the networks that follow.
    package init(seed: UInt64 = 1, plugins: String? = nil, images: PluginImages? = nil) {
        self.seed = seed
        self.images = images
        search = plugins.map { PluginSearchPath(directory: $0) } ?? PluginSearchPath()
    }

    package static let protocols = ["arp", "ipv4", "icmp", "udp", "tcp"]

    /// A kernel with lo0 and plugins.
    @discardableResult
    package func addKernel(_ name: String, plugins: [String] = VirtualNetwork.protocols) throws -> Kernel {
        let kernel = Kernel(
            KernelConfiguration(
                name: name, virtualClock: clock, seed: seed &* 1000 &+ UInt64(kernels.count), images: images))
        try kernel.interfaces.addLoopback()
        for plugin in plugins { try kernel.plugins.load(path: plugin.contains("/") ? plugin : search.find(plugin)) }
        kernels.append(kernel)
        return kernel
    }

    /// Joins two kernels by a link with an interface at each end. Addresses are "A/LENGTH". `spec` is the way from `a`
    /// to `b`, `back` the other one, by default the same; each gives its sender's interface its MTU.
    @discardableResult
    package func link(
        _ a: Kernel, _ addressA: String, _ b: Kernel, _ addressB: String, _ spec: LinkSpec = LinkSpec(),
        back: LinkSpec? = nil
    ) throws -> (LinkEnd, LinkEnd) {
        links += 1
        var spec = spec
        spec.seed = spec.seed &+ seed &* 7919
        var back = back ?? spec
        back.seed = spec.seed
        let (endA, endB) = LinkEnd.pair(a, b, spec: spec, back: back, salt: links)
        for (kernel, end, address, spec) in [(a, endA, addressA, spec), (b, endB, addressB, back)] {
            let number = UInt8(truncatingIfNeeded: kernels.firstIndex { $0 === kernel } ?? 0)
            let interface = try kernel.interfaces.add(
                name: "link\(links)", device: end, hardware: HardwareAddress((2, 0, 0, UInt8(links), 0, number + 1)),
                mtu: spec.mtu == 0 ? 1500 : spec.mtu)
            guard let prefix = NetworkAddress.Prefix(address) else {
                throw KernelError(Int32(ALPS_EINVAL), "'\(address)' is not an address with a prefix length")
            }
            try kernel.interfaces.addAddress(interface, prefix.address, prefixLength: prefix.length)
        }
        return (endA, endB)
    }

    /// One turn of every kernel that has something to do now; if none has, time jumps to the next timer, but not past
    /// `limit`. False if nothing is left to happen before `limit`.
    private func step(_ limit: UInt64) -> Bool {
        if kernels.contains(where: { $0.hasPendingWork || $0.nextDeadline <= clock.now }) {
            turns &+= 1
            for kernel in kernels { kernel.endTurn() }
            return true
        }
        let next = kernels.map(\.nextDeadline).min() ?? .max
        guard next <= limit else {
            if limit != .max { clock.advance(to: limit) }
            return false
        }
        clock.advance(to: next)
        return true
    }

    /// Runs for `duration` ns of virtual time.
    package func run(for duration: UInt64) {
        let limit = clock.now &+ duration
        while step(limit) {}
    }

    /// Runs until `condition` holds, at most `limit` ns. True if it held.
    @discardableResult
    package func run(limit: UInt64 = 600_000_000_000, until condition: () -> Bool) -> Bool {
        let end = clock.now &+ limit
        while !condition() {
            if !step(end) { return condition() }
        }
        return true
    }

    /// Ends all kernels; afterwards no mbuf is in use.
    package func shutdown() {
        for kernel in kernels { kernel.shutdown() }
    }
}

import Glibc
import PluginAPI

// RTM_*NEIGH: neighbours (linux/neighbour.h), which are the business of the plugin that resolves link addresses.

/// NDA_*.
private enum Attribute {
    static let destination: UInt16 = 1
    static let hardware: UInt16 = 2
    static let cacheInformation: UInt16 = 3
    static let probes: UInt16 = 4
    static let index: UInt16 = 8
    static let master: UInt16 = 9
    static let origin: UInt16 = 12
}

/// NUD_*.
private enum State {
    static let incomplete: UInt16 = 0x01
    static let reachable: UInt16 = 0x02
    static let failed: UInt16 = 0x20
    static let noARP: UInt16 = 0x40
    static let permanent: UInt16 = 0x80
}

/// NTF_PROXY.
private let proxyFlag: UInt8 = 8

extension Kernel {
    /// The plugin that resolves IPv4 neighbours.
    func neighborOperations() -> (ops: UnsafePointer<alps_neighbor_ops>, instance: UnsafeMutableRawPointer)? {
        guard let cell = plugins.providedCell("alps.neighbor/1:\(ALPS_AF_INET)"), let ops = cell.pointee.ops,
            let instance = cell.pointee.`self`
        else { return nil }
        return (ops.assumingMemoryBound(to: alps_neighbor_ops.self), instance)
    }

    /// All neighbours.
    func allNeighbors() -> [alps_neighbor] {
        guard let (ops, instance) = neighborOperations() else { return [] }
        var all: [alps_neighbor] = []
        var entries = [alps_neighbor](repeating: alps_neighbor(), count: 256)
        while true {
            let count = Int(ops.pointee.list(instance, UInt32(all.count), &entries, UInt32(entries.count)))
            all += entries.prefix(count)
            if count < entries.count { return all }
        }
    }
}

extension alps_neighbor {
    fileprivate func has(_ flag: UInt32) -> Bool { flags & flag != 0 }

    fileprivate var state: UInt16 {
        if has(ALPS_NEIGHBOR_STATIC) { return State.permanent }
        if has(ALPS_NEIGHBOR_RESOLVED) { return State.reachable }
        return has(ALPS_NEIGHBOR_FAILED) ? State.failed : State.incomplete
    }

    fileprivate var hardwareBytes: [UInt8] { withUnsafeBytes(of: hardware) { Array($0.prefix(6)) } }
}

extension Netlink {
    /// struct ndmsg.
    private static let fixedSize = 12

    /// What follows the header of RTM_NEWNEIGH.
    static func write(_ neighbor: alps_neighbor, to writer: inout NetlinkWriter, asProxy: Bool = false) {
        writer.append([UInt8(AF_INET), 0, 0, 0])
        writer.append(neighbor.ifindex)
        writer.append(asProxy ? UInt16(0) : neighbor.state)
        // RTN_UNICAST.
        writer.append([asProxy ? proxyFlag : 0, 1])
        writer.attribute(Attribute.destination, neighbor.addr.ipv4)
        guard !asProxy else { return }
        if neighbor.has(ALPS_NEIGHBOR_STATIC | ALPS_NEIGHBOR_RESOLVED) {
            writer.attribute(Attribute.hardware, neighbor.hardwareBytes)
        }
        writer.attribute(Attribute.probes, UInt32(0))
        // struct nda_cacheinfo: confirmed, used, updated, reference count. The stack keeps none of the times.
        writer.attribute(Attribute.cacheInformation, [UInt8](repeating: 0, count: 16))
    }

    func dumpNeighbors(_ request: NetlinkRequest) -> NetlinkSource {
        do {
            let hasFixed = request.payload.count >= Self.fixedSize
            let flags: UInt8 = hasFixed ? request.payload.number(at: 10) : 0
            var index: UInt32 = 0
            if request.socket.options.isStrict {
                try request.require(Self.fixedSize)
                func word(_ offset: Int) -> UInt32 { request.payload.number(at: offset) }
                guard word(4) == 0, request.payload.number(at: 8, as: UInt16.self) == 0, flags & ~proxyFlag == 0,
                    request.payload.number(at: 11, as: UInt8.self) == 0
                else { throw NetlinkError(EINVAL, "Invalid values in header for neighbor dump request") }
            }
            if hasFixed {
                let attributes = try NetlinkAttributes(request.payload, after: Self.fixedSize)
                index = try attributes.number(Attribute.index) ?? 0
                // None belongs to another interface.
                if try attributes.number(Attribute.master, as: UInt32.self) ?? 0 != 0 {
                    return NetlinkSource([], isFiltered: true)
                }
                let known: Set<UInt16> = [Attribute.index, Attribute.master]
                guard !request.socket.options.isStrict || attributes.types.allSatisfy(known.contains) else {
                    throw NetlinkError(EINVAL, "Unsupported attribute in neighbor dump request")
                }
            }
            let family = request.payload.first ?? 0
            guard family == AF_UNSPEC || family == AF_INET else { return NetlinkSource([]) }
            let asProxy = flags & proxyFlag != 0
            let wanted = kernel.allNeighbors().filter {
                (index == 0 || $0.ifindex == index) && (!asProxy || $0.has(ALPS_NEIGHBOR_PUBLISHED))
            }
            let messages = wanted.map { neighbor in
                var writer = request.reply(Subject.neighbor.new)
                Self.write(neighbor, to: &writer, asProxy: asProxy)
                return writer.finished()
            }
            return NetlinkSource(messages, isFiltered: index != 0)
        } catch { return NetlinkSource(failing: error as? NetlinkError ?? NetlinkError(EINVAL)) }
    }

    /// Interface and address of a request.
    private func key(_ request: NetlinkRequest) throws -> (Interface, alps_addr, NetlinkAttributes) {
        try request.require(Self.fixedSize)
        let attributes = try NetlinkAttributes(request.payload, after: Self.fixedSize)
        guard request.payload.first == UInt8(AF_INET) else { throw NetlinkError(EAFNOSUPPORT) }
        guard let address = attributes[Attribute.destination] else {
            throw NetlinkError(EINVAL, "Network address not specified")
        }
        guard address.count >= 4 else { throw NetlinkError(EINVAL, "Invalid network address") }
        let index = request.payload.number(at: 4, as: UInt32.self)
        guard index != 0 else { throw NetlinkError(EINVAL, "No device specified") }
        guard let interface = kernel.interfaces.interface(index) else { throw NetlinkError(ENODEV) }
        return (interface, try attributes.address(Attribute.destination) ?? alps_addr(), attributes)
    }

    private func find(_ interface: Interface, _ address: alps_addr) -> alps_neighbor? {
        kernel.allNeighbors().first { $0.ifindex == interface.raw.pointee.index && $0.addr.word == address.word }
    }

    func getNeighbor(_ request: NetlinkRequest) throws -> NetlinkOutcome {
        let (interface, address, _) = try key(request)
        let asProxy = request.payload.number(at: 10, as: UInt8.self) & proxyFlag != 0
        guard let found = find(interface, address), !asProxy || found.has(ALPS_NEIGHBOR_PUBLISHED) else {
            throw NetlinkError(ENOENT, asProxy ? "Proxy neighbour entry not found" : "Neighbour entry not found")
        }
        var writer = request.reply(Subject.neighbor.new)
        Self.write(found, to: &writer, asProxy: asProxy)
        request.socket.deliver(writer.finished())
        return .done
    }

    func addNeighbor(_ request: NetlinkRequest) throws {
        let (interface, address, attributes) = try key(request)
        guard let (ops, instance) = kernel.neighborOperations() else {
            throw NetlinkError(EAFNOSUPPORT, "no plugin resolves link addresses")
        }
        guard let own = interface.hardware else { throw NetlinkError(EINVAL, "\(interface.name) has no link addresses") }
        let known: Set<UInt16> = [Attribute.destination, Attribute.hardware, Attribute.origin, Attribute.index]
        guard attributes.types.allSatisfy(known.contains) else { throw NetlinkError(EOPNOTSUPP) }
        let isProxy = request.payload.number(at: 10, as: UInt8.self) & proxyFlag != 0
        let state: UInt16 = request.payload.number(at: 8)
        let old = find(interface, address)
        if old != nil {
            guard !request.has(NetlinkHeader.exclusive) else { throw NetlinkError(EEXIST) }
            guard request.has(NetlinkHeader.replace) || isProxy else { throw NetlinkError(EEXIST) }
        } else if !request.has(NetlinkHeader.create) {
            throw NetlinkError(ENOENT)
        }
        guard isProxy || state & (State.permanent | State.noARP) != 0 else {
            throw NetlinkError(EOPNOTSUPP, "what is entered by hand is permanent")
        }
        var neighbor = alps_neighbor()
        neighbor.size = UInt32(MemoryLayout<alps_neighbor>.size)
        neighbor.family = UInt16(ALPS_AF_INET)
        neighbor.ifindex = interface.raw.pointee.index
        neighbor.addr = address
        neighbor.hardware_length = 6
        neighbor.flags = ALPS_NEIGHBOR_STATIC | (isProxy ? ALPS_NEIGHBOR_PUBLISHED : 0)
        // For whom the stack answers it answers with its own address.
        var hardware = withUnsafeBytes(of: own.bytes) { Array($0.prefix(6)) }
        if let given = attributes[Attribute.hardware] {
            guard given.count == 6 else { throw NetlinkError(EINVAL, "Invalid link address") }
            hardware = Array(given)
        } else if !isProxy {
            guard let old, old.has(ALPS_NEIGHBOR_STATIC | ALPS_NEIGHBOR_RESOLVED) else {
                throw NetlinkError(EINVAL, "No link layer address given")
            }
            hardware = old.hardwareBytes
        }
        withUnsafeMutableBytes(of: &neighbor.hardware) { $0.copyBytes(from: hardware) }
        let status = ops.pointee.add(instance, &neighbor)
        guard status == 0 else { throw NetlinkError(status) }
        neighborsChanged()
    }

    func deleteNeighbor(_ request: NetlinkRequest) throws {
        var (interface, address, _) = try key(request)
        guard let (ops, instance) = kernel.neighborOperations() else { throw NetlinkError(ENOENT) }
        let isProxy = request.payload.number(at: 10, as: UInt8.self) & proxyFlag != 0
        guard let found = find(interface, address), !isProxy || found.has(ALPS_NEIGHBOR_PUBLISHED) else {
            throw NetlinkError(ENOENT)
        }
        let status = ops.pointee.remove(instance, interface.raw.pointee.index, &address)
        guard status == 0 else { throw NetlinkError(status) }
        neighborsChanged()
    }
}

/// Finds out what has changed among the neighbours. Their plugin does not tell, so it looks, once a second, while anybody
/// listens.
final class NeighborWatch {
    private unowned let kernel: Kernel
    private let tell: (alps_neighbor, Bool) -> Void
    private var timer: HostTimer?
    private var seen: [Key: alps_neighbor] = [:]
    private static let interval: UInt64 = 1_000_000_000

    private struct Key: Hashable {
        let ifindex: UInt32
        let address: UInt32
    }

    init(_ kernel: Kernel, tell: @escaping (alps_neighbor, Bool) -> Void) {
        self.kernel = kernel
        self.tell = tell
    }

    var isWanted = false {
        didSet {
            guard isWanted != oldValue else { return }
            guard isWanted else { return stop() }
            seen = snapshot()
            if timer == nil { timer = HostTimer(kernel) { [unowned self] in self.tick() } }
            timer?.arm(after: Self.interval)
        }
    }

    func stop() {
        timer?.cancel()
        timer = nil
        seen.removeAll()
    }

    private func tick() {
        look()
        if isWanted { timer?.arm(after: Self.interval) }
    }

    private func snapshot() -> [Key: alps_neighbor] {
        Dictionary(
            kernel.allNeighbors().map { (Key(ifindex: $0.ifindex, address: $0.addr.word), $0) }, uniquingKeysWith: { $1 })
    }

    /// Tells what is different from the last look.
    func look() {
        guard isWanted else { return }
        let now = snapshot()
        func order(_ a: Key, _ b: Key) -> Bool { (a.ifindex, a.address) < (b.ifindex, b.address) }
        for key in seen.keys.sorted(by: order) where now[key] == nil {
            if let gone = seen[key] { tell(gone, false) }
        }
        for key in now.keys.sorted(by: order) {
            guard let entry = now[key] else { continue }
            if let old = seen[key], old.state == entry.state, old.hardwareBytes == entry.hardwareBytes { continue }
            tell(entry, true)
        }
        seen = now
    }
}

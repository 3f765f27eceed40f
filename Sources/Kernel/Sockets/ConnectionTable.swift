package import PluginAPI

/// The connection table: every full, embryonic and time-wait connection, every listener and bound socket of every
/// transport. Blind to families; entries live in the transports' memory and are linked in intrusively.
///
/// Entries with a remote end are hashed by the whole tuple, the others by protocol and local port. The hash is keyed
/// with a random number, so that nobody outside can aim at one chain.
package final class ConnectionTable {
    private var kernel: Kernel!
    private var opsTable: UnsafeMutablePointer<alps_pcb_ops>?
    private typealias Bucket = UnsafeMutablePointer<alps_conn>?
    private var buckets: UnsafeMutablePointer<UnsafeMutablePointer<alps_conn>?>
    private var mask: Int
    /// Listeners and bound sockets, by protocol and local port.
    private let bound: UnsafeMutablePointer<UnsafeMutablePointer<alps_conn>?>
    private static let boundBuckets = 4096
    private var key: UInt64 = 0
    /// Local ports in use: entries by (protocol, port).
    private var ports: [UInt32: PortUse] = [:]
    package private(set) var count = 0
    package private(set) var peak = 0
    package private(set) var refused = 0
    private var firstEphemeral: Tunable?
    private var lastEphemeral: Tunable?

    /// How many entries hold a local port, and how many of them keep others from an ephemeral choice.
    private struct PortUse {
        var entries = 0
    }

    private static let inTable: UInt32 = 1
    private static let isHashed: UInt32 = 2

    package init() {
        mask = 1023
        buckets = .allocate(capacity: mask + 1)
        buckets.initialize(repeating: nil, count: mask + 1)
        bound = .allocate(capacity: Self.boundBuckets)
        bound.initialize(repeating: nil, count: Self.boundBuckets)
    }

    deinit {
        buckets.deallocate()
        bound.deallocate()
        opsTable?.deallocate()
    }

    /// See `Kernel.shutdown`.
    func detach() { kernel = nil }

    func attach(_ kernel: Kernel) {
        self.kernel = kernel
        key = kernel.random.next() | 1
        let table = UnsafeMutablePointer<alps_pcb_ops>.allocate(capacity: 1)
        table.initialize(
            to: alps_pcb_ops(
                size: UInt32(MemoryLayout<alps_pcb_ops>.size), reserved: 0, bind: pcbBind, insert: pcbInsert,
                remove: pcbRemove, lookup: pcbLookup, match_all: pcbMatchAll))
        opsTable = table
        kernel.plugins.publish("alps.pcb/1", ops: UnsafeRawPointer(table), scope: .perInstance)
        firstEphemeral = kernel.tunables.add(
            "net.inet.ip.portrange.first", "lowest ephemeral port", kind: .integer, default: 32768, range: 1024...65535)
        lastEphemeral = kernel.tunables.add(
            "net.inet.ip.portrange.last", "highest ephemeral port", kind: .integer, default: 60999, range: 1024...65535)
    }

    /// Every entry, for tools.
    package func forEach(_ body: (UnsafeMutablePointer<alps_conn>) -> Void) {
        let slices = slices
        for slice in 0..<slices.count { forEach(in: slice, of: slices, body) }
    }

    /// A division of the table for looking at it in pieces. The table may grow in between: to a multiple of its size, so the
    /// entries of one slice stay in it, and each is seen once.
    package struct Slices {
        fileprivate let buckets: Int
        package var count: Int { buckets + ConnectionTable.boundBuckets }
    }

    package var slices: Slices { Slices(buckets: mask + 1) }

    /// The entries of one slice of `slices.count`.
    package func forEach(in slice: Int, of slices: Slices, _ body: (UnsafeMutablePointer<alps_conn>) -> Void) {
        func walk(_ first: UnsafeMutablePointer<alps_conn>?) {
            var entry = first
            while let current = entry {
                entry = current.pointee.hash_next
                body(current)
            }
        }
        if slice >= slices.buckets {
            walk(bound[slice - slices.buckets])
        } else {
            for index in stride(from: slice, through: mask, by: slices.buckets) { walk(buckets[index]) }
        }
    }

    // MARK: Hashing and comparing

    @inline(__always)
    private static func words(_ address: alps_addr) -> (UInt64, UInt64) {
        unsafeBitCast(address, to: (UInt64, UInt64).self)
    }

    @inline(__always)
    private static func equal(_ a: alps_addr, _ b: alps_addr) -> Bool {
        let (a0, a1) = words(a)
        let (b0, b1) = words(b)
        return (a0 ^ b0) | (a1 ^ b1) == 0
    }

    @inline(__always)
    private static func isZero(_ a: alps_addr) -> Bool {
        let (a0, a1) = words(a)
        return a0 | a1 == 0
    }

    @inline(__always)
    private func hash(
        _ family: UInt16, _ protocolNumber: UInt8, _ local: alps_addr, _ localPort: UInt16, _ remote: alps_addr,
        _ remotePort: UInt16
    ) -> UInt32 {
        func mix(_ state: UInt64, _ value: UInt64) -> UInt64 {
            let product = (state ^ value).multipliedFullWidth(by: 0x9e37_79b9_7f4a_7c15)
            return product.high ^ product.low
        }
        let (l0, l1) = Self.words(local)
        let (r0, r1) = Self.words(remote)
        let numbers =
            UInt64(localPort) << 48 | UInt64(remotePort) << 32 | UInt64(family) << 8 | UInt64(protocolNumber)
        var state = mix(key, l0 ^ (l1 &* 0x2545_f491_4f6c_dd1d))
        state = mix(state, r0 ^ (r1 &* 0x2545_f491_4f6c_dd1d) ^ key)
        state = mix(state, numbers)
        return UInt32(truncatingIfNeeded: state ^ (state >> 32))
    }

    @inline(__always)
    private static func boundSlot(_ protocolNumber: UInt8, _ port: UInt16) -> Int {
        (Int(port) &+ Int(protocolNumber) &* 31) & (boundBuckets - 1)
    }

    // MARK: Lookup

    /// The best entry for a packet with this tuple as its receiver sees it; `ifindex` 0 matches any binding.
    package func lookup(
        _ family: UInt16, _ protocolNumber: UInt8, _ local: alps_addr, _ localPort: UInt16, _ remote: alps_addr,
        _ remotePort: UInt16, _ ifindex: UInt32
    ) -> UnsafeMutablePointer<alps_conn>? {
        let hash = hash(family, protocolNumber, local, localPort, remote, remotePort)
        var entry = buckets[Int(hash) & mask]
        while let current = entry {
            if current.pointee.hash == hash, current.pointee.local_port == localPort,
                current.pointee.remote_port == remotePort, current.pointee.protocol == protocolNumber,
                current.pointee.family == family, Self.equal(current.pointee.local, local),
                Self.equal(current.pointee.remote, remote)
            {
                return current
            }
            entry = current.pointee.hash_next
        }
        return lookupBound(family, protocolNumber, local, localPort, hash, ifindex)
    }

    private func lookupBound(
        _ family: UInt16, _ protocolNumber: UInt8, _ local: alps_addr, _ localPort: UInt16, _ hash: UInt32,
        _ ifindex: UInt32
    ) -> UnsafeMutablePointer<alps_conn>? {
        var best: UnsafeMutablePointer<alps_conn>?
        var bestScore = -1
        var equals: UInt32 = 0
        // A new draw for each member, from the flow: with one and the same number they would not be independent.
        var draw = hash
        var entry = bound[Self.boundSlot(protocolNumber, localPort)]
        while let current = entry {
            entry = current.pointee.hash_next
            guard current.pointee.local_port == localPort, current.pointee.protocol == protocolNumber,
                current.pointee.family == family,
                current.pointee.bound_ifindex == 0 || ifindex == 0 || current.pointee.bound_ifindex == ifindex
            else { continue }
            var score = current.pointee.bound_ifindex == 0 ? 0 : 1
            if !Self.isZero(current.pointee.local) {
                guard Self.equal(current.pointee.local, local) else { continue }
                score += 4
            }
            if current.pointee.kind == UInt8(ALPS_CONN_LISTENER) { score += 2 }
            if score > bestScore {
                bestScore = score
                best = current
                equals = 1
            } else if score == bestScore {
                // A group that shares the port (SO_REUSEPORT): the flow's hash chooses, each member equally likely.
                equals += 1
                draw = (draw ^ draw >> 15) &* 0x2c1b_3c6d &+ 0x9e37_79b9
                if (draw >> 4) % equals == 0 { best = current }
            }
        }
        return best
    }

    // MARK: Changes

    /// Reserves a local port and inserts as BOUND.
    package func bind(_ conn: UnsafeMutablePointer<alps_conn>, _ owner: PluginInstance) -> Int32 {
        guard conn.pointee.flags & Self.inTable == 0 else { return Int32(ALPS_EINVAL) }
        conn.pointee.kind = UInt8(ALPS_CONN_BOUND)
        if conn.pointee.local_port == 0 {
            guard let port = ephemeralPort(where: { !isPortUsed(conn.pointee.protocol, $0) }) else {
                refused += 1
                return Int32(ALPS_EADDRINUSE)
            }
            conn.pointee.local_port = port
        } else if conflicts(conn, asListener: false) {
            refused += 1
            return Int32(ALPS_EADDRINUSE)
        }
        link(conn, owner)
        return 0
    }

    package func insert(_ conn: UnsafeMutablePointer<alps_conn>, _ owner: PluginInstance) -> Int32 {
        guard conn.pointee.flags & Self.inTable == 0 else { return Int32(ALPS_EINVAL) }
        switch UInt32(conn.pointee.kind) {
        case UInt32(ALPS_CONN_FULL), UInt32(ALPS_CONN_EMBRYONIC), UInt32(ALPS_CONN_TIMEWAIT):
            if conn.pointee.local_port == 0 {
                guard let port = ephemeralPort(where: { exact(conn, $0) == nil && !isBound(conn, $0) }) else {
                    refused += 1
                    return Int32(ALPS_EADDRNOTAVAIL)
                }
                conn.pointee.local_port = port
            } else if exact(conn, conn.pointee.local_port) != nil {
                refused += 1
                return Int32(ALPS_EADDRINUSE)
            }
        case UInt32(ALPS_CONN_LISTENER):
            if conflicts(conn, asListener: true) {
                refused += 1
                return Int32(ALPS_EADDRINUSE)
            }
        case UInt32(ALPS_CONN_BOUND): break
        default: return Int32(ALPS_EINVAL)
        }
        link(conn, owner)
        return 0
    }

    package func remove(_ conn: UnsafeMutablePointer<alps_conn>) {
        guard conn.pointee.flags & Self.inTable != 0 else { return }
        if let next = conn.pointee.hash_next { next.pointee.hash_prev = conn.pointee.hash_prev }
        if let previous = conn.pointee.hash_prev {
            previous.pointee.hash_next = conn.pointee.hash_next
        } else if conn.pointee.flags & Self.isHashed != 0 {
            buckets[Int(conn.pointee.hash) & mask] = conn.pointee.hash_next
        } else {
            bound[Self.boundSlot(conn.pointee.protocol, conn.pointee.local_port)] = conn.pointee.hash_next
        }
        conn.pointee.hash_next = nil
        conn.pointee.hash_prev = nil
        conn.pointee.flags &= ~(Self.inTable | Self.isHashed)
        let key = Self.portKey(conn.pointee.protocol, conn.pointee.local_port)
        if let use = ports[key], use.entries > 1 { ports[key]!.entries -= 1 } else { ports[key] = nil }
        count -= 1
        if let owner = conn.pointee.owner {
            Unmanaged<PluginInstance>.fromOpaque(owner)._withUnsafeGuaranteedRef { $0.liveEntries -= 1 }
        }
    }

    private func link(_ conn: UnsafeMutablePointer<alps_conn>, _ owner: PluginInstance) {
        let isHashed = conn.pointee.kind <= UInt8(ALPS_CONN_TIMEWAIT)
        let head: UnsafeMutablePointer<UnsafeMutablePointer<alps_conn>?>
        if isHashed {
            if count > 2 * mask { grow() }
            conn.pointee.hash = hash(
                conn.pointee.family, conn.pointee.protocol, conn.pointee.local, conn.pointee.local_port,
                conn.pointee.remote, conn.pointee.remote_port)
            head = buckets + (Int(conn.pointee.hash) & mask)
        } else {
            head = bound + Self.boundSlot(conn.pointee.protocol, conn.pointee.local_port)
        }
        push(conn, head)
        conn.pointee.flags |= Self.inTable | (isHashed ? Self.isHashed : 0)
        conn.pointee.owner = Unmanaged.passUnretained(owner).toOpaque()
        owner.liveEntries += 1
        ports[Self.portKey(conn.pointee.protocol, conn.pointee.local_port), default: PortUse()].entries += 1
        count += 1
        peak = max(peak, count)
    }

    private func push(
        _ conn: UnsafeMutablePointer<alps_conn>, _ head: UnsafeMutablePointer<UnsafeMutablePointer<alps_conn>?>
    ) {
        conn.pointee.hash_prev = nil
        conn.pointee.hash_next = head.pointee
        head.pointee?.pointee.hash_prev = conn
        head.pointee = conn
    }

    private func grow() {
        let old = buckets
        let oldMask = mask
        mask = 4 * (oldMask + 1) - 1
        buckets = .allocate(capacity: mask + 1)
        buckets.initialize(repeating: nil, count: mask + 1)
        for index in 0...oldMask {
            var entry = old[index]
            while let current = entry {
                entry = current.pointee.hash_next
                push(current, buckets + (Int(current.pointee.hash) & mask))
            }
        }
        old.deallocate()
    }

    // MARK: Ports

    private static func portKey(_ protocolNumber: UInt8, _ port: UInt16) -> UInt32 {
        UInt32(protocolNumber) << 16 | UInt32(port)
    }

    private func isPortUsed(_ protocolNumber: UInt8, _ port: UInt16) -> Bool {
        ports[Self.portKey(protocolNumber, port)] != nil
    }

    /// An entry with the same tuple, were `conn` to have this local port.
    private func exact(_ conn: UnsafeMutablePointer<alps_conn>, _ port: UInt16) -> UnsafeMutablePointer<alps_conn>? {
        let hash = hash(
            conn.pointee.family, conn.pointee.protocol, conn.pointee.local, port, conn.pointee.remote,
            conn.pointee.remote_port)
        var entry = buckets[Int(hash) & mask]
        while let current = entry {
            if current.pointee.hash == hash, current.pointee.local_port == port,
                current.pointee.remote_port == conn.pointee.remote_port,
                current.pointee.protocol == conn.pointee.protocol, current.pointee.family == conn.pointee.family,
                Self.equal(current.pointee.local, conn.pointee.local),
                Self.equal(current.pointee.remote, conn.pointee.remote)
            {
                return current
            }
            entry = current.pointee.hash_next
        }
        return nil
    }

    /// Whether somebody listens on or is bound to `port`: an ephemeral choice keeps clear of it.
    private func isBound(_ conn: UnsafeMutablePointer<alps_conn>, _ port: UInt16) -> Bool {
        var entry = bound[Self.boundSlot(conn.pointee.protocol, port)]
        while let current = entry {
            if current.pointee.local_port == port, current.pointee.protocol == conn.pointee.protocol,
                current.pointee.family == conn.pointee.family
            {
                return true
            }
            entry = current.pointee.hash_next
        }
        return false
    }

    /// A port at random, then the next ones in turn (RFC 6056, section 3.3.1).
    private func ephemeralPort(where isFree: (UInt16) -> Bool) -> UInt16? {
        let first = UInt64(firstEphemeral?.value ?? 32768)
        let last = max(UInt64(lastEphemeral?.value ?? 60999), first)
        let range = last - first + 1
        let start = kernel.random.next() % range
        for step in 0..<range {
            let port = UInt16(first + (start + step) % range)
            if isFree(port) { return port }
        }
        return nil
    }

    /// Linux's rules: two sockets may share a local port if their addresses differ (and neither is a wildcard), if both
    /// have SO_REUSEPORT and one owner, or if both have SO_REUSEADDR and neither listens.
    private func conflicts(_ conn: UnsafeMutablePointer<alps_conn>, asListener: Bool) -> Bool {
        let mine = conn.pointee.socket?.pointee.options ?? 0
        func collides(_ other: UnsafeMutablePointer<alps_conn>) -> Bool {
            guard other != conn, other.pointee.local_port == conn.pointee.local_port,
                other.pointee.protocol == conn.pointee.protocol, other.pointee.family == conn.pointee.family
            else { return false }
            if conn.pointee.bound_ifindex != 0, other.pointee.bound_ifindex != 0,
                conn.pointee.bound_ifindex != other.pointee.bound_ifindex
            {
                return false
            }
            guard
                Self.isZero(conn.pointee.local) || Self.isZero(other.pointee.local)
                    || Self.equal(conn.pointee.local, other.pointee.local)
            else { return false }
            let theirs = other.pointee.socket?.pointee.options ?? UInt32(ALPS_SO_REUSEADDR)
            if mine & theirs & UInt32(ALPS_SO_REUSEPORT) != 0,
                other.pointee.socket?.pointee.uid == conn.pointee.socket?.pointee.uid
            {
                return false
            }
            let isDatagram = conn.pointee.socket?.pointee.type != UInt16(ALPS_SOCK_STREAM)
            let otherListens = other.pointee.kind == UInt8(ALPS_CONN_LISTENER)
            if mine & theirs & UInt32(ALPS_SO_REUSEADDR) != 0, isDatagram || !(otherListens || asListener) { return false }
            // A listener does not mind its own connections, nor bound sockets that may share by REUSEADDR.
            if asListener, !otherListens, other.pointee.kind != UInt8(ALPS_CONN_BOUND) { return false }
            if asListener, other.pointee.kind == UInt8(ALPS_CONN_BOUND), mine & theirs & UInt32(ALPS_SO_REUSEADDR) != 0 {
                return false
            }
            return true
        }
        var entry = bound[Self.boundSlot(conn.pointee.protocol, conn.pointee.local_port)]
        while let current = entry {
            if collides(current) { return true }
            entry = current.pointee.hash_next
        }
        guard !asListener, isPortUsed(conn.pointee.protocol, conn.pointee.local_port),
            mine & UInt32(ALPS_SO_REUSEADDR) == 0
        else { return false }
        // Without SO_REUSEADDR connections and TIME-WAIT entries of the port count too. Rare, so a walk will do.
        for index in 0...mask {
            var entry = buckets[index]
            while let current = entry {
                if collides(current) { return true }
                entry = current.pointee.hash_next
            }
        }
        return false
    }

    // MARK: Groups

    package func matchAll(
        _ family: UInt16, _ protocolNumber: UInt8, _ local: alps_addr, _ localPort: UInt16, _ remote: alps_addr,
        _ remotePort: UInt16, _ ifindex: UInt32, _ context: UnsafeMutableRawPointer?,
        _ each: @convention(c) (UnsafeMutableRawPointer?, UnsafeMutablePointer<alps_conn>) -> Void
    ) {
        var entry = bound[Self.boundSlot(protocolNumber, localPort)]
        while let current = entry {
            entry = current.pointee.hash_next
            guard current.pointee.local_port == localPort, current.pointee.protocol == protocolNumber,
                current.pointee.family == family,
                current.pointee.bound_ifindex == 0 || current.pointee.bound_ifindex == ifindex,
                Self.isZero(current.pointee.local) || Self.equal(current.pointee.local, local)
            else { continue }
            each(context, current)
        }
        // Connected sockets hear their peer only. Their local address is a unicast one unless they were bound to the
        // group, so the chains cannot be told from the tuple alone: look for both.
        if let found = lookupExact(family, protocolNumber, local, localPort, remote, remotePort) { each(context, found) }
    }

    private func lookupExact(
        _ family: UInt16, _ protocolNumber: UInt8, _ local: alps_addr, _ localPort: UInt16, _ remote: alps_addr,
        _ remotePort: UInt16
    ) -> UnsafeMutablePointer<alps_conn>? {
        let found = lookup(family, protocolNumber, local, localPort, remote, remotePort, 0)
        return found.flatMap { $0.pointee.flags & Self.isHashed != 0 ? $0 : nil }
    }
}

// MARK: "alps.pcb/1", `self` being the plugin instance

private func pcbBind(_ context: UnsafeMutableRawPointer, _ conn: UnsafeMutablePointer<alps_conn>) -> Int32 {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { instance in
        instance.connections { $0.bind(conn, instance) }
    }
}

private func pcbInsert(_ context: UnsafeMutableRawPointer, _ conn: UnsafeMutablePointer<alps_conn>) -> Int32 {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { instance in
        instance.connections { $0.insert(conn, instance) }
    }
}

private func pcbRemove(_ context: UnsafeMutableRawPointer, _ conn: UnsafeMutablePointer<alps_conn>) {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.connections { $0.remove(conn) } }
}

private func pcbLookup(
    _ context: UnsafeMutableRawPointer, _ family: UInt16, _ protocolNumber: UInt8, _ local: UnsafePointer<alps_addr>,
    _ localPort: UInt16, _ remote: UnsafePointer<alps_addr>, _ remotePort: UInt16, _ ifindex: UInt32
) -> UnsafeMutablePointer<alps_conn>? {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
        $0.connections { $0.lookup(family, protocolNumber, local.pointee, localPort, remote.pointee, remotePort, ifindex) }
    }
}

private func pcbMatchAll(
    _ context: UnsafeMutableRawPointer, _ family: UInt16, _ protocolNumber: UInt8, _ local: UnsafePointer<alps_addr>,
    _ localPort: UInt16, _ remote: UnsafePointer<alps_addr>, _ remotePort: UInt16, _ ifindex: UInt32,
    _ eachContext: UnsafeMutableRawPointer?,
    _ each: @convention(c) (UnsafeMutableRawPointer?, UnsafeMutablePointer<alps_conn>) -> Void
) {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
        $0.connections {
            $0.matchAll(
                family, protocolNumber, local.pointee, localPort, remote.pointee, remotePort, ifindex, eachContext, each)
        }
    }
}

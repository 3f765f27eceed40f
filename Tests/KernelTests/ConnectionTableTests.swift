import Glibc
import Kernel
import Lab
import PluginAPI
import Testing

/// The connection table: entries of every kind, what a packet finds, and who may share a port.
@Suite struct ConnectionTableTests {
    typealias Entry = UnsafeMutablePointer<alps_conn>
    let kernel: Kernel
    let network = VirtualNetwork()
    let owner: PluginInstance
    let table: ConnectionTable

    init() throws {
        kernel = try network.addKernel("a", plugins: ["ipv4"])
        owner = try #require(kernel.plugins.instance("ipv4"))
        table = kernel.connections
    }

    private func address(_ text: String) -> alps_addr { NetworkAddress(text)?.address ?? alps_addr() }

    /// Memory of an entry with its socket, if any; given back by `free`.
    private func make(
        _ kind: UInt32, _ local: String, _ localPort: UInt16, _ remote: String = "0.0.0.0", _ remotePort: UInt16 = 0,
        protocol protocolNumber: UInt8 = 6, options: UInt32? = nil, type: UInt32 = UInt32(ALPS_SOCK_STREAM), uid: UInt32 = 0,
        ifindex: UInt32 = 0
    ) -> Entry {
        let entry = Entry.allocate(capacity: 1)
        entry.initialize(to: alps_conn())
        entry.pointee.family = UInt16(ALPS_AF_INET)
        entry.pointee.protocol = protocolNumber
        entry.pointee.kind = UInt8(kind)
        entry.pointee.local = address(local)
        entry.pointee.local_port = localPort
        entry.pointee.remote = address(remote)
        entry.pointee.remote_port = remotePort
        entry.pointee.bound_ifindex = ifindex
        if let options {
            let socket = UnsafeMutablePointer<alps_socket>.allocate(capacity: 1)
            memset(socket, 0, MemoryLayout<alps_socket>.size)
            socket.pointee.options = options
            socket.pointee.type = UInt16(type)
            socket.pointee.uid = uid
            entry.pointee.socket = socket
        }
        return entry
    }

    private func free(_ entries: Entry...) { free(entries) }

    private func free(_ entries: [Entry]) {
        for entry in entries {
            table.remove(entry)
            entry.pointee.socket?.deallocate()
            entry.deallocate()
        }
    }

    @Test func entriesAreSeenOnceWhileTheTableGrows() {
        func connection(_ port: Int) -> Entry {
            let entry = make(ALPS_CONN_FULL, "10.0.0.1", 80, "10.0.\(port >> 12).2", UInt16(1 + port & 0xfff))
            #expect(insert(entry) == 0)
            return entry
        }
        let first = (0..<3000).map(connection)
        let slices = table.slices
        var seen: [Entry: Int] = [:]
        var more: [Entry] = []
        for slice in 0..<slices.count {
            table.forEach(in: slice, of: slices) { seen[$0, default: 0] += 1 }
            if slice == slices.count / 8 { more = (3000..<60_000).map(connection) }
        }
        #expect(table.slices.count > slices.count)
        #expect(first.allSatisfy { seen[$0] == 1 })
        #expect(seen.values.allSatisfy { $0 == 1 })
        free(first + more)
        finish()
    }

    private func insert(_ entry: Entry) -> Int32 { table.insert(entry, owner) }
    private func bind(_ entry: Entry) -> Int32 { table.bind(entry, owner) }

    private func lookup(
        _ local: String, _ localPort: UInt16, _ remote: String, _ remotePort: UInt16, protocol protocolNumber: UInt8 = 6,
        ifindex: UInt32 = 0
    ) -> Entry? {
        table.lookup(
            UInt16(ALPS_AF_INET), protocolNumber, address(local), localPort, address(remote), remotePort, ifindex)
    }

    private func finish() {
        #expect(table.count == 0)
        #expect(owner.liveEntries == 0)
        network.shutdown()
    }

    // MARK: What a packet finds

    @Test func theBestEntryIsFound() {
        let any = make(UInt32(ALPS_CONN_LISTENER), "0.0.0.0", 80)
        let local = make(UInt32(ALPS_CONN_LISTENER), "10.0.0.1", 80, options: UInt32(ALPS_SO_REUSEPORT))
        any.pointee.socket = local.pointee.socket
        let full = make(UInt32(ALPS_CONN_FULL), "10.0.0.1", 80, "10.0.0.2", 4000)
        #expect(insert(any) == 0)
        #expect(lookup("10.0.0.1", 80, "10.0.0.2", 4000) == any)
        #expect(insert(local) == 0)
        #expect(lookup("10.0.0.1", 80, "10.0.0.2", 4000) == local)
        #expect(lookup("10.0.0.9", 80, "10.0.0.2", 4000) == any)
        #expect(insert(full) == 0)
        #expect(lookup("10.0.0.1", 80, "10.0.0.2", 4000) == full)
        #expect(lookup("10.0.0.1", 80, "10.0.0.2", 4001) == local)
        #expect(lookup("10.0.0.1", 81, "10.0.0.2", 4000) == nil)
        #expect(lookup("10.0.0.1", 80, "10.0.0.2", 4000, protocol: 17) == nil)
        any.pointee.socket = nil
        free(any, full, local)
        finish()
    }

    @Test(arguments: [ALPS_CONN_FULL, ALPS_CONN_EMBRYONIC, ALPS_CONN_TIMEWAIT])
    func entriesWithBothEndsAreUnique(_ kind: UInt32) {
        let first = make(kind, "10.0.0.1", 80, "10.0.0.2", 4000)
        #expect(insert(first) == 0)
        #expect(insert(first) == Int32(ALPS_EINVAL))
        for other in [ALPS_CONN_FULL, ALPS_CONN_EMBRYONIC, ALPS_CONN_TIMEWAIT] {
            let second = make(other, "10.0.0.1", 80, "10.0.0.2", 4000)
            #expect(insert(second) == Int32(ALPS_EADDRINUSE))
            free(second)
        }
        #expect(lookup("10.0.0.1", 80, "10.0.0.2", 4000)?.pointee.kind == UInt8(kind))
        #expect(table.count == 1 && owner.liveEntries == 1)
        table.remove(first)
        table.remove(first)
        #expect(lookup("10.0.0.1", 80, "10.0.0.2", 4000) == nil)
        free(first)
        finish()
    }

    @Test func anEntryMayChangeItsKind() {
        let entry = make(UInt32(ALPS_CONN_BOUND), "10.0.0.1", 80)
        #expect(bind(entry) == 0)
        for kind in [ALPS_CONN_LISTENER, ALPS_CONN_FULL, ALPS_CONN_TIMEWAIT, ALPS_CONN_BOUND] {
            table.remove(entry)
            entry.pointee.kind = UInt8(kind)
            entry.pointee.remote = address("10.0.0.2")
            entry.pointee.remote_port = 9
            #expect(insert(entry) == 0)
            #expect(lookup("10.0.0.1", 80, "10.0.0.2", 9) == entry)
        }
        table.remove(entry)
        entry.pointee.kind = 77
        #expect(insert(entry) == Int32(ALPS_EINVAL))
        free(entry)
        finish()
    }

    @Test func aBoundInterfaceCounts() {
        let one = make(UInt32(ALPS_CONN_BOUND), "0.0.0.0", 53, protocol: 17, options: 0, type: UInt32(ALPS_SOCK_DGRAM), ifindex: 1)
        let two = make(UInt32(ALPS_CONN_BOUND), "0.0.0.0", 53, protocol: 17, options: 0, type: UInt32(ALPS_SOCK_DGRAM), ifindex: 2)
        #expect(bind(one) == 0)
        #expect(bind(two) == 0)
        #expect(lookup("10.0.0.1", 53, "10.0.0.2", 9, protocol: 17, ifindex: 1) == one)
        #expect(lookup("10.0.0.1", 53, "10.0.0.2", 9, protocol: 17, ifindex: 2) == two)
        #expect(lookup("10.0.0.1", 53, "10.0.0.2", 9, protocol: 17, ifindex: 3) == nil)
        free(one, two)
        finish()
    }

    // MARK: Who may share a port

    private static let reuseAddress = UInt32(ALPS_SO_REUSEADDR)
    private static let reusePort = UInt32(ALPS_SO_REUSEPORT)

    /// First and second socket, and whether the second bind succeeds.
    struct Sharing: Sendable, CustomTestStringConvertible {
        var first: (String, UInt32, UInt32), second: (String, UInt32, UInt32), type: UInt32, firstListens: Bool, works: Bool
        var testDescription: String { "\(first) \(second) type \(type) listens \(firstListens)" }
    }

    private static let sharings: [Sharing] = [
        // Nobody asked for it.
        Sharing(first: ("0.0.0.0", 0, 0), second: ("0.0.0.0", 0, 0), type: 1, firstListens: false, works: false),
        Sharing(first: ("10.0.0.1", 0, 0), second: ("0.0.0.0", 0, 0), type: 1, firstListens: false, works: false),
        Sharing(first: ("0.0.0.0", 0, 0), second: ("10.0.0.1", 0, 0), type: 2, firstListens: false, works: false),
        // Different addresses do not meet.
        Sharing(first: ("10.0.0.1", 0, 0), second: ("10.0.0.2", 0, 0), type: 1, firstListens: true, works: true),
        // Both with SO_REUSEADDR: not beside a listener.
        Sharing(first: ("0.0.0.0", reuseAddress, 0), second: ("0.0.0.0", reuseAddress, 0), type: 1, firstListens: false, works: true),
        Sharing(first: ("0.0.0.0", reuseAddress, 0), second: ("0.0.0.0", reuseAddress, 0), type: 1, firstListens: true, works: false),
        Sharing(first: ("0.0.0.0", reuseAddress, 0), second: ("0.0.0.0", 0, 0), type: 1, firstListens: false, works: false),
        Sharing(first: ("0.0.0.0", reuseAddress, 0), second: ("0.0.0.0", reuseAddress, 0), type: 2, firstListens: false, works: true),
        // Both with SO_REUSEPORT, of one user.
        Sharing(first: ("0.0.0.0", reusePort, 5), second: ("0.0.0.0", reusePort, 5), type: 1, firstListens: true, works: true),
        Sharing(first: ("0.0.0.0", reusePort, 5), second: ("0.0.0.0", reusePort, 6), type: 1, firstListens: true, works: false),
        Sharing(first: ("0.0.0.0", reusePort, 5), second: ("0.0.0.0", 0, 5), type: 2, firstListens: false, works: false),
    ]

    @Test(arguments: sharings) func portsAreSharedByLinuxsRules(_ sharing: Sharing) {
        let kind = sharing.firstListens ? UInt32(ALPS_CONN_LISTENER) : UInt32(ALPS_CONN_BOUND)
        let first = make(kind, sharing.first.0, 80, options: sharing.first.1, type: sharing.type, uid: sharing.first.2)
        let second = make(
            UInt32(ALPS_CONN_BOUND), sharing.second.0, 80, options: sharing.second.1, type: sharing.type, uid: sharing.second.2)
        #expect(insert(first) == 0)
        #expect((bind(second) == 0) == sharing.works)
        // Another port, another protocol never meet.
        let elsewhere = make(UInt32(ALPS_CONN_BOUND), "0.0.0.0", 81, options: 0)
        let other = make(UInt32(ALPS_CONN_BOUND), "0.0.0.0", 80, protocol: 17, options: 0, type: 2)
        #expect(bind(elsewhere) == 0)
        #expect(bind(other) == 0)
        free(first, second, elsewhere, other)
        finish()
    }

    @Test func connectionsAndTimeWaitKeepAPortFromThoseWithoutReuse() {
        for kind in [ALPS_CONN_FULL, ALPS_CONN_TIMEWAIT] {
            let old = make(kind, "10.0.0.1", 80, "10.0.0.2", 4000)
            #expect(insert(old) == 0)
            let plain = make(UInt32(ALPS_CONN_BOUND), "0.0.0.0", 80, options: 0)
            let reusing = make(UInt32(ALPS_CONN_BOUND), "0.0.0.0", 80, options: Self.reuseAddress)
            #expect(bind(plain) == Int32(ALPS_EADDRINUSE))
            #expect(bind(reusing) == 0)
            free(old, plain, reusing)
        }
        finish()
    }

    @Test func aGroupSharesTheFlows() {
        let group = (0..<4).map { _ in make(UInt32(ALPS_CONN_LISTENER), "0.0.0.0", 80, options: Self.reusePort) }
        for member in group { #expect(insert(member) == 0) }
        var hits = [Entry: Int]()
        for flow in 0..<4000 {
            guard let found = lookup("10.0.0.1", 80, "10.0.0.2", UInt16(1000 + flow)) else { continue }
            hits[found, default: 0] += 1
            #expect(lookup("10.0.0.1", 80, "10.0.0.2", UInt16(1000 + flow)) == found)
        }
        #expect(hits.count == 4)
        #expect(hits.values.allSatisfy { (800...1200).contains($0) }, "\(hits.values)")
        free(group)
        finish()
    }

    // MARK: Ephemeral ports

    @Test func ephemeralPortsAreRandomAndUniqueUntilTheRangeIsFull() throws {
        try kernel.tunables.set("net.inet.ip.portrange.first", "40000")
        try kernel.tunables.set("net.inet.ip.portrange.last", "40099")
        let entries = (0..<101).map { _ in make(UInt32(ALPS_CONN_BOUND), "0.0.0.0", 0, options: 0) }
        for entry in entries.prefix(100) { #expect(bind(entry) == 0) }
        let ports = entries.prefix(100).map(\.pointee.local_port)
        #expect(Set(ports) == Set(40000...40099))
        #expect(ports != ports.sorted())
        #expect(bind(entries[100]) == Int32(ALPS_EADDRINUSE))
        // For a connection only its own tuple must be free, but ports that somebody is bound to are left alone.
        let connection = make(UInt32(ALPS_CONN_FULL), "10.0.0.1", 0, "10.0.0.2", 80)
        #expect(insert(connection) == Int32(ALPS_EADDRNOTAVAIL))
        table.remove(entries[7])
        #expect(insert(connection) == 0)
        #expect(connection.pointee.local_port == entries[7].pointee.local_port)
        // The same port serves another remote end.
        let second = make(UInt32(ALPS_CONN_FULL), "10.0.0.1", 0, "10.0.0.3", 80)
        #expect(insert(second) == 0)
        #expect(second.pointee.local_port == connection.pointee.local_port)
        free(entries + [connection, second])
        finish()
    }

    // MARK: Size

    @Test func aHundredThousandEntriesAreFoundAndGo() {
        let memory = Entry.allocate(capacity: 100_000)
        memory.initialize(repeating: alps_conn(), count: 100_000)
        let local = address("10.0.0.1")
        let remotes = (0..<4).map { address("10.0.1.\($0)") }
        for index in 0..<100_000 {
            let entry = memory + index
            entry.pointee.family = UInt16(ALPS_AF_INET)
            entry.pointee.protocol = 6
            entry.pointee.kind = UInt8(index % 3 == 0 ? ALPS_CONN_TIMEWAIT : ALPS_CONN_FULL)
            entry.pointee.local = local
            entry.pointee.local_port = 80
            entry.pointee.remote = remotes[index % 4]
            entry.pointee.remote_port = UInt16(index / 4)
            #expect(table.insert(entry, owner) == 0)
        }
        #expect(table.count == 100_000)
        for index in stride(from: 0, to: 100_000, by: 7) {
            #expect(
                table.lookup(UInt16(ALPS_AF_INET), 6, local, 80, remotes[index % 4], UInt16(index / 4), 0) == memory + index)
        }
        var seen = 0
        table.forEach { _ in seen += 1 }
        #expect(seen == 100_000)
        for index in 0..<100_000 { table.remove(memory + index) }
        memory.deallocate()
        finish()
    }

    @Test func groupsOfReceiversAreAllCalled() {
        let members = (0..<3).map { _ in
            make(UInt32(ALPS_CONN_BOUND), "0.0.0.0", 5000, protocol: 17, options: Self.reuseAddress, type: 2)
        }
        let other = make(UInt32(ALPS_CONN_BOUND), "10.0.0.1", 5000, protocol: 17, options: Self.reuseAddress, type: 2)
        let connected = make(UInt32(ALPS_CONN_FULL), "224.1.1.1", 5000, "10.0.0.2", 7, protocol: 17)
        for entry in members + [other] { #expect(bind(entry) == 0) }
        #expect(insert(connected) == 0)
        var called = 0
        withUnsafeMutablePointer(to: &called) { pointer in
            table.matchAll(
                UInt16(ALPS_AF_INET), 17, address("224.1.1.1"), 5000, address("10.0.0.2"), 7, 1, UnsafeMutableRawPointer(pointer)
            ) { context, _ in context?.assumingMemoryBound(to: Int.self).pointee += 1 }
        }
        #expect(called == 4)
        free(members + [other, connected])
        finish()
    }
}

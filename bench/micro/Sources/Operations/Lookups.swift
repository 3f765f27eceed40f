import Kernel
import Lab
import PluginAPI

/// A table of connections to one local port, from as many addresses and ports as it takes.
private final class Table {
    let network: VirtualNetwork
    let kernel: Kernel
    let local = address(10, 0, 0, 1)
    let entries: UnsafeMutablePointer<alps_conn>
    let count: Int
    var next = 0

    static func remote(_ index: Int) -> (address: alps_addr, port: UInt16) {
        (address(11, 0, 0, UInt8(index / 50000)), UInt16(1024 + index % 50000))
    }

    init(_ count: Int, plugins: String) throws {
        self.count = count
        network = VirtualNetwork(plugins: plugins)
        kernel = try network.addKernel("table", plugins: ["ipv4"])
        guard let owner = kernel.plugins.instance("ipv4") else { throw KernelError(2, "there is no instance of ipv4") }
        entries = .allocate(capacity: count)
        entries.initialize(repeating: alps_conn(), count: count)
        for index in 0..<count {
            let entry = entries + index
            let remote = Self.remote(index)
            entry.pointee.family = UInt16(ALPS_AF_INET)
            entry.pointee.protocol = 6
            entry.pointee.kind = UInt8(ALPS_CONN_FULL)
            entry.pointee.local = local
            entry.pointee.local_port = 80
            entry.pointee.remote = remote.address
            entry.pointee.remote_port = remote.port
            guard kernel.connections.insert(entry, owner) == 0 else { throw KernelError(12, "an entry is not taken") }
        }
    }

    deinit {
        for index in 0..<count { kernel.connections.remove(entries + index) }
        entries.deallocate()
        network.shutdown()
    }

    /// In an order that no cache foresees.
    func find() {
        next = (next &* 1_664_525 &+ 1_013_904_223) & 0xffff_ffff
        let remote = Self.remote(next % count)
        guard kernel.connections.lookup(UInt16(ALPS_AF_INET), 6, local, 80, remote.address, remote.port, 0) != nil else {
            fatalError("a connection that is in the table is not found")
        }
    }
}

extension Operation {
    static let lookups = [1, 1000, 1_000_000].map { size in
        Operation(name: "connection found among \(size)") { plugins in
            let table = try Table(size, plugins: plugins)
            return { count in for _ in 0..<count { table.find() } }
        }
    }
}

import Glibc
import PluginAPI

/// Answers to tools. Built from what the subsystems count; nothing here changes a data path.
extension Kernel {
    /// Makes all queries known. `version` is the host program's.
    package func installQueries(version: String) {
        let began = clock.now
        queries.add("host") { (_: Nothing) in
            HostReply(
                name: self.name, pid: getpid(), version: version,
                uptimeSeconds: Double(self.clock.now - began) / 1e9, turns: self.turns)
        }
        queries.add("sockets") { (_: Nothing) in self.socketsReply() }
        queries.add("interfaces") { (_: Nothing) in self.interfacesReply() }
        queries.add("statistics") { (_: Nothing) in self.statisticsReply() }
        queries.add("resources") { (_: Nothing) in self.resourcesReply() }
        queries.add("processes") { (_: Nothing) in self.processesReply() }
        queries.add("sysctl") { (request: TunableRequest) in try self.sysctl(request) }
        queries.add("plugins") { (_: Nothing) in self.pluginsReply() }
        queries.add("plugin.load") { (request: PluginRequest) in
            try self.plugins.load(path: request.path ?? "", as: request.variant)
            return self.pluginsReply()
        }
        queries.add("plugin.unload") { (request: PluginRequest) in
            try self.plugins.unload(request.variant ?? "")
            return self.pluginsReply()
        }
        queries.add("plugin.swap") { (request: PluginRequest) in
            try self.plugins.swap(request.name ?? "", path: request.path ?? "")
            return self.pluginsReply()
        }
        installRouteQueries()
        installNeighborQueries()
    }

    // MARK: Sockets

    private func text(_ address: alps_addr, _ port: UInt16) -> String {
        let host = NetworkAddress(address: address)
        return "\(host.isZero ? "*" : host.description):\(port == 0 ? "*" : String(port))"
    }

    private func socketsReply() -> SocketsReply {
        var rows: [SocketsReply.Row] = []
        var shown: Set<SocketHandle> = []
        connections.forEach { conn in
            guard let owner = conn.pointee.owner else { return }
            let instance = Unmanaged<PluginInstance>.fromOpaque(owner).takeUnretainedValue()
            let socket = conn.pointee.socket.map { Socket.from($0).takeUnretainedValue() }
            if let socket { shown.insert(socket.handle) }
            rows.append(
                row(
                    instance, socket, local: text(conn.pointee.local, conn.pointee.local_port),
                    remote: text(conn.pointee.remote, conn.pointee.remote_port),
                    state: conn.pointee.protocol == 6 ? Self.state(conn.pointee.state) : ""))
        }
        for socket in sockets.all where !shown.contains(socket.handle) {
            rows.append(
                row(
                    socket.entry.instance, socket, local: "*:*", remote: "*:*",
                    state: socket.isStream ? "CLOSED" : ""))
        }
        return SocketsReply(sockets: rows.sorted { ($0.proto, $0.local, $0.remote) < ($1.proto, $1.local, $1.remote) })
    }

    private func row(_ instance: PluginInstance, _ socket: Socket?, local: String, remote: String, state: String)
        -> SocketsReply.Row
    {
        let received: UInt64 = socket.map {
            $0.isStream ? $0.raw.pointee.rcv.tail &- $0.raw.pointee.rcv.head : UInt64($0.datagrams.bytes)
        } ?? 0
        return SocketsReply.Row(
            proto: socket?.entry.name ?? instance.name, receiveQueue: received,
            sendQueue: socket.map { UInt64($0.sendQueued) } ?? 0, local: local, remote: remote, state: state,
            instance: instance.variant, version: instance.version, session: socket?.owner.session,
            pid: socket?.owner.pid, program: socket?.owner.program)
    }

    /// RFC 9293, section 3.3.2, in the order of alps/pcb.h.
    private static func state(_ number: UInt32) -> String {
        let names = [
            "CLOSED", "LISTEN", "SYN-SENT", "SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT",
            "CLOSING", "LAST-ACK", "TIME-WAIT",
        ]
        return Int(number) < names.count ? names[Int(number)] : "\(number)"
    }

    // MARK: Interfaces

    private func interfacesReply() -> InterfacesReply {
        let flagNames: [(UInt32, String)] = [
            (UInt32(ALPS_IFF_UP), "UP"), (UInt32(ALPS_IFF_BROADCAST), "BROADCAST"),
            (UInt32(ALPS_IFF_LOOPBACK), "LOOPBACK"), (UInt32(ALPS_IFF_RUNNING), "RUNNING"),
            (UInt32(ALPS_IFF_MULTICAST), "MULTICAST"),
        ]
        return InterfacesReply(
            interfaces: interfaces.all.map { interface in
                InterfacesReply.Row(
                    name: interface.name, index: Int(interface.raw.pointee.index),
                    flags: flagNames.filter { interface.raw.pointee.flags & $0.0 != 0 }.map(\.1),
                    mtu: Int(interface.raw.pointee.mtu), hardware: interface.hardware?.description,
                    offloads: [
                        interface.raw.pointee.capabilities & UInt32(ALPS_IFCAP_TXCSUM) != 0 ? "txcsum" : nil,
                        interface.raw.pointee.capabilities & UInt32(ALPS_IFCAP_TSO4) != 0 ? "tso4" : nil,
                    ].compactMap { $0 },
                    addresses: interface.addresses.map { address in
                        let broadcast = NetworkAddress(address: address.broadcast)
                        return InterfacesReply.Address(
                            address: NetworkAddress(address: address.addr).description,
                            prefixLength: Int(address.prefix_length),
                            broadcast: broadcast.isZero ? nil : broadcast.description,
                            flags: [
                                address.flags & UInt32(ALPS_IFA_TENTATIVE) != 0 ? "tentative" : nil,
                                address.flags & UInt32(ALPS_IFA_DUPLICATE) != 0 ? "duplicate" : nil,
                            ].compactMap { $0 })
                    },
                    packetsIn: interface.packetsIn, bytesIn: interface.bytesIn, errorsIn: interface.errorsIn,
                    packetsOut: interface.packetsOut, bytesOut: interface.bytesOut, errorsOut: interface.errorsOut,
                    drops: interface.drops)
            })
    }

    // MARK: Counters and resources

    private func statisticsReply() -> StatisticsReply {
        var rows: [StatisticsReply.Row] = []
        for value in counters.all() {
            let counter = StatisticsReply.Counter(name: value.name, doc: value.doc, value: value.value)
            if let index = rows.firstIndex(where: { $0.instance == value.instance }) {
                rows[index].counters.append(counter)
            } else {
                rows.append(StatisticsReply.Row(instance: value.instance, counters: [counter]))
            }
        }
        return StatisticsReply(instances: rows)
    }

    private func resourcesReply() -> ResourcesReply {
        let memory = mbufs.statistics
        func row(_ name: String, _ inUse: Int, _ peak: Int, _ failed: Int = 0) -> ResourcesReply.Row {
            ResourcesReply.Row(name: name, inUse: inUse, peak: peak, failed: failed)
        }
        let clients = server?.allSessions.filter { !$0.isTool }.count ?? 0
        return ResourcesReply(resources: [
            // A tap keeps one big cluster ready for the next long frame: it is no packet's.
            row("mbufs", memory.mbufs.inUse - interfaces.sparePackets, memory.mbufs.peak, memory.mbufs.failed),
            row("clusters", memory.clusters.inUse, memory.clusters.peak, memory.clusters.failed),
            row(
                "big clusters", memory.bigClusters.inUse - interfaces.sparePackets, memory.bigClusters.peak,
                memory.bigClusters.failed),
            row("callouts", callouts.armed, callouts.armed),
            row("sockets", sockets.count, sockets.peak, sockets.failed),
            row("connection entries", connections.count, connections.peak, connections.refused),
            row("pair descriptors", server?.pairs ?? 0, server?.peakPairs ?? 0),
            row("sessions", clients, server?.peakSessions ?? 0),
            row("fibers", fibers.all.count, fibers.all.count),
        ])
    }

    private func processesReply() -> ProcessesReply {
        ProcessesReply(
            sessions: (server?.allSessions ?? []).map {
                ProcessesReply.Session(
                    session: $0.number, pid: $0.pid, uid: $0.uid, program: $0.program, sockets: $0.socketCount,
                    tool: $0.isTool)
            },
            fibers: fibers.all.map { fiber in
                ProcessesReply.Fiber(
                    id: fiber.id, name: fiber.name, session: fiber.session, state: fiber.state.rawValue,
                    waitMessage: fiber.wmesg,
                    waitChannel: fiber.waitChannel.map { "0x" + String(UInt(bitPattern: $0), radix: 16) })
            })
    }

    private func sysctl(_ request: TunableRequest) throws -> TunablesReply {
        var found: [Tunable]
        if let name = request.name {
            if let value = request.value { try tunables.set(name, value) }
            found = tunables.all.filter { $0.name == name || $0.name.hasPrefix(name + ".") }
            if found.isEmpty { throw KernelError(ENOENT, "no tunable '\(name)': `alps sysctl -a` lists them") }
        } else {
            found = tunables.all
        }
        return TunablesReply(
            tunables: found.map {
                TunablesReply.Row(
                    name: $0.name, value: $0.text, type: $0.kind.name, doc: $0.doc, minimum: $0.minimum,
                    maximum: $0.maximum, readOnly: $0.isReadOnly)
            })
    }

    private func pluginsReply() -> PluginsReply {
        PluginsReply(
            plugins: plugins.instances.map { instance in
                PluginsReply.Row(
                    variant: instance.variant, name: instance.name, version: instance.version,
                    generation: instance.generation, state: instance.state.rawValue, sockets: instance.liveSockets,
                    entries: instance.liveEntries, memory: instance.zone.bytesInUse, path: instance.path,
                    provides: instance.provides,
                    isDefault: instance.state == .running && instance.variant == instance.name)
            })
    }
}

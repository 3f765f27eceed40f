/// What the host answers to tools: the JSON of `--json`, member for member.

/// `alps netstat`
package struct SocketsReply: Codable {
    package struct Row: Codable {
        package var proto: String
        package var receiveQueue: UInt64
        package var sendQueue: UInt64
        package var local: String
        package var remote: String
        package var state: String
        package var instance: String
        package var version: String
        package var session: UInt32?
        package var pid: Int32?
        package var program: String?
    }
    package var sockets: [Row]
}

/// `alps netstat -i`
package struct InterfacesReply: Codable {
    package struct Address: Codable {
        package var address: String
        package var prefixLength: Int
        package var broadcast: String?
        package var flags: [String]
    }
    package struct Row: Codable {
        package var name: String
        package var index: Int
        package var flags: [String]
        package var mtu: Int
        package var hardware: String?
        package var offloads: [String]
        package var addresses: [Address]
        package var packetsIn: UInt64
        package var bytesIn: UInt64
        package var errorsIn: UInt64
        package var packetsOut: UInt64
        package var bytesOut: UInt64
        package var errorsOut: UInt64
        package var drops: UInt64
    }
    package var interfaces: [Row]
}

/// `alps netstat -s`
package struct StatisticsReply: Codable {
    package struct Counter: Codable {
        package var name: String
        package var doc: String
        package var value: UInt64
    }
    package struct Row: Codable {
        package var instance: String
        package var counters: [Counter]
    }
    package var instances: [Row]
}

/// `alps netstat -r`, `alps route show`, `alps route get`
package struct RoutesReply: Codable {
    package struct Row: Codable {
        package var destination: String
        package var prefixLength: Int
        package var gateway: String?
        package var flags: String
        package var interface: String
        package var mtu: Int
        package var metric: Int
        package var expiresSeconds: Double?
    }
    package var routes: [Row]
}

/// `alps route add|delete`
package struct RouteRequest: Codable {
    package var destination: String
    package var gateway: String?
    package var interface: String?
    package var mtu: Int?
    package var metric: Int?
    package var reject: Bool?

    package init(
        destination: String, gateway: String? = nil, interface: String? = nil, mtu: Int? = nil, metric: Int? = nil,
        reject: Bool? = nil
    ) {
        self.destination = destination
        self.gateway = gateway
        self.interface = interface
        self.mtu = mtu
        self.metric = metric
        self.reject = reject
    }
}

/// `alps stat`
package struct ResourcesReply: Codable {
    package struct Row: Codable {
        package var name: String
        package var inUse: Int
        package var peak: Int
        package var failed: Int
    }
    package var resources: [Row]
}

/// `alps ps`
package struct ProcessesReply: Codable {
    package struct Session: Codable {
        package var session: UInt32
        package var pid: Int32
        package var uid: UInt32
        package var program: String
        package var sockets: Int
        package var tool: Bool
    }
    package struct Fiber: Codable {
        package var id: Int
        package var name: String
        package var session: UInt32?
        package var state: String
        package var waitMessage: String?
        package var waitChannel: String?
    }
    package var sessions: [Session]
    package var fibers: [Fiber]
}

/// `alps plugin list|load|unload|swap`
package struct PluginsReply: Codable {
    package struct Row: Codable {
        package var variant: String
        package var name: String
        package var version: String
        package var generation: Int
        package var state: String
        package var sockets: Int
        package var entries: Int
        package var memory: Int
        package var path: String
        package var provides: [String]
        package var isDefault: Bool
    }
    package var plugins: [Row]
}

package struct PluginRequest: Codable {
    package var name: String?
    package var path: String?
    package var variant: String?

    package init(name: String? = nil, path: String? = nil, variant: String? = nil) {
        self.name = name
        self.path = path
        self.variant = variant
    }
}

/// `alps sysctl`
package struct TunablesReply: Codable {
    package struct Row: Codable {
        package var name: String
        package var value: String
        package var type: String
        package var doc: String
        package var minimum: Int64
        package var maximum: Int64
        package var readOnly: Bool
    }
    package var tunables: [Row]

    package init(tunables: [Row]) { self.tunables = tunables }
}

package struct TunableRequest: Codable {
    package var name: String?
    package var value: String?

    package init(name: String? = nil, value: String? = nil) {
        self.name = name
        self.value = value
    }
}

/// `alps arp`
package struct NeighborsReply: Codable {
    package struct Row: Codable {
        package var address: String
        package var hardware: String?
        package var interface: String
        package var flags: [String]
        package var expiresSeconds: Double?
        package var held: Int
    }
    package var neighbors: [Row]
}

package struct NeighborRequest: Codable {
    package var address: String
    package var hardware: String?
    package var interface: String?
    package var published: Bool?

    package init(address: String, hardware: String? = nil, interface: String? = nil, published: Bool? = nil) {
        self.address = address
        self.hardware = hardware
        self.interface = interface
        self.published = published
    }
}

/// `alps host` as others see it.
package struct HostReply: Codable {
    package var name: String
    package var pid: Int32
    package var version: String
    package var uptimeSeconds: Double
    package var turns: UInt64
}

/// A request without arguments, and a reply without contents.
package struct Nothing: Codable {
    package init() {}
}

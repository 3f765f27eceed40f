import Kernel

/// How a script is run: packetdrill's options, and this runner's.
package struct PacketScriptOptions: Sendable {
    /// What a script's author had in mind: buffers, windows and timers as that family has them.
    package enum Profile: String, CaseIterable, Sendable {
        /// By what the script's own commands are about.
        case auto
        /// The stack's own defaults.
        case alps
        case linux, bsd
    }

    package var profile = Profile.auto
    /// Directory of the plugins; nil: beside the program.
    package var pluginDirectory: String?
    /// Plugins from elsewhere, by name ("tcp").
    package var plugins: [String: String] = [:]
    package var seed: UInt64 = 1
    /// A tap interface to make: the script runs over it in real time. Nil: virtual time.
    package var liveInterface: String?
    package var definitions: [String: String] = [:]
    package var isVerbose = false
    /// Parse and do nothing.
    package var isDryRun = false

    var localAddress: UInt32 = 0xc0a8_0001
    var prefixLength = 16
    var gateway: UInt32 = 0xc0a8_0002
    var remoteAddress: UInt32 = 0xc000_0201
    var bindPort: UInt16 = 8080
    var connectPort: UInt16 = 8080
    var mtu = 1500
    /// ns
    var tolerance: Int64 = 4_000_000
    /// Of the time since the event before.
    var tolerancePercent = 12.5
    /// ns a tick of outbound timestamp values; 0: they are not compared.
    var timestampTick: Int64 = 0
    var strictSegments = false
    /// What the stack has sent and the script does not name is a mismatch.
    var refusesExtraPackets = false
    var warnsOfPackets = false
    var warnsOfCalls = false
    var initialScripts: [String] = []

    package init() {}

    /// Options of packetdrill that ask for what there is not in a process of its own.
    private static let refused: [String: String] = [
        "wire_client": "there is no wire: the stack under test is in this process",
        "wire_server": "there is no wire: the stack under test is in this process",
        "wire_server_ip": "there is no wire", "wire_server_at": "there is no wire",
        "wire_server_port": "there is no wire", "wire_client_dev": "there is no wire",
        "wire_server_dev": "there is no wire", "so_filename": "the stack under test is Alps",
        "so_flags": "the stack under test is Alps", "code_command": "assertions are evaluated here",
    ]

    /// Accepted for the scripts' sake; nothing depends on them here.
    private static let ignored: Set<String> = [
        "speed", "mss", "is_anyip", "send_omit_free", "debug", "code_format", "code_sockopt", "tcp_ts_ecr_scaled",
        "netmask_ip6", "tun_dev", "persistent_tun_dev",
    ]

    /// Takes `--name=value`.
    package mutating func set(_ name: String, _ value: String?) throws {
        do { try take(name, value) } catch let fault as ScriptFault {
            throw PacketScriptError("--\(name)", 0, fault.kind, fault.message)
        }
    }

    mutating func take(_ name: String, _ value: String?) throws {
        if Self.ignored.contains(name) { return }
        if let reason = Self.refused[name] { throw ScriptFault.unsupported("option --\(name) is refused: \(reason)") }
        switch name {
        case "strict_segments": strictSegments = true
        case "no_extra_packets": refusesExtraPackets = true
        case "dry_run": isDryRun = true
        case "verbose": isVerbose = true
        default:
            guard let value else { throw ScriptFault.syntax("option --\(name) needs a value or does not exist") }
            try take(name, value: value)
        }
    }

    private mutating func take(_ name: String, value: String) throws {
        func number(_ range: ClosedRange<Int64>) throws -> Int64 {
            guard let number = Int64(value), range.contains(number) else {
                throw ScriptFault.syntax("--\(name)=\(value): expected a number in \(range)")
            }
            return number
        }
        func address() throws -> UInt32 {
            guard let address = UInt32(dotted: value.prefix { $0 != "/" }) else {
                throw ScriptFault.syntax("--\(name)=\(value): expected an IPv4 address")
            }
            return address
        }
        switch name {
        case "ip_version":
            guard value == "ipv4" else {
                throw ScriptFault.unsupported("--ip_version=\(value): the stack speaks IPv4 only")
            }
        case "local_ip": localAddress = try address()
        case "remote_ip": remoteAddress = try address()
        case "gateway_ip": gateway = try address()
        case "netmask_ip":
            let mask = try address()
            guard mask.leadingZeroBitCount == 0 || mask == 0, (~mask &+ 1).nonzeroBitCount <= 1 else {
                throw ScriptFault.syntax("--\(name)=\(value) is not a netmask")
            }
            prefixLength = mask.nonzeroBitCount
        case "bind_port": bindPort = UInt16(try number(1...65535))
        case "connect_port": connectPort = UInt16(try number(1...65535))
        case "mtu": mtu = Int(try number(68...65535))
        case "tolerance_usecs": tolerance = try number(0...3_600_000_000) * 1000
        case "tolerance_percent":
            guard let percent = Double(value), percent >= 0, percent <= 1000 else {
                throw ScriptFault.syntax("--\(name)=\(value): expected a percentage")
            }
            tolerancePercent = percent
        case "tcp_ts_tick_usecs": timestampTick = try number(0...1_000_000) * 1000
        case "non_fatal":
            for type in value.split(whereSeparator: { $0 == "," || $0 == " " }) {
                switch type {
                case "packet": warnsOfPackets = true
                case "syscall": warnsOfCalls = true
                default: throw ScriptFault.syntax("--non_fatal=\(value): expected packet, syscall or both")
                }
            }
        case "init_scripts": initialScripts += value.split(separator: ",").map(String.init)
        case "define", "D":
            guard let equals = value.firstIndex(of: "="), equals != value.startIndex else {
                throw ScriptFault.syntax("--\(name)=\(value): expected NAME=VALUE")
            }
            definitions[String(value[..<equals])] = String(value[value.index(after: equals)...])
        case "profile":
            guard let profile = Profile(rawValue: value) else {
                throw ScriptFault.syntax("--profile=\(value): expected auto, alps, linux or bsd")
            }
            self.profile = profile
        case "seed": seed = UInt64(try number(0...Int64.max))
        default: throw ScriptFault.syntax("there is no option --\(name)")
        }
    }
}

extension UInt32 {
    /// An IPv4 address of four decimal numbers.
    init?(dotted text: some StringProtocol) {
        guard let address = NetworkAddress(text) else { return nil }
        let bytes = address.address.bytes
        self = UInt32(bytes.0) << 24 | UInt32(bytes.1) << 16 | UInt32(bytes.2) << 8 | UInt32(bytes.3)
    }
}

import ArgumentParser
import CLinux
import Foundation
import Glibc
import Kernel

/// `alps host`
struct HostCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "host",
        abstract: "Run a stack in the foreground.",
        discussion: """
            Brings up lo0 and the interfaces named, loads the protocol plugins, and serves clients until SIGTERM or \
            SIGINT; then removes what it made.

              alps host --interface tap:tap0 --address 10.11.12.13/24 --gateway 10.11.12.1
              alps host --address 10.11.12.13/24 --gateway 10.11.12.1 \\
                  --link "loss 5% delay 5ms" --capture /tmp/tap0.pcapng

            The kernel's side of the tap gets the --gateway address, so that programs outside the stack can talk to it.
            """)

    @Option(name: .shortAndLong, help: "Name of the stack; clients find it by this.")
    var name = "alps0"

    @Option(help: "tap:NAME makes a tap interface; packet:NAME shares a real one with the system (needs nftables).")
    var interface = "tap:tap0"

    @Option(help: "Address of the stack on the interface, as A/LENGTH.")
    var address: String?

    @Option(help: "Default gateway; also the kernel's address on its side of the tap.")
    var gateway: String?

    @Option(help: "Hardware address of the stack, e.g. 02:00:00:00:00:01 (default: random, locally administered).")
    var hwaddr: String?

    @Flag(help: "Leave the kernel's side of the tap without an address.")
    var noKernelAddress = false

    @Option(help: "MTU of the interface in bytes.")
    var mtu: Int?

    @Flag(help: "A tap without segmentation and checksum offload: every frame is one finished packet.")
    var noOffload = false

    @Option(help: "Directory with libalps-*.so (default: beside this program, then PREFIX/lib/alps).")
    var plugins: String?

    @Option(name: .customLong("plugin"), help: "Load PATH as plugin NAME instead of the usual file, as NAME=PATH.")
    var pluginFiles: [String] = []

    @Option(help: "Set a tunable, as NAME=VALUE.")
    var sysctl: [String] = []

    @Option(help: "Write every packet of the interface to this pcapng file.")
    var capture: String?

    @Option(help: "Emulate a link in front of the interface: \"loss 5% delay 5ms rate 10mbit\" (see docs).")
    var link: String?

    @Option(help: "Path of the control socket (default: /run/alps/NAME.sock).")
    var socket: String?

    @Option(help: "Run the loop on this CPU only. Under load, what the system does with a tap's frames is left to the others.")
    var pin: Int?

    @Option(
        help: ArgumentHelp(
            "Look for work for so long before sleeping (0 to 1000000). Shortens round trips if the loop has a CPU to itself.",
            valueName: "microseconds"))
    var busyPoll = 0

    @Option(help: "Messages to print: error, warning, notice or debug.")
    var logLevel = "notice"

    @Option(help: .hidden)
    var readyFd: Int32?

    private static let levels: [String: KernelLog.Level] = [
        "error": .error, "warning": .warning, "notice": .notice, "debug": .debug,
    ]

    /// In the order in which they are loaded: each finds the interfaces it needs.
    private static let protocols = ["arp", "ipv4", "icmp", "udp", "tcp"]

    func validate() throws {
        guard Self.levels[logLevel] != nil else {
            throw ValidationError("'\(logLevel)' is no level of messages: use error, warning, notice or debug.")
        }
        let parts = interface.split(separator: ":", maxSplits: 1)
        guard parts.count == 2, ["tap", "packet"].contains(parts[0]) else {
            throw ValidationError(
                "'\(interface)' is not an interface: use tap:NAME, e.g. tap:tap0, or packet:NAME, e.g. packet:eth0.")
        }
        if parts[0] == "packet" {
            guard address != nil else {
                throw ValidationError("--interface \(interface) needs --address: an address of its own in that network.")
            }
            guard hwaddr == nil, mtu == nil else {
                throw ValidationError("--hwaddr and --mtu are those of \(parts[1]) and cannot be given.")
            }
        }
        if noOffload, parts[0] != "tap" {
            throw ValidationError("--no-offload is for a tap; the offloads of \(parts[1]) are the system's to set.")
        }
        if let address, NetworkAddress.Prefix(address) == nil {
            throw ValidationError("'\(address)' is not an address with a prefix length: use e.g. 10.11.12.13/24.")
        }
        if let gateway, NetworkAddress(gateway) == nil {
            throw ValidationError("'\(gateway)' is not an IPv4 address.")
        }
        guard (0...1_000_000).contains(busyPoll) else {
            throw ValidationError("--busy-poll is a time from 0 to 1000000 microseconds.")
        }
        let cpus = CPUSet.ofThisThread.list
        if let pin, !cpus.contains(pin) {
            throw ValidationError(
                "this process may not run on CPU \(pin), only on: \(cpus.map(String.init).joined(separator: ", ")).")
        }
        for setting in sysctl where !setting.contains("=") {
            throw ValidationError("'\(setting)' is not a setting: use NAME=VALUE.")
        }
        for file in pluginFiles where !file.contains("=") {
            throw ValidationError("'\(file)' is not a plugin: use NAME=PATH.")
        }
    }

    func run() throws {
        do { try serve() } catch let error as KernelError { throw failure(error.message) }
    }

    private func serve() throws {
        // Lines appear as they are written, in a log file too.
        alps_line_buffered_output()
        signal(SIGPIPE, SIG_IGN)
        raiseDescriptorLimit()
        let kernel = Kernel(KernelConfiguration(name: name))
        kernel.log.level = Self.levels[logLevel] ?? .notice
        let reactor = try Reactor(kernel: kernel)
        kernel.reactor = reactor
        // The control socket comes first: a name that is taken is refused before anything is made.
        let server = try ControlServer(kernel: kernel, path: socket)
        kernel.server = server
        defer { kernel.shutdown() }

        print("Alps \(HostVersion.text) #\(getpid()): stack '\(name)'")
        print("real memory limit: mbufs \(kernel.configuration.mbufLimit >> 20) MiB")
        kernel.installQueries(version: HostVersion.text)
        try kernel.interfaces.addLoopback()
        print("lo0: 127.0.0.1/8 mtu 65535")
        try loadPlugins(kernel)
        for setting in sysctl {
            let parts = setting.split(separator: "=", maxSplits: 1).map(String.init)
            try kernel.tunables.set(parts[0], parts[1])
        }
        let silence = try bringUpInterface(kernel)
        defer { withExtendedLifetime(silence) {} }

        reactor.onSignals([SIGTERM, SIGINT]) { [unowned reactor] in reactor.stop() }
        try server.start()
        print("control socket: \(server.path)")
        try pinLoop()
        print("ready")
        if let readyFd {
            var byte: UInt8 = 1
            _ = write(readyFd, &byte, 1)
            close(readyFd)
        }
        reactor.busyPoll = UInt64(busyPoll) * 1000
        reactor.run()
        print("shutting down")
    }

    /// The calling thread, which is the loop's, and no other.
    private func pinLoop() throws {
        guard let pin else { return }
        let error = CPUSet([pin]).restrictThisThread()
        guard error == 0 else { throw KernelError(error, "cannot run on CPU \(pin): \(String(cString: strerror(error)))") }
    }

    /// Every socket costs a descriptor.
    private func raiseDescriptorLimit() {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
        limit.rlim_cur = limit.rlim_max
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    }

    private func loadPlugins(_ kernel: Kernel) throws {
        var search = PluginSearchPath()
        if let plugins { search = PluginSearchPath(directory: plugins) }
        var files: [String: String] = [:]
        for file in pluginFiles {
            let parts = file.split(separator: "=", maxSplits: 1).map(String.init)
            files[parts[0]] = parts[1]
        }
        for name in Self.protocols {
            let path = try files.removeValue(forKey: name) ?? search.find(name)
            let instance = try kernel.plugins.load(path: path, as: nil)
            print("\(instance.variant): \(instance.version), \(instance.summary)")
        }
        for (name, path) in files.sorted(by: { $0.key < $1.key }) {
            let instance = try kernel.plugins.load(path: path, as: name)
            print("\(instance.variant): \(instance.version), \(instance.summary)")
        }
    }

    private func bringUpInterface(_ kernel: Kernel) throws -> KernelSilence? {
        let name = String(interface.drop { $0 != ":" }.dropFirst())
        return interface.hasPrefix("tap:") ? try bringUpTap(name, kernel) : try share(name, kernel)
    }

    private func add(_ device: Device, _ name: String, _ hardware: HardwareAddress, _ mtu: Int, _ kernel: Kernel) throws -> Interface {
        let device = try link.map { LinkedDevice(device, spec: try LinkSpec(parsing: $0), kernel: kernel) } ?? device
        let interface = try kernel.interfaces.add(name: name, device: device, hardware: hardware, mtu: mtu)
        if let capture { try interface.startCapture(path: capture) }
        return interface
    }

    private func finish(_ interface: Interface, _ hardware: HardwareAddress, _ mtu: Int, _ kernel: Kernel) throws {
        if let address, let prefix = NetworkAddress.Prefix(address) {
            try kernel.interfaces.addAddress(interface, prefix.address, prefixLength: prefix.length)
        }
        if let gateway, let address = NetworkAddress(gateway) {
            try kernel.routes.addDefault(gateway: address.address, interface: interface)
        }
        print("\(interface.name): ether \(hardware) \(address.map { "inet \($0) " } ?? "")mtu \(mtu)")
    }

    private func bringUpTap(_ name: String, _ kernel: Kernel) throws -> KernelSilence? {
        let hardware = try hwaddr.map(HardwareAddress.init(parsing:)) ?? HardwareAddress.random(kernel.random)
        let interface = try add(try Tap(name: name, offload: !noOffload, kernel: kernel), name, hardware, mtu ?? 1500, kernel)
        if let address, let prefix = NetworkAddress.Prefix(address), !noKernelAddress, let gateway {
            try KernelSide.configure(interface: name, address: gateway, prefixLength: prefix.length, mtu: mtu)
        } else {
            try KernelSide.bringUp(interface: name, mtu: mtu)
        }
        try finish(interface, hardware, mtu ?? 1500, kernel)
        return nil
    }

    /// A real interface, which stays the system's too.
    private func share(_ name: String, _ kernel: Kernel) throws -> KernelSilence? {
        let device = try PacketSocket(name: name, kernel: kernel)
        let own = String((address ?? "").prefix { $0 != "/" })
        let silence = try KernelSilence(interface: name, address: own)
        let interface = try add(device, name, device.hardware, device.mtu, kernel)
        try finish(interface, device.hardware, device.mtu, kernel)
        print("\(name): shared with the system, which is kept from \(own) by nft table ip \(silence.table)")
        return silence
    }
}

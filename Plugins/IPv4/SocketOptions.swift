import PluginAPI
import PluginKit

/// What a socket has asked of IPv4 beyond what its attachment holds. Made at first use.
///
/// `alps_netpcb.options` is one of these, or, while there is none, a reference to the socket with the lowest bit set.
struct SocketOptions {
    /// Of the instance that made it; see there.
    var next: UnsafeMutablePointer<SocketOptions>?
    var owner: InstancePointer
    /// Where this hangs.
    var netpcb: NetworkPCB
    var socket: UnsafeMutablePointer<alps_socket>?
    /// Options to send, padded to a multiple of 4.
    var length: UInt8
    var bytes: (UInt64, UInt64, UInt64, UInt64, UInt64)
    /// Linux's IP_MTU_DISCOVER value, if it has been set.
    var mtuDiscover: UInt8
    var hasMTUDiscover: Bool
    var multicastAll: Bool
    /// Options that are stored and told: the shim or the transport acts on them. Bit n is option n.
    var flags: UInt64
    /// ICMP_FILTER of raw sockets: bit set = type is dropped.
    var icmpFilter: UInt32
    var memberships: UnsafeMutablePointer<Membership>?

    static func reference(to socket: UnsafeMutablePointer<alps_socket>?) -> UnsafeMutableRawPointer? {
        guard let socket else { return nil }
        return UnsafeMutableRawPointer(bitPattern: UInt(bitPattern: socket) | 1)
    }
}

typealias SocketOptionsPointer = UnsafeMutablePointer<SocketOptions>

extension UnsafeMutablePointer where Pointee == Instance {
    @inline(__always)
    func existingOptions(_ netpcb: UnsafePointer<alps_netpcb>) -> SocketOptionsPointer? {
        guard let options = netpcb.pointee.options, UInt(bitPattern: options) & 1 == 0 else { return nil }
        return options.assumingMemoryBound(to: SocketOptions.self)
    }

    /// The socket behind an attachment, if there is one.
    func socket(_ netpcb: NetworkPCB) -> UnsafeMutablePointer<alps_socket>? {
        if let options = existingOptions(netpcb) { return options.pointee.socket }
        guard let reference = netpcb.pointee.options else { return nil }
        return UnsafeMutablePointer<alps_socket>(bitPattern: UInt(bitPattern: reference) & ~1)
    }

    /// The attachment's own options, made at first use.
    func options(_ netpcb: NetworkPCB) -> SocketOptionsPointer? {
        if let made = existingOptions(netpcb) { return made }
        guard let made = services.allocate(SocketOptions.self) else { return nil }
        made.pointee.owner = self
        made.pointee.netpcb = netpcb
        made.pointee.socket = socket(netpcb)
        made.pointee.multicastAll = true
        made.pointee.next = pointee.socketOptions
        pointee.socketOptions = made
        netpcb.pointee.options = UnsafeMutableRawPointer(made)
        return made
    }

    func releaseOptions(_ netpcb: NetworkPCB) {
        guard let options = existingOptions(netpcb) else { return }
        // An older instance may have made it, and is there as long as that is so.
        options.pointee.owner.free(options)
        netpcb.pointee.options = nil
        netpcb.pointee.header_length = UInt32(Header.minimumLength)
    }

    private func free(_ options: SocketOptionsPointer) {
        while let membership = options.pointee.memberships {
            options.pointee.memberships = membership.pointee.next
            leaveGroup(membership.pointee.group, membership.pointee.ifindex)
            services.free(membership)
        }
        if pointee.socketOptions == options {
            pointee.socketOptions = options.pointee.next
        } else {
            var previous = pointee.socketOptions
            while let current = previous {
                if current.pointee.next == options {
                    current.pointee.next = options.pointee.next
                    break
                }
                previous = current.pointee.next
            }
        }
        services.free(options)
    }

    // MARK: IP options

    /// IP_OPTIONS.
    func setOptions(_ netpcb: NetworkPCB, _ value: UnsafePointer<UInt8>, _ count: Int) -> Int32 {
        guard count <= OptionType.maximumLength else { return ALPS_EINVAL }
        let status = checkOptions(value, count)
        guard status == 0 else { return status }
        if count == 0, existingOptions(netpcb) == nil { return 0 }
        guard let options = options(netpcb) else { return ALPS_ENOBUFS }
        let padded = (count + 3) & ~3
        withUnsafeMutableBytes(of: &options.pointee.bytes) { bytes in
            for index in 0..<OptionType.maximumLength { bytes[index] = index < count ? value[index] : OptionType.end }
        }
        options.pointee.length = UInt8(padded)
        netpcb.pointee.header_length = UInt32(Header.minimumLength + padded)
        return 0
    }

    /// Puts a socket's options behind the fixed header.
    func insertOptions(_ netpcb: NetworkPCB, _ data: UnsafeMutablePointer<UInt8>) {
        let length = Int(netpcb.pointee.header_length) - Header.minimumLength
        guard let options = existingOptions(netpcb), length <= OptionType.maximumLength else {
            for index in 0..<length { data[Header.minimumLength + index] = OptionType.end }
            return
        }
        withUnsafeBytes(of: options.pointee.bytes) { bytes in
            for index in 0..<length { data[Header.minimumLength + index] = bytes[index] }
        }
    }

    // MARK: Handing over

    /// Whether another instance provides the network now.
    var isReplaced: Bool {
        guard let cell = pointee.networkCell, cell.isProvided else { return false }
        return cell.instance != UnsafeMutableRawPointer(self)
    }

    /// Another instance serves the sockets from now on: it gets their options and joins their groups through the
    /// interface that it provides now. Without one, they are forgotten.
    func handOverSocketOptions() {
        guard let cell = pointee.networkCell, cell.isProvided else { return forgetSocketOptions() }
        // If not, the host is going down, and sockets detach by themselves.
        guard isReplaced else { return }
        let ops = cell.ops(alps_network_ops.self)
        while let options = pointee.socketOptions {
            let netpcb = options.pointee.netpcb
            netpcb.pointee.options = SocketOptions.reference(to: options.pointee.socket)
            netpcb.pointee.route.size = 0
            handOver(options, netpcb, ops, cell.instance)
            free(options)
        }
    }

    private func handOver(
        _ options: SocketOptionsPointer, _ netpcb: NetworkPCB, _ ops: UnsafePointer<alps_network_ops>,
        _ instance: UnsafeMutableRawPointer
    ) {
        var length = UInt32(options.pointee.length)
        if length > 0 {
            _ = withUnsafeMutableBytes(of: &options.pointee.bytes) {
                ops.pointee.ctloutput(instance, netpcb, 1, 0, Option.options, $0.baseAddress!, &length)
            }
        }
        func set(_ name: Int32, _ value: Int32) {
            var value = value
            var length: UInt32 = 4
            _ = ops.pointee.ctloutput(instance, netpcb, 1, 0, name, &value, &length)
        }
        if options.pointee.hasMTUDiscover { set(Option.mtuDiscover, Int32(options.pointee.mtuDiscover)) }
        if !options.pointee.multicastAll { set(Option.multicastAll, 0) }
        for name in Int32(0)..<64 where options.pointee.flags & 1 << UInt64(name) != 0 { set(name, 1) }
        if options.pointee.icmpFilter != 0 { set(Option.icmpFilter, Int32(bitPattern: options.pointee.icmpFilter)) }
        var membership = options.pointee.memberships
        while let current = membership {
            var group = neutral(current.pointee.group)
            _ = ops.pointee.join(instance, netpcb, &group, current.pointee.ifindex)
            membership = current.pointee.next
        }
    }

    /// No socket may point here any more.
    func forgetSocketOptions() {
        while let options = pointee.socketOptions {
            options.pointee.netpcb.pointee.options = SocketOptions.reference(to: options.pointee.socket)
            options.pointee.netpcb.pointee.header_length = UInt32(Header.minimumLength)
            free(options)
        }
    }
}

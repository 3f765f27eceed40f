import CLinux
import Glibc
import PluginAPI

/// Files of /proc/net as Linux has them, about this stack.
enum ProcNet {
    static func text(_ name: String, _ kernel: Kernel) -> String? {
        switch name {
        case "dev": device(kernel)
        case "route": route(kernel)
        case "arp": neighbors(kernel)
        case "tcp": sockets(kernel, 6)
        case "udp": sockets(kernel, 17)
        case "raw": rawSockets(kernel)
        case "snmp": ProcNetStatistics.snmp(kernel)
        case "netstat": ProcNetStatistics.netstat(kernel)
        case "sockstat": ProcNetStatistics.socketUse(kernel)
        case "igmp": groups(kernel)
        case "packet": packetSockets(kernel)
        // There is no IPv6: what the kernel has of it is not the stack's.
        case "tcp6", "udp6", "raw6", "udplite6":
            "  sl  local_address                         remote_address                        "
                + "st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        case "udplite", "icmp": socketHeader
        case "icmp6", "if_inet6", "igmp6", "ipv6_route", "snmp6", "dev_mcast": ""
        case "sockstat6": "TCP6: inuse 0\nUDP6: inuse 0\nUDPLITE6: inuse 0\nRAW6: inuse 0\nFRAG6: inuse 0 memory 0\n"
        default: nil
        }
    }

    private static func hex(_ value: some BinaryInteger, _ digits: Int) -> String {
        let text = String(value, radix: 16, uppercase: true)
        return String(repeating: "0", count: max(0, digits - text.count)) + text
    }

    /// Linux prints the address as a number of the machine's byte order.
    private static func hex(_ address: alps_addr) -> String {
        withUnsafeBytes(of: address) { hex($0.loadUnaligned(as: UInt32.self), 8) }
    }

    /// Packet sockets: the protocol in hexadecimal, whether frames reach it, what waits for it.
    private static func packetSockets(_ kernel: Kernel) -> String {
        var text = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n"
        for socket in kernel.linkSockets.all {
            text += "0000000000000000 3      " + padded(String(socket.type), 4) + " " + hex(socket.protocolNumber, 4).lowercased()
            text += "   " + padded(String(Int32(bitPattern: socket.ifindex)), 5) + " \(socket.isListening ? 1 : 0) "
            text += padded("0", 6) + " " + padded(String(socket.uid), 6) + " \(socket.inode)\n"
        }
        return text
    }

    private static func device(_ kernel: Kernel) -> String {
        var text = """
            Inter-|   Receive                                                |  Transmit
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed

            """
        for interface in kernel.interfaces.all {
            let name = String(repeating: " ", count: max(0, 6 - interface.name.count)) + interface.name
            text += "\(name): \(interface.bytesIn) \(interface.packetsIn) \(interface.errorsIn) \(interface.drops) 0 0 0 0"
            text += " \(interface.bytesOut) \(interface.packetsOut) \(interface.errorsOut) 0 0 0 0 0\n"
        }
        return text
    }

    private static func route(_ kernel: Kernel) -> String {
        var text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        for route in kernel.routes.all
        where route.flags & UInt32(ALPS_RTF_LOCAL | ALPS_RTF_BROADCAST | ALPS_RTF_CLONED) == 0 {
            let interface = kernel.interfaces.interface(route.ifindex)
            // Linux has its own networks in the table "local", which is not here.
            if interface?.isLoopback == true, route.flags & UInt32(ALPS_RTF_CONNECTED) != 0 { continue }
            let name = interface?.name ?? "*"
            let mask = route.prefix_length == 0 ? 0 : (UInt32.max << UInt32(32 - route.prefix_length)).byteSwapped
            text += "\(name)\t\(hex(route.destination))\t\(hex(route.gateway))\t\(hex(route.flags & 0xf, 4))\t0\t0\t"
            text += "\(route.metric)\t\(hex(mask, 8))\t0\t0\t0\n"
        }
        return text
    }

    /// Flags: ATF_COM 2, ATF_PERM 4, ATF_PUBL 8.
    private static func neighbors(_ kernel: Kernel) -> String {
        var text = "IP address       HW type     Flags       HW address            Mask     Device\n"
        for entry in kernel.allNeighbors() {
            let isKnown = entry.flags & (ALPS_NEIGHBOR_STATIC | ALPS_NEIGHBOR_RESOLVED) != 0
            let flags = (isKnown ? 2 : 0) | (entry.flags & ALPS_NEIGHBOR_STATIC != 0 ? 4 : 0)
                | (entry.flags & ALPS_NEIGHBOR_PUBLISHED != 0 ? 8 : 0)
            let h = entry.hardware
            let hardware = isKnown ? HardwareAddress((h.0, h.1, h.2, h.3, h.4, h.5)).description : "00:00:00:00:00:00"
            text += padded(NetworkAddress(address: entry.addr).description, 16) + " 0x" + padded("1", 10)
            text += "0x" + padded(String(flags, radix: 16), 10) + padded(hardware, 17)
            text += "     *        \(kernel.interfaces.interface(entry.ifindex)?.name ?? "*")\n"
        }
        return text
    }

    private static func padded(_ text: String, _ width: Int) -> String {
        text + String(repeating: " ", count: max(0, width - text.utf8.count))
    }

    // MARK: Sockets

    private static let socketHeader =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

    private static func sockets(_ kernel: Kernel, _ protocolNumber: UInt8) -> String {
        var text = socketHeader
        var line = 0
        kernel.connections.forEach { conn in
            guard conn.pointee.protocol == protocolNumber, let entry = SocketDiagnosis.Entry(conn) else { return }
            text += row(line, entry)
            line += 1
        }
        return text
    }

    private static func rawSockets(_ kernel: Kernel) -> String {
        kernel.sockets.all.compactMap(SocketDiagnosis.Entry.init(raw:)).reduce(socketHeader) {
            $0 + row(Int($1.localPort), $1)
        }
    }

    private static func row(_ line: Int, _ entry: SocketDiagnosis.Entry) -> String {
        let number = String(line)
        var text = String(repeating: " ", count: max(0, 4 - number.count)) + number
        text += ": \(hex(entry.local)):\(hex(entry.localPort, 4))"
        text += " \(hex(entry.remote)):\(hex(entry.remotePort, 4)) \(hex(entry.state, 2))"
        let sent = entry.socket?.isListening == true ? 0 : SocketDiagnosis.sendQueue(entry.socket)
        text += " \(hex(sent, 8)):\(hex(SocketDiagnosis.receiveQueue(entry.socket), 8))"
        text += " 00:00000000 00000000 \(entry.socket?.owner.uid ?? 0) 0 \(entry.socket?.inode ?? 0)"
        return text + " 1 0000000000000000 0\n"
    }

    // MARK: Groups

    /// Of IPv4's plugin, by its private request: interface, group, sockets.
    private static func joinedGroups(_ kernel: Kernel) -> [(ifindex: UInt32, group: UInt32, users: UInt32)] {
        let entry = kernel.protocols.entries.last { $0.name == "raw" && $0.instance.state == .running }
        guard let entry, let request = entry.request(named: "groups"), request.signature == "B" else { return [] }
        let (error, results) = request.call(
            instance: entry.instancePointer, socket: nil, [.buffer([], capacity: 1 << 18)])
        guard error == 0, case .bytes(let bytes)? = results.first else { return [] }
        return stride(from: 0, to: bytes.count - bytes.count % 12, by: 12).map {
            let record = bytes[$0..<$0 + 12]
            return (record.number(at: 0), record.number(at: 4), record.number(at: 8))
        }
    }

    private static func groups(_ kernel: Kernel) -> String {
        var text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n"
        let joined = joinedGroups(kernel)
        for interface in kernel.interfaces.all {
            // Everybody is in the group of all hosts.
            let own = joined.filter { $0.ifindex == interface.raw.pointee.index }
                + [(interface.raw.pointee.index, UInt32(0xe000_0001).bigEndian, 1)]
            let count = String(own.count)
            text += "\(interface.raw.pointee.index)\t\(padded(interface.name, 10)): "
            text += String(repeating: " ", count: max(0, 5 - count.count)) + count + "      V2\n"
            for (_, group, users) in own {
                let number = String(users)
                text += "\t\t\t\t\(hex(group, 8)) " + String(repeating: " ", count: max(0, 5 - number.count)) + number
                text += " 0:00000000\t\t0\n"
            }
        }
        return text
    }
}

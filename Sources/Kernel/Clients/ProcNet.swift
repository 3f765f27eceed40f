import PluginAPI

/// Files of /proc/net as Linux has them, about this stack.
enum ProcNet {
    static func text(_ name: String, _ kernel: Kernel) -> String? {
        switch name {
        case "dev": device(kernel)
        case "route": route(kernel)
        case "tcp": sockets(kernel, 6)
        case "udp": sockets(kernel, 17)
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
            let name = kernel.interfaces.interface(route.ifindex)?.name ?? "*"
            let mask = route.prefix_length == 0 ? 0 : (UInt32.max << UInt32(32 - route.prefix_length)).byteSwapped
            text += "\(name)\t\(hex(route.destination))\t\(hex(route.gateway))\t\(hex(route.flags & 0xf, 4))\t0\t0\t"
            text += "\(route.metric)\t\(hex(mask, 8))\t0\t0\t0\n"
        }
        return text
    }

    private static func sockets(_ kernel: Kernel, _ protocolNumber: UInt8) -> String {
        var text =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        var line = 0
        // Linux's numbers of the states, by ours (alps/pcb.h).
        let states = [7, 10, 2, 3, 1, 4, 5, 8, 11, 9, 6]
        kernel.connections.forEach { conn in
            guard conn.pointee.protocol == protocolNumber else { return }
            let socket = conn.pointee.socket
            let state = protocolNumber == 17
                ? (conn.pointee.remote_port == 0 ? 7 : 1) : states[min(Int(conn.pointee.state), states.count - 1)]
            let number = String(line)
            text += String(repeating: " ", count: max(0, 4 - number.count)) + number
            text += ": \(hex(conn.pointee.local)):\(hex(conn.pointee.local_port, 4))"
            text += " \(hex(conn.pointee.remote)):\(hex(conn.pointee.remote_port, 4)) \(hex(state, 2))"
            let send = socket.map { $0.pointee.snd.tail &- $0.pointee.snd.head } ?? 0
            let receive = socket.map { $0.pointee.rcv.tail &- $0.pointee.rcv.head } ?? 0
            text += " \(hex(send, 8)):\(hex(receive, 8)) 00:00000000 00000000 \(socket?.pointee.uid ?? 0) 0 "
            text += "\(socket?.pointee.id ?? 0) 1 0000000000000000\n"
            line += 1
        }
        return text
    }
}

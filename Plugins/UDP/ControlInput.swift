import PluginAPI
import PluginKit

/// An error message about a datagram that this stack sent (RFC 1122, 4.1.3.3: pass it to the application).
///
/// As on Linux: a connected socket hears of errors that are final; one with ALPS_SO_RECVERR of all of them, connected
/// or not. An unconnected one could not tell which of its datagrams is meant.
func udpControlInput(_ context: UnsafeMutableRawPointer, _ event: UnsafePointer<alps_ctl_event>) {
    let instance = context.assumingMemoryBound(to: Instance.self)
    instance.count(.errorMessages)
    guard let conn = event.pointee.conn, let cookie = conn.pointee.cookie, let network = instance.network else {
        return
    }
    let block = cookie.assumingMemoryBound(to: ControlBlock.self)
    let socket = block.pointee.socket
    let netpcb = socket.pointee.netpcb
    if event.pointee.error == ALPS_EMSGSIZE {
        // The quoted tuple is ours, so the report is believed.
        if block.pointee.isConnected, netpcb.pointee.remote == event.pointee.destination {
            _ = network.ops.pointee.lower_mtu(
                network.instance, netpcb, event.pointee.mtu, event.pointee.quoted_length)
        } else {
            var oneOff = netpcb.pointee
            oneOff.remote = event.pointee.destination
            oneOff.route = alps_route()
            _ = network.ops.pointee.lower_mtu(
                network.instance, &oneOff, event.pointee.mtu, event.pointee.quoted_length)
        }
    }
    guard event.pointee.error != 0 else { return }
    let wantsAll = socket.pointee.options & ALPS_SO_RECVERR != 0
    let isFinal =
        event.pointee.hard != 0
        || (event.pointee.error == ALPS_EMSGSIZE && netpcb.pointee.flags & UInt8(ALPS_NETPCB_DF) != 0)
    if wantsAll || (isFinal && block.pointee.isConnected) {
        var port: UInt16 = 0
        if let quoted = event.pointee.quoted {
            instance.services.mbuf.pointee.copy_out(
                instance.services.mbufCell.instance, quoted, event.pointee.transport_offset + 2, 2, &port)
        }
        instance.sockets.pointee.report_error(
            instance.services.socketCell.instance, socket, event, event.pointee.transport_offset + 8,
            UInt16(bigEndian: port))
    }
}

import PluginAPI
import PluginKit

typealias InstancePointer = UnsafeMutablePointer<Instance>
typealias Mbuf = UnsafeMutablePointer<alps_mbuf>
typealias Socket = UnsafeMutablePointer<alps_socket>

/// TCP (RFC 9293), over whatever network its registration names.
///
/// One instance, in zone memory. A value of plain pointers and numbers: nothing here is counted by references.
struct Instance {
    var services: HostServices
    /// The network below. It may be loaded after us, be swapped and come and go: asked for when it is used.
    var networkCell: UnsafePointer<alps_cell>?
    /// Indexed by `Setting`.
    var settings: UnsafeMutablePointer<Int64>
    /// Indexed by `Counter`.
    var counters: UnsafeMutablePointer<UInt64>
    var requests: UnsafeMutablePointer<alps_user_request>
    var entry: UnsafeMutablePointer<alps_protosw>

    /// All connections, those that listen included.
    var connections: ConnectionPointer?
    /// Connections that the batch under way has touched.
    var touched: ConnectionPointer?
    /// Ranges that no send map needs at present.
    var freeRanges: FreeList<SentRange>
    /// Senders that nobody needs at present.
    var freeSenders: FreeList<Sender>
    /// The sender of connections that have nothing in flight; the ECN of those without Accurate ECN. Changes of them go
    /// into the ignored ones.
    var restingMemory: Sender
    var ignoredMemory: Sender
    var restingECN: AccurateECN
    var ignoredECN: AccurateECN
    /// SYN cache, oldest first.
    var embryonics: EmbryonicList
    /// Compressed TIME-WAIT entries, the one that ends first in front, and the timer for it.
    var timeWaits: TimeWaitList
    var timeWaitCallout: alps_callout
    /// Changes with every entry that goes into or out of the host's connection table: what a packet's `conn` was looked
    /// up to be may be wrong after that.
    var tableGeneration: UInt64

    var sequenceKey: SecretKey
    var timestampKey: SecretKey
    var cookieKey: SecretKey
    var fastOpenKey: SecretKey
    var fastOpenCache: UnsafeMutablePointer<FastOpenEntry>?
    /// Destinations that do not answer requests for Accurate ECN.
    var unansweredRequests = UnansweredRequests()
    /// When a SYN cookie was last sent; only for a while after are cookies believed.
    var lastCookie: UInt64
}

/// The network below, for the length of one call.
struct Network {
    let ops: UnsafePointer<alps_network_ops>
    let instance: UnsafeMutableRawPointer
}

extension UnsafeMutablePointer where Pointee == Instance {
    @inline(__always)
    var services: HostServices { pointee.services }

    @inline(__always)
    var now: UInt64 {
        let cell = pointee.services.timeCell
        return cell.ops(alps_time_ops.self).pointee.now(cell.instance)
    }

    /// Nil while nobody provides it.
    @inline(__always)
    var network: Network? {
        guard let cell = pointee.networkCell, let ops = cell.pointee.ops, let instance = cell.pointee.`self` else {
            return findNetwork()
        }
        return Network(ops: ops.assumingMemoryBound(to: alps_network_ops.self), instance: instance)
    }

    @inline(never)
    private func findNetwork() -> Network? {
        pointee.networkCell = services.cell(Registration.network)
        guard let cell = pointee.networkCell, let ops = cell.pointee.ops, let instance = cell.pointee.`self` else {
            return nil
        }
        return Network(ops: ops.assumingMemoryBound(to: alps_network_ops.self), instance: instance)
    }

    @inline(__always)
    func count(_ counter: Counter) { pointee.counters[counter.rawValue] &+= 1 }

    @inline(__always)
    func count(_ counter: Counter, _ amount: UInt32) { pointee.counters[counter.rawValue] &+= UInt64(amount) }

    @inline(__always)
    func setting(_ setting: Setting) -> Int64 { pointee.settings[setting.rawValue] }

    /// A setting that is a time, a size or a number, never negative.
    @inline(__always)
    func nanoseconds(_ setting: Setting) -> UInt64 { UInt64(bitPattern: pointee.settings[setting.rawValue]) }

    // RFC 7323, one option without the other if asked for.
    var offersTimestamps: Bool { isOn(.rfc1323) && isOn(.timestamps) }
    var offersWindowScaling: Bool { isOn(.rfc1323) && isOn(.windowScaling) }

    @inline(__always)
    func isOn(_ setting: Setting) -> Bool { pointee.settings[setting.rawValue] != 0 }

    @inline(__always)
    func free(_ packet: Mbuf) {
        let cell = pointee.services.mbufCell
        cell.ops(alps_mbuf_ops.self).pointee.free_packet(cell.instance, packet)
    }

    @inline(__always)
    var sockets: UnsafePointer<alps_socket_ops> { pointee.services.socketCell.ops(alps_socket_ops.self) }

    @inline(__always)
    var socketLayer: UnsafeMutableRawPointer { pointee.services.socketCell.instance }

    // MARK: Connection table

    func bind(_ conn: UnsafeMutablePointer<alps_conn>) -> Int32 {
        pointee.tableGeneration &+= 1
        let cell = pointee.services.pcbCell
        return cell.ops(alps_pcb_ops.self).pointee.bind(cell.instance, conn)
    }

    func insert(_ conn: UnsafeMutablePointer<alps_conn>) -> Int32 {
        pointee.tableGeneration &+= 1
        let cell = pointee.services.pcbCell
        return cell.ops(alps_pcb_ops.self).pointee.insert(cell.instance, conn)
    }

    func remove(_ conn: UnsafeMutablePointer<alps_conn>) {
        pointee.tableGeneration &+= 1
        let cell = pointee.services.pcbCell
        cell.ops(alps_pcb_ops.self).pointee.remove(cell.instance, conn)
    }

    /// The entry that a packet to us belongs to, now.
    func lookup(_ packet: Mbuf) -> UnsafeMutablePointer<alps_conn>? {
        let cell = pointee.services.pcbCell
        return cell.ops(alps_pcb_ops.self).pointee.lookup(
            cell.instance, packet.pointee.pkt.family, Registration.protocol, &packet.pointee.pkt.destination,
            packet.pointee.data.load16(Header.destinationPort), &packet.pointee.pkt.source,
            packet.pointee.data.load16(Header.sourcePort), packet.pointee.pkt.ifindex)
    }
}

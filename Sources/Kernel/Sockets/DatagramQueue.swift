import PluginAPI

/// Datagrams waiting for the application, oldest first. A ring of records that grows by doubling and is kept: no
/// allocation per datagram. An object, so that streams need not have one.
final class DatagramQueue {
    private struct Record {
        var packet: Mbuf
        var info: alps_datagram_info
    }

    private var records: [Record?] = []
    private var first = 0
    private(set) var count = 0
    /// Payload and overhead bytes of what waits: what SO_RCVBUF limits.
    private(set) var bytes = 0

    /// Bytes that a datagram costs beside its payload.
    static let overhead = 256

    /// Whether another one fits. As with Linux, one always fits into an empty queue.
    func hasRoom(for length: UInt32, limit: UInt32) -> Bool {
        count == 0 || bytes + Int(length) + Self.overhead <= Int(limit)
    }

    func append(_ packet: Mbuf, _ info: alps_datagram_info) {
        if count == records.count { grow() }
        records[(first + count) & (records.count - 1)] = Record(packet: packet, info: info)
        count += 1
        bytes += Int(packet.pointee.pkt.length) + Self.overhead
    }

    private func grow() {
        let old = records
        records = [Record?](repeating: nil, count: max(16, 2 * old.count))
        for index in 0..<count { records[index] = old[(first + index) & (old.count - 1)] }
        first = 0
    }

    /// The oldest, left where it is.
    var front: (packet: Mbuf, info: alps_datagram_info)? { self[0] }

    /// The one that `index` others are in front of, left where it is.
    subscript(index: Int) -> (packet: Mbuf, info: alps_datagram_info)? {
        guard index < count, let record = records[(first + index) & (records.count - 1)] else { return nil }
        return (record.packet, record.info)
    }

    func removeFirst() -> (packet: Mbuf, info: alps_datagram_info)? {
        guard count > 0, let record = records[first] else { return nil }
        records[first] = nil
        first = (first + 1) & (records.count - 1)
        count -= 1
        bytes -= Int(record.packet.pointee.pkt.length) + Self.overhead
        return (record.packet, record.info)
    }

    func removeAll(_ pool: MbufPool) {
        while let (packet, _) = removeFirst() { pool.freePacket(packet) }
        records = []
    }
}

/// No queue is as good as an empty one.
extension DatagramQueue? {
    var count: Int { self?.count ?? 0 }
    var bytes: Int { self?.bytes ?? 0 }
}

import CLinux
import Glibc
package import PluginAPI

/// Datagrams waiting for the application, or the errors between them, oldest first. A ring of records that grows by
/// doubling and is kept: no allocation per datagram.
struct DatagramQueue {
    struct Record {
        var packet: Mbuf?
        var info: alps_datagram_info
    }

    private var records: [Record?] = []
    private var first = 0
    private(set) var count = 0
    /// Payload and overhead bytes of what waits.
    private(set) var bytes = 0

    static let overhead = 256

    mutating func append(_ packet: Mbuf, _ info: alps_datagram_info) {
        if count == records.count {
            let old = records
            records = [Record?](repeating: nil, count: max(16, 2 * old.count))
            for index in 0..<count { records[index] = old[(first + index) % old.count] }
            first = 0
        }
        records[(first + count) % records.count] = Record(packet: packet, info: info)
        count += 1
        bytes += Int(packet.pointee.pkt.length) + Self.overhead
    }

    /// The oldest, left where it is.
    var front: Record? { count == 0 ? nil : records[first] }

    mutating func removeFirst() -> (packet: Mbuf, info: alps_datagram_info)? {
        guard count > 0, let record = records[first], let packet = record.packet else { return nil }
        records[first] = nil
        first = (first + 1) % records.count
        count -= 1
        bytes -= Int(packet.pointee.pkt.length) + Self.overhead
        return (packet, record.info)
    }

    mutating func removeAll(_ pool: MbufPool) {
        while let (packet, _) = removeFirst() { pool.freePacket(packet) }
    }
}

extension Socket {
    /// Datagrams waiting.
    package var datagramCount: Int { datagrams.count }

    /// The oldest datagram, left in the queue.
    package var firstDatagram: (packet: Mbuf, info: alps_datagram_info)? {
        guard let record = datagrams.front, let packet = record.packet else { return nil }
        return (packet, record.info)
    }

    /// Takes the oldest datagram; the caller frees the packet.
    package func nextDatagram() -> (info: alps_datagram_info, packet: Mbuf)? {
        datagrams.removeFirst().map { ($0.info, $0.packet) }
    }

    /// Sends one datagram to `destination`, or to the connected peer. [consumes packet]
    package func sendDatagram(_ packet: Mbuf, to destination: alps_sockaddr?) -> Int32 {
        guard isAttached, let send = entry.sw.pointee.send_datagram, !cannotSendMore else {
            kernel.mbufs.freePacket(packet)
            return Int32(cannotSendMore ? ALPS_EPIPE : ALPS_EOPNOTSUPP)
        }
        guard var destination else { return send(entry.instancePointer, raw, packet, nil) }
        return send(entry.instancePointer, raw, packet, &destination)
    }

    /// The same from bytes, for tests and in-process users.
    package func send(_ bytes: [UInt8], to destination: alps_sockaddr? = nil) -> Int32 {
        let packet = bytes.count <= 200
            ? kernel.mbufs.packet(headroom: 128) : kernel.mbufs.cluster(headroom: 128, capacity: bytes.count)
        guard let packet else { return Int32(ALPS_ENOBUFS) }
        let status = bytes.withUnsafeBytes { kernel.mbufs.append(packet, $0.baseAddress ?? UnsafeRawPointer(packet), $0.count) }
        guard status == 0 else {
            kernel.mbufs.freePacket(packet)
            return status
        }
        return sendDatagram(packet, to: destination)
    }

    /// Receives one datagram's bytes, for tests and in-process users.
    package func receive() -> (bytes: [UInt8], from: alps_sockaddr)? {
        guard let (info, packet) = nextDatagram() else { return nil }
        let count = Int(packet.pointee.pkt.length)
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            if count > 0 { kernel.mbufs.copyOut(packet, 0, count, buffer.baseAddress!) }
            initialized = count
        }
        kernel.mbufs.freePacket(packet)
        return (bytes, info.source)
    }
}

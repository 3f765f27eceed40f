package import PluginAPI

/// The data path of datagram and raw sockets.
extension Socket {
    /// Datagrams waiting.
    package var datagramCount: Int { datagrams.count }

    /// The oldest datagram, left in the queue.
    package var firstDatagram: (packet: Mbuf, info: alps_datagram_info)? { datagrams?.front }

    /// The datagram that `index` others are in front of, left in the queue.
    func datagram(at index: Int) -> (packet: Mbuf, info: alps_datagram_info)? { datagrams?[index] }

    /// Frees the `count` oldest.
    func dropDatagrams(_ count: Int) {
        for _ in 0..<count {
            guard let (packet, _) = datagrams?.removeFirst() else { return }
            pool._withUnsafeGuaranteedRef { $0.freePacket(packet) }
        }
    }

    /// Takes the oldest datagram; the caller frees the packet.
    package func nextDatagram() -> (info: alps_datagram_info, packet: Mbuf)? {
        datagrams?.removeFirst().map { ($0.info, $0.packet) }
    }

    /// Queues a datagram for the application; drops and counts it if the queue is full. [consumes]
    @inline(__always)
    func enqueue(_ packet: Mbuf, _ info: UnsafePointer<alps_datagram_info>) -> Int32 {
        guard !isClosed, !cannotReceiveMore,
            datagrams?.hasRoom(for: packet.pointee.pkt.length, limit: raw.pointee.rcv.limit) == true
        else {
            kernel.sockets.count(.datagramsDropped)
            pool._withUnsafeGuaranteedRef { $0.freePacket(packet) }
            return ALPS_ENOBUFS
        }
        packet.pointee.nextpkt = nil
        guard let held = pool._withUnsafeGuaranteedRef({ $0.hold(packet) }) else {
            kernel.sockets.count(.datagramsDropped)
            return ALPS_ENOBUFS
        }
        datagrams?.append(held, info.pointee)
        markDirty()
        return 0
    }

    /// Sends one datagram to `destination`, or to the connected peer. [consumes]
    package func sendDatagram(_ packet: Mbuf, to destination: alps_sockaddr?) -> Int32 {
        guard isAttached, let send = protosw.pointee.send_datagram, !cannotSendMore else {
            pool._withUnsafeGuaranteedRef { $0.freePacket(packet) }
            return cannotSendMore ? ALPS_EPIPE : ALPS_EOPNOTSUPP
        }
        guard var destination else { return send(instance, raw, packet, nil) }
        return send(instance, raw, packet, &destination)
    }

    /// The same from bytes, for tests and in-process users. As with Linux, a pending error is told instead.
    package func send(_ bytes: [UInt8], to destination: alps_sockaddr? = nil) -> Int32 {
        if pendingError != 0 { return takeError() }
        let packet =
            bytes.count <= 160 ? kernel.mbufs.packet(headroom: 128) : kernel.mbufs.cluster(headroom: 128, capacity: bytes.count)
        guard let packet else { return bytes.count > 65535 ? ALPS_EMSGSIZE : ALPS_ENOBUFS }
        let status = bytes.withUnsafeBytes { content in
            content.baseAddress.map { kernel.mbufs.append(packet, $0, content.count) } ?? 0
        }
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
            if let to = buffer.baseAddress, count > 0 { kernel.mbufs.copyOut(packet, 0, count, to) }
            initialized = count
        }
        kernel.mbufs.freePacket(packet)
        return (bytes, info.source)
    }
}

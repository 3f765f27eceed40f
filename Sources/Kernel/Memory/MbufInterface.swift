internal import PluginAPI

/// "alps.mbuf/1", `self` being the pool.
extension MbufPool {
    static var table: alps_mbuf_ops {
        alps_mbuf_ops(
            size: UInt32(MemoryLayout<alps_mbuf_ops>.size), reserved: 0, packet: mbufPacket, cluster: mbufCluster,
            refer: mbufRefer, free: mbufFree, free_packet: mbufFreePacket, prepend: mbufPrepend, pullup: mbufPullup,
            adjust: mbufAdjust, copy_out: mbufCopyOut, copy_in: mbufCopyIn, copy: mbufCopy, append: mbufAppend,
            concatenate: mbufConcatenate, split: mbufSplit, hold: mbufHold, sum: mbufSum,
            finish_checksum: mbufFinishChecksum, segment: mbufSegment)
    }
}

private func mbufPacket(_ pool: UnsafeMutableRawPointer, _ headroom: UInt32) -> Mbuf? {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.packet(headroom: Int(headroom)) }
}

private func mbufCluster(_ pool: UnsafeMutableRawPointer, _ headroom: UInt32, _ capacity: UInt32) -> Mbuf? {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef {
        $0.cluster(headroom: Int(headroom), capacity: Int(capacity))
    }
}

private func mbufRefer(
    _ pool: UnsafeMutableRawPointer, _ ext: UnsafeMutablePointer<alps_ext>, _ bytes: UnsafeMutablePointer<UInt8>,
    _ length: UInt32, _ flags: UInt32
) -> Mbuf? {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.refer(ext, bytes, Int(length), flags: flags) }
}

private func mbufFree(_ pool: UnsafeMutableRawPointer, _ list: Mbuf?) {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.free(list) }
}

private func mbufFreePacket(_ pool: UnsafeMutableRawPointer, _ packet: Mbuf) {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.freePacket(packet) }
}

private func mbufPrepend(_ pool: UnsafeMutableRawPointer, _ packet: Mbuf, _ bytes: UInt32) -> Mbuf? {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.prepend(packet, Int(bytes)) }
}

private func mbufPullup(_ pool: UnsafeMutableRawPointer, _ packet: Mbuf, _ bytes: UInt32) -> Mbuf? {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.pullup(packet, Int(bytes)) }
}

private func mbufAdjust(_ pool: UnsafeMutableRawPointer, _ packet: Mbuf, _ front: UInt32, _ back: UInt32) {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef {
        $0.adjust(packet, front: Int(front), back: Int(back))
    }
}

private func mbufCopyOut(
    _ pool: UnsafeMutableRawPointer, _ packet: UnsafePointer<alps_mbuf>, _ offset: UInt32, _ length: UInt32,
    _ destination: UnsafeMutableRawPointer
) {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef {
        $0.copyOut(packet, Int(offset), Int(length), destination)
    }
}

private func mbufCopyIn(
    _ pool: UnsafeMutableRawPointer, _ packet: Mbuf, _ offset: UInt32, _ length: UInt32, _ source: UnsafeRawPointer
) {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef {
        $0.copyIn(packet, Int(offset), Int(length), source)
    }
}

private func mbufCopy(
    _ pool: UnsafeMutableRawPointer, _ packet: UnsafePointer<alps_mbuf>, _ offset: UInt32, _ length: UInt32
) -> Mbuf? {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.copy(packet, Int(offset), Int(length)) }
}

private func mbufAppend(
    _ pool: UnsafeMutableRawPointer, _ packet: Mbuf, _ bytes: UnsafeRawPointer, _ length: UInt32
) -> Int32 {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.append(packet, bytes, Int(length)) }
}

private func mbufConcatenate(_ pool: UnsafeMutableRawPointer, _ head: Mbuf, _ tail: Mbuf) {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.concatenate(head, tail) }
}

private func mbufSplit(_ pool: UnsafeMutableRawPointer, _ packet: Mbuf, _ at: UInt32) -> Mbuf? {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.split(packet, Int(at)) }
}

private func mbufHold(_ pool: UnsafeMutableRawPointer, _ packet: Mbuf) -> Mbuf? {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.hold(packet) }
}

private func mbufSum(
    _ pool: UnsafeMutableRawPointer, _ packet: UnsafePointer<alps_mbuf>, _ offset: UInt32, _ length: UInt32
) -> UInt32 {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.sum(packet, Int(offset), Int(length)) }
}

private func mbufFinishChecksum(_ pool: UnsafeMutableRawPointer, _ packet: Mbuf) -> Mbuf? {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.finishChecksum(packet) }
}

private func mbufSegment(_ pool: UnsafeMutableRawPointer, _ packet: Mbuf) -> Mbuf? {
    Unmanaged<MbufPool>.fromOpaque(pool)._withUnsafeGuaranteedRef { $0.segment(packet) }
}

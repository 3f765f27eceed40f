import CLinux
import Glibc
import PluginAPI

/// A device whose descriptor carries frames with a virtio header in front, so that segments of up to 64 KiB and unfinished
/// checksums pass in both directions: a tap, a packet socket.
package class FrameDevice: Device {
    final let kernel: Kernel
    private final let pool: MbufPool
    final let descriptor: Int32
    private final let headerSize: Int
    private final var handler: Readiness?
    /// The big cluster that the next frame's tail goes to; used up only by frames that need it.
    private final var spare: Mbuf?
    private final let prediction: FramePrediction
    /// A tap's.
    final var steering: ReceiveSteering? {
        didSet {
            nextLook = steering == nil ? .max : 0
            holdsShortFrames = false
        }
    }
    /// They wait for the end of the turn; while `steering` is at it.
    package final var holdsShortFrames = false {
        didSet { if !holdsShortFrames { flush() } }
    }
    private final var held = HeldFrames()
    /// The kernel's turn in which `steering` looks at the load.
    private final var nextLook = UInt64.max
    /// What has passed.
    private final var counts = FrameCounts()
    /// The last time that all were read there was but one.
    private final var comesAlone = false
    /// The turn that has not asked for another.
    private final var stoppedInTurn = UInt64.max
    private final let vectors = UnsafeMutablePointer<iovec>.allocate(capacity: maximumVectors)
    /// And behind it a short frame on its way out.
    private final let header = UnsafeMutableRawPointer.allocate(
        byteCount: MemoryLayout<virtio_net_hdr_v1>.size + shortFrame, alignment: MemoryLayout<virtio_net_hdr_v1>.alignment
    ).bindMemory(to: virtio_net_hdr_v1.self, capacity: 1)

    private static let maximumVectors = 256
    /// Frames a turn: the rest waits, so that clients get their share.
    private static let batch = 64
    /// Bytes of long frames that are handed on before more are read: what has just been copied is copied again, and a small
    /// cache still has it.
    private static let nearBytes: UInt32 = 64 << 10
    /// Frames up to this length stay in the small buffer.
    private static let smallCapacity = 1792
    private static let copiedTail = 8192
    /// Frames up to this length are copied together before they are written.
    private static let shortFrame = 2048

    private final class Readiness: ReadyHandler {
        let device: Borrowed<FrameDevice>
        init(_ device: FrameDevice) { self.device = Borrowed(device) }
        package override func ready(_ events: UInt32) { device { $0.receive() } }
    }

    /// `descriptor` is the device's from now on, also if this throws. `headerSize` is that of the virtio header: 12 bytes
    /// with the number of buffers at its end, 10 without.
    package init(
        descriptor: Int32, headerSize: Int, capabilities: UInt32 = UInt32(ALPS_IFCAP_TXCSUM | ALPS_IFCAP_TSO4),
        kernel: Kernel
    ) throws {
        self.kernel = kernel
        pool = kernel.mbufs
        self.descriptor = descriptor
        self.headerSize = headerSize
        prediction = FramePrediction(kernel.sockets)
        super.init(capabilities: capabilities)
        let handler = Readiness(self)
        self.handler = handler
        try kernel.reactor?.add(descriptor, events: UInt32(EPOLLIN.rawValue), handler: handler)
    }

    // Written out, since the compiler warns about the stub that it makes itself.
    @available(*, unavailable)
    override init(capabilities: UInt32) { fatalError("a device of frames needs its descriptor") }

    deinit {
        close()
        vectors.deallocate()
        header.deallocate()
        held.deallocate()
    }

    package override func close() {
        guard let handler else { return }
        flush()
        kernel.reactor?.remove(descriptor, handler: handler)
        self.handler = nil
        kernel.mbufs.free(spare)
        spare = nil
        steering = nil
        Glibc.close(descriptor)
    }

    package override var spareBuffers: Int { spare == nil ? 0 : 1 }

    // MARK: Input

    /// Reads a batch of frames: each in one call, its head into a small buffer, a long frame's tail into a big one, or, if it
    /// is what was expected, to where it belongs.
    private final func receive() {
        var first: Mbuf?
        var last: Mbuf?
        var bytes: UInt32 = 0
        // Where a frame is answered before the next one comes, half of the calls would find nothing. What is there all the same
        // makes the descriptor ready in the next turn, which then reads all.
        let asksOnce = comesAlone && kernel.turns != stoppedInTurn &+ 1
        for count in 0..<Self.batch {
            if asksOnce, count == 1 {
                stoppedInTurn = kernel.turns
                break
            }
            guard let frame = readFrame() else {
                comesAlone = count == 1
                break
            }
            counts.received &+= 1
            if let last { last.pointee.nextpkt = frame } else { first = frame }
            last = frame
            if frame.pointee.pkt.length > Self.copiedTail { bytes &+= frame.pointee.pkt.length }
            // Where a frame belongs that comes behind one that has been read to its place, this one has to tell.
            let isPlaced = frame.pointee.next.map { $0.pointee.flags & ALPS_M_RING != 0 } ?? false
            guard bytes >= Self.nearBytes || isPlaced, let list = first else { continue }
            handOn(list, frame)
            (first, last, bytes) = (nil, nil, 0)
        }
        if let first, let last { handOn(first, last) }
    }

    private final func handOn(_ list: Mbuf, _ last: Mbuf) {
        guard last.pointee.pkt.length > Self.copiedTail else {
            borrowedInterface?({ $0.receiveFrames(list) })
            return
        }
        prediction.willDeliver(last)
        borrowedInterface?({ $0.receiveFrames(list) })
        prediction.hasDelivered(last)
    }

    private final func readFrame() -> Mbuf? {
        guard let small = pool.cluster(headroom: Device.headroom, capacity: Self.smallCapacity) else {
            discardFrame()
            return nil
        }
        if spare == nil { spare = pool.cluster(headroom: 0, capacity: Int(ALPS_BIG_CLUSTER_SIZE) - 256) }
        vectors[0] = iovec(iov_base: header, iov_len: headerSize)
        if receiving == nil, let target = prediction.target() { return readFrame(small, target) }
        vectors[1] = iovec(iov_base: small.pointee.data, iov_len: Self.smallCapacity)
        var count: Int32 = 2
        if let spare {
            vectors[2] = iovec(iov_base: spare.pointee.data, iov_len: Int(ALPS_BIG_CLUSTER_SIZE) - 256)
            count = 3
        }
        let length = readv(descriptor, vectors, count) - headerSize
        guard length > 0 else {
            pool.freePacket(small)
            return nil
        }
        small.pointee.length = UInt32(min(length, Self.smallCapacity))
        small.pointee.pkt.length = small.pointee.length
        if length > Self.smallCapacity, let tail = spare { attach(tail, length - Self.smallCapacity, to: small) }
        decodeHeader(small)
        return small
    }

    private final func readFrame(_ small: Mbuf, _ target: FramePrediction.Target) -> Mbuf? {
        vectors[1] = iovec(iov_base: small.pointee.data, iov_len: target.headerLength)
        vectors[2] = iovec(iov_base: target.place, iov_len: target.room)
        let length = readv(descriptor, vectors, 3) - headerSize
        guard length > 0 else {
            pool.freePacket(small)
            return nil
        }
        small.pointee.length = UInt32(min(length, target.headerLength))
        small.pointee.pkt.length = small.pointee.length
        let payload = length - target.headerLength
        if payload > 0 {
            if prediction.isRight(small.pointee.data),
                let placed = pool.refer(target.ring, target.place, payload, flags: ALPS_M_RING)
            {
                pool.concatenate(small, placed)
            } else {
                takeBack(target.place, payload, small)
            }
        }
        decodeHeader(small)
        return small
    }

    /// It does not belong where it has been read to.
    private final func takeBack(_ bytes: UnsafeMutablePointer<UInt8>, _ count: Int, _ packet: Mbuf) {
        let head = min(count, Self.smallCapacity - Int(packet.pointee.length))
        memcpy(packet.pointee.data + Int(packet.pointee.length), bytes, head)
        packet.pointee.length += UInt32(head)
        packet.pointee.pkt.length += UInt32(head)
        guard count > head else { return }
        guard let tail = spare else {
            interface?.errorsIn &+= 1
            return
        }
        memcpy(tail.pointee.data, bytes + head, count - head)
        attach(tail, count - head, to: packet)
    }

    /// Puts what did not fit into the small buffer behind it. A short tail is copied: it would pin a large buffer.
    private final func attach(_ tail: Mbuf, _ length: Int, to packet: Mbuf) {
        if length <= Self.copiedTail {
            // Without memory the packet stays cut short, and its receiver finds that.
            if pool.append(packet, tail.pointee.data, length) != 0 { interface?.errorsIn &+= 1 }
            return
        }
        spare = nil
        tail.pointee.length = UInt32(length)
        pool.concatenate(packet, tail)
    }

    private final func decodeHeader(_ packet: Mbuf) {
        let virtio = header.pointee
        if virtio.flags & UInt8(VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0 {
            packet.pointee.pkt.csum = UInt8(ALPS_CSUM_PARTIAL)
            packet.pointee.pkt.csum_start = virtio.csum_start
            packet.pointee.pkt.csum_offset = virtio.csum_offset
        } else if virtio.flags & UInt8(VIRTIO_NET_HDR_F_DATA_VALID) != 0 {
            packet.pointee.pkt.csum = UInt8(ALPS_CSUM_VALID)
        }
        let ecn = UInt8(VIRTIO_NET_HDR_GSO_ECN)
        guard virtio.gso_type & ~ecn == UInt8(VIRTIO_NET_HDR_GSO_TCPV4), virtio.gso_size > 0 else { return }
        packet.pointee.pkt.gso_type = UInt8(ALPS_GSO_TCP4) | (virtio.gso_type & ecn != 0 ? UInt8(ALPS_GSO_ECN) : 0)
        packet.pointee.pkt.gso_size = virtio.gso_size
        // `hdr_len` may count payload that the sender had in its linear part: the TCP header itself tells.
        let payload = max(Int(packet.pointee.pkt.length) - tcpPayloadStart(packet, virtio.csum_start), 1)
        let size = Int(virtio.gso_size)
        packet.pointee.pkt.gso_segments = UInt16(clamping: (payload + size - 1) / size)
    }

    /// Where the payload begins, given where the TCP header does.
    private final func tcpPayloadStart(_ packet: Mbuf, _ start: UInt16) -> Int {
        let start = Int(start)
        guard start + 12 < Int(packet.pointee.length) else { return start + 20 }
        return start + Int(packet.pointee.data[start + 12] >> 4) * 4
    }

    /// Without memory a frame is read and lost, else the descriptor would stay readable and the loop spin.
    private final func discardFrame() {
        var byte: UInt8 = 0
        _ = Glibc.read(descriptor, &byte, 1)
        interface?.errorsIn &+= 1
    }

    // MARK: Output

    package final override func transmit(_ list: Mbuf) {
        var next: Mbuf? = list
        while let packet = next {
            next = packet.pointee.nextpkt
            packet.pointee.nextpkt = nil
            writeFrame(packet)
            counts.sent(length: packet.pointee.pkt.length)
            pool.freePacket(packet)
        }
        if kernel.turns >= nextLook, let steering {
            nextLook = steering.look(counts)
            holdsShortFrames = steering.isSteering
        }
    }

    package final override func flush() {
        if held.count > 0 { interface?.errorsOut &+= UInt64(held.write(to: descriptor)) }
    }

    private final func writeFrame(_ packet: Mbuf) {
        encodeHeader(packet)
        if Int(packet.pointee.pkt.length) <= Self.shortFrame, writeShort(packet) { return }
        flush()
        vectors[0] = iovec(iov_base: header, iov_len: headerSize)
        var count = 1
        var buffer: Mbuf? = packet
        while let current = buffer {
            buffer = current.pointee.next
            guard current.pointee.length > 0 else { continue }
            guard count < Self.maximumVectors else {
                interface?.errorsOut &+= 1
                return
            }
            vectors[count] = iovec(iov_base: current.pointee.data, iov_len: Int(current.pointee.length))
            count += 1
        }
        if writev(descriptor, vectors, Int32(count)) < 0 { interface?.errorsOut &+= 1 }
    }

    /// In one piece, which costs the kernel less than a list of pieces costs us to copy. False: the chain is longer than its
    /// packet says.
    private final func writeShort(_ packet: Mbuf) -> Bool {
        let frame = UnsafeMutableRawPointer(header)
        var length = headerSize
        var buffer: Mbuf? = packet
        while let current = buffer {
            buffer = current.pointee.next
            let count = Int(current.pointee.length)
            guard length + count <= headerSize + Self.shortFrame else { return false }
            memcpy(frame + length, current.pointee.data, count)
            length += count
        }
        if holdsShortFrames {
            held.append(frame, length)
            if held.isFull { flush() }
        } else if write(descriptor, frame, length) < 0 {
            interface?.errorsOut &+= 1
        }
        return true
    }

    private final func encodeHeader(_ packet: Mbuf) {
        header.initialize(to: virtio_net_hdr_v1())
        if packet.pointee.pkt.csum == UInt8(ALPS_CSUM_PARTIAL) {
            header.pointee.flags = UInt8(VIRTIO_NET_HDR_F_NEEDS_CSUM)
            header.pointee.csum_start = packet.pointee.pkt.csum_start
            header.pointee.csum_offset = packet.pointee.pkt.csum_offset
        }
        guard packet.pointee.pkt.gso_type & ~UInt8(ALPS_GSO_ECN) == UInt8(ALPS_GSO_TCP4) else { return }
        header.pointee.gso_type = UInt8(VIRTIO_NET_HDR_GSO_TCPV4)
            | (packet.pointee.pkt.gso_type & UInt8(ALPS_GSO_ECN) != 0 ? UInt8(VIRTIO_NET_HDR_GSO_ECN) : 0)
        header.pointee.gso_size = packet.pointee.pkt.gso_size
        header.pointee.hdr_len = UInt16(clamping: tcpPayloadStart(packet, packet.pointee.pkt.csum_start))
    }
}

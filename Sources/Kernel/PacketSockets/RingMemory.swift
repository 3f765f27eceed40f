import ClientAPI
import CLinux
import Glibc

/// The memory file under a packet socket's rings, mapped by the program too.
///
/// The program may write into it whatever and whenever it likes. The host reads nothing of it but status words and the
/// frames of a transmit ring, each once, and takes no length or place from it that it does not check. Its pages are there from
/// the start.
package final class RingMemory {
    private let file: SealedFile
    package var descriptor: Int32 { file.descriptor }
    package var base: UnsafeMutableRawPointer { file.base }
    /// Bytes of the rings; the control page lies behind them.
    package let ringBytes: Int
    private var filled: UInt32 = 0

    private static let page = 4096
    /// Of one socket.
    static let limit = 1 << 30

    /// Throws ENOMEM.
    package init(bytes: Int) throws {
        ringBytes = bytes
        guard bytes <= Self.limit else { throw KernelError(ENOMEM, "a ring of \(bytes) bytes is too large") }
        guard let file = SealedFile(name: "alps-packet-ring", bytes: bytes + Self.page),
            alps_allocate_pages(file.descriptor, file.bytes) == 0
        else { throw KernelError(ENOMEM, "no memory for a ring of \(bytes) bytes") }
        self.file = file
    }

    var information: alps_ring_info { alps_ring_info(bytes: UInt64(ringBytes), control: UInt64(ringBytes)) }

    /// What lies at `status` has been filled: tells the program's shim where to look.
    func noteFilled(_ status: UnsafeMutableRawPointer) {
        filled &+= 1
        if filled == 0 { filled = 1 }
        alps_store_release(base + ringBytes, UInt32((status - base) / 4))
        alps_store_release(base + ringBytes + 4, filled)
    }
}

/// What PACKET_RX_RING and PACKET_TX_RING ask for (struct tpacket_req, tpacket_req3), checked.
package struct RingRequest {
    /// TPACKET_V1, _V2, _V3, as the program counts them: 1 to 3.
    package var version: Int
    package var blockSize: Int
    package var blockCount: Int
    package var frameSize: Int
    /// PACKET_RESERVE: bytes in front of each frame.
    package var reserve: Int
    /// Milliseconds after which a block is handed over although it is not full.
    package var retireTimeout: Int = 0
    /// Bytes at the start of a block that are the program's.
    package var privateSize: Int = 0

    package var bytes: Int { blockSize * blockCount }
    var framesPerBlock: Int { blockSize / frameSize }
    package var frameCount: Int { framesPerBlock * blockCount }

    /// Bytes of a struct tpacketN_hdr.
    static func headerSize(_ version: Int) -> Int { version == 3 ? 48 : 32 }

    /// TPACKETn_HDRLEN: header and a struct sockaddr_ll.
    var headerAndName: Int { Self.headerSize(version) + 20 }

    /// Where the frame and its network header lie from the start of a slot, for a link header of `linkLength` bytes that the
    /// program sees, or none.
    func offsets(linkLength: Int?) -> (frame: Int, network: Int) {
        guard let linkLength else {
            let start = Self.aligned(headerAndName) + 16 + reserve
            return (start, start)
        }
        let network = Self.aligned(headerAndName + max(linkLength, 16)) + reserve
        return (network - linkLength, network)
    }

    /// TPACKET_ALIGN.
    static func aligned(_ length: Int) -> Int { (length + 15) & ~15 }

    /// Bytes in front of the first frame of a block.
    var blockHeader: Int { Self.blockDescriptor + (privateSize + 7) & ~7 }
    static let blockDescriptor = 48

    /// Reads and checks a request as packet_set_ring does. Nil without an error: the ring is to go.
    package static func read(
        _ value: [UInt8], version: Int, reserve: Int, isTransmit: Bool
    ) -> (error: Int32, request: RingRequest?) {
        let size = version == 3 ? 28 : 16
        guard value.count >= size else { return (EINVAL, nil) }
        let words = value.withUnsafeBytes { raw in
            (0..<size / 4).map { raw.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self) }
        }
        let (blockSize, blockCount, frameSize, frameCount) = (words[0], words[1], words[2], words[3])
        guard blockCount > 0 else { return (frameCount == 0 ? 0 : EINVAL, nil) }
        guard blockSize > 0, blockSize <= UInt32(Int32.max), blockSize % 4096 == 0 else { return (EINVAL, nil) }
        var request = RingRequest(
            version: version, blockSize: Int(blockSize), blockCount: Int(blockCount), frameSize: Int(frameSize),
            reserve: reserve)
        let least = request.headerAndName + reserve
        if version == 3 {
            if isTransmit {
                guard words[4] == 0, words[5] == 0, words[6] == 0 else { return (EINVAL, nil) }
            } else {
                request.retireTimeout = Int(words[4])
                request.privateSize = Int(words[5])
            }
            guard request.blockSize >= request.blockHeader + least else { return (EINVAL, nil) }
        }
        guard request.frameSize >= least, request.frameSize % 16 == 0, request.framesPerBlock > 0,
            request.frameCount == Int(frameCount)
        else { return (EINVAL, nil) }
        return request.bytes <= RingMemory.limit ? (0, request) : (ENOMEM, nil)
    }
}

/// TP_STATUS_*.
enum RingStatus {
    static let kernel: UInt32 = 0
    static let user: UInt32 = 1
    static let copy: UInt32 = 2
    static let losing: UInt32 = 4
    static let blockTimeout: UInt32 = 32
    static let checksumValid: UInt32 = 128

    // Of a transmit ring.
    static let available: UInt32 = 0
    static let sendRequest: UInt32 = 1
    static let wrongFormat: UInt32 = 4
}

import CLinux
import Glibc

/// A ring that a program writes frames into, to be sent when it says so (PACKET_TX_RING).
final class TransmitRing {
    private let request: RingRequest
    private let memory: RingMemory
    private let start: UnsafeMutableRawPointer
    private var head = 0
    /// A frame is sent from here: the program may change its own while it is being looked at.
    private let copy: UnsafeMutableRawPointer

    init(_ request: RingRequest, _ memory: RingMemory, at offset: Int) {
        self.request = request
        self.memory = memory
        start = memory.base + offset
        copy = .allocate(byteCount: request.frameSize, alignment: 16)
    }

    deinit { copy.deallocate() }

    private var statusOffset: Int { request.version == 3 ? 20 : 0 }
    private var lengthOffset: Int { request.version == 1 ? 8 : request.version == 2 ? 4 : 16 }

    private func slot(_ index: Int) -> UnsafeMutableRawPointer {
        let (block, place) = index.quotientAndRemainder(dividingBy: request.framesPerBlock)
        return start + block * request.blockSize + place * request.frameSize
    }

    /// Sends what is ready, a round of the ring at most. A frame that is not in order ends it with an error, and stays, or is
    /// left out with PACKET_LOSS.
    func sendAll(
        skipsBad: Bool, hasOffsets: Bool, isRaw: Bool, _ send: (UnsafeRawBufferPointer) -> Int32
    ) -> (error: Int32, bytes: Int) {
        var total = 0
        for _ in 0..<request.frameCount {
            let slot = slot(head)
            let status = slot + statusOffset
            guard alps_load_acquire(status) == RingStatus.sendRequest else { break }
            let length = Int(alps_load_acquire(slot + lengthOffset))
            let place = dataOffset(slot, hasOffsets, isRaw)
            let error: Int32
            if request.version == 3, alps_load_acquire(slot) != 0 {
                error = EINVAL
            } else if let place, length <= request.frameSize - place {
                copy.copyMemory(from: slot + place, byteCount: length)
                error = send(UnsafeRawBufferPointer(start: copy, count: length))
            } else {
                error = place == nil ? EINVAL : EMSGSIZE
            }
            if error != 0, !skipsBad {
                alps_store_release(status, RingStatus.wrongFormat)
                return (error, total)
            }
            if error == 0 { total += length }
            alps_store_release(status, RingStatus.available)
            head = head + 1 == request.frameCount ? 0 : head + 1
        }
        return (0, total)
    }

    /// Where a frame's bytes begin; nil: where the program says is not inside the slot.
    private func dataOffset(_ slot: UnsafeMutableRawPointer, _ hasOffsets: Bool, _ isRaw: Bool) -> Int? {
        let least = RingRequest.headerSize(request.version)
        guard hasOffsets else { return least }
        let field = request.version == 1 ? 16 : request.version == 2 ? 12 : 24
        let word = alps_load_acquire(slot + field)
        // tp_mac and tp_net.
        let place = Int(isRaw ? word & 0xffff : word >> 16)
        return place >= least && place <= request.frameSize ? place : nil
    }
}

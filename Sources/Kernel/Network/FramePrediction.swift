import Glibc
import PluginAPI

/// Guesses that the next long frame carries the next bytes of the stream that the last one carried, so that a device can read
/// its payload to where it belongs, a ring that a client maps, instead of copying it there. Whether the guess was right shows
/// in the headers, which the device reads into memory of its own.
///
/// What was guessed wrong is copied out again; so guesses are made again only after a run of frames of one stream, and a
/// longer one after each failure.
final class FramePrediction {
    private let sockets: Borrowed<SocketLayer>
    /// The headers of the last long frame whose payload was placed.
    private let headers = UnsafeMutablePointer<UInt8>.allocate(capacity: maximumHeaders)
    private var headerLength = 0
    private var stream: UnsafeMutableRawPointer?
    /// Frames of the same stream in a row, and how many it takes.
    private var run = 0
    private var neededRun = 1

    private static let leastHeaders = 54
    private static let maximumHeaders = 128
    private static let longestNeededRun = 64
    /// The longest frame and what a device may add to it.
    private static let longestFrame: UInt64 = 65_600

    /// Where a frame is to be read: the first `headerLength` bytes elsewhere, the payload to `place` in `ring`.
    struct Target {
        let headerLength: Int
        let ring: UnsafeMutablePointer<alps_ext>
        let place: UnsafeMutablePointer<UInt8>
        var room: Int { Int(FramePrediction.longestFrame) }
    }

    init(_ sockets: SocketLayer) { self.sockets = Borrowed(sockets) }

    deinit { headers.deallocate() }

    /// A guess about the next frame; nil if there is none, or no room for the longest frame in one piece.
    func target() -> Target? {
        guard run >= neededRun, let placed = sockets({ $0.mayReadIntoRings ? $0.placed : nil }),
            placed.socket.toOpaque() == stream
        else { return nil }
        return placed.socket._withUnsafeGuaranteedRef { socket in
            let buffer = socket.raw.pointee.rcv
            // Behind `tail` lies nothing yet, unless something has come out of order.
            guard socket.isReceiveMapped, socket.idle.placedEnd <= buffer.tail, let ring = buffer.ext, let base = buffer.base
            else { return nil }
            let start = buffer.tail & UInt64(buffer.capacity - 1)
            let room = min(UInt64(buffer.capacity) - start, buffer.head &+ UInt64(buffer.capacity) &- buffer.tail)
            guard room >= Self.longestFrame else { return nil }
            return Target(headerLength: headerLength, ring: ring, place: base + Int(start))
        }
    }

    /// Whether a frame of the same stream has come, its headers as long as before: Ethernet's, those of IPv4 without options,
    /// of TCP.
    func isRight(_ frame: UnsafePointer<UInt8>) -> Bool {
        let isSame =
            memcmp(frame, headers, 15) == 0  // Ethernet header; version and length of IP's
            && memcmp(frame + 20, headers + 20, 2) == 0  // whole or fragment
            && frame[23] == headers[23]  // protocol
            && memcmp(frame + 26, headers + 26, 12) == 0  // addresses, ports
            && frame[46] & 0xf0 == headers[46] & 0xf0  // length of TCP's header
        neededRun = isSame ? max(neededRun / 2, 1) : min(2 * neededRun, Self.longestNeededRun)
        if !isSame { run = 0 }
        sockets { $0.count(isSame ? .payloadsReadToPlace : .payloadsTakenBack) }
        return isSame
    }

    /// A long frame is about to be handed on: keeps its headers.
    func willDeliver(_ frame: UnsafePointer<alps_mbuf>) {
        sockets { $0.placed = nil }
        memcpy(headers, frame.pointee.data, min(Self.maximumHeaders, Int(frame.pointee.length)))
    }

    /// And has been.
    func hasDelivered(_ frame: UnsafePointer<alps_mbuf>) {
        guard let placed = sockets({ $0.placed }), placed.packet == frame,
            Self.leastHeaders <= placed.headerLength, placed.headerLength <= Self.maximumHeaders, headers[14] == 0x45
        else {
            (stream, run) = (nil, 0)
            return
        }
        run = placed.socket.toOpaque() == stream && placed.headerLength == headerLength ? run + 1 : 0
        headerLength = placed.headerLength
        stream = placed.socket.toOpaque()
    }
}

/// A long frame's payload that a transport has placed in a ring that a client maps.
struct PlacedPayload {
    /// The layer forgets this when the socket goes.
    let socket: Unmanaged<Socket>
    /// Only to be compared.
    let packet: UnsafePointer<alps_mbuf>
    /// Bytes of the frame in front of the payload.
    let headerLength: Int
}

import CLinux
import Glibc
import PluginAPI

/// A packet socket of a program (packet(7)): frames of interfaces, as they are on the link.
///
/// Named for the layer it stands on, since `PacketSocket` is the device that is one of the system's.
package final class LinkSocket {
    /// SOCK_RAW: frames with their link header; SOCK_DGRAM: without.
    package let type: Int32
    package let uid: UInt32
    package let pid: Int32
    /// What /proc/net/packet shows.
    package var inode: UInt64 = 0
    unowned let table: LinkSockets
    /// An ethertype, or ETH_P_ALL; 0: it gets nothing.
    package private(set) var protocolNumber: UInt16
    /// The interface it is bound to, 0: any.
    package private(set) var ifindex: UInt32 = 0
    /// Frames are being looked at for it.
    private(set) var isListening = false
    package private(set) var isClosed = false

    var filter: PacketFilter?
    var options = LinkSocketOptions()
    var memberships: [LinkMembership] = []
    package internal(set) var ring: ReceiveRing?
    var transmitRing: TransmitRing?
    package internal(set) var ringMemory: RingMemory?
    var receiveRequest: RingRequest?
    var transmitRequest: RingRequest?
    var fanout: PacketFanout?

    /// Frames wanted, those lost of them included, and those lost, since they were last asked for.
    var seen: UInt32 = 0
    var lost: UInt32 = 0
    private var error: Int32 = 0

    /// Takes the frame from an offset on, so many bytes. False: no room.
    package var onFrame: ((LinkFrame, _ origin: Int, _ length: Int) -> Bool)?
    /// The ring has something for the program.
    package var onFilled: (() -> Void)?
    package var onError: (() -> Void)?
    /// SO_RCVBUF has been set: bytes in force.
    package var onReceiveBuffer: ((Int) -> Void)?

    static let everything: UInt16 = 0x0003  // ETH_P_ALL

    init(table: LinkSockets, type: Int32, protocolNumber: UInt16, uid: UInt32, pid: Int32) {
        self.table = table
        self.type = type
        self.protocolNumber = protocolNumber
        self.uid = uid
        self.pid = pid
        hook()
    }

    package func close() {
        guard !isClosed else { return }
        isClosed = true
        fanout?.leave(self)
        fanout = nil
        isListening = false
        ring?.close()
        ring = nil
        for membership in memberships { table.changePromiscuity(membership, -1) }
        memberships.removeAll()
        onFrame = nil
        onFilled = nil
        onError = nil
        onReceiveBuffer = nil
        table.remove(self)
    }

    // MARK: Names

    /// bind(2). A protocol of 0 leaves the one there is.
    package func bind(protocolNumber wanted: UInt16, ifindex index: UInt32) -> Int32 {
        if index != 0, table.interface(index) == nil { return ENODEV }
        if fanout != nil { return EINVAL }
        if wanted != 0 { protocolNumber = wanted }
        ifindex = index
        hook()
        return 0
    }

    private func hook() {
        isListening = protocolNumber != 0
        if ifindex != 0, table.interface(ifindex)?.isUp != true {
            isListening = false
            fail(ENETDOWN)
        }
        table.changed()
    }

    /// The interface has come up, gone down or gone away.
    func interfaceChanged(_ index: UInt32, isUp: Bool, isGone: Bool) {
        if isGone {
            memberships.removeAll { $0.ifindex == index }
        }
        guard index == ifindex else { return }
        if isGone { ifindex = .max }
        if isUp {
            isListening = protocolNumber != 0
        } else if isListening || isGone {
            isListening = false
            fail(ENETDOWN)
        }
        table.changed()
    }

    // MARK: Errors

    private func fail(_ number: Int32) {
        error = number
        onError?()
    }

    /// SO_ERROR without clearing it.
    package var pendingError: Int32 { error }

    package func takeError() -> Int32 {
        defer { error = 0 }
        return error
    }

    // MARK: Frames in

    /// Whether a frame is to be looked at: its interface, type and direction are as the socket wants.
    @inline(__always)
    func wants(_ frame: LinkFrame, isOutgoing: Bool) -> Bool {
        guard isListening, ifindex == 0 || ifindex == frame.ifindex else { return false }
        if protocolNumber == Self.everything { return !(isOutgoing && options.ignoresOutgoing) }
        return !isOutgoing && protocolNumber == frame.protocolNumber
    }

    /// How many bytes the filter wants of the frame from `origin` on; 0: none.
    func filtered(_ frame: LinkFrame) -> Int {
        let whole = frame.length - origin(frame)
        guard let filter else { return whole }
        return min(whole, Int(filter.run(frame, from: origin(frame), random: table.randomWord)))
    }

    func origin(_ frame: LinkFrame) -> Int { type == Int32(ALPS_SOCK_RAW) ? 0 : frame.networkOffset }

    /// Gives the program the frame, `length` bytes of it.
    func deliver(_ frame: LinkFrame, length: Int) {
        let origin = origin(frame)
        seen &+= 1
        let taken: Bool
        if let ring {
            let losing = lost > 0 && options.version < 3 ? RingStatus.losing : 0
            let isCopied = options.copiesCutFrames && ring.cuts(frame, from: origin, length: length)
                && onFrame?(frame, origin, length) == true
            let status = frame.status | losing | (isCopied ? RingStatus.copy : 0)
            taken = ring.put(frame, from: origin, length: length, status: status)
        } else {
            taken = onFrame?(frame, origin, length) ?? false
        }
        if !taken { lost &+= 1 }
    }

    /// As poll(2) sees the ring.
    package var isRingReadable: Bool { ring?.isReadable ?? false }

    // MARK: Frames out

    /// Where a frame is to go: what a program's struct sockaddr_ll says.
    package struct Name {
        package var protocolNumber: UInt16
        package var ifindex: UInt32
        package var hardware: [UInt8]

        package init(protocolNumber: UInt16, ifindex: UInt32, hardware: [UInt8]) {
            self.protocolNumber = protocolNumber
            self.ifindex = ifindex
            self.hardware = hardware
        }
    }

    /// sendmsg(2): a frame, or its payload for a socket that is SOCK_DGRAM.
    package func send(_ bytes: UnsafeRawBufferPointer, to name: Name?) -> Int32 {
        let index = name?.ifindex ?? ifindex
        guard index != 0, let interface = table.interface(index) else { return ENXIO }
        guard interface.isUp else { return ENETDOWN }
        let isRaw = type == Int32(ALPS_SOCK_RAW)
        let header = Ethernet.headerLength
        let most = Int(interface.raw.pointee.mtu) + (isRaw ? header : 0)
        if bytes.count > most {
            let isTagged = isRaw && bytes.count <= most + 4 && bytes[12] == 0x81 && bytes[13] == 0
            guard isTagged else { return EMSGSIZE }
        }
        if isRaw {
            guard bytes.count >= header else { return EINVAL }
            return table.transmit(interface, nil, bytes, from: self)
        }
        guard let link = linkHeader(name, interface, bytes.count) else { return EINVAL }
        return link.withUnsafeBytes { table.transmit(interface, $0, bytes, from: self) }
    }

    private func linkHeader(_ name: Name?, _ interface: Interface, _ length: Int) -> [UInt8]? {
        var destination = [UInt8](repeating: 0, count: 6)
        if let name {
            for (place, byte) in name.hardware.prefix(6).enumerated() { destination[place] = byte }
        } else if !interface.isLoopback {
            return nil
        }
        let type = name?.protocolNumber ?? protocolNumber
        // ETH_P_802_3 and ETH_P_802_2: the length stands there.
        let field = type == 1 || type == 4 ? UInt16(truncatingIfNeeded: length) : type
        let h = interface.raw.pointee.hardware
        return destination + [h.0, h.1, h.2, h.3, h.4, h.5, UInt8(field >> 8), UInt8(field & 0xff)]
    }

    /// send(2) on a socket with a transmit ring: everything in it that is ready. Bytes sent, or an error.
    package func sendRing(to name: Name?) -> (error: Int32, bytes: Int) {
        guard let transmitRing else { return (EINVAL, 0) }
        let index = name?.ifindex ?? ifindex
        guard index != 0, let interface = table.interface(index) else { return (ENXIO, 0) }
        guard interface.isUp else { return (ENETDOWN, 0) }
        return transmitRing.sendAll(
            skipsBad: options.skipsBadFrames, hasOffsets: options.transmitHasOffsets, isRaw: type == Int32(ALPS_SOCK_RAW)
        ) { send($0, to: name) }
    }

    package var hasTransmitRing: Bool { transmitRing != nil }
}

/// PACKET_ADD_MEMBERSHIP: struct packet_mreq.
struct LinkMembership: Equatable {
    var ifindex: UInt32
    var type: UInt16
    var address: [UInt8]
    var count = 1

    static let multicast: UInt16 = 0
    static let promiscuous: UInt16 = 1
    static let unicast: UInt16 = 3

    func isSame(_ other: LinkMembership) -> Bool {
        ifindex == other.ifindex && type == other.type && address == other.address
    }
}

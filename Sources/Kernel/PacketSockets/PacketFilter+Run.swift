/// A frame as packet sockets see it: whole, in one piece of memory, checksums complete.
package struct LinkFrame {
    /// At the link header, which a frame of lo0 has too (zeros and a type, as on Linux).
    package var bytes: UnsafePointer<UInt8>
    /// Link header included.
    package var length: Int
    /// Where the network header begins.
    package var networkOffset = 14
    /// As sll_protocol tells it, in the machine's order: the ethertype, ETH_P_802_3 or ETH_P_802_2.
    package var protocolNumber: UInt16
    /// PACKET_HOST, PACKET_BROADCAST, ...
    package var kind: UInt8
    package var ifindex: UInt32
    /// ARPHRD_*.
    package var hardwareType: UInt16
    /// TP_STATUS_* that every copy carries.
    package var status: UInt32 = 0
    /// Wall clock, ns.
    package var timestamp: UInt64

    package init(
        bytes: UnsafePointer<UInt8>, length: Int, protocolNumber: UInt16, kind: UInt8, ifindex: UInt32, hardwareType: UInt16,
        timestamp: UInt64
    ) {
        self.bytes = bytes
        self.length = length
        self.protocolNumber = protocolNumber
        self.kind = kind
        self.ifindex = ifindex
        self.hardwareType = hardwareType
        self.timestamp = timestamp
    }
}

extension PacketFilter {
    /// How many bytes of the frame, from `origin` on, the program wants; 0: it does not want the frame. `random` answers the
    /// load of a random number.
    package func run(_ frame: LinkFrame, from origin: Int, random: () -> UInt32) -> UInt32 {
        withUnsafeTemporaryAllocation(of: UInt32.self, capacity: Self.scratchWords) { scratch in
            scratch.initialize(repeating: 0)
            return run(frame, origin, scratch, random)
        }
    }

    private func run(
        _ frame: LinkFrame, _ origin: Int, _ scratch: UnsafeMutableBufferPointer<UInt32>, _ random: () -> UInt32
    ) -> UInt32 {
        var a: UInt32 = 0
        var x: UInt32 = 0
        let length = UInt32(truncatingIfNeeded: frame.length - origin)
        var next = code
        while true {
            let instruction = next.pointee
            next += 1
            let k = instruction.k
            switch instruction.code {
            // Loads
            case Class.load | Size.word | Mode.absolute, Class.load | Size.half | Mode.absolute,
                Class.load | Size.byte | Mode.absolute:
                if k >= Self.ancillaryStart, let what = Ancillary(rawValue: k &- Self.ancillaryStart) {
                    a = ancillary(what, frame, origin, a, x, random)
                } else {
                    guard let value = Self.load(frame, origin, k, instruction.code & 0x18) else { return 0 }
                    a = value
                }
            case Class.load | Size.word | Mode.indirect, Class.load | Size.half | Mode.indirect,
                Class.load | Size.byte | Mode.indirect:
                guard let value = Self.load(frame, origin, x &+ k, instruction.code & 0x18) else { return 0 }
                a = value
            case Class.load | Mode.immediate: a = k
            case Class.load | Mode.memory: a = scratch[Int(k)]
            case Class.load | Mode.length: a = length
            case Class.loadX | Mode.immediate: x = k
            case Class.loadX | Mode.memory: x = scratch[Int(k)]
            case Class.loadX | Mode.length: x = length
            case Class.loadX | Size.byte | Mode.headerLength:
                guard let value = Self.load(frame, origin, k, Size.byte) else { return 0 }
                x = (value & 0xf) << 2
            case Class.store: scratch[Int(k)] = a
            case Class.storeX: scratch[Int(k)] = x
            case Class.misc: x = a
            case Class.misc | 0x80: a = x
            // Ends
            case Class.end: return k
            case Class.end | Self.fromA: return a
            // Jumps
            case Class.jump | Jump.always: next += Int(k)
            case Class.jump | Jump.equal: next += Int(a == k ? instruction.jt : instruction.jf)
            case Class.jump | Jump.greater: next += Int(a > k ? instruction.jt : instruction.jf)
            case Class.jump | Jump.atLeast: next += Int(a >= k ? instruction.jt : instruction.jf)
            case Class.jump | Jump.anyBit: next += Int(a & k != 0 ? instruction.jt : instruction.jf)
            case Class.jump | Jump.equal | Self.fromX: next += Int(a == x ? instruction.jt : instruction.jf)
            case Class.jump | Jump.greater | Self.fromX: next += Int(a > x ? instruction.jt : instruction.jf)
            case Class.jump | Jump.atLeast | Self.fromX: next += Int(a >= x ? instruction.jt : instruction.jf)
            case Class.jump | Jump.anyBit | Self.fromX: next += Int(a & x != 0 ? instruction.jt : instruction.jf)
            // Arithmetic
            default:
                let operand = instruction.code & Self.fromX != 0 ? x : k
                switch instruction.code & 0xf0 {
                case Operation.add: a = a &+ operand
                case Operation.subtract: a = a &- operand
                case Operation.multiply: a = a &* operand
                case Operation.divide:
                    // A division by nothing ends the program, as on Linux.
                    guard operand != 0 else { return 0 }
                    a = a / operand
                case Operation.modulo:
                    guard operand != 0 else { return 0 }
                    a = a % operand
                case Operation.or: a |= operand
                case Operation.and: a &= operand
                case Operation.xor: a ^= operand
                case Operation.shiftLeft: a = a &<< operand
                case Operation.shiftRight: a = a &>> operand
                default: a = 0 &- a  // negate
                }
            }
        }
    }

    /// A number in network order at `offset`, nil outside the frame. Offsets of the upper half are counted from the network
    /// header or from the link header.
    @inline(__always)
    private static func load(_ frame: LinkFrame, _ origin: Int, _ offset: UInt32, _ size: UInt16) -> UInt32? {
        var place = origin &+ Int(offset)
        if offset >= linkStart {
            place = offset >= networkStart ? frame.networkOffset &+ Int(offset &- networkStart) : Int(offset &- linkStart)
        } else if offset >= 0x8000_0000 {
            return nil
        }
        let count = size == Size.word ? 4 : size == Size.half ? 2 : 1
        guard place &+ count <= frame.length else { return nil }
        let bytes = frame.bytes + place
        switch count {
        case 4: return UInt32(bytes[0]) << 24 | UInt32(bytes[1]) << 16 | UInt32(bytes[2]) << 8 | UInt32(bytes[3])
        case 2: return UInt32(bytes[0]) << 8 | UInt32(bytes[1])
        default: return UInt32(bytes[0])
        }
    }

    @inline(never)
    private func ancillary(
        _ what: Ancillary, _ frame: LinkFrame, _ origin: Int, _ a: UInt32, _ x: UInt32, _ random: () -> UInt32
    ) -> UInt32 {
        switch what {
        case .protocolNumber: UInt32(frame.protocolNumber)
        case .kind: UInt32(frame.kind)
        case .interface: frame.ifindex
        case .hardwareType: UInt32(frame.hardwareType)
        case .xorX: a ^ x
        case .random: random()
        case .attribute: Self.attribute(frame, origin, from: Int(a), to: frame.length - origin, type: x)
        case .nestedAttribute: Self.nestedAttribute(frame, origin, at: Int(a), type: x)
        case .payloadOffset: UInt32(truncatingIfNeeded: max(Self.payloadOffset(frame) - origin, 0))
        // There is one queue, one thread, no hash and no mark; tags of VLANs are in the frame.
        case .mark, .queue, .receiveHash, .processor, .vlanTag, .vlanTagPresent, .vlanProtocol: 0
        }
    }

    /// The offset of the netlink attribute of that type among those between two offsets, 0 if there is none.
    private static func attribute(_ frame: LinkFrame, _ origin: Int, from start: Int, to end: Int, type: UInt32) -> UInt32 {
        var place = start
        while place + 4 <= end {
            let bytes = frame.bytes + origin + place
            // In the machine's order, as netlink is.
            let length = Int(UInt16(bytes[0]) | UInt16(bytes[1]) << 8)
            guard length >= 4, place + length <= end else { return 0 }
            if UInt32(UInt16(bytes[2]) | UInt16(bytes[3]) << 8) & 0x3fff == type { return UInt32(place) }
            place += (length + 3) & ~3
        }
        return 0
    }

    private static func nestedAttribute(_ frame: LinkFrame, _ origin: Int, at place: Int, type: UInt32) -> UInt32 {
        guard place + 4 <= frame.length - origin else { return 0 }
        let bytes = frame.bytes + origin + place
        let length = Int(UInt16(bytes[0]) | UInt16(bytes[1]) << 8)
        guard length >= 4, place + length <= frame.length - origin else { return 0 }
        return attribute(frame, origin, from: place + 4, to: place + length, type: type)
    }

    /// Where the payload of the transport begins, from the frame's start; 0 if it cannot be told.
    private static func payloadOffset(_ frame: LinkFrame) -> Int {
        let start = frame.networkOffset
        guard frame.protocolNumber == 0x0800, frame.length >= start + 20, frame.bytes[start] >> 4 == 4 else { return 0 }
        let transport = start + Int(frame.bytes[start] & 0xf) * 4
        let isFirst = frame.bytes[start + 6] & 0x1f == 0 && frame.bytes[start + 7] == 0
        guard isFirst else { return transport }
        switch frame.bytes[start + 9] {
        case 6:
            guard frame.length >= transport + 13 else { return transport }
            return transport + max(Int(frame.bytes[transport + 12] >> 4) * 4, 20)
        case 1, 17: return transport + 8
        default: return transport
        }
    }
}

import PluginAPI
import PluginKit

// The AccECN option (RFC 9768, 3.2.3): the byte counters, 24 bits of each, those at the end left out where there is no
// room. We send order 1 (ECT(1), CE, ECT(0)) and read both.

extension Options {
    /// AccECN0: ECT(0), CE, ECT(1); AccECN1: the other way round.
    static var accurateECN0Kind: UInt8 { 172 }
    static var accurateECN1Kind: UInt8 { 174 }
}

/// Option space (RFC 9293, 3.1).
private enum OptionSpace {
    static var most: UInt32 { 40 }

    /// What an option of so many fields takes, padded. Before SACK it makes use of that option's padding.
    static func accurate(_ fields: Int, beforeSack: Bool) -> UInt32 {
        switch fields {
        case 0: return beforeSack ? 0 : 4
        case 1: return beforeSack ? 4 : 8
        case 2: return 8
        default: return 12
        }
    }

    static func sack(_ blocks: UInt32) -> UInt32 { blocks > 0 ? 4 &+ 8 &* blocks : 0 }
}

extension ECNCounters {
    /// Writes an option of the first `fields` fields, without padding. Returns its length.
    func write(_ place: UnsafeMutablePointer<UInt8>, fields: Int) -> Int {
        func put(_ at: Int, _ value: UInt32) {
            place[at] = UInt8(truncatingIfNeeded: value >> 16)
            place[at + 1] = UInt8(truncatingIfNeeded: value >> 8)
            place[at + 2] = UInt8(truncatingIfNeeded: value)
        }
        place[0] = Options.accurateECN1Kind
        place[1] = UInt8(truncatingIfNeeded: 2 + 3 * fields)
        if fields > 0 { put(2, ect1) }
        if fields > 1 { put(5, marked) }
        if fields > 2 { put(8, ect0) }
        return 2 + 3 * fields
    }

    /// The option of a SYN, ACK with its padding, as long as `room` allows.
    static func writeInitial(_ place: UnsafeMutablePointer<UInt8>, room: Int) -> Int {
        var fields = 3
        while fields > 0, Int(OptionSpace.accurate(fields, beforeSack: false)) > room { fields -= 1 }
        let length = Int(OptionSpace.accurate(fields, beforeSack: false))
        guard length <= room else { return 0 }
        var at = initial.write(place, fields: fields)
        while at < length {
            place[at] = 1
            at += 1
        }
        return length
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// Options may be sent: they are switched on, the peer sends some itself, and ours have not got lost.
    private var mayTellCounters: Bool {
        let level = instance.setting(.ecnOption)
        guard level > 0, pointee.accurate.optionSeen != .none else { return false }
        return level >= 3 || !pointee.accurate.failures.contains(.optionSent)
    }

    /// The next segment has one.
    private var isOptionDue: Bool {
        guard mayTellCounters else { return false }
        if instance.setting(.ecnOption) >= 2 || pointee.accurate.demand > 0 { return true }
        // So many a round trip, whatever happens.
        let beacons = UInt64(instance.setting(.ecnOptionBeacon))
        let elapsed = instance.now &- pointee.accurate.lastOptionAt
        return beacons > 0 && elapsed &* beacons >= pointee.roundTrip.srtt
    }

    /// Before a flight: full segments leave room for the option, or need not any more.
    @inline(__always)
    func reserveOptionSpace() {
        let space: UInt32 = mayTellCounters ? 12 : 0
        guard space != pointee.accurate.reserved else { return }
        pointee.accurate.reserved = space
        refreshMSS()
        // One segment, if that is what the window is, stays one.
        pointee.congestion.cwnd = max(pointee.congestion.cwnd, pointee.mss)
    }

    /// Writes the option and SACK behind the timestamps, which have `sackRoom` octets together; nil: no SACK. Returns
    /// their length.
    func writeCounters(_ place: UnsafeMutablePointer<UInt8>, after used: UInt32, sackRoom: UInt32?, isData: Bool) -> UInt32 {
        let isDuplicate = pointee.reassembly.hasDuplicate
        let duplicate = pointee.reassembly.duplicate.start
        let sackLength = sackRoom.map { writeSack(place, room: $0) } ?? 0
        pointee.accurate.hasReportedDuplicate = false
        guard isOptionDue, !isData || pointee.accurate.reserved > 0 else { return sackLength }
        var blocks = sackLength > 0 ? (sackLength &- 4) / 8 : 0
        let fields = fieldsThatFit(&blocks, sackRoom ?? OptionSpace.most &- used)
        guard fields > 0 else { return sackLength }
        let length = OptionSpace.accurate(fields, beforeSack: blocks > 0) &+ OptionSpace.sack(blocks)
        if blocks > 0 {
            // The SACK option moves behind it, and loses the blocks there is no room for.
            let sack = Int(2 &+ 8 &* blocks)
            let target = Int(length) - sack
            var at = sack - 1
            while at >= 0 {
                place[target + at] = place[2 + at]
                at -= 1
            }
            place[target + 1] = UInt8(truncatingIfNeeded: sack)
        }
        var at = pointee.accurate.received.write(place, fields: fields)
        let end = Int(length) - (blocks > 0 ? Int(2 &+ 8 &* blocks) : 0)
        while at < end {
            place[at] = 1
            at += 1
        }
        pointee.accurate.required = 0
        if pointee.accurate.demand > 0 { pointee.accurate.demand -= 1 }
        pointee.accurate.lastOptionAt = instance.now
        pointee.accurate.hasReportedDuplicate = isDuplicate && sackLength > 0
        pointee.accurate.duplicate = duplicate
        return length
    }

    /// How many fields the option can have: all that have changed, or none at all. SACK gives way down to two blocks
    /// (RFC 9768, 3.2.3.3).
    private func fieldsThatFit(_ blocks: inout UInt32, _ space: UInt32) -> Int {
        let required = pointee.accurate.required
        var left = blocks
        while true {
            let room = Int(space) - Int(OptionSpace.sack(left))
            var fields = 3
            while fields > 0, Int(OptionSpace.accurate(fields, beforeSack: left > 0)) > room { fields -= 1 }
            if fields >= max(required, 1) {
                blocks = left
                return fields
            }
            guard left > 2, required > 0 else { return 0 }
            left -= 1
        }
    }

    // MARK: Options that get lost

    /// Data from `start` on have come again. If our report that they had come twice already went with an option, it is
    /// the option that does not get through (RFC 9768, 3.2.3.2.2).
    func noteReportLost(_ start: SequenceNumber) {
        guard pointee.accurate.isOn, pointee.accurate.hasReportedDuplicate, pointee.accurate.duplicate == start else {
            return
        }
        pointee.accurate.failures.insert(.optionSent)
    }

    /// Nothing of the first flight has arrived: it goes again without the option, which may be why.
    func noteFirstFlightLost() {
        guard pointee.accurate.isOn, pointee.accurate.reserved > 0, pointee.sndUna == pointee.iss + 1,
            pointee.sendMap.sackedBytes == 0
        else { return }
        pointee.accurate.failures.insert(.optionSent)
    }
}

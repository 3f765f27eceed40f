import PluginAPI
import PluginKit

/// Settings, as indexes of `Instance.settings`.
enum Setting: Int {
    case ttl, acceptSourceRoute, maximumDatagrams, maximumFromSource, maximumFragments, maximumReassemblyBytes
    case reassemblyTime, mtuLifetime, minimumMTU, maximumMemberships

    static var allCases: Int { 10 }
}

/// Event counters, as indexes of `Instance.counters`; BSD's `ipstat`.
enum Counter: Int {
    case received, badChecksum, tooShort, badVersion, badHeaderLength, badLength, badAddress, badOptions, sourceRouted
    case fragmentsReceived, fragmentsDropped, overlaps, reassemblyTimeouts, reassembled, datagramsHeld, delivered
    case noProtocol, notForUs, sent, sentRaw, noRoute, tooBig, fragmented, fragmentsSent, mtuLowered
    case igmpReceived, igmpMalformed, igmpSent

    static var allCases: Int { 28 }
}

func registerSettings(_ instance: InstancePointer) -> Int32 {
    let services = instance.services
    guard let list = services.allocateArray(alps_tunable.self, Setting.allCases) else { return ALPS_ENOMEM }
    defer { services.freeArray(list, Setting.allCases) }
    func set(
        _ setting: Setting, _ name: StaticString, _ doc: StaticString, _ type: UInt32, _ value: Int64, _ minimum: Int64,
        _ maximum: Int64
    ) {
        let place = instance.pointee.settings + setting.rawValue
        place.pointee = value
        (list + setting.rawValue).initialize(
            to: alps_tunable(
                size: UInt32(MemoryLayout<alps_tunable>.size), type: type, flags: 0, reserved: 0, name: text(name),
                doc: text(doc), value: place, minimum: minimum, maximum: maximum))
    }
    let second = Int64(ALPS_NSEC_PER_SEC)
    set(.ttl, "net.inet.ip.ttl", "time to live of packets sent", ALPS_TUNABLE_INT, 64, 1, 255)
    set(
        .acceptSourceRoute, "net.inet.ip.accept_sourceroute", "take packets that carry a source route that ends here",
        ALPS_TUNABLE_BOOL, 0, 0, 1)
    set(
        .maximumDatagrams, "net.inet.ip.maxfragpackets", "datagrams being put together at a time", ALPS_TUNABLE_INT,
        1024,
        4, 65536)
    set(
        .maximumFromSource, "net.inet.ip.maxfragpacketspersource", "the same, from one sender", ALPS_TUNABLE_INT, 256,
        1,
        65536)
    set(
        .maximumFragments, "net.inet.ip.maxfragsperpacket", "fragments of one datagram", ALPS_TUNABLE_INT, 1500, 2, 8192
    )
    set(
        .maximumReassemblyBytes, "net.inet.ip.maxfragbytes", "memory of datagrams being put together, bytes",
        ALPS_TUNABLE_BYTES, 16 << 20, 65536, 1 << 30)
    set(
        .reassemblyTime, "net.inet.ip.fragttl", "how long fragments wait for the rest", ALPS_TUNABLE_NSEC, 60 * second,
        second, 120 * second)
    set(
        .mtuLifetime, "net.inet.ip.pmtu_expire", "how long a lowered path MTU is believed (RFC 1191: 10 minutes)",
        ALPS_TUNABLE_NSEC, 600 * second, 300 * second, 86400 * second)
    set(
        .minimumMTU, "net.inet.ip.min_pmtu", "lowest path MTU that is believed, bytes", ALPS_TUNABLE_INT, 68, 68, 1500)
    set(
        .maximumMemberships, "net.inet.ip.max_memberships", "groups that one socket may join", ALPS_TUNABLE_INT, 20, 1,
        4095)
    let cell = services.tunableCell
    return cell.ops(alps_tunable_ops.self).pointee.add(cell.instance, list, UInt32(Setting.allCases))
}

func registerCounters(_ instance: InstancePointer) -> Int32 {
    let services = instance.services
    guard let list = services.allocateArray(alps_counter.self, Counter.allCases) else { return ALPS_ENOMEM }
    defer { services.freeArray(list, Counter.allCases) }
    func set(_ counter: Counter, _ name: StaticString, _ doc: StaticString, _ flags: UInt32 = 0) {
        (list + counter.rawValue).initialize(
            to: alps_counter(
                size: UInt32(MemoryLayout<alps_counter>.size), flags: flags, name: text(name), doc: text(doc),
                value: UnsafePointer(instance.pointee.counters + counter.rawValue)))
    }
    set(.received, "received", "total packets received")
    set(.badChecksum, "bad_checksum", "bad header checksums")
    set(.tooShort, "too_short", "with size smaller than minimum")
    set(.badVersion, "bad_version", "with incorrect version number")
    set(.badHeaderLength, "bad_header_length", "with header length < data size")
    set(.badLength, "bad_length", "with data length < header length")
    set(.badAddress, "bad_address", "with an address that cannot be")
    set(.badOptions, "bad_options", "with bad options")
    set(.sourceRouted, "source_routed", "source-routed packets refused")
    set(.fragmentsReceived, "fragments_received", "fragments received")
    set(.fragmentsDropped, "fragments_dropped", "fragments dropped (dup, bad, late or out of space)")
    set(.overlaps, "overlaps", "datagrams dropped since fragments overlapped")
    set(.reassemblyTimeouts, "reassembly_timeouts", "datagrams dropped after timeout")
    set(.reassembled, "reassembled", "packets reassembled ok")
    set(.datagramsHeld, "datagrams_held", "datagrams being put together", ALPS_COUNTER_GAUGE)
    set(.delivered, "delivered", "packets for this host")
    set(.noProtocol, "no_protocol", "packets for unknown/unsupported protocol")
    set(.notForUs, "not_for_us", "packets not for this host")
    set(.sent, "sent", "packets sent from this host")
    set(.sentRaw, "sent_raw", "packets sent with fabricated ip header")
    set(.noRoute, "no_route", "output packets discarded due to no route")
    set(.tooBig, "too_big", "datagrams that can't be fragmented")
    set(.fragmented, "fragmented", "output datagrams fragmented")
    set(.fragmentsSent, "fragments_sent", "fragments created")
    set(.mtuLowered, "mtu_lowered", "path MTUs lowered")
    set(.igmpReceived, "igmp_received", "IGMP messages received")
    set(.igmpMalformed, "igmp_malformed", "IGMP messages too short or with bad checksum")
    set(.igmpSent, "igmp_sent", "IGMP messages sent")
    let cell = services.counterCell
    return cell.ops(alps_counter_ops.self).pointee.add(cell.instance, list, UInt32(Counter.allCases))
}

import PluginAPI
import PluginKit

/// Settings, as indexes of `Instance.settings`.
enum Setting: Int {
    case lifetime, downTime, maximumTries, maximumHeld, maximumEntries, detection, optimistic, alwaysDefend

    static var allCases: Int { 8 }
}

/// Event counters, as indexes of `Instance.counters`.
enum Counter: Int {
    case received, requestsReceived, repliesReceived, malformed, requestsSent, repliesSent, probesSent
    case announcementsSent, conflicts, timeouts, droppedHeld, droppedUnresolved, tableFull, entries

    static var allCases: Int { 14 }
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
    set(
        .lifetime, "net.link.ether.inet.max_age", "how long an answer is believed",
        ALPS_TUNABLE_NSEC, 1200 * second, second, 86400 * second)
    set(
        .downTime, "net.link.ether.inet.host_down_time", "how long a host that does not answer is left alone",
        ALPS_TUNABLE_NSEC, 20 * second, second, 3600 * second)
    set(
        .maximumTries, "net.link.ether.inet.maxtries", "requests sent before a host is taken for down",
        ALPS_TUNABLE_INT, 5, 1, 20)
    set(.maximumHeld, "net.link.ether.inet.maxhold", "packets that wait for one answer", ALPS_TUNABLE_INT, 64, 1, 4096)
    set(
        .maximumEntries, "net.link.ether.inet.maxentries", "neighbours known at a time",
        ALPS_TUNABLE_INT, 4096, 16, 1_000_000)
    set(
        .detection, "net.link.ether.inet.dad", "probe new addresses before they are ours (RFC 5227)",
        ALPS_TUNABLE_BOOL, 1, 0, 1)
    set(
        .optimistic, "net.link.ether.inet.optimistic", "use a new address while it is being probed",
        ALPS_TUNABLE_BOOL, 1, 0, 1)
    set(
        .alwaysDefend, "net.link.ether.inet.always_defend", "never give an address up to another host",
        ALPS_TUNABLE_BOOL, 0, 0, 1)
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
    set(.received, "received", "packets received")
    set(.requestsReceived, "requests_received", "requests received")
    set(.repliesReceived, "replies_received", "replies received")
    set(.malformed, "malformed", "packets dropped as malformed")
    set(.requestsSent, "requests_sent", "requests sent")
    set(.repliesSent, "replies_sent", "replies sent")
    set(.probesSent, "probes_sent", "address probes sent")
    set(.announcementsSent, "announcements_sent", "address announcements sent")
    set(.conflicts, "conflicts", "address conflicts seen")
    set(.timeouts, "timeouts", "resolutions that nobody answered")
    set(.droppedHeld, "dropped_held", "waiting packets dropped since too many waited")
    set(.droppedUnresolved, "dropped_unresolved", "packets dropped since the host is down")
    set(.tableFull, "table_full", "entries refused since the table is full")
    set(.entries, "entries", "neighbours known", ALPS_COUNTER_GAUGE)
    let cell = services.counterCell
    return cell.ops(alps_counter_ops.self).pointee.add(cell.instance, list, UInt32(Counter.allCases))
}

import PluginAPI
import PluginKit

/// Settings, as indexes of `Instance.settings`.
enum Setting: Int {
    case errorRate, answerRate, answerBroadcast, timestamp, acceptRedirects, echoSockets
    case maximumEchoSockets

    static var allCases: Int { 7 }
}

/// Event counters, as indexes of `Instance.counters`; BSD's `icmpstat`.
enum Counter: Int {
    case received, tooShort, badChecksum, ignored, echoReplies, timestampReplies, sent, errorsSent, errorsSuppressed
    case limited, errorsReceived, errorsUnmatched, redirects, redirectsRefused, echoDelivered, echoDropped

    static var allCases: Int { 16 }
}

func registerSettings(_ instance: InstancePointer) -> Int32 {
    let services = instance.services
    guard let list = services.allocateArray(alps_tunable.self, Setting.allCases) else { return ALPS_ENOMEM }
    defer { services.freeArray(list, Setting.allCases) }
    func set(
        _ setting: Setting, _ name: StaticString, _ doc: StaticString, _ type: UInt32, _ value: Int64, _ maximum: Int64
    ) {
        let place = instance.pointee.settings + setting.rawValue
        place.pointee = value
        (list + setting.rawValue).initialize(
            to: alps_tunable(
                size: UInt32(MemoryLayout<alps_tunable>.size), type: type, flags: 0, reserved: 0, name: text(name),
                doc: text(doc), value: place, minimum: 0, maximum: maximum))
    }
    set(.errorRate, "net.inet.icmp.icmplim", "error messages a second, 0 = no limit", ALPS_TUNABLE_INT, 100, 1_000_000)
    set(
        .answerRate, "net.inet.icmp.answerlim", "answers to echo and timestamp requests a second, 0 = no limit",
        ALPS_TUNABLE_INT, 10000, 10_000_000)
    set(
        .answerBroadcast, "net.inet.icmp.bmcastecho", "answer echo requests to broadcast and multicast",
        ALPS_TUNABLE_BOOL, 0, 1)
    set(.timestamp, "net.inet.icmp.tstamprepl", "answer timestamp requests", ALPS_TUNABLE_BOOL, 1, 1)
    set(
        .acceptRedirects, "net.inet.icmp.accept_redirect", "believe redirects from the gateway in use",
        ALPS_TUNABLE_BOOL, 1, 1)
    set(
        .echoSockets, "net.inet.icmp.echo_sockets",
        "who may make datagram sockets for echo requests: 0 nobody, 1 all but root, 2 everybody",
        ALPS_TUNABLE_INT, 1, 2)
    set(
        .maximumEchoSockets, "net.inet.icmp.maxechosockets", "datagram sockets for echo requests at a time",
        ALPS_TUNABLE_INT, 1024, 65536)
    let cell = services.tunableCell
    return cell.ops(alps_tunable_ops.self).pointee.add(cell.instance, list, UInt32(Setting.allCases))
}

func registerCounters(_ instance: InstancePointer) -> Int32 {
    let services = instance.services
    guard let list = services.allocateArray(alps_counter.self, Counter.allCases) else { return ALPS_ENOMEM }
    defer { services.freeArray(list, Counter.allCases) }
    func set(_ counter: Counter, _ name: StaticString, _ doc: StaticString) {
        (list + counter.rawValue).initialize(
            to: alps_counter(
                size: UInt32(MemoryLayout<alps_counter>.size), flags: 0, name: text(name), doc: text(doc),
                value: UnsafePointer(instance.pointee.counters + counter.rawValue)))
    }
    set(.received, "received", "messages received")
    set(.tooShort, "too_short", "messages less than the minimum length")
    set(.badChecksum, "bad_checksum", "messages with bad checksum")
    set(.ignored, "ignored", "messages ignored")
    set(.echoReplies, "echo_replies", "echo replies sent")
    set(.timestampReplies, "timestamp_replies", "timestamp replies sent")
    set(.sent, "sent", "messages sent")
    set(.errorsSent, "errors_sent", "error messages sent")
    set(.errorsSuppressed, "errors_suppressed", "errors not generated since the rules forbid them")
    set(.limited, "limited", "messages not sent because of rate limits")
    set(.errorsReceived, "errors_received", "error messages received")
    set(.errorsUnmatched, "errors_unmatched", "error messages about nothing of ours")
    set(.redirects, "redirects", "redirects received")
    set(.redirectsRefused, "redirects_refused", "redirects refused")
    set(.echoDelivered, "echo_delivered", "echo replies given to datagram sockets")
    set(.echoDropped, "echo_dropped", "echo replies dropped since a socket was full")
    let cell = services.counterCell
    return cell.ops(alps_counter_ops.self).pointee.add(cell.instance, list, UInt32(Counter.allCases))
}

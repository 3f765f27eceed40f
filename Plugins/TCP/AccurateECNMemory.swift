import PluginAPI
import PluginKit

// RFC 9768, 3.1.4.1: failed attempts to ask for Accurate ECN are remembered by destination. One is not enough to blame
// the request for it, and what is remembered lapses, so that it is seen when the path has changed.

/// How a destination has taken our requests.
struct UnansweredRequest {
    var address = alps_addr()
    /// Connections in a row whose SYN was answered only when it had stopped asking.
    var failures: UInt8 = 0
    /// ns.
    var lastAt: UInt64 = 0
}

/// One place for an address, chosen by a keyed hash; a destination that fails takes a place from one that failed earlier.
struct UnansweredRequests {
    var places = [32 of UnansweredRequest](repeating: UnansweredRequest())

    /// So many failures in a row are no accident.
    static var most: UInt8 { 3 }
    /// How long a destination is not asked.
    static var lifetime: UInt64 { 3600 * UInt64(ALPS_NSEC_PER_SEC) }
}

extension UnsafeMutablePointer where Pointee == Instance {
    private func requestPlace(_ address: alps_addr) -> Int {
        var hash = SipHash(pointee.fastOpenKey)
        hash.add(address)
        return Int(truncatingIfNeeded: hash.finish() & 31)
    }

    /// There is no use in asking it now.
    func isRequestUseless(_ address: alps_addr) -> Bool {
        let entry = pointee.unansweredRequests.places[requestPlace(address)]
        return entry.failures >= UnansweredRequests.most && entry.address == address
            && now &- entry.lastAt < UnansweredRequests.lifetime && isOn(.ecnFallback)
    }

    /// A SYN that first asked for Accurate ECN has been answered; `isFailure`: only when it had stopped asking.
    func noteRequest(_ address: alps_addr, isFailure: Bool) {
        let place = requestPlace(address)
        let entry = pointee.unansweredRequests.places[place]
        let isKnown = entry.failures > 0 && entry.address == address
        guard isFailure else {
            if isKnown { pointee.unansweredRequests.places[place].failures = 0 }
            return
        }
        let isFresh = isKnown && now &- entry.lastAt < UnansweredRequests.lifetime
        pointee.unansweredRequests.places[place] = UnansweredRequest(
            address: address, failures: isFresh ? min(entry.failures, 254) + 1 : 1, lastAt: now)
    }
}

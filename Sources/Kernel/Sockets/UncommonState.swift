import PluginAPI

/// What few sockets have. Apart from them, since most never need one: it is made with the first thing that goes into it.
final class UncommonState {
    /// What bind(2) gave the socket, for attaching anew.
    var boundAddress: alps_sockaddr?
    /// Error messages about what was sent, kept for a program that asked for them (IP_RECVERR).
    var errors = ErrorQueue()
}

extension Socket {
    func makeUncommon() -> UncommonState {
        if let uncommon { return uncommon }
        let made = UncommonState()
        uncommon = made
        return made
    }

    var boundAddress: alps_sockaddr? { uncommon?.boundAddress }
}

package import Kernel

/// What a seed stands for: everything that a run does is decided here, before it begins.
package struct TorturePlan {
    /// One way of a link, and the interface that sends into it.
    package struct Link {
        package var a: Int
        package var b: Int
        package var forward: LinkSpec
        package var back: LinkSpec
    }

    /// What an application does with its socket.
    package struct Application: Equatable {
        /// How it ends.
        package enum Ending: Equatable {
            /// Half-close after the last byte, close after the peer's end of stream.
            case orderly
            /// close(2) right after the last byte: what is written must still arrive.
            case closeAtOnce
            /// A reset after so many bytes, sent and received.
            case abort(after: Int)
            /// The same with SO_LINGER 0 and close(2).
            case lingerZero(after: Int)
        }

        package var bytes = 0
        package var chunk = 1...65536
        /// ns between writes, 0: as fast as there is room.
        package var writePause: UInt64 = 0
        package var readChunk = 65536
        package var readPause: UInt64 = 0
        /// Reads nothing for so long.
        package var readDelay: UInt64 = 0
        /// Writes nothing until it has received so many bytes.
        package var speaksAfter = 0
        package var ending = Ending.orderly
        package var noDelay = false
        package var usesCork = false
        package var usesMore = false
        /// The byte in front of each of these positions is urgent.
        package var urgentMarks: [Int] = []
        package var outOfBandInline = true
        package var quickAck: Bool?
        package var sendBuffer: Int32?
        package var receiveBuffer: Int32?
        package var maximumSegment: Int32?
        /// SO_KEEPALIVE, with a first probe after so many seconds.
        package var keepIdle: Int32?
        /// TCP_USER_TIMEOUT, ms: the connection may end with it.
        package var userTimeout: Int32?
        /// SO_MAX_PACING_RATE, bytes a second.
        package var pacingRate: Int32?
        package var salt = 0
    }

    package struct Connection {
        package enum Kind: Equatable {
            case ordinary
            case closedPort
            case simultaneous
            /// The listener closes after so long; connections that are not accepted yet are reset.
            case listenerCloses(after: UInt64)
        }

        package var kind = Kind.ordinary
        /// Nil: over lo0 of `client`.
        package var link: Int?
        package var client: Int
        package var server: Int
        package var start: UInt64
        package var backlog: Int32
        /// With TCP Fast Open: the data may go with the SYN.
        package var opensFast = false
        /// SYNs that nobody means, which the server's listener gets when the client connects.
        package var flood = 0
        package var clientSide = Application()
        package var serverSide = Application()

        /// Whether everything must arrive and nothing may fail.
        package var isClean: Bool {
            func isClean(_ ending: Application.Ending) -> Bool { ending == .orderly || ending == .closeAtOnce }
            guard isClean(clientSide.ending), isClean(serverSide.ending), clientSide.userTimeout == nil,
                serverSide.userTimeout == nil
            else { return false }
            return kind == .ordinary || kind == .simultaneous
        }
    }

    /// An ICMP error about a connection, out of nowhere.
    package struct Disturbance {
        package enum Truth {
            /// Quotes what is not in flight: it must change nothing (RFC 5927, 4.1).
            case forged
            /// Quotes what is, as somebody on the path could: no more than smaller segments may come of it (RFC 5927, 5.2,
            /// 7).
            case genuine
        }

        package var connection: Int
        package var toClient: Bool
        package var at: UInt64
        package var truth: Truth
        package var type: UInt8
        package var code: UInt8
        package var mtu: UInt16
    }

    package let seed: UInt64
    package var kernels = 2
    package var links: [Link] = []
    /// By kernel.
    package var tunables: [[(name: String, value: String)]] = []
    package var connections: [Connection] = []
    package var disturbances: [Disturbance] = []

    package func tunable(_ kernel: Int, _ name: String, default fallback: Int64) -> Int64 {
        guard let value = tunables[kernel].last(where: { $0.name == name })?.value else { return fallback }
        return Int64(value) ?? fallback
    }

    package static func kernelName(_ index: Int) -> String { String(UnicodeScalar(UInt8(97 + index))) }

    /// 10.0.LINK.SIDE.
    package func address(_ connection: Connection, ofClient: Bool) -> String {
        guard let number = connection.link else { return "127.0.0.1" }
        let kernel = ofClient ? connection.client : connection.server
        return "10.0.\(number + 1).\(links[number].a == kernel ? 1 : 2)"
    }

    /// For people.
    package var description: [String] {
        var lines = ["seed \(seed): \(kernels) kernels"]
        for (index, link) in links.enumerated() {
            let a = Self.kernelName(link.a)
            let b = Self.kernelName(link.b)
            lines.append("link \(index + 1): \(a) 10.0.\(index + 1).1 -> \(b) 10.0.\(index + 1).2: \(link.forward.text)")
            lines.append("        \(b) -> \(a): \(link.back.text)")
        }
        for (index, list) in tunables.enumerated() {
            lines.append("\(Self.kernelName(index)): " + list.map { "\($0.name)=\($0.value)" }.joined(separator: " "))
        }
        for (index, connection) in connections.enumerated() {
            let path = "\(Self.kernelName(connection.client)) \(address(connection, ofClient: true))"
                + " -> \(Self.kernelName(connection.server)) \(address(connection, ofClient: false))"
            lines.append(
                "connection \(index): \(path) \(connection.kind) start \(connection.start / 1_000_000)ms backlog \(connection.backlog)"
                    + (connection.opensFast ? " fast" : "") + (connection.flood > 0 ? " flood \(connection.flood)" : "")
            )
            lines.append("    client: \(connection.clientSide)")
            lines.append("    server: \(connection.serverSide)")
        }
        for error in disturbances {
            lines.append(
                "\(error.truth) icmp \(error.type).\(error.code) mtu \(error.mtu) about connection \(error.connection) to the "
                    + "\(error.toClient ? "client" : "server") at \(error.at / 1_000_000)ms")
        }
        return lines
    }
}

extension TorturePlan.Application: CustomStringConvertible {
    package var description: String {
        var text = "\(bytes) bytes in \(chunk.lowerBound)...\(chunk.upperBound)"
        if writePause > 0 { text += " every \(writePause / 1000)us" }
        text += ", reads \(readChunk)"
        if readPause > 0 { text += " every \(readPause / 1000)us" }
        if readDelay > 0 { text += " after \(readDelay / 1000)us" }
        if speaksAfter > 0 { text += ", speaks after \(speaksAfter)" }
        text += ", \(ending)"
        if noDelay { text += " nodelay" }
        if usesCork { text += " cork" }
        if usesMore { text += " more" }
        if !urgentMarks.isEmpty { text += " urgent \(urgentMarks)" }
        if !outOfBandInline { text += " oob-aside" }
        if let quickAck { text += " quickack=\(quickAck)" }
        if let sendBuffer { text += " sndbuf=\(sendBuffer)" }
        if let receiveBuffer { text += " rcvbuf=\(receiveBuffer)" }
        if let maximumSegment { text += " maxseg=\(maximumSegment)" }
        if let keepIdle { text += " keepidle=\(keepIdle)s" }
        if let userTimeout { text += " timeout=\(userTimeout)ms" }
        if let pacingRate { text += " pacing=\(pacingRate)B/s" }
        return text
    }
}

extension LinkSpec {
    /// How long a packet waits behind a full queue, ns.
    var longestQueue: UInt64 { rate == 0 ? 0 : UInt64(limit * mtu * 8) * 1_000_000_000 / rate }

    /// As `init(parsing:)` reads it.
    package var text: String {
        var words: [String] = []
        if rate > 0 { words.append("rate \(rate)bit") }
        if delay > 0 { words.append("delay \(delay)ns") }
        if jitter > 0 { words.append("jitter \(jitter)ns") }
        for (name, share) in [("loss", loss), ("duplicate", duplicate), ("reorder", reorder), ("corrupt", corrupt), ("mark", mark)]
        where share > 0 { words.append("\(name) \(share)") }
        if burst > 0 { words.append("burst \(burst)") }
        words.append("limit \(limit)")
        if mtu > 0 { words.append("mtu \(mtu)") }
        if hole > 0 { words.append("hole \(hole)") }
        if narrow > 0 { words.append("narrow \(narrow)") }
        return words.joined(separator: " ")
    }
}

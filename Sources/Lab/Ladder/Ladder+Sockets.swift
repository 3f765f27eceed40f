package import Kernel

// The application's side of the stack.

extension Ladder {
    package func socket() throws -> Socket { try stack.sockets.create(domain: 2, type: 1, protocol: 6) }

    /// Listens on port 80.
    package func listener(backlog: Int32 = 5) throws -> Socket {
        let socket = try socket()
        let error = socket.bind(endpoint("0.0.0.0", Ladder.stackPort))
        guard error == 0 else { throw KernelError(error, "bind") }
        let refusal = socket.listen(backlog)
        guard refusal == 0 else { throw KernelError(refusal, "listen") }
        return socket
    }

    /// Options of the peer's SYN.
    package static func synOptions(mss: UInt16? = 1460, scale: UInt8? = nil) -> [UInt8] {
        (mss.map { [2, 4] + big($0) } ?? []) + (scale.map { [1, 3, 3, $0] } ?? [])
    }

    /// A passive connection, established, nothing in flight.
    package func accept(
        _ listener: Socket? = nil, window: Int = 65535, mss: UInt16? = 1460, scale: UInt8? = nil,
        fileID: String = #fileID, filePath: String = #filePath, line: Int = #line, column: Int = #column
    ) throws -> Socket {
        let listener = try listener ?? self.listener()
        stackISN = nil
        inject(.syn, seq: 0, window: window, options: Self.synOptions(mss: mss, scale: scale))
        expect([.syn, .ack], seq: 0, ack: 1, fileID: fileID, filePath: filePath, line: line, column: column)
        inject(.ack, seq: 1, ack: 1, window: window)
        expectNothing(fileID: fileID, filePath: filePath, line: line, column: column)
        guard let socket = listener.acceptNext() else {
            throw LadderFailure(text: "no connection to accept", place: .init(fileID, filePath, line, column))
        }
        return socket
    }

    /// An active connection, established, nothing in flight.
    package func connect(
        window: Int = 65535, mss: UInt16? = 1460, scale: UInt8? = nil,
        fileID: String = #fileID, filePath: String = #filePath, line: Int = #line, column: Int = #column
    ) throws -> Socket {
        let place = LadderFailure.Place(fileID, filePath, line, column)
        let socket = try socket()
        stackISN = nil
        let status = socket.connect(endpoint("10.0.0.2", Ladder.peerPort))
        guard status == Self.inProgress,
            let syn = expect(.syn, seq: 0, fileID: fileID, filePath: filePath, line: line, column: column)
        else { throw LadderFailure(text: "connect gives errno \(status) and no SYN", place: place) }
        stackPort = syn.sourcePort
        inject([.syn, .ack], seq: 0, ack: 1, window: window, options: Self.synOptions(mss: mss, scale: scale))
        expect(.ack, seq: 1, ack: 1, fileID: fileID, filePath: filePath, line: line, column: column)
        if !socket.isConnected { report("the connection is not established", place) }
        return socket
    }

    /// Linux's EINPROGRESS.
    private static let inProgress: Int32 = 115

    /// Sockets of the stack that are not listeners.
    package var connectionSockets: Int { stack.sockets.all.count { !$0.isListening } }
}

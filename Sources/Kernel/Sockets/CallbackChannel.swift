/// A channel for users inside the process (lab, tests): calls a function at the end of a turn in which its socket has
/// changed.
package final class CallbackChannel: SocketChannel {
    private let onUpdate: (Socket) -> Void

    package init(onUpdate: @escaping (Socket) -> Void) {
        self.onUpdate = onUpdate
        super.init()
    }

    package override func update(_ socket: Socket) { onUpdate(socket) }
}

/// The sockets that a process has made or proved to hold, by handle.
final class FileTable {
    private(set) var handles: Set<SocketHandle> = []

    func insert(_ handle: SocketHandle) { handles.insert(handle) }

    func remove(_ handle: SocketHandle) { handles.remove(handle) }

    func contains(_ handle: SocketHandle) -> Bool { handles.contains(handle) }

    /// The session ends: sockets whose pair the host has closed have nobody left to ask about them.
    func releaseDead(_ kernel: Kernel) {
        for handle in handles {
            guard let socket = kernel.sockets.find(handle), let channel = socket.channel as? Channel, !channel.isOpen else {
                continue
            }
            socket.close()
        }
        handles.removeAll()
    }
}

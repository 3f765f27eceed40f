/// The sockets that a process has made or proved to hold, by handle.
final class FileTable {
    private(set) var handles: Set<SocketHandle> = []

    func insert(_ handle: SocketHandle) { handles.insert(handle) }

    func remove(_ handle: SocketHandle) { handles.remove(handle) }

    func contains(_ handle: SocketHandle) -> Bool { handles.contains(handle) }

    func removeAll() { handles.removeAll() }
}

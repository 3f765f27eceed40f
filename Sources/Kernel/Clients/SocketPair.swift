import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// The two ends behind an application's descriptor. The application's end bears a mark that tells any holder what it has.
struct SocketPair {
    let host: Int32
    let application: Int32
    /// SO_COOKIE of the application's end: the same for every holder of it, never used again.
    let cookie: UInt64
    /// What "socket:[...]" in /proc/PID/fd shows of the application's end.
    let inode: UInt64

    /// `type` is SOCK_STREAM or SOCK_SEQPACKET. A stream's application end gets its seed byte here, see
    /// StreamChannel. `isAccepted`: the application's end does not block either, as most servers want it.
    init(type: Int32, handle: SocketHandle, seeded: Bool, isAccepted: Bool = false) throws {
        var ends: (Int32, Int32) = (-1, -1)
        let flags = Int32(SOCK_CLOEXEC.rawValue) | (isAccepted ? Int32(SOCK_NONBLOCK.rawValue) : 0)
        let made = withUnsafeMutableBytes(of: &ends) {
            socketpair(AF_UNIX, type | flags, 0, $0.baseAddress!.assumingMemoryBound(to: Int32.self))
        }
        guard made == 0 else {
            throw KernelError(errno, "socketpair: \(String(cString: strerror(errno)))")
        }
        host = ends.0
        application = ends.1
        if !isAccepted { _ = alps_ioctl_nonblocking(host) }
        cookie = Self.cookie(ends.1)
        inode = Self.inode(ends.1)
        // The byte that is always left unread may pin a whole kernel buffer (70 KB after sendfile): with the default size
        // the application's end might then never become writable again.
        var room: Int32 = 212_992
        setsockopt(ends.1, SOL_SOCKET, SO_SNDBUF, &room, socklen_t(4))
        var mark = ALPS_MARK ^ handle.rawValue
        setsockopt(ends.1, SOL_SOCKET, alps_SO_MAX_PACING_RATE, &mark, socklen_t(8))
        var seed: UInt8 = 0
        guard !seeded || send(application, &seed, 1, Int32(MSG_DONTWAIT)) == 1 else {
            let error = errno
            close(host)
            close(application)
            throw KernelError(error, "socketpair: \(String(cString: strerror(error)))")
        }
    }

    static func cookie(_ descriptor: Int32) -> UInt64 {
        var cookie: UInt64 = 0
        var length = socklen_t(8)
        getsockopt(descriptor, SOL_SOCKET, alps_SO_COOKIE, &cookie, &length)
        return cookie
    }

    private static func inode(_ descriptor: Int32) -> UInt64 {
        var facts = stat()
        return fstat(descriptor, &facts) == 0 ? UInt64(facts.st_ino) : 0
    }
}

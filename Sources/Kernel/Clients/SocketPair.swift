import ClientAPI
import CLinux
import Glibc
import PluginAPI

/// The two ends behind an application's descriptor. The host's end is bound to a name that tells any holder of the
/// application's end what it has.
struct SocketPair {
    let host: Int32
    let application: Int32
    /// SO_COOKIE of the application's end: the same for every holder of it, never used again.
    let cookie: UInt64
    /// What "socket:[...]" in /proc/PID/fd shows of the application's end.
    let inode: UInt64

    /// `type` is SOCK_STREAM or SOCK_SEQPACKET. A stream's application end gets its seed byte here, see
    /// StreamChannel.
    init(type: Int32, handle: SocketHandle, stack: String, seeded: Bool) throws {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, type | Int32(SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else {
            throw KernelError(errno, "socketpair: \(String(cString: strerror(errno)))")
        }
        host = ends[0]
        application = ends[1]
        _ = alps_ioctl_nonblocking(host)
        cookie = Self.cookie(ends[1])
        inode = Self.inode(ends[1])
        // The byte that is always left unread may pin a whole kernel buffer (70 KB after sendfile): with the default size
        // the application's end might then never become writable again.
        var room: Int32 = 212_992
        setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &room, socklen_t(4))
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        let text = Self.name(handle, stack: stack)
        let length = min(text.utf8.count, 100)
        withUnsafeMutableBytes(of: &name.sun_path) { bytes in
            for (index, byte) in text.utf8.prefix(length).enumerated() { bytes[index + 1] = byte }
        }
        let size = socklen_t(MemoryLayout<sa_family_t>.size + 1 + length)
        let status = withUnsafePointer(to: &name) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(host, $0, size) }
        }
        var seed: UInt8 = 0
        guard status == 0, !seeded || send(application, &seed, 1, Int32(MSG_DONTWAIT)) == 1 else {
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

    /// `alps/STACK/XX/HANDLE` (client.h).
    static func name(_ handle: SocketHandle, stack: String) -> String {
        let digits = String(handle.rawValue, radix: 16)
        let mixed = handle.rawValue &* 0x9e37_79b9_7f4a_7c15
        let spread = [mixed >> 58, mixed >> 52 & 63].map { Character(UnicodeScalar(UInt8(48 + $0))) }
        return "\(ALPS_PEER_NAME_PREFIX)\(stack)/" + spread + "/" + String(repeating: "0", count: 16 - digits.count) + digits
    }
}

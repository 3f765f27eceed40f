import CLibc
import ShimEntry

public typealias SocketLength = UnsafeMutablePointer<socklen_t>
public typealias StringVector = UnsafePointer<UnsafeMutablePointer<CChar>?>

/// The functions behind ours, found by `dlsym(RTLD_NEXT)`. Inside the shim a bare `close(fd)` would be the shim's own.
struct RealFunctions {
    var read: (@convention(c) (Int32, UnsafeMutableRawPointer?, Int) -> Int)? = nil
    var write: (@convention(c) (Int32, UnsafeRawPointer?, Int) -> Int)? = nil
    var readv: (@convention(c) (Int32, UnsafePointer<iovec>?, Int32) -> Int)? = nil
    var writev: (@convention(c) (Int32, UnsafePointer<iovec>?, Int32) -> Int)? = nil
    var recvfrom:
        (@convention(c) (Int32, UnsafeMutableRawPointer?, Int, Int32, UnsafeMutableRawPointer?, SocketLength?) -> Int)? =
            nil
    var recvmsg: (@convention(c) (Int32, UnsafeMutablePointer<msghdr>?, Int32) -> Int)? = nil
    var recvmmsg:
        (
            @convention(c) (Int32, UnsafeMutablePointer<mmsghdr>?, UInt32, Int32, UnsafeMutablePointer<timespec>?) ->
                Int32
        )? = nil
    var sendto: (@convention(c) (Int32, UnsafeRawPointer?, Int, Int32, UnsafeRawPointer?, socklen_t) -> Int)? = nil
    var sendmsg: (@convention(c) (Int32, UnsafePointer<msghdr>?, Int32) -> Int)? = nil
    var sendmmsg: (@convention(c) (Int32, UnsafeMutablePointer<mmsghdr>?, UInt32, Int32) -> Int32)? = nil

    var socket: (@convention(c) (Int32, Int32, Int32) -> Int32)? = nil
    var bind: (@convention(c) (Int32, UnsafeRawPointer?, socklen_t) -> Int32)? = nil
    var listen: (@convention(c) (Int32, Int32) -> Int32)? = nil
    var accept4: (@convention(c) (Int32, UnsafeMutableRawPointer?, SocketLength?, Int32) -> Int32)? = nil
    var connect: (@convention(c) (Int32, UnsafeRawPointer?, socklen_t) -> Int32)? = nil
    var shutdown: (@convention(c) (Int32, Int32) -> Int32)? = nil
    var getsockname: (@convention(c) (Int32, UnsafeMutableRawPointer?, SocketLength?) -> Int32)? = nil
    var getpeername: (@convention(c) (Int32, UnsafeMutableRawPointer?, SocketLength?) -> Int32)? = nil
    var getsockopt: (@convention(c) (Int32, Int32, Int32, UnsafeMutableRawPointer?, SocketLength?) -> Int32)? = nil
    var setsockopt: (@convention(c) (Int32, Int32, Int32, UnsafeRawPointer?, socklen_t) -> Int32)? = nil
    var poll: (@convention(c) (UnsafeMutablePointer<pollfd>?, UInt, Int32) -> Int32)? = nil
    var ppoll:
        (@convention(c) (UnsafeMutablePointer<pollfd>?, UInt, UnsafeRawPointer?, UnsafeRawPointer?) -> Int32)? = nil
    var select:
        (
            @convention(c) (
                Int32, UnsafeMutableRawPointer?, UnsafeMutableRawPointer?, UnsafeMutableRawPointer?,
                UnsafeMutableRawPointer?
            ) -> Int32
        )? = nil
    var pselect:
        (
            @convention(c) (
                Int32, UnsafeMutableRawPointer?, UnsafeMutableRawPointer?, UnsafeMutableRawPointer?, UnsafeRawPointer?,
                UnsafeRawPointer?
            ) -> Int32
        )? = nil
    var sockatmark: (@convention(c) (Int32) -> Int32)? = nil
    var ioctl: (@convention(c) (Int32, UInt, UnsafeMutableRawPointer?) -> Int32)? = nil
    var fcntl: (@convention(c) (Int32, Int32, Int) -> Int32)? = nil

    var close: (@convention(c) (Int32) -> Int32)? = nil
    var socketpair: (@convention(c) (Int32, Int32, Int32, UnsafeMutablePointer<Int32>?) -> Int32)? = nil
    var pipe2: (@convention(c) (UnsafeMutablePointer<Int32>?, Int32) -> Int32)? = nil
    var sendfile: (@convention(c) (Int32, Int32, UnsafeMutablePointer<off_t>?, Int) -> Int)? = nil
    var splice:
        (
            @convention(c) (Int32, UnsafeMutablePointer<off_t>?, Int32, UnsafeMutablePointer<off_t>?, Int, UInt32) ->
                Int
        )? = nil
    var preadv2: (@convention(c) (Int32, UnsafePointer<iovec>?, Int32, off_t, Int32) -> Int)? = nil
    var pwritev2: (@convention(c) (Int32, UnsafePointer<iovec>?, Int32, off_t, Int32) -> Int)? = nil
    var setuid: (@convention(c) (uid_t) -> Int32)? = nil
    var seteuid: (@convention(c) (uid_t) -> Int32)? = nil
    var setreuid: (@convention(c) (uid_t, uid_t) -> Int32)? = nil
    var setresuid: (@convention(c) (uid_t, uid_t, uid_t) -> Int32)? = nil
    var setrlimit: (@convention(c) (UInt32, UnsafePointer<rlimit>?) -> Int32)? = nil
    var prlimit: (@convention(c) (pid_t, UInt32, UnsafePointer<rlimit>?, UnsafeMutablePointer<rlimit>?) -> Int32)? =
        nil
    var closeRange: (@convention(c) (UInt32, UInt32, Int32) -> Int32)? = nil
    var closefrom: (@convention(c) (Int32) -> Void)? = nil
    var dup: (@convention(c) (Int32) -> Int32)? = nil
    var dup2: (@convention(c) (Int32, Int32) -> Int32)? = nil
    var dup3: (@convention(c) (Int32, Int32, Int32) -> Int32)? = nil

    var getaddrinfo:
        (
            @convention(c) (
                UnsafePointer<CChar>?, UnsafePointer<CChar>?, UnsafePointer<addrinfo>?,
                UnsafeMutablePointer<UnsafeMutablePointer<addrinfo>?>?
            ) -> Int32
        )? = nil
    var freeaddrinfo: (@convention(c) (UnsafeMutablePointer<addrinfo>?) -> Void)? = nil
    var getnameinfo:
        (
            @convention(c) (
                UnsafeRawPointer?, socklen_t, UnsafeMutablePointer<CChar>?, socklen_t, UnsafeMutablePointer<CChar>?,
                socklen_t, Int32
            ) -> Int32
        )? = nil
    var gethostbyname2_r:
        (
            @convention(c) (
                UnsafePointer<CChar>?, Int32, UnsafeMutablePointer<hostent>?, UnsafeMutablePointer<CChar>?, Int,
                UnsafeMutablePointer<UnsafeMutablePointer<hostent>?>?, UnsafeMutablePointer<Int32>?
            ) -> Int32
        )? = nil
    var gethostbyaddr_r:
        (
            @convention(c) (
                UnsafeRawPointer?, socklen_t, Int32, UnsafeMutablePointer<hostent>?, UnsafeMutablePointer<CChar>?, Int,
                UnsafeMutablePointer<UnsafeMutablePointer<hostent>?>?, UnsafeMutablePointer<Int32>?
            ) -> Int32
        )? = nil
    var getifaddrs: (@convention(c) (UnsafeMutablePointer<UnsafeMutablePointer<ifaddrs>?>?) -> Int32)? = nil
    var freeifaddrs: (@convention(c) (UnsafeMutablePointer<ifaddrs>?) -> Void)? = nil
    var if_nametoindex: (@convention(c) (UnsafePointer<CChar>?) -> UInt32)? = nil
    var if_indextoname: (@convention(c) (UInt32, UnsafeMutablePointer<CChar>?) -> UnsafeMutablePointer<CChar>?)? = nil
    var if_nameindex: (@convention(c) () -> UnsafeMutableRawPointer?)? = nil

    var openat: (@convention(c) (Int32, UnsafePointer<CChar>?, Int32, UInt32) -> Int32)? = nil
    var fopen: (@convention(c) (UnsafePointer<CChar>?, UnsafePointer<CChar>?) -> UnsafeMutableRawPointer?)? = nil

    var execve: (@convention(c) (UnsafePointer<CChar>?, StringVector?, StringVector?) -> Int32)? = nil
    var execvpe: (@convention(c) (UnsafePointer<CChar>?, StringVector?, StringVector?) -> Int32)? = nil
    var fexecve: (@convention(c) (Int32, StringVector?, StringVector?) -> Int32)? = nil
    var execveat: (@convention(c) (Int32, UnsafePointer<CChar>?, StringVector?, StringVector?, Int32) -> Int32)? = nil
    var posix_spawn:
        (
            @convention(c) (
                UnsafeMutablePointer<pid_t>?, UnsafePointer<CChar>?, UnsafeRawPointer?, UnsafeRawPointer?,
                StringVector?, StringVector?
            ) -> Int32
        )? = nil
    var posix_spawnp:
        (
            @convention(c) (
                UnsafeMutablePointer<pid_t>?, UnsafePointer<CChar>?, UnsafeRawPointer?, UnsafeRawPointer?,
                StringVector?, StringVector?
            ) -> Int32
        )? = nil
}

nonisolated(unsafe) var real = RealFunctions()

/// Fills `real`. Twice does no harm.
func findRealFunctions() {
    func next<Function>(_ name: StaticString, _ type: Function.Type) -> Function {
        unsafeBitCast(
            alps_shim_next(UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self)), to: Function.self)
    }
    var found = RealFunctions()
    found.read = next("read", type(of: found.read))
    found.write = next("write", type(of: found.write))
    found.readv = next("readv", type(of: found.readv))
    found.writev = next("writev", type(of: found.writev))
    found.recvfrom = next("recvfrom", type(of: found.recvfrom))
    found.recvmsg = next("recvmsg", type(of: found.recvmsg))
    found.recvmmsg = next("recvmmsg", type(of: found.recvmmsg))
    found.sendto = next("sendto", type(of: found.sendto))
    found.sendmsg = next("sendmsg", type(of: found.sendmsg))
    found.sendmmsg = next("sendmmsg", type(of: found.sendmmsg))
    found.socket = next("socket", type(of: found.socket))
    found.bind = next("bind", type(of: found.bind))
    found.listen = next("listen", type(of: found.listen))
    found.accept4 = next("accept4", type(of: found.accept4))
    found.connect = next("connect", type(of: found.connect))
    found.shutdown = next("shutdown", type(of: found.shutdown))
    found.getsockname = next("getsockname", type(of: found.getsockname))
    found.getpeername = next("getpeername", type(of: found.getpeername))
    found.getsockopt = next("getsockopt", type(of: found.getsockopt))
    found.setsockopt = next("setsockopt", type(of: found.setsockopt))
    found.poll = next("poll", type(of: found.poll))
    found.ppoll = next("ppoll", type(of: found.ppoll))
    found.select = next("select", type(of: found.select))
    found.pselect = next("pselect", type(of: found.pselect))
    found.sockatmark = next("sockatmark", type(of: found.sockatmark))
    found.ioctl = next("ioctl", type(of: found.ioctl))
    found.fcntl = next("fcntl", type(of: found.fcntl))
    found.close = next("close", type(of: found.close))
    found.socketpair = next("socketpair", type(of: found.socketpair))
    found.pipe2 = next("pipe2", type(of: found.pipe2))
    found.sendfile = next("sendfile", type(of: found.sendfile))
    found.splice = next("splice", type(of: found.splice))
    found.preadv2 = next("preadv2", type(of: found.preadv2))
    found.pwritev2 = next("pwritev2", type(of: found.pwritev2))
    found.setuid = next("setuid", type(of: found.setuid))
    found.seteuid = next("seteuid", type(of: found.seteuid))
    found.setreuid = next("setreuid", type(of: found.setreuid))
    found.setresuid = next("setresuid", type(of: found.setresuid))
    found.setrlimit = next("setrlimit", type(of: found.setrlimit))
    found.prlimit = next("prlimit", type(of: found.prlimit))
    found.fexecve = next("fexecve", type(of: found.fexecve))
    found.execveat = next("execveat", type(of: found.execveat))
    found.closeRange = next("close_range", type(of: found.closeRange))
    found.closefrom = next("closefrom", type(of: found.closefrom))
    found.dup = next("dup", type(of: found.dup))
    found.dup2 = next("dup2", type(of: found.dup2))
    found.dup3 = next("dup3", type(of: found.dup3))
    found.getaddrinfo = next("getaddrinfo", type(of: found.getaddrinfo))
    found.freeaddrinfo = next("freeaddrinfo", type(of: found.freeaddrinfo))
    found.getnameinfo = next("getnameinfo", type(of: found.getnameinfo))
    found.gethostbyname2_r = next("gethostbyname2_r", type(of: found.gethostbyname2_r))
    found.gethostbyaddr_r = next("gethostbyaddr_r", type(of: found.gethostbyaddr_r))
    found.getifaddrs = next("getifaddrs", type(of: found.getifaddrs))
    found.freeifaddrs = next("freeifaddrs", type(of: found.freeifaddrs))
    found.if_nametoindex = next("if_nametoindex", type(of: found.if_nametoindex))
    found.if_indextoname = next("if_indextoname", type(of: found.if_indextoname))
    found.if_nameindex = next("if_nameindex", type(of: found.if_nameindex))
    found.openat = next("openat", type(of: found.openat))
    found.fopen = next("fopen", type(of: found.fopen))
    found.execve = next("execve", type(of: found.execve))
    found.execvpe = next("execvpe", type(of: found.execvpe))
    found.posix_spawn = next("posix_spawn", type(of: found.posix_spawn))
    found.posix_spawnp = next("posix_spawnp", type(of: found.posix_spawnp))
    real = found
}

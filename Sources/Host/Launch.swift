import CLinux
import ClientAPI
import Glibc

struct LaunchError: Error {
    var message: String
    var status: Int32
}

/// Becomes a program with the shim in front of its libc and a doorway to the stack. No Foundation: the process is replaced
/// soon after it starts, and it should be quick about it.
struct Launch {
    var stack: String
    var socket: String?
    var bypass: [String]
    /// Sockets of programs without the shim are the stack's too.
    var isStrict = false

    static let mostBypassRanges = 32

    func execute(_ command: [String]) throws -> Never {
        let shim = try shimPath()
        let path = try connectedPath()
        let inherited = getenv("LD_PRELOAD").map { String(cString: $0) } ?? ""
        if !inherited.split(whereSeparator: { $0 == ":" || $0 == " " }).contains(Substring(shim)) {
            setenv("LD_PRELOAD", inherited.isEmpty ? shim : "\(shim):\(inherited)", 1)
        }
        setenv(ALPS_ENV_SOCKET, path, 1)
        if bypass.isEmpty {
            unsetenv(ALPS_ENV_BYPASS)
        } else {
            setenv(ALPS_ENV_BYPASS, bypass.joined(separator: ","), 1)
        }
        if isStrict { try confine() }
        setenv(ALPS_ENV_DOORWAY, String(try openDoorway(path)), 1)
        var arguments = command.map { strdup($0) } + [nil]
        execvp(arguments[0]!, &arguments)
        let error = errno
        throw LaunchError(
            message: "cannot run \(command[0]): \(String(cString: strerror(error)))",
            status: error == ENOENT ? 127 : 126)
    }

    /// True for "10.0.0.0/8" and "10.1.2.3".
    static func isRange(_ text: String) -> Bool {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        var address = in_addr()
        guard parts.count == 1 || parts.count == 2, inet_pton(AF_INET, String(parts[0]), &address) == 1 else {
            return false
        }
        guard parts.count == 2 else { return true }
        guard let bits = Int(parts[1]), parts[1].allSatisfy(\.isASCII), (0...32).contains(bits) else { return false }
        return true
    }

    // MARK: - the shim

    /// Beside this executable, or where an installation puts it: PREFIX/bin/alps, PREFIX/lib/alps/libalps-shim.so.
    private func shimPath() throws -> String {
        var buffer = [CChar](repeating: 0, count: 4096)
        let length = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        let executable =
            length > 0 ? String(decoding: buffer[..<length].map(UInt8.init(bitPattern:)), as: UTF8.self) : ""
        let directory = executable.lastIndex(of: "/").map { String(executable[..<$0]) } ?? "."
        let candidates = ["\(directory)/libalps-shim.so", "\(directory)/../lib/alps/libalps-shim.so"]
        for candidate in candidates {
            guard let resolved = realpath(candidate, nil) else { continue }
            defer { free(resolved) }
            let path = String(cString: resolved)
            // The dynamic loader splits LD_PRELOAD at both.
            guard !path.contains(" "), !path.contains(":") else {
                throw LaunchError(
                    message: "the path \(path) holds a space or a colon, which LD_PRELOAD cannot carry", status: 1)
            }
            return path
        }
        throw LaunchError(
            message: "cannot find libalps-shim.so: looked for \(candidates.joined(separator: " and "))", status: 1)
    }

    // MARK: - the stack

    /// Finds the stack's socket and makes sure that somebody with our protocol answers there.
    private func connectedPath() throws -> String {
        var lastError: Int32 = ENOENT
        for path in paths {
            let descriptor = connect(to: path)
            guard descriptor >= 0 else {
                if errno != ENOENT { lastError = errno }
                continue
            }
            defer { close(descriptor) }
            try sayHello(descriptor)
            // A program may change its directory before it needs the path.
            guard let resolved = realpath(path, nil) else { return path }
            defer { free(resolved) }
            return String(cString: resolved)
        }
        if lastError == EACCES || lastError == EPERM {
            throw LaunchError(message: "no permission to use stack \(described)", status: 2)
        }
        throw LaunchError(
            message: "no stack named \(described) is running: start one with `alps up` or `alps host`", status: 2)
    }

    private var described: String { socket.map { "'\(stack)' (\($0))" } ?? "'\(stack)'" }

    private var paths: [String] {
        if let socket { return [socket] }
        var found = ["/run/alps/\(stack).sock"]
        if let directory = getenv("XDG_RUNTIME_DIR") {
            found.append("\(String(cString: directory))/alps/\(stack).sock")
        }
        return found
    }

    private func connect(to path: String) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        guard path.utf8.count < MemoryLayout.size(ofValue: address.sun_path) else {
            errno = ENAMETOOLONG
            return -1
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let descriptor = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { return -1 }
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else {
            let error = errno
            close(descriptor)
            errno = error
            return -1
        }
        var limit = timeval(tv_sec: 5, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        return descriptor
    }

    private func sayHello(_ descriptor: Int32) throws {
        var hello = alps_hello()
        hello.size = UInt32(MemoryLayout<alps_hello>.size)
        hello.version = ALPS_CLIENT_VERSION
        hello.pid = UInt32(getpid())
        hello.flags = ALPS_HELLO_TOOL
        withUnsafeMutableBytes(of: &hello.program) { $0.copyBytes(from: "alps run".utf8) }
        var frame = alps_frame()
        frame.magic = ALPS_FRAME_MAGIC
        frame.length = UInt32(MemoryLayout<alps_hello>.size)
        frame.kind = UInt16(ALPS_FRAME_REQUEST)
        frame.op = UInt16(ALPS_OP_HELLO)
        frame.request_id = 1
        let request =
            withUnsafeBytes(of: &frame) { Array($0) } + withUnsafeBytes(of: &hello) { Array($0) }
        let sent = request.withUnsafeBytes { send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
        var reply = alps_frame()
        let got = withUnsafeMutableBytes(of: &reply) {
            recv(descriptor, $0.baseAddress, $0.count, Int32(MSG_WAITALL))
        }
        guard sent == request.count, got == MemoryLayout<alps_frame>.size, reply.magic == ALPS_FRAME_MAGIC else {
            throw LaunchError(message: "stack \(described) does not answer", status: 2)
        }
        guard reply.error == 0 else {
            throw LaunchError(
                message: "stack \(described) refuses this version of alps (protocol \(ALPS_CLIENT_VERSION)): "
                    + String(cString: strerror(reply.error)), status: 2)
        }
    }

    // MARK: - the doorway

    /// Gives the host one end of a pair; the other end's number, which the program and its children inherit.
    private func openDoorway(_ path: String) throws -> Int32 {
        let refusal = LaunchError(message: "stack \(described) does not open a doorway", status: 2)
        var pair: [Int32] = [-1, -1]
        let type = Int32(SOCK_SEQPACKET.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, type, 0, &pair) == 0 else { throw refusal }
        defer {
            close(pair[0])
            close(pair[1])
        }
        let control = connect(to: path)
        guard control >= 0 else { throw refusal }
        defer { close(control) }
        guard pass(pair[1], over: control) else { throw refusal }

        // High, out of the way of programs that expect the lowest numbers; below 1024, since the kernel's table of
        // descriptors grows with the highest and is copied by every fork.
        var limit = rlimit()
        var base: Int32 = 64
        if getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 {
            base = max(Int32(min(limit.rlim_cur, 1024)) - 24, 3)
        }
        let doorway = fcntl(pair[0], F_DUPFD, base)
        guard doorway >= 0 else { throw refusal }
        return doorway
    }

    private func pass(_ descriptor: Int32, over control: Int32) -> Bool {
        var byte = UInt8(ALPS_DOORWAY_BYTE)
        // struct cmsghdr (length, level, type) and one descriptor, padded.
        var ancillary: (Int, Int32, Int32, Int32, Int32) = (20, SOL_SOCKET, Int32(SCM_RIGHTS), descriptor, 0)
        return withUnsafeMutableBytes(of: &byte) { byte in
            withUnsafeMutableBytes(of: &ancillary) { ancillary in
                var part = iovec(iov_base: byte.baseAddress, iov_len: 1)
                return withUnsafeMutablePointer(to: &part) { part in
                    var message = msghdr()
                    message.msg_iov = part
                    message.msg_iovlen = 1
                    message.msg_control = ancillary.baseAddress
                    message.msg_controllen = ancillary.count
                    return sendmsg(control, &message, Int32(MSG_NOSIGNAL)) == 1
                }
            }
        }
    }
}

import CLinux
import ClientAPI
import Glibc

extension Launch {
    /// Starts a supervisor, with the environment as it is, and installs the filter: from here on this process, and all it
    /// becomes and starts, has no Internet sockets of the kernel's.
    func confine() throws {
        func refusal(_ what: String) -> LaunchError {
            LaunchError(message: "--strict: \(what): \(String(cString: strerror(errno)))", status: 1)
        }
        unsetenv(ALPS_ENV_DOORWAY)
        unsetenv(ALPS_ENV_STRICT)
        var pair: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &pair) == 0 else { throw refusal("no channel") }
        defer { close(pair[0]) }
        alps_allow_tracer()
        do {
            defer { close(pair[1]) }
            guard startSupervisor(pair[1]) else { throw refusal("cannot start the supervisor") }
        }
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        let token = UInt64.random(in: 1...UInt64.max)
        let code = SocketFilter(token: token, numbers: StrictNumbers(limit: UInt64(limit.rlim_cur))).assembled()
        let listener = alps_seccomp_install(code, UInt16(code.count))
        guard listener >= 0 else {
            throw refusal(
                errno == EBUSY ? "a filter with a supervisor is there already" : "the kernel does not take the filter")
        }
        defer { close(listener) }
        let text = String(listener)
        guard text.withCString({ send(pair[0], $0, text.utf8.count, Int32(MSG_NOSIGNAL)) }) > 0 else {
            throw refusal("the supervisor has gone")
        }
        var ready: UInt8 = 0
        guard recv(pair[0], &ready, 1, 0) == 1 else { throw refusal("the supervisor cannot look into this process") }
        setenv(ALPS_ENV_STRICT, String(token, radix: 16), 1)
    }

    /// True: it runs, as nobody's child.
    private func startSupervisor(_ channel: Int32) -> Bool {
        let words = ["alps", "supervise", "--detach", "--launcher", String(getpid()), "--channel", String(channel)]
        var arguments = words.map { strdup($0) } + [nil]
        defer { arguments.forEach { free($0) } }
        var child: pid_t = 0
        errno = posix_spawn(&child, "/proc/self/exe", nil, nil, &arguments, environ)
        guard errno == 0 else { return false }
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0 { guard errno == EINTR else { return false } }
        return status == 0
    }
}

import CLinux
import Glibc

/// Makes the socket calls of programs that the shim cannot be in: static ones, and those that make system calls themselves.
///
/// It runs with the shim itself. A call that the filter stops is made here, on a copy of the caller's descriptor, and the
/// shim makes it one on the stack; the socket of a new one is put into the caller. The channel to the stack is in-band, so
/// data of streams and of connected datagram sockets never come this way.
final class Supervisor: @unchecked Sendable {
    let listener: Int32
    private let numbers: StrictNumbers
    private let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    /// Inodes of the sockets handed out: the same call on another descriptor is none of ours.
    private var handed: Set<UInt64> = []

    init(listener: Int32, numbers: StrictNumbers) {
        self.listener = listener
        self.numbers = numbers
        pthread_mutex_init(lock, nil)
    }

    deinit { lock.deallocate() }

    /// Until nobody is left who has the filter.
    func run() {
        while true {
            var poll = pollfd(fd: listener, events: Int16(POLLIN), revents: 0)
            if Glibc.poll(&poll, 1, -1) < 0 {
                if errno == EINTR { continue }
                return
            }
            guard poll.revents & Int16(POLLIN) != 0 else { return }
            var request = seccomp_notif()
            // ENOENT: it has died meanwhile.
            guard alps_seccomp_receive(listener, &request) == 0 else { continue }
            SupervisedCall(self, request).begin()
        }
    }

    private func locked<Result>(_ body: () -> Result) -> Result {
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        return body()
    }

    func isHanded(_ inode: UInt64) -> Bool { locked { handed.contains(inode) } }

    func remember(_ inode: UInt64) { locked { _ = handed.insert(inode) } }

    /// Puts a socket into the caller, under a number that the filter knows, and answers the call with it. Closes `socket`.
    /// In-band for good (client.h, 5): the caller need not have the shim.
    func hand(_ socket: Int32, isStream: Bool, closesOnExec: Bool, to request: seccomp_notif) -> Int32? {
        defer { close(socket) }
        let process = SupervisedProcess(thread: Int32(bitPattern: request.pid))
        let limit = process.descriptorLimit
        for range in isStream ? numbers.streams : numbers.datagrams {
            for number in range where !process.has(number) {
                guard UInt64(number) < limit else { return EMFILE }
                let added = alps_seccomp_add_fd(
                    listener, request.id, alps_SECCOMP_ADDFD_SETFD | alps_SECCOMP_ADDFD_SEND, socket, Int32(number),
                    closesOnExec ? UInt32(O_CLOEXEC) : 0)
                guard added >= 0 else { return errno }
                remember(alps_inode(socket))
                return nil
            }
        }
        return EMFILE
    }

    /// The shim has put another socket in the place of the copy: the caller gets it too.
    func replace(_ descriptor: Int32, by socket: Int32, in request: seccomp_notif) {
        let process = SupervisedProcess(thread: Int32(bitPattern: request.pid))
        remember(alps_inode(socket))
        _ = alps_seccomp_add_fd(
            listener, request.id, alps_SECCOMP_ADDFD_SETFD, socket, descriptor,
            process.closesOnExec(descriptor) ? UInt32(O_CLOEXEC) : 0)
    }

    func answer(_ request: seccomp_notif, value: Int64 = 0, error: Int32 = 0, goesOn: Bool = false) {
        var response = seccomp_notif_resp()
        response.id = request.id
        response.val = error == 0 ? value : 0
        response.error = -error
        response.flags = goesOn ? alps_SECCOMP_NOTIF_CONTINUE : 0
        // ENOENT: a signal has interrupted it, or it is dead.
        _ = alps_seccomp_answer(listener, &response)
    }
}

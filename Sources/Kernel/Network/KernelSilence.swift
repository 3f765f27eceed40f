import CLinux
import Glibc

/// Keeps the operating system from handling packets for an address of ours that come in through an interface shared with
/// it: else a system that forwards would send them on, and tell their senders so. A rule of nftables, taken back when this
/// object goes or the process ends, in whatever way: a small process waits for that.
package final class KernelSilence {
    /// The table that holds the rule.
    package let table: String
    /// Nobody writes to it: its end is what the other process waits for.
    private let lifeline: Int32
    private let watcher: pid_t

    /// `address` is IPv4, in dotted form.
    package init(interface: String, address: String) throws {
        table = "alps_\(getpid())"
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw KernelError(errno, "pipe: \(String(cString: strerror(errno)))") }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        lifeline = ends[1]
        defer { close(ends[0]) }
        do {
            // First the one that takes the rule back, then the rule.
            watcher = try Self.spawn(["sh", "-c", "read -r line; exec nft delete table ip \(table)"], input: ends[0])
            let rule =
                "add table ip \(table); add chain ip \(table) in { type filter hook prerouting priority raw; }; "
                + "add rule ip \(table) in iifname \"\(interface)\" ip daddr \(address) counter drop"
            let status = Self.wait(try Self.spawn(["nft", rule], input: nil))
            guard status == 0 else { throw KernelError(EIO, "nft could not add a rule for \(address) on \(interface)") }
        } catch {
            close(lifeline)
            throw error
        }
    }

    /// Waits until the rule has gone.
    deinit {
        close(lifeline)
        _ = Self.wait(watcher)
    }

    private static func wait(_ child: pid_t) -> Int32 {
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0 { guard errno == EINTR else { return -1 } }
        return status
    }

    /// In a session of its own: signals to ours do not reach it.
    private static func spawn(_ command: [String], input: Int32?) throws -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        if let input { posix_spawn_file_actions_adddup2(&actions, input, 0) }
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        posix_spawnattr_setflags(&attributes, alps_POSIX_SPAWN_SETSID)
        var arguments = command.map { strdup($0) } + [nil]
        defer { for argument in arguments { free(argument) } }
        var child: pid_t = 0
        let error = posix_spawnp(&child, command[0], &actions, &attributes, &arguments, environ)
        guard error == 0 else {
            throw KernelError(
                error, error == ENOENT
                    ? "'\(command[0])' is needed to share an interface: install the package nftables"
                    : "cannot run \(command[0]): \(String(cString: strerror(error)))")
        }
        return child
    }
}

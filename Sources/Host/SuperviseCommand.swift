import ArgumentParser
import CLinux
import Glibc

/// `alps supervise`, which `alps run --strict` starts: not for people.
struct SuperviseCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "supervise", abstract: "Make the socket calls of programs started with run --strict.",
        shouldDisplay: false)

    @Option(help: "Process that installs the filter.")
    var launcher: Int32

    @Option(help: "Descriptor to talk to it over.")
    var channel: Int32

    @Flag(help: "Only start another of this, so that the program has no child it knows nothing of.")
    var detach = false

    func run() throws {
        if detach { return try startAnother() }
        // The listener's number comes as text, the answer is one byte.
        var text = [CChar](repeating: 0, count: 32)
        guard recv(channel, &text, text.count - 1, 0) > 0,
            let number = Int32(String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self))
        else { throw failure("the launcher has gone", status: 1) }
        let process = alps_pidfd_open(launcher)
        let listener = process < 0 ? -1 : alps_pidfd_getfd(process, number)
        guard listener >= 0 else {
            throw failure("cannot look into process \(launcher): \(String(cString: strerror(errno)))", status: 1)
        }
        close(process)
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        let numbers = StrictNumbers(limit: UInt64(limit.rlim_cur))
        var ready: UInt8 = 1
        guard send(channel, &ready, 1, Int32(MSG_NOSIGNAL)) == 1 else { return }
        close(channel)
        Supervisor(listener: listener, numbers: numbers).run()
    }

    private func startAnother() throws {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        for standard in 0...2 as ClosedRange<Int32> {
            posix_spawn_file_actions_addopen(&actions, standard, "/dev/null", O_RDWR, 0)
        }
        posix_spawn_file_actions_adddup2(&actions, channel, 3)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        posix_spawnattr_setflags(&attributes, Int16(alps_POSIX_SPAWN_SETSID))
        defer {
            posix_spawn_file_actions_destroy(&actions)
            posix_spawnattr_destroy(&attributes)
        }
        let words = ["alps", "supervise", "--launcher", String(launcher), "--channel", "3"]
        var arguments = words.map { strdup($0) } + [nil]
        defer { arguments.forEach { free($0) } }
        var child: pid_t = 0
        let error = posix_spawn(&child, "/proc/self/exe", &actions, &attributes, &arguments, environ)
        guard error == 0 else { throw failure("cannot start: \(String(cString: strerror(error)))", status: 1) }
    }
}

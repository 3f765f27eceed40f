import ClientAPI
import Foundation
import Glibc
import Kernel
import Testing

/// The control socket: its file, its name, its end.
@Suite(.serialized) struct ControlServerTests {
    private func message(_ body: () throws -> Void) -> String {
        do {
            try body()
            return ""
        } catch { return (error as? KernelError)?.message ?? "\(error)" }
    }

    @Test func theFileIsForOwnerAndGroupAndGoesAtTheEnd() throws {
        let host = try LiveHost()
        var status = stat()
        #expect(stat(host.path, &status) == 0)
        #expect(status.st_mode & 0o777 == 0o660)
        #expect(status.st_mode & S_IFMT == S_IFSOCK)
        host.finish()
    }

    @Test func aLiveSocketIsRefusedAndAStaleOneReplaced() throws {
        let host = try LiveHost()
        let second = Kernel(KernelConfiguration(name: "test"))
        second.reactor = try Reactor(kernel: second)
        #expect(message { _ = try ControlServer(kernel: second, path: host.path) }.contains("a stack named 'test' is running"))
        // A host that was killed leaves its file behind.
        let copy = host.path + ".stale"
        let stale = try ControlServer(kernel: second, path: copy)
        try stale.start()
        #expect(link(copy, copy + "2") == 0)
        stale.stop()
        #expect(access(copy, F_OK) != 0 && access(copy + "2", F_OK) == 0)
        let third = Kernel(KernelConfiguration(name: "test"))
        third.reactor = try Reactor(kernel: third)
        let replaced = try ControlServer(kernel: third, path: copy + "2")
        replaced.stop()
        second.shutdown()
        third.shutdown()
        host.finish()
    }

    @Test func aHostThatIsStartingIsAlive() throws {
        // Between claiming the path and letting clients in, plugins are loaded: another must not take the path away.
        let kernel = Kernel(KernelConfiguration(name: "test"))
        kernel.reactor = try Reactor(kernel: kernel)
        let path = "/tmp/alps-starting-\(getpid()).sock"
        let first = try ControlServer(kernel: kernel, path: path)
        #expect(message { _ = try ControlServer(kernel: kernel, path: path) }.contains("is running"))
        // Somebody has removed the file, and another host has the path now: that one stays.
        unlink(path)
        let second = try ControlServer(kernel: kernel, path: path)
        first.stop()
        #expect(access(path, F_OK) == 0)
        second.stop()
        #expect(access(path, F_OK) != 0)
        kernel.shutdown()
    }

    @Test func aFileThatIsNoSocketIsNotRemoved() throws {
        let kernel = Kernel(KernelConfiguration(name: "test"))
        let path = "/tmp/alps-file-\(getpid())"
        close(open(path, O_WRONLY | O_CREAT, 0o600))
        #expect(message { _ = try ControlServer(kernel: kernel, path: path) }.contains("a file that is no socket is there"))
        #expect(access(path, F_OK) == 0)
        unlink(path)
        kernel.shutdown()
    }

    @Test(arguments: ["", "..", "two words", "nul\0"]) func whatIsNoFileNameIsRefused(_ name: String) throws {
        let kernel = Kernel(KernelConfiguration(name: name))
        #expect(message { _ = try ControlServer(kernel: kernel, path: nil) }.contains("cannot be a stack's name"))
        kernel.shutdown()
    }

    @Test func namesAndPathsAreChecked() throws {
        let kernel = Kernel(KernelConfiguration(name: "a/b"))
        #expect(message { _ = try ControlServer(kernel: kernel, path: "/tmp/x.sock") }.contains("cannot be a stack's name"))
        let long = Kernel(KernelConfiguration(name: "long"))
        let path = "/tmp/" + String(repeating: "x", count: 110)
        #expect(message { _ = try ControlServer(kernel: long, path: path) }.contains("too long: at most 107 bytes"))
        #expect(message { _ = try ControlServer(kernel: long, path: "/nonexistent/x.sock") }.contains("cannot make control socket"))
        kernel.shutdown()
        long.shutdown()
    }

    @Test func theEndOfTheHostEndsItsSessions() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let socket = try client.socket(type: 1)
        let (a, b) = try client.connection()
        host.kernel.shutdown()
        #expect(client.isClosed)
        // Never a clean end of file.
        for pair in [socket, a, b] {
            var byte: UInt8 = 0
            #expect(recv(pair.fd, &byte, 1, 0) == -1 && errno == ECONNRESET)
            close(pair.fd)
        }
        #expect(host.kernel.mbufs.isIdle)
    }
}

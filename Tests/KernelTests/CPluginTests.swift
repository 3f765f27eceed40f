import Foundation
import Kernel
import Lab
import PluginAPI
import Testing

/// A plugin written in C, built with plain cc, loaded and talked to.
@Suite struct CPluginTests {
    private func build() throws -> String {
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().path
        let library = NSTemporaryDirectory() + "libdiscard-\(getpid())-\(UInt32.random(in: 0 ... .max)).so"
        let compiler = Process()
        compiler.executableURL = URL(fileURLWithPath: "/usr/bin/cc")
        compiler.arguments = [
            "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I\(root)/Sources/PluginAPI/include", "-o", library,
            "\(root)/Tests/CPlugin/discard.c",
        ]
        try compiler.run()
        compiler.waitUntilExit()
        try #require(compiler.terminationStatus == 0)
        return library
    }

    @Test func aProtocolInCTakesDatagramsAndAnswersARequestOfItsOwn() throws {
        let library = try build()
        defer { unlink(library) }
        let network = VirtualNetwork()
        let kernel = try network.addKernel("a", plugins: ["ipv4"])
        let instance = try kernel.plugins.load(path: library)
        #expect(instance.variant == "discard" && instance.version == "1.0.0")
        let socket = try kernel.sockets.create(domain: 2, type: 2, protocol: 253)
        #expect(socket.send([1, 2, 3]) == 0)
        #expect(socket.send([UInt8](repeating: 7, count: 1000)) == 0)
        let request = try #require(socket.entry.request(named: "total"))
        let (error, results) = request.call(
            instance: socket.entry.instancePointer, socket: nil, [.buffer([], capacity: 8)])
        #expect(error == 0)
        guard case .bytes(let bytes)? = results.first else {
            Issue.record("no answer")
            return
        }
        #expect(bytes == [0xeb, 3, 0, 0, 0, 0, 0, 0])
        #expect(request.call(instance: socket.entry.instancePointer, socket: nil, []).error == Int32(ALPS_EINVAL))
        socket.close()
        #expect(kernel.sockets.count == 0)
        try kernel.plugins.unload("discard")
        #expect(kernel.plugins.instance("discard") == nil)
        network.shutdown()
        #expect(kernel.mbufs.isIdle)
    }
}

import Foundation
import Kernel
import Lab
import PluginAPI
import Testing

/// Loading, refusing, swapping and unloading, and the cells by which plugins reach each other.
@Suite(.serialized) struct PluginRegistryTests {
    let network = VirtualNetwork()
    let kernel: Kernel

    init() throws { kernel = try network.addKernel("a", plugins: ["ipv4"]) }

    private func finish() {
        network.shutdown()
        #expect(kernel.mbufs.isIdle)
    }

    private var variants: [String] { kernel.plugins.instances.map { "\($0.variant) \($0.version)" } }

    private func refusal(_ body: () throws -> Void) -> String {
        do {
            try body()
            return ""
        } catch { return (error as? KernelError)?.message ?? "\(error)" }
    }

    private func isMapped(_ plugin: CPlugin) throws -> Bool {
        let name = URL(fileURLWithPath: plugin.path).lastPathComponent
        let maps = try #require(FileHandle(forReadingAtPath: "/proc/self/maps"))
        return String(decoding: try maps.readToEnd() ?? Data(), as: UTF8.self).contains(name)
    }

    /// What the taker hears from whoever provides the number.
    private func ask(_ variant: String = "taker") throws -> Int32 {
        let entry = try #require(kernel.protocols.entries.last { $0.instance.variant == variant })
        return try #require(entry.request(named: "ask")).call(instance: entry.instancePointer, socket: nil).error
    }

    // MARK: Refusals

    @Test func whatCannotRunIsRefusedAndNothingChanges() throws {
        let giver = try CPlugin.giver(1)
        try kernel.plugins.load(path: giver.path)
        let before = variants
        let entries = kernel.protocols.entries.count
        let cases: [(CPlugin, String)] = [
            (try CPlugin.taker(["FAILS_IN_CREATE"]), "create failed with errno 12"),
            (try CPlugin.taker(["FAILS_IN_START"]), "start failed with errno 22"),
            (try CPlugin.taker(["FAILS_IN_ENTRY"]), "alps_plugin_entry failed with errno 1"),
            (try CPlugin.taker(["WRONG_NAME"]), "the note says taker 1.0.0, the descriptor somebody else"),
            (try CPlugin.taker(["WRONG_MAGIC"]), "wrong magic in the descriptor"),
            (try CPlugin.taker(["WRONG_SIGNATURE"]), "start failed with errno 22"),
            (try CPlugin(bytes: Array("garbage".utf8)), "not an ELF file"),
            (giver, "'giver' is loaded already"),
        ]
        for (plugin, words) in cases {
            let text = refusal { try kernel.plugins.load(path: plugin.path) }
            #expect(text.contains(words))
            #expect(!text.contains("\n"))
            #expect(variants == before)
            #expect(kernel.protocols.entries.count == entries)
        }
        // The refused ones are not kept mapped.
        for (plugin, _) in cases.prefix(6) { #expect(try !isMapped(plugin)) }
        finish()
    }

    @Test func aRequiredInterfaceMustBeThere() throws {
        let taker = try CPlugin.taker()
        #expect(refusal { try kernel.plugins.load(path: taker.path) }.contains("requires test.number/1:0, which nothing here provides"))
        try kernel.plugins.load(path: try CPlugin.giver(5).path)
        try kernel.plugins.load(path: taker.path)
        #expect(try ask() == 5)
        #expect(refusal { try kernel.plugins.unload("giver") }.contains("needed by 'taker'"))
        try kernel.plugins.unload("taker")
        try kernel.plugins.unload("giver")
        #expect(variants.count == 1)
        finish()
    }

    @Test func variantsHaveNamesOfTheirPlugin() throws {
        let giver = try CPlugin.giver(1)
        #expect(refusal { try kernel.plugins.load(path: giver.path, as: "other") }.contains("it can run as 'giver/NAME'"))
        #expect(refusal { try kernel.plugins.load(path: giver.path, as: "giver/") }.contains("it can run as 'giver/NAME'"))
        #expect(refusal { try kernel.plugins.swap("giver", path: giver.path) }.contains("no plugin 'giver' is running"))
        #expect(refusal { try kernel.plugins.unload("giver") }.contains("no plugin 'giver' is running"))
        try kernel.plugins.load(path: giver.path, as: "giver/second")
        try kernel.plugins.load(path: giver.path)
        #expect(refusal { try kernel.plugins.swap("giver", path: try CPlugin.taker().path) }.contains("cannot replace 'giver'"))
        #expect(variants == ["ipv4 1.0.0", "giver/second 1.0.1", "giver 1.0.1"])
        finish()
    }

    // MARK: Cells

    @Test func aSwapRewritesTheCells() throws {
        let first = try CPlugin.giver(1)
        try kernel.plugins.load(path: first.path)
        try kernel.plugins.load(path: try CPlugin.taker().path)
        #expect(try ask() == 1)
        #expect(try isMapped(first))
        let cell = try #require(kernel.plugins.providedCell("test.number/1:0"))
        let generation = cell.pointee.generation
        for number in 2...5 {
            try kernel.plugins.swap("giver", path: try CPlugin.giver(number).path)
            #expect(try ask() == Int32(number))
        }
        #expect(cell.pointee.generation == generation + 4)
        // Nothing used it any more.
        #expect(try !isMapped(first))
        #expect(variants == ["ipv4 1.0.0", "taker 1.0.0", "giver 1.0.5"])
        finish()
    }

    @Test func aSwapThatFailsLeavesTheOldOneInPlace() throws {
        try kernel.plugins.load(path: try CPlugin.giver(1).path)
        try kernel.plugins.load(path: try CPlugin.taker().path)
        for macro in ["FAILS_IN_CREATE", "FAILS_IN_START", "WRONG_SIGNATURE"] {
            let bad = try CPlugin.giver(2, [macro])
            #expect(refusal { try kernel.plugins.swap("giver", path: bad.path) } != "")
            #expect(try ask() == 1)
            #expect(try !isMapped(bad))
        }
        #expect(variants == ["ipv4 1.0.0", "giver 1.0.1", "taker 1.0.0"])
        // Its protocol still makes sockets.
        let socket = try kernel.sockets.create(domain: 2, type: 2, protocol: 246)
        socket.close()
        finish()
    }

    @Test func anEmptyCellSaysSo() throws {
        try kernel.plugins.load(path: try CPlugin.giver(1).path)
        try kernel.plugins.load(path: try CPlugin.giver(9).path, as: "giver/spare")
        try kernel.plugins.load(path: try CPlugin.taker().path)
        #expect(try ask() == 1)
        // A variant beside it provides nothing by itself.
        try kernel.plugins.unload("giver/spare")
        #expect(try ask() == 1)
        finish()
    }

    // MARK: Draining

    @Test func anInstanceEndsWithItsLastSocket() throws {
        let first = try CPlugin.giver(1)
        try kernel.plugins.load(path: first.path)
        let old = try #require(kernel.plugins.instance("giver"))
        let socket = try kernel.sockets.create(domain: 2, type: 2, protocol: 246)
        #expect(old.liveSockets == 1)
        try kernel.plugins.swap("giver", path: try CPlugin.giver(2).path)
        let isMoved = socket.entry.instance !== old
        if !isMoved {
            #expect(old.state == .draining)
            #expect(try isMapped(first))
        }
        socket.close()
        kernel.endTurn()
        #expect(variants == ["ipv4 1.0.0", "giver 1.0.2"])
        #expect(try !isMapped(first))
        finish()
    }
}

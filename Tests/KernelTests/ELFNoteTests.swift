import Foundation
import Kernel
import PluginAPI
import Testing

/// What is read of a plugin file before any of its code runs.
@Suite struct ELFNoteTests {
    private func refusal(_ bytes: [UInt8]) throws -> String {
        let file = try CPlugin(bytes: bytes)
        defer { unlink(file.path) }
        do {
            _ = try ELFNote(path: file.path)
            return ""
        } catch let error as KernelError {
            return error.message
        }
    }

    @Test func aNoteTellsWhatThePluginIs() throws {
        let note = try ELFNote(path: try CPlugin.giver(3).path)
        #expect(note.name == "giver" && note.version == "1.0.3")
        #expect(note.provides == ["test.number/1:0"] && note.requires == [])
        #expect(note.abiMajor == Int(ALPS_ABI_MAJOR) && note.isUnloadable)
        #expect(try ELFNote(path: try CPlugin.taker().path).requires == ["test.number/1:0"])
    }

    @Test func whatIsNoPluginIsRefusedInWords() throws {
        var bytes = try CPlugin.giver(1).bytes
        #expect(try refusal([]).contains("not an ELF file"))
        #expect(try refusal(Array("#!/bin/sh\n".utf8)).contains("not an ELF file"))
        #expect(try refusal(Array(bytes[0..<40])).contains("64-bit"))
        bytes[4] = 1
        #expect(try refusal(bytes).contains("64-bit"))
        bytes[4] = 2
        bytes[18] = 0x28
        #expect(try refusal(bytes).contains("ELF machine 40"))
        #expect(throws: KernelError.self) { try ELFNote(path: "/nonexistent") }
        #expect(throws: KernelError.self) { try ELFNote(path: "/dev/null") }
        #expect(throws: KernelError.self) { try ELFNote(path: "/tmp") }
        let libc = try Array(Data(contentsOf: URL(fileURLWithPath: "/proc/self/exe")).prefix(1 << 20))
        #expect(try !refusal(libc).isEmpty)
    }

    @Test func aWrongMagicIsNamed() throws {
        let bytes = try CPlugin.giver(1).bytes
        let magic = withUnsafeBytes(of: UInt32(ALPS_MAGIC)) { Array($0) }
        // The same bytes may be the owner's name of the note, or code.
        let refusals = try (0..<bytes.count - 4).filter { Array(bytes[$0..<$0 + 4]) == magic }.map { place in
            var damaged = bytes
            damaged[place] ^= 0xff
            return try refusal(damaged)
        }
        #expect(refusals.contains { $0.contains("wrong magic 0x") })
    }

    /// Cut off anywhere, and with bytes changed anywhere near the headers: refused or read, never a crash.
    @Test func damagedFilesAreSurvived() throws {
        let whole = try CPlugin.giver(1).bytes
        for length in stride(from: 0, to: whole.count, by: 97) {
            _ = try refusal(Array(whole[0..<length]))
        }
        var state: UInt64 = 0x9e37_79b9_7f4a_7c15
        func next(_ bound: Int) -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(state >> 33) % bound
        }
        let head = Array(whole.prefix(4096))
        var refused = 0
        for _ in 0..<5000 {
            var bytes = head
            for _ in 0..<(1 + next(8)) {
                // Header, program headers and the note lie in the first page.
                let place = next(next(4) == 0 ? 4096 : 1024)
                bytes[place] = next(3) == 0 ? 0xff : UInt8(next(256))
            }
            if try !refusal(bytes).isEmpty { refused += 1 }
        }
        #expect(refused > 500)
    }
}

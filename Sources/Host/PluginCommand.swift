import ArgumentParser
import Foundation
import Kernel

/// `alps plugin`
struct PluginCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "plugin",
        abstract: "List, inspect, check, load, unload and swap protocol plugins.",
        subcommands: [List.self, Info.self, Check.self, Load.self, Unload.self, Swap.self],
        defaultSubcommand: List.self)

    static func printPlugins(_ reply: PluginsReply) {
        var table = TextTable(["INSTANCE", "VERSION", "GEN", "STATE", "SOCKETS", "ENTRIES", "MEMORY", "PATH"])
        for row in reply.plugins {
            table.add([
                row.variant, row.version, "\(row.generation)", row.state, "\(row.sockets)", "\(row.entries)",
                "\(row.memory)", row.path,
            ])
        }
        table.print()
    }

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the loaded plugin instances.")
        @OptionGroup var stack: StackOptions

        func run() throws { try stack.show(stack.ask("plugins", as: PluginsReply.self), PluginCommand.printPlugins) }
    }

    struct Info: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Show what a plugin file says of itself, without running any of its code.")
        @Argument(help: "The shared library.") var path: String
        @Flag(help: "Print JSON.") var json = false

        struct Reply: Codable {
            var name: String
            var version: String
            var abi: String
            var unloadable: Bool
            var provides: [String]
            var requires: [String]
        }

        func run() throws {
            let note: ELFNote
            do { note = try ELFNote(path: path) } catch let error as KernelError {
                throw failure(error.message)
            }
            let reply = Reply(
                name: note.name, version: note.version, abi: "\(note.abiMajor).\(note.abiMinorNeeded)",
                unloadable: note.isUnloadable, provides: note.provides, requires: note.requires)
            if json {
                let encoder = JSONEncoder()
                encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
                print(String(decoding: try encoder.encode(reply), as: UTF8.self))
                return
            }
            print("name:     \(reply.name)")
            print("version:  \(reply.version)")
            print("ABI:      \(reply.abi)")
            print("unload:   \(reply.unloadable ? "yes" : "stays resident")")
            print("provides: \(reply.provides.joined(separator: ", "))")
            print("requires: \(reply.requires.joined(separator: ", "))")
        }
    }

    struct Check: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Check plugin files without running any of their code.",
            discussion: """
                Looks at the note, the ABI version, what the library exports, imports and needs, and at global variables. \
                Exit status 1 if a file would be refused, or does what a plugin should not.
                """)
        @Argument(help: "Shared libraries.") var paths: [String]
        @Flag(help: "Print JSON.") var json = false

        struct Row: Codable {
            var path: String
            var check: String
            var ok: Bool
            var detail: String
        }

        func run() throws {
            let rows = paths.flatMap { path in
                PluginCheck(path: path).findings.map { Row(path: path, check: $0.what, ok: $0.isGood, detail: $0.detail) }
            }
            if json {
                let encoder = JSONEncoder()
                encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
                print(String(decoding: try encoder.encode(rows), as: UTF8.self))
            } else {
                var table = TextTable(["", "CHECK", "FOUND"] + (paths.count > 1 ? ["FILE"] : []))
                for row in rows {
                    table.add([row.ok ? "ok" : "FAIL", row.check, row.detail] + (paths.count > 1 ? [row.path] : []))
                }
                table.print()
            }
            if rows.contains(where: { !$0.ok }) { throw ExitCode.failure }
        }
    }

    struct Load: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Load a plugin beside those that run.",
            discussion: """
                alps plugin load ./libalps-tcp.so --as tcp/other
                ALPS_TCP=other alps run -- curl http://10.11.12.1/
                """)
        @Argument(help: "The shared library.") var path: String
        @Option(name: .customLong("as"), help: "Run it as this variant, e.g. tcp/other.") var variant: String?
        @OptionGroup var stack: StackOptions

        func run() throws {
            let request = PluginRequest(path: absolute(path), variant: variant)
            try stack.show(stack.ask("plugin.load", request, as: PluginsReply.self), PluginCommand.printPlugins)
        }
    }

    struct Unload: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Unload an instance: at once if nothing uses it, else when its last connection ends.")
        @Argument(help: "Instance, e.g. tcp/other.") var variant: String
        @OptionGroup var stack: StackOptions

        func run() throws {
            let request = PluginRequest(variant: variant)
            try stack.show(stack.ask("plugin.unload", request, as: PluginsReply.self), PluginCommand.printPlugins)
        }
    }

    struct Swap: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Replace a running plugin by another build of it.",
            discussion: """
                Connections that are open go on in the old instance; new ones, and all listeners, belong to the new one. \
                The old library is unmapped when its last connection ends.
                """)
        @Argument(help: "Name, e.g. tcp.") var plugin: String
        @Argument(help: "The shared library that replaces it.") var path: String
        @OptionGroup var stack: StackOptions

        func run() throws {
            let request = PluginRequest(name: plugin, path: absolute(path))
            try stack.show(stack.ask("plugin.swap", request, as: PluginsReply.self), PluginCommand.printPlugins)
        }
    }
}

/// The host has another working directory.
private func absolute(_ path: String) -> String { URL(fileURLWithPath: path).path }

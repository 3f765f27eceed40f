import Foundation
import Testing

/// Plugins in C, built with plain cc into a temporary directory that goes when the tests end.
struct CPlugin {
    let path: String

    private static let directory: String = {
        var template = Array((NSTemporaryDirectory() + "alps-plugins-XXXXXX").utf8CString)
        _ = mkdtemp(&template)
        atexit { try? FileManager.default.removeItem(atPath: CPlugin.directory) }
        return String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
    }()

    /// `source` lies in Tests/CPlugin; `macros` are "NAME" or "NAME=VALUE".
    init(_ source: String, _ macros: [String] = []) throws {
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().path
        path = "\(Self.directory)/lib\(source)-\(UInt64.random(in: 0 ... .max)).so"
        let compiler = Process()
        compiler.executableURL = URL(fileURLWithPath: "/usr/bin/cc")
        compiler.arguments =
            ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-shared", "-fPIC", "-I\(root)/Sources/PluginAPI/include"]
            + macros.map { "-D\($0)" } + ["-o", path, "\(root)/Tests/CPlugin/\(source).c"]
        try compiler.run()
        compiler.waitUntilExit()
        try #require(compiler.terminationStatus == 0)
    }

    /// A file with given content.
    init(bytes: [UInt8]) throws {
        path = "\(Self.directory)/file-\(UInt64.random(in: 0 ... .max)).so"
        try Data(bytes).write(to: URL(fileURLWithPath: path))
    }

    var bytes: [UInt8] { get throws { try Array(Data(contentsOf: URL(fileURLWithPath: path))) } }

    static func giver(_ number: Int, _ more: [String] = []) throws -> CPlugin {
        try CPlugin("pair", ["GIVER", "NUMBER=\(number)", "VERSION=\"1.0.\(number)\""] + more)
    }

    static func taker(_ more: [String] = []) throws -> CPlugin { try CPlugin("pair", more) }
}

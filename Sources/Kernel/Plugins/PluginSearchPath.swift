import Glibc

/// Where plugins and the shim are looked for.
package struct PluginSearchPath {
    package let directories: [String]

    /// Beside this program (or test bundle), then in PREFIX/lib/alps where PREFIX/bin holds the program.
    package init() {
        var found: [String] = []
        var buffer = [CChar](repeating: 0, count: 4096)
        let length = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        if length > 0 {
            let path = String(decoding: buffer.prefix(length).map { UInt8(bitPattern: $0) }, as: UTF8.self)
            let directory = Self.parent(path)
            found.append(directory)
            found.append(Self.parent(directory) + "/lib/alps")
        }
        for argument in CommandLine.arguments where argument.hasSuffix(".xctest") || argument.contains(".xctest/") {
            found.append(Self.parent(argument))
        }
        directories = found
    }

    /// One directory only.
    package init(directory: String) { directories = [directory] }

    /// The file of plugin `name` ("tcp"), or of the shim ("shim").
    package func find(_ name: String) throws -> String {
        let file = "libalps-\(name).so"
        for directory in directories where access("\(directory)/\(file)", R_OK) == 0 { return "\(directory)/\(file)" }
        throw KernelError(
            ENOENT,
            "\(file) is not in \(directories.joined(separator: " or ")): build it with `swift build -c release`, or name its directory with --plugins")
    }

    private static func parent(_ path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }
}

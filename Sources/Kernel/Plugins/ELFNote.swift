import Glibc
import PluginAPI

/// What a plugin file says of itself in its ELF note, read without running any of its code.
package struct ELFNote: Equatable {
    package let name: String
    package let version: String
    package let abiMajor: Int
    package let abiMinorNeeded: Int
    package let flags: UInt32
    package let provides: [String]
    package let requires: [String]

    package var isUnloadable: Bool { flags & UInt32(ALPS_PLUGIN_UNLOADABLE) != 0 }

    /// Reads and checks the note of the file at `path`.
    package init(path: String) throws {
        try self.init(bytes: Self.read(path), path: path)
    }

    /// The whole file, at most 256 MiB.
    static func read(_ path: String) throws -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw KernelError(errno, "cannot read \(path): \(String(cString: strerror(errno)))") }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG, status.st_size <= 256 << 20 else {
            throw KernelError(EINVAL, "\(path) is not a plugin: not an ordinary file")
        }
        var bytes = [UInt8](repeating: 0, count: Int(status.st_size))
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeMutableBytes { Glibc.read(descriptor, $0.baseAddress! + done, $0.count - done) }
            guard count > 0 else { break }
            done += count
        }
        bytes.removeLast(bytes.count - done)
        return bytes
    }

    init(bytes: [UInt8], path: String) throws {
        func refuse(_ reason: String) -> KernelError { KernelError(EINVAL, "\(path) is not a plugin: \(reason)") }
        func word<T: FixedWidthInteger>(_ offset: UInt64, _ type: T.Type) throws -> T {
            guard offset <= UInt64(bytes.count), UInt64(bytes.count) - offset >= UInt64(MemoryLayout<T>.size) else {
                throw refuse("the ELF file is cut off")
            }
            return bytes.withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: Int(offset), as: T.self)) }
        }
        guard bytes.starts(with: [0x7f, 0x45, 0x4c, 0x46]) else { throw refuse("not an ELF file") }
        guard bytes.count >= 64, bytes[4] == 2, bytes[5] == 1 else { throw refuse("not a 64-bit little-endian ELF file") }
        #if arch(x86_64)
            let machine: UInt16 = 62
        #else
            let machine: UInt16 = 183
        #endif
        let fileMachine = try word(18, UInt16.self)
        guard fileMachine == machine else {
            throw refuse("ELF machine \(fileMachine), this host is \(machine)")
        }
        let programHeaders = try word(32, UInt64.self)
        let headerSize = UInt64(try word(54, UInt16.self))
        let headerCount = UInt64(try word(56, UInt16.self))
        let noteSegment: UInt32 = 4
        for index in 0..<headerCount {
            let (header, overflow) = programHeaders.addingReportingOverflow(index * headerSize)
            guard !overflow else { throw refuse("the ELF file is cut off") }
            guard try word(header, UInt32.self) == noteSegment else { continue }
            var offset = try word(header + 8, UInt64.self)
            let (end, tooLong) = offset.addingReportingOverflow(try word(header + 32, UInt64.self))
            guard !tooLong, end <= UInt64(bytes.count) else { throw refuse("the ELF file is cut off") }
            while offset + 12 <= end {
                let nameSize = UInt64(try word(offset, UInt32.self))
                let size = UInt64(try word(offset + 4, UInt32.self))
                let type = try word(offset + 8, UInt32.self)
                let description = offset + 12 + (nameSize + 3) & ~3
                guard description + size <= end else { break }
                if type == ALPS_NOTE_TYPE, nameSize == 5,
                    bytes[Int(offset) + 12..<Int(offset) + 17].elementsEqual([65, 76, 80, 83, 0])
                {
                    guard size >= UInt64(MemoryLayout<alps_note>.size) else { throw refuse("its note is too short") }
                    let note = bytes.withUnsafeBytes {
                        $0.loadUnaligned(fromByteOffset: Int(description), as: alps_note.self)
                    }
                    try self.init(note, path: path)
                    return
                }
                offset = description + (size + 3) & ~3
            }
        }
        throw refuse("it has no .note.alps")
    }

    private init(_ note: alps_note, path: String) throws {
        guard note.magic == ALPS_MAGIC else {
            throw KernelError(
                EINVAL,
                "\(path): wrong magic 0x\(String(note.magic, radix: 16)), expected 0x\(String(UInt32(ALPS_MAGIC), radix: 16))")
        }
        func text<T>(_ field: T) -> String {
            withUnsafeBytes(of: field) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        }
        func list<T>(_ field: T) -> [String] { text(field).split(separator: ",").map(String.init) }
        name = text(note.name)
        version = text(note.version)
        abiMajor = Int(note.abi_major)
        abiMinorNeeded = Int(note.abi_minor_needed)
        flags = note.flags
        provides = list(note.provides)
        requires = list(note.requires_)
        guard !name.isEmpty else { throw KernelError(EINVAL, "\(path): the plugin's note has no name") }
    }

    /// Whether this host can run it; the message names the field and both values.
    func checkABI(_ path: String) throws {
        guard abiMajor == ALPS_ABI_MAJOR else {
            throw KernelError(EINVAL, "\(path): ABI major \(abiMajor), this host has \(ALPS_ABI_MAJOR)")
        }
        guard abiMinorNeeded <= ALPS_ABI_MINOR else {
            throw KernelError(EINVAL, "\(path): needs ABI minor \(abiMinorNeeded), this host has \(ALPS_ABI_MINOR)")
        }
    }
}

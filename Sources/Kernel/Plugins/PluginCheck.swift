import Glibc
import PluginAPI

/// What can be said of a plugin file without running any of its code: whether a host will take it, and whether it keeps to
/// what a plugin may use.
package struct PluginCheck {
    package struct Finding {
        package var what: String
        package var isGood: Bool
        /// What was found, or what to do.
        package var detail: String
    }

    package private(set) var findings: [Finding] = []
    package var isGood: Bool { findings.allSatisfy(\.isGood) }

    /// What compilers call by themselves. Everything else a plugin gets from the host.
    package static let allowedImports: Set<String> = [
        "memcpy", "memmove", "memset", "memcmp", "bcmp", "strlen", "free", "posix_memalign", "__stack_chk_fail", "abort",
        // Of the linker's start files, weak.
        "__cxa_finalize", "__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable",
    ]
    package static let allowedLibraries: Set<String> = ["libc.so.6"]
    /// Bytes that linker and compiler put there themselves, and a table of operations for an interface that is provided.
    static let ordinaryWritableData = 1024

    package init(path: String) {
        let bytes: [UInt8]
        do {
            bytes = try ELFNote.read(path)
            let note = try ELFNote(bytes: bytes, path: path)
            add("note", true, "\(note.name) \(note.version)")
            do {
                try note.checkABI(path)
                add("ABI", true, "\(note.abiMajor).\(note.abiMinorNeeded), this host has \(ALPS_ABI_MAJOR).\(ALPS_ABI_MINOR)")
            } catch let error as KernelError { add("ABI", false, error.message) } catch { add("ABI", false, "\(error)") }
            add(
                "unloadable", note.isUnloadable,
                note.isUnloadable
                    ? "its library is unmapped when its last instance ends"
                    : "it stays mapped for ever: set ALPS_PLUGIN_UNLOADABLE if it has no run-time library of its own")
        } catch {
            add("note", false, (error as? KernelError)?.message ?? "\(error)")
            return
        }
        guard let image = ELFImage(bytes) else {
            add("ELF", false, "its section or symbol tables are damaged")
            return
        }
        let exports = image.exports.sorted()
        add(
            "exports", exports == ["alps_plugin_entry"],
            exports == ["alps_plugin_entry"]
                ? "alps_plugin_entry only"
                : "\(Self.list(exports)): export alps_plugin_entry alone, by a version script")
        let libraries = image.libraries.filter { !Self.allowedLibraries.contains($0) }
        add(
            "libraries", libraries.isEmpty,
            libraries.isEmpty ? "libc at most" : "\(Self.list(libraries)): link without them")
        let imports = image.imports.filter { !Self.allowedImports.contains($0) }.sorted()
        add(
            "imports", imports.isEmpty,
            imports.isEmpty ? "nothing but what compilers call" : "\(Self.list(imports)): ask the host's interfaces instead")
        add(
            "globals", image.writableData <= Self.ordinaryWritableData,
            image.writableData <= Self.ordinaryWritableData
                ? "none" : "\(image.writableData) bytes of writable data: keep state in the instance, several may run at once")
    }

    private mutating func add(_ what: String, _ isGood: Bool, _ detail: String) {
        findings.append(Finding(what: what, isGood: isGood, detail: detail))
    }

    private static func list(_ names: [String]) -> String {
        names.prefix(8).joined(separator: ", ") + (names.count > 8 ? " and \(names.count - 8) more" : "")
    }
}

/// The dynamic symbols of a 64-bit library, by its section headers. Every offset comes from the file and is checked.
private struct ELFImage {
    var exports: [String] = []
    var imports: [String] = []
    var libraries: [String] = []
    var writableData = 0

    private let bytes: [UInt8]

    private struct Section {
        var type: UInt32
        var flags: UInt64
        var offset: UInt64
        var size: UInt64
        var link: UInt32
    }

    init?(_ bytes: [UInt8]) {
        self.bytes = bytes
        guard let start: UInt64 = word(40), let entrySize: UInt16 = word(58), let count: UInt16 = word(60), entrySize >= 64
        else { return nil }
        var sections: [Section] = []
        let protected = protectedAddresses
        for index in 0..<UInt64(count) {
            let (at, overflow) = start.addingReportingOverflow(index * UInt64(entrySize))
            // A whole entry, whose last fields are not read.
            guard !overflow, at <= UInt64(bytes.count), UInt64(bytes.count) - at >= UInt64(entrySize), let type: UInt32 = word(at &+ 4), let flags: UInt64 = word(at &+ 8),
                let address: UInt64 = word(at &+ 16),
                let offset: UInt64 = word(at &+ 24), let size: UInt64 = word(at &+ 32), let link: UInt32 = word(at &+ 40)
            else { return nil }
            sections.append(Section(type: type, flags: flags, offset: offset, size: size, link: link))
            let (isBits, isNoBits) = (type == 1, type == 8)
            // Writable and allocated; .init_array and the like have types of their own.
            if isBits || isNoBits, flags & 3 == 3, !protected.contains(address) {
                writableData = Int(clamping: UInt64(writableData) &+ min(size, 1 << 40))
            }
        }
        guard sections.contains(where: { $0.type == 11 }) else { return nil }
        for section in sections where section.type == 11 || section.type == 6 {
            guard Int(section.link) < sections.count, section.offset <= UInt64(bytes.count),
                section.size <= UInt64(bytes.count) - section.offset
            else { return nil }
            let names = sections[Int(section.link)]
            if section.type == 11 { readSymbols(section, names) } else { readDynamic(section, names) }
        }
    }

    /// Addresses that the loader makes read-only after relocation (PT_GNU_RELRO).
    private var protectedAddresses: Range<UInt64> {
        guard let start: UInt64 = word(32), let size: UInt16 = word(54), let count: UInt16 = word(56), size >= 56 else {
            return 0..<0
        }
        for index in 0..<UInt64(count) {
            let at = start &+ index &* UInt64(size)
            guard let type: UInt32 = word(at), let address: UInt64 = word(at &+ 16), let length: UInt64 = word(at &+ 40)
            else { return 0..<0 }
            let (end, overflow) = address.addingReportingOverflow(length)
            if type == 0x6474_e552, !overflow { return address..<end }
        }
        return 0..<0
    }

    private func word<T: FixedWidthInteger>(_ offset: UInt64) -> T? {
        guard offset <= UInt64(bytes.count), UInt64(bytes.count) - offset >= UInt64(MemoryLayout<T>.size) else { return nil }
        return bytes.withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: Int(offset), as: T.self)) }
    }

    private func text(_ names: Section, _ offset: UInt64) -> String {
        guard offset < names.size, names.offset <= UInt64(bytes.count), names.size <= UInt64(bytes.count) - names.offset else {
            return "?"
        }
        let start = Int(names.offset + offset)
        return String(decoding: bytes[start..<Int(names.offset + names.size)].prefix { $0 != 0 }, as: UTF8.self)
    }

    private mutating func readSymbols(_ section: Section, _ names: Section) {
        for at in stride(from: section.offset &+ 24, to: section.offset &+ section.size, by: 24) {
            guard let name: UInt32 = word(at), let index: UInt16 = word(at &+ 6) else { return }
            let symbol = text(names, UInt64(name))
            guard !symbol.isEmpty else { continue }
            // Index 0 is undefined; absolute symbols name versions.
            if index == 0 { imports.append(symbol) } else if index != 0xfff1 { exports.append(symbol) }
        }
    }

    private mutating func readDynamic(_ section: Section, _ names: Section) {
        for at in stride(from: section.offset, to: section.offset &+ section.size, by: 16) {
            guard let tag: UInt64 = word(at), let value: UInt64 = word(at &+ 8), tag != 0 else { return }
            if tag == 1 { libraries.append(text(names, value)) }
        }
    }
}

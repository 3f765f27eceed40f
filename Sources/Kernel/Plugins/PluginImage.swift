import Glibc
package import PluginAPI

/// A plugin library mapped into this process. Shared by the instances made of the same file content.
///
/// The host maps a private copy whose name carries the content's hash: `dlopen` of a path it has seen returns the old
/// code even if the file has been replaced.
package final class PluginImage {
    package let path: String
    package let note: ELFNote
    /// Where the mapped copy lies; its name shows in /proc/PID/maps.
    package let copyPath: String
    package let hash: UInt64
    package let descriptor: UnsafeMutablePointer<alps_descriptor>
    private let handle: UnsafeMutableRawPointer

    package init(path: String, bytes: [UInt8], note: ELFNote, hash: UInt64) throws {
        self.path = path
        self.note = note
        self.hash = hash
        let base = path.split(separator: "/").last.map(String.init) ?? "plugin.so"
        // Several kernels, of one process or of many, may load the same content at a time.
        let unique = String(UInt32.random(in: 0 ... .max), radix: 16)
        let copy = try Self.directory() + "/\(String(hash, radix: 16))-\(getpid())-\(unique)-\(base)"
        copyPath = copy
        try Self.write(bytes, to: copy)
        defer { unlink(copy) }
        guard let handle = dlopen(copy, RTLD_NOW | RTLD_LOCAL) else {
            throw KernelError(EINVAL, "\(path) cannot be loaded: \(String(cString: dlerror()))")
        }
        self.handle = handle
        descriptor = .allocate(capacity: 1)
        memset(descriptor, 0, MemoryLayout<alps_descriptor>.size)
        descriptor.pointee.size = UInt32(MemoryLayout<alps_descriptor>.size)
        // Everything is initialised: if this throws, `deinit` lets go of it.
        try enter()
    }

    /// Calls the entry function and compares what it says with the note.
    private func enter() throws {
        guard let symbol = dlsym(handle, "alps_plugin_entry") else {
            throw KernelError(EINVAL, "\(path) does not export alps_plugin_entry")
        }
        let entry = unsafeBitCast(symbol, to: (@convention(c) (UnsafeMutablePointer<alps_descriptor>) -> Int32).self)
        let status = entry(descriptor)
        guard status == 0 else { throw KernelError(status, "\(path): alps_plugin_entry failed with errno \(status)") }
        guard descriptor.pointee.magic == ALPS_MAGIC else {
            throw KernelError(EINVAL, "\(path): wrong magic in the descriptor")
        }
        let said = (String(cString: descriptor.pointee.name), String(cString: descriptor.pointee.version))
        guard said == (note.name, note.version) else {
            throw KernelError(
                EINVAL,
                "\(path): the note says \(note.name) \(note.version), the descriptor \(said.0) \(said.1)")
        }
        guard descriptor.pointee.abi_major == note.abiMajor, descriptor.pointee.abi_minor_needed == note.abiMinorNeeded
        else { throw KernelError(EINVAL, "\(path): note and descriptor name different ABI versions") }
        let provided = (0..<Int(descriptor.pointee.provides_count)).compactMap { index in
            descriptor.pointee.provides.map { String(cString: $0[index].id) }
        }
        guard provided == note.provides else {
            throw KernelError(
                EINVAL, "\(path): the note provides \(note.provides), the descriptor \(provided)")
        }
    }

    deinit {
        descriptor.deallocate()
        // After dlclose of a library with the full Swift runtime the host would crash: such a plugin stays mapped.
        if note.isUnloadable { dlclose(handle) }
    }

    private static func directory() throws -> String {
        let base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp"
        let path = "\(base)/alps-plugins-\(getuid())"
        guard mkdir(path, 0o700) == 0 || errno == EEXIST else {
            throw KernelError(errno, "cannot make \(path): \(String(cString: strerror(errno)))")
        }
        return path
    }

    private static func write(_ bytes: [UInt8], to path: String) throws {
        unlink(path)
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o700)
        guard descriptor >= 0 else { throw KernelError(errno, "cannot write \(path): \(String(cString: strerror(errno)))") }
        defer { close(descriptor) }
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress! + done, $0.count - done) }
            guard count > 0 else { throw KernelError(errno, "cannot write \(path): \(String(cString: strerror(errno)))") }
            done += count
        }
    }

    /// Names contents, protects against nothing.
    static func contentHash(_ bytes: [UInt8]) -> UInt64 {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        func add(_ word: UInt64) {
            hash = (hash ^ word) &* 0x9e37_79b9_7f4a_7c15
            hash ^= hash >> 29
        }
        bytes.withUnsafeBytes { bytes in
            let words = bytes.count / 8
            for index in 0..<words { add(bytes.loadUnaligned(fromByteOffset: 8 * index, as: UInt64.self)) }
            for index in (8 * words)..<bytes.count { add(UInt64(bytes[index])) }
        }
        add(UInt64(bytes.count))
        return hash
    }
}

import CLinux
import Glibc

/// The process whose call waits: its memory and its descriptors. Good for one notification only.
struct SupervisedProcess {
    /// The thread that made the call.
    var thread: Int32

    /// Nil: not all of it can be read.
    func read(_ address: UInt64, _ count: Int) -> [UInt8]? {
        guard count > 0 else { return [] }
        var bytes = [UInt8](repeating: 0, count: count)
        return alps_process_read(thread, &bytes, address, count) == count ? bytes : nil
    }

    func read<Value: BitwiseCopyable>(_ address: UInt64, as type: Value.Type) -> Value? {
        read(address, MemoryLayout<Value>.size)?.withUnsafeBytes { $0.loadUnaligned(as: type) }
    }

    func write(_ address: UInt64, _ bytes: UnsafeRawBufferPointer) -> Bool {
        guard let base = bytes.baseAddress, bytes.count > 0 else { return true }
        return alps_process_write(thread, address, base, bytes.count) == bytes.count
    }

    func write<Value: BitwiseCopyable>(_ address: UInt64, _ value: Value) -> Bool {
        withUnsafeBytes(of: value) { write(address, $0) }
    }

    /// The process the thread belongs to.
    var leader: Int32 {
        guard let file = fopen("/proc/\(thread)/status", "re") else { return thread }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 256)
        while fgets(&line, Int32(line.count), file) != nil {
            let text = String(decoding: line.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
            guard text.hasPrefix("Tgid:") else { continue }
            return Int32(text.dropFirst(5).drop { $0 == " " || $0 == "\t" }.prefix { $0.isNumber }) ?? thread
        }
        return thread
    }

    /// A copy of one of its descriptors; the caller closes it.
    func copy(of descriptor: Int32) -> Int32? {
        let process = alps_pidfd_open(leader)
        guard process >= 0 else { return nil }
        defer { close(process) }
        let copy = alps_pidfd_getfd(process, descriptor)
        guard copy >= 0 else { return nil }
        _ = fcntl(copy, F_SETFD, FD_CLOEXEC)
        return copy
    }

    /// Whether a descriptor number is in use.
    func has(_ descriptor: UInt32) -> Bool {
        var target: CChar = 0
        return readlink("/proc/\(thread)/fd/\(descriptor)", &target, 1) >= 0
    }

    /// Whether a descriptor is closed by exec.
    func closesOnExec(_ descriptor: Int32) -> Bool {
        guard let file = fopen("/proc/\(thread)/fdinfo/\(descriptor)", "re") else { return false }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 256)
        while fgets(&line, Int32(line.count), file) != nil {
            let text = String(decoding: line.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
            guard text.hasPrefix("flags:") else { continue }
            let digits = text.dropFirst(6).drop { $0 == " " || $0 == "\t" }.prefix { $0.isNumber }
            return (UInt64(digits, radix: 8) ?? 0) & UInt64(O_CLOEXEC) != 0
        }
        return false
    }

    /// RLIMIT_NOFILE, soft.
    var descriptorLimit: UInt64 {
        let limit = alps_descriptor_limit(leader)
        return limit == 0 ? 1024 : limit
    }
}

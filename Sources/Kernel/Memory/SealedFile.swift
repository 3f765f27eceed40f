import CLinux
import Glibc

/// Memory that a client maps, too. A seal keeps it from changing the file's length, which could turn the host's next access
/// into a SIGBUS.
final class SealedFile {
    /// For the client.
    let descriptor: Int32
    let bytes: Int
    let base: UnsafeMutableRawPointer

    /// Nil if the system has no memory file or address range to give.
    init?(name: String, bytes: Int) {
        self.bytes = bytes
        descriptor = memfd_create(name, UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING))
        guard descriptor >= 0 else { return nil }
        guard ftruncate(descriptor, bytes) == 0,
            fcntl(descriptor, alps_F_ADD_SEALS, alps_F_SEAL_SHRINK | alps_F_SEAL_GROW | alps_F_SEAL_SEAL) == 0,
            let memory = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor, 0),
            memory != MAP_FAILED
        else {
            close(descriptor)
            return nil
        }
        base = memory
    }

    deinit {
        munmap(base, bytes)
        close(descriptor)
    }
}

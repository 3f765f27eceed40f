import CLinux
import Glibc
import Kernel

/// The operating system's side of a tap interface, as a packet socket: IPv4 frames of the stack under test come in,
/// frames for it go out. The system itself takes no part, since no frame bears its link address.
final class LiveWire: ReadyHandler {
    private var descriptor: Int32
    private weak var reactor: Reactor?
    private var receive: ((UnsafeRawBufferPointer) -> Void)?
    private static let ethertype = UInt16(0x0800).bigEndian
    private static let largestFrame = 65550

    init(interface name: String) throws {
        descriptor = socket(
            AF_PACKET, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue),
            Int32(Self.ethertype))
        guard descriptor >= 0 else {
            throw KernelError(errno, "cannot open a packet socket: \(String(cString: strerror(errno)))")
        }
        super.init()
        var address = sockaddr_ll()
        address.sll_family = UInt16(AF_PACKET)
        address.sll_protocol = Self.ethertype
        address.sll_ifindex = Int32(if_nametoindex(name))
        let status = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_ll>.size))
            }
        }
        guard status == 0 else {
            throw KernelError(errno, "cannot watch \(name): \(String(cString: strerror(errno)))")
        }
    }

    deinit { close() }

    func attach(_ reactor: Reactor, _ receive: @escaping (UnsafeRawBufferPointer) -> Void) throws {
        self.reactor = reactor
        self.receive = receive
        try reactor.add(descriptor, events: UInt32(EPOLLIN.rawValue), handler: self)
    }

    override func ready(_ events: UInt32) {
        withUnsafeTemporaryAllocation(byteCount: Self.largestFrame, alignment: 16) { buffer in
            while descriptor >= 0 {
                let count = recv(descriptor, buffer.baseAddress, buffer.count, 0)
                guard count > 0 else { return }
                receive?(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
            }
        }
    }

    func send(_ frame: [UInt8]) {
        _ = frame.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, 0) }
    }

    func close() {
        guard descriptor >= 0 else { return }
        reactor?.remove(descriptor, handler: self)
        Glibc.close(descriptor)
        descriptor = -1
        receive = nil
    }
}

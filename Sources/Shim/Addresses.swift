import CLibc
import ClientAPI

/// An IPv4 address and port, both in network byte order.
struct Endpoint {
    var address: UInt32
    var port: UInt16
}

/// The IPv4 address in a contract address, network byte order.
func ipv4(_ address: alps_client_sockaddr) -> UInt32 {
    withUnsafeBytes(of: address.addr) { $0.loadUnaligned(as: UInt32.self) }
}

func clientAddress(_ endpoint: Endpoint) -> alps_client_sockaddr {
    var address = alps_client_sockaddr()
    address.family = UInt16(AF_INET)
    address.port = endpoint.port
    withUnsafeMutableBytes(of: &address.addr) { $0.storeBytes(of: endpoint.address, as: UInt32.self) }
    return address
}

/// What a program's address argument is.
enum AddressArgument {
    case ipv4(Endpoint)
    case unspecified
    case invalid(Int32)
}

/// Reads a program's `sockaddr`.
func readAddress(_ pointer: UnsafeRawPointer?, _ length: socklen_t) -> AddressArgument {
    guard let pointer, length >= 2 else { return .invalid(EINVAL) }
    let family = Int32(pointer.loadUnaligned(as: sa_family_t.self))
    if family == AF_UNSPEC { return .unspecified }
    guard family == AF_INET else { return .invalid(EAFNOSUPPORT) }
    guard length >= MemoryLayout<sockaddr_in>.size else { return .invalid(EINVAL) }
    return .ipv4(
        Endpoint(
            address: pointer.loadUnaligned(fromByteOffset: 4, as: UInt32.self),
            port: pointer.loadUnaligned(fromByteOffset: 2, as: UInt16.self)))
}

/// Writes a `sockaddr_in` into at most `capacity` bytes; the size it has.
@discardableResult
func writeAddress(_ endpoint: Endpoint, to pointer: UnsafeMutableRawPointer?, capacity: Int) -> socklen_t {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = endpoint.port
    address.sin_addr.s_addr = endpoint.address
    if let pointer {
        memcpy(pointer, &address, min(capacity, MemoryLayout<sockaddr_in>.size))
    }
    return socklen_t(MemoryLayout<sockaddr_in>.size)
}

/// Answers a call with an address and a value-result length.
func writeAddress(_ endpoint: Endpoint, to pointer: UnsafeMutableRawPointer?, _ length: SocketLength?) {
    guard let pointer, let length else { return }
    length.pointee = writeAddress(endpoint, to: pointer, capacity: Int(length.pointee))
}

func endpoint(_ address: alps_client_sockaddr) -> Endpoint {
    Endpoint(address: ipv4(address), port: address.port)
}

/// Fails a call.
@inline(__always)
func fail(_ error: Int32) -> Int32 {
    alps_set_errno(error)
    return -1
}

@inline(__always)
func fail(_ error: Int32) -> Int {
    alps_set_errno(error)
    return -1
}

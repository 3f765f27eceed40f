import ClientAPI
import CLinux
package import Foundation
import Glibc

/// A tool's side of the control socket: blocking, one query at a time.
package final class ControlClient {
    private let descriptor: Int32
    private var lastRequest: UInt64 = 0

    /// Connects to the stack. The error says what to do if there is none.
    package init(name: String, socketPath: String?) throws {
        let path = socketPath ?? ControlServer.path(name: name)
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw KernelError(errno, "socket: \(String(cString: strerror(errno)))") }
        var address: sockaddr_un
        do { address = try ControlServer.address(path) } catch {
            close(descriptor)
            throw error
        }
        let status = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        if status != 0 {
            let error = errno
            close(descriptor)
            let what = socketPath == nil ? "no stack named '\(name)' is running" : "no stack is running at \(path)"
            switch error {
            case ENOENT, ECONNREFUSED: throw KernelError(error, "\(what): start one with `alps up` or `alps host`")
            case EACCES: throw KernelError(error, "no permission for \(path): ask for its group, or use root")
            default: throw KernelError(error, "cannot reach \(path): \(String(cString: strerror(error)))")
            }
        }
        var hello = alps_hello()
        hello.size = UInt32(MemoryLayout<alps_hello>.size)
        hello.version = UInt32(ALPS_CLIENT_VERSION)
        hello.pid = UInt32(getpid())
        hello.flags = UInt32(ALPS_HELLO_TOOL)
        withUnsafeMutableBytes(of: &hello.program) { bytes in
            for (index, byte) in "alps".utf8.enumerated() { bytes[index] = byte }
        }
        do {
            _ = try exchange(UInt16(ALPS_OP_HELLO), withUnsafeBytes(of: hello) { Array($0) })
        } catch {
            close(descriptor)
            throw error
        }
    }

    deinit { close(descriptor) }

    /// Asks one query; arguments and reply are JSON.
    package func query(_ command: String, arguments: Data) throws -> Data {
        let envelope = try JSONEncoder().encode(["command": command])
        return Data(try exchange(UInt16(ALPS_OP_QUERY), Array(envelope) + [UInt8(ascii: "\n")] + Array(arguments)))
    }

    private func exchange(_ op: UInt16, _ payload: [UInt8]) throws -> [UInt8] {
        lastRequest += 1
        var frame = alps_frame()
        frame.magic = UInt32(ALPS_FRAME_MAGIC)
        frame.length = UInt32(payload.count)
        frame.kind = UInt16(ALPS_FRAME_REQUEST)
        frame.op = op
        frame.request_id = lastRequest
        try sendAll(withUnsafeBytes(of: frame) { Array($0) } + payload)
        while true {
            let header = try receive(MemoryLayout<alps_frame>.size)
            let reply = header.withUnsafeBytes { $0.loadUnaligned(as: alps_frame.self) }
            guard reply.magic == ALPS_FRAME_MAGIC, reply.length <= 64 << 20 else {
                throw KernelError(EPROTO, "the stack's answer makes no sense: is it of another version?")
            }
            let body = try receive(Int(reply.length))
            guard reply.request_id == lastRequest else { continue }
            guard reply.error == 0 else {
                throw KernelError(
                    reply.error,
                    body.isEmpty ? String(cString: strerror(reply.error)) : String(decoding: body, as: UTF8.self))
            }
            return body
        }
    }

    private func sendAll(_ bytes: [UInt8]) throws {
        var done = 0
        while done < bytes.count {
            let sent = bytes.withUnsafeBytes {
                send(descriptor, $0.baseAddress! + done, $0.count - done, Int32(MSG_NOSIGNAL))
            }
            guard sent > 0 else { throw KernelError(ENETDOWN, "the stack has gone away") }
            done += sent
        }
    }

    private func receive(_ count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            let got = bytes.withUnsafeMutableBytes { recv(descriptor, $0.baseAddress! + done, count - done, 0) }
            guard got > 0 else { throw KernelError(ENETDOWN, "the stack has gone away") }
            done += got
        }
        return bytes
    }
}

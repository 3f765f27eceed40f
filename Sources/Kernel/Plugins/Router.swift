import CFFI
import Glibc
package import PluginAPI

/// One argument of a user request, by its signature letter.
package enum RouterValue {
    /// `i`, `u`, `l`, `L`
    case integer(Int64)
    /// `a`
    case address(alps_sockaddr)
    /// `A`
    case addressOut
    /// `b`
    case bytes([UInt8])
    /// `B`: what the buffer holds before the call, and its capacity
    case buffer([UInt8], capacity: Int)
}

/// What came back in the out-arguments, in order.
package enum RouterResult {
    case address(alps_sockaddr)
    case bytes([UInt8])
}

/// A user request with the libffi call interface made from its signature. Calls cost some 50 ns: control calls only.
package final class RoutedRequest {
    package let id: UInt32
    package let name: String
    package let signature: String
    package let doc: String
    /// Whether the request may sleep and so needs a fiber.
    package let mayBlock: Bool
    package let function: alps_function
    private let letters: [UInt8]
    private let interface: UnsafeMutablePointer<ffi_cif>
    private let types: UnsafeMutablePointer<UnsafeMutablePointer<ffi_type>?>

    /// Nil with a reason if the signature is not of the alphabet.
    init(_ request: alps_user_request) throws {
        var name = String(cString: request.name)
        mayBlock = name.hasSuffix("!")
        if mayBlock { name.removeLast() }
        self.name = name
        id = request.id
        signature = String(cString: request.signature)
        doc = request.doc.map { String(cString: $0) } ?? ""
        function = request.function
        letters = Array(signature.utf8)
        if let standard = Self.standardSignatures[request.id], standard != signature {
            throw KernelError(
                Int32(ALPS_EINVAL), "request '\(name)' has signature \"\(signature)\", it must be \"\(standard)\"")
        }
        var list: [UnsafeMutablePointer<ffi_type>] = [FFITypes.pointer]
        for letter in letters {
            switch letter {
            case UInt8(ascii: "S"), UInt8(ascii: "a"), UInt8(ascii: "A"): list.append(FFITypes.pointer)
            case UInt8(ascii: "i"): list.append(FFITypes.sint32)
            case UInt8(ascii: "u"): list.append(FFITypes.uint32)
            case UInt8(ascii: "l"): list.append(FFITypes.sint64)
            case UInt8(ascii: "L"): list.append(FFITypes.uint64)
            case UInt8(ascii: "b"): list += [FFITypes.pointer, FFITypes.uint32]
            case UInt8(ascii: "B"): list += [FFITypes.pointer, FFITypes.pointer]
            default:
                throw KernelError(
                    Int32(ALPS_EINVAL), "request '\(name)' has signature \"\(signature)\": no letter '\(Character(Unicode.Scalar(letter)))'")
            }
        }
        types = .allocate(capacity: list.count)
        for (index, type) in list.enumerated() { (types + index).initialize(to: type) }
        interface = .allocate(capacity: 1)
        memset(interface, 0, MemoryLayout<ffi_cif>.size)
        let status = ffi_prep_cif(interface, FFI_DEFAULT_ABI, UInt32(list.count), FFITypes.sint32, types)
        guard status == FFI_OK else {
            interface.deallocate()
            types.deallocate()
            throw KernelError(Int32(ALPS_EINVAL), "request '\(name)': libffi refuses signature \"\(signature)\"")
        }
    }

    deinit {
        interface.deallocate()
        types.deallocate()
    }

    /// Signatures that the standard requests must have (alps/protosw.h).
    static let standardSignatures: [UInt32: String] = [
        UInt32(ALPS_PRU_ATTACH): "S", UInt32(ALPS_PRU_BIND): "Sa", UInt32(ALPS_PRU_LISTEN): "Si",
        UInt32(ALPS_PRU_CONNECT): "Sa", UInt32(ALPS_PRU_DISCONNECT): "S", UInt32(ALPS_PRU_SHUTDOWN): "Si",
        UInt32(ALPS_PRU_CLOSE): "S", UInt32(ALPS_PRU_ABORT): "S", UInt32(ALPS_PRU_CTLOUTPUT): "SiiiB",
        UInt32(ALPS_PRU_CONTROL): "SuB", UInt32(ALPS_PRU_SOCKADDR): "SA", UInt32(ALPS_PRU_PEERADDR): "SA",
        UInt32(ALPS_PRU_REHOME): "S", UInt32(ALPS_PRU_ORPHAN): "S", UInt32(ALPS_PRU_DESCRIBE): "SB",
    ]

    /// How many of `arguments` the signature wants: `S` takes none of them.
    package var argumentCount: Int { letters.count { $0 != UInt8(ascii: "S") } }

    /// Calls the function. EINVAL if the arguments do not fit the signature.
    package func call(
        instance: UnsafeMutableRawPointer, socket: UnsafeMutablePointer<alps_socket>?, _ arguments: [RouterValue] = []
    ) -> (error: Int32, results: [RouterResult]) {
        // Every value gets a 16-byte cell; libffi takes pointers to values.
        let slots = 2 * letters.count + 1
        let cells = UnsafeMutableRawBufferPointer.allocate(byteCount: slots * 16, alignment: 16)
        let values = UnsafeMutablePointer<UnsafeMutableRawPointer?>.allocate(capacity: slots)
        var buffers: [UnsafeMutableRawBufferPointer] = []
        var outputs: [(isAddress: Bool, buffer: UnsafeMutableRawBufferPointer, length: UnsafeMutablePointer<UInt32>?)] = []
        defer {
            for buffer in buffers { buffer.deallocate() }
            cells.deallocate()
            values.deallocate()
        }
        var used = 0
        func put<T>(_ value: T) -> UnsafeMutableRawPointer {
            let cell = cells.baseAddress! + used * 16
            cell.storeBytes(of: value, as: T.self)
            values[used] = cell
            used += 1
            return cell
        }
        func memory(_ bytes: Int) -> UnsafeMutableRawBufferPointer {
            let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: max(bytes, 16), alignment: 16)
            memset(buffer.baseAddress!, 0, buffer.count)
            buffers.append(buffer)
            return buffer
        }
        _ = put(instance)
        var next = 0
        for letter in letters {
            if letter == UInt8(ascii: "S") {
                _ = put(socket)
                continue
            }
            guard next < arguments.count else { return (Int32(ALPS_EINVAL), []) }
            let argument = arguments[next]
            next += 1
            switch (letter, argument) {
            case (UInt8(ascii: "i"), .integer(let value)): _ = put(Int32(truncatingIfNeeded: value))
            case (UInt8(ascii: "u"), .integer(let value)): _ = put(UInt32(truncatingIfNeeded: value))
            case (UInt8(ascii: "l"), .integer(let value)), (UInt8(ascii: "L"), .integer(let value)): _ = put(value)
            case (UInt8(ascii: "a"), .address(let value)):
                let buffer = memory(MemoryLayout<alps_sockaddr>.size)
                buffer.storeBytes(of: value, as: alps_sockaddr.self)
                _ = put(buffer.baseAddress)
            case (UInt8(ascii: "A"), .addressOut):
                let buffer = memory(MemoryLayout<alps_sockaddr>.size)
                outputs.append((true, buffer, nil))
                _ = put(buffer.baseAddress)
            case (UInt8(ascii: "b"), .bytes(let bytes)):
                let buffer = memory(bytes.count)
                buffer.copyBytes(from: bytes)
                _ = put(buffer.baseAddress)
                _ = put(UInt32(bytes.count))
            case (UInt8(ascii: "B"), .buffer(let bytes, let capacity)):
                let buffer = memory(max(bytes.count, capacity))
                buffer.copyBytes(from: bytes)
                let length = memory(4).baseAddress!.assumingMemoryBound(to: UInt32.self)
                length.pointee = UInt32(max(bytes.count, capacity))
                outputs.append((false, buffer, length))
                _ = put(buffer.baseAddress)
                _ = put(length)
            default: return (Int32(ALPS_EINVAL), [])
            }
        }
        guard next == arguments.count else { return (Int32(ALPS_EINVAL), []) }
        var result: ffi_arg = 0
        ffi_call(interface, function, &result, values)
        let error = Int32(truncatingIfNeeded: result)
        let results = outputs.map { output -> RouterResult in
            if output.isAddress { return .address(output.buffer.load(as: alps_sockaddr.self)) }
            let length = min(Int(output.length?.pointee ?? 0), output.buffer.count)
            return .bytes(Array(output.buffer[0..<length]))
        }
        return (error, results)
    }
}

/// libffi's type descriptors.
private enum FFITypes {
    static var pointer: UnsafeMutablePointer<ffi_type> { alps_ffi_pointer() }
    static var sint32: UnsafeMutablePointer<ffi_type> { alps_ffi_sint32() }
    static var uint32: UnsafeMutablePointer<ffi_type> { alps_ffi_uint32() }
    static var sint64: UnsafeMutablePointer<ffi_type> { alps_ffi_sint64() }
    static var uint64: UnsafeMutablePointer<ffi_type> { alps_ffi_uint64() }
}

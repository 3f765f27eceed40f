import CLinux
import Glibc

// Data of sockets whose messages carry addresses, and ioctl.

/// One message of a call: where it lies in the caller's memory.
private struct SupervisedMessage {
    /// Pieces: address and length.
    var parts: [(UInt64, Int)]
    var name: UInt64 = 0
    var nameLength: socklen_t = 0
    var control: UInt64 = 0
    var controlLength: Int = 0
    /// Where the header is, if the call has one.
    var header: UInt64?
    /// Where the length of the name goes, for recvfrom.
    var nameLengthAt: UInt64 = 0

    var count: Int { parts.reduce(0) { $0 + $1.1 } }
}

extension SupervisedCall {
    /// No datagram is larger; what does not fit is cut, or refused by the stack.
    private static let mostBytes = 256 << 10
    private static let mostParts = 1024
    private static let mostControl = 8192

    func transfer(_ copy: Int32) -> Outcome {
        switch UInt32(request.data.nr) {
        case UInt32(alps_SYS_read): return one(copy, flat, isSend: false)
        case UInt32(alps_SYS_write): return one(copy, flat, isSend: true)
        case UInt32(alps_SYS_readv): return one(copy, vector(argument(1), Int(int(2))), isSend: false)
        case UInt32(alps_SYS_writev): return one(copy, vector(argument(1), Int(int(2))), isSend: true)
        case UInt32(alps_SYS_recvfrom):
            var message = flat
            message.name = argument(4)
            message.nameLengthAt = argument(5)
            return one(copy, message, isSend: false, flags: int(3))
        case UInt32(alps_SYS_sendto):
            var message = flat
            message.name = argument(4)
            message.nameLength = socklen_t(truncatingIfNeeded: argument(5))
            return one(copy, message, isSend: true, flags: int(3))
        case UInt32(alps_SYS_recvmsg): return one(copy, header(argument(1)), isSend: false, flags: int(2))
        case UInt32(alps_SYS_sendmsg): return one(copy, header(argument(1)), isSend: true, flags: int(2))
        case UInt32(alps_SYS_recvmmsg): return many(copy, isSend: false)
        case UInt32(alps_SYS_sendmmsg): return many(copy, isSend: true)
        default: return .goesOn
        }
    }

    private var flat: SupervisedMessage {
        SupervisedMessage(parts: [(argument(1), Int(clamping: min(argument(2), UInt64(Self.mostBytes))))])
    }

    private func vector(_ place: UInt64, _ count: Int) -> SupervisedMessage? {
        guard (0...Self.mostParts).contains(count), let bytes = process.read(place, 16 * count) else { return nil }
        return bytes.withUnsafeBytes { raw in
            var left = Self.mostBytes
            let parts = (0..<count).map { index in
                let length = raw.loadUnaligned(fromByteOffset: 16 * index + 8, as: UInt64.self)
                let taken = Int(min(length, UInt64(left)))
                left -= taken
                return (raw.loadUnaligned(fromByteOffset: 16 * index, as: UInt64.self), taken)
            }
            return SupervisedMessage(parts: parts)
        }
    }

    /// A struct msghdr of 64 bits.
    private func header(_ place: UInt64) -> SupervisedMessage? {
        guard let bytes = process.read(place, 56) else { return nil }
        return bytes.withUnsafeBytes { raw in
            func word(_ offset: Int) -> UInt64 { raw.loadUnaligned(fromByteOffset: offset, as: UInt64.self) }
            guard word(24) <= UInt64(Self.mostParts), var message = vector(word(16), Int(word(24))) else { return nil }
            message.name = word(0)
            message.nameLength = raw.loadUnaligned(fromByteOffset: 8, as: socklen_t.self)
            message.control = word(32)
            message.controlLength = Int(min(word(40), UInt64(Self.mostControl)))
            message.header = place
            return message
        }
    }

    private func one(_ copy: Int32, _ message: SupervisedMessage?, isSend: Bool, flags: Int32 = 0) -> Outcome {
        guard let message else { return .error(EFAULT) }
        return isSend ? send(copy, message, flags) : receive(copy, message, flags)
    }

    /// sendmmsg and recvmmsg: as many as go at once; the first decides about waiting.
    private func many(_ copy: Int32, isSend: Bool) -> Outcome {
        let count = min(Int(UInt32(truncatingIfNeeded: argument(2))), Self.mostParts)
        var done = 0
        while done < count {
            let place = argument(1) + UInt64(64 * done)
            let outcome = one(copy, header(place), isSend: isSend, flags: int(3) & ~0x10000)
            guard case .value(let length) = outcome else { return done > 0 ? .value(Int64(done)) : outcome }
            guard process.write(place + 56, UInt32(truncatingIfNeeded: length)) else { return .error(EFAULT) }
            done += 1
        }
        return .value(Int64(done))
    }

    private func send(_ copy: Int32, _ message: SupervisedMessage, _ flags: Int32) -> Outcome {
        var bytes: [UInt8] = []
        for (place, length) in message.parts {
            guard let part = process.read(place, length) else { return .error(EFAULT) }
            bytes += part
        }
        guard message.nameLength <= 128 else { return .error(EINVAL) }
        guard var name = process.read(message.name, message.name == 0 ? 0 : Int(message.nameLength)),
            var control = process.read(message.control, message.control == 0 ? 0 : message.controlLength)
        else { return .error(EFAULT) }
        let sent = withHeader(&bytes, &name, &control) { sendmsg(copy, $0, flags | Int32(MSG_DONTWAIT)) }
        if sent < 0, errno == EAGAIN { return .waits(Int16(POLLOUT)) }
        return result(sent)
    }

    private func receive(_ copy: Int32, _ message: SupervisedMessage, _ flags: Int32) -> Outcome {
        var bytes = [UInt8](repeating: 0, count: message.count)
        var name = [UInt8](repeating: 0, count: MemoryLayout<sockaddr_storage>.size)
        var control = [UInt8](repeating: 0, count: message.control == 0 ? 0 : message.controlLength)
        var told = msghdr()
        let got = withHeader(&bytes, &name, &control) { header in
            let got = recvmsg(copy, header, flags | Int32(MSG_DONTWAIT))
            told = header.pointee
            return got
        }
        if got < 0 { return errno == EAGAIN ? .waits(Int16(POLLIN)) : .error(errno) }
        var from = 0
        for (place, length) in message.parts where from < min(got, bytes.count) {
            let count = min(length, min(got, bytes.count) - from)
            let isWritten = bytes.withUnsafeBytes {
                process.write(place, UnsafeRawBufferPointer(rebasing: $0[from..<(from + count)]))
            }
            guard isWritten else { return .error(EFAULT) }
            from += count
        }
        guard tellName(name, told.msg_namelen, message) else { return .error(EFAULT) }
        if let place = message.header {
            let isWritten = control.withUnsafeBytes {
                process.write(message.control, UnsafeRawBufferPointer(rebasing: $0[..<min($0.count, Int(told.msg_controllen))]))
            }
            guard isWritten, process.write(place + 40, UInt64(told.msg_controllen)),
                process.write(place + 48, UInt32(bitPattern: told.msg_flags))
            else { return .error(EFAULT) }
        }
        return .value(Int64(got))
    }

    private func tellName(_ name: [UInt8], _ length: socklen_t, _ message: SupervisedMessage) -> Bool {
        guard message.name != 0 else { return true }
        var room = message.nameLength
        if message.header == nil {
            guard let told = process.read(message.nameLengthAt, as: socklen_t.self) else { return false }
            room = told
        }
        let isWritten = name.withUnsafeBytes {
            process.write(message.name, UnsafeRawBufferPointer(rebasing: $0[..<min(Int(room), Int(length), $0.count)]))
        }
        let place = message.header.map { $0 + 8 } ?? message.nameLengthAt
        return isWritten && process.write(place, length)
    }

    private func withHeader(
        _ bytes: inout [UInt8], _ name: inout [UInt8], _ control: inout [UInt8],
        _ body: (UnsafeMutablePointer<msghdr>) -> Int
    ) -> Int {
        bytes.withUnsafeMutableBytes { bytes in
            name.withUnsafeMutableBytes { name in
                control.withUnsafeMutableBytes { control in
                    var part = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
                    return withUnsafeMutablePointer(to: &part) { part in
                        var header = msghdr()
                        header.msg_name = name.count > 0 ? name.baseAddress : nil
                        header.msg_namelen = socklen_t(name.count)
                        header.msg_iov = part
                        header.msg_iovlen = 1
                        header.msg_control = control.count > 0 ? control.baseAddress : nil
                        header.msg_controllen = control.count
                        return body(&header)
                    }
                }
            }
        }
    }

    // MARK: ioctl

    /// Requests about interfaces carry a struct ifreq, those about routes a struct rtentry; the others are the kernel's to
    /// answer about the pair that the socket is.
    func control(_ copy: Int32) -> Outcome {
        let number = argument(1) & 0xffff_ffff
        switch number {
        case 0x8912: return interfaceList(copy)
        case 0x890b, 0x890c: return route(copy, number)
        case 0x8905, 0x541b: return block(copy, number, 4)
        case 0x8910...0x8970: return block(copy, number, 40)
        case 0x8953...0x8955: return block(copy, number, 68)
        default: return .goesOn
        }
    }

    private func block(_ copy: Int32, _ number: UInt64, _ size: Int) -> Outcome {
        guard var bytes = process.read(argument(2), size) else { return .error(EFAULT) }
        let status = bytes.withUnsafeMutableBytes { ioctl(copy, UInt(number), $0.baseAddress!) }
        guard status >= 0 else { return .error(errno) }
        return bytes.withUnsafeBytes { process.write(argument(2), $0) } ? .value(Int64(status)) : .error(EFAULT)
    }

    /// SIOCGIFCONF: a length and a pointer to room for so much.
    private func interfaceList(_ copy: Int32) -> Outcome {
        guard let room = process.read(argument(2), as: Int32.self),
            let place = process.read(argument(2) + 8, as: UInt64.self)
        else { return .error(EFAULT) }
        var bytes = [UInt8](repeating: 0, count: min(max(Int(room), 0), 65536))
        let (status, length) = bytes.withUnsafeMutableBytes { buffer in
            var list = ifconf()
            list.ifc_len = Int32(buffer.count)
            list.ifc_ifcu.ifcu_buf = place == 0 ? nil : buffer.baseAddress?.assumingMemoryBound(to: CChar.self)
            let status = ioctl(copy, UInt(0x8912), &list)
            return (status, list.ifc_len)
        }
        guard status >= 0 else { return .error(errno) }
        let isWritten = bytes.withUnsafeBytes {
            place == 0 || process.write(place, UnsafeRawBufferPointer(rebasing: $0[..<min(Int(length), $0.count)]))
        }
        return isWritten && process.write(argument(2), length) ? .value(0) : .error(EFAULT)
    }

    /// SIOCADDRT and SIOCDELRT: the name of the device is elsewhere.
    private func route(_ copy: Int32, _ number: UInt64) -> Outcome {
        guard var entry = process.read(argument(2), as: rtentry.self) else { return .error(EFAULT) }
        let device = UInt64(UInt(bitPattern: entry.rt_dev))
        var name = [UInt8](repeating: 0, count: 17)
        if device != 0 {
            guard let bytes = process.read(device, 16) else { return .error(EFAULT) }
            name.replaceSubrange(0..<16, with: bytes)
        }
        return name.withUnsafeMutableBytes { name in
            entry.rt_dev = device == 0 ? nil : name.baseAddress?.assumingMemoryBound(to: CChar.self)
            return result(Int(ioctl(copy, UInt(number), &entry)))
        }
    }
}

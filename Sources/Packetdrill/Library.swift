public import CPacketdrill
import Glibc
import Kernel
import Lab
import PluginAPI

/// The entry of libalps-packetdrill.so: packetdrill calls it once, on its first thread.
@c(packetdrill_interface_init)
public func fillInterface(_ flags: UnsafePointer<CChar>?, _ interface: UnsafeMutablePointer<packetdrill_interface>?) {
    guard let interface else { return }
    let settings = flags.map { String(cString: $0) } ?? ""
    do {
        let stack = try PacketdrillStack(flags: settings, directory: ownDirectory())
        interface.pointee.userdata = Unmanaged.passRetained(stack).toOpaque()
    } catch {
        // There is no way to tell the caller, who will use the table. packetdrill ends so as well.
        let line = "libalps-packetdrill: \(error)\n"
        _ = line.withCString { write(STDERR_FILENO, $0, strlen($0)) }
        exit(1)
    }
    interface.pointee.free = { userdata in
        guard let userdata else { return }
        let stack = Unmanaged<PacketdrillStack>.fromOpaque(userdata).takeRetainedValue()
        stack.finish()
    }
    fillSocketCalls(&interface.pointee)
    fillDataCalls(&interface.pointee)
    fillWaits(&interface.pointee)
    fillDevice(&interface.pointee)
}

/// The directory of this library: the plugins lie beside it.
private func ownDirectory() -> String {
    let entry: @convention(c) (UnsafePointer<CChar>?, UnsafeMutablePointer<packetdrill_interface>?) -> Void = fillInterface
    var place = alps_symbol_place()
    guard alps_dladdr(unsafeBitCast(entry, to: UnsafeRawPointer.self), &place) != 0, let file = place.file,
        let path = realpath(file, nil)
    else { return "." }
    defer { free(path) }
    let name = String(cString: path)
    return name.lastIndex(of: "/").map { String(name[..<$0]) } ?? "."
}

/// The stack behind a table's userdata.
func stack(_ userdata: UnsafeMutableRawPointer?) -> PacketdrillStack {
    guard let userdata else { fatalError("libalps-packetdrill: called without the table's userdata") }
    return Unmanaged<PacketdrillStack>.fromOpaque(userdata).takeUnretainedValue()
}

/// A result as system calls give it: -1 and errno if it is a negative errno.
func settled(_ result: Int) -> Int {
    guard result < 0 else { return result }
    errno = Int32(-result)
    return -1
}

/// The same as an int.
func status(_ result: Int) -> Int32 { Int32(truncatingIfNeeded: settled(result)) }

// MARK: Groups of the table

private func fillSocketCalls(_ table: inout packetdrill_interface) {
    table.socket = { status(stack($0).socket($1, $2, $3)) }
    table.bind = { userdata, fd, name, length in
        withAddress(name, length) { stack(userdata).bind(fd, $0) }
    }
    table.listen = { status(stack($0).listen($1, $2)) }
    table.accept = { userdata, fd, name, length in
        let (result, peer) = stack(userdata).accept(fd)
        if result >= 0 { store(peer, name, length) }
        return status(result)
    }
    table.connect = { userdata, fd, name, length in
        withAddress(name, length) { stack(userdata).connect(fd, $0) }
    }
    table.fcntl = { status(stack($0).fileControl($1, $2, $3)) }
    table.ioctl = { userdata, fd, request, argument in
        let number = argument?.assumingMemoryBound(to: Int32.self)
        let (result, value) = stack(userdata).ioctl(fd, request, given: number?.pointee ?? 0)
        if result >= 0, let value {
            guard let number else { return status(-Int(EFAULT)) }
            number.pointee = value
        }
        return status(result)
    }
    table.close = { status(stack($0).close($1)) }
    table.shutdown = { status(stack($0).shutdown($1, $2)) }
    table.getsockopt = { userdata, fd, level, name, value, length in
        guard let length, value != nil || length.pointee == 0 else { return status(-Int(EFAULT)) }
        let (result, bytes) = stack(userdata).getOption(fd, level, name, capacity: Int(length.pointee))
        if result >= 0 {
            let count = min(bytes.count, Int(length.pointee))
            if count > 0 { value?.copyMemory(from: bytes, byteCount: count) }
            length.pointee = socklen_t(count)
        }
        return status(result)
    }
    table.setsockopt = { userdata, fd, level, name, value, length in
        guard value != nil || length == 0 else { return status(-Int(EFAULT)) }
        return status(stack(userdata).setOption(fd, level, name, bytes(value, Int(length))))
    }
}

private func fillWaits(_ table: inout packetdrill_interface) {
    table.poll = { userdata, items, count, milliseconds in
        let items = UnsafeMutableBufferPointer(start: items, count: Int(count))
        let (result, events) = stack(userdata).poll(items.map { ($0.fd, $0.events) }, milliseconds: milliseconds)
        for (index, ready) in events.enumerated() { items[index].revents = ready }
        return status(result)
    }
    table.epoll_create = { status(stack($0).makeEpoll($1)) }
    table.epoll_ctl = { userdata, epoll, operation, fd, event in
        let wanted = event?.pointee
        return status(
            stack(userdata).controlEpoll(
                epoll, operation, fd, events: wanted?.events ?? 0, data: wanted?.data.u64 ?? 0))
    }
    table.epoll_wait = { userdata, epoll, events, count, milliseconds in
        let (result, taken) = stack(userdata).waitEpoll(epoll, Int(count), milliseconds: milliseconds)
        for (index, item) in taken.enumerated() {
            events?[index] = epoll_event(events: item.events, data: epoll_data_t(u64: item.data))
        }
        return status(result)
    }
}

private func fillDevice(_ table: inout packetdrill_interface) {
    table.netdev_send = { userdata, packet, count in
        stack(userdata).inject(UnsafeRawBufferPointer(start: packet, count: count)) ? 0 : status(-Int(EAFNOSUPPORT))
    }
    table.netdev_receive = { userdata, buffer, count, time in
        guard let count else { return status(-Int(EFAULT)) }
        let taken = stack(userdata).take(into: UnsafeMutableRawBufferPointer(start: buffer, count: count.pointee))
        count.pointee = taken?.count ?? 0
        time?.pointee = taken?.time ?? stack(userdata).now
        return 0
    }
    table.usleep = { userdata, microseconds in
        stack(userdata).usleep(microseconds)
        return 0
    }
    table.gettimeofday = { userdata, time, _ in
        // packetdrill may ask between a call and its look at errno.
        let kept = errno
        let now = stack(userdata).now
        time?.pointee = timeval(tv_sec: Int(now / 1_000_000), tv_usec: Int(now % 1_000_000))
        errno = kept
        return 0
    }
}

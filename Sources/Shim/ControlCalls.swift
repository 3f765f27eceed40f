import CLibc
import ClientAPI

@c(alps_shim_ioctl)
public func shimIoctl(_ descriptor: Int32, _ command: UInt, _ argument: UnsafeMutableRawPointer?) -> Int32 {
    ensureReady()
    if kind(of: descriptor) == .hidden, isHidden(descriptor) { return fail(EBADF) }
    guard isSocketCommand(command), let found = stackSocket(descriptor) else {
        if activation.active, isInterfaceCommand(command), isOtherSocket(descriptor) {
            return askAboutInterface(command, argument)
        }
        return real.ioctl.unsafelyUnwrapped(descriptor, command, argument)
    }
    switch command {
    // As Linux: a netlink socket knows the requests about interfaces only.
    case alps_FIONREAD where found.pointee.isNetlink, UInt(alps_SIOCOUTQ) where found.pointee.isNetlink: return fail(ENOTTY)
    case UInt(alps_SIOCOUTQ) where found.pointee.isPacket:
        // What is sent has left when the call returns.
        guard let argument else { return fail(EFAULT) }
        argument.storeBytes(of: 0, as: Int32.self)
        return 0
    case alps_FIONREAD where found.pointee.kind == .listener: return fail(EINVAL)
    case alps_FIONREAD:
        if found.pointee.kind == .stream, found.pointee.ring != 0, let unread = unreadInRing(descriptor) {
            guard let argument, isWritable(argument, 4) else { return fail(EFAULT) }
            argument.storeBytes(of: Int32(truncatingIfNeeded: unread), as: Int32.self)
            return 0
        }
        // What lies in a stream's pair is what a read would bring.
        return found.pointee.isDatagram
            ? nextDatagramSize(descriptor, found, argument)
            : real.ioctl.unsafelyUnwrapped(descriptor, command, argument)
    case UInt(SIOCGIFCONF): return interfaceConfiguration(argument)
    case UInt(SIOCADDRT), UInt(SIOCDELRT): return changeRoute(command, found.pointee.handle, argument)
    case UInt(SIOCSPGRP), UInt(FIOSETOWN), UInt(SIOCGPGRP), UInt(FIOGETOWN):
        // Who is to get SIGURG.
        watchUrgent(descriptor)
        return real.ioctl.unsafelyUnwrapped(descriptor, command, argument)
    default:
        let size = argumentSize(command)
        guard let argument, isWritable(argument, size) else { return fail(EFAULT) }
        if command == alps_SIOCATMARK, found.pointee.kind == .stream {
            if found.pointee.state & Entry.watchesUrgent != 0 {
                return real.ioctl.unsafelyUnwrapped(descriptor, command, argument)
            }
            // The host knows where the mark is, the pair how far the program has read.
            guard real.ioctl.unsafelyUnwrapped(descriptor, alps_FIONREAD, argument) == 0 else { return -1 }
        }
        var request = alps_ioctl_request(command: UInt64(command), length: UInt32(size), reserved: 0)
        let reply = ask(
            ALPS_OP_IOCTL, about: found, &request, MemoryLayout<alps_ioctl_request>.size, tail: argument, size,
            into: argument, size)
        return result(reply)
    }
}

@c(alps_entry_sockatmark)
public func shimSockatmark(_ descriptor: Int32) -> Int32 {
    ensureReady()
    guard stackSocket(descriptor) != nil else { return real.sockatmark.unsafelyUnwrapped(descriptor) }
    var answer: Int32 = 0
    return shimIoctl(descriptor, UInt(alps_SIOCATMARK), &answer) == 0 ? answer : -1
}

/// Commands that mean something to a socket of the stack: FIONREAD, SIOCOUTQ and the SIOC* block. FIONBIO, FIOASYNC and
/// everything else are the descriptor's own.
private func isSocketCommand(_ command: UInt) -> Bool {
    command == alps_FIONREAD || command == alps_SIOCOUTQ || (0x8900...0x89ff).contains(command)
}

/// Commands about interfaces, which Linux answers on a socket of any kind.
private func isInterfaceCommand(_ command: UInt) -> Bool {
    (0x8910...0x894a).contains(command) || (0x8970...0x8971).contains(command)
}

/// A socket of the kernel's that is not about a network: programs use one to ask about interfaces, which are the stack's.
private func isOtherSocket(_ descriptor: Int32) -> Bool {
    let error = alps_errno()
    defer { alps_set_errno(error) }
    guard !activation.confined else { return false }
    var domain: Int32 = 0
    var length = socklen_t(4)
    return alps_sys_getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0
        && (domain == AF_UNIX || domain == AF_NETLINK)
}

private func askAboutInterface(_ command: UInt, _ argument: UnsafeMutableRawPointer?) -> Int32 {
    if command == UInt(SIOCGIFCONF) { return interfaceConfiguration(argument) }
    guard let argument else { return fail(EFAULT) }
    let size = argumentSize(command)
    var request = alps_ioctl_request(command: UInt64(command), length: UInt32(size), reserved: 0)
    return result(
        ask(
            ALPS_OP_IOCTL, 0, &request, MemoryLayout<alps_ioctl_request>.size, tail: argument, size, into: argument, size))
}

/// Linux gives these commands by number alone, without a size in it.
private func argumentSize(_ command: UInt) -> Int {
    switch command {
    case UInt(alps_SIOCOUTQ), UInt(alps_SIOCATMARK), 0x894b /* SIOCOUTQNSD */: 4
    case 0x8906, 0x8907 /* SIOCGSTAMP, SIOCGSTAMPNS */: 16
    case UInt(SIOCSARP), UInt(SIOCGARP), UInt(SIOCDARP): MemoryLayout<arpreq>.size
    default: MemoryLayout<ifreq>.size
    }
}

/// FIONREAD of a datagram socket: bytes of the next datagram.
private func nextDatagramSize(
    _ descriptor: Int32, _ found: EntryPointer, _ argument: UnsafeMutableRawPointer?
) -> Int32 {
    guard let argument, isWritable(argument, 4) else { return fail(EFAULT) }
    let error = alps_errno()
    var byte: UInt8 = 0
    let flags = Int32(MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT)
    var size = alps_sys_recv(descriptor, &byte, 1, flags)
    if found.pointee.kind == .datagram { size -= MemoryLayout<alps_datagram_header>.size }
    argument.storeBytes(of: Int32(max(size, 0)), as: Int32.self)
    alps_set_errno(error)
    return 0
}

/// A route's device is a pointer in Linux' structure: its name follows the structure, as 16 bytes.
private func changeRoute(_ command: UInt, _ handle: UInt64, _ argument: UnsafeMutableRawPointer?) -> Int32 {
    guard let argument, isReadable(argument, MemoryLayout<rtentry>.size) else { return fail(EFAULT) }
    struct RouteArgument {
        var route = rtentry()
        var device = [16 of UInt8](repeating: 0)
    }
    var data = RouteArgument()
    data.route = argument.loadUnaligned(as: rtentry.self)
    if let device = data.route.rt_dev {
        // So many are read, however long the name is, as Linux does.
        let got = withUnsafeMutableBytes(of: &data.device) {
            alps_copy_from_program($0.baseAddress.unsafelyUnwrapped, device, 15)
        }
        guard got == 15 else { return fail(EFAULT) }
    }
    data.route.rt_dev = nil
    let size = MemoryLayout<rtentry>.size + 16
    var request = alps_ioctl_request(command: UInt64(command), length: UInt32(size), reserved: 0)
    return result(
        ask(
            ALPS_OP_IOCTL, handle, &request, MemoryLayout<alps_ioctl_request>.size, tail: &data, size))
}

import Glibc
import Kernel
import PluginAPI
import Testing

/// getsockopt and setsockopt.
@Suite struct SocketOptionTests {
    let hosts: Hosts
    let socket: Socket

    init() throws {
        hosts = try Hosts()
        socket = try hosts.stream(hosts.a)
    }

    private func get(_ name: Int32) -> Int32? { number(socket.getOption(level: SOL_SOCKET, name: name, capacity: 4)) }
    private func set(_ name: Int32, _ value: Int32) -> Int32 { socket.setOption(level: SOL_SOCKET, name: name, option(value)) }

    @Test func factsCannotBeSet() {
        #expect(get(SO_TYPE) == 1)
        #expect(get(SO_DOMAIN) == AF_INET)
        #expect(get(SO_PROTOCOL) == 6)
        #expect(get(SO_ACCEPTCONN) == 0)
        for name in [SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN, SO_ERROR, SO_SNDLOWAT] {
            #expect(set(name, 1) == ENOPROTOOPT)
        }
        #expect(get(SO_SNDLOWAT) == 1)
        hosts.finish()
    }

    @Test(arguments: [SO_REUSEADDR, SO_REUSEPORT, SO_KEEPALIVE, SO_BROADCAST, SO_OOBINLINE, SO_DONTROUTE, SO_TIMESTAMP])
    func flagsAreOnOrOff(name: Int32) {
        #expect(get(name) == 0)
        #expect(set(name, 77) == 0)
        #expect(get(name) == 1)
        #expect(set(name, 0) == 0)
        #expect(get(name) == 0)
        #expect(socket.setOption(level: SOL_SOCKET, name: name, [1]) == EINVAL)
        hosts.finish()
    }

    @Test func bufferSizesAreDoubledAndLimited() throws {
        #expect(get(SO_SNDBUF) == 262_144)
        #expect(set(SO_SNDBUF, 30_000) == 0)
        #expect(get(SO_SNDBUF) == 60_000)
        #expect(set(SO_SNDBUF, 0) == 0)
        #expect(get(SO_SNDBUF) == 4608)
        #expect(set(SO_RCVBUF, 1) == 0)
        #expect(get(SO_RCVBUF) == 2304)
        #expect(set(SO_RCVBUF, Int32.max) == 0)
        #expect(get(SO_RCVBUF) == 8 << 20)
        try hosts.a.tunables.set("kern.ipc.maxsockbuf", "64K")
        #expect(set(SO_RCVBUF, 1 << 20) == 0)
        #expect(get(SO_RCVBUF) == 65536)
        hosts.finish()
    }

    @Test func lingerIsToldAsItWasSet() {
        func linger(_ on: Int32, _ seconds: Int32) -> [UInt8] { option(on) + option(seconds) }
        let name = SO_LINGER
        #expect(socket.getOption(level: SOL_SOCKET, name: name, capacity: 8).value == linger(0, 0))
        #expect(socket.setOption(level: SOL_SOCKET, name: name, linger(1, 5)) == 0)
        #expect(socket.getOption(level: SOL_SOCKET, name: name, capacity: 8).value == linger(1, 5))
        #expect(socket.setOption(level: SOL_SOCKET, name: name, linger(0, 5)) == 0)
        #expect(socket.getOption(level: SOL_SOCKET, name: name, capacity: 8).value == linger(0, 0))
        #expect(socket.setOption(level: SOL_SOCKET, name: name, option(1)) == EINVAL)
        hosts.finish()
    }

    @Test func timeoutsAreCheckedAndKept() {
        func time(_ seconds: Int, _ microseconds: Int) -> [UInt8] {
            withUnsafeBytes(of: timeval(tv_sec: seconds, tv_usec: microseconds)) { Array($0) }
        }
        #expect(socket.setOption(level: SOL_SOCKET, name: SO_RCVTIMEO, time(2, 5)) == 0)
        #expect(socket.getOption(level: SOL_SOCKET, name: SO_RCVTIMEO, capacity: 16).value == time(2, 5))
        #expect(socket.getOption(level: SOL_SOCKET, name: SO_SNDTIMEO, capacity: 16).value == time(0, 0))
        #expect(socket.setOption(level: SOL_SOCKET, name: SO_SNDTIMEO, time(0, 1_000_000)) == EDOM)
        #expect(socket.setOption(level: SOL_SOCKET, name: SO_SNDTIMEO, option(1)) == EINVAL)
        hosts.finish()
    }

    @Test func storedNumbersAreToldAgain() {
        for name in [SO_PRIORITY, SO_MARK, SO_BUSY_POLL] {
            #expect(set(name, 3) == 0)
            #expect(get(name) == 3)
        }
        #expect(set(SO_RXQ_OVFL, 3) == 0)
        #expect(get(SO_RXQ_OVFL) == 1, "a flag")
        #expect(set(SO_RCVLOWAT, 0) == 0)
        #expect(get(SO_RCVLOWAT) == 1)
        #expect(set(SO_RCVLOWAT, -1) == 0)
        #expect(get(SO_RCVLOWAT) == Int32.max)
        hosts.finish()
    }

    @Test func deviceIsNamedOrNumbered() {
        let link = Array("link1".utf8) + [0]
        #expect(socket.setOption(level: SOL_SOCKET, name: SO_BINDTODEVICE, Array("nosuch".utf8)) == ENODEV)
        #expect(socket.setOption(level: SOL_SOCKET, name: SO_BINDTODEVICE, link) == 0)
        #expect(socket.getOption(level: SOL_SOCKET, name: SO_BINDTODEVICE, capacity: 16).value == link)
        #expect(socket.getOption(level: SOL_SOCKET, name: SO_BINDTODEVICE, capacity: 4).error == EINVAL)
        #expect(get(62) == Int32(hosts.a.interfaces.find("link1")!.raw.pointee.index))
        #expect(socket.setOption(level: SOL_SOCKET, name: SO_BINDTODEVICE, []) == 0)
        #expect(get(62) == 0)
        hosts.finish()
    }

    @Test func otherLevelsGoToTransportAndNetwork() {
        func get(_ level: Int32, _ name: Int32) -> Int32? { number(socket.getOption(level: level, name: name, capacity: 4)) }
        #expect(socket.setOption(level: Int32(IPPROTO_TCP), name: TCP_NODELAY, option(1)) == 0)
        #expect(get(Int32(IPPROTO_TCP), TCP_NODELAY) == 1)
        #expect(socket.setOption(level: 0, name: IP_TTL, option(17)) == 0)
        #expect(get(0, IP_TTL) == 17)
        #expect(socket.getOption(level: 0, name: IP_TTL, capacity: 1).value.count <= 1)
        hosts.finish()
    }

    @Test func unknownOptionsAreRefused() {
        #expect(set(999, 1) == ENOPROTOOPT)
        #expect(socket.getOption(level: SOL_SOCKET, name: 999, capacity: 4).error == ENOPROTOOPT)
        #expect(socket.setOption(level: Int32(IPPROTO_TCP), name: 999, option(1)) == ENOPROTOOPT)
        #expect(socket.setOption(level: 999, name: 1, option(1)) == ENOPROTOOPT)
        #expect(set(SO_ZEROCOPY, 1) == EOPNOTSUPP, "nobody would tell when the bytes are free")
        hosts.finish()
    }
}

import Glibc
import Kernel
import Lab
import PluginAPI
import Testing

/// Two stacks on a link; the program that asks is on "a", whose interface e0 has 10.0.0.1/24.
@Suite struct NetlinkTests {
    private let hosts: Hosts
    private let kernel: Kernel
    private let client: NetlinkClient
    private let device: Interface
    private let index: UInt32

    init() throws {
        hosts = try Hosts()
        kernel = hosts.a
        client = try NetlinkClient(kernel)
        device = try #require(kernel.interfaces.all.first { !$0.isLoopback })
        index = device.raw.pointee.index
    }

    // MARK: Links

    @Test func interfacesAreDumpedWithNameFlagsAndAddress() throws {
        let links = client.dump(18) { $0.link() }
        #expect(links.count == 2)
        let first = try #require(links.first)
        #expect(first.type == 16)
        // ARPHRD_LOOPBACK; UP, LOOPBACK, RUNNING, LOWER_UP.
        #expect(first.number(2, as: UInt16.self) == 772)
        #expect(first.number(8, as: UInt32.self) & 0x10049 == 0x10049)
        #expect(first.attributes(after: 16)[3] == Array("lo0".utf8) + [0])
        let second = try #require(links.last)
        #expect(second.number(4, as: UInt32.self) == index)
        let attributes = second.attributes(after: 16)
        #expect(attributes[1]?.count == 6)
        #expect(attributes[4] == [0xdc, 5, 0, 0])
        #expect(attributes[23]?.count == 200)
        // RTEXT_FILTER_SKIP_STATS.
        #expect(client.dump(18) { $0.link(); $0.attribute(29, UInt32(8)) }.last?.attributes(after: 16)[23] == nil)
        // struct rtgenmsg, as older programs send it; a bridge's ports are none.
        #expect(client.dump(18) { $0.append([UInt8(0), 0, 0, 0]) }.count == 2)
        #expect(client.dump(18) { $0.link(family: 7) }.isEmpty)
    }

    @Test func oneInterfaceIsFoundByIndexOrName() {
        #expect(client.ask(18, 0) { $0.link(1) }.first?.attributes(after: 16)[3] == Array("lo0".utf8) + [0])
        #expect(client.ask(18, 0) { $0.link(); $0.attribute(3, text: "lo0") }.first?.number(4, as: UInt32.self) == 1)
        #expect(client.ask(18, 0) { $0.link(99) }.first?.errno == ENODEV)
        #expect(client.ask(18, 0) { $0.link(); $0.attribute(3, text: "nosuch") }.first?.errno == ENODEV)
        #expect(client.ask(18, 0) { $0.link() }.first?.errno == EINVAL)
        #expect(client.ask(18, 0) { $0.append([UInt8(0), 0]) }.first?.errno == EINVAL)
    }

    @Test func anInterfaceIsSetDownAndUpAndGetsAnMTU() {
        #expect(client.change(16, 0) { $0.link(index, flags: 0, change: 1) } == 0)
        #expect(!device.isUp)
        let flags = client.ask(18, 0) { $0.link(index) }.first?.number(8, as: UInt32.self)
        #expect(flags.map { $0 & 0x10041 } == 0)
        #expect(client.change(16, 0) { $0.link(index, flags: 1, change: 1) } == 0)
        #expect(device.isUp)
        #expect(client.change(16, 0) { $0.link(index); $0.attribute(4, UInt32(1400)) } == 0)
        #expect(device.raw.pointee.mtu == 1400)
        #expect(client.change(16, 0) { $0.link(index); $0.attribute(4, UInt32(12)) } == EINVAL)
        #expect(client.change(16, 0) { $0.link(index); $0.attribute(3, text: "other") } == EOPNOTSUPP)
        // What is refused changes nothing.
        #expect(client.change(16, 0) { $0.link(index); $0.attribute(4, UInt32(900)); $0.attribute(3, text: "x") } == EOPNOTSUPP)
        #expect(device.raw.pointee.mtu == 1400)
        // Promiscuous.
        #expect(client.change(16, 0) { $0.link(index, flags: 0x100, change: 0x100) } == EOPNOTSUPP)
        #expect(client.change(16, NetlinkClient.create) { $0.link(); $0.attribute(3, text: "br0") } == EOPNOTSUPP)
        #expect(client.change(17, 0) { $0.link(index) } == EOPNOTSUPP)
        #expect(client.change(17, 0) { $0.link(99) } == ENODEV)
    }

    // MARK: Addresses

    private func addressRequest(
        _ type: UInt16, _ text: String, _ length: UInt8 = 24, flags: UInt16 = 0x600, on other: UInt32? = nil
    ) -> Int32? {
        client.change(type, flags) {
            $0.address(other ?? index, length)
            $0.attribute(2, ipv4Bytes(text))
            $0.attribute(1, ipv4Bytes(text))
        }
    }

    @Test func addressesAreAddedShownAndDeleted() throws {
        #expect(addressRequest(20, "10.9.0.1") == 0)
        #expect(addressRequest(20, "10.9.0.1") == EEXIST)
        #expect(addressRequest(20, "10.9.0.1", flags: NetlinkClient.replace) == 0)
        #expect(addressRequest(20, "10.9.0.2") == 0)
        #expect(addressRequest(20, "10.9.0.3", 33) == EINVAL)
        #expect(addressRequest(20, "10.9.0.3", on: 99) == ENODEV)
        #expect(client.change(20, 0x600) { $0.address(index, 24) } == EINVAL)
        #expect(client.change(20, 0x600) { $0.address(index, 24); $0.attribute(2, [UInt8(10), 9]) } == ERANGE)
        #expect(client.change(20, 0x600) { $0.address(index, 24, family: 10); $0.attribute(2, ipv4Bytes("10.9.0.4")) }
            == EAFNOSUPPORT)
        let shown = client.dump(22) { $0.append([UInt8(0)]) }.map { $0.attributes(after: 8) }
        #expect(shown.compactMap { $0[2] } == ["127.0.0.1", "10.0.0.1", "10.9.0.1", "10.9.0.2"].map(ipv4Bytes))
        // The second of a network is secondary, both are permanent.
        #expect(shown.suffix(2).compactMap { $0[8]?.first.map { $0 & 0x81 } } == [0x80, 0x81])
        #expect(shown.last?[4] == ipv4Bytes("10.9.0.255"))
        #expect(addressRequest(21, "10.9.0.2") == 0)
        #expect(addressRequest(21, "10.9.0.2") == EADDRNOTAVAIL)
        #expect(!device.addresses.contains { NetworkAddress(address: $0.addr) == NetworkAddress("10.9.0.2")! })
    }

    @Test func strictRequestsAreCheckedAndFiltered() {
        #expect(client.socket.setOption(270, 12, option(1), isRoot: true) == 0)
        let filtered = client.dump(22) { $0.address(index, 0) }
        #expect(filtered.compactMap { $0.attributes(after: 8)[2] } == [ipv4Bytes("10.0.0.1")])
        #expect(filtered.allSatisfy { $0.flags & 0x20 != 0 })
        #expect(client.ask(22, NetlinkClient.dump) { $0.address(99, 0) }.last?.errno == ENODEV)
        #expect(client.ask(22, NetlinkClient.dump) { $0.address(index, 24) }.last?.errno == EINVAL)
        #expect(client.ask(22, NetlinkClient.dump) { $0.append([UInt8(2)]) }.last?.errno == EINVAL)
        #expect(client.ask(18, NetlinkClient.dump) { $0.link(index) }.last?.errno == EINVAL)
        #expect(client.ask(26, NetlinkClient.dump) { $0.route(24) }.last?.errno == EINVAL)
        #expect(client.ask(30, NetlinkClient.dump) { $0.neighbor(index) }.last?.errno == EINVAL)
    }

    // MARK: Routes

    private func routeRequest(
        _ type: UInt16, _ prefix: String, via gateway: String? = nil, metric: UInt32? = nil, flags: UInt16 = 0x600,
        kind: UInt8 = 1, scope: UInt8 = 0, mtu: UInt32? = nil
    ) -> Int32? {
        let parts = prefix.split(separator: "/")
        return client.change(type, flags) {
            $0.route(UInt8(parts[1])!, kind: kind, scope: scope)
            $0.attribute(1, ipv4Bytes(String(parts[0])))
            if let gateway { $0.attribute(5, ipv4Bytes(gateway)) }
            if let metric { $0.attribute(6, metric) }
            if let mtu { $0.attribute(8) { $0.attribute(2, mtu) } }
        }
    }

    /// The gateway that a packet would go to, or an errno.
    private func gateway(_ destination: String) -> String {
        let answer = client.ask(26, 0) {
            $0.route(32, kind: 0)
            $0.attribute(1, ipv4Bytes(destination))
        }
        guard let first = answer.first else { return "nothing" }
        if first.type == 2 { return "errno \(first.errno)" }
        return first.attributes(after: 12)[5].map { $0.map(String.init).joined(separator: ".") } ?? "link"
    }

    @Test func routesAreAddedReplacedAndDeleted() {
        #expect(gateway("192.0.2.1") == "errno \(ENETUNREACH)")
        #expect(routeRequest(24, "192.0.2.0/24", via: "10.0.0.2") == 0)
        #expect(gateway("192.0.2.1") == "10.0.0.2")
        #expect(routeRequest(24, "192.0.2.0/24", via: "10.0.0.3") == EEXIST)
        #expect(routeRequest(24, "192.0.2.0/24", via: "10.0.0.3", flags: 0x500) == 0)
        #expect(gateway("192.0.2.1") == "10.0.0.3")
        #expect(routeRequest(24, "192.0.2.0/24", via: "99.0.0.1", flags: 0x500) == ENETUNREACH)
        // The old one has come back.
        #expect(gateway("192.0.2.1") == "10.0.0.3")
        #expect(routeRequest(24, "192.0.2.0/24", via: "10.0.0.4", metric: 7) == 0)
        #expect(gateway("192.0.2.1") == "10.0.0.3")
        #expect(routeRequest(24, "192.0.3.0/24", via: "10.0.0.2", flags: 0x100) == ENOENT)
        #expect(routeRequest(24, "192.0.3.1/24", via: "10.0.0.2") == EINVAL)
        #expect(routeRequest(24, "192.0.3.0/33", via: "10.0.0.2") == EINVAL)
        #expect(routeRequest(24, "192.0.3.0/24") == ENODEV)
        #expect(routeRequest(24, "192.0.3.0/24", via: "10.0.0.2", kind: 200) == EINVAL)
        #expect(routeRequest(24, "192.0.5.0/24", kind: 7) == 0)
        #expect(gateway("192.0.5.1") == "errno \(EHOSTUNREACH)")
        // Scope "nowhere", as `ip route delete` sends it.
        #expect(routeRequest(25, "192.0.2.0/24", metric: 7, flags: 0, kind: 0, scope: 255) == 0)
        #expect(gateway("192.0.2.1") == "10.0.0.3")
        #expect(routeRequest(25, "192.0.2.0/24", via: "10.0.0.9", flags: 0, kind: 0, scope: 255) == ESRCH)
    }

    @Test func theLocalTableIsShownAsLinuxHasIt() {
        let routes = client.dump(26) { $0.route(0, kind: 0) }
        func has(_ kind: UInt8, _ table: UInt8, _ destination: String, _ length: UInt8) -> Bool {
            routes.contains {
                $0.payload[1] == length && $0.payload[4] == table && $0.payload[7] == kind
                    && $0.attributes(after: 12)[1] == ipv4Bytes(destination)
            }
        }
        #expect(has(1, 254, "10.0.0.0", 24))
        #expect(has(2, 255, "10.0.0.1", 32))
        #expect(has(3, 255, "10.0.0.255", 32))
        #expect(has(2, 255, "127.0.0.0", 8))
    }

    @Test func theWayToAnAddressTellsSourceAndInterface() {
        func way(_ destination: String) -> (kind: UInt8?, attributes: [UInt16: [UInt8]]) {
            let answer = client.ask(26, 0) {
                $0.route(32, kind: 0)
                $0.attribute(1, ipv4Bytes(destination))
            }.first
            return (answer?.payload[7], answer?.attributes(after: 12) ?? [:])
        }
        #expect(way("10.0.0.2").kind == 1)
        #expect(way("10.0.0.2").attributes[7] == ipv4Bytes("10.0.0.1"))
        #expect(way("10.0.0.2").attributes[4] == [UInt8(index), 0, 0, 0])
        #expect(way("10.0.0.1").kind == 2)
        #expect(way("10.0.0.1").attributes[4] == [1, 0, 0, 0])
        #expect(way("10.0.0.255").kind == 3)
    }

    // MARK: Neighbours

    private func neighborRequest(_ type: UInt16, _ address: String, flags: UInt16, state: UInt16 = 0x80) -> Int32? {
        client.change(type, flags) {
            $0.neighbor(index, state: state)
            $0.attribute(1, ipv4Bytes(address))
            if type == 28 { $0.attribute(2, [2, 0, 0, 0, 0, 0x77] as [UInt8]) }
        }
    }

    private func neighborState(_ address: String) -> UInt16? {
        client.dump(30) { $0.neighbor(0) }
            .first { $0.attributes(after: 12)[1] == ipv4Bytes(address) }?.number(8, as: UInt16.self)
    }

    @Test func neighboursAreLearntEnteredAndDeleted() throws {
        let sender = try hosts.datagram(kernel)
        defer { sender.close() }
        let packet = try #require(kernel.mbufs.packet(headroom: 128))
        #expect(sender.sendDatagram(packet, to: at("10.0.0.2", 9)) == 0)
        hosts.run(100)
        #expect(neighborState("10.0.0.2") == 0x02)
        #expect(neighborRequest(28, "10.0.0.77", flags: 0x600) == 0)
        #expect(neighborState("10.0.0.77") == 0x80)
        #expect(neighborRequest(28, "10.0.0.77", flags: 0x600) == EEXIST)
        #expect(neighborRequest(28, "10.0.0.77", flags: 0x500) == 0)
        #expect(neighborRequest(28, "10.0.0.78", flags: 0) == ENOENT)
        #expect(neighborRequest(28, "10.0.0.78", flags: 0x600, state: 0x04) == EOPNOTSUPP)
        #expect(neighborRequest(29, "10.0.0.77", flags: 0) == 0)
        #expect(neighborRequest(29, "10.0.0.77", flags: 0) == ENOENT)
        #expect(neighborState("10.0.0.77") == nil)
        #expect(client.change(28, 0x600) { $0.neighbor(index, state: 0x80) } == EINVAL)
        #expect(client.change(28, 0x600) { $0.neighbor(99, state: 0x80); $0.attribute(1, ipv4Bytes("10.0.0.9")) } == ENODEV)
    }

    // MARK: Notifications

    @Test func groupsHearOfWhatChanges() throws {
        let listener = try NetlinkClient(kernel)
        // RTMGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE.
        #expect(listener.socket.bind(port: 0, groups: 0x1 | 0x4 | 0x10 | 0x40) == 0)
        #expect(addressRequest(20, "10.9.0.1") == 0)
        let heard = listener.receive()
        #expect(heard.filter { $0.type == 20 && $0.group == 5 }.count == 1)
        #expect(heard.filter { $0.type == 24 && $0.group == 7 }.count == 3)
        #expect(kernel.interfaces.setMTU(device, 1400) == 0)
        #expect(listener.receive().map(\.type) == [16])
        #expect(routeRequest(24, "192.0.2.0/24", via: "10.0.0.2") == 0)
        #expect(routeRequest(25, "192.0.2.0/24", flags: 0, kind: 0, scope: 255) == 0)
        #expect(listener.receive().map(\.type) == [24, 25])
        #expect(neighborRequest(28, "10.0.0.77", flags: 0x600) == 0)
        #expect(listener.receive().map(\.type) == [28])
        // What the plugin learns by itself is noticed within a second.
        let sender = try hosts.datagram(kernel)
        let packet = try #require(kernel.mbufs.packet(headroom: 128))
        #expect(sender.sendDatagram(packet, to: at("10.0.0.2", 9)) == 0)
        hosts.run(1100)
        #expect(listener.receive().contains { $0.type == 28 && $0.attributes(after: 12)[1] == ipv4Bytes("10.0.0.2") })
        sender.close()
        #expect(listener.socket.leave(1) == 0)
        #expect(kernel.interfaces.setMTU(device, 1500) == 0)
        #expect(listener.receive().isEmpty)
        #expect(listener.socket.join(65) == EINVAL)
    }

    @Test func aReaderWhoIsTooSlowHearsThatItLostSomething() throws {
        let listener = try NetlinkClient(kernel)
        #expect(listener.socket.bind(port: 0, groups: 1) == 0)
        #expect(listener.socket.setOption(1, 8, option(0), isRoot: false) == 0)
        for round in 0..<20 { #expect(kernel.interfaces.setMTU(device, 1400 + round) == 0) }
        #expect(listener.socket.takeError() == ENOBUFS)
        let kept = listener.receive()
        #expect(!kept.isEmpty && kept.count < 20)
        // NETLINK_NO_ENOBUFS.
        #expect(listener.socket.setOption(270, 5, option(1), isRoot: false) == 0)
        for round in 0..<20 { #expect(kernel.interfaces.setMTU(device, 1300 + round) == 0) }
        #expect(listener.socket.pendingError == 0)
    }

    // MARK: The protocol

    @Test func changesNeedPrivileges() {
        client.mayChange = false
        #expect(client.change(16, 0) { $0.link(index, flags: 0, change: 1) } == EPERM)
        #expect(addressRequest(20, "10.9.0.1") == EPERM)
        #expect(routeRequest(24, "192.0.2.0/24", via: "10.0.0.2") == EPERM)
        #expect(neighborRequest(28, "10.0.0.77", flags: 0x600) == EPERM)
        #expect(client.dump(18) { $0.link() }.count == 2)
        #expect(device.isUp)
    }

    @Test func whatIsNotThereIsRefusedAsLinuxDoes() throws {
        #expect(client.ask(34, NetlinkClient.dump) { $0.route(0) }.last?.errno == EOPNOTSUPP)
        #expect(client.ask(500, 0) { $0.route(0) }.last?.errno == EOPNOTSUPP)
        #expect(client.dump(22) { $0.address(0, 0, family: 10) }.isEmpty)
        #expect(client.dump(26) { $0.route(0, family: 10, kind: 0) }.isEmpty)
        #expect(throws: KernelError.self) { try kernel.netlink.create(family: 16, type: 3) }
        #expect(throws: KernelError.self) { try kernel.netlink.create(family: 0, type: 1) }
        // Neither a request nor long enough: no answer.
        #expect(client.socket.send([1, 2, 3], mayChange: true) == 0)
        var bare = NetlinkWriter(NetlinkHeader(type: 18, flags: 0))
        bare.link(1)
        #expect(client.socket.send(bare.finished(), mayChange: true) == 0)
        #expect(client.receive().isEmpty)
        #expect(client.socket.send([], mayChange: true) == ENODATA)
        #expect(client.socket.send(bare.finished(), to: 77, mayChange: true) == ECONNREFUSED)
        #expect(client.socket.send(bare.finished(), to: 77, mayChange: false) == EPERM)
    }

    @Test func anAttributeThatCannotBeIsRefused() {
        for length in [UInt16(0), 3, 200] {
            #expect(client.change(24, 0x600) {
                $0.route(24)
                $0.append(length)
                $0.append(UInt16(1))
                $0.append(ipv4Bytes("192.0.2.0"))
            } == EINVAL)
        }
    }

    @Test func acknowledgmentsHaveTheFormThatWasAskedFor() throws {
        let done = try #require(client.ask(16, 4) { $0.link(index) }.first)
        #expect(done.type == 2 && done.errno == 0 && done.flags == 0x100 && done.payload.count == 20)
        // An error brings the whole request back.
        let refused = try #require(client.ask(16, 4) { $0.link(99) }.first)
        #expect(refused.errno == ENODEV && refused.payload.count == 4 + 32 && refused.flags == 0)
        #expect(client.socket.setOption(270, 10, option(1), isRoot: false) == 0)
        #expect(client.socket.setOption(270, 11, option(1), isRoot: false) == 0)
        let capped = try #require(client.ask(20, 4) { $0.address(index, 24) }.first)
        #expect(capped.errno == EINVAL && capped.flags == 0x300)
        #expect(capped.attributes(after: 20)[1] == Array("ipv4: Local address is not supplied".utf8) + [0])
    }

    @Test func twoRequestsInOneDatagramAreBothAnswered() {
        let one = NetlinkClient.message(18, 0, sequence: 5) { $0.link(1) }
        let two = NetlinkClient.message(18, 0, sequence: 6) { $0.link(99) }
        #expect(client.socket.send(one + two, mayChange: false) == 0)
        #expect(client.receive().map { "\($0.type) \($0.sequence)" } == ["16 5", "2 6"])
    }

    @Test func aLongDumpComesInDatagramsOfAPage() {
        for number in 0..<300 {
            #expect(routeRequest(24, "172.16.\(number / 8).\(number % 8 * 32)/27", via: "10.0.0.2") == 0)
        }
        let request = NetlinkClient.message(26, NetlinkClient.dump) { $0.route(0, kind: 0) }
        #expect(client.socket.send(request, mayChange: false) == 0)
        // One dump at a time.
        #expect(client.socket.send(request, mayChange: false) == 0)
        var sizes: [Int] = []
        while let datagram = client.socket.first {
            sizes.append(datagram.bytes.count)
            client.socket.removeFirst()
        }
        #expect(sizes.count > 4)
        #expect(sizes.allSatisfy { $0 <= 3776 })
        #expect(client.dump(26) { $0.route(0, kind: 0) }.count > 300)
    }

    @Test func aSecondDumpIsRefusedWhileOneGoesOn() {
        let request = NetlinkClient.message(18, NetlinkClient.dump) { $0.link() }
        #expect(client.socket.send(request, mayChange: false) == 0)
        #expect(client.socket.send(request, mayChange: false) == 0)
        #expect(client.receive().contains { $0.type == 2 && $0.errno == EBUSY })
    }

    @Test func portsAreTheProcesssOrChosen() throws {
        #expect(client.socket.bind(port: 0, groups: 0) == 0)
        #expect(client.socket.port == 100)
        let second = try NetlinkClient(kernel)
        #expect(second.socket.bind(port: 100, groups: 0) == EADDRINUSE)
        #expect(second.socket.bind(port: 0, groups: 0) == 0)
        #expect(Int32(bitPattern: second.socket.port) < -4096)
        #expect(second.socket.bind(port: 7, groups: 0) == EINVAL)
        // Another family has ports of its own.
        let other = try NetlinkClient(kernel, family: 4)
        #expect(other.socket.bind(port: 100, groups: 0) == 0)
    }

    @Test func optionsTellWhatTheSocketIs() {
        func value(_ level: Int32, _ name: Int32) -> Int32? { number(client.socket.getOption(level, name, capacity: 4)) }
        #expect(value(SOL_SOCKET, SO_TYPE) == 3)
        #expect(value(SOL_SOCKET, SO_DOMAIN) == 16)
        #expect(value(SOL_SOCKET, SO_PROTOCOL) == 0)
        #expect(client.socket.setOption(SOL_SOCKET, SO_RCVBUF, option(65536), isRoot: false) == 0)
        #expect(value(SOL_SOCKET, SO_RCVBUF) == 131_072)
        #expect(client.socket.setOption(SOL_SOCKET, 33 /* SO_RCVBUFFORCE */, option(1 << 20), isRoot: false) == EPERM)
        #expect(client.socket.setOption(SOL_SOCKET, 33, option(1 << 20), isRoot: true) == 0)
        #expect(value(SOL_SOCKET, SO_RCVBUF) == 2 << 20)
        #expect(value(270, 12) == 0)
        #expect(client.socket.setOption(270, 12, option(1), isRoot: false) == 0)
        #expect(value(270, 12) == 1)
        #expect(client.socket.setOption(270, 6, option(1), isRoot: true) == ENOPROTOOPT)
        #expect(client.socket.setOption(270, 1, option(7), isRoot: false) == 0)
        #expect(client.socket.getOption(270, 9, capacity: 8).value == [0x40, 0, 0, 0, 0, 0, 0, 0])
    }
}

import Kernel
import PluginAPI
import Testing

@Suite struct RouteTests {
    private let kernel: Kernel
    private let clock = KernelClock(isVirtual: true)
    private let e0: Interface
    private let e1: Interface
    private let inet = UInt16(ALPS_AF_INET)

    init() throws {
        let kernel = Kernel(KernelConfiguration(name: "r", virtualClock: clock, seed: 1))
        self.kernel = kernel
        try kernel.interfaces.addLoopback()
        func interface(_ name: String, _ number: UInt8) throws -> Interface {
            try kernel.interfaces.add(
                name: name, device: LinkEnd(kernel: kernel, spec: LinkSpec(), salt: 0),
                hardware: HardwareAddress((2, 0, 0, 0, 0, number)))
        }
        e0 = try interface("e0", 1)
        e1 = try interface("e1", 2)
        try kernel.interfaces.addAddress(e0, address("10.0.0.1"), prefixLength: 24)
        try kernel.interfaces.addAddress(e1, address("10.0.1.1"), prefixLength: 24)
    }

    private func route(
        _ prefix: String, via gateway: String? = nil, on interface: Interface? = nil, metric: UInt32 = 0, flags: UInt32 = 0
    ) -> alps_route {
        let parsed = NetworkAddress.Prefix(prefix)!
        var route = alps_route()
        route.family = inet
        route.destination = parsed.address
        route.prefix_length = UInt8(parsed.length)
        route.metric = metric
        route.flags = flags
        route.ifindex = interface?.raw.pointee.index ?? 0
        if let gateway {
            route.flags |= UInt32(ALPS_RTF_GATEWAY)
            route.gateway = address(gateway)
        }
        return route
    }

    /// The way to `destination`: "10.0.0.254 e0", or an errno.
    private func way(_ destination: String, _ interface: Interface? = nil) -> String {
        var route = alps_route()
        let status = kernel.routes.lookup(
            inet, address(destination), ifindex: interface?.raw.pointee.index ?? 0, &route)
        guard status == 0 else { return "errno \(status)" }
        let name = kernel.interfaces.interface(route.ifindex)?.name ?? "-"
        let gateway = route.flags & UInt32(ALPS_RTF_GATEWAY) != 0
        return gateway ? "\(NetworkAddress(address: route.gateway)) \(name)" : name
    }

    private func mtu(_ destination: String) -> UInt32 {
        var route = alps_route()
        #expect(kernel.routes.lookup(inet, address(destination), &route) == 0)
        return route.mtu
    }

    private func run(for duration: UInt64) {
        clock.advance(to: clock.now + duration)
        kernel.endTurn()
    }

    @Test func addressesBringTheirRoutes() {
        #expect(way("10.0.0.77") == "e0")
        #expect(way("10.0.1.77") == "e1")
        #expect(way("10.0.0.1") == "lo0")
        #expect(way("10.0.0.255") == "e0")
        #expect(way("127.3.2.1") == "lo0")
        #expect(way("192.0.2.1") == "errno \(ALPS_ENETUNREACH)")
    }

    @Test func theLongestPrefixWinsAndThenTheLowestMetric() {
        #expect(kernel.routes.add(route("default", via: "10.0.0.254")) == 0)
        #expect(kernel.routes.add(route("192.0.2.0/24", via: "10.0.1.254", metric: 10)) == 0)
        #expect(kernel.routes.add(route("192.0.2.0/24", via: "10.0.0.253", metric: 5)) == 0)
        #expect(kernel.routes.add(route("192.0.2.128/25", via: "10.0.1.253")) == 0)
        #expect(kernel.routes.add(route("192.0.2.200/32", via: "10.0.0.252")) == 0)
        #expect(way("198.51.100.1") == "10.0.0.254 e0")
        #expect(way("192.0.2.1") == "10.0.0.253 e0")
        #expect(way("192.0.2.129") == "10.0.1.253 e1")
        #expect(way("192.0.2.200") == "10.0.0.252 e0")
    }

    @Test func aLookupMayBeTiedToAnInterface() {
        #expect(kernel.routes.add(route("default", via: "10.0.0.254")) == 0)
        #expect(kernel.routes.add(route("default", via: "10.0.1.254", metric: 5)) == 0)
        #expect(way("192.0.2.1") == "10.0.0.254 e0")
        #expect(way("192.0.2.1", e1) == "10.0.1.254 e1")
        #expect(way("10.0.0.1", e1) == "lo0")
    }

    @Test func hostBitsDoNotCount() {
        #expect(kernel.routes.add(route("192.0.2.77/24", via: "10.0.0.254")) == 0)
        #expect(way("192.0.2.1") == "10.0.0.254 e0")
        #expect(kernel.routes.remove(route("192.0.2.1/24")) == 0)
        #expect(way("192.0.2.1") == "errno \(ALPS_ENETUNREACH)")
    }

    @Test func aGatewayMustBeANeighbour() {
        #expect(kernel.routes.add(route("default", via: "192.0.2.1")) == ALPS_ENETUNREACH)
        #expect(kernel.routes.add(route("default", via: "10.0.0.1")) == ALPS_ENETUNREACH)
        #expect(kernel.routes.add(route("default", via: "10.0.0.255")) == ALPS_ENETUNREACH)
        #expect(kernel.routes.add(route("default", via: "10.0.1.254", on: e0)) == ALPS_ENETUNREACH)
        #expect(throws: KernelError.self) {
            try kernel.routes.addDefault(gateway: address("192.0.2.1"), interface: e0)
        }
    }

    @Test func twiceTheSameIsRefusedAndNothingIsNotRemoved() {
        #expect(kernel.routes.add(route("default", via: "10.0.0.254")) == 0)
        #expect(kernel.routes.add(route("default", via: "10.0.0.253")) == ALPS_EEXIST)
        #expect(kernel.routes.remove(route("default", via: "10.0.0.253")) == ALPS_ENOENT)
        #expect(kernel.routes.remove(route("default", via: "10.0.0.254")) == 0)
        #expect(kernel.routes.remove(route("default")) == ALPS_ENOENT)
        // An address keeps its own route.
        #expect(kernel.routes.remove(route("10.0.0.1/32")) == ALPS_ENOENT)
    }

    @Test func aRejectRouteAnswers() {
        #expect(kernel.routes.add(route("192.0.2.0/24", flags: ALPS_RTF_REJECT)) == 0)
        #expect(way("192.0.2.1") == "errno \(ALPS_EHOSTUNREACH)")
    }

    @Test func theGenerationTellsEveryChange() {
        var kept = alps_route()
        var fresh = alps_route()
        #expect(kernel.routes.lookup(inet, address("10.0.0.9"), &kept) == 0)
        #expect(kernel.routes.lookup(inet, address("10.0.0.9"), &fresh) == 0)
        #expect(kept.generation == fresh.generation)
        #expect(kernel.routes.add(route("default", via: "10.0.0.254")) == 0)
        #expect(kernel.routes.lookup(inet, address("10.0.0.9"), &fresh) == 0)
        #expect(kept.generation != fresh.generation)
        #expect(kernel.interfaces.setMTU(e0, 1400) == 0)
        #expect(kernel.routes.lookup(inet, address("10.0.0.9"), &kept) == 0)
        #expect(kept.generation != fresh.generation)
        #expect(kept.mtu == 1400)
    }

    @Test func aDeletedAddressTakesItsRoutesAlong() {
        #expect(kernel.routes.add(route("default", via: "10.0.0.254")) == 0)
        #expect(kernel.interfaces.deleteAddress(e0, address("10.0.0.1")) == 0)
        #expect(way("10.0.0.77") == "errno \(ALPS_ENETUNREACH)")
        #expect(way("10.0.0.1") == "errno \(ALPS_ENETUNREACH)")
        #expect(way("192.0.2.1") == "errno \(ALPS_ENETUNREACH)")
        #expect(way("10.0.1.77") == "e1")
    }

    @Test func aNetworkStaysWhileAnotherAddressIsOnIt() throws {
        try kernel.interfaces.addAddress(e0, address("10.0.0.2"), prefixLength: 24)
        #expect(kernel.routes.add(route("default", via: "10.0.0.254")) == 0)
        #expect(kernel.interfaces.deleteAddress(e0, address("10.0.0.1")) == 0)
        #expect(way("10.0.0.77") == "e0")
        #expect(way("10.0.0.255") == "e0")
        #expect(way("10.0.0.2") == "lo0")
        #expect(way("192.0.2.1") == "10.0.0.254 e0")
        #expect(kernel.interfaces.deleteAddress(e0, address("10.0.0.2")) == 0)
        #expect(way("10.0.0.77") == "errno \(ALPS_ENETUNREACH)")
    }

    @Test func aPathMTUOnlyFallsAndLapses() {
        #expect(kernel.routes.add(route("default", via: "10.0.0.254")) == 0)
        let remote = address("192.0.2.1")
        #expect(kernel.routes.updateMTU(inet, remote, 1400, lifetime: 600_000 * .ms) == 0)
        #expect(mtu("192.0.2.1") == 1400)
        #expect(mtu("192.0.2.2") == 1500)
        #expect(kernel.routes.updateMTU(inet, remote, 1450, lifetime: 600_000 * .ms) == 0)
        #expect(mtu("192.0.2.1") == 1400)
        run(for: 300_000 * .ms)
        #expect(kernel.routes.updateMTU(inet, remote, 1300, lifetime: 600_000 * .ms) == 0)
        run(for: 599_999 * .ms)
        #expect(mtu("192.0.2.1") == 1300)
        run(for: 1 * .ms)
        #expect(mtu("192.0.2.1") == 1500)
        #expect(kernel.nextDeadline == .max)
    }

    @Test func aPathMTUIsForgottenWithItsRoute() {
        #expect(kernel.routes.add(route("default", via: "10.0.0.254")) == 0)
        #expect(kernel.routes.updateMTU(inet, address("192.0.2.1"), 1400, lifetime: 600_000 * .ms) == 0)
        #expect(kernel.routes.all.contains { $0.flags & UInt32(ALPS_RTF_CLONED) != 0 })
        #expect(kernel.routes.add(route("192.0.2.0/24", via: "10.0.1.254")) == 0)
        #expect(way("192.0.2.1") == "10.0.1.254 e1")
        #expect(mtu("192.0.2.1") == 1500)
    }

    @Test func pathMTUsAreBoundedInNumber() {
        #expect(kernel.routes.add(route("default", via: "10.0.0.254")) == 0)
        for number in 0..<5000 {
            let remote = address("192.0.\(number / 256).\(number % 256)")
            #expect(kernel.routes.updateMTU(inet, remote, 1400, lifetime: UInt64(600_000 + number) * .ms) == 0)
        }
        #expect(kernel.routes.all.count < 4200)
        #expect(mtu("192.0.0.0") == 1500)
        #expect(mtu("192.0.19.0") == 1400)
    }

    @Test func aRedirectIsBelievedFromTheGatewayInUseOnly() {
        #expect(kernel.routes.add(route("default", via: "10.0.0.254")) == 0)
        let index = e0.raw.pointee.index
        func redirect(_ gateway: String, from: String, _ ifindex: UInt32) -> Int32 {
            kernel.routes.redirect(inet, address("192.0.2.1"), to: address(gateway), from: address(from), ifindex: ifindex)
        }
        #expect(redirect("10.0.0.253", from: "10.0.0.66", index) == ALPS_EPERM)
        #expect(redirect("10.0.1.253", from: "10.0.0.254", index) == ALPS_EPERM)
        #expect(redirect("192.0.2.9", from: "10.0.0.254", index) == ALPS_EPERM)
        #expect(redirect("10.0.0.253", from: "10.0.0.254", e1.raw.pointee.index) == ALPS_EPERM)
        #expect(way("192.0.2.1") == "10.0.0.254 e0")
        #expect(redirect("10.0.0.253", from: "10.0.0.254", index) == 0)
        #expect(way("192.0.2.1") == "10.0.0.253 e0")
        #expect(way("192.0.2.2") == "10.0.0.254 e0")
        // The next one must come from the new gateway.
        #expect(redirect("10.0.0.252", from: "10.0.0.254", index) == ALPS_EPERM)
        #expect(redirect("10.0.0.252", from: "10.0.0.253", index) == 0)
        run(for: 600_001 * .ms)
        #expect(way("192.0.2.1") == "10.0.0.254 e0")
    }

    @Test func aRemovedInterfaceTakesItsRoutesAlong() {
        #expect(kernel.routes.add(route("default", via: "10.0.0.254")) == 0)
        kernel.interfaces.remove(e0)
        #expect(way("10.0.0.77") == "errno \(ALPS_ENETUNREACH)")
        #expect(way("192.0.2.1") == "errno \(ALPS_ENETUNREACH)")
        #expect(kernel.interfaces.find("e0") == nil)
    }
}

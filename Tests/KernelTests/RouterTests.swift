import Kernel
import Lab
import PluginAPI
import Testing

/// Requests of plugins, called by their signatures.
@Suite struct RouterTests {
    let network = VirtualNetwork()
    let kernel: Kernel
    let entry: ProtocolEntry

    init() throws {
        kernel = try network.addKernel("a", plugins: ["ipv4"])
        try kernel.plugins.load(path: try CPlugin.giver(1).path)
        entry = try #require(kernel.protocols.entries.last { $0.instance.variant == "giver" })
    }

    private func mix(_ arguments: [RouterValue]) throws -> (error: Int32, results: [RouterResult]) {
        try #require(entry.request(named: "mix")).call(instance: entry.instancePointer, socket: nil, arguments)
    }

    private func arguments(_ text: String = "bytes", capacity: Int = 100) -> [RouterValue] {
        var address = alps_sockaddr()
        address.family = UInt16(ALPS_AF_INET)
        address.port = 80
        return [
            .integer(-7), .integer(4_000_000_000), .integer(.min), .integer(-1), .address(address), .bytes(Array(text.utf8)),
            .buffer([], capacity: capacity), .addressOut,
        ]
    }

    @Test func everyKindOfArgumentArrives() throws {
        let (error, results) = try mix(arguments())
        #expect(error == 0)
        try #require(results.count == 2)
        guard case .bytes(let bytes) = results[0], case .address(let address) = results[1] else {
            Issue.record("kinds of results")
            return
        }
        #expect(String(decoding: bytes, as: UTF8.self) == "-7 4000000000 -9223372036854775808 18446744073709551615 80 bytes")
        #expect(address.port == 81 && address.family == UInt16(ALPS_AF_INET))
        network.shutdown()
    }

    @Test func largeAndEmptyBuffersArrive() throws {
        #expect(try mix(arguments("", capacity: 200)).error == 0)
        let long = String(repeating: "x", count: 60_000)
        guard case .bytes(let bytes)? = try mix(arguments(long, capacity: 65_536)).results.first else {
            Issue.record("no result")
            return
        }
        #expect(bytes.count > 60_000 && bytes.last == UInt8(ascii: "x"))
        // Too small a buffer is the plugin's to refuse.
        #expect(try mix(arguments("bytes", capacity: 10)).error == Int32(ALPS_ENOBUFS))
        network.shutdown()
    }

    @Test func whatDoesNotFitTheSignatureIsNotCalled() throws {
        let right = arguments()
        for count in 0..<right.count { #expect(try mix(Array(right.prefix(count))).error == Int32(ALPS_EINVAL)) }
        #expect(try mix(right + [.integer(1)]).error == Int32(ALPS_EINVAL))
        for place in right.indices {
            for wrong: RouterValue in [.integer(1), .address(alps_sockaddr()), .addressOut, .bytes([1]), .buffer([], capacity: 4)] {
                var changed = right
                changed[place] = wrong
                let error = try mix(changed).error
                if case .integer = right[place], case .integer = wrong { continue }
                if case .address = right[place], case .address = wrong { continue }
                if case .addressOut = right[place], case .addressOut = wrong { continue }
                if case .bytes = right[place], case .bytes = wrong { continue }
                if case .buffer = right[place], case .buffer = wrong { continue }
                #expect(error == Int32(ALPS_EINVAL), "argument \(place)")
            }
        }
        network.shutdown()
    }

    @Test func requestsAreFoundByNameAndNumber() throws {
        #expect(entry.request(named: "nothing") == nil)
        #expect(entry.request(12345) == nil)
        #expect(entry.request(UInt32(ALPS_PRU_FIRST_PRIVATE))?.name == "ask")
        #expect(entry.request(named: "mix")?.argumentCount == 8)
        #expect(entry.request(named: "mix")?.mayBlock == false)
        network.shutdown()
    }
}

import CLinux
import ClientAPI
import Glibc
import Kernel
import PluginAPI
import Testing

/// What a client's calls carry into the host: options, addresses, requests of ioctl, headers of datagrams. Any bytes get
/// an answer, and nothing is left afterwards.
@Suite(.serialized) struct ClientFuzzTests {
    private struct Random: RandomNumberGenerator {
        var state: UInt64

        mutating func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state ^ state >> 29
        }

        mutating func below(_ bound: Int) -> Int { Int(next() >> 20) % bound }

        /// Small numbers and edges, mostly.
        mutating func number() -> Int32 {
            switch below(4) {
            case 0: Int32(truncatingIfNeeded: next())
            case 1: [0, 1, -1, 255, 256, 65535, 65536, .max, .min][below(9)]
            default: Int32(below(80))
            }
        }

        mutating func bytes(_ most: Int) -> [UInt8] {
            let count = below(6) == 0 ? below(most + 1) : [0, 1, 2, 3, 4, 8, 12, 16][below(8)]
            switch below(4) {
            case 0: return [UInt8](repeating: 0, count: count)
            case 1: return [UInt8](repeating: 0xff, count: count)
            case 2:
                var value = Array(withUnsafeBytes(of: number()) { Array($0) }.prefix(count))
                while value.count < count { value.append(0) }
                return value
            default: return (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) }
            }
        }

        mutating func level() -> Int32 {
            below(10) == 0 ? number() : [SOL_SOCKET, 0, 6, 17, 255, 1][below(6)]
        }

        mutating func address() -> alps_sockaddr {
            var address = alps_sockaddr()
            address.family = below(8) == 0 ? UInt16(truncatingIfNeeded: next()) : UInt16(AF_INET)
            address.port = UInt16(truncatingIfNeeded: below(3) == 0 ? Int(next() >> 40) : below(4))
            address.scope = below(8) == 0 ? UInt32(truncatingIfNeeded: next()) : 0
            let host: [UInt8] = [[127, 0, 0, 1], [0, 0, 0, 0], [255, 255, 255, 255], [224, 0, 0, 9], bytes(4)][below(5)]
            withUnsafeMutableBytes(of: &address.addr) { $0.copyBytes(from: host.prefix(16)) }
            return address
        }
    }

    private static let kinds: [(Int32, Int32)] = [(1, 0), (2, 0), (2, 1), (3, 1), (3, 255), (3, 6), (3, 17)]

    /// On the socket layer itself, so that many are tried.
    @Test func optionsAndAddressesOfAnyKind() throws {
        let host = try LiveHost()
        let sockets = host.kernel.sockets
        let arena = Arena(name: "fuzz", limitBytes: 64 << 20)
        var random = Random(state: 7)
        var refused = 0
        var taken = 0
        for round in 0..<4000 {
            let kind = Self.kinds[random.below(Self.kinds.count)]
            guard let socket = try? sockets.create(
                domain: AF_INET, type: kind.0, protocol: kind.1, variant: nil,
                owner: SocketOwner(session: 0, uid: UInt32(random.below(2) * 1000), pid: 1, program: "fuzz"), arena: arena)
            else { continue }
            for _ in 0..<60 {
                let status: Int32
                switch random.below(16) {
                case 0: status = socket.bind(random.address())
                case 1: status = socket.connect(random.address())
                case 2: status = socket.listen(random.number())
                case 3: status = socket.shutdown(random.number())
                case 4: status = socket.disconnect()
                case 5:
                    var data = random.bytes(300)
                    status = socket.control(UInt32(truncatingIfNeeded: random.next()), &data)
                case 6..<11:
                    let (error, value) = socket.getOption(
                        level: random.level(), name: random.number(), capacity: random.below(4) == 0 ? random.below(65536) : random.below(64))
                    #expect(value.count <= 65536)
                    status = error
                default: status = socket.setOption(level: random.level(), name: random.number(), random.bytes(600))
                }
                // An errno, as a program is told.
                #expect((0..<200).contains(status))
                if status == 0 { taken += 1 } else { refused += 1 }
            }
            socket.abort()
            if round % 64 == 0 { host.settle(1) }
        }
        #expect(taken > 20_000 && refused > 50_000, "\(taken) \(refused)")
        host.run { sockets.count == 0 }
        host.finish()
    }

    /// Through a session: requests of ioctl about sockets and about interfaces.
    @Test func requestsOfAnyKind() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let descriptors = try [client.socket(type: 1), client.socket(type: 2), client.socket(type: 3, protocol: 1)]
        var random = Random(state: 11)
        for round in 0..<30_000 {
            let command = random.below(4) == 0 ? random.next() : UInt64(0x8900 + random.below(256))
            // Not what takes lo0 down or away: its loss would be right.
            if (0x8914...0x8924).contains(command) { continue }
            var data = random.bytes(200)
            if random.below(2) == 0 { data = Array("lo0".utf8) + [UInt8](repeating: 0, count: 13) + data }
            let request = alps_ioctl_request(
                command: command, length: random.below(10) == 0 ? UInt32(truncatingIfNeeded: random.next()) : UInt32(data.count),
                reserved: 0)
            let handle = random.below(4) == 0 ? 0 : descriptors[random.below(3)].handle
            _ = client.request(ALPS_OP_IOCTL, TestClient.bytes(request) + data, socket: handle)
            if round % 32 == 31 {
                host.settle(1)
                #expect(!client.isClosed)
            }
        }
        for descriptor in descriptors { close(descriptor.fd) }
        client.end()
        host.finish()
    }

    /// Headers in front of datagrams, right in form or nearly so, on sockets with a header and without.
    @Test func datagramsWithHeadersOfAnyKind() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        var random = Random(state: 13)
        var descriptors = try [client.socket(type: 2), client.socket(type: 2), client.socket(type: 3, protocol: 1), client.socket(type: 3, protocol: 255)]
        #expect(try client.bind(descriptors[0], port: 7000) == 0)
        descriptors.append(try client.netlinkSocket(family: 0))
        for round in 0..<60_000 {
            var header = alps_datagram_header()
            let address = random.address()
            header.magic = random.below(20) == 0 ? UInt32(truncatingIfNeeded: random.next()) : ALPS_DATAGRAM_MAGIC
            header.ifindex = random.below(4) == 0 ? UInt32(bitPattern: random.number()) : 0
            header.address = alps_client_sockaddr(
                family: address.family, port: random.below(2) == 0 ? UInt16(7000).bigEndian : address.port, scope: address.scope,
                addr: address.addr.bytes)
            if random.below(3) == 0 { header.destination = header.address }
            header.ttl = random.below(3) == 0 ? UInt8(truncatingIfNeeded: random.next()) : 0
            header.tos = random.below(3) == 0 ? UInt8(truncatingIfNeeded: random.next()) : 0
            header.flags = random.below(8) == 0 ? UInt16(truncatingIfNeeded: random.next()) : 0
            var message = TestClient.bytes(header) + random.bytes(3000)
            if random.below(10) == 0 { message.removeLast(random.below(message.count + 1)) }
            let descriptor = descriptors[random.below(descriptors.count)]
            if random.below(8) == 0 {
                _ = client.request(ALPS_OP_SEND_DATAGRAM, message, socket: descriptor.handle)
            } else {
                _ = message.withUnsafeBytes { send(descriptor.fd, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL)) }
            }
            if random.below(500) == 0 {
                // With a peer, or without one again.
                let connect = alps_connect_request(address: TestClient.address(7000), flags: 0, plug_bytes: 0)
                _ = random.below(2) == 0
                    ? client.request(ALPS_OP_CONNECT, TestClient.bytes(connect), socket: descriptor.handle)
                    : client.request(ALPS_OP_UNCONNECT, socket: descriptor.handle)
            }
            if round % 32 == 31 {
                host.settle(1)
                #expect(!client.isClosed)
                var scratch = [UInt8](repeating: 0, count: 65536)
                for descriptor in descriptors {
                    for _ in 0..<1000 where recv(descriptor.fd, &scratch, scratch.count, Int32(MSG_DONTWAIT)) < 0 { break }
                    _ = client.request(ALPS_OP_TAKE_EVENT, socket: descriptor.handle)
                }
            }
        }
        for descriptor in descriptors { close(descriptor.fd) }
        client.end()
        host.finish()
    }
}

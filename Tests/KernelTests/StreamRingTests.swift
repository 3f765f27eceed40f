import CLinux
import ClientAPI
import Glibc
import Kernel
import Testing

/// A stream's ring to the application, with the client's steps in an order that the shim takes only now and then.
@Suite(.serialized) struct StreamRingTests {
    /// A ring of a socket, opened as the first who asks for it does.
    private func openRing(
        _ client: TestClient, _ socket: TestClient.Descriptor, _ direction: UInt32 = ALPS_RING_RECEIVE
    ) throws -> UnsafeMutablePointer<alps_stream_ring> {
        let answer = try client.ask(ALPS_OP_STREAM_RING, TestClient.bytes(direction), socket: socket.handle)
        try #require(answer.frame.error == 0)
        let bytes = Int(answer.load(alps_stream_ring_info.self).bytes)
        let memory = try #require(mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, answer.descriptor, 0))
        try #require(memory != MAP_FAILED)
        let page = memory.assumingMemoryBound(to: alps_stream_ring.self)
        if direction == ALPS_RING_RECEIVE {
            page.pointee.receive_head = page.pointee.receive_inband
            alps_unlock_word(&page.pointee.read_lock, ALPS_RING_WAITED)
        }
        return page
    }

    /// The byte that stands for the ring, and `upTo`, are read.
    private func read(_ socket: TestClient.Descriptor, _ page: UnsafeMutablePointer<alps_stream_ring>, upTo position: UInt64) {
        var byte: UInt8 = 0
        while recv(socket.fd, &byte, 1, 0) == 1 {}
        alps_store_position(&page.pointee.receive_head, position)
    }

    private func set<Value>(
        _ client: TestClient, _ socket: TestClient.Descriptor, _ name: Int32, _ value: Value
    ) throws -> Int32 {
        let value = TestClient.bytes(value)
        let option = alps_sockopt_request(level: SOL_SOCKET, name: name, length: UInt32(value.count), reserved: 0)
        return try client.ask(ALPS_OP_SETSOCKOPT, TestClient.bytes(option) + value, socket: socket.handle).frame.error
    }

    /// A request comes between the last read and the host's look at the ring.
    @Test func aRequestDoesNotHideAReadAfterAReset() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = try client.connection()
        #expect(try set(client, b, SO_RCVBUF, Int32(400_000)) == 0)
        let page = try openRing(client, b)
        let bytes = [UInt8](repeating: 7, count: 300_000)
        var sent = 0
        host.run {
            sent += max(bytes.dropFirst(sent).withUnsafeBytes { send(a.fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }, 0)
            return sent == bytes.count
        }
        host.settle()
        #expect(try set(client, a, SO_LINGER, linger(l_onoff: 1, l_linger: 0)) == 0)
        close(a.fd)
        host.settle()
        let start = page.pointee.receive_inband - 1
        try #require(page.pointee.receive_tail - start == UInt64(bytes.count) && page.pointee.closed & ALPS_RING_RECEIVE == 0)

        // Another thread is told of the reset: no more than the end of the stream is left to be told to the reader.
        let error = alps_sockopt_request(level: SOL_SOCKET, name: SO_ERROR, length: 4, reserved: 0)
        let answer = try client.ask(ALPS_OP_GETSOCKOPT, TestClient.bytes(error), socket: b.handle)
        #expect(answer.payload == TestClient.bytes(ECONNRESET))
        read(b, page, upTo: start + 1000)
        page.pointee.read_bell = 0
        _ = try client.ask(ALPS_OP_STREAM_BELL, socket: b.handle)
        try #require(page.pointee.read_bell == 0, "the host has gone to sleep before the last read")
        read(b, page, upTo: page.pointee.receive_tail)
        _ = try client.ask(ALPS_OP_GETSOCKOPT, TestClient.bytes(error), socket: b.handle)
        #expect(client.read(b) == .success([]))
        munmap(page, 4096)
        close(b.fd)
        client.end()
        host.finish()
    }

    /// Who waits for room is told when a third of the ring is free, and not before.
    @Test func aWriterThatWaitsForRoomIsToldOfIt() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = try client.connection()
        let page = try openRing(client, a, ALPS_RING_SEND)
        try #require(page.pointee.closed & ALPS_RING_SEND == 0)
        // As much as fits into the ring, and into the buffers of one who does not read.
        func fill() {
            for _ in 0..<100 {
                page.pointee.send_tail = page.pointee.send_head + UInt64(page.pointee.send_limit)
                host.settle()
                _ = try? client.ask(ALPS_OP_STREAM_BELL, socket: a.handle)
                host.settle()
                if page.pointee.send_tail == page.pointee.send_head + UInt64(page.pointee.send_limit) { return }
            }
        }
        fill()
        let limit = page.pointee.send_limit
        let turn = page.pointee.room_turn
        try #require(turn != 0 && page.pointee.send_tail - page.pointee.send_head == UInt64(limit))
        page.pointee.room_waited = 1
        _ = try client.ask(ALPS_OP_STREAM_BELL, socket: a.handle)
        host.settle()
        #expect(page.pointee.room_turn == turn && page.pointee.room_waited == 1)

        var byte = [UInt8](repeating: 0, count: 65536)
        host.run {
            while recv(b.fd, &byte, byte.count, Int32(MSG_DONTWAIT)) > 0 {}
            return page.pointee.send_head == page.pointee.send_tail
        }
        #expect(page.pointee.room_turn == turn + 1 && page.pointee.room_waited == 0)
        munmap(page, 4096)
        close(a.fd)
        close(b.fd)
        client.end()
        host.finish()
    }

    /// More of a ring's memory is used once the path has been short of it for a while; what is in it moves.
    @Test(arguments: [0, 1, 300_001, 1 << 20]) func aRingGrowsWithBytesInIt(_ before: Int) throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = try client.connection()
        let page = try openRing(client, a, ALPS_RING_SEND)
        #expect(page.pointee.send_size == 1 << 20 && page.pointee.send_capacity == 4 << 20)
        let first = page.pointee.send_tail
        var read = first
        func byte(_ position: UInt64) -> UInt8 { UInt8(truncatingIfNeeded: position ^ position >> 8 ^ position >> 16) }
        func write(_ most: Int) throws {
            let room = page.pointee.send_head + UInt64(page.pointee.send_limit) - page.pointee.send_tail
            let ring = UnsafeMutableRawPointer(page) + Int(page.pointee.send_offset)
            for position in page.pointee.send_tail..<page.pointee.send_tail + min(UInt64(most), room) {
                ring.storeBytes(of: byte(position), toByteOffset: Int(position) & Int(page.pointee.send_size - 1), as: UInt8.self)
            }
            page.pointee.send_tail += min(UInt64(most), room)
            _ = try client.ask(ALPS_OP_STREAM_BELL, socket: a.handle)
        }
        var wrong = 0
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        func readAll() {
            host.run {
                while case let count = recv(b.fd, &buffer, buffer.count, Int32(MSG_DONTWAIT)), count > 0 {
                    for each in 0..<count where buffer[each] != byte(read + UInt64(each)) { wrong += 1 }
                    read += UInt64(count)
                }
                return read == page.pointee.send_tail
            }
        }
        while page.pointee.send_tail < first + UInt64(before) {
            try write(Int(first) + before - Int(page.pointee.send_tail))
            readAll()
        }
        func fill() throws {
            while page.pointee.send_tail < page.pointee.send_head + UInt64(page.pointee.send_limit) {
                try write(1 << 22)
                host.settle()
            }
        }
        // Linux doubles what is asked for: all that is used, at first.
        #expect(try set(client, a, SO_SNDBUF, Int32(512 << 10)) == 0)
        try fill()
        #expect(page.pointee.send_limit == 1 << 20)
        page.pointee.write_lock = 1
        #expect(try set(client, a, SO_SNDBUF, Int32(2 << 20)) == 0)
        host.settle()
        _ = try client.ask(ALPS_OP_STREAM_BELL, socket: a.handle)
        #expect(page.pointee.send_size == 1 << 20, "a writer has the lock")
        alps_unlock_word(&page.pointee.write_lock, ALPS_RING_WAITED)
        _ = try client.ask(ALPS_OP_STREAM_BELL, socket: a.handle)
        host.settle()
        try #require(page.pointee.send_size == 4 << 20 && page.pointee.send_limit == 4 << 20)
        try fill()
        readAll()
        #expect(read == page.pointee.send_tail && read > first + UInt64(before) + 4 << 20)
        #expect(wrong == 0)
        munmap(page, 4096)
        close(a.fd)
        close(b.fd)
        client.end()
        host.finish()
    }

    /// One that runs empty is not too short: it is the path that waits.
    @Test func aRingThatRunsEmptyDoesNotGrow() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = try client.connection()
        let page = try openRing(client, a, ALPS_RING_SEND)
        #expect(try set(client, a, SO_SNDBUF, Int32(2 << 20)) == 0)
        host.settle()
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        for _ in 0..<3 {
            page.pointee.send_tail += 1 << 20
            _ = try client.ask(ALPS_OP_STREAM_BELL, socket: a.handle)
            host.run {
                while recv(b.fd, &buffer, buffer.count, Int32(MSG_DONTWAIT)) > 0 {}
                return page.pointee.send_head == page.pointee.send_tail
            }
            _ = try client.ask(ALPS_OP_STREAM_BELL, socket: a.handle)
            host.settle()
        }
        #expect(page.pointee.send_size == 1 << 20)
        munmap(page, 4096)
        close(a.fd)
        close(b.fd)
        client.end()
        host.finish()
    }
}

import CLinux
import ClientAPI
import Glibc
import Kernel
import Testing

/// A stream's ring to the application, with the client's steps in an order that the shim takes only now and then.
@Suite(.serialized) struct StreamRingTests {
    /// The byte that stands for the ring, and `upTo`, are read.
    private func read(_ socket: TestClient.Descriptor, _ page: UnsafeMutablePointer<alps_stream_ring>, upTo position: UInt64) {
        var byte: UInt8 = 0
        while recv(socket.fd, &byte, 1, 0) == 1 {}
        alps_store_position(&page.pointee.receive_head, position)
    }

    /// A request comes between the last read and the host's look at the ring.
    @Test func aRequestDoesNotHideAReadAfterAReset() throws {
        let host = try LiveHost()
        let client = try TestClient(host)
        let (a, b) = try client.connection()
        #expect(try client.set(b, SO_RCVBUF, Int32(400_000)) == 0)
        let page = try client.openRing(b)
        let bytes = [UInt8](repeating: 7, count: 300_000)
        var sent = 0
        host.run {
            sent += max(bytes.dropFirst(sent).withUnsafeBytes { send(a.fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }, 0)
            return sent == bytes.count
        }
        host.settle()
        #expect(try client.set(a, SO_LINGER, linger(l_onoff: 1, l_linger: 0)) == 0)
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
        let page = try client.openRing(a, ALPS_RING_SEND)
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
}

extension TestClient {
    /// A ring of a socket, opened as the first who asks for it does.
    func openRing(
        _ socket: Descriptor, _ direction: UInt32 = ALPS_RING_RECEIVE
    ) throws -> UnsafeMutablePointer<alps_stream_ring> {
        let answer = try ask(ALPS_OP_STREAM_RING, TestClient.bytes(direction), socket: socket.handle)
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

    func set<Value>(_ socket: Descriptor, _ name: Int32, _ value: Value) throws -> Int32 {
        let value = Self.bytes(value)
        let option = alps_sockopt_request(level: SOL_SOCKET, name: name, length: UInt32(value.count), reserved: 0)
        return try ask(ALPS_OP_SETSOCKOPT, Self.bytes(option) + value, socket: socket.handle).frame.error
    }
}

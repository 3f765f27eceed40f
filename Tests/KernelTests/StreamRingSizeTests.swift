import CLinux
import ClientAPI
import Glibc
import Kernel
import Testing

/// How much of a send ring's memory is used: it follows the path, and what other streams need.
@Suite(.serialized) struct StreamRingSizeTests {
    /// Writes a stream whose bytes tell their positions, as a client does, and reads it at the other end.
    private final class Stream {
        let host: LiveHost
        let client: TestClient
        let (from, to): (TestClient.Descriptor, TestClient.Descriptor)
        let page: UnsafeMutablePointer<alps_stream_ring>
        private(set) var read: UInt64
        private(set) var wrong = 0
        private var buffer = [UInt8](repeating: 0, count: 1 << 16)

        init(_ settings: KeyValuePairs<String, String> = [:]) throws {
            host = try LiveHost()
            for (name, value) in settings { try host.kernel.tunables.set(name, value) }
            client = try TestClient(host)
            (from, to) = try client.connection()
            page = try client.openRing(from, ALPS_RING_SEND)
            read = page.pointee.send_tail
            #expect(page.pointee.send_size == 1 << 20 && page.pointee.send_capacity == 4 << 20)
        }

        var written: UInt64 { page.pointee.send_tail }
        var room: Int { Int(page.pointee.send_head) + Int(page.pointee.send_limit) - Int(written) }
        private static func byte(_ position: UInt64) -> UInt8 {
            UInt8(truncatingIfNeeded: position ^ position >> 8 ^ position >> 16)
        }

        func write(_ most: Int) throws {
            let memory = UnsafeMutableRawPointer(page) + Int(page.pointee.send_offset)
            let end = written + UInt64(max(min(most, room), 0))
            for position in written..<end {
                let place = Int(position) & Int(page.pointee.send_size - 1)
                memory.storeBytes(of: Self.byte(position), toByteOffset: place, as: UInt8.self)
            }
            page.pointee.send_tail = end
            try ring()
        }

        func ring() throws { _ = try client.ask(ALPS_OP_STREAM_BELL, socket: from.handle) }

        /// Until the ring is full and the host gives no more room.
        func fill() throws {
            while room > 0 {
                try write(1 << 22)
                host.settle()
            }
        }

        /// What there is to read, `most` bytes at most. True if there was something.
        @discardableResult
        func take(_ most: Int) -> Bool {
            let count = recv(to.fd, &buffer, min(most, buffer.count), Int32(MSG_DONTWAIT))
            for each in 0..<max(count, 0) where buffer[each] != Self.byte(read + UInt64(each)) { wrong += 1 }
            read += UInt64(max(count, 0))
            return count > 0
        }

        func takeAll() {
            host.run {
                while take(buffer.count) {}
                return read == written
            }
            #expect(read == written)
        }

        /// So much is written and read.
        func pass(_ bytes: Int) throws {
            let end = Int(written) + bytes
            while written < end {
                try write(end - Int(written))
                takeAll()
            }
        }

        func end() {
            #expect(wrong == 0)
            munmap(page, 4096)
            close(from.fd)
            close(to.fd)
            client.end()
            host.finish()
        }
    }

    /// More of a ring's memory is used once the path has been short of it for a while; what is in it moves.
    @Test(arguments: [0, 1, 300_001, 1 << 20]) func aRingGrowsWithBytesInIt(_ before: Int) throws {
        let stream = try Stream()
        let (host, client, page, first) = (stream.host, stream.client, stream.page, stream.written)
        try stream.pass(before)
        // Linux doubles what is asked for: all that is used, at first.
        #expect(try client.set(stream.from, SO_SNDBUF, Int32(512 << 10)) == 0)
        try stream.fill()
        #expect(page.pointee.send_limit == 1 << 20)
        page.pointee.write_lock = 1
        #expect(try client.set(stream.from, SO_SNDBUF, Int32(2 << 20)) == 0)
        host.settle()
        try stream.ring()
        #expect(page.pointee.send_size == 1 << 20, "a writer has the lock")
        alps_unlock_word(&page.pointee.write_lock, ALPS_RING_WAITED)
        try stream.ring()
        host.settle()
        try #require(page.pointee.send_size == 4 << 20 && page.pointee.send_limit == 4 << 20)
        try stream.fill()
        stream.takeAll()
        #expect(stream.read > first + UInt64(before) + 4 << 20)
        stream.end()
    }

    /// One that runs empty is not too short: it is the path that waits.
    @Test func aRingThatRunsEmptyDoesNotGrow() throws {
        let stream = try Stream()
        let host = stream.host
        #expect(try stream.client.set(stream.from, SO_SNDBUF, Int32(2 << 20)) == 0)
        host.settle()
        for _ in 0..<3 {
            try stream.write(1 << 20)
            stream.takeAll()
            try stream.ring()
            host.settle()
        }
        #expect(stream.page.pointee.send_size == 1 << 20)
        stream.end()
    }

    /// A stream that is fast gives up what is more than its share with bytes in its ring.
    @Test(arguments: [0, 1, 300_001, 1 << 20]) func aRingShrinksToItsShareWithBytesInIt(_ before: Int) throws {
        let stream = try Stream(["kern.ipc.sendspace": "1m", "kern.ipc.ringfast": "1g", "kern.ipc.ringshare": "512k"])
        let (host, page) = (stream.host, stream.page)
        try stream.pass(before)
        try stream.fill()
        #expect(page.pointee.send_size == 1 << 20 && page.pointee.send_limit == 1 << 20, "slow")
        try host.kernel.tunables.set("kern.ipc.ringfast", "1")
        page.pointee.write_lock = 1
        func isOver(_ bytes: UInt64) -> Bool { stream.written - page.pointee.send_head > bytes }
        // A look at it every 10 ms.
        func takeSome() throws {
            stream.take(32768)
            host.settle(12)
            try stream.ring()
        }
        for _ in 0..<50 where isOver(500_000) { try takeSome() }
        #expect(page.pointee.send_limit == 512 << 10 && !isOver(512 << 10))
        #expect(page.pointee.send_size == 1 << 20, "a writer has the lock")
        alps_unlock_word(&page.pointee.write_lock, ALPS_RING_WAITED)
        for _ in 0..<12 where page.pointee.send_size == 1 << 20 { try takeSome() }
        try #require(page.pointee.send_size == 512 << 10)
        #expect(isOver(0), "empty")
        for _ in 0..<4 {
            try stream.fill()
            stream.takeAll()
        }
        stream.end()
    }

    /// An application that has chosen a size keeps it.
    @Test func aRingOfChosenSizeIsNotShrunk() throws {
        let stream = try Stream(["kern.ipc.ringshare": "512k", "kern.ipc.ringfast": "1"])
        #expect(try stream.client.set(stream.from, SO_SNDBUF, Int32(512 << 10)) == 0)
        for _ in 0..<3 {
            try stream.fill()
            stream.takeAll()
            stream.host.settle()
        }
        #expect(stream.page.pointee.send_size == 1 << 20 && stream.page.pointee.send_limit == 1 << 20)
        stream.end()
    }
}

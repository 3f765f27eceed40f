import Glibc
import Kernel
import PluginAPI
import Testing

/// The stream data path: rings, urgent data, the end.
@Suite struct SocketStreamTests {
    private func connected(_ link: String = "", prepare: (Socket, Socket) -> Void = { _, _ in }) throws -> (Hosts, Socket, Socket) {
        let hosts = try Hosts(link)
        let listener = try hosts.listener()
        let client = try hosts.stream(hosts.a)
        prepare(client, listener)
        #expect(client.connect(at("10.0.0.2", 80)) == EINPROGRESS)
        hosts.run(10_000)
        return (hosts, client, try #require(listener.acceptNext()))
    }

    /// Sends `count` bytes from one to the other, reading in odd pieces.
    private func carry(_ hosts: Hosts, _ count: Int, from: Socket, to: Socket) {
        var written = 0
        var received: [UInt8] = []
        for _ in 0..<20_000 where received.count < count {
            if written < count {
                let got = from.write(stretch(written..<min(count, written + 7001)))
                if got > 0 { written += got }
            }
            hosts.run(1)
            while let bytes = to.read(max: 1237), !bytes.isEmpty { received += bytes }
        }
        #expect(received == stretch(0..<count))
    }

    // MARK: Rings

    @Test func smallRingsWrap() throws {
        let (hosts, client, server) = try connected { client, listener in
            #expect(client.setOption(level: SOL_SOCKET, name: SO_SNDBUF, option(3000)) == 0)
            #expect(listener.setOption(level: SOL_SOCKET, name: SO_RCVBUF, option(2500)) == 0)
        }
        carry(hosts, 300_000, from: client, to: server)
        #expect(client.raw.pointee.snd.capacity == 8192)
        #expect(server.raw.pointee.rcv.capacity == 8192)
        hosts.finish()
    }

    @Test func dataOutOfOrderFindItsPlace() throws {
        let (hosts, client, server) = try connected("loss 5% reorder 10% delay 1ms") { client, listener in
            #expect(listener.setOption(level: SOL_SOCKET, name: SO_RCVBUF, option(20_000)) == 0)
        }
        carry(hosts, 400_000, from: client, to: server)
        hosts.finish()
    }

    @Test func aRingInUseGrowsWithoutLosingAByte() throws {
        let (hosts, client, server) = try connected { client, listener in
            #expect(client.setOption(level: SOL_SOCKET, name: SO_SNDBUF, option(4000)) == 0)
            #expect(listener.setOption(level: SOL_SOCKET, name: SO_RCVBUF, option(4000)) == 0)
        }
        // Both rings stand somewhere in their middle, and full.
        carry(hosts, 21_000, from: client, to: server)
        var written = 0
        for _ in 0..<100 {
            written += max(0, client.write(stretch(written..<written + 3000)))
            hosts.run(10)
        }
        #expect(written >= 12_000)
        #expect(client.setOption(level: SOL_SOCKET, name: SO_SNDBUF, option(50_000)) == 0)
        #expect(server.setOption(level: SOL_SOCKET, name: SO_RCVBUF, option(50_000)) == 0)
        #expect(client.raw.pointee.snd.capacity == 131_072)
        #expect(server.raw.pointee.rcv.capacity == 131_072)
        while written < 200_000 {
            let got = client.write(stretch(written..<min(200_000, written + 5000)))
            guard got > 0 else { break }
            written += got
        }
        var received: [UInt8] = []
        for _ in 0..<2000 where received.count < written {
            hosts.run(10)
            while let bytes = server.read(), !bytes.isEmpty { received += bytes }
        }
        #expect(received == stretch(0..<written))
        hosts.finish()
    }

    @Test func writerFillsTheBufferAndGetsRoomAgain() throws {
        let (hosts, client, server) = try connected { client, listener in
            #expect(client.setOption(level: SOL_SOCKET, name: SO_SNDBUF, option(10_000)) == 0)
            #expect(listener.setOption(level: SOL_SOCKET, name: SO_RCVBUF, option(10_000)) == 0)
        }
        var written = 0
        for _ in 0..<100 {
            written += max(0, client.write([UInt8](repeating: 1, count: 50_000)))
            hosts.run(10)
        }
        #expect(client.sendSpace == 0)
        #expect(client.sendQueued == 20_000)
        #expect(client.write([1]) == -Int(EAGAIN))
        while let bytes = server.read(), !bytes.isEmpty {}
        hosts.run(2000)
        #expect(client.sendSpace > 0)
        hosts.finish()
    }

    @Test func nothingOfASocketStaysBehind() throws {
        let (hosts, client, server) = try connected()
        carry(hosts, 100_000, from: client, to: server)
        let arena = client.arena
        #expect(arena.slotsInUse == 1)
        client.close()
        server.close()
        hosts.run(300_000)
        #expect(hosts.a.sockets.count == 0)
        #expect(arena.slotsInUse == 0)
        hosts.finish()
    }

    // MARK: The end

    @Test func closeSendsWhatWasWritten() throws {
        let (hosts, client, server) = try connected()
        #expect(client.write(stretch(0..<5000)) == 5000)
        client.close()
        hosts.run(200)
        #expect(server.read() == stretch(0..<5000))
        #expect(server.read() == [])
        #expect(server.atEndOfStream)
        hosts.finish()
    }

    @Test func closeWithUnreadDataResets() throws {
        let (hosts, client, server) = try connected()
        #expect(server.write([1, 2, 3]) == 3)
        hosts.run(100)
        client.close()
        hosts.run(100)
        #expect(server.takeError() == ECONNRESET)
        hosts.finish()
    }

    @Test func lingerZeroResets() throws {
        let (hosts, client, server) = try connected()
        #expect(client.setOption(level: SOL_SOCKET, name: SO_LINGER, option(1) + option(0)) == 0)
        client.close()
        #expect(hosts.a.sockets.count == 0)
        hosts.run(100)
        #expect(server.takeError() == ECONNRESET)
        #expect(server.write([1]) == -Int(EPIPE))
        hosts.finish()
    }

    @Test func writeReportsAnErrorOnceAndThenThePipe() throws {
        let (hosts, client, server) = try connected()
        client.abort()
        hosts.run(100)
        #expect(server.write([1]) == -Int(ECONNRESET))
        #expect(server.write([1]) == -Int(EPIPE))
        hosts.finish()
    }

    // MARK: Urgent data

    @Test func urgentByteIsKeptAside() throws {
        let (hosts, client, server) = try connected()
        #expect(server.takeUrgent(peek: false).error == EINVAL)
        client.write(Array("abc".utf8))
        client.write(Array("!".utf8), flags: ALPS_SENT_OOB)
        client.write(Array("def".utf8))
        hosts.run(100)
        #expect(server.receiveAvailable == 3, "a read ends at the mark")
        #expect(!server.isAtMark)
        #expect(server.read() == Array("abc".utf8))
        #expect(server.isAtMark)
        #expect(server.takeUrgent(peek: true) == (0, UInt8(ascii: "!")))
        #expect(server.takeUrgent(peek: false) == (0, UInt8(ascii: "!")))
        #expect(server.takeUrgent(peek: false).error == EINVAL)
        #expect(server.isAtMark)
        #expect(server.read() == Array("def".utf8))
        #expect(!server.isAtMark)
        hosts.finish()
    }

    @Test func urgentByteMayStayInline() throws {
        let (hosts, client, server) = try connected()
        #expect(server.setOption(level: SOL_SOCKET, name: SO_OOBINLINE, option(1)) == 0)
        client.write(Array("abc".utf8))
        client.write(Array("!".utf8), flags: ALPS_SENT_OOB)
        client.write(Array("def".utf8))
        hosts.run(100)
        #expect(server.takeUrgent(peek: false).error == EINVAL)
        #expect(server.read() == Array("abc".utf8))
        #expect(server.isAtMark)
        #expect(server.read() == Array("!def".utf8))
        #expect(!server.isAtMark)
        hosts.finish()
    }

    @Test func markIsCountedFromWhereTheReaderIs() throws {
        let (hosts, client, server) = try connected()
        client.write(Array("ab!".utf8), flags: ALPS_SENT_OOB)
        client.write(Array("xyz".utf8))
        hosts.run(100)
        #expect(server.read() == Array("ab".utf8))
        #expect(server.read(max: 2) == Array("xy".utf8))
        // As a channel sees it that has handed on more than the program has read.
        #expect(server.isAtMark(unread: 2))
        #expect(!server.isAtMark(unread: 3))
        #expect(!server.isAtMark(unread: 1))
        hosts.finish()
    }

    @Test func urgentByteAloneIsNoData() throws {
        let (hosts, client, server) = try connected()
        client.write([9], flags: ALPS_SENT_OOB)
        hosts.run(100)
        #expect(server.receiveAvailable == 0)
        #expect(server.read() == nil)
        #expect(server.takeUrgent(peek: false) == (0, 9))
        server.close()
        hosts.run(100)
        #expect(client.takeError() == 0, "nothing was left unread")
        hosts.finish()
    }
}

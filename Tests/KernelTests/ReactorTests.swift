import CLinux
import Glibc
import Kernel
import Testing

@Suite struct ReactorTests {
    private final class Reader: ReadyHandler {
        private let action: (UInt32) -> Void
        init(_ action: @escaping (UInt32) -> Void) {
            self.action = action
            super.init()
        }
        override func ready(_ events: UInt32) { action(events) }
    }

    private func makePair() -> (Int32, Int32) {
        var pair: [Int32] = [-1, -1]
        #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &pair) == 0)
        return (pair[0], pair[1])
    }

    private func makeReactor() throws -> (Kernel, Reactor) {
        let kernel = Kernel(KernelConfiguration(name: "reactor"))
        let reactor = try Reactor(kernel: kernel)
        kernel.reactor = reactor
        return (kernel, reactor)
    }

    @Test func aTimerEndsTheWaitInTime() throws {
        let (kernel, reactor) = try makeReactor()
        let start = kernel.clock.now
        let timer = HostTimer(kernel) { reactor.stop() }
        timer.arm(after: 20_000_000)
        reactor.run()
        #expect(kernel.clock.now >= start + 20_000_000)
        // Few turns: it slept.
        #expect(kernel.turns < 50)
    }

    @Test func aHandlerRemovedInABatchIsNotCalledAnyMore() throws {
        let (kernel, reactor) = try makeReactor()
        let (one, oneEnd) = makePair()
        let (two, twoEnd) = makePair()
        var calls = 0
        var readers: [Reader] = []
        // Both are ready at once; whoever comes first removes the other.
        for (index, descriptors) in [(one, two), (two, one)].enumerated() {
            readers.append(
                Reader { _ in
                    calls += 1
                    reactor.remove(descriptors.1, handler: readers[1 - index])
                    reactor.stop()
                })
        }
        try reactor.add(one, events: UInt32(EPOLLIN.rawValue), handler: readers[0])
        try reactor.add(two, events: UInt32(EPOLLIN.rawValue), handler: readers[1])
        write(oneEnd, "x", 1)
        write(twoEnd, "x", 1)
        reactor.run()
        #expect(calls == 1)
        #expect(kernel.turns == 1)
        for descriptor in [one, oneEnd, two, twoEnd] { close(descriptor) }
    }

    @Test func aHandlerAddedInPlaceOfARemovedOneGetsNoStaleEvent() throws {
        let (_, reactor) = try makeReactor()
        let (one, oneEnd) = makePair()
        let (two, twoEnd) = makePair()
        let (three, threeEnd) = makePair()
        var late = 0
        let newcomer = Reader { _ in late += 1 }
        var readers: [Reader] = []
        var hasRun = false
        for (index, other) in [two, one].enumerated() {
            readers.append(
                Reader { _ in
                    guard !hasRun else { return }
                    hasRun = true
                    reactor.remove(other, handler: readers[1 - index])
                    // It takes the slot of the one removed, whose event is still in the batch.
                    try? reactor.add(three, events: UInt32(EPOLLIN.rawValue), handler: newcomer)
                    reactor.stop()
                })
        }
        try reactor.add(one, events: UInt32(EPOLLIN.rawValue), handler: readers[0])
        try reactor.add(two, events: UInt32(EPOLLIN.rawValue), handler: readers[1])
        write(oneEnd, "x", 1)
        write(twoEnd, "x", 1)
        reactor.run()
        #expect(hasRun)
        #expect(late == 0)
        for descriptor in [one, oneEnd, two, twoEnd, three, threeEnd] { close(descriptor) }
    }

    @Test func workFromAnotherThreadRunsOnTheLoop() throws {
        let (_, reactor) = try makeReactor()
        final class Box: @unchecked Sendable {
            var thread = pthread_t()
            let reactor: Reactor
            init(_ reactor: Reactor) { self.reactor = reactor }
        }
        let box = Box(reactor)
        var thread = pthread_t()
        pthread_create(
            &thread, nil,
            { context in
                let box = Unmanaged<Box>.fromOpaque(context!).takeRetainedValue()
                box.reactor.post {
                    box.thread = pthread_self()
                    box.reactor.stop()
                }
                return nil
            }, Unmanaged.passRetained(box).toOpaque())
        reactor.run()
        pthread_join(thread, nil)
        #expect(pthread_equal(box.thread, pthread_self()) != 0)
    }
}

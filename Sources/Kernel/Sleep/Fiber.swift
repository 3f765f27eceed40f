internal import FiberSwitch
internal import Glibc
internal import PluginAPI

/// A request that may wait: a body of code with a stack of its own, run on the kernel's thread.
package final class Fiber {
    /// What a fiber is doing.
    package enum State: String {
        case ready, running, sleeping, done
    }

    /// Unique within the kernel's life.
    package let id: Int
    /// For people, e.g. the request.
    package let name: String
    /// The client session it works for.
    package let session: UInt32?
    package internal(set) var state = State.ready
    /// What it sleeps on.
    package internal(set) var waitChannel: UnsafeRawPointer?
    /// Why, in a word.
    package internal(set) var wmesg: String?
    /// When a timed sleep ends, ns on the kernel's clock; nil without limit.
    package internal(set) var deadline: UInt64?
    /// Somebody wants it to end: this and all further sleeps return EINTR.
    package internal(set) var isCancelled = false

    let scheduler: FiberScheduler
    var body: (() -> Void)?
    let context: UnsafeMutablePointer<alps_fiber_context>
    var stack: FiberStack?
    let timer: UnsafeMutablePointer<alps_callout>
    /// What the sleep that has just ended returns.
    var sleepResult: Int32 = 0
    /// A restart that came while it did not sleep.
    var isRestartPending = false
    /// Neighbours in the sleep queue of the channel.
    var nextSleeper: Fiber?
    /// Called when the body has returned, on the scheduler's stack.
    package var completion: (() -> Void)?

    init(id: Int, name: String, session: UInt32?, scheduler: FiberScheduler, body: @escaping () -> Void) {
        self.id = id
        self.name = name
        self.session = session
        self.scheduler = scheduler
        self.body = body
        context = .allocate(capacity: 1)
        context.initialize(to: alps_fiber_context())
        timer = .allocate(capacity: 1)
        timer.initialize(to: alps_callout())
    }

    deinit {
        context.deallocate()
        timer.deallocate()
    }

    /// Everything that the body holds is let go before the stack is left for good.
    func run() {
        body?()
        body = nil
    }
}

/// A stack with a guard page below it. Pages appear as they are used.
struct FiberStack {
    /// JSON and text formatting of queries run on fibers, in debug builds too.
    static let size = 512 << 10
    private static let guardSize = 4096

    let mapping: UnsafeMutableRawPointer

    var bottom: UnsafeMutableRawPointer { mapping + Self.guardSize }

    init?() {
        let memory = mmap(
            nil, Self.size + Self.guardSize, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0)
        guard let memory, memory != MAP_FAILED else { return nil }
        guard mprotect(memory, Self.guardSize, PROT_NONE) == 0 else {
            munmap(memory, Self.size + Self.guardSize)
            return nil
        }
        mapping = memory
    }

    func release() { munmap(mapping, Self.size + Self.guardSize) }
}

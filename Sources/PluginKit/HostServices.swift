public import PluginAPI

/// The host's interfaces as one plugin instance uses them: cells looked up once, called through each time.
///
/// A value of pointers only, so it may live in zone memory and be copied freely.
public struct HostServices {
    public let host: UnsafePointer<alps_host>
    public let memoryCell: UnsafePointer<alps_cell>
    public let mbufCell: UnsafePointer<alps_cell>
    public let timeCell: UnsafePointer<alps_cell>
    public let sleepCell: UnsafePointer<alps_cell>
    public let randomCell: UnsafePointer<alps_cell>
    public let logCell: UnsafePointer<alps_cell>
    public let tunableCell: UnsafePointer<alps_cell>
    public let counterCell: UnsafePointer<alps_cell>
    public let traceCell: UnsafePointer<alps_cell>
    public let ifnetCell: UnsafePointer<alps_cell>
    public let routeCell: UnsafePointer<alps_cell>
    public let socketCell: UnsafePointer<alps_cell>
    public let pcbCell: UnsafePointer<alps_cell>
    public let protoswCell: UnsafePointer<alps_cell>

    /// Looks every host interface up. Nil if the host lacks one (it is older than this plugin).
    public init?(_ host: UnsafePointer<alps_host>) {
        func cell(_ id: StaticString) -> UnsafePointer<alps_cell>? {
            host.pointee.query(host.pointee.`self`, UnsafeRawPointer(id.utf8Start).assumingMemoryBound(to: CChar.self))
        }
        guard let memory = cell("alps.memory/1"), let mbuf = cell("alps.mbuf/1"), let time = cell("alps.time/1"),
            let sleep = cell("alps.sleep/1"), let random = cell("alps.random/1"), let log = cell("alps.log/1"),
            let tunable = cell("alps.tunable/1"), let counter = cell("alps.counter/1"),
            let trace = cell("alps.trace/1"), let ifnet = cell("alps.ifnet/1"), let route = cell("alps.route/1"),
            let socket = cell("alps.socket/1"), let pcb = cell("alps.pcb/1"), let protosw = cell("alps.protosw/1")
        else { return nil }
        self.host = host
        memoryCell = memory
        mbufCell = mbuf
        timeCell = time
        sleepCell = sleep
        randomCell = random
        logCell = log
        tunableCell = tunable
        counterCell = counter
        traceCell = trace
        ifnetCell = ifnet
        routeCell = route
        socketCell = socket
        pcbCell = pcb
        protoswCell = protosw
    }

    /// The cell of any interface id, e.g. one that another plugin provides.
    public func cell(_ id: StaticString) -> UnsafePointer<alps_cell>? {
        host.pointee.query(host.pointee.`self`, UnsafeRawPointer(id.utf8Start).assumingMemoryBound(to: CChar.self))
    }
}

extension UnsafePointer where Pointee == alps_cell {
    /// The interface's table. The caller knows that somebody provides it (host interfaces always are).
    @inline(__always)
    public func ops<Ops>(_ type: Ops.Type) -> UnsafePointer<Ops> {
        pointee.ops.unsafelyUnwrapped.assumingMemoryBound(to: Ops.self)
    }

    /// The first argument of the table's functions.
    @inline(__always)
    public var instance: UnsafeMutableRawPointer { pointee.`self`.unsafelyUnwrapped }

    /// Whether somebody provides the interface now.
    @inline(__always)
    public var isProvided: Bool { pointee.ops != nil }
}

extension HostServices {
    // MARK: Time

    /// Nanoseconds, constant within a loop turn.
    @inline(__always)
    public var now: UInt64 { timeCell.ops(alps_time_ops.self).pointee.now(timeCell.instance) }

    /// Arms `callout` to call `function` with `argument` in `delay` ns.
    @inline(__always)
    public func arm(
        _ callout: UnsafeMutablePointer<alps_callout>, delay: UInt64, function: UInt32,
        argument: UnsafeMutableRawPointer?
    ) {
        timeCell.ops(alps_time_ops.self).pointee.callout_reset(timeCell.instance, callout, delay, function, argument)
    }

    /// Disarms `callout`; harmless if it is not armed.
    @inline(__always)
    public func disarm(_ callout: UnsafeMutablePointer<alps_callout>) {
        if callout.pointee.flags & UInt16(ALPS_CALLOUT_ARMED) != 0 {
            _ = timeCell.ops(alps_time_ops.self).pointee.callout_stop(timeCell.instance, callout)
        }
    }

    // MARK: Memory

    /// Zeroed zone memory for one `T`, or nil at the instance's limit. `T` must be trivial.
    public func allocate<T>(_ type: T.Type) -> UnsafeMutablePointer<T>? {
        memoryCell.ops(alps_memory_ops.self).pointee.alloc(memoryCell.instance, MemoryLayout<T>.size)?
            .assumingMemoryBound(to: T.self)
    }

    /// Gives one `T` back.
    public func free<T>(_ pointer: UnsafeMutablePointer<T>) {
        memoryCell.ops(alps_memory_ops.self).pointee.free(memoryCell.instance, pointer, MemoryLayout<T>.size)
    }

    /// Zeroed zone memory for `count` values of `T`.
    public func allocateArray<T>(_ type: T.Type, _ count: Int) -> UnsafeMutablePointer<T>? {
        memoryCell.ops(alps_memory_ops.self).pointee.alloc(memoryCell.instance, MemoryLayout<T>.stride * count)?
            .assumingMemoryBound(to: T.self)
    }

    public func freeArray<T>(_ pointer: UnsafeMutablePointer<T>, _ count: Int) {
        memoryCell.ops(alps_memory_ops.self).pointee.free(
            memoryCell.instance, pointer, MemoryLayout<T>.stride * count)
    }

    // MARK: Random

    /// 64 random bits.
    @inline(__always)
    public var random: UInt64 { randomCell.ops(alps_random_ops.self).pointee.next(randomCell.instance) }

    // MARK: Mbufs

    /// The mbuf table and its first argument.
    @inline(__always)
    public var mbuf: UnsafePointer<alps_mbuf_ops> { mbufCell.ops(alps_mbuf_ops.self) }

    /// Frees all packets of a list.
    @inline(__always)
    public func free(_ list: UnsafeMutablePointer<alps_mbuf>?) {
        if let list { mbuf.pointee.free(mbufCell.instance, list) }
    }

    /// The same. Without it, an mbuf that is not optional would be taken for zone memory, by `free<T>`.
    @inline(__always)
    public func free(_ list: UnsafeMutablePointer<alps_mbuf>) {
        mbuf.pointee.free(mbufCell.instance, list)
    }

    // MARK: Log

    /// Writes a fixed message; `level` is ALPS_LOG_*.
    public func log(_ level: UInt32, _ text: StaticString) {
        let ops = logCell.ops(alps_log_ops.self)
        guard level <= ops.pointee.level else { return }
        ops.pointee.write(
            logCell.instance, level, UnsafeRawPointer(text.utf8Start).assumingMemoryBound(to: CChar.self),
            text.utf8CodeUnitCount)
    }
}

extension HostServices {
    // MARK: Giving back what a failed `create` has got so far

    /// Gives one `T` back, if there is one.
    public func freeIfPresent<T>(_ pointer: UnsafeMutablePointer<T>?) {
        if let pointer { free(pointer) }
    }

    /// Gives an array back, if there is one.
    public func freeArrayIfPresent<T>(_ pointer: UnsafeMutablePointer<T>?, _ count: Int) {
        if let pointer { freeArray(pointer, count) }
    }
}

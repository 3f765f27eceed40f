internal import Glibc
internal import PluginAPI

/// One event as it was emitted.
package struct TraceEvent {
    /// ns on the kernel's clock.
    package var time: UInt64
    /// Counts events; a gap says how many were lost.
    package var sequence: UInt64
    /// Variant of the instance.
    package var instance: String
    package var name: String
    /// Names and values, in order.
    package var fields: [(name: String, value: String)]
}

/// Typed events of plugins, kept in a ring for tools: the newest push the oldest out.
package final class TraceRing {
    private struct Definition {
        let instance: String
        let name: String
        let fields: [(name: String, type: Substring)]
    }

    /// In front of the fields of each event.
    private struct Record {
        var time: UInt64
        var sequence: UInt64
        var event: UInt32
        var length: UInt32
    }

    package static let longestEvent = 256
    private static let mostDefinitions = 4096
    private static let slotSize = MemoryLayout<Record>.size + longestEvent

    private let capacity: Int
    private var slots: UnsafeMutableRawPointer?
    private var definitions: [Definition] = []
    private var clock: KernelClock!
    private let enabledWord: UnsafeMutablePointer<UInt32>
    private var opsTable: UnsafeMutablePointer<alps_trace_ops>?

    /// Sequence number of the next event.
    package private(set) var nextSequence: UInt64 = 0
    /// Called for each event in addition to keeping it.
    package var onEvent: ((TraceEvent) -> Void)?

    /// Keeps the last `capacity` events. Takes memory only when somebody listens.
    package init(capacity: Int = 8192) {
        self.capacity = capacity
        enabledWord = .allocate(capacity: 1)
        enabledWord.initialize(to: 0)
    }

    deinit {
        slots?.deallocate()
        enabledWord.deallocate()
        opsTable?.deallocate()
    }

    /// Publishes "alps.trace/1".
    package func attach(_ kernel: Kernel) {
        clock = kernel.clock
        let table = UnsafeMutablePointer<alps_trace_ops>.allocate(capacity: 1)
        table.initialize(
            to: alps_trace_ops(
                size: UInt32(MemoryLayout<alps_trace_ops>.size), reserved: 0, define: traceDefine,
                enabled: traceEnabled, emit: traceEmit))
        opsTable = table
        kernel.plugins.publish("alps.trace/1", ops: UnsafeRawPointer(table), scope: .perInstance)
    }

    /// Whether somebody listens.
    package var isEnabled: Bool { enabledWord.pointee != 0 }

    /// One more listener.
    package func enable() {
        if slots == nil { slots = .allocate(byteCount: capacity * Self.slotSize, alignment: 16) }
        enabledWord.pointee += 1
    }

    /// One listener less.
    package func disable() {
        if enabledWord.pointee > 0 { enabledWord.pointee -= 1 }
    }

    /// Events from `sequence` on that are still kept.
    package func events(from sequence: UInt64 = 0) -> [TraceEvent] {
        guard slots != nil else { return [] }
        let oldest = nextSequence > UInt64(capacity) ? nextSequence - UInt64(capacity) : 0
        let first = max(oldest, sequence)
        guard first < nextSequence else { return [] }
        return (first..<nextSequence).compactMap(event)
    }

    fileprivate func define(_ instance: PluginInstance, _ name: String, _ fields: String) -> UInt32 {
        if let known = definitions.firstIndex(where: {
            $0.instance == instance.variant && $0.name == name
                && $0.fields.map { "\($0.name):\($0.type)" }.joined(separator: ",") == fields
        }) {
            return UInt32(known + 1)
        }
        guard definitions.count < Self.mostDefinitions else { return 0 }
        let parsed = fields.split(separator: ",").map { field -> (name: String, type: Substring) in
            let parts = field.split(separator: ":", maxSplits: 1)
            return (String(parts[0]), parts.count > 1 ? parts[1] : "u32")
        }
        definitions.append(Definition(instance: instance.variant, name: name, fields: parsed))
        return UInt32(definitions.count)
    }

    fileprivate var enabledPointer: UnsafePointer<UInt32> { UnsafePointer(enabledWord) }

    fileprivate func emit(_ event: UInt32, _ fields: UnsafeRawPointer, _ length: UInt32) {
        guard isEnabled, let slots, event > 0, event <= definitions.count else { return }
        let length = min(length, UInt32(Self.longestEvent))
        let slot = slots + Int(nextSequence % UInt64(capacity)) * Self.slotSize
        slot.storeBytes(
            of: Record(time: clock.now, sequence: nextSequence, event: event, length: length), as: Record.self)
        memcpy(slot + MemoryLayout<Record>.size, fields, Int(length))
        nextSequence &+= 1
        if let onEvent, let event = self.event(nextSequence - 1) { onEvent(event) }
    }

    private func event(_ sequence: UInt64) -> TraceEvent? {
        guard let slots else { return nil }
        let slot = slots + Int(sequence % UInt64(capacity)) * Self.slotSize
        let record = slot.load(as: Record.self)
        guard record.sequence == sequence else { return nil }
        let definition = definitions[Int(record.event) - 1]
        let bytes = UnsafeRawBufferPointer(start: slot + MemoryLayout<Record>.size, count: Int(record.length))
        var values: [(name: String, value: String)] = []
        var offset = 0
        for field in definition.fields {
            guard let (text, size) = Self.read(bytes, offset, field.type) else { break }
            values.append((field.name, text))
            offset += size
        }
        return TraceEvent(
            time: record.time, sequence: sequence, instance: definition.instance, name: definition.name,
            fields: values)
    }

    /// A field of type u8 ... u64, i8 ... i64 as a number, bN as N bytes in hexadecimal.
    private static func read(_ bytes: UnsafeRawBufferPointer, _ offset: Int, _ type: Substring) -> (String, Int)? {
        guard let bits = Int(type.dropFirst()), bits > 0 else { return nil }
        let size = type.first == "b" ? bits : bits / 8
        guard offset + size <= bytes.count else { return nil }
        let part = UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + size])
        if type.first == "b" || size > 8 {
            let digits = Array("0123456789abcdef")
            return (String(part.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }), size)
        }
        var value: UInt64 = 0
        for (index, byte) in part.enumerated() { value |= UInt64(byte) << UInt64(8 * index) }
        guard type.first == "i" else { return (String(value), size) }
        let shift = UInt64(64 - 8 * size)
        return (String(Int64(bitPattern: value << shift) >> Int64(shift)), size)
    }
}

// MARK: "alps.trace/1", `self` being the plugin instance

private func traceDefine(
    _ context: UnsafeMutableRawPointer, _ name: UnsafePointer<CChar>, _ fields: UnsafePointer<CChar>
) -> UInt32 {
    let instance = Unmanaged<PluginInstance>.fromOpaque(context).takeUnretainedValue()
    return instance.kernel.trace.define(instance, String(cString: name), String(cString: fields))
}

private func traceEnabled(_ context: UnsafeMutableRawPointer) -> UnsafePointer<UInt32> {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.kernel.trace.enabledPointer }
}

private func traceEmit(
    _ context: UnsafeMutableRawPointer, _ event: UInt32, _ fields: UnsafeRawPointer, _ length: UInt32
) {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
        $0.kernel.trace.emit(event, fields, length)
    }
}

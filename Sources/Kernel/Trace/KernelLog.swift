internal import Glibc
internal import Logging
internal import PluginAPI

/// Messages for people, of the host and of the plugins, behind swift-log. A message that repeats is counted, not
/// repeated.
package final class KernelLog {
    /// The order of ALPS_LOG_*.
    package enum Level: UInt32, Comparable {
        case error = 0
        case warning, notice, debug

        package static func < (a: Level, b: Level) -> Bool { a.rawValue < b.rawValue }

        fileprivate var logging: Logger.Level {
            switch self {
            case .error: .error
            case .warning: .warning
            case .notice: .notice
            case .debug: .debug
            }
        }
    }

    /// One message as it was written.
    package struct Message {
        package var time: UInt64
        package var level: Level
        /// Plugin instance, nil for the host.
        package var instance: String?
        package var text: String
    }

    private struct Repeats {
        var windowEnd: UInt64
        var written: Int
        var dropped: Int
    }

    /// Within this time ...
    private static let window: UInt64 = 5_000_000_000
    /// ... one message is written so often.
    private static let burst = 10
    /// Different messages whose rates are known at a time.
    private static let rateEntries = 512
    private static let recentMessages = 256

    private var logger: Logger
    private var clock: KernelClock?
    private var rates: [String: Repeats] = [:]
    private let table: UnsafeMutablePointer<alps_log_ops>

    /// The last messages, oldest first.
    package private(set) var recent: [Message] = []
    /// Gets every message that is written, instead of swift-log: for tests and labs.
    package var sink: ((Message) -> Void)?

    package init(name: String) {
        logger = Logger(label: "alps.\(name)")
        logger.logLevel = .trace
        table = .allocate(capacity: 1)
        table.initialize(
            to: alps_log_ops(
                size: UInt32(MemoryLayout<alps_log_ops>.size), level: Level.notice.rawValue, write: logWrite))
    }

    deinit { table.deallocate() }

    /// Publishes "alps.log/1".
    package func attach(_ kernel: Kernel) {
        clock = kernel.clock
        kernel.plugins.publish("alps.log/1", ops: UnsafeRawPointer(table), scope: .perInstance)
    }

    /// Messages above this level are not wanted.
    package var level: Level {
        get { Level(rawValue: table.pointee.level) ?? .notice }
        set { table.pointee.level = newValue.rawValue }
    }

    package func error(_ text: @autoclosure () -> String) { write(.error, nil, text) }
    package func warning(_ text: @autoclosure () -> String) { write(.warning, nil, text) }
    package func notice(_ text: @autoclosure () -> String) { write(.notice, nil, text) }
    package func debug(_ text: @autoclosure () -> String) { write(.debug, nil, text) }

    /// The same as below with one of ALPS_LOG_*.
    package func write(_ level: UInt32, _ instance: String?, _ text: () -> String) {
        write(Level(rawValue: level) ?? .debug, instance, text)
    }

    /// A message of a plugin instance, or of the host if `instance` is nil.
    package func write(_ level: Level, _ instance: String?, _ text: () -> String) {
        guard level <= self.level else { return }
        let text = text()
        let now = clock?.now ?? KernelClock.start
        let key = "\(instance ?? "")\u{1f}\(text)"
        if var repeats = rates[key], now < repeats.windowEnd {
            if repeats.written >= Self.burst {
                repeats.dropped += 1
                rates[key] = repeats
                return
            }
            repeats.written += 1
            rates[key] = repeats
        } else {
            if let old = rates[key], old.dropped > 0 {
                emit(Message(time: now, level: level, instance: instance, text: "(\(old.dropped) more) \(text)"))
                rates[key] = Repeats(windowEnd: now &+ Self.window, written: 1, dropped: 0)
                return
            }
            if rates.count >= Self.rateEntries { rates = rates.filter { now < $0.value.windowEnd } }
            if rates.count >= Self.rateEntries { rates.removeAll() }
            rates[key] = Repeats(windowEnd: now &+ Self.window, written: 1, dropped: 0)
        }
        emit(Message(time: now, level: level, instance: instance, text: text))
    }

    private func emit(_ message: Message) {
        if recent.count >= Self.recentMessages { recent.removeFirst(Self.recentMessages / 4) }
        recent.append(message)
        if let sink {
            sink(message)
            return
        }
        let prefix = message.instance.map { "\($0): " } ?? ""
        logger.log(level: message.level.logging, "\(prefix)\(message.text)")
    }
}

/// "alps.log/1", `self` being the plugin instance.
private func logWrite(
    _ context: UnsafeMutableRawPointer, _ level: UInt32, _ text: UnsafePointer<CChar>, _ length: Int
) {
    let instance = Unmanaged<PluginInstance>.fromOpaque(context).takeUnretainedValue()
    instance.kernel.log.write(level, instance.variant) {
        let bytes = UnsafeRawBufferPointer(start: text, count: min(length, 1024))
        return String(decoding: bytes, as: UTF8.self)
    }
}

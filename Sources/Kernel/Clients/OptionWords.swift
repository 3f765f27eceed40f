import ClientAPI
import CLinux
import PluginAPI

/// The option words of one listener (client.h), in memory that those who accept from it map, too.
final class OptionWords {
    /// Connections that nothing has been taken from yet; those beyond have no word.
    static let count: UInt32 = 2048
    private let file: SealedFile
    private let words: UnsafeMutablePointer<alps_option_word>
    private var free = (0..<UInt16(count)).map { UInt16(count) - 1 - $0 }

    /// Nil if the system has no memory file or address range to give.
    init?() {
        let bytes = Int(Self.count) * MemoryLayout<alps_option_word>.stride
        guard let file = SealedFile(name: "alps-option-words", bytes: bytes) else { return nil }
        self.file = file
        words = file.base.assumingMemoryBound(to: alps_option_word.self)
    }

    /// The file, for a client.
    var descriptor: Int32 { file.descriptor }

    /// A word for a new connection. Nil if all are in use.
    func open(_ handle: SocketHandle) -> UInt16? {
        guard let index = free.popLast() else { return nil }
        _ = alps_exchange_handle(words + Int(index), handle.rawValue)
        return index
    }

    /// Returns what the word has said; it is as when it was opened.
    func take(_ index: UInt16, _ handle: SocketHandle) -> UInt64 { alps_exchange_handle(words + Int(index), handle.rawValue) }

    /// From now on only messages count. Returns what the word has said.
    @discardableResult
    func close(_ index: UInt16) -> UInt64 {
        free.append(index)
        return alps_exchange_handle(words + Int(index), 0)
    }
}

extension InBandListenerChannel {
    /// ALPS_OP_OPTION_WORDS. Connections that are handed out from now on have words. Nil without memory.
    func openOptionWords() -> OptionWords? {
        if optionWords == nil { optionWords = OptionWords() }
        return optionWords
    }
}

extension StreamChannel {
    /// Before a message about the socket is heard.
    func lookAtOptionWord(_ socket: Socket) {
        guard let (words, index) = optionWord else { return }
        heed(words.take(index, socket.handle), socket)
    }

    /// Before the first bytes are taken from the pair, and before a message says what the option is.
    @inline(never)
    func closeOptionWord(_ socket: Socket) {
        guard let (words, index) = optionWord else { return }
        optionWord = nil
        heed(words.close(index), socket)
    }

    private func heed(_ said: UInt64, _ socket: Socket) {
        guard said == socket.handle.rawValue | ALPS_OPTION_NODELAY else { return }
        _ = socket.setOption(level: Self.tcpLevel, name: Self.noDelayName, [1, 0, 0, 0])
    }

    static func isNoDelay(level: Int32, name: Int32) -> Bool { level == tcpLevel && name == noDelayName }

    // As programs know it (tcp(7)).
    private static let tcpLevel: Int32 = 6
    private static let noDelayName: Int32 = 1
}

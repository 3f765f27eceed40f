import ClientAPI
import CLinux
import PluginAPI

/// The cork words of one session (client.h), in memory that its process maps, too.
final class CorkWords {
    static let count: UInt32 = 4096
    private let file: SealedFile
    private let words: UnsafeMutablePointer<alps_cork_word>
    /// Who follows which word.
    private(set) var followers: [UInt32: SocketHandle] = [:]

    /// Nil if the system has no memory file or address range to give.
    init?() {
        let bytes = Int(Self.count) * MemoryLayout<alps_cork_word>.stride
        guard let file = SealedFile(name: "alps-cork-words", bytes: bytes) else { return nil }
        self.file = file
        words = file.base.assumingMemoryBound(to: alps_cork_word.self)
    }

    /// The file, for the client.
    var descriptor: Int32 { file.descriptor }

    subscript(index: UInt32) -> UnsafeMutablePointer<alps_cork_word> { words + Int(index) }

    /// Returns who followed the word before.
    @discardableResult
    func enter(_ index: UInt32, _ follower: SocketHandle?) -> SocketHandle? {
        let before = followers[index]
        followers[index] = follower
        return before
    }
}

/// What a stream knows of the word that it follows. An object, since most follow none.
final class CorkFollowing {
    let table: CorkWords
    let word: UnsafeMutablePointer<alps_cork_word>
    let index: UInt32
    /// `wanted`, as far as it has been done.
    var seen: UInt32 = 0
    var isApplied = false
    /// What is held back goes with what is being taken.
    var isReleased = false

    init(_ table: CorkWords, _ index: UInt32) {
        self.table = table
        self.index = index
        word = table[index]
    }
}

extension StreamChannel {
    /// ALPS_OP_CORK_WORD. What the option was before does not matter: the word says it anew. Returns 0 or an errno.
    func followCork(_ socket: Socket, _ table: CorkWords, _ index: UInt32) -> Int32 {
        guard index < CorkWords.count else { return EINVAL }
        leaveCork(socket)
        if let before = table.enter(index, socket.handle), let other = kernel.sockets.find(before)?.channel as? StreamChannel {
            // Its client has closed it. What it says there now is about somebody else.
            if other.cork?.table === table, other.cork?.index == index { other.cork = nil }
        }
        cork = CorkFollowing(table, index)
        let wanted = withUnsafeMutablePointer(to: &table[index].pointee.wanted) { alps_load_acquire($0) }
        cork?.seen = wanted
        let status = hold(socket, wanted & 1 != 0)
        if status != 0 { leaveCork(socket) }
        return status
    }

    /// What the client wants now, to be asked before it is found out how much has been written.
    var wantedCork: UInt32 {
        guard let word = cork?.word else { return 0 }
        return withUnsafeMutablePointer(to: &word.pointee.wanted) { alps_load_acquire($0) }
    }

    /// What goes may be more than was found: it was released after `wanted` had been asked, and nothing is held back again.
    func releasesMore(since wanted: UInt32) -> Bool {
        guard let cork, cork.isReleased, wanted | 1 != cork.seen | 1 else { return false }
        return wantedCork == cork.seen
    }

    /// How much has been written, found by `count`, and a look at the word.
    @inline(__always)
    func countWithCork<Count>(_ socket: Socket, _ count: () -> Count) -> Count {
        guard cork != nil else { return count() }
        let wanted = wantedCork
        let found = count()
        lookAtCork(socket)
        guard releasesMore(since: wanted) else { return found }
        let more = count()
        return releasesMore(since: wanted) ? more : found
    }

    /// When it is known how much has been written, before that is taken.
    @inline(never)
    func lookAtCork(_ socket: Socket) {
        guard let following = cork else { return }
        // Once more for what changed while it was being done; after that the client has seen `applied`, and rings.
        for _ in 0..<2 where !following.isReleased {
            let wanted = withUnsafeMutablePointer(to: &following.word.pointee.wanted) { alps_load_acquire($0) }
            guard wanted != following.seen else { return }
            guard wanted >> 1 == following.seen >> 1 else {
                // What is in the pair may go. If bit 0 is set again, that counts from the next look on.
                following.seen = wanted & ~1
                following.isReleased = following.isApplied
                return
            }
            following.seen = wanted
            hold(socket, wanted & 1 != 0)
        }
    }

    /// When what was written has been taken: one segment has it, and what was held back before it.
    func releaseCork(_ socket: Socket) {
        guard cork?.isReleased == true else { return }
        cork?.isReleased = false
        hold(socket, false)
    }

    @discardableResult
    private func hold(_ socket: Socket, _ isHeld: Bool) -> Int32 {
        guard let word = cork?.word else { return 0 }
        cork?.isApplied = isHeld
        withUnsafeMutablePointer(to: &word.pointee.applied) { alps_store_release($0, isHeld ? 1 : 0) }
        alps_full_fence()
        return socket.setOption(level: Self.corkLevel, name: Self.corkName, [isHeld ? 1 : 0, 0, 0, 0])
    }

    /// The option as the client has it now, for one who asks.
    func settleCork(_ socket: Socket) {
        for _ in 0..<2 {
            lookAtCork(socket)
            releaseCork(socket)
        }
    }

    /// From now on messages alone say what the option is.
    func leaveCork(_ socket: Socket) {
        guard let following = cork else { return }
        withUnsafeMutablePointer(to: &following.word.pointee.applied) { alps_store_release($0, ALPS_CORK_LEFT) }
        alps_full_fence()
        let wanted = withUnsafeMutablePointer(to: &following.word.pointee.wanted) { alps_load_acquire($0) }
        let isHeld = wanted & 1 != 0
        cork = nil
        following.table.enter(following.index, nil)
        if isHeld != following.isApplied {
            _ = socket.setOption(level: Self.corkLevel, name: Self.corkName, [isHeld ? 1 : 0, 0, 0, 0])
        }
    }

    static func isCork(level: Int32, name: Int32) -> Bool { level == corkLevel && name == corkName }

    // As programs know it (tcp(7)).
    private static let corkLevel: Int32 = 6
    private static let corkName: Int32 = 3
}

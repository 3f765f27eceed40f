import PluginAPI
import PluginKit

typealias SenderPointer = UnsafeMutablePointer<Sender>

/// What a connection must know of data in flight. Most connections have nothing in flight most of the time, so it is
/// memory of its own: taken when something is sent, given back when all of it has been acknowledged, unless it holds what
/// the future needs.
///
/// All connections at rest share one of the instance's. It is never written: see `Connection.sendMap`.
struct Sender: FreeListed {
    var sendMap: SendMap
    var recovery: LossRecovery
    /// The one for all at rest.
    var isShared: Bool
    /// In `Instance.freeSenders`.
    var next: SenderPointer?

    static var resting: Sender {
        Sender(
            sendMap: SendMap.empty(random: 1), recovery: LossRecovery.none(at: SequenceNumber(0)), isShared: true,
            next: nil)
    }
}

extension Connection {
    // Changes while at rest go where nobody looks: nothing is in flight that they could be about.

    @inline(__always)
    private var writableSender: SenderPointer { sender.pointee.isShared ? instance.ignoredSender : sender }

    var sendMap: SendMap {
        @inline(__always) _read { yield sender.pointee.sendMap }
        @inline(__always) _modify { yield &writableSender.pointee.sendMap }
    }

    var recovery: LossRecovery {
        @inline(__always) _read { yield sender.pointee.recovery }
        @inline(__always) _modify { yield &writableSender.pointee.recovery }
    }
}

extension UnsafeMutablePointer where Pointee == Connection {
    /// The connection has a sender of its own from here on. False: no memory.
    @inline(__always)
    func wakeSender() -> Bool { pointee.sender.pointee.isShared ? makeSender() : true }

    @inline(never)
    private func makeSender() -> Bool {
        guard let sender = instance.allocateSender() else { return false }
        // The first number of data, and of what a fast open sends before its SYN is acknowledged.
        let first = has(.synAcked) ? pointee.sndUna : pointee.iss + 1
        sender.initialize(
            to: Sender(
                sendMap: SendMap.empty(random: pointee.iss.value | 1), recovery: LossRecovery.none(at: first),
                isShared: false, next: nil))
        pointee.sender = sender
        return true
    }

    /// Everything may have been acknowledged. What stays is what has been learned about how the path reorders, an undo
    /// that a late report of a duplicate can still cause, and what is not over.
    @inline(__always)
    func restSenderIfDone() {
        let sender = pointee.sender
        guard sender.pointee.sendMap.first == nil, !sender.pointee.isShared, pointee.sndUna == pointee.sndMax else { return }
        let recovery = sender.pointee.recovery
        guard recovery.state == .open, !recovery.isProbing, !recovery.hasReordering, recovery.windowGrowth == 0,
            !recovery.canUndo
        else { return }
        restSender()
    }

    /// Nothing is in flight any more.
    func restSender() {
        let sender = pointee.sender
        guard !sender.pointee.isShared else { return }
        freeRanges()
        pointee.sender = instance.restingSender
        instance.free(sender)
    }
}

extension UnsafeMutablePointer where Pointee == Instance {
    @inline(__always)
    var restingSender: SenderPointer { withUnsafeMutablePointer(to: &pointee.restingMemory) { $0 } }

    @inline(__always)
    fileprivate var ignoredSender: SenderPointer { withUnsafeMutablePointer(to: &pointee.ignoredMemory) { $0 } }

    /// Not initialized.
    @inline(__always)
    fileprivate func allocateSender() -> SenderPointer? { pointee.freeSenders.take(services) }

    @inline(__always)
    fileprivate func free(_ sender: SenderPointer) { pointee.freeSenders.put(sender, most: 64, services) }
}

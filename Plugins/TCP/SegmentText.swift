import PluginAPI
import PluginKit

// RFC 9293, 3.10.7.4, sixth to eighth: urgent pointer, segment text, FIN.

extension UnsafeMutablePointer where Pointee == Connection {
    /// Whether the peer may still send.
    private var acceptsText: Bool {
        switch pointee.state {
        case .established, .finWait1, .finWait2: return true
        case .synReceived: return has(.fastOpened)
        default: return false
        }
    }

    // MARK: Sixth: URG

    /// RFC 6093: the pointer is one behind the urgent byte, and there is one urgent byte.
    @inline(never)
    func processUrgent(_ segment: inout Segment) {
        guard acceptsText, segment.urgentPointer > 0 else { return }
        let mark = segment.sequence + UInt32(segment.urgentPointer)
        guard mark > pointee.rcvNxt, mark > pointee.rcvUp || pointee.rcvUp <= pointee.rcvNxt else { return }
        instance.count(.receivedUrgent)
        pointee.rcvUp = mark
        set(.urgentMissing)
        if !takeUrgentByte(segment) {
            instance.sockets.pointee.has_oob(instance.socketLayer, socket, receivePosition(mark), -1)
        }
    }

    /// Tells the socket layer if this segment carries the urgent byte.
    private func takeUrgentByte(_ segment: Segment) -> Bool {
        let place = (pointee.rcvUp - 1) - segment.sequence
        guard place >= 0, place < Int(segment.length) else { return false }
        clear(.urgentMissing)
        var byte: UInt8 = 0
        let cell = instance.services.mbufCell
        cell.ops(alps_mbuf_ops.self).pointee.copy_out(
            cell.instance, segment.packet, segment.offset &+ UInt32(truncatingIfNeeded: place), 1, &byte)
        instance.sockets.pointee.has_oob(instance.socketLayer, socket, receivePosition(pointee.rcvUp), Int32(byte))
        return true
    }

    /// Stream position of a sequence number.
    @inline(__always)
    func receivePosition(_ number: SequenceNumber) -> UInt64 {
        socket.pointee.rcv.tail &+ UInt64(bitPattern: Int64(number - pointee.rcvNxt))
    }

    // MARK: Seventh and eighth: text and FIN

    /// False: the connection is gone.
    func processText(_ segment: inout Segment) -> Bool {
        let instance = instance
        guard acceptsText else {
            // After the peer's FIN there is nothing: this can only be an old duplicate.
            return true
        }
        if segment.length > 0 {
            pointee.totals.dataSegmentsIn &+= segment.count
            if has(.orphan) {
                // RFC 9293, 3.6.1: nobody is left to read it, and the peer should know.
                instance.count(.receivedAfterClose)
                if let network = instance.network { instance.reset(&segment, network) }
                close(ALPS_ECONNRESET)
                return false
            }
            let now = instance.now
            pointee.lastDataReceived = now
            if has(.urgentMissing) { _ = takeUrgentByte(segment) }
        }
        var isComplete = true
        var mayWait = !has(.ackNow) && !has(.finArrived) && delaysFinAck
        if segment.sequence == pointee.rcvNxt, pointee.reassembly.count == 0 {
            isComplete = inOrder(&segment)
        } else {
            isComplete = outOfOrder(&segment)
            mayWait = false
        }
        if segment.has(Flag.fin), isComplete, !has(.finArrived) {
            set(.finArrived)
            pointee.finSequence = segment.end
        }
        if has(.finArrived), pointee.rcvNxt == pointee.finSequence { return processFin(mayWait) }
        return true
    }

    /// In a conversation our own FIN goes with the acknowledgment of the peer's, as answers did with those of its data.
    private var delaysFinAck: Bool {
        let choice = instance.setting(.delaysFinAck)
        return choice == 2 ? has(.interactive) : choice == 1
    }

    /// Next in line, and nothing waits behind it. False: not all of it could be kept.
    @inline(__always)
    private func inOrder(_ segment: inout Segment) -> Bool {
        guard segment.length > 0 else { return true }
        let instance = instance
        let sockets = instance.sockets
        let layer = instance.socketLayer
        let position = socket.pointee.rcv.tail
        let placed = sockets.pointee.receive_place(
            layer, socket, position, segment.packet, segment.offset, segment.length)
        if placed > 0 {
            instance.count(.receivedSegments, segment.count)
            instance.count(.receivedBytes, placed)
            pointee.totals.bytesReceived &+= UInt64(placed)
            pointee.rcvNxt += placed
            if pointee.rcvUp < pointee.rcvNxt { pointee.rcvUp = pointee.rcvNxt }
            sockets.pointee.receive_advance(layer, socket, position &+ UInt64(placed))
            tuneReceiveBuffer()
            scheduleAck(placed, segment)
        }
        guard placed == segment.length else {
            set(.ackNow)
            return false
        }
        return true
    }

    /// Behind a hole, or closing one. RFC 5681, section 4.2: acknowledged at once in either case.
    @inline(never)
    private func outOfOrder(_ segment: inout Segment) -> Bool {
        let instance = instance
        let sockets = instance.sockets
        let layer = instance.socketLayer
        var isComplete = true
        if segment.length > 0 {
            let fits = !pointee.reassembly.needsRange(segment.sequence, segment.end) || reserveRange()
            // What closes the first hole is always taken.
            let isNext = segment.sequence == pointee.rcvNxt
            guard fits || isNext else {
                instance.count(.reassemblyFull)
                sendDuplicateAck()
                return false
            }
            noteOverlap(segment)
            let placed = sockets.pointee.receive_place(
                layer, socket, receivePosition(segment.sequence), segment.packet, segment.offset, segment.length)
            isComplete = placed == segment.length
            if placed > 0 {
                let end = segment.sequence + placed
                if isNext {
                    advance(to: pointee.reassembly.take(end))
                    instance.count(.receivedSegments, segment.count)
                } else {
                    pointee.reassembly.add(segment.sequence, end)
                    pointee.reassembly.note(segment.sequence)
                    instance.count(.receivedOutOfOrder, segment.count)
                    pointee.totals.outOfOrder &+= segment.count
                }
                instance.count(.receivedBytes, placed)
                pointee.totals.bytesReceived &+= UInt64(placed)
                noteSegmentSize(segment)
            }
        }
        if segment.sequence == pointee.rcvNxt || pointee.rcvNxt > segment.sequence {
            // The hole is closed, or smaller.
            set(.ackNow)
        } else {
            // The sender counts these: one for each segment, not one for the batch.
            sendDuplicateAck()
        }
        return isComplete
    }

    private func advance(to reach: SequenceNumber) {
        let count = UInt32(truncatingIfNeeded: reach - pointee.rcvNxt)
        let position = socket.pointee.rcv.tail &+ UInt64(count)
        pointee.rcvNxt = reach
        if pointee.rcvUp < pointee.rcvNxt { pointee.rcvUp = pointee.rcvNxt }
        instance.sockets.pointee.receive_advance(instance.socketLayer, socket, position)
        tuneReceiveBuffer()
        if pointee.reassembly.count == 0 { freeReassembly() }
    }

    @inline(__always)
    private func noteSegmentSize(_ segment: Segment) {
        if segment.size > pointee.rcvMSS { pointee.rcvMSS = min(segment.size, max(pointee.advertisedMSS, 536)) }
    }

    // MARK: When to acknowledge (RFC 9293, 3.8.6.3; RFC 5681, 4.2)

    /// At once for every second full segment, while the peer is starting, or if the application asked; else soon.
    @inline(__always)
    private func scheduleAck(_ bytes: UInt32, _ segment: Segment) {
        let instance = instance
        noteSegmentSize(segment)
        pointee.unackedBytes &+= bytes
        if has(.ackNow) { return }
        let delay = instance.nanoseconds(.delayedAckTime)
        if pointee.unackedBytes >= 2 &* pointee.rcvMSS || delay == 0 || has(.quickAck) {
            set(.ackNow)
        } else if pointee.quickAcks > 0, !has(.interactive) {
            set(.ackNow)
        } else {
            restartReceiveTuning()
            set(.ackDelayed)
            armDelayedAck(delay)
        }
    }

    // MARK: Eighth: FIN

    /// Everything before the peer's FIN is there. False: the connection is gone (TIME-WAIT). `mayWait`: nothing has made
    /// an acknowledgment due at once but that the stream is young.
    @inline(never)
    private func processFin(_ mayWait: Bool) -> Bool {
        let instance = instance
        clear(.finArrived)
        pointee.rcvNxt += 1
        let delay = instance.nanoseconds(.delayedAckTime)
        let hasData = pointee.totals.dataSegmentsIn > (pointee.isSynDataTaken ? 1 : 0)
        if mayWait, hasData, pointee.state == .established, delay > 0, !has(.quickAck),
            pointee.unackedBytes < pointee.rcvMSS
        {
            clear(.ackNow)
            set(.ackDelayed)
            armDelayedAck(delay)
        } else {
            set(.ackNow)
        }
        freeReassembly()
        instance.sockets.pointee.cant_receive_more(instance.socketLayer, socket)
        switch pointee.state {
        case .synReceived, .established:
            enter(.closeWait)
            return true
        case .finWait1:
            // Had our FIN been acknowledged by this segment, the state would be FIN-WAIT-2 already.
            enter(.closing)
            return true
        case .finWait2:
            enterTimeWait()
            return false
        default:
            return true
        }
    }
}

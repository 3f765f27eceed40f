import PluginAPI
import PluginKit

// Building segments and handing them to the network.

extension UnsafeMutablePointer where Pointee == Connection {
    /// A segment with `length` bytes of the send stream from `sequence` on; cut later if it is more than one segment,
    /// unless `isWhole`.
    func makeData(
        _ network: Network, _ sequence: SequenceNumber, _ length: UInt32, fin: Bool, isLast: Bool, isWhole: Bool = false
    ) -> Mbuf? {
        let instance = instance
        var flags = Flag.ack
        if fin { flags |= Flag.fin }
        if isLast, length > 0 { flags |= Flag.psh }
        guard let packet = makeSegment(network, sequence, length, flags, keepsWindow: false) else { return nil }
        let mss = isWhole ? length : pointee.mss
        let segments = length > mss ? (length &+ mss &- 1) / mss : 1
        if length > mss {
            var type = netpcb.pointee.family == UInt16(ALPS_AF_INET6) ? ALPS_GSO_TCP6 : ALPS_GSO_TCP4
            // CWR of RFC 3168 goes with one segment alone; here it is part of a number.
            if pointee.accurate.isOn, packet.pointee.data[Header.flags] & Flag.cwr != 0 { type |= ALPS_GSO_ACE }
            packet.pointee.pkt.gso_type = UInt8(type)
            packet.pointee.pkt.gso_size = UInt16(truncatingIfNeeded: mss)
        }
        packet.pointee.pkt.gso_segments = UInt16(truncatingIfNeeded: segments)
        if length > 0 {
            guard
                let data = instance.sockets.pointee.send_data(
                    instance.socketLayer, socket, sendPosition(sequence), length)
            else {
                instance.free(packet)
                return nil
            }
            packet.pointee.next = data
            packet.pointee.pkt.length &+= length
            packet.pointee.pkt.truesize &+= length
            pointee.totals.dataSegmentsOut &+= segments
            pointee.totals.bytesSent &+= UInt64(length)
            if sequence < pointee.sndMax {
                instance.count(.sentRepeated, segments)
                instance.count(.sentRepeatedBytes, length)
                pointee.totals.retransmits &+= segments
                pointee.totals.bytesRetransmitted &+= UInt64(length)
            } else {
                instance.count(.sentSegments, segments)
                instance.count(.sentBytes, length)
            }
        } else {
            instance.count(.sentControl)
        }
        pointee.totals.segmentsOut &+= segments
        instance.count(.sent, segments)
        return packet
    }

    /// The number of a segment without data: SND.NXT, unless the peer has shrunk its window below that. It would then
    /// drop the segment unread, and the acknowledgment in it.
    @inline(__always)
    var acceptableSequence: SequenceNumber {
        let edge = pointee.sndUna + pointee.sndWnd
        // What the scale has rounded off is no shrinking.
        return pointee.sndNxt - edge < 1 << Int(pointee.sndScale) ? pointee.sndNxt : edge
    }

    /// An empty acknowledgment.
    func makeAck(_ network: Network, keepsWindow: Bool) -> Mbuf? {
        guard let packet = makeSegment(network, acceptableSequence, 0, Flag.ack, keepsWindow: keepsWindow) else {
            return nil
        }
        pointee.totals.segmentsOut &+= 1
        instance.count(.sent)
        instance.count(.sentAcks)
        return packet
    }

    /// The header mbuf of a segment, checksum started, acknowledgment state noted. The payload is the caller's to add.
    @inline(__always)
    func makeSegment(
        _ network: Network, _ sequence: SequenceNumber, _ length: UInt32, _ flags: UInt8, keepsWindow: Bool
    ) -> Mbuf? {
        let instance = instance
        let netpcb = netpcb
        let cell = instance.services.mbufCell
        guard
            let packet = cell.ops(alps_mbuf_ops.self).pointee.packet(
                cell.instance, UInt32(ALPS_MBUF_HEADROOM) &+ netpcb.pointee.header_length)
        else {
            instance.count(.noMemory)
            return nil
        }
        let header = packet.pointee.data
        var headerLength = headerLength
        let reportsSack =
            length == 0 && has(.sackPermitted) && (pointee.reassembly.count > 0 || pointee.reassembly.hasDuplicate)
        if pointee.accurate.isOn {
            headerLength &+= writeCounters(
                header + Int(headerLength), after: headerLength &- Header.length,
                sackRoom: reportsSack ? optionRoom(network, headerLength) : nil, isData: length > 0)
        } else if reportsSack {
            headerLength &+= writeSack(header + Int(headerLength), room: optionRoom(network, headerLength))
        }
        var flags = flags
        var urgent: UInt16 = 0
        if pointee.sndUp > sequence, pointee.sndUp > pointee.sndUna {
            flags |= Flag.urg
            urgent = UInt16(truncatingIfNeeded: min(pointee.sndUp - sequence, 65535))
            instance.count(.sentUrgent)
        }
        var ace = ACE.none
        if has(.ecn) {
            flags = markECN(packet, flags, sequence, length)
        } else if pointee.accurate.isOn {
            ace = markAccurately(packet, flags, sequence, length, hasSack: reportsSack)
        }
        let pseudo = network.ops.pointee.pseudo_sum(
            network.instance, &netpcb.pointee.local, &netpcb.pointee.remote, Registration.protocol,
            headerLength &+ length)
        writeHeader(
            header, source: pointee.conn.local_port, destination: pointee.conn.remote_port, sequence: sequence,
            acknowledgment: pointee.rcvNxt, length: headerLength, flags: flags,
            window: selectWindow(keeps: keepsWindow), checksum: UInt16(truncatingIfNeeded: pseudo), urgent: urgent,
            ace: ace)
        if has(.timestamps) {
            header.store32(20, Options.timestampPrefix)
            header.store32(24, instance.timestampClock &+ pointee.timestampOffset)
            header.store32(28, pointee.tsRecent)
        }
        packet.pointee.length = headerLength
        packet.pointee.pkt.length = headerLength
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_PARTIAL)
        packet.pointee.pkt.csum_start = 0
        packet.pointee.pkt.csum_offset = UInt16(Header.checksum)
        packet.pointee.pkt.protocol = Registration.protocol
        packet.pointee.pkt.gso_segments = 1
        // It carries the acknowledgment of everything received so far.
        pointee.lastAckSent = pointee.rcvNxt
        pointee.unackedBytes = 0
        clear([.ackNow, .ackDelayed])
        if pointee.quickAcks > 0 { pointee.quickAcks -= 1 }
        return packet
    }

    /// What options may take behind `headerLength` octets of header, in a segment without data: a path may take no more
    /// than 68 octets (RFC 791), and an acknowledgment that is refused for its SACK blocks would never arrive.
    private func optionRoom(_ network: Network, _ headerLength: UInt32) -> UInt32 {
        let mtu = network.ops.pointee.path_mtu(network.instance, netpcb)
        let used = netpcb.pointee.header_length &+ headerLength
        return min(60 &- headerLength, mtu > used ? mtu - used : 0)
    }

    /// Hands a list of segments to the network and remembers what it says. True: some were too big for the path, and
    /// segments are smaller from now on.
    @discardableResult
    @inline(__always)
    func transmit(_ network: Network, _ list: Mbuf) -> Bool {
        let result = network.ops.pointee.output(network.instance, netpcb, list, 0)
        return result != 0 && outputFailed(result)
    }

    @inline(never)
    private func outputFailed(_ error: Int32) -> Bool {
        switch error {
        case ALPS_EAGAIN: break
        case ALPS_EMSGSIZE:
            let before = pointee.mss
            refreshMSS()
            return pointee.mss < before
        case ALPS_ENOBUFS: instance.count(.noMemory)
        default: pointee.softError = error
        }
        return false
    }

    // MARK: SYN and RST

    /// Our SYN, with an ACK in SYN-RECEIVED.
    func sendSyn() {
        let instance = instance
        guard let network = instance.network else { return }
        let isAnswer = pointee.state != .synSent
        let isFirst = pointee.sndMax == pointee.iss
        let bits = synBits(isAnswer: isAnswer, isFirst: isFirst)
        let isPlain = !isAnswer && pointee.attempts > 2 && instance.isOn(.dropsSynOptions)
        let timestamps = isAnswer ? has(.timestamps) : instance.offersTimestamps && !isPlain
        let scaling = isAnswer ? has(.windowScaling) : instance.offersWindowScaling && !isPlain
        let options = SynOptions(
            mss: UInt16(truncatingIfNeeded: min(pointee.advertisedMSS, 65535)),
            windowScale: scaling ? pointee.rcvScale : nil,
            timestamp: timestamps
                ? (instance.timestampClock &+ pointee.timestampOffset, isAnswer ? pointee.tsRecent : 0) : nil,
            sackPermitted: isAnswer ? has(.sackPermitted) : instance.isOn(.sack) && !isPlain,
            isScaleLast: instance.setting(.optionOrder) == 0, endsList: instance.setting(.optionOrder) == 2, cookie: isAnswer || !isFirst ? nil : cookieToSend,
            hasCounters: isAnswer && takesSynAckOption)
        let data = isAnswer || !isFirst ? nil : takeSynData()
        let space = instance.sockets.pointee.receive_space(instance.socketLayer, socket)
        let window = min(space, 65535)
        if isAnswer {
            let edge = pointee.rcvNxt + window
            if edge > pointee.rcvAdv { pointee.rcvAdv = edge }
            pointee.lastAckSent = pointee.rcvNxt
        } else {
            // No sequence to add it to yet.
            pointee.rcvAdv = SequenceNumber(window)
        }
        instance.emit(
            network, netpcb, conn: &pointee.conn, sequence: pointee.iss,
            acknowledgment: isAnswer ? pointee.rcvNxt : SequenceNumber(0),
            flags: isAnswer ? Flag.syn | Flag.ack : Flag.syn, ace: bits,
            window: UInt16(truncatingIfNeeded: window), options: options, data: data?.mbuf,
            dataLength: data?.range.pointee.length ?? 0)
        let now = instance.now
        if isFirst {
            pointee.sndNxt = pointee.iss + 1
            if let range = data?.range {
                pointee.sendMap.link(range, after: nil)
                pointee.sendMap.transmitted(range, at: now)
                pointee.sndNxt = range.pointee.end
            }
            pointee.sndMax = pointee.sndNxt
            pointee.waitingSince = now
            set(.timing)
            pointee.timedSequence = pointee.iss
            pointee.timedAt = now
        } else if !isAnswer {
            set(.synLost)
        }
        pointee.lastSent = now
        pointee.totals.segmentsOut &+= 1
    }

    /// What goes with a first SYN. Nil: nothing.
    private func takeSynData() -> (range: RangePointer, mbuf: Mbuf)? {
        let length = synDataLength
        guard length > 0, let range = newRange() else { return nil }
        guard
            let mbuf = instance.sockets.pointee.send_data(
                instance.socketLayer, socket, socket.pointee.snd.head, length)
        else {
            instance.free(range)
            return nil
        }
        range.pointee.start = pointee.iss + 1
        range.pointee.end = pointee.iss + 1 + length
        pointee.totals.bytesSent &+= UInt64(length)
        return (range, mbuf)
    }

    /// RFC 9293, 3.5.2: the reset of an abort.
    func sendReset() {
        guard let network = instance.network else { return }
        instance.count(.sentResets)
        instance.emit(
            // Not `sndMax`, which counts the octet of a probe that a closed window did not take.
            network, netpcb, conn: &pointee.conn, sequence: acceptableSequence,
            acknowledgment: pointee.rcvNxt, flags: Flag.rst | Flag.ack,
            window: instance.isOn(.resetWindow) ? selectWindow(keeps: true) : 0, options: nil,
            // RFC 7323, 3.2: a reset should have them too.
            timestamp: has(.timestamps) ? (instance.timestampClock &+ pointee.timestampOffset, pointee.tsRecent) : nil)
    }

    // MARK: Segment size

    /// `mss` from the path, the peer and the application (RFC 9293, 3.7.1; RFC 6691).
    func refreshMSS() {
        let instance = instance
        guard let network = instance.network else { return }
        let mtu = network.ops.pointee.path_mtu(network.instance, netpcb)
        let overhead = netpcb.pointee.header_length &+ Header.length
        var size = mtu > overhead ? mtu - overhead : 0
        if pointee.peerMSS != 0 { size = min(size, pointee.peerMSS) }
        if pointee.userMSS != 0 { size = min(size, pointee.userMSS) }
        if let probe = pointee.pathProbe {
            probe.pointee.full = size
            // The end of the search: nothing larger is wanted.
            if probe.pointee.limit >= size { endPathProbe() } else { size = probe.pointee.limit }
        }
        let options = (has(.timestamps) ? Options.timestampLength : 0) &+ pointee.accurate.reserved
        // However small the path says it is, there must be progress.
        pointee.mss = max(size > options ? size - options : 0, 8)
    }
}

extension UnsafeMutablePointer where Pointee == Instance {
    /// The MSS as advertised: what the interface takes, whatever options are in use (RFC 6691), and whatever has been
    /// learned about the way out, which says nothing about the way in (RFC 9293, 3.7.1).
    func advertisedMSS(_ network: Network, _ netpcb: UnsafeMutablePointer<alps_netpcb>) -> UInt32 {
        var mtu = network.ops.pointee.path_mtu(network.instance, netpcb)
        let cell = services.ifnetCell
        if let interface = cell.ops(alps_ifnet_ops.self).pointee.get(cell.instance, netpcb.pointee.route.ifindex) {
            mtu = max(mtu, interface.pointee.mtu)
        }
        let overhead = netpcb.pointee.header_length &+ Header.length
        return min(mtu > overhead ? mtu - overhead : defaultMSS(netpcb), 65535)
    }

    /// RFC 9293, MUST-15: what holds if the peer says nothing.
    func defaultMSS(_ netpcb: UnsafeMutablePointer<alps_netpcb>) -> UInt32 {
        let setting = UInt32(truncatingIfNeeded: setting(.defaultMSS))
        return netpcb.pointee.family == UInt16(ALPS_AF_INET6) ? max(setting, 1220) : setting
    }

    /// A peer's MSS, not below what would only burn processor time (net.inet.tcp.minmss).
    func believe(mss: UInt16) -> UInt32 { max(UInt32(mss), UInt32(truncatingIfNeeded: setting(.minimumMSS))) }

    /// RFC 7323, 2.2: the shift by which the receive buffer fits 16 bits, however it may grow.
    func windowScale(_ socket: Socket) -> UInt8 {
        var space = UInt64(socket.pointee.rcv.limit)
        if socket.pointee.options & ALPS_SO_RCVBUF_CHOSEN == 0 {
            space = max(space, UInt64(bitPattern: setting(.maximumReceiveBuffer)))
        }
        var scale: UInt8 = 0
        while scale < 14, UInt64(65535) << UInt64(scale) < space { scale += 1 }
        return scale
    }

    // MARK: Segments without data

    /// Builds and sends a segment of header and options alone.
    func emit(
        _ network: Network, _ netpcb: UnsafeMutablePointer<alps_netpcb>, conn: UnsafePointer<alps_conn>,
        sequence: SequenceNumber, acknowledgment: SequenceNumber, flags: UInt8, ace: UInt8 = 0, window: UInt16,
        options: SynOptions?, timestamp: (value: UInt32, echo: UInt32)? = nil, isCapable: Bool = false,
        data: Mbuf? = nil, dataLength: UInt32 = 0
    ) {
        let cell = services.mbufCell
        guard
            let packet = cell.ops(alps_mbuf_ops.self).pointee.packet(
                cell.instance, UInt32(ALPS_MBUF_HEADROOM) &+ netpcb.pointee.header_length)
        else {
            count(.noMemory)
            return
        }
        let header = packet.pointee.data
        if isCapable { packet.pointee.pkt.flags |= UInt16(ALPS_PKT_ECT) }
        var length = Header.length
        if let options { length &+= options.write(header + Int(Header.length)) }
        if let timestamp {
            let place = header + Int(length)
            place.store32(0, Options.timestampPrefix)
            place.store32(4, timestamp.value)
            place.store32(8, timestamp.echo)
            length &+= Options.timestampLength
        }
        if let data {
            packet.pointee.next = data
            packet.pointee.pkt.truesize &+= dataLength
            count(.sentBytes, dataLength)
        }
        finish(
            network, netpcb, packet, source: conn.pointee.local_port, destination: conn.pointee.remote_port,
            sequence: sequence, acknowledgment: acknowledgment, length: length, flags: flags, ace: ace, window: window,
            dataLength: dataLength)
    }

    fileprivate func finish(
        _ network: Network, _ netpcb: UnsafeMutablePointer<alps_netpcb>, _ packet: Mbuf, source: UInt16,
        destination: UInt16, sequence: SequenceNumber, acknowledgment: SequenceNumber, length: UInt32, flags: UInt8,
        ace: UInt8 = 0, window: UInt16, dataLength: UInt32 = 0
    ) {
        let pseudo = network.ops.pointee.pseudo_sum(
            network.instance, &netpcb.pointee.local, &netpcb.pointee.remote, Registration.protocol,
            length &+ dataLength)
        writeHeader(
            packet.pointee.data, source: source, destination: destination, sequence: sequence,
            acknowledgment: acknowledgment, length: length, flags: flags, window: window,
            checksum: UInt16(truncatingIfNeeded: pseudo), urgent: 0, ace: ace)
        packet.pointee.length = length
        packet.pointee.pkt.length = length &+ dataLength
        packet.pointee.pkt.csum = UInt8(ALPS_CSUM_PARTIAL)
        packet.pointee.pkt.csum_start = 0
        packet.pointee.pkt.csum_offset = UInt16(Header.checksum)
        packet.pointee.pkt.protocol = Registration.protocol
        packet.pointee.pkt.gso_segments = 1
        count(.sent)
        count(.sentControl)
        _ = network.ops.pointee.output(network.instance, netpcb, packet, 0)
    }

    /// Answers a packet where no connection does it: from its destination to its source, ports exchanged.
    func reply(
        _ to: Mbuf, _ network: Network, sequence: SequenceNumber, acknowledgment: SequenceNumber, flags: UInt8,
        ace: UInt8 = 0, window: UInt16 = 0, timestamp: (value: UInt32, echo: UInt32)? = nil
    ) {
        var netpcb = oneOff(to)
        let cell = services.mbufCell
        guard let packet = cell.ops(alps_mbuf_ops.self).pointee.packet(cell.instance, 2 &* UInt32(ALPS_MBUF_HEADROOM))
        else {
            count(.noMemory)
            return
        }
        var length = Header.length
        if let timestamp {
            let place = packet.pointee.data + Int(Header.length)
            place.store32(0, Options.timestampPrefix)
            place.store32(4, timestamp.value)
            place.store32(8, timestamp.echo)
            length &+= Options.timestampLength
        }
        finish(
            network, &netpcb, packet, source: to.pointee.data.load16(Header.destinationPort),
            destination: to.pointee.data.load16(Header.sourcePort), sequence: sequence, acknowledgment: acknowledgment,
            length: length, flags: flags, ace: ace, window: window)
    }

    /// A network attachment for one answer.
    func oneOff(_ to: Mbuf) -> alps_netpcb {
        var netpcb = alps_netpcb()
        netpcb.size = UInt32(MemoryLayout<alps_netpcb>.size)
        netpcb.family = to.pointee.pkt.family
        netpcb.protocol = Registration.protocol
        netpcb.flags = isOn(.pathMTUDiscovery) ? UInt8(ALPS_NETPCB_DF) : 0
        netpcb.local = to.pointee.pkt.destination
        netpcb.remote = to.pointee.pkt.source
        return netpcb
    }
}

package import PluginAPI

/// Where the callouts of one plugin instance (or one host timer) go. Lives as long as any of them may be armed.
package struct CalloutTarget {
    /// The instance's `callout` function. Nil: due callouts are dropped.
    package var function: (@convention(c) (UnsafeMutableRawPointer, UInt32, UnsafeMutableRawPointer?) -> Void)?
    /// First argument of `function`.
    package var instance: UnsafeMutableRawPointer?
    /// Callouts armed at the moment.
    package var armed: Int

    package init(
        function: (@convention(c) (UnsafeMutableRawPointer, UInt32, UnsafeMutableRawPointer?) -> Void)? = nil,
        instance: UnsafeMutableRawPointer? = nil
    ) {
        self.function = function
        self.instance = instance
        armed = 0
    }
}

/// A hierarchical timing wheel over `alps_callout`, exact to the nanosecond.
///
/// Eleven levels of 64 slots cover 64 bits. A callout stands at the level of the highest base-64 digit in which its
/// deadline differs from `cursor`, in the slot of that digit; when the cursor reaches a slot above level 0, its
/// callouts move down. So arming and disarming take constant time, a callout that is stopped early (most are) is never
/// touched again, and since equal deadlines always share a slot, they fire in the order they were armed.
package final class CalloutWheel {
    private struct Slot {
        var first: UnsafeMutablePointer<alps_callout>?
        var last: UnsafeMutablePointer<alps_callout>?
    }

    private static let digitBits: UInt64 = 6
    private static let slotsPerLevel = 64
    private static let levels = 11
    /// Extra slot: armed by a handler for a time that is already due; they fire in the next turn.
    private static let nextTurn = levels * slotsPerLevel
    /// A slot with more callouts than this is not searched for its earliest deadline: its beginning is the answer, a
    /// lower bound that costs one early wake-up, at which the slot is spread over the levels below.
    private static let searchLimit = 32

    private let clock: KernelClock
    private let slots: UnsafeMutablePointer<Slot>
    /// One bit a slot, one word a level.
    private let occupied: UnsafeMutablePointer<UInt64>
    private var cursor: UInt64
    private var isFiring = false
    private var cachedDeadline: UInt64 = .max
    private var isCacheValid = true
    private var opsTable: UnsafeMutablePointer<alps_time_ops>?

    /// Callouts armed at the moment.
    package private(set) var armed = 0
    /// Callouts fired since the start.
    package private(set) var fired: UInt64 = 0

    package init(clock: KernelClock) {
        self.clock = clock
        cursor = clock.now
        slots = .allocate(capacity: Self.nextTurn + 1)
        slots.initialize(repeating: Slot(), count: Self.nextTurn + 1)
        occupied = .allocate(capacity: Self.levels)
        occupied.initialize(repeating: 0, count: Self.levels)
    }

    deinit {
        slots.deallocate()
        occupied.deallocate()
        opsTable?.deallocate()
    }

    /// Publishes "alps.time/1".
    package func attach(_ kernel: Kernel) {
        let table = UnsafeMutablePointer<alps_time_ops>.allocate(capacity: 1)
        table.initialize(
            to: alps_time_ops(
                size: UInt32(MemoryLayout<alps_time_ops>.size), reserved: 0, now: timeNow, callout_reset: timeReset,
                callout_stop: timeStop, wall: timeWall))
        opsTable = table
        kernel.plugins.publish("alps.time/1", ops: UnsafeRawPointer(table), scope: .perInstance)
    }

    /// Arms or re-arms `callout` to fire `delay` ns from now.
    package func reset(
        _ callout: UnsafeMutablePointer<alps_callout>, delay: UInt64, function: UInt32,
        argument: UnsafeMutableRawPointer?, target: UnsafeMutablePointer<CalloutTarget>
    ) {
        if callout.pointee.flags & UInt16(ALPS_CALLOUT_ARMED) != 0 { stop(callout) }
        let (sum, overflow) = clock.now.addingReportingOverflow(delay)
        let deadline = overflow ? UInt64.max - 1 : min(sum, .max - 1)
        callout.pointee.deadline = deadline
        callout.pointee.owner = UnsafeMutableRawPointer(target)
        callout.pointee.argument = argument
        callout.pointee.function = function
        callout.pointee.flags |= UInt16(ALPS_CALLOUT_ARMED)
        target.pointee.armed += 1
        armed += 1
        insert(callout, isFiring && delay == 0 ? Self.nextTurn : slot(of: deadline))
        if isCacheValid, deadline < cachedDeadline { cachedDeadline = deadline }
    }

    /// Disarms `callout`. True if it was armed.
    @discardableResult
    package func stop(_ callout: UnsafeMutablePointer<alps_callout>) -> Bool {
        guard callout.pointee.flags & UInt16(ALPS_CALLOUT_ARMED) != 0 else { return false }
        disarm(callout)
        if callout.pointee.deadline <= cachedDeadline { isCacheValid = false }
        return true
    }

    /// Disarms every callout of a target whose memory is about to go: none of them may stay in a list.
    package func removeAll(of target: UnsafeMutablePointer<CalloutTarget>) {
        for index in 0...Self.nextTurn where target.pointee.armed > 0 {
            var callout = slots[index].first
            while let current = callout {
                callout = current.pointee.next
                if current.pointee.owner == UnsafeMutableRawPointer(target) { stop(current) }
            }
        }
    }

    /// Fires everything that is due by the clock, in order of deadlines.
    package func runExpired() {
        let now = clock.now
        isFiring = true
        while let (level, index, start) = earliestSlot(), start <= now {
            cursor = max(cursor, start)
            isCacheValid = false
            let list = slots + index
            if level == 0 {
                while let callout = list.pointee.first { fire(callout) }
            } else {
                spread(index)
            }
        }
        isFiring = false
        // An early deadline (see `searchLimit`) whose callouts have all been stopped since would look due for ever.
        if cachedDeadline <= now { isCacheValid = false }
        if now > cursor { cursor = now }
        if slots[Self.nextTurn].first != nil { spread(Self.nextTurn) }
    }

    /// When the next callout is due (or a little earlier, see `searchLimit`); .max if none is armed.
    package var nextDeadline: UInt64 {
        if isCacheValid { return cachedDeadline }
        cachedDeadline = searchDeadline()
        isCacheValid = true
        return cachedDeadline
    }

    // MARK: Slots

    /// The slot for `deadline` as seen from the cursor.
    private func slot(of deadline: UInt64) -> Int {
        let deadline = max(deadline, cursor)
        let difference = deadline ^ cursor
        let level = difference == 0 ? 0 : (63 - difference.leadingZeroBitCount) / Int(Self.digitBits)
        let digit = (deadline >> (UInt64(level) &* Self.digitBits)) & 63
        return level * Self.slotsPerLevel + Int(digit)
    }

    /// The slot that the cursor reaches first, with its level and the time it begins at.
    private func earliestSlot() -> (level: Int, index: Int, start: UInt64)? {
        for level in 0..<Self.levels where occupied[level] != 0 {
            // All slots of a level lie ahead of the cursor's digit (at level 0: or on it), and everything of a level
            // comes before anything of the level above.
            let digit = occupied[level].trailingZeroBitCount
            let shift = UInt64(level) &* Self.digitBits
            let above = shift &+ Self.digitBits
            let base = above >= 64 ? 0 : (cursor >> above) << above
            return (level, level * Self.slotsPerLevel + digit, base | UInt64(digit) << shift)
        }
        return nil
    }

    private func searchDeadline() -> UInt64 {
        if let callout = slots[Self.nextTurn].first { return callout.pointee.deadline }
        guard let (level, index, start) = earliestSlot() else { return .max }
        if level == 0 { return start }
        var earliest = UInt64.max
        var seen = 0
        var callout = slots[index].first
        while let current = callout {
            seen += 1
            if seen > Self.searchLimit { return start }
            earliest = min(earliest, current.pointee.deadline)
            callout = current.pointee.next
        }
        return earliest
    }

    private func insert(_ callout: UnsafeMutablePointer<alps_callout>, _ index: Int) {
        let list = slots + index
        callout.pointee.slot = UInt16(index)
        callout.pointee.next = nil
        callout.pointee.prev = list.pointee.last
        if let last = list.pointee.last {
            last.pointee.next = callout
        } else {
            list.pointee.first = callout
            if index < Self.nextTurn { occupied[index / Self.slotsPerLevel] |= 1 << UInt64(index % Self.slotsPerLevel) }
        }
        list.pointee.last = callout
    }

    private func unlink(_ callout: UnsafeMutablePointer<alps_callout>) {
        let index = Int(callout.pointee.slot)
        let list = slots + index
        if let previous = callout.pointee.prev {
            previous.pointee.next = callout.pointee.next
        } else {
            list.pointee.first = callout.pointee.next
        }
        if let next = callout.pointee.next {
            next.pointee.prev = callout.pointee.prev
        } else {
            list.pointee.last = callout.pointee.prev
        }
        callout.pointee.next = nil
        callout.pointee.prev = nil
        if list.pointee.first == nil, index < Self.nextTurn {
            occupied[index / Self.slotsPerLevel] &= ~(1 << UInt64(index % Self.slotsPerLevel))
        }
    }

    /// Moves the callouts of a slot to where they belong now, order kept.
    private func spread(_ index: Int) {
        var callout = slots[index].first
        slots[index] = Slot()
        if index < Self.nextTurn { occupied[index / Self.slotsPerLevel] &= ~(1 << UInt64(index % Self.slotsPerLevel)) }
        while let current = callout {
            callout = current.pointee.next
            insert(current, slot(of: current.pointee.deadline))
        }
    }

    private func disarm(_ callout: UnsafeMutablePointer<alps_callout>) {
        unlink(callout)
        callout.pointee.flags &= ~UInt16(ALPS_CALLOUT_ARMED)
        armed -= 1
        if let owner = callout.pointee.owner { owner.assumingMemoryBound(to: CalloutTarget.self).pointee.armed -= 1 }
    }

    private func fire(_ callout: UnsafeMutablePointer<alps_callout>) {
        disarm(callout)
        fired &+= 1
        guard let owner = callout.pointee.owner?.assumingMemoryBound(to: CalloutTarget.self),
            let function = owner.pointee.function, let instance = owner.pointee.instance
        else { return }
        function(instance, callout.pointee.function, callout.pointee.argument)
    }
}

// MARK: "alps.time/1", `self` being the plugin instance

private func timeNow(_ context: UnsafeMutableRawPointer) -> UInt64 {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.kernel.clock.now }
}

private func timeReset(
    _ context: UnsafeMutableRawPointer, _ callout: UnsafeMutablePointer<alps_callout>, _ delay: UInt64,
    _ function: UInt32, _ argument: UnsafeMutableRawPointer?
) {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
        $0.kernel.callouts.reset(
            callout, delay: delay, function: function, argument: argument, target: $0.calloutTarget)
    }
}

private func timeStop(_ context: UnsafeMutableRawPointer, _ callout: UnsafeMutablePointer<alps_callout>) -> Int32 {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
        $0.kernel.callouts.stop(callout) ? 1 : 0
    }
}

private func timeWall(_ context: UnsafeMutableRawPointer) -> UInt64 {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef { $0.kernel.clock.wall }
}

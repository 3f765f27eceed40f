import CLinux
import Glibc

/// Leaves the system's receive work for a tap's frames to other CPUs than the loop's.
///
/// Whoever writes a frame to a tap also does what the system does with it: its TCP, the way to another interface. With
/// receive packet steering (Documentation/networking/scaling.rst of Linux) another CPU does that. Waking it costs little
/// beside many frames, and much for one that somebody waits for; so frames are steered only while there are several in a
/// turn. Long segments are not: by the time that the next one is there, the other CPU has done its work for the last, and is
/// woken for each. And only if the loop is kept from some CPUs (`--pin`, taskset): else the scheduler gives it the CPU that
/// is idle.
final class ReceiveSteering {
    private let kernel: Kernel
    private let interface: String
    private let tap: Int32
    private let isWanted: Tunable
    private var load: SteeringLoad
    /// Of `rps_cpus` while it has a mask of ours.
    private var descriptor: Int32 = -1
    /// It cannot be had, or somebody else has set it.
    private var isGivenUp = false
    /// Since the load began.
    private var hasTried = false

    /// `tap` is the descriptor of the tap interface, which stays the caller's.
    init(interface: String, tap: Int32, kernel: Kernel) {
        self.kernel = kernel
        self.interface = interface
        self.tap = tap
        isWanted = kernel.interfaces.tapSteer
        load = SteeringLoad(turns: kernel.turns, now: kernel.clock.now)
    }

    deinit { end() }

    /// Looks at the load; to be called when `kernel.turns` has come to what the last call returned.
    func look(_ counts: FrameCounts) -> UInt64 {
        let isBusy = load.look(turns: kernel.turns, counts, now: kernel.clock.now)
        guard isBusy, isWanted.value != 0 else {
            end()
            hasTried = false
            return kernel.turns &+ SteeringLoad.window
        }
        if !hasTried, !isGivenUp {
            hasTried = true
            begin()
        }
        return kernel.turns &+ SteeringLoad.window
    }

    var isSteering: Bool { descriptor >= 0 }

    /// Takes our mask away.
    func end() {
        guard descriptor >= 0 else { return }
        write("0")
        Glibc.close(descriptor)
        descriptor = -1
    }

    private func begin() {
        let others = CPUSet.available.subtracting(.ofThisThread)
        guard !others.list.isEmpty else { return }
        isGivenUp = true
        guard isOurs else { return giveUp("/sys has not this interface") }
        descriptor = open("\(folder)/queues/rx-0/rps_cpus", O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else { return giveUp(String(cString: strerror(errno))) }
        guard Self.read(descriptor).allSatisfy({ "0,\n".contains($0) }) else { return giveUp("rps_cpus is set") }
        guard write(others.mask) else { return giveUp(String(cString: strerror(errno))) }
        isGivenUp = false
        kernel.log.debug("\(interface): what is sent is received on CPUs \(others.list.map(String.init).joined(separator: ", "))")
    }

    private func giveUp(_ reason: String) {
        kernel.log.debug("\(interface): receive work cannot be steered to other CPUs: \(reason)")
        if descriptor >= 0 { Glibc.close(descriptor) }
        descriptor = -1
    }

    private var folder: String { "/sys/class/net/\(interface)" }

    /// /sys may show another network namespace, with an interface of the same name.
    private var isOurs: Bool {
        var request = ifreq()
        guard alps_ioctl(tap, UInt(SIOCGIFHWADDR), &request) == 0 else { return false }
        let hardware = withUnsafeBytes(of: request.ifr_ifru.ifru_hwaddr.sa_data) {
            HardwareAddress(($0[0], $0[1], $0[2], $0[3], $0[4], $0[5]))
        }
        return text(of: "ifindex") == String(if_nametoindex(interface)) && text(of: "address") == hardware.description
    }

    private func text(of file: String) -> String? {
        let descriptor = open("\(folder)/\(file)", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { Glibc.close(descriptor) }
        return Self.read(descriptor).split(separator: "\n").first.map(String.init)
    }

    private static func read(_ descriptor: Int32) -> String {
        String(unsafeUninitializedCapacity: 4096) { max(pread(descriptor, $0.baseAddress, $0.count, 0), 0) }
    }

    @discardableResult
    private func write(_ mask: String) -> Bool { pwrite(descriptor, mask, mask.utf8.count, 0) >= 0 }
}

/// Frames that have passed since a device was made.
package struct FrameCounts {
    package var received: UInt64 = 0
    package private(set) var sent: UInt64 = 0
    /// Sent ones of 16 KiB and more.
    package private(set) var long: UInt64 = 0
    private static let longFrame: UInt32 = 16 << 10

    package init() {}

    @inline(__always)
    package mutating func sent(length: UInt32) {
        sent &+= 1
        if length >= Self.longFrame { long &+= 1 }
    }
}

/// Whether there is more to do than one message and its answer at a time, other than to send long segments.
package struct SteeringLoad {
    /// Turns from look to look.
    package static let window: UInt64 = 64
    /// Frames a turn in both directions: a round trip has 1, a connection at a time 2, 50 clients of a server 7 and more.
    private static let manyFrames: UInt64 = 4
    /// Looks in a row with fewer than `someFrames` halves a turn that end it.
    private static let someFrames: UInt64 = 5
    private static let calmLooks = 16
    /// Time a frame below which the loop is not at rest in between, ns.
    private static let restingTime: UInt64 = 200_000

    private var turns: UInt64
    private var counts = FrameCounts()
    private var now: UInt64
    private var isBusy = false
    private var calm = 0

    package init(turns: UInt64, now: UInt64) { (self.turns, self.now) = (turns, now) }

    /// `turns` and `counts` so far, `now` in ns.
    package mutating func look(turns: UInt64, _ counts: FrameCounts, now: UInt64) -> Bool {
        let passed = turns &- self.turns
        let sent = counts.sent &- self.counts.sent
        let count = counts.received &- self.counts.received &+ sent
        let isNotWorthIt = now &- self.now > count &* Self.restingTime || 2 &* (counts.long &- self.counts.long) > sent
        (self.turns, self.counts, self.now) = (turns, counts, now)
        if count >= Self.manyFrames &* passed, !isNotWorthIt {
            (isBusy, calm) = (true, 0)
        } else if isBusy {
            calm = isNotWorthIt || 2 &* count < Self.someFrames &* passed ? calm + 1 : 0
            isBusy = calm < Self.calmLooks
        }
        return isBusy
    }
}

import CLibc
import ClientAPI
import ShimEntry

/// What the process inherited from `alps run`. Every global of the shim is constant-initialised: a lazily initialised one
/// would hide a lock that a fork or a signal handler can find taken.
struct Activation {
    /// Set-up has run.
    var ready = false
    /// There is a stack to talk to; else everything passes through.
    var active = false
    /// The process installed a seccomp filter, or is about to: no system call but those it asked for.
    var confined = false
    /// The doorway's descriptor, -1 if there is none, and its cookie.
    var doorway: Int32 = -1
    var doorwayCookie: UInt64 = 0
    /// "NAME=value" of the shim's variables as they were at the start, for programs started with another environment.
    /// A program may overwrite its environment's memory (setproctitle), hence copies.
    var socketVariable: UnsafeMutablePointer<CChar>? = nil
    var doorwayVariable: UnsafeMutablePointer<CChar>? = nil
    var bypassVariable: UnsafeMutablePointer<CChar>? = nil
    var tcpVariable: UnsafeMutablePointer<CChar>? = nil
    var udpVariable: UnsafeMutablePointer<CChar>? = nil
    var strictVariable: UnsafeMutablePointer<CChar>? = nil
    /// What tells the filter of `alps run --strict` that a socket of the kernel is wanted; 0 without one.
    var strictToken: UInt = 0
    /// Bytes that a stream moves in one direction, in large calls, until it gets a ring. By then its buffers have grown to
    /// what the path takes: the ring that takes their place keeps its size.
    var bulkAmount: UInt32 = 4 << 20
    /// The host has taken an option of a stream that this process image has made, and takes those of others.
    var streamsAnswered = false
    /// It has had to see a descriptor first: this process does not make its sockets as the user who may use them.
    var provesPossession = false
    /// Path of this library.
    var library: UnsafePointer<CChar>? = nil
}

nonisolated(unsafe) var activation = Activation()

/// Runs set-up if nothing has run it yet: a constructor of another library may call us before ours has run.
@inline(__always)
func ensureReady() {
    if !activation.ready { setUp() }
}

@c
func alpsShimInitialise(
    _ count: Int32, _ arguments: UnsafeMutableRawPointer?, _ environment: UnsafeMutableRawPointer?
) {
    ensureReady()
}

@used @section(".init_array")
nonisolated(unsafe) let shimInitialiser:
    @convention(c) (Int32, UnsafeMutableRawPointer?, UnsafeMutableRawPointer?) -> Void = alpsShimInitialise

@inline(never)
func setUp() {
    let error = alps_errno()
    findRealFunctions()
    alps_shim_process_begin()
    let socketPath = variable("ALPS_SOCKET")
    let doorway = variable("ALPS_DOORWAY")
    if socketPath != nil || doorway != nil, mapFileTable() {
        activation.library = alps_shim_path()
        var text = variableTextArea()
        activation.socketVariable = keep("ALPS_SOCKET", socketPath, &text)
        activation.doorwayVariable = keep("ALPS_DOORWAY", doorway, &text)
        activation.bypassVariable = keep("ALPS_BYPASS", variable("ALPS_BYPASS"), &text)
        activation.tcpVariable = keep("ALPS_TCP", variable("ALPS_TCP"), &text)
        activation.udpVariable = keep("ALPS_UDP", variable("ALPS_UDP"), &text)
        activation.strictVariable = keep("ALPS_STRICT", variable("ALPS_STRICT"), &text)
        if let token = variable("ALPS_STRICT") { activation.strictToken = UInt(strtoul(token, nil, 16)) }
        if let amount = variable("ALPS_RING_AFTER") { activation.bulkAmount = UInt32(truncatingIfNeeded: strtoul(amount, nil, 10)) }
        if let doorway { findDoorway(doorway) }
        if let ranges = variable("ALPS_BYPASS") { parseBypassRanges(ranges) }
        alps_shim_at_fork(beforeFork, alpsShimAfterFork)
        activation.active = true
    }
    activation.ready = true
    alps_set_errno(error)
}

@c
func alpsShimAfterFork() {
    dropForeignSession()
    forgetRingUsers()
}

@c(alps_shim_ready)
public func readyForEntryPoints() { ensureReady() }

@c(alps_shim_is_active)
public func isActive() -> Int32 {
    ensureReady()
    return activation.active ? 1 : 0
}

/// In-band for good (client.h, 5): all sockets of this process.
@c(alps_shim_confined)
public func processConfinesItself() {
    if !activation.confined { returnAllToPairs(inheritedOnly: false) }
    activation.confined = true
}

private func variable(_ name: StaticString) -> UnsafeMutablePointer<CChar>? {
    guard let value = getenv(UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self)), value[0] != 0
    else { return nil }
    return value
}

/// Copies "NAME=value" to `text` and advances it.
private func keep(
    _ name: StaticString, _ value: UnsafeMutablePointer<CChar>?, _ text: inout UnsafeMutableBufferPointer<CChar>
) -> UnsafeMutablePointer<CChar>? {
    guard let value, let start = text.baseAddress else { return nil }
    let nameLength = name.utf8CodeUnitCount
    let valueLength = strlen(value)
    let needed = nameLength + 1 + valueLength + 1
    guard needed <= text.count else { return nil }
    memcpy(start, name.utf8Start, nameLength)
    start[nameLength] = 0x3d  // =
    memcpy(start + nameLength + 1, value, valueLength + 1)
    text = UnsafeMutableBufferPointer(start: start + needed, count: text.count - needed)
    return start
}

private func findDoorway(_ text: UnsafeMutablePointer<CChar>) {
    let descriptor = Int32(truncatingIfNeeded: strtol(text, nil, 10))
    var type: Int32 = 0
    var length = socklen_t(4)
    guard descriptor > 2, alps_sys_getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &length) == 0,
        type == Int32(SOCK_SEQPACKET.rawValue)
    else { return }
    activation.doorway = descriptor
    activation.doorwayCookie = cookie(of: descriptor)
    hide(descriptor)
}

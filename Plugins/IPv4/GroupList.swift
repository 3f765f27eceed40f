import PluginAPI
import PluginKit

/// The private request "groups": the multicast groups that sockets have joined, as records of three 32-bit words: interface,
/// group in network byte order, sockets. ENOSPC if they do not fit.
func listGroups(
    _ context: UnsafeMutableRawPointer, _ value: UnsafeMutableRawPointer, _ length: UnsafeMutablePointer<UInt32>
) -> Int32 {
    let instance = context.assumingMemoryBound(to: Instance.self)
    var used: UInt32 = 0
    var group = instance.pointee.groups
    while let current = group {
        guard used + 12 <= length.pointee else { return ALPS_ENOSPC }
        let record = value + Int(used)
        record.storeBytes(of: current.pointee.ifindex, as: UInt32.self)
        record.storeBytes(of: current.pointee.address, toByteOffset: 4, as: UInt32.self)
        record.storeBytes(of: UInt32(bitPattern: current.pointee.references), toByteOffset: 8, as: UInt32.self)
        used += 12
        group = current.pointee.next
    }
    length.pointee = used
    return 0
}

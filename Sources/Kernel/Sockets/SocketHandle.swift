/// A socket's name towards clients: {stack, shard, generation, index} in 64 bits (client.h). Never 0, and never the same
/// for two sockets of one host until the generation of an index has gone round.
package struct SocketHandle: Hashable {
    package let rawValue: UInt64

    package init(rawValue: UInt64) { self.rawValue = rawValue }

    init(index: Int, generation: UInt32) {
        rawValue = 1 << 56 | UInt64(generation & 0xff_ffff) << 24 | UInt64(index)
    }

    /// Of a netlink or packet socket, which is no socket of a protocol: the shard tells them apart.
    init(messageIndex index: UInt32, generation: UInt32) {
        rawValue = 1 << 56 | 0xff << 48 | UInt64(generation & 0xff_ffff) << 24 | UInt64(index & 0xff_ffff)
    }

    var index: Int { Int(rawValue & 0xff_ffff) }
}

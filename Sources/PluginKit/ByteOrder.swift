/// Reading and writing network byte order at any alignment. The caller has checked that the bytes are there.
extension UnsafePointer where Pointee == UInt8 {
    @inline(__always)
    public func load16(_ offset: Int) -> UInt16 {
        UInt16(bigEndian: UnsafeRawPointer(self).loadUnaligned(fromByteOffset: offset, as: UInt16.self))
    }

    @inline(__always)
    public func load32(_ offset: Int) -> UInt32 {
        UInt32(bigEndian: UnsafeRawPointer(self).loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }
}

extension UnsafeMutablePointer where Pointee == UInt8 {
    @inline(__always)
    public func load16(_ offset: Int) -> UInt16 { UnsafePointer(self).load16(offset) }

    @inline(__always)
    public func load32(_ offset: Int) -> UInt32 { UnsafePointer(self).load32(offset) }

    @inline(__always)
    public func store16(_ offset: Int, _ value: UInt16) {
        UnsafeMutableRawPointer(self).storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt16.self)
    }

    @inline(__always)
    public func store32(_ offset: Int, _ value: UInt32) {
        UnsafeMutableRawPointer(self).storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt32.self)
    }
}

import PluginAPI

/// Addresses as people write them: four decimal numbers.

func networkFormat(
    _ context: UnsafeMutableRawPointer, _ address: UnsafePointer<alps_addr>, _ buffer: UnsafeMutablePointer<CChar>,
    _ capacity: UInt32
) -> UInt32 {
    guard capacity >= 16 else { return 0 }
    let bytes = UnsafeRawPointer(address)
    var at = 0
    for index in 0..<4 {
        let value = bytes.load(fromByteOffset: index, as: UInt8.self)
        if index > 0 {
            buffer[at] = 46
            at += 1
        }
        if value >= 100 {
            buffer[at] = CChar(48 + value / 100)
            at += 1
        }
        if value >= 10 {
            buffer[at] = CChar(48 + value / 10 % 10)
            at += 1
        }
        buffer[at] = CChar(48 + value % 10)
        at += 1
    }
    buffer[at] = 0
    return UInt32(at)
}

func networkParse(
    _ context: UnsafeMutableRawPointer, _ text: UnsafePointer<CChar>, _ address: UnsafeMutablePointer<alps_addr>
) -> Int32 {
    var bytes: (UInt8, UInt8, UInt8, UInt8) = (0, 0, 0, 0)
    var at = 0
    for index in 0..<4 {
        var value = 0
        var digits = 0
        while text[at] >= 48, text[at] <= 57 {
            value = value * 10 + Int(text[at] - 48)
            digits += 1
            at += 1
            if digits > 3 { return ALPS_EINVAL }
        }
        guard digits > 0, value < 256 else { return ALPS_EINVAL }
        withUnsafeMutableBytes(of: &bytes) { $0[index] = UInt8(value) }
        guard text[at] == (index == 3 ? 0 : 46) else { return ALPS_EINVAL }
        at += 1
    }
    address.pointee = alps_addr()
    withUnsafeMutableBytes(of: &address.pointee) { target in
        withUnsafeBytes(of: bytes) { target.copyMemory(from: $0) }
    }
    return 0
}

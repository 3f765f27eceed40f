import CLibc

// What a program points to need not be there: then a control call fails with EFAULT, as the kernel has it, instead of
// ending the program. Data calls leave that to the kernel where the call is its own.

/// True if `count` bytes can be read; else errno is EFAULT. Only so many are looked at as a control call takes in.
func isReadable(_ pointer: UnsafeRawPointer?, _ count: Int) -> Bool {
    looksAt(pointer, count, writes: false)
}

/// True if `count` bytes can be written, which they are, with what they are.
func isWritable(_ pointer: UnsafeRawPointer?, _ count: Int) -> Bool {
    looksAt(pointer, count, writes: true)
}

private func looksAt(_ pointer: UnsafeRawPointer?, _ count: Int, writes: Bool) -> Bool {
    // A program that confines itself allows no calls that it does not make.
    if count <= 0 || activation.confined { return true }
    let error = alps_errno()
    guard let pointer else {
        alps_set_errno(EFAULT)
        return false
    }
    var scratch = [256 of UInt8](repeating: 0)
    let isThere = withUnsafeMutableBytes(of: &scratch) { scratch in
        let bytes = scratch.baseAddress.unsafelyUnwrapped
        var done = 0
        while done < count {
            let step = min(count - done, scratch.count)
            guard alps_copy_from_program(bytes, pointer + done, step) == step else { return false }
            if writes {
                guard alps_copy_to_program(UnsafeMutableRawPointer(mutating: pointer + done), bytes, step) == step else {
                    return false
                }
            }
            done += step
        }
        return true
    }
    alps_set_errno(isThere ? error : EFAULT)
    return isThere
}

import CLinux
import Glibc

/// A set of CPUs, as the scheduler has them.
package struct CPUSet: Equatable {
    private var words = [UInt](repeating: 0, count: byteCount / MemoryLayout<UInt>.size)
    private static let byteCount = 1024

    package init(_ cpus: [Int]) {
        for cpu in cpus { words[cpu / UInt.bitWidth] |= 1 << UInt(cpu % UInt.bitWidth) }
    }

    /// Those that the calling thread may run on; none if the system does not tell.
    package static var ofThisThread: CPUSet {
        var set = CPUSet([])
        _ = alps_sched_getaffinity(0, byteCount, &set.words)
        return set
    }

    /// Those that the calling thread could be allowed to run on: all that the system, or its container, gives to the process.
    package static var available: CPUSet {
        let own = ofThisThread
        var all = CPUSet([])
        for index in all.words.indices { all.words[index] = .max }
        // The system leaves out those that cannot be had.
        all.restrictThisThread()
        defer { own.restrictThisThread() }
        return ofThisThread
    }

    /// Lets the calling thread run on these only. Returns 0 or an errno.
    @discardableResult
    package func restrictThisThread() -> Int32 {
        alps_sched_setaffinity(0, Self.byteCount, words) == 0 ? 0 : errno
    }

    package var list: [Int] {
        (0..<Self.byteCount * 8).filter { words[$0 / UInt.bitWidth] >> UInt($0 % UInt.bitWidth) & 1 != 0 }
    }

    package func subtracting(_ other: CPUSet) -> CPUSet {
        var rest = self
        for index in rest.words.indices { rest.words[index] &= ~other.words[index] }
        return rest
    }

    /// As sysfs has it: groups of 32 in hexadecimal with commas between, the highest first, "0" for none.
    package var mask: String {
        let groups = words.flatMap { [UInt32(truncatingIfNeeded: $0), UInt32($0 >> 32)] }
        guard let highest = groups.lastIndex(where: { $0 != 0 }) else { return "0" }
        return groups[...highest].reversed().map { String($0, radix: 16) }.enumerated()
            .map { $0 == 0 ? $1 : String(repeating: "0", count: 8 - $1.count) + $1 }.joined(separator: ",")
    }
}

internal import CLinux
internal import PluginAPI

/// xoshiro256** (Blackman and Vigna), seeded through SplitMix64: repeatable randomness for virtual time.
package struct SeededGenerator: RandomNumberGenerator {
    private var state: (UInt64, UInt64, UInt64, UInt64)

    package init(seed: UInt64) {
        var mixer = seed
        func mixed() -> UInt64 {
            mixer &+= 0x9e37_79b9_7f4a_7c15
            var z = mixer
            z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
            z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
            return z ^ (z >> 31)
        }
        state = (mixed(), mixed(), mixed(), mixed())
    }

    package mutating func next() -> UInt64 {
        let scrambled = state.1 &* 5
        let result = (scrambled << 7 | scrambled >> 57) &* 9
        let shifted = state.1 << 17
        state.2 ^= state.0
        state.3 ^= state.1
        state.1 ^= state.2
        state.0 ^= state.3
        state.2 ^= shifted
        state.3 = state.3 << 45 | state.3 >> 19
        return result
    }
}

/// The system's generator, read a page at a time. What has been handed out is erased.
package struct SystemGenerator: RandomNumberGenerator {
    private static let words = 256
    private let pool: UnsafeMutablePointer<UInt64>
    private var used = Self.words

    fileprivate init() {
        pool = .allocate(capacity: Self.words)
        pool.initialize(repeating: 0, count: Self.words)
    }

    fileprivate func release() { pool.deallocate() }

    package mutating func next() -> UInt64 {
        if used == Self.words {
            var filled = 0
            while filled < Self.words * 8 {
                let count = getrandom(UnsafeMutableRawPointer(pool) + filled, Self.words * 8 - filled, 0)
                if count > 0 { filled += count }
            }
            used = 0
        }
        defer {
            pool[used] = 0
            used += 1
        }
        return pool[used]
    }
}

/// One sequence of random numbers: of an instance, an emulated link, a table's hash.
package final class RandomStream: RandomNumberGenerator {
    private var seeded: SeededGenerator?
    private var system: SystemGenerator?

    /// With a seed repeatable, without one the system's generator.
    package init(seed: UInt64?) {
        if let seed { seeded = SeededGenerator(seed: seed) } else { system = SystemGenerator() }
    }

    deinit { system?.release() }

    package func next() -> UInt64 {
        if seeded != nil { return seeded!.next() }
        return system!.next()
    }

    package func fill(_ bytes: UnsafeMutableRawPointer, _ length: Int) {
        var offset = 0
        while offset < length {
            var word = next()
            let count = min(8, length - offset)
            memcpy(bytes + offset, &word, count)
            offset += count
        }
    }
}

/// Randomness of a kernel. Every user has a sequence of its own, so that one more draw here does not change what
/// another sees in a repeatable run.
package final class RandomSource: RandomNumberGenerator {
    private struct InstanceStream {
        let variant: String
        let generation: Int
        let stream: RandomStream
    }

    private let seed: UInt64?
    private let host: RandomStream
    private var kernelName = ""
    /// How many sequences of a name were asked for: the second is another one.
    private var opened: [String: UInt64] = [:]
    private var instances: [UnsafeMutableRawPointer: InstanceStream] = [:]
    private var opsTable: UnsafeMutablePointer<alps_random_ops>?

    package init(seed: UInt64?) {
        self.seed = seed
        host = RandomStream(seed: seed)
    }

    deinit { opsTable?.deallocate() }

    /// Publishes "alps.random/1".
    package func attach(_ kernel: Kernel) {
        kernelName = kernel.name
        let table = UnsafeMutablePointer<alps_random_ops>.allocate(capacity: 1)
        table.initialize(
            to: alps_random_ops(
                size: UInt32(MemoryLayout<alps_random_ops>.size), reserved: 0, next: randomNext, fill: randomFill))
        opsTable = table
        kernel.plugins.publish("alps.random/1", ops: UnsafeRawPointer(table), scope: .perInstance)
    }

    /// 64 bits for the host itself.
    package func next() -> UInt64 { host.next() }

    package func fill(_ bytes: UnsafeMutableRawPointer, _ length: Int) { host.fill(bytes, length) }

    /// A sequence of its own for `name`.
    package func stream(named name: String) -> RandomStream {
        guard let seed else { return RandomStream(seed: nil) }
        let count = opened[name, default: 0]
        opened[name] = count + 1
        // FNV-1a: unlike Hasher, the same in every process.
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325 ^ seed
        for byte in "\(kernelName)/\(name)#\(count)".utf8 { hash = (hash ^ UInt64(byte)) &* 0x0000_0100_0000_01b3 }
        return RandomStream(seed: hash)
    }

    /// The instance's sequence, begun at its first draw.
    package func stream(of instance: PluginInstance) -> RandomStream {
        let key = Unmanaged.passUnretained(instance).toOpaque()
        // The address may have belonged to an instance that is gone.
        if let entry = instances[key], entry.generation == instance.generation, entry.variant == instance.variant {
            return entry.stream
        }
        let stream = stream(named: instance.variant)
        instances[key] = InstanceStream(variant: instance.variant, generation: instance.generation, stream: stream)
        return stream
    }

    /// Forgets the sequence of an instance that is gone.
    package func removeAll(of instance: PluginInstance) {
        instances[Unmanaged.passUnretained(instance).toOpaque()] = nil
    }
}

// MARK: "alps.random/1", `self` being the plugin instance

private func randomNext(_ context: UnsafeMutableRawPointer) -> UInt64 {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
        $0.kernel.random.stream(of: $0).next()
    }
}

private func randomFill(_ context: UnsafeMutableRawPointer, _ bytes: UnsafeMutableRawPointer, _ length: Int) {
    Unmanaged<PluginInstance>.fromOpaque(context)._withUnsafeGuaranteedRef {
        $0.kernel.random.stream(of: $0).fill(bytes, length)
    }
}

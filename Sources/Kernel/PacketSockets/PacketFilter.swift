import CLinux
import Glibc

/// One instruction of classic BPF, as struct sock_filter has it.
package struct FilterInstruction: Equatable, Sendable {
    package var code: UInt16
    /// How many instructions to leave out if a condition holds, and if it does not.
    package var jt: UInt8
    package var jf: UInt8
    package var k: UInt32

    package static let size = 8

    package init(_ code: UInt16, jt: UInt8 = 0, jf: UInt8 = 0, _ k: UInt32 = 0) {
        self.code = code
        self.jt = jt
        self.jf = jf
        self.k = k
    }
}

/// A program's filter (McCanne and Jacobson, 1993), with the extensions of Linux: checked once, then run on every frame.
///
/// The program comes from a client. What is accepted here cannot run for ever, since jumps only go forward, and cannot read
/// outside the frame, the scratch memory and itself.
package final class PacketFilter {
    /// BPF_MAXINSNS.
    package static let longest = 4096
    /// BPF_MEMWORDS.
    static let scratchWords = 16

    package let instructions: [FilterInstruction]
    let code: UnsafeMutablePointer<FilterInstruction>

    // Classes, sizes, modes and operations of an instruction's code (linux/bpf_common.h).
    enum Class {
        static let load: UInt16 = 0
        static let loadX: UInt16 = 1
        static let store: UInt16 = 2
        static let storeX: UInt16 = 3
        static let compute: UInt16 = 4
        static let jump: UInt16 = 5
        static let end: UInt16 = 6
        static let misc: UInt16 = 7
    }
    enum Size {
        static let word: UInt16 = 0x00
        static let half: UInt16 = 0x08
        static let byte: UInt16 = 0x10
    }
    enum Mode {
        static let immediate: UInt16 = 0x00
        static let absolute: UInt16 = 0x20
        static let indirect: UInt16 = 0x40
        static let memory: UInt16 = 0x60
        static let length: UInt16 = 0x80
        static let headerLength: UInt16 = 0xa0
    }
    enum Operation {
        static let add: UInt16 = 0x00
        static let subtract: UInt16 = 0x10
        static let multiply: UInt16 = 0x20
        static let divide: UInt16 = 0x30
        static let or: UInt16 = 0x40
        static let and: UInt16 = 0x50
        static let shiftLeft: UInt16 = 0x60
        static let shiftRight: UInt16 = 0x70
        static let negate: UInt16 = 0x80
        static let modulo: UInt16 = 0x90
        static let xor: UInt16 = 0xa0
    }
    enum Jump {
        static let always: UInt16 = 0x00
        static let equal: UInt16 = 0x10
        static let greater: UInt16 = 0x20
        static let atLeast: UInt16 = 0x30
        static let anyBit: UInt16 = 0x40
    }
    /// BPF_X: the operand is the index register, not `k`.
    static let fromX: UInt16 = 0x08
    /// BPF_A of a return.
    static let fromA: UInt16 = 0x10

    /// Where what is not of the frame lies among the offsets of absolute loads (SKF_AD_OFF, SKF_NET_OFF, SKF_LL_OFF).
    static let ancillaryStart = UInt32(bitPattern: -0x1000)
    static let networkStart = UInt32(bitPattern: -0x100000)
    static let linkStart = UInt32(bitPattern: -0x200000)

    /// What an absolute load above `ancillaryStart` brings (SKF_AD_*).
    enum Ancillary: UInt32 {
        case protocolNumber = 0, kind = 4, interface = 8, attribute = 12, nestedAttribute = 16, mark = 20, queue = 24,
            hardwareType = 28, receiveHash = 32, processor = 36, xorX = 40, vlanTag = 44, vlanTagPresent = 48,
            payloadOffset = 52, random = 56, vlanProtocol = 60
    }

    /// Nil, with EINVAL meant, for a program that Linux does not accept either.
    package init?(_ program: [FilterInstruction]) {
        guard Self.isValid(program) else { return nil }
        instructions = program
        code = .allocate(capacity: program.count)
        code.initialize(from: program, count: program.count)
    }

    /// The same from an array of struct sock_filter.
    package convenience init?(bytes: [UInt8]) {
        guard bytes.count % FilterInstruction.size == 0 else { return nil }
        self.init(
            bytes.withUnsafeBytes { raw in
                stride(from: 0, to: raw.count, by: FilterInstruction.size).map { offset in
                    FilterInstruction(
                        raw.loadUnaligned(fromByteOffset: offset, as: UInt16.self), jt: raw[offset + 2],
                        jf: raw[offset + 3], raw.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self))
                }
            })
    }

    deinit { code.deallocate() }

    /// As an array of struct sock_filter.
    package var bytes: [UInt8] {
        instructions.flatMap { instruction in
            withUnsafeBytes(of: instruction.code) { Array($0) } + [instruction.jt, instruction.jf]
                + withUnsafeBytes(of: instruction.k) { Array($0) }
        }
    }

    // MARK: Checking

    private static func isValid(_ program: [FilterInstruction]) -> Bool {
        guard (1...longest).contains(program.count) else { return false }
        for (place, instruction) in program.enumerated() {
            guard isKnown(instruction.code), isInOrder(instruction, place, program.count) else { return false }
        }
        guard let last = program.last?.code, last & 7 == Class.end else { return false }
        return storesBeforeLoads(program)
    }

    private static let knownCodes: Set<UInt16> = {
        var codes: Set<UInt16> = []
        let operations = [
            Operation.add, Operation.subtract, Operation.multiply, Operation.divide, Operation.or, Operation.and,
            Operation.shiftLeft, Operation.shiftRight, Operation.modulo, Operation.xor,
        ]
        for operation in operations {
            codes.insert(Class.compute | operation)
            codes.insert(Class.compute | operation | fromX)
        }
        codes.insert(Class.compute | Operation.negate)
        for size in [Size.word, Size.half, Size.byte] {
            codes.insert(Class.load | size | Mode.absolute)
            codes.insert(Class.load | size | Mode.indirect)
        }
        for register in [Class.load, Class.loadX] {
            for mode in [Mode.immediate, Mode.memory, Mode.length] { codes.insert(register | Size.word | mode) }
        }
        codes.insert(Class.loadX | Size.byte | Mode.headerLength)
        codes.formUnion([Class.store, Class.storeX, Class.misc, Class.misc | 0x80, Class.end, Class.end | fromA])
        codes.insert(Class.jump | Jump.always)
        for condition in [Jump.equal, Jump.greater, Jump.atLeast, Jump.anyBit] {
            codes.insert(Class.jump | condition)
            codes.insert(Class.jump | condition | fromX)
        }
        return codes
    }()

    private static func isKnown(_ code: UInt16) -> Bool { knownCodes.contains(code) }

    /// The operand and the targets, for an instruction at `place` of `count`.
    private static func isInOrder(_ instruction: FilterInstruction, _ place: Int, _ count: Int) -> Bool {
        let after = count - place - 1
        switch instruction.code {
        case Class.compute | Operation.divide, Class.compute | Operation.modulo: return instruction.k != 0
        case Class.compute | Operation.shiftLeft, Class.compute | Operation.shiftRight: return instruction.k < 32
        case Class.load | Mode.memory, Class.loadX | Mode.memory, Class.store, Class.storeX:
            return instruction.k < UInt32(scratchWords)
        case Class.jump | Jump.always: return Int(instruction.k) < after
        case _ where instruction.code & 7 == Class.jump: return Int(instruction.jt) < after && Int(instruction.jf) < after
        case Class.load | Size.word | Mode.absolute, Class.load | Size.half | Mode.absolute,
            Class.load | Size.byte | Mode.absolute:
            return instruction.k < ancillaryStart || Ancillary(rawValue: instruction.k &- ancillaryStart) != nil
        default: return true
        }
    }

    /// Scratch memory is read only where every way to the instruction has written it.
    private static func storesBeforeLoads(_ program: [FilterInstruction]) -> Bool {
        /// Words that are written for certain, by instruction.
        var written = [UInt16](repeating: .max, count: program.count)
        var now: UInt16 = 0
        for (place, instruction) in program.enumerated() {
            now &= written[place]
            switch instruction.code {
            case Class.store, Class.storeX: now |= 1 << UInt16(instruction.k)
            case Class.load | Mode.memory, Class.loadX | Mode.memory:
                guard now & 1 << UInt16(instruction.k) != 0 else { return false }
            case Class.jump | Jump.always:
                written[place + 1 + Int(instruction.k)] &= now
                now = .max
            case _ where instruction.code & 7 == Class.jump:
                written[place + 1 + Int(instruction.jt)] &= now
                written[place + 1 + Int(instruction.jf)] &= now
                now = .max
            default: break
            }
        }
        return true
    }
}

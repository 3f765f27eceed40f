import Kernel
import PluginAPI

extension Operation {
    static let memory = [
        Operation(name: "mbuf, made and freed") { _ in
            let pool = MbufPool()
            return { count in
                for _ in 0..<count {
                    if let packet = pool.packet(headroom: 64) { pool.freePacket(packet) }
                }
            }
        },
        Operation(name: "cluster, made and freed") { _ in
            let pool = MbufPool()
            return { count in
                for _ in 0..<count {
                    if let packet = pool.cluster(headroom: 66, capacity: 1500) { pool.freePacket(packet) }
                }
            }
        },
        Operation(name: "64 mbufs, made and freed as a list") { _ in
            let pool = MbufPool()
            return { count in
                for _ in 0..<count {
                    var first: Mbuf?
                    for _ in 0..<64 {
                        guard let packet = pool.packet(headroom: 64) else { break }
                        packet.pointee.nextpkt = first
                        first = packet
                    }
                    pool.free(first)
                }
            }
        },
    ]

    static let checksums = [64, 1460, 65536].map { length in
        Operation(name: "checksum of \(length) bytes") { _ in
            let bytes = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 31) }
            return { count in
                bytes.withUnsafeBytes { buffer in
                    guard let base = buffer.baseAddress else { return }
                    for _ in 0..<count { keep(InternetChecksum.sum(base, length)) }
                }
            }
        }
    }
}

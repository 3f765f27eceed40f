import CLinux
import Glibc

/// One request of ioctl(2) about sockets and interfaces, and what is done with it.
package struct SocketRequest: Sendable {
    package enum Treatment: Sendable {
        case acts
        case refused(Int32)
    }

    package let number: Int32
    package let name: String
    package let treatment: Treatment
    /// Its argument begins with an interface's name: one that does not exist is ENODEV.
    var namesInterface = false
    package var note = ""

    /// Those that Linux has for TCP, UDP and raw IPv4 sockets.
    package static let all: [SocketRequest] =
        acting([
            (0x541b, "FIONREAD"), (0x5411, "SIOCOUTQ"), (0x894b, "SIOCOUTQNSD"), (0x8905, "SIOCATMARK"),
            (0x890b, "SIOCADDRT"), (0x890c, "SIOCDELRT"), (0x8910, "SIOCGIFNAME"), (0x8912, "SIOCGIFCONF"),
            (0x8913, "SIOCGIFFLAGS"), (0x8914, "SIOCSIFFLAGS"), (0x8915, "SIOCGIFADDR"), (0x8916, "SIOCSIFADDR"),
            (0x8917, "SIOCGIFDSTADDR"), (0x8919, "SIOCGIFBRDADDR"), (0x891b, "SIOCGIFNETMASK"), (0x891c, "SIOCSIFNETMASK"),
            (0x891d, "SIOCGIFMETRIC"), (0x8921, "SIOCGIFMTU"), (0x8922, "SIOCSIFMTU"), (0x8927, "SIOCGIFHWADDR"),
            (0x8933, "SIOCGIFINDEX"), (0x8942, "SIOCGIFTXQLEN"), (0x8970, "SIOCGIFMAP"),
        ])
        + [
            refused(0x8906, "SIOCGSTAMP", ENOENT, "SO_TIMESTAMP tells it"),
            refused(0x8907, "SIOCGSTAMPNS", ENOENT, "SO_TIMESTAMPNS tells it"),
            refused(0x890d, "SIOCRTMSG", EINVAL, "as on Linux"),
            refused(0x8918, "SIOCSIFDSTADDR", EOPNOTSUPP, interface: true, "no interface is point-to-point"),
            refused(0x891a, "SIOCSIFBRDADDR", EOPNOTSUPP, interface: true, "it follows from address and mask"),
            refused(0x891e, "SIOCSIFMETRIC", EOPNOTSUPP, interface: true, "as on Linux"),
            refused(0x8923, "SIOCSIFNAME", EOPNOTSUPP, interface: true, "names are given at the start"),
            refused(0x8924, "SIOCSIFHWADDR", EOPNOTSUPP, interface: true, "hardware addresses are given at the start"),
            refused(0x8929, "SIOCGIFSLAVE", EINVAL, interface: true, "as on Linux"),
            refused(0x8930, "SIOCSIFSLAVE", EINVAL, interface: true, "as on Linux"),
            refused(0x8931, "SIOCADDMULTI", EINVAL, interface: true, "IP_ADD_MEMBERSHIP does it"),
            refused(0x8932, "SIOCDELMULTI", EINVAL, interface: true, "IP_DROP_MEMBERSHIP does it"),
            refused(0x8934, "SIOCSIFPFLAGS", EINVAL, "as on Linux"),
            refused(0x8935, "SIOCGIFPFLAGS", EINVAL, "as on Linux"),
            refused(0x8937, "SIOCSIFHWBROADCAST", EOPNOTSUPP, interface: true, "it is Ethernet's"),
            refused(0x8940, "SIOCGIFBR", EOPNOTSUPP, "there are no bridges"),
            refused(0x8941, "SIOCSIFBR", EOPNOTSUPP, "there are no bridges"),
            refused(0x8943, "SIOCSIFTXQLEN", EOPNOTSUPP, interface: true, "queues have one length"),
            refused(0x8946, "SIOCETHTOOL", EOPNOTSUPP, interface: true, "`alps stat` has the counters"),
            refused(0x8947, "SIOCGMIIPHY", EOPNOTSUPP, interface: true, "there is no hardware"),
            refused(0x8948, "SIOCGMIIREG", EOPNOTSUPP, interface: true, "there is no hardware"),
            refused(0x8949, "SIOCSMIIREG", EOPNOTSUPP, interface: true, "there is no hardware"),
            refused(0x894a, "SIOCWANDEV", EOPNOTSUPP, interface: true, "there is no hardware"),
            refused(0x8953, "SIOCDARP", ENXIO, "`alps arp` does it"),
            refused(0x8954, "SIOCGARP", ENXIO, "`alps arp` does it"),
            refused(0x8955, "SIOCSARP", ENXIO, "`alps arp` does it"),
            refused(0x8971, "SIOCSIFMAP", EOPNOTSUPP, interface: true, "there is no hardware"),
            refused(0x8982, "SIOCGIFVLAN", ENOPKG, "there are no VLANs"),
            refused(0x8983, "SIOCSIFVLAN", ENOPKG, "there are no VLANs"),
            refused(0x8990, "SIOCBONDENSLAVE", EOPNOTSUPP, interface: true, "there are no bonds"),
            refused(0x89a0, "SIOCBRADDBR", ENOPKG, "there are no bridges"),
            refused(0x89a1, "SIOCBRDELBR", ENOPKG, "there are no bridges"),
            refused(0x89b0, "SIOCSHWTSTAMP", EOPNOTSUPP, interface: true, "there is no hardware"),
            refused(0x89b1, "SIOCGHWTSTAMP", EOPNOTSUPP, interface: true, "there is no hardware"),
        ]

    private static func acting(_ requests: [(Int32, String)]) -> [SocketRequest] {
        requests.map { SocketRequest(number: $0.0, name: $0.1, treatment: .acts) }
    }

    private static func refused(
        _ number: Int32, _ name: String, _ error: Int32, interface: Bool = false, _ note: String
    ) -> SocketRequest {
        SocketRequest(number: number, name: name, treatment: .refused(error), namesInterface: interface, note: note)
    }

    private static let byNumber = Dictionary(uniqueKeysWithValues: all.map { ($0.number, $0) })

    static func find(_ number: UInt) -> SocketRequest? { byNumber[Int32(truncatingIfNeeded: number)] }

    /// The list of docs/limitations.md.
    package static var markdown: String {
        var lines = ["", "### Requests of ioctl(2) that are refused", "", "| request | error | |", "|---|---|---|"]
        for request in all {
            guard case .refused(let error) = request.treatment, request.note != "as on Linux" else { continue }
            lines.append("| `\(request.name)` | \(SocketOption.errorName(error)) | \(request.note) |")
        }
        return lines.joined(separator: "\n") + "\n"
    }
}

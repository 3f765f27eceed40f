/// Names of ICMP types and codes in scripts (RFC 792, 1122, 1812).
enum ICMPNames {
    static let types: [(name: String, number: UInt8)] = [
        ("echo_reply", 0), ("unreachable", 3), ("source_quench", 4), ("redirect", 5), ("echo_request", 8),
        ("time_exceeded", 11), ("parameter_problem", 12), ("timestamp_request", 13), ("timestamp_reply", 14),
        ("information_request", 15), ("information_reply", 16), ("address_mask_request", 17),
        ("address_mask_reply", 18),
    ]

    /// Codes of "unreachable", by number.
    static let unreachableCodes = [
        "net_unreachable", "host_unreachable", "protocol_unreachable", "port_unreachable", "frag_needed",
        "source_route_failed", "net_unknown", "host_unknown", "source_host_isolated", "net_prohibited",
        "host_prohibited", "net_unreachable_for_tos", "host_unreachable_for_tos", "packet_filtered",
        "precedence_violation", "precedence_cutoff",
    ]

    static let timeExceededCodes = ["ttl_exceeded_in_transit", "fragment_reassembly_time_exceeded"]

    static func type(_ name: String) -> UInt8? {
        if name.hasPrefix("type_") { return UInt8(name.dropFirst(5)) }
        return types.first { $0.name == name }?.number
    }

    static func code(_ name: String, ofType type: UInt8) -> UInt8? {
        if name.hasPrefix("code_") { return UInt8(name.dropFirst(5)) }
        // FreeBSD's suite calls it so.
        if type == 11, name == "frag_reass_exceeded" { return 1 }
        if type == 11 { return timeExceededCodes.firstIndex(of: name).map { UInt8($0) } }
        guard type == 3 else { return nil }
        return unreachableCodes.firstIndex(of: name).map { UInt8($0) }
    }

    /// "unreachable frag_needed"
    static func text(type: UInt8, code: UInt8) -> String {
        let name = types.first { $0.number == type }?.name ?? "type_\(type)"
        if type == 3, Int(code) < unreachableCodes.count { return "\(name) \(unreachableCodes[Int(code)])" }
        return code == 0 ? name : "\(name) code_\(code)"
    }
}

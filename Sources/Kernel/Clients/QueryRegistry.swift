package import Foundation

/// What tools may ask of a host, by name. Requests and replies are JSON (Queries/QueryReplies.swift).
package final class QueryRegistry {
    private var handlers: [String: (Data) throws -> Data] = [:]

    package init() {}

    /// Makes a query known.
    package func add<Request: Decodable, Reply: Encodable>(
        _ name: String, _ body: @escaping (Request) throws -> Reply
    ) {
        handlers[name] = { data in
            let request = try JSONDecoder().decode(Request.self, from: data)
            return try JSONEncoder().encode(body(request))
        }
    }

    func removeAll() { handlers.removeAll() }

    /// Answers one. An unknown name or bad arguments are a KernelError.
    package func answer(_ name: String, _ arguments: Data) throws -> Data {
        guard let handler = handlers[name] else {
            throw KernelError(22, "the host knows no query '\(name)': it may be older than this tool")
        }
        do { return try handler(arguments) } catch let error as DecodingError {
            throw KernelError(22, "query '\(name)': bad arguments (\(error))")
        }
    }
}

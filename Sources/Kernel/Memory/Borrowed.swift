/// A reference that is not counted, for what runs once a packet or once a turn. What it names outlives every use; the
/// property that holds it says why.
struct Borrowed<Object: AnyObject> {
    private let reference: Unmanaged<Object>

    @inline(__always)
    init(_ object: Object) { reference = .passUnretained(object) }

    @inline(__always)
    func callAsFunction<Result>(_ body: (Object) throws -> Result) rethrows -> Result {
        try reference._withUnsafeGuaranteedRef(body)
    }

    func isSame(_ other: Self) -> Bool { reference.toOpaque() == other.reference.toOpaque() }

    func names(_ object: Object) -> Bool { reference.toOpaque() == Unmanaged.passUnretained(object).toOpaque() }
}

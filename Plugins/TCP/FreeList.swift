import PluginKit

/// What a free list can hold: while it does, `next` is the list's.
protocol FreeListed {
    var next: UnsafeMutablePointer<Self>? { get set }
}

/// Memory of one kind that nobody needs at present.
struct FreeList<Element: FreeListed> {
    private var first: UnsafeMutablePointer<Element>?
    private var count = 0

    /// Not initialized; nil: no memory. The last one that was given back is likely to be in the cache.
    @inline(__always)
    mutating func take(_ services: HostServices) -> UnsafeMutablePointer<Element>? {
        guard let element = first else { return services.allocate(Element.self) }
        first = element.pointee.next
        count -= 1
        return element
    }

    /// Keeps `most` at most.
    @inline(__always)
    mutating func put(_ element: UnsafeMutablePointer<Element>, most: Int, _ services: HostServices) {
        guard count < most else { return services.free(element) }
        element.pointee.next = first
        first = element
        count += 1
    }

    mutating func removeAll(_ services: HostServices) {
        while let element = first {
            first = element.pointee.next
            services.free(element)
        }
        count = 0
    }
}

/// Plugin libraries for many kernels of a lab that come and go: each file is read and mapped once and stays until the
/// store goes. A live host has none, since its files may be replaced while it runs.
package final class PluginImages {
    private var images: [String: PluginImage] = [:]

    package init() {}

    func find(_ path: String) -> PluginImage? { images[path] }

    func keep(_ image: PluginImage, _ path: String) { images[path] = image }
}

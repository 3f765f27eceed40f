import PluginAPI
import PluginKit

@c(alps_plugin_entry)
public func pluginEntry(_ out: UnsafeMutablePointer<alps_descriptor>) -> Int32 {
    out.pointee.magic = ALPS_MAGIC
    out.pointee.create = { host, variant, instance in
        guard let services = HostServices(host) else { return ALPS_ENOSYS }
        guard let p = services.allocate(HostServices.self) else { return ALPS_ENOMEM }
        p.initialize(to: services)
        services.log(2, "hello")
        instance.pointee = UnsafeMutableRawPointer(p)
        return 0
    }
    return 0
}

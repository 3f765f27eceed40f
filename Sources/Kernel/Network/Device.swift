import PluginAPI

/// What carries frames for an interface: a tap, a loop, an end of an emulated link.
open class Device {
    /// The interface above, which owns the device: set when it is added, nil again when it goes.
    package unowned(unsafe) var interface: Interface? {
        didSet { borrowedInterface = interface.map { Borrowed($0) } }
    }
    private(set) var borrowedInterface: Borrowed<Interface>?
    /// ALPS_IFCAP_*: what the device does on output.
    package let capabilities: UInt32

    /// An emulated link in front of the device, on the way in.
    package var receiving: EmulatedPath?

    /// Room in front of a received frame. With the 14 bytes of an Ethernet header it puts the network header on a
    /// multiple of 16, and a reply that reuses the packet has space for its headers.
    static let headroom = 66

    package init(capabilities: UInt32) { self.capabilities = capabilities }

    /// Sends a list of packets with their link headers. Every packet is the device's afterwards. [consumes]
    package func transmit(_ list: Mbuf) {
        interface?.kernel.mbufs.free(list)
    }

    /// Packets that wait inside the device for the next turn.
    package var hasQueuedPackets: Bool { false }

    /// Hands on what has waited since the turn before.
    package func drainQueue() {}

    /// Writes what it has held back in this turn; at its end.
    package func flush() {}

    /// Buffers kept ready for input.
    package var spareBuffers: Int { 0 }

    /// Frames for other stations are wanted too, or no longer. A device that has no filter of addresses does nothing.
    package func setPromiscuous(_ on: Bool) {}

    /// The interface is going away: release what the system gave.
    package func close() {}
}

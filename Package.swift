// swift-tools-version: 6.2
import PackageDescription

let root = Context.packageDirectory

/// Settings of everything that is loaded into a foreign process or into the host at run time: no Swift runtime, one
/// optimised unit, and only what the version script names is exported.
func embedded(_ more: [String] = []) -> [SwiftSetting] {
    [.enableExperimentalFeature("Embedded"), .unsafeFlags(["-wmo", "-enforce-exclusivity=unchecked"] + more)]
}

func versionScript(_ path: String) -> [LinkerSetting] {
    [.unsafeFlags(["-Xlinker", "--version-script=\(root)/\(path)", "-Xlinker", "--as-needed"])]
}

func plugin(_ name: String) -> Target {
    .target(
        name: name, dependencies: ["PluginAPI", "PluginKit"], path: "Plugins/\(name)", exclude: ["exports.map"],
        swiftSettings: embedded(), linkerSettings: versionScript("Plugins/\(name)/exports.map"))
}

func pluginProduct(_ name: String) -> Product {
    .library(name: "alps-\(name.lowercased())", type: .dynamic, targets: [name])
}

let plugins = ["ARP", "IPv4", "ICMP", "UDP", "TCP"]

/// The kernel environment and the lab switch fibers below Swift's exclusivity checks (docs/architecture.md, Fibers).
let kernelSettings: [SwiftSetting] = [
    .unsafeFlags(["-enforce-exclusivity=unchecked"]), .enableUpcomingFeature("InternalImportsByDefault"),
]

let package = Package(
    name: "alps",
    products: [
        .executable(name: "alps", targets: ["Host"]),
        .library(name: "alps-shim", type: .dynamic, targets: ["Shim"]),
        .library(name: "alps-packetdrill", type: .dynamic, targets: ["Packetdrill"]),
    ] + plugins.map(pluginProduct),
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
    ],
    targets: [
        // The two contracts: headers only.
        .target(name: "PluginAPI", path: "Sources/PluginAPI"),
        .target(name: "ClientAPI", path: "Sources/ClientAPI"),
        // Embedded side.
        .target(name: "PluginKit", dependencies: ["PluginAPI"], path: "Sources/PluginKit", swiftSettings: embedded()),
        .target(name: "CLibc", path: "Sources/CLibc"),
        .target(name: "ShimEntry", dependencies: ["ClientAPI", "CLibc"], path: "Sources/ShimEntry"),
        .target(
            name: "Shim", dependencies: ["ClientAPI", "CLibc", "ShimEntry"], path: "Sources/Shim",
            exclude: ["exports.map", "names.ld"], swiftSettings: embedded(),
            linkerSettings: versionScript("Sources/Shim/exports.map")
                + [.unsafeFlags(["-Xlinker", "\(root)/Sources/Shim/names.ld"])]),
        // Host side.
        .systemLibrary(name: "CFFI", path: "Sources/CFFI", pkgConfig: "libffi", providers: [.apt(["libffi-dev"])]),
        .target(name: "FiberSwitch", path: "Sources/FiberSwitch"),
        .target(name: "CLinux", path: "Sources/CLinux"),
        .target(
            name: "Kernel",
            dependencies: [
                "PluginAPI", "ClientAPI", "CFFI", "FiberSwitch", "CLinux",
                .product(name: "Logging", package: "swift-log"),
            ],
            path: "Sources/Kernel", swiftSettings: kernelSettings),
        .target(
            name: "Lab", dependencies: ["Kernel", "CLinux"], path: "Sources/Lab", swiftSettings: kernelSettings),
        .executableTarget(
            name: "Host",
            dependencies: [
                "Kernel", "Lab", "CLinux", .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log"),
            ],
            path: "Sources/Host", swiftSettings: kernelSettings),
        .target(name: "CPacketdrill", path: "Sources/CPacketdrill"),
        .target(
            name: "Packetdrill", dependencies: ["Kernel", "Lab", "PluginAPI", "CPacketdrill"], path: "Sources/Packetdrill",
            exclude: ["exports.map"], swiftSettings: kernelSettings,
            linkerSettings: versionScript("Sources/Packetdrill/exports.map")),
        // Tests. PluginKit is built a second time as an ordinary module, since an ordinary target cannot import an
        // Embedded one.
        .target(name: "PluginKitHosted", dependencies: ["PluginAPI"], path: "Sources/PluginKitHosted"),
        .testTarget(name: "KernelTests", dependencies: ["Kernel", "Lab"], path: "Tests/KernelTests", swiftSettings: kernelSettings),
        .testTarget(
            name: "ProtocolTests", dependencies: ["Kernel", "Lab"], path: "Tests/ProtocolTests",
            swiftSettings: kernelSettings),
        .testTarget(name: "PluginKitTests", dependencies: ["PluginKitHosted"], path: "Tests/PluginKitTests"),
    ] + plugins.map(plugin),
    cLanguageStandard: .c11
)

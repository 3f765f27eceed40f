// swift-tools-version: 6.1
import PackageDescription

// Micro-benchmarks of the kernel environment, in a package of their own: the main one neither builds them nor depends on
// their library. The kernel's sources are links, since what they declare is for one package only.
let kernelSettings: [SwiftSetting] = [
    .unsafeFlags(["-enforce-exclusivity=unchecked"]), .enableUpcomingFeature("InternalImportsByDefault"),
]

let package = Package(
    name: "alps-micro",
    dependencies: [
        .package(url: "https://github.com/ordo-one/benchmark", exact: "1.38.1", traits: []),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
    ],
    targets: [
        .target(name: "PluginAPI"),
        .target(name: "ClientAPI"),
        .systemLibrary(name: "CFFI", pkgConfig: "libffi", providers: [.apt(["libffi-dev"])]),
        .target(name: "FiberSwitch"),
        .target(name: "CLinux"),
        .target(
            name: "Kernel",
            dependencies: [
                "PluginAPI", "ClientAPI", "CFFI", "FiberSwitch", "CLinux", .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: kernelSettings),
        .target(name: "Lab", dependencies: ["Kernel", "CLinux"], swiftSettings: kernelSettings),
        .target(name: "Operations", dependencies: ["Kernel", "Lab", "PluginAPI"], swiftSettings: kernelSettings),
        .executableTarget(name: "OperationRunner", dependencies: ["Operations"]),
        .executableTarget(
            name: "Stack", dependencies: ["Operations", .product(name: "Benchmark", package: "benchmark")],
            path: "Benchmarks/Stack", plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]),
    ],
    cLanguageStandard: .c11
)

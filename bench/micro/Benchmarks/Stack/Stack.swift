import Benchmark
import Foundation
import Operations

// Times for people. What is checked are counts, by bench/micro/check.
let benchmarks: @Sendable () -> Void = {
    let plugins = ProcessInfo.processInfo.environment["ALPS_BIN"] ?? "../../.build/release"
    Benchmark.defaultConfiguration.metrics = [.wallClock, .throughput]
    Benchmark.defaultConfiguration.scalingFactor = .kilo
    Benchmark.defaultConfiguration.maxDuration = .seconds(1)
    for operation in Operation.all {
        Benchmark(operation.name) { benchmark in
            let run = try operation.prepare(plugins)
            run(1000)
            benchmark.startMeasurement()
            run(benchmark.scaledIterations.count)
            benchmark.stopMeasurement()
        }
    }
}

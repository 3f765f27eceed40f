import Foundation
import Operations

// Does one operation as often as it is told and nothing else: for tools that count what a process does. The difference of
// two runs with different numbers is what the operation costs.
let arguments = CommandLine.arguments
if arguments.count == 2, arguments[1] == "--list" {
    for operation in Operation.all { print(operation.name) }
    exit(0)
}
guard arguments.count == 4, let count = Int(arguments[3]), count >= 0,
    let operation = Operation.all.first(where: { $0.name == arguments[2] })
else {
    FileHandle.standardError.write(Data("usage: OperationRunner --list | PLUGIN-DIRECTORY OPERATION COUNT\n".utf8))
    exit(2)
}
do {
    let run = try operation.prepare(arguments[1])
    run(count)
} catch {
    FileHandle.standardError.write(Data("\(error)\n".utf8))
    exit(1)
}

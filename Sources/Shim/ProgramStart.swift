import CLibc
import ShimEntry

// Programs started with an environment of their own making: the shim's variables are put back, so that
// `env -i`-like environments do not lose the stack. With the shim's variables in place these calls pass through.
// In-band for good (client.h, 5): what a program without the shim inherits here. Every start passes `complete`.

@c(alps_shim_execve)
public func execveWithEnvironment(
    _ path: UnsafePointer<CChar>?, _ arguments: StringVector?, _ environment: StringVector?
) -> Int32 {
    ensureReady()
    let completed = complete(environment)
    let result = real.execve.unsafelyUnwrapped(path, arguments, completed.vector)
    release(completed)
    return result
}

@c(alps_shim_execvpe)
public func execvpeWithEnvironment(
    _ file: UnsafePointer<CChar>?, _ arguments: StringVector?, _ environment: StringVector?
) -> Int32 {
    ensureReady()
    let completed = complete(environment)
    let result = real.execvpe.unsafelyUnwrapped(file, arguments, completed.vector)
    release(completed)
    return result
}

@c(alps_entry_execve)
public func shimExecve(
    _ path: UnsafePointer<CChar>?, _ arguments: StringVector?, _ environment: StringVector?
) -> Int32 {
    execveWithEnvironment(path, arguments, environment)
}

@c(alps_entry_execv)
public func shimExecv(_ path: UnsafePointer<CChar>?, _ arguments: StringVector?) -> Int32 {
    execveWithEnvironment(path, arguments, currentEnvironment())
}

@c(alps_entry_execvp)
public func shimExecvp(_ file: UnsafePointer<CChar>?, _ arguments: StringVector?) -> Int32 {
    execvpeWithEnvironment(file, arguments, currentEnvironment())
}

@c(alps_entry_execvpe)
public func shimExecvpe(
    _ file: UnsafePointer<CChar>?, _ arguments: StringVector?, _ environment: StringVector?
) -> Int32 {
    execvpeWithEnvironment(file, arguments, environment)
}

@c(alps_entry_posix_spawn)
public func shimPosixSpawn(
    _ process: UnsafeMutablePointer<pid_t>?, _ path: UnsafePointer<CChar>?, _ actions: UnsafeRawPointer?,
    _ attributes: UnsafeRawPointer?, _ arguments: StringVector?, _ environment: StringVector?
) -> Int32 {
    ensureReady()
    let completed = complete(environment)
    let result = real.posix_spawn.unsafelyUnwrapped(process, path, actions, attributes, arguments, completed.vector)
    release(completed)
    return result
}

@c(alps_entry_posix_spawnp)
public func shimPosixSpawnp(
    _ process: UnsafeMutablePointer<pid_t>?, _ file: UnsafePointer<CChar>?, _ actions: UnsafeRawPointer?,
    _ attributes: UnsafeRawPointer?, _ arguments: StringVector?, _ environment: StringVector?
) -> Int32 {
    ensureReady()
    let completed = complete(environment)
    let result = real.posix_spawnp.unsafelyUnwrapped(process, file, actions, attributes, arguments, completed.vector)
    release(completed)
    return result
}

@c(alps_entry_fexecve)
public func shimFexecve(
    _ descriptor: Int32, _ arguments: StringVector?, _ environment: StringVector?
) -> Int32 {
    ensureReady()
    let completed = complete(environment)
    let result = real.fexecve.unsafelyUnwrapped(descriptor, arguments, completed.vector)
    release(completed)
    return result
}

@c(alps_entry_execveat)
public func shimExecveat(
    _ directory: Int32, _ path: UnsafePointer<CChar>?, _ arguments: StringVector?, _ environment: StringVector?,
    _ flags: Int32
) -> Int32 {
    ensureReady()
    let completed = complete(environment)
    let result = real.execveat.unsafelyUnwrapped(directory, path, arguments, completed.vector, flags)
    release(completed)
    return result
}

// MARK: - completing an environment

private struct CompletedEnvironment {
    var vector: StringVector?
    /// Mapped memory to give back, 0 bytes if the program's own vector is used.
    var memory: UnsafeMutableRawPointer?
    var bytes: Int
}

private func currentEnvironment() -> StringVector? {
    UnsafePointer(alps_environment())
}

private func release(_ environment: CompletedEnvironment) {
    let error = alps_errno()
    if let memory = environment.memory, alps_shim_borrows_memory() == 0 { munmap(memory, environment.bytes) }
    alps_set_errno(error)
}

/// The environment with LD_PRELOAD naming this library and the ALPS_* variables. Mapped memory: exec is allowed in
/// signal handlers and after fork in a process with threads, malloc is not.
private func complete(_ environment: StringVector?) -> CompletedEnvironment {
    let unchanged = CompletedEnvironment(vector: environment, memory: nil, bytes: 0)
    guard activation.active, let library = activation.library else { return unchanged }
    returnAllToPairs(inheritedOnly: true)
    var count = 0
    var preload: UnsafePointer<CChar>?
    if let environment {
        while let each = environment[count] {
            if strncmp(each, "LD_PRELOAD=", 11) == 0 { preload = UnsafePointer(each + 11) }
            count += 1
        }
    }
    let preloads = preload.map { strstr($0, library) != nil } ?? false
    let missing =
        isMissing(activation.socketVariable, environment) || isMissing(activation.doorwayVariable, environment)
        || isMissing(activation.bypassVariable, environment) || isMissing(activation.strictVariable, environment)
    if preloads, !missing { return unchanged }

    let libraryLength = strlen(library)
    let preloadLength = preload.map { strlen($0) } ?? 0
    let textBytes = 11 + libraryLength + 1 + preloadLength + 1
    let vectorBytes = (count + 7) * MemoryLayout<UnsafeMutablePointer<CChar>?>.stride
    let linkBytes = 32
    guard let memory = alps_map_anonymous(linkBytes + vectorBytes + textBytes) else { return unchanged }
    // In a child of vfork it stays mapped in the parent when this process is another program.
    if alps_shim_borrows_memory() != 0 { alps_shim_keep_mapping(memory, linkBytes + vectorBytes + textBytes) }
    let vector = (memory + linkBytes).bindMemory(to: UnsafeMutablePointer<CChar>?.self, capacity: count + 7)
    let text = (memory + linkBytes + vectorBytes).bindMemory(to: CChar.self, capacity: textBytes)

    var used = 0
    if let environment {
        for index in 0..<count {
            let each = environment[index]
            if !preloads, let each, strncmp(each, "LD_PRELOAD=", 11) == 0 { continue }
            vector[used] = each
            used += 1
        }
    }
    if !preloads {
        memcpy(text, "LD_PRELOAD=", 11)
        memcpy(text + 11, library, libraryLength)
        if let preload, preloadLength > 0 {
            text[11 + libraryLength] = 0x3a  // :
            memcpy(text + 12 + libraryLength, preload, preloadLength)
        }
        vector[used] = text
        used += 1
    }
    add(activation.socketVariable, environment, vector, &used)
    add(activation.doorwayVariable, environment, vector, &used)
    add(activation.bypassVariable, environment, vector, &used)
    add(activation.strictVariable, environment, vector, &used)
    return CompletedEnvironment(vector: UnsafePointer(vector), memory: memory, bytes: linkBytes + vectorBytes + textBytes)
}

private func add(
    _ variable: UnsafeMutablePointer<CChar>?, _ environment: StringVector?,
    _ vector: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>, _ used: inout Int
) {
    guard isMissing(variable, environment) else { return }
    vector[used] = variable
    used += 1
}

/// True if we have the variable and the environment does not, under whatever value.
private func isMissing(_ variable: UnsafeMutablePointer<CChar>?, _ environment: StringVector?) -> Bool {
    guard let variable else { return false }
    guard let environment else { return true }
    var nameLength = 0
    while variable[nameLength] != 0x3d { nameLength += 1 }
    var index = 0
    while let each = environment[index] {
        if strncmp(each, variable, nameLength + 1) == 0 { return false }
        index += 1
    }
    return true
}

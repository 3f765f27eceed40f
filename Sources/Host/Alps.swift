import ArgumentParser

/// The root command.
@main
struct Alps: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "alps",
        abstract: "A user-level network stack host whose protocols are plugins.",
        discussion: """
            Start a stack on tap0, run a program over it, look at it, stop it:

              alps up
              alps run -- curl http://10.11.12.1/
              alps netstat
              alps down

            `alps up` needs root (it makes a tap interface). The stack has address 10.11.12.13, the kernel's side of \
            the tap 10.11.12.1. `alps host` does the same in the foreground with everything settable.
            """,
        version: HostVersion.text,
        subcommands: [
            HostCommand.self, UpCommand.self, DownCommand.self, RunCommand.self, PluginCommand.self,
            SysctlCommand.self, NetstatCommand.self, StatCommand.self, ProcessesCommand.self, RouteCommand.self,
            ArpCommand.self, PktCommand.self, TortureCommand.self, OptionsCommand.self,
            SuperviseCommand.self,
        ])
}

enum HostVersion {
    static let text = "0.1.0"
}

package final class ControlServer { package func stop() {} }

"""The paths that are compared: a client with kernel sockets on one side, a server over a stack on the other.

A path lives in fresh namespaces for one run. `peer` starts a program on the kernel's side, `application` one over the
stack; both get the CPUs of their role.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import builds
import placement
from namespaces import BenchError, Namespace, end, pinned, wait_for_line, wait_until

STACK, KERNEL = "10.11.12.13", "10.11.12.1"


class Path:
    """One run over one stack."""

    key = title = None

    def __init__(self, cpus, offload=True, host_options=()):
        self.cpus = cpus
        self.offload = offload
        self.host_options = host_options
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="alps-bench-"))
        self.directory.chmod(0o755)
        self.namespaces = []
        self.server_process = None
        self.host_pids = []
        self.stack_address, self.kernel_address = STACK, KERNEL
        self.client_namespace = self.namespace()
        try:
            self.open()
        except BaseException:
            self.close()
            raise

    @classmethod
    def check(cls):
        """Raises Unavailable if the path cannot be had on this machine. Builds what it needs."""

    def namespace(self):
        namespace = Namespace()
        self.namespaces.append(namespace)
        return namespace

    def open(self):
        raise NotImplementedError

    def steer(self):
        """Has the system's receive work done on other CPUs than the host's, on a path that does not see to that itself."""

    def close(self):
        for namespace in reversed(self.namespaces):
            namespace.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- programs

    def peer(self, *argv, **options):
        return self.client_namespace.spawn(pinned(argv, self.cpus["peer"]), **options)

    def application(self, *argv, **options):
        raise BenchError(f"{self.title} runs no programs")

    def wait_listening(self, port):
        """Until a program over the stack listens."""
        raise BenchError(f"{self.title} runs no programs")

    def serve(self):
        """Starts the load program's server over the stack, unless the path has one of its own."""
        if self.server_process is None:
            self.server_process = self.application(builds.load_program(), "serve")
            wait_for_line(self.server_process, "ready")

    def watched(self):
        """The processes whose CPU time is the stack's and the application's."""
        pids = list(self.host_pids)
        if self.server_process is not None and self.server_process.pid not in pids:
            pids.append(self.server_process.pid)
        return pids

    def load(self, *words, seconds, timeout=None, watched=None, **options):
        """Runs the load program's client and returns what it has printed. `watched`: processes whose CPU time it counts."""
        watch = [word for pid in (self.watched() if watched is None else watched) for word in ("--watch", pid)]
        child = self.peer(builds.load_program(), *words, "--host", self.stack_address, "--seconds", seconds,
                          "--interface", self.interface, *watch, stderr=subprocess.PIPE, **options)
        return result_of(child, timeout or seconds + 30)


def result_of(child, timeout):
    try:
        output, errors = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        end(child)
        raise BenchError(f"no result within {timeout:g} s") from None
    if child.returncode != 0:
        raise BenchError((errors or output or f"exit status {child.returncode}").strip().splitlines()[-1])
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise BenchError(f"no result: {output.strip()[-200:]}")
    return json.loads(lines[-1])


class KernelPath(Path):
    key, title = "kernel", "kernel over veth"
    interface = "left"

    def open(self):
        self.server_namespace = self.namespace()
        self.client_namespace.link("add", "left", "type", "veth", "peer", "name", "right", "netns", self.server_namespace.name)
        self.client_namespace.address("left", KERNEL)
        self.server_namespace.address("right", STACK)
        if not self.offload:
            for namespace, interface in ((self.client_namespace, "left"), (self.server_namespace, "right")):
                namespace.run("ethtool", "-K", interface, "tx", "off", "tso", "off", "gso", "off", "gro", "off")

    def application(self, *argv, **options):
        # There is no host: the application has its CPUs.
        return self.server_namespace.spawn(pinned(argv, self.cpus["host"]), **options)

    def wait_listening(self, port):
        wait_until(lambda: self.server_namespace.listening(port), 20, f"port {port}")


class AlpsPath(Path):
    key, title = "alps", "Alps"
    interface = "tap0"

    @classmethod
    def check(cls):
        if not builds.ALPS.exists():
            raise BenchError(f"{builds.ALPS} is not there: build with 'swift build -c release'")

    @classmethod
    def host_knows(cls, option):
        text = subprocess.run([str(builds.ALPS), "host", "--help"], capture_output=True, text=True).stdout
        return option in text

    def open(self):
        self.socket = self.directory / "alps.sock"
        log = open(self.directory / "host.log", "w+")
        argv = [builds.ALPS, "host", "--name", f"bench{os.getpid()}", "--socket", self.socket, "--interface", "tap:tap0",
                "--address", f"{STACK}/24", "--gateway", KERNEL, *self.host_options]
        if not self.offload:
            argv.append("--no-offload")
        self.host = self.client_namespace.spawn(pinned(argv, self.cpus["host"]), stdout=log)

        def begun():
            text = (self.directory / "host.log").read_text()
            if self.host.poll() is not None:
                raise BenchError(f"the host has ended: {text.strip()[-300:]}")
            return "ready\n" in text

        wait_until(begun, 30, "start of the host")
        self.client_namespace.set_cubic("tap0", KERNEL)
        self.host_pids = [self.host.pid]

    def close(self):
        if getattr(self, "host", None) and self.host.poll() is None:
            end(self.host, gently=True)
        super().close()

    def application(self, *argv, **options):
        over = [builds.ALPS, "run", "--socket", self.socket, "--", *argv]
        return self.client_namespace.spawn(pinned(over, self.cpus["application"]), **options)

    def sockets(self):
        text = subprocess.run([str(builds.ALPS), "netstat", "--json", "--socket", str(self.socket)], capture_output=True,
                              text=True).stdout
        return json.loads(text)["sockets"]

    def wait_listening(self, port):
        wait_until(lambda: any(row["state"] == "LISTEN" and row["local"].endswith(f":{port}") for row in self.sockets()),
                   20, f"port {port}")


class ServerPath(Path):
    """A stack whose application is a server inside the same program, on a tap that the program makes."""

    mtu = None
    interface = "tap0"

    def argv(self):
        raise NotImplementedError

    def server_cpus(self):
        return self.cpus["host"] | self.cpus["application"]

    def open(self):
        # What it complains of goes into a file: nobody reads a pipe while it runs.
        log = self.directory / "server.log"
        self.server_process = self.client_namespace.spawn(pinned(self.argv(), self.server_cpus()), stderr=open(log, "w"))
        try:
            wait_for_line(self.server_process, "ready")
        except BenchError as problem:
            raise BenchError(f"{problem} {log.read_text().strip()[-300:]}") from None
        self.client_namespace.address("tap0", KERNEL, self.mtu)
        self.host_pids = [self.server_process.pid]


class RingLimitPath(ServerPath):
    key, title = "limit", "ring limit"

    @classmethod
    def check(cls):
        builds.ring_limit()

    def argv(self):
        argv = [builds.ring_limit(), "--address", STACK, "--application-cpu", min(self.cpus["application"])]
        return argv if self.offload else [*argv, "--no-offload"]

    def server_cpus(self):
        return self.cpus["host"]

    def open(self):
        super().open()
        children = pathlib.Path(f"/proc/{self.server_process.pid}/task/{self.server_process.pid}/children")
        self.host_pids += [int(word) for word in children.read_text().split()]

    def steer(self):
        others = sum(1 << cpu for cpu in placement.available() if cpu not in self.cpus["host"])
        self.client_namespace.run("sh", "-c", f"echo {others:x} >/sys/class/net/tap0/queues/rx-0/rps_cpus", check=False)


class GvisorPath(ServerPath):
    key, title = "gvisor", "gVisor netstack"

    @classmethod
    def check(cls):
        builds.gvisor()

    @property
    def mtu(self):
        return 65520 if self.offload else 1500

    def argv(self):
        return [builds.gvisor(), "-tap", "tap0", "-address", STACK, "-mtu", self.mtu]


class OffloadingGvisorPath(ServerPath):
    key, title = "gvisor-gso", "gVisor with offloads"

    @classmethod
    def check(cls):
        builds.gvisor_offloading()

    def argv(self):
        return [builds.gvisor_offloading(), "-tap", "tap0", "-address", STACK, "-mtu", 1500, "-gso"]


class LwipPath(ServerPath):
    key, title = "lwip", "lwIP sockets"

    @classmethod
    def check(cls):
        builds.lwip()

    def argv(self):
        return [builds.lwip(), "tap0", STACK]


class RelayPath(Path):
    """A user-level network for a namespace: the client is in it, the server on kernel sockets outside."""

    outer_address = "10.11.13.1"

    def open(self):
        self.outer = self.namespace()
        # An interface with a route to elsewhere, as a machine has; nothing is sent over it.
        self.outer.link("add", "wire", "type", "veth", "peer", "name", "end")
        self.outer.link("set", "end", "up")
        self.outer.address("wire", self.outer_address)
        self.outer.run("ip", "route", "add", "default", "via", "10.11.13.2", "dev", "wire")
        self.start()
        wait_until(lambda: self.client_namespace.has_interface(self.interface), 20, "the tap")
        self.stack_address = self.outside_as_seen()
        wait_until(lambda: self.client_namespace.run("ip", "route", "get", self.stack_address, check=False).returncode == 0,
                   20, "the route")
        self.set_congestion_control()

    def application(self, *argv, **options):
        return self.outer.spawn(pinned(argv, self.cpus["application"]), **options)

    def set_congestion_control(self):
        """Every route to the other side, in both namespaces, has CUBIC."""
        for namespace in (self.client_namespace, self.outer):
            for route in namespace.run("ip", "route", "show").stdout.splitlines():
                words = route.split()
                words = [word for word in words if word != "linkdown"]
                namespace.run("ip", "route", "replace", *words, "congctl", "cubic", check=False)


class SlirpPath(RelayPath):
    key, title = "slirp4netns", "slirp4netns"
    interface = "tap0"

    @classmethod
    def check(cls):
        builds.installed("slirp4netns", "slirp4netns")

    def start(self):
        log = open(self.directory / "slirp.log", "w")
        relay = self.outer.spawn(pinned(
            ["slirp4netns", "--configure", "--mtu=65520", "--netns-type=path", f"/run/netns/{self.client_namespace.name}",
             "tap0"], self.cpus["host"]), stdout=log)
        self.host_pids = [relay.pid]

    def outside_as_seen(self):
        return "10.0.2.2"


class PastaPath(RelayPath):
    key, title = "pasta", "pasta's tap"
    interface = "wire"

    @classmethod
    def check(cls):
        builds.installed("pasta", "passt")

    def start(self):
        log = open(self.directory / "pasta.log", "w")
        relay = self.outer.spawn(pinned(
            ["pasta", "--foreground", "--config-net", "--runas", "0", "-t", "none", "-u", "none", "-T", "none", "-U", "none",
             "--netns", f"/run/netns/{self.client_namespace.name}"], self.cpus["host"]), stdout=log)
        self.host_pids = [relay.pid]

    def outside_as_seen(self):
        return "10.11.13.2"


ALL = [KernelPath, AlpsPath, RingLimitPath, GvisorPath, OffloadingGvisorPath, LwipPath, SlirpPath, PastaPath]
BY_KEY = {path.key: path for path in ALL}

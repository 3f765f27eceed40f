"""Network namespaces of one run, and the programs in them. Nothing outside them is touched."""

import itertools
import os
import pathlib
import select
import signal
import subprocess
import time

NUMBERS = itertools.count(1)


class BenchError(Exception):
    """Something did not work; the text is for the reader of the table."""


class PartialResult(BenchError):
    """It worked up to a point: `values` are what there is."""

    def __init__(self, text, values):
        super().__init__(text)
        self.values = values


def command(*argv, check=True, timeout=60):
    result = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=timeout,
                            stdin=subprocess.DEVNULL)
    if check and result.returncode != 0:
        raise BenchError(f"{' '.join(map(str, argv))}: {result.stderr.strip() or result.stdout.strip()}")
    return result


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} did not come within {seconds:g} s")
        time.sleep(0.01)


def pinned(argv, cpus):
    """The argument vector that runs the program on these CPUs only."""
    return ["taskset", "-c", ",".join(map(str, sorted(cpus))), *map(str, argv)]


class Namespace:
    """A fresh namespace; `close` ends what was started in it and removes it."""

    def __init__(self):
        self.name = f"alps-bench-{os.getpid()}-{next(NUMBERS)}"
        self.children = []
        command("ip", "netns", "add", self.name)
        self.link("set", "lo", "up")
        # One run's paths tell nothing about the next one's. Reno is all that a namespace may set; routes have CUBIC.
        for setting in ("tcp_congestion_control=reno", "ip_local_port_range=1024 65000", "tcp_no_metrics_save=1", "ping_group_range=0 0"):
            self.run("sysctl", "-qw", f"net.ipv4.{setting}")
        # It would ask for routers on every interface, now and then.
        if os.path.exists("/proc/sys/net/ipv6"):
            self.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")

    def link(self, *words):
        command("ip", "-n", self.name, "link", *words)

    def argv(self, *words):
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def run(self, *words, **options):
        return command(*self.argv(*words), **options)

    def address(self, interface, address, mtu=None):
        """Gives the interface its address and brings it up; connections that use it have CUBIC, whatever the machine has."""
        command("ip", "-n", self.name, "addr", "add", f"{address}/24", "dev", interface)
        self.link("set", interface, *(["mtu", str(mtu)] if mtu else []), "up")
        self.set_cubic(interface, address)

    def set_cubic(self, interface, address):
        network = address.rsplit(".", 1)[0] + ".0/24"
        command("ip", "-n", self.name, "route", "replace", network, "dev", interface, "proto", "kernel", "scope", "link",
                "src", address, "congctl", "cubic")

    def has_interface(self, interface):
        return command("ip", "-n", self.name, "link", "show", interface, check=False).returncode == 0

    def listening(self, port):
        return f":{port} " in self.run("ss", "-Hltn").stdout

    def spawn(self, argv, **options):
        """Starts a program in the namespace; its standard output is a pipe unless told otherwise."""
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.STDOUT)
        child = subprocess.Popen(self.argv(*argv), text=True, start_new_session=True, **options)
        self.children.append(child)
        return child

    def close(self):
        for child in reversed(self.children):
            end(child)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True)


def end(child, gently=False):
    """Ends a child that `spawn` has started, and all of its session."""
    if gently and child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def wait_for_line(child, text, seconds=20):
    """Reads the program's output until a line that has the text."""
    seen = ""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not select.select([child.stdout], [], [], 0.2)[0]:
            if child.poll() is not None:
                break
            continue
        line = child.stdout.readline()
        if not line:
            break
        seen += line
        if text in line:
            return line
    raise BenchError(f"{pathlib.Path(child.args[4]).name} did not begin: {seen.strip()[-400:] or 'it said nothing'}")

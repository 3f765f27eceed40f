"""What many connections cost: memory and CPU time of idle ones, how many there can be, and what each packet and each new
connection costs beside them."""

import json
import select
import subprocess
import time

import builds
import processes
from measures import Figure, Measure, Target
from namespaces import BenchError, PartialResult, end

SIZES = (1, 10, 100, 1000, 10000)


class Held:
    """Idle connections to the server of the path, until the block ends."""

    def __init__(self, path, count, seconds=180):
        self.child = path.peer(builds.load_program(), "hold", "--host", path.stack_address, "--count", count,
                               stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        if not select.select([self.child.stdout], [], [], seconds)[0]:
            end(self.child)
            raise BenchError(f"{count} connections did not open within {seconds} s")
        line = self.child.stdout.readline()
        if not line.startswith('{"open": '):
            raise BenchError(f"connections did not open: {self.child.stderr.read().strip()[-200:]}")
        self.open = int(line[len('{"open": '):].rstrip("}\n"))

    def __enter__(self):
        return self.open

    def __exit__(self, *_):
        self.child.stdin.close()
        self.child.wait(60)


def wait_until_steady(pids):
    """Buffers that are no longer in use go back after a while."""
    time.sleep(2)
    sizes = [processes.memory(pids)]
    for _ in range(20):
        time.sleep(0.5)
        sizes.append(processes.memory(pids))
        if len(sizes) > 4 and max(sizes[-4:]) - min(sizes[-4:]) < max(sizes[-1] / 1000, 65536):
            return


def memory(path, settings):
    """Bytes a connection: of the host, of the application, and of the kernel's slabs but for the peer's end."""
    path.serve()
    application = [pid for pid in path.watched() if pid not in path.host_pids]
    # What the first ones make is there for good.
    with Held(path, 100):
        pass
    time.sleep(0.5)
    before = [processes.memory(path.host_pids), processes.memory(application), processes.kernel_memory()]
    with Held(path, settings.idle) as count:
        wait_until_steady(path.host_pids)
        after = [processes.memory(path.host_pids), processes.memory(application), processes.kernel_memory()]
    if count < settings.idle / 10:
        raise BenchError(f"only {count} connections opened")
    host, own, slabs = ((now - then) / count / 1024 for then, now in zip(before, after))
    return {"host": host, "application": own, "kernel": slabs, "connections": count}


def idle_cpu(with_connections):
    def run(path, settings):
        path.serve()

        def watch():
            # The first seconds have announcements of the address (RFC 5227), and buffers that go back.
            time.sleep(8)
            pids, begin = path.host_pids, time.monotonic()
            cpu, switches = processes.run_time(pids), processes.context_switches(pids)
            time.sleep(settings.idle_seconds)
            minutes = (time.monotonic() - begin) / 60
            return {"cpu": (processes.run_time(pids) - cpu) * 1000 / minutes,
                    "switches": (processes.context_switches(pids) - switches) / minutes}

        if not with_connections:
            return watch()
        with Held(path, settings.idle) as count:
            return {**watch(), "connections": count}
    return run


def most(path, settings):
    path.serve()
    with Held(path, settings.most, 300) as count:
        return {"open": count}


def growth(path, settings):
    """CPU time of the host for each packet, one request at a time going round all connections; and for each new connection
    beside that many idle ones. Of the kernel it is the server's process, which does that end's work in its own time."""
    path.serve()
    watched = path.host_pids or path.watched()
    result = {}

    for size in SIZES:
        if size > settings.idle:
            continue
        try:
            spread = path.load("spread", "--count", size, "--at-once", 1, "--warm-up", settings.warm_up,
                               seconds=settings.seconds, timeout=settings.seconds + 120, watched=watched)
            with Held(path, size) as count:
                if count < size:
                    raise BenchError(f"only {count} of {size} connections opened")
                # What they do until they are idle is not part of what a new one costs.
                wait_until_steady(watched)
                new = path.load("connections", "--at-once", 16, "--warm-up", settings.warm_up, seconds=settings.seconds,
                                timeout=settings.seconds + 60, watched=watched)
        except BenchError as problem:
            raise PartialResult(f"{size} connections: {problem}", result) from None
        result[f"packet-{size}"] = spread["watched"] / spread["packets"] * 1e9
        result[f"connection-{size}"] = new["watched"] / new["samples"] * 1e6
    return result


OPERATIONS = {
    "in": "two segments in, an acknowledgment out",
    "out": "segment out, and its acknowledgment in",
    "connection": "connection opened and closed",
}


def instructions(path, settings):
    """What bench/micro/check counts, which knows no host and no kernel: the same on any machine."""
    result = subprocess.run([str(builds.ROOT / "bench" / "micro" / "check"), "--growth", "--json"], capture_output=True, text=True,
                            timeout=3600)
    line = next((line for line in result.stdout.splitlines() if line.startswith("{")), None)
    if line is None:
        raise BenchError(f"bench/micro/check: {result.stderr.strip()[-200:]}")
    counted = json.loads(line)
    values = {f"{key}-{size}": counted[what][str(size)] for key, what in OPERATIONS.items() for size in SIZES}
    for key in OPERATIONS:
        row = [values[f"{key}-{size}"] for size in SIZES]
        values[f"{key}-growth"] = max(row) / min(row)
    return values


def instruction_figures():
    counts = [Figure(f"{key}-{size}", f"{what}, {size:,} open", "instructions", False, digits=0)
              for key, what in OPERATIONS.items() for size in SIZES]
    flat = [Figure(f"{key}-growth", f"{what}, most over least", "", False, (Target(None, 1.2),), 3)
            for key, what in OPERATIONS.items()]
    return (*counts, *flat)


def growth_figures():
    packets = [Figure(f"packet-{size}", f"each packet, {size:,} open", "ns", False, digits=0) for size in SIZES]
    new = [Figure(f"connection-{size}", f"each new connection, {size:,} open", "us", False, digits=1) for size in SIZES]
    flat = [Figure(f"{kind}-growth", f"each {kind}, most over least", "", False, (Target(None, 1.2),))
            for kind in ("packet", "connection")]
    return (*packets, *new, *flat)


POPULATION_MEASURES = [
    Measure("memory", "memory of an idle connection", (
        Figure("host", "host", "KiB", False),
        Figure("application", "application", "KiB", False),
        Figure("kernel", "kernel's slabs, both ends", "KiB", False),
        Figure("stack", "host and the kernel's slabs, this end", "KiB", False, (Target(None, 8),)),
        Figure("connections", "connections", "", digits=0),
    ), memory, ("kernel", "alps", "gvisor"), once=True,
        note="The kernel's slabs have the peer's end too, on every path. For this end, half of what the kernel's own path shows "
             "is taken off."),
    Measure("rest", "host at rest, no connection", (
        Figure("cpu", "CPU time", "ms a minute", False, (Target(None, 1),), 1),
        Figure("switches", "context switches", "a minute", False, (Target(None, 1),), 0),
    ), idle_cpu(False), ("alps",), once=True),
    Measure("idle", "host with idle connections", (
        Figure("cpu", "CPU time", "ms a minute", False, (Target(None, 1),), 1),
        Figure("switches", "context switches", "a minute", False, (Target(None, 1),), 0),
        Figure("connections", "connections", "", digits=0),
    ), idle_cpu(True), ("alps",), once=True),
    Measure("most", "live connections", (Figure("open", "open at once", "", True, (Target(None, 18000),), 0),), most,
            ("kernel", "alps"), once=True),
    Measure("growth", "CPU time of the host", growth_figures(), growth,
            ("kernel", "alps")),
    Measure("instructions", "instructions of the stack alone", instruction_figures(), instructions, ("alps",), once=True,
            note="Counted by callgrind in a kernel environment of its own, without system calls: bench/micro."),
]

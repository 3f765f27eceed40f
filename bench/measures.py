"""What is measured: which figures there are, and how one run of each is made."""

import dataclasses
from typing import Callable

import paths
import placement


@dataclasses.dataclass(frozen=True)
class Target:
    """What the figure of Alps should be: `factor` times that of `path`, of another measure if one is named; or `factor`
    itself without a path."""

    path: str | None
    factor: float
    measure: str | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    key: str
    title: str
    unit: str
    higher_is_better: bool = True
    targets: tuple[Target, ...] = ()
    digits: int = 2
    detail: bool = False    # in a table of its own


@dataclasses.dataclass(frozen=True)
class Measure:
    """`run` gets a path that is open and the settings, and returns a value for each figure's key."""

    key: str
    title: str
    figures: tuple[Figure, ...]
    run: Callable
    paths: tuple[str, ...]
    place: Callable = placement.across
    offload: bool = True
    host_options: tuple[str, ...] = ()
    once: bool = False          # too long for rounds
    quick: bool = False         # part of --quick
    note: str = ""


ALL_PATHS = tuple(path.key for path in paths.ALL)
PROGRAMS = ("kernel", "alps")
STREAMS = ("kernel", "alps", "limit", "gvisor", "gvisor-gso", "lwip", "slirp4netns", "pasta")
REQUESTS = ("kernel", "alps", "gvisor", "lwip", "slirp4netns", "pasta")


def kernel(factor):
    return Target("kernel", factor)


def spent(figures, result):
    """CPU time of a bulk run: of all but the client's own process, which is the same kernel on every path."""
    gigabytes = result["bytes"] / 1e9
    figures["cpu-byte"] = (result["busy"] - result["own"]) / gigabytes
    figures["cpu-all-byte"] = result["busy"] / gigabytes
    if result["packets"]:
        figures["cpu-packet"] = (result["busy"] - result["own"]) / result["packets"] * 1e6
    return figures


def bulk(command, count=1):
    def run(path, settings):
        path.serve()
        # As Alps does, so that the limit stays the most that the design can reach: sending long segments is slower with it.
        if command == "send" or not path.offload:
            path.steer()
        result = path.load(command, "--count", count, "--size", 65536, "--warm-up", settings.warm_up,
                           seconds=settings.seconds)
        return spent({"gbps": result["gbps"]}, result)
    return run


def bulk_figures(*targets):
    return (
        Figure("gbps", "throughput", "Gbit/s", targets=targets),
        Figure("cpu-byte", "CPU time but the peer's", "s/GB", False, digits=3, detail=True),
        Figure("cpu-all-byte", "CPU time of the machine", "s/GB", False, digits=3, detail=True),
        Figure("cpu-packet", "CPU time but the peer's", "s per million packets", False, detail=True),
    )


def round_trips(path, settings):
    path.serve()
    result = path.load("round-trips", "--warm-up", settings.warm_up, seconds=settings.seconds)
    return {"p50": result["p50"], "p99": result["p99"]}


def connections(at_once):
    def run(path, settings):
        path.serve()
        result = path.load("connections", "--at-once", at_once, "--warm-up", settings.warm_up, seconds=settings.seconds)
        if result["errors"] > result["samples"] / 100:
            raise paths.BenchError(f"{result['errors']} of {result['errors'] + result['samples']} connections failed")
        return {"rate": result["rate"], "cpu": (result["busy"] - result["own"]) / result["samples"] * 1e6}
    return run


def latency_figures(*targets):
    return (Figure("p50", "median", "us", False, targets), Figure("p99", "99th percentile", "us", False))


def rate_figures(unit, *targets):
    return (Figure("rate", "rate", unit, targets=targets, digits=0),)


def connection_figures(*targets):
    return (*rate_figures("1/s", *targets), Figure("cpu", "CPU time but the peer's", "us each", False, digits=1, detail=True))


STREAM_MEASURES = [
    Measure("bulk-sends", "one flow, 64 KiB writes, stack sends",
            bulk_figures(Target("limit", 0.9), kernel(0.6), Target("gvisor-gso", 2)), bulk("receive"), STREAMS, placement.apart, quick=True),
    Measure("bulk-receives", "one flow, 64 KiB writes, stack receives",
            bulk_figures(Target("limit", 0.9), kernel(0.45), Target("gvisor-gso", 1.2)), bulk("send"), STREAMS, placement.apart, quick=True),
    Measure("flows-sends", "8 flows, stack sends", bulk_figures(Target("alps", 1, "bulk-sends")), bulk("receive", 8),
            ("kernel", "alps", "limit", "gvisor"), placement.apart),
    Measure("flows-receives", "8 flows, stack receives", bulk_figures(Target("alps", 1, "bulk-receives")), bulk("send", 8),
            ("kernel", "alps", "limit", "gvisor"), placement.apart),
    Measure("plain-sends", "without offloads, stack sends", bulk_figures(Target("limit", 0.9)), bulk("receive"),
            ("kernel", "alps", "limit", "gvisor", "lwip"), placement.apart, offload=False, quick=True),
    Measure("plain-receives", "without offloads, stack receives", bulk_figures(Target("limit", 0.9)), bulk("send"),
            ("kernel", "alps", "limit", "gvisor", "lwip"), placement.apart, offload=False, quick=True),
    Measure("round-trip-same", "1-byte round trip, all on one CPU", latency_figures(kernel(1.8), Target("gvisor", 1)),
            round_trips, REQUESTS, placement.same_cpu, quick=True),
    Measure("round-trip-across", "1-byte round trip, application and peer on two CPUs",
            latency_figures(kernel(1.5), Target("gvisor", 1)), round_trips, REQUESTS, placement.across, quick=True),
    Measure("round-trip-polls", "1-byte round trip, the host polls on a CPU of its own", latency_figures(kernel(1)),
            round_trips, PROGRAMS, placement.spare, host_options=("--busy-poll", "200"),
            note="The kernel's figure is that across two CPUs: its application has the CPU that Alps' host has."),
    Measure("connections-1", "connect, request, close: 1 at a time", connection_figures(), connections(1), REQUESTS,
            quick=True),
    Measure("connections-64", "connect, request, close: 64 at a time",
            connection_figures(kernel(0.6), Target("gvisor", 2)), connections(64), REQUESTS, quick=True),
    Measure("connections-64-free", "connect, request, close: 64 at a time, nothing pinned",
            connection_figures(kernel(0.6), Target("gvisor", 2)), connections(64), ("kernel", "alps", "gvisor"),
            placement.anywhere),
]

"""bench/run: measures Alps beside the kernel and the peers, and tells it in one table.

Every run has fresh network namespaces; host, application and peer are pinned; rounds are interleaved, one run of each path
after the other. Needs root and a release build of Alps. bench/README.md tells what each measure is.
"""

import argparse
import datetime
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import builds
import chart
import machine
import measures
import paths
import placement
import processes
import report
from datagrams import DATAGRAM_MEASURES
from measures import STREAM_MEASURES
from namespaces import BenchError
from population import POPULATION_MEASURES
from results import Results, saved_results
from stock import STOCK_MEASURES

GROUPS = [
    ("Streams", STREAM_MEASURES), ("Ordinary programs", STOCK_MEASURES), ("Datagrams", DATAGRAM_MEASURES),
    ("Many connections", POPULATION_MEASURES),
]
ALL = [measure for _, group in GROUPS for measure in group]
CHARTED = ("bulk-sends", "bulk-receives", "plain-sends", "plain-receives", "round-trip-same", "round-trip-across",
           "connections-1", "connections-64", "nginx-sends", "nginx-receives", "redis", "wrk")
QUICK_PATHS = ("kernel", "alps", "limit")


def parse(arguments):
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help="under two minutes: one short round of a few measures and paths; nothing is written")
    parser.add_argument("--only", metavar="MEASURE,...", help="these measures, or all whose name begins so (see --list)")
    parser.add_argument("--paths", metavar="PATH,...", help="these paths: " + ", ".join(paths.BY_KEY))
    parser.add_argument("--rounds", type=int, help="runs of each path and measure (default 5)")
    parser.add_argument("--seconds", type=float, help="measured time of a run (default 2)")
    parser.add_argument("--place", choices=("host", "peer"), default="host",
                        help="in bulk runs on two CPUs, the application is beside the host (default) or beside the peer")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for a quiet machine before each run")
    parser.add_argument("--write", action="store_true", help="with --quick or --only: write docs/performance.* all the same")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.* alone")
    parser.add_argument("--from", dest="sources", metavar="FILE", action="append", default=[],
                        help="take results that a run has saved; with no --only nothing is measured. May be repeated")
    parser.add_argument("--list", action="store_true", help="list the measures")
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.seconds is not None and not 0.1 <= options.seconds <= 600:
        parser.error("--seconds must be between 0.1 and 600")
    options.chosen = chosen_measures(options, parser)
    options.keys = chosen_paths(options, parser)
    return options


def chosen_measures(options, parser):
    if options.only is None:
        return [measure for measure in ALL if measure.quick or not options.quick] if not options.sources else []
    chosen = []
    for word in options.only.split(","):
        found = [measure for measure in ALL if measure.key == word] or \
            [measure for measure in ALL if measure.key.startswith(word)]
        if not found:
            parser.error(f"there is no measure '{word}'; there are: {', '.join(measure.key for measure in ALL)}")
        chosen += [measure for measure in found if measure not in chosen]
    return chosen


def chosen_paths(options, parser):
    if options.paths is None:
        return QUICK_PATHS if options.quick else tuple(paths.BY_KEY)
    keys = options.paths.split(",")
    for key in keys:
        if key not in paths.BY_KEY:
            parser.error(f"there is no path '{key}'; there are: {', '.join(paths.BY_KEY)}")
    return keys


def settings_of(options):
    rounds = options.rounds or (1 if options.quick else 5)
    seconds = options.seconds or (0.8 if options.quick else 2.0)
    small = options.quick or seconds < 1
    return types.SimpleNamespace(
        rounds=rounds, seconds=seconds, warm_up=0.2 if small else 0.5, mebibytes=128 if small else 1024,
        idle=1000 if small else 10000, idle_seconds=max(2.0, seconds) if small else 60.0, most=2000 if small else 18000)


def install_packages():
    result = subprocess.run([str(builds.ROOT / "scripts" / "packages"), "bench"], capture_output=True, text=True)
    if result.returncode != 0:
        print(f"some packages are missing: {result.stderr.strip() or result.stdout.strip()}", file=sys.stderr)


def available_paths(keys, results):
    """The classes of the paths that can be had; the others go into the results with their reason."""
    available = {}
    for key in keys:
        print(f"preparing {paths.BY_KEY[key].title}", file=sys.stderr)
        try:
            paths.BY_KEY[key].check()
            available[key] = paths.BY_KEY[key]
        except builds.Unavailable as reason:
            results.unavailable[key] = str(reason)
    return available


def lacking(measure):
    """The first option of the host that the measure needs and this build has not."""
    needed = [*measure.host_options, *([] if measure.offload else ["--no-offload"])]
    return next((option for option in needed if option.startswith("--") and not paths.AlpsPath.host_knows(option)), None)


def run_once(measure, path, settings, options, results):
    place = measure.place(options.place) if measure.place is placement.apart else measure.place()
    host_options = measure.host_options if path is paths.AlpsPath else ()
    if not options.no_wait and not processes.wait_for_quiet(1 if options.quick else 10):
        results.noisy += 1
    results.total += 1
    if path is paths.AlpsPath and (option := lacking(measure)):
        results.add(measure.key, path.key, failure=f"this build has no {option}")
        return
    if measure.key == "round-trip-polls" and path is paths.KernelPath:
        place = placement.across()
    try:
        with path(place, offload=measure.offload, host_options=host_options) as opened:
            results.add(measure.key, path.key, measure.run(opened, settings))
    except (BenchError, subprocess.TimeoutExpired, OSError, KeyError, ValueError) as problem:
        text = str(problem).strip().splitlines() or [type(problem).__name__]
        results.add(measure.key, path.key, getattr(problem, "values", None), failure=text[-1])


def measure_all(options, settings, results):
    builds.load_program()
    available = available_paths([key for key in options.keys if any(key in m.paths for m in options.chosen)], results)
    begin = time.monotonic()
    for position, measure in enumerate(options.chosen, 1):
        for number in range(1 if measure.once else settings.rounds):
            for key in measure.paths:
                if key not in available:
                    continue
                elapsed = time.monotonic() - begin
                print(f"[{elapsed:5.0f} s] {position}/{len(options.chosen)} {measure.key}, round {number + 1}, {key}",
                      file=sys.stderr, flush=True)
                run_once(measure, available[key], settings, options, results)
        results.save(options.saved)


def write_documents(results):
    documents = builds.ROOT / "docs"
    (documents / "performance.md").write_text(report.markdown(results, GROUPS))
    (documents / "performance.svg").write_text(chart.svg(results, [m for m in ALL if m.key in CHARTED]))
    print(f"written: {documents}/performance.md and performance.svg")


def main(arguments):
    options = parse(arguments)
    if options.list:
        for measure in ALL:
            print(f"{measure.key:20} {measure.title} ({', '.join(measure.paths)})")
        return 0
    if options.chosen and os.geteuid() != 0:
        print("bench/run needs root: it makes network namespaces", file=sys.stderr)
        return 1
    # Namespaces are removed on the way out, whatever ends the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = settings_of(options)
    results = Results()
    sources = list(options.sources)
    if options.chosen:
        install_packages()
        begun = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
        results.settings = {**vars(settings), "begun": begun, "place": options.place}
        options.saved = saved_results() / f"{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
        results.machine = machine.describe()
        try:
            measure_all(options, settings, results)
        finally:
            results.machine = machine.describe()
            results.save(options.saved)
        sources.append(options.saved)
    if options.sources:
        results = Results()
        for source in sources:
            results.take(source)
    results.derive()
    shown = [measure for measure in ALL if measure.key in results.runs]
    report.print_report(results, shown)
    if options.chosen:
        print(f"saved: {options.saved}")
    partial = options.quick or options.only is not None or options.paths is not None
    if options.write or not (partial or options.no_write):
        write_documents(results)
    failed = any(results.runs.get(m.key, {}).get("alps", {}).get("failures") for m in shown)
    return 1 if failed else 0

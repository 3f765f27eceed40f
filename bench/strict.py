#!/usr/bin/python3
"""What `alps run --strict` costs a program that the shim serves anyway: nginx under wrk, and redis-server under
redis-benchmark, with and without it, in turns. Clients are on the kernel's side of the tap.

Prints each figure's median over --rounds and the ratio strict / plain with the 95 % interval of the rounds' ratios.
Needs root, wrk, nginx and redis. Example: bench/strict.py --rounds 10 --seconds 5
"""

import argparse
import pathlib
import re
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "Tests" / "EndToEnd"))
from conftest import ALPS, STACK, Stack, nginx_config, wait_until  # noqa: E402


class Server:
    """A stack of its own with one program on it, since a warm one must not be compared with a cold one."""

    def __init__(self, directory, strict, port, *argv):
        directory.mkdir()
        self.stack = Stack(directory=directory)
        options = ["--strict"] if strict else []
        self.stack._spawn([ALPS, "run", *options, "--socket", self.stack.socket, "--", *map(str, argv)])
        wait_until(lambda: self.stack.listening(port), what="the server")


def requests(text):
    return float(re.search(r"Requests/sec: +([\d.]+)", text)[1])


def wrk(server, seconds):
    return {"wrk, requests/s": requests(
        server.stack.outside("wrk", "-t", 1, "-c", 64, "-d", seconds, f"http://{STACK}/page").stdout)}


def redis(server, seconds):
    figures = {}
    for depth, count in ((1, 15_000 * seconds), (16, 60_000 * seconds)):
        output = server.stack.outside(
            "redis-benchmark", "-h", STACK, "-t", "set,get", "-n", count, "-c", 50, "-P", depth, "--csv").stdout
        for line in output.splitlines()[1:]:
            name, rate = line.replace('"', "").split(",")[:2]
            figures[f"redis {name.lower()}, pipeline {depth}, requests/s"] = float(rate)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each (default 10)")
    parser.add_argument("--seconds", type=int, default=5, help="about how long one measurement takes (default 5)")
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        place.chmod(0o755)
        (place / "www").mkdir()
        (place / "www" / "page").write_bytes(b"x" * 600)
        servers = []
        try:
            for strict in (False, True):
                config = nginx_config(place, f"nginx{strict}", "0.0.0.0", 80)
                servers.append((strict, wrk, Server(place / f"w{strict}", strict, 80, "nginx", "-c", config)))
                servers.append((strict, redis, Server(
                    place / f"r{strict}", strict, 6379, "redis-server", "--save", "", "--appendonly", "no",
                    "--bind", STACK, "--protected-mode", "no")))
            for number in range(-1, options.rounds):
                for strict, measure, server in servers if number % 2 else reversed(servers):
                    for name, value in measure(server, options.seconds).items():
                        if number >= 0:
                            figures.setdefault(name, {False: [], True: []})[strict].append(value)
        finally:
            for *_, server in servers:
                server.stack.stop()
    for name, by in sorted(figures.items()):
        ratios = [strict / plain for plain, strict in zip(by[False], by[True])]
        spread = 1.96 * statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
        print(f"{name:42} plain {statistics.median(by[False]):10.0f}   strict {statistics.median(by[True]):10.0f}   "
              f"ratio {statistics.mean(ratios):.3f} +- {spread:.3f}")


if __name__ == "__main__":
    main()

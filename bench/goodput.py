#!/usr/bin/python3
"""Goodput of Alps' TCP and of the kernel's Reno over one and the same emulated link, live.

Every run makes a namespace with a host on a tap and a link in front of the tap. Alps sends to the kernel's side, or the
kernel's side sends to Alps, with one connection for --seconds; what has arrived is counted at the receiver. Runs with the
same number have the same seed for both senders. Prints the mean of each with its 95 % confidence interval, and the ratio.

Needs root. Example: bench/goodput.py --runs 20 --seconds 60 --jobs 5 --link "rate 100mbit delay 20ms loss 1%"
"""

import argparse
import concurrent.futures
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "Tests" / "EndToEnd"))
from conftest import KERNEL, STACK, Stack  # noqa: E402

PYTHON = "/usr/bin/python3"
RECEIVER = """
import socket, sys, time
s = socket.create_server((sys.argv[1], 7000)); c, _ = s.accept(); b = bytearray(1 << 18); total = 0
begin = time.monotonic(); c.settimeout(30)
while time.monotonic() - begin < float(sys.argv[2]):
    n = c.recv_into(b)
    if not n: break
    total += n
print(total / (time.monotonic() - begin) * 8, flush=True)
"""
SENDER = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], 7000)); b = bytes(1 << 16); begin = time.monotonic()
try:
    while time.monotonic() - begin < float(sys.argv[2]) + 1: s.sendall(b)
except OSError: pass
"""


def run(sender, number, options):
    """Bits a second that one connection carried."""
    with tempfile.TemporaryDirectory(prefix="alps-goodput-") as directory:
        sysctls = [word for setting in options.sysctl for word in ("--sysctl", setting)]
        stack = Stack("--link", f"{options.link} seed {number + 1}", *sysctls, directory=directory)
        try:
            for setting in ("tcp_congestion_control=reno", "tcp_no_metrics_save=1", "tcp_rmem=4096 1048576 16777216",
                            "tcp_wmem=4096 1048576 16777216"):
                stack.outside("sysctl", "-qw", f"net.ipv4.{setting}")
            # The kernel hands over frames as the link carries them, one segment each.
            stack.outside("ip", "link", "set", "tap0", "gso_max_segs", "1")
            limit = options.seconds + 60
            if sender == "alps":
                receiver = stack.spawn_outside(PYTHON, "-c", RECEIVER, KERNEL, str(options.seconds))
                stack.wait_listening_outside(7000)
                stack.spawn(PYTHON, "-c", SENDER, KERNEL, str(options.seconds))
            else:
                receiver = stack.spawn(PYTHON, "-c", RECEIVER, STACK, str(options.seconds))
                stack.wait_listening(7000)
                stack.spawn_outside(PYTHON, "-c", SENDER, STACK, str(options.seconds))
            text = receiver.communicate(timeout=limit)[0]
            return float(text)
        finally:
            stack.stop()


def summary(values):
    mean = statistics.fmean(values)
    margin = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return mean, margin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", default="rate 100mbit delay 20ms loss 1%", help="as of `alps host --link`")
    parser.add_argument("--runs", type=int, default=20, help="runs of each sender (default 20)")
    parser.add_argument("--seconds", type=float, default=60, help="length of a run (default 60)")
    parser.add_argument("--jobs", type=int, default=4, help="runs at a time (default 4)")
    parser.add_argument("--sysctl", action="append", default=[], metavar="NAME=VALUE", help="of the Alps host")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: it makes network namespaces")
    results = {"alps": [], "linux": []}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        pending = {pool.submit(run, sender, number, options): sender
                   for number in range(options.runs) for sender in results}
        for done, future in enumerate(concurrent.futures.as_completed(pending), 1):
            results[pending[future]].append(future.result())
            print(f"\r{done}/{len(pending)} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"link: {options.link}; {options.runs} runs of {options.seconds:g} s")
    means = {}
    for sender, values in results.items():
        means[sender], margin = summary(values)
        print(f"{sender:5} {means[sender] / 1e6:8.2f} Mbit/s +- {margin / 1e6:.2f} "
              f"(median {statistics.median(values) / 1e6:.2f}, min {min(values) / 1e6:.2f}, max {max(values) / 1e6:.2f})")
    print(f"ratio {means['alps'] / means['linux']:.3f}")


if __name__ == "__main__":
    main()

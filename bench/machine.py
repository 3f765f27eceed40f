"""What the figures belong to: machine, kernel, commit, versions of the peers."""

import os
import pathlib
import platform
import subprocess

import builds

PACKAGES = ("golang-gvisor-gvisor-dev", "passt", "slirp4netns", "iperf3", "nginx-light", "curl", "redis-server", "wrk")


def output(*argv):
    result = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return result.stdout.strip() if result.returncode == 0 else ""


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def commit():
    git = ("git", "-C", str(builds.ROOT))
    name = output(*git, "rev-parse", "--short=12", "HEAD") or "unknown"
    changed = output(*git, "status", "--porcelain", "--untracked-files=no", "--", "Sources", "Plugins", "Package.swift")
    return name + (" with changes" if changed else "")


def system():
    for line in pathlib.Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.split("=", 1)[1].strip('"')
    return "Linux"


def virtual():
    return "hypervisor" in pathlib.Path("/proc/cpuinfo").read_text()


def describe():
    versions = {}
    for package in PACKAGES:
        version = output("dpkg-query", "-W", "-f=${Version}", package)
        if version:
            versions[package] = version
    if list(builds.CACHE.glob("lwip/lwip-*")):
        versions["lwip"] = sorted(builds.CACHE.glob("lwip/lwip-*/"))[0].name.removeprefix("lwip-")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": processor(), "cpus": len(os.sched_getaffinity(0)), "virtual": virtual(),
        "memory": f"{pages / 2**30:.0f} GiB", "kernel": platform.release(), "system": system(), "commit": commit(),
        "versions": versions,
    }

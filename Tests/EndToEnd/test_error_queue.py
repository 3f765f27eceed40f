"""IP_RECVERR and MSG_ERRQUEUE: what programs hear of their own datagrams, and the programs that live on it."""

import pathlib
import subprocess

import pytest

from conftest import KERNEL, STACK

PROGRAM = pathlib.Path(__file__).parent / "programs" / "error_queue.py"
PYTHON = "/usr/bin/python3"
FAR, ROUTER_FAR, ROUTER_NEAR, NEIGHBOUR = "10.11.14.2", "10.11.14.1", "10.11.13.1", "10.11.13.2"


@pytest.fixture
def routed(stack):
    """A host behind the kernel's side, which routes; and one on its other side that uses the kernel's own stack."""
    spaces = []
    for name, here, there in (("far", ROUTER_FAR, FAR), ("near", ROUTER_NEAR, NEIGHBOUR)):
        space = f"{stack.netns}-{name}"
        subprocess.run(["ip", "netns", "add", space], check=True)
        spaces.append(space)
        stack.outside("ip", "link", "add", name, "type", "veth", "peer", "name", "wire", "netns", space)
        stack.outside("ip", "address", "add", f"{here}/24", "dev", name)
        stack.outside("ip", "link", "set", name, "up")
        for argv in (["address", "add", f"{there}/24", "dev", "wire"], ["link", "set", "wire", "up"], ["link", "set", "lo", "up"],
                     ["route", "add", "default", "via", here]):
            subprocess.run(["ip", "-n", space, *argv], check=True)
    # Error messages as often as they are due.
    stack.outside("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.icmp_ratelimit=0", "net.ipv4.icmp_msgs_per_sec=10000")
    yield spaces[1]
    for space in spaces:
        subprocess.run(["ip", "netns", "delete", space], check=True)


def test_errors_are_told_as_on_linux(stack, routed):
    ours = stack.run(PYTHON, PROGRAM, KERNEL, FAR).stdout
    linux = subprocess.run(["ip", "netns", "exec", routed, PYTHON, PROGRAM, ROUTER_NEAR, FAR], capture_output=True,
                           text=True, check=True).stdout
    assert "POLLERR" in linux and "origin 2 type 11" in linux
    assert ours.replace(KERNEL, "ROUTER").splitlines() == linux.replace(ROUTER_NEAR, "ROUTER").splitlines()
    stack.assert_nothing_left()


@pytest.mark.parametrize("options", [[], ["-I"], ["-T", "-p", "9"]], ids=["UDP", "ICMP", "TCP"])
def test_traceroute_from_the_stack(stack, routed, options):
    hops = stack.run("traceroute", "-n", "-q", 1, "-w", 2, "-m", 5, *options, FAR).stdout.splitlines()[1:]
    assert [hop.split()[:2] for hop in hops] == [["1", KERNEL], ["2", FAR]]


def test_ping_shows_where_a_packet_ended(stack, routed):
    output = stack.run("ping", "-n", "-c", 1, "-t", 1, FAR, check=False).stdout
    assert f"From {KERNEL} icmp_seq=1 Time to live exceeded" in output
    assert STACK not in output

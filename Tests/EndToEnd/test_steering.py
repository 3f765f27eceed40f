"""The system's receive work for what the stack sends, left to other CPUs than a pinned loop's."""

import os
import signal
import subprocess

import pytest

from conftest import ALPS, KERNEL, STACK, wait_until

CPUS = sorted(os.sched_getaffinity(0))
MASK = "/sys/class/net/tap0/queues/rx-0/rps_cpus"
PINNED = ("--pin", str(CPUS[0]), "--log-level", "debug")
pytestmark = pytest.mark.skipif(len(CPUS) < 2 or not os.path.exists("/sys/class/net/lo/queues/rx-0/rps_cpus"),
                                reason="needs two CPUs and receive packet steering")


def cpus_of(mask):
    bits = int(mask.replace(",", ""), 16)
    return [cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1]


def steered(stack):
    return cpus_of(stack.outside("cat", MASK).stdout.strip())


def load(stack, *options):
    """Bulk data, of eight streams from the kernel's side to the stack unless told otherwise; what is steered meanwhile."""
    stack.spawn("iperf3", "-s", "-1", "-B", STACK)
    stack.wait_listening(5201)
    client = stack.spawn_outside("iperf3", "-c", STACK, "-t", 1, "-l", "128K", *(options or ("-P", 8)))
    seen = []
    while client.poll() is None:
        seen.append(steered(stack))
    assert client.returncode == 0, client.stdout.read()
    return seen


def test_much_is_steered_and_a_message_at_a_time_is_not(make_stack):
    stack = make_stack(*PINNED)
    stack.outside("ping", "-c", 2000, "-f", STACK)
    assert steered(stack) == []
    assert CPUS[1:] in load(stack)
    stack.outside("ping", "-c", 2000, "-f", STACK)
    assert steered(stack) == []


def test_long_segments_are_not_steered(make_stack):
    stack = make_stack(*PINNED)
    assert all(seen == [] for seen in load(stack, "-R"))


@pytest.mark.parametrize("options", [(), (*PINNED, "--sysctl", "net.link.tap.steer=0")])
def test_not_steered(make_stack, options):
    stack = make_stack(*options)
    assert all(seen == [] for seen in load(stack))


def test_what_somebody_else_has_set_stays(make_stack):
    stack = make_stack(*PINNED)
    stack.outside("sh", "-c", f"echo 1 > {MASK}")
    assert all(seen == [0] for seen in load(stack))
    assert "rps_cpus is set" in stack.log.read_text()


def test_a_tap_that_outlives_the_host_has_its_mask_taken_away(make_stack):
    stack = make_stack(*PINNED)
    stack.host.send_signal(signal.SIGTERM)
    stack.host.wait(10)
    stack.outside("ip", "tuntap", "add", "tap0", "mode", "tap")
    stack.start(*PINNED)
    assert CPUS[1:] in load(stack)
    stack.host.send_signal(signal.SIGTERM)
    stack.host.wait(10)
    assert steered(stack) == []


def test_an_interface_of_the_same_name_elsewhere_is_left_alone(make_stack):
    stack = make_stack(*PINNED)
    stack.host.send_signal(signal.SIGTERM)
    stack.host.wait(10)
    other = f"{stack.netns}-other"
    subprocess.run(["ip", "netns", "add", other], check=True)
    try:
        for namespace in other, stack.netns:
            subprocess.run(["ip", "-n", namespace, "tuntap", "add", "tap0", "mode", "tap"], check=True)
        # `ip netns exec` has /sys of the other namespace, and the host moves on to its own without it.
        stack.host = subprocess.Popen(
            ["ip", "netns", "exec", other, "nsenter", f"--net=/run/netns/{stack.netns}", ALPS, "host", "--name", stack.name,
             "--socket", stack.socket, "--interface", "tap:tap0", "--address", f"{STACK}/24", "--gateway", KERNEL, *PINNED],
            stdout=open(stack.log, "w"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        wait_until(lambda: "ready\n" in stack.log.read_text(), what="start of the host")
        assert all(seen == [] for seen in load(stack))
        mask = subprocess.run(["ip", "netns", "exec", other, "cat", MASK], capture_output=True, text=True, check=True).stdout
        assert cpus_of(mask.strip()) == []
        assert "/sys has not this interface" in stack.log.read_text()
    finally:
        subprocess.run(["ip", "netns", "delete", other])

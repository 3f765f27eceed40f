"""The scheduler's slice that the host's loop asks for."""

import ctypes
import os
import platform
import struct

import pytest

from conftest import STACK

SYSCALL = {"x86_64": 315, "aarch64": 275}.get(platform.machine())


def slice_of(pid):
    """ns, 0 if the system does not tell."""
    attributes = ctypes.create_string_buffer(48)
    if SYSCALL is None or ctypes.CDLL(None).syscall(SYSCALL, pid, attributes, len(attributes), 0) != 0:
        return 0
    return struct.unpack("<IIQiIQQQ", attributes.raw)[5]


pytestmark = pytest.mark.skipif(slice_of(0) == 0, reason="needs Linux 6.12: a slice of its own for each thread")


@pytest.fixture(autouse=True)
def on_one_cpu():
    """Else it depends on the machine's load how much comes together."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    yield
    os.sched_setaffinity(0, cpus)


def requests(stack, clients):
    port = 7000 + clients
    stack.spawn("redis-server", "--port", port, "--bind", STACK, "--save", "", "--appendonly", "no", "--protected-mode", "no")
    stack.wait_listening(port)
    stack.outside("redis-benchmark", "-h", STACK, "-p", port, "-c", clients, "-n", 5000, "-t", "get", "-q")


def test_a_long_slice_while_there_is_one_thing_at_a_time(make_stack):
    stack = make_stack()
    pid = stack.host.pid
    given = slice_of(pid)
    requests(stack, 1)
    assert slice_of(pid) == 3 * given
    # What others have set stays.
    os.setpriority(os.PRIO_PROCESS, pid, 3)
    requests(stack, 50)
    assert slice_of(pid) == given
    assert os.getpriority(os.PRIO_PROCESS, pid) == 3


def test_none_where_it_is_not_wanted(make_stack):
    stack = make_stack("--sysctl", "kern.sched.longslice=0")
    given = slice_of(stack.host.pid)
    requests(stack, 1)
    assert slice_of(stack.host.pid) == given

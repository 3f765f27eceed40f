"""Where the host's loop runs, and what it does before it sleeps."""

import os
import subprocess
import time

import pytest

from conftest import ALPS, STACK, wait_until
from test_idle import spent

PYTHON = "/usr/bin/python3"
ECHO = """
import socket, sys
s = socket.create_server((sys.argv[1], 7000)); c, _ = s.accept()
while data := c.recv(4096): c.sendall(data)
"""
ASK = """
import socket, sys
s = socket.create_connection((sys.argv[1], 7000)); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for n in range(500):
    s.sendall(b"x"); assert s.recv(1) == b"x"
"""


def test_the_loop_runs_on_the_cpu_it_is_given(make_stack):
    cpu = max(os.sched_getaffinity(0))
    stack = make_stack("--pin", str(cpu))
    assert os.sched_getaffinity(stack.host.pid) == {cpu}
    stack.outside("ping", "-c", 1, STACK)


@pytest.mark.parametrize("options, text", [
    (["--pin", "1023"], "this process may not run on CPU 1023"),
    (["--pin", "-1"], "this process may not run on CPU -1"),
    (["--busy-poll", "-1"], "--busy-poll is a time from 0 to 1000000 microseconds"),
    (["--busy-poll", "1000001"], "--busy-poll is a time from 0 to 1000000 microseconds"),
])
def test_what_cannot_be_is_refused(options, text):
    option, value = options
    result = subprocess.run([ALPS, "host", f"{option}={value}"], capture_output=True, text=True, timeout=20)
    assert result.returncode != 0
    assert text in result.stderr


@pytest.mark.parametrize("microseconds", ["1", "100000"])
def test_a_host_that_polls_works_and_comes_to_rest(make_stack, microseconds):
    stack = make_stack("--busy-poll", microseconds)
    stack.spawn(PYTHON, "-c", ECHO, STACK)
    stack.wait_listening(7000)
    stack.outside(PYTHON, "-c", ASK, STACK)

    def rests():
        begin = spent(stack.host.pid)
        time.sleep(0.5)
        nanoseconds, switches = (now - then for now, then in zip(spent(stack.host.pid), begin))
        return nanoseconds < 1_000_000 and switches <= 2

    wait_until(rests, 20, "a host at rest")

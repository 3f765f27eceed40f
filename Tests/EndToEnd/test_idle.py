"""What ten thousand connections cost that only stay: memory, and no CPU time at all."""

import pathlib
import resource
import subprocess
import time

import pytest

from conftest import STACK, wait_until

PYTHON = "/usr/bin/python3"
CONNECTIONS = 10_000
# Of the host: memory of its own and its part of shared pages. The kernel's slabs have about 4 KiB more.
BYTES_EACH = 3072

# Sends back what it gets.
SERVER = """
import resource, select, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
s = socket.create_server((sys.argv[1], 7000), backlog=1024); s.setblocking(False)
poll = select.epoll(); poll.register(s, select.EPOLLIN); open = {}
while True:
    for fd, _ in poll.poll():
        if fd == s.fileno():
            c, _ = s.accept(); open[c.fileno()] = c; poll.register(c, select.EPOLLIN); continue
        data = open[fd].recv(4096)
        if data: open[fd].send(data)
        else: poll.unregister(fd); open.pop(fd).close()
"""
# A byte forth and back on each when told so.
CLIENT = """
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
open = []
for n in range(int(sys.argv[2])):
    open.append(socket.create_connection((sys.argv[1], 7000)))
    open[-1].send(b"x"); assert open[-1].recv(1) == b"x"
print("open", flush=True)
sys.stdin.readline()
for c in open: c.send(b"y")
for c in open: assert c.recv(1) == b"y"
print("answered", flush=True)
sys.stdin.readline()
"""


def memory(pid):
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")


def spent(pid):
    """Nanoseconds of CPU time and the number of times the process went to sleep or was put aside, all threads."""
    time, switches = 0, 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        time += int((task / "schedstat").read_text().split()[0])
        switches += sum(int(line.split()[1]) for line in (task / "status").read_text().splitlines() if "ctxt_switches" in line)
    return time, switches


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < CONNECTIONS + 100, reason="too few descriptors")
def test_ten_thousand_idle_connections(stack):
    server = stack.spawn(PYTHON, "-c", SERVER, STACK)
    stack.wait_listening(7000)
    stack.outside(PYTHON, "-c", CLIENT, STACK, "100", input="\n\n", stdin=None)
    before = memory(stack.host.pid)

    client = stack.spawn_outside(PYTHON, "-c", CLIENT, STACK, str(CONNECTIONS), stdin=subprocess.PIPE)
    assert client.stdout.readline() == "open\n"

    def each():
        return (memory(stack.host.pid) - before) / CONNECTIONS

    # What was sent last is acknowledged, and the rings go back.
    wait_until(lambda: each() < BYTES_EACH, 30, "memory of idle connections")

    def rests():
        begin = spent(stack.host.pid)[1]
        time.sleep(1.5)
        return spent(stack.host.pid)[1] - begin <= 3

    wait_until(rests, 30, "a host at rest")
    print(f"{each():.0f} bytes of the host for each idle connection")
    at_rest = spent(stack.host.pid)
    time.sleep(5)
    nanoseconds, switches = (now - then for now, then in zip(spent(stack.host.pid), at_rest))
    print(f"{nanoseconds / 1e6:.2f} ms of CPU time and {switches} switches in 5 s")
    assert nanoseconds < 5_000_000
    assert switches <= 10

    client.stdin.write("\n")
    client.stdin.flush()
    assert client.stdout.readline() == "answered\n"
    client.stdin.write("\n")
    client.stdin.close()
    assert client.wait(60) == 0
    server.kill()
    server.wait()
    stack.assert_nothing_left(60)

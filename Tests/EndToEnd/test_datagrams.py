"""Datagrams in quantity: nothing is lost between a program and the stack, and errors come between datagrams."""

import os
import pathlib
import select
import signal
import subprocess

from conftest import KERNEL, wait_until

PROGRAMS = pathlib.Path(__file__).parent / "programs"
PYTHON = "/usr/bin/python3"

# Sends numbered datagrams until the socket is full (or, if it blocks, a fixed number) and prints how many.
SENDER = """
import socket, sys
to, blocks, limit, size, connects = sys.argv[1], sys.argv[2] == "blocks", int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "connects"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setblocking(blocks)
if connects: s.connect((to, 7000))
print("begins", flush=True)
sys.stdin.readline()
n = 0
while n < limit:
    data = n.to_bytes(4, "big") + bytes(size - 4)
    try:
        s.send(data) if connects else s.sendto(data, (to, 7000))
    except BlockingIOError:
        break
    n += 1
print(n, flush=True)
"""

# Counts what comes until nothing has come for two seconds: numbers in order, each once.
RECEIVER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
s.bind(("0.0.0.0", 7000)); s.settimeout(30)
print("ready", flush=True)
n = 0
try:
    while True:
        data = s.recv(65536)
        assert int.from_bytes(data[:4], "big") == n, (data[:4], n)
        n += 1
        s.settimeout(2)
except TimeoutError:
    print(n)
"""


def flood(stack, blocks, size, connects, limit=20000):
    """What a sender sends while the host stands still, and what of it arrives once it goes on."""
    receiver = stack.spawn_outside(PYTHON, "-c", RECEIVER)
    assert receiver.stdout.readline() == "ready\n"
    sender = stack.spawn(PYTHON, "-c", SENDER, KERNEL, "blocks" if blocks else "fails", str(limit), str(size),
                         "connects" if connects else "names", stdin=subprocess.PIPE)
    assert sender.stdout.readline() == "begins\n"
    # The address of the other side is known: what waits for it is bounded, as everywhere.
    assert stack.run("ping", "-c", 1, KERNEL).returncode == 0
    os.kill(stack.host.pid, signal.SIGSTOP)
    sender.stdin.write("\n")
    sender.stdin.flush()
    if blocks:
        # In sendto or sendmsg, on x86-64 or aarch64.
        wait_until(lambda: pathlib.Path(f"/proc/{sender.pid}/syscall").read_text().split()[0] in ("44", "46", "206", "211"), 20,
                   "a sender that blocks")
        assert not select.select([sender.stdout], [], [], 0.1)[0]
    else:
        sent = int(sender.stdout.readline())
        assert 10 < sent < limit
    os.kill(stack.host.pid, signal.SIGCONT)
    if blocks:
        sent = int(sender.stdout.readline())
        assert sent == limit
    output, _ = receiver.communicate(timeout=90)
    assert output == f"{sent}\n"


def test_what_the_stack_cannot_take_is_refused_and_not_lost(stack):
    flood(stack, blocks=False, size=64, connects=True)


def test_what_the_stack_cannot_take_is_refused_and_not_lost_by_name(stack):
    flood(stack, blocks=False, size=1400, connects=False)


def test_a_sender_that_blocks_loses_nothing(stack):
    flood(stack, blocks=True, size=64, connects=True, limit=5000)


def test_an_error_among_datagrams_of_one_call(stack, directory):
    program = directory / "batches"
    subprocess.run(["cc", "-O1", "-I", PROGRAMS, "-o", program, PROGRAMS / "batches.c"], check=True)
    expected = ("datagrams 1 1 1 1, empty 2, refused 1\n", "poll: 0\n", "recvmmsg that waits for one: 1 1\n")
    assert stack.outside(program).stdout == "".join(expected)
    assert stack.run(program).stdout == "".join(expected)
    stack.assert_nothing_left()

"""TCP against the kernel's over emulated links, read by tshark: nothing in the capture is our fault without a cause.

The capture is taken on the stack's side of the link, so that tshark sees what the stack had seen when it sent.
"""

import collections
import subprocess

import pytest

from conftest import KERNEL, STACK

PYTHON = "/usr/bin/python3"
SINK = """
import hashlib, socket, sys
s = socket.create_server((sys.argv[1], 7000)); print("ready", flush=True)
c, _ = s.accept(); h = hashlib.sha256(); n = 0
while data := c.recv(1 << 16): h.update(data); n += len(data)
c.sendall(h.hexdigest().encode()); c.close()
"""
SOURCE = """
import hashlib, os, socket, sys
data = os.urandom(int(sys.argv[2])); s = socket.create_connection((sys.argv[1], 7000)); s.sendall(data)
s.shutdown(socket.SHUT_WR); got = b""
while more := s.recv(100): got += more
assert got.decode() == hashlib.sha256(data).hexdigest(); print("same")
"""

# A queue that never overflows: these links lose nothing.
CLEAN = ["delay 500us", "delay 10ms rate 50mbit limit 20000", "delay 50ms limit 20000", "delay 250ms limit 20000"]
FAULTY = ["loss 1% delay 5ms", "loss 5% delay 20ms", "loss 10% delay 2ms", "reorder 5% delay 10ms",
          "duplicate 5% delay 5ms", "corrupt 2% delay 5ms", "jitter 5ms delay 20ms", "loss 2% delay 250ms"]


def transfer(stack, size):
    """`size` bytes from the stack to the kernel's side, then as many back."""
    for spawn, run, address in ((stack.spawn_outside, stack.run, KERNEL), (stack.spawn, stack.outside, STACK)):
        server = spawn(PYTHON, "-c", SINK, address)
        assert server.stdout.readline() == "ready\n"
        assert run(PYTHON, "-c", SOURCE, address, str(size), timeout=300).stdout == "same\n"
        server.wait(30)


def findings(stack, path):
    """tshark's findings about TCP by name, those of packets that the stack has sent."""
    stack.host.terminate()
    stack.host.wait(20)
    output = subprocess.run(
        ["tshark", "-r", path, "-d", "tcp.port==7000,data", "-o", "tcp.check_checksum:TRUE",
         "-Y", f"tcp && ip.src=={STACK}", "-T", "fields", "-e", "tcp.checksum.status", "-e", "_ws.expert.message"],
        capture_output=True, text=True, check=True).stdout
    count = collections.Counter()
    for line in output.splitlines():
        status, _, messages = line.partition("\t")
        count["packets"] += 1
        count["bad checksum"] += status == "0"
        for message in filter(None, messages.split(",")):
            count[message.split(":")[0].strip()] += 1
    return count


def finding(count, *words):
    return sum(number for name, number in count.items() if all(word in name.lower() for word in words))


def capture(make_stack, directory, link, size):
    path = directory / "link.pcapng"
    stack = make_stack("--link", link, "--capture", str(path))
    stack.outside("ip", "link", "set", "tap0", "gso_max_segs", "1")
    # So that no segment waits for an address.
    stack.outside("ping", "-c", 1, "-W", 5, STACK)
    transfer(stack, size)
    count = findings(stack, path)
    print(link, dict(count))
    assert count["packets"] > size / 70000
    assert count["bad checksum"] == 0
    assert finding(count, "malformed") == 0
    return count


@pytest.mark.parametrize("link", CLEAN)
def test_a_clean_link_gives_no_finding(make_stack, directory, link):
    count = capture(make_stack, directory, link, 4 << 20)
    for words in (("retransmission",), ("out-of-order",), ("duplicate ack",), ("previous segment",), ("acked segment",),
                  ("keep-alive",), ("spurious",)):
        assert finding(count, *words) == 0, count


@pytest.mark.parametrize("link", FAULTY)
def test_a_faulty_link_excuses_only_what_it_did(make_stack, directory, link):
    count = capture(make_stack, directory, link, 2 << 20)
    # What had been acknowledged when it was sent again cannot be the link's fault, unless the acknowledgment, which tshark
    # believes, was damaged.
    if "corrupt" not in link:
        assert finding(count, "spurious") == 0, count
    assert finding(count, "acked segment") == 0, count
    assert finding(count, "keep-alive") == 0, count

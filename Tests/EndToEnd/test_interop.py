"""TCP against the kernel's over emulated links, read by tshark: nothing in the capture is our fault without a cause.

The capture is taken on the stack's side of the link, so that tshark sees what the stack had seen when it sent.
"""

import collections
import re
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
    """tshark's findings about TCP by name, those of packets that the stack has sent. What was sent again has the silence
    before it, since the same bytes went last, in the list `silences`, in seconds."""
    stack.host.terminate()
    stack.host.wait(20)
    output = subprocess.run(
        ["tshark", "-r", path, "-d", "tcp.port==7000,data", "-o", "tcp.check_checksum:TRUE",
         "-Y", f"tcp && ip.src=={STACK}", "-T", "fields", "-e", "frame.time_relative", "-e", "tcp.stream", "-e", "tcp.nxtseq",
         "-e", "tcp.seq", "-e", "tcp.checksum.status", "-e", "_ws.expert.message"],
        capture_output=True, text=True, check=True).stdout
    count, silences, sent = collections.Counter(), [], {}
    for line in output.splitlines():
        time, stream, end, start, status, messages = line.split("\t")
        time = float(time)
        count["packets"] += 1
        count["bad checksum"] += status == "0"
        for message in filter(None, messages.split(",")):
            count[message.split(":")[0].strip()] += 1
        if "retransmission" in messages:
            # The packet of before may have been larger; its end is in this one, or it ends where this one does.
            silences.append(time - max((at for (of, last), at in sent.items() if of == stream and last >= int(end or start)),
                                       default=time))
        sent[stream, int(end or start)] = time
    return count, silences


def finding(count, *words):
    return sum(number for name, number in count.items() if all(word in name.lower() for word in words))


def capture(make_stack, directory, link, size):
    path = directory / "link.pcapng"
    stack = make_stack("--link", link, "--capture", str(path))
    stack.outside("ip", "link", "set", "tap0", "gso_max_segs", "1")
    # So that no segment waits for an address.
    stack.outside("ping", "-c", 1, "-W", 5, STACK)
    transfer(stack, size)
    count, silences = findings(stack, path)
    print(link, dict(count), silences)
    assert count["packets"] > size / 70000
    assert count["bad checksum"] == 0
    assert finding(count, "malformed") == 0
    return count, silences


@pytest.mark.parametrize("link", CLEAN)
def test_a_clean_link_gives_no_finding(make_stack, directory, link):
    count, silences = capture(make_stack, directory, link, 4 << 20)
    for words in (("out-of-order",), ("duplicate ack",), ("previous segment",), ("acked segment",), ("keep-alive",), ("spurious",)):
        assert finding(count, *words) == 0, count
    # Nothing is lost here, but on a busy machine the other side may not run for a while. One tail loss probe is right then,
    # after two round trips and 10 ms.
    round_trip = 2 * float(re.search(r"delay (\d+)", link)[1]) * (1e-6 if "us" in link else 1e-3)
    assert finding(count, "retransmission") <= 1, count
    assert all(silence >= max(2 * round_trip, 0.01) for silence in silences), silences


@pytest.mark.parametrize("link", FAULTY)
def test_a_faulty_link_excuses_only_what_it_did(make_stack, directory, link):
    count, _ = capture(make_stack, directory, link, 2 << 20)
    # What had been acknowledged when it was sent again cannot be the link's fault, unless the acknowledgment, which tshark
    # believes, was damaged.
    if "corrupt" not in link:
        assert finding(count, "spurious") == 0, count
    assert finding(count, "acked segment") == 0, count
    assert finding(count, "keep-alive") == 0, count

"""What a segment or a datagram costs the host: no allocation and no reference counting, counted by a library that is preloaded into it."""

import mmap
import pathlib
import platform
import struct
import subprocess

import pytest

from conftest import KERNEL, STACK

SOURCE = pathlib.Path(__file__).parent / "counting" / "counting.c"
NAMES = ("malloc", "free", "allocObject", "retain", "release", "beginAccess")
MEBIBYTES = 256
PYTHON = "/usr/bin/python3"

# Both run one connection that stays up, so that what is counted between two looks is data and acknowledgments only.
SERVER = """
import socket, sys
s = socket.create_server((sys.argv[1], 7000)); c, _ = s.accept(); b = bytearray(1 << 16)
def take(n):
    while n: n -= c.recv_into(b, min(n, len(b)))
for _ in range(2):
    take(int(sys.argv[2]) << 20); c.sendall(b"x")
"""
CLIENT = """
import socket, sys
s = socket.create_connection((sys.argv[1], 7000)); b = bytes(1 << 16)
for n in (int(sys.argv[2]), int(sys.argv[2])):
    for _ in range(n * 16): s.sendall(b)
    assert s.recv(1) == b"x"
    print("done", flush=True)
    input()
"""


@pytest.fixture
def counted(make_stack, directory):
    library = directory / "counting.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    stack = make_stack(environment={"LD_PRELOAD": str(library), "ALPS_COUNT_FILE": str(directory / "counts")})
    file = open(directory / "counts", "rb")
    page = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
    stack.counts = lambda: dict(zip(NAMES, struct.unpack_from("6Q", page)))
    return stack


def packets(stack):
    interface = [row for row in stack.ask("netstat", "-i")["interfaces"] if row["name"] == "tap0"][0]
    return interface["packetsIn"] + interface["packetsOut"]


def costs(stack, client):
    """What each packet of the second half cost, by kind; the first has filled every pool."""
    assert client.stdout.readline() == "done\n"
    first, before = packets(stack), stack.counts()
    client.stdin.write("\n")
    client.stdin.flush()
    assert client.stdout.readline() == "done\n"
    after, last = stack.counts(), packets(stack)
    assert last - first > 1000
    result = {name: (after[name] - before[name]) / (last - first) for name in NAMES}
    print({name: round(value, 4) for name, value in result.items()}, "for each of", last - first, "packets")
    return result


pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the Swift runtime's calling convention is C's on x86-64 only")


def assert_free(cost):
    # Timers of the host itself and the odd event that is not a packet.
    assert all(cost[name] < 0.02 for name in NAMES), cost


def test_sending_costs_no_allocation_and_no_reference_counting(counted):
    counted.spawn_outside(PYTHON, "-c", SERVER, KERNEL, str(MEBIBYTES))
    counted.wait_listening_outside(7000)
    assert_free(costs(counted, counted.spawn(PYTHON, "-c", CLIENT, KERNEL, str(MEBIBYTES), stdin=subprocess.PIPE)))


def test_receiving_costs_no_allocation_and_no_reference_counting(counted):
    # A frame for each segment.
    counted.outside("ip", "link", "set", "tap0", "gso_max_segs", "1")
    size = str(MEBIBYTES // 4)
    counted.spawn(PYTHON, "-c", SERVER, STACK, size)
    counted.wait_listening(7000)
    assert_free(costs(counted, counted.spawn_outside(PYTHON, "-c", CLIENT, STACK, size, stdin=subprocess.PIPE)))


# Sends what it gets back where it came from.
ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 7000))
while True:
    data, source = s.recvfrom(2048)
    s.sendto(data, source)
"""
# Sixteen at a time forth and back; a lost one is not waited for. Connected, or with an address each time.
ASKER = """
import socket, sys
to, size, connects = (sys.argv[1], 7000), int(sys.argv[2]), sys.argv[3] == "connects"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.5)
if connects: s.connect(to)
for half in range(2):
    for n in range(1000):
        for _ in range(16): s.send(bytes(size)) if connects else s.sendto(bytes(size), to)
        try:
            for _ in range(16): s.recv(2048)
        except TimeoutError:
            pass
    print("done", flush=True)
    input()
"""


@pytest.mark.parametrize("size", [64, 1400])
def test_datagrams_of_a_server_cost_no_allocation_and_no_reference_counting(counted, size):
    counted.spawn(PYTHON, "-c", ECHO, STACK)
    counted.wait_listening(7000, "udp")
    asker = counted.spawn_outside(PYTHON, "-c", ASKER, STACK, str(size), "connects", stdin=subprocess.PIPE)
    assert_free(costs(counted, asker))


@pytest.mark.parametrize("way", ["connects", "names"])
def test_datagrams_of_a_client_cost_no_allocation_and_no_reference_counting(counted, way):
    counted.spawn_outside(PYTHON, "-c", ECHO, KERNEL)
    counted.wait_listening_outside(7000)
    assert_free(costs(counted, counted.spawn(PYTHON, "-c", ASKER, KERNEL, "64", way, stdin=subprocess.PIPE)))

"""Accurate ECN (RFC 9768) between two hosts behind a bridge of the kernel that marks packets: what one has received is what
the other believes, segmentation offload included."""

import shutil
import subprocess

import pytest

from conftest import ALPS, STACK, wait_until

PEER = "10.11.12.14"
PYTHON = "/usr/bin/python3"
COUNTERS = """
import socket, struct, sys
def counters(s):
    info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 280)
    return struct.unpack_from("=I", info, 196) + struct.unpack_from("=7I", info, 248) + (info[276],)
"""
SINK = COUNTERS + """
s = socket.create_server((sys.argv[1], 7000)); print("ready", flush=True)
c, _ = s.accept(); n = 0
while n < int(sys.argv[2]): n += len(c.recv(1 << 16))
c.sendall(b"x"); print(n, *counters(c), flush=True); c.recv(1)
"""
SOURCE = COUNTERS + """
s = socket.create_connection((sys.argv[1], 7000)); s.sendall(bytes(int(sys.argv[2])))
s.recv(1); print(0, *counters(s)); s.close()
"""
NAMES = ["bytes", "delivered_ce", "received_ce", "delivered_e1", "delivered_e0", "delivered_ceb", "received_e1",
         "received_e0", "received_ceb", "modes"]
SIZE = 8 << 20


@pytest.fixture
def peer(stack, directory):
    """A second host, on a tap of its own and behind a bridge with the first; gives its control socket."""
    socket, log = str(directory / "peer.sock"), directory / "peer.log"
    host = subprocess.Popen(
        stack.outside_argv(ALPS, "host", "--name", f"{stack.name}b", "--socket", socket, "--interface", "tap:tap1",
                           "--address", f"{PEER}/24"),
        stdout=open(log, "w"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: "ready\n" in log.read_text() or host.poll() is not None, what="start of the second host")
        assert host.poll() is None, log.read_text()
        stack.outside("ip", "link", "add", "br0", "type", "bridge")
        stack.outside("ip", "link", "set", "br0", "up")
        for tap in ("tap0", "tap1"):
            stack.outside("ip", "link", "set", tap, "master", "br0")
        for path in (stack.socket, socket):
            subprocess.run([ALPS, "sysctl", "net.inet.tcp.ecn.enable=3", "--socket", path], check=True, capture_output=True)
        yield socket
    finally:
        host.terminate()
        host.wait(10)


def mark(stack, share):
    stack.outside("nft", "add table bridge m")
    stack.outside("nft", "add chain bridge m forward { type filter hook forward priority 0; }")
    # Acknowledgments may be few.
    stack.outside("nft", "add rule bridge m forward ip ecn ect0 ip length < 200 numgen random mod 1000 < 300 ip ecn set ce")
    stack.outside("nft", f"add rule bridge m forward ip ecn ect0 numgen random mod 1000 < {share} ip ecn set ce")


def transfer(stack, peer):
    """What source and sink say at the end."""
    sink = stack.spawn(PYTHON, "-c", SINK, STACK, str(SIZE))
    assert sink.stdout.readline() == "ready\n"
    source = subprocess.run([ALPS, "run", "--socket", peer, "--", PYTHON, "-c", SOURCE, STACK, str(SIZE)],
                            capture_output=True, text=True, timeout=120, check=True).stdout
    return [dict(zip(NAMES, map(int, text.split()))) for text in (source, sink.stdout.readline())]


def test_a_path_without_marks_has_none(stack, peer):
    source, sink = transfer(stack, peer)
    # TCPI_ECN_MODE_ACCECN, counters seen, no failure.
    assert source["modes"] == sink["modes"] == 2 | 2 << 2
    assert sink["bytes"] == SIZE
    assert source["delivered_e0"] == sink["received_e0"] >= SIZE
    assert source["delivered_ce"] == sink["received_ce"] == source["received_ce"] == sink["delivered_ce"] == 0


@pytest.mark.skipif(shutil.which("nft") is None, reason="there is no nft to mark with")
def test_marks_are_told_and_understood(stack, peer):
    mark(stack, 20)
    source, sink = transfer(stack, peer)
    assert source["modes"] == sink["modes"] == 2 | 2 << 2
    assert sink["bytes"] == SIZE
    assert sink["received_ce"] > 20 and sink["received_ceb"] > 0
    assert source["delivered_ce"] == sink["received_ce"]
    assert source["delivered_ceb"] == sink["received_ceb"]
    assert source["delivered_e0"] == sink["received_e0"]
    assert sink["received_e0"] + sink["received_ceb"] >= SIZE
    # Its acknowledgments are ECN-capable as well.
    assert source["received_ce"] > 0

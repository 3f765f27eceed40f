"""libalps-packetdrill.so, called as packetdrill calls the library of --so_filename: from two threads, in virtual time."""

import os
import re
import shutil
import subprocess

import pytest

from conftest import BIN, ROOT

LIBRARY = BIN / "libalps-packetdrill.so"


@pytest.fixture(scope="session")
def play(tmp_path_factory):
    program = tmp_path_factory.mktemp("packetdrill") / "packetdrill_library"
    source = ROOT / "Tests/EndToEnd/programs/packetdrill_library.c"
    subprocess.run(
        ["cc", "-O2", "-w", "-pthread", f"-I{ROOT}/Sources/CPacketdrill/include", "-o", program, source], check=True)

    def run(case, *flags, library=LIBRARY, check=True, **options):
        done = subprocess.run([program, library, case, *flags], capture_output=True, text=True, timeout=60, **options)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done if not check else done.stdout.splitlines()

    return run


def test_only_the_entry_is_exported():
    symbols = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    assert re.findall(r" [A-Z] (\S+)", symbols) == ["packetdrill_interface_init"]


def test_a_connection_of_the_other_side(play):
    """accept and read block and are seen asleep; they return when their packet comes, however far time has gone on by then."""
    lines = play("passive")
    assert re.fullmatch(r"accept returned \d+ at \+100 ms", lines.pop(2))
    assert lines == [
        "accept: state S, blocks",
        "SYN, ACK: S. 0(0) ack 1 2:1460, checksums right, at +0 ms",
        "peer c0000201 port 40000",
        "a descriptor of the process: yes",
        "read: state S, blocks",
        "read returned 100 at +10 ms",
        "read abcde",
        "ACK: . 1(0) ack 101, checksums right, at +10 ms",
        "write: 1500",
        "data: . 1(1000) ack 101, checksums right, at +0 ms",
        "data: P. 1001(500) ack 101, checksums right, at +0 ms",
        "again: . 1(1000) ack 101, checksums right, at +300 ms",
        "getsockopt: 0",
        "TCP_INFO: 280 bytes, state 1, last 0",
        "read: 0",
        "close: 0",
        "ACK of FIN: . 1501(0) ack 102, checksums right, at +0 ms",
        "FIN: F. 1501(0) ack 102, checksums right, at +0 ms",
        "a descriptor of the process: no",
    ]


def test_a_connection_of_the_scripts(play):
    assert play("active") == [
        "connect: state S, blocks",
        "SYN: S 0(0) ack 0 2:1460 1 3 4 8, checksums right, at +0 ms",
        "SYN again: S 0(0) ack 0 2:1460 1 3 4 8, checksums right, at +1000 ms",
        "connect returned 0 at +1000 ms",
        "ACK: . 1(0) ack 1, checksums right, at +1000 ms",
        "write: state S, blocks",
        "write returned 100000, bytes on the wire 100000",
    ]


def test_a_refused_connection(play):
    assert play("refused")[-1] == "connect returned -1 ECONNREFUSED at +0 ms"


def test_what_does_not_come_is_waited_for_ten_minutes_of_virtual_time(play):
    assert play("missing")[1:] == [
        "missing: status 0, 0 bytes after 600 s",
        "a read of the first thread: -1 ETIMEDOUT",
        "after 600 s",
    ]


def test_time_passes_as_packetdrill_expects(play):
    assert play("clock") == [
        "usleep: 1000000 us",
        "spin: ends, 0 us late",
        "errno is kept",
        "SYN, ACK: S. 0(0) ack 1 2:1460, checksums right, at +0 ms",
        "read: state S, blocks",
        "read returned -1 EAGAIN at +300 ms",
        "poll: state S, blocks",
        "poll returned 0 at +500 ms",
        "poll: state S, blocks",
        "poll returned 0 at +500 ms",
        "poll of the first thread: 0",
        "after 500 ms",
    ]


def test_runs_are_the_same(play):
    """Whatever the system does with the two threads meanwhile."""
    first = play("passive")
    assert all(play("passive", preexec_fn=lambda: os.nice(10)) == first for _ in range(10))


def test_calls_and_their_errors(play):
    assert play("calls")[1:] == [
        "read: -1 EBADF",
        "bind: -1 EBADF",
        "connect: -1 EFAULT",
        "bind: -1 EINVAL",
        "socket: -1 EAFNOSUPPORT",
        "socket: -1 EINVAL",
        "fcntl: 0",
        "F_GETFL: non-blocking",
        "read: -1 EAGAIN",
        "accept: -1 EINVAL",
        "recv: -1 EAGAIN",
        "epoll_ctl: 0",
        "epoll_ctl: -1 EEXIST",
        "epoll_wait: 0",
        "read: -1 EINVAL",
        "epoll_wait: state S, blocks",
        "epoll_wait returned 700001 at +2 ms",
        "poll: 1",
        "revents 5 0",
        "read: -1 EFAULT",
        "ioctl: 0",
        "FIONREAD 60",
        "ioctl: -1 ENOTTY",
        "recv: 5",
        "peeked abcde",
        "readv: 30",
        "read abcdefghij klmnopqrstuvwxyzabcd",
        "recvmsg: 30",
        "read efghijklmn opqrstuvwxyzabcdefgh",
        "ACK: . 1(0) ack 61, checksums right, at +0 ms",
        "writev: 30",
        "writev: P. 1(30) ack 61, checksums right, at +0 ms",
        "sendmsg: 30",
        "sendmsg: P. 31(30) ack 61, checksums right, at +0 ms",
        "pipe: 0",
        "write: 4",
        "splice: 4",
        "splice: P. 61(4) ack 61, checksums right, at +0 ms",
        "payload pipe",
        "send: 10",
        "urgent: P.U 65(10) ack 61, checksums right, at +0 ms",
        "shutdown: 0",
        "FIN: F. 75(0) ack 61, checksums right, at +0 ms",
        "write: -1 EPIPE",
        "netdev_send: -1 EAFNOSUPPORT",
    ]


def test_datagrams(play):
    assert play("datagrams") == [
        "bind: 0",
        "sendto: 5",
        "netdev_receive: 0",
        "33 bytes to port 9000: hello",
        "recvfrom: 10",
        "recvfrom: 10",
        "datagram01 from c0000201 port 40000, 16 bytes of name",
        "recvmsg: 4",
        "flags 20, 16 bytes of name",
        "recv: -1 EAGAIN",
        "close: 0",
    ]


SETTINGS = {
    "": ("2:1460 1 3 4 8", "c0a80001", None),
    "profile=linux": ("2:1460 4 8 1 3", "c0a80001", 540000),
    "profile=bsd": ("2:1460 1 3 4 8", "c0a80001", 65536),
    "mtu=1280, local_ip=192.168.0.9": ("2:1240 1 3 4 8", "c0a80009", None),
    "profile=linux,net.ipv4.tcp_sack=0": ("2:1460 1 1 8 1 3", "c0a80001", 540000),
    "net.ipv4.tcp_rmem=4096 87380 100000": ("2:1460 1 3 4 8", "c0a80001", 87380),
    f"tcp={BIN}/libalps-tcp.so": ("2:1460 1 3 4 8", "c0a80001", None),
}


@pytest.mark.parametrize("flags", SETTINGS)
def test_flags(play, flags):
    options, source, size = SETTINGS[flags]
    _, syn, where, buffer = play("settings", *([flags] if flags else []))
    assert syn == f"SYN: S 0(0) ack 0 {options}, checksums right, at +0 ms"
    assert where == f"from {source}"
    assert size is None or buffer == f"SO_RCVBUF {size}"


@pytest.mark.parametrize("flags, complaint", [
    ("nonsense", "'nonsense': expected NAME=VALUE"),
    ("no.such.sysctl=1", "sysctl no.such.sysctl has no counterpart here"),
    ("mtu=1", "--mtu=1: expected a number in 68...65535"),
    ("profile=plan9", "--profile=plan9: expected auto, alps, linux or bsd"),
    ("plugins=/nowhere", "libalps-ipv4.so is not in /nowhere"),
    ("tcp=/etc/passwd", "/etc/passwd is not a plugin"),
])
def test_bad_flags_end_the_process_with_a_line(play, flags, complaint):
    done = play("settings", flags, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("libalps-packetdrill: ") and complaint in done.stderr and done.stderr.count("\n") == 1


def test_plugins_are_found_beside_the_library(play, tmp_path):
    """Wherever the process is, and through a link to the library."""
    for name in ["ipv4", "icmp", "udp", "tcp", "packetdrill"]:
        shutil.copy(BIN / f"libalps-{name}.so", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "stack.so").symlink_to(tmp_path / "libalps-packetdrill.so")
    assert len(play("settings", library="./stack.so", cwd=tmp_path / "elsewhere")) == 4
    (tmp_path / "libalps-udp.so").unlink()
    done = play("settings", library="./stack.so", cwd=tmp_path / "elsewhere", check=False)
    assert done.returncode == 1 and f"libalps-udp.so is not in {tmp_path}" in done.stderr

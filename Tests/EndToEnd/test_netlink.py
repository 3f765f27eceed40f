"""Stock `ip`, `ss` and what else asks by netlink or /proc/net: they show and change the stack, and leave the kernel alone."""

import json
import pathlib
import re
import subprocess
import time

import pytest

from conftest import KERNEL, STACK, wait_until

PYTHON = "/usr/bin/python3"


def ip(stack, *argv, **options):
    return stack.run("ip", *argv, **options).stdout


def refused(stack, *argv):
    """What a command says that fails."""
    result = stack.run(*argv, check=False)
    assert result.returncode != 0, result.stdout
    return result.stderr


@pytest.fixture
def kernels_side(stack):
    """The kernel's tables in the namespace, which no command below may change."""
    def tables():
        # Without IPv6, which goes on by itself.
        commands = (["addr"], ["route", "show", "table", "all"], ["link"], ["rule"])
        return [stack.outside("ip", "-4", *command, check=False).stdout for command in commands]

    before = tables()
    yield
    assert tables() == before


# --- interfaces and addresses

def test_interfaces_and_addresses_are_the_stacks(stack):
    shown = {row["ifname"]: row for row in json.loads(ip(stack, "-j", "addr"))}
    assert list(shown) == ["lo0", "tap0"]
    assert {"UP", "LOWER_UP", "BROADCAST"} <= set(shown["tap0"]["flags"])
    address = shown["tap0"]["addr_info"][0]
    assert (address["local"], address["prefixlen"], address["broadcast"]) == (STACK, 24, "10.11.12.255")
    hardware = next(row for row in stack.ask("netstat", "-i")["interfaces"] if row["name"] == "tap0")["hardware"]
    assert shown["tap0"]["address"] == hardware
    assert ip(stack, "-br", "-4", "addr", "show", "dev", "tap0").split() == ["tap0", "UP", f"{STACK}/24"]
    assert ip(stack, "-o", "link", "show", "lo0").startswith("1: lo0: <LOOPBACK")
    assert ip(stack, "-6", "addr") == ""
    assert 'Device "nosuch" does not exist' in refused(stack, "ip", "addr", "show", "dev", "nosuch")


def test_addresses_come_and_go(stack, kernels_side):
    ip(stack, "addr", "add", "10.9.0.1/24", "dev", "tap0")
    assert "already assigned" in refused(stack, "ip", "addr", "add", "10.9.0.1/24", "dev", "tap0")
    assert "inet 10.9.0.1/24 brd 10.9.0.255" in ip(stack, "addr", "show", "tap0")
    assert "10.9.0.0/24 dev tap0 proto kernel scope link src 10.9.0.1" in ip(stack, "route")
    # The stack itself uses it.
    stack.run(PYTHON, "-c", "import socket; socket.socket().bind(('10.9.0.1', 0))")
    ip(stack, "addr", "del", "10.9.0.1/24", "dev", "tap0")
    assert "10.9.0" not in ip(stack, "addr") + ip(stack, "route")
    assert "not found" in refused(stack, "ip", "addr", "del", "10.9.0.1/24", "dev", "tap0")
    # What the stack does not have is refused, not forgotten.
    lifetimes = ("valid_lft", "60", "preferred_lft", "60")
    assert "live until" in refused(stack, "ip", "addr", "add", "10.9.0.1/24", "dev", "tap0", *lifetimes)


def test_an_interface_goes_down_and_up_and_gets_an_mtu(stack, kernels_side):
    ip(stack, "link", "set", "tap0", "mtu", 1400)
    assert "mtu 1400" in ip(stack, "link", "show", "tap0")
    ip(stack, "link", "set", "dev", "tap0", "down")
    assert "state DOWN" in ip(stack, "link", "show", "tap0")
    assert stack.outside("ping", "-c", 1, "-W", 1, STACK, check=False).returncode == 1
    ip(stack, "link", "set", "dev", "tap0", "up")
    stack.outside("ping", "-c", 1, "-W", 5, STACK)
    assert "Cannot find device" in refused(stack, "ip", "link", "set", "nosuch", "up")
    for argv in (["link", "del", "tap0"], ["link", "add", "br0", "type", "bridge"], ["link", "set", "tap0", "name", "x"]):
        refused(stack, "ip", *argv)
    assert "state UP" in ip(stack, "link", "show", "tap0")


def test_counters_of_an_interface(stack):
    stack.outside("ping", "-c", 5, "-i", 0.1, STACK)
    counts = json.loads(ip(stack, "-j", "-s", "link", "show", "tap0"))[0]["stats64"]
    ours = next(row for row in stack.ask("netstat", "-i")["interfaces"] if row["name"] == "tap0")
    assert counts["rx"]["packets"] >= 5 and counts["tx"]["packets"] >= 5
    assert counts["rx"]["packets"] <= ours["packetsIn"]


# --- routes

def test_routes_come_and_go(stack, kernels_side):
    assert f"default via {KERNEL} dev tap0" in ip(stack, "route")
    ip(stack, "route", "add", "192.0.2.0/24", "via", "10.11.12.9")
    assert "already exists" in refused(stack, "ip", "route", "add", "192.0.2.0/24", "via", "10.11.12.9")
    assert ip(stack, "route", "get", "192.0.2.7").startswith(f"192.0.2.7 via 10.11.12.9 dev tap0 src {STACK}")
    ip(stack, "route", "replace", "192.0.2.0/24", "via", "10.11.12.8", "mtu", 1300)
    assert "192.0.2.0/24 via 10.11.12.8 dev tap0 mtu 1300" in ip(stack, "route", "show", "192.0.2.0/24")
    assert stack.ask("route", "get", "192.0.2.7")["routes"][0]["gateway"] == "10.11.12.8"
    ip(stack, "route", "add", "unreachable", "198.51.100.0/24")
    assert "No route to host" in refused(stack, "ip", "route", "get", "198.51.100.1")
    assert "invalid gateway" in refused(stack, "ip", "route", "add", "203.0.113.0/24", "via", "99.9.9.9")
    assert "Invalid prefix" in refused(stack, "ip", "route", "add", "203.0.113.1/24", "via", "10.11.12.9")
    ip(stack, "route", "del", "192.0.2.0/24")
    assert "No such process" in refused(stack, "ip", "route", "del", "192.0.2.0/24")
    ip(stack, "route", "flush", "198.51.100.0/24")
    assert "198.51.100.0" not in ip(stack, "route")
    local = ip(stack, "route", "show", "table", "local")
    assert f"local {STACK} dev tap0" in local and "broadcast 10.11.12.255" in local
    assert ip(stack, "-6", "route") == ""
    assert ip(stack, "route", "get", STACK).startswith(f"local {STACK} dev lo0")


# --- what Linux refuses

REFUSED = """
addr del 1.2.3.4/32 dev tap0
addr add 10.9.0.1/24 dev nosuch
route add 192.0.2.0/24
route add 192.0.2.0/24 via 77.7.7.7
route add 192.0.2.1/24 via 77.7.7.7
route del 192.0.2.0/24
route get 192.0.2.1 from 9.9.9.9
neigh del 10.11.12.200 dev tap0
neigh add 10.11.12.201 dev tap0
neigh get 10.11.12.200 dev tap0
link set tap0 mtu 70000
link set tap0 mtu 10
link set nosuch up
"""


def test_refusals_are_linuxs(stack):
    """The same words and the same status for the kernel's side, where none of these changes anything either."""
    for line in REFUSED.strip().splitlines():
        ours = stack.run("ip", *line.split(), check=False)
        kernel = stack.outside("ip", *line.split(), check=False)
        assert kernel.returncode != 0, line
        assert (ours.returncode, ours.stderr) == (kernel.returncode, kernel.stderr), line


# --- neighbours

def test_neighbours(stack, kernels_side):
    stack.outside("ping", "-c", 1, STACK)
    outside = json.loads(stack.outside("ip", "-j", "link", "show", "tap0").stdout)[0]["address"]
    assert f"{KERNEL} dev tap0 lladdr {outside} REACHABLE" in ip(stack, "neigh")
    ip(stack, "neigh", "add", "10.11.12.77", "lladdr", "02:00:00:00:00:77", "dev", "tap0")
    assert "File exists" in refused(
        stack, "ip", "neigh", "add", "10.11.12.77", "lladdr", "02:00:00:00:00:77", "dev", "tap0")
    assert ip(stack, "neigh", "get", "10.11.12.77", "dev", "tap0").split() == [
        "10.11.12.77", "dev", "tap0", "lladdr", "02:00:00:00:00:77", "PERMANENT"]
    assert any(row["address"] == "10.11.12.77" for row in stack.ask("arp")["neighbors"])
    assert "10.11.12.77" in stack.run("arp", "-an").stdout
    ip(stack, "neigh", "del", "10.11.12.77", "dev", "tap0")
    assert "No such file" in refused(stack, "ip", "neigh", "del", "10.11.12.77", "dev", "tap0")
    assert "10.11.12.77" not in ip(stack, "neigh")


def test_a_proxy_entry_answers_for_another_host(stack):
    ip(stack, "neigh", "add", "proxy", "10.11.12.78", "dev", "tap0")
    assert ip(stack, "neigh", "show", "proxy").split()[:3] == ["10.11.12.78", "dev", "tap0"]
    stack.outside("ping", "-c", 1, "-W", 1, "10.11.12.78", check=False)
    hardware = json.loads(ip(stack, "-j", "link", "show", "tap0"))[0]["address"]
    assert hardware in stack.outside("ip", "neigh", "show", "10.11.12.78").stdout


# --- monitor

def test_monitor_hears_of_everything(stack, directory):
    with open(directory / "monitor", "w") as output:
        monitor = stack.spawn("ip", "monitor", "all", stdout=output)
        wait_until(lambda: any(row["program"] == "ip" for row in stack.ask("ps")["sessions"]), what="the monitor")
        time.sleep(0.3)
        ip(stack, "addr", "add", "10.9.0.1/24", "dev", "tap0")
        ip(stack, "route", "add", "192.0.2.0/24", "via", "10.11.12.9")
        ip(stack, "route", "del", "192.0.2.0/24")
        stack.tool("arp", "add", "10.11.12.77", "02:00:00:00:00:77")
        ip(stack, "link", "set", "tap0", "mtu", 1400)

        def heard():
            text = (directory / "monitor").read_text()
            return all(line in text for line in (
                "[ADDR]2: tap0    inet 10.9.0.1/24", "[ROUTE]192.0.2.0/24 via 10.11.12.9",
                "[ROUTE]Deleted 192.0.2.0/24", "[NEIGH]10.11.12.77 dev tap0 lladdr 02:00:00:00:00:77 PERMANENT",
                "mtu 1400"))
        wait_until(heard, 10, "what the monitor heard")
    monitor.kill()
    monitor.wait()
    stack.assert_nothing_left()


# --- sockets

SERVER = """
import socket, sys
s = socket.create_server((sys.argv[1], 8080)); c = socket.create_connection((sys.argv[1], 8080)); a, _ = s.accept()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("0.0.0.0", 5353))
r = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
c.sendall(b"x" * 1000); a.recv(1000)
print("ready", flush=True); sys.stdin.read()
"""


@pytest.fixture
def server(stack):
    child = stack.spawn(PYTHON, "-c", SERVER, STACK, stdin=subprocess.PIPE)
    assert child.stdout.readline() == "ready\n"
    return child


def test_ss_shows_the_stacks_sockets_and_who_has_them(stack, server):
    rows = [line.split() for line in stack.run("ss", "-Htuanp").stdout.splitlines()]
    states = sorted((row[0], row[1]) for row in rows)
    assert states == [("tcp", "ESTAB"), ("tcp", "ESTAB"), ("tcp", "LISTEN"), ("udp", "UNCONN")]
    assert all(f"pid={server.pid}," in row[6] for row in rows)
    assert len({row[6] for row in rows}) == 4
    assert stack.run("ss", "-Htln").stdout.split()[:4] == ["LISTEN", "0", "128", f"{STACK}:8080"]
    assert stack.run("ss", "-Huan").stdout.split()[3] == "0.0.0.0:5353"
    assert stack.run("ss", "-Hwan").stdout.split()[3] in ("0.0.0.0:1", "0.0.0.0:icmp")
    assert len(stack.run("ss", "-Htan", "sport", "=", ":8080").stdout.splitlines()) == 2
    assert len(stack.run("ss", "-Htan", "dst", STACK, "and", "dport", "=", ":8080").stdout.splitlines()) == 1
    assert stack.run("ss", "-H6tan").stdout == ""
    # The kernel's side has none of them.
    assert ":8080" not in stack.outside("ss", "-Htan").stdout
    # Its own UNIX sockets a program goes on to see.
    assert stack.run("ss", "-Hxa").stdout


def test_ss_shows_what_tcp_knows(stack, server):
    text = stack.run("ss", "-Htin", "dport", "=", ":8080").stdout
    assert re.search(r"\bnewreno\b.*\bcwnd:\d+", text) and "bytes_acked:1000" in text
    assert re.search(r"skmem:\(r0,rb\d+", stack.run("ss", "-Htmn").stdout)
    assert re.search(r"TCP:\s+3 \(estab 2, closed 0", stack.run("ss", "-s").stdout)
    assert f"{server.pid}/python3" in stack.run("netstat", "-tanp").stdout


# --- the calls

CALLS = """
import os, socket, struct, subprocess, sys
def ask(s, flags=0x301, to=(0, 0)):
    s.sendto(struct.pack("=IHHIIBxHiII", 32, 18, flags, 9, 0, 0, 0, 0, 0, 0), to)
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
print(s.getsockname(), s.family.name, s.type.name, s.proto)
s.bind((0, 0))
print(s.getsockname()[0] == os.getpid())
t = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4)
print(t.type.name, t.proto)
ask(s)
# What was asked for is there at once.
data, _, flags, name = s.recvmsg(0, 0, socket.MSG_PEEK | socket.MSG_TRUNC | socket.MSG_DONTWAIT)
whole = s.recv(65536, socket.MSG_PEEK)
print(len(data), bool(flags & socket.MSG_TRUNC), name, len(whole) > 500)
print(s.recv(65536) == whole, struct.unpack_from("=IHHII", whole)[1:4])
# The end of the dump may be in the same datagram or in the next.
try:
    while True: s.recv(65536, socket.MSG_DONTWAIT)
except BlockingIOError: print("empty")
s.connect((0, 0)); print(s.getpeername()); s.send(struct.pack("=IHHIIBxHiII", 32, 18, 1, 9, 0, 0, 0, 1, 0, 0)); s.recv(4096)
try: ask(s, to=(4242, 0))
except OSError as error: print(error.errno)
try: s.bind((77, 0))
except OSError as error: print(error.errno)
other = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
try: other.bind((os.getpid(), 0))
except OSError as error: print(error.errno)
other.bind((0, 1)); print(other.getsockname()[0] > 0x7fffffff, other.getsockname()[1])
for type, protocol in ((socket.SOCK_STREAM, 0), (socket.SOCK_RAW, 12), (socket.SOCK_RAW, 6), (socket.SOCK_RAW, 200)):
    try: socket.socket(socket.AF_NETLINK, type, protocol); print("protocol", protocol, "made")
    except OSError as error: print("protocol", protocol, error.errno)
for call in (lambda: s.listen(1), lambda: s.accept(), lambda: s.shutdown(2), lambda: s.send(b"")):
    try: call(); print("done")
    except OSError as error: print(error.errno)
s.setsockopt(270, 11, 1); print(s.getsockopt(270, 11), s.getsockopt(270, 12))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536); print(s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
"""

CHILD = """
import socket, struct, sys
s = socket.socket(fileno=int(sys.argv[1]))
s.send(struct.pack("=IHHIIBxHiII", 32, 18, 1, 9, 0, 0, 0, 1, 0, 0))
data, name = s.recvfrom(4096)
print(s.family.name, s.proto, name, b"lo0" in data)
"""


def test_the_calls_do_what_they_do_on_the_kernel(stack):
    """All but the protocols that the kernel of this machine may have and the stack has not."""
    ours = stack.run(PYTHON, "-c", CALLS).stdout.splitlines()
    kernel = stack.outside(PYTHON, "-c", CALLS).stdout.splitlines()
    refusals = ["protocol 12 93", "protocol 6 93"]
    assert [line for line in ours if line in refusals] == refusals

    def others(lines):
        return [line for line in lines if not line.startswith(("protocol 12 ", "protocol 6 "))]

    assert others(ours) == others(kernel)


def test_the_descriptor_is_as_the_kernels(stack):
    program = pathlib.Path(__file__).parent / "programs" / "netlink.py"
    ours, kernel = (run(PYTHON, program).stdout.splitlines() for run in (stack.run, stack.outside))
    assert len(kernel) > 20
    assert ours == kernel
    stack.assert_nothing_left()


def test_a_socket_that_was_inherited_goes_on(stack):
    script = ("import socket, subprocess, sys; s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); s.bind((0, 0));"
              f"print(subprocess.run([sys.executable, '-c', {CHILD!r}, str(s.fileno())], pass_fds=[s.fileno()],"
              " capture_output=True, text=True, check=True).stdout, end='')")
    assert stack.run(PYTHON, "-c", script).stdout == "AF_NETLINK 0 (0, 0) True\n"
    stack.assert_nothing_left()


def test_only_root_changes_the_stack(stack):
    nobody = ["setpriv", "--reuid=nobody", "--clear-groups"]
    assert f"inet {STACK}/24" in stack.run(*nobody, "ip", "addr").stdout
    for argv in (["addr", "add", "10.9.0.1/24", "dev", "tap0"], ["link", "set", "tap0", "down"],
                 ["route", "del", "default"], ["neigh", "add", "10.11.12.77", "lladdr", "02:00:00:00:00:77", "dev",
                                             "tap0"]):
        assert "Operation not permitted" in refused(stack, *nobody, "ip", *argv), argv
    # A socket of root's in the hands of somebody who is not root any more.
    script = """
import os, socket, struct
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
os.setuid(65534)
s.send(struct.pack("=IHHIIBxHiII", 32, 16, 5, 9, 0, 0, 0, 2, 0, 1))
print(-struct.unpack_from("=IHHIIi", s.recv(4096))[5])
"""
    assert stack.run(PYTHON, "-c", script).stdout == "1\n"
    assert "state UP" in ip(stack, "link", "show", "tap0")


def test_libc_lists_the_stacks_interfaces(stack):
    script = """
import ctypes, socket
class Entry(ctypes.Structure): pass
Entry._fields_ = [("next", ctypes.POINTER(Entry)), ("name", ctypes.c_char_p), ("flags", ctypes.c_uint), ("address", ctypes.c_void_p)]
libc = ctypes.CDLL(None)
first = ctypes.POINTER(Entry)()
assert libc.getifaddrs(ctypes.byref(first)) == 0
entry, found = first, []
while entry:
    family = ctypes.c_uint16.from_address(entry.contents.address).value
    text = socket.inet_ntoa(ctypes.string_at(entry.contents.address + 4, 4)) if family == 2 else "link"
    found.append((entry.contents.name.decode(), text))
    entry = entry.contents.next
print(found)
"""
    assert stack.run(PYTHON, "-c", script).stdout.strip() == str(
        [("lo0", "link"), ("tap0", "link"), ("lo0", "127.0.0.1"), ("tap0", STACK)])
    assert f"inet {STACK}" in stack.run("ifconfig", "tap0").stdout


# --- /proc/net

FILES = ["dev", "route", "arp", "tcp", "udp", "raw", "snmp", "netstat", "igmp", "sockstat", "tcp6", "if_inet6"]


def test_the_files_of_proc_net_are_the_stacks_by_every_name(stack, server):
    script = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.fopen.restype = libc.fopen64.restype = ctypes.c_void_p
def by_stream(function, path):
    stream = ctypes.c_void_p(function(path.encode(), b"r"))
    data = ctypes.create_string_buffer(1 << 20)
    count = libc.fread(data, 1, 1 << 20, stream)
    libc.fclose(stream)
    return data.raw[:count].decode()
for name in sys.argv[1:]:
    text = open("/proc/net/" + name).read()
    for folder in ("/proc/self/net/", "/proc/%d/net/" % os.getpid(), "/proc/thread-self/net/"):
        assert open(folder + name).read() == text, folder + name
    fd = libc.openat(-100, ("/proc/net/" + name).encode(), 0)
    assert os.read(fd, 1 << 20).decode() == text
    assert by_stream(libc.fopen, "/proc/net/" + name) == by_stream(libc.fopen64, "/proc/net/" + name) == text
    print("==", name); print(text, end="")
"""
    stack.outside("ping", "-c", 1, STACK)
    stack.tool("arp", "add", "10.11.12.77", "02:00:00:00:00:77")
    output = stack.run(PYTHON, "-c", script, *FILES).stdout
    files = dict(part.split("\n", 1) for part in output.split("== ")[1:])
    assert list(files) == FILES
    assert [line.split(":")[0].strip() for line in files["dev"].splitlines()[2:]] == ["lo0", "tap0"]
    assert "tap0\t00000000\t010C0B0A\t0003" in files["route"]
    assert re.search(r"10\.11\.12\.77 +0x1 +0x6 +02:00:00:00:00:77 +\* +tap0", files["arp"])
    assert " 0D0C0B0A:1F90 00000000:0000 0A " in files["tcp"]
    assert " 00000000:14E9 00000000:0000 07 " in files["udp"]
    assert "   1: 00000000:0001 00000000:0000 07 " in files["raw"]
    assert "TCP: inuse 3 orphan 0 tw 0" in files["sockstat"] and "RAW: inuse 1" in files["sockstat"]
    assert len(files["tcp6"].splitlines()) == 1 and files["if_inet6"] == ""
    tcp = dict(zip(*(line.split()[1:] for line in files["snmp"].splitlines() if line.startswith("Tcp:"))))
    assert (tcp["CurrEstab"], tcp["ActiveOpens"], tcp["PassiveOpens"]) == ("2", "1", "1")
    # As many values as names.
    for name in ("snmp", "netstat"):
        lines = files[name].splitlines()
        assert all(len(a.split()) == len(b.split()) for a, b in zip(lines[::2], lines[1::2]))


def test_groups_that_were_joined_are_listed(stack):
    script = """
import socket, struct, subprocess
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.2.3") + socket.inet_aton(%r))
print(subprocess.run(["ip", "maddr", "show", "dev", "tap0"], capture_output=True, text=True).stdout)
""" % STACK
    assert re.findall(r"inet +(\S+)", stack.run(PYTHON, "-c", script).stdout) == ["239.1.2.3", "224.0.0.1"]


def test_programs_that_read_them(stack, server):
    assert "tap0" in stack.run("route", "-n").stdout and KERNEL in stack.run("netstat", "-rn").stdout
    assert "lo" not in re.findall(r"^(\S+)", stack.run("netstat", "-in").stdout, re.M)
    assert "active connection openings" in stack.run("netstat", "-s").stdout

"""Packet sockets on the stack's interfaces: what looks at frames and sends them sees the stack's, not the kernel's."""

import difflib
import json
import os
import pathlib
import re
import signal
import subprocess

import pytest

from conftest import ALPS, KERNEL, STACK, random_file, wait_until

PROGRAMS = pathlib.Path(__file__).parent / "programs"


def hardware(stack):
    """The address of the stack's tap interface."""
    return next(row["hardware"] for row in stack.ask("netstat", "-i")["interfaces"] if row["name"] == "tap0")


def packet_sockets(stack):
    """Lines of /proc/net/packet."""
    return stack.run("cat", "/proc/net/packet").stdout.splitlines()[1:]


def listens(stack, count=1):
    wait_until(lambda: len(packet_sockets(stack)) >= count, what="a packet socket on the stack")


def decoded(path, *options):
    """A capture file as text; what is being written may be cut short."""
    return subprocess.run(["tcpdump", "-nr", path, *options], capture_output=True, text=True).stdout.splitlines()


# --- tcpdump


@pytest.mark.parametrize("mode", [[], ["--immediate-mode"]], ids=["blocks", "immediate"])
def test_tcpdump_sees_a_download(stack, nginx_outside, directory, mode):
    random_file(directory / "www" / "file", 1)
    path = directory / "capture.pcap"
    dump = stack.spawn("tcpdump", "-nUi", "tap0", *mode, "-B", 16384, "-w", path, f"tcp port 80 and host {KERNEL}")
    listens(stack)
    stack.run("ping", "-c", 1, KERNEL)
    stack.run("curl", "-sSo", directory / "copy", f"{nginx_outside}/file")
    finished = "Flags [F.]"
    wait_until(lambda: sum(finished in line for line in decoded(path)) == 2, what="both ends in the file")
    dump.send_signal(signal.SIGINT)
    output = dump.communicate(timeout=20)[0]
    counts = dict(reversed(re.match(r"(\d+) packets (.*)", line).groups()) for line in output.splitlines()
                  if re.match(r"\d+ packets", line))
    assert int(counts["captured"]) > 10 and counts["dropped by kernel"] == "0", output
    lines = decoded(path, "-v")
    joined = "\n".join(lines)
    assert f"{STACK}." in joined and "Flags [S]" in joined and "Flags [S.]" in joined and finished in joined
    # All the payload, both ways, nothing else; checksums in order.
    assert "ICMP" not in joined and "incorrect" not in joined and "bad cksum" not in joined
    sizes = [int(size) for line in lines for size in re.findall(rf"{KERNEL}\.80 > .* length (\d+)", line)]
    assert (1 << 20) < sum(sizes) < (1 << 20) + 2000
    stack.assert_nothing_left(70)


def test_tcpdump_lists_the_stacks_interfaces(stack):
    listed = stack.run("tcpdump", "-D").stdout
    names = [re.match(r"\d+\.(\S+)", line).group(1) for line in listed.splitlines()]
    assert "tap0" in names and "lo0" in names and "any" in names
    kernels = {"lo", "eth0", "v0"} & set(names)
    assert not kernels, "the kernel's interfaces are not to be captured on"


@pytest.mark.parametrize("interface", ["lo0", "any"])
def test_the_loopback_interface(stack, interface):
    dump = stack.spawn("tcpdump", "-nli", interface, "--immediate-mode", "-c", 4, "icmp")
    listens(stack)
    stack.run("ping", "-c", 2, "-i", 0.1, "127.0.0.1")
    output = dump.communicate(timeout=20)[0]
    seen = re.findall(r"127.0.0.1 > 127.0.0.1: ICMP echo (request|reply)", output)
    assert seen == ["request", "reply"] * 2, output


def test_a_capture_that_waits_does_not_spin(stack, directory):
    """Tokens of readiness are taken back: between packets a program sleeps."""
    for mode in ([], ["--immediate-mode"]):
        dump = stack.spawn("tcpdump", "-ni", "tap0", *mode, "-w", directory / "idle.pcap")
        listens(stack)
        stack.run("ping", "-c", 5, "-i", 0.2, KERNEL)
        pids = subprocess.run(["pgrep", "-P", str(dump.pid), "-x", "tcpdump"], capture_output=True, text=True).stdout.split()
        pid = int(pids[0]) if pids else dump.pid
        before = cpu(pid)
        stack.run("ping", "-c", 8, "-i", 0.25, KERNEL)
        used = cpu(pid) - before
        dump.send_signal(signal.SIGINT)
        assert "0 packets dropped" in dump.communicate(timeout=20)[0]
        assert used < 0.3, f"{used} s of processor time in two seconds"


def cpu(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_any_socket_tells_about_the_stacks_interfaces(stack):
    """As programs ask that have no socket of the Internet at hand."""
    told = stack.run("python3", "-c", """
import fcntl, socket, struct
for family in (socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET):
    kind, protocol = (socket.SOCK_RAW, 16) if family == socket.AF_NETLINK else (socket.SOCK_DGRAM, 0)
    made = socket.socket(family, kind, protocol)
    answer = fcntl.ioctl(made, 0x8927, struct.pack("16s24x", b"tap0"))
    print(answer[18:24].hex(":"), struct.unpack_from("i", fcntl.ioctl(made, 0x8933, struct.pack("16s24x", b"tap0")), 16)[0])
    try:
        fcntl.ioctl(made, 0x8927, struct.pack("16s24x", b"none0"))
    except OSError as error:
        print(error.errno)
""").stdout.splitlines()
    index = stack.run("python3", "-c", "import socket; print(socket.if_nametoindex('tap0'))").stdout.strip()
    assert told == [f"{hardware(stack)} {index}", "19"] * 3


# --- beside the kernel


@pytest.fixture
def veth(stack):
    """The kernel's own pair of interfaces, to compare with; it sends nothing of its own, as IPv6 would."""
    name = f"{stack.netns}v"
    for argv in (["netns", "add", name],
                 ["netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"],
                 ["-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1"],
                 ["-n", name, "link", "set", "v0", "up"], ["-n", name, "link", "set", "v1", "up"]):
        subprocess.run(["ip", *argv], check=True)
    yield ["ip", "netns", "exec", name]
    subprocess.run(["ip", "netns", "delete", name])


def assert_same(kernels, stacks):
    left, right = kernels.splitlines(), stacks.splitlines()
    assert left == right, "\n".join(difflib.unified_diff(left, right, "kernel", "stack", lineterm=""))


# What is refused here (docs/limitations.md), apart from the numbers that libc does not know either.
REFUSED = (15, 24)


def test_python_sends_and_receives_as_on_the_kernel(stack, veth, directory):
    def but_refused(text):
        # What the table refuses, and how Linux tells of what has a number only.
        return "\n".join(line for line in text.splitlines()
                         if not re.match(rf"(set|get) ({'|'.join(map(str, REFUSED))})\b", line))

    pipes = [directory / "kernel", directory / "stack"]
    for pipe in pipes:
        os.mkfifo(pipe)
    sender = ["python3", str(PROGRAMS / "packet_frame.py")]
    stack._spawn([*veth, *sender, "v1", str(pipes[0])])
    kernel = stack._run([*veth, "python3", str(PROGRAMS / "packets.py"), "v0", str(pipes[0])])
    # The kernel's side of the tap.
    stack.spawn_outside(*sender, "tap0", pipes[1])
    ours = stack.run("python3", PROGRAMS / "packets.py", "tap0", pipes[1])
    assert_same(but_refused(kernel.stdout), but_refused(ours.stdout))
    stack.assert_nothing_left()


def test_rings_are_as_on_the_kernel(stack, veth):
    kernel = stack._run([*veth, "python3", str(PROGRAMS / "packet_ring.py"), "v0"])
    ours = stack.run("python3", PROGRAMS / "packet_ring.py", "tap0")
    assert_same(kernel.stdout, ours.stdout)
    stack.assert_nothing_left()


def test_the_table_names_what_is_refused():
    table = json.loads(subprocess.run([ALPS, "options", "--json"], check=True, capture_output=True, text=True).stdout)
    refused = {row["number"] for row in table if row["level"] == "SOL_PACKET" and row["treatment"] == "refused"}
    assert refused == {*REFUSED, 16}, "16 has no meaning on Linux either"


# --- programs


def test_arping_both_ways(stack):
    answer = stack.run("arping", "-c", 3, "-w", 10, "-I", "tap0", KERNEL).stdout
    assert len(re.findall(rf"reply from {KERNEL} \[", answer)) == 3, answer
    assert stack.run("arping", "-D", "-c", 1, "-w", 5, "-I", "tap0", KERNEL, check=False).returncode == 1
    answer = stack.outside("arping", "-c", 3, "-w", 10, "-I", "tap0", STACK).stdout
    assert len(re.findall(rf"reply from {STACK} +\[{hardware(stack).upper()}\]", answer)) == 3, answer


DHCP_SCRIPT = """#!/bin/sh
echo "$reason $new_ip_address" >> {directory}/events
case $reason in
BOUND) ip addr add $new_ip_address/24 dev $interface ;;
esac
"""


def test_dhclient_gets_a_lease(stack, directory):
    leases = directory / "leases"
    leases.touch()
    stack.spawn_outside("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=tap0",
                        "--bind-interfaces", "--dhcp-range=10.11.12.50,10.11.12.60,255.255.255.0,1h", "--user=root",
                        "--pid-file=", f"--dhcp-leasefile={leases}", "--no-ping", "--log-facility=-")
    stack.wait_listening_outside(67)
    script = directory / "script"
    script.write_text(DHCP_SCRIPT.format(directory=directory))
    script.chmod(0o755)
    process = stack.spawn("dhclient", "-1", "-v", "-d", "-sf", script, "-lf", directory / "client.leases", "-pf",
                          directory / "client.pid", "tap0")
    wait_until(lambda: "BOUND" in ((directory / "events").read_text() if (directory / "events").exists() else ""), 40,
               "a lease")
    address = re.search(r"BOUND (\S+)", (directory / "events").read_text()).group(1)
    assert address in leases.read_text() and hardware(stack) in leases.read_text()
    # The script has configured it on the stack, which answers.
    wait_until(lambda: address in stack.run("ip", "addr").stdout, what="the address on the stack")
    stack.outside("ping", "-c", 1, address)
    process.terminate()
    output = process.communicate(timeout=10)[0]
    for step in ("DHCPDISCOVER on tap0", f"DHCPOFFER of {address} from {KERNEL}", f"DHCPACK of {address} from {KERNEL}"):
        assert step in output
    wait_until(lambda: not packet_sockets(stack), what="the end of the sockets")


# Takes connections and closes them.
LISTENER = "import socket, sys\ns = socket.create_server((sys.argv[1], int(sys.argv[2])))\nwhile True: s.accept()[0].close()"


def ports(output):
    """{"80/tcp": "open", ...} of nmap's report."""
    return dict(re.findall(r"^(\d+/\w+)\s+(\S+)", output, re.M))


def test_nmap_inside(stack):
    stack.spawn_outside("python3", "-c", LISTENER, KERNEL, 80)
    stack.spawn_outside("python3", "-c", f"""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("{KERNEL}", 7))
while True:
    data, peer = server.recvfrom(2000)
    server.sendto(data, peer)
""")
    stack.wait_listening_outside(80)
    stack.wait_listening_outside(7)
    output = stack.run("nmap", "-n", "-sS", "-sU", "-p", "T:79-82,U:7,8", KERNEL).stdout
    assert ports(output) == {"79/tcp": "closed", "80/tcp": "open", "81/tcp": "closed", "82/tcp": "closed",
                             "7/udp": "open", "8/udp": "closed"}, output
    assert "MAC Address" in output
    output = stack.run("nmap", "-n", "-sT", "-p", "79,80", KERNEL).stdout
    assert ports(output) == {"79/tcp": "closed", "80/tcp": "open"}, output


def test_nmap_outside(stack):
    stack.spawn("python3", "-c", LISTENER, "", 80)
    stack.wait_listening(80)
    output = stack.outside("nmap", "-n", "-sS", "-p", "79-82", STACK).stdout
    assert ports(output) == {"79/tcp": "closed", "80/tcp": "open", "81/tcp": "closed", "82/tcp": "closed"}, output
    assert hardware(stack).upper() in output


# --- who may, and what is left


def test_only_root_opens_one(stack):
    program = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)"
    refused = stack.run("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "/usr/bin/python3", "-c",
                        program, check=False)
    assert "PermissionError: [Errno 1]" in refused.stderr


def test_what_a_killed_program_leaves(stack, directory):
    for mode in ([], ["--immediate-mode"]):
        dump = stack.spawn("tcpdump", "-ni", "tap0", *mode, "-w", directory / "killed.pcap")
        listens(stack)
        stack.run("ping", "-c", 3, "-i", 0.1, KERNEL)
        dump.kill()
        wait_until(lambda: not packet_sockets(stack), what="the end of the sockets")
    stack.assert_nothing_left()


def test_the_list_of_packet_sockets(stack):
    held = stack.spawn("python3", "-c", """
import socket, sys
made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0806))
made.bind(("tap0", 0))
print(made.fileno(), flush=True)
sys.stdin.read()
""", stdin=subprocess.PIPE)
    number = int(held.stdout.readline())
    rows = [line.split() for line in packet_sockets(stack)]
    inode = re.search(r"\[(\d+)\]", pathlib.Path(f"/proc/{held.pid}/fd/{number}").readlink().name).group(1)
    assert [(row[2], row[3], row[8]) for row in rows] == [("2", "0806", inode)], rows
    held.communicate()

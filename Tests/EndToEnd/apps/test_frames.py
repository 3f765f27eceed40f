"""Programs that look at frames and make their own: scanners and tracers, inside against the kernel's side, and outside
against the stack."""

import re
import signal
import subprocess

from conftest import KERNEL, STACK, wait_until


def hardware(stack, outside=False):
    """The address of one side of the tap."""
    if outside:
        return stack.outside("cat", "/sys/class/net/tap0/address").stdout.strip()
    return next(row["hardware"] for row in stack.ask("netstat", "-i")["interfaces"] if row["name"] == "tap0")


def ports(output):
    """{"80/tcp": ("open", "http"), ...} of nmap's report."""
    return {number: (state, service) for number, state, service in re.findall(r"^(\d+/\w+)\s+(\S+)\s+(\S+)", output, re.M)}


# `python3 -m http.server` asks for its own name before it listens, and here is nobody who knows it.
PAGES = ("python3", "-c", "import http.server as h, socketserver as s, sys\n"
         "s.ThreadingTCPServer((sys.argv[1], 80), h.SimpleHTTPRequestHandler).serve_forever()")
ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("{address}", 7))
while True:
    data, peer = server.recvfrom(2000)
    server.sendto(data, peer)
"""


def servers(spawn, address, ssh_keys):
    """sshd on 22, Python's web server on 80, echo on UDP 7."""
    config, _ = ssh_keys
    spawn("/usr/sbin/sshd", "-D", "-e", "-f", config, "-o", f"ListenAddress={address}:22")
    spawn(*PAGES, address)
    spawn("python3", "-c", ECHO.format(address=address))


def assert_found(output, mac):
    """All that there is to be found, with its versions, and an end of the hunt for the system's name."""
    found = ports(output)
    assert found["22/tcp"] == ("open", "ssh") and found["80/tcp"] == ("open", "http"), output
    assert {found[f"{port}/tcp"][0] for port in (21, 23, 79, 81)} == {"closed"}, output
    assert re.search(r"^22/tcp .*OpenSSH", output, re.M) and re.search(r"^80/tcp .*SimpleHTTPServer", output, re.M), output
    assert "OS detection performed" in output or "OS and Service detection performed" in output, output
    assert f"MAC Address: {mac.upper()}" in output, output
    assert "Network Distance: 1 hop" in output, output


def test_nmap_inside(stack, ssh_keys):
    servers(stack.spawn_outside, KERNEL, ssh_keys)
    for port in (22, 80, 7):
        stack.wait_listening_outside(port)
    mac = hardware(stack, outside=True)
    output = stack.run("nmap", "-n", "-sS", "-sU", "-sV", "-O", "-p", "T:21-23,79-81,U:7,9", KERNEL, timeout=300).stdout
    assert_found(output, mac)
    assert ports(output)["7/udp"] == ("open", "echo") and ports(output)["9/udp"][0] == "closed", output
    # The kernel that answers is a Linux; the fingerprint is the same as one taken by a kernel's socket.
    assert re.search(r"OS details: Linux|Running: Linux|OS:SCAN\(|Aggressive OS guesses: .*Linux|Too many fingerprints", output), output
    assert_found(stack.run("nmap", "-n", "-sT", "-sV", "-O", "-p", "21-23,79-81", KERNEL, timeout=300).stdout, mac)
    # Every port, by frames of its own.
    output = stack.run("nmap", "-n", "-sS", "-T4", "-p-", KERNEL, timeout=300).stdout
    assert {port for port, (state, _) in ports(output).items() if state == "open"} == {"22/tcp", "80/tcp"}, output
    assert "65533 closed" in output, output
    stack.assert_nothing_left(70)


def test_nmap_outside(stack, ssh_keys):
    servers(stack.spawn, STACK, ssh_keys)
    stack.wait_listening(22)
    stack.wait_listening(80)
    stack.wait_listening(7, "udp")
    mac = hardware(stack)
    output = stack.outside("nmap", "-n", "-sS", "-sU", "-sV", "-O", "-p", "T:21-23,79-81,U:7,9", STACK, timeout=300).stdout
    assert_found(output, mac)
    assert ports(output)["7/udp"] == ("open", "echo"), output
    for scan in ("-sN", "-sF", "-sX", "-sA", "-sW", "-sM", "-sO", "-sY"):
        stack.outside("nmap", "-n", scan, *(["-p", "1,6,17"] if scan == "-sO" else ["-p", "22,80,81"]), STACK, timeout=120)
    output = stack.outside("nmap", "-n", "-sS", "-T4", "-p-", STACK, timeout=300).stdout
    assert {port for port, (state, _) in ports(output).items() if state == "open"} == {"22/tcp", "80/tcp"}, output
    # It has survived, and serves.
    assert stack.outside("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://{STACK}/").stdout == "200"


def test_arp_scanners(stack):
    mac = hardware(stack, outside=True)
    output = stack.run("arp-scan", "--interface=tap0", "10.11.12.0/28").stdout
    assert re.search(rf"^{re.escape(KERNEL)}\t{mac}\t", output, re.M), output
    assert "1 responded" in output
    output = stack.outside("arp-scan", "--interface=tap0", "10.11.12.0/28").stdout
    assert re.search(rf"^{re.escape(STACK)}\t{hardware(stack)}\t", output, re.M), output
    output = stack.run("netdiscover", "-i", "tap0", "-r", "10.11.12.0/24", "-P", "-N", timeout=120).stdout
    assert re.search(rf"{re.escape(KERNEL)}\s+{mac}", output), output


def test_hping3(stack):
    stack.spawn_outside(*PAGES, KERNEL)
    stack.wait_listening_outside(80)
    for flags, answer in ((["-S", "-p", 80], "flags=SA"), (["-S", "-p", 81], "flags=RA"), (["-1"], "icmp_seq=2")):
        result = stack.run("hping3", "-I", "tap0", "-c", 3, "-i", "u200000", *flags, KERNEL, check=False)
        assert answer in result.stdout, result.stdout + result.stderr
        assert "3 packets received" in result.stdout + result.stderr or "3 packets transmitted, 3" in result.stderr


def test_tracers(stack):
    stack.spawn_outside(*PAGES, KERNEL)
    stack.wait_listening_outside(80)
    for options in (["-I"], ["-T", "-p", 80]):
        output = stack.run("traceroute", "-n", "-q", 2, "-m", 3, *options, KERNEL).stdout
        assert re.search(rf"^ 1  {re.escape(KERNEL)}  [\d.]+ ms", output, re.M), output
    for options in ([], ["--tcp", "-P", 80], ["--udp"]):
        output = stack.run("mtr", "-n", "-r", "-c", 3, "-i", 0.3, *options, KERNEL, timeout=60).stdout
        assert re.search(rf"1\.\|-- {re.escape(KERNEL)}\s+0\.0%\s+3 ", output), output
    for options in (["-I", "tap0"], ["-I", STACK]):
        assert " 0% packet loss" in stack.run("ping", "-c", 3, "-i", 0.2, *options, KERNEL).stdout


def test_tcpdump_through_much_traffic(stack, directory):
    """A capture of everything beside a fast transfer: it keeps up or says what it lost, and nobody suffers."""
    path = directory / "all.pcap"
    dump = stack.spawn("tcpdump", "-ni", "tap0", "-s", 96, "-B", 65536, "-w", path)
    wait_until(lambda: len(stack.run("cat", "/proc/net/packet").stdout.splitlines()) > 1, what="a packet socket")
    stack.spawn_outside("iperf3", "-s", "-B", KERNEL)
    stack.wait_listening_outside(5201)
    stack.run("iperf3", "-c", KERNEL, "-t", 5)
    stack.run("iperf3", "-c", KERNEL, "-t", 5, "-R")
    dump.send_signal(signal.SIGINT)
    output = dump.communicate(timeout=60)[0]
    counts = {word: int(number) for number, word in re.findall(r"^(\d+) packets (captured|received|dropped)", output, re.M)}
    assert counts["captured"] > 5000 and counts["dropped"] * 10 < counts["received"], output
    lines = subprocess.run(["tcpdump", "-nr", path], capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == counts["captured"]

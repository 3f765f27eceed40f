"""The session that Alpine4Linux was shown with: a stack beside the system on a real interface, ifconfig, route, telnet, nmap
and vsftpd over it, started by the scripts that people who know the ancestor look for."""

import contextlib
import os
import re
import signal
import subprocess

import pytest

from conftest import BIN, ROOT, random_file, sha256, wait_until

OWN, SYSTEM, PEER = "10.9.0.13", "10.9.0.1", "10.9.0.2"


class Session:
    def __init__(self, directory):
        self.directory = directory
        self.netns, self.peer = f"alps-a{os.getpid()}", f"alps-a{os.getpid()}p"
        self.children = []
        for argv in (["netns", "add", self.netns], ["netns", "add", self.peer],
                     ["-n", self.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "v1", "netns", self.peer],
                     ["-n", self.netns, "addr", "add", f"{SYSTEM}/24", "dev", "eth0"],
                     ["-n", self.peer, "addr", "add", f"{PEER}/24", "dev", "v1"],
                     ["-n", self.netns, "link", "set", "eth0", "up"], ["-n", self.netns, "link", "set", "lo", "up"],
                     ["-n", self.peer, "link", "set", "v1", "up"], ["-n", self.peer, "link", "set", "lo", "up"]):
            subprocess.run(["ip", *argv], check=True)
        self.log = directory / "server.log"
        self.server = subprocess.Popen(
            ["ip", "netns", "exec", self.netns, ROOT / "scripts/run_alpine_server.sh", "eth0", f"{OWN}/24", PEER],
            stdout=open(self.log, "w"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, "ALPS_BIN": str(BIN)})
        wait_until(lambda: "ready\n" in self.log.read_text() or self.server.poll() is not None, what="start")
        assert self.server.poll() is None, self.log.read_text()

    def stop(self):
        for child in self.children:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
        self.server.terminate()
        assert self.server.wait(10) == 0
        tables = subprocess.run(["ip", "netns", "exec", self.netns, "nft", "list", "tables"], capture_output=True, text=True)
        for name in (self.netns, self.peer):
            subprocess.run(["ip", "netns", "delete", name])
        assert tables.stdout == ""

    def client(self, *argv):
        return [ROOT / "scripts/run_alpine_client.sh", *map(str, argv)]

    def run(self, argv, **more):
        result = subprocess.run(argv, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL,
                                env={**os.environ, "ALPS_BIN": str(BIN)}, **more)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def inside(self, *argv, **more):
        return self.run(self.client(*argv), **more)

    def at_peer(self, *argv, **more):
        return self.run(["ip", "netns", "exec", self.peer, *map(str, argv)], **more)

    def spawn(self, argv):
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                 start_new_session=True, env={**os.environ, "ALPS_BIN": str(BIN)})
        self.children.append(child)
        return child


@pytest.fixture
def session(directory):
    session = Session(directory)
    yield session
    session.stop()


@contextlib.contextmanager
def open_input():
    """A pipe's end to read from, to which nobody writes."""
    ends = os.pipe()
    try:
        yield ends[0]
    finally:
        for end in ends:
            os.close(end)


def test_the_ancestors_session(session, directory):
    # The start script prints a banner, and what it has changed in the firewall.
    banner = session.log.read_text()
    assert banner.startswith("Alps ") and "stack 'alpine'" in banner
    assert f"eth0: shared with the system, which is kept from {OWN} by nft table" in banner

    # ifconfig
    shown = session.inside("ifconfig", "eth0")
    hardware = subprocess.run(["ip", "netns", "exec", session.netns, "cat", "/sys/class/net/eth0/address"], check=True,
                              capture_output=True, text=True).stdout.strip()
    assert f"inet {OWN}  netmask 255.255.255.0" in shown and f"ether {hardware}" in shown

    # route, with BSD's words and layout
    session.inside("route", "add", "-net", "192.0.2.0/24", "-interface", "eth0")
    lines = session.inside("route", "get", "192.0.2.7").splitlines()
    assert lines[:4] == ["   route to: 192.0.2.7", "destination: 192.0.2.0", "       mask: 255.255.255.0",
                         "  interface: eth0"]
    assert "    gateway: " + PEER in session.inside("route", "get", "8.8.8.8").splitlines()
    assert re.search(r"^192\.0\.2\.0 +0\.0\.0\.0 +255\.255\.255\.0 +U .* eth0$", session.inside("route", "-n"), re.M)

    # telnet to a host of the network
    session.spawn(["ip", "netns", "exec", session.peer, "python3", "-c", f"""
import socket
server = socket.create_server(("{PEER}", 2323))
peer, name = server.accept()
peer.sendall(f"you are {{name[0]}}\\r\\n".encode())
peer.close()
"""])
    wait_until(lambda: ":2323 " in session.at_peer("ss", "-Hltn"))
    # With input that is open: telnet ends at the end of its input, whatever has come by then.
    with open_input() as descriptor:
        talk = subprocess.run(session.client("telnet", PEER, 2323), stdin=descriptor, capture_output=True, text=True, timeout=30,
                              env={**os.environ, "ALPS_BIN": str(BIN)})
    assert f"you are {OWN}" in talk.stdout

    # nmap, from inside and from outside
    session.spawn(["ip", "netns", "exec", session.peer, "python3", "-m", "http.server", "80", "--bind", PEER])
    wait_until(lambda: ":80 " in session.at_peer("ss", "-Hltn"))
    scan = session.inside("nmap", "-n", "-Pn", "-sT", "-p", "79-81", PEER)
    assert re.search(r"^79/tcp +closed", scan, re.M) and re.search(r"^80/tcp +open +http", scan, re.M)

    # vsftpd over the stack
    (directory / "ftp").mkdir()
    (directory / "empty").mkdir()
    original = random_file(directory / "ftp" / "file", 8)
    config = directory / "vsftpd.conf"
    config.write_text(f"""
listen=YES
listen_address={OWN}
background=NO
anonymous_enable=YES
anon_root={directory}/ftp
no_anon_password=YES
secure_chroot_dir={directory}/empty
""")
    session.spawn(session.client("vsftpd", config))
    wait_until(lambda: "21/tcp open" in re.sub(" +", " ", session.at_peer("nmap", "-n", "-Pn", "-p", "21", OWN)), 15)
    session.at_peer("lftp", "-c", f"open ftp://{OWN}; get file -o {directory}/got")
    assert sha256(directory / "got") == sha256(original)
    scan = session.at_peer("nmap", "-n", "-sS", "-sV", "-p", "20-22", OWN)
    assert re.search(r"^21/tcp +open +ftp +vsftpd", scan, re.M) and re.search(r"^22/tcp +closed", scan, re.M)

"""A stack behind a real interface (a veth), shared with the system through a packet socket."""

import signal
import subprocess

import pytest

from conftest import ALPS, Stack, nginx_config, random_file, sha256, wait_until

OWN, SYSTEM, PEER = "10.9.0.13", "10.9.0.1", "10.9.0.2"


class SharedStack(Stack):
    """veth v0 with the system's address in the stack's namespace, its other end v1 in another one."""

    def start(self, *options):
        self.peer = f"{self.netns}p"
        for argv in (["netns", "add", self.peer],
                     ["-n", self.netns, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", self.peer],
                     ["-n", self.netns, "addr", "add", f"{SYSTEM}/24", "dev", "v0"],
                     ["-n", self.peer, "addr", "add", f"{PEER}/24", "dev", "v1"],
                     ["-n", self.netns, "link", "set", "v0", "up"], ["-n", self.peer, "link", "set", "v1", "up"]):
            subprocess.run(["ip", *argv], check=True)
        # A system that forwards would meddle.
        self.outside("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.host = subprocess.Popen(
            ["ip", "netns", "exec", self.netns, ALPS, "host", "--name", self.name, "--socket", self.socket,
             "--interface", "packet:v0", "--address", f"{OWN}/24", *options],
            stdout=open(self.log, "w"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        wait_until(lambda: "ready\n" in self.log.read_text() or self.host.poll() is not None, what="start of the host")
        assert self.host.poll() is None, self.log.read_text()

    def stop(self):
        super().stop()
        subprocess.run(["ip", "netns", "delete", self.peer])

    def at_peer(self, *argv):
        return ["ip", "netns", "exec", self.peer, *map(str, argv)]

    def rules(self):
        return self.outside("nft", "list", "tables").stdout


@pytest.fixture
def shared(directory):
    stack = SharedStack(directory=directory)
    yield stack
    stack.stop()


def test_both_share_the_interface(shared):
    hardware = shared.outside("cat", "/sys/class/net/v0/address").stdout.strip()
    assert shared.ask("netstat", "-i")["interfaces"][1]["hardware"] == hardware
    for address in (OWN, SYSTEM):
        output = shared._run(shared.at_peer("ping", "-c", 20, "-i", 0.01, address)).stdout
        assert "20 received, 0% packet loss" in output and "DUP" not in output and "Redirect" not in output


def test_a_capture_makes_the_interface_promiscuous(shared, directory):
    def promiscuity():
        return shared.outside("ip", "-d", "link", "show", "v0").stdout.split("promiscuity ")[1].split()[0]

    assert promiscuity() == "0"
    dump = shared.spawn("tcpdump", "-ni", "v0", "-w", directory / "capture.pcap")
    wait_until(lambda: promiscuity() == "1", what="the interface's promiscuity")
    dump.kill()
    wait_until(lambda: promiscuity() == "0", what="the end of the interface's promiscuity")


def test_files_pass_both_ways_with_the_systems_own_traffic_beside(shared, directory):
    original = random_file(directory / "www" / "32M", 32)
    shared._spawn(shared.at_peer("nginx", "-c", nginx_config(directory, "peer", PEER, 80)))
    wait_until(lambda: ":80 " in shared._run(shared.at_peer("ss", "-Hltn")).stdout)
    shared.run("curl", "-sf", "-o", directory / "got", f"http://{PEER}/32M")
    assert sha256(directory / "got") == sha256(original)
    shared.outside("curl", "-sf", "-o", directory / "system", f"http://{PEER}/32M")
    assert sha256(directory / "system") == sha256(original)
    shared.spawn("nginx", "-c", nginx_config(directory, "inside", OWN, 8080))
    shared.wait_listening(8080)
    shared._run(shared.at_peer("curl", "-sf", "-o", directory / "back", f"http://{OWN}:8080/32M"))
    assert sha256(directory / "back") == sha256(original)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_rule_goes_with_the_host(shared, number):
    assert "table ip alps_" in shared.rules()
    [pid] = subprocess.run(["pgrep", "-f", f"^[^ ]*alps host --name {shared.name} "], capture_output=True,
                           text=True).stdout.split()
    subprocess.run(["kill", f"-{int(number)}", pid], check=True)
    shared.host.wait(10)
    wait_until(lambda: shared.rules() == "", what="removal of the rule")


@pytest.mark.parametrize("options, words", [
    (["--interface", "packet:nosuch0", "--address", "10.9.0.13/24"], "no usable interface 'nosuch0'"),
    (["--interface", "packet:lo", "--address", "10.9.0.13/24"], "'lo' is no Ethernet interface"),
    (["--interface", "packet:lo"], "needs --address"),
    (["--interface", "veth0"], "use tap:NAME")])
def test_what_cannot_be_shared_is_refused_in_words(directory, options, words):
    result = subprocess.run([ALPS, "host", "--name", "x", "--socket", directory / "x.sock", *options],
                            capture_output=True, text=True, timeout=20)
    assert result.returncode != 0 and words in result.stderr + result.stdout

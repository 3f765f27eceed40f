"""Tools that look at a network or speak by hand: traceroute and mtr across a router, netstat, netcat, openssl, busybox, name
servers; and load of the kind that memtier makes."""

import json
import re
import subprocess

import pytest

from conftest import ALPS, KERNEL, STACK, random_file, sha256, wait_until

NEAR, FAR = "10.99.0.1", "10.99.0.2"


@pytest.fixture
def far(stack):
    """A host behind the kernel's side, which forwards: how to run a program there."""
    name = f"{stack.netns}f"
    outside = ["ip", "-n", stack.netns]
    for argv in (["ip", "netns", "add", name], [*outside, "link", "add", "far0", "type", "veth", "peer", "name", "far1", "netns", name],
                 [*outside, "addr", "add", f"{NEAR}/24", "dev", "far0"], [*outside, "link", "set", "far0", "up"],
                 ["ip", "-n", name, "addr", "add", f"{FAR}/24", "dev", "far1"],
                 ["ip", "-n", name, "link", "set", "far1", "up"], ["ip", "-n", name, "link", "set", "lo", "up"],
                 ["ip", "-n", name, "route", "add", "default", "via", NEAR],
                 stack.outside_argv("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.icmp_ratelimit=0")):
        subprocess.run(argv, check=True)
    yield lambda *argv, **more: stack._run(["ip", "netns", "exec", name, *map(str, argv)], **more)
    subprocess.run(["ip", "netns", "delete", name])


def hops(text):
    return re.findall(r"^ *(\d+) +([\d.]+)", text, re.M)


@pytest.mark.parametrize("method", ["udp", "icmp", "tcp"])
def test_traceroute(stack, far, method):
    option = {"udp": [], "icmp": ["-I"], "tcp": ["-T", "-p", 81]}[method]
    assert hops(stack.run("traceroute", "-n", "-w", 3, *option, FAR).stdout) == [("1", KERNEL), ("2", FAR)]
    assert hops(far("traceroute", "-n", "-w", 3, *option, STACK).stdout) == [("1", NEAR), ("2", STACK)]


@pytest.mark.parametrize("option", [[], ["--udp"], ["--tcp", "--port", "81"]], ids=["icmp", "udp", "tcp"])
def test_mtr(stack, far, option):
    def report(run, target):
        words = json.loads(run("mtr", "-n", "-j", "-c", 3, "-i", "0.2", *option, target).stdout)
        return [(hop["host"], hop["Loss%"]) for hop in words["report"]["hubs"]]

    assert report(stack.run, FAR) == [(KERNEL, 0.0), (FAR, 0.0)]
    assert report(far, STACK) == [(NEAR, 0.0), (STACK, 0.0)]


def test_net_tools(stack):
    """netstat, ifconfig and route show a connection, a listener, the interfaces and the routes of the stack."""
    stack.spawn("nc", "-lk", 7000)
    stack.wait_listening(7000)
    stack.spawn_outside("nc", "-l", 7001)
    stack.wait_listening_outside(7001)
    stack.spawn("nc", KERNEL, 7001, stdin=subprocess.PIPE)
    wait_until(lambda: stack.sockets("tcp", "ESTABLISHED"), what="a connection")
    shown = stack.run("netstat", "-tanp").stdout
    assert re.search(r"^tcp +0 +0 0\.0\.0\.0:7000 +0\.0\.0\.0:\* +LISTEN +\d+/nc", shown, re.M), shown
    assert re.search(rf"^tcp +0 +0 {STACK}:\d+ +{KERNEL}:7001 +ESTABLISHED +\d+/nc", shown, re.M), shown
    assert re.search(rf"^0\.0\.0\.0 +{KERNEL} +0\.0\.0\.0 +UG .*tap0$", stack.run("netstat", "-rn").stdout, re.M)
    assert re.search(r"^tap0 +1500 +\d+ ", stack.run("netstat", "-i").stdout, re.M)
    assert re.search(r"^ +\d+ active connection openings$", stack.run("netstat", "-s").stdout, re.M)
    assert f"inet {STACK}  netmask 255.255.255.0  broadcast 10.11.12.255" in stack.run("ifconfig", "tap0").stdout
    stack.run("route", "add", "-net", "198.51.100.0", "netmask", "255.255.255.0", "gw", KERNEL)
    assert re.search(rf"^198\.51\.100\.0 +{KERNEL} +255\.255\.255\.0 +UG ", stack.run("route", "-n").stdout, re.M)
    stack.run("route", "del", "-net", "198.51.100.0", "netmask", "255.255.255.0")
    assert "198.51.100.0" not in stack.run("route", "-n").stdout
    shown = stack.run("ss", "-Htnp", "state", "established").stdout
    assert re.search(rf"{STACK}:\d+ +{KERNEL}:7001 +users:\(\(\"nc\"", shown), shown


@pytest.mark.parametrize("program", ["nc.openbsd", "nc.traditional"])
@pytest.mark.parametrize("inside", [True, False], ids=["client", "server"])
def test_netcat(stack, inside, program):
    """Text over TCP and UDP, and ports that are asked whether they are open."""
    spawn, wait, run_argv, address = ((stack.spawn_outside, stack.wait_listening_outside, stack.run_argv, KERNEL) if inside else
                                      (stack.spawn, stack.wait_listening, stack.outside_argv, STACK))
    if program == "nc.openbsd":
        listen, end = (lambda *words: (program, "-n", *words[:-1], address, words[-1])), ["-N"]
    else:
        listen, end = (lambda *words: (program, "-n", *words[:-1], "-s", address, "-p", words[-1])), ["-q", "1"]
    server = spawn(*listen("-l", 7000))
    wait(7000)
    stack._run(run_argv(program, "-n", *end, address, 7000), stdin=None, input="by hand\n")
    assert server.communicate(timeout=20)[0] == "by hand\n"
    server = spawn(*listen("-u", "-l", 7001))
    wait(7001, *([] if inside else ["udp"]))
    client = stack._spawn(run_argv(program, "-n", "-u", address, 7001), stdin=subprocess.PIPE)
    client.stdin.write("one datagram\n")
    client.stdin.flush()
    assert server.stdout.readline() == "one datagram\n"
    spawn(*listen("-l", 7002))
    wait(7002)
    assert stack._run(run_argv(program, "-n", "-z", "-v", "-w", 3, address, 7003), check=False).returncode == 1
    assert stack._run(run_argv(program, "-n", "-z", "-v", "-w", 3, address, 7002)).returncode == 0


@pytest.mark.parametrize("inside", [True, False], ids=["client", "server"])
def test_openssl(stack, directory, inside):
    """s_client and s_server talk: TLS 1.3 and 1.2, in both directions."""
    key, certificate = directory / "key.pem", directory / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days",
                    "2", "-subj", "/CN=stack"], check=True, capture_output=True)
    spawn, wait, run_argv, address = ((stack.spawn_outside, stack.wait_listening_outside, stack.run_argv, KERNEL) if inside else
                                      (stack.spawn, stack.wait_listening, stack.outside_argv, STACK))
    spawn("openssl", "s_server", "-accept", f"{address}:4433", "-key", key, "-cert", certificate, "-rev")
    wait(4433)
    for version in ("tls1_3", "tls1_2"):
        client = stack._spawn(run_argv("openssl", "s_client", "-connect", f"{address}:4433", f"-{version}", "-CAfile",
                                       certificate, "-verify_return_error", "-brief"), stdin=subprocess.PIPE)
        client.stdin.write("desserts\n")
        client.stdin.flush()
        lines = []
        while "stressed" not in (lines or [""])[-1]:
            line = client.stdout.readline()
            assert line, lines
            lines.append(line)
        assert f"Protocol version: TLSv1.{version[-1]}\n" in lines and "Verification: OK\n" in lines
        client.stdin.close()
        assert client.wait(20) == 0


def strict(stack, *argv):
    return [ALPS, "run", "--socket", stack.socket, "--strict", "--", *map(str, argv)]


def test_static_busybox(stack, directory):
    """telnetd and telnet, httpd and wget, nc: none of them has a dynamic loader."""
    (directory / "resolv.conf").write_text("")
    stack._spawn(strict(stack, "busybox", "telnetd", "-F", "-b", f"{STACK}:23", "-l", "/bin/sh"))
    stack.wait_listening(23)
    talk = ["sh", "-c", "(sleep 2; echo 'echo number $((6*7))'; sleep 2; echo exit; sleep 1) | exec \"$@\"", "sh"]
    for client in (stack.outside_argv("telnet", STACK), strict(stack, "busybox", "telnet", STACK)):
        child = stack._spawn([*talk, *client])
        assert "number 42" in child.communicate(timeout=40)[0]
    original = random_file(directory / "www" / "file", 8)
    stack._spawn(strict(stack, "busybox", "httpd", "-f", "-p", f"{STACK}:80", "-h", directory / "www"))
    stack.wait_listening(80)
    stack.outside("curl", "-sf", "-o", directory / "outside", f"http://{STACK}/file")
    stack._run(strict(stack, "busybox", "wget", "-q", "-O", directory / "inside", f"http://{STACK}/file"))
    assert sha256(directory / "outside") == sha256(directory / "inside") == sha256(original)
    stack._spawn(strict(stack, "busybox", "nc", "-l", "-p", 7000, "-e", "/bin/cat"))
    stack.wait_listening(7000)
    assert stack._run(stack.outside_argv("nc", "-N", STACK, "7000"), stdin=None, input="echo\n").stdout == "echo\n"


def test_name_server_on_the_stack(stack, directory):
    """dnsmasq answers dig over UDP and TCP, from outside and from the stack; a long answer is cut and asked for again."""
    texts = [f"--txt-record=long.example,{letter * 200}" for letter in "abcdefghij"]
    stack.spawn("dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", f"--listen-address={STACK}",
                "--bind-interfaces", "--address=/page.example/192.0.2.7", *texts, "--user=root", stdout=subprocess.DEVNULL)
    stack.wait_listening(53)
    for run in (stack.outside, stack.run):
        for way in ([], ["+tcp"]):
            assert run("dig", "+short", *way, f"@{STACK}", "page.example").stdout == "192.0.2.7\n"
        shown = run("dig", "+noedns", f"@{STACK}", "long.example", "TXT").stdout
        assert "Truncated, retrying in TCP mode" in shown and "ANSWER: 10," in shown


def test_git_daemon_under_inetd(stack, directory):
    """The connection is the daemon's standard input and output."""
    work = directory / "work"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", work]
    subprocess.run(["git", "init", "-q", work], check=True)
    random_file(work / "blob", 8)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    # Its configuration has room for a few words only.
    daemon = directory / "git-daemon"
    daemon.write_text(f"#!/bin/sh\nexport HOME={directory}\nexec git daemon --inetd --export-all --base-path={directory}\n")
    daemon.chmod(0o755)
    (directory / "inetd.conf").write_text(f"{STACK}:9418 stream tcp4 nowait root {daemon} git-daemon\n")
    stack.spawn("inetutils-inetd", "-d", directory / "inetd.conf")
    stack.wait_listening(9418)
    for name, run in (("outside", stack.outside), ("inside", stack.run)):
        run("git", "clone", "-q", f"git://{STACK}/work", directory / name)
        assert sha256(directory / name / "blob") == sha256(work / "blob")


@pytest.mark.parametrize("inside", [True, False], ids=["client", "server"])
def test_multiprocessing_over_the_network(stack, inside):
    """Python's managers: objects that live in a server process and are used from eight others."""
    spawn, wait, run, address = ((stack.spawn_outside, stack.wait_listening_outside, stack.run, KERNEL) if inside else
                                 (stack.spawn, stack.wait_listening, stack.outside, STACK))
    common = f"""
import multiprocessing, multiprocessing.managers as managers, queue
class Manager(managers.BaseManager): pass
address, key = ("{address}", 7000), b"secret"
"""
    spawn("python3", "-c", f"""{common}
jobs, results = queue.Queue(), queue.Queue()
Manager.register("jobs", callable=lambda: jobs)
Manager.register("results", callable=lambda: results)
Manager(address=address, authkey=key).get_server().serve_forever()
""")
    wait(7000)
    assert run("python3", "-c", f"""{common}
Manager.register("jobs"); Manager.register("results")
def work():
    manager = Manager(address=address, authkey=key); manager.connect()
    jobs, results = manager.jobs(), manager.results()
    while (number := jobs.get()) is not None: results.put(number * number)
manager = Manager(address=address, authkey=key); manager.connect()
workers = [multiprocessing.Process(target=work) for _ in range(8)]
for worker in workers: worker.start()
jobs, results = manager.jobs(), manager.results()
for number in range(400): jobs.put(number)
for _ in workers: jobs.put(None)
print(sum(results.get() for _ in range(400)) == sum(n * n for n in range(400)))
for worker in workers: worker.join()
""").stdout == "True\n"


LOAD = """
import random, socket, sys, threading, time
address, port, kind, clients, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])

def value(key, size): return (b"%d." % key * (size // 4 + 1))[:size]

class Redis:
    def set(self, key, data): return b"*3\\r\\n$3\\r\\nSET\\r\\n$%d\\r\\n%d\\r\\n$%d\\r\\n%s\\r\\n" % (len(str(key)), key, len(data), data)
    def get(self, key): return b"*2\\r\\n$3\\r\\nGET\\r\\n$%d\\r\\n%d\\r\\n" % (len(str(key)), key)
    def stored(self, file): return file.readline() == b"+OK\\r\\n"
    def got(self, file):
        length = int(file.readline()[1:])
        return file.read(length + 2)[:-2] if length >= 0 else None

class Memcached:
    def set(self, key, data): return b"set %d 0 0 %d\\r\\n%s\\r\\n" % (key, len(data), data)
    def get(self, key): return b"get %d\\r\\n" % key
    def stored(self, file): return file.readline() == b"STORED\\r\\n"
    def got(self, file):
        line = file.readline()
        if line == b"END\\r\\n": return None
        data = file.read(int(line.split()[3]) + 2)[:-2]
        assert file.readline() == b"END\\r\\n"
        return data

protocol = {"redis": Redis, "memcached": Memcached}[kind]()
done, wrong, end = [0] * clients, [], time.monotonic() + seconds

def client(number):
    try:
        chance = random.Random(number)
        stream = socket.create_connection((address, port))
        file = stream.makefile("rb")
        mine = {}
        while time.monotonic() < end:
            # Eight requests at once, one in ten a SET, sizes from nothing to 20,000 bytes.
            wanted, text = [], []
            for _ in range(8):
                key = number * 1000 + chance.randrange(50)
                if chance.random() < 0.1:
                    mine[key] = value(key, chance.choice((0, 32, 1000, 20000)))
                    wanted.append(None)
                    text.append(protocol.set(key, mine[key]))
                else:
                    wanted.append((mine.get(key),))
                    text.append(protocol.get(key))
            stream.sendall(b"".join(text))
            for each in wanted:
                assert protocol.stored(file) if each is None else protocol.got(file) == each[0]
            done[number] += 8
            # Some go and come again.
            if chance.random() < 0.01:
                stream.close(); file.close()
                stream = socket.create_connection((address, port))
                file = stream.makefile("rb")
    except BaseException as error:
        wrong.append(repr(error))

threads = [threading.Thread(target=client, args=(each,)) for each in range(clients)]
for each in threads: each.start()
for each in threads: each.join()
print(sum(done), min(done), wrong[:3])
"""


@pytest.mark.parametrize("inside", [True, False], ids=["client", "server"])
@pytest.mark.parametrize("kind", ["redis", "memcached"])
def test_mixed_load(stack, kind, inside):
    """What memtier does: many clients, GET and SET ten to one, pipelined, values of all sizes, each answer compared."""
    spawn, wait, run, address = ((stack.spawn_outside, stack.wait_listening_outside, stack.run, KERNEL) if inside else
                                 (stack.spawn, stack.wait_listening, stack.outside, STACK))
    if kind == "redis":
        port, server = 6379, ["redis-server", "--port", 6379, "--bind", address, "--protected-mode", "no", "--save", ""]
    else:
        port, server = 11211, ["memcached", "-l", address, "-p", 11211, "-u", "nobody", "-t", 4]
    spawn(*server, stdout=subprocess.DEVNULL)
    wait(port)
    total, least, wrong = run("python3", "-c", LOAD, address, port, kind, 100, 8).stdout.strip().split(" ", 2)
    assert wrong == "[]"
    assert int(total) > 8000 and int(least) > 0
    if kind == "redis":
        # All of redis-benchmark's own commands, too.
        text = run("redis-benchmark", "-h", address, "-n", 3000, "-c", 50, "-P", 8, "-d", 512, "-r", 1000, "-q").stdout
        assert len(re.findall(r"requests per second", text)) >= 18 and "Error" not in text

"""Programs straight from Debian, unmodified."""

import json
import os
import re
import subprocess

import pytest

from conftest import KERNEL, STACK, random_file, sha256, wait_until


def iperf(result):
    report = json.loads(result.stdout)
    assert "error" not in report, report.get("error")
    return report["end"]


def iperf_server_outside(stack):
    stack.spawn_outside("iperf3", "-s")
    stack.wait_listening_outside(5201)


def iperf_server(stack):
    stack.spawn("iperf3", "-s", stdout=subprocess.DEVNULL)
    stack.wait_listening(5201)


@pytest.mark.parametrize("options", [[], ["-R"], ["-P", "8"], ["--bidir"]], ids=" ".join)
def test_iperf3_client_tcp(stack, options):
    iperf_server_outside(stack)
    end = iperf(stack.run("iperf3", "-J", "-t", 2, "-c", KERNEL, *options))
    assert end["sum_received"]["bits_per_second"] > 1e9


@pytest.mark.parametrize("options", [[], ["-R"], ["-P", "8"], ["--bidir"]], ids=" ".join)
def test_iperf3_server_tcp(stack, options):
    iperf_server(stack)
    end = iperf(stack.outside("iperf3", "-J", "-t", 2, "-c", STACK, *options))
    assert end["sum_received"]["bits_per_second"] > 1e9


def test_iperf3_udp_both_roles(stack):
    iperf_server_outside(stack)
    end = iperf(stack.run("iperf3", "-J", "-u", "-b", "20M", "-t", 2, "-c", KERNEL))
    assert end["sum"]["lost_percent"] < 1
    iperf_server(stack)
    end = iperf(stack.outside("iperf3", "-J", "-u", "-b", "20M", "-t", 2, "-c", STACK))
    assert end["sum"]["lost_percent"] < 1


def test_netcat(stack):
    server = stack.spawn("nc", "-l", 7001)
    stack.wait_listening(7001)
    stack._run(stack.outside_argv("nc", "-N", STACK, "7001"), stdin=None, input="over the stack\n")
    assert server.communicate(timeout=10)[0] == "over the stack\n"


def test_wget(stack, nginx_outside, directory):
    original = random_file(directory / "www" / "8M", 8)
    stack.run("wget", "-q", "-O", directory / "got", f"{nginx_outside}/8M")
    assert sha256(directory / "got") == sha256(original)


def test_redis_server_and_benchmark(stack):
    stack.spawn("redis-server", "--port", 6379, "--save", "", "--protected-mode", "no", stdout=subprocess.DEVNULL)
    stack.wait_listening(6379)
    output = stack.outside("redis-benchmark", "-h", STACK, "-q", "-n", 20000, "-t", "set,get", "-c", 50).stdout
    assert len(re.findall(r"requests per second", output)) == 2
    assert stack.run("redis-cli", "-h", "127.0.0.1", "ping").stdout == "PONG\n"


def test_ssh_to_the_kernels_side(stack, ssh_keys):
    config, options = ssh_keys
    stack.spawn_outside("/usr/sbin/sshd", "-D", "-e", "-f", config, "-p", 2222)
    stack.wait_listening_outside(2222)
    assert stack.run("ssh", *options, "-p", 2222, f"root@{KERNEL}", "echo from $SSH_CONNECTION").stdout.startswith(
        f"from {STACK}")


def test_sshd_on_the_stack(stack, ssh_keys):
    config, options = ssh_keys
    stack.spawn("/usr/sbin/sshd", "-D", "-e", "-f", config, "-p", 2222)
    stack.wait_listening(2222)
    assert stack.outside("ssh", *options, "-p", 2222, f"root@{STACK}", "echo hello; head -c 1000000 /dev/zero | wc -c"
                         ).stdout == "hello\n1000000\n"


@pytest.fixture
def nameserver(stack, directory):
    stack.spawn_outside("dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null",
                        f"--listen-address={KERNEL}", "--bind-interfaces",
                        "--address=/page.example/" + KERNEL, "--user=root")
    stack.wait_listening_outside(53)


def test_dig(stack, nameserver):
    assert stack.run("dig", "+short", f"@{KERNEL}", "page.example").stdout == f"{KERNEL}\n"
    assert stack.run("dig", "+short", "+tcp", f"@{KERNEL}", "page.example").stdout == f"{KERNEL}\n"


def test_names_are_looked_up_through_the_stack(stack, nameserver, nginx_outside, directory):
    (directory / "www" / "index.html").write_text("by name")
    resolv = directory / "resolv.conf"
    resolv.write_text(f"nameserver {KERNEL}\n")
    # A mount namespace of its own, so that the machine's /etc/resolv.conf stays as it is.
    command = f"mount --bind {resolv} /etc/resolv.conf && exec \"$@\""
    result = stack._run(["unshare", "-m", "sh", "-c", command, "sh",
                         *stack.run_argv("curl", "-sf", "http://page.example/")])
    assert result.stdout == "by name"


def test_asyncio_server_and_clients(stack):
    script = """
import asyncio

async def handle(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()

async def client(port, number):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for n in range(20):
        writer.write(f"client {number} line {n}\\n".encode())
        assert (await reader.readline()) == f"CLIENT {number} LINE {n}\\n".encode()
    writer.close()
    await writer.wait_closed()

async def main():
    server = await asyncio.start_server(handle, "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    await asyncio.gather(*(client(port, n) for n in range(50)))
    try:
        await asyncio.open_connection("127.0.0.1", 1)
    except ConnectionRefusedError:
        print("refused")

asyncio.run(main())
"""
    assert stack.run("python3", "-c", script).stdout == "refused\n"
    stack.assert_nothing_left()


def test_bypass_sends_a_range_to_the_kernel(stack):
    """With --bypass the connection is the kernel's: a server in the namespace of the caller answers."""
    script = ("import socket, threading\n"
              "s = socket.create_server(('127.0.0.1', 0))\n"
              "c = socket.create_connection(s.getsockname())\n"
              "print(s.accept()[1][0])\n")
    argv = stack.run_argv("python3", "-c", script)
    argv[argv.index("--"):argv.index("--")] = ["--bypass", "127.0.0.0/8"]
    assert stack._run(argv).stdout == "127.0.0.1\n"
    assert stack.ask("netstat", "-s") is not None


def test_what_was_written_comes_before_the_reset(stack):
    """A server that answers and closes without reading: its answer arrives although a reset follows it."""
    code = """
import os, signal, socket
listener = socket.create_server(("127.0.0.1", 7000))
if os.fork() == 0:
    while True:
        peer, _ = listener.accept()
        peer.send(b"refused")
        peer.close()
answers = set()
for turn in range(500):
    with socket.create_connection(("127.0.0.1", 7000)) as s:
        s.send(b"request")
        answers.add(s.recv(100))
print(answers, flush=True)
os.killpg(0, signal.SIGKILL)
"""
    result = stack.run("setsid", "-w", "python3", "-c", code, check=False)
    assert result.stdout == "{b'refused'}\n", result.stdout + result.stderr

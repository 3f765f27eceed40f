"""Names and interfaces: libc's resolver, whose own sockets never pass through a preload, asks over the stack."""

import re

from conftest import KERNEL, STACK, wait_until
from test_shim_programs import build  # noqa: F401: a fixture


def test_the_resolver_and_its_relatives(stack, build, directory):  # noqa: F811
    log = directory / "queries.log"
    text = ["x" * 200 for _ in range(6)]
    stack.spawn_outside(
        "dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", f"--listen-address={KERNEL}",
        "--bind-interfaces", "--port=53", "--local=/test/", "--local=//", "--log-queries", f"--log-facility={log}",
        "--host-record=host.example.test,192.0.2.1", "--host-record=other.second.test,192.0.2.2",
        *[f"--txt-record=long.example.test,{part}{each}" for each, part in enumerate(text)])
    stack.wait_listening_outside(53)
    resolv = directory / "resolv.conf"
    resolv.write_text(f"nameserver {KERNEL}\nsearch example.test second.test\noptions timeout:2 attempts:2\n")
    program = build("lookups", "-lresolv")
    inside = ("unshare", "-m", "sh", "-c", f"mount --bind {resolv} /etc/resolv.conf && exec \"$@\"", "sh")
    kernel = stack._run([*inside, *stack.outside_argv(program)]).stdout.splitlines()
    wait_until(lambda: "long.example.test from" in log.read_text(), what="the kernel's queries")
    before = log.read_text().count(f"from {STACK}")
    ours = stack._run([*inside, *stack.run_argv(program)]).stdout.splitlines()
    assert kernel and ours == kernel
    assert before == 0
    assert len(re.findall(f"from {STACK}", log.read_text())) >= 15, "the stack asked"


def test_a_silent_name_server(stack, directory):
    """Asked as often and waited for as long as resolv.conf says, asleep."""
    stack.spawn_outside("python3", "-c", f"""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("{KERNEL}", 53))
while True: print(server.recvfrom(512)[1], flush=True)
""")
    stack.wait_listening_outside(53)
    resolv = directory / "resolv.conf"
    resolv.write_text(f"nameserver {KERNEL}\noptions timeout:7 attempts:1\n")
    script = """
import resource, socket, time
start = time.monotonic()
try:
    socket.getaddrinfo("nobody.test.", 80)
except socket.gaierror as error:
    print(error.errno == socket.EAI_AGAIN)
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.monotonic() - start, used.ru_utime + used.ru_stime)
"""
    lines = stack._run(["unshare", "-m", "sh", "-c", f"mount --bind {resolv} /etc/resolv.conf && exec \"$@\"", "sh",
                        *stack.run_argv("python3", "-c", script)]).stdout.splitlines()
    elapsed, used = map(float, lines[1].split())
    assert lines[0] == "True"
    assert 6 < elapsed < 30
    assert used < 1

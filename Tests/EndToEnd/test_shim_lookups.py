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

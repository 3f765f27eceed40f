"""libuv's own tests, on the stack and on the kernel's network: nothing may fail that does not fail there too, but for what
EXCUSED names with its reason."""

import os
import re

from sources import built, cmake, without_names

EXCUSED = {
    "poll_oob": "asks for EPOLLPRI when urgent data and more behind them have come already",
    "tcp_try_write_error": "wants a reset to have arrived before some hundred writes fill the pair in front of the stack",
    "udp_send_unreachable": "wants the ICMP error of one datagram to have arrived when the next is sent, as on a loopback "
                            "without a queue: there the send gets it, here the receive",
}


def outcome(run, directory, folder):
    """Names of the tests: all, those that failed, and those skipped with the reasons."""
    result = run(*without_names(directory), folder / "build" / "uv_run_tests_a", check=False, timeout=900,
                 cwd=folder / "build", env={**os.environ, "UV_RUN_AS_ROOT": "1"})
    lines = re.findall(r"^(ok|not ok) \d+ - (\S+)(?: # SKIP (.*))?$", result.stdout, re.M)
    assert f"1..{len(lines)}" in result.stdout, result.stdout[-3000:]
    return ({name for _, name, _ in lines}, {name for word, name, _ in lines if word == "not ok"},
            {name: reason for _, name, reason in lines if reason}, result.stdout)


def test_libuv(stack, directory):
    folder = built("libuv1", cmake(targets=["uv_run_tests_a"]))
    tests, expected, skipped_there, _ = outcome(stack.outside, directory, folder)
    same, failed, skipped, text = outcome(stack.run, directory, folder)
    assert same == tests and len(tests) > 300
    assert {reason for name, reason in skipped.items() if name not in skipped_there} <= {"IPv6 not supported"}
    surplus = failed - expected - set(EXCUSED)
    assert not surplus, "\n".join(re.search(rf"^not ok \d+ - {name}$(?:\n#.*)*", text, re.M)[0] for name in surplus)
    stack.assert_nothing_left(90)

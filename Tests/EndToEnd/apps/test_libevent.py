"""libevent's own tests, on the stack and on the kernel's network: nothing may fail that does not fail there too, but for
what EXCUSED names with its reason."""

import os
import re

import pytest

from sources import built, cmake, without_names

EXCUSED = {
    "monotonic_prc": "measures how the machine's clock steps, which a busy machine fails: no socket is in it",
    "getaddrinfo": "wants :: among the addresses to bind: the stack has no IPv6, and a server that binds all it is given "
                   "would fail",
}
# What needs no descriptor of the stack need not be run with each way to wait.
NETWORK = ["main/..", "et/..", "bufferevent/..", "listener/..", "ssl/.."]
BACKENDS = {"epoll": ({}, []), "poll": ({"EVENT_NOEPOLL": "1"}, NETWORK),
            "select": ({"EVENT_NOEPOLL": "1", "EVENT_NOPOLL": "1"}, NETWORK)}


def outcome(run, directory, folder, backend):
    """Names of the tests that failed, how many there were, and what was printed."""
    environment, groups = BACKENDS[backend]
    result = run(*without_names(directory), folder / "build/bin/regress", "--quiet", *groups, check=False, timeout=900,
                 cwd=directory, env={**os.environ, **environment})
    text = result.stdout + result.stderr
    counts = re.search(r"^(?:\d+/(\d+) TESTS FAILED|(\d+) tests ok)\.  ?\((\d+) skipped\)", text, re.M)
    assert counts, text[-3000:]
    return set(re.findall(r"^  \[(\S+) FAILED\]", text, re.M)), int(counts[1] or counts[2]) + int(counts[3]), text


@pytest.mark.parametrize("backend", BACKENDS)
def test_libevent(stack, directory, backend):
    folder = built("libevent", cmake("-DEVENT__LIBRARY_TYPE=STATIC", "-DEVENT__DISABLE_BENCHMARK=ON",
                                     "-DEVENT__DISABLE_SAMPLES=ON", "-DEVENT__DISABLE_MBEDTLS=ON", targets=["regress"]))
    expected, total, _ = outcome(stack.outside, directory, folder, backend)
    failed, done, text = outcome(stack.run, directory, folder, backend)
    assert done == total
    surplus = failed - expected - set(EXCUSED)
    assert not surplus, text
    stack.assert_nothing_left(90)

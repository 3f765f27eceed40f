"""Redis's own tests of what it does over a network, from Debian's source, with Debian's server, client and benchmark: every
connection of the servers, of the replicas and of the test program itself is on the stack."""

import os
import re
import shutil

import pytest

from sources import built, without_names

UNITS = ["unit/networking", "unit/protocol", "unit/pubsub", "unit/limits", "unit/querybuf", "unit/obuf-limits", "unit/wait",
         "unit/auth", "integration/replication", "integration/replication-2", "integration/replication-3",
         "integration/replication-4", "integration/replication-psync", "integration/block-repl", "integration/psync2",
         "integration/redis-cli", "integration/redis-benchmark"]
PROGRAMS = ["redis-server", "redis-cli", "redis-benchmark", "redis-check-aof", "redis-check-rdb"]


@pytest.fixture(scope="module")
def suite():
    return built("redis", lambda source, folder: None) / "source"


@pytest.mark.parametrize("unit", UNITS)
def test_unit(stack, directory, suite, unit):
    # The tests write into their folder.
    copy = directory / "redis"
    copy.mkdir()
    shutil.copytree(suite / "tests", copy / "tests")
    for name in ("runtest", "redis.conf", "sentinel.conf"):
        shutil.copy(suite / name, copy / name)
    (copy / "src").mkdir()
    for name in PROGRAMS:
        (copy / "src" / name).symlink_to(shutil.which(name))
    result = stack.run(*without_names(directory), "./runtest", "--single", unit, "--clients", 1, "--quiet", cwd=copy,
                       check=False, timeout=900, env={**os.environ, "TERM": "dumb"})
    text = re.sub(r"\x1b\[[\d;]*m", "", result.stdout)
    assert result.returncode == 0 and "All tests passed without errors!" in text, text[-5000:] + result.stderr
    stack.assert_nothing_left(90)

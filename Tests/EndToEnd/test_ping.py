import re

from conftest import STACK


def loss(text):
    return float(re.search(r"([\d.]+)% packet loss", text).group(1))


def test_a_hundred_pings_without_loss(stack):
    assert loss(stack.outside("ping", "-c", 100, "-i", 0.01, STACK).stdout) == 0


def test_a_fragmented_ping_is_put_together_and_answered(stack):
    assert loss(stack.outside("ping", "-c", 5, "-i", 0.1, "-s", 30000, STACK).stdout) == 0


def test_arping_sees_the_stack(stack):
    assert "1 response" in stack.outside("arping", "-c", 1, "-I", "tap0", STACK).stdout


def test_traceroute_reaches_the_stack(stack):
    assert STACK in stack.outside("traceroute", "-n", "-m", 3, STACK).stdout.splitlines()[-1]

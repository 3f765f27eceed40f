"""The tools: text and JSON."""

import pwd
import re
import subprocess
import time

import pytest

from conftest import ALPS, KERNEL, STACK


def test_every_listing_speaks_json(stack):
    for command in (["netstat"], ["netstat", "-i"], ["netstat", "-s"], ["netstat", "-r"], ["stat"], ["ps"],
                    ["plugin", "list"], ["sysctl", "-a"], ["route", "show"], ["arp"]):
        assert isinstance(stack.ask(*command), dict), command
        assert stack.tool(*command).stdout


def test_interfaces_and_routes_of_a_new_stack(stack):
    interfaces = {row["name"]: row for row in stack.ask("netstat", "-i")["interfaces"]}
    assert interfaces["lo0"]["addresses"][0]["address"] == "127.0.0.1"
    assert interfaces["tap0"]["addresses"][0] | {"flags": []} == {
        "address": STACK, "prefixLength": 24, "broadcast": "10.11.12.255", "flags": []}
    routes = stack.ask("route", "show")["routes"]
    assert any(row["prefixLength"] == 0 and row["gateway"] == KERNEL for row in routes)


def test_routes_are_added_found_and_deleted(stack):
    stack.tool("route", "add", "192.0.2.0/24", "10.11.12.9")
    found = stack.ask("route", "get", "192.0.2.77")["routes"][0]
    assert (found["destination"], found["gateway"], found["interface"]) == ("192.0.2.0", "10.11.12.9", "tap0")
    stack.tool("route", "delete", "192.0.2.0/24")
    assert stack.ask("route", "get", "192.0.2.77")["routes"][0]["prefixLength"] == 0
    assert stack.tool("route", "add", "nonsense", "10.11.12.9", check=False).returncode == 1
    unreachable = stack.tool("route", "add", "198.51.100.0/24", "8.8.8.8", check=False)
    assert unreachable.returncode == 0 or "8.8.8.8" in unreachable.stderr


def test_tunables_are_read_set_and_checked(stack):
    names = {row["name"] for row in stack.ask("sysctl", "-a")["tunables"]}
    assert "net.inet.tcp.mssdflt" in names
    stack.tool("sysctl", "net.inet.tcp.mssdflt=1000")
    assert stack.tool("sysctl", "net.inet.tcp.mssdflt").stdout == "net.inet.tcp.mssdflt=1000\n"
    result = stack.tool("sysctl", "net.inet.tcp.mssdflt=-5", check=False)
    assert result.returncode == 1 and "mssdflt" in result.stderr
    assert stack.tool("sysctl", "no.such.name", check=False).returncode == 1


def test_a_neighbour_is_learnt_and_static_ones_are_kept(stack):
    stack.outside("ping", "-c", 1, STACK)
    assert any(row["address"] == KERNEL for row in stack.ask("arp")["neighbors"])
    stack.tool("arp", "add", "10.11.12.77", "02:00:00:00:00:77")
    row = next(row for row in stack.ask("arp")["neighbors"] if row["address"] == "10.11.12.77")
    assert row["hardware"] == "02:00:00:00:00:77"
    stack.tool("arp", "delete", "10.11.12.77")
    assert not any(row["address"] == "10.11.12.77" for row in stack.ask("arp")["neighbors"])


def test_an_idle_host_uses_no_cpu(stack):
    def ticks():
        fields = open(f"/proc/{stack.host.pid}/stat").read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    time.sleep(1)
    before = ticks()
    time.sleep(3)
    assert ticks() - before <= 1


@pytest.mark.parametrize("command", [[], ["host"], ["up"], ["down"], ["run"], ["plugin"], ["plugin", "swap"], ["sysctl"],
                                     ["netstat"], ["stat"], ["ps"], ["route"], ["arp"], ["pkt", "run"], ["torture"]])
def test_help_of_every_command(command):
    result = subprocess.run([ALPS, *command, "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "USAGE" in result.stdout


def test_a_tool_without_a_stack_says_what_to_do():
    result = subprocess.run([ALPS, "netstat", "--name", "nobody"], capture_output=True, text=True)
    assert result.returncode == 1 and "alps up" in result.stderr


def test_clients_are_logged_with_their_credentials(make_stack):
    stack = make_stack()
    stack.run("setpriv", "--reuid=nobody", "--clear-groups", "/usr/bin/python3", "-c", "import socket; socket.socket()")
    line = re.search(r"session \d+: python3, process \d+ of user (\d+)", stack.log.read_text())
    assert line and line[1] == str(pwd.getpwnam("nobody").pw_uid)
    quiet = make_stack("--log-level", "warning")
    quiet.run("/usr/bin/python3", "-c", "import socket; socket.socket()")
    assert "session " not in quiet.log.read_text()

"""What the built libraries need, export and call."""

import re
import subprocess

import pytest

from conftest import BIN

PLUGINS = ["arp", "ipv4", "icmp", "udp", "tcp"]
ALLOWED_UNDEFINED = {"free", "memset", "memcpy", "memmove", "memcmp", "posix_memalign", "__stack_chk_fail"}
FORBIDDEN = ["swift_retain", "swift_release", "swift_allocObject", "posix_memalign", "swift_beginAccess", "swift_once"]


def library(name):
    return str(BIN / f"libalps-{name}.so")


def output(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def exports(name):
    return {line.split()[-1].split("@")[0] for line in output("nm", "-D", "--defined-only", library(name)).splitlines()}


@pytest.mark.parametrize("name", PLUGINS + ["shim"])
def test_libc_is_the_only_library_needed(name):
    assert re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", library(name))) == ["libc.so.6"]


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_exports_its_entry_only(name):
    assert exports(name) == {"alps_plugin_entry"}


def test_the_shim_exports_only_names_of_libc():
    libc = re.search(r"libc\.so\.6 => (\S+)", output("ldd", library("shim"))).group(1)
    names = {line.split()[-1].split("@")[0] for line in output("nm", "-D", "--defined-only", libc).splitlines()}
    assert exports("shim") - names == set()
    assert {"socket", "connect", "accept4", "recvmsg", "getaddrinfo", "ioctl", "fcntl"} <= exports("shim")


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_uses_nothing_of_the_system(name):
    undefined = {line.split()[-1].split("@")[0] for line in output("nm", "-D", "-u", library(name)).splitlines()
                 if line.split()[0] == "U"}
    assert undefined <= ALLOWED_UNDEFINED


def functions(name):
    """Disassembly of a library, by symbol."""
    found, current = {}, None
    for line in output("objdump", "-d", "--no-show-raw-insn", library(name)).splitlines():
        if header := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            current = found.setdefault(header.group(1), [])
        elif current is not None:
            current.append(line)
    return found


def calls(body):
    return {match for line in body for match in re.findall(r"\b(?:call|jmp)\s+[0-9a-f]+ <([^>+]+)(?:@plt)?[^>]*>", line)}


@pytest.mark.parametrize("name", PLUGINS + ["shim"])
def test_data_paths_neither_allocate_nor_count_references(name):
    """No function of a release library may call the allocator or the reference counter, the runtime's own bodies aside."""
    guilty = {}
    for symbol, body in functions(name).items():
        if symbol.startswith(("swift_", "$es", "$ss", "posix_memalign", "_start", ".plt")):
            continue
        bad = {call for call in calls(body) if call.split("@")[0] in FORBIDDEN}
        if bad:
            guilty[symbol] = bad
    assert guilty == {}

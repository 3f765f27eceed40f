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
    return {line.split()[-1].split("@")[0]
            for line in output("nm", "-D", "--defined-only", "--extern-only", library(name)).splitlines()}


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


def test_the_shim_is_no_ground_for_warnings(directory):
    """A program at a fixed address that takes the address of a function warns at its start if that is protected."""
    assert "PROTECTED" not in output("readelf", "--dyn-syms", "-W", library("shim"))
    source, program = directory / "fixed.c", directory / "fixed"
    source.write_text("""
#include <sys/socket.h>
#include <unistd.h>
void *volatile functions[] = {(void *)getpeername, (void *)getsockname, (void *)read, (void *)close};
int main(void) { return functions[0] == 0; }
""")
    subprocess.run(["gcc", "-no-pie", "-fno-pie", "-o", program, source], check=True)
    result = subprocess.run([program], env={"LD_PRELOAD": library("shim")}, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_uses_nothing_of_the_system(name):
    undefined = {line.split()[-1].split("@")[0] for line in output("nm", "-D", "-u", library(name)).splitlines()
                 if line.split()[0] == "U"}
    assert undefined <= ALLOWED_UNDEFINED


def symbols(name):
    """Functions of a library with their sizes, by address."""
    found = {}
    for line in output("nm", "-S", library(name)).splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[2] in "tTwW":
            found[int(fields[0], 16)] = (fields[3], int(fields[1], 16))
    return found


def calls(name):
    """What each function of a library calls: names, or an address that no symbol stands for."""
    starts, found, current, end = symbols(name), {}, None, 0
    for line in output("objdump", "-d", "--no-show-raw-insn", library(name)).splitlines():
        match = re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)$", line)
        if not match:
            continue
        address, operation, operands = int(match.group(1), 16), match.group(2), match.group(3)
        if address in starts:
            current, end = starts[address][0], address + starts[address][1]
        if current is None or address >= end or operation not in ("call", "jmp"):
            continue
        target = re.match(r"([0-9a-f]+) <([^>]+)>", operands)
        if not target:
            continue
        where, label = int(target.group(1), 16), target.group(2)
        if label.endswith("@plt"):
            found.setdefault(current, set()).add(label[:-4])
        elif where in starts:
            found.setdefault(current, set()).add(starts[where][0])
        elif operation == "call":
            found.setdefault(current, set()).add(hex(where))
    return found


RUNTIME = ("swift_", "$es", "$ss", "_start")


@pytest.mark.parametrize("name", PLUGINS + ["shim"])
def test_data_paths_neither_allocate_nor_count_references(name):
    """No function of a release library may call the allocator or the reference counter; only the runtime's own bodies do."""
    guilty = {function: bad for function, callees in calls(name).items() if not function.startswith(RUNTIME)
              if (bad := {callee for callee in callees if callee in FORBIDDEN or callee.startswith("0x")})}
    assert guilty == {}


def test_the_check_above_sees_calls():
    """The disassembly is read right: every plugin's input path calls something by name."""
    assert any("memset" in callees or "memcpy" in callees for callees in calls("shim").values())

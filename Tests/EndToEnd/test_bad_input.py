"""Garbage from clients and bad plugins: refused with one line, the host stays as it was."""

import random
import socket
import struct
import subprocess

import pytest

from conftest import BIN, ROOT, STACK

HEADERS = ROOT / "Sources" / "PluginAPI" / "include"

TEMPLATE = """
#include <alps/alps.h>
{note}
static int32_t create(const alps_host *host, const char *variant, void **instance) {{ {create} }}
static void destroy(void *instance) {{ (void)instance; }}
static int32_t start(void *instance) {{ (void)instance; return 0; }}
{requires}
int32_t alps_plugin_entry(alps_descriptor *out) {{
    out->size = sizeof *out; out->magic = ALPS_MAGIC; out->abi_major = ALPS_ABI_MAJOR; out->abi_minor_needed = 0;
    out->flags = ALPS_PLUGIN_UNLOADABLE; out->name = "bad"; out->version = "1.0.0"; out->summary = "";
    out->create = create; out->destroy = destroy; out->start = start; {descriptor}
    return 0;
}}
"""


def plugin(directory, name, note='ALPS_PLUGIN_NOTE("bad", "1.0.0", "", "");', create="*instance = (void *)1; return 0;",
           requires="", descriptor="", defines=()):
    source = directory / f"{name}.c"
    source.write_text(TEMPLATE.format(note=note, create=create, requires=requires, descriptor=descriptor))
    path = directory / f"{name}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", f"-I{HEADERS}", *defines, "-o", str(path), str(source)], check=True)
    return path


CASES = {
    "not an ELF file": lambda d: (d / "text.so", (d / "text.so").write_text("hello"), "ELF")[0::2],
    "wrong magic": lambda d: (plugin(d, "magic", note="""
#undef ALPS_MAGIC
#define ALPS_MAGIC 0x12345678u
ALPS_PLUGIN_NOTE("bad", "1.0.0", "", "");"""), "magic"),
    "another major": lambda d: (plugin(d, "major", note="""
#undef ALPS_ABI_MAJOR
#define ALPS_ABI_MAJOR 7
ALPS_PLUGIN_NOTE("bad", "1.0.0", "", "");"""), "7"),
    "a missing interface": lambda d: (plugin(
        d, "missing", note='ALPS_PLUGIN_NOTE("bad", "1.0.0", "", "alps.telepathy/1");',
        requires='static const char *const needs[] = {"alps.telepathy/1"};',
        descriptor="out->requires_ = needs; out->requires_count = 1;"), "alps.telepathy/1"),
    "create that fails": lambda d: (plugin(d, "create", create="return ALPS_ENOMEM;"), "create"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_plugin_is_refused_with_one_line(stack, directory, case):
    path, word = CASES[case](directory)
    before = stack.ask("plugin", "list")
    result = stack.tool("plugin", "load", path, check=False)
    assert result.returncode == 1
    assert word in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert stack.ask("plugin", "list") == before
    stack.outside("ping", "-c", 1, STACK)


def test_garbage_on_the_control_socket_ends_that_session_only(stack):
    generator = random.Random(1)
    for number in range(200):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(stack.socket)
            client.settimeout(5)
            garbage = generator.randbytes(generator.randrange(1, 400))
            if number % 2:
                garbage = struct.pack("<IIHHiQQQ", 0x46504C41, generator.choice([0, 20, 1 << 31]), 1,
                                      generator.randrange(30), 0, number, generator.getrandbits(64), 0) + garbage
            try:
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass
            except (ConnectionResetError, BrokenPipeError):
                pass
    assert stack.host.poll() is None
    stack.outside("ping", "-c", 1, STACK)
    stack.assert_nothing_left()

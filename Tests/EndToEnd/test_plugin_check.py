"""`alps plugin check`, on our own plugins and on such as break each of the rules."""

import json
import pathlib
import subprocess

import pytest

from conftest import ALPS, BIN, ROOT

PLUGINS = [str(BIN / f"libalps-{name}.so") for name in ("arp", "ipv4", "icmp", "udp", "tcp")]
SOURCE = ROOT / "Tests" / "CPlugin" / "pair.c"


def check(*paths):
    result = subprocess.run([ALPS, "plugin", "check", "--json", *map(str, paths)], capture_output=True, text=True)
    return result.returncode, {row["check"]: row for row in json.loads(result.stdout)}


def build(directory, more="", *options):
    source = directory / "plugin.c"
    source.write_text(SOURCE.read_text() + more)
    exports = directory / "exports.map"
    exports.write_text("{ global: alps_plugin_entry; local: *; };")
    library = directory / "plugin.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", f"-I{ROOT}/Sources/PluginAPI/include", *options, "-o", library, source],
                   check=True)
    return library


def test_our_own_plugins_pass():
    result = subprocess.run([ALPS, "plugin", "check", *PLUGINS], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("ok ") == 7 * len(PLUGINS) and "FAIL" not in result.stdout


@pytest.mark.parametrize("case, more, options, words", [
    ("exports", "int other_function(void) { return 1; }", [], "other_function"),
    ("imports", "", [], "snprintf"),
    ("libraries", "#include <math.h>\ndouble volatile x = 2; double y(void) { return pow(x, x); }", ["-Wl,--no-as-needed", "-lm"],
     "libm.so.6"),
    ("globals", "char table[100000] = {1}; char *touch(void) { return table; }", [], "100"),
])
def test_what_a_plugin_should_not_do_is_found(directory, case, more, options, words):
    script = [] if case == "exports" else [f"-Wl,--version-script={directory}/exports.map"]
    status, rows = check(build(directory, more, *script, *options))
    assert status == 1
    assert not rows[case]["ok"] and words in rows[case]["detail"]
    assert rows["note"]["ok"] and rows["ABI"]["ok"]


def test_damaged_files_are_survived(directory):
    whole = pathlib.Path(PLUGINS[0]).read_bytes()
    damaged = directory / "damaged.so"
    for length in (*range(0, len(whole), len(whole) // 40), len(whole) - 8, len(whole) - 1):
        damaged.write_bytes(whole[:length])
        status, rows = check(damaged)
        assert status == 1 and any(not row["ok"] for row in rows.values())
    for place in range(0, len(whole), 509):
        damaged.write_bytes(whole[:place] + bytes(255 for _ in range(8)) + whole[place + 8:])
        assert check(damaged)[0] in (0, 1)
